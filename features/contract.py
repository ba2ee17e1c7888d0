"""The input contract: the meaning of a model's input, as ordered sections with hashes.

A checkpoint carries the contract it was trained under. Loading compares it with the live one and
lists every difference. Files and models are not known here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from features.files import file_sha256
from features.registry import InputKind, Layout

PREPROCESSING_VERSION = 1
"""Increase it with every change of code that changes a series or statistic of an equal layout."""

GOLDEN_FILE = Path(__file__).parent / "golden" / "golden.npz"

RULES: dict[str, Any] = {
    "resample": {
        "level": "last value, carried up to max_age_ms",
        "counter": "linear interpolation, increase per second, no stretch over max_age_ms",
        "bucket": "sum of rows, no row is 0",
    },
    "wrap": {"level": "none", "counter": "a decrease is missing", "bucket": "none"},
    "clock": "t_wall_ns since the earliest label",
    "edge": "whole windows only",
    "transform": "sign(x) log(1 + |x|)",
    "baseline": "median over the last horizon_windows windows of the machine, this one included",
    "baseline_of": {"summary": "the statistic", "tensor": "the window's mean"},
    "assignment": "phase of the latest label at or before the window's centre",
    "purity": "share of bin centres at which the phase is the window's label",
}
"""Rules that are in the code and not in the layout. Change them in both places."""


def canonical_json(value: object) -> bytes:
    """RFC 8785 for the values of contracts: keys in order of UTF-16, no space, no floats.

    Raises:
        ValueError: ``value`` has a float, an integer of 2^53 or more, a key that is not a string,
            or text that is not Unicode.
    """
    return json.dumps(_canonical(value), separators=(",", ":"), ensure_ascii=False).encode()


def _canonical(value: object) -> object:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"key must be a string, got {key!r}")
        # UTF-16 puts characters above U+FFFF before U+E000; code points would not
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return {key: _canonical(value[key]) for key in keys}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, int) and abs(value) >= 2**53:
        raise ValueError(f"integer must be below 2^53, got {value}")
    if not isinstance(value, str | int | None):
        raise ValueError(f"value must be text, an integer, true, false or null, got {value!r}")
    return value


def section_hash(name: str, value: object) -> str:
    """sha256 of a section; its name keeps equal bytes of two sections apart."""
    return hashlib.sha256(f"phasewatch/{name}/v1\0".encode() + canonical_json(value)).hexdigest()


@dataclass(frozen=True)
class Contract:
    """Sections by name. Equal ``hash`` means equal meaning of the input."""

    sections: dict[str, Any]

    @cached_property
    def hashes(self) -> dict[str, str]:
        return {name: section_hash(name, value) for name, value in self.sections.items()}

    @cached_property
    def hash(self) -> str:
        return section_hash("contract", self.hashes)

    def as_header(self) -> dict[str, Any]:
        """The contract as a checkpoint's header has it."""
        hashes = self.hashes
        return {
            name: {"hash": hashes[name], "value": value} for name, value in self.sections.items()
        }


def golden_digest() -> str:
    """sha256 of the committed golden vectors."""
    return file_digest(GOLDEN_FILE)


@cache
def file_digest(path: Path) -> str:
    """sha256 of a committed file, computed once per process."""
    return file_sha256(path)


def contract_of(layout: Layout, input_kind: InputKind) -> Contract:
    """The contract of an input kind under a layout; the same object again, while nothing changes.

    A run asks for it thousands of times.
    """
    return _contract_of(
        layout, input_kind, PREPROCESSING_VERSION, golden_digest(), json.dumps(RULES)
    )


