"""What messages of every package share: commands that work when pasted, and unknown names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

OPTIONS = ("config", "store", "artifacts")
"""Options that say which project a command is about."""

_TAKEN = dict.fromkeys(
    ("run", "sync", "predict", "report", "champion", "promote", "rollback", "doctor", "prune",
     "ui", "exclude", "bundle", "produce", "verify"), OPTIONS
) | dict.fromkeys(("validate", "extract"), ("config", "store")) | {
    "hub": ("config", "artifacts")
}  # fmt: skip
_COMMAND = re.compile(
    rf"\bphasewatch ({'|'.join(_TAKEN)})\b(?:(?<=produce) [a-z]+)?+"
    rf"(?! --(?:{'|'.join(OPTIONS)})\b)"
    r"|(?<![\w/'] )dagster job execute\b"
)
_SHOWN = 12  # names of a list
_CUT_OFF = 4  # letters of a name that is taken for the beginning of another


def address_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Of some values those that say which project they are of, as absolute paths."""
    return {name: str(Path(values[name]).absolute()) for name in OPTIONS if values.get(name)}


def addressed(text: str, address: Mapping[str, str]) -> str:
    """A text in which every command names the same project: it works when it is pasted."""

    def complete(match: re.Match[str]) -> str:
        if match[1] is None:
            paths = {f"PHASEWATCH_{name.upper()}": path for name, path in address.items()}
            if "artifacts" in address:
                paths["DAGSTER_HOME"] = f"{address['artifacts']}/dagster_home"
            return " ".join([*(f"{n}={shlex.quote(p)}" for n, p in paths.items()), match[0]])
        given = [n for n in _TAKEN[match[1]] if n in address]
        return " ".join([match[0], *(f"--{n} {shlex.quote(address[n])}" for n in given)])

    return _COMMAND.sub(complete, text)


def meant(value: str, known: Iterable[str], n: int = 1, alike: float = 0.6) -> str:
    """Of known names the ``n`` nearest to one that is unknown, as a question; empty: none is near.

    Args:
        alike: how much a name must be like it, from 0 to 1; one that begins with it always is.
    """
    names = list(known)
    near = get_close_matches(value, names, n=n, cutoff=alike)
    if len(value) >= _CUT_OFF and not near:
        near = [name for name in names if name.startswith(value)][:n]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def unknown(what: str, value: str, known: Iterable[str]) -> str:
    """What a name must be, the nearest one, and what was given."""
    names = list(known)
    listed = ", ".join(names[:_SHOWN])
    more = f" or {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} must be one of {listed}{more}, got {value!r}{meant(value, names)}"
