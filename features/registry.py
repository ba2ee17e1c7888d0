"""The feature registry: every channel, the grid, the windows, the statistics, in order.

Edit inputs here and nowhere else. Every change here changes the contract (see ``contract``), and
checkpoints trained before it no longer load.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from episodes.format import PHASES, SOURCES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from episodes.jsonl import FieldPath

Kind = Literal["level", "counter", "bucket"]
Mode = Literal["realistic", "oracle"]
InputKind = Literal["summary", "tensor"]

MODES: tuple[Mode, ...] = ("realistic", "oracle")
"""``realistic`` uses channels that a deployed device can read; ``oracle`` uses every channel."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One input signal: where its value is in a row, and how rows become a series."""

    name: str
    source: str
    path: FieldPath
    unit: str  # of the series' values
    kind: Kind
    deployable: bool
    absolute: bool = True  # models see the value itself too, not only relative to the machine


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """The grid and the windows cut from it. Integers only: they are hashed."""

    bin_ms: int = 100
    length_ms: int = 10_000
    stride_ms: int = 5_000
    max_age_ms: int = 1_000
    min_bins: int = 10  # with fewer values, a statistic is missing
    horizon_windows: int = 12  # of a machine's past that a value is compared with: one minute

    def __post_init__(self) -> None:
        for name in ("bin_ms", "length_ms", "stride_ms", "max_age_ms", "horizon_windows"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"window.{name} must be > 0, got {value}")
            if name in ("length_ms", "stride_ms") and value % self.bin_ms:
                raise ValueError(
                    f"window.{name} must be a multiple of bin_ms ({self.bin_ms}), got {value}"
                )

    @property
    def bin_ns(self) -> int:
        return self.bin_ms * 1_000_000

    @property
    def n_bins(self) -> int:
        return self.length_ms // self.bin_ms

    @property
    def stride_bins(self) -> int:
        return self.stride_ms // self.bin_ms


RELATIVE = ".relative"
"""Ends the name of an input that is relative to the machine's own past (``features.relative``)."""

STATS = ("mean", "std", "p95", "slope", "zero_frac")
"""Every statistic that ``summary`` can compute, in the order of its columns."""


_TRAFFIC = ("net_rx_bytes", "net_tx_bytes", "tcp_active_opens")
"""Guest channels that, like ``netflow``, hardly depend on the machine's shape, host or kernel."""


def _channels(source: str, kinds: dict[str, tuple[str, Kind]]) -> tuple[Channel, ...]:
    return tuple(
        Channel(
            f"{source}.{name}",
            source,
            (name,),
            unit,
            kind,
            SOURCES[source].deployable,
            absolute=source == "netflow" or name in _TRAFFIC,
        )
        for name, (unit, kind) in kinds.items()
    )


CHANNELS: tuple[Channel, ...] = (
    *_channels(
        "proc",
        {
            "cpu_user_jiffies": ("jiffies/s", "counter"),
            "cpu_sys_jiffies": ("jiffies/s", "counter"),
            "vcpu_run_ns": ("ns/s", "counter"),
            "vcpu_wait_ns": ("ns/s", "counter"),
            "minor_faults": ("1/s", "counter"),
            "voluntary_ctxt_switches": ("1/s", "counter"),
            "involuntary_ctxt_switches": ("1/s", "counter"),
            "io_rchar_bytes": ("B/s", "counter"),
            "io_wchar_bytes": ("B/s", "counter"),
            "rss_bytes": ("B", "level"),
        },
    ),
    *_channels(
        "qmp",
        {
            "rd_bytes": ("B/s", "counter"),
            "wr_bytes": ("B/s", "counter"),
            "rd_operations": ("1/s", "counter"),
            "wr_operations": ("1/s", "counter"),
            "rd_total_time_ns": ("ns/s", "counter"),
            "wr_total_time_ns": ("ns/s", "counter"),
            "balloon_free_bytes": ("B", "level"),
        },
    ),
    *_channels(
        "guest",
        {
            "cpu_user_jiffies": ("jiffies/s", "counter"),
            "cpu_system_jiffies": ("jiffies/s", "counter"),
            "cpu_idle_jiffies": ("jiffies/s", "counter"),
            "cpu_iowait_jiffies": ("jiffies/s", "counter"),
            "cpu_softirq_jiffies": ("jiffies/s", "counter"),
            "ctxt_switches": ("1/s", "counter"),
            "interrupts": ("1/s", "counter"),
            "forks": ("1/s", "counter"),
            "procs_running": ("1", "level"),
            "procs_blocked": ("1", "level"),
            "mem_available_bytes": ("B", "level"),
            "anon_bytes": ("B", "level"),
            "page_faults": ("1/s", "counter"),
            "load_1m": ("1", "level"),
            "net_rx_bytes": ("B/s", "counter"),
            "net_tx_bytes": ("B/s", "counter"),
            "disk_read_sectors": ("512 B/s", "counter"),
            "disk_write_sectors": ("512 B/s", "counter"),
            "tcp_active_opens": ("1/s", "counter"),
        },
    ),
    *_channels(
        "netflow",
        {
            "packets_out": ("1", "bucket"),
            "packets_in": ("1", "bucket"),
            "bytes_out": ("B", "bucket"),
            "bytes_in": ("B", "bucket"),
            "syn_out": ("1", "bucket"),
            "rst_in": ("1", "bucket"),
            "fin": ("1", "bucket"),
            "distinct_dst_ips": ("1", "bucket"),
            "distinct_dst_ports": ("1", "bucket"),
            "new_flows": ("1", "bucket"),
        },
    ),
)


