"""The one resource: which store, which artefacts folder, and every setting, checked before a run.

It hands out paths and core values; the work itself is the core's.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from pydantic import Field, ValidationError, create_model, model_validator

from episodes.settings import settings_errors, unknown_name
from episodes.store import StoredEpisode, StoreListing, list_store
from episodes.validation import ValidationPolicy
from evaluation.datasets import SplitPolicy
from evaluation.figures import ReportPolicy
from features import registry
from features.ingest import STAGES, batch_fingerprint, settings_fingerprint
from features.manifest import Manifest, read_manifest
from models.registry import MODELS, Variant, model_config
from resources.runs import writing_for

ROOT = Path(__file__).resolve().parent.parent
"""The clone: relative paths in the configuration start here, not in the working directory."""


def config_section(kind: type) -> type[dg.Config]:
    """A Dagster config class with the fields, types and defaults of a core dataclass."""
    columns = {f.name: (type(f.default), Field(default=f.default)) for f in fields(kind)}

    class Section(_Section):
        @model_validator(mode="after")
        def _valid(self) -> Any:
            try:
                kind(**self.model_dump())  # the dataclass has the last word on its values
            except ValidationError as error:
                raise ValueError("; ".join(settings_errors(error, kind))) from None
            return self

    return create_model(kind.__name__, __base__=Section, __doc__=kind.__doc__, **columns)


class _Section(dg.Config):
    """Settings that say so when one of them does not exist."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(unknown_name(name, cls.model_fields))
        return values


Validation = config_section(ValidationPolicy)
Splits = config_section(SplitPolicy)
Report = config_section(ReportPolicy)
Models = create_model(
    "Models",
    __base__=_Section,
    __doc__="Hyper-parameters, a section a model.",
    **{
        name: (section := config_section(spec.config), Field(default_factory=section))
        for name, spec in MODELS.items()
    },
)


class Workspace(dg.ConfigurableResource):
    """Paths and settings of a run. Relative paths start at the clone."""

    store: str = Field(default="data/store", description="Folder of the episode store; read only.")
    artifacts: str = Field(default="artifacts", description="Folder of everything a run writes.")
    seed: int = Field(default=0, ge=0, description="Seed of every training.")
    device: str = Field(
        default="auto", pattern="^(auto|cpu|cuda)$", description="auto, cpu or cuda."
    )
    force: bool = Field(default=False, description="Make everything anew, reuse nothing.")
    validation: Validation = Field(default_factory=Validation)
    splits: Splits = Field(default_factory=Splits)
    report: Report = Field(default_factory=Report)
    models: Models = Field(default_factory=Models)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["Workspace"]:
        """Hands itself out; while a run uses it, writes are held to that run."""
        if context.run is None or context.instance is None:  # a sensor or a schedule
            yield self
            return
        with writing_for(context.run, context.instance):
            yield self

    @property
    def layout(self) -> registry.Layout:
        """The input layout in force."""
        return registry.LAYOUT

    @property
    def store_path(self) -> Path:
        return ROOT / self.store

    @property
    def artifacts_path(self) -> Path:
        return ROOT / self.artifacts

    @property
    def policy(self) -> ValidationPolicy:
        return ValidationPolicy(**self.validation.model_dump())

    @property
    def split_policy(self) -> SplitPolicy:
        return SplitPolicy(**self.splits.model_dump())

    @property
    def report_policy(self) -> ReportPolicy:
        return ReportPolicy(**self.report.model_dump())

    def model_config_of(self, which: Variant) -> Any:
        """Typed hyper-parameters of a variant's model."""
        return model_config(which.model, getattr(self.models, which.model).model_dump())

    def listing(self) -> StoreListing:
        return list_store(self.store_path)

    def fingerprint(self, episodes: tuple[StoredEpisode, ...]) -> str:
        """Identity of what a batch's artefacts are made from, as things stand."""
        return batch_fingerprint(episodes, self.policy, self.layout)

    @property
    def ingest_settings(self) -> str:
        """Identity of how batches are ingested, as things stand."""
        return settings_fingerprint(self.policy, self.layout)

    def batch_folder(self, batch: str) -> Path:
        return self.artifacts_path / "batches" / batch

    def batch_manifests(self, batch: str) -> dict[str, Manifest | None]:
        """What is on disk of a batch, by stage."""
        return {stage: read_manifest(self.batch_folder(batch) / stage) for stage in STAGES}

    def shard_versions(self, listing: StoreListing) -> dict[str, dict[str, str]]:
        """Data version of every artefact, by batch and stage, of the batches that are ingested."""
        found = {
            batch: {s: m.version for s, m in self.batch_manifests(batch).items() if m is not None}
            for batch in listing.batches
        }
        return {batch: versions for batch, versions in found.items() if versions}

    def stale_batches(self, listing: StoreListing) -> list[str]:
        """Batches of which some artefact is absent, cut off or made from something else."""
        stale = []
        for batch, episodes in listing.batches.items():
            wanted = self.fingerprint(episodes)
            manifests = self.batch_manifests(batch).values()
            if any(m is None or m.fingerprint != wanted or not m.complete for m in manifests):
                stale.append(batch)
        return stale

    def dataset_folder(self, recipe: str) -> Path:
        return self.artifacts_path / "datasets" / recipe

    def checkpoint_folder(self, recipe: str) -> Path:
        return self.artifacts_path / "checkpoints" / recipe

    def held_out_predictions_folder(self, recipe: str) -> Path:
        return self.artifacts_path / "held_out_predictions" / recipe

    def report_folder(self, recipe: str) -> Path:
        return self.artifacts_path / "reports" / recipe

    def comparisons_folder(self, recipe: str) -> Path:
        return self.report_folder(recipe) / "comparisons"

    @property
    def report_page(self) -> Path:
        return self.artifacts_path / "reports" / "report.html"

    def predictions_folder(self, batch: str, recipe: str, which: Variant) -> Path:
        return self.artifacts_path / "predictions" / batch / f"{which.name}.{recipe}"

    @property
    def champion_folder(self) -> Path:
        """The champion's pointer, and copies of every checkpoint that was ever in use."""
        return self.artifacts_path / "champion"

    def drift_path(self, batch: str) -> Path:
        return self.artifacts_path / "drift" / f"{batch}.json"


