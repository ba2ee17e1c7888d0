"""Datasets: which windows train, validate and test, and their inputs."""
