"""Every sentence about a document: on the page, in cards, in the terminal, in Dagster.

Documents hold codes and numbers; here they become words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from datasets.splits import UNAVAILABLE
from evaluation.documents import (
    ANY,
    NONE,
    CheckName,
    CleanTime,
    Condition,
    Detection,
    DriftCheck,
    Estimate,
    EvalReport,
    Excluded,
    Figure,
    Leak,
    Objection,
    OperatingPoint,
    Remark,
    SureError,
    Unlike,
)
from evaluation.scores import BASELINES

NOTHING = "–"
SHORT_ID = 12  # characters of a hash that are shown
LOW_COVERAGE = 0.5
COVERAGE_GAP = 0.1  # between training and test: from here on a model may learn the gap
BASELINE_MEANS = {
    "position_only": "sees only where a window lies in its episode. Its macro F1 is what the "
    "schedule gives away.",
    "missingness_only": "sees only the coverage of each source, that is, which collectors ran. Its "
    "macro F1 is what gaps in the recording give away.",
    "prior": "guesses each phase as often as it occurs in training.",
    "uniform": "guesses every phase equally often. The intervals of both guessing baselines "
    "include the luck of guessing.",
}
MAY_HAVE_LEARNED = {
    "position_only": "it may have learned the schedule",
    "missingness_only": "it may have learned which collectors ran",
    "prior": "it may have learned only how common each phase is",
    "uniform": "it may have learned nothing",
}
_PROMISE = (  # of ``unlike`` and of the warning ``unlike_training``
    "Expect some by chance: of episodes that resemble the validation episodes, on average at most "
    "{alpha:.0%} are flagged as unlike the training data."
)
SENTENCES = {  # by code; {label} is the baseline, profile, class or host
    # warnings of a report
    "not_better_than_baseline": "Not significantly better than {label} (difference {value:+.3f}, "
    "95% interval {low:+.3f} to {high:+.3f}): {reason}.",
    "validation_above_test": "Validation macro F1 {value:.3f} lies above the test interval: part "
    "of what the model learned does not carry over.",
    "false_alarms_over_budget": "{false_alarms} on test, budget {budget:g} per hour. "
    "The threshold was chosen on {val_hours:.3g} clean hours.",
    "clean_time_over_budget": "{share:.1%} of clean time on test is under alarm, budget "
    "{budget:.1%}.",
    "provisional_threshold": "The alarm threshold is provisional: it rests on {hours:.2g} clean "
    "hours of validation; {needed:g} are needed.",
    "unlike_training": "{share:.0%} of the test episodes are unlike the training data. "
    + _PROMISE
    + " Record more training episodes under conditions like those of the test episodes.",
    "untested_profile": "Profile {label} was never tested.",
    "absent_class": "Phase {label} does not occur in the test split, so it was never tested.",
    "synthetic_episodes": "The dataset contains {episodes} synthetic episodes.",
    # notes on figures
    "budget_allows_none": "Validation has {hours:.3g} clean hours, so one false alarm there is "
    "over the budget.",
    "chosen_on_these": "The threshold was chosen on these windows.",
    "constant": "no interval: the same in every replicate",
    "exact_binomial_bound": "The share is 0% or 100% (episodes: {episodes}), so one bound "
    "is the exact binomial bound.",
    "fitted_on_validation": "Fitted on validation by log loss; 1 changes nothing.",
    "half_undetected": "infinite: more than half of the attacks were not detected",
    "half_undetected_at_times": "no upper bound: more than half of the attacks were not detected "
    "in {share:.0%} of the replicates",
    "never_alarmed": "No alarm in clean time, so resampling gives no upper bound.",
    "never_predicted": "never predicted",
    "no_attack": "No test episode contains an attack.",
    "no_clean_time": "No test window is entirely clean, so false alarms cannot be counted.",
    "no_clean_validation": "Validation has no clean time, so the default threshold is used.",
    "no_validation_interval": "Used only to choose, so it has no interval.",
    "over_budget_everywhere": "Every threshold exceeds the budget on validation, so this one lies "
    "above every score there.",
    "poisson_bounds": "{events} in {hours:.3g} clean hours. Each bound is the wider of "
    "the resampled and the exact Poisson bound.",
    "temperature_at_limit": "Fitted on validation by log loss; at the end of the range searched.",
    "too_few_episodes": "no interval: too few episodes to resample",
    "covers_less": "In simulated test sets of {episodes} episodes, such intervals contain the "
    "true value {coverage:.0%} of the time instead of 95%.",
    # leaks
    "channel_tells_phase": "Channel {label} alone tells {what} from all else (F1 {f1:.3f}): it may "
    "hold the label.",
    "channel_tells_name": "Channel {label} tells which {what} a window belongs to ({share:.0%} of "
    "the windows): it may hold an id.",
    "channel_tells_time": "Channel {label} follows the {what}'s time (rank correlation "
    "{correlation:.3f}): it may hold a clock.",
    "episode_twice": "Episode {label} is also on another side, under the id {what}: {share:.0%} of "
    "its windows are the same.",
    # grounds against a promotion
    "oracle": "{label} cannot be promoted: it needs the host's view of the machine (/proc of QEMU, "
    "its monitor), which a device does not have. Only realistic models can be promoted.",
    "unverified": "{problem}",
    "does_not_verify": "{label} does not verify: {problem} (phasewatch inspect --verify {label})",
    "already_champion": "{label} is already the champion, with these checkpoints.",
    "champion_unloadable": "The champion cannot be loaded: {problem}. Restore the file, or roll "
    "back: phasewatch rollback",
    "other_dataset": "{label} was trained on another version of the dataset, so it may know its "
    "test episodes. Retrain: phasewatch run --recipe {recipe}",
    "too_few_left": "Only {episodes} test episodes are left to compare on, but at least {needed} "
    "are needed; {left_out} were left out because the champion was trained on them, or on other "
    "episodes of the same host, sample, session or period.",
    "too_few_tested": "There are {episodes} test episodes, but at least {needed} are needed.",
    "worse": "worse than the champion: macro F1 {challenger:.3f} against {champion:.3f}, "
    "difference {value:+.3f}, 95% interval {low:+.3f} to {high:+.3f} on {episodes} episodes.",
    "may_be_worse": "it may be worse than the champion by more than {margin:g}: macro F1 "
    "{challenger:.3f} against {champion:.3f}, difference {value:+.3f}, 95% interval {low:+.3f} "
    "to {high:+.3f} on {episodes} episodes.",
    "group_falls": "{group} {label}: macro F1 falls by {falls_by:.3f}, from {champion:.3f} to "
    "{challenger:.3f} ({episodes} episodes); at most {margin:g} is allowed.",
    "nowhere_better": "On no recipe does the interval of the difference lie above 0: the highest "
    "lower bound is {low:+.3f}.",
    "baseline_not_beaten": "not better than {label}: macro F1 {challenger:.3f} against "
    "{baseline:.3f}, difference {value:+.3f}, 95% interval {low:+.3f} to {high:+.3f} on "
    "{episodes} episodes.",
    "alarms_unmeasured": "the test side has no clean time, so its false alarms are not known.",
    "alarms_over_budget": "{false_alarms}, budget {budget:g} per hour.",
    "alarmed_time_over_budget": "{value:.1%} of clean time under alarm ({low:.1%} to {high:.1%}), "
    "budget {budget:.1%}, on {hours:.2g} clean hours.",
    # notes on drift
    "unknown_host": "Host {label} is not in the training data, so it is compared with all hosts. "
    "What is specific to this host also counts as a change.",
    "too_little_training": "Training has {episodes} episodes to compare with. At least {needed} "
    "are needed, so nothing is judged.",
    "seen_in_training": "{seen} of its {episodes} episodes were used in training, so they are no "
    "evidence about new data.",
}
SKIPPED = UNAVAILABLE | {"not_in_champion": "the champion has no checkpoint for it"}
"""Why a recipe takes no part in a promotion."""
SHARED_SENTENCES = {  # of several reports whose numbers differ
    "not_better_than_baseline": "Not significantly better than {label}: {reason}.",
    "validation_above_test": "Validation macro F1 lies above the test interval: part of what the "
    "model learned does not carry over.",
    "false_alarms_over_budget": "False alarms per hour on test are over the budget.",
    "clean_time_over_budget": "The share of clean time under alarm on test is over the budget.",
    "provisional_threshold": "The alarm threshold is provisional: it rests on too little clean "
    "time of validation.",
    "unlike_training": "The share of test episodes that are unlike the training data is higher "
    "than chance explains. Record more training episodes under conditions like theirs.",
}
DATASET_WARNINGS = frozenset({"untested_profile", "absent_class", "synthetic_episodes"})
"""Warnings that ``untested`` states once per dataset."""
P_VALUE = (
    "p is two-sided: (1 + k) / (B + 1) for B replicates, of which k lie at least as far from the "
    "observed difference as that difference lies from 0."
)
DRIFT_CHECKS: dict[CheckName, str] = {
    "coverage": "Every source covers the windows as in training.",
    "channels": "Every channel that the model sees is distributed as in training (PSI).",
    "missing": "No channel that the model sees is missing more often than in training.",
    "verdicts": "Episodes are accepted, degraded and rejected as often as in training (PSI).",
    "class_mix": "The model predicts each phase as often as on its validation episodes (PSI).",
}
DRIFT_COLUMNS: dict[CheckName, tuple[str, str]] = {
    "coverage": ("coverage", "worst source"),
    "channels": ("channels", "worst, PSI"),
    "missing": ("missing", "share of values"),
    "verdicts": ("verdicts", "PSI"),
    "class_mix": ("predicted phases", "PSI"),
}
_MIX_FINDING = (
    "PSI {value:.2f}, above the {chance:.2f} that chance explains. Largest change: {name}, "
    "{training:.0%} in training, {batch:.0%} in the batch."
)
DRIFT_FINDINGS: dict[CheckName, str] = {
    "coverage": "{name} covers {batch:.0%} of the windows' time, {training:.0%} in training.",
    "channels": "{name}: PSI {value:.2f}, above the {chance:.2f} that chance explains.",
    "missing": "{name} is missing in {batch:.0%} of the windows, {training:.0%} in training.",
    "verdicts": "Verdicts: " + _MIX_FINDING,
    "class_mix": "Predicted phases: " + _MIX_FINDING,
}


def sentence(remark: Remark, sentences: dict[str, str] = SENTENCES, /, **words: Any) -> str:
    """The sentence for a code, its numbers, and more words that it has places for."""
    about = remark.about or ""
    if remark.code in ("alarms_over_budget", "false_alarms_over_budget"):
        words["false_alarms"] = _false_alarms_of(remark.numbers)
    return sentences[remark.code].format(
        label=baseline_label(about) if about in BASELINES else about,
        reason=MAY_HAVE_LEARNED.get(about),
        what=remark.what if isinstance(remark, Leak) else None,
        **words,
        **{name: _NoNumber() if n is None else n for name, n in remark.numbers.items()},
    )


class _NoNumber:
    """Takes the place of a bound that does not exist, whatever its format."""

    def __format__(self, spec: str) -> str:
        return NOTHING


def _false_alarms_of(numbers: Mapping[str, float | None]) -> str:
    rate = numbers.get("per_hour", numbers.get("value"))
    hours = numbers.get("hours")
    if hours is None:  # a report that was made before they were kept with the rate
        return f"{measure(rate)} false alarms per hour"
    return false_alarms(
        Estimate(value=rate, low=numbers.get("low"), high=numbers.get("high")), hours
    )


def objection(ground: Objection) -> str:
    """The sentence for a ground against a promotion."""
    said = sentence(ground, recipe=ground.recipe, **ground.names)
    return f"Recipe {ground.recipe}: {said}" if ground.recipe else said


def skipped(code: str, found: Iterable[str]) -> str:
    """Why a promotion was not judged on a recipe."""
    return SKIPPED[code].format(found=", ".join(found))


def findings(check: DriftCheck) -> list[str]:
    """What a check of a batch found, largest change first; nothing if it passed."""
    if check.severity == "ok":
        return []
    if not check.rows:
        return ["The batch has no usable window."]
    if check.value is not None:
        moved = max(check.rows, key=lambda row: abs((row.batch or 0) - (row.training or 0)))
        numbers = {"value": check.value, "chance": check.chance}
        return [DRIFT_FINDINGS[check.name].format(**dict(moved) | numbers)]
    changed = [row for row in check.rows if row.severity != "ok"]
    changed.sort(key=lambda row: row.value or 0, reverse=True)
    return [DRIFT_FINDINGS[check.name].format(**dict(row)) for row in changed]


def conditional_on(condition: Condition) -> str:
    """What was held out, and that intervals do not cover another choice of it."""
    names = ", ".join(condition.names)
    if condition.unit == "period":
        return f"Tested on {names}. Intervals do not cover another period."
    return (
        f"Tested on {plural(condition.n, f'held-out {condition.unit}')} ({names}). Intervals do "
        f"not cover other {condition.unit}s."
    )


def is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def number(value: float | None, *, sign: bool = False) -> str:
    """Three decimals and a real minus sign; a dash for no finite value."""
    if value is None or not math.isfinite(value):
        return NOTHING
    rounded = round(value, 3) + 0.0  # no negative zero
    return f"{rounded:{'+' if sign else ''}.3f}".replace("-", "−")


def measure(value: float | None) -> str:
    """Seconds or a rate, in as many digits as a reader needs; a dash for no value."""
    if value is None or not math.isfinite(value):
        return NOTHING
    digits = 0 if abs(value) >= 100 or not value else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share as a percentage; a dash for no value."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.1%}"


def clean_time(hours: float, clean: str = "clean ") -> str:
    """Clean time, from which a rate of false alarms is computed."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} {clean}seconds"
    if hours < 1:
        return f"{measure(60 * hours)} {clean}minutes"
    return f"{measure(hours)} {clean}hours"


