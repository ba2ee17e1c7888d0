"""The models compared with three that need no tuning, on the same windows.

    phasewatch run
    python -m benchmarks.yardstick [--aeon PYTHON]

A random forest on the summary inputs (300 balanced trees), and MiniRocket and MultiRocket-Hydra,
each with a ridge classifier, on the windows; all train on ``train`` only, as the models do. The
forest's score with ``val`` added is shown too. The rockets come from aeon, which needs another
interpreter (``make yardstick`` makes one) because it needs an older Numba. A recipe that the store
does not support is left out and named.

Exit code 1 if a model that must come within .05 of the forest does not, if no model reaches the
forest, or if a model is not significantly better than prior, uniform and missingness-only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from datasets.splits import SPLITS
from datasets.windows import examples, read_dataset
from evaluation.documents import Comparisons
from features.registry import LAYOUT, MODES
from models.metrics import macro_f1
from models.registry import MODELS, Variant
from stages.datasets import dataset_shards
from stages.evaluation import read_comparisons
from stages.project import Project
from stages.workspace import Workspace, workspace_from_environment

if TYPE_CHECKING:
    import polars as pl

    from models.base import Examples

CLOSE = 0.05
HAVE_TO_BE_CLOSE = ("gbt", "mlp", "cnn", "gru", "lstm", "transformer", "ensemble")
ROCKETS = ("minirocket", "mr_hydra")
HAVE_TO_BE_BEATEN = ("prior", "uniform", "missingness_only")


def dataset_of(workspace: Workspace, recipe: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The table of a recipe's dataset, and the shards it points into."""
    project = Project(workspace)
    dataset = project.existing("datasets", recipe)
    return read_dataset(dataset), dataset_shards(project, dataset)


def sides(workspace: Workspace, recipe: str, variant: Variant) -> dict[str, Examples]:
    """The windows of a recipe as inputs of a variant, by split."""
    table, shards = dataset_of(workspace, recipe)
    return {split: examples(table, shards, split, variant, LAYOUT) for split in SPLITS}


def score(examples_: Examples, predicted: np.ndarray) -> float:
    return macro_f1(examples_.y, predicted, len(LAYOUT.phases))


def forest(windows: dict[str, Examples], *training: str) -> float:
    X = np.concatenate([windows[side].X[:] for side in training])
    y = np.concatenate([windows[side].y for side in training])
    trees = RandomForestClassifier(300, class_weight="balanced", n_jobs=2, random_state=0)
    return score(windows["test"], trees.fit(X, y).predict(windows["test"].X[:]))


def rockets(windows: dict[str, Examples], python: str) -> dict[str, float]:
    """aeon's, in another interpreter; missing values become the channel's training mean."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/y_train.npy", windows["train"].y)
        for side in ("train", "test"):
            np.save(f"{folder}/X_{side}.npy", windows[side].X[:])
        script = Path(__file__).parent / "rockets.py"
        # that interpreter must not import these packages
        alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [python, script, folder], check=True, capture_output=True, text=True, env=alone
        )
    predicted = json.loads(done.stdout)
    return {name: score(windows["test"], np.array(classes)) for name, classes in predicted.items()}


def unbeaten(document: Comparisons) -> list[str]:
    """Models whose paired interval against a baseline reaches 0."""
    return [
        f"{document.recipe}: {c.model}_{c.mode} is not significantly better than {c.other.model} "
        f"({c.value:+.3f} [{c.low:+.3f}, {c.high:+.3f}])"
        for family in document.families
        if family.name == "baselines"
        for c in family.comparisons
        if c.other.model in HAVE_TO_BE_BEATEN and (c.low is None or c.low <= 0)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the models with a forest and rockets.")
    parser.add_argument("--aeon", metavar="PYTHON", help="an interpreter that has aeon")
    arguments = parser.parse_args()
    workspace = workspace_from_environment()
    project = Project(workspace)

    columns = [*MODELS, "forest", "forest+val", *(ROCKETS if arguments.aeon else ())]
    for recipe in project.unavailable:
        print(f"left out: {project.status(project.stages['datasets'], recipe).line}")
    print(f"{'test macro F1':18}" + "".join(f"{name:>12}" for name in columns))
    failures = []
    for recipe, mode in product(project.recipes, MODES):
        manifest = project.artifact("comparisons", recipe)
        if manifest is None:
            sys.exit(f"{recipe} was not evaluated: phasewatch run")
        document = read_comparisons(manifest)
        f1 = {p.model: p.macro_f1.value for p in document.predictors if p.mode == mode}
        scores = {name: math.nan if value is None else value for name, value in f1.items()}
        summary = sides(workspace, recipe, Variant("gbt", mode))
        scores["forest"] = forest(summary, "train")
        scores["forest+val"] = forest(summary, "train", "val")
        if arguments.aeon:
            windows = sides(workspace, recipe, Variant("cnn", mode))
            scores |= rockets(windows, arguments.aeon)
        print(
            f"{recipe:7} {mode:10}" + "".join(f"{scores[name]:12.3f}" for name in columns),
            flush=True,
        )
        for name in HAVE_TO_BE_CLOSE:
            if scores[name] < scores["forest"] - CLOSE:
                failures.append(f"{recipe}: {name}_{mode} is over {CLOSE} below the forest")
        if max(scores[name] for name in MODELS) < scores["forest"]:
            failures.append(f"{recipe}: no {mode} model reaches the forest")
        if mode == MODES[0]:
            failures += unbeaten(document)
    print("\n".join(failures) or "every model is where it should be")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
