"""Splits, predictions, figures with intervals, and the report that shows them."""

import models  # noqa: F401  (sets OpenMP up before scikit-learn loads it)
