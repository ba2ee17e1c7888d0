"""Tiny checkpoints of every variant, fitted on random windows, and how to forge them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lab
import numpy as np
import pytest

from features.registry import LAYOUT
from models.base import Classifier, Examples
from models.checkpoint import artifact_id, checkpoint_path, save_checkpoint
from models.registry import MODELS, VARIANTS, Variant, model_config
from models.scaling import principal_axes

TINY = lab.TINY["models"]
N_CLASSES = len(LAYOUT.phases)
COMMIT = "3fa1c2e" + "0" * 33
GBT, CNN = Variant("gbt", "realistic"), Variant("cnn", "realistic")
ONE_OF_EACH_KIND = tuple(
    next(which for which in VARIANTS if which.spec.input_kind == kind)
    for kind in ("summary", "tensor")
)
each_variant = pytest.mark.parametrize("which", VARIANTS, ids=lambda which: which.name)
each_model = pytest.mark.parametrize(
    "which", [Variant(model, "realistic") for model in MODELS], ids=lambda which: which.name
)
each_kind = pytest.mark.parametrize("which", ONE_OF_EACH_KIND, ids=lambda w: w.spec.input_kind)


def make_examples(which: Variant, seed: int = 0) -> Examples:
    """Random windows with what a window can have: wide ranges and missing values."""
    random = np.random.default_rng(seed)
    n_inputs = int(LAYOUT.keep_mask(which.mode, which.spec.input_kind).sum())
    n_bins = LAYOUT.window.n_bins
    shape = (40, n_inputs) if which.spec.input_kind == "summary" else (40, n_bins, n_inputs)
    X = random.lognormal(2.0, 3.0, shape).astype(np.float32)
    X[random.random(shape) < 0.1] = np.nan
    return Examples(X, np.arange(40) % N_CLASSES)


@cache
def fitted(which: Variant, seed: int = 0, **config: Any) -> Classifier:
    settings = model_config(which.model, TINY[which.model] | config)
    model = which.spec.build(settings, N_CLASSES, seed=seed, device="cpu")
    return model.fit(make_examples(which))


@cache
def axes(which: Variant) -> np.ndarray:
    return principal_axes(make_examples(which).X)


def save(folder: Path, which: Variant, seed: int = 0, **config: Any) -> Path:
    """Save a fitted tiny model; returns its header's path."""
    save_checkpoint(
        folder,
        which,
        fitted(which, seed, **config),
        LAYOUT,
        pca_proj=axes(which),
        train_meta={"code_commit": COMMIT, "seed": seed, "val_macro_f1": None},
    )
    return checkpoint_path(folder, which)


@cache
def files_of(which: Variant) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        save(Path(folder), which)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def put(folder: Path, which: Variant) -> Path:
    """Put down the files of a checkpoint saved before; returns its header's path."""
    folder.mkdir(exist_ok=True)
    for name, content in files_of(which).items():
        (folder / name).write_bytes(content)
    return checkpoint_path(folder, which)


def header_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())


def sidecar_of(path: Path) -> Path:
    return path.parent / header_of(path)["sidecar"]


def forge(path: Path, **changes: Any) -> None:
    """Change fields of a header and give it the ``artifact_id`` that fits."""
    header = header_of(path) | changes
    header["artifact_id"] = artifact_id(header)
    path.write_text(json.dumps(header), encoding="utf-8")
