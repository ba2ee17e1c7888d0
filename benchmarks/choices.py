"""How much each choice in the models' settings matters on this corpus: one is changed at a time.

    phasewatch run
    python -m benchmarks.choices [--hosts] [--recipe RECIPE] [--mode MODE]
        [--only SETTING] [MODEL ...]

Prints the mean validation macro F1 over the recipes and modes, and its difference from the default
(the choices were made on validation; test is shown for information), and how many epochs were
trained. With ``--hosts``, models train on one host of the training side and are scored on another,
for each pair.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import permutations, product

import numpy as np
import polars as pl

from benchmarks.yardstick import dataset_of, score, sides
from datasets.splits import RECIPES
from datasets.windows import examples
from features.registry import LAYOUT, MODES, Mode
from models.base import Examples
from models.registry import MODELS, Variant, model_config
from stages.project import Project
from stages.workspace import Workspace, workspace_from_environment

FAR = 1e6  # a limit that nothing reaches
Choice = dict[str, int | float | str]
LAST: Choice = {"keep": "last"}
CHOICES: dict[str, list[Choice]] = {
    "gbt": [{}, {"max_depth": 3}, {"max_depth": 8}, {"colsample_bynode": 1.0}],
    "mlp": [{}, {"n_pieces": 1}, {"n_pieces": 16}, {"dropout": 0.3}, LAST],
    "knn": [{}, {"n_components": 230}, {"n_components": 8}, {"limit": FAR}],
    "knn_semi": [{}, {"confidence": 0.9}, {"labelled_share": 0.5}],
    "cnn": [{}, {"kernel": 3}, {"limit": FAR}, {"block_bins": 1}, LAST],
    "gru": [{}, {"limit": FAR}, LAST],
    "lstm": [{}, {"width": 64}, {"offset_noise": 0.2}, LAST],
    "transformer": [{}, {"dropout": 0.4}, {"limit": FAR}, LAST],
    "ensemble": [{}, {"limit": FAR}, LAST],
}


Trial = dict[str, Examples]  # by split: train, val and maybe test


def trials_by_recipe(
    workspace: Workspace, kind: str, recipes: Sequence[str], modes: Sequence[Mode]
) -> list[Trial]:
    """The splits of recipes, in modes."""
    return [sides(workspace, r, Variant(kind, mode)) for r, mode in product(recipes, modes)]


def trials_by_host(workspace: Workspace, kind: str, modes: Sequence[Mode]) -> list[Trial]:
    """Each pair of hosts of recipe ``host``'s training side: one to train on, one to score."""
    table, shards = dataset_of(workspace, "host")
    known = table.filter(pl.col("split") != "test")
    trials = []
    for learn, judge in permutations(sorted(known["host_id"].unique()), 2):
        split = pl.col("host_id").replace_strict({learn: "train", judge: "val"}, default="-")
        pair = known.with_columns(split=split)
        trials += [
            {s: examples(pair, shards, s, Variant(kind, mode), LAYOUT) for s in ("train", "val")}
            for mode in modes
        ]
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(description="What each choice in the settings matters.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    parser.add_argument("--hosts", action="store_true", help="from one host to another")
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="default: all")
    parser.add_argument("--mode", action="append", choices=MODES, help="default: both")
    parser.add_argument("--only", metavar="SETTING", help="change this setting alone")
    asked = parser.parse_args()
    workspace, modes = workspace_from_environment(), asked.mode or MODES
    trials = {
        MODELS[kind].input_kind: trials_by_host(workspace, kind, modes)
        if asked.hosts
        else trials_by_recipe(workspace, kind, asked.recipe or Project(workspace).recipes, modes)
        for kind in ("gbt", "cnn")
    }
    columns = f"{'val':>8}{'':>8}{'' if asked.hosts else 'test':>8}{'epochs':>8}{'s':>8}"
    print(f"{'':42}{columns}")
    for model in asked.models or CHOICES:
        default = None
        for changed in CHOICES[model]:
            if asked.only and changed and asked.only not in changed:
                continue
            began = time.perf_counter()
            scores, epochs = [], []
            for windows in trials[MODELS[model].input_kind]:
                fitted = MODELS[model].build(
                    model_config(model, changed),
                    len(LAYOUT.phases),
                    seed=workspace.seed,
                    device=workspace.device,
                )
                fitted.fit(windows["train"], windows["val"])
                epochs.append(len(fitted.history_.epochs))
                scores.append(
                    [score(w, fitted.predict_proba(w.X).argmax(axis=1))
                     for side, w in windows.items() if side != "train"]
                )  # fmt: skip
            val, *test = np.mean(scores, axis=0)
            default = val if default is None else default
            settings = ", ".join(f"{k}={v}" for k, v in changed.items()) or "as configured"
            seconds = (time.perf_counter() - began) / len(scores)
            shown = f"{test[0]:8.3f}" if test else f"{'':8}"
            print(
                f"{model:13}{settings:29}{val:8.3f}{val - default:+8.3f}{shown}"
                f"{np.mean(epochs):8.1f}{seconds:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
