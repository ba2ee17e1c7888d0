"""Exclusions: episodes, or spans of them, that a person keeps out of every dataset.

A file beside the configuration lists them, with the reason and who decided. Sides are drawn as if
nothing were excluded, so leaving something out moves no other episode.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from config.errors import PhasewatchError
from config.messages import yaml_problem
from episodes.settings import NotNegative, parse_yaml, settings_errors

BY_HAND = "excluded by hand"
"""Why an episode takes no part, beside the reasons of ``assign_splits``."""

Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]
EpisodeId = Annotated[Text, StringConstraints(to_upper=True)]


class ExclusionError(PhasewatchError):
    """A file of exclusions cannot be used; the message names the file and the entry."""


class Exclusion(BaseModel):
    """One entry: an episode, or the windows of it that overlap a span of its seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    episode: EpisodeId
    from_s: NotNegative | None = None  # None: from the beginning
    to_s: NotNegative | None = None  # None: to the end
    reason: Text
    who: Text

    @model_validator(mode="after")
    def _forwards(self) -> Exclusion:
        if self.to_s is not None and self.to_s <= (self.from_s or 0):
            raise ValueError(f"to_s must be above from_s ({self.from_s or 0:g}), got {self.to_s:g}")
        return self

    @property
    def whole(self) -> bool:
        """Whether all of the episode is meant."""
        return not self.from_s and self.to_s is None

    def includes(self, other: Exclusion) -> bool:
        """Whether it excludes all that the other one does."""
        return (
            self.episode == other.episode
            and (self.from_s or 0) <= (other.from_s or 0)
            and (inf if self.to_s is None else self.to_s)
            >= (inf if other.to_s is None else other.to_s)
        )

    def covers(self, window_s: float) -> pl.Expr:
        """Windows, ``window_s`` long, that it excludes."""
        covered = pl.col("episode_id") == self.episode
        if self.from_s is not None:
            covered &= pl.col("start_s") + window_s > self.from_s
        if self.to_s is not None:
            covered &= pl.col("start_s") < self.to_s
        return covered

    def as_entry(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


def parse_exclusions(
    text: str, path: Path, known: Collection[str] | None = None
) -> list[Exclusion]:
    """The entries of a file's text.

    Args:
        known: ids of the store's episodes; None: not looked at.

    Raises:
        ExclusionError: names every faulty entry.
    """
    try:
        entries = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ExclusionError(f"{path} {yaml_problem(error)}") from error
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise ExclusionError(f"{path}: must be a list of entries, got {type(entries).__name__}")
    exclusions, faults = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            exclusion = Exclusion.model_validate(entry)
        except ValidationError as error:
            faults += [f"entry {number}: {line}" for line in settings_errors(error, Exclusion)]
            continue
        if known is not None and exclusion.episode not in known:
            faults.append(f"entry {number}: the store has no episode {exclusion.episode!r}")
        exclusions.append(exclusion)
    if faults:
        raise ExclusionError("\n".join(f"{path}: {fault}" for fault in faults))
    return exclusions


def read_exclusions(path: Path | None, known: Collection[str] | None = None) -> list[Exclusion]:
    """The entries of a file; none where there is no file to read.

    Raises:
        ExclusionError: see ``parse_exclusions``; or the file cannot be read.
    """
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ExclusionError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ExclusionError(f"{path} {yaml_problem(error)}") from error
    return parse_exclusions(text, path, known)


def appended(text: str, entry: Mapping[str, Any], path: Path, known: Collection[str]) -> str:
    """A file's text with one entry more; what a person wrote there stays as it is.

    Raises:
        ExclusionError: the entry, or the file, has faults; or an entry excludes the same already.
    """

    def listed(rows: Sequence[Mapping[str, Any]]) -> str:
        return yaml.safe_dump([dict(row) for row in rows], sort_keys=False, allow_unicode=True)

    before = parse_exclusions(text, path)
    whole = listed([*(each.as_entry() for each in before), entry])
    wanted = parse_exclusions(whole, path, known)
    for number, each in enumerate(before, start=1):
        if each.includes(wanted[-1]):
            raise ExclusionError(
                f"{path}: entry {number} already excludes this ({each.reason!r}, by {each.who}); "
                "to change it, edit or delete it there"
            )
    longer = text + ("\n" if text and not text.endswith("\n") else "") + listed([entry])
    try:
        return longer if parse_exclusions(longer, path) == wanted else whole
    except ExclusionError:  # the list is written in another style
        return whole


def apply_exclusions(
    table: pl.DataFrame, exclusions: Sequence[Exclusion], window_s: float
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """``(table without the windows excluded, every entry with how many it covers)``.

    Args:
        table: windows that would take part, with ``episode_id`` and ``start_s``.
    """
    covered = [exclusion.covers(window_s) for exclusion in exclusions]
    listed = [
        exclusion.model_dump() | {"windows": table.select(expression.sum()).item()}
        for exclusion, expression in zip(exclusions, covered, strict=True)
    ]
    return table.filter(~pl.any_horizontal([pl.lit(False), *covered])), listed
