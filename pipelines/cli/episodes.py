"""Commands about episodes: ``validate``, ``extract``, ``exclude``; ``predict`` has a module."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config.disk import folder_lock
from config.messages import yaml_problem
from episodes.environment import MachineError
from features.files import write_atomically
from pipelines.cli import options
from pipelines.cli.console import (
    EXIT_CODES,
    FAILED,
    OK,
    REJECTED,
    USAGE,
    CommandError,
    Document,
    Table,
    existing_folder_of,
    fail,
    note,
    one_of,
    track,
    user_name,
    workspace_of,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from episodes.store import StoredEpisode
    from episodes.validation import EpisodeRecord, ValidatedEpisode, ValidationPolicy
    from features.extraction import Extracted
    from stages.workspace import Workspace


_SHOWN_BATCHES = 30


@dataclass(frozen=True)
class ValidateDocument(Document):
    """The verdicts on a store's episodes, or what another policy would change."""

    store: str
    differences: list[str]
    summary: str
    records: list[EpisodeRecord]
    changes: list[dict[str, Any]] | None
    named: bool  # episodes were asked for
    unread: list[str]  # why the others got no verdict: no fault of theirs
    problems: list[CommandError]  # names that name no episode

    @property
    def exit_code(self) -> int:
        codes = [problem.code for problem in self.problems] + [FAILED] * bool(self.unread)
        return max(codes, default=OK)

    def as_json(self) -> dict[str, Any]:
        head: dict[str, Any] = {
            "store": self.store, "differences": self.differences, "summary": self.summary
        }  # fmt: skip
        if self.unread:
            head["unread"] = self.unread
        if self.problems:
            head["failures"] = failures(self.problems)
        if self.changes is not None:
            return head | {"changes": self.changes}
        return head | {"episodes": [record.as_row() for record in self.records]}

    def text(self) -> Iterator[str | Table]:
        yield from (f"note: {difference}" for difference in self.differences)
        yield from self.unread
        if self.changes is None:
            yield from (r.line for r in self.records if self.named or r.reasons)
            if not self.named:
                yield from self._batches()
        else:
            for change in self.changes:
                details = "; ".join(change["details"])
                yield f"{change['episode_id']} {change['was']} -> {change['would_be']}: {details}"
            counts = f"{len(self.changes)} of {len(self.records)}"
            yield f"{counts} verdicts would change. With this policy:"
        yield self.summary

    def _batches(self) -> Iterator[str | Table]:
        """The newest batches, with the verdicts on their episodes."""
        from episodes.validation import VERDICTS

        by_batch: dict[str, Counter[str]] = {}
        for record in self.records:
            by_batch.setdefault(record.batch, Counter())[record.verdict] += 1
        newest = sorted(by_batch, key=lambda batch: batch.rpartition(".")[::-1])[-_SHOWN_BATCHES:]
        if len(newest) < len(by_batch):
            yield f"the newest {len(newest)} of {len(by_batch):,} batches:"
        rows = [(batch, *(by_batch[batch][v] for v in VERDICTS)) for batch in newest]
        yield Table(("batch", *VERDICTS), rows)


def failures(problems: list[CommandError]) -> list[dict[str, Any]]:
    """What went wrong with single episodes, as every JSON document has it."""
    return [problem.document | {"error": str(problem)} for problem in problems]


def validate(
    episodes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EPISODE…]", help=f"{options.EPISODES} Default: all."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Another policy (YAML); shows which verdicts it changes."
        ),
    ] = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> ValidateDocument:
    """Validate episodes: all of a store, or those named.

    Nothing is written.
    """
    from episodes.validation import summary_line

    workspace = workspace_of(config, store, artifacts)
    other = _read_policy(policy, workspace.validation) if policy else None
    listing = None if episodes else workspace.listing()
    chosen, problems = (
        (listing.episodes, []) if listing else named_episodes(workspace, episodes or [])
    )
    if len(problems) == 1 and not chosen:
        raise problems[0]
    for problem in problems:
        note(str(problem))
    unread: list[str] = []
    records = list(_validated(chosen, workspace.validation, unread))
    others = list(_validated(chosen, other, unread)) if other else None
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
    return ValidateDocument(
        store=str(workspace.store_path),
        differences=list(listing.differences) if listing else [],
        summary=summary_line([record.verdict for record in others or records]),
        records=records,
        changes=changes,
        named=bool(episodes),
        unread=sorted(set(unread)),
        problems=problems,
    )


