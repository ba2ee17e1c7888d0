"""Every event that the hub carries: its fields, their units, and what is the latest of its kind.

``events.schema.json`` is generated from here (``python -m hub.events``) and served by the hub. An
unknown type, an unknown field or a value out of range is refused, and the answer names it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

VERSION: Literal[1] = 1
SCHEMA_FILE = Path(__file__).with_name("events.schema.json")
CURVE_POINTS = 80
"""Of an attack profile: clean 10, armed 5, infecting 10, infected_running 40, clean tail 15."""
LIVE_WINDOWS = 240
"""Windows per host and source that a new client is given: twenty minutes."""
LATEST_S = 100_000_000_000
"""Unix seconds, in the year 5138: a later time is milliseconds or nanoseconds by mistake, and after
8.64e12 the page would break, as JavaScript has no such date."""

Name = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Time = Annotated[float, Field(ge=0, le=LATEST_S, allow_inf_nan=False)]  # Unix seconds
Offset = Annotated[float, Field(ge=-LATEST_S, le=LATEST_S, allow_inf_nan=False)]  # seconds
Phase = Literal["clean", "armed", "infecting", "infected_running", "dormant"]
Mode = Literal["realistic", "oracle"]
Shares = dict[Phase, Share]
Curve = Annotated[list[Finite | None], Field(min_length=CURVE_POINTS, max_length=CURVE_POINTS)]


class Event(BaseModel):
    """What all events say: what they are, when they were made, and what from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kept_per_subject: ClassVar[int] = 1  # events of one subject that a new client is given
    subject_fields: ClassVar[tuple[str, ...]]  # fields that tell subjects of this type apart

    v: Literal[1] = VERSION
    type: str
    at: Time  # Unix seconds at which the event was made
    origin: Name  # where its data come from, such as "recipe host, checkpoint 1f0c…"
    # Unix seconds at which those data were made; None: unknown. Of a window of a machine it is when
    # its last row was recorded: long ago for a replay
    data_at: Time | None = None

    @property
    def subject(self) -> tuple[Any, ...]:
        """An event replaces the one before it of the same subject."""
        return (self.type, *(getattr(self, name) for name in self.subject_fields))


class PhaseEvent(Event):
    """The phase of a host, or how many windows of a corpus are in each phase."""

    subject_fields: ClassVar = ("scope",)
    type: Literal["phase"] = "phase"
    scope: Name  # a host, or what the mix is of: "corpus", "lab-a", …
    phase: Phase | None = None
    mix: dict[Phase, Count] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> PhaseEvent:
        if (self.phase is None) == (self.mix is None):
            raise ValueError("must have phase or mix, not both")
        return self


class AttackProfile(Event):
    """How one signal runs through the attacks of a profile, on an axis aligned by phase."""

    subject_fields: ClassVar = ("name", "channel")
    type: Literal["attack_profile"] = "attack_profile"
    name: Name
    shape: Name  # what the attack uses most, such as "cpu" or "network"
    channel: Name
    unit: Name
    n_episodes: Annotated[int, Field(ge=1)]
    curve: Curve  # medians
    p25: Curve
    p75: Curve


class Prediction(Event):
    """A window of a recorded episode: what was predicted, and what it was."""

    subject_fields: ClassVar = ("episode_id", "window")
    type: Literal["prediction"] = "prediction"
    episode_id: Name
    window: Count
    start_s: Offset  # of the window, from the start of the episode
    end_s: Offset
    predicted: Phase
    filtered: Phase | None = None
    actual: Phase
    alarm: bool | None = None
    model: Name
    recipe: Name | None = None  # of which it is a held-out prediction


class ModelMetric(Event):
    """A figure of a model on the test side of a recipe, with its interval."""

    subject_fields: ClassVar = ("model", "mode", "recipe")
    type: Literal["model_metric"] = "model_metric"
    model: Name
    mode: Mode | None = None  # None: a baseline, which sees no telemetry
    recipe: Name
    metric: Literal["macro_f1"] = "macro_f1"
    value: Share | None  # None: could not be computed
    low: Share | None = None
    high: Share | None = None
    level: Share = 0.95  # of the interval
    baseline: bool = False


class Embedding(Event):
    """A window along the principal axes of a checkpoint's training inputs."""

    subject_fields: ClassVar = ("episode_id", "window")
    type: Literal["embedding"] = "embedding"
    episode_id: Name
    window: Count
    x: Finite
    y: Finite
    z: Finite | None = None  # None: the checkpoint has two axes
    phase: Phase
    predicted: Phase
    cluster: Name  # the profile
    model: Name


class ModelPerf(Event):
    """What a model costs per window on a named device, beside how good it is."""

    subject_fields: ClassVar = ("model", "mode", "device")
    type: Literal["model_perf"] = "model_perf"
    model: Name
    mode: Mode
    recipe: Name
    device: Name  # "not measured" where it was not
    latency_ms: Positive | None  # median; None: not measured
    latency_p99_ms: Positive | None = None
    size_bytes: Count | None = None
    macro_f1: Share | None


class Argument(BaseModel):
    """A channel that argues for an alarm, and how much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: Name
    contribution: Finite


class LiveDetection(Event):
    """What a scorer says of one window of a machine, or that the machine went silent."""

    subject_fields: ClassVar = ("host", "source")  # a replay replaces nothing that is live
    type: Literal["live_detection"] = "live_detection"
    kept_per_subject: ClassVar[int] = LIVE_WINDOWS

    host: Name
    model: Name  # such as gbt_realistic
    bundle: Name  # its id
    session: Name  # one run of a scorer; windows count from its start
    window: Count
    start: Time  # Unix seconds of the window's first bin, on the source's clock
    end: Time
    source: Literal["live", "replay"]
    replay_of: Name | None = None  # the episode or batch
    phase: Phase | None  # None: silent
    probabilities: Shares | None
    filtered: Phase | None
    filtered_probabilities: Shares | None
    confidence: Share | None  # of the filtered phase
    score: Share | None  # what the alarm's threshold is compared with
    threshold: Share
    alarm: Literal["none", "raised", "standing", "cleared"]
    alarm_id: Name | None = None  # of the alarm that stands or was just cleared
    unlike: bool | None  # None: the bundle cannot say
    coverage: dict[Name, Share]  # per source, the share of values present
    silent: list[Name] = []  # sources that stopped sending; the host itself if all did
    why: list[Argument] = []  # at most three, the largest first
    restarted: Name | None = None  # why the scorer's windows restarted here
    latency_ms: Positive | None  # from the last row that finished the window to this event
    input_digest: Name | None = None  # sha256 of the model's inputs; None: silent, or not said
    contract: Name | None = None  # hash of the contract of these inputs


_Events = (
    PhaseEvent | AttackProfile | Prediction | ModelMetric | Embedding | ModelPerf | LiveDetection
)
AnyEvent = Annotated[_Events, Field(discriminator="type")]
EVENT: TypeAdapter[Event] = TypeAdapter(AnyEvent)
TYPES: tuple[str, ...] = tuple(each.model_fields["type"].default for each in get_args(_Events))


def now() -> float:
    """Unix seconds to the millisecond, as events and the log of decisions state times."""
    return round(time.time(), 3)


def schema() -> dict[str, Any]:
    """The JSON schema of an event."""
    return EVENT.json_schema()


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