@lru_cache(maxsize=8)
def _contract_of(layout: Layout, input_kind: InputKind, *_: object) -> Contract:
    window = layout.window
    sections: dict[str, Any] = {
        "channels": [
            {
                "name": channel.name,
                "source": channel.source,
                "path": list(channel.path),
                "unit": channel.unit,
                "kind": channel.kind,
                "wrap": RULES["wrap"][channel.kind],
                "deployable": channel.deployable,
                "absolute": channel.absolute,
            }
            for channel in layout.channels
        ],
        "window": {
            "length_ms": window.length_ms,
            "stride_ms": window.stride_ms,
            "bin_ms": window.bin_ms,
            "max_age_ms": window.max_age_ms,
            "resample": dict(RULES["resample"]),
            "clock": RULES["clock"],
            "edge": RULES["edge"],
        },
    }
    if input_kind == "summary":
        sections["stats"] = {"ordered": list(layout.stats), "min_bins": window.min_bins}
    sections["relative"] = {
        "horizon_windows": window.horizon_windows,
        "transform": RULES["transform"],
        "baseline": RULES["baseline"],
        "of": RULES["baseline_of"][input_kind],
    }
    sections["labels"] = {
        "classes": list(layout.phases),
        "assignment": RULES["assignment"],
        "purity": RULES["purity"],
    }
    sections["preprocessing"] = {
        "version": PREPROCESSING_VERSION,
        "golden_sha256": golden_digest(),
    }
    return Contract(sections)


def contract_hashes(layout: Layout) -> dict[InputKind, str]:
    """Contract hash of every input kind, for the manifests of stages."""
    return {kind: contract_of(layout, kind).hash for kind in ("summary", "tensor")}


_ORDERED = {"stats": ("statistic", "ordered"), "labels": ("class", "classes")}
"""Section with an ordered list -> noun of an entry, key of the list."""


def diff_contracts(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Every difference between two contracts' sections, one line each."""
    lines: list[str] = []
    for name in dict.fromkeys([*now, *was]):
        if name not in now:
            lines.append(f"section {name} was there, is gone")
        elif name not in was:
            lines.append(f"section {name} is new")
        elif name == "channels":
            lines += _diff_channels(was[name], now[name])
        elif name in _ORDERED:
            noun, key = _ORDERED[name]
            lines += _diff_ordered(noun, was[name][key], now[name][key])
            rest = ({k: v for k, v in side[name].items() if k != key} for side in (was, now))
            lines += _diff_values(name, *rest)
        else:
            lines += _diff_values(name, was[name], now[name])
    return lines


def _diff_channels(was: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterator[str]:
    yield from _diff_ordered("channel", [c["name"] for c in was], [c["name"] for c in now])
    after = {channel["name"]: channel for channel in now}
    for before in was:
        channel = after.get(before["name"])
        if channel is None:
            continue
        for key in dict.fromkeys([*channel, *before]):  # a header's keys may be in any order
            old, new = before.get(key), channel.get(key)
            if old != new:
                yield f"{before['name']}: {key} was {_word(old)}, is now {_word(new)}"


def _diff_ordered(noun: str, was: list[str], now: list[str]) -> Iterator[str]:
    """One line per entry that is gone, new or moved, or per run that moved together."""
    run: list[int] = []  # positions of consecutive entries that moved by the same distance

    def shift(i: int) -> int:
        return now.index(was[i]) - i

    def flush() -> Iterator[str]:
        if len(run) > 1:
            first, last, by = run[0], run[-1], shift(run[0])
            yield (
                f"{noun}s {first}-{last} ({was[first]} … {was[last]}) moved by {by:+d} "
                f"to {first + by}-{last + by}"
            )
        elif run:
            yield f"{noun} {run[0]} was {was[run[0]]}, has moved to {now.index(was[run[0]])}"
        run.clear()

    for i in range(max(len(was), len(now))):
        old = was[i] if i < len(was) else None
        new = now[i] if i < len(now) else None
        comes = new is not None and new not in was
        moves = old != new and old is not None and old in now
        if moves and not comes:
            if run and shift(run[-1]) != shift(i):
                yield from flush()
            run.append(i)
            continue
        yield from flush()
        if old is None and comes:
            yield f"{noun} {i} is new: {new}"
        elif old is not None and old != new:
            gone = f"moved to {now.index(old)}" if moves else "gone"
            yield f"{noun} {i} was {old} ({gone})" + (f", is now {new} (new)" if comes else "")
    yield from flush()


def _diff_values(name: str, was: Any, now: Any) -> Iterator[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *was]):
            yield from _diff_values(f"{name}.{key}", was.get(key), now.get(key))
    elif was != now:
        yield f"{name} was {_word(was)}, is now {_word(now)}"


def _word(value: Any) -> str:
    if value is None:
        return "absent"
    plain = isinstance(value, str) and value and " " not in value
    return value if plain else json.dumps(value, ensure_ascii=False)
