"""Golden vectors: frozen episodes and what was extracted from them, to catch silent changes.

Two recorded episodes: one with a coarse netflow clock and no guest rows, one with a gap, in which
``new_flows`` was changed by hand so that no two channels coincide. The committed file holds their
series, features, labels and baselines, and its digest is part of every contract. Rewrite it
(``python -m features.golden``) only with ``contract.PREPROCESSING_VERSION`` or the registry.

A second file holds short episodes that exercise the rules of the data format one by one
(``features.rules``), with everything that comes out of them.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from episodes.format import ARCHIVE_SUFFIX, SOURCES
from features.contract import GOLDEN_FILE, contract_of, diff_contracts
from features.files import file_sha256, fingerprint, write_atomically
from features.registry import LAYOUT, MODES, InputKind, Layout, Mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from features.extraction import Extracted

RELATIVE_TOLERANCE = 1e-5
REWRITE = "rewrite it: python -m features.golden"
_KINDS: tuple[InputKind, ...] = ("summary", "tensor")
RULES_FILE = GOLDEN_FILE.with_name("rules.xz")


@dataclass(frozen=True)
class GoldenEpisode:
    """What was extracted from one episode when it was frozen."""

    series: NDArray[np.float32]  # (n_bins, n_channels)
    features: NDArray[np.float32]  # (n_windows, n_features)
    labels: NDArray[np.str_]  # (n_windows,)
    baseline: NDArray[np.float32]  # (n_windows, n_features)
    level: NDArray[np.float32]  # (n_windows, n_channels)


def read_golden(layout: Layout = LAYOUT) -> dict[str, GoldenEpisode] | None:
    """The committed vectors by episode id; None if they were made for other inputs.

    Inputs differ if channels, statistics or windows have other names, order or lengths. A unit or a
    rule may differ: a model can still be given the vectors.
    """
    with np.load(GOLDEN_FILE, allow_pickle=False) as file:  # noqa: TID251  no pickle is read
        if file["inputs"].tolist() != _inputs(layout):
            return None
        ids = sorted(name.removesuffix(".series") for name in file.files if ".series" in name)
        return {
            i: GoldenEpisode(*(file[f"{i}.{each.name}"] for each in fields(GoldenEpisode)))
            for i in ids
        }


def _inputs(layout: Layout) -> list[str]:
    window = layout.window
    grid = (window.bin_ms, window.length_ms, window.stride_ms)
    return [*layout.feature_names, *layout.channel_names, *map(str, grid)]


def replay(layout: Layout = LAYOUT) -> dict[str, Extracted]:
    """Extract every golden episode with the current code; by id."""
    from episodes.reading import (
        read_episode,  # here: these load compiled code, which read_golden does not need
    )
    from features.extraction import extract

    extracted = {}
    for path in sorted(GOLDEN_FILE.parent.glob(f"*{ARCHIVE_SUFFIX}")):
        episode_id = path.name.removesuffix(ARCHIVE_SUFFIX)
        extracted[episode_id] = extract(read_episode(path, episode_id, layout.fields), layout)
    return extracted


def differences(layout: Layout = LAYOUT) -> list[str]:
    """How a replay differs from the committed file; empty if it does not.

    One line per episode and channel names the quantities that differ, with the largest difference.
    Values are compared within 1e-5 of the larger of the value and the quantity's RMS, because
    processors differ in the last bits; missing values and labels are compared exactly.
    """
    from episodes.archive import ArchiveError
    from features.alignment import AlignmentError

    golden = read_golden(layout)
    if golden is None:
        return [f"{GOLDEN_FILE.name} is for other channels, statistics or windows; {REWRITE}"]
    try:
        replayed = replay(layout)
    except (ArchiveError, AlignmentError, OSError) as error:
        return [f"the golden episodes cannot be replayed: {error}"]
    lines = [f"{gone}: the golden episode is missing" for gone in golden.keys() - replayed.keys()]
    lines += [f"{new}: not in {GOLDEN_FILE.name}; {REWRITE}" for new in replayed.keys() - golden]
    for episode_id in sorted(golden.keys() & replayed.keys()):
        changes = _episode_differences(golden[episode_id], replayed[episode_id], layout)
        lines += [f"{episode_id}: {line}" for line in changes]
    return lines


def _episode_differences(was: GoldenEpisode, now: Extracted, layout: Layout) -> Iterator[str]:
    pairs = {
        "series": (was.series, now.series),
        "features": (was.features, now.features),
        "labels": (was.labels, now.windows.label),
        "baseline": (was.baseline, now.baseline),
        "level": (was.level, now.level),
    }
    other_shapes = {name: pair for name, pair in pairs.items() if pair[0].shape != pair[1].shape}
    for name, (before, after) in other_shapes.items():
        yield f"shape of {name} was {before.shape}, is {after.shape}"
    if other_shapes:
        return
    for window in np.flatnonzero(was.labels != now.windows.label):
        yield f"window {window}: label was {was.labels[window]}, is {now.windows.label[window]}"
    n_stats = len(layout.stats)
    for i, channel in enumerate(layout.channel_names):
        changes = [
            difference(was.series[:, i], now.series[:, i], "series", "bin"),
            difference(was.level[:, i], now.level[:, i], "level", "window"),
        ]
        for j, stat in enumerate(layout.stats, start=i * n_stats):
            changes += [
                difference(was.features[:, j], now.features[:, j], stat, "window"),
                difference(was.baseline[:, j], now.baseline[:, j], f"baseline of {stat}", "window"),
            ]
        if any(changes):
            yield f"{channel}: " + "; ".join(filter(None, changes))


def _off(was: NDArray[Any], now: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values differ beyond the tolerance, of columns ``(n,)`` or ``(n, n_columns)``."""
    error = np.abs(now.astype(np.float64) - was)
    missing = np.isnan(was)
    squares = np.where(missing, 0.0, was.astype(np.float64)) ** 2  # of a float32: no overflow
    rms = np.sqrt(squares.sum(axis=0) / np.maximum(np.count_nonzero(~missing, axis=0), 1))
    off = ~(error <= RELATIVE_TOLERANCE * np.fmax(np.abs(was), rms))
    return off & ~(missing & np.isnan(now))


