"""The report on one checkpoint: every figure of it, as one versioned JSON value.

Arranges what the statistics beside it compute; a page is rendered from the value alone. Its form
is ``report.schema.json``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from evaluation.calibration import calibration
from evaluation.detection import detection, watch
from evaluation.figures import REPORT_SCHEMA, Subject
from evaluation.scores import (
    BASELINES,
    RATES,
    SHORTCUTS,
    Scored,
    baseline_id,
    f1_statistic,
    guesses,
    macro_f1,
    macro_statistic,
    scored,
)
from evaluation.testset import resampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evaluation.bootstrap import EpisodeBootstrap, Statistic
    from evaluation.figures import ReportPolicy
    from features.registry import WindowSpec

MAY_HAVE_LEARNED = {
    "position_only": "it may have learned the schedule",
    "missingness_only": "it may have learned which collectors ran",
    "prior": "it may have learned nothing but how common each phase is",
    "uniform": "it may have learned nothing",
}
FEWEST = 4  # episodes to resample: of fewer, a handful of values comes out, surer than they are
CURVE = ("step", "train_loss", "val_loss", "val_macro_f1")


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
) -> dict[str, Any]:
    """The report on one checkpoint and one recipe.

    Args:
        predictions: held-out predictions of every model and baseline of the recipe.
        classes: all classes, in class order.
        dataset: the dataset's facts (see ``datasets.describe``).
        identity: what goes into the report as it is: recipe, versions, hashes, ``config`` (the
            model's hyper-parameters).
        training: the checkpoint's ``history`` and ``best_step``.
    """
    own = scored(predictions, model, mode, classes)
    val = scored(predictions, model, mode, classes, "val")
    subject = Subject(
        model, mode, identity["recipe"], "test", identity["dataset_version"], own.checkpoint_id
    )
    roster = own.roster
    bootstrap, bootstrap_facts = resampling(identity["recipe"], own, policy)
    lacking = bootstrap_facts["replicates_lacking_a_class"]
    length_s, stride_s = window.length_ms / 1000, window.stride_ms / 1000
    alarms = detection(
        watch(own, classes, length_s, stride_s),
        watch(val, classes, length_s, stride_s),
        own,
        policy.false_alarms_per_hour,
        bootstrap,
        subject,
    )
    report: dict[str, Any] = {
        "schema": REPORT_SCHEMA,
        "model": model,
        "mode": mode,
        "split": "test",
        "checkpoint_id": own.checkpoint_id,
        **identity,
        "classes": list(classes),
        "roster": [classes[i] for i in roster],
        "absent_classes": [c for i, c in enumerate(classes) if i not in roster],
        "tested_profiles": dataset["tested_profiles"],
        "untested_profiles": dataset["untested_profiles"],
        "n_windows": len(own.actual),
        "n_episodes": len(own.episodes),
        "window": {"length_s": length_s, "stride_s": stride_s},
        "splits": dataset["splits"],
        "excluded_episodes": dataset["excluded"],
        "bootstrap": bootstrap_facts,
        **_f1_figures(own, val, classes, bootstrap, subject, lacking),
        "baselines": _baselines(own, predictions, classes, dataset, policy, bootstrap, subject),
        "confusion": {"classes": list(classes), "counts": own.confusion.sum(axis=0).tolist()},
        "calibration": calibration(own, val, bootstrap, subject),
        "detection": alarms,
        "learning_curve": {
            "columns": list(CURVE),
            "rows": [list(row) for row in training["history"]],
            "best_step": training["best_step"],
        },
        "timeline": _timeline(own, classes, alarms["threshold"]["value"], length_s),
    }
    report["warnings"] = _warnings(report)
    return report


def _f1_figures(
    own: Scored,
    val: Scored,
    classes: Sequence[str],
    bootstrap: EpisodeBootstrap,
    subject: Subject,
    lacking: int,
) -> dict[str, Any]:
    """Macro F1, the rates of every class of the roster, macro F1 within profiles and hosts."""
    roster = own.roster
    within = {
        (column, name): (own.episodes[column] == name).to_numpy()
        for column in ("profile", "host_id")
        for name in own.episodes[column].unique().sort()
    }
    statistics: dict[str, Statistic] = {
        "whole": f1_statistic(own.confusion, roster),
        "within": macro_statistic(
            [own.confusion * here[:, None, None] for here in within.values()], roster
        ),
    }
    replicates = bootstrap.replicates_of(statistics)
    observed = {name: bootstrap.observed(statistic) for name, statistic in statistics.items()}

    def rates(at: int) -> dict[str, Any]:
        """F1, precision and recall of the ``at``-th class of the roster."""
        where = {"class": classes[roster[at]]}
        columns = {name: 1 + at + i * len(roster) for i, name in enumerate(RATES)}
        values, drawn = observed["whole"], replicates["whole"]
        figures = {}
        for name, column in columns.items():
            value, resampled = float(values[column]), drawn[:, column]
            same = np.all((resampled == value) | np.isnan(resampled))
            figures[name] = subject.figure(
                name,
                value,
                None if same else resampled,
                where=where,
                left_out=int(np.isnan(resampled).sum()),
                note="never predicted" if np.isnan(value)
                else "the same in every resample: no interval" if same else None,
            )  # fmt: skip
        return figures

    def groups(column: str) -> list[dict[str, Any]]:
        return [
            {
                column: name,
                "windows": int(own.confusion[here].sum()),
                "episodes": int(here.sum()),
                "classes": int((own.confusion[here].sum(axis=(0, 2)) > 0).sum()),
                "macro_f1": subject.figure(
                    "macro_f1",
                    float(observed["within"][i]),
                    replicates["within"][:, i] if here.sum() >= FEWEST else None,
                    where={column: name},
                    note=None if here.sum() >= FEWEST else _too_few(int(here.sum())),
                ),
            }
            for i, ((of, name), here) in enumerate(within.items())
            if of == column
        ]

    support = own.confusion.sum(axis=(0, 2))
    return {
        "macro_f1": subject.figure(
            "macro_f1", float(observed["whole"][0]), replicates["whole"][:, 0], left_out=lacking
        ),
        "val_macro_f1": subject.on("val").figure(
            "macro_f1",
            float(macro_f1(val.confusion.sum(axis=0), val.roster)),
            note="for choosing only: no interval",
        ),
        "per_class": [
            {"class": classes[c], "support": int(support[c]), **rates(at)}
            for at, c in enumerate(roster)
        ],
        "per_profile": groups("profile"),
        "per_host": groups("host_id"),
    }


def _too_few(episodes: int) -> str:
    return f"{episodes} episode{'s' if episodes > 1 else ''}: too few to resample"


def _baselines(
    own: Scored,
    predictions: pl.DataFrame,
    classes: Sequence[str],
    dataset: dict[str, Any],
    policy: ReportPolicy,
    bootstrap: EpisodeBootstrap,
    subject: Subject,
) -> list[dict[str, Any]]:
    """Each baseline on the same windows, and by how much the model is better."""
    shortcuts = {name: scored(predictions, name, own.mode, classes) for name in SHORTCUTS}
    fitted = macro_statistic([p.confusion for p in (own, *shortcuts.values())], own.roster)
    guessed = guesses(own, dataset, classes, policy.seed)
    drawn = bootstrap.replicates_of(
        {"fitted": fitted} | {name: statistic for name, (_, statistic) in guessed.items()}
    )
    own_value, *values = bootstrap.observed(fitted).tolist()
    own_drawn, *replicates = drawn["fitted"].T
    found = dict(zip(shortcuts, zip(values, replicates, strict=True), strict=True))
    found |= {name: (value, drawn[name]) for name, (value, _) in guessed.items()}
    others = {
        name: replace(subject, model=name, checkpoint_id=baseline_id(name)) for name in BASELINES
    }
    return [
        {
            "name": name,
            "macro_f1": other.figure("macro_f1", *found[name]),
            "difference": subject.figure(
                "macro_f1_difference",
                own_value - found[name][0],
                own_drawn - found[name][1],
            )
            | {"other": other.who},
        }
        for name, other in others.items()
    ]


def _timeline(
    own: Scored, classes: Sequence[str], threshold: float, length_s: float
) -> dict[str, Any]:
    """One episode, window by window: the same for every model of a recipe.

    Of the test episodes the one with the most phases, then with the most windows, then first by id.
    """
    phases = (own.confusion.sum(axis=2) > 0).sum(axis=1)
    windows = own.confusion.sum(axis=(1, 2))
    chosen = max(range(len(windows)), key=lambda i: (phases[i], windows[i], -i))
    here = own.episode == chosen
    episode = own.episodes.row(chosen, named=True)
    return {
        **{name: episode[name] for name in ("episode_id", "host_id", "profile", "sample_name")},
        "onset_s": episode["onset_s"],
        "threshold": threshold,
        "length_s": length_s,
        "start_s": own.windows.filter(pl.Series(here))["start_s"].to_list(),
        "actual": [classes[i] for i in own.actual[here]],
        "predicted": [classes[i] for i in own.predicted[here]],
        "proba": {phase: own.proba[here, i].round(6).tolist() for i, phase in enumerate(classes)},
    }


def _warnings(report: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """What a reader must not overlook: a code, what it is about, and a sentence each."""
    said: list[dict[str, str | None]] = []

    def warn(code: str, about: str | None, text: str) -> None:
        said.append({"code": code, "about": about, "text": text})

    for baseline in report["baselines"]:
        difference = baseline["difference"]
        if difference["low"] <= 0:
            name = baseline["name"]
            warn(
                "not_better_than_baseline",
                name,
                f"Not better than {name.replace('_', '-')} beyond chance (difference "
                f"{difference['value']:+.3f}, 95 % interval {difference['low']:+.3f} to "
                f"{difference['high']:+.3f}): {MAY_HAVE_LEARNED[name]}.",
            )
    val = report["val_macro_f1"]["value"]
    if val is not None and val > report["macro_f1"]["high"]:
        warn(
            "validation_above_test",
            None,
            f"Validation macro F1 {val:.3f} lies above the test interval: not "
            "all that was learned on the training side carries over.",
        )
    alarms = report["detection"]
    false = alarms["false_alarms_per_hour"]["value"]
    if false is not None and false > alarms["budget_per_hour"]:
        warn(
            "false_alarms_over_budget",
            None,
            f"{false:.3g} false alarms an hour on test, where {alarms['budget_per_hour']:g} were "
            f"allowed: the threshold rests on {alarms['clean_hours']['val']:.3g} clean hours.",
        )
    for profile in report["untested_profiles"]:
        text = f"Profile {profile} was never tested: no figure speaks of it."
        warn("untested_profile", profile, text)
    for phase in report["absent_classes"]:
        text = f"Phase {phase} is absent from the test set: never tested."
        warn("absent_class", phase, text)
    synthetic = sum(side["synthetic_episodes"] for side in report["splits"].values())
    if synthetic:
        text = f"{synthetic} synthetic episodes are part of this dataset."
        warn("synthetic_episodes", None, text)
    return said
