"""What every model of the registry promises, and the figures and scaling that training needs."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pytest
import torch
from builders import PROFILES, make_members, pack
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_info, threadpool_limits

import models.trainer
from episodes.reading import parse_episode
from features.extraction import extract
from features.registry import LAYOUT, MODES
from features.relative import episode_inputs, signed_log
from models.base import Classifier, Examples, NotFittedError, class_weights
from models.gbt import Gbt
from models.knn import condense, labelled_windows
from models.metrics import confusion_matrix, f1_by_class, macro_f1
from models.registry import MODELS, VARIANTS, Variant, find_variant, model_config
from models.scaling import (
    block_statistics,
    fit_piecewise_linear,
    fit_scaling,
    principal_axes,
    scale,
)

TINY: dict[str, dict[str, Any]] = lab.TINY["models"]
ABLE_TREES = {"n_rounds": 40, "learning_rate": 0.3, "min_child_weight": 0.1, "n_threads": 1}
ABLE_BY_LIBRARY: dict[str, dict[str, Any]] = {
    # small, and able to learn 64 windows by heart within a second
    "xgboost": ABLE_TREES,
    "torch": {
        "width": 16, "depth": 1, "epochs": 60, "batch_size": 16, "dropout": 0.0,
        "offset_noise": 0.0, "label_smoothing": 0.0, "learning_rate": 5e-3,
        "trees": ABLE_TREES,
    },
    "numpy": {"labelled_share": 1.0},
}  # fmt: skip
ABLE = {
    name: lab.settings_of(name, ABLE_BY_LIBRARY.get(spec.libraries[0], {}))
    for name, spec in MODELS.items()
}
WITH_NETS = [name for name, spec in MODELS.items() if "torch" in spec.libraries]
NETS = [name for name in WITH_NETS if MODELS[name].libraries == ("torch",)]
ON_WINDOWS = [name for name, spec in MODELS.items() if spec.input_kind == "tensor"]
each = pytest.mark.parametrize("name", MODELS)
quick = settings(deadline=None, max_examples=60, database=None)


def build(name: str, n_classes: int = 3, *, seed: int = 0, device: str = "cpu") -> Classifier:
    return MODELS[name].build(model_config(name, TINY[name]), n_classes, seed=seed, device=device)


def able(name: str, n_classes: int, **others: Any) -> Classifier:
    config = model_config(name, ABLE[name] | others)
    return MODELS[name].build(config, n_classes, seed=0, device="cpu")


def shape_of(name: str, n_windows: int, n_inputs: int) -> tuple[int, ...]:
    summary = MODELS[name].input_kind == "summary"
    return (n_windows, n_inputs) if summary else (n_windows, 12, n_inputs)


def make(name: str, n_classes: int = 3, n_windows: int = 48, n_inputs: int = 4) -> Examples:
    """Random windows of which every fourth value is missing, every class equally often."""
    random = np.random.default_rng([n_classes, n_windows, n_inputs])
    shape = shape_of(name, n_windows, n_inputs)
    X = random.lognormal(1.0, 2.0, shape).astype(np.float32)
    X[random.random(shape) < 0.25] = np.nan
    return Examples(X, np.arange(n_windows) % n_classes)


def assert_probabilities(proba: np.ndarray, n_windows: int, n_classes: int) -> None:
    assert proba.shape == (n_windows, n_classes)
    assert proba.dtype == np.float32
    assert (proba >= 0).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, atol=1e-5)


def assert_equal_predictions(name: str, one: np.ndarray, other: np.ndarray) -> None:
    if name not in WITH_NETS:
        np.testing.assert_array_equal(one, other)
    else:
        np.testing.assert_allclose(one, other, atol=1e-6)


# --- what settings do

OTHER: dict[str, dict[str, Any]] = {
    # model -> for every setting that is its own another value than ``base``
    "gbt": {
        "n_rounds": 9, "learning_rate": 0.5, "max_depth": 1, "min_child_weight": 9.0,
        "subsample": 0.3, "colsample_bynode": 1.0, "reg_lambda": 40.0, "max_bin": 4,
        "early_stopping_rounds": 1,
    },
    "mlp": {
        "width": 8, "depth": 1, "dropout": 0.0, "epochs": 9, "keep": "last", "patience": 1,
        "batch_size": 32, "learning_rate": 0.05, "weight_decay": 5.0, "warmup_share": 0.9,
        "clip_norm": 1e-3, "label_smoothing": 0.5, "offset_noise": 1.0, "n_pieces": 7,
    },
    "knn": {"n_neighbors": 3, "n_components": 1, "max_windows": 15, "limit": 0.1},
    "knn_semi": {"labelled_share": 0.9, "confidence": 1.0},
    "cnn": {"kernel": 3, "block_bins": 2, "limit": 0.1},
    "gru": {"depth": 2},
    "lstm": {"depth": 2},
    "transformer": {"n_heads": 1},
    "ensemble": {"trees": {"n_rounds": 2}},
}  # fmt: skip
BASE: dict[str, dict[str, Any]] = {
    "gbt": {"n_rounds": 60, "subsample": 0.7, "learning_rate": 0.3, "n_threads": 1},
    "knn": {"n_neighbors": 5, "n_components": 4},
    "knn_semi": {"labelled_share": 0.3, "confidence": 0.4, "n_neighbors": 5},
} | {
    name: {"width": 16, "epochs": 15 if name == "mlp" else 3, "patience": 15, "batch_size": 16}
    for name in WITH_NETS
}


def test_the_list_has_every_setting() -> None:
    own = {
        name: set(spec.config.__dataclass_fields__) - {"n_threads"} for name, spec in MODELS.items()
    }
    listed = {name: set(other) for name, other in OTHER.items()}
    for name, spec in MODELS.items():
        bases = [
            base for base in MODELS if base != name and MODELS[base].config in spec.config.__mro__
        ]
        shared = set().union(*(listed[base] for base in bases))
        if "torch" in MODELS[name].libraries:  # the trainer is one
            shared |= listed["mlp"] | listed["cnn"]
        assert own[name] - shared <= listed[name], name


@pytest.mark.parametrize(
    ("name", "setting"), [(name, each) for name, other in OTHER.items() for each in other]
)
def test_every_setting_changes_what_is_learned(name: str, setting: str) -> None:
    train, val = (separable(name, n_windows) for n_windows in (120, 60))
    for number, examples in enumerate((train, val)):  # to be learned, but not by heart
        examples.X[:] += np.random.default_rng(number).normal(0.0, 3.0, examples.X.shape)

    def learned(**others: Any) -> np.ndarray:
        config = model_config(name, BASE[name] | others)
        model = MODELS[name].build(config, 4, seed=3, device="cpu")
        return model.fit(train, val).predict_proba(val.X)

    assert not np.array_equal(learned(), learned(**{setting: OTHER[name][setting]}))


# --- the contract of every model


@each
@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize("n_inputs", [1, 4, 46])
def test_any_number_of_classes_and_inputs(name: str, n_classes: int, n_inputs: int):
    train = make(name, n_classes, n_inputs=n_inputs)
    model = build(name, n_classes).fit(train, make(name, n_classes, 15, n_inputs))
    assert_probabilities(model.predict_proba(train.X), len(train), n_classes)
    assert model.n_inputs_ == n_inputs
    assert 0.0 <= model.val_macro_f1_ <= 1.0


@each
def test_a_channel_that_is_all_missing_is_no_obstacle(name: str):
    train = make(name)
    train.X[..., 1] = np.nan
    model = build(name).fit(train)
    assert_probabilities(model.predict_proba(train.X), len(train), 3)
    everything_missing = np.full(shape_of(name, 5, 4), np.nan, dtype=np.float32)
    assert_probabilities(model.predict_proba(everything_missing), 5, 3)


@each
def test_values_at_the_ends_of_float32_are_no_obstacle(name: str):
    train = make(name)
    huge = np.finfo(np.float32).max
    train.X[:8, ..., 0], train.X[8:16, ..., 0], train.X[16:24, ..., 0] = huge, -huge, 1e-38
    model = build(name).fit(train, train)
    assert_probabilities(model.predict_proba(train.X), len(train), 3)
    unseen = np.full(shape_of(name, 2, 4), -huge, dtype=np.float32)
    assert_probabilities(model.predict_proba(unseen), 2, 3)


@each
def test_a_class_the_training_set_lacks_shifts_nothing(name: str):
    train = separable(name, labels=np.array([0, 2, 3]))
    model = able(name, 4).fit(train)
    proba = model.predict_proba(train.X)
    assert_probabilities(proba, len(train), 4)
    np.testing.assert_array_equal(proba.argmax(axis=1), train.y)
    assert proba[:, 1].max() < 0.2


@each
def test_a_val_set_of_unknown_classes_breaks_nothing(name: str):
    """Its losses go into a checkpoint's header, which can hold no NaN."""
    everything = make(name)
    known, unknown = everything.y < 2, everything.y == 2
    train = Examples(everything.X[known], everything.y[known])
    model = build(name).fit(train, Examples(everything.X[unknown], everything.y[unknown]))
    losses = [epoch.val_loss for epoch in model.history_.epochs if epoch.val_loss is not None]
    assert np.isfinite(losses).all()


