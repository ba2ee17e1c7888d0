"""Leaks that the inputs of a dataset show by themselves: what no split can keep apart.

A recipe's promise is checked where sides are drawn (``datasets.splits``), by names. Here nothing
is believed of names: a recording may be there twice under two ids, and a channel may say what the
model is to find out. Limits lie far from what real channels do, see ``docs/evaluation.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from episodes.format import INFECTED, NS_PER_S
from evaluation.documents import Leak
from models.scaling import fit_scaling, scale

if TYPE_CHECKING:
    import polars as pl

TELLS_PHASE = 0.97
"""F1 of a phase by one channel alone. On the embedded corpus the best channel reaches .93."""
TELLS_NAME = 0.95
"""Share of windows whose nearest in one input is of the same episode or sample; there .78."""
TELLS_TIME = 0.98
"""Rank correlation of one input with the time of day or in the episode; there .5 at most."""
SAME_WINDOW = 0.2
"""Distance to the nearest window of another side, as a share of the median episode's."""
SAME_EPISODE = 0.1
"""Share of an episode's windows that are the same as one of another side; there none is."""
MANY = 0.25
"""Share of the channels from which on what they tell is no leak: the phases are just as clear."""
MOST_WINDOWS = 20_000
"""At most so many are checked; of more, half are from whole episodes and half are single ones."""
FEWEST_WINDOWS, FEWEST_OF_PHASE, FEWEST_EPISODES = 50, 20, 10
"""Of held-out windows, of those of a phase, and of episodes; fewer may be alike by chance."""
_PURE = 0.999
_NAMES = {"episode_id": "episode", "sample_sha256": "sample"}


def windows_to_check(table: pl.DataFrame) -> pl.DataFrame:
    """The windows of a dataset's table to look at, in its order.

    Of a large one: all windows of every so many episodes, and of others the second one, which
    shows whether a recording is there twice.
    """
    import polars as pl

    if len(table) <= MOST_WINDOWS:
        return table
    number = pl.col("episode_id").rank("dense") - 1
    whole = number % math.ceil(2 * len(table) / MOST_WINDOWS) == 0
    every = math.ceil(2 * table["episode_id"].n_unique() / MOST_WINDOWS)
    return table.filter(whole | ((pl.col("window") == 1) & (number % every == 0)))


def _alone(table: pl.DataFrame) -> NDArray[np.bool_]:
    """Windows ``(n_windows,)`` of which no other of the same episode is there."""
    import polars as pl

    return table.select(pl.len().over("episode_id") == 1).to_series().to_numpy()


def find_leaks(
    table: pl.DataFrame,
    X: NDArray[np.float32],
    channel: NDArray[np.int64],
    channels: Sequence[str],
) -> list[Leak]:
    """What the windows give away.

    Args:
        table: rows of a dataset's table, see ``windows_to_check``.
        X: all summary inputs of these windows ``(n_windows, n_inputs)``, NaN = missing.
        channel: ``(n_inputs,)`` the channel that each input is made from, of ``channels``.
    """
    return [
        *_phase_leaks(table, X, channel, channels),
        *_name_leaks(table, X, channel, channels),
        *_time_leaks(table, X, channel, channels),
        *_duplicate_episodes(table, X),
    ]


def _phase_leaks(
    table: pl.DataFrame, X: NDArray[np.float32], channel: NDArray[np.int64], channels: Sequence[str]
) -> Iterator[Leak]:
    """Channels that alone tell a phase, on held-out windows without a change of phase."""
    from sklearn.metrics import f1_score
    from sklearn.tree import DecisionTreeClassifier

    pure = table["purity"].to_numpy() >= _PURE
    train = pure & (table["split"] == "train").to_numpy()
    held_out = pure & (table["split"] != "train").to_numpy()
    actual = table["label"].to_numpy()
    if held_out.sum() < FEWEST_WINDOWS or len(np.unique(actual[train])) < 2:
        return
    leaks: list[Leak] = []
    questions = {p: (p,) for p in np.unique(actual[held_out])} | {"attack": INFECTED}
    for at, name in enumerate(channels):
        values = np.nan_to_num(X[:, channel == at], nan=-3e38)
        if not values.shape[1]:
            continue
        tree = DecisionTreeClassifier(min_samples_leaf=5, class_weight="balanced", random_state=0)
        predicted = tree.fit(values[train], actual[train]).predict(values[held_out])
        found = {
            what: f1_score(np.isin(actual[held_out], phases), np.isin(predicted, phases))
            for what, phases in questions.items()
            if np.isin(actual[held_out], phases).sum() >= FEWEST_OF_PHASE
        }
        if found and max(found.values()) >= TELLS_PHASE:
            what = max(found, key=lambda phase: found[phase])
            numbers = {"f1": float(found[what])}
            leaks.append(Leak(code="channel_tells_phase", about=name, what=what, numbers=numbers))
    if len(leaks) <= MANY * len(channels):
        yield from leaks


