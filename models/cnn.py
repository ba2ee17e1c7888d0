"""Convolutions over windows."""

from __future__ import annotations

import torch
from torch import nn

from models.hyperparameters import CnnConfig
from models.nets import PooledHead, WindowNetClassifier


def _convolution(n_in: int, n_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(n_in, n_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm1d(n_out),
        nn.GELU(),
    )


class _CnnNet(nn.Module):
    def __init__(self, n_columns: int, n_classes: int, config: CnnConfig):
        super().__init__()
        width = config.width
        self.stem = _convolution(n_columns, width, config.kernel)
        self.blocks = nn.ModuleList(
            nn.Sequential(_convolution(width, width, config.kernel), nn.Dropout(config.dropout / 2))
            for _ in range(config.depth)
        )
        self.head = PooledHead(width, n_columns, n_classes, config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.stem(x.transpose(1, 2))
        for block in self.blocks:
            features = features + block(features)
        return self.head(features.transpose(1, 2), x)


class Cnn(WindowNetClassifier):
    """Residual convolutions with mean and max pooling.

    After Wang et al., "Time Series Classification from Scratch with Deep Neural Networks",
    IJCNN 2017.
    """

    def build(self, n_columns: int) -> nn.Module:
        return _CnnNet(n_columns, self.n_classes, self.config)
