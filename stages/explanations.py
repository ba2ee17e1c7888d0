"""Explanations of one variant's test predictions: its checkpoint on windows from the shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from datasets.windows import inputs, read_dataset
from evaluation.explanations import (
    AROUND_S,
    ERRORS,
    WINDOWS,
    Explanation,
    Method,
    channel_trace,
    importance,
    spread,
    strongest_channels,
    sure_error,
)
from evaluation.scores import misclassified, split_predictions
from stages.datasets import dataset_shards

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evaluation.documents import SureError
    from models.registry import Variant
    from stages.project import Project

_KEY = ["episode_id", "window"]


def explain(
    project: Project, recipe: str, variant: Variant, predictions: pl.DataFrame, *, errors: bool
) -> Explanation:
    """Importance by phase, and with ``errors`` the windows that were most surely wrong."""
    layout, checkpoint = project.workspace.layout, project.checkpoint(variant, recipe)
    dataset = project.existing("datasets", recipe)
    shards = dataset_shards(project, dataset)
    table = read_dataset(dataset).filter(pl.col("split") == "test")
    test = split_predictions(predictions, variant.model, variant.mode, layout.phases)

    def contributions(windows: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
        found = windows.select(_KEY).join(table, on=_KEY, how="left", maintain_order="left")
        return found, checkpoint.explain(inputs(found, shards, variant, layout), layout)

    method: Method = checkpoint.model.explained
    rows = spread(test, WINDOWS[method])
    overall = importance(
        contributions(test.windows[rows])[1],
        test.predicted[rows],
        layout.phases,
        layout.channel_names,
        layout.channels_of(variant.mode),
        method,
    )
    if not errors:
        return Explanation(overall)
    wrong = misclassified(predictions, variant.model, variant.mode, layout.phases).head(ERRORS)
    if wrong.is_empty():
        return Explanation(overall)
    found, why = contributions(wrong)
    per_second = round(layout.window.n_bins / (layout.window.length_ms / 1000))
    around = round(AROUND_S * per_second)

    def shown() -> Iterator[SureError]:
        rows = zip(wrong.to_dicts(), found.to_dicts(), why, strongest_channels(why), strict=True)
        for row, window, argues, channels in rows:
            episode = table.filter(pl.col("episode_id") == row["episode_id"])["first_bin"]
            first, end = min(episode), max(episode) + layout.window.n_bins
            begins = max(first, window["first_bin"] - around)
            ends = min(end, window["first_bin"] + layout.window.n_bins + around)
            files = shards[window["batch"]]["tensor_shards"]
            path = files.path(f"series-{window['shard']:05}")
            series = np.lib.format.open_memmap(path, mode="r")
            yield sure_error(
                row,
                row["start_s"] - (window["first_bin"] - begins) / per_second,
                [
                    (
                        layout.channel_names[i],
                        float(argues[i]),
                        channel_trace(series[begins:ends, i], per_second),
                    )
                    for i in channels
                ],
            )

    return Explanation(overall, list(shown()))