SHORT_HOURS = 0.1
"""Of less clean time a rate says nothing: one false alarm in 12 s would be 300 per hour."""
RATE_MEANS = (
    "false alarms per hour of clean time, or their number if there is too little clean time for "
    "a rate"
)


def rate(per_hour: float | None, hours: float, unit: str = "") -> str:
    """False alarms per hour, or of little clean time how many there were in it, for a cell."""
    if is_finite(per_hour) and hours < SHORT_HOURS:
        return f"{_counted(per_hour, hours)} in {3600 * hours:.0f} s"
    return measure(per_hour) + unit


def rate_span(per_hour: Figure | Estimate, hours: float) -> str:
    """The interval of a rate; empty of little clean time."""
    return span(per_hour, measure) if hours >= SHORT_HOURS else ""


def false_alarms(per_hour: Figure | Estimate, hours: float) -> str:
    """How many there were in how much clean time, and the rate if that is long enough."""
    n = _counted(per_hour.value, hours)
    counted = f"{plural(n, 'false alarm') if n else 'no false alarm'} in {clean_time(hours)}"
    if hours < SHORT_HOURS:
        return counted
    return f"{counted}: {measure(per_hour.value)} per hour{_bracketed(rate_span(per_hour, hours))}"


def _counted(per_hour: float | None, hours: float) -> int:
    return round((per_hour or 0.0) * hours)