def named_episodes(
    workspace: Workspace, names: list[str]
) -> tuple[list[StoredEpisode], list[CommandError]]:
    """Every episode that is meant, each once; and what names none."""
    chosen: dict[Path, StoredEpisode] = {}
    problems: list[CommandError] = []
    for name in names:
        try:
            chosen |= {stored.path.absolute(): stored for stored in episodes_of(workspace, name)}
        except CommandError as error:
            problems.append(error)
    return list(chosen.values()), problems


def episodes_of(workspace: Workspace, name: str) -> list[StoredEpisode]:
    """The episodes of a folder or a batch, or the one of a path or an id."""
    from episodes.format import ARCHIVE_SUFFIX
    from episodes.store import StoreError, find_archive

    if Path(name).is_dir():
        found = sorted(Path(name).rglob(f"*{ARCHIVE_SUFFIX}"))
        if not found:
            fail(f"{name}: no {ARCHIVE_SUFFIX} in this folder", USAGE, episode=name)
        return [find_archive(path) for path in found]
    try:
        if name.endswith(ARCHIVE_SUFFIX):
            return [stored_episode(workspace, name)]
        return list(workspace.listing().named(name))
    except StoreError as error:
        fail(str(error), EXIT_CODES["StoreError"], episode=name)


def stored_episode(workspace: Workspace, episode: str) -> StoredEpisode:
    """The episode of an id in the store, or of a path."""
    from episodes.format import ARCHIVE_SUFFIX
    from episodes.store import find_archive

    if not episode.endswith(ARCHIVE_SUFFIX):
        return workspace.listing().find(episode)
    try:
        return find_archive(Path(episode))
    except OSError as error:
        fail(f"{episode}: {error.strerror}", USAGE, episode=episode)


def _validated(
    episodes: list[StoredEpisode], policy: ValidationPolicy, unread: list[str]
) -> Iterator[EpisodeRecord]:
    from episodes.validation import validate as validate_episode
    from features.registry import LAYOUT

    for stored in track(episodes, "validating"):
        try:
            yield validate_episode(stored, policy, LAYOUT.fields)[0]
        except MachineError as error:  # the others have verdicts
            unread.append(str(error))


def _read_policy(path: Path, usual: ValidationPolicy) -> ValidationPolicy:
    """The policy in a file; what it does not say is as usual."""
    from dataclasses import asdict

    import yaml
    from pydantic import TypeAdapter, ValidationError

    from episodes.settings import parse_yaml, settings_errors
    from episodes.validation import ValidationPolicy

    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) or {}
        merged = asdict(usual) | values if isinstance(values, dict) else values
        return TypeAdapter(ValidationPolicy).validate_python(merged)
    except OSError as error:
        fail(f"{path}: {error.strerror}", USAGE)
    except ValidationError as error:
        problems = "; ".join(settings_errors(error, ValidationPolicy))
        fail(f"{path}: not a validation policy: {problems}", USAGE)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"{path} {yaml_problem(error)}", USAGE)


def verdict_of(record: EpisodeRecord) -> dict[str, Any]:
    """The verdict on an episode, as every JSON document has it."""
    return {
        "episode": record.episode_id,
        "verdict": record.verdict,
        "reasons": list(record.reasons),
        "details": list(record.details),
    }


def extracted_episode(
    workspace: Workspace, stored: StoredEpisode, *, anyway: bool
) -> tuple[ValidatedEpisode, Extracted]:
    """Validate and extract an episode; its verdict goes to stderr.

    Fails with REJECTED if it cannot be read, or is not usable and ``anyway`` was not given.
    """
    from episodes.validation import EpisodeError, check_usable, read_validated
    from stages.validating import extract_validated

    try:
        read = read_validated(stored, workspace.validation, workspace.layout.fields)
        check_usable(read.record, anyway=anyway)
        extracted = extract_validated(read, workspace.layout)
    except EpisodeError as error:
        fail(str(error), REJECTED, **verdict_of(error.record))
    note(read.record.line)
    return read, extracted


