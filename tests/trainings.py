"""Trainings that are killed on the way: what ``test_resume`` starts in processes of its own.

Few imports, because every such process pays for them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import models.bookmark
from models.base import Classifier, Examples
from models.bookmark import Bookmark
from models.registry import MODELS, model_config
from stages.project import Project
from stages.workspace import Workspace

NETS = [name for name, spec in MODELS.items() if "torch" in spec.libraries]
KILLED_AT, EPOCHS = 7, 11
"""The epoch whose end is not saved, and the epochs of all: the schedule decays after warm-up."""
SMALL = {
    "width": 8, "depth": 1, "n_heads": 2, "epochs": EPOCHS, "dropout": 0.3, "batch_size": 16,
    "patience": EPOCHS, "trees": {"n_rounds": 5, "n_threads": 1},
}  # fmt: skip


def save_each_epoch(setting: Any) -> None:
    setting(models.bookmark, "EVERY_S", 0.0)
    setting(models.bookmark, "COST", float("inf"))


def _only(name: str, values: dict[str, Any]) -> dict[str, Any]:
    fields = MODELS[name].config.__dataclass_fields__
    return {setting: value for setting, value in values.items() if setting in fields}


def build(name: str, **others: Any) -> Classifier:
    config = model_config(name, _only(name, SMALL) | others)
    return MODELS[name].build(config, 3, seed=5, device="cpu")


def windows(name: str, n_windows: int, seed: int) -> Examples:
    random = np.random.default_rng(seed)
    shape = (n_windows, 6) if MODELS[name].input_kind == "summary" else (n_windows, 20, 6)
    X = random.lognormal(size=shape).astype(np.float32)
    X[random.random(shape) < 0.1] = np.nan
    return Examples(X, random.integers(0, 3, n_windows))


def fit(model: Classifier, name: str, bookmark: Bookmark | None, killed_at: int = 0) -> list[str]:
    """Train, and be killed when an epoch has ended; returns what the progress said."""
    said: list[str] = []

    def progress(step: int, total: int, text: str) -> None:  # noqa: ARG001
        said.append(f"{step}: {text}")
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    model.fit(windows(name, 90, 0), windows(name, 40, 1), progress, bookmark)
    return said


def bookmark_in(folder: Path, name: str, key: str = "a" * 64) -> Bookmark:
    return Bookmark(folder / f"{name}.state", key)


def killed_trainings(folder: Path) -> None:
    """Train every net, each in a process that is killed; for a fresh process."""
    save_each_epoch(setattr)
    built = {name: build(name) for name in NETS}  # imports PyTorch once for all
    for name, model in built.items():
        child = os.fork()
        if not child:
            fit(model, name, bookmark_in(folder, name), KILLED_AT)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, name


def in_a_process(call: str) -> int:
    code = f"import json, trainings as t; from pathlib import Path; t.{call}"
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"}
    return subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode


def make(settings: dict[str, Any], recipe: str, killed_at: int = 0) -> Any:
    """Make the checkpoint of a net, and be killed on the way."""
    save_each_epoch(setattr)
    project = Project(Workspace(**settings))

    def progress(step: int, total: int, text: str) -> None:  # noqa: ARG001
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    stage = project.stages["checkpoints/gru_realistic"]
    return project.make(stage, recipe, progress=progress).artifacts[stage.name]
