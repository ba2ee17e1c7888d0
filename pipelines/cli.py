"""The command line. Heavy libraries are imported by the commands that need them, not here."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import cli_champion, cli_checkpoints, cli_report
from pipelines.console import (
    FAILED,
    MISMATCH,
    OK,
    REJECTED,
    USAGE,
    CheckpointArgument,
    ConfigOption,
    JsonOption,
    RunArtifactsOption,
    RunStoreOption,
    fail,
    overrides_of,
    say_json,
    say_table,
    track,
)
from pipelines.home import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from episodes.reading import Episode
    from episodes.validation import Record
    from features.extraction import Extracted

__all__ = ["FAILED", "MISMATCH", "OK", "REJECTED", "USAGE", "app", "main"]

app = typer.Typer(
    name="phasewatch",
    help="Tells in which phase of a compromise a virtual machine is, from its telemetry.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_checkpoints.contract_app, name="contract")

StoreOption = Annotated[
    Path,
    typer.Option(
        help="Folder of the episode store (index.jsonl and episodes/).", envvar="PHASEWATCH_STORE"
    ),
]
DEFAULT_STORE = ROOT / "data" / "store"


@app.command()
def run(
    config: ConfigOption = None,
    store: RunStoreOption = None,
    artifacts: RunArtifactsOption = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="host, sample or time; repeat for several."),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Ingest this batch only, stale or not; repeatable."),
    ] = None,
    ingest_only: Annotated[
        bool, typer.Option("--ingest-only", help="Stop when every batch is ingested.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Make everything anew, reuse nothing.")
    ] = False,
) -> None:
    """Sync, ingest what is stale, retrain, evaluate, and print the path of the report.

    With --batch: sync and ingest those batches, no more.
    """
    from pipelines.local import RunError, run_all
    from resources.workspace import SettingsError

    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_once())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("phasewatch").setLevel(
        logging.INFO if sys.stderr.isatty() else logging.WARNING
    )
    overrides = overrides_of(store, artifacts) | ({"force": True} if force else {})
    try:
        page = run_all(
            config,
            overrides,
            recipe or None,
            batches=batch or None,
            ingest_only=ingest_only or bool(batch),
        )
    except SettingsError as error:
        fail(str(error), USAGE)
    except RunError as error:
        fail(str(error))
    if page is not None:
        typer.echo(str(page))


def _once() -> Callable[[logging.LogRecord], bool]:
    """A filter that lets a warning through the first time it is said."""
    said: set[str] = set()

    def first_time(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        message = record.getMessage()
        new = message not in said
        said.add(message)
        return new

    return first_time


@app.command()
def sync(
    config: ConfigOption = None,
    store: RunStoreOption = None,
    artifacts: RunArtifactsOption = None,
) -> None:
    """Register the store's batches with Dagster; `make ui` does this first."""
    from pipelines.local import sync_only
    from resources.workspace import SettingsError

    try:
        synced = sync_only(config, overrides_of(store, artifacts))
    except SettingsError as error:
        fail(str(error), USAGE)
    typer.echo(
        f"{len(synced.listing.batches)} batches, {len(synced.new)} new, "
        f"{len(synced.stale)} to ingest",
        err=True,
    )


