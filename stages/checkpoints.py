"""Checkpoints: one stage per variant, one checkpoint per recipe."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import paths
from config.messages import unknown
from config.signing import Signed
from datasets.splits import RECIPES
from datasets.windows import read_once
from features.code import MODEL_PATH, PATH, code_of
from features.contract import contract_of
from features.files import fingerprint
from models.base import Classifier, Examples, silent
from models.bookmark import FOLDER, SUFFIX, Bookmark
from models.checkpoint import (
    CheckpointError,
    ContractMismatchError,
    check_code,
    checkpoint_path,
    contract_differences,
    load_checkpoint,
    read_header,
    read_sidecar,
    remedy,
    save_checkpoint,
    signed_by,
)
from models.registry import Variant
from models.replay import other_layout
from models.scaling import principal_axes
from stages.datasets import open_windows
from stages.stage import Artifacts, Check, CheckResult, Progress, Stage, StageOutput
from stages.status import Reason
from stages.workers import trained_ahead

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from stages.project import Project
    from stages.workspace import Workspace

_TRAINING = (*PATH, *MODEL_PATH, "datasets.windows", "models.metrics")
"""Modules that weights follow from, beside data and settings."""
_KINDS = {"torch": "pytorch"}  # where Dagster has another name for a library


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk, known by its header."""

    path: Path
    header: dict[str, Any] | None  # None: it cannot be read
    problem: str = ""  # why it cannot be read

    @property
    def version(self) -> str:
        return self.header["artifact_id"] if self.header else "damaged"

    @property
    def meta(self) -> dict[str, Any]:
        assert self.header is not None, self.problem
        return self.header

    @property
    def fingerprint(self) -> str:
        return self.meta["train_meta"].get("fingerprint", "")

    @property
    def stage_version(self) -> str:
        return self.meta["train_meta"].get("stage_version", "")

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size + self.meta["sidecar_bytes"]

    @property
    def folder(self) -> Path:
        """Where it lies: of a checkpoint a file, where a manifest has a folder."""
        return self.path

    @property
    def signed(self) -> Signed:
        return signed_by(self.meta)

    @property
    def val_macro_f1(self) -> float:
        return self.meta["train_meta"]["val_macro_f1"]


def check_training(header: dict[str, Any], path: Path) -> None:
    """Refuse a header that does not say what the checkpoint was trained on.

    Raises:
        CheckpointError: names the field.
    """
    meta = header["train_meta"]
    for name in ("recipe", "dataset_version"):
        if not isinstance(meta.get(name), str):
            raise CheckpointError(
                f"{path}: train_meta: {name} must be a text, got {meta.get(name)!r}; retrain"
            )
    for name in ("val_macro_f1", "code_commit", "train_windows", "best_step", "device"):
        if name not in meta:
            raise CheckpointError(f"{path}: train_meta has no field {name}; retrain")
    if meta["recipe"] not in RECIPES:
        raise CheckpointError(f"{path}: train_meta: {unknown('recipe', meta['recipe'], RECIPES)}")