def span(
    figure: Figure | Estimate, text: Callable[[float | None], str] = number, unit: str = ""
) -> str:
    """The interval; empty if undefined, open if it has no upper end."""
    if not is_finite(figure.low):
        return ""
    low = text(figure.low)
    if is_finite(figure.high):
        return f"{low} to {text(figure.high)}{unit}"
    return f"{low}{unit} or more"


def share_span(figure: Figure | Estimate) -> str:
    """The interval of a share in percent; empty without an upper end, which every share has, or
    if every replicate gave the same.
    """
    same = figure.low == figure.high
    return span(figure, percent) if is_finite(figure.high) and not same else ""


def _bracketed(interval: str) -> str:
    return f" ({interval})" if interval else ""


def covers(figure: Figure) -> str:
    """How often such an interval contains the true value, where that is less than it should be."""
    note = figure.note
    known = note is not None and note.code == "covers_less"
    return f"interval coverage {note.numbers['coverage']:.0%}" if note and known else ""


def count(value: int | None) -> str:
    """An integer with thin spaces between thousands; a dash for none."""
    return NOTHING if value is None else f"{value:,}".replace(",", "\u202f")


def size(n_bytes: int) -> str:
    """Of files, in kB or MB."""
    kilo = n_bytes / 1000
    return f"{kilo:.0f} kB" if kilo < 1000 else f"{kilo / 1000:.1f} MB"


