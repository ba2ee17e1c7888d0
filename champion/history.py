"""History: which model is in use, which were before, and copies of them that no retrain touches.

A champion is a model in realistic mode with its checkpoints of all recipes: they are the evidence,
and the one of ``SERVED_RECIPE`` scores. One pointer file holds the history, the last entry is in
use. Whether a model may become champion is decided in ``stages.champion``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from config.disk import folder_lock
from config.errors import PhasewatchError
from config.signing import (
    SEAL,
    SIGNATURE,
    Signed,
    distrust,
    sealed,
    signature_of,
    signed,
    signing_key,
    unsealed,
)
from features.contract import contract_of
from features.files import fingerprint, write_atomically
from features.registry import Layout
from features.shards import read_table
from models.alarm import AlarmRule
from models.checkpoint import (
    SUFFIX,
    Checkpoint,
    CheckpointError,
    ContractMismatchError,
    load_checkpoint,
    read_header,
    read_sidecar,
    sign_header,
    signed_by,
)
from models.likeness import Likeness

SCHEMA, BEFORE_SEALS = "phasewatch.champion/2", "phasewatch.champion/1"
FIRST = "0" * 64  # what the first entry follows on
POINTER_FILE = "champion.json"
TRAINING_FILE = "training.parquet"  # the episodes a kept checkpoint was trained and validated on
REFERENCE_FILE = "reference.json"  # what drift compares batches with; only of the served recipe
REMEDY = (
    "Make the copy again: phasewatch champion --restore, or, if there was a champion before, roll "
    "back: phasewatch rollback"
)
"""For what is kept with a champion."""
SERVED_RECIPE = "time"
"""The recipe whose checkpoint scores: its training side has every host and every sample of its
period; what it has not seen is what came later, as in use."""


class ChampionError(PhasewatchError):
    """The pointer cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class ChampionEntry:
    """One entry of the history: a model that was put into use, and why."""

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
    training: dict[str, str] = field(default_factory=dict)  # recipe -> digest of its episodes

    @property
    def name(self) -> str:
        return f"{self.model}_{self.mode}"


@dataclass(frozen=True)
class SealedEntry:
    """An entry as it is in the pointer file: chained to the one before, and signed if it can be."""

    entry: Mapping[str, Any]
    follows: str  # hash of the entry before
    digest: str  # of the entry, and of what it follows on
    signature: Any

    @cached_property
    def champion(self) -> ChampionEntry:
        return ChampionEntry(**self.entry)

    @property
    def signed(self) -> Signed:
        return signed("entry", self.digest, self.signature)


@dataclass(frozen=True)
class ChampionPointer:
    """The pointer file: all entries, the one in use last, and what it says of itself."""

    entries: list[SealedEntry]
    signed: Signed
    sealed: bool  # False: it was written before seals, or there is none

    @property
    def history(self) -> list[ChampionEntry]:
        return [entry.champion for entry in self.entries]

    @property
    def champion(self) -> ChampionEntry | None:
        """The one in use; None where there was never one."""
        return self.entries[-1].champion if self.entries else None


def read_history(folder: Path) -> list[ChampionEntry]:
    """All entries, the one in use last; empty where there was never a champion.

    Raises:
        ChampionError: there is a pointer file, but it cannot be read, or was changed.
    """
    return read_pointer(folder).history


