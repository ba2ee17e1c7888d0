"""What is learned where there is nothing to learn: shuffled labels, and ids in place of telemetry.

    phasewatch run --ingest-only
    python -m benchmarks.chance

For every recipe, macro F1 on test of ``gbt`` trained on shuffled labels, and of ``gbt`` that sees
hashes of host, sample and episode id alone. Beside it is chance, the range that needs no knowledge:
from always predicting one phase (the least favourable one) to the 99.9th percentile of random
guesses, every phase equally likely. It follows from the labels of the test set, before anything is
trained.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from datasets.splits import RECIPES, DatasetError, build_table
from datasets.windows import examples, inputs
from evaluation.scores import guess_draws, macro_f1_of_confusion, prediction_rows, split_predictions
from features.registry import LAYOUT
from models.base import Examples
from models.registry import MODELS, Variant
from stages.checkpoints import fit_windows
from stages.datasets import ingested_windows
from stages.project import Project
from stages.workspace import Workspace, workspace_from_environment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.base import Classifier, Inputs

K = len(LAYOUT.phases)
GUESSES = 4_000


def codes(table: pl.DataFrame) -> NDArray[np.int64]:
    """Labels as positions in the phases."""
    return np.array([LAYOUT.phases.index(label) for label in table["label"]], dtype=np.int64)


def chance(table: pl.DataFrame) -> tuple[float, float]:
    """The least and the most that macro F1 on test can be without knowledge, see above."""
    actual = codes(table.filter(pl.col("split") == "test"))
    share = np.bincount(actual, minlength=K) / len(actual)
    one_phase = (2 * share / (1 + share))[share > 0] / (share > 0).sum()
    draws = guess_draws(actual, np.full(K, 1 / K), seed=0, n_draws=GUESSES)
    return float(one_phase.min()), float(np.quantile(draws, 0.999))


def score(table: pl.DataFrame, model: Classifier, X: Inputs) -> float:
    """Macro F1 on test of what a model says of the held-out windows ``X``."""
    held_out = table.filter(pl.col("split") != "train")
    rows = prediction_rows(held_out, "m", "oracle", "-", model.predict_proba(X), LAYOUT.phases)
    found = split_predictions(rows, "m", "oracle", LAYOUT.phases)
    return float(macro_f1_of_confusion(found.confusion.sum(axis=0), found.roster))


def shuffled(table: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """The labels of all windows in another order."""
    order = np.random.default_rng(seed).permutation(len(table))
    return table.with_columns(label=table["label"].gather(order))


def from_telemetry(workspace: Workspace, table: pl.DataFrame, shards: Any, model: str) -> float:
    """Macro F1 of a model in the oracle mode."""
    variant = Variant(model, "oracle")
    train, val = (examples(table, shards, side, variant, LAYOUT) for side in ("train", "val"))
    held_out = inputs(table.filter(pl.col("split") != "train"), shards, variant, LAYOUT)
    return score(table, fit_windows(workspace, variant, train, val), held_out)


def from_ids(workspace: Workspace, table: pl.DataFrame, model: str) -> float:
    """Macro F1 of a model that sees four hashes each of host, sample and episode id."""
    columns = [
        [zlib.crc32(f"{salt} {name}".encode()) / 2**32 for name in table[column]]
        for column in ("host_id", "sample_sha256", "episode_id")
        for salt in range(4)
    ]
    X, y = np.array(columns, dtype=np.float32).T, codes(table)
    if MODELS[model].input_kind == "tensor":
        X = np.repeat(X[:, None], LAYOUT.window.n_bins, axis=1)
    split, episode = table["split"].to_numpy(), table["episode_id"].to_numpy()
    train, val = (
        Examples(X[split == side], y[split == side], episode=episode[split == side])
        for side in ("train", "val")
    )
    fitted = fit_windows(workspace, Variant(model, "oracle"), train, val)
    return score(table, fitted, X[split != "train"])


def main() -> None:
    workspace = workspace_from_environment()
    windows, shards = ingested_windows(Project(workspace))
    print(f"{'recipe':9}{'labels':10}{'inputs':11}{'macro F1':>9}{'chance':>16}")
    for recipe in RECIPES:
        try:
            table, _ = build_table(windows, recipe, workspace.splits)
        except DatasetError as error:
            print(f"{recipe}: {error}")
            continue
        for labels, rows in (("shuffled", shuffled(table)), ("real", table)):
            low, high = chance(rows)
            found = {"telemetry": from_telemetry(workspace, rows, shards, "gbt")}
            if labels == "real":
                found["ids alone"] = from_ids(workspace, rows, "gbt")
            for what, value in found.items():
                between = f"{low:.3f} to {high:.3f}"
                print(f"{recipe:9}{labels:10}{what:11}{value:9.3f}{between:>16}", flush=True)


if __name__ == "__main__":
    main()
