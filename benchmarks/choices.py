"""What each choice in the models' recipes is worth on this corpus: one is changed, all else stays.

    phasewatch run
    python -m benchmarks.choices [MODEL ...]

Prints the mean validation macro F1 over the recipes and modes, and its difference from the default
(validation is what the choices were made on; test is shown beside it, after the fact).
"""

from __future__ import annotations

import sys
import time
from itertools import product

import numpy as np

from benchmarks.yardstick import score, sides
from evaluation.datasets import RECIPES
from features.registry import LAYOUT, MODES
from models.registry import MODELS, Variant, model_config
from resources.workspace import workspace_from_environment

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


def main() -> None:
    workspace = workspace_from_environment()
    kinds = {(r, m, k): sides(workspace, r, Variant(k, m))
             for r, m, k in product(RECIPES, MODES, ("gbt", "cnn"))}  # fmt: skip
    print(f"{'':42}{'val':>8}{'':>8}{'test':>8}{'s':>8}")
    for model in sys.argv[1:] or CHOICES:
        default = None
        for changed in CHOICES[model]:
            began = time.perf_counter()
            scores = []
            for recipe, mode in product(RECIPES, MODES):
                kind = "gbt" if MODELS[model].input_kind == "summary" else "cnn"
                windows = kinds[recipe, mode, kind]
                config = model_config(model, changed)
                fitted = MODELS[model].build(
                    config, len(LAYOUT.phases), seed=workspace.seed, device=workspace.device
                )
                fitted.fit(windows["train"], windows["val"])
                scores.append(
                    [score(w, fitted.predict_proba(w.X).argmax(axis=1))
                     for w in (windows["val"], windows["test"])]
                )  # fmt: skip
            val, test = np.mean(scores, axis=0)
            default = val if default is None else default
            said = ", ".join(f"{k}={v:g}" for k, v in changed.items()) or "as configured"
            seconds = (time.perf_counter() - began) / len(scores)
            print(
                f"{model:13}{said:29}{val:8.3f}{val - default:+8.3f}{test:8.3f}{seconds:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
