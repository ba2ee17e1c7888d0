"""Common to neural classifiers, except for the training loop: scaling, weights as bytes."""

from __future__ import annotations

import io
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save

from models.base import Classifier, Examples, Exported, Inputs
from models.scaling import check_scaling, fit_scaling, scale, scaled_columns
from models.trainer import predict_net, torch_threads, train_net

OPSET = 17


class NetClassifier(Classifier):
    """A classifier around a ``torch`` module; subclasses build it and scale inputs."""

    sidecar_suffix = ".safetensors"

    @abstractmethod
    def build(self, n_columns: int) -> torch.nn.Module:
        """The untrained net for scaled inputs of ``n_columns``; it returns logits."""

    @abstractmethod
    def _fit_scaling(self, X: Inputs) -> dict[str, Any]:
        """What ``models.scaling.scale`` needs for inputs like ``X``."""

    def _fit(
        self,
        train: Examples,
        val: Examples | None,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.standardize_ = self._fit_scaling(train.X)
        with torch.random.fork_rng(), torch_threads(self.config.n_threads):
            torch.manual_seed(self.seed)
            self.net_ = self.build(scaled_columns(self.standardize_))
            self.history_ = train_net(
                self.net_,
                train,
                val,
                self.config,
                self.standardize_,
                n_classes=self.n_classes,
                seed=self.seed,
                device=torch.device(self.device_),
                progress=progress,
                bookmark=self._bookmark,
            )

    def _predict_proba(self, X: Inputs) -> NDArray[np.float32]:
        assert self.standardize_ is not None
        with torch_threads(self.config.n_threads):  # as in training: the last bits depend on it
            return predict_net(self.net_, X, self.standardize_, torch.device(self.device_))

    def to_sidecar(self) -> bytes:
        state = self.net_.state_dict()
        return save({name: value.detach().cpu().contiguous() for name, value in state.items()})

    def restore(self, sidecar: bytes, n_inputs: int, standardize: dict[str, Any] | None) -> None:
        standardize = check_scaling(standardize, n_inputs)
        self.device_ = "cpu"
        weights = load(sidecar)
        with torch.device("meta"):  # takes no memory, whatever the settings say
            self.net_ = self.build(scaled_columns(standardize))
        self._check_weights(weights)
        self.net_.load_state_dict(weights, assign=True)
        self.net_.eval()
        self.standardize_ = standardize
        self.n_inputs_ = n_inputs

    def _check_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Refuse weights that are not those of ``net_``, or not numbers."""
        expected = {name: (v.shape, v.dtype) for name, v in self.net_.state_dict().items()}
        found = {name: (value.shape, value.dtype) for name, value in weights.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ValueError(
                    f"{name} must be {expected.get(name, 'absent')}, got {found.get(name, 'none')}"
                )
            if not torch.all(torch.isfinite(weights[name])):
                raise ValueError(f"{name} must be finite")

    def exported(self, n_timepoints: int) -> Exported:
        """The ONNX graph from scaled inputs ``x`` to ``logits``, for any number of windows.

        By PyTorch's TorchScript exporter: on these nets its graphs are as exact as those of the
        newer one (3e-7 of a probability), ten times faster to make, and need no converter.
        """
        assert self.n_inputs_ is not None
        assert self.standardize_ is not None
        shape = (2, self.n_inputs_) if self._n_axes == 2 else (2, n_timepoints, self.n_inputs_)
        example = torch.from_numpy(scale(np.zeros(shape, dtype=np.float32), self.standardize_))
        content = io.BytesIO()
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # its fused operator is not in ONNX
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is deprecated; every export is compared
                torch.onnx.export(
                    self.net_.eval(),
                    (example,),
                    content,  # type: ignore[arg-type]
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=["x"],
                    output_names=["logits"],
                    dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}},
                )
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        return Exported("onnx", content.getvalue())


class WindowNetClassifier(NetClassifier):
    """A net on windows condensed to half-second steps."""

    input_kind = "tensor"

    def _fit_scaling(self, X: Inputs) -> dict[str, Any]:
        return fit_scaling(X, block_bins=self.config.block_bins, limit=self.config.limit)


class StepEmbedding(torch.nn.Module):
    """Features of each step on its own: linear, normalised, rectified.

    Thanks to the normalisation over the batch, a small net with attention or recurrence after it
    trains well on a few thousand windows.
    """

    def __init__(self, n_columns: int, width: int, dropout: float):
        super().__init__()
        self.embed = torch.nn.Sequential(
            torch.nn.Conv1d(n_columns, width, 1, bias=False),
            torch.nn.BatchNorm1d(width),
            torch.nn.GELU(),
            torch.nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, n_steps, n_columns)`` to ``(n, n_steps, width)``."""
        return self.embed(x.transpose(1, 2)).transpose(1, 2)


class PooledHead(torch.nn.Module):
    """Logits from a net's features of every step, for windows of any length.

    It pools mean and maximum of the features over time, and mean and deviation of the inputs, which
    the net then need not learn.
    """

    def __init__(self, n_features: int, n_columns: int, n_classes: int, dropout: float):
        super().__init__()
        self.drop = torch.nn.Dropout(dropout)
        self.out = torch.nn.Linear(2 * (n_features + n_columns), n_classes)

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``features (n, n_steps, n_features)`` and ``x (n, n_steps, n_columns)``."""
        pooled = [
            features.mean(dim=1),
            features.amax(dim=1),
            x.mean(dim=1),
            x.std(dim=1, correction=0),
        ]
        return self.out(self.drop(torch.cat(pooled, dim=1)))
