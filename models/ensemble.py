"""A transformer and boosted trees on the same windows, averaged."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load, save

from models.base import Classifier, Epoch, Exported, History, blocks
from models.gbt import Gbt
from models.metrics import macro_f1
from models.pooling import POOLED, check_typical, geometric_mean, pooled
from models.transformer import Transformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from models.base import Examples, Inputs
    from models.hyperparameters import EnsembleConfig

_BLOCK = 1024
_IN_MEMORY_BYTES = 2**28  # of pooled rows; more are pooled again whenever the trees ask for them
_TREE_STEPS = 10  # of progress: with default settings the trees take as long as ten epochs
_TYPICAL_WINDOWS = 100_000  # windows that medians are taken of, spread evenly


class Ensemble(Classifier):
    """The geometric mean of a ``Transformer`` and of trees on ``pooling.pooled`` windows.

    They err on different windows of a machine or a day that neither has seen.
    """

    input_kind = "tensor"
    sidecar_suffix = ".safetensors"
    config: EnsembleConfig

    def _fit(
        self,
        train: Examples,
        val: Examples | None,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self._build(self.device_)
        n_steps = self.config.epochs + _TREE_STEPS
        self.net_.fit(
            train, val, lambda step, _, text: progress(step, n_steps, text), self._bookmark
        )
        self._take_scaling()
        rows = self._pooled(train)
        every = max(1, len(train) // _TYPICAL_WINDOWS)
        self.typical_ = _medians(rows.X[::every])

        def grown(n: int, of: int, text: str) -> None:
            step = self.config.epochs + n * _TREE_STEPS // of
            progress(step, n_steps, f"trees: {n} of {of}, {text}")

        self.trees_.fit(rows, None if val is None else self._pooled(val), grown)
        self.history_ = self._whole_history(train, val)

    def _build(self, device: str) -> None:
        self.net_ = Transformer(self.config, self.n_classes, seed=self.seed, device=device)
        self.trees_ = Gbt(self.config.trees, self.n_classes, seed=self.seed, device=device)

    def _take_scaling(self) -> None:
        scaling = self.net_.standardize_
        if scaling is None or "block_bins" not in scaling:
            raise ValueError("standardize must be that of windows")
        self.standardize_ = scaling
        self._block_bins: int = scaling["block_bins"]

    def _pooled(self, examples: Examples) -> Examples:
        rows = _PooledRows(examples.X, self._block_bins)
        few = 4 * len(rows) * rows.shape[1] <= _IN_MEMORY_BYTES
        return replace(examples, X=rows[:] if few else rows)

    def _whole_history(self, train: Examples, val: Examples | None) -> History:
        """The net's epochs, then a step for both members together, which is what is kept."""
        history, step = self.net_.history_, len(self.net_.history_.epochs)
        train_loss, _ = self._scored(train)
        val_loss, score = (None, None) if val is None else self._scored(val)
        whole = Epoch(step, train_loss, val_loss, score)
        return History([*history.epochs, whole], step, history.resumed_from)

    def _scored(self, examples: Examples) -> tuple[float, float]:
        """Log loss and macro F1."""
        proba = self._predict_proba(examples.X)
        actual = proba[np.arange(len(examples)), examples.y].astype(np.float64)
        loss = float(-np.log(np.maximum(actual, 1e-12)).mean())
        return loss, macro_f1(examples.y, proba.argmax(axis=1), self.n_classes)

    def _predict_proba(self, X: Inputs) -> NDArray[np.float32]:
        return np.concatenate(
            [self._mean(block, pooled(block, self._block_bins)) for block in blocks(X, _BLOCK)]
        )

    def _mean(self, X: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return geometric_mean([self.net_._predict_proba(X), self.trees_._predict_proba(rows)])

    def _proba_without(
        self, X: NDArray[np.float32], hidden: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Missing values are the training mean to the net, but not to the trees."""
        rows, hidden_rows = pooled(X, self._block_bins), np.tile(hidden, POOLED)
        rows[:, hidden_rows] = self.typical_[hidden_rows]
        return self._mean(np.where(hidden, np.float32(np.nan), X), rows)

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        with super().one_thread(), self.net_.one_thread(), self.trees_.one_thread():
            yield

    def to_sidecar(self) -> bytes:
        """The sidecars of both, as bytes in one file, with what is typical of training."""
        members = {"net": self.net_, "trees": self.trees_}
        parts = {n: np.frombuffer(m.to_sidecar(), dtype=np.uint8) for n, m in members.items()}
        return save(parts | {"typical": self.typical_})

    def restore(self, sidecar: bytes, n_inputs: int, standardize: dict[str, Any] | None) -> None:
        parts = load(sidecar)
        forms = {name: (str(part.dtype), part.ndim) for name, part in parts.items()}
        if forms != {"net": ("uint8", 1), "trees": ("uint8", 1), "typical": ("float32", 1)}:
            raise ValueError(f"must be the bytes of net and trees, and typical; got {forms}")
        self.typical_ = check_typical(parts.pop("typical"), n_inputs)
        self._build("cpu")
        self.net_.restore(parts.pop("net").tobytes(), n_inputs, standardize)
        self._take_scaling()
        self.trees_.restore(parts.pop("trees").tobytes(), POOLED * n_inputs, None)
        self.n_inputs_ = n_inputs

    def exported(self, n_timepoints: int) -> Exported:
        graph, trees = self.net_.exported(n_timepoints).content, self.trees_.exported(0).content
        assert isinstance(graph, bytes)
        assert isinstance(trees, dict)
        net = np.frombuffer(graph, dtype=np.uint8)
        return Exported("ensemble", {"net": net, "typical": self.typical_, **trees})


@dataclass(frozen=True)
class _PooledRows:
    """Windows that are pooled when they are asked for."""

    windows: Inputs
    block_bins: int

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), POOLED * self.windows.shape[-1]

    def __getitem__(self, index: slice) -> NDArray[np.float32]:
        numbers = range(len(self))[index]
        rows = np.empty((len(numbers), self.shape[1]), dtype=np.float32)
        for at in range(0, len(numbers), _BLOCK):
            some = numbers[at : at + _BLOCK]
            block = self.windows[some.start : some.stop : some.step]
            rows[at : at + _BLOCK] = pooled(np.asarray(block, dtype=np.float32), self.block_bins)
        return rows


def _medians(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the values present in each column; 0 where none is."""
    out = np.zeros(rows.shape[1], dtype=np.float32)
    for column, values in enumerate(rows.T):
        present = values[np.isfinite(values)]
        if len(present):
            out[column] = np.median(present)
    return out
