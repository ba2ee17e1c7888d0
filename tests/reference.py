"""The numeric rules a second time, deliberately slow and plain, as something to compare with.

Written from the data format document alone, from "Rows that count" to "Windows", without a
look at the product's own code. One loop a rule; nothing here is meant to be fast.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

BIN = 100_000_000  # ns
SECOND = 1_000_000_000  # ns
WINDOW, STRIDE, MIN_BINS = 100, 50, 10  # bins
STATS = ("mean", "std", "p95", "slope", "zero_frac")

FILES = {
    "proc": "telemetry-proc.jsonl",
    "qmp": "telemetry-qmp.jsonl",
    "guest": "telemetry-guest.jsonl",
    "netflow": "netflow.jsonl",
}
TABLE = """
proc.cpu_user_jiffies proc.cpu_sys_jiffies proc.vcpu_run_ns proc.vcpu_wait_ns proc.minor_faults
proc.voluntary_ctxt_switches proc.involuntary_ctxt_switches proc.io_rchar_bytes
proc.io_wchar_bytes proc.rss_bytes* qmp.rd_bytes qmp.wr_bytes qmp.rd_operations
qmp.wr_operations qmp.rd_total_time_ns qmp.wr_total_time_ns qmp.balloon_free_bytes*
guest.cpu_user_jiffies guest.cpu_system_jiffies guest.cpu_idle_jiffies guest.cpu_iowait_jiffies
guest.cpu_softirq_jiffies guest.ctxt_switches guest.interrupts guest.forks guest.procs_running*
guest.procs_blocked* guest.mem_available_bytes* guest.anon_bytes* guest.page_faults
guest.load_1m* guest.net_rx_bytes guest.net_tx_bytes guest.disk_read_sectors
guest.disk_write_sectors guest.tcp_active_opens netflow.packets_out netflow.packets_in
netflow.bytes_out netflow.bytes_in netflow.syn_out netflow.rst_in netflow.fin
netflow.distinct_dst_ips netflow.distinct_dst_ports netflow.new_flows
"""  # *: a level; netflow has buckets; the rest are counters
CHANNELS = [name.rstrip("*") for name in TABLE.split()]
LEVELS = [name.rstrip("*") for name in TABLE.split() if "*" in name]


class Result(NamedTuple):
    """What one episode comes to: see "From rows to the grid to windows"."""

    series: np.ndarray  # (n_bins, 46) float32, NaN is missing
    features: np.ndarray  # (n_windows, 230) float32
    labels: list[str]
    purity: list[float]
    starts_s: list[float]


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(value: Any) -> float:
    """NaN for whatever is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def read_rows(content: bytes) -> list[dict[str, Any]]:
    """The rows that are JSON objects with an integer ``t_wall_ns``, in file order.

    Of lines that are equal byte for byte the first counts.
    """
    rows, lines = [], set()
    for line in content.split(b"\n"):
        if line in lines:
            continue
        lines.add(line)
        try:
            row = json.loads(line.decode())
        except ValueError:
            continue
        if isinstance(row, dict) and is_int(row.get("t_wall_ns")):
            rows.append(row)
    return rows


