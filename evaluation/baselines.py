"""Baselines that see no behaviour: only when a window occurs, or only which collectors ran.

Their score is what a schedule or a gap in the recording gives away for free.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import polars as pl
from numpy.typing import NDArray

from episodes.format import SOURCES
from evaluation.scores import SHORTCUTS, baseline_id, prediction_rows


def baseline_columns(name: str, mode: str) -> list[str]:
    """The columns of the window table that a baseline sees.

    Raises:
        ValueError: no baseline has that name.
    """
    if name == "position_only":
        return ["start_s"]
    if name == "missingness_only":
        return [f"coverage_{s.name}" for s in SOURCES.values() if mode == "oracle" or s.deployable]
    raise ValueError(f"baseline must be one of {', '.join(SHORTCUTS)}, got {name!r}")


def baseline_proba(
    table: pl.DataFrame, columns: Sequence[str], classes: Sequence[str], seed: int
) -> NDArray[np.float32]:
    """Probabilities ``(n_held_out_windows, n_classes)`` of a balanced forest on a few columns.

    Fitted on the training windows of a dataset's table, for its other windows in their order.
    """
    from sklearn.ensemble import RandomForestClassifier  # slow to import

    train = table.filter(pl.col("split") == "train")
    held_out = table.filter(pl.col("split") != "train")
    forest = RandomForestClassifier(
        200, class_weight="balanced", min_samples_leaf=5, random_state=seed, n_jobs=2
    )
    forest.fit(train.select(columns).to_numpy(), train["label"].to_list())
    forest.set_params(n_jobs=1)  # trees vote in the order of threads, and sums would differ
    proba = np.zeros((len(held_out), len(classes)), dtype=np.float32)
    for column, label in zip(
        forest.predict_proba(held_out.select(columns).to_numpy()).T, forest.classes_, strict=True
    ):
        proba[:, list(classes).index(label)] = column
    return proba


def shortcut_predictions(
    table: pl.DataFrame, classes: Sequence[str], modes: Sequence[str], seed: int
) -> pl.DataFrame:
    """Every baseline's predictions, in each mode, for the windows of ``val`` and ``test``.

    Args:
        table: a dataset's table; its training windows fit the baselines.
    """
    held_out = table.filter(pl.col("split") != "train")
    known: dict[tuple[str, ...], NDArray[np.float32]] = {}  # columns seen -> probabilities
    parts = []
    for mode, name in product(modes, SHORTCUTS):
        columns = tuple(baseline_columns(name, mode))
        if columns not in known:
            known[columns] = baseline_proba(table, columns, classes, seed)
        parts.append(
            prediction_rows(held_out, name, mode, baseline_id(name), known[columns], classes)
        )
    return pl.concat(parts)
