"""How figures and facts of a document are said: on the page, in model cards, in the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evaluation.scores import SHORTCUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Report = Mapping[str, Any]
    Figure = Mapping[str, Any]

NOTHING = "–"
SHORT_ID = 12  # characters of a hash that are shown
LOW_COVERAGE = 0.5
COVERAGE_GAP = 0.1  # between training and test: from here on it may pass for a difference of hosts
BASELINES = {
    "position_only": "knows only when a window lies in its episode: what it scores, the schedule "
    "gives away for free.",
    "missingness_only": "knows only which collectors ran: what it scores, gaps in the recording "
    "give away.",
    "prior": "guesses phases as often as training has them; its line spans the luck of guessing.",
    "uniform": "guesses each phase equally often; its line, too, spans that luck.",
}
WATCHED = {  # check of a batch -> what its figure is
    "coverage": ("coverage", "of the worst source"),
    "channels": ("channels", "largest PSI"),
    "missing": ("missing", "of all values"),
    "verdicts": ("verdicts", "PSI"),
    "class_mix": ("phases predicted", "PSI"),
}
SHARED_WARNINGS = {
    "not_better_than_baseline": "not better than {about} beyond chance",
    "validation_above_test": "validation macro F1 lies above the test interval: not all that was "
    "learned carries over",
    "false_alarms_over_budget": "more false alarms an hour than the threshold was chosen for",
}
"""What to say where several reports have one warning; others are said in their own words."""
DATASET_WARNINGS = frozenset({"untested_profile", "absent_class", "synthetic_episodes"})
"""Warnings that ``untested`` says, once for a dataset."""


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def number(value: float | None, *, sign: bool = False) -> str:
    """Three decimals and a real minus; a dash where there is no finite value."""
    if value is None or not math.isfinite(value):
        return NOTHING
    rounded = round(value, 3) + 0.0  # no negative zero
    return f"{rounded:{'+' if sign else ''}.3f}".replace("-", "−")


def measure(value: float | None) -> str:
    """Seconds or a rate, in as many digits as a reader needs; a dash where there is no value."""
    if value is None or not math.isfinite(value):
        return NOTHING
    digits = 0 if abs(value) >= 100 or not value else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}".replace("-", "−")


def clean_time(hours: float) -> str:
    """How long it was clean: what a rate of false alarms rests on."""
    if hours < 1:
        return f"{measure(60 * hours)} clean minutes"
    return f"{measure(hours)} clean hours"


def span(figure: Figure, say: Callable[[float | None], str] = number) -> str:
    """The interval; nothing where there is none, and an upper end that is not there is said."""
    if not finite(figure["low"]):
        return ""
    low = say(figure["low"])
    return f"{low} to {say(figure['high'])}" if finite(figure["high"]) else f"{low} or more"


def count(value: int | None) -> str:
    """An integer with thin spaces between thousands; a dash for none."""
    return NOTHING if value is None else f"{value:,}".replace(",", "\u202f")


def short(value: str) -> str:
    """The beginning of a hash; that a tree was dirty stays visible."""
    text = str(value)
    return text[:SHORT_ID] + ("-dirty" if text.endswith("-dirty") else "")


def plural(n: int, one: str, many: str = "") -> str:
    """``3 hosts``; ``many`` where it is not ``one`` with an s."""
    return f"{count(n)} {one if n == 1 else many or one + 's'}"


def join_words(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = list(words) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def baseline_label(name: str) -> str:
    return name.replace("_", "-")


def who(report: Report) -> str:
    return f"{report['model']} {report['mode']}"


def coverage_of_profiles(report: Report) -> str:
    """``5 of 6 profiles tested; scan-and-dial was never tested.``"""
    tested, untested = report["tested_profiles"], report["untested_profiles"]
    total = len(tested) + len(untested)
    if not untested:
        return f"All {plural(total, 'profile')} tested."
    verb = "was" if len(untested) == 1 else "were"
    return (
        f"{len(tested)} of {plural(total, 'profile')} tested; "
        f"{join_words(untested)} {verb} never tested."
    )


def untested(report: Report) -> list[str]:
    """What the figures of a report do not speak of, or not of real machines; a sentence each."""
    said = [coverage_of_profiles(report)]
    absent = report["absent_classes"]
    if absent:
        noun, verb = ("Phase", "is") if len(absent) == 1 else ("Phases", "are")
        said.append(
            f"{noun} {join_words(absent)} {verb} absent from the test set: never tested, and no "
            "part of any mean."
        )
    where = [
        f"{count(side['synthetic_episodes'])} of {count(side['episodes'])} in {name}"
        for name, side in report["splits"].items()
        if side["synthetic_episodes"]
    ]
    if where:
        said.append(f"Synthetic episodes are part of this dataset: {join_words(where)}.")
    return said


def gaps(report: Report) -> list[str]:
    """What was recorded or used unevenly, a sentence each."""
    said = []
    splits = report["splits"]
    for source, covered in splits["test"]["coverage"].items():
        trained = splits["train"]["coverage"].get(source)
        if trained is not None and abs(covered - trained) > COVERAGE_GAP:
            said.append(
                f"{source} covers {number(trained)} of training and {number(covered)} of test: a "
                "difference in what was recorded can pass for one in behaviour."
            )
        elif covered < LOW_COVERAGE:
            said.append(f"{source} covers only {number(covered)} of the test windows.")
    if report["excluded_episodes"]:
        why = "; ".join(f"{count(n)} {cause}" for cause, n in report["excluded_episodes"].items())
        total = sum(report["excluded_episodes"].values())
        said.append(f"{plural(total, 'episode')} left out ({why}).")
    lacking = report["bootstrap"]["replicates_lacking_a_class"]
    if lacking:
        said.append(
            f"In {count(lacking)} of {count(report['bootstrap']['replicates'])} replicates some "
            "phase did not occur; it is then left out of that replicate's mean."
        )
    return said


def warnings(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """Warnings of the reports of one recipe: whom each concerns, and what it says."""
    found: dict[tuple[str, str | None], list[tuple[Report, str]]] = {}
    for report in reports:
        for warning in report["warnings"]:
            if warning["code"] not in DATASET_WARNINGS:
                key = (warning["code"], warning["about"])
                found.setdefault(key, []).append((report, warning["text"]))
    said = []
    for (code, about), entries in found.items():
        alike = {text for _, text in entries}
        if len(alike) == 1 or code not in SHARED_WARNINGS:
            groups = [(text, [r for r, t in entries if t == text]) for text in sorted(alike)]
        else:
            shared = SHARED_WARNINGS[code].format(about=about and baseline_label(about))
            groups = [(shared, [r for r, _ in entries])]
        said += [
            ("all models" if len(those) == len(reports) > 1 else fold(those), text)
            for text, those in groups
        ]
    return said


def fold(reports: Iterable[Report]) -> str:
    """``cnn realistic and oracle, gru oracle``."""
    by_model: dict[str, list[str]] = {}
    for report in reports:
        by_model.setdefault(report["model"], []).append(report["mode"])
    return ", ".join(f"{model} {join_words(modes)}" for model, modes in by_model.items())


def below_shortcut(report: Report) -> list[str]:
    """Shortcuts that the report's model does not beat beyond chance."""
    return [
        baseline_label(baseline["name"])
        for baseline in report["baselines"]
        if baseline["name"] in SHORTCUTS and not (baseline["difference"]["low"] or 0) > 0
    ]


