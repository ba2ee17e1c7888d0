"""Likeness figures: the share of test episodes unlike training, beside what was promised.

The p values are those of ``models.likeness``; here they become figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evaluation.bootstrap import EpisodeBootstrap
from evaluation.detection import detected_bounds, ratio_statistic
from evaluation.documents import FigureNote, Subject, Unlike
from evaluation.figures import figure
from evaluation.scores import SplitPredictions


@dataclass(frozen=True)
class EpisodeLikeness:
    """How like training the test episodes of a recipe are."""

    likeness_id: str
    alpha: float
    calibration_episodes: int
    p: Mapping[str, float]  # episode -> its p value


def likeness_figures(
    found: EpisodeLikeness, test: SplitPredictions, bootstrap: EpisodeBootstrap, subject: Subject
) -> Unlike:
    """Which test episodes are called unlike training, and what share, with its interval."""
    ids = test.episodes["episode_id"].to_list()
    called = np.array([found.p[episode] <= found.alpha for episode in ids])
    statistic = ratio_statistic(called.astype(np.float64), np.ones(len(called)))
    share = figure(
        subject,
        "unlike_share",
        float(called.mean()),
        bootstrap.replicates_of({"": statistic})[""],
    )
    if share.value in (0, 1):
        low, high = detected_bounds(share.value, len(ids), share.low, share.high)
        note = FigureNote(code="exact_binomial_bound", numbers={"episodes": len(ids)})
        share = share.model_copy(update={"low": low, "high": high, "note": note})
    return Unlike(
        likeness_id=found.likeness_id,
        alpha=found.alpha,
        calibration_episodes=found.calibration_episodes,
        share=share,
        episodes=[episode for episode, is_called in zip(ids, called, strict=True) if is_called],
    )
