"""A project: a store and an artifacts folder under some settings, each looked at once.

The one place that answers whether an artifact is current, and the one that makes it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from champion.history import ChampionError
from config.messages import shortened, unknown
from config.signing import SigningError, distrust, signing_key, trusted_keys
from datasets.splits import RECIPES
from episodes.environment import MachineError, collector_paused
from features.files import fingerprint
from models.base import NotFiniteError, silent
from models.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
)
from stages import registry
from stages.batch import settings_fingerprint
from stages.datasets import unavailable_recipes
from stages.manifest import DamagedError, manifest_damage
from stages.stage import ManifestStage
from stages.status import REASONS, Reason, StageError, Status
from stages.status_cache import StatusCache, files_identity

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from champion.history import ChampionEntry
    from episodes.store import StoreListing
    from models.registry import Variant
    from stages.manifest import Manifest
    from stages.stage import Artifacts, Progress, Stage
    from stages.workspace import Workspace


REFUSALS = (StageError, MachineError, CheckpointError, NotFiniteError, ChampionError, OSError)
"""Faults of one key."""


@dataclass(frozen=True)
class MakeResult:
    """What ``Project.make`` made, or found current and reused."""

    artifacts: Artifacts
    reused: bool
    seconds: float

    def __repr__(self) -> str:
        done = "reused" if self.reused else "made"
        return f"<{done} {shortened(list(self.artifacts), ', ')} in {self.seconds:.1f} s>"


@dataclass(frozen=True)
class DueWork:
    """A batch or recipe (or, without a key, the page) that a job would change."""

    job: str
    key: str
    statuses: list[Status]  # those that are due
    identity: str  # of what it would be made from


class Project:
    """What is in a store and in an artifacts folder, as it was when first asked for.

    Args:
        workspace: paths and settings.
    """

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.stages = registry.STAGES
        self._artifacts: dict[tuple[str, str], Artifacts] = {}
        self._statuses: dict[tuple[str, str, bool | str], Status] = {}
        self._checkpoints: dict[tuple[str, str], Checkpoint] = {}

    def __repr__(self) -> str:
        workspace = self.workspace
        return f"<project of {workspace.store_path} in {workspace.artifacts_path}>"

    @cached_property
    def listing(self) -> StoreListing:
        return self.workspace.listing()

    @cached_property
    def batch_settings(self) -> str:
        """Identity of how batches are ingested."""
        return settings_fingerprint(self.workspace.validation, self.workspace.layout)

    @cached_property
    def champion(self) -> ChampionEntry | None:
        """The champion in use; None if there is none that loads for the current input layout."""
        if self.champion_fault:
            return None
        current = self.status(self.stages["champion"], "").current
        return self.artifact("champion", "") if current else None

    @cached_property
    def champion_fault(self) -> str:
        """Why the champion is unknown (its pointer was damaged or changed); empty: it is known."""
        try:
            self.status(self.stages["champion"], "")
        except ChampionError as error:
            return str(error)
        return ""

    @cached_property
    def unavailable(self) -> dict[str, Reason]:
        """The recipes that the store does not support, and why: they are never due."""
        return unavailable_recipes(self)

    def available(self, stage: Stage, key: str) -> bool:
        """Whether the store has what a stage's artifact for a key would be made from."""
        return stage.partition != "recipe" or key not in self.unavailable

    @property
    def recipes(self) -> list[str]:
        """The recipes that the store supports."""
        return [recipe for recipe in RECIPES if recipe not in self.unavailable]

    def keys(self, stage: Stage) -> list[str]:
        """Every batch of the store, every recipe, or the one empty key."""
        if stage.partition == "batch":
            return list(self.listing.batches)
        return list(RECIPES) if stage.partition == "recipe" else [""]

    def artifacts(self, stage: str, key: str) -> Artifacts:
        """What is on disk of a stage, by output."""
        if (stage, key) not in self._artifacts:
            self._artifacts[stage, key] = self.stages[stage].read(self, key)
        return self._artifacts[stage, key]

    def artifact(self, stage: str, key: str) -> Any:
        """What is on disk of a stage with one output, None if there is nothing."""
        (artifact,) = self.artifacts(stage, key).values()
        return artifact

    def existing(self, stage: str, key: str) -> Any:
        """The artifact of a stage with one output.

        Raises:
            StageError: there is none.
        """
        artifact = self.artifact(stage, key)
        if artifact is None:
            raise StageError.of([self.status(self.stages[stage], key)])
        return artifact

    def usable(self, stage: str, key: str) -> Any:
        """The artifact of a stage with one output, if it can be read and built on.

        Raises:
            StageError: it is missing, damaged, in an older form, or made from other inputs.
        """
        status = self.status(self.stages[stage], key, verify=True)
        if not status.usable:
            raise StageError.of([status])
        return self.existing(stage, key)

    def checkpoint(self, variant: Variant, recipe: str) -> Checkpoint:
        """A loaded checkpoint; loading compares its contract with the current input layout.

        Raises:
            ContractMismatchError, CheckpointError: see ``load_checkpoint``.
            StageError: there is no such recipe.
        """
        _check_recipe(recipe)
        if (variant.name, recipe) not in self._checkpoints:
            path = checkpoint_path(self.workspace.checkpoint_folder(recipe), variant)
            self._checkpoints[variant.name, recipe] = load_checkpoint(path, self.workspace.layout)
        return self._checkpoints[variant.name, recipe]

    def status(
        self,
        stage: Stage,
        key: str,
        *,
        verify: bool | Literal["changed"] = False,
        outputs: Collection[str] | None = None,
    ) -> Status:
        """Whether a stage's artifact is current; with ``outputs``, whether these of them are.

        Args:
            verify: hash the files; ``changed``: not those of a batch that are as they were when it
                was last found current.

        Raises:
            StageError: there is no such recipe.
        """
        if stage.partition == "recipe":
            _check_recipe(key)
        cacheable = self.stages.get(stage.name) is stage and outputs is None
        if cacheable and (stage.name, key, verify) in self._statuses:
            return self._statuses[stage.name, key, verify]
        if not self.available(stage, key):
            return Status(stage.name, key, self.unavailable[key], stage.remedy(key))
        identity = self._identity(stage, key) if cacheable else None
        name = f"{stage.name}/{key}"
        if identity and self._status_cache.holds(name, identity, verified=verify is True):
            reason = None
        else:
            reason = self._reason(stage, key, bool(verify), outputs)
            if identity and reason is None:
                self._status_cache.add(name, identity, verified=bool(verify))
        address = self.workspace.address
        status = Status(stage.name, key, reason or Reason("current"), stage.remedy(key), address)
        if cacheable:
            self._statuses[stage.name, key, verify] = status
        return status

    def _reason(
        self, stage: Stage, key: str, verify: bool, outputs: Collection[str] | None
    ) -> Reason | None:
        """Why an artifact is not current, from what is on disk."""
        if self.stages.get(stage.name) is stage:
            artifacts = self.artifacts(stage.name, key)
        else:  # with the options of a run
            artifacts = stage.read(self, key)
        chosen = {n: a for n, a in artifacts.items() if outputs is None or n in outputs}
        try:
            reason = stage.reason(self, key, chosen, verify=verify)
        except DamagedError as error:  # found out while asking why it is not current
            reason = Reason("damaged", {"problem": error.problem})
        if reason is None or REASONS[reason.code][1]:
            reason = self._unsigned(chosen.values()) or reason
        if reason is not None and _made_by_other_code(stage, chosen, reason):
            reason = Reason("version")
        return reason

    @cached_property
    def _status_cache(self) -> StatusCache:
        return StatusCache(self.workspace.artifacts_path / "cache" / "current_batches.json")

    def _identity(self, stage: Stage, key: str) -> str | None:
        """Identity of all that tells whether a batch is current; None if it is not remembered."""
        if self.workspace.require_signatures or key not in self.listing.batches:
            return None
        folders = stage.folders(self, key)
        if not folders or self._trusted is None:
            return None
        return files_identity(f"{stage.fingerprint(self, key)} {self._trusted}", folders)

    @cached_property
    def _trusted(self) -> str | None:
        """The keys whose signatures are checked; None: one cannot be read."""
        try:
            return " ".join(sorted(trusted_keys()))
        except SigningError:  # told where something is signed
            return None

    def _unsigned(self, artifacts: Iterable[Any]) -> Reason | None:
        """Why artifacts may not be used where signatures are required."""
        for artifact in artifacts if self.workspace.require_signatures else ():
            if hasattr(artifact, "signed") and (why := distrust(artifact.signed, required=True)):
                problem = f"{artifact.folder}: {why}"
                return Reason("signature", {"problem": problem, "why": why})
        return None

    def refuse_unreadable(self, name: str, key: str) -> None:
        """Refuse an artifact whose manifest is damaged; ``artifact`` takes it for none.

        Raises:
            StageError: says what is wrong with the manifest, and what to do.
        """
        stage = self.stages[name]
        assert isinstance(stage, ManifestStage), name
        if problem := manifest_damage(stage.folder(self.workspace, key)):
            raise StageError(f"{problem}. Run: {stage.remedy(key)}")

    def refusal(self, manifest: Manifest) -> str | None:
        """Why an artifact must not be read, current or not; None if it may."""
        unsigned = self._unsigned([manifest])
        return manifest.damage() or (str(unsigned.details["problem"]) if unsigned else None)

    def statuses(
        self,
        stage: Stage,
        keys: Iterable[str] | None = None,
        *,
        verify: bool | Literal["changed"] = False,
    ) -> list[Status]:
        """``status`` for keys; by default for every key."""
        chosen = self.keys(stage) if keys is None else keys
        with collector_paused():
            return [self.status(stage, key, verify=verify) for key in chosen]

    def require(self, needs: Iterable[tuple[Stage, str]]) -> None:
        """Refuse unusable artifacts, and everything made from them.

        Raises:
            StageError: lists every unusable artifact, why, and what to do.
        """
        unusable: dict[tuple[str, str], Status] = {}
        pending, seen = deque(needs), set()
        while pending:
            stage, key = pending.popleft()
            if (stage.name, key) in seen:
                continue
            seen.add((stage.name, key))
            status = self.status(stage, key, verify=True)
            if status.usable:
                pending += stage.made_from(self, key)
            else:
                unusable[stage.name, key] = status
        if unusable:
            raise StageError.of(list(unusable.values()))

    def make(
        self,
        stage: Stage | str,
        key: str = "",
        *,
        outputs: Collection[str] | None = None,
        progress: Progress = silent,
    ) -> MakeResult:
        """Make a stage's artifact, or find it current and reuse it.

        Args:
            stage: the stage, or its name.
            key: batch or recipe; empty: what exists once for the store.

        Raises:
            StageError: an input is missing, stale in a way that matters, or damaged; or the store
                cannot give the recipe, or there is no such stage, batch, recipe or output.
        """
        began = time.monotonic()
        if isinstance(stage, str):
            if stage not in self.stages:
                raise StageError(unknown("stage", stage, self.stages))
            stage = self.stages[stage]
        names = [output.name for output in stage.outputs]
        for name in outputs or ():
            if name not in names:
                raise StageError(unknown(f"output of {stage.name}", name, names))
        if stage.partition == "recipe":
            _check_recipe(key)
        elif key and not stage.partition:
            raise StageError(f"{stage.name} is made once for the store, got {key!r}")
        if not self.available(stage, key):
            raise StageError.of([self.status(stage, key)])
        self.require(stage.needs(self, key))
        wanted = [o.name for o in stage.outputs if outputs is None or o.name in outputs]
        reused = (
            not self.workspace.force
            and stage.reusable
            and all(  # what is not current needs no hashing
                self.status(stage, key, verify=verify, outputs=wanted).current
                for verify in (False, True)
            )
        )
        if reused:
            artifacts = {n: a for n, a in stage.read(self, key).items() if n in wanted}
        else:
            self.check_signing()
            artifacts = stage.make(self, key, wanted, progress)
            self._forget(stage, key)
        return MakeResult(artifacts, reused, round(time.monotonic() - began, 3))

    def check_signing(self) -> None:
        """Refuse to make what nobody could use.

        Raises:
            StageError: signatures are required, and there is no key to sign with.
        """
        if self.workspace.require_signatures and signing_key() is None:
            raise StageError(
                "Signatures are required, and there is no key here to sign with, so nothing "
                "that is made here could be used. Run: phasewatch keys new NAME"
            )

    def make_each(
        self,
        stage: Stage,
        keys: Sequence[str],
        *,
        outputs: Collection[str] | None = None,
        progress: Progress = silent,
    ) -> Iterator[tuple[str, MakeResult | Exception]]:
        """``make`` for many keys, each as it is done; work for the next ones may be ahead.

        Yields:
            The key and what was made, or why it was not: a fault of one key does not stop the
            others.
        """
        with stage.working_ahead(self, keys):
            for key in keys:
                try:
                    made = self.make(stage, key, outputs=outputs, progress=progress)
                except REFUSALS as error:
                    yield key, error
                else:
                    yield key, made

    def due(self, job: str, *, verify: bool = False) -> list[DueWork]:
        """What a job would change, by key, in the order of the store and of the recipes.

        Raises:
            ValueError: no stage belongs to this job.
        """
        jobs = dict.fromkeys(stage.job for stage in self.stages.values())
        if job not in jobs:
            raise ValueError(unknown("job", job, jobs))
        with collector_paused():
            due = self._due(job, verify)
        self._status_cache.save(self.listing.batches.keys())
        return due

    def _due(self, job: str, verify: bool) -> list[DueWork]:
        stages = [s for s in self.stages.values() if s.job == job and s.automatic]
        by_key: dict[str, list[Status]] = {}
        for stage in stages:
            for status in self.statuses(stage, verify=verify):
                entry = by_key.setdefault(status.key, [])
                if status.due:
                    entry.append(status)
        return [
            DueWork(job, key, statuses, self.identity(job, key))
            for key, statuses in by_key.items()
            if statuses
        ]

    def identity(self, job: str, key: str) -> str:
        """Fingerprint of the work on a key: its first stage's inputs, settings and the champion.

        A job that failed too often is given up until this changes.
        """
        partition = "batch" if key in self.listing.batches else "recipe" if key else ""
        first = next(s for s in self.stages.values() if s.job == job and s.partition == partition)
        champion = self.champion.number if self.champion else None
        return fingerprint([first.fingerprint(self, key), self._settings, champion])

    @cached_property
    def _settings(self) -> str:
        """The settings that what is made depends on."""
        no_input = {
            "store",
            "artifacts",
            "force",
            "notify",
            "artifacts_budget_gb",
            "require_signatures",
        }
        return self.workspace.model_dump_json(exclude=no_input)

    def _forget(self, stage: Stage, key: str) -> None:
        """Look again at what was just made, and at the status of all that is built on it."""
        self._artifacts.pop((stage.name, key), None)
        self._statuses.clear()
        self._checkpoints.clear()
        self.__dict__.pop("unavailable", None)
        if stage.partition != "batch":
            self.__dict__.pop("champion", None)


def _check_recipe(recipe: str) -> None:
    if recipe not in RECIPES:
        raise StageError(unknown("recipe", recipe, RECIPES))


def _made_by_other_code(stage: Stage, artifacts: Artifacts, reason: Reason) -> bool:
    """Whether what is stale was made by another version of the stage.

    A contract mismatch says more. What records no version was made before versions were recorded;
    there it is the reason if no other input explains the difference.
    """
    state, _, _ = REASONS[reason.code]
    if state != "stale" or reason.code == "contract":
        return False
    made_by = {a.stage_version for a in artifacts.values() if hasattr(a, "stage_version")}
    unexplained = reason.code in ("settings", "policy")
    return bool(made_by - {stage.version} if unexplained else made_by - {stage.version, ""})