def chosen(
    reports: Sequence[Report], mode: str, comparisons: Mapping[str, Any] | None
) -> Report | None:
    """The report on the model that is best on validation, of one recipe and mode.

    Choosing on test would flatter the one that is chosen.
    """
    here = [report for report in reports if report["mode"] == mode]
    for family in comparisons["families"] if comparisons else ():
        if family["name"] == "reference" and family["mode"] == mode and family["reference"]:
            named = [r for r in here if r["model"] == family["reference"]["model"]]
            if named:
                return named[0]
    able = [report for report in here if finite(report["val_macro_f1"]["value"])]
    return max(able, key=lambda report: report["val_macro_f1"]["value"], default=None)


def by_test(reports: Iterable[Report]) -> list[Report]:
    """From the highest macro F1 on test; what has none last."""
    return sorted(
        reports,
        key=lambda r: r["macro_f1"]["value"] if finite(r["macro_f1"]["value"]) else -1.0,
        reverse=True,
    )


def alarms(detection: Mapping[str, Any]) -> list[str]:
    """What a watch with these alarms is like, a sentence each."""
    attacked, detected = detection["attacked_episodes"], detection["detected_episodes"]
    delay, false = detection["median_delay_s"], detection["false_alarms_per_hour"]
    said = []
    if not attacked:
        said.append("No test episode is attacked: nothing could be detected.")
    else:
        found = f"Raises the alarm in {detected} of {plural(attacked, 'attack')}"
        if finite(delay["value"]):
            said.append(
                f"{found}; in half of all within {measure(delay['value'])} s of the true start "
                f"({span(delay, measure)} s)."
            )
        else:
            said.append(f"{found}: fewer than half, so that no median delay exists.")
    clean, events = detection["clean_hours"]["test"], detection["false_alarms"]["test"]
    budget = detection["budget_per_hour"]
    if not finite(false["value"]):
        said.append("No clean time in the test set: false alarms cannot be counted.")
    elif not events:
        said.append(
            f"No false alarm in {clean_time(clean)}: at most {measure(false['high'])} an hour."
        )
    else:
        over = f", where {budget:g} were aimed at" if false["value"] > budget else ""
        said.append(
            f"{plural(events, 'false alarm')} in {clean_time(clean)}: {measure(false['value'])} an "
            f"hour ({span(false, measure)}){over}."
        )
    return said
