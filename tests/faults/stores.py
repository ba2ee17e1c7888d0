"""Faults of what the network or a disk did to an archive on its way to the store."""

from __future__ import annotations

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
    store = bench.copy(bench.made("one-episode", _populate))
    stored = list_store(store).episodes[0]
    content = bytearray(stored.path.read_bytes())
    position = bench.random.randrange(8 * len(content))
    content[position // 8] ^= 1 << position % 8
    stored.path.write_bytes(content)
    record, _ = validate(stored, ValidationPolicy(), LAYOUT.fields)
    noticed = "tar_hash_mismatch" in record.reasons and not record.usable
    return Outcome("noticed" if noticed else "wrong", record.line)
