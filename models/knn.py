"""Nearest neighbours on summary inputs, with all labels or with a few and pseudo-labels.

Exact search in NumPy: a checkpoint needs no training library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from models import MAX_POINTS
from models.base import Classifier, Examples, Exported, blocks
from models.scaling import check_scaling, fit_scaling, leading_axes, scale

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from models.base import Inputs

_BLOCK = 512
_CLOSEST = 1e-3
"""Smaller distances count as this, so a window seen in training gets its label, and the last bits
of a distance decide nothing."""


class Knn(Classifier):
    """Distance-weighted nearest neighbours along principal axes of the scaled inputs.

    Dudani, "The Distance-Weighted k-Nearest-Neighbor Rule", IEEE Transactions on Systems, Man, and
    Cybernetics 6, 1976; here the weight is the inverse distance.
    """

    input_kind = "summary"
    sidecar_suffix = ".safetensors"
    trains_on_cuda = False

    def _fit(
        self,
        train: Examples,
        val: Examples | None,  # noqa: ARG002
        progress: Callable[[int, int, str], None],
    ) -> None:
        self._fit_axes(train.X)
        self._remember(self._project(train.X), train.y)
        progress(1, 1, f"{len(self.y_)} windows stored")

    def _fit_axes(self, X: Inputs) -> None:
        """Fit the scaling, and the principal axes ``(n_inputs, n_components)`` of scaled inputs."""
        scaling = self.standardize_ = fit_scaling(X, limit=self.config.limit)
        scaled = (scale(block, scaling).astype(np.float64) for block in blocks(X, _BLOCK))
        axes = leading_axes(scaled, self.config.n_components)
        self.axes_ = np.ascontiguousarray(axes, np.float32)

    def _project(self, X: Inputs) -> NDArray[np.float32]:
        assert self.standardize_ is not None
        return np.concatenate([scale(b, self.standardize_) @ self.axes_ for b in blocks(X, _BLOCK)])

    def _remember(self, points: NDArray[np.float32], y: NDArray[np.int64]) -> None:
        kept = condense(y, self.config.max_windows, self.n_classes, self.seed)
        self.points_, self.y_ = points[kept], y[kept]

    def _predict_proba(self, X: Inputs) -> NDArray[np.float32]:
        return self._vote(self._project(X), *self.stored())

    def _vote(
        self, queries: NDArray[np.float32], points: NDArray[np.float32], y: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        return vote(queries, points, y, self.config.n_neighbors, self.n_classes)

    def stored(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The windows that vote, ``(n_points, n_axes)`` and ``(n_points,)``."""
        return self.points_, self.y_

    def to_sidecar(self) -> bytes:
        from safetensors.numpy import save  # here: a device has NumPy alone

        return save({"axes": self.axes_, "points": self.points_, "y": self.y_})

    def restore(self, sidecar: bytes, n_inputs: int, standardize: dict[str, Any] | None) -> None:
        from safetensors.numpy import load

        tensors = load(sidecar)
        self.standardize_ = check_scaling(standardize, n_inputs)
        self.axes_, self.points_, self.y_ = tensors["axes"], tensors["points"], tensors["y"]
        check_points(n_inputs, self.axes_, self.points_, self.y_, self.n_classes)
        self.n_inputs_ = n_inputs

    def exported(self, n_timepoints: int) -> Exported:  # noqa: ARG002
        points, y = self.stored()
        k = np.array(self.config.n_neighbors)
        arrays: dict[str, NDArray[Any]] = {
            "axes": self.axes_, "points": points, "y": y, "n_neighbors": k,
        }  # fmt: skip
        return Exported("neighbours", arrays)


