"""How well models survive another day and another machine.

    phasewatch run --ingest-only
    python -m benchmarks.days [--mode MODE] [--question NAME] [--absolute WHICH] [MODEL ...]

For each model of a mode, without and with the filter over time:

- ``first session``: across hosts within the first session, each host held out once. Models and
  settings are chosen on this line; the other two are only looked at.
- ``next session``: trained on the first session alone, tested on the last.
- ``new machine``: trained on the first session and all but one host of the last, tested on that
  host, each in turn. Macro F1 is the mean over hosts; alarms are counted over all of them.

A fifth of the samples of the training side is validation: for early stopping and the alarm rule.
``--absolute`` gives the values themselves of no channel, of the registered ones and the host's
(``proc``, ``qmp``), or of all, beside the relative ones; by default the registry decides.
``--question 'first session'`` measures that line alone. A model may be several, such as
``gbt+transformer``, or one with several seeds, ``transformer*3``: the geometric mean of their
probabilities.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from datasets.splits import SplitPolicy, build_table
from datasets.windows import examples
from evaluation.alarm_choice import choose_rule, filtered_alarm_scores, filtered_predictions
from evaluation.scores import SplitPredictions, prediction_rows, split_predictions
from features.loaders import read_windows
from features.registry import MODES, Channel, Layout, Mode
from models.pooling import geometric_mean
from models.registry import MODELS, Variant
from stages.alarm_rules import training_phases
from stages.batch import TENSORS
from stages.project import Project
from stages.workspace import workspace_from_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

HELD_OUT = "held-out"
QUESTIONS = ("first session", "next session", "new machine")
ABSOLUTE = ("none", "host", "all")


@dataclass(frozen=True)
class Tested:
    """One model on one test side."""

    macro_f1: float
    filtered_f1: float
    clean_windows: int
    clean_alarmed: int
    false_alarms: int
    attacks: int
    found: int


def all_windows(project: Project) -> tuple[pl.DataFrame, dict[str, dict]]:
    """Every window of the store, and the shards it points into."""
    shards = {batch: project.artifacts("ingest", batch) for batch in project.listing.batches}
    windows = pl.concat(
        pl.DataFrame(read_windows(files[TENSORS].paths("windows"))).with_columns(
            batch=pl.lit(batch)
        )
        for batch, files in shards.items()
    )
    return windows, shards


def trials(windows: pl.DataFrame, policy: SplitPolicy) -> dict[str, list[pl.DataFrame]]:
    """Per question the datasets that answer it, as tables with a column ``split``."""
    of = {e: policy.session(e) for e in windows["episode_id"].unique()}
    session = windows["episode_id"].replace_strict(of)
    first, last = min(of.values()), max(of.values())
    if first == last:
        sys.exit(f"the store must have two sessions, got one: {first}")

    def without(host: str, table: pl.DataFrame, held_out: pl.Series) -> pl.DataFrame:
        held_out = held_out & (table["host_id"] == host)
        renamed = table.with_columns(
            host_id=pl.when(held_out).then(pl.lit(HELD_OUT)).otherwise(pl.col("host_id"))
        )
        return build_table(renamed, "host", replace(policy, test_host=HELD_OUT))[0]

    of_first, both = windows.filter(session == first), session.is_in([first, last])
    pair, late = windows.filter(both), (session == last).filter(both)
    every = pl.Series([True] * len(of_first))
    only = replace(policy, test_sessions=[last])
    tables = (
        [without(host, of_first, every) for host in sorted(of_first["host_id"].unique())],
        [build_table(pair, "session", only)[0]],
        [without(host, pair, late) for host in sorted(pair.filter(late)["host_id"].unique())],
    )
    return dict(zip(QUESTIONS, tables, strict=True))


def members(model: str, mode: Mode) -> list[tuple[Variant, int]]:
    """The trainings that a name such as ``gbt+transformer*3`` stands for: variants and seeds."""
    named = (part.partition("*") for part in model.split("+"))
    return [(Variant(name, mode), seed) for name, _, n in named for seed in range(int(n or 1))]


def probabilities(
    project: Project, variant: Variant, seed: int, table: pl.DataFrame, shards: dict, layout: Layout
) -> dict[str, NDArray[np.float32]]:
    """Train on a table's training side; returns what the model says of validation and test."""
    train, val, held_out = (
        examples(table, shards, split, variant, layout) for split in ("train", "val", "test")
    )
    model = variant.spec.build(
        project.workspace.model_config_of(variant),
        len(layout.phases),
        seed=project.workspace.seed + seed,
        device=project.workspace.device,
    ).fit(train, val)
    return {"val": model.predict_proba(val.X), "test": model.predict_proba(held_out.X)}


