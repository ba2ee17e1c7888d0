"""What evaluation writes down: one typed, versioned model per document, and their JSON schema.

Only the form is here; ``report``, ``comparisons`` and ``drift`` compute the numbers. A document
holds codes and numbers; ``wording`` makes the sentences. ``python -m evaluation.documents``
rewrites ``report.schema.json``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
INTERVAL_LEVEL = 0.95

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Severity = Literal["ok", "warn", "fail"]
CheckName = Literal["coverage", "channels", "missing", "verdicts", "class_mix"]
Question = Literal["reference", "pairs", "ablations", "baselines", "modes"]


class Model(BaseModel):
    """Immutable and exact: no unknown field, and neither NaN nor infinity, which JSON lacks."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True
    )


class Remark(Model):
    """Something a reader must know, as a code; ``wording.sentence`` says it."""

    code: str
    about: str | None = None
    numbers: Mapping[str, int | float | None] = {}


class Leak(Remark):
    """What the inputs of a dataset give away; about a channel or an episode."""

    code: Literal[
        "channel_tells_phase", "channel_tells_name", "channel_tells_time", "episode_twice"
    ]
    what: str = Field(description="the phase, kind of name or clock told; or the other episode")


# --- figures ------------------------------------------------------------------------------------


class Predictor(Model):
    """A model in one mode, or a baseline."""

    model: str
    mode: str
    checkpoint_id: str


class Subject(Predictor):
    """What a figure is about: a predictor, and the data it was evaluated on."""

    recipe: str
    split: Literal["val", "test"] = "test"
    dataset_version: str

    def on(self, split: str) -> "Subject":
        """The same predictor on another split."""
        return self.model_copy(update={"split": split})

    @property
    def predictor(self) -> Predictor:
        """The predictor alone."""
        return Predictor(model=self.model, mode=self.mode, checkpoint_id=self.checkpoint_id)


FigureCode = Literal[
    "budget_allows_none", "chosen_on_these", "constant", "covers_less", "exact_binomial_bound",
    "fitted_on_validation", "half_undetected", "half_undetected_at_times", "never_alarmed",
    "never_predicted", "no_attack", "no_clean_time", "no_clean_validation",
    "no_validation_interval", "over_budget_everywhere", "poisson_bounds", "temperature_at_limit",
    "too_few_episodes",
]  # fmt: skip


class FigureNote(Remark):
    """Why a figure or a bound is null, or how it was made."""

    code: FigureCode


class Figure(Subject):
    """A value with its interval, and everything needed to quote it by itself."""

    metric: Literal[
        "macro_f1", "macro_f1_difference", "f1", "precision", "recall",
        "temperature", "ece", "brier", "log_loss", "ece_scaled", "brier_scaled",
        "log_loss_scaled", "alarm_threshold",
        "false_alarms_per_hour", "clean_time_alarmed", "detected_share", "median_delay_s",
        "unlike_share",
    ]  # fmt: skip
    value: float | None = Field(description="null: undefined or infinite; the note says which")
    low: float | None
    high: float | None
    level: float = INTERVAL_LEVEL
    left_out: Count = Field(
        description="replicates in which the figure was undefined or, for macro F1, a class was "
        "missing"
    )
    where: dict[Literal["class", "profile", "host_id", "job", "filter"], str] = Field(
        {}, description="what the figure is restricted to; empty: nothing"
    )
    note: FigureNote | None = None


class Difference(Figure):
    """A predictor's macro F1 minus that of another on the same resampled episodes."""

    other: Predictor


class Comparison(Difference):
    """A difference with its p value, and Holm's within the family."""

    p: Share
    p_holm: Share


# --- the report on one checkpoint ---------------------------------------------------------------


class Condition(Model):
    """What was held out. Intervals do not cover another choice of it."""

    unit: Literal["host", "sample", "period", "session"]
    n: Annotated[int, Field(ge=1)]
    names: list[str]


class Bootstrap(Model):
    """How intervals were made."""

    unit: Literal["episode"] = "episode"
    stages: list[Literal["sample", "episode"]]
    replicates: Annotated[int, Field(ge=100)]
    seed: int
    replicates_lacking_a_class: Count
    conditional_on: Condition


class WindowSize(Model):
    length_s: float
    stride_s: float


class SplitFacts(Model):
    """What is on one side of a dataset."""

    windows: Count
    episodes: Count
    hosts: list[str]
    sessions: list[str]
    samples: list[str]
    synthetic_episodes: Count
    windows_by_phase: dict[str, Count]
    coverage: dict[str, Share]