@dataclass(frozen=True)
class ExtractDocument(Document):
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
    artifacts: options.Artifacts = None,
) -> ExtractDocument:
    """Write the series, windows and features of one episode to a file.

    docs/data-format.md describes the file.
    """
    import numpy as np

    workspace = workspace_of(config, store, artifacts)
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
    return ExtractDocument(
        verdict=verdict_of(read.record),
        path=str(out),
        windows=len(windows),
        bins=len(extracted.series),
        malformed_rows=malformed,
    )


@dataclass(frozen=True)
class ExcludeDocument(Document):
    """An entry as it was added to the file of exclusions."""

    path: str
    entry: dict[str, Any]
    entries: int
    changes_datasets: bool  # otherwise the episode was rejected, and no dataset has it

    def text(self) -> Iterator[str]:
        count = f"{self.entries} {'entry' if self.entries == 1 else 'entries'}"
        yield f"{self.path}: {count}; to take one back, delete it there." + (
            " The datasets are stale; make them again: phasewatch run"
            if self.changes_datasets
            else ""
        )


def exclude(
    episode: options.Episode,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Shown in every report.")],
    from_s: Annotated[
        float | None,
        typer.Option("--from", metavar="SECONDS", min=0, help="Start of the span, in the episode."),
    ] = None,
    to_s: Annotated[
        float | None,
        typer.Option("--to", metavar="SECONDS", help="End of the span, in the episode."),
    ] = None,
    who: Annotated[
        str | None,
        typer.Option("--who", metavar="NAME", help="Who decided; default: the user logged in."),
    ] = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> ExcludeDocument:
    """Keep an episode, or a span of it, out of every dataset.

    Windows that overlap the span are excluded. Adds an entry to exclusions.yaml in the artifacts
    folder, or to the file that the setting "exclusions" names. To take it back, delete the entry
    there. Nothing is rebuilt before the next run.
    """
    from datasets.exclusions import ExclusionError, appended, parse_exclusions

    for option, text in (("--reason", reason), ("--who", who)):
        if text is not None and not text.strip():
            fail(f"{option} must not be empty", USAGE)
    workspace = workspace_of(config, store, artifacts)
    path = workspace.exclusions_file
    stored = stored_episode(workspace, episode)
    if not (stored.in_store and stored.path.parents[2].samefile(workspace.store_path)):
        fail(
            f"{episode}: must be in the store {workspace.store_path}; datasets have no other "
            "episodes",
            USAGE,
        )
    record = _record_within(workspace, stored, from_s, to_s)
    known = {each.episode_id for each in workspace.listing().episodes}
    if to_s is not None and to_s <= (from_s or 0):
        fail(f"--to must be above --from ({from_s or 0:g}), got {to_s:g}", USAGE)
    values = {"episode": stored.episode_id, "from_s": from_s, "to_s": to_s, "reason": reason}
    entry = {n: v for n, v in (values | {"who": who or user_name()}).items() if v is not None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(path.parent):
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            text = appended(before, entry, path, known)
            entries = len(parse_exclusions(text, path, known))
            write_atomically(path, text.encode())
    except (ExclusionError, UnicodeDecodeError) as error:
        fail(str(error), USAGE)
    except OSError as error:
        fail(f"{path}: not written ({error.strerror})", USAGE)
    if record and not record.usable:
        note(f"{record.line}\nThe datasets do not have this episode: it is {record.verdict}.")
    changes = record is None or record.usable
    return ExcludeDocument(str(path), entry, entries, changes)


def _record_within(
    workspace: Workspace, stored: StoredEpisode, from_s: float | None, to_s: float | None
) -> EpisodeRecord | None:
    """What is known of an episode, which must have this span; None: it is unreadable."""
    from episodes.validation import validate as validate_episode

    try:
        record, _ = validate_episode(stored, workspace.validation, workspace.layout.fields)
    except MachineError as error:  # what cannot be read may be excluded all the same
        note(str(error))
        return None
    length = record.duration_s
    if from_s is not None and length is not None and from_s >= length:
        fail(
            f"--from must be below {length:.1f} s, the length of {stored.episode_id}, "
            f"got {from_s:g}",
            USAGE,
        )
    if to_s is not None and length is not None and to_s > math.ceil(length):
        fail(
            f"--to must be at most {length:.1f} s, the length of {stored.episode_id}, "
            f"got {to_s:g}; without it, the rest of the episode is excluded",
            USAGE,
        )
    return record
