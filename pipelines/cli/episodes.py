"""Commands about episodes: ``validate``, ``extract``, ``exclude``; ``predict`` has a module."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli import options
from pipelines.cli.console import (
    FAILED,
    OK,
    REJECTED,
    USAGE,
    Document,
    existing_folder_of,
    fail,
    note,
    one_of,
    track,
    workspace_of,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from episodes.store import StoredEpisode
    from episodes.validation import JudgedEpisode, Record, ValidationPolicy
    from features.extraction import Extracted
    from stages.workspace import Workspace


@dataclass(frozen=True)
class Verdicts(Document):
    """The verdicts on a store's episodes, or what another policy would change."""

    store: str
    differences: list[str]
    summary: str
    records: list[Record]
    changes: list[dict[str, Any]] | None
    named: bool  # one episode was asked for
    unread: list[str]  # why the others got no verdict: no fault of theirs

    @property
    def exit_code(self) -> int:
        return FAILED if self.unread else OK

    def as_json(self) -> dict[str, Any]:
        head = {"store": self.store, "differences": self.differences, "summary": self.summary}
        if self.unread:
            head["unread"] = self.unread
        if self.changes is not None:
            return head | {"changes": self.changes}
        return head | {"episodes": [record.as_row() for record in self.records]}

    def text(self) -> Iterator[str]:
        yield from self.differences
        yield from self.unread
        if self.changes is None:
            yield from (r.line for r in self.records if self.named or r.reasons)
        else:
            for change in self.changes:
                details = "; ".join(change["details"])
                yield f"{change['episode_id']} {change['was']} -> {change['would_be']}: {details}"
            yield f"{len(self.changes)} of {len(self.records)} verdicts would change; then:"
        yield self.summary


def validate(
    episode: Annotated[
        str | None,
        typer.Argument(
            metavar="[EPISODE]", help="Only this episode: its id, or the path of a .tar.zst."
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Another policy (YAML): show what it would change."),
    ] = None,
    config: options.Config = None,
    store: options.Store = None,
) -> Verdicts:
    """Validate every episode of a store. Nothing is written."""
    from episodes.validation import summary_line

    workspace = workspace_of(config, store)
    other = _read_policy(policy) if policy else None
    listing = None if episode else workspace.listing()
    chosen = (
        [stored_episode(workspace, episode)] if episode else (listing.episodes if listing else [])
    )
    unread: list[str] = []
    records = list(_judge(chosen, workspace.validation, unread))
    others = list(_judge(chosen, other, unread)) if other else None
    other_of = {(record.host_id, record.episode_id): record for record in others or ()}
    changes = None if others is None else [
        {
            "episode_id": before.episode_id,
            "was": before.verdict,
            "would_be": after.verdict,
            "details": list(after.details or before.details),
        }
        for before in records
        if (after := other_of.get((before.host_id, before.episode_id)))
        and before.verdict != after.verdict
    ]  # fmt: skip
    return Verdicts(
        store=str(workspace.store_path),
        differences=list(listing.differences) if listing else [],
        summary=summary_line([record.verdict for record in others or records]),
        records=records,
        changes=changes,
        named=episode is not None,
        unread=sorted(set(unread)),
    )


def stored_episode(workspace: Workspace, episode: str) -> StoredEpisode:
    """The episode of an id in the store, or of a path."""
    from episodes.format import ARCHIVE_SUFFIX
    from episodes.store import find_archive

    if not episode.endswith(ARCHIVE_SUFFIX):
        return workspace.listing().find(episode)
    try:
        return find_archive(Path(episode))
    except OSError as error:
        fail(f"{episode}: {error.strerror}", USAGE)


def _judge(
    episodes: list[StoredEpisode], policy: ValidationPolicy, unread: list[str]
) -> Iterator[Record]:
    from episodes.environment import MachineError
    from episodes.validation import validate as judge
    from features.registry import LAYOUT

    for stored in track(episodes, "validating"):
        try:
            yield judge(stored, policy, LAYOUT.fields)[0]
        except MachineError as error:  # the others have verdicts
            unread.append(str(error))


def _read_policy(path: Path) -> ValidationPolicy:
    import yaml
    from pydantic import TypeAdapter, ValidationError

    from episodes.settings import settings_errors
    from episodes.validation import ValidationPolicy

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return TypeAdapter(ValidationPolicy).validate_python(values)
    except OSError as error:
        fail(f"{path}: {error.strerror}", USAGE)
    except ValidationError as error:
        problems = "; ".join(settings_errors(error, ValidationPolicy))
        fail(f"{path}: not a validation policy: {problems}", USAGE)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"{path}: not YAML: {error}", USAGE)


def verdict_of(record: Record) -> dict[str, Any]:
    """How an episode was judged, as every JSON document has it."""
    return {
        "episode": record.episode_id,
        "verdict": record.verdict,
        "reasons": list(record.reasons),
        "details": list(record.details),
    }


