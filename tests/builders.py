"""Made-up episodes and stores for tests: real archives in the real format, from a few words.

Everything is deterministic. Every phase and profile leaves its mark on the channels (see
``ACTIVITY``), so that a model can learn from what is built here. Instants are kept simple: the
first label stands at ``start_ns``, a polled source has a row every 100 ms from there to
``duration_s`` inclusive (so 40 s make 400 bins and 7 windows), a netflow bucket starts 50 ms into
its bin (so that the instants recovered from a coarse clock fall into the same bin).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from episodes.format import (
    ARCHIVE_SUFFIX,
    EVENTS_FILE,
    JUSTIFYING_EVENT,
    LABELS_FILE,
    META_FILE,
    NS_PER_S,
    PHASES,
    SOURCES,
)
from features.registry import LAYOUT

Members = dict[str, bytes]

START_NS = int(datetime(2026, 11, 2, 8, 0, 0, tzinfo=UTC).timestamp()) * NS_PER_S
DAY_NS = 86_400 * NS_PER_S
COMMIT = "c0ffee" + "0" * 34
REMOVED: Any = ...
"""As a value in ``edit_meta``: the key is taken out."""

HOSTS = ("lab-a", "lab-b", "lab-c")
PROFILES = (
    "bulk-upload",
    "cpu-saturate",
    "fork-churn",
    "io-walk",
    "low-and-slow",
    "scan-and-dial",
)

ACTIVITY: dict[str, dict[str, float]] = {
    # phase, or profile while infected_running: how many times the clean activity, by axis
    "clean": {},
    "armed": {"disk": 4.0, "memory": 0.85},
    "infecting": {"net": 4.0, "procs": 3.0, "memory": 0.75},
    "dormant": {"cpu": 0.5, "net": 0.4, "memory": 0.6},
    "bulk-upload": {"net": 12.0, "cpu": 2.0, "memory": 0.5},
    "cpu-saturate": {"cpu": 10.0, "memory": 0.5},
    "fork-churn": {"procs": 12.0, "cpu": 4.0, "memory": 0.5},
    "io-walk": {"disk": 12.0, "cpu": 2.0, "memory": 0.5},
    "low-and-slow": {"net": 2.0, "cpu": 2.0, "memory": 0.5},
    "scan-and-dial": {"net": 4.0, "flows": 15.0, "memory": 0.5},
}

_TYPICAL = {
    # axis -> field: a counter's clean rate per second, a level's value, a bucket's mean
    "cpu": {
        "cpu_user_jiffies": 6,
        "cpu_sys_jiffies": 3,
        "cpu_system_jiffies": 3,
        "cpu_softirq_jiffies": 1,
        "vcpu_run_ns": 80_000_000,
        "vcpu_wait_ns": 20_000_000,
        "involuntary_ctxt_switches": 40,
        "load_1m": 0.2,
    },
    "idle": {"cpu_idle_jiffies": 85},
    "memory": {
        "rss_bytes": 180_000_000,
        "balloon_free_bytes": 90_000_000,
        "mem_available_bytes": 80_000_000,
    },
    "disk": {
        "io_rchar_bytes": 60_000,
        "io_wchar_bytes": 40_000,
        "rd_bytes": 80_000,
        "wr_bytes": 50_000,
        "rd_operations": 12,
        "wr_operations": 8,
        "rd_total_time_ns": 4_000_000,
        "wr_total_time_ns": 5_000_000,
        "cpu_iowait_jiffies": 1,
        "procs_blocked": 0.3,
        "disk_read_sectors": 160,
        "disk_write_sectors": 100,
    },
    "procs": {
        "minor_faults": 90,
        "voluntary_ctxt_switches": 400,
        "ctxt_switches": 250,
        "interrupts": 300,
        "forks": 2,
        "procs_running": 1.2,
        "anon_bytes": 1_000_000,
        "page_faults": 120,
    },
    "net": {
        "net_rx_bytes": 1_500,
        "net_tx_bytes": 2_500,
        "packets_out": 0.9,
        "packets_in": 0.8,
        "bytes_out": 90,
        "bytes_in": 70,
    },
    "flows": {
        "tcp_active_opens": 1.0,
        "syn_out": 0.2,
        "rst_in": 0.1,
        "fin": 0.2,
        "distinct_dst_ips": 0.3,
        "distinct_dst_ports": 0.3,
        "new_flows": 0.2,
    },
}
_AXIS = {name: axis for axis, fields in _TYPICAL.items() for name in fields}
_SCALE = {name: scale for fields in _TYPICAL.values() for name, scale in fields.items()}
_FRACTIONAL = frozenset({"load_1m"})
_NETFLOW_BOOT_NS = 5_307 * NS_PER_S  # netflow's t_mono_ns counts from the collector's boot
_GUEST_LAG_NS = 312 * NS_PER_S  # the guest's clock since the snapshot it was restored from
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


# --- identifiers and JSON lines


def ulid(time_ms: int, n: int = 0) -> str:
    """The ``n``-th episode id of a millisecond."""
    number = time_ms << 80 | n
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def rows_of(members: Members, name: str) -> list[dict[str, Any]]:
    """The rows of one JSON-lines member."""
    return [json.loads(line) for line in members[name].splitlines() if line.strip()]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- one episode


def even_phases(duration_s: float, phases: Sequence[str] = PHASES) -> list[tuple[str, float]]:
    """The phases one after the other, equally long."""
    return [(phase, i * duration_s / len(phases)) for i, phase in enumerate(phases)]


def make_members(
    host: str = "lab-a",
    episode_id: str | None = None,
    duration_s: float = 40.0,
    start_ns: int = START_NS,
    phases: Sequence[tuple[str, float]] | None = None,
    events: Sequence[tuple[str, float]] | None = None,
    profile: str = "cpu-saturate",
    sample: str | None = None,
    seed: int = 0,
    coarse_netflow: bool = False,
    without: Iterable[str] = (),
    drop: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    rate_hz: Mapping[str, float] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Members:
    """An episode's files; without further words one that is accepted.

    Args:
        phases: ``(phase, seconds)``; without, the five phases equally long.
        events: ``(event, seconds)``; without, the labels' justifying events and the usual frame.
        sample: ``<profile>.v<n>``: ``n`` is the intensity.
        coarse_netflow: write netflow's wall time with 1 s precision, as host ``lab-b`` does.
        without: sources that did not run (``proc``, ``qmp``, ``guest``, ``netflow``).
        drop: by source, ``[from, to)`` seconds without a row.
        rate_hz: by source, rows per second instead of 10.
        meta: see ``edit_meta``.
    """
    episode_id = episode_id or ulid(start_ns // 1_000_000, zlib.crc32(f"{host} {seed}".encode()))
    phases = even_phases(duration_s) if phases is None else phases
    sample = sample or f"{profile}.v0"
    rng = np.random.default_rng([seed, zlib.crc32(f"{host} {sample}".encode())])
    members = {
        LABELS_FILE: jsonl(_moment(start_ns, seconds, phase=phase) for phase, seconds in phases),
        EVENTS_FILE: jsonl(
            _moment(start_ns, seconds, event=event)
            for event, seconds in (_justified(phases, duration_s) if events is None else events)
        ),
    }
    host_factor = 0.9 + 0.2 * (zlib.crc32(host.encode()) % 100) / 100
    intensity = 1.0 + 0.25 * int(sample[-1]) if sample[-1].isdigit() else 1.0
    for number, (name, source) in enumerate(SOURCES.items()):
        if name in without:
            continue
        hz = (rate_hz or {}).get(name, 10.0)
        seconds = np.arange(int(duration_s * hz) + (1 if source.expected_hz else 0)) / hz
        for begin, end in (drop or {}).get(name, ()):
            seconds = seconds[(seconds < begin) | (seconds >= end)]
        values = _values(name, seconds, phases, profile, intensity, host_factor, rng)
        after_ns = (seconds * NS_PER_S).round().astype(np.int64)
        after_ns += number * 1_000_000 if source.expected_hz else 50_000_000
        members[source.file] = _source_rows(name, start_ns, after_ns, values, coarse_netflow)
    members[META_FILE] = json.dumps(
        _meta(host, episode_id, start_ns, duration_s, phases, profile, sample, seed, members)
    ).encode()
    return edit_meta(members, meta) if meta else members


def edit(members: Members, name: str, content: bytes | Callable[[bytes], bytes] | None) -> Members:
    """A copy with one member replaced (None: left out) and meta's hash, bytes and rows in step.

    Args:
        content: may be a function of the old content.
    """
    edited = dict(members)
    if callable(content):
        content = content(edited[name])
    edited.pop(name, None)
    if content is not None:
        edited[name] = content
    if name == META_FILE:
        return edited
    meta = json.loads(edited[META_FILE])
    meta["files"].pop(name, None)
    if content is not None:
        meta["files"][name] = _file_facts(content)
    return edited | {META_FILE: json.dumps(meta).encode()}


def edit_rows(
    members: Members, name: str, change: Callable[[list[dict[str, Any]]], Any]
) -> Members:
    """A copy with the rows of one member changed: by what ``change`` returns, or in place."""
    rows = rows_of(members, name)
    changed = change(rows)
    return edit(members, name, jsonl(rows if changed is None else changed))


def edit_meta(members: Members, changes: Mapping[str, Any]) -> Members:
    """A copy with values of ``meta.json`` set by dotted path; ``REMOVED`` takes the key out.

    A file's name has a dot itself: ``files/labels.jsonl/sha256`` works as well.
    """
    meta = json.loads(members[META_FILE])
    for path, value in changes.items():
        *parents, last = path.split("/" if "/" in path else ".")
        at = meta
        for key in parents:
            at = at.setdefault(key, {})
        if value is REMOVED:
            at.pop(last, None)
        else:
            at[last] = value
    return members | {META_FILE: json.dumps(meta).encode()}


def _justified(phases: Sequence[tuple[str, float]], duration_s: float) -> list[tuple[str, float]]:
    causes = [(JUSTIFYING_EVENT[p], s - 0.005) for p, s in phases if p in JUSTIFYING_EVENT]
    return [("episode_start", 0.0), *causes, ("episode_end", duration_s)]


def _moment(start_ns: int, seconds: float, **what: str) -> dict[str, Any]:
    after_ns = round(seconds * NS_PER_S)
    return {"t_mono_ns": after_ns, "t_wall_ns": start_ns + after_ns, **what}


def _values(
    name: str,
    seconds: np.ndarray,
    phases: Sequence[tuple[str, float]],
    profile: str,
    intensity: float,
    host_factor: float,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """A column for each channel of a source, in registry order."""
    begins = np.array([begin for _, begin in phases] or [0.0])
    phase_at = np.maximum(np.searchsorted(begins, seconds + 1e-9, side="right") - 1, 0)
    columns = []
    for channel in LAYOUT.channels:
        if channel.source != name:
            continue
        leaf = channel.path[-1]
        axis, scale = _AXIS.get(leaf, "cpu"), _SCALE.get(leaf, 100.0)
        factors = []
        for phase, _ in phases or [("clean", 0.0)]:
            running = phase == "infected_running"
            factor = ACTIVITY.get(profile if running else phase, {}).get(axis, 1.0)
            factors.append(max(0.05, 1.0 + (factor - 1.0) * (intensity if running else 1.0)))
        mean = np.array(factors)[phase_at] * scale * host_factor
        if channel.kind == "bucket":
            column = rng.poisson(mean)
        elif channel.kind == "counter":
            gained = mean * np.diff(seconds, prepend=0.0) * rng.gamma(16.0, 1 / 16.0, len(mean))
            column = (50.0 * scale + np.cumsum(gained)).astype(np.int64)
        else:
            column = mean * rng.normal(1.0, 0.02, len(mean))
            if leaf not in _FRACTIONAL:
                column = np.round(column).astype(np.int64)
        columns.append(column)
    return columns


def _source_rows(
    name: str, start_ns: int, after_ns: np.ndarray, values: list[np.ndarray], coarse: bool
) -> bytes:
    source = SOURCES[name]
    wall = start_ns + after_ns
    mono = after_ns
    if name == "netflow":
        leaves = [path[-1] for path in LAYOUT.fields[name]]
        packets = [v for leaf, v in zip(leaves, values, strict=True) if leaf.startswith("packets")]
        seen = np.any(packets or values, axis=0)  # a bucket with no packet has no row
        wall, mono = wall[seen], after_ns[seen] + _NETFLOW_BOOT_NS
        values = [column[seen] for column in values]
        if coarse:
            wall = wall // NS_PER_S * NS_PER_S
    row: dict[str, Any] = {
        "t_mono_ns": "%d",
        "t_wall_ns": "%d",
        "source": source.tag,
        "available_in_deployment": source.deployable,
    }
    columns = [mono, wall]
    if name == "guest":
        row |= {"t_guest_wall_ns": "%d"}
        columns.append(wall - _GUEST_LAG_NS)
    for path, column in zip(LAYOUT.fields[name], values, strict=True):
        at = row
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = "%.2f" if column.dtype.kind == "f" else "%d"
        columns.append(column)
    template = json.dumps(row, separators=(",", ":")) + "\n"
    template = template.replace('"%d"', "%d").replace('"%.2f"', "%.2f")
    lists = [column.tolist() for column in columns]
    return "".join([template % values for values in zip(*lists, strict=True)]).encode()


def _file_facts(content: bytes) -> dict[str, Any]:
    rows = sum(1 for line in content.split(b"\n") if line.strip())
    return {"sha256": sha256(content), "bytes": len(content), "rows": rows}


def _meta(
    host: str,
    episode_id: str,
    start_ns: int,
    duration_s: float,
    phases: Sequence[tuple[str, float]],
    profile: str,
    sample: str,
    seed: int,
    members: Members,
) -> dict[str, Any]:
    end_ns = start_ns + round(duration_s * NS_PER_S)
    files = {name: _file_facts(content) for name, content in members.items()}
    rows = {
        f"rows_{name}": files.get(source.file, {}).get("rows", 0)
        for name, source in SOURCES.items()
    }
    return {
        "episode_id": episode_id,
        "schema_version": 1,
        "host_id": host,
        "synthetic": True,
        "started_at_wall": _rfc3339(start_ns),
        "ended_at_wall": _rfc3339(end_ns),
        "started_at_wall_ns": start_ns,
        "ended_at_wall_ns": end_ns,
        "sample": {"name": sample, "profile": profile, "sha256": sha256(sample.encode())},
        "experiment": {
            "tier": 2 if {phase for phase, _ in phases} <= {"clean"} else 3,
            "parallel_slots": 1,
            "seed": seed,
        },
        "vm": {"image_name": "none", "vcpus": 1, "ram_mib": 128},
        "host_fingerprint": {"kernel": "none", "qemu_version": "none", "accel": "none"},
        "code_version": {"commit": COMMIT, "branch": "main", "dirty": False, "source": "builder"},
        "result": {**rows, "rows_labels": files[LABELS_FILE]["rows"]},
        "files": files,
    }


def _rfc3339(t_ns: int) -> str:
    moment = datetime.fromtimestamp(t_ns // NS_PER_S, tz=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{t_ns % NS_PER_S // 1_000_000:03d}Z"


# --- archives and stores


def pack_tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A tar of any entries, sound or not."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def entry(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a tar: a regular file unless ``type`` says otherwise."""
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def entries_of(episode_id: str, members: Members) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The episode's folder and its files, as a collector packs them."""
    files = [entry(f"{episode_id}/{name}", members[name]) for name in sorted(members)]
    return [entry(f"{episode_id}/", type=tarfile.DIRTYPE, mode=0o755), *files]