def test(project: Project, probas: Sequence[dict], table: pl.DataFrame, layout: Layout) -> Tested:
    """Choose the alarm rule of models' mean on validation, score its test."""
    workspace = project.workspace

    def predicted(split: str) -> SplitPredictions:
        rows = prediction_rows(
            table.filter(pl.col("split") == split),
            *("", "", "", geometric_mean([proba[split] for proba in probas]), layout.phases),
        )
        return split_predictions(rows, "", "", layout.phases, split)

    chosen_on, on = predicted("val"), predicted("test")
    phases = training_phases(table, layout.phases)
    rule, _ = choose_rule(chosen_on, phases, layout.phases, workspace.report, layout.window)
    smooth = filtered_predictions(on, rule)
    scores = filtered_alarm_scores(smooth, rule, layout.window)
    return Tested(
        *(on.macro_f1, smooth.macro_f1, int(scores.clean.sum())),
        int((scores.clean & scores.alarmed(rule.threshold)).sum()),
        int(scores.false_alarms(rule.threshold).sum()),
        int(scores.attacked().sum()),
        scores.detected(rule.threshold),
    )


def given(channel: Channel, absolute: str) -> bool:
    """Whether models get a channel's own value, too."""
    if absolute == "host":
        return channel.absolute or not channel.deployable
    return absolute == "all"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on one session, test on the next.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    parser.add_argument("--mode", choices=MODES, default="realistic")
    parser.add_argument("--question", choices=QUESTIONS, help="default: all")
    parser.add_argument("--absolute", choices=ABSOLUTE, help="default: as registered")
    asked = parser.parse_args()
    project = Project(workspace_from_environment())
    layout = project.workspace.layout
    if asked.absolute:
        channels = tuple(replace(c, absolute=given(c, asked.absolute)) for c in layout.channels)
        layout = replace(layout, channels=channels)
    windows, shards = all_windows(project)
    stride_s = layout.window.stride_ms / 1000
    print(
        f"{'':14}{'':17}{'macro F1':>9}{'filtered':>9}{'each filtered':>29}"
        f"{'clean alarmed':>15}{'false/h':>9}{'attacks found':>15}"
    )
    for name, tables in trials(windows, project.workspace.splits).items():
        if asked.question not in (None, name):
            continue
        for model in asked.models or MODELS:
            trainings = members(model, asked.mode)
            found = [
                test(
                    project,
                    [probabilities(project, *one, table, shards, layout) for one in trainings],
                    *(table, layout),
                )
                for table in tables
            ]
            clean = sum(t.clean_windows for t in found)
            alarmed = sum(t.clean_alarmed for t in found) / max(1, clean)
            per_hour = sum(t.false_alarms for t in found) / max(1e-9, clean * stride_s / 3600)
            attacks = f"{sum(t.found for t in found)} of {sum(t.attacks for t in found)}"
            each = " ".join(f"{t.filtered_f1:.3f}" for t in found)
            print(
                f"{name:14} {model:16}{np.mean([t.macro_f1 for t in found]):9.3f}"
                f"{np.mean([t.filtered_f1 for t in found]):9.3f}{each:>29}"
                f"{alarmed:15.1%}{per_hour:9.1f}{attacks:>15}",
                flush=True,
            )


if __name__ == "__main__":
    main()
