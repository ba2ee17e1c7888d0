"""Scoring rows as they arrive on a device: the same alignment and windows as in batch."""