def short(value: str) -> str:
    """The beginning of a hash, with its ``-dirty`` if it has one."""
    return value[:SHORT_ID] + ("-dirty" if value.endswith("-dirty") else "")


def plural(n: int, one: str, many: str = "") -> str:
    """``3 hosts``; ``many`` if the plural is not ``one`` with an s."""
    return f"{count(n)} {one if n == 1 else many or one + 's'}"


def moment(timestamp: str) -> str:
    """``2026-11-29 14:38 UTC``, from RFC 3339."""
    return datetime.fromisoformat(timestamp).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def join_words(words: Iterable[str], link: str = "and") -> str:
    """``a, b and c``."""
    *first, last = list(words) or [""]
    return f"{', '.join(first)} {link} {last}" if first else last


def baseline_label(name: str) -> str:
    return name.replace("_", "-")


def variant_label(report: EvalReport) -> str:
    return f"{report.model} {report.mode}"


def untested(report: EvalReport) -> list[str]:
    """What the figures of a report do not cover, or not on real machines; one sentence each."""
    missing = report.untested_profiles
    total = len(report.tested_profiles) + len(missing)
    if missing:
        sentences = [
            f"{len(report.tested_profiles)} of {plural(total, 'profile')} tested; "
            f"{join_words(missing)} {'was' if len(missing) == 1 else 'were'} never tested."
        ]
    else:
        sentences = [f"All {plural(total, 'profile')} tested."]
    absent = report.absent_classes
    if absent:
        noun, verb = ("Phase", "does") if len(absent) == 1 else ("Phases", "do")
        sentences.append(
            f"{noun} {join_words(absent)} {verb} not occur in the test split: never tested, and "
            "not part of any mean."
        )
    synthetic = [
        f"{count(side.synthetic_episodes)} of {count(side.episodes)} in {name}"
        for name, side in report.splits.items()
        if side.synthetic_episodes
    ]
    if synthetic:
        sentences.append(f"The dataset contains synthetic episodes: {join_words(synthetic)}.")
    return sentences + shared(report)


