"""MiniRocket and MultiRocket-Hydra with a ridge classifier, by an interpreter that has aeon.

    python benchmarks/rockets.py FOLDER

FOLDER has X_train.npy and X_test.npy (n_windows, n_timepoints, n_channels) and y_train.npy.
Prints the predicted classes of the test windows as JSON, a list a name. Dempster et al.,
"MiniRocket: A Very Fast (Almost) Deterministic Transform for Time Series Classification", KDD 2021,
and "Hydra: competing convolutional kernels for fast and accurate time series classification", 2023.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from aeon.classification.convolution_based import (
    MiniRocketClassifier,
    MultiRocketHydraClassifier,
)

ROCKETS = {"minirocket": MiniRocketClassifier, "mr_hydra": MultiRocketHydraClassifier}


def main() -> None:
    train, test, y = (
        np.lib.format.open_memmap(f"{sys.argv[1]}/{name}.npy", mode="r")
        for name in ("X_train", "X_test", "y_train")
    )
    values = [np.sign(x) * np.log1p(np.abs(x)) for x in (train, test)]
    mean, std = np.nanmean(values[0], axis=(0, 1)), np.nanstd(values[0], axis=(0, 1))
    mean = np.nan_to_num(mean)  # a channel without a value
    # a channel that never varied carries nothing, and MultiRocket divides by its deviation
    varied = std > 1e-6
    scaled = [
        np.nan_to_num((v - mean) / np.where(varied, std, 1.0))[..., varied].transpose(0, 2, 1)
        for v in values
    ]
    predicted = {}
    for name, kind in ROCKETS.items():
        model = kind(class_weight="balanced", random_state=0, n_jobs=2).fit(scaled[0], y)
        predicted[name] = model.predict(scaled[1]).tolist()
    print(json.dumps(predicted))


if __name__ == "__main__":
    main()