class Excluded(Model):
    """An episode, or a span of it, that a person keeps out; null: from its beginning, to its end"""

    episode: str
    from_s: Positive | None
    to_s: Positive | None
    reason: str
    who: str
    windows: Count = Field(description="that would take part in the dataset otherwise")


class ClassScores(Model):
    name: str
    support: Annotated[int, Field(ge=1)]
    f1: Figure
    precision: Figure
    recall: Figure


class GroupScore(Model):
    """Macro F1 within one profile or host, over the classes that occur there."""

    name: str
    windows: Count
    episodes: Count
    classes: Count
    macro_f1: Figure


class BaselineScore(Model):
    name: str
    macro_f1: Figure
    difference: Difference


class Confusion(Model):
    """Windows: rows actual, columns predicted."""

    classes: list[str]
    counts: list[list[Count]]


class ReliabilityBin(Model):
    low: float
    high: float
    windows: Annotated[int, Field(ge=1)]
    confidence: float
    accuracy: Share


class Calibrated(Model):
    ece: Figure
    brier: Figure
    log_loss: Figure
    bins: Annotated[list[ReliabilityBin], Field(min_length=1)]


class Calibration(Model):
    n_bins: Count
    temperature: Figure
    as_trained: Calibrated
    scaled: Calibrated


class AttackedEpisode(Model):
    episode_id: str
    host_id: str
    profile: str
    onset_s: float
    first_alarm_s: float | None
    delay_s: Positive | None


ANY, NONE = "any", "none"  # parts of clean time: with a job, and without


class CleanTime(Model):
    """Alarms in clean time, or in the part of it that is named by the machine's jobs."""

    job: str = Field(description="``any`` job, ``none``, or which")
    hours: Positive
    false_alarms: Count
    false_alarms_per_hour: Figure
    clean_time_alarmed: Figure


class Estimate(Model):
    """A value with its interval at ``INTERVAL_LEVEL``; null: undefined or infinite."""

    value: float | None
    low: float | None
    high: float | None


class OperatingPoint(Model):
    """What one threshold would give on test."""

    threshold: float
    false_alarms_per_hour: Estimate
    clean_time_alarmed: Estimate
    detected_share: Estimate
    median_delay_s: Estimate


class OperatingCurve(Model):
    """What every threshold would give on test, from the highest down. It chooses nothing."""

    points: list[OperatingPoint]
    random: list[OperatingPoint] = Field(description="the same for random scores: the control")


class Detection(Model):
    """The model as an alarm."""

    alarm_phases: list[str]
    budget_per_hour: Positive
    budget_clean_time: Share = Field(description="share of clean time that may be alarmed")
    threshold: Figure
    clear_below: Positive = Field(description="score below which a standing alarm is cleared")
    provisional: bool = Field(description="the threshold rests on too little clean time")
    clean_hours: dict[Literal["val", "test"], Positive]
    false_alarms: dict[Literal["val", "test"], Count]
    val_false_alarms_per_hour: Figure
    false_alarms_per_hour: Figure
    clean_time_alarmed: Figure
    by_job: list[CleanTime]
    detected_share: Figure
    median_delay_s: Figure
    operating_curve: OperatingCurve
    attacked_episodes: Count
    detected_episodes: Count
    attacks_after_last_window: Count
    undetected: list[str] = Field(description="attacked episodes; of many a thousand")
    episodes: list[AttackedEpisode] = Field(description="attacked; of many a thousand")


class Filtered(Model):
    """Phases after the alarm rule's filter, which carries earlier windows into later ones."""

    alarm_rule_id: str
    temperature: Positive
    macro_f1: Figure
    change: Figure = Field(description="filtered less unfiltered macro F1, paired")
    per_class: list[ClassScores]


class Unlike(Model):
    """Test episodes called unlike training. One like it is, with probability at most ``alpha``."""

    likeness_id: str
    alpha: Share
    calibration_episodes: Count = Field(description="of validation, that the promise rests on")
    share: Figure
    episodes: list[str] = Field(description="the test episodes called unlike training")


class Latency(Model):
    """How long one window takes, from its inputs to its probabilities, by itself on one thread."""

    processor: str = Field(description="on which it was measured")
    windows: Annotated[int, Field(ge=1)] = Field(description="timed, one call each")
    median_ms: Positive
    p99_ms: Positive


class LearningCurve(Model):
    columns: list[str] = ["step", "train_loss", "val_loss", "val_macro_f1"]
    rows: list[tuple[int, float | None, float | None, float | None]]
    best_step: Count