def shared(report: EvalReport) -> list[str]:
    """What of the test side was in training, too: the figures say nothing of another."""
    trained, tested = report.splits["train"], report.splits["test"]
    kinds = {
        "host": (tested.hosts, trained.hosts),
        "sample": (tested.samples, trained.samples),
        "session": (tested.sessions, trained.sessions),
    }
    both = [kind for kind, (test, train) in kinds.items() if test and set(test) <= set(train)]
    if not both:
        return []
    return [
        f"Every test {join_words(both)} also has training episodes, so this does not test how the "
        f"models do on another {join_words(both, 'or')}."
    ]


def gaps(report: EvalReport) -> list[str]:
    """What was recorded or used unevenly, one sentence each."""
    sentences = []
    for source, covered in report.splits["test"].coverage.items():
        trained = report.splits["train"].coverage.get(source)
        if trained is not None and abs(covered - trained) > COVERAGE_GAP:
            sentences.append(
                f"Source {source}: {percent(trained)} of its values are present in training, "
                f"{percent(covered)} in test. A model may mistake missing values for behaviour."
            )
        elif covered < LOW_COVERAGE:
            sentences.append(
                f"Source {source}: only {percent(covered)} of its values are present in test."
            )
    if report.excluded_episodes:
        causes = "; ".join(
            f"{count(n)} {cause.replace('the val side', 'the validation side')}"
            for cause, n in report.excluded_episodes.items()
        )
        total = sum(report.excluded_episodes.values())
        sentences.append(f"{plural(total, 'episode')} left out of this recipe ({causes}).")
    sentences += [excluded(entry) for entry in report.exclusions]
    lacking = report.bootstrap.replicates_lacking_a_class
    if lacking:
        sentences.append(
            f"{count(lacking)} of {count(report.bootstrap.replicates)} replicates lack a phase; "
            "their mean is over the other phases."
        )
    return sentences


METHOD = {
    "exact": "Exact: the contributions and a constant add up to the margin (raw score) of the "
    "phase.",
    "occlusion": "A contribution is how far the log-odds of the phase fall when the channel is set "
    "to values typical of training.",
}
"""How contributions were found."""


