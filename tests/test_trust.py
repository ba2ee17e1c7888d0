"""Why figures can be believed: with nothing to learn, nothing is learned.

What chance can score follows from the labels of the test set, before anything is trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from builders import Members, edit, edit_rows, make_members, pack
from lab import HAD, RECIPE, Lab

import phasewatch
from benchmarks.chance import chance, from_ids, from_telemetry, shuffled
from benchmarks.coverage import (
    CORRELATION,
    EPISODES,
    coverage,
    expected,
    intraclass_correlation,
    simulated,
)  # fmt: skip
from datasets.splits import build_table
from episodes.format import SOURCES
from episodes.reading import parse_episode
from evaluation.figures import COVERED, coverage_note
from evaluation.wording import sentence
from features.extraction import extract
from features.registry import LAYOUT, Channel
from models.registry import MODELS
from stages.datasets import ingested_windows
from stages.scoring import Scorer


@pytest.fixture(scope="module")
def opened(trained: Lab) -> dict[str, tuple[pl.DataFrame, Any]]:
    """By recipe a dataset's table and its shards."""
    windows, shards = ingested_windows(trained.project)
    return {r: (build_table(windows, r, trained.workspace.splits)[0], shards) for r in HAD}


@pytest.mark.parametrize("model", MODELS)
def test_shuffled_labels_score_at_chance(model: str, opened: Any, trained: Lab) -> None:
    real, shards = opened[RECIPE]
    table = shuffled(real, seed=7)
    low, high = chance(table)
    assert low < high < 0.4
    assert low <= from_telemetry(trained.workspace, table, shards, model) <= high


def test_labels_as_they_are_do_not(opened: Any, trained: Lab) -> None:
    table, shards = opened[RECIPE]
    assert from_telemetry(trained.workspace, table, shards, "gbt") > 2 * chance(table)[1]


@pytest.mark.parametrize("recipe", HAD)
@pytest.mark.parametrize("model", MODELS)
def test_ids_alone_score_at_chance(model: str, recipe: str, opened: Any, trained: Lab) -> None:
    table, _ = opened[recipe]
    low, high = chance(table)
    assert low <= from_ids(trained.workspace, table, model) <= high


# --- intervals


def test_the_intervals_cover_as_the_figures_say() -> None:
    """Few simulations, and a few replicates: what 2,000 with 10,000 gave, to four deviations."""
    assert tuple(COVERED) == EPISODES
    for n_episodes in (4, 20):
        share, _ = coverage(n_episodes, CORRELATION["as measured"], 150, 400)
        deviation = (COVERED[n_episodes] * (1 - COVERED[n_episodes]) / 150) ** 0.5
        assert abs(share - COVERED[n_episodes]) < 4 * deviation


@pytest.mark.parametrize("n_episodes", [3, 4, 7, 10, 19, 20, 39, 1000])
def test_an_interval_that_covers_less_says_so(n_episodes: int) -> None:
    note = coverage_note(n_episodes)
    if n_episodes >= 20:
        assert note is None
        return
    assert note is not None
    size = max((size for size in EPISODES if size <= n_episodes), default=4)
    assert note.numbers == {"episodes": size, "coverage": COVERED[size]}
    assert f"{COVERED[size]:.0%}" in sentence(note)


def test_the_simulated_episodes_are_as_designed() -> None:
    drawn = simulated(20_000, CORRELATION["as measured"], np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(axis=0), expected(), atol=0.25)
    for phase, alike in enumerate(CORRELATION["as measured"]):
        counts = drawn[:, phase]
        found = intraclass_correlation(counts.sum(axis=1), counts[:, phase])
        assert found == pytest.approx(alike, abs=0.02)


# --- channels that no device has

UNSEEN = [channel for channel in LAYOUT.channels if not channel.deployable]


def others(members: Members, channel: Channel) -> Members:
    """An episode in which one channel has values of its own."""
    random = np.random.default_rng(len(channel.name))

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            *parents, last = channel.path
            at = row
            for key in parents:
                at = at[key]
            assert last in at
            at[last] = int(random.integers(0, 2**40))

    return edit_rows(members, SOURCES[channel.source].file, change)


def said_of(members: Members, scorers: dict[str, Scorer]) -> dict[str, pl.DataFrame]:
    extracted = extract(parse_episode(pack("X", members), "X", LAYOUT.fields), LAYOUT)
    return {name: scorer.scores(extracted).table() for name, scorer in scorers.items()}


def test_what_only_the_host_sees_changes_no_realistic_output(trained: Lab) -> None:
    """Neither by its values nor by its absence; probabilities, alarms and likeness bit by bit."""
    project = trained.project
    scorers = {m: Scorer(project, phasewatch.load_checkpoint(project, RECIPE, m)) for m in MODELS}
    oracle = {
        "oracle": Scorer(project, phasewatch.load_checkpoint(project, RECIPE, "gbt", "oracle"))
    }
    members = make_members("lab-a", "X", 60.0, seed=3)
    usual = said_of(members, scorers)
    assert len(UNSEEN) == 17
    changed = {channel.name: others(members, channel) for channel in UNSEEN}
    host_sources = [source for source in SOURCES.values() if not source.deployable]
    for source in host_sources:
        changed[source.name] = edit(members, source.file, None)
    changed["both"] = edit(changed[host_sources[0].name], host_sources[1].file, None)
    for name, altered in changed.items():
        for model, said in said_of(altered, scorers).items():
            assert said.equals(usual[model], null_equal=True), f"{model}: {name}"
    seen = said_of(members, oracle)["oracle"]  # which does look at them
    assert not said_of(changed["both"], oracle)["oracle"].equals(seen)
