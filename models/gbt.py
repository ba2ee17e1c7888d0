"""Gradient-boosted trees on summary inputs (XGBoost's native interface)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xgboost as xgb

from models.base import (
    Classifier,
    Epoch,
    Examples,
    Exported,
    History,
    blocks,
    class_weights,
)
from models.booster import check_booster
from models.trees import Trees

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from models.base import Inputs
    from models.hyperparameters import GbtConfig

_BLOCK = 65_536


class _BlockIter(xgb.DataIter):
    """Feeds a quantile matrix block by block, so the whole X is never in memory."""

    def __init__(self, examples: Examples, weights: NDArray[np.float32]):
        super().__init__()
        self._examples = examples
        self._weights = weights
        self._at = 0

    def next(self, input_data: Callable) -> bool:
        if self._at >= len(self._examples):
            return False
        block = slice(self._at, self._at + _BLOCK)
        y = self._examples.y[block]
        X = np.asarray(self._examples.X[block], dtype=np.float32)
        input_data(data=X, label=y, weight=self._weights[y])
        self._at += _BLOCK
        return True

    def reset(self) -> None:
        self._at = 0


class _Report(xgb.callback.TrainingCallback):
    def __init__(self, n_rounds: int, progress: Callable[[int, int, str], None]):
        self._n_rounds = n_rounds
        self._progress = progress

    def after_iteration(self, model: Any, epoch: int, evals_log: dict) -> bool:  # noqa: ARG002
        last = {name: curve["mlogloss"][-1] for name, curve in evals_log.items()}
        text = ", ".join(f"{name} log loss {value:.3f}" for name, value in last.items())
        self._progress(epoch + 1, self._n_rounds, text)
        return False


class Gbt(Classifier):
    """Multi-class boosted trees; a missing value takes the branch learned for missing values.

    Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016.
    """

    input_kind = "summary"
    sidecar_suffix = ".ubj"
    explained = "exact"

    def _fit(
        self,
        train: Examples,
        val: Examples | None,
        progress: Callable[[int, int, str], None],
    ) -> None:
        config: GbtConfig = self.config
        weights = class_weights(train.y, self.n_classes)
        if val is not None and not weights[val.y].any():
            val = None  # only classes that were not trained: no criterion to stop on
        matrix = xgb.QuantileDMatrix(_BlockIter(train, weights), max_bin=config.max_bin)
        evals = [(matrix, "train")]
        if val is not None:
            # weights are 0 for classes missing from training: they must not decide when to stop
            val_matrix = xgb.QuantileDMatrix(
                _BlockIter(val, weights), ref=matrix, max_bin=config.max_bin
            )
            evals.append((val_matrix, "val"))
        parameters = {
            "objective": "multi:softprob",
            "num_class": self.n_classes,
            "eval_metric": "mlogloss",
            "tree_method": "hist",
            "device": self.device_,
            "eta": config.learning_rate,
            "max_depth": config.max_depth,
            "min_child_weight": config.min_child_weight,
            "subsample": config.subsample,
            "colsample_bynode": config.colsample_bynode,
            "lambda": config.reg_lambda,
            "max_bin": config.max_bin,
            "nthread": config.n_threads,
            "seed": self.seed,
            "verbosity": 0,
        }
        curves: dict[str, dict[str, list[float]]] = {}
        self.booster_ = xgb.train(
            parameters,
            matrix,
            config.n_rounds,
            evals=evals,
            evals_result=curves,
            early_stopping_rounds=config.early_stopping_rounds if val is not None else None,
            callbacks=[_Report(config.n_rounds, progress)],
            verbose_eval=False,
        )
        best = self.booster_.best_iteration if val is not None else config.n_rounds - 1
        self.booster_ = self.booster_[: best + 1]
        losses = curves["train"]["mlogloss"]
        val_losses = curves["val"]["mlogloss"] if val is not None else [None] * len(losses)
        self.history_ = History(
            [Epoch(i, t, v, None) for i, (t, v) in enumerate(zip(losses, val_losses, strict=True))],
            best,
        )

    def _predict_proba(self, X: Inputs) -> NDArray[np.float32]:
        return np.concatenate(
            [
                np.asarray(self.booster_.inplace_predict(block, missing=np.nan)).reshape(
                    len(block), self.n_classes
                )
                for block in blocks(X, _BLOCK)
            ]
        )

    def _set_config(self, config: GbtConfig) -> None:
        super()._set_config(config)
        self.booster_.set_param({"nthread": config.n_threads})

    def contributions(self, X: Inputs, channel: NDArray[np.int64]) -> NDArray[np.float64]:
        """Exact: with the trees' bias they add up to the margin of the predicted class.

        Lundberg et al., "From local explanations to global understanding with explainable AI for
        trees", Nature Machine Intelligence 2, 2020.
        """
        predicted = self.predict_proba(X).argmax(axis=1)
        out = np.zeros((len(X), int(channel.max()) + 1))
        if not len(X):
            return out
        matrix = xgb.DMatrix(np.asarray(X[:], dtype=np.float32), missing=np.nan)
        of_class = self.booster_.predict(matrix, pred_contribs=True, strict_shape=True)
        per_input = of_class[np.arange(len(X)), predicted, :-1]  # the last is the bias
        for each in np.unique(channel):
            out[:, each] = per_input[:, channel == each].sum(axis=1)
        return out

    def to_sidecar(self) -> bytes:
        return bytes(self.booster_.save_raw("ubj"))

    def restore(self, sidecar: bytes, n_inputs: int, standardize: dict[str, Any] | None) -> None:
        check_booster(sidecar, n_inputs, self.n_classes)
        if standardize is not None:
            raise ValueError("trees have no scaling")
        self.booster_ = xgb.Booster({"nthread": self.config.n_threads})
        self.booster_.load_model(bytearray(sidecar))
        self.n_inputs_ = n_inputs
        self.standardize_ = standardize

    def exported(self, n_timepoints: int) -> Exported:  # noqa: ARG002
        return Exported("trees", Trees.from_xgboost(bytes(self.booster_.save_raw("json"))).arrays())
