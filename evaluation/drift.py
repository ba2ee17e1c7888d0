"""Drift: how a batch differs from what a model was trained on, and what chance alone would do.

A population stability index and differences of shares, each with what resampled training episodes
give where nothing changed. Which batch and whose training data is not known here.

``PSI = sum_i (q_i - p_i) ln(q_i / p_i)`` over bins, ``p`` of training and ``q`` of the batch
(Siddiqi 2006, Credit Risk Scorecards, who calls 0.1 and 0.25 notable and large). It is biased
upward on small samples: of independent draws from one population it is about
``(1/N + 1/M) chi2(bins - 1)`` (Yurdakul 2018). Windows of an episode are alike, so that here whole
episodes are drawn anew instead, as many as the batch has, and the PSI of these is what chance does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from episodes.format import PHASES, SOURCES
from episodes.validation import USABLE, VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

WATCH_SCHEMA = "phasewatch.watch/1"
REFERENCE_SCHEMA = "phasewatch.reference/1"
WARN, FAIL = 0.1, 0.25
"""PSI, and likewise points of a share (0.1 = 10 points): from these on a change is said, or fails.
Only what goes beyond chance counts."""
CHANCE = 0.95  # of unchanged batches, so many stay below ``chance`` in all figures of a check
REPLICATES = 1_000
QUANTILES = np.arange(1, 10) / 10
MAX_EPISODES = 200  # of a host in a reference: more would say no more, and bounds its size
MIN_EPISODES = 5  # of a host in training: with fewer there is nothing to resample
EVERY_HOST = ""  # the group that a host unknown to training is compared with

Severity = Literal["ok", "warn", "fail"]
CHECKS = {
    "coverage": "Every source covers the batch's windows as it covered those of training.",
    "channels": "Every channel the model sees is distributed as in training (PSI).",
    "missing": "No channel the model sees is missing more often than in training.",
    "verdicts": "Episodes are accepted, degraded and rejected as often as in training (PSI).",
    "class_mix": "The model predicts the phases as often as on its validation episodes (PSI).",
}


# --- the index and what chance does -------------------------------------------------------------


def psi(training: NDArray, batch: NDArray, bins: NDArray | None = None) -> NDArray[np.float64]:
    """Population stability index ``(...)`` of counts ``(..., n_bins)``.

    Half a case is added to every bin of both sides, so that an empty one is no infinity.

    Args:
        bins: ``(..., n_bins)``, which bins there are; None: all. The others hold nothing.
    """
    there = np.ones(training.shape[-1:], dtype=bool) if bins is None else bins
    p, q = ((counts + 0.5) * there for counts in (training, batch))
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(there, (q - p) * np.log(q / p), 0.0)
    return terms.sum(axis=-1)


def bin_edges(values: NDArray, n: int) -> NDArray[np.float64]:
    """Edges ``(n,)`` at the deciles of the values that are there, filled up with infinity.

    A bin is ``(edge, next edge]``. A value that several deciles share has a bin of its own, so that
    a channel which is nearly always 0 is seen to leave it in either direction.
    """
    present = values[~np.isnan(values)].astype(np.float64)
    edges = np.full(n, np.inf)
    if len(present):
        deciles = np.quantile(present, QUANTILES, method="inverted_cdf")
        once, times = np.unique(deciles, return_counts=True)
        found = np.union1d(once, np.nextafter(once[times > 1], -np.inf))
        edges[: len(found)] = found
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


def beyond(null: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``(expected, chance)``, ``(m,)`` each, of statistics ``(B, m)`` that grow with a change.

    ``chance`` lies above ``expected`` by what the largest of all ``m`` excesses stays below in
    ``CHANCE`` of the replicates: in that share of unchanged batches none of them exceeds it.
    """
    expected = null.mean(axis=0)
    return expected, expected + np.quantile((null - expected).max(axis=1), CHANCE)


def severity_of(value: float, chance: float) -> Severity:
    """How bad a change is; what chance alone may do is none."""
    if not value > chance:
        return "ok"
    return "fail" if value >= FAIL else "warn" if value >= WARN else "ok"


def worst(severities: Iterable[str]) -> Severity:
    found = set(severities)
    return "fail" if "fail" in found else "warn" if "warn" in found else "ok"


# --- a reference --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """Some episodes' windows: of training or of a batch, in sums by episode."""

    windows: NDArray[np.int64]  # (n_episodes,)
    coverage: NDArray[np.float64]  # (n_episodes, n_sources), summed over windows
    missing: NDArray[np.int64]  # (n_episodes, n_channels), windows without a value
    counts: NDArray[np.int64]  # (n_episodes, n_channels, n_bins)

    @property
    def shares(self) -> NDArray[np.float64]:
        """See ``_shares``, of all windows."""
        return self.resampled(np.ones((1, len(self.windows))))[0]

    def resampled(self, weights: NDArray) -> NDArray[np.float64]:
        """Mean coverage by source, then the share missing by channel: ``(b, n_sources + n)``."""
        sums = weights @ np.concatenate([self.coverage, self.missing], axis=1)
        return sums / np.maximum(weights @ self.windows, 1)[:, None]