@each
def test_no_window_gives_no_prediction(name: str):
    model = build(name).fit(make(name))
    assert_probabilities(model.predict_proba(make(name).X[:0]), 0, 3)


@each
def test_a_single_window_is_predicted_as_among_others(name: str):
    train = make(name)
    model = build(name).fit(train)
    together = model.predict_proba(train.X)
    alone = np.concatenate([model.predict_proba(train.X[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, together[:5], atol=1e-6)


@each
def test_predicting_before_fitting_is_refused(name: str):
    with pytest.raises(NotFittedError, match="is not fitted"):
        build(name).predict_proba(make(name).X)


@each
def test_a_fit_that_failed_is_no_fit(name: str, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any) -> None:
        raise RuntimeError("the machine caught fire")

    model = build(name)
    monkeypatch.setattr(model, "_fit", fails)
    with pytest.raises(RuntimeError, match="fire"):
        model.fit(make(name))
    with pytest.raises(NotFittedError):
        model.predict_proba(make(name).X)


@each
@pytest.mark.parametrize("n_inputs", [3, 5])
def test_inputs_of_another_width_are_refused(name: str, n_inputs: int):
    model = build(name).fit(make(name))
    with pytest.raises(ValueError, match=rf"with 4 inputs, got .* {n_inputs}\)$"):
        model.predict_proba(make(name, n_inputs=n_inputs).X)
    with pytest.raises(ValueError, match="val must have inputs"):
        build(name).fit(make(name), make(name, n_inputs=n_inputs))


@each
def test_inputs_of_another_kind_are_refused(name: str):
    other = next(n for n in MODELS if MODELS[n].input_kind != MODELS[name].input_kind)
    with pytest.raises(ValueError, match="axes"):
        build(name).fit(make(other))
    with pytest.raises(ValueError, match="axes"):
        build(name).fit(make(name)).predict_proba(make(other).X)


@each
@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("side", ["train", "val"])
def test_labels_out_of_range_are_refused(name: str, side: str, label: int):
    sides = {"train": make(name), "val": make(name)}
    sides[side].y[7] = label
    with pytest.raises(
        ValueError,
        match=rf"{side}.y must be in 0\.\.2, got -1 to 2|{side}.y must be in 0\.\.2, got 0 to 3",
    ):
        build(name).fit(**sides)


@each
def test_a_training_set_that_is_empty_or_of_two_lengths_is_refused(name: str):
    X, y = make(name).X, make(name).y
    with pytest.raises(ValueError, match="train must have windows"):
        build(name).fit(Examples(X[:0], y[:0]))
    with pytest.raises(ValueError, match="got 48 windows, 47 labels"):
        build(name).fit(Examples(X, y[:-1]))


@each
def test_training_works_without_a_val_set(name: str):
    train = make(name)
    nothing = Examples(train.X[:0], train.y[:0])
    without, with_empty = build(name).fit(train), build(name).fit(train, nothing)
    assert without.val_macro_f1_ is None
    curve = without.history_.epochs
    assert all(epoch.val_loss is None for epoch in curve)
    assert not curve or len(curve) == without.history_.best_step + 1
    assert_equal_predictions(
        name, without.predict_proba(train.X), with_empty.predict_proba(train.X)
    )


@each
def test_a_second_fit_forgets_the_first(name: str):
    train, other = make(name), make(name, n_inputs=6)
    model = build(name).fit(other, other).fit(train)
    assert model.val_macro_f1_ is None
    assert_equal_predictions(
        name, model.predict_proba(train.X), build(name).fit(train).predict_proba(train.X)
    )


@each
def test_training_and_predicting_change_no_input(name: str):
    train = make(name)
    before = train.X.copy(), train.y.copy()
    build(name).fit(train, train).predict_proba(train.X)
    np.testing.assert_array_equal(train.X, before[0])
    np.testing.assert_array_equal(train.y, before[1])


@each
def test_the_seed_decides_everything(name: str):
    def predictions_of(seed: int, around: int) -> np.ndarray:
        torch.manual_seed(around)
        np.random.seed(around)
        return build(name, seed=seed).fit(train, train).predict_proba(train.X)

    train = make(name)
    one, again, other = (predictions_of(*seeds) for seeds in ((1, 1), (1, 2), (2, 1)))
    assert_equal_predictions(name, one, again)
    if name != "knn":  # which draws nothing
        assert not np.allclose(one, other, atol=1e-4)


@each
def test_training_leaves_the_random_state_of_others_alone(name: str):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build(name).fit(make(name))
    assert torch.equal(torch.rand(3), expected)


@each
def test_progress_is_reported_step_by_step(name: str):
    calls: list[tuple[int, int, str]] = []
    build(name).fit(make(name), make(name), lambda *call: calls.append(call))
    assert calls
    steps = [step for step, _, _ in calls]
    steps_of = TINY[name].get("n_rounds") or TINY[name].get("epochs", 1)
    if name == "ensemble":  # its trees are ten steps after the epochs, however many there are
        steps_of += 10
        assert steps == sorted(steps)
    else:
        assert steps == sorted(set(steps))
    assert {total for _, total, _ in calls} == {steps_of}
    assert all(0 < step <= total and text for step, total, text in calls)


@pytest.mark.parametrize("name", NETS)
def test_a_long_epoch_says_how_far_it_is(name: str, monkeypatch: pytest.MonkeyPatch):
    said: list[tuple[int, int, str]] = []
    monkeypatch.setattr(models.trainer, "EVERY_S", 0.0)
    build(name).fit(make(name, n_windows=128), progress=lambda *line: said.append(line))
    n_epochs = TINY[name]["epochs"]
    within = [line for line in said if line[2].startswith("epoch ")]
    assert [done for done, _, _ in within] == [epoch for epoch in range(n_epochs) for _ in "12"]
    assert {total for _, total, _ in said} == {n_epochs}
    assert within[1][2].startswith("epoch 1: 1 of 2, ")
    assert "left" in within[1][2]
    assert len(said) == len(within) + n_epochs


@each
def test_the_learning_curve_says_where_training_stopped(name: str):
    model = build(name).fit(make(name), make(name))
    history = model.history_
    assert [epoch.step for epoch in history.epochs] == list(range(len(history.epochs)))
    assert 0 <= history.best_step < max(1, len(history.epochs))
    assert all(np.isfinite([e.train_loss, e.val_loss]).all() for e in history.epochs)


# --- learning


def separable(name: str, n_windows: int = 64, labels: np.ndarray | None = None) -> Examples:
    """Windows whose class is the only channel that is high."""
    random = np.random.default_rng(5)
    labels = np.arange(4) if labels is None else labels
    y = labels[np.arange(n_windows) % len(labels)]
    X = random.normal(1.0, 0.3, shape_of(name, n_windows, 4)).astype(np.float32)
    for window, label in enumerate(y):
        X[window, ..., label] += 5.0
    return Examples(X, y)


@each
def test_separable_windows_are_learned_by_heart(name: str):
    train = separable(name)
    model = able(name, 4).fit(train)
    np.testing.assert_array_equal(model.predict_proba(train.X).argmax(axis=1), train.y)


def synthetic_episodes(which: Variant, seeds: range) -> Examples:
    """The windows of one made-up episode a seed."""
    kind = which.spec.input_kind
    keep = LAYOUT.keep_mask(which.mode, kind)
    inputs, labels = [], []
    for seed in seeds:
        members = make_members("lab-a", "X", 50.0, profile=PROFILES[seed % 6], seed=seed)
        got = extract(parse_episode(pack("X", members), "X", LAYOUT.fields), LAYOUT)
        inputs.append(episode_inputs(kind, got.series, got.features, LAYOUT)[..., keep])
        labels += [LAYOUT.phases.index(label) for label in got.windows.label]
    return Examples(np.concatenate(inputs), np.array(labels))


@each
@pytest.mark.parametrize("mode", MODES)
def test_eight_episodes_are_learned_by_heart(name: str, mode: Any):
    train = synthetic_episodes(Variant(name, mode), range(8))
    model = able(name, len(LAYOUT.phases)).fit(train)
    np.testing.assert_array_equal(model.predict_proba(train.X).argmax(axis=1), train.y)


@pytest.mark.parametrize(
    ("name", "load"),
    [(name, load_digits) for name in MODELS]
    + [(n, load) for n in MODELS if n not in ON_WINDOWS for load in (load_iris, load_wine)],
)
def test_tables_from_elsewhere_are_learned(name: str, load: Any):
    """Nothing is made for our channels alone: scikit-learn's sets, digits as 8 x 8 windows too."""
    tensor = MODELS[name].input_kind == "tensor"
    X, y = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))[:300]
    X, y = X[order].astype(np.float32), y[order].astype(np.int64)
    X, cut = X.reshape(-1, 8, 8) if tensor else X, len(X) * 4 // 5
    fewer = {"batch_size": 32, "epochs": 25} if name in WITH_NETS else {}
    model = able(name, y.max() + 1, **fewer).fit(Examples(X[:cut], y[:cut]))
    accuracy = np.mean(model.predict_proba(X[cut:]).argmax(axis=1) == y[cut:])
    assert accuracy > (0.7 if load is load_digits else 0.85)


@pytest.mark.parametrize("name", ON_WINDOWS)
def test_windows_from_elsewhere_are_learned(name: str):
    """BasicMotions of the UEA archive, bundled with aeon: 100 timepoints of six channels."""
    sets = np.load(Path(__file__).parent / "data" / "basic_motions.npz")
    model = able(name, 4).fit(Examples(sets["X_train"], sets["y_train"]))
    accuracy = np.mean(model.predict_proba(sets["X_test"]).argmax(axis=1) == sets["y_test"])
    assert accuracy > 0.85


def test_a_training_set_that_does_not_fit_in_memory_is_learned_equally(
    monkeypatch: pytest.MonkeyPatch,
):
    train = make("cnn")
    expected = build("cnn").fit(train, train).predict_proba(train.X)
    monkeypatch.setattr(models.trainer, "IN_MEMORY_BYTES", 0)
    got = build("cnn").fit(train, train).predict_proba(train.X)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def epochs_of(examples: Examples, batch_size: int, room: int) -> list[list[tuple[Any, Any]]]:
    """Two epochs of mini-batches ``(inputs, y)``, unscaled."""
    n_columns = examples.X.shape[-1]
    scaling = {
        "transform": "signed_log1p", "block_bins": 1, "limit": None,
        "mean": [0.0] * n_columns, "std": [1.0] * n_columns,
    }  # fmt: skip
    batches = models.trainer._Batches(examples, scaling, torch.device("cpu"), room)
    shuffling = torch.Generator().manual_seed(3)
    epochs = [list(batches.shuffled(batch_size, shuffling)) for _ in range(2)]
    assert {len(epoch) for epoch in epochs} == {batches.n_steps(batch_size)}
    in_order = torch.cat(list(batches.in_order()))
    np.testing.assert_allclose(in_order[:, 0], np.log1p(examples.X[:][:, 0]), rtol=1e-6)
    return epochs


@pytest.mark.parametrize("n_windows", [16, 17, 33, 100, 101, 129])
def test_windows_in_a_file_are_shuffled_within_a_few_blocks(
    n_windows: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models.trainer, "_BLOCK", 4)
    monkeypatch.setattr(models.trainer, "_BUFFER", 4)
    X = np.arange(2 * n_windows, dtype=np.float32).reshape(-1, 2)
    examples = Examples(X, np.arange(n_windows) % 3)
    inputs = [
        [torch.cat([part[i] for part in epoch]).numpy() for i in range(2)]
        for epoch in epochs_of(examples, 5, room=0)
    ]
    orders = [np.rint(np.expm1(each[:, 0]) / 2).astype(int) for each, _ in inputs]
    for order, (_, y) in zip(orders, inputs, strict=True):
        np.testing.assert_array_equal(np.sort(order), np.arange(n_windows))
        np.testing.assert_array_equal(y, order % 3)
    assert orders[0].tolist() != orders[1].tolist()
    again = epochs_of(examples, 5, room=0)
    for (expected, _), epoch in zip(inputs, again, strict=True):
        np.testing.assert_array_equal(torch.cat([x for x, _ in epoch]), expected)
    sizes = [len(x) for x, _ in again[0]]
    assert max(sizes) <= 5
    assert min(sizes) > 1
    if n_windows <= 16:  # one buffer
        whole = epochs_of(examples, 5, room=2**20)
        np.testing.assert_array_equal(torch.cat([x for x, _ in whole[0]]), inputs[0][0])
    if n_windows >= 100:  # a mini-batch is of distant windows, not of neighbours alone
        first = orders[0][: sizes[0]]
        assert len(np.unique(first // 4)) > 1


@pytest.mark.parametrize("name", NETS)
def test_a_single_window_left_over_is_no_obstacle(name: str):
    """Batch normalisation cannot normalise one window."""
    train = make(name, n_windows=2 * 8 + 1)
    config = model_config(name, TINY[name] | {"batch_size": 8})
    model = MODELS[name].build(config, 3, device="cpu").fit(train)
    assert_probabilities(model.predict_proba(train.X), len(train), 3)
    with pytest.raises(ValueError, match="at least two windows"):
        build(name).fit(make(name, n_windows=1))


def with_epochs(name: str, **others: Any) -> Classifier:
    return MODELS[name].build(model_config(name, TINY[name] | others), 3, device="cpu")


@pytest.mark.parametrize("name", NETS)
def test_where_the_last_weights_stay_validation_decides_nothing(name: str):
    train, val = make(name), make(name, n_windows=9)
    with_val, without = (
        with_epochs(name, keep="last", patience=1, epochs=4).fit(train, *rest)
        for rest in ((val,), ())
    )
    np.testing.assert_array_equal(with_val.predict_proba(val.X), without.predict_proba(val.X))
    assert len(with_val.history_.epochs) == 4
    assert with_val.history_.best_step == without.history_.best_step == 3
    assert with_val.history_.epochs[-1].val_macro_f1 == with_val.val_macro_f1_


@pytest.mark.parametrize("name", NETS)
def test_a_net_stops_when_validation_is_no_better_and_keeps_the_best_epoch(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """Validation is best after the third epoch; the first of equals counts."""
    told = [0.1, 0.3, 0.6, 0.5, 0.6, 0.2, 0.9]
    seen: list[np.ndarray] = []
    judged = models.trainer._probabilities

    def remembered(*given: Any) -> np.ndarray:
        seen.append(judged(*given))
        return seen[-1]

    monkeypatch.setattr(models.trainer, "_probabilities", remembered)
    monkeypatch.setattr(models.trainer, "macro_f1", lambda *_: told[len(seen) - 1])
    train, val = make(name), make(name, n_windows=9)
    model = with_epochs(name, patience=3, epochs=7).fit(train, val)
    scores = [epoch.val_macro_f1 for epoch in model.history_.epochs]
    assert scores == told[:6]
    assert model.history_.best_step == 2
    np.testing.assert_array_equal(model.predict_proba(val.X), seen[2])
    assert not np.array_equal(seen[2], seen[5])


@pytest.mark.parametrize("name", ["gbt", *NETS])
def test_a_rare_class_counts_as_much_as_a_common_one(name: str):
    """Inputs are all alike here: the best guess is then one half each, not nine to one."""
    X = np.ones(shape_of(name, 200, 2), dtype=np.float32)
    y = (np.arange(200) % 10 == 0).astype(np.int64)
    fewer = {"epochs": 10} if name in WITH_NETS else {}
    model = able(name, 2, **fewer).fit(Examples(X, y))
    assert model.predict_proba(X)[:, 1].mean() == pytest.approx(0.5, abs=0.15)


def test_classes_weigh_equally_in_total():
    y = np.array([0, 0, 0, 0, 0, 0, 2, 2, 3])
    weights = class_weights(y, 5)
    totals = np.bincount(y, weights[y], minlength=5)
    np.testing.assert_allclose(totals, [3, 0, 3, 3, 0], rtol=1e-6)
    assert weights[1] == weights[4] == 0


# --- devices and hyperparameters


@pytest.mark.parametrize("name", ["knn", "knn_semi"])
def test_what_trains_on_the_cpu_asks_for_no_device(name: str, caplog: pytest.LogCaptureFixture):
    assert build(name, device="auto").fit(make(name)).device_ == "cpu"
    assert not caplog.records


without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


@pytest.mark.parametrize("name", [name for name in MODELS if build(name).trains_on_cuda])
@without_cuda
def test_a_device_that_is_asked_for_and_missing_is_an_error(name: str):
    with pytest.raises(RuntimeError, match="device cuda is not available; use auto or cpu"):
        build(name, device="cuda").fit(make(name))


@pytest.mark.parametrize("name", [name for name in MODELS if build(name).trains_on_cuda])
@without_cuda
def test_auto_falls_back_to_the_cpu_with_a_warning(name: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "phasewatch"):
        model = build(name, device="auto").fit(make(name))
    assert "CPU" in caplog.text
    expected = build(name, device="cpu").fit(make(name)).predict_proba(make(name).X)
    assert_equal_predictions(name, model.predict_proba(make(name).X), expected)


@each
def test_an_unknown_device_is_an_error(name: str):
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'tpu'"):
        build(name, device="tpu").fit(make(name))


@pytest.mark.parametrize(
    ("name", "given", "near"),
    [
        ("gbt", "n_round", "n_rounds"),
        ("gbt", "learningrate", "learning_rate"),
        ("cnn", "batchsize", "batch_size"),
        ("cnn", "epoch", "epochs"),
    ],
)
def test_an_unknown_hyper_parameter_names_the_nearest(name: str, given: str, near: str):
    message = f"{name}: no setting '{given}'; did you mean {near}?"
    with pytest.raises(ValueError) as caught:
        model_config(name, {given: 3})
    assert str(caught.value) == message


def test_an_unknown_hyper_parameter_near_to_none_names_all():
    with pytest.raises(ValueError, match="choose from n_rounds, learning_rate, "):
        model_config("gbt", {"xyzzy": 1})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("gbt", {"n_rounds": 40.0}, "gbt.n_rounds must be an integer, got 40.0"),
        ("gbt", {"n_rounds": "40"}, "gbt.n_rounds must be an integer, got '40'"),
        ("gbt", {"n_rounds": True}, "gbt.n_rounds must be an integer, got True"),
        ("cnn", {"dropout": "a lot"}, "cnn.dropout must be a number, got 'a lot'"),
        ("cnn", {"dropout": False}, "cnn.dropout must be a number, got False"),
        ("cnn", {"epochs": None}, "cnn.epochs must be an integer, got None"),
    ],
)
def test_a_hyper_parameter_of_another_type_is_named(name: str, values: dict, message: str):
    with pytest.raises(ValueError) as caught:
        model_config(name, values)
    assert str(caught.value) == message


def test_hyper_parameters_not_given_have_defaults_and_whole_numbers_are_floats():
    assert model_config("gbt", {}) == MODELS["gbt"].config()
    assert model_config("cnn", {"weight_decay": 0}).weight_decay == 0


def test_every_model_has_a_variant_a_mode():
    assert [which.name for which in VARIANTS] == [f"{n}_{mode}" for n in MODELS for mode in MODES]
    assert find_variant("cnn", "oracle") == Variant("cnn", "oracle")
    with pytest.raises(ValueError, match=r"^model must be one of gbt, mlp, .*, got 'svm'$"):
        find_variant("svm", "oracle")


# --- figures, against scikit-learn


def predictions() -> st.SearchStrategy[tuple[list[int], list[int]]]:
    pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)
    return pairs.map(lambda p: ([a for a, _ in p], [b for _, b in p]))


@quick
@given(predictions())
def test_figures_are_those_of_scikit_learn(given_pairs: tuple[list[int], list[int]]):
    actual, predicted = map(np.array, given_pairs)
    roster = np.unique(actual)
    confusion = confusion_matrix(actual, predicted, 5)
    np.testing.assert_array_equal(confusion, sklearn_confusion(actual, predicted, labels=range(5)))
    by_class = f1_score(actual, predicted, labels=range(5), average=None, zero_division=np.nan)
    np.testing.assert_allclose(f1_by_class(confusion), by_class)
    expected = f1_score(actual, predicted, labels=roster, average="macro", zero_division=0)
    assert macro_f1(actual, predicted, 5) == pytest.approx(expected)


def test_a_class_that_is_only_predicted_is_not_averaged_in():
    actual, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    assert macro_f1(actual, predicted, 3) == pytest.approx((2 / 3 + 1) / 2)
    assert f1_by_class(confusion_matrix(actual, predicted, 3))[2] == 0
    assert np.isnan(f1_by_class(confusion_matrix(actual, predicted, 4))[3])


# --- scaling


def test_one_value_alone_is_its_column_s_mean():
    X = np.full((5, 2), np.nan, dtype=np.float32)
    X[:, 0], X[3, 1] = [1, 2, 3, 4, 5], np.e - 1
    scaling = fit_scaling(X)
    assert scaling["mean"][1] == pytest.approx(1.0)
    assert scaling["std"][1] == 1.0


@pytest.mark.parametrize("shape", [(50, 6), (10, 5, 6)])
def test_scaled_inputs_have_no_missing_value_mean_0_and_deviation_1(shape: tuple[int, ...]):
    random = np.random.default_rng(0)
    X = (random.lognormal(3, 3, shape) * random.choice([-1, 1], shape)).astype(np.float32)
    missing = random.random(shape) < 0.2
    X[missing] = np.nan
    scaled = scale(X, fit_scaling(X))
    assert scaled.dtype == np.float32
    assert (scaled[missing] == 0).all()
    for channel in range(6):
        there = scaled[..., channel][~missing[..., channel]]
        assert there.mean() == pytest.approx(0, abs=1e-5)
        assert there.std() == pytest.approx(1, abs=1e-5)


def test_scaling_is_that_of_the_signed_logarithm():
    X = np.array([[-10.0], [0.0], [np.nan], [1e9]], dtype=np.float32)
    values = np.array([-np.log(11), 0, np.log(1 + 1e9)])
    scaling = fit_scaling(X)
    assert scaling["transform"] == "signed_log1p"
    assert scaling["mean"] == pytest.approx([values.mean()])
    assert scaling["std"] == pytest.approx([values.std()])


def test_the_blocks_of_a_large_training_set_do_not_show(monkeypatch: pytest.MonkeyPatch):
    X = np.random.default_rng(0).normal(3.0, 2.0, (100, 3)).astype(np.float32)
    whole, whole_axes = fit_scaling(X), principal_axes(X)
    monkeypatch.setattr(models.scaling, "_BLOCK", 7)
    assert fit_scaling(X)["mean"] == pytest.approx(whole["mean"])
    assert fit_scaling(X)["std"] == pytest.approx(whole["std"])
    np.testing.assert_allclose(principal_axes(X), whole_axes, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e8, 3e38])
