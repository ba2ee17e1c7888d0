"""Probabilities on a device: ONNX Runtime for nets, NumPy for trees and neighbours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.base import RuntimeKind
from models.knn import vote
from models.scaling import scale, typical
from models.trees import Trees, softmax

_LEAST = 1e-6  # probability that log-odds are taken of at least


class Runtime(ABC):
    """A fitted model without its training library."""

    @abstractmethod
    def proba(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities ``(n_windows, n_classes)`` of a model's inputs."""

    @abstractmethod
    def arguments(
        self, x: NDArray[np.float32], channel: NDArray[np.int64], infected: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """How much each channel ``(n_channels,)`` argues for an alarm in one window.

        In units of the log-odds of ``infected``.

        Args:
            x: the window's inputs.
            channel: ``(n_inputs,)``, the channel of each input.
            infected: ``(n_classes,)``, the classes that are an attack.
        """


@dataclass(frozen=True, eq=False)
class TreeRuntime(Runtime):
    """Trees; what argues is exact, see ``Trees.contributions``."""

    trees: Trees

    def proba(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.trees.proba(X)

    def arguments(
        self, x: NDArray[np.float32], channel: NDArray[np.int64], infected: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Additions to the margins, weighted by what each margin means for the log-odds."""
        proba = self.proba(x[None])[0].astype(np.float64)
        weight = np.where(
            infected,
            proba / max(proba[infected].sum(), _LEAST),
            -proba / max(proba[~infected].sum(), _LEAST),
        )
        return weight @ self.trees.contributions(x[None], channel)[0]


class _Occluded(Runtime):
    """Explained by occlusion: a channel's inputs are replaced by the training median."""

    scaling: dict[str, Any]

    def arguments(
        self, x: NDArray[np.float32], channel: NDArray[np.int64], infected: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        known = np.unique(channel)
        rows = np.repeat(x[None], len(known) + 1, axis=0)
        plain = typical(self.scaling)
        for row, each in enumerate(known, start=1):
            rows[row][..., channel == each] = plain[channel == each]
        attack = self.proba(rows).astype(np.float64)[:, infected].sum(axis=1)
        attack = np.clip(attack, _LEAST, 1 - _LEAST)
        odds = np.log(attack) - np.log1p(-attack)
        out = np.zeros(int(channel.max()) + 1)
        out[known] = odds[0] - odds[1:]
        return out


class OnnxRuntime(_Occluded):
    """A net in ONNX Runtime, on one thread that does not spin while it waits.

    Raises:
        ValueError: ``model`` cannot be loaded.
    """

    def __init__(self, model: bytes, scaling: dict[str, Any]):
        import onnxruntime as ort  # here: trees and neighbours do without

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions have no common class
            raise ValueError(f"not a net that ONNX Runtime loads: {error}") from error
        self.scaling = scaling

    def proba(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        return softmax(self._session.run(None, {"x": scale(X, self.scaling)})[0])


@dataclass(frozen=True, eq=False)
class NeighbourRuntime(_Occluded):
    """Votes of stored training windows."""

    scaling: dict[str, Any]
    axes: NDArray[np.float32]  # (n_inputs, n_axes)
    points: NDArray[np.float32]  # (n_points, n_axes)
    y: NDArray[np.int64]  # (n_points,)
    n_neighbors: int
    n_classes: int

    def proba(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        queries = scale(X, self.scaling) @ self.axes
        return vote(queries, self.points, self.y, self.n_neighbors, self.n_classes)


def build_runtime(
    kind: RuntimeKind,
    content: bytes | Mapping[str, NDArray[Any]],
    scaling: dict[str, Any] | None,
    n_classes: int,
) -> Runtime:
    """The runtime of a model as it is kept in a bundle.

    Args:
        content: a graph for ``onnx``, else named arrays.

    Raises:
        ValueError, KeyError: it has another form.
    """
    if kind == "onnx":
        if scaling is None or not isinstance(content, bytes):
            raise ValueError("a net must have scaling and a graph")
        return OnnxRuntime(content, scaling)
    if isinstance(content, bytes):
        raise ValueError(f"{kind} must be arrays")
    if kind == "trees":
        return TreeRuntime(Trees.from_arrays(content))
    if kind != "neighbours" or scaling is None:
        raise ValueError(f"runtime must be onnx, trees or neighbours, got {kind!r}")
    return NeighbourRuntime(
        scaling,
        content["axes"],
        content["points"],
        content["y"],
        int(content["n_neighbors"]),
        n_classes,
    )
