"""The interface of classifiers: fit, predict_proba, sidecar, restore. No files, no splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from config.errors import PhasewatchError
from features.registry import InputKind
from models.device import pick_device
from models.metrics import macro_f1

if TYPE_CHECKING:
    from models.bookmark import Bookmark


class NotFittedError(PhasewatchError):
    """A model was used before it was fitted."""


class NotFiniteError(PhasewatchError):
    """A model gave a probability that is no number: no phase may be read from it."""


def check_finite(proba: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Probabilities ``(n_windows, n_classes)``, if all of them are numbers.

    Raises:
        NotFiniteError: says for how many windows they are not.
    """
    wrong = ~np.isfinite(proba).all(axis=1)
    if wrong.any():
        raise NotFiniteError(
            f"{name}: {np.count_nonzero(wrong)} of {len(proba)} windows have a probability that is "
            "not a number, so no phase is known; restore the model's files or retrain it"
        )
    return proba


class Inputs(Protocol):
    """An array, or anything that has its shape and is indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Examples:
    """Inputs with their classes.

    ``X`` is ``(n_windows, n_inputs)`` or ``(n_windows, n_timepoints, n_inputs)``, float, NaN =
    missing, in memory or lazy; ``y`` is ``(n_windows,)``, integers below ``n_classes``.
    The other fields say where windows come from, for models that draw whole episodes.
    """

    X: Inputs
    y: NDArray[np.int64]
    episode: NDArray[Any] | None = None  # (n_windows,), a number or name per episode
    profile: NDArray[Any] | None = None  # (n_windows,)
    degraded: NDArray[np.bool_] | None = None  # (n_windows,), of an episode with known defects
    episode_ids: NDArray[Any] | None = None  # (n_episodes,), the ids that ``episode`` counts

    def __len__(self) -> int:
        return len(self.y)

    def groups(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
        """``(episode, profile, degraded)``; by default each window is an episode."""
        n = len(self)
        return (
            np.arange(n) if self.episode is None else self.episode,
            np.zeros(n, dtype=np.int64) if self.profile is None else self.profile,
            np.zeros(n, dtype=bool) if self.degraded is None else self.degraded,
        )


@dataclass(frozen=True)
class Epoch:
    """One line of a learning curve."""

    step: int
    train_loss: float
    val_loss: float | None
    val_macro_f1: float | None


@dataclass
class History:
    """The learning curve, and where training stopped."""

    epochs: list[Epoch] = field(default_factory=list)
    best_step: int = 0
    resumed_from: int = 0  # epochs of a training before it that was killed


RuntimeKind = Literal["onnx", "trees", "neighbours", "ensemble"]


@dataclass(frozen=True)
class Exported:
    """A fitted model for a runtime without its training library: a graph, or named arrays."""

    kind: RuntimeKind
    content: bytes | dict[str, NDArray[Any]]


def silent(step: int, total: int, text: str) -> None:
    """A progress callback that reports nothing."""


class Classifier(ABC):
    """A probabilistic classifier over a fixed number of classes.

    Subclasses implement ``_fit``, ``_predict_proba``, ``to_sidecar``, ``restore`` and ``exported``.
    A class that is missing from the training set keeps its column.
    """

    input_kind: ClassVar[InputKind]
    sidecar_suffix: ClassVar[str]
    explained: ClassVar[Literal["exact", "occlusion"]] = "occlusion"  # exact: adds up to the margin
    trains_on_cuda: ClassVar[bool] = True  # if available and allowed by the device

    def __init__(self, config: Any, n_classes: int, *, seed: int = 0, device: str = "auto"):
        self.config = config
        self.n_classes = n_classes
        self.seed = seed
        self.device = device
        self.n_inputs_: int | None = None
        self.standardize_: dict[str, Any] | None = None
        self.device_ = "cpu"
        self.history_ = History()
        self.val_macro_f1_: float | None = None
        self._bookmark: Bookmark | None = None

    def fit(
        self,
        train: Examples,
        val: Examples | None = None,
        progress: Callable[[int, int, str], None] = silent,
        bookmark: Bookmark | None = None,
    ) -> Classifier:
        """Train, and score ``val`` during training. Progress is called with (step, steps, text).

        Args:
            bookmark: where nets save their progress and resume from. Other models ignore it.

        Raises:
            ValueError: shapes, classes or lengths do not fit together.
            RuntimeError: the requested device is not available.
        """
        for name, examples in (("train", train), ("val", val)):
            if examples is not None:
                self._check(name, examples)
        if not len(train):
            raise ValueError("train must have windows, got none")
        if val is not None and not len(val):
            val = None
        if val is not None and val.X.shape[1:] != train.X.shape[1:]:
            raise ValueError(
                f"val must have inputs {train.X.shape[1:]} as train has, got {val.X.shape[1:]}"
            )
        self.n_inputs_ = self.val_macro_f1_ = None  # a failed fit must not leave a fitted model
        self.device_ = pick_device(self.device, useful=self.trains_on_cuda)
        self._bookmark = bookmark
        self._fit(train, val, progress)
        self._bookmark = None
        self.n_inputs_ = train.X.shape[-1]
        if val is not None:
            predicted = self.predict_proba(val.X).argmax(axis=1)
            self.val_macro_f1_ = macro_f1(val.y, predicted, self.n_classes)
        return self

    def predict_proba(self, X: Inputs) -> NDArray[np.float32]:
        """Probabilities ``(n_windows, n_classes)``; rows sum to 1.

        Raises:
            NotFittedError: the model was neither fitted nor restored.
            ValueError: ``X`` has another number of inputs than the training set.
            NotFiniteError: a probability is not a number.
        """
        if self.n_inputs_ is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted; call fit or restore first")
        if len(X.shape) != self._n_axes or X.shape[-1] != self.n_inputs_:
            raise ValueError(
                f"{type(self).__name__}: X must have {self._n_axes} axes, the last with "
                f"{self.n_inputs_} inputs, got {tuple(X.shape)}"
            )
        if not len(X):
            return np.empty((0, self.n_classes), dtype=np.float32)
        return check_finite(self._predict_proba(X), type(self).__name__)

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """A context in which ``predict_proba`` uses one thread, whatever the settings say."""
        from threadpoolctl import threadpool_limits  # here: scoring alone does without

        configured = self.config
        if hasattr(configured, "n_threads"):
            self._set_config(replace(configured, n_threads=1))
        try:
            with threadpool_limits(1):
                yield
        finally:
            self._set_config(configured)

    def _set_config(self, config: Any) -> None:
        self.config = config

    def contributions(self, X: Inputs, channel: NDArray[np.int64]) -> NDArray[np.float64]:
        """How much each channel argues for the predicted class, ``(n_windows, n_channels)``.

        By occlusion: how far its log-odds fall when the channel's inputs are typical of training.
        A subclass with an exact method sets ``explained``.

        Args:
            channel: ``(n_inputs,)``, the channel of each input; those of one are taken together.
        """
        proba, rows = self.predict_proba(X), np.arange(len(X))
        predicted, whole = proba.argmax(axis=1), np.asarray(X[:], dtype=np.float32)
        out = np.zeros((len(X), int(channel.max()) + 1))
        for each in np.unique(channel):
            without = self._proba_without(whole, channel == each)[rows, predicted]
            out[:, each] = _log_odds(proba[rows, predicted]) - _log_odds(without)
        return out

    def _proba_without(
        self, X: NDArray[np.float32], hidden: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Probabilities where the ``hidden (n_inputs,)`` inputs are typical of training."""
        return self.predict_proba(np.where(hidden, self._typical_inputs(), X))

    def _typical_inputs(self) -> NDArray[np.float32]:
        """Inputs ``(n_inputs,)`` without information; NaN, missing, where training kept none."""
        if self.standardize_ is None:
            return np.full(self.n_inputs_ or 0, np.nan, dtype=np.float32)
        from models.scaling import typical  # here: scaling reads this module

        return typical(self.standardize_)

    def ablations(self, X: Inputs) -> dict[str, NDArray[np.float32]]:  # noqa: ARG002
        """Name -> probabilities of the model with a part left out; by default none."""
        return {}

    @property
    def _n_axes(self) -> int:
        return 2 if self.input_kind == "summary" else 3

    def _check(self, name: str, examples: Examples) -> None:
        if len(examples.X.shape) != self._n_axes:
            raise ValueError(
                f"{name}.X must have {self._n_axes} axes for {type(self).__name__}, "
                f"got {tuple(examples.X.shape)}"
            )
        if len(examples.X) != len(examples.y):
            raise ValueError(
                f"{name} must have one label per window, got {len(examples.X)} windows, "
                f"{len(examples.y)} labels"
            )
        if len(examples.y) and not 0 <= examples.y.min() <= examples.y.max() < self.n_classes:
            raise ValueError(
                f"{name}.y must be in 0..{self.n_classes - 1}, got {examples.y.min()} to "
                f"{examples.y.max()}"
            )

    @abstractmethod
    def _fit(
        self,
        train: Examples,
        val: Examples | None,
        progress: Callable[[int, int, str], None],
    ) -> None: ...

    @abstractmethod
    def _predict_proba(self, X: Inputs) -> NDArray[np.float32]: ...

    @abstractmethod
    def to_sidecar(self) -> bytes:
        """The fitted weights, in a format that runs no code when loaded."""

    @abstractmethod
    def restore(self, sidecar: bytes, n_inputs: int, standardize: dict[str, Any] | None) -> None:
        """Become the fitted model that wrote ``sidecar``."""

    @abstractmethod
    def exported(self, n_timepoints: int) -> Exported:
        """The fitted model for a device; ``live.runtime`` has a runtime for each kind.

        Args:
            n_timepoints: of a window, for models that take whole windows.
        """


def _log_odds(proba: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log odds; probabilities are clipped to 1e-6 and 1 - 1e-6: a class may have no vote."""
    p = np.clip(proba.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(p) - np.log1p(-p)


def class_weights(y: NDArray[np.int64], n_classes: int) -> NDArray[np.float32]:
    """Weights that give every class present the same total; 0 for a missing class."""
    counts = np.bincount(y, minlength=n_classes).astype(np.float64)
    present = counts > 0
    weights = np.zeros(n_classes)
    weights[present] = len(y) / (present.sum() * counts[present])
    return weights.astype(np.float32)


def blocks(X: Inputs, size: int) -> Iterator[NDArray[np.float32]]:
    """``X`` in consecutive pieces of at most ``size`` windows."""
    for start in range(0, len(X), size):
        yield np.asarray(X[start : start + size], dtype=np.float32)
