"""Windows of a dataset as model inputs: lazy views into the shards, and their tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from features.loaders import RowFiles, SummaryWindows, TensorWindows
from features.shards import WINDOW_COLUMNS, read_table
from models.base import Examples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from features.registry import InputKind, Layout, Mode
    from features.shards import Files
    from models.base import Inputs
    from models.registry import Variant


def examples(
    table: pl.DataFrame,
    shards: Mapping[str, Mapping[str, Files]],
    split: str,
    variant: Variant,
    layout: Layout,
) -> Examples:
    """The windows of one split as inputs of one variant: lazy views into the shards.

    Args:
        table: a dataset's table.
        shards: batch -> ``tensor_shards`` and ``feature_shards`` -> files.

    Returns:
        ``episode`` has positions in ``episode_ids``, which are sorted.
    """
    side = table.filter(pl.col("split") == split)
    codes = range(len(layout.phases))
    y = side["label"].replace_strict(layout.phases, codes, return_dtype=pl.Int64)
    return Examples(
        inputs(side, shards, variant, layout),
        y.to_numpy(writable=True),
        episode=_codes(side["episode_id"]) - 1,
        profile=_codes(side["profile"]),
        degraded=(side["verdict"] == "degraded").to_numpy(),
        episode_ids=side["episode_id"].unique().sort().to_numpy(),
    )


def _codes(values: pl.Series) -> NDArray[np.int64]:
    """Numbers from 1 in the order of the values, 0 where there is none.

    Texts of a million windows would take half a gigabyte.
    """
    return values.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()


EXAMPLE_COLUMNS = (
    "batch", "shard", "row", "first_bin", "split", "label", "episode_id", "profile", "verdict",
)  # fmt: skip
"""Columns of a dataset's table that ``examples`` needs."""

READ_ONCE_BYTES = 2**28


def read_once(X: Inputs) -> Inputs:
    """The same inputs, in memory where they are few: models pass over them many times."""
    return X[:] if 4 * math.prod(X.shape) <= READ_ONCE_BYTES else X


def inputs(
    windows: pl.DataFrame,
    shards: Mapping[str, Mapping[str, Files]],
    variant: Variant,
    layout: Layout,
) -> TensorWindows | SummaryWindows:
    """The inputs of one variant for a table of windows, in its order."""
    return inputs_of_kind(windows, shards, variant.spec.input_kind, variant.mode, layout)


def inputs_of_kind(
    windows: pl.DataFrame,
    shards: Mapping[str, Mapping[str, Files]],
    kind: InputKind,
    mode: Mode,
    layout: Layout,
) -> TensorWindows | SummaryWindows:
    """The inputs of a kind that a mode sees, for a table of windows, in its order."""
    keep = layout.keep_mask(mode, kind)
    place = windows.select("batch", "shard")
    known = place.unique().sort("batch", "shard")
    numbered = known.with_row_index("file").cast({"file": pl.Int64})
    shard = place.join(numbered, on=["batch", "shard"], how="left", maintain_order="left")["file"]
    of_window = {"shard": shard.to_numpy(), "row": windows["row"].to_numpy(), "keep": keep}

    def files(stage: str, role: str, width: int) -> RowFiles:
        paths = [shards[batch][stage].path(f"{role}-{n:05}") for batch, n in known.iter_rows()]
        return RowFiles(paths, width)

    if kind == "summary":
        return SummaryWindows(files("feature_shards", "features", len(keep)), **of_window)
    series, level = (
        files("tensor_shards", role, len(layout.channels)) for role in ("series", "level")
    )
    first_bin, n_bins = windows["first_bin"].to_numpy(), layout.window.n_bins
    return TensorWindows(series, level, first_bin=first_bin, n_timepoints=n_bins, **of_window)


def read_dataset(dataset: Files, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The table of a dataset: the columns of ``shards.WINDOW_COLUMNS``, ``batch``,
    ``session``, ``split``, or some of them.
    """
    return pl.DataFrame(read_table(dataset.path("windows"), columns))


def read_channel_means(shards: Files, channels: list[str], layout: Layout) -> pl.DataFrame:
    """Windows of a batch with the mean of each channel, from its feature shards."""
    names = layout.input_names("summary")
    means = [f"{channel}.mean" for channel in channels]
    columns = np.array([names.index(name) for name in means], dtype=np.int64)
    tables = []
    for windows, features in zip(shards.paths("windows"), shards.paths("features"), strict=True):
        rows = np.lib.format.open_memmap(features, mode="r")[:, columns]
        tables.append(pl.DataFrame(read_table(windows)).hstack(pl.DataFrame(rows, schema=means)))
    if not tables:  # no episode of the batch was accepted
        texts = ("episode_id", "host_id", "label")
        return pl.DataFrame(
            schema={c: pl.String if c in texts else pl.Float64 for c in (*WINDOW_COLUMNS, *means)}
        )
    return pl.concat(tables)
