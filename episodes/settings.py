"""What a setting may be, and how to say what is wrong with one.

Settings are frozen pydantic dataclasses with constrained fields; nothing reads a file here.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import ConfigDict, Field

from config.messages import fault_text, suggestion

if TYPE_CHECKING:
    from pydantic import ValidationError

SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False)

# Strict by field, not by SETTINGS, so that a section can be given as a mapping: true is not an
# int, 2.0 is not an int, an int is fine for a float.
Int = Annotated[int, Field(strict=True)]
Float = Annotated[float, Field(strict=True)]
Count = Annotated[Int, Field(gt=0)]
NotNegativeInt = Annotated[Int, Field(ge=0)]
Positive = Annotated[Float, Field(gt=0)]
NotNegative = Annotated[Float, Field(ge=0)]
Share = Annotated[NotNegative, Field(le=1)]
PositiveShare = Annotated[Positive, Field(le=1)]
ShareWithin = Annotated[Positive, Field(lt=1)]  # of two sides, neither empty


class _Loader(yaml.SafeLoader):
    """Reads a date as the text it is, as Dagster does with the same files; refuses a key twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        given = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in given:
                note = f"gives {key.value!r} twice; keep one"
                raise yaml.composer.ComposerError(None, None, note, key.start_mark, note)
            given.add(key.value)
        return node


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """What a person wrote in a YAML file.

    Raises:
        yaml.YAMLError: see ``yaml_problem``.
    """
    return yaml.load(text, _Loader)


def settings_errors(error: ValidationError, settings: Any, prefix: str = "") -> list[str]:
    """One line per faulty setting: its dotted name, what it must be, what it is.

    Args:
        settings: the class that was validated, a pydantic dataclass or model.
        prefix: dotted name of the section that ``settings`` describes; empty at the top.
    """
    return [_line(fault, settings, [prefix] if prefix else []) for fault in error.errors()]


def _line(fault: Any, declared: Any, path: list[str]) -> str:
    context = fault.get("ctx", {})
    for step in fault["loc"]:
        known = getattr(declared, "__pydantic_fields__", None)
        if known is None:  # inside a list or a mapping
            path = [*path, str(step)]
            continue
        if step not in known:
            hint = suggestion(step, known) or f"; choose from {', '.join(known)}"
            return ".".join(path) + f"{': ' if path else ''}no setting {step!r}{hint}"
        path = [*path, step]
        declared = known[step].annotation
    if "error" in context and hasattr(declared, "__pydantic_fields__"):
        return ".".join([*path, str(context["error"])])  # of a section: it names its setting
    value = fault["input"]
    got = "" if fault["type"] in ("missing", "json_invalid") else f", got {value!r}"
    if fault["type"] == "string_type" and isinstance(value, bool | int | float | date):
        got += "; in a YAML file, put it in quotes"  # no, off, 12 and 1e3 are no text there
    return f"{'.'.join(path)} {fault_text(fault)}{got}".lstrip()
