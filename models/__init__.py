"""Classifiers, their training, their checkpoints; ``evaluation`` measures how good they are."""

from __future__ import annotations

import os

# Before torch or XGBoost load OpenMP: threads that wait must sleep. By default they spin, and two
# trainings on one machine then take each other's cores (measured: slower by over ten times).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MAX_POINTS = 200_000
"""Training windows that nearest neighbours may keep."""

MAX_TREE_DEPTH = 16
