"""The report on one checkpoint: every figure about it, as one ``EvalReport``.

Arranges what the statistics in the other modules compute; the page and the card show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evaluation.alarm_choice import filtered_alarm_scores, filtered_predictions
from evaluation.bootstrap import FEWEST, EpisodeBootstrap, Statistic, resampling
from evaluation.calibration import calibration
from evaluation.detection import (
    MIN_VALIDATION_HOURS,
    AlarmScores,
    alarm_scores,
    choose_threshold,
    detection,
)
from evaluation.documents import (
    BaselineScore,
    ClassScores,
    Confusion,
    Detection,
    Difference,
    EvalReport,
    Figure,
    FigureCode,
    FigureNote,
    Filtered,
    GroupScore,
    LearningCurve,
    ReportWarning,
    Subject,
    Timeline,
    WindowSize,
)
from evaluation.explanations import Explanation
from evaluation.figures import ReportPolicy, coverage_note, figure, restricted
from evaluation.likeness import EpisodeLikeness, likeness_figures
from evaluation.scores import (
    BASELINES,
    RATES,
    SplitPredictions,
    baseline_id,
    f1_statistic,
    macro_f1_with_baselines,
    macro_statistic,
    split_predictions,
)
from features.registry import WindowSpec
from models.alarm import AlarmRule

BOUNDS = ("value", "low", "high")


# Long, because it puts one document together, field by field.
def evaluate(
    predictions: pl.DataFrame,
    model: str,
    mode: str,
    classes: Sequence[str],
    dataset: dict[str, Any],
    identity: dict[str, Any],
    policy: ReportPolicy,
    window: WindowSpec,
    training: Mapping[str, Any],
    rule: AlarmRule,
    threshold_note: FigureNote | None,
    likeness: EpisodeLikeness | None = None,
    explanation: Explanation | None = None,
) -> EvalReport:
    """The report on one checkpoint and one recipe.

    Args:
        predictions: held-out predictions of every model and baseline of the recipe.
        classes: all classes, in class order.
        dataset: the dataset's facts (see ``datasets.splits.describe``).
        identity: fields of the report that are copied: recipe, versions, hashes, ``config`` (the
            model's hyperparameters).
        training: the checkpoint's ``history`` and ``best_step``.
        rule: the checkpoint's alarm rule, and a note on its threshold.
        likeness: how like training the test episodes are.
        explanation: what argues for the model's phases.
    """
    test = split_predictions(predictions, model, mode, classes)
    val = split_predictions(predictions, model, mode, classes, "val")
    subject = Subject(
        model=model,
        mode=mode,
        checkpoint_id=test.checkpoint_id,
        recipe=identity["recipe"],
        dataset_version=identity["dataset_version"],
    )
    bootstrap, bootstrap_facts = resampling(subject.recipe, test, policy)
    length_s, stride_s = window.length_ms / 1000, window.stride_ms / 1000
    smooth_test, smooth_val = filtered_predictions(test, rule), filtered_predictions(val, rule)
    raw_val = alarm_scores(val, classes, length_s, stride_s)

    def as_alarm(
        test: AlarmScores, val: AlarmScores, chosen: tuple[float, FigureNote | None]
    ) -> Detection:
        return detection(test, val, chosen, smooth_test.episodes, policy, bootstrap, subject)

    alarms = as_alarm(
        filtered_alarm_scores(smooth_test, rule, window),
        filtered_alarm_scores(smooth_val, rule, window),
        (rule.threshold, threshold_note),
    )
    lacking = bootstrap_facts.replicates_lacking_a_class
    report = EvalReport(
        **dict(subject) | identity,
        classes=list(classes),
        roster=[classes[i] for i in test.roster],
        absent_classes=[c for i, c in enumerate(classes) if i not in test.roster],
        tested_profiles=dataset["tested_profiles"],
        untested_profiles=dataset["untested_profiles"],
        n_windows=len(test.actual),
        n_episodes=len(test.episodes),
        window=WindowSize(length_s=length_s, stride_s=stride_s),
        splits=dataset["splits"],
        excluded_episodes=dataset["excluded"],
        exclusions=dataset["exclusions"],
        bootstrap=bootstrap_facts,
        **_f1_figures(test, val, classes, bootstrap, subject, lacking),
        baselines=_baselines(test, predictions, classes, dataset, policy, bootstrap, subject),
        confusion=Confusion(classes=list(classes), counts=test.confusion.sum(axis=0).tolist()),
        calibration=calibration(test, val, bootstrap, subject),
        filtered=_filtered(test, smooth_test, rule, classes, bootstrap, subject),
        detection=alarms,
        unfiltered_detection=restricted(
            as_alarm(
                alarm_scores(test, classes, length_s, stride_s),
                raw_val,
                choose_threshold(raw_val, policy),
            ),
            {"filter": "off"},
        ),
        unlike=likeness_figures(likeness, test, bootstrap, subject) if likeness else None,
        learning_curve=LearningCurve(rows=training["history"], best_step=training["best_step"]),
        timeline=_timeline(smooth_test, classes, rule.threshold, length_s),
        importance=explanation.importance if explanation else None,
        errors=explanation.errors if explanation else [],
    )
    return report.model_copy(update={"warnings": _warnings(report)})


# Long, because it puts one document together, field by field.
def _f1_figures(
    test: SplitPredictions,
    val: SplitPredictions,
    classes: Sequence[str],
    bootstrap: EpisodeBootstrap,
    subject: Subject,
    lacking: int,
) -> dict[str, Any]:
    """Macro F1, the rates of every class of the roster, macro F1 within profiles and hosts."""
    roster = test.roster
    masks = {
        (column, name): (test.episodes[column] == name).to_numpy()
        for column in ("profile", "host_id")
        for name in test.episodes[column].unique().sort()
    }
    statistics: dict[str, Statistic] = {
        "whole": f1_statistic(test.confusion, roster),
        "within": macro_statistic(
            [test.confusion * mask[:, None, None] for mask in masks.values()], roster
        ),
    }
    replicates = bootstrap.replicates_of(statistics)
    observed = {name: bootstrap.observed(statistic) for name, statistic in statistics.items()}

    def group(at: int, column: str, name: str) -> GroupScore:
        mask = masks[column, name]
        episodes = int(mask.sum())
        resampled = replicates["within"][:, at]
        return GroupScore(
            name=name,
            windows=int(test.confusion[mask].sum()),
            episodes=episodes,
            classes=int((test.confusion[mask].sum(axis=(0, 2)) > 0).sum()),
            macro_f1=figure(
                subject,
                "macro_f1",
                float(observed["within"][at]),
                resampled if episodes >= FEWEST else resampled[:0],
                where={column: name},
                note=coverage_note(episodes),
            ),
        )

    return {
        "macro_f1": figure(
            subject,
            "macro_f1",
            float(observed["whole"][0]),
            replicates["whole"][:, 0],
            left_out=lacking,
            note=coverage_note(len(test.episodes)),
        ),
        "val_macro_f1": figure(
            subject.on("val"),
            "macro_f1",
            val.macro_f1,
            note=FigureNote(code="no_validation_interval"),
        ),
        "per_class": _class_scores(test, classes, observed["whole"], replicates["whole"], subject),
        "per_profile": [group(i, *key) for i, key in enumerate(masks) if key[0] == "profile"],
        "per_host": [group(i, *key) for i, key in enumerate(masks) if key[0] == "host_id"],
    }


def _class_scores(
    test: SplitPredictions,
    classes: Sequence[str],
    observed: NDArray[np.float64],
    replicates: NDArray[np.float64],
    subject: Subject,
) -> list[ClassScores]:
    """F1, precision and recall of every class of the roster.

    Args:
        observed: what ``f1_statistic`` gives, ``(1 + 3 n_classes,)``; ``replicates`` with a first
            axis for the draws.
    """
    roster = test.roster
    support = test.confusion.sum(axis=(0, 2))

    def rates(at: int) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        for i, name in enumerate(RATES):
            column = 1 + at + i * len(roster)
            value, resampled = float(observed[column]), replicates[:, column]
            undefined = np.isnan(resampled)
            same = len(resampled) and np.all((resampled == value) | undefined)
            code: FigureCode = "never_predicted" if np.isnan(value) else "constant"
            figures[name] = figure(
                subject,
                name,
                value,
                None if same else resampled,
                where={"class": classes[roster[at]]},
                left_out=int(undefined.sum()),
                note=FigureNote(code=code) if same or np.isnan(value) else None,
            )
        return figures

    return [
        ClassScores(name=classes[c], support=int(support[c]), **rates(at))
        for at, c in enumerate(roster)
    ]


def _filtered(
    test: SplitPredictions,
    smooth: SplitPredictions,
    rule: AlarmRule,
    classes: Sequence[str],
    bootstrap: EpisodeBootstrap,
    subject: Subject,
) -> Filtered:
    """What the filter makes of the phases, on the same resampled episodes."""
    statistics = {
        "own": f1_statistic(smooth.confusion, smooth.roster),
        "pair": macro_statistic([smooth.confusion, test.confusion], test.roster),
    }
    drawn = bootstrap.replicates_of(statistics)
    own, pair = (bootstrap.observed(statistic) for statistic in statistics.values())
    found = Filtered(
        alarm_rule_id=rule.id,
        temperature=rule.temperature,
        macro_f1=figure(subject, "macro_f1", float(own[0]), drawn["own"][:, 0]),
        change=figure(
            subject,
            "macro_f1_difference",
            float(pair[0] - pair[1]),
            drawn["pair"][:, 0] - drawn["pair"][:, 1],
        ),
        per_class=_class_scores(smooth, classes, own, drawn["own"], subject),
    )
    return restricted(found, {"filter": "on"})


def _baselines(
    test: SplitPredictions,
    predictions: pl.DataFrame,
    classes: Sequence[str],
    dataset: dict[str, Any],
    policy: ReportPolicy,
    bootstrap: EpisodeBootstrap,
    subject: Subject,
) -> list[BaselineScore]:
    """Each baseline on the same windows, and how much better the model is."""
    (model_value, model_drawn), scores = macro_f1_with_baselines(
        test, predictions, dataset, classes, policy.seed, bootstrap
    )
    others = {
        name: subject.model_copy(update={"model": name, "checkpoint_id": baseline_id(name)})
        for name in BASELINES
    }
    return [
        BaselineScore(
            name=name,
            macro_f1=figure(other, "macro_f1", *scores[name]),
            difference=Difference(
                **dict(
                    figure(
                        subject,
                        "macro_f1_difference",
                        model_value - scores[name][0],
                        model_drawn - scores[name][1],
                    )
                ),
                other=other.predictor,
            ),
        )
        for name, other in others.items()
    ]


def _timeline(
    test: SplitPredictions, classes: Sequence[str], threshold: float, length_s: float
) -> Timeline:
    """One episode, window by window: the same for every model of a recipe.

    Of the test episodes the one with the most phases, then with the most windows, then first by id.
    """
    phases = (test.confusion.sum(axis=2) > 0).sum(axis=1)
    windows = test.confusion.sum(axis=(1, 2))
    chosen = max(range(len(windows)), key=lambda i: (phases[i], windows[i], -i))
    mask = test.episode == chosen
    columns = ("episode_id", "host_id", "profile", "sample_name", "onset_s")
    return Timeline(
        **test.episodes.select(columns).row(chosen, named=True),
        threshold=threshold,
        length_s=length_s,
        start_s=test.windows.filter(pl.Series(mask))["start_s"].to_list(),
        actual=[classes[i] for i in test.actual[mask]],
        predicted=[classes[i] for i in test.predicted[mask]],
        proba={phase: test.proba[mask, i].round(6).tolist() for i, phase in enumerate(classes)},
    )


def _alarm_warnings(alarms: Detection) -> Iterator[ReportWarning]:
    val_hours = alarms.clean_hours["val"]
    rate, alarmed = alarms.false_alarms_per_hour.value, alarms.clean_time_alarmed.value
    if rate is not None and rate > alarms.budget_per_hour:
        numbers = {
            "per_hour": rate, "hours": alarms.clean_hours["test"],
            "budget": alarms.budget_per_hour, "val_hours": val_hours,
        }  # fmt: skip
        yield ReportWarning(code="false_alarms_over_budget", numbers=numbers)
    if alarmed is not None and alarmed > alarms.budget_clean_time:
        numbers = {"share": alarmed, "budget": alarms.budget_clean_time}
        yield ReportWarning(code="clean_time_over_budget", numbers=numbers)
    if alarms.provisional:
        numbers = {"hours": val_hours, "needed": MIN_VALIDATION_HOURS}
        yield ReportWarning(code="provisional_threshold", numbers=numbers)


def _warnings(report: EvalReport) -> list[ReportWarning]:
    """What a reader must not overlook."""
    warnings = [
        ReportWarning(
            code="not_better_than_baseline",
            about=baseline.name,
            numbers={bound: getattr(baseline.difference, bound) for bound in BOUNDS},
        )
        for baseline in report.baselines
        if not (baseline.difference.low or 0) > 0
    ]
    val, high = report.val_macro_f1.value, report.macro_f1.high
    if val is not None and high is not None and val > high:
        warnings.append(ReportWarning(code="validation_above_test", numbers={"value": val}))
    warnings += _alarm_warnings(report.detection)
    found = report.unlike
    if found and (found.share.low or 0) > found.alpha:
        numbers = {"share": found.share.value or 0.0, "alpha": found.alpha}
        warnings.append(ReportWarning(code="unlike_training", numbers=numbers))
    warnings += [ReportWarning(code="untested_profile", about=p) for p in report.untested_profiles]
    warnings += [ReportWarning(code="absent_class", about=c) for c in report.absent_classes]
    synthetic = sum(side.synthetic_episodes for side in report.splits.values())
    if synthetic:
        warnings.append(ReportWarning(code="synthetic_episodes", numbers={"episodes": synthetic}))
    return warnings
