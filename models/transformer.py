"""A transformer over the steps of a window."""

from __future__ import annotations

import math

import torch
from torch import nn

from models.hyperparameters import TransformerConfig
from models.nets import PooledHead, StepEmbedding, WindowNetClassifier


def sinusoidal_positions(n_steps: int, width: int, device: torch.device) -> torch.Tensor:
    """``(n_steps, width)``, for an even width and windows of any length."""
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000) / width))
    angles = torch.arange(n_steps, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(n_steps, width)


class _TransformerNet(nn.Module):
    def __init__(self, n_columns: int, n_classes: int, config: TransformerConfig):
        super().__init__()
        width = config.width
        self.embed = StepEmbedding(n_columns, width, config.dropout)
        layer = nn.TransformerEncoderLayer(
            width,
            config.n_heads,
            dim_feedforward=2 * width,
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.depth, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = PooledHead(width, n_columns, n_classes, config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = self.embed(x)
        steps = steps + sinusoidal_positions(steps.shape[1], steps.shape[2], steps.device)
        return self.head(self.encoder(steps), x)


class Transformer(WindowNetClassifier):
    """A pre-norm encoder over half-second steps, with mean and max pooling.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017; normalised first: Xiong et al., "On
    Layer Normalization in the Transformer Architecture", ICML 2020.
    """

    def build(self, n_columns: int) -> nn.Module:
        return _TransformerNet(n_columns, self.n_classes, self.config)
