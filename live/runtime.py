"""Probabilities on a device: ONNX Runtime for nets, NumPy for trees and neighbours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from models import MAX_POINTS
from models.base import RuntimeKind
from models.knn import check_points, vote
from models.pooling import POOLED, check_typical, geometric_mean, pooled
from models.scaling import check_scaling, scale, typical
from models.trees import Trees, softmax

_LEAST = 1e-6  # probability that log-odds are taken of at least
_AT_ONCE = 4  # occluded inputs: more at a time would only hold more memory


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
    """Explained by occlusion: a channel's inputs are replaced by what is typical of training."""

    scaling: dict[str, Any]

    def proba_without(
        self, x: NDArray[np.float32], hidden: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Probabilities of one window where inputs are typical of training.

        Args:
            x: the window's inputs.
            hidden: ``(n, n_inputs)``, which inputs are: once for each row.
        """
        if x.ndim == 2:
            hidden = hidden[:, None]
        return self.proba(np.where(hidden, typical(self.scaling), x))

    def arguments(
        self, x: NDArray[np.float32], channel: NDArray[np.int64], infected: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        known = np.unique(channel)
        hidden = np.concatenate(
            [np.zeros((1, len(channel)), dtype=bool), known[:, None] == channel]
        )
        some = [
            self.proba_without(x, hidden[i : i + _AT_ONCE]) for i in range(0, len(hidden), _AT_ONCE)
        ]
        attack = np.concatenate(some).astype(np.float64)[:, infected].sum(axis=1)
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


@dataclass(frozen=True, eq=False)
class EnsembleRuntime(_Occluded):
    """A net, and trees on the same windows pooled."""

    scaling: dict[str, Any]
    net: OnnxRuntime
    trees: Trees
    typical: NDArray[np.float32]  # (n_pooled,), of training

    def proba(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._mean(X, pooled(X, self.scaling["block_bins"]))

    def proba_without(
        self, x: NDArray[np.float32], hidden: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Missing values are the training mean to the net, but not to the trees."""
        row = pooled(x[None], self.scaling["block_bins"])
        rows = np.where(np.tile(hidden, POOLED), self.typical, row)
        return self._mean(np.where(hidden[:, None], np.float32(np.nan), x), rows)

    def _mean(self, X: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return geometric_mean([self.net.proba(X), self.trees.proba(rows)])


def graph_of(kind: RuntimeKind, content: bytes | Mapping[str, NDArray[Any]]) -> bytes | None:
    """The ONNX graph in a model as it is kept in a bundle; None if its kind has none.

    Raises:
        ValueError, KeyError: it has another form.
    """
    if kind not in ("onnx", "ensemble"):
        return None
    graph = content if isinstance(content, bytes) else content["net"].tobytes()
    if isinstance(content, bytes) != (kind == "onnx"):
        raise ValueError(f"{kind} must be {'a graph' if kind == 'onnx' else 'arrays'}")
    return graph


def build_runtime(
    kind: RuntimeKind,
    content: bytes | Mapping[str, NDArray[Any]],
    scaling: dict[str, Any] | None,
    n_classes: int,
    n_inputs: int,
) -> Runtime:
    """The runtime of a model as it is kept in a bundle.

    Args:
        content: a graph for ``onnx``, else named arrays.
        n_inputs: of a window, or of each of its timepoints.

    Raises:
        ValueError, KeyError: it has another form.
    """
    if kind != "trees":
        scaling = check_scaling(scaling, n_inputs)
    if kind == "onnx":
        if scaling is None or not isinstance(content, bytes):
            raise ValueError("a net must have scaling and a graph")
        return OnnxRuntime(content, scaling)
    if isinstance(content, bytes):
        raise ValueError(f"{kind} must be arrays")
    if kind == "trees":
        return TreeRuntime(_trees(content, n_classes, n_inputs))
    if scaling is None or kind not in ("ensemble", "neighbours"):
        raise ValueError(f"runtime must be one of {', '.join(get_args(RuntimeKind))}, got {kind!r}")
    if kind == "ensemble":
        return _ensemble(content, scaling, n_classes, n_inputs)
    axes, points, y = content["axes"], content["points"], content["y"]
    check_points(n_inputs, axes, points, y, n_classes)
    n_neighbors = int(content["n_neighbors"])
    if not 1 <= n_neighbors <= MAX_POINTS:
        raise ValueError(f"n_neighbors must be 1 to {MAX_POINTS}, got {n_neighbors}")
    return NeighbourRuntime(scaling, axes, points, y, n_neighbors, n_classes)


def _trees(arrays: Mapping[str, NDArray[Any]], n_classes: int, n_inputs: int) -> Trees:
    trees = Trees.from_arrays(arrays)
    if len(trees.base) != n_classes or trees.feature.max(initial=0) >= n_inputs:
        raise ValueError(f"trees must be for {n_inputs} inputs and {n_classes} classes")
    return trees


def _ensemble(
    arrays: Mapping[str, NDArray[Any]], scaling: dict[str, Any], n_classes: int, n_inputs: int
) -> EnsembleRuntime:
    if "block_bins" not in scaling:
        raise ValueError("an ensemble must have the scaling of windows")
    net = OnnxRuntime(arrays["net"].tobytes(), scaling)
    trees = _trees(arrays, n_classes, POOLED * n_inputs)
    return EnsembleRuntime(scaling, net, trees, check_typical(arrays["typical"], n_inputs))


_TRIAL = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
shape = json.loads(sys.argv[1])
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 4
session = ort.InferenceSession(sys.stdin.buffer.read(), options, ["CPUExecutionProvider"])
for n in (1, 3):
    logits = session.run(None, {"x": np.zeros((n, *shape), dtype=np.float32)})[0]
    assert logits.shape == (n, int(sys.argv[2])) and logits.dtype == np.float32
"""
_TRIAL_S = 60.0


def try_net(model: bytes, scaling: dict[str, Any], shape: tuple[int, ...], n_classes: int) -> None:
    """Load and run a net in another process: a crafted one can crash or hang ONNX Runtime.

    Args:
        shape: of a window's inputs, before scaling.

    Raises:
        ValueError: it did not give probabilities within a time and a memory that are ample.
    """
    scaled = scale(np.zeros((1, *shape), dtype=np.float32), check_scaling(scaling, shape[-1]))
    command = [sys.executable, "-c", _TRIAL, json.dumps(scaled.shape[1:]), str(n_classes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command,
            input=model,
            capture_output=True,
            timeout=_TRIAL_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"its net took over {_TRIAL_S:g} s for a window") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"its net does not run: {' '.join(said) or f'signal {-done.returncode}'}")