def compress(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(content)


def pack(episode_id: str, members: Members) -> bytes:
    """``<episode_id>.tar.zst``; the same members make the same bytes."""
    return compress(pack_tar(entries_of(episode_id, members)))


@dataclass(frozen=True)
class Added:
    """Where an episode was put."""

    host_id: str
    episode_id: str
    path: Path


@dataclass
class StoreBuilder:
    """A store on disk, grown one episode at a time, as the receiver grows it."""

    root: Path
    added: list[Added] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        (self.root / "episodes").mkdir(parents=True, exist_ok=True)
        self.index_path.touch()

    @classmethod
    def reopen(cls, root: Path) -> StoreBuilder:
        """The builder of a store on disk whose every episode has a row in the index."""
        store = cls(root)
        for line in store.index_path.read_text().splitlines():
            row = json.loads(line)
            host, episode_id = row["host_id"], row["episode_id"]
            store.added.append(Added(host, episode_id, store.path(host, episode_id)))
        return store

    @property
    def index_path(self) -> Path:
        return self.root / "index.jsonl"

    def path(self, host: str, episode_id: str) -> Path:
        return self.root / "episodes" / host / f"{episode_id}{ARCHIVE_SUFFIX}"

    def add(
        self,
        host: str = "lab-a",
        members: Members | None = None,
        *,
        episode_id: str | None = None,
        packed: bytes | None = None,
        indexed: bool = True,
        index: Mapping[str, Any] | None = None,
        **episode: Any,
    ) -> Added:
        """Store one episode: given members, a given archive, or made by ``make_members``.

        Without an ``episode_id`` each one gets its own; without a ``start_ns`` each one starts
        ten minutes after the one before.

        Args:
            indexed: whether ``index.jsonl`` gets its row.
            index: values of that row to be set otherwise (``REMOVED``: left out).
        """
        number = len(self.added)
        start_ns = episode.pop("start_ns", START_NS + number * 600 * NS_PER_S)
        if members is not None and episode_id is None:
            episode_id = json.loads(members[META_FILE])["episode_id"]
        episode_id = episode_id or ulid(start_ns // 1_000_000, number)
        if packed is None:
            if members is None:
                episode = {"seed": number} | episode
                members = make_members(host, episode_id, start_ns=start_ns, **episode)
            packed = pack(episode_id, members)
        path = self.path(host, episode_id)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(packed)
        if indexed:
            self.add_index_row(host, episode_id, packed, **(index or {}))
        self.added.append(Added(host, episode_id, path))
        return self.added[-1]

    def add_index_row(
        self, host: str, episode_id: str, packed: bytes = b"", /, **other: Any
    ) -> None:
        """Append one line to ``index.jsonl``."""
        row = {
            "episode_id": episode_id,
            "host_id": host,
            "sha256": sha256(packed),
            "size_bytes": len(packed),
            "received_at_wall": "2026-11-02T09:00:00.000Z",
            "schema_version": 1,
        } | other
        self.append_to_index(jsonl([{k: v for k, v in row.items() if v is not REMOVED}]))

    def append_to_index(self, line: bytes) -> None:
        with self.index_path.open("ab") as index:
            index.write(line)

    def populate(
        self,
        hosts: Sequence[str] = HOSTS,
        profiles: Sequence[str] = PROFILES,
        variants: int = 1,
        **episode: Any,
    ) -> list[Added]:
        """One episode for each host, profile and variant; ``lab-b`` writes a coarse clock."""
        return [
            self.add(
                host,
                profile=profile,
                sample=f"{profile}.v{variant}",
                **{"coarse_netflow": host == "lab-b"} | episode,
            )
            for variant in range(variants)
            for profile in profiles
            for host in hosts
        ]
