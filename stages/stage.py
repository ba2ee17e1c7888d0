"""What a stage is. The stages themselves are in the modules beside; ``registry`` lists them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from champion.history import ChampionError
from models.checkpoint import CheckpointError
from stages.manifest import Draft, Manifest, draft, manifest_damage, read_manifest
from stages.status import Reason, StageError

if TYPE_CHECKING:
    from pathlib import Path

    from features.registry import InputKind, Layout
    from stages.project import Project
    from stages.workspace import Workspace

Progress = Callable[[int, int, str], None]
Partition = Literal["batch", "recipe", ""]
"""What an artifact exists once for: a batch, a recipe, or the whole store."""


Artifacts = dict[str, Any]
"""Output -> what is on disk: a ``Manifest`` or the like, with ``version``; None if nothing is."""


@dataclass(frozen=True)
class StageOutput:
    """One artifact of a stage: an asset in Dagster."""

    name: str  # the asset key; ``/`` separates its parts
    description: str
    group: str
    kinds: frozenset[str]
    input_kind: InputKind | None = None  # whose contract it carries; None: both kinds
    after: tuple[str, ...] = ()  # outputs of the same stage that it builds on
    fresh: bool = False  # a store in use renews it every day
    columns: Callable[[Layout], Mapping[str, str]] | None = None  # of its table, if always the same


@dataclass(frozen=True)
class CheckResult:
    """Outcome of a check on an artifact."""

    passed: bool
    severity: Literal["warn", "fail"] = "fail"
    description: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A proposition about an output."""

    name: str
    output: str
    description: str
    run: Callable[[Project, str, Any], CheckResult]
    blocking: bool = False
    alone: bool = False  # a step of its own, which runs without making the artifact


@dataclass(frozen=True)
class Markdown:
    """A fact to be shown as Markdown."""

    text: str


@dataclass(frozen=True)
class FactTable:
    """A fact to be shown as a table."""

    rows: list[dict[str, Any]]


class Stage(ABC):
    """One stage: its name, inputs and version, how it is made, and whether it is current.

    A stage holds no state but its declaration; what is on disk is asked of a ``Project``.
    """

    name: str
    version: ClassVar[str]
    """Raised when the code of the stage changes what it writes for equal inputs."""
    partition: ClassVar[Partition]
    job: ClassVar[str]
    """The Dagster job that makes it."""
    automatic: ClassVar[bool] = True
    """Whether growth of the store makes it due, without a person asking for it."""
    reusable: ClassVar[bool] = True
    """Whether a current artifact is kept instead of made again."""
    needs_inputs: ClassVar[bool] = True
    """Whether its inputs must be usable; otherwise it is made of what there is."""
    recorded: ClassVar[bool] = False
    """Whether Dagster uses it only as it recorded it."""
    pool: ClassVar[str | None] = None
    options: ClassVar[type | None] = None
    """Dataclass of what may be chosen per run; ``with_options`` takes it."""
    docs: ClassVar[str]
    """The page of ``docs/`` that explains it."""
    outputs: tuple[StageOutput, ...]
    inputs: tuple[str, ...] = ()
    """Names of the stages it builds on."""
    checks: tuple[Check, ...] = ()

    @abstractmethod
    def read(self, project: Project, key: str) -> Artifacts:
        """What is on disk."""

    @abstractmethod
    def fingerprint(self, project: Project, key: str) -> str:
        """Identity of everything an artifact is made from, as things stand.

        Raises:
            StageError: an input is missing.
        """

    @abstractmethod
    def reason(
        self, project: Project, key: str, artifacts: Artifacts, *, verify: bool
    ) -> Reason | None:
        """Why the artifacts are not current; None if they are.

        Args:
            artifacts: some or all of the outputs, as ``read`` found them.
            verify: hash the files; otherwise presence and size are checked.
        """

    @abstractmethod
    def make(
        self, project: Project, key: str, outputs: Collection[str], progress: Progress
    ) -> Artifacts:
        """Make some or all of the outputs. ``Project.make`` has checked the inputs."""

    def working_ahead(self, project: Project, keys: Sequence[str]) -> AbstractContextManager[None]:
        """A context where other processes may prepare what these keys need, ahead of ``make``."""
        return nullcontext()

    def folders(self, project: Project, key: str) -> Sequence[str]:
        """The folders whose files, with the fingerprint, decide whether the artifact is current.

        If there are any, ``Project`` remembers the answer between processes.
        """
        return ()

    def idle(self, project: Project) -> bool:
        """Whether the stage can make nothing at present, for any key."""
        return False

    def needs(self, project: Project, key: str) -> Iterator[tuple[Stage, str]]:
        """The stages and keys that ``make`` builds on, and that must be usable."""
        for name in self.inputs if self.needs_inputs else ():
            stage = project.stages[name]
            same = stage.partition in (self.partition, "")
            keys = [key if stage.partition else ""] if same else project.keys(stage)
            yield from ((stage, each) for each in keys)

    def made_from(self, project: Project, key: str) -> Iterator[tuple[Stage, str]]:
        """The stages and keys that the artifact on disk was made from."""
        yield from self.needs(project, key)

    def with_options(self, options: Any, why: str) -> Stage:
        """The stage with the options of a run applied; ``why`` names the run in histories."""
        return self

    def remedy(self, key: str) -> str:
        """The command that makes an artifact current."""
        return {
            "batch": "phasewatch run --ingest-only",
            "recipe": f"phasewatch run --recipe {key}",
            "": "phasewatch run",
        }[self.partition]

    def facts(self, project: Project, output: str, artifact: Any) -> Mapping[str, Any]:
        """What is worth knowing of an artifact: plain values, ``Markdown`` and ``FactTable``."""
        return {}

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        """One phrase on what was made, for the log."""
        return "done"


