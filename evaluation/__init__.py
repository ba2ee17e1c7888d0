"""Figures with intervals, baselines, comparisons, drift, and the page that shows them."""

from __future__ import annotations

import os

import models  # noqa: F401  (sets OpenMP up before scikit-learn loads it)
from config.paths import cache_folder

# Before matplotlib's first import: it would write to the home folder.
os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