class CheckpointsStage(Stage):
    """Trains one variant."""

    version = "1"
    partition = "recipe"
    job = "retrain"
    pool = "training"
    recorded = True
    docs = "models.md"

    inputs = ("datasets",)

    def __init__(self, variant: Variant):
        self.variant = variant
        self.name = f"checkpoints/{variant.name}"
        spec = variant.spec
        description = (
            f"{variant.model}, {variant.mode}: {spec.description}. The header carries the contract "
            "of its input; loading it for another layout fails."
        )
        kinds = frozenset(_KINDS.get(name, name) for name in spec.libraries)
        self.outputs = (StageOutput(self.name, description, "train", kinds, spec.input_kind),)
        self.checks = (
            Check(
                "contract_current",
                self.name,
                "The checkpoint loads for the current input layout.",
                self._contract_current,
                blocking=True,
                alone=True,
            ),
        )

    def path(self, project: Project, recipe: str) -> Path:
        return checkpoint_path(project.workspace.checkpoint_folder(recipe), self.variant)

    def read(self, project: Project, key: str) -> Artifacts:
        path = self.path(project, key)
        if not path.is_symlink() and not path.exists():
            return {self.name: None}
        try:
            header = read_header(path)
            check_training(header, path)
            return {self.name: CheckpointFile(path, header)}
        except CheckpointError as error:
            return {self.name: CheckpointFile(path, None, str(error))}

    def fingerprint(self, project: Project, key: str) -> str:
        """The header keeps it in ``train_meta``."""
        workspace = project.workspace
        return fingerprint(
            {
                "stage": self.version,
                "dataset": project.existing("datasets", key).version,
                "variant": self.variant.name,
                "config": asdict(workspace.model_config_of(self.variant)),
                "seed": workspace.seed,
                "contract": contract_of(workspace.layout, self.variant.spec.input_kind).hash,
            }
        )

    def reason(
        self, project: Project, key: str, artifacts: Artifacts, *, verify: bool
    ) -> Reason | None:
        (file,) = artifacts.values()
        if file is None:
            return Reason("not_made", {"outputs": [self.name]})
        if file.header is None:
            return Reason("damaged", {"problem": file.problem})
        try:
            if verify:
                read_sidecar(file.path, file.header)
            elif not (file.path.parent / file.header["sidecar"]).is_file():
                return Reason("damaged", {"problem": f"{file.path}: its sidecar is gone"})
            differences = contract_differences(
                file.header, project.workspace.layout, str(file.path)
            )
        except CheckpointError as error:
            return Reason("damaged", {"problem": str(error)})
        if differences:
            details = {"outputs": [self.name], "differences": differences}
            return Reason("contract", details, remedy=remedy(file.header))
        dataset = project.artifact("datasets", key)
        if dataset is None or dataset.version != file.header["train_meta"]["dataset_version"]:
            return Reason("inputs", {"inputs": ["datasets"]})
        return None if file.fingerprint == self.fingerprint(project, key) else Reason("settings")

    def make(
        self,
        project: Project,
        key: str,
        outputs: Collection[str],
        progress: Progress,
    ) -> Artifacts:
        header = train(project, self.variant, key, progress)
        return {self.name: CheckpointFile(self.path(project, key), header)}

    def facts(
        self,
        project: Project,
        output: str,
        artifact: CheckpointFile,
    ) -> Mapping[str, Any]:
        meta = artifact.meta["train_meta"]
        return {
            "checkpoint_id": artifact.version,
            "val_macro_f1": meta["val_macro_f1"],
            "train_windows": meta["train_windows"],
            "best_step": meta["best_step"],
            "resumed_from_epoch": meta.get("resumed_from_epoch"),
            "dataset_version": meta["dataset_version"],
            "code_commit": meta["code_commit"],
            "device": meta["device"],
            # as written, not as they should be
            "schema_hash": artifact.meta["schema_hash"],
            "contract_hash": artifact.meta["contract_hash"],
        }

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        return f"val macro F1 {artifacts[self.name].val_macro_f1:.3f}"

    def _contract_current(self, project: Project, key: str, artifact: Any) -> CheckResult:
        """Load the checkpoint, whatever the stage says of it."""
        layout = project.workspace.layout
        live = {"live_contract_hash": contract_of(layout, self.variant.spec.input_kind).hash}
        try:
            checkpoint = load_checkpoint(self.path(project, key), layout)
        except CheckpointError as error:
            found = error.differences if isinstance(error, ContractMismatchError) else [str(error)]
            facts = live | {"differences": found}
            return CheckResult(False, description=str(error), facts=facts)
        return CheckResult(True, facts=live | {"checkpoint_id": checkpoint.artifact_id})


@dataclass(frozen=True)
class FittedModel:
    """A trained model, and the two axes along which its training set varies most."""

    model: Classifier
    axes: NDArray[np.float64]


def fit(
    project: Project,
    variant: Variant,
    recipe: str,
    progress: Progress = silent,
    *,
    resumable: bool = False,
) -> FittedModel:
    """Train a variant on a recipe's dataset.

    Args:
        resumable: resume a training that was killed, and save how far this one comes.

    Raises:
        StageError: see ``open_windows``.
    """
    bookmark = training_bookmark(project, variant, recipe) if resumable else None
    if bookmark and project.workspace.force:
        bookmark.remove()
    lazy = (open_windows(project, recipe, variant, split) for split in ("train", "val"))
    training, val = (replace(examples, X=read_once(examples.X)) for examples in lazy)
    model = fit_windows(project.workspace, variant, training, val, progress, bookmark)
    inputs = (project.existing("datasets", recipe).version, variant.spec.input_kind, variant.mode)
    if inputs not in _axes:
        _axes[inputs] = principal_axes(training.X)
    return FittedModel(model, _axes[inputs])


