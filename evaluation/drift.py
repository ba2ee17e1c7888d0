"""Drift: how a batch differs from a model's training data, and what chance alone would do.

A population stability index and differences of shares, each with what resampled training episodes
give if nothing changed. Which batch and whose training data is not known here.

``PSI = sum_i (q_i - p_i) ln(q_i / p_i)`` over bins, ``p`` of training and ``q`` of the batch
(Siddiqi 2006, Credit Risk Scorecards, who calls 0.1 and 0.25 notable and large). It is biased
upward on small samples: of independent draws from one population it is about
``(1/N + 1/M) chi2(bins - 1)`` (Yurdakul 2018). Windows of an episode are alike, so whole training
episodes are resampled instead, as many as the batch has: their PSI is what chance alone gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from episodes.format import PHASES, SOURCES
from episodes.validation import USABLE, VERDICTS
from evaluation.documents import (
    BatchDrift,
    CheckName,
    DriftCheck,
    DriftNote,
    DriftReference,
    DriftRow,
    DriftThresholds,
    ReferenceGroup,
    Severity,
    TrainingData,
)

WARN, FAIL = 0.1, 0.25
"""PSI, or points of a share (0.1 = 10 points): from here on a change warns, or fails.
Only a change that exceeds chance counts."""
CHANCE = 0.95  # share of unchanged batches that stay below ``chance`` in all figures of a check
REPLICATES = 1_000
THRESHOLDS = DriftThresholds(warn=WARN, fail=FAIL, chance=CHANCE, replicates=REPLICATES)
QUANTILES = np.arange(1, 10) / 10
MAX_EPISODES = 200  # per host in a reference: bounds its size
MIN_TRAINING_EPISODES = 5  # per host in training: fewer cannot be resampled
EVERY_HOST = ""  # the group that a host unknown to training is compared with

CHECKS: tuple[CheckName, ...] = ("coverage", "channels", "missing", "verdicts", "class_mix")


# --- the index and what chance does -------------------------------------------------------------


def psi(training: NDArray, batch: NDArray, bins: NDArray | None = None) -> NDArray[np.float64]:
    """Population stability index ``(...)`` of counts ``(..., n_bins)``.

    Half a case is added to every bin of both sides, so that an empty one is no infinity.

    Args:
        bins: ``(..., n_bins)``, which bins exist; None: all. The others are empty.
    """
    exists = np.ones(training.shape[-1:], dtype=bool) if bins is None else bins
    p, q = ((counts + 0.5) * exists for counts in (training, batch))
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(exists, (q - p) * np.log(q / p), 0.0)
    return terms.sum(axis=-1)


def bin_edges(values: NDArray, n: int) -> NDArray[np.float64]:
    """Edges ``(n,)`` at the deciles of the values that are present, padded with infinity.

    A bin is ``(edge, next edge]``. A value that several deciles share has a bin of its own, so that
    a channel which is nearly always 0 is seen to leave it in either direction.
    """
    present = values[~np.isnan(values)].astype(np.float64)
    edges = np.full(n, np.inf)
    if len(present):
        deciles = np.quantile(present, QUANTILES, method="inverted_cdf")
        once, times = np.unique(deciles, return_counts=True)
        distinct = np.union1d(once, np.nextafter(once[times > 1], -np.inf))
        edges[: len(distinct)] = distinct
    return edges


def count_bins(values: NDArray, edges: NDArray, episode: NDArray, n_episodes: int) -> NDArray:
    """Counts ``(n_episodes, n_channels, n_edges + 1)``; a missing value is in no bin.

    Args:
        values: ``(n_windows, n_channels)``.
        edges: ``(n_channels, n_edges)``.
        episode: ``(n_windows,)``, 0 to ``n_episodes - 1``.
    """
    n_channels, n_bins = len(edges), edges.shape[1] + 1
    counts = np.zeros((n_episodes, n_channels, n_bins), dtype=np.int64)
    for channel in range(n_channels):
        present = ~np.isnan(values[:, channel])
        of = np.searchsorted(edges[channel], values[present, channel], side="left")
        cell = episode[present] * n_bins + of
        counts[:, channel] = np.bincount(cell, minlength=n_episodes * n_bins).reshape(-1, n_bins)
    return counts


def chance_limits(null: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``(expected, chance)``, ``(m,)`` each, of statistics ``(B, m)`` that grow with a change.

    ``chance`` lies above ``expected`` by what the largest of all ``m`` excesses stays below in
    ``CHANCE`` of the replicates: in that share of unchanged batches none of them exceeds it.
    """
    expected = null.mean(axis=0)
    return expected, expected + np.quantile((null - expected).max(axis=1), CHANCE)