def test_a_constant_channel_carries_nothing_and_is_not_blown_up(value: float):
    X = np.full((1000, 2), value, dtype=np.float32)
    X[:, 1] = np.nan
    scaling = fit_scaling(X)
    assert scaling["std"] == [1.0, 1.0]
    np.testing.assert_allclose(scale(X, scaling), 0.0, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = scale(np.array([[value + 1, 5.0]], dtype=np.float32), scaling)
    assert np.isfinite(other).all()


def test_scaling_is_fitted_on_the_training_set_alone():
    train, val = make("cnn"), make("cnn")
    val.X[:] *= 1e6
    alone, beside = build("cnn").fit(train), build("cnn").fit(train, val)
    assert alone.standardize_ == beside.standardize_
    assert alone.standardize_ == fit_scaling(train.X, block_bins=5, limit=1.5)


def test_principal_axes_are_the_same_however_many_threads_there_are():
    """The header holds them, and is to be equal on a machine with more cores."""
    X = np.random.default_rng(0).normal(size=(600, 230)).astype(np.float32)
    with threadpool_limits(1):
        alone = principal_axes(X)
    with threadpool_limits(2):
        np.testing.assert_array_equal(principal_axes(X), alone)


@each
def test_within_one_thread_a_model_says_the_same(name: str):
    train = make(name)
    model = able(name, 3, **lab.settings_of(name, {"n_threads": 2})).fit(train)
    configured, before = model.config, model.predict_proba(train.X)
    with model.one_thread():
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
        assert getattr(model.config, "n_threads", 1) == 1
        np.testing.assert_allclose(model.predict_proba(train.X), before, atol=1e-6)
        if isinstance(model, Gbt):
            assert gbt_threads(model) == "1"
    assert model.config == configured
    if isinstance(model, Gbt):
        assert gbt_threads(model) == "2"


def gbt_threads(model: Gbt) -> str:
    return json.loads(model.booster_.save_config())["learner"]["generic_param"]["nthread"]


@pytest.mark.parametrize("shape", [(60, 5), (60, 4, 5)])
def test_principal_axes_are_those_of_the_scaled_means_per_window(shape: tuple[int, ...]):
    random = np.random.default_rng(3)
    X = (random.normal(size=shape) @ random.normal(size=(5, 5))).astype(np.float32)
    axes = principal_axes(X)
    assert axes.shape == (5, 2)
    np.testing.assert_allclose(axes.T @ axes, np.eye(2), atol=1e-5)
    largest = np.abs(axes).argmax(axis=0)
    assert (axes[largest, [0, 1]] > 0).all()
    rows = scale(X.copy(), fit_scaling(X)).reshape(60, -1, 5).mean(axis=1)
    expected = np.linalg.svd(rows - rows.mean(axis=0))[2][:2]
    np.testing.assert_allclose(np.abs(np.sum(axes.T * expected, axis=1)), 1.0, atol=1e-4)
    np.testing.assert_array_equal(principal_axes(X), axes)


def test_one_input_has_one_axis():
    axes = principal_axes(np.arange(6, dtype=np.float32)[:, None])
    np.testing.assert_array_equal(axes, [[1.0, 0.0]])


def test_the_signed_logarithm_keeps_sign_order_and_zero():
    values = np.array([-1e30, -1.0, 0.0, 1e-3, 1e30])
    logs = signed_log(values)
    assert (np.diff(logs) > 0).all()
    assert logs[2] == 0
    np.testing.assert_allclose(logs, -signed_log(-values))


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("gbt", {"n_rounds": -5}, "n_rounds must be above 0, got -5"),
        ("gbt", {"learning_rate": float("nan")}, "learning_rate must be finite, got nan"),
        ("gbt", {"subsample": 1.5}, "subsample must be at most 1, got 1.5"),
        ("cnn", {"epochs": 0}, "epochs must be above 0, got 0"),
        ("cnn", {"dropout": -0.1}, "dropout must be at least 0, got -0.1"),
        ("cnn", {"kernel": 4}, "kernel must be odd, got 4"),
        ("transformer", {"n_heads": 5}, "must be a multiple of twice n_heads"),
        ("mlp", {"n_pieces": 33}, "n_pieces must be at most 32, got 33"),
        ("knn_semi", {"labelled_share": 1.2}, "labelled_share must be at most 1, got 1.2"),
    ],
)
def test_a_hyper_parameter_out_of_range_is_named(name: str, values: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        model_config(name, values)
    assert model_config("cnn", {"offset_noise": 0.0, "label_smoothing": 0.0}).offset_noise == 0


# --- inputs condensed to steps, and cut into pieces


def test_block_statistics_are_those_of_what_is_there():
    random = np.random.default_rng(1)
    X = random.normal(100.0, 30.0, (6, 23, 3))  # the last block is cut off
    X[random.random(X.shape) < 0.4] = np.nan
    X[0, :5, 0] = np.nan
    got = block_statistics(X, 5)
    assert got.shape == (6, 5, 6)
    for step in range(5):
        cut = X[:, 5 * step : 5 * step + 5]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.concatenate([np.nanmean(cut, axis=1), np.nanstd(cut, axis=1)], axis=1)
        np.testing.assert_allclose(got[:, step], expected, atol=1e-9)
    assert np.isnan(got[0, 0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block_bins", [2, 5, 7])
def test_block_statistics_are_the_same_without_a_compiler(
    block_bins: int, dtype: type, monkeypatch: pytest.MonkeyPatch
):
    random = np.random.default_rng(0)
    X = (random.normal(size=(50, 33, 6)) * 10 ** random.uniform(-3, 9, 6)).astype(dtype)
    X[random.random(X.shape) < 0.3] = np.nan
    X[:, 4:20, 2] = np.nan
    X[:, :, 3] = 7.0
    compiled = block_statistics(X, block_bins)
    monkeypatch.setattr(models.scaling, "COMPILES", False)
    assert compiled.tobytes() == block_statistics(X, block_bins).tobytes()


def test_values_beyond_what_training_saw_saturate():
    train = np.random.default_rng(0).lognormal(5, 1, (200, 20, 2)).astype(np.float32)
    scaling = fit_scaling(train, block_bins=5, limit=1.5)
    far = scale(1e6 * train[:1], scaling)
    assert far.shape == (1, 4, 4)
    assert (far == 1.5).all()
    pieces = fit_piecewise_linear(train[:, 0], 4)
    edge, beyond = train[:, 0].max(axis=0, keepdims=True), np.full((1, 2), 1e30, dtype=np.float32)
    np.testing.assert_array_equal(scale(edge, pieces), scale(beyond, pieces))


def test_pieces_hold_equally_many_values_and_are_linear_within():
    X = np.arange(101, dtype=np.float32)[:, None]
    scaling = fit_piecewise_linear(X, 4)
    assert scaling["edges"] == [[0, 25, 50, 75, 100]]
    mean = np.array(scaling["mean"])
    values = scale(np.array([[0.0], [30.0], [100.0], [np.nan]], dtype=np.float32), scaling)
    np.testing.assert_allclose(values[0], -mean / 0.4, atol=1e-6)
    np.testing.assert_allclose(values[1], ([1, 0.2, 0, 0] - mean) / 0.4, atol=1e-6)
    np.testing.assert_allclose(values[2], (1 - mean) / 0.4, atol=1e-6)
    assert (values[3] == 0).all()


def test_an_input_that_never_varied_says_nothing_later():
    X = np.array([[3.0, np.nan, 0.0]] * 7 + [[3.0, np.nan, 1.0]], dtype=np.float32)
    scaling = fit_piecewise_linear(X, 2)
    values = scale(np.array([[9.0, 9.0, 0.0], [-9.0, -9.0, 0.0]], dtype=np.float32), scaling)
    np.testing.assert_array_equal(values[:, :4], 0.0)
    json.dumps(scaling, allow_nan=False)


# --- nearest neighbours


def test_neighbours_and_votes_are_those_of_scikit_learn():
    random = np.random.default_rng(2)
    train = Examples(random.normal(size=(300, 6)).astype(np.float32), random.integers(0, 3, 300))
    model = MODELS["knn"].build(model_config("knn", {"n_components": 6}), 3).fit(train)
    scaled = scale(train.X, model.standardize_)
    theirs = KNeighborsClassifier(10, weights="distance", algorithm="brute").fit(scaled, train.y)
    X = random.normal(size=(70, 6)).astype(np.float32)
    expected = theirs.predict_proba(scale(X, model.standardize_))
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-5)


def test_what_is_stored_is_bounded_and_keeps_the_small_classes():
    y = np.repeat([0, 1, 2], [1000, 30, 200])
    kept = condense(y, 330, 4, seed=0)
    np.testing.assert_array_equal(np.bincount(y[kept]), [150, 30, 150])
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(condense(y, 5000, 4, seed=0), np.arange(len(y)))
    model = MODELS["knn"].build(model_config("knn", {"max_windows": 20}), 3).fit(make("knn"))
    assert len(model.points_) <= 20


def episodes_of(n_episodes: int, degraded: int = 0) -> Examples:
    """Five windows an episode; class and profile differ from episode to episode."""
    random = np.random.default_rng(0)
    episode = np.repeat(np.arange(n_episodes), 5)
    X = random.normal(size=(len(episode), 4)).astype(np.float32)
    y = episode % 3
    X[np.arange(len(y)), y] += 4.0
    return Examples(X, y, episode, episode % 4, episode >= n_episodes - degraded)


def test_the_labelled_fifth_covers_every_class_and_profile_and_no_degraded_episode():
    train = episodes_of(60, degraded=20)
    labelled = labelled_windows(train, 0.2, seed=3)
    chosen = np.unique(train.episode[labelled])
    assert len(chosen) == 12
    assert labelled.sum() == 5 * 12  # whole episodes
    assert set(train.y[labelled]) == {0, 1, 2}
    assert set(train.profile[labelled]) == {0, 1, 2, 3}
    assert chosen.max() < 40
    small = labelled_windows(train, 0.01, seed=3)  # one episode would not cover them
    assert (set(train.y[small]), set(train.profile[small])) == ({0, 1, 2}, {0, 1, 2, 3})
    with pytest.raises(ValueError, match="at least one episode that is not degraded"):
        labelled_windows(episodes_of(4, degraded=4), 0.2, seed=0)


def test_pseudo_labels_come_from_the_labelled_alone_and_only_where_they_are_sure():
    train = episodes_of(60, degraded=20)
    config = model_config("knn_semi", {"n_components": 4})
    model = MODELS["knn_semi"].build(config, 3).fit(train)
    labelled = labelled_windows(train, 0.2, seed=0)
    lied = Examples(
        train.X, np.where(labelled, train.y, 0), train.episode, train.profile, train.degraded
    )
    blind = MODELS["knn_semi"].build(config, 3).fit(lied)
    np.testing.assert_array_equal(model.pseudo_y_, blind.pseudo_y_)
    alone = model.ablations(train.X)["labels_alone"]
    sure = alone[~labelled].max(axis=1) >= 0.6
    assert 0 < sure.sum() < (~labelled).sum()
    assert len(model.pseudo_y_) == sure.sum()
    np.testing.assert_array_equal(model.pseudo_y_, alone[~labelled].argmax(axis=1)[sure])
    again = MODELS["knn_semi"].build(config, 3)
    again.restore(model.to_sidecar(), 4, model.standardize_)
    np.testing.assert_array_equal(again.ablations(train.X)["labels_alone"], alone)
    np.testing.assert_array_equal(again.predict_proba(train.X), model.predict_proba(train.X))
    assert not np.allclose(alone, model.predict_proba(train.X))
