"""How often episodes are called unlike training when a host, a session or a profile is left out.

    phasewatch run --ingest-only
    python -m benchmarks.likeness

Of the episodes that are left, some calibrate, as validation does, and the others train. Prints the
share of the episodes left out that are not called unlike (the coverage), for five draws of the
calibration side. Samples left out, on known hosts and days, are the control: calibration leaves
out samples too, so there the promise should hold.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from datasets.splits import validation_side
from features.registry import LAYOUT
from models.likeness import ALPHA
from stages.datasets import ingested_windows
from stages.likeness import fit_likeness
from stages.project import Project
from stages.workspace import Workspace, workspace_from_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

DRAWS = 5
LEFT_OUT = {"host": "host_id", "session": "session", "profile": "profile"}


def ingested(workspace: Workspace) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Windows with values of all batches, with their ``session``, and the shards."""
    windows, shards = ingested_windows(Project(workspace))
    windows = windows.filter(pl.any_horizontal(pl.col("^coverage_.*$") > 0))
    session = pl.col("episode_id").map_elements(workspace.splits.session, return_dtype=pl.String)
    return windows.with_columns(session=session), shards


def sides(windows: pl.DataFrame, test: set[str], workspace: Workspace, seed: int) -> pl.DataFrame:
    """Windows with ``split``; degraded episodes only train, as in datasets."""
    episodes = windows.unique("episode_id").sort("episode_id").to_dicts()
    left = [row for row in episodes if row["episode_id"] not in test]
    val = validation_side(left, "likeness", replace(workspace.splits, seed=seed))
    split = dict.fromkeys(test, "test") | dict.fromkeys(val, "val")
    return windows.with_columns(
        split=pl.col("episode_id").replace_strict(split, default="train")
    ).filter((pl.col("split") == "train") | (pl.col("verdict") != "degraded"))


def groups(windows: pl.DataFrame) -> Iterator[tuple[str, str, set[str]]]:
    """What is left out, its name and its episodes."""
    for what, column in LEFT_OUT.items():
        for name in windows[column].unique().sort():
            of_it = windows.filter(pl.col(column) == name)
            if len(of_it) < len(windows):
                yield what, name, set(of_it["episode_id"])


def covered(table: pl.DataFrame, shards: dict[str, Any], seed: int) -> tuple[float, int, int]:
    """Coverage, test episodes and calibration episodes."""
    likeness, test = fit_likeness(table, shards, "realistic", LAYOUT, seed)
    return float((test["p"] > ALPHA).mean()), len(test), len(likeness.calibration)  # type: ignore[arg-type]


def line(what: str, name: str, found: list[tuple[float, int, int]]) -> None:
    shares, n_test, n_calibration = np.array(found).T
    print(
        f"{what:9}{name:15}{shares.mean():9.3f}{shares.min():8.3f}{shares.max():8.3f}"
        f"{n_test.mean():10.0f}{n_calibration.mean():12.0f}",
        flush=True,
    )


def main() -> None:
    workspace = workspace_from_environment()
    windows, shards = ingested(workspace)
    columns = ("coverage", "least", "most", "episodes", "calibrated")
    print(f"promised at least {1 - ALPHA:g} of episodes like those of calibration")
    print(f"{'left out':24}{columns[0]:>9}{columns[1]:>8}{columns[2]:>8}"
          f"{columns[3]:>10}{columns[4]:>12}")  # fmt: skip
    by_kind: dict[str, list[tuple[float, int, int]]] = {}
    for what, name, test in groups(windows):
        found = [covered(sides(windows, test, workspace, s), shards, s) for s in range(DRAWS)]
        by_kind.setdefault(what, []).extend(found)
        line(what, name, found)
    episodes = windows.unique("episode_id").sort("episode_id").to_dicts()
    control = []
    for seed in range(2 * DRAWS):
        policy = replace(workspace.splits, seed=100 + seed)
        test = validation_side(episodes, "likeness", policy)
        control.append(covered(sides(windows, test, workspace, seed), shards, seed))
    print()
    for what, found in by_kind.items():
        line(what, "mean", found)
    line("samples", "control", control)


if __name__ == "__main__":
    main()