@app.command()
def validate(
    episode: Annotated[
        str | None, typer.Argument(help="Judge this episode only (its id); default: all.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    policy: Annotated[
        Path | None,
        typer.Option(help="Another policy (YAML): a dry run that shows what it would change."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge every episode of a store; nothing is written."""
    from episodes.store import StoreError, list_store
    from episodes.validation import ValidationPolicy, summary_line

    try:
        listing = list_store(store)
        chosen = listing.episodes if episode is None else [listing.find(episode)]
    except StoreError as error:
        fail(str(error), USAGE)
    records = list(_sweep(chosen, ValidationPolicy()))
    verdicts = [record.verdict for record in records]
    document: dict[str, Any] = {"store": str(store), "differences": list(listing.differences)}
    lines = list(listing.differences) if episode is None else []
    if policy is None:
        document["episodes"] = [record.as_row() for record in records]
        lines += [
            f"{r.episode_id} {r.host_id} {r.verdict}: "
            + "; ".join(f"{d} [{code}]" for code, d in zip(r.reasons, r.details, strict=True))
            for r in records
            if r.reasons
        ]
    else:
        other = list(_sweep(chosen, _read_policy(policy)))
        changes = [
            {
                "episode_id": before.episode_id,
                "was": before.verdict,
                "would_be": after.verdict,
                "details": list(after.details or before.details),
            }
            for before, after in zip(records, other, strict=True)
            if before.verdict != after.verdict
        ]
        document["changes"] = changes
        lines += [
            f"{c['episode_id']} {c['was']} -> {c['would_be']}: {'; '.join(c['details'])}"
            for c in changes
        ]
        lines.append(f"{len(changes)} of {len(records)} verdicts would change; then:")
        verdicts = [record.verdict for record in other]
    document["summary"] = summary_line(verdicts)
    lines.append(document["summary"])
    if as_json:
        say_json(document)
    else:
        typer.echo("\n".join(lines))


def _sweep(episodes: list, policy: Any) -> Iterator[Record]:
    from episodes.validation import validate as judge
    from features.registry import LAYOUT

    for stored in track(episodes, "validating"):
        yield judge(stored, policy, LAYOUT.fields)[0]


def _read_policy(path: Path) -> Any:
    import yaml

    from episodes.validation import ValidationPolicy

    try:
        return ValidationPolicy(**(yaml.safe_load(path.read_text()) or {}))
    except OSError as error:
        fail(f"{path}: {error.strerror}", USAGE)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        known = ", ".join(ValidationPolicy.__dataclass_fields__)
        said = str(error).removeprefix("ValidationPolicy.__init__() ")
        fail(f"{path}: not a validation policy ({said}); it can set {known}", USAGE)


def _extract(episode: str, store: Path) -> tuple[Path, Episode, Extracted]:
    """Read and extract an episode, named by id or path; leave with a message where it fails."""
    from episodes.archive import ArchiveError
    from episodes.format import ARCHIVE_SUFFIX
    from episodes.reading import read_episode
    from episodes.store import StoreError, list_store
    from features import registry
    from features.alignment import AlignmentError
    from features.extraction import extract as extract_episode

    path, layout = Path(episode), registry.LAYOUT
    try:
        if not path.name.endswith(ARCHIVE_SUFFIX):
            path = list_store(store).find(episode).path
        read = read_episode(path, path.name.removesuffix(ARCHIVE_SUFFIX), layout.fields)
        return path, read, extract_episode(read, layout)
    except StoreError as error:
        fail(str(error), USAGE)
    except OSError as error:
        fail(f"{path}: {error.strerror}", USAGE)
    except (ArchiveError, AlignmentError) as error:
        fail(f"{path}: {error}", REJECTED)


@app.command()
def extract(
    episode: Annotated[str, typer.Argument(help="An episode's id, or the path of its .tar.zst.")],
    out: Annotated[Path, typer.Option(help="The .npz to write.")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Extract one episode: its series, windows and features, without shards."""
    import numpy as np

    from features.registry import LAYOUT

    path, read, extracted = _extract(episode, store)
    for name, rows in read.sources.items():
        if rows.n_malformed:
            typer.echo(f"{path.name}: {name}: {rows.n_malformed} malformed rows skipped", err=True)
    windows = extracted.windows
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = out.open("wb")
    except OSError as error:
        fail(f"{out}: not written ({error.strerror})", USAGE)
    with file:
        np.savez_compressed(
            file,
            series=extracted.series,
            features=extracted.features,
            labels=windows.label,
            purity=windows.purity,
            starts_s=windows.start_s,
            channel_names=np.array(LAYOUT.channel_names),
            feature_names=np.array(LAYOUT.feature_names),
        )
    typer.echo(f"{out}: {len(windows)} windows, {len(extracted.series)} bins", err=True)


@app.command()
def predict(
    checkpoint: CheckpointArgument,
    episode: Annotated[str, typer.Argument(help="An episode's id, or the path of its .tar.zst.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Score one episode, window by window."""
    from features import registry
    from models.checkpoint import CheckpointError, ContractMismatchError, load_checkpoint

    layout = registry.LAYOUT
    try:
        loaded = load_checkpoint(checkpoint, layout)
    except ContractMismatchError as error:
        fail(str(error), MISMATCH)
    except CheckpointError as error:
        fail(str(error))
    _, read, extracted = _extract(episode, store)
    proba = loaded.predict_episode(extracted.series, extracted.features, layout)
    rows = [
        {
            "start_s": float(start),
            "phase": layout.phases[int(p.argmax())],
            "probabilities": {
                phase: round(float(v), 6) for phase, v in zip(layout.phases, p, strict=True)
            },
            "labelled": str(label),
        }
        for start, label, p in zip(
            extracted.windows.start_s, extracted.windows.label, proba, strict=True
        )
    ]
    if as_json:
        say_json({"episode": read.episode_id, "checkpoint_id": loaded.artifact_id, "windows": rows})
        return
    for row in rows:
        share = row["probabilities"][row["phase"]]
        typer.echo(f"{row['start_s']:7.1f} s  {row['phase']:<17} {share:.2f}")


@app.command()
def doctor(
    config: ConfigOption = None,
    store: RunStoreOption = None,
    artifacts: RunArtifactsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, which store it is, what is stale; problems first, exit 1 if any."""
    from pipelines.doctor import examine

    findings = examine(config, overrides_of(store, artifacts))
    document = findings.as_document()
    if as_json:
        say_json(document)
    else:
        for found in findings.problems:
            typer.echo(f"problem: {found['problem']}\n  remedy: {found['remedy']}")
        typer.echo("" if findings.problems else "no problem found\n")
        rows = [
            (name, key, _short(v)) for name, s in findings.sections.items() for key, v in s.items()
        ]
        say_table(("about", "what", "found"), rows)
    raise typer.Exit(FAILED if findings.problems else OK)


def _short(value: Any) -> str:
    """A value in one cell: what is nested becomes words, what is long becomes a number."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v or 'absent'}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) if 0 < len(value) <= 3 else str(len(value) or "none")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


for command in (
    cli_checkpoints.inspect,
    cli_report.report,
    cli_champion.champion,
    cli_champion.promote,
    cli_champion.rollback,
):
    app.command()(command)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Where something unforeseen fails, show where.")
    ] = False,
) -> None:
    """Tells in which phase of a compromise a virtual machine is, from its telemetry."""
    global _debug
    _debug = debug


_debug = False


def main() -> None:
    """Entry point: also what no command foresaw ends in one message and a code."""
    try:
        app()
    except Exception as error:
        if _debug:
            raise
        said = str(error).strip().partition("\n")[0]
        typer.echo(
            f"{type(error).__name__}: {said}\nThis was not foreseen; `phasewatch --debug "
            f"{' '.join(sys.argv[1:])}` shows where it happened.",
            err=True,
        )
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
