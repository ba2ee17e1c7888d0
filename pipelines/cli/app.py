"""The command line. Heavy libraries are imported by the commands that need them, not here."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config.paths import base_folder
from pipelines.cli import champion as cli_champion
from pipelines.cli import checkpoints as cli_checkpoints
from pipelines.cli import report as cli_report
from pipelines.cli.console import (
    FAILED,
    MISMATCH,
    OK,
    REJECTED,
    USAGE,
    ConfigOption,
    JsonOption,
    RunArtifactsOption,
    RunStoreOption,
    existing_file,
    fail,
    failing,
    say_json,
    say_table,
    track,
    workspace_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from episodes.reading import Episode
    from episodes.validation import Record
    from features.extraction import Extracted
    from models.checkpoint import Checkpoint

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
EpisodeArgument = Annotated[
    str, typer.Argument(help="An episode's id, or the path of its .tar.zst.")
]
AnywayOption = Annotated[
    bool, typer.Option("--anyway", help="Go on where the episode is rejected or errored.")
]
DEFAULT_STORE = base_folder() / "data" / "store"
_SHOWN = 5  # items of a list that `doctor` says in full


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
        typer.Option(
            metavar="KEY",
            help="Ingest this batch only, stale or not; what did not change is reused.",
        ),
    ] = None,
    ingest_only: Annotated[
        bool, typer.Option("--ingest-only", help="Stop when every batch is ingested.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Make everything anew, reuse nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Sync, ingest what is stale, retrain, evaluate, and print the path of the report.

    With --batch: sync and ingest those batches, no more.
    """
    workspace = workspace_of(config, store, artifacts, **({"force": True} if force else {}))
    from pipelines.cli.runs import RunError, run_all
    from stages.workspace import SettingsError

    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_once())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("phasewatch").setLevel(
        logging.INFO if sys.stderr.isatty() else logging.WARNING
    )
    ingest_only = ingest_only or bool(batch)
    with failing({SettingsError: USAGE, RunError: FAILED}):
        ran = run_all(workspace, recipe or None, batches=batch or None, ingest_only=ingest_only)
    page = None if ingest_only else str(workspace.report_page)
    if as_json:
        say_json({
            "store": str(workspace.store_path),
            "artifacts": str(workspace.artifacts_path),
            "runs": [asdict(one) for one in ran],
            "report": page,
        })  # fmt: skip
    elif page is not None:
        typer.echo(page)


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
    as_json: JsonOption = False,
) -> None:
    """Register the store's batches with Dagster; `make ui` does this first."""
    workspace = workspace_of(config, store, artifacts)
    from pipelines.cli.runs import sync_only
    from stages.workspace import SettingsError

    with failing({SettingsError: USAGE}):
        synced = sync_only(workspace)
    batches = list(synced.listing.batches)
    typer.echo(
        f"{len(batches)} batches, {len(synced.new)} new, {len(synced.stale)} to ingest", err=True
    )
    if as_json:
        say_json({
            "store": str(workspace.store_path),
            "batches": batches,
            "new": synced.new,
            "stale": synced.stale,
            "differences": list(synced.listing.differences),
        })  # fmt: skip


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

    with failing({StoreError: USAGE}):
        listing = list_store(store)
        chosen = listing.episodes if episode is None else [listing.find(episode)]
    records = list(_sweep(chosen, ValidationPolicy()))
    verdicts = [record.verdict for record in records]
    document: dict[str, Any] = {"store": str(store), "differences": list(listing.differences)}
    lines = list(listing.differences) if episode is None else []
    if policy is None:
        document["episodes"] = [record.as_row() for record in records]
        lines += [record.line for record in records if record.reasons]
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
    from pydantic import ValidationError

    from episodes.settings import settings_errors
    from episodes.validation import ValidationPolicy

    try:
        return ValidationPolicy(**(yaml.safe_load(path.read_text()) or {}))
    except OSError as error:
        fail(f"{path}: {error.strerror}", USAGE)
    except ValidationError as error:
        fail(
            "\n".join(f"{path}: {line}" for line in settings_errors(error, ValidationPolicy)), USAGE
        )
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        fail(f"{path}: not a validation policy: {error}", USAGE)