def read_pointer(folder: Path) -> ChampionPointer:
    """The pointer file, if nothing in it was changed after it was written.

    Raises:
        ChampionError: see ``read_history``.
    """
    path = folder / POINTER_FILE
    try:
        document = unsealed(path.read_bytes(), {"schema", "history"})
        schema, rows = document.value["schema"], document.value["history"]
        if schema == BEFORE_SEALS and document.digest is None:
            rows = [asdict(ChampionEntry(**row)) for row in rows]
            return ChampionPointer(list(_chained(rows, [], sign=False)), Signed("unsigned"), False)
        if schema != SCHEMA or document.digest is None:
            raise ValueError(f"has schema {schema}, and this phasewatch reads {SCHEMA}")
        pointer = ChampionPointer(list(_followed(rows)), document.signed("champion"), sealed=True)
    except FileNotFoundError:
        return ChampionPointer([], Signed("unsigned"), sealed=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"it {error}" if isinstance(error, ValueError) else str(error)
        raise ChampionError(
            f"{path}: cannot be used: {why}. Put back an intact copy (phasewatch champion "
            "--restore does not mend this file), or move the file away and promote again: "
            "phasewatch promote MODEL"
        ) from error
    wrong = [f"entry {e.champion.number}" for e in pointer.entries if e.signed.state == "wrong"]
    if wrong or pointer.signed.state == "wrong":
        raise ChampionError(
            f"{path}: {wrong[0] if wrong else 'the file'}: invalid signature: it was changed "
            "by someone else. Put back an intact copy, or move the file away and promote again: "
            "phasewatch promote MODEL"
        )
    return pointer


def _followed(rows: list[dict[str, Any]]) -> Iterator[SealedEntry]:
    """The entries of a pointer file, each of which must follow on the one before."""
    before = FIRST
    for number, row in enumerate(rows, start=1):
        entry = dict(row)
        digest, follows = entry.pop(SEAL), entry.pop("follows")
        signature = entry.pop(SIGNATURE, None)
        if follows != before or digest != _digest(entry, follows):
            raise ValueError(f"was changed at entry {number}, or lacks one before it")
        found = SealedEntry(entry, follows, digest, signature)
        if found.champion.number != number:
            raise ValueError(f"has entry {found.champion.number} in place of entry {number}")
        yield found
        before = digest


def _digest(entry: Mapping[str, Any], follows: str) -> str:
    return fingerprint({"follows": follows, "entry": entry})


def read_champion(folder: Path, *, require_signature: bool = False) -> ChampionEntry | None:
    """The champion, None where there is none yet.

    Args:
        require_signature: refuse one that no key trusted here has signed.

    Raises:
        ChampionError: see ``read_history``.
    """
    pointer = read_pointer(folder)
    why = history_signature_problem(pointer) if require_signature else None
    if why and pointer.champion:
        raise ChampionError(
            f"{folder / POINTER_FILE}: {why}, and signatures are required. "
            f"{signing_remedy(pointer.champion)}"
        )
    return pointer.champion


def history_signature_problem(pointer: ChampionPointer) -> str | None:
    """Why nobody trusted stands for who is champion; None if someone does, or there is none.

    The last entry says for all: it is chained to those before.
    """
    for found in [pointer.signed, pointer.entries[-1].signed] if pointer.entries else []:
        if why := distrust(found, required=True):
            return why
    return None


def signature_problem(folder: Path, pointer: ChampionPointer) -> str | None:
    """Why nobody trusted stands for the champion or a kept checkpoint of it; starts with the file.

    None if someone does, if there is no champion, or if a copy is damaged, which is another matter.
    """
    if why := history_signature_problem(pointer):
        return f"{folder / POINTER_FILE}: {why}"
    if (champion := pointer.champion) is None:
        return None
    for recipe in champion.checkpoints:
        path = checkpoint_copy_path(folder, champion, recipe)
        try:
            found = signed_by(read_header(path))
        except CheckpointError:
            return None
        if why := distrust(found, required=True):
            return f"{path}: {why}"
    return None


def signing_remedy(champion: ChampionEntry) -> str:
    """What to do about a champion that no trusted key has signed."""
    again = f"phasewatch promote {champion.model}"
    if signing_key() is not None:
        return f"Promote it again: {again}"
    return (
        f"Make a key (phasewatch keys new NAME) and promote the champion again: {again}; or copy "
        "artifacts that were signed elsewhere and trust their key: phasewatch keys trust FILE"
    )


def checkpoint_copy_folder(folder: Path, checkpoint_id: str) -> Path:
    """Where a checkpoint's copy lies: its id is a hash of all of it, so equal ones share a copy."""
    return folder / "checkpoints" / checkpoint_id


def checkpoint_copy_path(folder: Path, champion: ChampionEntry, recipe: str | None = None) -> Path:
    """The copy's header; without a recipe that of the checkpoint that scores."""
    return (
        checkpoint_copy_folder(folder, champion.checkpoints[recipe or champion.served])
        / f"{champion.name}{SUFFIX}"
    )


def copy_checkpoint(folder: Path, path: Path, files: Mapping[str, bytes]) -> str:
    """Copy a checkpoint where nothing overwrites it; returns its id.

    A copy that is signed keeps its header: the checkpoint may have been trained again without a
    key, to the same id.

    Args:
        files: content by name, kept with it.

    Raises:
        CheckpointError: it is damaged, or was replaced while it was copied.
    """
    header = read_header(path)
    sidecar = read_sidecar(path, header)
    kept = checkpoint_copy_folder(folder, header["artifact_id"])
    for name, content in files.items():
        write_atomically(kept / name, content)
    write_atomically(kept / header["sidecar"], sidecar)
    if not _is_signed(kept / path.name, header["artifact_id"]):
        write_atomically(kept / path.name, path.read_bytes())  # last: where it is, all is
    if read_header(kept / path.name)["artifact_id"] != header["artifact_id"]:
        raise CheckpointError(f"{path} was replaced while it was copied; try again")
    return header["artifact_id"]


def _is_signed(copy: Path, checkpoint_id: str) -> bool:
    """Whether a copy's header is intact and signed by a trusted key."""
    try:
        header = read_header(copy)
    except CheckpointError:
        return False
    return header["artifact_id"] == checkpoint_id and signed_by(header).state == "holds"


def put_in_use(
    folder: Path, champion: ChampionEntry, *, replaces: ChampionEntry | None
) -> ChampionEntry:
    """Put a model in use: append it to the history in one rename; returns it as numbered.

    Raises:
        ChampionError: the champion is no longer the one that it was to replace.
    """
    with _history_lock(folder):
        pointer = read_pointer(folder)
        if pointer.champion != replaces:
            raise _superseded(folder, pointer, champion)
        return _append(folder, pointer, replace(
            champion, previous=replaces.number if replaces else None
        ))  # fmt: skip


def _superseded(folder: Path, pointer: ChampionPointer, wanted: ChampionEntry) -> ChampionError:
    now_in_use = pointer.champion.name if pointer.champion else "none is left"
    return ChampionError(
        f"{folder / POINTER_FILE}: another model has been promoted in the meantime "
        f"({now_in_use}); try again: phasewatch promote {wanted.model}"
    )


def check_evidence(
    folder: Path, champion: ChampionEntry, layout: Layout, recipe: str | None = None
) -> None:
    """Read the training lists, alarm rules and likeness that are kept with a champion.

    Args:
        recipe: only what is kept with its checkpoint.

    Raises:
        ChampionError: one of them is gone or was changed.
    """
    for each in [recipe] if recipe else champion.checkpoints:
        read_training(folder, champion, each)
        if champion.alarm_rules:
            load_alarm_rule(folder, champion, each)
        if each == champion.served:
            load_likeness(folder, champion, layout)


def sign_again(folder: Path, champion: ChampionEntry, *, by: str, why: str) -> ChampionEntry:
    """Sign the champion as it is: the kept headers, and a new entry with the same checkpoints.

    A rollback from the new entry restores what one from the old entry would.

    Raises:
        ChampionError: another model was promoted meanwhile.
        CheckpointError: a copy is absent or damaged.
    """
    with _history_lock(folder):
        pointer = read_pointer(folder)
        if pointer.champion != champion:
            raise _superseded(folder, pointer, champion)
        for recipe in champion.checkpoints:
            sign_header(checkpoint_copy_path(folder, champion, recipe))
        entry = replace(champion, action="promoted", since=now(), by=by, why=why or "signed")
        return _append(folder, pointer, entry)


def roll_back(folder: Path, layout: Layout, *, by: str, why: str) -> ChampionEntry:
    """Put the previous champion in use again, if all that is kept with it still loads.

    Raises:
        ChampionError: there is no champion, or none before it; or what is kept with that one,
            beside its checkpoints, is gone or was changed.
        ContractMismatchError: the previous one was trained for another input layout.
        CheckpointError: a copy is absent or damaged.
    """
    with _history_lock(folder):
        pointer = read_pointer(folder)
        history = pointer.history
        if not history:
            raise ChampionError("There is no champion. Promote one: phasewatch promote MODEL")
        former = {champion.number: champion for champion in history}.get(history[-1].previous or 0)
        if former is None:
            raise ChampionError(
                f"Cannot roll back: there was no champion before {history[-1].name}."
            )
        for recipe in former.checkpoints:
            load_checkpoint_copy(folder, former, layout, recipe)
        check_evidence(folder, former, layout)
        return _append(
            folder, pointer, replace(former, action="rolled back", since=now(), by=by, why=why)
        )


def load_checkpoint_copy(
    folder: Path, champion: ChampionEntry, layout: Layout, recipe: str | None = None
) -> Checkpoint:
    """A champion's checkpoint from its copy; without a recipe the one that scores.

    Raises:
        ContractMismatchError, CheckpointError: see ``load_checkpoint``.
    """
    path = checkpoint_copy_path(folder, champion, recipe)
    if not path.exists():  # training would not bring it back
        raise CheckpointError(f"{path}: missing. {REMEDY}")
    try:
        checkpoint = load_checkpoint(path, layout)
        _check_id(path, checkpoint.artifact_id)
    except ContractMismatchError:
        raise
    except CheckpointError as error:  # training would not mend the copy
        what = str(error).removesuffix(" or retrain").removesuffix("; restore the file")
        raise CheckpointError(f"{what}. {REMEDY}") from error
    return checkpoint


def check_checkpoint_copies(folder: Path, champion: ChampionEntry) -> None:
    """Read every copy of a champion's checkpoints and compare it with what the history says.

    Raises:
        CheckpointError: one is absent, damaged or another.
    """
    for recipe in champion.checkpoints:
        check_checkpoint_copy(folder, champion, recipe)


def check_checkpoint_copy(folder: Path, champion: ChampionEntry, recipe: str) -> None:
    """Do what ``check_checkpoint_copies`` does, for one recipe."""
    path = checkpoint_copy_path(folder, champion, recipe)
    header = read_header(path)
    read_sidecar(path, header)
    _check_id(path, header["artifact_id"])


def _check_id(path: Path, checkpoint_id: str) -> None:
    if checkpoint_id != path.parent.name:
        raise CheckpointError(f"{path}: its id is {checkpoint_id}; restore the file")


def alarm_rule_file(rule_id: str) -> str:
    """Name of an alarm rule beside its checkpoint's copy; a checkpoint may have had several."""
    return f"alarm_rule.{rule_id[:12]}.json"


def load_alarm_rule(folder: Path, champion: ChampionEntry, recipe: str | None = None) -> AlarmRule:
    """The alarm rule of a champion's checkpoint, by default of the one that scores.

    Raises:
        ChampionError: the champion has none, or its file is gone or changed.
    """
    recipe = recipe or champion.served
    rule_id = champion.alarm_rules.get(recipe)
    if rule_id is None:
        raise ChampionError(
            f"{champion.name} was promoted before alarm rules existed; promote a model: "
            "phasewatch promote MODEL"
        )
    path = checkpoint_copy_path(folder, champion, recipe).with_name(alarm_rule_file(rule_id))
    try:
        content = path.read_bytes()
        rule = AlarmRule.from_text(content)
        if content != rule.text().encode():
            raise ValueError("it was changed after it was written")
        if (rule.id, rule.checkpoint_id) != (rule_id, champion.checkpoints[recipe]):
            raise ValueError("it is not the alarm rule that was kept for this checkpoint")
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return rule


def likeness_file(likeness_id: str) -> str:
    """Name of a likeness beside its checkpoint's copy."""
    return f"likeness.{likeness_id[:12]}.safetensors"


def load_likeness(folder: Path, champion: ChampionEntry, layout: Layout) -> Likeness | None:
    """How like its training windows must be; None if the champion was promoted without.

    Raises:
        ChampionError: the file is gone or changed, or for another input layout.
    """
    if not champion.likeness:
        return None
    path = checkpoint_copy_path(folder, champion).with_name(likeness_file(champion.likeness))
    try:
        likeness = Likeness.from_bytes(path.read_bytes())
        if likeness.id != champion.likeness:
            raise ValueError("it is not the likeness that was kept with the champion")
        if likeness.contract_hash != contract_of(layout, "summary").hash:
            raise ValueError("it is for another input layout")
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return likeness


def read_training(folder: Path, champion: ChampionEntry, recipe: str | None = None) -> pl.DataFrame:
    """Episodes that a champion's checkpoint was trained or validated on (``TRAINING_COLUMNS``).

    Raises:
        ChampionError: the table kept with the checkpoint is gone, or was changed.
    """
    path = checkpoint_copy_path(folder, champion, recipe).with_name(TRAINING_FILE)
    try:
        table = pl.DataFrame(read_table(path))
        if champion.training.get(recipe or champion.served) not in (None, training_digest(table)):
            raise ValueError("it was changed after it was written")
        return table
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: OSError | ValueError) -> ChampionError:
    problem = getattr(error, "strerror", None) or str(error).strip().rstrip(".")
    if isinstance(error, FileNotFoundError):
        problem = "missing"
    elif isinstance(error, ValueError) and not problem.startswith("it "):  # a library's words
        problem = f"damaged ({problem})"
    return ChampionError(f"{path}: {problem}. {REMEDY}")