def severity_of(value: float, chance: float) -> Severity:
    """How bad a change is; one within chance is none."""
    if not value > chance:
        return "ok"
    return "fail" if value >= FAIL else "warn" if value >= WARN else "ok"


def worst_severity(severities: Iterable[str]) -> Severity:
    present = set(severities)
    return "fail" if "fail" in present else "warn" if "warn" in present else "ok"


# --- a reference --------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpisodeSums:
    """Windows of training or of a batch, in sums by episode."""

    windows: NDArray[np.int64]  # (n_episodes,)
    coverage: NDArray[np.float64]  # (n_episodes, n_sources), summed over windows
    missing: NDArray[np.int64]  # (n_episodes, n_channels), windows without a value
    counts: NDArray[np.int64]  # (n_episodes, n_channels, n_bins)

    def shares(self, weights: NDArray | None = None) -> NDArray[np.float64]:
        """Mean coverage by source, then the share missing by channel: ``(b, n_sources + n)``.

        Args:
            weights: ``(b, n_episodes)``; None: each episode once.
        """
        weights = np.ones((1, len(self.windows))) if weights is None else weights
        sums = weights @ np.concatenate([self.coverage, self.missing], axis=1)
        return sums / np.maximum(weights @ self.windows, 1)[:, None]


def episode_sums(windows: pl.DataFrame, channels: Sequence[str], edges: NDArray) -> EpisodeSums:
    """Sums by episode of windows with their features.

    Args:
        windows: rows of feature shards: ``episode_id``, ``coverage_*``, ``<channel>.mean``.
        edges: ``(n_channels, n_edges)``.
    """
    episode = windows["episode_id"].rank("dense").to_numpy().astype(np.int64) - 1
    n = int(episode.max()) + 1 if len(episode) else 0
    values = channel_values(windows, channels)
    coverage = np.zeros((n, len(SOURCES)))
    missing = np.zeros((n, len(channels)), dtype=np.int64)
    np.add.at(coverage, episode, windows.select(f"coverage_{s}" for s in SOURCES).to_numpy())
    np.add.at(missing, episode, np.isnan(values))
    return EpisodeSums(
        np.bincount(episode, minlength=n), coverage, missing, count_bins(values, edges, episode, n)
    )


def channel_values(windows: pl.DataFrame, channels: Sequence[str]) -> NDArray[np.float64]:
    """What is compared of a channel: its mean in a window, ``(n_windows, n_channels)``."""
    return windows.select(f"{c}.mean" for c in channels).to_numpy().astype(np.float64)


def build_reference(
    windows: pl.DataFrame,
    predicted: pl.DataFrame,
    verdicts: pl.DataFrame,
    channels: Sequence[str],
    seed: int,
) -> DriftReference:
    """What batches are compared with: each host's training data, and all hosts' together.

    Hosts differ in level (one has twice the memory), so a batch, which is of one host, is compared
    with the same host's training episodes.

    Args:
        windows: windows of the training side with their features (see ``episode_sums``), and
            ``host_id``.
        predicted: windows of the validation side: ``episode_id``, ``host_id``, ``predicted``.
        verdicts: one row per episode of the batches trained on: ``host_id``, ``verdict``.
        channels: the channels that the model sees.
        seed: draws ``MAX_EPISODES`` if there are more; see ``draw_episodes``.
    """
    groups = {}
    for host in (EVERY_HOST, *windows["host_id"].unique().sort()):
        drawn = _drawn(_of(windows, host), seed)
        values = channel_values(drawn, channels)
        edges = np.stack([bin_edges(column, 2 * len(QUANTILES)) for column in values.T])
        sums = episode_sums(drawn, channels, edges)
        on_val = _of(predicted, host)
        if on_val.is_empty():  # validation by host lacks this host: use the mix of all
            on_val = predicted
        judged = _of(verdicts, host)["verdict"].to_list()
        groups[host] = ReferenceGroup(
            episodes=len(sums.windows),
            windows=sums.windows.tolist(),
            coverage=sums.coverage.round(4).tolist(),
            missing=sums.missing.tolist(),
            edges=[row[np.isfinite(row)].tolist() for row in edges],
            counts=sums.counts.tolist(),
            predicted=_mix(_drawn(on_val, seed)).tolist(),
            labelled=[int((drawn["label"] == phase).sum()) for phase in PHASES],
            verdicts=[judged.count(verdict) for verdict in VERDICTS],
        )
    return DriftReference(
        channels=list(channels),
        sources=list(SOURCES),
        phases=list(PHASES),
        verdicts=list(VERDICTS),
        groups=groups,
    )


