"""Status of an artifact: current, stale, missing, damaged or unavailable, with a code, numbers
and a remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from config.errors import PhasewatchError
from config.messages import addressed, shortened
from datasets.splits import UNAVAILABLE

State = Literal["current", "stale", "missing", "damaged", "unavailable"]

REASONS: dict[str, tuple[State, bool, str]] = {
    # code: state, whether stages downstream may build on the artifact, sentence
    "current": ("current", True, "current"),
    "no_champion": ("current", True, "not compared: there is no champion, or it has a problem"),
    "not_made": ("missing", False, "{outputs}missing"),
    "not_compared": ("missing", False, "not compared with the champion yet"),
    "not_in_store": ("missing", False, "not in the store {store}"),
    "damaged": ("damaged", False, "{problem}"),
    "signature": ("damaged", False, "{problem}, and signatures are required"),
    "format": ("stale", False, "written in an older format"),
    "contract": ("stale", False, "{outputs}contract mismatch"),
    "version": ("stale", False, "made by another version of the code"),
    "settings": ("stale", True, "made with other settings; to reuse it, go back to those settings"),
    "policy": ("stale", False, "{outputs}made with another validation policy"),
    "outputs_differ": ("stale", False, "its outputs were not made from the same episodes"),
    "episodes": ("stale", True, "{changed} episodes arrived or changed since it was ingested"),
    "other_store": ("stale", True, "ingested from another store"),
    "exclusions": ("stale", True, "made with other exclusions"),
    "batches_added": ("stale", True, "{batches} not included"),
    "inputs": ("stale", False, "these inputs have changed since it was made: {inputs}"),
    "inputs_missing": ("stale", True, "its inputs are missing or damaged: {inputs}"),
    "checkpoint": ("stale", False, "compared with another champion"),
    "contents": ("stale", True, "made before these changed: {contents}"),
    "log": ("stale", True, "the log has grown since it was counted"),
    **{code: ("unavailable", False, f"unavailable: {why}") for code, why in UNAVAILABLE.items()},
}
"""Every reason an artifact may have; the sentence is made here and nowhere else."""


@dataclass(frozen=True)
class Reason:
    """Why an artifact has its status: a key of ``REASONS``, and the numbers and names behind it."""

    code: str
    details: dict[str, Any] = field(default_factory=dict)
    remedy: str | None = None  # where the stage's own does not mend it


@dataclass(frozen=True)
class Status:
    """Whether a stage's artifact for a key is current, and otherwise why not and what to do."""

    stage: str
    key: str  # batch or recipe; empty for the whole store
    reason: Reason
    stage_remedy: str
    address: Mapping[str, str] = field(default_factory=dict)  # of the project

    @property
    def code(self) -> str:
        return self.reason.code

    @property
    def state(self) -> State:
        return REASONS[self.code][0]

    @property
    def current(self) -> bool:
        return self.state == "current"

    @property
    def available(self) -> bool:
        """Whether the store has what the artifact is made from; otherwise nothing is to be done."""
        return self.state != "unavailable"

    @property
    def due(self) -> bool:
        """Whether making it would change something."""
        return self.available and not self.current

    @property
    def usable(self) -> bool:
        """Whether stages downstream may build on what is on disk."""
        return REASONS[self.code][1]

    @property
    def remedy(self) -> str:
        """The command or step that makes the artifact current."""
        return addressed(self.reason.remedy or f"Run: {self.stage_remedy}", self.address)

    @property
    def differences(self) -> list[str]:
        """Lines of a contract diff; empty for other reasons."""
        return list(self.reason.details.get("differences", ()))

    @property
    def message(self) -> str:
        """The reason as a sentence."""
        details = {name: _listed(value) for name, value in self.reason.details.items()}
        several = self.reason.details.get("outputs", []) != [self.stage]
        details["outputs"] = f"{details['outputs']}: " if "outputs" in details and several else ""
        return REASONS[self.code][2].format_map(details)

    @property
    def line(self) -> str:
        """Stage, key and reason, for lists."""
        return f"{f'{self.stage} {self.key}'.strip()}: {self.message}"

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON documents."""
        return {
            "stage": self.stage, "key": self.key, "state": self.state, "code": self.code,
            "details": self.reason.details, "remedy": self.remedy,
        }  # fmt: skip


def _listed(value: Any) -> str:
    return shortened(value, ", ") if isinstance(value, list) else str(value)


class StageError(PhasewatchError):
    """A stage cannot be made; the message says why and what to do."""

    def __init__(self, message: str, differences: list[str] | None = None):
        super().__init__(message)
        self.differences = differences or []

    @classmethod
    def of(cls, statuses: list[Status]) -> StageError:
        """For inputs that nothing can be built on."""
        lines = [f"  - {status.line}" for status in statuses]
        differences = list(dict.fromkeys(line for s in statuses for line in s.differences))
        if differences:
            lines += ["Differences:", *(f"  - {line}" for line in differences)]
        remedies = list(dict.fromkeys(status.remedy for status in statuses))
        return cls(
            "\n".join(["Inputs are missing, damaged or stale:", *lines, *remedies]), differences
        )