@dataclass(frozen=True)
class Layout:
    """Everything that defines a model's input. ``LAYOUT`` is the live one."""

    channels: tuple[Channel, ...] = CHANNELS
    window: WindowSpec = field(default_factory=WindowSpec)
    stats: tuple[str, ...] = STATS
    phases: tuple[str, ...] = PHASES

    def __post_init__(self) -> None:
        lists: dict[str, Sequence[object]] = {
            "channel names": self.channel_names,
            "fields of channels": [(channel.source, channel.path) for channel in self.channels],
            "statistics": self.stats,
            "phases": self.phases,
        }
        for name, entries in lists.items():
            twice = [str(entry) for entry, count in Counter(entries).items() if count > 1]
            if twice:
                raise ValueError(f"registry: {name} must be unique, got {', '.join(twice)} twice")
        for channel in self.channels:
            if channel.source not in SOURCES:
                raise ValueError(
                    f"registry: source of {channel.name} must be one of {', '.join(SOURCES)}, "
                    f"got {channel.source!r}"
                )
            polled = SOURCES[channel.source].expected_hz is not None
            if (channel.kind == "bucket") == polled:
                raise ValueError(
                    f"registry: kind of {channel.name} must be "
                    f"{'level or counter' if polled else 'bucket'}, got {channel.kind}"
                )
        if unknown := set(self.stats) - set(STATS):
            raise ValueError(
                f"registry: statistics must be among {', '.join(STATS)}, "
                f"got {', '.join(sorted(unknown))}"
            )

    @property
    def channel_names(self) -> tuple[str, ...]:
        return tuple(channel.name for channel in self.channels)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the summary inputs, channel-major."""
        return tuple(f"{name}.{stat}" for name in self.channel_names for stat in self.stats)

    @property
    def fields(self) -> dict[str, tuple[FieldPath, ...]]:
        """Per source the paths of its channels, in registry order: the fields to parse."""
        return {
            source: tuple(c.path for c in self.channels if c.source == source) for source in SOURCES
        }

    def columns(self, source: str) -> np.ndarray:
        """Positions of a source's channels in the series."""
        import numpy as np  # here: the registry itself loads without NumPy

        return np.array([i for i, c in enumerate(self.channels) if c.source == source], dtype=int)

    def input_names(self, input_kind: InputKind) -> tuple[str, ...]:
        """Names of every input, in order: the values, then the same relative to the machine."""
        names = self.feature_names if input_kind == "summary" else self.channel_names
        return (*names, *(f"{name}{RELATIVE}" for name in names))

    def channels_of(self, mode: Mode) -> np.ndarray:
        """Which channels a mode may see, as booleans ``(n_channels,)``."""
        if mode not in MODES:
            raise ValueError(f"mode must be {' or '.join(MODES)}, got {mode!r}")
        import numpy as np

        return np.array([mode == "oracle" or c.deployable for c in self.channels], dtype=bool)

    def keep_mask(self, mode: Mode, input_kind: InputKind) -> np.ndarray:
        """Which inputs a model of a mode is given, as booleans over ``input_names``."""
        import numpy as np

        seen = self.channels_of(mode)
        absolute = np.array([c.absolute for c in self.channels], dtype=bool)
        keep = np.concatenate([seen & absolute, seen])
        return np.repeat(keep, len(self.stats)) if input_kind == "summary" else keep

    def channel_of(self, mode: Mode, input_kind: InputKind) -> np.ndarray:
        """Position of the channel that each input of a mode is made from, ``(n_inputs,)``."""
        import numpy as np

        each = np.arange(len(self.channels))
        each = np.repeat(each, len(self.stats)) if input_kind == "summary" else each
        return np.concatenate([each, each])[self.keep_mask(mode, input_kind)]

    def schema_hash(self, input_kind: InputKind) -> str:
        """sha256 of the sorted input names, for inventories; loading compares contracts."""
        names = "\n".join(sorted(self.input_names(input_kind)))
        return hashlib.sha256(names.encode()).hexdigest()


LAYOUT = Layout()
