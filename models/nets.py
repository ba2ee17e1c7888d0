"""What neural classifiers have in common beside the training loop: scaling, weights as bytes."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save

from models.base import Classifier, Examples
from models.device import pick_device
from models.scaling import fit_scaling
from models.trainer import predict_net, torch_threads, train_net

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from models.base import Inputs


class NetClassifier(Classifier):
    """A classifier around a ``torch`` module; subclasses say which."""

    sidecar_suffix = ".safetensors"

    @abstractmethod
    def build(self, n_inputs: int) -> torch.nn.Module:
        """The untrained net for inputs whose last axis is ``n_inputs``; it returns logits."""

    def _fit(
        self,
        train: Examples,
        val: Examples | None,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.device_ = torch.device(pick_device(self.device))
        self.standardize_ = fit_scaling(train.X)
        with torch.random.fork_rng(), torch_threads(self.config.n_threads):
            torch.manual_seed(self.seed)
            self.net_ = self.build(train.X.shape[-1])
            self.history_ = train_net(
                self.net_,
                train,
                val,
                self.config,
                self.standardize_,
                n_classes=self.n_classes,
                seed=self.seed,
                device=self.device_,
                progress=progress,
            )

    def _predict_proba(self, X: Inputs) -> NDArray[np.float32]:
        assert self.standardize_ is not None
        return predict_net(self.net_, X, self.standardize_, self.device_)

    def to_sidecar(self) -> bytes:
        state = self.net_.state_dict()
        return save({name: value.detach().cpu().contiguous() for name, value in state.items()})

    def restore(self, sidecar: bytes, n_inputs: int, standardize: dict[str, Any] | None) -> None:
        if standardize is None or len(standardize["mean"]) != n_inputs:
            raise ValueError(f"standardize does not have {n_inputs} means")
        self.device_ = torch.device("cpu")
        self.net_ = self.build(n_inputs)
        self.net_.load_state_dict(load(sidecar))
        self.net_.eval()
        self.standardize_ = standardize
        self.n_inputs_ = n_inputs
