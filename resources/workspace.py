"""The one resource: a run's paths and settings, as a Dagster run configuration has them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, get_type_hints

import dagster as dg
from pydantic import BaseModel, Field, create_model, model_validator

from config.messages import address_of
from config.paths import base_folder, expanded
from resources.runs import writing_for
from stages.workspace import MACHINE_SETTINGS, SettingsError, Workspace, checked_workspace


@cache
def config_section(kind: type) -> type[dg.Config]:
    """A Dagster config class with the fields and defaults of a dataclass or pydantic model."""
    return create_model(kind.__name__, __base__=dg.Config, __doc__=kind.__doc__, **_fields(kind))


def _fields(kind: Any) -> dict[str, Any]:
    """Name -> type and default, as ``create_model`` takes them; sections become classes."""
    defaults: dict[str, tuple[Any, Any, Any]]
    if issubclass(kind, BaseModel):
        defaults = {
            name: (field.annotation, field.get_default(call_default_factory=True), field)
            for name, field in kind.model_fields.items()
        }
    else:
        hints = get_type_hints(kind)
        defaults = {
            f.name: (
                hints[f.name],
                f.default if f.default_factory is MISSING else f.default_factory(),
                None,
            )
            for f in fields(kind)
        }
    columns: dict[str, Any] = {}
    for name, (annotation, default, field) in defaults.items():
        nested = annotation if isinstance(annotation, type) else type(default)
        if is_dataclass(nested) or issubclass(nested, BaseModel):
            section = config_section(nested)
            columns[name] = (section, Field(default_factory=section))
        else:
            assert default is not MISSING, name
            description = field.description if field else None
            plain = annotation if isinstance(default, dict | list) else type(default)
            columns[name] = (plain, Field(default=default, description=description))
    return columns


class WorkspaceResource(dg.ConfigurableResource):
    """Paths and settings of a run; ``resource_of`` gives it the fields of ``Workspace``."""

    address: ClassVar[dict[str, str]] = {}
    """The options that were given to say which project this is."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        """Say what is wrong before Dagster does, in the words of every other command."""
        try:
            checked_workspace(
                {k: v for k, v in values.items() if isinstance(v, dict | str | int | float)}
            )
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return values

    @property
    def core(self) -> Workspace:
        fields = type(self).model_fields
        given = {n: getattr(self, n) for n in ("store", "artifacts")}
        paths = {n: base_folder() / expanded(p) for n, p in given.items()}
        changed = {n: p for n, p in paths.items() if given[n] != fields[n].default}
        return checked_workspace(self.model_dump(), address=self.address | address_of(changed))

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["WorkspaceResource"]:
        """Hands itself out; while a run uses it, writes are held to that run."""
        if context.run is None or context.instance is None:  # a sensor or a schedule
            yield self
            return
        with writing_for(context.run, context.instance):
            yield self


def resource_of(workspace: Workspace) -> WorkspaceResource:
    """The resource of a workspace; its machine settings also hold where a run gives none.

    Dagster fills what a partial configuration leaves out from the class, not from the instance: a
    run with ``-c`` would read the embedded store, whatever PHASEWATCH_STORE says.
    """
    columns = _fields(Workspace)
    for name in MACHINE_SETTINGS:
        plain, _ = columns[name]
        columns[name] = (plain, Field(default=getattr(workspace, name)))
    kind: Any = create_model(
        "Workspace", __base__=WorkspaceResource, __doc__=Workspace.__doc__, **columns
    )
    kind.address = workspace.address
    return kind(**workspace.model_dump())
