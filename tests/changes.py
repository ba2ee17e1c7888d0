"""Changes of what an input means: one for everything a contract holds, and what is said of each."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from features import contract, registry
from features.registry import LAYOUT, Channel, InputKind, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

EXTRA = Channel("guest.steal_jiffies", "guest", ("steal_jiffies",), "jiffies/s", "counter", True)


@dataclass(frozen=True)
class Change:
    """Another layout, or another rule of the code, or both."""

    lines: tuple[str, ...]  # all lines of the diff, in this order
    layout: Layout = LAYOUT
    rules: dict[str, Any] = field(default_factory=dict)  # of features.contract.RULES
    constants: dict[str, Any] = field(default_factory=dict)  # of features.contract
    summary_only: bool = False

    def concerns(self, kind: InputKind) -> bool:
        return kind == "summary" or not self.summary_only

    @contextmanager
    def in_force(self) -> Iterator[Layout]:
        """The code as changed; gives the layout."""
        with patch.dict(contract.RULES, self.rules), patch.dict(vars(contract), self.constants):
            yield self.layout


LIVE = LAYOUT.channels
NAMES = LAYOUT.channel_names
LAST = len(NAMES) - 1


def at(name: str) -> int:
    """Position of a channel in the live layout."""
    return NAMES.index(name)


def shifted(first: int, last: int, by: int) -> str:
    """The line on channels ``first`` to ``last`` of the live layout that moved together."""
    return (
        f"channels {first}-{last} ({NAMES[first]} … {NAMES[last]}) moved by {by:+d} "
        f"to {first + by}-{last + by}"
    )


def channel(name: str, /, **changes: Any) -> Layout:
    """The layout with one channel described otherwise."""
    return channels(*(replace(c, **changes) if c.name == name else c for c in LIVE))


def channels(*order: Channel) -> Layout:
    """The layout with these channels."""
    return replace(LAYOUT, channels=order)


def window(**changes: int) -> Layout:
    return replace(LAYOUT, window=replace(LAYOUT.window, **changes))


def with_statistics(*stats: str) -> Layout:
    with patch.object(registry, "STATS", stats):
        return replace(LAYOUT, stats=stats)


def _swapped_paths(one: str, other: str) -> Layout:
    path = {one: LIVE[at(other)].path, other: LIVE[at(one)].path}
    return channels(*(replace(c, path=path.get(c.name, c.path)) for c in LIVE))


def _rule(name: str, kind: str, text: str) -> dict[str, Any]:
    return {name: contract.RULES[name] | {kind: text}}


_COUNTERS = [c.name for c in LIVE if c.kind == "counter"]
_RENAMED, _AMID = at("proc.vcpu_wait_ns"), at("guest.cpu_user_jiffies")
_DROPPED = at("proc.rss_bytes")
# of the change "several at once": two channels go, the last but one is replaced
_FIRST_GONE, _SECOND_GONE = at("proc.vcpu_run_ns"), at("guest.cpu_iowait_jiffies")

CHANGES: dict[str, Change] = {
    "channels reordered": Change(
        (
            f"channel 0 was {NAMES[0]}, has moved to 1",
            f"channel 1 was {NAMES[1]}, has moved to 0",
        ),
        channels(LIVE[1], LIVE[0], *LIVE[2:]),
    ),
    "channel moved to the end": Change(
        (f"channel 0 was {NAMES[0]}, has moved to {LAST}", shifted(1, LAST, -1)),
        channels(*LIVE[1:], LIVE[0]),
    ),
    "channel renamed": Change(
        (f"channel {_RENAMED} was proc.vcpu_wait_ns (gone), is now proc.vcpu_queue_ns (new)",),
        channel("proc.vcpu_wait_ns", name="proc.vcpu_queue_ns"),
    ),
    "channel added": Change((f"channel {LAST + 1} is new: {EXTRA.name}",), channels(*LIVE, EXTRA)),
    "channel added amid": Change(
        (
            f"channel {_AMID} was {NAMES[_AMID]} (moved to {_AMID + 1}), is now {EXTRA.name} (new)",
            shifted(_AMID + 1, LAST, +1),
        ),
        channels(*LIVE[:_AMID], EXTRA, *LIVE[_AMID:]),
    ),
    "channel dropped": Change((f"channel {LAST} was {NAMES[LAST]} (gone)",), channels(*LIVE[:-1])),
    "channel dropped amid": Change(
        (f"channel {_DROPPED} was {NAMES[_DROPPED]} (gone)", shifted(_DROPPED + 1, LAST, -1)),
        channels(*LIVE[:_DROPPED], *LIVE[_DROPPED + 1 :]),
    ),
    "two channels read each other's field": Change(
        (
            'guest.cpu_user_jiffies: path was ["cpu_user_jiffies"], is now ["cpu_system_jiffies"]',
            'guest.cpu_system_jiffies: path was ["cpu_system_jiffies"], '
            'is now ["cpu_user_jiffies"]',
        ),
        _swapped_paths("guest.cpu_user_jiffies", "guest.cpu_system_jiffies"),
    ),
    "path": Change(
        ('guest.load_1m: path was ["load_1m"], is now ["load", "1m"]',),
        channel("guest.load_1m", path=("load", "1m")),
    ),
    "source": Change(
        ("proc.rss_bytes: source was proc, is now qmp",), channel("proc.rss_bytes", source="qmp")
    ),
    "unit": Change(
        ("guest.net_rx_bytes: unit was B/s, is now kB/s",),
        channel("guest.net_rx_bytes", unit="kB/s"),
    ),
    "counter becomes level": Change(
        (
            "guest.forks: kind was counter, is now level",
            'guest.forks: wrap was "a decrease is missing", is now none',
        ),
        channel("guest.forks", kind="level"),
    ),
    "level becomes counter": Change(
        (
            "guest.load_1m: kind was level, is now counter",
            'guest.load_1m: wrap was none, is now "a decrease is missing"',
        ),
        channel("guest.load_1m", kind="counter"),
    ),
    "wrap rule": Change(
        tuple(
            f'{name}: wrap was "a decrease is missing", is now "wraps at 2^32"'
            for name in _COUNTERS
        ),
        rules=_rule("wrap", "counter", "wraps at 2^32"),
    ),
    "deployable": Change(
        ("proc.rss_bytes: deployable was false, is now true",),
        channel("proc.rss_bytes", deployable=True),
    ),
    "window length": Change(
        ("window.length_ms was 10000, is now 20000",), window(length_ms=20_000)
    ),
    "stride": Change(("window.stride_ms was 5000, is now 2500",), window(stride_ms=2_500)),
    "grid rate": Change(("window.bin_ms was 100, is now 50",), window(bin_ms=50)),
    "maximum age": Change(("window.max_age_ms was 1000, is now 2000",), window(max_age_ms=2_000)),
    "resample rule": Change(
        (
            'window.resample.level was "last value, carried up to max_age_ms", '
            'is now "mean of the bin"',
        ),
        rules=_rule("resample", "level", "mean of the bin"),
    ),
    "clock": Change(
        ('window.clock was "t_wall_ns since the earliest label", is now t_mono_ns',),
        rules={"clock": "t_mono_ns"},
    ),
    "edge rule": Change(
        ('window.edge was "whole windows only", is now "the last is padded"',),
        rules={"edge": "the last is padded"},
    ),
    "statistic added": Change(
        ("statistic 5 is new: max",), with_statistics(*LAYOUT.stats, "max"), summary_only=True
    ),
    "statistic dropped": Change(
        ("statistic 4 was zero_frac (gone)",),
        with_statistics("mean", "std", "p95", "slope"),
        summary_only=True,
    ),
    "statistics reordered": Change(
        ("statistic 0 was mean, has moved to 1", "statistic 1 was std, has moved to 0"),
        with_statistics("std", "mean", "p95", "slope", "zero_frac"),
        summary_only=True,
    ),
    "fewest bins": Change(
        ("stats.min_bins was 10, is now 20",), window(min_bins=20), summary_only=True
    ),
    "relative alone": Change(
        ("guest.net_rx_bytes: absolute was true, is now false",),
        channel("guest.net_rx_bytes", absolute=False),
    ),
    "horizon": Change(("relative.horizon_windows was 12, is now 24",), window(horizon_windows=24)),
    "transform": Change(
        ('relative.transform was "sign(x) log(1 + |x|)", is now none',),
        rules={"transform": "none"},
    ),
    "baseline rule": Change(
        (f"relative.baseline was {json.dumps(contract.RULES['baseline'])}, is now mean",),
        rules={"baseline": "mean"},
    ),
    "what a statistic's baseline is of": Change(
        ('relative.of was "the statistic", is now "the mean"',),
        rules={"baseline_of": contract.RULES["baseline_of"] | {"summary": "the mean"}},
        summary_only=True,
    ),
    "classes reordered": Change(
        ("class 0 was clean, has moved to 1", "class 1 was armed, has moved to 0"),
        replace(LAYOUT, phases=("armed", "clean", *LAYOUT.phases[2:])),
    ),
    "class added": Change(
        ("class 5 is new: recovering",), replace(LAYOUT, phases=(*LAYOUT.phases, "recovering"))
    ),
    "class dropped": Change(
        ("class 4 was dormant (gone)",), replace(LAYOUT, phases=LAYOUT.phases[:-1])
    ),
    "label rule": Change(
        (
            'labels.assignment was "phase of the latest label at or before the window\'s centre", '
            'is now "phase of most bins"',
        ),
        rules={"assignment": "phase of most bins"},
    ),
    "purity rule": Change(
        (
            'labels.purity was "share of bin centres at which the phase is the window\'s label", '
            'is now "1 or 0"',
        ),
        rules={"purity": "1 or 0"},
    ),
    "preprocessing version": Change(
        ("preprocessing.version was 1, is now 2",), constants={"PREPROCESSING_VERSION": 2}
    ),
    "golden vectors": Change(
        (f"preprocessing.golden_sha256 was {contract.golden_digest()}, is now {'0' * 64}",),
        constants={"golden_digest": lambda: "0" * 64},
    ),
    "several at once": Change(
        (
            f"channel {_FIRST_GONE} was proc.vcpu_run_ns (gone)",
            shifted(_FIRST_GONE + 1, _SECOND_GONE - 1, -1),
            f"channel {_SECOND_GONE} was guest.cpu_iowait_jiffies (gone)",
            shifted(_SECOND_GONE + 1, LAST - 2, -2),
            f"channel {LAST - 1} was {NAMES[LAST - 1]} (moved to {LAST - 3}), "
            f"is now {EXTRA.name} (new)",
            f"channel {LAST} was {NAMES[LAST]}, has moved to {LAST - 2}",
            f"{NAMES[LAST]}: unit was 1, is now k",
            "window.stride_ms was 5000, is now 2500",
            'window.edge was "whole windows only", is now padded',
            "class 5 is new: recovering",
            "preprocessing.version was 1, is now 2",
        ),
        replace(
            channels(
                *(c for c in LIVE[:-1] if c not in (LIVE[_FIRST_GONE], LIVE[_SECOND_GONE])),
                replace(LIVE[LAST], unit="k"),
                EXTRA,
            ),
            window=replace(LAYOUT.window, stride_ms=2_500),
            phases=(*LAYOUT.phases, "recovering"),
        ),
        rules={"edge": "padded"},
        constants={"PREPROCESSING_VERSION": 2},
    ),
}
