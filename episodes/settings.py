"""What a setting may be, and how to say what is wrong with one.

Settings are frozen pydantic dataclasses with constrained fields; nothing reads a file here.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Collection

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
ShareWithin = Annotated[Positive, Field(lt=1)]  # of two sides that both have to get something

_MUST_BE = {
    "int_type": "an int",
    "int_from_float": "an int",
    "float_type": "a number",
    "finite_number": "finite",
    "bool_type": "true or false",
    "string_type": "a string",
    "greater_than": "> {gt:g}",
    "greater_than_equal": ">= {ge:g}",
    "less_than": "< {lt:g}",
    "less_than_equal": "<= {le:g}",
    "literal_error": "{expected}",
    "dataclass_type": "a section of settings",
    "model_type": "a section of settings",
}
"""Type of a pydantic error -> what the value must be."""


def settings_errors(error: ValidationError, settings: Any, prefix: str = "") -> list[str]:
    """One line per faulty setting: its dotted name, what it must be, what it is.

    Args:
        settings: the class that was validated, a pydantic dataclass or model.
        prefix: dotted name of the section that ``settings`` describes; empty at the top.
    """
    return [
        _line(fault, settings, [*filter(None, [prefix]), *map(str, fault["loc"])])
        for fault in error.errors()
    ]


def _line(fault: Any, settings: Any, path: list[str]) -> str:
    *sections, name = path or [""]
    kind = fault["type"]
    described = settings  # what the faulty place is declared as
    for step in fault["loc"]:
        known = described.__pydantic_fields__
        if step not in known:
            return ": ".join([*filter(None, [".".join(sections)]), unknown_name(name, known)])
        described = known[step].annotation
    name = ".".join(path)
    if kind == "value_error" and hasattr(described, "__pydantic_fields__"):
        return ".".join([*path, str(fault["ctx"]["error"])])  # of fields that do not fit together
    if kind == "value_error":
        problem = str(fault["ctx"]["error"])
    elif kind in _MUST_BE:
        problem = f"must be {_MUST_BE[kind].format(**fault.get('ctx', {}))}"
    else:
        problem = f"is not valid: {fault['msg']}"
    return f"{name} {problem}, got {fault['input']!r}"


def unknown_name(name: str, known: Collection[str], what: str = "setting") -> str:
    """What to say of a name that does not exist."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
    return f"no {what} {name!r}; {hint}"
