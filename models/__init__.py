"""Classifiers, their training, their checkpoints. How good they are is measured in ``evaluation``."""
