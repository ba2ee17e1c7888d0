"""Splits, predictions, figures with intervals, and the report that shows them."""

from __future__ import annotations

import os
from pathlib import Path

import models  # noqa: F401  (sets OpenMP up before scikit-learn loads it)

# Before matplotlib's first import: nothing outside artifacts/ is written.
os.environ.setdefault(
    "MPLCONFIGDIR", str(Path(__file__).resolve().parent.parent / "artifacts/cache/matplotlib")
)
