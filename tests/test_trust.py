"""Why figures can be believed: with nothing to learn, nothing is learned.

Each test goes the way of the data: archives, ingest, a dataset, training, held-out predictions,
the report. What chance can score is fixed by the test set's labels before anything is trained.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from builders import Members, StoreBuilder, edit, edit_rows, make_members
from lab import RECIPE, TINY, Lab
from numpy.typing import NDArray

import phasewatch
from datasets.windows import examples, inputs, read_dataset
from episodes.format import SOURCES
from evaluation.baselines import shortcut_predictions
from evaluation.report import evaluate
from evaluation.scores import guess_draws, prediction_rows, scored
from features.registry import LAYOUT
from models.base import Examples
from models.metrics import macro_f1
from models.registry import MODELS, Variant, find_variant
from stages.checkpoints import fit_on
from stages.datasets import dataset_shards
from stages.project import Project

K = len(LAYOUT.phases)
HELD_OUT = ("sample", "host")


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
def dataset(trained: Lab) -> tuple[Project, pl.DataFrame, Any]:
    project = trained.project
    manifest = project.existing("datasets", RECIPE)
    return project, read_dataset(manifest), dataset_shards(project, manifest)


def code_of(table: pl.DataFrame) -> NDArray[np.int64]:
    return np.array([LAYOUT.phases.index(label) for label in table["label"]])


@pytest.mark.parametrize("model", MODELS)
def test_shuffled_labels_score_at_chance(model: str, dataset: tuple[Project, Any, Any]) -> None:
    project, real, shards = dataset
    variant = Variant(model, "oracle")
    table = shuffled(real, 7)
    held_out = table.filter(pl.col("split") != "train")
    test = (held_out["split"] == "test").to_numpy()
    low, high = chance(code_of(held_out)[test])
    train, val = (examples(table, shards, side, variant, LAYOUT) for side in ("train", "val"))
    fitted = fit_on(project.workspace, variant, train, val)
    proba = fitted.predict_proba(inputs(held_out, shards, variant, LAYOUT))
    rows = prediction_rows(held_out, model, "oracle", "-", proba, LAYOUT.phases)
    found = scored(rows, model, "oracle", LAYOUT.phases)
    assert low <= macro_f1(found.actual, found.predicted, K) <= high
