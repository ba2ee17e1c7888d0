"""History: which model is in use, which were before, and copies of them that no retrain touches.

A champion is a model in realistic mode with its checkpoints of all recipes: they are the evidence,
and the one of recipe ``SERVED`` scores. One pointer file holds the history, the last entry is in
use. Whether a model may become champion is judged in ``stages.champion``.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl

from features.contract import contract_of
from features.files import write_atomically
from features.registry import Layout
from features.shards import read_table
from models.alarm import AlarmRule
from models.checkpoint import (
    SUFFIX,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    read_header,
    read_sidecar,
)
from models.novelty import Likeness

SCHEMA = "phasewatch.champion/1"
POINTER_FILE = "champion.json"
TRAINING_FILE = "training.parquet"  # the episodes a kept checkpoint was trained and validated on
REFERENCE_FILE = "reference.json"  # what drift compares batches with; only of the served recipe
SERVED = "time"
"""The recipe whose checkpoint scores: only it has learned from every host, and from all samples of
its time; what it has not seen is what came later, as in use."""


class ChampionError(Exception):
    """The pointer cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Champion:
    """One entry of the history: a model that was put in use, and why."""

    number: int
    action: Literal["promoted", "rolled back"]
    model: str
    mode: str
    served: str  # the recipe whose checkpoint scores
    checkpoints: dict[str, str]  # recipe -> checkpoint id
    since: str  # UTC, RFC 3339
    by: str
    why: str
    evidence: dict[str, Any]
    previous: int | None  # what a rollback from here restores
    alarm_rules: dict[str, str] = field(default_factory=dict)  # recipe -> alarm rule id
    likeness: str = ""  # id of the served recipe's likeness; empty: none is kept
    accepted: dict[str, Any] | None = None  # alarms over the budget: ``why`` and the ``grounds``

    @property
    def name(self) -> str:
        return f"{self.model}_{self.mode}"