def _name_leaks(
    table: pl.DataFrame, X: NDArray[np.float32], channel: NDArray[np.int64], channels: Sequence[str]
) -> Iterator[Leak]:
    """Channels of which a value belongs to one episode or sample, as an id would.

    Windows that overlap are alike anyway, so every second one is looked at.
    """
    for column, kind in _NAMES.items():
        names = table[column].rank("dense").to_numpy()
        apart = np.flatnonzero((table["window"].to_numpy() % 2 == 0) & ~_alone(table))
        if len(np.unique(names[apart])) < FEWEST_EPISODES:
            continue
        apart = np.random.default_rng(0).permutation(apart)  # equal values: no order means anything
        share = np.array([_same_name(X[apart, j], names[apart]) for j in range(X.shape[1])])
        for name, best in _channels_at_limit(TELLS_NAME, share, channel, channels):
            numbers = {"share": best}
            yield Leak(code="channel_tells_name", about=name, what=kind, numbers=numbers)


def _time_leaks(
    table: pl.DataFrame, X: NDArray[np.float32], channel: NDArray[np.int64], channels: Sequence[str]
) -> Iterator[Leak]:
    """Channels that follow a clock: the world's, or the episode's."""
    within = table["start_s"].to_numpy()
    clocks = {
        "clock": table["started_at_wall_ns"].to_numpy() / NS_PER_S + within,
        "episode": within,
    }
    for what, clock in clocks.items():
        found = np.array([_follows(X[:, j], clock) for j in range(X.shape[1])])
        for name, best in _channels_at_limit(TELLS_TIME, found, channel, channels):
            numbers = {"correlation": best}
            yield Leak(code="channel_tells_time", about=name, what=what, numbers=numbers)


def _channels_at_limit(
    limit: float, of_input: NDArray[Any], channel: NDArray[np.int64], channels: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Channels with an input that reaches the limit, and the most that one of theirs reaches."""
    for at, name in enumerate(channels):
        best = float(of_input[channel == at].max(initial=0.0))
        if best >= limit:
            yield name, best


def _follows(values: NDArray[np.float32], clock: NDArray[np.float64]) -> float:
    """Rank correlation (Spearman 1904), whatever its sign, of values that are there."""
    import polars as pl

    present = ~np.isnan(values)
    if present.sum() < FEWEST_WINDOWS:
        return 0.0
    one, other = (pl.Series(each[present]).rank().to_numpy() for each in (values, clock))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0  # follows nothing, or there is nothing to follow
    return abs(float(np.corrcoef(one, other)[0, 1]))


def _same_name(values: NDArray[np.float32], names: NDArray) -> float:
    """Share of the windows with a value whose nearest one has the same name."""
    present = ~np.isnan(values)
    order = np.argsort(values[present], kind="stable")
    sorted_values, names = values[present][order].astype(np.float64), names[present][order]
    if len(names) < FEWEST_WINDOWS:
        return 0.0
    gap = np.diff(sorted_values)
    before, after = np.append(np.inf, gap), np.append(gap, np.inf)
    nearest = np.arange(len(names)) + np.where(before < after, -1, 1)
    return float((names[nearest] == names).mean())


def _duplicate_episodes(table: pl.DataFrame, X: NDArray[np.float32]) -> Iterator[Leak]:
    """Held-out episodes that are nearly on top of one of another side.

    First windows are left out: each is its own baseline, so their relative inputs are all alike.
    """
    past = table["window"].to_numpy() > 0
    side, episode = table["split"].to_numpy()[past], table["episode_id"].to_numpy()[past]
    held_out = np.unique(episode[side != "train"])
    if len(held_out) < FEWEST_EPISODES or not np.any(side == "train"):
        return
    inputs = scale(X[past], fit_scaling(X[past][side == "train"], limit=3.0))
    distance, nearest = np.full(len(side), np.inf), np.zeros(len(side), dtype=np.int64)
    for name in ("val", "test"):
        own, others = np.flatnonzero(side == name), np.flatnonzero(side != name)
        for start in range(0, len(own), 1024):
            some = own[start : start + 1024]
            squares = _squares(inputs[some], inputs[others])
            nearest[some] = others[squares.argmin(axis=1)]
            distance[some] = np.sqrt(np.maximum(squares.min(axis=1), 0.0))
    typical = float(np.median([np.median(distance[episode == each]) for each in held_out]))
    for each in held_out:
        on_top = (episode == each) & (distance <= SAME_WINDOW * typical)
        share = float(on_top.sum() / (episode == each).sum())
        if share >= SAME_EPISODE:
            twins, counts = np.unique(episode[nearest[on_top]], return_counts=True)
            twin = str(twins[counts.argmax()])
            yield Leak(code="episode_twice", about=str(each), what=twin, numbers={"share": share})


def _squares(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances ``(n_one, n_other)``."""
    sizes = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)
    return sizes - 2 * one @ other.T
