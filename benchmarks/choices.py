"""How much each choice in the models' settings matters on this corpus: one is changed at a time.

    phasewatch run
    python -m benchmarks.choices [--hosts] [MODEL ...]

Prints the mean validation macro F1 over the recipes and modes, and its difference from the default
(the choices were made on validation; test is shown for information). With ``--hosts``, models
train on one host of the training side and are scored on another, for each pair.
"""

from __future__ import annotations

import sys
import time
from itertools import permutations, product

import numpy as np
import polars as pl

from benchmarks.yardstick import dataset_of, score, sides
from datasets.windows import examples
from features.registry import LAYOUT, MODES
from models.base import Examples
from models.registry import MODELS, Variant, model_config
from stages.project import Project
from stages.workspace import Workspace, workspace_from_environment

FAR = 1e6  # a limit that nothing reaches
CHOICES: dict[str, list[dict[str, int | float]]] = {
    "gbt": [{}, {"max_depth": 3}, {"max_depth": 8}, {"colsample_bynode": 1.0}],
    "mlp": [{}, {"n_pieces": 1}, {"n_pieces": 16}, {"dropout": 0.3}],
    "knn": [{}, {"n_components": 230}, {"n_components": 8}, {"limit": FAR}],
    "knn_semi": [{}, {"confidence": 0.9}, {"labelled_share": 0.5}],
    "cnn": [{}, {"kernel": 3}, {"limit": FAR}, {"block_bins": 1}],
    "gru": [{}, {"limit": FAR}],
    "lstm": [{}, {"width": 64}],
    "transformer": [{}, {"dropout": 0.4}, {"limit": FAR}],
}


Trial = dict[str, Examples]  # by split: train, val and maybe test


def trials_by_recipe(workspace: Workspace, kind: str) -> list[Trial]:
    """The splits of every recipe, in every mode."""
    recipes = Project(workspace).recipes
    return [sides(workspace, r, Variant(kind, mode)) for r, mode in product(recipes, MODES)]


def trials_by_host(workspace: Workspace, kind: str) -> list[Trial]:
    """Each pair of hosts of recipe ``host``'s training side: one to train on, one to score."""
    table, shards = dataset_of(workspace, "host")
    known = table.filter(pl.col("split") != "test")
    trials = []
    for learn, judge in permutations(sorted(known["host_id"].unique()), 2):
        split = pl.col("host_id").replace_strict({learn: "train", judge: "val"}, default="-")
        pair = known.with_columns(split=split)
        trials += [
            {s: examples(pair, shards, s, Variant(kind, mode), LAYOUT) for s in ("train", "val")}
            for mode in MODES
        ]
    return trials


def main() -> None:
    by_host = "--hosts" in sys.argv
    models = [word for word in sys.argv[1:] if not word.startswith("--")] or list(CHOICES)
    workspace = workspace_from_environment()
    split = trials_by_host if by_host else trials_by_recipe
    trials = {MODELS[kind].input_kind: split(workspace, kind) for kind in ("gbt", "cnn")}
    print(f"{'':42}{'val':>8}{'':>8}{'' if by_host else 'test':>8}{'s':>8}")
    for model in models:
        default = None
        for changed in CHOICES[model]:
            began = time.perf_counter()
            scores = []
            for windows in trials[MODELS[model].input_kind]:
                fitted = MODELS[model].build(
                    model_config(model, changed),
                    len(LAYOUT.phases),
                    seed=workspace.seed,
                    device=workspace.device,
                )
                fitted.fit(windows["train"], windows["val"])
                scores.append(
                    [score(w, fitted.predict_proba(w.X).argmax(axis=1))
                     for side, w in windows.items() if side != "train"]
                )  # fmt: skip
            val, *test = np.mean(scores, axis=0)
            default = val if default is None else default
            settings = ", ".join(f"{k}={v:g}" for k, v in changed.items()) or "as configured"
            seconds = (time.perf_counter() - began) / len(scores)
            shown = f"{test[0]:8.3f}" if test else f"{'':8}"
            print(
                f"{model:13}{settings:29}{val:8.3f}{val - default:+8.3f}{shown}{seconds:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
