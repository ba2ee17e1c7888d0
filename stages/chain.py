"""The chain from episodes to a bundle, looked at link by link: every hash, and every signature.

    episodes -> validation index -> shards -> dataset -> checkpoint -> alarm rule -> bundle

Each link names the one before it by a hash, so whoever changes one byte of one has to change all
that follow. Nothing is repaired or made here, and nothing that was found before is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from champion.history import (
    POINTER_FILE,
    REFERENCE_FILE,
    check_checkpoint_copies,
    check_evidence,
    checkpoint_copy_folder,
    checkpoint_copy_path,
    history_signature_problem,
    read_pointer,
)
from config.errors import PhasewatchError
from config.messages import shortened
from config.signing import Signed, distrust, unsealed
from datasets.splits import RECIPES
from episodes.store import StoredEpisode
from features.files import file_sha256
from live.bundle import HEAD_FILE, TOLERANCE, Bundle, load_bundle, unpack_arrays
from live.bundle import signed_by as bundle_signed_by
from models.alarm import AlarmRule
from models.checkpoint import (
    SUFFIX,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    read_header,
    read_sidecar,
    signed_by,
)
from stages.alarm_rules import read_alarm_rule
from stages.batch import INDEX, IngestedEpisode, episode_identity, read_index
from stages.checkpoints import check_training
from stages.datasets import dataset_fingerprint
from stages.drift_reference import REFERENCE_FIELDS
from stages.manifest import Manifest, manifest_damage

if TYPE_CHECKING:
    from stages.project import Project


State = Literal[
    "holds",
    "broken",  # it is not what the next one was made from
    "gone",
    "not trusted",  # it is whole, but nobody who is trusted signed it
    "not checked",  # what it would be compared with is broken or gone
]


@dataclass(frozen=True)
class Link:
    """One link of a chain, and whether it is what the next one was made from."""

    name: Literal[
        "episodes", "validation index", "shards", "dataset", "checkpoint", "alarm rule", "champion",
        "bundle",
    ]  # fmt: skip
    place: str
    state: State
    note: str = ""  # what is wrong, or who signed it

    @property
    def holds(self) -> bool:
        return self.state == "holds"


class _BrokenError(PhasewatchError):
    """A link is not what the next one was made from."""


class _NotHeldError(PhasewatchError):
    """A link that is not broken, but does not hold either."""

    def __init__(self, state: State, note: str):
        super().__init__(note)
        self.state = state


class ChainVerifier:
    """Looks at the chain of a bundle or a checkpoint; ``links`` is what was found, nearest first.

    Args:
        project: where the rest of the chain is looked for.
    """

    def __init__(self, project: Project):
        self._project = project
        self._required = project.workspace.require_signatures
        self.links: list[Link] = []

    @contextmanager
    def _link(self, name: Any, place: object) -> Iterator[list[str]]:
        """Look at one link; what is raised within breaks it and no other."""
        notes: list[str] = []
        try:
            yield notes
        except _NotHeldError as error:
            self.links.append(Link(name, str(place), error.state, str(error)))
        except (PhasewatchError, OSError, ValueError, KeyError, TypeError) as error:
            said = str(error) if str(error) else type(error).__name__
            self.links.append(Link(name, str(place), "broken", said.removeprefix(f"{place}: ")))
        else:
            self.links.append(Link(name, str(place), "holds", ", ".join(notes)))

    def _sign(self, found: Signed, notes: list[str]) -> None:
        if why := distrust(found, required=self._required):
            raise _NotHeldError("not trusted", why)
        notes.append(found.line)

    def bundle(self, folder: Path) -> None:
        """The whole chain of a bundle."""
        layout = self._project.workspace.layout
        bundle: Bundle | None = None
        with self._link("bundle", folder) as notes:
            bundle = load_bundle(folder, layout)
            self._sign(bundle_signed_by(bundle.head), notes)
        if bundle is None:
            return
        head = bundle.head
        with self._link("alarm rule", folder / HEAD_FILE):
            _must(bundle.rule.id, head["rule_id"], "the bundle's rule")
            _must(bundle.rule.checkpoint_id, head["checkpoint_id"], "the checkpoint of its rule")
        self._checkpoint_of(folder, bundle)

    def checkpoint(self, path: Path) -> None:
        """The chain of a checkpoint, up to its alarm rule."""
        header: dict[str, Any] | None = None
        with self._link("checkpoint", path) as notes:
            found = read_header(path)
            check_training(found, path)
            header = found
            read_sidecar(path, header)
            self._sign(signed_by(header), notes)
        if header is not None:
            recipe, name = header["train_meta"]["recipe"], f"{header['name']}_{header['mode']}"
            self._rules(header["artifact_id"], recipe, name, None)
            self._dataset(recipe, header["train_meta"]["dataset_version"])
            self._champion(header["artifact_id"])

    def _checkpoint_of(self, folder: Path, bundle: Bundle) -> None:
        """The chain of a bundle's checkpoint, wherever it is."""
        workspace, head = self._project.workspace, bundle.head
        checkpoint_id, recipe, name = head["checkpoint_id"], head["recipe"], bundle.variant
        kept = checkpoint_copy_folder(workspace.champion_folder, checkpoint_id) / f"{name}{SUFFIX}"
        trained = workspace.checkpoint_folder(recipe) / f"{name}{SUFFIX}"
        paths = [kept] if kept.exists() else []
        paths += [trained] if trained.exists() and _is_of(trained, checkpoint_id) else []
        for path in paths:
            with self._link("checkpoint", path) as notes:
                checkpoint = load_checkpoint(path, workspace.layout)
                _must(checkpoint.artifact_id, checkpoint_id, "its id")
                made_from = checkpoint.header["train_meta"]["dataset_version"]
                _must(head["dataset_version"], made_from, "the bundle's dataset")
                _same_outputs(checkpoint, folder, bundle)
                self._sign(signed_by(checkpoint.header), notes)
        if not paths:
            with self._link("checkpoint", trained):
                raise _NotHeldError(
                    "gone", f"checkpoint {checkpoint_id[:12]} of recipe {recipe} is not here"
                )
        self._rules(checkpoint_id, recipe, name, bundle.rule)
        self._dataset(recipe, head["dataset_version"])
        self._champion(checkpoint_id)

    def _rules(self, checkpoint_id: str, recipe: str, name: str, rule: AlarmRule | None) -> None:
        """The alarm rules on disk that are bound to a checkpoint."""
        stage = self._project.stages[f"alarm_rules/{name}"]
        folder = stage.folder(self._project.workspace, recipe)  # type: ignore[attr-defined]
        manifest = self._project.artifact(stage.name, recipe)
        if damage := manifest_damage(folder):
            with self._link("alarm rule", folder):
                raise _BrokenError(damage)
        elif manifest and manifest.facts.get("checkpoint_id") == checkpoint_id:
            with self._link("alarm rule", folder) as notes:
                self._whole(manifest, notes)
                found = read_alarm_rule(manifest)
                _must(found.id, manifest.facts["alarm_rule_id"], "the rule")
                _must(found.checkpoint_id, checkpoint_id, "its checkpoint")
                if rule is not None:
                    _must(rule.id, found.id, "the bundle's rule")
                self._sign(manifest.signed, notes)

    def _dataset(self, recipe: str, version: str) -> None:
        stage = self._project.stages["datasets"]
        folder = stage.folder(self._project.workspace, recipe)  # type: ignore[attr-defined]
        manifest = self._project.artifact("datasets", recipe) if recipe in RECIPES else None
        with self._link("dataset", folder) as notes:
            if damage := manifest_damage(folder):
                raise _BrokenError(damage)
            if manifest is None or manifest.version != version:
                if manifest is not None and (problem := manifest.damage()):
                    raise _BrokenError(problem)
                raise _NotHeldError(
                    "gone", f"the dataset that it was trained on ({version[:12]}) is not here"
                )
            self._whole(manifest, notes)
            facts = manifest.facts
            _must(
                dataset_fingerprint(
                    facts["version"],
                    recipe,
                    policy=facts["policy"],
                    batches=facts["batches"],
                    excluded_by_hand=facts["excluded_by_hand"],
                ),
                manifest.fingerprint,
                "the fingerprint of the inputs that it lists",
            )
            self._sign(manifest.signed, notes)
        if manifest is None or manifest.version != version:  # it names the batches
            with self._link("shards", folder):
                raise _NotHeldError(
                    "not checked",
                    "without the dataset's manifest, its shards and episodes are unknown",
                )
            return
        for batch, versions in manifest.facts["batches"].items():
            self._batch(batch, versions)

    def _batch(self, batch: str, versions: dict[str, str]) -> None:
        project = self._project
        folder = project.workspace.batch_folder(batch)
        manifests = project.artifacts("ingest", batch)
        for name, version in versions.items():
            link = "validation index" if name == INDEX else "shards"
            with self._link(link, folder / name) as notes:
                if damage := manifest_damage(folder / name):
                    raise _BrokenError(damage)
                if manifests[name] is None:
                    raise _NotHeldError("gone", "it is not here")
                _must(manifests[name].version, version, "its data version")
                self._whole(manifests[name], notes)
                self._sign(manifests[name].signed, notes)
        with self._link("episodes", f"{project.workspace.store_path}, batch {batch}") as notes:
            if batch not in project.listing.batches:
                raise _NotHeldError("gone", "the store has no such batch")
            index = manifests[INDEX]
            if index is None or index.damage():
                raise _NotHeldError(
                    "not checked",
                    "without the validation index, it is unknown which archives were ingested",
                )
            stored = {
                each.episode_id: each
                for each in project.listing.batches[batch]
                if each.size_bytes is not None or each.arrived_bytes is not None
            }
            used = {key: entry for key, entry in read_index(index).items() if entry.place}
            wrong = [
                str(stored[key].path)
                for key in sorted(used.keys() & stored.keys())
                if not _same(stored[key], used[key])
            ]
            gone = sorted(used.keys() - stored.keys())
            missing = f"no longer in the store: {shortened(gone, ', ', 3)}"
            if wrong:
                changed = f"not what was ingested: {shortened(wrong, ', ', 3)}"
                raise _BrokenError(f"{changed}; {missing}" if gone else changed)
            if gone:
                raise _NotHeldError("gone", missing)
            notes.append(f"{len(used)} archives")

    def _champion(self, checkpoint_id: str) -> None:
        """The history, if it has put the checkpoint in use, and what is kept with it."""
        folder = self._project.workspace.champion_folder
        if not (folder / POINTER_FILE).exists():
            return
        with self._link("champion", folder / POINTER_FILE) as notes:
            pointer = read_pointer(folder)
            entries = [
                each for each in pointer.history if checkpoint_id in each.checkpoints.values()
            ]
            for champion in entries:
                check_checkpoint_copies(folder, champion)
                check_evidence(folder, champion, self._project.workspace.layout)
                self._reference(checkpoint_copy_path(folder, champion).with_name(REFERENCE_FILE))
            if self._required and (why := history_signature_problem(pointer)):
                raise _NotHeldError("not trusted", why)
            numbers = ", ".join(str(champion.number) for champion in entries)
            entry = "entry" if len(entries) == 1 else "entries"
            notes.append(
                f"{entry} {numbers} of the champion's history"
                if entries
                else "the history is intact; no champion had this checkpoint"
            )
            notes.append(pointer.signed.line)

    def _reference(self, path: Path) -> None:
        """What drift compares with; if it is gone, drift makes it again."""
        if path.exists():
            try:
                found = unsealed(path.read_bytes(), REFERENCE_FIELDS)
            except ValueError as error:
                remedy = "to make it again, run: phasewatch champion --restore"
                raise _BrokenError(f"{path}: {error}; {remedy}") from None
            if why := distrust(found.signed("reference"), required=self._required):
                raise _NotHeldError("not trusted", f"{path}: {why}")

    def _whole(self, manifest: Manifest, notes: list[str]) -> None:
        if problem := manifest.damage():
            raise _BrokenError(problem)
        if manifest.digest is None:
            notes.append("written before manifests were sealed")