def side(windows: pl.DataFrame, channels: Sequence[str], edges: NDArray) -> Side:
    """Sums by episode of windows with their features.

    Args:
        windows: rows of feature shards: ``episode_id``, ``coverage_*``, ``<channel>.mean``.
        edges: ``(n_channels, n_edges)``.
    """
    episode = windows["episode_id"].rank("dense").to_numpy().astype(np.int64) - 1
    n = int(episode.max()) + 1 if len(episode) else 0
    values = values_of(windows, channels)
    coverage = np.zeros((n, len(SOURCES)))
    missing = np.zeros((n, len(channels)), dtype=np.int64)
    np.add.at(coverage, episode, windows.select(f"coverage_{s}" for s in SOURCES).to_numpy())
    np.add.at(missing, episode, np.isnan(values))
    return Side(
        np.bincount(episode, minlength=n), coverage, missing, count_bins(values, edges, episode, n)
    )


def values_of(windows: pl.DataFrame, channels: Sequence[str]) -> NDArray[np.float64]:
    """What is compared of a channel: its mean in a window, ``(n_windows, n_channels)``."""
    return windows.select(f"{c}.mean" for c in channels).to_numpy().astype(np.float64)


def reference(
    windows: pl.DataFrame,
    predicted: pl.DataFrame,
    verdicts: pl.DataFrame,
    channels: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """What batches are compared with, as one JSON value: of each host, and of all together.

    Hosts differ in level (a machine with twice the memory), so that a batch, which is of one host,
    is compared with the same host's training episodes.

    Args:
        windows: windows of the training side with their features (see ``side``), and ``host_id``.
        predicted: windows of the validation side: ``episode_id``, ``host_id``, ``predicted``.
        verdicts: a row an episode of the batches trained on: ``host_id``, ``verdict``.
        channels: the channels that the model sees.
        seed: draws ``MAX_EPISODES`` where there are more; see ``draw_episodes``.
    """
    groups = {}
    for host in (EVERY_HOST, *windows["host_id"].unique().sort()):
        here = _drawn(_of(windows, host), seed)
        values = values_of(here, channels)
        edges = np.stack([bin_edges(column, 2 * len(QUANTILES)) for column in values.T])
        own = side(here, channels, edges)
        on_val = _of(predicted, host)
        if on_val.is_empty():  # validation by host: the mix of all of them is the best there is
            on_val = predicted
        judged = _of(verdicts, host)["verdict"].to_list()
        groups[host] = {
            "episodes": len(own.windows),
            "windows": own.windows.tolist(),
            "coverage": own.coverage.round(4).tolist(),
            "missing": own.missing.tolist(),
            "edges": [row[np.isfinite(row)].tolist() for row in edges],
            "counts": own.counts.tolist(),
            "predicted": _mix(_drawn(on_val, seed)).tolist(),
            "labelled": [int((here["label"] == phase).sum()) for phase in PHASES],
            "verdicts": [judged.count(verdict) for verdict in VERDICTS],
        }
    return {
        "schema": REFERENCE_SCHEMA,
        "channels": list(channels),
        "sources": list(SOURCES),
        "phases": list(PHASES),
        "verdicts": list(VERDICTS),
        "groups": groups,
    }


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


# --- a batch beside it --------------------------------------------------------------------------


def compare_batch(
    batch: str,
    host: str,
    windows: pl.DataFrame,
    verdicts: Sequence[str],
    trained: Mapping[str, Any],
    identity: Mapping[str, Any],
    seed: int = 0,
) -> dict[str, Any]:
    """One batch beside the training data, as one versioned JSON value (``WATCH_SCHEMA``).

    Args:
        windows: all windows of the batch with their features (see ``side``), ``predicted`` and
            ``seen_in_training``.
        verdicts: of all its episodes, usable or not.
        trained: see ``reference``.
        identity: goes in as it is: whose training data it is.
    """
    known = host in trained["groups"]
    group = trained["groups"][host if known else EVERY_HOST]
    channels = trained["channels"]
    edges = np.full((len(channels), 2 * len(QUANTILES)), np.inf)
    for row, found in zip(edges, group["edges"], strict=True):
        row[: len(found)] = found
    before = Side(*(np.array(group[name]) for name in ("windows", "coverage", "missing", "counts")))
    now = side(windows, channels, edges)
    n_before, n_now = len(before.windows), len(now.windows)
    judged = n_before >= MIN_EPISODES
    random = np.random.default_rng([seed, n_before, n_now])
    checks: dict[str, Any] = {}
    if n_now:
        weights = [_weights(random, n_before, n) for n in (n_before, n_now)]
        checks |= _share_checks(before, now, weights, trained)
        checks["channels"] = _channels_check(before, now, weights, edges, channels)
        before_mix, now_mix = np.array(group["predicted"]), _mix(windows)
        checks["class_mix"] = _categories_check(
            "class_mix",
            PHASES,
            (before_mix.sum(axis=0), now_mix.sum(axis=0)),
            [_weights(random, len(before_mix), n) @ before_mix for n in (len(before_mix), n_now)],
        )
    else:
        checks |= {
            name: _check(name, [], [f"{batch} has no usable window."], "fail")
            for name in CHECKS
            if name != "verdicts"
        }
    counts = np.array(group["verdicts"]), np.array([list(verdicts).count(v) for v in VERDICTS])
    share = counts[0] / counts[0].sum()
    checks["verdicts"] = _categories_check(
        "verdicts", VERDICTS, counts,
        [random.multinomial(c.sum(), share, size=REPLICATES) for c in counts],
    )  # fmt: skip
    notes = []
    if not known:
        notes.append(
            f"Host {host} is not in the training data: it is compared with all hosts of it, and "
            "what only sets this machine apart counts as a change."
        )
    if not judged:
        notes.append(
            f"Training has {n_before} episodes to compare with, at least {MIN_EPISODES} are needed "
            "to tell a change from chance: nothing is judged."
        )
        for check in checks.values():
            check["severity"] = "ok"
    seen = windows.filter(pl.col("seen_in_training"))["episode_id"].n_unique()
    if seen:
        notes.append(
            f"{seen} of its {n_now} episodes were trained on: they do not show what is new."
        )
    return {
        "schema": WATCH_SCHEMA,
        "batch": batch,
        "host": host,
        **identity,
        "episodes": n_now,
        "windows": len(windows),
        "compared_with": {
            "hosts": host if known else "all",
            "episodes": n_before,
            "windows": int(before.windows.sum()),
        },
        "thresholds": {"warn": WARN, "fail": FAIL, "chance": CHANCE, "replicates": REPLICATES},
        "severity": worst(check["severity"] for check in checks.values()),
        "notes": notes,
        "checks": [checks[name] for name in CHECKS],
    }


def _weights(random: np.random.Generator, n_episodes: int, drawn: int) -> NDArray[np.int64]:
    """How often each training episode is drawn: as often in all as there are on a side."""
    return random.multinomial(drawn, np.full(n_episodes, 1 / n_episodes), size=REPLICATES)


def _share_checks(
    before: Side, now: Side, weights: list[NDArray], trained: Mapping[str, Any]
) -> dict[str, Any]:
    """Coverage by source that was lost, and the share missing by channel that was gained."""
    n = len(trained["sources"])
    null = before.resampled(weights[1]) - before.resampled(weights[0])
    change = now.shares - before.shares
    found = {}
    for name, names, here, sign in (
        ("coverage", trained["sources"], slice(0, n), -1),
        ("missing", trained["channels"], slice(n, None), 1),
    ):
        _, chance = beyond(sign * null[:, here])
        rows = [
            {
                "name": what,
                "training": round(float(was), 4),
                "batch": round(float(was + delta), 4),
                "value": round(float(sign * delta), 4),
                "chance": round(float(limit), 4),
                "severity": severity_of(sign * delta, limit),
            }
            for what, was, delta, limit in zip(
                names, before.shares[here], change[here], chance, strict=True
            )
        ]
        verb = "covers {b:.0%} of the windows' time, {t:.0%} in training" if sign < 0 else (
            "is missing in {b:.0%} of the windows, {t:.0%} in training"
        )  # fmt: skip
        said = [
            f"{row['name']} {verb.format(b=row['batch'], t=row['training'])}."
            for row in rows
            if row["severity"] != "ok"
        ]
        found[name] = _check(name, rows, said)
    return found


def _channels_check(
    before: Side, now: Side, weights: list[NDArray], edges: NDArray, channels: Sequence[str]
) -> dict[str, Any]:
    shape = before.counts.shape[1:]
    bins = np.concatenate([np.isfinite(edges), np.zeros((len(edges), 1), dtype=bool)], axis=1)
    bins[np.arange(len(edges)), np.isfinite(edges).sum(axis=1)] = True  # above the last edge
    flat = before.counts.reshape(len(before.counts), -1)
    was, now_drawn = ((w @ flat).reshape(-1, *shape) for w in weights)
    null = psi(was, now_drawn, bins)
    values = psi(before.counts.sum(axis=0), now.counts.sum(axis=0), bins)
    absent = now.counts.sum(axis=(0, 2)) == 0  # then the check of missing values speaks
    expected, chance = beyond(null)
    rows: list[dict[str, Any]] = [
        {
            "name": channel,
            "value": None if none else round(float(value), 4),
            "expected": round(float(mean), 4),
            "chance": round(float(limit), 4),
            "severity": "ok" if none else severity_of(value, limit),
        }
        for channel, value, mean, limit, none in zip(
            channels, values, expected, chance, absent, strict=True
        )
    ]
    said = [
        f"{row['name']}: PSI {row['value']:.2f}; chance alone stays below {row['chance']:.2f}."
        for row in sorted(rows, key=lambda r: -(r["value"] or 0))
        if row["severity"] != "ok"
    ]
    return _check("channels", rows, said)


def _categories_check(
    name: str, categories: Sequence[str], sums: tuple[NDArray, NDArray], null: list[NDArray]
) -> dict[str, Any]:
    """One PSI of all categories: of counts ``(n,)`` and of replicates ``(B, n)``, on both sides."""
    expected, chance = beyond(psi(*null)[:, None])
    value = float(psi(*sums))
    severity = severity_of(value, float(chance[0]))
    rows = [
        {"name": what, "training": round(float(was), 4), "batch": round(float(is_), 4)}
        for what, was, is_ in zip(categories, *(s / max(s.sum(), 1) for s in sums), strict=True)
    ]
    moved = max(rows, key=lambda row: abs(row["batch"] - row["training"]))
    said = [
        f"PSI {value:.2f}; chance alone stays below {chance[0]:.2f}. {moved['name']} moved most: "
        f"{moved['training']:.0%} in training, {moved['batch']:.0%} in the batch."
    ]
    return _check(name, rows, said if severity != "ok" else [], severity) | {
        "value": round(value, 4),
        "expected": round(float(expected[0]), 4),
        "chance": round(float(chance[0]), 4),
    }


def _check(
    name: str, rows: list[dict[str, Any]], said: list[str], severity: Severity | None = None
) -> dict[str, Any]:
    if severity is None:
        severity = worst(row["severity"] for row in rows) if rows else "ok"
    return {
        "name": name,
        "means": CHECKS[name],
        "severity": severity,
        "said": said,
        "rows": rows,
    }


def figures(document: Mapping[str, Any]) -> dict[str, float]:
    """The numbers worth watching over time, flat: name -> value."""
    checks = {check["name"]: check for check in document["checks"]}
    rows = {n: check["rows"] for n, check in checks.items()}
    values = [row["value"] for row in rows["channels"] if row["value"] is not None]
    found = {
        "episodes": document["episodes"],
        "windows": document["windows"],
        **{f"coverage_{row['name']}": row["batch"] for row in rows["coverage"]},
        **{f"share_{row['name']}": row["batch"] for row in rows["verdicts"]},
        **{f"predicted_{row['name']}": row["batch"] for row in rows["class_mix"]},
    }
    if values:
        found["psi_largest"] = max(values)
        found["psi_median"] = float(np.median(values))
        found["channels_changed"] = sum(row["severity"] != "ok" for row in rows["channels"])
    if rows["missing"]:
        found["missing_share"] = float(np.mean([row["batch"] for row in rows["missing"]]))
    found["usable_share"] = sum(r["batch"] for r in rows["verdicts"] if r["name"] in USABLE)
    found |= {f"psi_{n}": c["value"] for n, c in checks.items() if "value" in c}
    return found


def watch_section(documents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line a batch for a page, newest day first.

    Each has ``batch, host, severity, episodes, windows, notes`` and, in the order of ``CHECKS``,
    ``checks``: ``name, severity, said`` and ``value``, the one number that says most.
    """
    lines = []
    for document in documents:
        found = figures(document)
        covered = [value for name, value in found.items() if name.startswith("coverage_")]
        telling = {
            "coverage": min((v for v in covered if v is not None), default=None),
            "channels": found.get("psi_largest"),
            "missing": found.get("missing_share"),
            "verdicts": found.get("psi_verdicts"),
            "class_mix": found.get("psi_class_mix"),
        }
        checks = {check["name"]: check for check in document["checks"]}
        lines.append(
            {name: document[name] for name in ("batch", "host", "severity", "episodes", "windows",
                                               "notes")}
            | {
                "checks": [
                    {k: checks[name][k] for k in ("name", "severity", "said")} | {"value": value}
                    for name, value in telling.items()
                ]
            }
        )  # fmt: skip
    lines.sort(key=lambda line: line["host"])
    return sorted(lines, key=lambda line: line["batch"].rpartition(".")[2], reverse=True)
