"""A transformer and boosted trees on the same windows, averaged."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load, save

from config.progress import Meter
from models.base import Classifier, Exported, blocks
from models.gbt import Gbt
from models.pooling import POOLED, geometric_mean, pooled
from models.trainer import EVERY_S
from models.transformer import Transformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from models.base import Examples, Inputs
    from models.hyperparameters import EnsembleConfig

_BLOCK = 1024


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
        n_steps = self.config.epochs + 1  # training the trees is the last
        self.net_.fit(
            train, val, lambda step, _, text: progress(step, n_steps, text), self._bookmark
        )
        self.history_ = self.net_.history_
        self._take_scaling()
        rows, val_rows = self._pooled(train), val and self._pooled(val)

        def say(line: str, *, last: bool) -> None:
            progress(n_steps if last else n_steps - 1, n_steps, line)

        self.trees_.fit(rows, val_rows, Meter("trees", say, EVERY_S))

    def _build(self, device: str) -> None:
        self.net_ = Transformer(self.config, self.n_classes, seed=self.seed, device=device)
        self.trees_ = Gbt(self.config.trees, self.n_classes, seed=self.seed, device=device)

    def _take_scaling(self) -> None:
        assert self.net_.standardize_ is not None
        self.standardize_ = self.net_.standardize_
        self._block_bins = self.standardize_["block_bins"]  # KeyError: it is not of windows

    def _pooled(self, examples: Examples) -> Examples:
        n, _, n_inputs = examples.X.shape
        rows = np.empty((n, 2 * POOLED * n_inputs), dtype=np.float32)
        for at, block in enumerate(blocks(examples.X, _BLOCK)):
            rows[at * _BLOCK :][: len(block)] = pooled(block, self._block_bins)
        return replace(examples, X=rows)

    def _predict_proba(self, X: Inputs) -> NDArray[np.float32]:
        return np.concatenate(
            [
                geometric_mean(
                    [
                        self.net_.predict_proba(block),
                        self.trees_.predict_proba(pooled(block, self._block_bins)),
                    ]
                )
                for block in blocks(X, _BLOCK)
            ]
        )

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        with super().one_thread(), self.net_.one_thread(), self.trees_.one_thread():
            yield

    def to_sidecar(self) -> bytes:
        """The sidecars of both, as bytes in one file."""
        members = {"net": self.net_, "trees": self.trees_}
        return save(
            {name: np.frombuffer(m.to_sidecar(), dtype=np.uint8) for name, m in members.items()}
        )

    def restore(self, sidecar: bytes, n_inputs: int, standardize: dict[str, Any] | None) -> None:
        members = load(sidecar)
        if members.keys() != {"net", "trees"} or any(
            m.dtype != np.uint8 or m.ndim != 1 for m in members.values()
        ):
            raise ValueError("must be the bytes of net and trees")
        self._build("cpu")
        self.net_.restore(members["net"].tobytes(), n_inputs, standardize)
        self.trees_.restore(members["trees"].tobytes(), 2 * POOLED * n_inputs, None)
        self._take_scaling()
        self.n_inputs_ = n_inputs

    def exported(self, n_timepoints: int) -> Exported:
        graph, trees = self.net_.exported(n_timepoints).content, self.trees_.exported(0).content
        assert isinstance(graph, bytes)
        assert isinstance(trees, dict)
        return Exported("ensemble", {"net": np.frombuffer(graph, dtype=np.uint8), **trees})
