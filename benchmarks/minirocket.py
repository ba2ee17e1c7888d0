"""MiniRocket with a ridge classifier, run by an interpreter that has aeon (see yardstick.py).

    python benchmarks/minirocket.py FOLDER

FOLDER has X_train.npy and X_test.npy (n_windows, n_timepoints, n_channels) and y_train.npy.
Prints the predicted classes of the test windows as a JSON list. Dempster et al., "MiniRocket: A
Very Fast (Almost) Deterministic Transform for Time Series Classification", KDD 2021.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from aeon.classification.convolution_based import MiniRocketClassifier


def main() -> None:
    train, test, y = (
        np.lib.format.open_memmap(f"{sys.argv[1]}/{name}.npy", mode="r")
        for name in ("X_train", "X_test", "y_train")
    )
    values = [np.sign(x) * np.log1p(np.abs(x)) for x in (train, test)]
    mean, std = np.nanmean(values[0], axis=(0, 1)), np.nanstd(values[0], axis=(0, 1))
    scaled = [np.nan_to_num((v - mean) / np.where(std > 1e-6, std, 1.0)) for v in values]
    model = MiniRocketClassifier(class_weight="balanced", random_state=0, n_jobs=2)
    model.fit(scaled[0].transpose(0, 2, 1), y)
    print(json.dumps(model.predict(scaled[1].transpose(0, 2, 1)).tolist()))


if __name__ == "__main__":
    main()
