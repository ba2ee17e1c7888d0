"""Settings and paths: which store, which artifacts folder, and every setting, checked on reading.

What is on disk there is ``stages.project``'s.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
    field_validator,
)

from config.errors import PhasewatchError
from config.messages import address_of, addressed, variable_of, yaml_problem
from config.paths import base_folder, expanded, nearest_existing
from datasets.splits import SplitPolicy
from episodes.format import is_text
from episodes.settings import NotNegative, NotNegativeInt, parse_yaml, settings_errors
from episodes.store import StoreListing, list_store
from episodes.validation import ValidationPolicy
from evaluation.figures import ReportPolicy
from features import registry
from models.registry import MODELS, Variant

MACHINE_SETTINGS = ("store", "artifacts", "exclusions", "notify", "require_signatures")
"""Settings that name a path or a command, or lower a guard: not for who may only ask for runs."""


class SettingsError(PhasewatchError):
    """A configuration cannot be used; the message names the file and the setting."""


_STRICT = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

Models: type[BaseModel] = create_model(
    "Models",
    __config__=_STRICT,
    __doc__="Hyperparameters, one section per model.",
    **{name: (spec.config, spec.config()) for name, spec in MODELS.items()},  # type: ignore[call-overload]
)


class Workspace(BaseModel):
    """Paths and settings of a run. Relative paths start at the clone."""

    model_config = _STRICT

    store: str = Field(default="data/store", description="Folder of the episode store; read only.")
    artifacts: str = Field(default="artifacts", description="Folder of everything a run writes.")
    seed: NotNegativeInt = Field(default=0, le=2**32 - 1, description="Seed of every training.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto, cpu or cuda.")
    exclusions: str = Field(
        default="",
        description="File of the episodes and spans that a person excludes; empty: "
        "exclusions.yaml in the artifacts folder, if it is there.",
    )
    force: bool = Field(default=False, description="Rebuild everything, reuse nothing.")
    notify: str = Field(
        default="",
        description="Command that is called when a run or check fails or a night does nothing; "
        "empty: none.",
    )
    artifacts_budget_gb: NotNegative = Field(
        default=0.0,
        description="GB (1e9 bytes) that the artifacts folder may take; `phasewatch prune` deletes "
        "old scores and copies above it; 0: no limit.",
    )
    require_signatures: bool = Field(
        default=False,
        description="Refuse what is not signed by a trusted key; see `phasewatch keys`.",
    )
    validation: ValidationPolicy = ValidationPolicy()
    splits: SplitPolicy = SplitPolicy()
    report: ReportPolicy = ReportPolicy()
    models: Models = Models()  # type: ignore[valid-type]
    _address: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("store", "artifacts", "exclusions")
    @classmethod
    def _text(cls, path: str) -> str:
        if not is_text(path):  # documents and records name it
            raise ValueError("must be the path of a folder or file in Unicode text")
        return path

    @field_validator("notify")
    @classmethod
    def _a_command(cls, command: str) -> str:
        try:
            shlex.split(command)
        except ValueError as error:
            raise ValueError(f"must be a command line ({str(error).lower()})") from None
        return command

    @property
    def address(self) -> dict[str, str]:
        """The options that were given to say which project this is; see ``addressed``."""
        return self._address

    def addressed(self, text: str) -> str:
        """A text in which every command has these options: it works when it is pasted."""
        return addressed(text, self._address)

    @property
    def layout(self) -> registry.Layout:
        """The input layout in force."""
        return registry.LAYOUT

    @property
    def store_path(self) -> Path:
        return base_folder() / expanded(self.store)

    @property
    def artifacts_path(self) -> Path:
        return base_folder() / expanded(self.artifacts)

    @property
    def exclusions_file(self) -> Path:
        """Where exclusions are written."""
        return (
            base_folder() / expanded(self.exclusions)
            if self.exclusions
            else (self.artifacts_path / "exclusions.yaml")
        )

    @property
    def exclusions_path(self) -> Path | None:
        """The exclusions to read. A file that the settings name has to be there."""
        path = self.exclusions_file
        return path if self.exclusions or path.exists() else None

    def model_config_of(self, variant: Variant) -> Any:
        """Typed hyperparameters of a variant's model."""
        return getattr(self.models, variant.model)

    def listing(self) -> StoreListing:
        # what is in the cache is not signed
        cache = None if self.require_signatures else self.artifacts_path / "cache"
        return list_store(self.store_path, cache and cache / "store_listing.json")

    def batch_folder(self, batch: str) -> Path:
        return Path(f"{self.artifacts_path}/batches/{batch}")  # asked for ten thousand at once

    @property
    def contracts_folder(self) -> Path:
        """Every contract that shards were made under, by its hash."""
        return self.artifacts_path / "contracts"

    def checkpoint_folder(self, recipe: str) -> Path:
        return self.artifacts_path / "checkpoints" / recipe

    @property
    def report_page(self) -> Path:
        return self.artifacts_path / "reports" / "report.html"

    def predictions_folder(self, batch: str, recipe: str, variant: Variant) -> Path:
        return self.artifacts_path / "predictions" / batch / f"{variant.name}.{recipe}"

    @property
    def champion_folder(self) -> Path:
        """The champion's pointer, and copies of every checkpoint that was ever in use."""
        return self.artifacts_path / "champion"

    @property
    def decisions_folder(self) -> Path:
        """The hub's log, and its counts."""
        return self.artifacts_path / "decisions"