def training_digest(table: pl.DataFrame) -> str:
    """sha256 of a list of episodes, however its file is laid out."""
    return hashlib.sha256(table.write_csv().encode()).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append(folder: Path, pointer: ChampionPointer, champion: ChampionEntry) -> ChampionEntry:
    numbered = replace(champion, number=len(pointer.entries) + 1)
    entries = [*pointer.entries, *_chained([asdict(numbered)], pointer.entries)]
    history = [
        {
            **entry.entry, "follows": entry.follows, SEAL: entry.digest,
            **({SIGNATURE: entry.signature} if entry.signature else {}),
        }
        for entry in entries
    ]  # fmt: skip
    content = sealed({"schema": SCHEMA, "history": history}, "champion")
    write_atomically(folder / POINTER_FILE, content)
    return numbered


def _chained(
    rows: Iterable[Mapping[str, Any]], after: Sequence[SealedEntry], *, sign: bool = True
) -> Iterator[SealedEntry]:
    """Entries that follow on others; those of a file written before seals are not signed."""
    before = after[-1].digest if after else FIRST
    for entry in rows:
        digest = _digest(entry, before)
        yield SealedEntry(entry, before, digest, signature_of("entry", digest) if sign else None)
        before = digest


@contextmanager
def _history_lock(folder: Path) -> Iterator[None]:
    """Held while the pointer is read and replaced; the system releases it from a killed process."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        yield
