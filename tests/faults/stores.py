"""Faults of what the network or a disk did to an archive on its way to the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from builders import PROFILES, StoreBuilder

from episodes.store import list_store
from episodes.validation import ValidationPolicy, validate
from faults.table import Bench, Outcome, fault
from features.registry import LAYOUT


def _populate(folder: Path) -> None:
    StoreBuilder(folder).populate(profiles=PROFILES[:1], variants=1, duration_s=40)


@fault("flipped bit: archive", tries=200, quick=2)
def flipped_archive(bench: Bench) -> Outcome:
    """One bit of an archive is another: the episode is rejected by its hash."""

    def flip(content: bytearray) -> None:
        position = bench.random.randrange(8 * len(content))
        content[position // 8] ^= 1 << position % 8

    return _judged(bench, flip)


@fault("cut: archive", tries=200, quick=2)
def cut_archive(bench: Bench) -> Outcome:
    """An archive ends early: it is not used, as long as the rest has not arrived."""

    def cut(content: bytearray) -> None:
        del content[bench.random.randrange(len(content)) :]

    return _judged(bench, cut)


def _judged(bench: Bench, damage: Callable[[bytearray], None]) -> Outcome:
    store = bench.copy(bench.made("one-episode", _populate))
    stored = list_store(store).episodes[0]
    content = bytearray(stored.path.read_bytes())
    damage(content)
    stored.path.write_bytes(content)
    record, _ = validate(list_store(store).episodes[0], ValidationPolicy(), LAYOUT.fields)
    reason = "tar_hash_mismatch" if len(content) == stored.size_bytes else "listed_file_absent"
    noticed = reason in record.reasons and not record.usable
    return Outcome("noticed" if noticed else "wrong", record.line)
