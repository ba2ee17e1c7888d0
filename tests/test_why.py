"""Why: how much each channel argues for the phase that a model gives a window."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xgboost as xgb
from lab import RECIPE, Lab
from numpy.typing import NDArray
from typer.testing import CliRunner

import phasewatch
from features.registry import LAYOUT, MODES, RELATIVE
from models.base import Classifier
from models.checkpoint import Checkpoint, checkpoint_path
from models.ensemble import Ensemble
from models.pooling import POOLED, geometric_mean, pooled
from models.registry import MODELS, find_variant
from models.scaling import fit_piecewise_linear, fit_scaling, scale, typical
from pipelines.cli.app import OK, app


def opened(lab: Lab, model: str, mode: str = "realistic") -> tuple[Checkpoint, NDArray[np.float32]]:
    X = phasewatch.open_windows(lab.project, RECIPE, model, mode, "test").X
    return phasewatch.load_checkpoint(lab.project, RECIPE, model, mode), np.asarray(X[:12])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["summary", "tensor"])
def test_every_input_belongs_to_the_channel_in_its_name(mode: Any, kind: Any) -> None:
    kept = LAYOUT.keep_mask(mode, kind)
    names = [n for n, keep in zip(LAYOUT.input_names(kind), kept, strict=True) if keep]
    for name, channel in zip(names, LAYOUT.channel_of(mode, kind), strict=True):
        whole = LAYOUT.channel_names[channel]
        stem = name.removesuffix(RELATIVE)
        assert whole == (stem.rpartition(".")[0] if kind == "summary" else stem)


@pytest.mark.parametrize("mode", MODES)
def test_those_of_trees_add_up_to_the_margin(trained: Lab, mode: str) -> None:
    checkpoint, X = opened(trained, "gbt", mode)
    booster = checkpoint.model.booster_  # type: ignore[attr-defined]
    matrix = xgb.DMatrix(X, missing=np.nan)
    margins = booster.predict(matrix, output_margin=True)
    bias = booster.predict(matrix, pred_contribs=True)[:, :, -1]
    rows, predicted = np.arange(len(X)), margins.argmax(axis=1)
    found = checkpoint.explain(X, LAYOUT)
    assert found.shape == (len(X), len(LAYOUT.channels))
    assert found.sum(axis=1) + bias[rows, predicted] == pytest.approx(
        margins[rows, predicted], abs=1e-4
    )
    assert not found[:, ~LAYOUT.channels_of(mode)].any()  # type: ignore[arg-type]
    assert found.any()


@pytest.mark.parametrize("model", [name for name in MODELS if name != "gbt"])
def test_occlusion_is_what_the_model_says_without_the_channel(trained: Lab, model: str) -> None:
    checkpoint, X = opened(trained, model)
    found = checkpoint.explain(X, LAYOUT)
    channel = LAYOUT.channel_of("realistic", checkpoint.variant.spec.input_kind)
    rows = np.arange(len(X))
    proba = checkpoint.model.predict_proba(X)
    predicted = proba.argmax(axis=1)
    each = int(np.unique(channel)[0])
    occluded = X.copy()
    assert checkpoint.model.standardize_ is not None
    occluded[..., channel == each] = typical(checkpoint.model.standardize_)[channel == each]
    if isinstance(fitted := checkpoint.model, Ensemble):  # trees are not to miss anything
        pools, hidden = pooled(X, fitted.config.block_bins), np.tile(channel == each, POOLED)
        pools[:, hidden] = fitted.typical_[hidden]
        members = [fitted.net_.predict_proba(occluded), fitted.trees_.predict_proba(pools)]
        without = geometric_mean(members)[rows, predicted]
    else:
        without = checkpoint.model.predict_proba(occluded)[rows, predicted]
    before, after = (
        np.clip(p.astype(np.float64), 1e-6, 1 - 1e-6) for p in (proba[rows, predicted], without)
    )
    expected = np.log(before / (1 - before)) - np.log(after / (1 - after))
    assert found[:, each] == pytest.approx(expected, abs=1e-4)
    assert np.isfinite(found).all()
    assert not found[:, ~LAYOUT.channels_of("realistic")].any()


class Sum(Classifier):
    """Two classes; the second is likelier, the larger the sum of what is not missing."""

    input_kind = "summary"
    sidecar_suffix = ".none"

    def _fit(self, train: Any, val: Any, progress: Any) -> None: ...

    def _predict_proba(self, X: Any) -> NDArray[np.float32]:
        p = 1 / (1 + np.exp(-np.nan_to_num(X[:]).sum(axis=1)))
        return np.stack([1 - p, p], axis=1).astype(np.float32)

    def to_sidecar(self) -> bytes:
        return b""

    def restore(self, sidecar: Any, n_inputs: int, standardize: Any) -> None:  # noqa: ARG002
        self.n_inputs_, self.standardize_ = n_inputs, standardize

    def exported(self, n_timepoints: int) -> Any: ...


def test_a_channel_that_says_nothing_adds_nothing_and_all_together_leave_nothing() -> None:
    model = Sum(None, 2)
    model.restore(b"", 4, None)
    X = np.array([[2.0, 1.0, 0.0, np.nan], [-1.0, -2.0, 0.0, 0.0]], dtype=np.float32)
    found = model.contributions(X, np.array([0, 0, 2, 3]))
    assert found.shape == (2, 4)
    assert not found[:, 1:].any()
    assert found[:, 0] == pytest.approx([3, 3], abs=1e-5)  # the log-odds of the likelier class


def test_what_is_typical_is_the_median_or_scales_to_nothing() -> None:
    random = np.random.default_rng(0)
    X = random.lognormal(size=(400, 3)).astype(np.float32)
    X[:, 2] = np.nan
    pieces = typical(fit_piecewise_linear(X, 8))
    assert pieces[:2] == pytest.approx(np.median(X[:, :2], axis=0), rel=1e-5)
    assert np.isnan(pieces[2])
    odd = typical(fit_piecewise_linear(X, 7))
    assert odd[:2] == pytest.approx(np.median(X[:, :2], axis=0), rel=0.2)
    scaling = fit_scaling(X)
    assert np.isnan(typical(scaling)).all()
    assert not scale(typical(scaling)[None], scaling).any()


@pytest.mark.parametrize(("model", "method"), [("gbt", "exact"), ("cnn", "occlusion")])
def test_the_command_names_the_channels(
    trained: Lab, monkeypatch: pytest.MonkeyPatch, model: str, method: str
) -> None:
    monkeypatch.setenv("PHASEWATCH_STORE", str(trained.store.root))
    monkeypatch.setenv("PHASEWATCH_ARTIFACTS", str(trained.artifacts))
    folder = trained.workspace.checkpoint_folder(RECIPE)
    path = checkpoint_path(folder, find_variant(model, "realistic"))
    episode_id = trained.store.added[0].episode_id
    words = ["predict", episode_id, "--checkpoint", str(path), "--why"]
    told = CliRunner().invoke(app, [*words, "--json"])
    assert told.exit_code == OK
    said = json.loads(told.stdout)
    assert said["contributions"] == method

    project = trained.project
    checkpoint = phasewatch.load_checkpoint(project, RECIPE, model)
    reasons = phasewatch.explain(project, checkpoint, phasewatch.read_episode(project, episode_id))
    seen = {channel.name for channel in LAYOUT.channels if channel.deployable}
    assert set(reasons["channel"]) == seen
    assert reasons.height == len(said["windows"]) * len(seen)
    for number, window in enumerate(said["windows"]):
        of_window = reasons.filter(window=number)
        assert set(of_window["phase"]) == {window["phase"]}
        largest = of_window.filter(of_window["contribution"] > 0).head(5)
        assert [why["channel"] for why in window["why"]] == largest["channel"].to_list()
        assert [why["contribution"] for why in window["why"]] == pytest.approx(
            largest["contribution"].to_list(), abs=1e-3
        )
    shown = CliRunner().invoke(app, words).stdout
    assert said["windows"][0]["why"][0]["channel"] in shown
    assert (
        "why"
        not in json.loads(CliRunner().invoke(app, [*words[:-1], "--json"]).stdout)["windows"][0]
    )
