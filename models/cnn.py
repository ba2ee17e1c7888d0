"""Inception-style convolutions over the windows themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from models.nets import NetClassifier

if TYPE_CHECKING:
    from models.hyperparameters import CnnConfig


class _InceptionBlock(nn.Module):
    def __init__(self, width: int, kernels: tuple[int, ...] = (3, 7, 15)):
        super().__init__()
        branch = width // (len(kernels) + 1)
        self.reduce = nn.Conv1d(width, branch, 1, bias=False)
        self.branches = nn.ModuleList(
            nn.Conv1d(branch, branch, k, padding=k // 2, bias=False) for k in kernels
        )
        self.pooled = nn.Sequential(
            nn.MaxPool1d(3, stride=1, padding=1),
            nn.Conv1d(width, width - branch * len(kernels), 1, bias=False),
        )
        self.norm = nn.BatchNorm1d(width)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reduced = self.reduce(x)
        mixed = torch.cat([*(conv(reduced) for conv in self.branches), self.pooled(x)], dim=1)
        return x + self.act(self.norm(mixed))


class _CnnNet(nn.Module):
    def __init__(self, n_channels: int, n_classes: int, config: CnnConfig):
        super().__init__()
        width = config.width
        self.stem = nn.Sequential(
            nn.Conv1d(n_channels, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(width),
            nn.GELU(),
        )
        self.blocks = nn.Sequential(*(_InceptionBlock(width) for _ in range(config.depth)))
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * width, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.blocks(self.stem(x.transpose(1, 2)))
        pooled = torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1)
        return self.head(self.drop(pooled))


class Cnn(NetClassifier):
    """Residual inception blocks with mean and max pooling.

    After Ismail Fawaz et al., "InceptionTime: Finding AlexNet for Time Series Classification",
    Data Mining and Knowledge Discovery 34, 2020.
    """

    input_kind = "tensor"

    def build(self, n_inputs: int) -> nn.Module:
        return _CnnNet(n_inputs, self.n_classes, self.config)