class KnnSemi(Knn):
    """Nearest neighbours trained with the labels of a few training episodes.

    The windows of the other episodes, and of every degraded one, get the class that the labelled
    ones vote for if the vote is clear enough; then all of them vote. One round of self-training:
    Yarowsky, "Unsupervised Word Sense Disambiguation Rivaling Supervised Methods", ACL 1995.
    """

    def _fit(
        self,
        train: Examples,
        val: Examples | None,  # noqa: ARG002
        progress: Callable[[int, int, str], None],
    ) -> None:
        labelled = labelled_windows(train, self.config.labelled_share, self.seed)
        self._fit_axes(train.X)
        points = self._project(train.X)
        self._remember(points[labelled], train.y[labelled])
        proba = self._vote(points[~labelled], self.points_, self.y_)
        clear = proba.max(axis=1) >= self.config.confidence
        pseudo_y = proba.argmax(axis=1)[clear]
        room = max(0, self.config.max_windows - len(self.y_))
        kept = condense(pseudo_y, room, self.n_classes, self.seed)
        self.pseudo_points_, self.pseudo_y_ = points[~labelled][clear][kept], pseudo_y[kept]
        progress(
            1,
            1,
            f"{labelled.sum()} windows labelled, {clear.sum()} of {len(clear)} pseudo-labelled",
        )

    def stored(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        points = np.concatenate([self.points_, self.pseudo_points_])
        return points, np.concatenate([self.y_, self.pseudo_y_])

    def ablations(self, X: Inputs) -> dict[str, NDArray[np.float32]]:
        return {"labels_alone": self._vote(self._project(X), *super().stored())}

    def to_sidecar(self) -> bytes:
        from safetensors.numpy import save

        return save(
            {
                "axes": self.axes_,
                "points": self.points_,
                "y": self.y_,
                "pseudo_points": self.pseudo_points_,
                "pseudo_y": self.pseudo_y_,
            }
        )

    def restore(self, sidecar: bytes, n_inputs: int, standardize: dict[str, Any] | None) -> None:
        super().restore(sidecar, n_inputs, standardize)
        from safetensors.numpy import load

        tensors = load(sidecar)
        self.pseudo_points_, self.pseudo_y_ = tensors["pseudo_points"], tensors["pseudo_y"]
        stored = self.pseudo_points_, self.pseudo_y_
        check_points(n_inputs, self.axes_, *stored, self.n_classes, least=0)


def check_points(
    n_inputs: int,
    axes: NDArray[Any],
    points: NDArray[Any],
    y: NDArray[Any],
    n_classes: int,
    *,
    least: int = 1,
) -> None:
    """Refuse stored windows that cannot vote.

    Raises:
        ValueError: axes, points or classes do not fit together, or are not numbers.
    """
    n_axes = axes.shape[1] if axes.ndim == 2 else 0
    if axes.dtype != np.float32 or not n_axes or len(axes) != n_inputs:
        raise ValueError(f"axes must be for {n_inputs} inputs, float32")
    if points.dtype != np.float32 or points.ndim != 2 or points.shape[1] != n_axes:
        raise ValueError(f"points must be (n, {n_axes}), float32")
    if not least <= len(points) <= MAX_POINTS or y.shape != (len(points),):
        raise ValueError(f"points must be {least} to {MAX_POINTS}, each with its class")
    if y.dtype != np.int64 or y.min(initial=0) < 0 or y.max(initial=0) >= n_classes:
        raise ValueError(f"classes must be integers below {n_classes}")
    if not (np.all(np.isfinite(axes)) and np.all(np.isfinite(points))):
        raise ValueError("axes and points must be finite")


def vote(
    queries: NDArray[np.float32],
    points: NDArray[np.float32],
    y: NDArray[np.int64],
    n_neighbors: int,
    n_classes: int,
) -> NDArray[np.float32]:
    """Votes ``(n_queries, n_classes)`` of the nearest points, by the inverse of their distance.

    Args:
        queries: ``(n_queries, n_axes)``.
        points: ``(n_points, n_axes)``, of the classes ``y``.
    """
    stored = points.astype(np.float64)
    norms = (stored**2).sum(axis=1)
    k = min(n_neighbors, len(y))
    one_hot = np.eye(n_classes)[y]
    votes = [np.empty((0, n_classes))]
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK].astype(np.float64)
        squared = norms + (block**2).sum(axis=1)[:, None] - 2 * block @ stored.T
        nearest = np.argpartition(squared, k - 1, axis=1)[:, :k]
        distance = np.sqrt(np.maximum(np.take_along_axis(squared, nearest, axis=1), 0.0))
        weight = 1 / np.maximum(distance, _CLOSEST)
        votes.append(np.einsum("nk,nkc->nc", weight, one_hot[nearest]))
    total = np.concatenate(votes)
    return (total / total.sum(axis=1, keepdims=True)).astype(np.float32)


def condense(y: NDArray[np.int64], limit: int, n_classes: int, seed: int) -> NDArray[np.int64]:
    """Rows to keep, at most ``limit``: small classes whole, the large ones drawn down to a level.

    Returns:
        Row numbers ``(n_kept,)``, ascending.
    """
    if len(y) <= limit:
        return np.arange(len(y))
    counts = np.bincount(y, minlength=n_classes)
    level = _level(counts, limit)
    random = np.random.default_rng([seed, len(y)])
    kept = [
        rows if len(rows) <= level else random.choice(rows, level, replace=False)
        for rows in (np.flatnonzero(y == c) for c in range(n_classes))
    ]
    return np.sort(np.concatenate(kept))


def _level(counts: NDArray[np.int64], limit: int) -> int:
    """The highest level at which the counts, cut off at it, add up to at most ``limit``."""
    left = limit
    for done, count in enumerate(np.sort(counts)):
        share = left // (len(counts) - done)
        if count > share:
            return int(share)
        left -= count
    return int(counts.max())


def labelled_windows(train: Examples, share: float, seed: int) -> NDArray[np.bool_]:
    """Which windows keep their label: those of a share of the episodes, never degraded ones.

    Episodes are drawn until every class and every profile is among them, then until the share is
    reached; so a small training set may keep more than the share.

    Raises:
        ValueError: every episode is degraded.
    """
    episode, profile, degraded = train.groups()
    random = np.random.default_rng([seed, len(train)])
    whole = random.permutation(np.unique(episode[~degraded]))
    if not len(whole):
        raise ValueError(
            "knn_semi needs the labels of at least one episode that is not degraded, got none"
        )
    wanted = max(1, round(share * len(np.unique(episode))))
    holds: dict[Any, set[Any]] = {e: set() for e in whole}
    for e, c, p in zip(episode, train.y, profile, strict=True):
        if e in holds:
            holds[e] |= {("class", int(c)), ("profile", p)}
    missing = set().union(*holds.values())
    chosen: list[Any] = []
    while missing:
        best = max((e for e in whole if e not in chosen), key=lambda e: len(holds[e] & missing))
        chosen.append(best)
        missing -= holds[best]
    chosen += [e for e in whole if e not in chosen][: max(0, wanted - len(chosen))]
    return np.isin(episode, chosen) & ~degraded
