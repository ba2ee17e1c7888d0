"""Splits, predictions, figures with intervals, and the report that shows them."""