def difference(
    was: NDArray[np.float32], now: NDArray[np.float32], name: str, unit: str
) -> str | None:
    """How often ``now`` differs from ``was``, both ``(n,)``, and where most; None: nowhere."""
    off = _off(was, now)
    if not off.any():
        return None
    # a value that became missing, or stopped being so, is the largest difference of all
    error = np.nan_to_num(np.abs(now.astype(np.float64) - was), nan=np.inf)
    worst = int(np.argmax(np.where(off, error, -1.0)))
    before, after = (
        "missing" if np.isnan(side[worst]) else f"{side[worst]:.7g}" for side in (was, now)
    )
    return (
        f"{name} in {np.count_nonzero(off)} of {len(was)} {unit}s, "
        f"most in {unit} {worst} (was {before}, is {after})"
    )


# --- files of arrays


def packed(head: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A document and named arrays as one file, equal for equal content."""
    listed = [(name, a.dtype.str, a.shape, a.nbytes) for name, a in arrays.items()]
    text = json.dumps({**head, "arrays": listed}).encode()
    parts = [np.ascontiguousarray(a).tobytes() for a in arrays.values()]
    # at its best: most episodes are cut from the same rows
    return lzma.compress(b"\n".join([text, b"".join(parts)]), preset=9)


def unpacked(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What ``packed`` packed.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    try:
        content = lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    begin = content.index(b"\n") + 1
    head = json.loads(content[:begin])
    arrays = {}
    for name, dtype, shape, length in head.pop("arrays"):
        part = np.frombuffer(content[begin : begin + length], np.dtype(dtype))
        arrays[name] = part.reshape(shape)
        begin += length
    return head, arrays


# --- rules


@dataclass(frozen=True)
class RuleEpisode:
    """A short episode that exercises one rule, and what came out of it when it was frozen."""

    name: str
    rule: str  # in words
    members: dict[str, bytes]
    expected: dict[str, NDArray[Any]]  # by quantity, see ``computed``

    @property
    def digest(self) -> str:
        """Of all of it; equal for equal content, however it is packed."""
        content = {name: data.hex() for name, data in self.members.items()}
        results = {n: [a.dtype.str, a.shape, a.tobytes().hex()] for n, a in self.expected.items()}
        return fingerprint([content, results])[:16]


@dataclass(frozen=True)
class RuleFile:
    """The committed rule episodes by name, and the contracts of the layout they were made for."""

    episodes: dict[str, RuleEpisode]
    contracts: dict[str, Any]  # input kind -> sections

    def other_layout(self, layout: Layout) -> list[str]:
        """How a layout differs from theirs, one line each."""
        lines = []
        for kind, sections in _contracts(layout).items():
            lines += diff_contracts(self.contracts[kind], sections)
        return list(dict.fromkeys(lines))


def _contracts(layout: Layout) -> dict[str, Any]:
    contracts: dict[str, Any] = {}
    for kind in _KINDS:
        sections = dict(contract_of(layout, kind).sections)
        sections["preprocessing"] = {"version": sections["preprocessing"]["version"]}
        contracts[kind] = sections
    return contracts


def read_rules() -> RuleFile:
    """The committed rule episodes.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    head, arrays = unpacked(RULES_FILE)
    episodes = {
        name: RuleEpisode(
            name,
            about["rule"],
            {each: arrays[f"{name}/in/{each}"].tobytes() for each in about["members"]},
            {each: arrays[f"{name}/out/{each}"] for each in about["expected"]},
        )
        for name, about in head["rules"].items()
    }
    return RuleFile(episodes, head["contracts"])


def computed(name: str, members: Mapping[str, bytes], layout: Layout) -> dict[str, NDArray[Any]]:
    """What the current code makes of an episode's files, in the order it is computed in."""
    from episodes.reading import parse_members  # here: see ``replay``
    from features.alignment import AlignmentError
    from features.extraction import extract
    from features.relative import summary_inputs, tensor_inputs
    from features.windows import window_views

    episode = parse_members(name, members, layout.fields)
    found: dict[str, NDArray[Any]] = {}
    for source, rows in episode.sources.items():
        usage = episode.usage[source]
        counts = (usage.n_rows, usage.n_repeated, usage.n_outside, rows.n_malformed)
        found[f"rows.{source}"] = np.array(
            [len(rows), *counts, len(rows.problems), np.count_nonzero(usage.present),
             *rows.unusable, *rows.absent, *usage.silent], dtype=np.int64,
        )  # fmt: skip
    found["absence"] = np.array([str(usage.absence) for usage in episode.usage.values()])
    try:
        extracted = extract(episode, layout)
    except AlignmentError as error:
        return found | {"error": np.array([type(error).__name__])}
    views = window_views(extracted.series, layout.window)
    inputs = summary_inputs(extracted.features, extracted.baseline)
    relative = tensor_inputs(views, extracted.level)[:, ::10, views.shape[2] :]
    windows = extracted.windows
    return found | {
        "series": extracted.series,
        "start": windows.start_bin,
        "start_s": windows.start_s,
        "label": windows.label,
        "purity": windows.purity,
        "onset": np.array([-1.0 if extracted.onset_s is None else extracted.onset_s]),
        "job": extracted.jobs,
        "coverage": extracted.coverage,
        "features": extracted.features,
        "level": extracted.level,
        "baseline": extracted.baseline,
        "relative": inputs[:, inputs.shape[1] // 2 :],
        "tensor": relative.reshape(-1, relative.shape[2]),
    }


def _extracted(name: str, members: Mapping[str, bytes], layout: Layout) -> Extracted:
    from episodes.reading import parse_members  # here: see ``replay``
    from features.extraction import extract

    return extract(parse_members(name, members, layout.fields), layout)


_SHOWN = {
    "rows": "which rows of a source count",
    "absence": "when a source counts as absent",
    "error": "which episodes cannot be aligned",
    "counter": "a counter is its increase over the bin, per second",
    "level": "a level is the last row in the bin",
    "bucket": "a bucket is the sum of its rows",
    "start": "a window starts every 50 bins, and only whole ones count",
    "start_s": "a window's start in seconds",
    "label": "a window has the phase of the latest label at or before its centre",
    "purity": "purity is the share of bin centres with the window's phase",
    "onset": "an attack begins with its earliest infecting or infected_running label",
    "job": "a window's job is the one that overlaps it longest",
    "coverage": "coverage is the share of values that are present",
    "mean": "the mean of a window's values",
    "std": "the population's standard deviation of a window's values",
    "p95": "the 95% quantile of a window's values, interpolated linearly",
    "slope": "the least-squares slope of a window's values, per second",
    "zero_frac": "the share of a window's values that are 0",
    "baseline": "a baseline is the median of sign(x) log(1 + |x|) over the last 12 windows",
    "relative": "a relative input is sign(x) log(1 + |x|) less the baseline",
}
"""Quantity -> the rule that every episode shows, for a change that does so too."""


def rule_differences(layout: Layout) -> list[str]:
    """How the rule episodes come out otherwise than committed; empty if they do not.

    One line per rule, with the place where the first quantity that differs differs most; what
    follows from it is left out, and so are rules that add nothing to one before.
    """
    try:
        rules = read_rules()
    except (OSError, ValueError, KeyError) as error:
        return [f"{RULES_FILE.name} cannot be read: {error}"]
    if lines := rules.other_layout(layout):
        return [f"{line}, but {RULES_FILE.name} is as it was; {REWRITE}" for line in lines]
    shown: set[str] = set()
    more = 0
    for episode in rules.episodes.values():
        try:
            now = computed(episode.name, episode.members, layout)
            found = episode_difference(episode, now, layout)
        except Exception as error:  # code that was changed may fail in any way
            found = "error", f"{type(error).__name__}: {error}"
        if found is None:
            continue
        quantity, figures = found
        if quantity in shown:
            more += 1
            continue
        if not shown and episode is next(iter(rules.episodes.values())):
            shown.add(quantity)
        rule = _SHOWN[quantity] if quantity in shown else episode.rule
        lines.append(f"{episode.name}: {rule}: {figures}")
    return [*lines, *([f"and {more} more golden episodes likewise"] if more else [])]


def episode_difference(
    episode: RuleEpisode, now: Mapping[str, NDArray[Any]], layout: Layout
) -> tuple[str, str] | None:
    """The first quantity that differs, and where it differs most; None: nothing does."""
    for name, was in episode.expected.items():
        if name not in now:
            return ("error", f"{name} was computed, is not: {_words(now.get('error'))}")
        if found := _quantity_difference(name, was, now[name], layout):
            return found
    added = now.keys() - episode.expected.keys()
    return ("error", f"is aligned, was not: {_words(episode.expected['error'])}") if added else None


def _words(values: NDArray[Any] | None) -> str:
    return "nothing" if values is None else ", ".join(map(str, values.ravel()[:8]))


def _quantity_difference(
    name: str, was: NDArray[Any], now: NDArray[Any], layout: Layout
) -> tuple[str, str] | None:
    """``(key of _SHOWN, figures)``."""
    quantity = name.partition(".")[0]
    if was.shape != now.shape:
        return quantity if quantity in _SHOWN else "start", (
            f"shape of {name} was {was.shape}, is {now.shape}"
        )
    if was.dtype.kind != "f":
        if np.array_equal(was, now):
            return None
        at = int(np.flatnonzero(np.atleast_1d(was != now).ravel())[0])
        return quantity, f"{name} {at} was {was.ravel()[at]}, is {now.ravel()[at]}"
    return columns_difference(quantity, was, now, layout)


def columns_difference(
    quantity: str, was: NDArray[Any], now: NDArray[Any], layout: Layout
) -> tuple[str, str] | None:
    """The first column that differs, as ``(key of _SHOWN, figures)``; of floats of equal shape."""
    if not _off(was, now).any():
        return None
    columns = [(was, now)] if was.ndim == 1 else list(zip(was.T, now.T, strict=True))
    unit = "bin" if quantity == "series" else "window"
    changed = [i for i, pair in enumerate(columns) if _off(*pair).any()]
    key, column = _column(quantity, changed[0], layout)
    before, after = columns[changed[0]]
    text = difference(before, after, quantity if quantity == "series" else key, unit)
    others = len(changed) - 1
    return key, f"{column}{text}" + (f", and in {others} more columns" if others else "")


def _column(quantity: str, i: int, layout: Layout) -> tuple[str, str]:
    """``(key of _SHOWN, name of a column)``."""
    n_stats = len(layout.stats)
    if quantity == "series":
        return layout.channels[i].kind, f"{layout.channel_names[i]}: "
    if quantity == "features":
        return layout.stats[i % n_stats], f"{layout.channel_names[i // n_stats]}: "
    if quantity in ("baseline", "relative"):
        return quantity, f"{layout.feature_names[i]}: "
    if quantity in ("level", "tensor"):
        key = "baseline" if quantity == "level" else "relative"
        return key, f"{layout.channel_names[i]}: "
    if quantity == "coverage":
        return quantity, f"{list(SOURCES)[i]}: "
    return quantity, ""


# --- shards


_SHARDED = ("plain", "jobs", "level-age", "no-guest")
_STATED = {
    "host_id": "lab-a", "sample_sha256": "5a", "sample_name": "scan.v1", "image_sha256": "1a",
    "profile": "scan", "verdict": "degraded", "synthetic": True, "parent_episode_id": "parent",
    "started_at_wall_ns": 11, "ended_at_wall_ns": 22,
}  # fmt: skip
"""What a record says of an episode, for its windows."""


class _ShardFolder:
    """Where shards are written, and read from."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir()

    def new_file(self, role: str, suffix: str) -> Path:
        return self._folder / f"{role}{suffix}"

    def path(self, role: str) -> Path:
        return self.paths(role)[0]

    def paths(self, kind: str) -> list[Path]:
        return sorted(self._folder.glob(f"{kind}*"))


def shard_differences(layout: Layout) -> list[str]:
    """How what is read from shards differs from what was written to them.

    Models are trained on shards, and batches are scored from them.
    """
    try:
        return _shard_differences(layout)
    except Exception as error:  # code that was changed may fail in any way
        return [f"shards: {type(error).__name__}: {error}"]


# Long, because every part of a shard is compared.
def _shard_differences(layout: Layout) -> list[str]:
    from features.extraction import SOURCE_NAMES  # here: see ``replay``
    from features.loaders import read_windows
    from features.relative import episode_inputs
    from features.shards import ShardWriter, episode_rows, read_episodes

    rules = read_rules().episodes
    extracted = [_extracted(name, rules[name].members, layout) for name in _SHARDED]
    written = [
        episode_rows(SimpleNamespace(episode_id=name, **_STATED), each)  # type: ignore[arg-type]
        for name, each in zip(_SHARDED, extracted, strict=True)
    ]
    lines: list[str] = []

    def same(what: str, was: Any, now: Any) -> None:
        was, now = np.asarray(was), np.asarray(now)
        kept = was.shape == now.shape and np.array_equal(was, now, equal_nan=was.dtype.kind == "f")
        if not kept:
            lines.append(f"shards: {what}: what is read differs from what was written")

    with tempfile.TemporaryDirectory() as folder:
        tensors, features = (_ShardFolder(Path(folder) / name) for name in ("tensors", "features"))
        writer = ShardWriter(layout, tensors, features, first=3)
        places = []
        for i, rows in enumerate(written):
            if i == 3:
                writer.close()
            places.append(writer.add(rows))
        writer.close()
        for shard in (3, 4):
            own = [(n, w, p) for n, w, p in zip(_SHARDED, written, places, strict=True)
                   if p.shard == shard]  # fmt: skip
            again = read_episodes(tensors, features, shard, [place for *_, place in own])
            for (name, was, _), now in zip(own, again, strict=True):
                for part in ("series", "level", "inputs"):
                    same(f"{part} of {name}", getattr(was, part), getattr(now, part))
                for column in was.windows.keys() - {"shard"}:
                    same(f"{column} of {name}", was.windows[column], now.windows[column])
        facts = writer.shards
        same("episodes", [s["episodes"] for s in facts], [3, 1])
        same("bins", [s["bins"] for s in facts], [sum(len(e.series) for e in extracted[:3]),
                                                  len(extracted[3].series)])  # fmt: skip
        present = [np.count_nonzero(~np.isnan(e.series), axis=0) for e in extracted]
        same("values", [s["finite_cells"] for s in facts], [sum(present[:3]), present[3]])
        table = read_windows(tensors.paths("windows"))
        same("tables", table.to_pylist(), read_windows(features.paths("windows")).to_pylist())
        same("phases", [sum(s["windows_by_phase"].values()) for s in facts],
             [sum(len(e.windows) for e in extracted[:3]), len(extracted[3].windows)])  # fmt: skip
        stated: dict[str, list[Any]] = {
            "start_s": [e.windows.start_s for e in extracted],
            "label": [e.windows.label for e in extracted],
            "purity": [e.windows.purity.astype(np.float32) for e in extracted],
            "job": [e.jobs for e in extracted],
            "window": [np.arange(len(e.windows)) for e in extracted],
            "episode_id": [[n] * len(e.windows) for n, e in zip(_SHARDED, extracted, strict=True)],
            "onset_s": [[e.onset_s] * len(e.windows) for e in extracted],
            **{name: [[value] * len(e.windows) for e in extracted]
               for name, value in _STATED.items()},
            **{f"coverage_{s}": [e.coverage[:, i] for e in extracted]
               for i, s in enumerate(SOURCE_NAMES)},
        }  # fmt: skip
        for name, parts in stated.items():
            same(f"{name} of windows", np.concatenate(parts), table.column(name).to_pylist())
        order = np.random.default_rng(8).permutation(len(table))
        for mode, kind in ((m, k) for m in MODES for k in _KINDS):
            inputs = np.concatenate(
                [episode_inputs(kind, e.series, e.features, layout) for e in extracted]
            )
            inputs = inputs[order][..., layout.keep_mask(mode, kind)]
            found = _opened(kind, mode, tensors, features, table, order, layout)
            same(f"{kind} inputs, {mode}", inputs, found[:])
            same(f"some {kind} inputs, {mode}", inputs[1:4], found[1:4])
            same(
                f"shape of {kind} inputs", [*inputs.shape, len(inputs)], [*found.shape, len(found)]
            )
    return lines


def _opened(
    kind: InputKind,
    mode: Mode,
    tensors: _ShardFolder,
    features: _ShardFolder,
    table: Any,
    order: NDArray[np.int64],
    layout: Layout,
) -> Any:
    """The windows of a table, in an order, as a model is given them."""
    from features.loaders import RowFiles, SummaryWindows, TensorWindows

    keep = layout.keep_mask(mode, kind)
    shard, row, first_bin = (
        table.column(name).to_numpy().astype(np.int64)[order]
        for name in ("shard", "row", "first_bin")
    )
    if kind == "summary":
        files = RowFiles(features.paths("features"), len(keep))
        return SummaryWindows(files, shard - 3, row, keep)
    series, level = (
        RowFiles(tensors.paths(role), len(layout.channels)) for role in ("series", "level")
    )
    return TensorWindows(series, level, shard - 3, first_bin, row, keep, layout.window.n_bins)


# --- writing


def _write_rules() -> str:
    """Compute every rule episode and write what comes out; returns a line about it."""
    from features.rules import RULES

    arrays: dict[str, NDArray[Any]] = {}
    about: dict[str, Any] = {}
    for name, rule in RULES.items():
        members = rule.files()
        expected = computed(name, members, LAYOUT)
        about[name] = {"rule": rule.text, "members": list(members), "expected": list(expected)}
        for each, content in members.items():
            arrays[f"{name}/in/{each}"] = np.frombuffer(content, dtype=np.uint8)
        arrays |= {f"{name}/out/{each}": values for each, values in expected.items()}
    content = packed({"rules": about, "contracts": _contracts(LAYOUT)}, arrays)
    try:
        before = {name: each.digest for name, each in read_rules().episodes.items()}
    except (OSError, ValueError, KeyError):
        before = {}
    write_atomically(RULES_FILE, content)
    changed = [
        n for n, each in read_rules().episodes.items() if before.get(n, each.digest) != each.digest
    ]
    effect = (
        f"changed: {', '.join(changed)}: retrain every checkpoint" if changed else "none changed"
    )
    return f"wrote {RULES_FILE}: {len(about)} rules, {len(content):,} bytes ({effect})"


def _write() -> str:
    """Replay the golden episodes and write what they give; returns a line about it."""
    before = file_sha256(GOLDEN_FILE)
    arrays: dict[str, NDArray] = {"inputs": np.array(_inputs(LAYOUT))}
    for episode_id, extracted in replay().items():
        arrays[f"{episode_id}.series"] = extracted.series
        arrays[f"{episode_id}.features"] = extracted.features
        arrays[f"{episode_id}.labels"] = extracted.windows.label
        arrays[f"{episode_id}.baseline"] = extracted.baseline
        arrays[f"{episode_id}.level"] = extracted.level
    np.savez_compressed(GOLDEN_FILE, **arrays)  # type: ignore[arg-type]
    after = file_sha256(GOLDEN_FILE)
    effect = "unchanged" if after == before else f"was {before[:12]}: retrain every checkpoint"
    n_episodes, n_inputs = len(arrays) // len(fields(GoldenEpisode)), len(LAYOUT.channel_names)
    return (
        f"wrote {GOLDEN_FILE}: {n_episodes} episodes, {n_inputs} channels, "
        f"sha256 {after[:12]} ({effect})"
    )


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m features.golden",
        description="Rewrite the golden vectors and episodes with what the code computes now.",
    ).parse_args()
    print(_write())
    print(_write_rules())