def rows_that_count(
    rows: list[dict[str, Any]], source: str, meta: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The rows within the episode; none if over 1% lie outside, or if none says anything."""
    inside = rows
    if meta is not None:
        first, last = meta["started_at_wall_ns"] - 2 * SECOND, meta["ended_at_wall_ns"] + 2 * SECOND
        inside = [row for row in rows if first <= row["t_wall_ns"] <= last]
    if 100 * (len(rows) - len(inside)) > len(rows):
        return []
    names = [name.split(".")[1] for name in CHANNELS if name.startswith(source + ".")]
    says = any(not math.isnan(number(row.get(name))) for row in inside for name in names)
    return inside if says else []


def netflow_instants(rows: list[dict[str, Any]]) -> list[int]:
    """Wall instants; where all are whole seconds, recovered run by run."""
    walls = [row["t_wall_ns"] for row in rows]
    if any(wall % SECOND for wall in walls):
        return walls
    runs: list[list[int]] = []  # positions of rows
    before = None
    for i, row in enumerate(rows):
        if not is_int(row.get("t_mono_ns")):
            continue
        difference = row["t_wall_ns"] - row["t_mono_ns"]
        if before is None or abs(difference - before) >= SECOND:
            runs.append([])
        runs[-1].append(i)
        before = difference
    instants = list(walls)
    for run in runs:
        offset = max(walls[i] - rows[i]["t_mono_ns"] for i in run)
        for i in run:
            recovered = rows[i]["t_mono_ns"] + offset
            if len(run) >= 10 and 0 <= recovered - walls[i] < SECOND:
                instants[i] = recovered
    return instants


def level(points: list[tuple[int, float]], n_bins: int) -> list[float]:
    times = [time for time, _ in points]
    out = []
    for j in range(n_bins):
        end = (j + 1) * BIN
        last = bisect_left(times, end) - 1  # the last row before the bin's end
        fresh = last >= 0 and end - times[last] <= SECOND
        out.append(points[last][1] if fresh else math.nan)
    return out


def counter(points: list[tuple[int, float]], n_bins: int) -> list[float]:
    points = sorted(dict(points).items())  # of equal instants the last one
    gained = [0.0] * n_bins
    covered = [0] * n_bins
    for (t0, v0), (t1, v1) in pairwise(points):
        if t1 - t0 > SECOND or v1 < v0:
            continue  # a missing stretch covers nothing
        for j in range(max(0, t0 // BIN), min(n_bins, t1 // BIN + 1)):
            overlap = max(0, min(t1, (j + 1) * BIN) - max(t0, j * BIN))
            gained[j] += (v1 - v0) * (overlap / (t1 - t0))
            covered[j] += overlap
    return [g / 0.1 if c == BIN else math.nan for g, c in zip(gained, covered, strict=True)]


def bucket(points: list[tuple[int, float]], n_bins: int) -> list[float]:
    if not points:
        return [math.nan] * n_bins
    out = [0.0] * n_bins
    for time, value in points:
        if 0 <= time // BIN < n_bins:
            out[time // BIN] += value  # a missing value makes the bin missing
    return out


def statistics(values: np.ndarray) -> list[float]:
    """The five of one channel in one window."""
    there = [(j / 10, float(v)) for j, v in enumerate(values) if not math.isnan(v)]
    if len(there) < MIN_BINS:
        return [math.nan] * len(STATS)
    n = len(there)
    times, xs = zip(*there, strict=True)
    mean, mid = math.fsum(xs) / n, math.fsum(times) / n
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in xs) / n)
    place = 0.95 * (n - 1)
    low, ordered = int(place), sorted(xs)
    high = min(low + 1, n - 1)
    p95 = ordered[low] + (place - low) * (ordered[high] - ordered[low])
    above = math.fsum((t - mid) * (x - mean) for t, x in there)
    slope = above / math.fsum((t - mid) ** 2 for t in times)
    return [mean, std, p95, slope, sum(x == 0 for x in xs) / n]


def reference(members: dict[str, bytes]) -> Result:
    labels = [row for row in read_rows(members["labels.jsonl"]) if isinstance(row["phase"], str)]
    labels.sort(key=lambda row: row["t_wall_ns"])  # stable: equal instants keep file order
    origin = labels[0]["t_wall_ns"]
    since = [row["t_wall_ns"] - origin for row in labels]

    def phase_at(time: int) -> str:
        return labels[bisect_right(since, time) - 1]["phase"]

    meta = json.loads(members["meta.json"]) if "meta.json" in members else None
    sources = {
        name: rows_that_count(read_rows(members.get(file, b"")), name, meta)
        for name, file in FILES.items()
    }
    instants = {name: [row["t_wall_ns"] for row in rows] for name, rows in sources.items()}
    instants["netflow"] = netflow_instants(sources["netflow"])
    ends = [t for name in ("proc", "qmp", "guest") for t in instants[name]] or instants["netflow"]
    n_bins = max(0, (max(ends) - origin) // BIN) if ends else 0

    series = np.empty((n_bins, len(CHANNELS)), np.float32)
    for column, channel in enumerate(CHANNELS):
        source, name = channel.split(".")
        points = [
            (time - origin, number(row.get(name)))
            for time, row in zip(instants[source], sources[source], strict=True)
        ]
        points.sort(key=lambda point: point[0])
        usable = [point for point in points if not math.isnan(point[1])]
        if source == "netflow":
            series[:, column] = bucket(points, n_bins)
        elif channel in LEVELS:
            series[:, column] = level(usable, n_bins)
        else:
            series[:, column] = counter(usable, n_bins)

    starts = list(range(0, n_bins - WINDOW + 1, STRIDE))
    features = np.empty((len(starts), len(CHANNELS) * len(STATS)), np.float32)
    names, purity = [], []
    for i, start in enumerate(starts):
        names.append(phase_at((start + WINDOW // 2) * BIN))
        centres = [j * BIN + BIN // 2 for j in range(start, start + WINDOW)]
        purity.append(sum(phase_at(centre) == names[-1] for centre in centres) / WINDOW)
        window = series[start : start + WINDOW]
        features[i] = np.concatenate([statistics(column) for column in window.T])
    return Result(series, features, names, purity, [start / 10 for start in starts])