def draw_episodes(windows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The windows of at most ``MAX_EPISODES`` episodes of each host."""
    return pl.concat(
        _drawn(_of(windows, host), seed) for host in windows["host_id"].unique().sort()
    )


def _of(rows: pl.DataFrame, host: str) -> pl.DataFrame:
    return rows if host == EVERY_HOST else rows.filter(pl.col("host_id") == host)


def _drawn(windows: pl.DataFrame, seed: int) -> pl.DataFrame:
    episodes = windows["episode_id"].unique().sort()
    if len(episodes) <= MAX_EPISODES:
        return windows
    chosen = np.random.default_rng([seed, 7]).choice(len(episodes), MAX_EPISODES, replace=False)
    return windows.filter(pl.col("episode_id").is_in(episodes[np.sort(chosen)].implode()))


def _mix(windows: pl.DataFrame) -> NDArray[np.int64]:
    """Windows ``(n_episodes, n_classes)`` predicted to be of each class."""
    return (
        windows.group_by("episode_id", maintain_order=True)
        .agg(*((pl.col("predicted") == phase).sum().alias(phase) for phase in PHASES))
        .select(PHASES)
        .to_numpy()
        .astype(np.int64)
    )


# --- a batch ------------------------------------------------------------------------------------


# Long, because it puts one document together, field by field.
def compare_batch(
    batch: str,
    host: str,
    windows: pl.DataFrame,
    verdicts: Sequence[str],
    trained: DriftReference,
    identity: Mapping[str, Any],
    seed: int = 0,
) -> BatchDrift:
    """One batch compared with the training data.

    Args:
        windows: all windows of the batch with their features (see ``episode_sums``),
            ``predicted`` and ``seen_in_training``.
        verdicts: of all its episodes, usable or not.
        trained: see ``build_reference``.
        identity: ``champion``, whose training data it is.
    """
    known = host in trained.groups
    group = trained.groups[host if known else EVERY_HOST]
    edges = np.full((len(trained.channels), 2 * len(QUANTILES)), np.inf)
    for row, finite_edges in zip(edges, group.edges, strict=True):
        row[: len(finite_edges)] = finite_edges
    before = EpisodeSums(
        *map(np.array, (group.windows, group.coverage, group.missing, group.counts))
    )
    now = episode_sums(windows, trained.channels, edges)
    n_before, n_now = len(before.windows), len(now.windows)
    random = np.random.default_rng([seed, n_before, n_now])
    if n_now:
        weights = [_weights(random, n_before, n) for n in (n_before, n_now)]
        before_mix, now_mix = np.array(group.predicted), _mix(windows)
        checks = [
            *_share_checks(before, now, weights, trained),
            _channels_check(before, now, weights, edges, trained.channels),
            _mix_check(
                "class_mix",
                PHASES,
                (before_mix.sum(axis=0), now_mix.sum(axis=0)),
                [_weights(random, len(before_mix), n) @ before_mix
                 for n in (len(before_mix), n_now)],
            ),
        ]  # fmt: skip
    else:
        checks = [
            DriftCheck(name=name, severity="fail", rows=[]) for name in CHECKS if name != "verdicts"
        ]
    counts = np.array(group.verdicts), np.array([list(verdicts).count(v) for v in VERDICTS])
    share = counts[0] / counts[0].sum()
    null = [random.multinomial(c.sum(), share, size=REPLICATES) for c in counts]
    checks.append(_mix_check("verdicts", VERDICTS, counts, null))
    notes = []
    if not known:
        notes.append(DriftNote(code="unknown_host", about=host))
    if n_before < MIN_TRAINING_EPISODES:
        numbers = {"episodes": n_before, "needed": MIN_TRAINING_EPISODES}
        notes.append(DriftNote(code="too_little_training", numbers=numbers))
        checks = [check.model_copy(update={"severity": "ok"}) for check in checks]
    seen = windows.filter(pl.col("seen_in_training"))["episode_id"].n_unique()
    if seen:
        numbers = {"seen": seen, "episodes": n_now}
        notes.append(DriftNote(code="seen_in_training", numbers=numbers))
    return BatchDrift(
        batch=batch,
        host=host,
        **identity,
        episodes=n_now,
        windows=len(windows),
        compared_with=TrainingData(
            hosts=host if known else "all",
            episodes=n_before,
            windows=int(before.windows.sum()),
        ),
        thresholds=THRESHOLDS,
        severity=worst_severity(check.severity for check in checks),
        notes=notes,
        checks=sorted(checks, key=lambda check: CHECKS.index(check.name)),
    )


def _weights(random: np.random.Generator, n_episodes: int, drawn: int) -> NDArray[np.int64]:
    """How often each training episode is drawn, ``drawn`` in all: ``(REPLICATES, n_episodes)``."""
    return random.multinomial(drawn, np.full(n_episodes, 1 / n_episodes), size=REPLICATES)


def _share_checks(
    before: EpisodeSums, now: EpisodeSums, weights: list[NDArray], trained: DriftReference
) -> list[DriftCheck]:
    """Coverage by source that was lost, and the share missing by channel that was gained."""
    n = len(trained.sources)
    null = before.shares(weights[1]) - before.shares(weights[0])
    was = before.shares()[0]
    change = now.shares()[0] - was
    parts: tuple[tuple[CheckName, list[str], slice, int], ...] = (
        ("coverage", trained.sources, slice(0, n), -1),
        ("missing", trained.channels, slice(n, None), 1),
    )
    checks = []
    for check, names, part, sign in parts:
        _, chance = chance_limits(sign * null[:, part])
        rows = [
            DriftRow(
                name=name,
                training=round(float(share), 4),
                batch=round(float(share + delta), 4),
                value=round(float(sign * delta), 4),
                chance=round(float(limit), 4),
                severity=severity_of(sign * delta, limit),
            )
            for name, share, delta, limit in zip(
                names, was[part], change[part], chance, strict=True
            )
        ]
        checks.append(_check(check, rows))
    return checks


def _channels_check(
    before: EpisodeSums,
    now: EpisodeSums,
    weights: list[NDArray],
    edges: NDArray,
    channels: Sequence[str],
) -> DriftCheck:
    shape = before.counts.shape[1:]
    bins = np.concatenate([np.isfinite(edges), np.zeros((len(edges), 1), dtype=bool)], axis=1)
    bins[np.arange(len(edges)), np.isfinite(edges).sum(axis=1)] = True  # above the last edge
    flat = before.counts.reshape(len(before.counts), -1)
    was, drawn = ((w @ flat).reshape(-1, *shape) for w in weights)
    null = psi(was, drawn, bins)
    values = psi(before.counts.sum(axis=0), now.counts.sum(axis=0), bins)
    absent = now.counts.sum(axis=(0, 2)) == 0  # the check of missing values reports these
    expected, chance = chance_limits(null)
    rows = [
        DriftRow(
            name=channel,
            value=None if none else round(float(value), 4),
            expected=round(float(mean), 4),
            chance=round(float(limit), 4),
            severity="ok" if none else severity_of(value, limit),
        )
        for channel, value, mean, limit, none in zip(
            channels, values, expected, chance, absent, strict=True
        )
    ]
    return _check("channels", rows)


def _check(name: CheckName, rows: list[DriftRow]) -> DriftCheck:
    return DriftCheck(
        name=name, severity=worst_severity(row.severity or "ok" for row in rows), rows=rows
    )


def _mix_check(
    name: CheckName, categories: Sequence[str], sums: tuple[NDArray, NDArray], null: list[NDArray]
) -> DriftCheck:
    """One PSI of all categories: of counts ``(n,)`` and of replicates ``(B, n)``, on both sides."""
    (expected,), (chance,) = chance_limits(psi(*null)[:, None])
    value = float(psi(*sums))
    shares = (s / max(s.sum(), 1) for s in sums)
    return DriftCheck(
        name=name,
        severity=severity_of(value, float(chance)),
        rows=[
            DriftRow(name=category, training=round(float(was), 4), batch=round(float(now), 4))
            for category, was, now in zip(categories, *shares, strict=True)
        ],
        value=round(value, 4),
        expected=round(float(expected), 4),
        chance=round(float(chance), 4),
    )


def drift_figures(document: BatchDrift) -> dict[str, float]:
    """The numbers to follow over time, flat: name -> value."""
    checks = {check.name: check for check in document.checks}
    rows = {name: check.rows for name, check in checks.items()}
    values = [row.value for row in rows["channels"] if row.value is not None]
    flat: dict[str, Any] = {
        "episodes": document.episodes,
        "windows": document.windows,
        **{f"coverage_{row.name}": row.batch for row in rows["coverage"]},
        **{f"share_{row.name}": row.batch for row in rows["verdicts"]},
        **{f"predicted_{row.name}": row.batch for row in rows["class_mix"]},
    }
    if values:
        flat["psi_largest"] = max(values)
        flat["psi_median"] = float(np.median(values))
        flat["channels_changed"] = sum(row.severity != "ok" for row in rows["channels"])
    if rows["missing"]:
        flat["missing_share"] = float(np.mean([row.batch or 0 for row in rows["missing"]]))
    flat["usable_share"] = sum(row.batch or 0 for row in rows["verdicts"] if row.name in USABLE)
    flat |= {f"psi_{n}": check.value for n, check in checks.items() if check.value is not None}
    return flat