class Timeline(Model):
    """One episode, window by window."""

    episode_id: str
    host_id: str
    profile: str
    sample_name: str
    onset_s: float | None
    threshold: float
    length_s: float
    start_s: list[float]
    actual: list[str]
    predicted: list[str]
    proba: dict[str, list[Share]]


class PhaseImportance(Model):
    name: str
    windows: Annotated[int, Field(ge=1)] = Field(description="predicted to be of this phase")
    values: list[Positive] = Field(description="by channel, mean absolute contribution")


class Importance(Model):
    """How much each channel argues for or against the phase predicted, on a sample of test."""

    method: Literal["exact", "occlusion"]
    windows: Count
    channels: list[str]
    phases: list[PhaseImportance]


class ChannelTrace(Model):
    """A channel around a window, by second."""

    name: str
    contribution: float
    values: list[float | None] = Field(description="null: no value in this second")


class SureError(Model):
    """A test window that was surely wrong, and the channels that argued most for it."""

    episode_id: str
    host_id: str
    profile: str
    window: Count
    start_s: float
    actual: str
    predicted: str
    probability: Share
    from_s: float = Field(description="where the traces begin")
    channels: list[ChannelTrace]


class ReportWarning(Remark):
    """What a reader must not overlook; about a baseline, a profile, a class, or the whole."""

    code: Literal[
        "not_better_than_baseline", "validation_above_test", "false_alarms_over_budget",
        "clean_time_over_budget", "provisional_threshold", "untested_profile", "absent_class",
        "synthetic_episodes", "unlike_training",
    ]  # fmt: skip


class Objection(Remark):
    """A ground against a promotion. Stored with a champion where it was accepted."""

    code: Literal[
        "oracle", "unverified", "does_not_verify", "already_champion", "champion_unloadable",
        "other_dataset", "too_few_left", "too_few_tested", "worse", "may_be_worse",
        "group_falls", "nowhere_better", "baseline_not_beaten", "alarms_unmeasured",
        "alarms_over_budget", "alarmed_time_over_budget",
    ]  # fmt: skip
    recipe: str | None = None
    names: Mapping[str, str] = {}


class EvalReport(Subject):
    """The report on one checkpoint and recipe."""

    schema_version: Literal["phasewatch.eval_report/9"] = Field(
        default="phasewatch.eval_report/9", alias="schema"
    )
    contract_hash: str
    schema_hash: str
    validation_index_digest: str
    code_commit: str
    config: dict[str, int | float | bool | str] = Field(description="hyperparameters")
    checkpoint_bytes: Count = Field(description="of header and sidecar")
    classes: list[str]
    roster: list[str] = Field(description="the classes that occur in the test split")
    absent_classes: list[str]
    tested_profiles: list[str]
    untested_profiles: list[str]
    n_windows: Count
    n_episodes: Count
    window: WindowSize
    splits: dict[str, SplitFacts]
    excluded_episodes: dict[str, Count]
    exclusions: list[Excluded]
    bootstrap: Bootstrap
    macro_f1: Figure
    val_macro_f1: Figure
    per_class: list[ClassScores]
    per_profile: list[GroupScore]
    per_host: list[GroupScore]
    baselines: list[BaselineScore]
    confusion: Confusion
    calibration: Calibration
    filtered: Filtered
    detection: Detection = Field(description="by the alarm rule")
    unfiltered_detection: Detection = Field(description="by the posteriors alone")
    unlike: Unlike | None = Field(None, description="null: not computed")
    learning_curve: LearningCurve
    timeline: Timeline
    importance: Importance | None = Field(None, description="null: not computed")
    errors: list[SureError] = Field([], description="the surest; only of the served recipe")
    latency: Latency | None = Field(
        None, description="null in the file: a time differs between runs, so it is kept beside it"
    )
    warnings: list[ReportWarning] = []


# --- comparisons within a recipe ----------------------------------------------------------------


class ComparedPredictor(Predictor):
    kind: Literal["model", "ablation", "baseline"]
    macro_f1: Figure
    val_macro_f1: Figure | None


class Family(Model):
    """All answers to one question; p values are adjusted within it."""

    name: Question
    mode: str | None = Field(description="null: the family spans the modes")
    reference: Predictor | None
    comparisons: list[Comparison]


class Comparisons(Model):
    """Who is better than whom within one recipe."""

    schema_version: Literal["phasewatch.comparisons/3"] = Field(
        default="phasewatch.comparisons/3", alias="schema"
    )
    recipe: str
    dataset_version: str
    split: Literal["test"] = "test"
    classes: list[str]
    roster: list[str]
    n_windows: Count
    n_episodes: Count
    bootstrap: Bootstrap
    predictors: list[ComparedPredictor]
    families: list[Family]