def exclude_command(error: SureError, report: EvalReport) -> str:
    """What to run if a window turns out to be labelled or recorded wrongly."""
    end = error.start_s + report.window.length_s
    return (
        f'phasewatch exclude {error.episode_id} --from {error.start_s:g} --to {end:g} --reason "…"'
    )


def excluded(entry: Excluded) -> str:
    """What a person keeps out of the dataset, and why."""
    begins = "" if entry.from_s is None else f" from {entry.from_s:g} s"
    ends = "" if entry.to_s is None else f" to {entry.to_s:g} s"
    return (
        f"Episode {entry.episode}{begins}{ends} excluded by {entry.who} "
        f"({plural(entry.windows, 'window')}): {' '.join(entry.reason.split())}"
    )


def warnings(reports: Sequence[EvalReport]) -> list[tuple[str, str]]:
    """Warnings of the reports of one recipe: the models concerned, and a sentence."""
    by_subject: dict[tuple[str, str | None], list[tuple[EvalReport, Remark]]] = {}
    for report in reports:
        for warning in report.warnings:
            if warning.code not in DATASET_WARNINGS:
                key = (warning.code, warning.about)
                by_subject.setdefault(key, []).append((report, warning))
    lines = []
    for entries in by_subject.values():
        remark = entries[0][1]
        differ = any(other != remark for _, other in entries)
        lines.append(
            (
                "all models"
                if len(entries) == len(reports) > 1
                else list_variants(report for report, _ in entries),
                sentence(remark, SHARED_SENTENCES if differ else SENTENCES),
            )
        )
    return lines


def list_variants(reports: Iterable[EvalReport]) -> str:
    """``cnn realistic and oracle, gru oracle``."""
    by_model: dict[str, list[str]] = {}
    for report in reports:
        by_model.setdefault(report.model, []).append(report.mode)
    return ", ".join(f"{model} {join_words(modes)}" for model, modes in by_model.items())


def alarms(detection: Detection) -> list[str]:
    """How good the alarms are, one sentence each."""
    attacked, detected = detection.attacked_episodes, detection.detected_episodes
    delay, false = detection.median_delay_s, detection.false_alarms_per_hour
    hours = detection.clean_hours["test"]
    attacks = f"Detects {detected} of {plural(attacked, 'attack')}"
    if not attacked:
        attacks = SENTENCES["no_attack"]
    elif is_finite(delay.value):
        interval = _bracketed(span(delay, measure, " s"))
        within = f"{measure(delay.value)} s of their start{interval}"
        attacks += f"; half of all attacks within {within}."
    else:
        attacks += ": fewer than half, so there is no median delay."
    if not is_finite(false.value):
        return [attacks, SENTENCES["no_clean_time"]]
    over = (false.value or 0) > detection.budget_per_hour
    budget = f", budget {detection.budget_per_hour:g} per hour" if over else ""
    found = false_alarms(false, hours)
    if not false.value and not detection.clean_time_alarmed.value:
        return [attacks, f"{found.capitalize()}."]
    return [attacks, f"{found[0].upper()}{found[1:]}{budget}; {alarmed(detection)}."]


def expectation(another: Mapping[str, EvalReport]) -> str:
    """What may be expected elsewhere, in a sentence each.

    Args:
        another: what changes ("day", "machine") -> the report that shows it.
    """
    if not another:
        return "No recipe of this store holds out a day or a machine, so new ones were not tested."
    parts = []
    for what, report in another.items():
        found = report.detection
        attacks = (
            f"detected {found.detected_episodes} of {plural(found.attacked_episodes, 'attack')}"
        )
        if not found.attacked_episodes:
            attacks = "was not tested on attacks"
        f1 = f"{number(report.macro_f1.value)}{_bracketed(span(report.macro_f1))}"
        parts.append(
            f"On a {what} that it had never seen, {report.model} {attacks}, "
            f"{_expected_alarms(found)}, and predicted phases with macro F1 {f1}."
        )
    return " ".join(["What to expect of the models that are best on validation:", *parts])