_axes: dict[tuple[str, str, str], NDArray[np.float64]] = {}
"""Axes by dataset, input kind and mode: the same for several models."""


def fit_windows(
    workspace: Workspace,
    variant: Variant,
    training: Examples,
    val: Examples,
    progress: Progress = silent,
    bookmark: Bookmark | None = None,
) -> Classifier:
    """Train a variant on windows, with the settings in force."""
    model = variant.spec.build(
        workspace.model_config_of(variant),
        len(workspace.layout.phases),
        seed=workspace.seed,
        device=workspace.device,
    )
    return model.fit(training, val, progress, bookmark)


def training_bookmark(project: Project, variant: Variant, recipe: str) -> Bookmark:
    """Where the training of a checkpoint saves how far it came, until the checkpoint stands.

    Its key is the identity of all that the weights follow from: the stage's fingerprint has data
    and settings; the code, the libraries and the processor that trains come on top.
    """
    stage = project.stages[f"checkpoints/{variant.name}"]
    key = fingerprint(
        {
            "stage": stage.fingerprint(project, recipe),
            "code": code_of(_TRAINING, variant.spec.libraries).digest,
            "device": project.workspace.device,
        }
    )
    folder = project.workspace.artifacts_path / FOLDER
    return Bookmark(folder / f"{variant.name}.{recipe}.{key[:12]}{SUFFIX}", key)


def train(project: Project, variant: Variant, recipe: str, progress: Progress) -> dict[str, Any]:
    """Train a variant on a recipe's dataset and save its checkpoint; returns the header.

    Raises:
        StageError: there is no dataset.
        CodeChangedError: see ``check_training_code``.
    """
    check_training_code(project, recipe)
    fitted = trained_ahead(project, recipe, variant.name)
    fitted = fitted or fit(project, variant, recipe, progress, resumable=True)
    model, workspace = fitted.model, project.workspace
    stage, dataset = (
        project.stages[f"checkpoints/{variant.name}"],
        project.existing("datasets", recipe),
    )
    splits = dataset.facts["splits"]
    train_meta = {
        "fingerprint": stage.fingerprint(project, recipe),
        "stage_version": stage.version,
        "recipe": recipe,
        "split_policy": dataset.facts["policy"],
        "roster": sorted(splits["train"]["windows_by_phase"]),
        "train_windows": splits["train"]["windows"],
        "val_windows": splits["val"]["windows"],
        "dataset_version": dataset.version,
        "validation_index_digest": dataset.facts["validation_index_digest"],
        "seed": workspace.seed,
        "device": model.device_,
        "code_commit": code_commit(),
        "libraries": {name: version(name) for name in ("numpy", *variant.spec.libraries)},
        "val_macro_f1": model.val_macro_f1_,
        "best_step": model.history_.best_step,
        "history": [
            [e.step, e.train_loss, e.val_loss, e.val_macro_f1] for e in model.history_.epochs
        ],
    }
    if model.history_.resumed_from:
        train_meta["resumed_from_epoch"] = model.history_.resumed_from
    folder = workspace.checkpoint_folder(recipe)
    header = save_checkpoint(
        folder, variant, model, workspace.layout, pca_proj=fitted.axes, train_meta=train_meta
    )
    training_bookmark(project, variant, recipe).remove()
    return header


def check_training_code(project: Project, recipe: str) -> None:
    """Refuse to train with code that computes other inputs than the golden vectors show.

    A checkpoint records the code that trained it; so no code is recorded that was not held to them.
    They say nothing of another layout: a checkpoint for it cannot be verified.

    Raises:
        CodeChangedError: lists what comes out otherwise, by rule.
    """
    workspace = project.workspace
    if not other_layout(workspace.layout):
        place = str(workspace.checkpoint_folder(recipe))
        check_code(None, workspace.layout, code_of(PATH), place, "train again")


def code_commit() -> str:
    """The clone's commit, with ``-dirty`` where it has uncommitted changes; else ``unknown``."""
    if paths.CLONE is None:  # the current directory may be a repository, but not of this code
        return "unknown"
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=paths.CLONE,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
