"""Bidirectional recurrent nets over windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.hyperparameters import GruConfig, LstmConfig
from models.nets import PooledHead, StepEmbedding, WindowNetClassifier


class _RecurrentNet(nn.Module):
    """Embedded steps, a bidirectional recurrent layer, pooling."""

    def __init__(self, cell: Any, n_columns: int, n_classes: int, config: GruConfig | LstmConfig):
        super().__init__()
        width = config.width
        self.embed = StepEmbedding(n_columns, width, config.dropout)
        self.recurrent = cell(width, width, config.depth, batch_first=True, bidirectional=True)
        self.head = PooledHead(2 * width, n_columns, n_classes, config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features, _ = self.recurrent(self.embed(x))
        return self.head(features, x)


class Gru(WindowNetClassifier):
    """Bidirectional gated recurrent units.

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
    Translation", EMNLP 2014; both ways: Schuster and Paliwal, "Bidirectional Recurrent Neural
    Networks", IEEE Transactions on Signal Processing 45, 1997.
    """

    def build(self, n_columns: int) -> nn.Module:
        return _RecurrentNet(nn.GRU, n_columns, self.n_classes, self.config)


class Lstm(WindowNetClassifier):
    """Bidirectional long short-term memory.

    Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9, 1997.
    """

    def build(self, n_columns: int) -> nn.Module:
        return _RecurrentNet(nn.LSTM, n_columns, self.n_classes, self.config)
