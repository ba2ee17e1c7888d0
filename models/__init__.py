"""Classifiers, their training, their checkpoints; ``evaluation`` measures how good they are."""