def _must(found: object, stated: object, what: str) -> None:
    if found != stated:
        raise _BrokenError(f"{what} is {str(found)[:12]}, but {str(stated)[:12]} is stated")


def _is_of(path: Path, checkpoint_id: str) -> bool:
    """Whether a trained checkpoint is the one; also if nobody can tell any more."""
    try:
        return bool(read_header(path)["artifact_id"] == checkpoint_id)
    except CheckpointError:
        return True


def _same_outputs(checkpoint: Checkpoint, folder: Path, bundle: Bundle) -> None:
    """That a bundle answers its golden windows as the checkpoint does."""
    expected = unpack_arrays((folder / bundle.head["golden"]["expected"]).read_bytes())
    X = expected["inputs"]
    off = float(np.abs(checkpoint.model.predict_proba(X) - bundle.runtime.proba(X)).max())
    if not off <= TOLERANCE:
        raise _BrokenError(
            f"the bundle's probabilities differ from the checkpoint's by up to {off:.2g}"
        )


def _same(stored: StoredEpisode, entry: IngestedEpisode) -> bool:
    """Whether an archive has the bytes that were ingested, and the index still says so."""
    return (
        stored.size_bytes is not None
        and episode_identity(stored) == entry.identity
        and file_sha256(stored.path) == entry.record.sha256
    )