# --- every host held out once -------------------------------------------------------------------


class HostTurn(Model):
    """A model trained without one host and tested on it, alarms by a rule chosen without it."""

    host_id: str
    episodes: Annotated[int, Field(ge=1)]
    windows: Annotated[int, Field(ge=1)]
    clean_hours: Positive
    attacks: Count
    provisional: bool = Field(description="the threshold rests on too little clean time")
    macro_f1: Share
    filtered_macro_f1: Share
    clean_time_alarmed: Share | None = Field(description="null: no clean time")
    detected_share: Share | None = Field(description="null: no attack")


TurnMetric = Literal["macro_f1", "filtered_macro_f1", "clean_time_alarmed", "detected_share"]


class Spread(Model):
    """One metric over the hosts; null: no host has it."""

    metric: TurnMetric
    mean: float | None
    worst: float | None
    worst_host: str | None
    spread: Positive | None = Field(description="best less worst")
    default: float | None = Field(description="on the host that recipe host holds out")


class RotatedModel(Model):
    model: str
    mode: str
    turns: Annotated[list[HostTurn], Field(min_length=1)]
    spreads: list[Spread]


class HostRotation(Model):
    """Recipe ``host`` with every host held out once."""

    schema_version: Literal["phasewatch.host_rotation/1"] = Field(
        default="phasewatch.host_rotation/1", alias="schema"
    )
    default_host: str
    models: list[RotatedModel]
    not_held_out: dict[str, str] = Field(description="host -> why it cannot be")


# --- drift --------------------------------------------------------------------------------------


class ReferenceGroup(Model):
    """Training windows of one host, in sums per episode."""

    episodes: Count
    windows: list[Count]
    coverage: list[list[float]]
    missing: list[list[Count]]
    edges: list[list[float]]
    counts: list[list[list[Count]]]
    predicted: list[list[Count]]
    labelled: list[Count]
    verdicts: list[Count]


class DriftReference(Model):
    """What batches are compared with. Stored with each champion, so its form must not change."""

    schema_version: Literal["phasewatch.reference/1"] = Field(
        default="phasewatch.reference/1", alias="schema"
    )
    channels: list[str]
    sources: list[str]
    phases: list[str]
    verdicts: list[str]
    groups: dict[str, ReferenceGroup]


class DriftRow(Model):
    """One source, channel, verdict or phase; null: the check does not have that number."""

    name: str
    training: float | None = None
    batch: float | None = None
    value: float | None = None
    expected: float | None = None
    chance: float | None = None
    severity: Severity | None = None


class DriftCheck(Model):
    name: CheckName
    severity: Severity
    rows: list[DriftRow] = Field(description="empty: the batch has no usable window")
    value: float | None = None
    expected: float | None = None
    chance: float | None = None


class DriftNote(Remark):
    code: Literal["unknown_host", "too_little_training", "seen_in_training"]


class Champion(Predictor):
    recipe: str
    dataset_version: str


class TrainingData(Model):
    hosts: str = Field(description="a host, or all")
    episodes: Count
    windows: Count


class DriftThresholds(Model):
    warn: float
    fail: float
    chance: Share
    replicates: Count


class BatchDrift(Model):
    """How one batch differs from the champion's training data."""

    schema_version: Literal["phasewatch.batch_drift/2"] = Field(
        default="phasewatch.batch_drift/2", alias="schema"
    )
    batch: str
    host: str
    fingerprint: str = Field("", description="of the champion and the shards compared")
    champion: Champion
    episodes: Count
    windows: Count
    compared_with: TrainingData
    thresholds: DriftThresholds
    severity: Severity
    notes: list[DriftNote]
    checks: list[DriftCheck]


# --- on disk ------------------------------------------------------------------------------------

DOCUMENTS = (EvalReport, Comparisons, HostRotation, BatchDrift, DriftReference)


def document_text(document: Model) -> str:
    """A document as it is written."""
    return document.model_dump_json(indent=1) + "\n"


def schema_text() -> str:
    """The JSON schema of every document, as it is committed."""
    _, schema = models_json_schema(
        [(document, "serialization") for document in DOCUMENTS],
        title="Evaluation documents of phasewatch",
    )
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "oneOf": [{"$ref": f"#/$defs/{document.__name__}"} for document in DOCUMENTS],
    }
    return json.dumps(head | schema, indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