def keeping_paths(workspace: Workspace) -> Workspace:
    """The same workspace, whose paths also hold where a run's configuration names none.

    Dagster fills what a partial configuration leaves out from the class, not from the instance: a
    run with ``-c`` would read the embedded store, whatever PHASEWATCH_STORE says.
    """
    paths = {
        name: (str, Field(default=getattr(workspace, name), description=field.description))
        for name, field in Workspace.model_fields.items()
        if name in ("store", "artifacts")
    }
    kind = create_model("Workspace", __base__=Workspace, __doc__=Workspace.__doc__, **paths)
    return kind(**{name: getattr(workspace, name) for name in Workspace.model_fields})


class SettingsError(Exception):
    """A run configuration cannot be used; the message names the file and the setting."""


def read_workspace(config: Path | None, overrides: Mapping[str, Any]) -> Workspace:
    """The workspace that a run configuration file describes; ``overrides`` win over the file.

    Raises:
        SettingsError: the file cannot be read or holds a setting that does not exist.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            document = yaml.safe_load(config.read_text()) or {}
        except OSError as error:
            raise SettingsError(f"{config}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"{config}: not YAML: {error}") from error
        try:
            if document.keys() != {"execution"}:  # config/ray.yaml: where to run, no settings
                values = dict(document["resources"]["workspace"]["config"] or {})
        except (AttributeError, KeyError, TypeError, ValueError):
            raise SettingsError(
                f"{config}: no resources: workspace: config: section; see config/default.yaml"
            ) from None
    for name in values:
        if name not in Workspace.model_fields:
            raise SettingsError(f"{config}: {unknown_name(name, Workspace.model_fields)}")
    try:
        return Workspace(**values | dict(overrides))
    except ValidationError as error:
        said = "\n".join(
            f"  {'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise SettingsError(f"{config or 'settings'}:\n{said}") from error


def workspace_from_environment(environ: Mapping[str, str] = os.environ) -> Workspace:
    """What Dagster's processes use unless a run says otherwise.

    ``PHASEWATCH_CONFIG`` names a run configuration; ``PHASEWATCH_STORE`` and
    ``PHASEWATCH_ARTIFACTS`` win over it. ``make`` sets them from CONFIG, STORE and ARTIFACTS.

    Raises:
        SettingsError: see ``read_workspace``.
    """
    config = environ.get("PHASEWATCH_CONFIG")
    named = {name: environ.get(f"PHASEWATCH_{name.upper()}") for name in ("store", "artifacts")}
    overrides = {name: str(Path(path).absolute()) for name, path in named.items() if path}
    return read_workspace(Path(config) if config else None, overrides)