def _judged(episode: str, store: Path, *, anyway: bool) -> tuple[Record, Episode, Extracted]:
    """Judge and extract an episode, named by id or path; the verdict is said on stderr.

    Leaves with REJECTED and the reasons where it cannot be read, or is not usable and that was not
    allowed for.
    """
    from episodes.format import ARCHIVE_SUFFIX
    from episodes.store import StoreError, find_archive, list_store
    from episodes.validation import ValidationPolicy
    from episodes.validation import validate as judge
    from features.alignment import AlignmentError
    from features.extraction import extract as extract_episode
    from features.registry import LAYOUT

    with failing({StoreError: USAGE}):
        try:
            stored = (
                find_archive(Path(episode))
                if episode.endswith(ARCHIVE_SUFFIX)
                else list_store(store).find(episode)
            )
        except OSError as error:
            fail(f"{episode}: {error.strerror}", USAGE)
    record, read = judge(stored, ValidationPolicy(), LAYOUT.fields)
    if read is None or not (record.usable or anyway):
        hint = "" if read is None else "\nIt is left alone; --anyway goes on all the same."
        fail(record.line + hint, REJECTED, **_verdict(record))
    typer.echo(record.line, err=True)
    try:
        return record, read, extract_episode(read, LAYOUT)
    except AlignmentError as error:
        fail(f"{stored.path}: {error}", REJECTED, **_verdict(record))


def _verdict(record: Record) -> dict[str, Any]:
    """How an episode was judged, as every ``--json`` tells it."""
    return {
        "episode": record.episode_id,
        "verdict": record.verdict,
        "reasons": list(record.reasons),
        "details": list(record.details),
    }


@app.command()
def extract(
    episode: EpisodeArgument,
    out: Annotated[Path, typer.Option(help="The .npz to write.")],
    store: StoreOption = DEFAULT_STORE,
    anyway: AnywayOption = False,
    as_json: JsonOption = False,
) -> None:
    """Extract one episode without shards: series, windows and features (docs/data-format.md)."""
    import numpy as np

    from features.registry import LAYOUT

    record, read, extracted = _judged(episode, store, anyway=anyway)
    malformed = {name: rows.n_malformed for name, rows in read.sources.items()}
    for name, n_rows in malformed.items():
        if n_rows:
            typer.echo(f"{name}: {n_rows} malformed rows skipped", err=True)
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
    if as_json:
        say_json({
            **_verdict(record),
            "path": str(out),
            "windows": len(windows),
            "bins": len(extracted.series),
            "malformed_rows": malformed,
        })  # fmt: skip