def extracted_episode(
    workspace: Workspace, stored: StoredEpisode, *, anyway: bool
) -> tuple[JudgedEpisode, Extracted]:
    """Judge and extract an episode; its verdict goes to stderr.

    Fails with REJECTED if it cannot be read, or is not usable and ``anyway`` was not given.
    """
    from episodes.validation import EpisodeError, check_usable, read_judged
    from features.alignment import AlignmentError
    from features.extraction import extract as extract_episode

    try:
        read = read_judged(stored, workspace.validation, workspace.layout.fields)
        check_usable(read.record, anyway=anyway)
    except EpisodeError as error:
        fail(str(error), REJECTED, **verdict_of(error.record))
    note(read.record.line)
    try:
        return read, extract_episode(read, workspace.layout)
    except AlignmentError as error:
        fail(f"{stored.path}: {error}", REJECTED, **verdict_of(read.record))


@dataclass(frozen=True)
class ExtractedFile(Document):
    """Where an episode's series, windows and features were written."""

    verdict: dict[str, Any]  # the JSON begins with what is in it
    path: str
    windows: int
    bins: int
    malformed_rows: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        document = super().as_json()
        return document.pop("verdict") | document

    def text(self) -> Iterator[str]:
        yield f"{self.path}: {self.windows} windows, {self.bins} bins"


def extract(
    episode: options.Episode,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .npz to write.")],
    anyway: options.Anyway = False,
    config: options.Config = None,
    store: options.Store = None,
) -> ExtractedFile:
    """Write the series, windows and features of one episode to a file.

    docs/data-format.md describes the file.
    """
    import numpy as np

    workspace = workspace_of(config, store)
    one_of("the suffix of --out", existing_folder_of(out).resolve().suffix, [".npz"])
    read, extracted = extracted_episode(
        workspace, stored_episode(workspace, episode), anyway=anyway
    )
    malformed = {name: rows.n_malformed for name, rows in read.sources.items()}
    for name, n_rows in malformed.items():
        if n_rows:
            note(f"{name}: {n_rows} malformed rows skipped")
    windows, content = extracted.windows, io.BytesIO()
    np.savez_compressed(
        content,
        series=extracted.series,
        features=extracted.features,
        labels=windows.label,
        purity=windows.purity,
        jobs=extracted.jobs,
        starts_s=windows.start_s,
        channel_names=np.array(workspace.layout.channel_names),
        feature_names=np.array(workspace.layout.feature_names),
    )
    write(out, content.getvalue())
    return ExtractedFile(
        verdict=verdict_of(read.record),
        path=str(out),
        windows=len(windows),
        bins=len(extracted.series),
        malformed_rows=malformed,
    )


@dataclass(frozen=True)
class ExcludedEntry(Document):
    """An entry as it was added to the file of exclusions."""

    path: str
    entry: dict[str, Any]
    entries: int

    def text(self) -> Iterator[str]:
        count = f"{self.entries} {'entry' if self.entries == 1 else 'entries'}"
        yield f"{self.path}: {count}. The datasets are stale; make them again: phasewatch run"


def exclude(
    episode: Annotated[str, typer.Argument(metavar="EPISODE", help="An episode's id.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Shown in every report.")],
    from_s: Annotated[
        float | None, typer.Option("--from", metavar="SECONDS", help="Only from here on.")
    ] = None,
    to_s: Annotated[
        float | None, typer.Option("--to", metavar="SECONDS", help="Only up to here.")
    ] = None,
    who: Annotated[
        str | None,
        typer.Option("--who", metavar="NAME", help="Who decided; default: the user logged in."),
    ] = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> ExcludedEntry:
    """Keep an episode, or a span of it, out of every dataset.

    Windows that overlap the span are excluded. Adds an entry to exclusions.yaml. Nothing is rebuilt
    before the next run.
    """
    from getpass import getuser

    from config.disk import one_at_a_time
    from datasets.exclusions import ExclusionError, appended, parse_exclusions
    from features.files import write_atomically

    workspace = workspace_of(config, store, artifacts)
    path = workspace.exclusions_file
    listing = workspace.listing()
    listing.find(episode)
    known = {stored.episode_id for stored in listing.episodes}
    values = {"episode": episode, "from_s": from_s, "to_s": to_s, "reason": reason}
    entry = {n: v for n, v in (values | {"who": who or getuser()}).items() if v is not None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path.parent):
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            text = appended(before, entry, path, known)
            entries = len(parse_exclusions(text, path, known))
            write_atomically(path, text.encode())
    except (ExclusionError, UnicodeDecodeError) as error:
        fail(str(error), USAGE)
    except OSError as error:
        fail(f"{path}: not written ({error.strerror})", USAGE)
    return ExcludedEntry(path=str(path), entry=entry, entries=entries)