def _expected_alarms(found: Detection) -> str:
    """The rate of false alarms, with jobs and without: jobs are what changes most."""
    rate, hours = found.false_alarms_per_hour, found.clean_hours["test"]
    if not is_finite(rate.value):
        return "had no clean time to count false alarms in"
    if hours < SHORT_HOURS:
        return f"raised {false_alarms(rate, hours)}"
    parts = [
        f"{measure(part.false_alarms_per_hour.value)} {job_label(part.job)}"
        for part in found.by_job
        if part.job in (ANY, NONE) and part.hours >= SHORT_HOURS
    ]
    overall, split = (" overall", f", {join_words(parts)}") if len(parts) > 1 else ("", "")
    interval = _bracketed(rate_span(rate, hours))
    return f"raised {measure(rate.value)} false alarms per hour{overall}{interval}{split}"


def alarmed(part: Detection | CleanTime) -> str:
    """How much of clean time, or of a part of it, is under alarm."""
    figure = part.clean_time_alarmed
    interval = _bracketed(share_span(figure))
    return f"{percent(figure.value)} of this clean time under alarm{interval}"


def ablation_label(name: str) -> str:
    """What a model lacks in an ablation."""
    known = {"labels_alone": "trained without pseudo-labels"}
    return known.get(name, f"without {name.replace('_', ' ')}")


def job_label(job: str) -> str:
    """What a part of clean time is called."""
    known = {ANY: "during a benign job", NONE: "without a benign job"}
    return known.get(job, f"during {job} jobs")


def unlike(found: Unlike | None) -> list[str]:
    """How many test episodes are unlike training, beside the promise; one sentence at most."""
    if found is None:
        return []
    if found.alpha * (found.calibration_episodes + 1) < 1:
        n = found.calibration_episodes
        return [
            f"{plural(n, 'validation episode')} {'is' if n == 1 else 'are'} too few to tell "
            "whether test episodes are unlike training."
        ]
    interval = _bracketed(share_span(found.share))
    return [
        f"{percent(found.share.value)} of the test episodes are unlike the training data"
        f"{interval}. " + _PROMISE.format(alpha=found.alpha)
    ]


def unlike_notes(recipes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where more test episodes are unlike training than the promise allows.

    One note, or none.

    Args:
        recipes: the evidence of a trial, by recipe.
    """
    shares: list[str] = []
    for recipe, evidence in recipes.items():
        found = evidence.get("unlike")
        share = found["test_episodes_unlike"] / found["test_episodes"] if found else 0.0
        if found and share > found["alpha"]:
            whose = "those" if shares else "the test episodes"
            shares.append(f"{percent(share)} of {whose} of recipe {recipe}")
    if not shares:
        return []
    return [
        f"{join_words(shares)} are unlike training: train on more episodes from their machines "
        "and days."
    ]


TURN_METRICS: dict[str, tuple[str, bool]] = {
    "macro_f1": ("macro F1", False),
    "filtered_macro_f1": ("filtered macro F1", False),
    "clean_time_alarmed": ("clean time alarmed", True),
    "detected_share": ("attacks detected", True),
}
"""What a metric of a host's turn is called, and whether it is shown as a percentage."""


def turn_metric(metric: str, value: float | None) -> str:
    """A metric of a host's turn."""
    return percent(value) if TURN_METRICS[metric][1] else number(value)


def by_job(detection: Detection) -> list[str]:
    """Alarms in the parts of clean time, one sentence each."""
    return [
        f"Clean time {job_label(part.job)}: "
        + (
            f"{false_alarms(part.false_alarms_per_hour, part.hours)}; {alarmed(part)}."
            if part.hours
            else "none on the test side."
        )
        for part in detection.by_job
    ]


def threshold(detection: Detection) -> str:
    """The threshold, with what it is worth."""
    return number(detection.threshold.value) + (" (provisional)" if detection.provisional else "")


def within_budget(points: Sequence[OperatingPoint], detection: Detection) -> str:
    """The most attacks that a threshold chosen on test would detect within the budget.

    Empty if no threshold keeps within it.
    """
    shares = [
        point.detected_share.value
        for point in points
        if (point.false_alarms_per_hour.value or 0) <= detection.budget_per_hour
        and (point.clean_time_alarmed.value or 0) <= detection.budget_clean_time
    ]
    best = max((share for share in shares if share is not None), default=None)
    return "" if best is None else percent(best)