@app.command()
def predict(
    episode: EpisodeArgument,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Score with this .ckpt.json, its sidecar beside it; default: the champion."
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    artifacts: RunArtifactsOption = None,
    anyway: AnywayOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score one episode, window by window, with the champion or with a checkpoint."""
    from evaluation.detection import alarm_score
    from features.registry import LAYOUT

    path, loaded, known = _load(checkpoint, config, artifacts)
    record, _, extracted = _judged(episode, store, anyway=anyway)
    proba = loaded.predict_episode(extracted.series, extracted.features, LAYOUT)
    phases, windows = LAYOUT.phases, extracted.windows
    seen = None if known is None else record.episode_id in known
    rows = [
        {
            "start_s": float(start),
            "phase": phases[int(p.argmax())],
            "probabilities": {
                phase: round(float(v), 6) for phase, v in zip(phases, p, strict=True)
            },
            "labelled": str(label),
            "alarm_score": round(float(score), 6),
        }
        for start, label, p, score in zip(
            windows.start_s, windows.label, proba, alarm_score(proba, phases), strict=True
        )
    ]
    if as_json:
        say_json({
            **_verdict(record),
            "model": loaded.variant.name,
            "checkpoint": str(path),
            "checkpoint_id": loaded.artifact_id,
            "seen_in_training": seen,
            "windows": rows,
        })  # fmt: skip
        return
    typer.echo(f"scored by {loaded.variant.name}, {path}", err=True)
    if seen:
        typer.echo("it was trained on this episode: the answer proves nothing", err=True)
    say_table(("start", "phase", "probability", "labelled", "alarm score"), [
        (f"{row['start_s']:6.1f} s", row["phase"],
         f"{row['probabilities'][row['phase']]:.2f}", row["labelled"], f"{row['alarm_score']:.4f}")
        for row in rows
    ])  # fmt: skip


def _load(
    path: Path | None, config: Path | None, artifacts: Path | None
) -> tuple[Path, Checkpoint, set[str] | None]:
    """The checkpoint at a path, or without one the champion's; leaves where it does not load.

    With it the episodes that it was trained or validated on, None where that is not known.
    """
    from champion.history import (
        ChampionError,
        kept_path,
        load_kept,
        read_champion,
        read_training,
    )
    from features import registry
    from models.checkpoint import CheckpointError, ContractMismatchError, load_checkpoint

    layout = registry.LAYOUT
    with failing({ContractMismatchError: MISMATCH, CheckpointError: FAILED, ChampionError: FAILED}):
        if path is not None:
            return path, load_checkpoint(existing_file(path), layout), None
        workspace = workspace_of(config, None, artifacts, made=True)
        folder = workspace.champion_folder
        champion = read_champion(folder)
        if champion is None:
            fail(
                f"{folder}: there is no champion to score with. Promote a trained model "
                "(phasewatch promote MODEL), or name a checkpoint: --checkpoint PATH"
            )
        known = None
        with suppress(ChampionError):  # the champion scores all the same
            known = set(read_training(folder, champion)["episode_id"])
        return kept_path(folder, champion), load_kept(folder, champion, layout), known


@app.command()
def doctor(
    config: ConfigOption = None,
    store: RunStoreOption = None,
    artifacts: RunArtifactsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, which store it is, what is stale; problems first, exit 1 if any."""
    from pipelines.cli.doctor import examine

    findings = examine(lambda: workspace_of(config, store, artifacts))
    document = findings.as_document()
    if as_json:
        say_json(document)
    else:
        for found in findings.problems:
            typer.echo(f"problem: {found['problem']}\n  remedy: {found['remedy']}")
        typer.echo("" if findings.problems else "no problem found\n")
        said, rows = "", []
        for name, section in findings.sections.items():
            for key, value in section.items():
                for i, line in enumerate(_lines(value)):
                    rows.append(("" if name == said else name, "" if i else key, line))
                    said = name
        say_table(("about", "what", "found"), rows)
    raise typer.Exit(FAILED if findings.problems else OK)


def _lines(value: Any) -> list[str]:
    """What was found in words, an item a line; of many the first few."""
    if isinstance(value, dict):
        return [f"{name}: {item or 'absent'}" for name, item in value.items()] or ["none"]
    if isinstance(value, list):
        lines = [" ".join(i.values()) if isinstance(i, dict) else str(i) for i in value]
        more = len(lines) - _SHOWN
        return [*lines[:_SHOWN], *([f"and {more} more"] if more > 0 else [])] or ["none"]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return ["none" if value is None else str(value)]


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
        with suppress(typer.Exit):
            fail(_unforeseen(error))
        sys.exit(FAILED)


def _unforeseen(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; `phasewatch doctor` says how to get it"
    return (
        f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}\nThis was not "
        f"foreseen; `phasewatch --debug {' '.join(sys.argv[1:])}` shows where it happened."
    )


if __name__ == "__main__":
    main()
