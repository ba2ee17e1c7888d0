"""The command ``simulate``: a corpus of any size from recorded episodes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from config.paths import base_folder
from config.progress import Meter
from pipelines.cli.console import USAGE, Document, fail, log_to_stderr, workspace_of


@dataclass(frozen=True)
class SimulateDocument(Document):
    """What was written to a simulated store."""

    store: str
    episodes: int
    kept: int
    bytes_written: int
    windows: int | None
    seconds: float

    def text(self) -> Iterator[str]:
        yield (
            f"{self.store}: {self.episodes:,} episodes written, {self.kept:,} already there, "
            f"{self.bytes_written / 1e6:,.0f} MB, {self.seconds:.0f} s"
        )
        if self.windows is not None:
            yield f"{self.windows:,} windows written to shards"


# Long, because every option is declared here.
def simulate(
    store: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Where to write: empty, or a simulated store."),
    ],
    episodes: Annotated[int, typer.Option(metavar="N", min=1, help="How many to make.")],
    days: Annotated[int, typer.Option(metavar="N", min=1, help="UTC days that they cover.")],
    hosts: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Hosts that record them. Default: 12; with --append, as in the existing store.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Each seed gives different episodes. Default: 0; with --append, as in the "
            "existing store.",
        ),
    ] = None,
    defects: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            help="Share of defective episodes. Default: 0.02; with --append, as in the existing "
            "store.",
        ),
    ] = None,
    first_day: Annotated[
        str | None,
        typer.Option(
            metavar="DAY",
            help="First day. Default: 2027-01-01, or, with --append, the day after the last.",
        ),
    ] = None,
    longest: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", min=20, help="Crop longer episodes to this length."),
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the shards that ingest would make to this artifacts folder; the store gets "
            "placeholders instead of archives.",
        ),
    ] = None,
    append: Annotated[
        bool,
        typer.Option("--append", help="Add to a simulated store; default: after its last day."),
    ] = False,
    parents: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="The recorded store; default: embedded."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Number of processes. Default: one per core; fewer if there are few episodes.",
        ),
    ] = None,
) -> SimulateDocument:
    """Make a store of simulated episodes.

    They are made from recorded ones: cropped, stretched, rescaled, on other hosts and days. Each is
    marked as synthetic and names its parent. A second call finishes what was interrupted.
    """
    import time
    from datetime import date

    from simulation.corpus import CorpusRequest, open_corpus, refuse_recorded, write_corpus
    from simulation.direct import write_shards

    try:
        first_day = date.fromisoformat(first_day).isoformat() if first_day else None
    except ValueError:
        fail(f"--first-day must be a day such as 2027-01-01, got {first_day!r}", USAGE)
    log_to_stderr()
    recorded = parents or base_folder() / "data" / "store"
    wanted = CorpusRequest(
        episodes, days, hosts, seed, defects, first_day, longest, placeholders=shards is not None
    )
    windows = None
    try:
        corpus = open_corpus(store, recorded, wanted, append=append)
        if shards:
            refuse_recorded(shards, recorded)
        workspace = workspace_of(None, store, shards) if shards else None
        began = time.monotonic()
        made = write_corpus(corpus, processes, _progress("simulate"), log_to_stderr)
        if workspace:
            progress = _progress("simulate shards")
            windows = write_shards(corpus, workspace, processes, progress, log_to_stderr)
    except OSError as error:
        fail(f"{error.filename or store}: not written ({error.strerror})", USAGE)
    return SimulateDocument(
        store=str(store),
        episodes=made.episodes,
        kept=made.kept,
        bytes_written=made.n_bytes,
        windows=windows,
        seconds=round(time.monotonic() - began, 3),
    )


def _progress(what: str) -> Meter:
    def say(line: str, *, last: bool) -> None:
        logging.getLogger("phasewatch").info(line, extra={"progress": True, "last": last})

    return Meter(what, say)