def read_history(folder: Path) -> list[Champion]:
    """All entries, the one in use last; empty where there was never a champion.

    Raises:
        ChampionError: there is a pointer file, but it cannot be read.
    """
    path = folder / POINTER_FILE
    try:
        document = json.loads(path.read_bytes())
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']}, this phasewatch reads {SCHEMA}")
        return [Champion(**entry) for entry in document["history"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ChampionError(
            f"{path}: not a champion's pointer ({error}). Restore the file, or move it away and "
            "promote again: phasewatch promote MODEL"
        ) from error


def read_champion(folder: Path) -> Champion | None:
    """The champion, None where there is none yet.

    Raises:
        ChampionError: see ``read_history``.
    """
    history = read_history(folder)
    return history[-1] if history else None


def kept_folder(folder: Path, checkpoint_id: str) -> Path:
    """Where a checkpoint's copy lies: its id is a hash of all of it, so equal ones share a copy."""
    return folder / "checkpoints" / checkpoint_id


def kept_path(folder: Path, champion: Champion, recipe: str | None = None) -> Path:
    """The copy's header; without a recipe that of the checkpoint that scores."""
    return (
        kept_folder(folder, champion.checkpoints[recipe or champion.served])
        / f"{champion.name}{SUFFIX}"
    )


def keep(folder: Path, path: Path, files: Mapping[str, bytes]) -> str:
    """Copy a checkpoint where nothing overwrites it; returns its id.

    Args:
        files: content by name, kept with it.

    Raises:
        CheckpointError: it is damaged, or was replaced while it was copied.
    """
    header = read_header(path)
    sidecar = read_sidecar(path, header)
    kept = kept_folder(folder, header["artifact_id"])
    for name, content in files.items():
        write_atomically(kept / name, content)
    write_atomically(kept / header["sidecar"], sidecar)
    write_atomically(kept / path.name, path.read_bytes())  # last: where it is, all is
    if read_header(kept / path.name)["artifact_id"] != header["artifact_id"]:
        raise CheckpointError(f"{path} was replaced while it was copied; try again")
    return header["artifact_id"]


def put_in_use(folder: Path, champion: Champion, *, judged_against: Champion | None) -> Champion:
    """Put a model in use: append it to the history in one rename; returns it as numbered.

    Raises:
        ChampionError: the champion is no longer the one it was judged against.
    """
    with _one_at_a_time(folder):
        history = read_history(folder)
        if (history[-1] if history else None) != judged_against:
            raise ChampionError(
                f"{folder / POINTER_FILE}: another model was promoted meanwhile "
                f"({history[-1].name if history else 'none is left'}); try again: "
                f"phasewatch promote {champion.model}"
            )
        return _append(folder, history, replace(
            champion, previous=judged_against.number if judged_against else None
        ))  # fmt: skip


def roll_back(folder: Path, layout: Layout, *, by: str, why: str) -> Champion:
    """Put the previous champion in use again, if each of its checkpoints still loads.

    Raises:
        ChampionError: there is no champion, or none before it.
        ContractMismatchError: the previous one was trained for another input layout.
        CheckpointError: a copy is absent or damaged.
    """
    with _one_at_a_time(folder):
        history = read_history(folder)
        if not history:
            raise ChampionError("There is no champion. Promote one: phasewatch promote MODEL")
        former = {champion.number: champion for champion in history}.get(history[-1].previous or 0)
        if former is None:
            raise ChampionError(f"Nothing to restore: no champion was in use before "
                                f"{history[-1].name}.")  # fmt: skip
        for recipe in former.checkpoints:
            load_kept(folder, former, layout, recipe)
        return _append(
            folder, history, replace(former, action="rolled back", since=now(), by=by, why=why)
        )


def load_kept(
    folder: Path, champion: Champion, layout: Layout, recipe: str | None = None
) -> Checkpoint:
    """A champion's checkpoint from its copy; without a recipe the one that scores.

    Raises:
        ContractMismatchError, CheckpointError: see ``load_checkpoint``.
    """
    path = kept_path(folder, champion, recipe)
    checkpoint = load_checkpoint(path, layout)
    if checkpoint.artifact_id != path.parent.name:
        raise CheckpointError(f"{path}: its id is {checkpoint.artifact_id}; restore the file")
    return checkpoint


def rule_file(rule_id: str) -> str:
    """Name of an alarm rule beside its checkpoint's copy; a checkpoint may have had several."""
    return f"alarm_rule.{rule_id[:12]}.json"


def load_rule(folder: Path, champion: Champion, recipe: str | None = None) -> AlarmRule:
    """The alarm rule of a champion's checkpoint, by default of the one that scores.

    Raises:
        ChampionError: the champion has none, or its file is gone or changed.
    """
    recipe = recipe or champion.served
    rule_id = champion.alarm_rules.get(recipe)
    if rule_id is None:
        raise ChampionError(
            f"{champion.name} was promoted before alarm rules; promote a model: "
            "phasewatch promote MODEL"
        )
    path = kept_path(folder, champion, recipe).with_name(rule_file(rule_id))
    try:
        rule = AlarmRule.from_text(path.read_bytes())
        if (rule.id, rule.checkpoint_id) != (rule_id, champion.checkpoints[recipe]):
            raise ValueError("it is another rule, or for another checkpoint")
    except (OSError, ValueError) as error:
        raise ChampionError(
            f"{path}: {error}. Restore the file, or roll back: phasewatch rollback"
        ) from error
    return rule


def likeness_file(likeness_id: str) -> str:
    """Name of a likeness beside its checkpoint's copy."""
    return f"likeness.{likeness_id[:12]}.safetensors"


def load_likeness(folder: Path, champion: Champion, layout: Layout) -> Likeness | None:
    """How like its training windows must be; None if the champion was promoted without.

    Raises:
        ChampionError: the file is gone or changed, or for another input layout.
    """
    if not champion.likeness:
        return None
    path = kept_path(folder, champion).with_name(likeness_file(champion.likeness))
    try:
        likeness = Likeness.from_bytes(path.read_bytes())
        if likeness.id != champion.likeness:
            raise ValueError("it is another one")
        if likeness.contract_hash != contract_of(layout, "summary").hash:
            raise ValueError("it is for another input layout")
    except (OSError, ValueError) as error:
        raise ChampionError(
            f"{path}: {error}. Restore the file, or roll back: phasewatch rollback"
        ) from error
    return likeness


def read_training(folder: Path, champion: Champion, recipe: str | None = None) -> pl.DataFrame:
    """Episodes that a champion's checkpoint was trained or validated on (``TRAINING_COLUMNS``).

    Raises:
        ChampionError: the table kept with the checkpoint is gone.
    """
    path = kept_path(folder, champion, recipe).with_name(TRAINING_FILE)
    try:
        return pl.DataFrame(read_table(path))
    except OSError as error:
        raise ChampionError(
            f"{path}: cannot be read ({error.strerror or error}). Restore the file, or roll back: "
            "phasewatch rollback"
        ) from error


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append(folder: Path, history: list[Champion], champion: Champion) -> Champion:
    numbered = replace(champion, number=len(history) + 1)
    document = {"schema": SCHEMA, "history": [asdict(r) for r in (*history, numbered)]}
    text = json.dumps(document, indent=1, allow_nan=False)
    write_atomically(folder / POINTER_FILE, text.encode() + b"\n")
    return numbered


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Held while the pointer is read and replaced; the system releases it from a killed process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