def read_workspace(config: Path | None, overrides: Mapping[str, Any]) -> Workspace:
    """The workspace that a run configuration describes; ``overrides`` win over the file.

    Raises:
        SettingsError: the file cannot be read or holds a setting that does not exist.
    """
    values: dict[str, Any] = {}
    if config is not None:
        document = read_configuration(config)
        if document.keys() != {"execution"}:  # config/ray.yaml: where to run, no settings
            values = {str(n): v for n, v in _section(config, document, _SETTINGS).items()}
    given = {**overrides, "config": config}
    return checked_workspace(
        {**values, **overrides}, str(config or "settings"), address=address_of(given)
    )


_SETTINGS = ("resources", "workspace", "config")


def read_configuration(config: Path) -> dict[str, Any]:
    """A run configuration as it is in its file: sections, of which ``execution`` has ``config``.

    Raises:
        SettingsError: the file cannot be read, or is something else.
    """
    try:
        document = parse_yaml(config.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise SettingsError(f"{config}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config} {yaml_problem(error)}") from error
    for path in (("execution",), ("execution", "config")):
        if path[-1] not in _section(config, document, path[:-1]):
            break
        _section(config, document, path)
    return document


def _section(config: Path, document: Any, path: tuple[str, ...]) -> Mapping[Any, Any]:
    """A section of a configuration; empty if nothing is in it."""
    found = document
    for depth in range(len(path) + 1):
        if not isinstance(found, Mapping):
            name = f"section {'.'.join(path[:depth])} " if depth else ""
            raise SettingsError(
                f"{config}: {name}must be a mapping, got {found!r}; see config/default.yaml"
            )
        if depth < len(path):
            if path[depth] not in found:
                raise SettingsError(
                    f"{config}: section {'.'.join(path)} is missing; see config/default.yaml"
                )
            found = found[path[depth]] if found[path[depth]] is not None else {}
    return found


def checked_workspace(
    values: Mapping[str, Any],
    where: str = "settings",
    *,
    address: Mapping[str, str] | None = None,
) -> Workspace:
    """The workspace of plain values.

    Args:
        address: the options that were given to say which project it is.

    Raises:
        SettingsError: names every setting that is unknown or has a wrong value; or what is written
            would be written to the store.
    """
    try:
        workspace = Workspace(**values)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in settings_errors(error, Workspace))
        raise SettingsError(f"{where}:\n{lines}") from error
    store, artifacts = workspace.store_path, workspace.artifacts_path
    written, read = artifacts.resolve(), store.resolve()
    if written == read or written.is_relative_to(read / "episodes"):
        raise SettingsError(
            f"{where}:\n  artifacts must not be the store, which is read only, nor lie in its "
            f"episodes: got {artifacts}, the store is {store}"
        )
    workspace._address = dict(address or {})
    return workspace


def check_artifacts(workspace: Workspace) -> None:
    """Refuse an artifacts folder that can never be one; it need not exist yet.

    Raises:
        SettingsError: it is a file, or lies in one.
    """
    folder = workspace.artifacts_path
    nearest = nearest_existing(folder)
    if not nearest.is_dir():
        raise SettingsError(f"{folder}: artifacts must be a folder, but {nearest} is a file")


def workspace_from_environment(environ: Mapping[str, str] = os.environ) -> Workspace:
    """What a process uses unless it is told otherwise.

    ``PHASEWATCH_CONFIG`` names a run configuration; ``PHASEWATCH_STORE`` and
    ``PHASEWATCH_ARTIFACTS`` win over it. ``make`` sets them from CONFIG, STORE and ARTIFACTS.

    Raises:
        SettingsError: see ``read_workspace``.
    """
    config = environ.get(variable_of("config"))
    file = expanded(config) if config else None
    paths = {name: environ.get(variable_of(name)) for name in ("store", "artifacts")}
    overrides = {name: str(expanded(path).absolute()) for name, path in paths.items() if path}
    return read_workspace(file, overrides)
