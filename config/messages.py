"""What messages share: commands that work when pasted, unknown names, and wrong values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from config.paths import expanded

OPTIONS = ("config", "store", "artifacts")
"""Options that say which project a command is about."""

_TAKEN = dict.fromkeys(
    ("run", "sync", "validate", "extract", "predict", "report", "champion", "promote", "rollback",
     "doctor", "prune", "ui", "exclude", "bundle", "produce", "verify"), OPTIONS
) | dict.fromkeys(("hub", "log verify"), ("config", "artifacts"))  # fmt: skip
_COMMAND = re.compile(
    rf"\bphasewatch ({'|'.join(_TAKEN)})\b(?:(?<=produce) [a-z]+)?+"
    rf"(?! --(?:{'|'.join(OPTIONS)})\b)"
    r"|(?<![\w/'] )dagster job execute\b"
)
_SHOWN = 12  # names of a list
_CUT_OFF = 4  # letters of a name that is taken for the beginning of another

_WRONG = {
    "missing": "is missing",
    "extra_forbidden": "is not known",
    "json_invalid": "must be JSON ({error})",
    "none_required": "must be left out",
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing_size": "must have fewer digits",
    "float_type": "must be a number",
    "finite_number": "must be finite",
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text",
    "string_pattern_mismatch": "must be of the form {pattern}",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "dataclass_type": "must be a section of settings",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
    "union_tag_not_found": "must have {discriminator}",
    "greater_than": "must be above {gt:,}",
    "greater_than_equal": "must be at least {ge:,}",
    "less_than": "must be below {lt:,}",
    "less_than_equal": "must be at most {le:,}",
    "multiple_of": "must be a multiple of {multiple_of:,}",
    "string_too_short": "must have at least {min_length:,} characters",
    "string_too_long": "must have at most {max_length:,} characters",
    "too_short": "must have at least {min_length:,} entries",
    "too_long": "must have at most {max_length:,} entries",
}
"""Type of a pydantic error -> what is wrong with the value."""


def variable_of(option: str) -> str:
    """The environment variable that may stand for an option of ``OPTIONS``."""
    return f"PHASEWATCH_{option.upper()}"


def address_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Of some values those that say which project they are of, as absolute paths."""
    return {name: str(expanded(values[name]).absolute()) for name in OPTIONS if values.get(name)}


def addressed(text: str, address: Mapping[str, str]) -> str:
    """A text in which every command names the same project: it works when it is pasted."""

    def complete(match: re.Match[str]) -> str:
        if match[1] is None:
            paths = {variable_of(name): path for name, path in address.items()}
            if "artifacts" in address:
                paths["DAGSTER_HOME"] = f"{address['artifacts']}/dagster_home"
            return " ".join([*(f"{n}={shlex.quote(p)}" for n, p in paths.items()), match[0]])
        given = [n for n in _TAKEN[match[1]] if n in address]
        return " ".join([match[0], *(f"--{n} {shlex.quote(address[n])}" for n in given)])

    return _COMMAND.sub(complete, text)


def suggestion(value: object, known: Iterable[str], n: int = 1, alike: float = 0.6) -> str:
    """Of known names the ``n`` nearest to one that is unknown, as a question; empty: none is near.

    Args:
        alike: how much a name must be like it, from 0 to 1; one that begins with it always is.
    """
    if not isinstance(value, str):
        return ""
    names = list(known)
    near = get_close_matches(value, names, n=n, cutoff=alike)
    if len(value) >= _CUT_OFF and not near:
        near = [name for name in names if name.startswith(value)][:n]
    *first, last = near or [""]
    return f"; did you mean {', '.join(first)}{' or ' if first else ''}{last}?" if near else ""


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """What a name must be, the nearest one, and what was given."""
    names = list(known)
    listed = ", ".join(names[:_SHOWN])
    more = f" or {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    must = "must be" if len(names) == 1 else "must be one of"
    return f"{what} {must} {listed}{more}, got {value!r}{suggestion(value, names)}"


def shortened(items: Sequence[str], separator: str = "; ", shown: int = 5) -> str:
    """The first items, and how many more there are; one more is named instead of counted."""
    if len(items) <= shown + 1:
        return separator.join(items)
    return separator.join([*items[:shown], f"and {len(items) - shown} more"])


def yaml_problem(error: Exception) -> str:
    """What is wrong with the text of a file, such as ``is not YAML (line 3, column 1)``."""
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {error.start + 1})"
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'note', None) or 'is not YAML'}{where}"


def fault_text(fault: Mapping[str, Any]) -> str:
    """What is wrong with a value, such as ``must be at least 1``.

    Args:
        fault: one of ``errors()`` of a pydantic error, with its context.
    """
    kind = fault["type"]
    context = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in fault.get("ctx", {}).items()
    }
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    if kind in ("string_too_short", "too_short") and context["min_length"] == 1:
        return "must not be empty"
    if kind in _WRONG:
        return _WRONG[kind].format(**context)
    return str(fault["msg"]).replace("Input should", "must")
