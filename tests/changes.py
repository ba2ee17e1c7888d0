"""Changes of what an input means: one for everything a contract holds, and what is said of each."""

from __future__ import annotations

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

    lines: tuple[str, ...]  # what a diff has to say, whole, in this order
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


def channel(which: str, /, **changes: Any) -> Layout:
    """The layout with one channel described otherwise."""
    return replace(
        LAYOUT,
        channels=tuple(replace(c, **changes) if c.name == which else c for c in LAYOUT.channels),
    )


def channels(*order: int | Channel) -> Layout:
    """The layout with these channels, by position in the live one."""
    return replace(
        LAYOUT, channels=tuple(LAYOUT.channels[i] if isinstance(i, int) else i for i in order)
    )


def window(**changes: int) -> Layout:
    return replace(LAYOUT, window=replace(LAYOUT.window, **changes))


def with_statistics(*stats: str) -> Layout:
    with patch.object(registry, "STATS", stats):
        return replace(LAYOUT, stats=stats)


def _swapped_paths() -> Layout:
    user, system = LAYOUT.channels[17:19]
    swapped = (replace(user, path=system.path), replace(system, path=user.path))
    return channels(*range(17), *swapped, *range(19, 46))


def _rule(name: str, kind: str, text: str) -> dict[str, Any]:
    return {name: contract.RULES[name] | {kind: text}}


_COUNTERS = [c.name for c in LAYOUT.channels if c.kind == "counter"]

CHANGES: dict[str, Change] = {
    "channels reordered": Change(
        (
            "channel 0 was proc.cpu_user_jiffies, has moved to 1",
            "channel 1 was proc.cpu_sys_jiffies, has moved to 0",
        ),
        channels(1, 0, *range(2, 46)),
    ),
    "channel moved to the end": Change(
        (
            "channel 0 was proc.cpu_user_jiffies, has moved to 45",
            "channels 1-45 (proc.cpu_sys_jiffies … netflow.new_flows) moved by -1 to 0-44",
        ),
        channels(*range(1, 46), 0),
    ),
    "channel renamed": Change(
        ("channel 3 was proc.vcpu_wait_ns (gone), is now proc.vcpu_queue_ns (new)",),
        channel("proc.vcpu_wait_ns", name="proc.vcpu_queue_ns"),
    ),
    "channel added": Change(
        ("channel 46 is new: guest.steal_jiffies",), channels(*range(46), EXTRA)
    ),
    "channel added amid": Change(
        (
            "channel 17 was guest.cpu_user_jiffies (moved to 18), is now guest.steal_jiffies (new)",
            "channels 18-45 (guest.cpu_system_jiffies … netflow.new_flows) moved by +1 to 19-46",
        ),
        channels(*range(17), EXTRA, *range(17, 46)),
    ),
    "channel dropped": Change(("channel 45 was netflow.new_flows (gone)",), channels(*range(45))),
    "channel dropped amid": Change(
        (
            "channel 9 was proc.rss_bytes (gone)",
            "channels 10-45 (qmp.rd_bytes … netflow.new_flows) moved by -1 to 9-44",
        ),
        channels(*range(9), *range(10, 46)),
    ),
    "two channels read each other's field": Change(
        (
            'guest.cpu_user_jiffies: path was ["cpu_user_jiffies"], is now ["cpu_system_jiffies"]',
            'guest.cpu_system_jiffies: path was ["cpu_system_jiffies"], '
            'is now ["cpu_user_jiffies"]',
        ),
        _swapped_paths(),
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
            "channel 2 was proc.vcpu_run_ns (gone)",
            "channels 3-19 (proc.vcpu_wait_ns … guest.cpu_idle_jiffies) moved by -1 to 2-18",
            "channel 20 was guest.cpu_iowait_jiffies (gone)",
            "channels 21-43 (guest.cpu_softirq_jiffies … netflow.distinct_dst_ips) moved by -2 "
            "to 19-41",
            "channel 44 was netflow.distinct_dst_ports (moved to 42), "
            "is now guest.steal_jiffies (new)",
            "channel 45 was netflow.new_flows, has moved to 43",
            "netflow.new_flows: unit was 1, is now k",
            "window.stride_ms was 5000, is now 2500",
            'window.edge was "whole windows only", is now padded',
            "class 5 is new: recovering",
            "preprocessing.version was 1, is now 2",
        ),
        replace(
            channels(
                0, 1, *range(3, 20), *range(21, 45), replace(LAYOUT.channels[45], unit="k"), EXTRA
            ),
            window=replace(LAYOUT.window, stride_ms=2_500),
            phases=(*LAYOUT.phases, "recovering"),
        ),
        rules={"edge": "padded"},
        constants={"PREPROCESSING_VERSION": 2},
    ),
}
