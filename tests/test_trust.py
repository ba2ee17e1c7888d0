"""Why figures can be believed: with nothing to learn, nothing is learned.

Each test goes the way of the data: archives, ingest, a dataset, training, held-out predictions,
the report. What chance can score is fixed by the test set's labels before anything is trained.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import polars as pl
import pytest
from builders import Members, edit, edit_rows, make_members, pack
from lab import RECIPE, Lab
from numpy.typing import NDArray

import phasewatch
from datasets.splits import build_table
from datasets.windows import examples, inputs, read_dataset
from episodes.format import SOURCES
from episodes.reading import parse_episode
from evaluation.scores import guess_draws, macro_f1_of_confusion, prediction_rows, scored
from features.extraction import extract
from features.registry import LAYOUT, Channel
from models.base import Classifier, Examples
from models.registry import MODELS, Variant
from stages.checkpoints import fit_on
from stages.datasets import dataset_shards, ingested_windows
from stages.project import Project
from stages.scoring import Scorer

Opened = tuple[Project, pl.DataFrame, Any]
K = len(LAYOUT.phases)


def chance(actual: NDArray[np.int64]) -> tuple[float, float]:
    """What macro F1 can be without knowledge: the best of guessing every phase as often, to 99.9 %;
    and the least, which saying one phase throughout gives."""
    share = np.bincount(actual, minlength=K) / len(actual)
    roster = share > 0
    one = (2 * share / (1 + share))[roster] / roster.sum()
    draws = guess_draws(actual, np.full(K, 1 / K), seed=0, n_draws=4_000)
    return float(one.min()), float(np.quantile(draws, 0.999))


def shuffled(table: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The labels of all windows in another order."""
    order = np.random.default_rng(seed).permutation(len(table))
    return table.with_columns(label=table["label"].gather(order))


@pytest.fixture(scope="module")
def dataset(trained: Lab) -> Opened:
    project = trained.project
    manifest = project.existing("datasets", RECIPE)
    return project, read_dataset(manifest), dataset_shards(project, manifest)


def code_of(table: pl.DataFrame) -> NDArray[np.int64]:
    return np.array([LAYOUT.phases.index(label) for label in table["label"]])


def within_chance(table: pl.DataFrame, fitted: Classifier, X: Any) -> None:
    """What a model says of the held-out windows is worth no more than a guess."""
    held_out = table.filter(pl.col("split") != "train")
    tested = code_of(held_out)[(held_out["split"] == "test").to_numpy()]
    low, high = chance(tested)
    rows = prediction_rows(held_out, "m", "oracle", "-", fitted.predict_proba(X), LAYOUT.phases)
    found = scored(rows, "m", "oracle", LAYOUT.phases)
    score = float(macro_f1_of_confusion(found.confusion.sum(axis=0), found.roster))
    assert low - 1e-9 <= score <= high


@pytest.mark.parametrize("model", MODELS)
def test_shuffled_labels_score_at_chance(model: str, dataset: Opened) -> None:
    project, real, shards = dataset
    variant = Variant(model, "oracle")
    table = shuffled(real, 7)
    train, val = (examples(table, shards, side, variant, LAYOUT) for side in ("train", "val"))
    fitted = fit_on(project.workspace, variant, train, val)
    held_out = table.filter(pl.col("split") != "train")
    within_chance(table, fitted, inputs(held_out, shards, variant, LAYOUT))


def test_real_labels_do_not(dataset: Opened) -> None:
    project, table, shards = dataset
    variant = Variant("gbt", "oracle")
    train, val = (examples(table, shards, side, variant, LAYOUT) for side in ("train", "val"))
    fitted = fit_on(project.workspace, variant, train, val)
    held_out = table.filter(pl.col("split") != "train")
    with pytest.raises(AssertionError):
        within_chance(table, fitted, inputs(held_out, shards, variant, LAYOUT))


# --- ids alone


def ids_as_inputs(table: pl.DataFrame, model: str) -> NDArray[np.float32]:
    """Hashes of host, sample and episode id, four of each."""
    columns = [
        [zlib.crc32(f"{salt} {name}".encode()) / 2**32 for name in table[column]]
        for column in ("host_id", "sample_sha256", "episode_id")
        for salt in range(4)
    ]
    X = np.array(columns, dtype=np.float32).T
    return X if MODELS[model].input_kind == "summary" else np.repeat(X[:, None], 100, axis=1)


@pytest.mark.parametrize("recipe", ["host", "sample", "time"])
@pytest.mark.parametrize("model", MODELS)
def test_ids_alone_score_at_chance(model: str, recipe: str, trained: Lab) -> None:
    windows, _ = ingested_windows(trained.project)
    table, _ = build_table(windows, recipe, trained.workspace.splits)
    X, y = ids_as_inputs(table, model), code_of(table)
    split, episode = table["split"].to_numpy(), table["episode_id"].to_numpy()
    train, val = (
        Examples(X[split == side], y[split == side], episode=episode[split == side])
        for side in ("train", "val")
    )
    fitted = fit_on(trained.workspace, Variant(model, "realistic"), train, val)
    within_chance(table, fitted, X[split != "train"])


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
