"""The few figures that training itself needs; intervals and reports are in ``evaluation``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def confusion_matrix(
    actual: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Counts ``(n_classes, n_classes)``, rows actual, columns predicted."""
    flat = np.bincount(actual * n_classes + predicted, minlength=n_classes * n_classes)
    return flat.reshape(n_classes, n_classes)


def f1_by_class(confusion: NDArray) -> NDArray[np.float64]:
    """``2 TP / (2 TP + FP + FN)`` over the last two axes; NaN where a class does not occur."""
    true_positive = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    involved = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2.0 * true_positive / involved


def macro_f1(actual: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int) -> float:
    """Mean F1 over the classes present in ``actual``: classes not tested are left out."""
    f1 = f1_by_class(confusion_matrix(actual, predicted, n_classes))
    return float(np.mean(f1[np.unique(actual)]))
