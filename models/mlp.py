"""A multilayer perceptron on summary inputs."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.base import Inputs
from models.nets import NetClassifier
from models.scaling import fit_piecewise_linear


class Mlp(NetClassifier):
    """Two hidden layers on piecewise-linear encodings, which let a net cut as a tree does.

    Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022.
    """

    input_kind = "summary"

    def build(self, n_columns: int) -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(self.config.depth):
            layers += [
                nn.Linear(n_columns, self.config.width),
                nn.BatchNorm1d(self.config.width),
                nn.GELU(),
                nn.Dropout(self.config.dropout),
            ]
            n_columns = self.config.width
        return nn.Sequential(*layers, nn.Linear(n_columns, self.n_classes))

    def _fit_scaling(self, X: Inputs) -> dict[str, Any]:
        return fit_piecewise_linear(X, self.config.n_pieces)