class ManifestStage(Stage):
    """A stage whose one output is a folder with a manifest."""

    def folder(self, workspace: Workspace, key: str) -> Path:
        """Where the artifact lies; it follows from the stage's name."""
        kind, _, part = self.name.partition("/")
        return workspace.artifacts_path / kind / key / part

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
        """Why a fingerprint differs."""
        return Reason("inputs", {"inputs": list(self.inputs)})

    def read(self, project: Project, key: str) -> Artifacts:
        folder = self.folder(project.workspace, key)
        return {self.outputs[0].name: read_manifest(folder, self.remedy(key))}

    def reason(
        self, project: Project, key: str, artifacts: Artifacts, *, verify: bool
    ) -> Reason | None:
        (manifest,) = artifacts.values()
        if manifest is None:
            return self._absent(project, key)
        if damage := manifest.damage(verify=verify):
            return Reason("damaged", {"problem": damage})
        absent = []
        try:
            if manifest.fingerprint == self.fingerprint(project, key):
                return None
        except (StageError, ChampionError, CheckpointError):  # an input is missing or does not load
            absent = [
                stage.name
                for stage, at in self.needs(project, key)
                if None in project.artifacts(stage.name, at).values()
            ]
        reason = self.stale_reason(project, key, manifest)
        if absent and reason.code == "settings":  # what is missing may be all that differs
            return Reason("inputs_missing", {"inputs": absent})
        return reason

    def _absent(self, project: Project, key: str) -> Reason:
        """It was never made, or its manifest cannot be read."""
        try:
            damage = manifest_damage(self.folder(project.workspace, key))
        except (StageError, ChampionError):  # nobody can say where it would be
            damage = None
        if damage:
            return Reason("damaged", {"problem": damage})
        return Reason("not_made", {"outputs": [self.name]})


class FolderStage(ManifestStage):
    """A stage whose files are drafted beside their folder, and named by role and hash."""

    @abstractmethod
    def write(
        self, project: Project, key: str, staged: Draft, progress: Progress
    ) -> dict[str, Any]:
        """Write the files into a draft; returns the manifest's facts."""

    def make(
        self,
        project: Project,
        key: str,
        outputs: Collection[str],
        progress: Progress,
    ) -> Artifacts:
        fingerprint = self.fingerprint(project, key)
        with draft(self.folder(project.workspace, key)) as staged:
            facts = self.write(project, key, staged, progress)
            return {self.outputs[0].name: staged.commit(fingerprint, facts, self.version)}
