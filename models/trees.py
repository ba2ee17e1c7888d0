"""Boosted trees in NumPy: the same leaves as XGBoost, and what each input adds to a margin.

A device has no room for XGBoost (131 MB); and where nothing is converted, nothing is lost in it.
Thresholds are compared in float32 as XGBoost does, and leaves are added up in its order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 512  # windows whose paths are followed at a time
_MAX_DEPTH = 64
_KINDS: dict[str, type[np.generic]] = {
    **dict.fromkeys(("left", "right", "feature", "root", "group"), np.int32),
    **dict.fromkeys(("threshold", "cover", "base"), np.float32),
    "missing_left": np.bool_,
}


@dataclass(frozen=True, eq=False)
class Trees:
    """All nodes of all trees, one after the other. A leaf is its own child.

    Raises:
        ValueError: an array has another length than the others, or points outside.
    """

    left: NDArray[np.int32]  # (n_nodes,)
    right: NDArray[np.int32]  # (n_nodes,)
    feature: NDArray[np.int32]  # (n_nodes,)
    threshold: NDArray[np.float32]  # (n_nodes,) an input below it goes left; of a leaf its value
    missing_left: NDArray[np.bool_]  # (n_nodes,)
    cover: NDArray[np.float32]  # (n_nodes,) the training weight that went through
    root: NDArray[np.int32]  # (n_trees,), ascending
    group: NDArray[np.int32]  # (n_trees,) class whose margin it adds to
    base: NDArray[np.float32]  # (n_classes,) margins without any tree

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            values = getattr(self, name)
            if values.dtype != kind or (kind == np.float32 and not np.all(np.isfinite(values))):
                raise ValueError(f"trees: {name} must be finite {kind.__name__}")
        nodes, trees = len(self.left), len(self.root)
        sizes = {
            each.name: trees if each.name in ("root", "group") else nodes
            for each in fields(self)
            if each.name != "base"
        }
        for name, size in sizes.items():
            if getattr(self, name).shape != (size,):
                raise ValueError(f"trees: {name} must have {size} entries")
        limits = {
            "left": nodes, "right": nodes, "root": nodes, "group": len(self.base),
            "feature": 2**31,
        }  # fmt: skip
        for name, limit in limits.items():
            values = getattr(self, name)
            if len(values) and not 0 <= values.min() <= values.max() < limit:
                raise ValueError(f"trees: {name} must be below {limit}")
        inner = ~self._is_leaf
        each = np.arange(nodes)
        if np.any((self.left[inner] <= each[inner]) | (self.right[inner] <= each[inner])):
            raise ValueError("trees: a child must come after its parent")  # so every path ends
        level = self.root
        for _ in range(_MAX_DEPTH + 1):
            level = np.unique(level[~self._is_leaf[level]])
            if not len(level):
                return
            level = np.concatenate([self.left[level], self.right[level]])
        raise ValueError(f"trees: a path must be at most {_MAX_DEPTH} long")

    @cached_property
    def _is_leaf(self) -> NDArray[np.bool_]:
        return self.left == np.arange(len(self.left))

    @cached_property
    def _expected(self) -> NDArray[np.float64]:
        """Mean leaf value ``(n_nodes,)`` below each node, weighted by cover."""
        value = self.threshold.astype(np.float64)
        cover = self.cover.astype(np.float64)
        for node in np.flatnonzero(~self._is_leaf)[::-1].tolist():
            a, b = self.left[node], self.right[node]
            total = cover[a] + cover[b]
            share = cover[a] / total if total > 0 else 0.5
            value[node] = share * value[a] + (1 - share) * value[b]
        return value

    def margins(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Margins ``(n_windows, n_classes)``; a missing input takes its learned branch."""
        out = np.empty((len(X), len(self.base)), dtype=np.float32)
        for start in range(0, len(X), _BLOCK):
            *_, leaves = self._paths(X[start : start + _BLOCK])
            for group, base in enumerate(self.base):
                values = self.threshold[leaves[:, self.group == group]]
                first = np.full((len(values), 1), base, dtype=np.float32)
                # one after the other, as XGBoost adds: a pairwise sum has other last bits
                total = np.cumsum(np.concatenate([first, values], axis=1), axis=1)[:, -1]
                out[start : start + _BLOCK, group] = total
        return out

    def proba(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities ``(n_windows, n_classes)``."""
        return softmax(self.margins(X))

    def contributions(
        self, X: NDArray[np.float32], channel: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """What each channel adds to each margin, ``(n_windows, n_classes, n_channels)``.

        Along its path, a window's expected value changes at every split; the change belongs to
        the input that was split on. With ``expected_margins`` they add up to the margins exactly.
        Saabas, "Interpreting random forests", 2014; cheaper than SHAP values, and other numbers.

        Args:
            channel: ``(n_inputs,)``, the channel of each input.
        """
        n_channels, n_classes = int(channel.max()) + 1, len(self.base)
        size = n_classes * n_channels
        out = np.zeros((len(X), n_classes, n_channels))
        for start in range(0, len(X), _BLOCK):
            block = X[start : start + _BLOCK]
            rows = np.arange(len(block))[:, None] * size + self.group * n_channels
            sums = np.zeros(len(block) * size)
            path = self._paths(block)
            before = next(path)
            for after in path:
                change = self._expected[after] - self._expected[before]
                where = rows + channel[self.feature[before]]
                sums += np.bincount(where.ravel(), change.ravel(), minlength=len(sums))
                before = after
            out[start : start + _BLOCK] = sums.reshape(len(block), n_classes, n_channels)
        return out

    @cached_property
    def expected_margins(self) -> NDArray[np.float64]:
        """Mean margins ``(n_classes,)`` of the training set."""
        roots = self._expected[self.root]
        return self.base.astype(np.float64) + np.bincount(self.group, roots, len(self.base))

    def _paths(self, X: NDArray[np.float32]) -> Iterator[NDArray[np.int32]]:
        """Of each window and tree the node ``(n_windows, n_trees)``, from root to leaf."""
        rows = np.arange(len(X))[:, None]
        node = np.broadcast_to(self.root, (len(X), len(self.root)))
        yield node
        while not np.all(self._is_leaf[node]):
            value = X[rows, self.feature[node]]
            left = np.where(np.isnan(value), self.missing_left[node], value < self.threshold[node])
            node = np.where(left, self.left[node], self.right[node])
            yield node

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The trees as named arrays."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Trees:
        """Trees from their named arrays.

        Raises:
            KeyError, ValueError: one is absent, or has another form.
        """
        return cls(**{each.name: arrays[each.name] for each in fields(cls)})

    @classmethod
    def from_xgboost(cls, model: bytes) -> Trees:
        """Trees of a booster for ``multi:softprob`` that was saved as JSON.

        Raises:
            ValueError: it has splits on categories, or another objective.
        """
        learner = json.loads(model)["learner"]
        if learner["objective"]["name"] != "multi:softprob":
            raise ValueError(
                f"objective must be multi:softprob, got {learner['objective']['name']}"
            )
        inside = learner["gradient_booster"]["model"]
        columns: dict[str, list[NDArray[Any]]] = {}
        roots, n_nodes = [], 0
        for tree in inside["trees"]:
            if any(tree["split_type"]):
                raise ValueError("splits must be numeric, got one on categories")
            left, right = (np.array(tree[f"{side}_children"]) for side in ("left", "right"))
            own = np.arange(len(left))
            leaf = left == -1
            roots.append(n_nodes)
            for name, values in {
                "left": np.where(leaf, own, left) + n_nodes,
                "right": np.where(leaf, own, right) + n_nodes,
                "feature": np.array(tree["split_indices"]),
                "threshold": np.array(tree["split_conditions"], dtype=np.float32),
                "missing_left": np.array(tree["default_left"], dtype=bool),
                "cover": np.array(tree["sum_hessian"], dtype=np.float32),
            }.items():
                columns.setdefault(name, []).append(values)
            n_nodes += len(left)
        base = json.loads(learner["learner_model_param"]["base_score"])
        n_classes = int(learner["learner_model_param"]["num_class"])
        joined = {name: np.concatenate(parts) for name, parts in columns.items()}
        for name in ("left", "right", "feature"):
            joined[name] = joined[name].astype(np.int32)
        return cls(
            **joined,
            root=np.array(roots, dtype=np.int32),
            group=np.array(inside["tree_info"], dtype=np.int32),
            base=np.broadcast_to(np.array(base, dtype=np.float32), n_classes).copy(),
        )


def softmax(margins: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of margins ``(n, n_classes)``."""
    powers = np.exp(margins - margins.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
