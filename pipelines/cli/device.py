"""The commands ``bundle`` and ``live``: a checkpoint in one folder, and scoring with it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config.messages import OPTIONS, address_of, addressed, variable_of
from pipelines.cli import options
from pipelines.cli.console import (
    FAILED,
    OK,
    REJECTED,
    USAGE,
    CommandError,
    Document,
    Table,
    existing_checkpoint,
    fail,
    note,
    workspace_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from episodes.store import StoredEpisode
    from live.bundle import Bundle
    from live.cli import RecordedEpisode
    from stages.device_bundle import Parity
    from stages.workspace import Workspace


@dataclass(frozen=True)
class BundleDocument(Document):
    """A bundle that was written and verified."""

    bundle: Bundle
    out: Path
    n_bytes: int
    parity: dict[str, Parity]

    @property
    def runtime(self) -> str:
        return self.bundle.head["runtime"]["kind"]

    def as_json(self) -> dict[str, Any]:
        return {
            "bundle_id": self.bundle.id,
            "model": self.bundle.variant,
            "checkpoint_id": self.bundle.head["checkpoint_id"],
            "out": str(self.out),
            "n_bytes": self.n_bytes,
            "runtime": self.runtime,
            "parity": {recipe: asdict(each) for recipe, each in self.parity.items()},
        }

    def text(self) -> Iterator[str | Table]:
        size = f"{self.n_bytes / 1e6:.1f} MB"
        yield f"{self.bundle.variant}, {size}, runtime {self.runtime}: {self.out}"
        yield Table(
            ("recipe", "test windows", "largest difference of a probability"),
            [(r, str(p.n_windows), f"{p.proba:.1e}") for r, p in self.parity.items()],
        )
        yield f"bundle {self.bundle.id}"
        yield f"Score with it: phasewatch live {self.out} --this-machine"


def bundle(
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where to write it; made if missing.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Bundle this .ckpt.json; default: the champion."),
    ] = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> BundleDocument:
    """Write a folder for scoring on a device.

    The bundle is first compared with its checkpoint on every test window. docs/device.md says how
    to run it.
    """
    from live.bundle import HEAD_FILE, load_bundle
    from stages import device_bundle as core
    from stages.project import Project
    from stages.scoring import scorer_of

    workspace = workspace_of(config, store, artifacts, must_exist=True)
    if (
        out.exists()
        and not (out / HEAD_FILE).is_file()
        and (not out.is_dir() or any(out.iterdir()))
    ):
        fail(f"--out {out}: must be a new folder, an empty one or an existing bundle", USAGE)
    project = Project(workspace)
    try:
        scorer = scorer_of(project, checkpoint and existing_checkpoint(checkpoint))
        files = core.bundle_files(scorer)
    except core.OracleError as error:
        fail(str(error), USAGE)
    note(f"comparing {scorer.name} with its bundle on every test window")
    made = core.bundle_in_memory(files, workspace.layout)
    parity = core.check_parity(project, made, scorer.checkpoint)
    wrong = [recipe for recipe, each in parity.items() if not each.holds]
    if wrong:
        fail(
            f"the bundle gives different probabilities from {scorer.name} on recipe "
            f"{', '.join(wrong)}; nothing is written",
            FAILED,
        )
    core.write_bundle(out, files)
    n_bytes = sum(map(len, files.values()))
    return BundleDocument(load_bundle(out, workspace.layout), out, n_bytes, parity)


def live(context: typer.Context) -> None:
    """Score a machine while it runs, or replay a recorded episode."""
    from live.cli import main

    recordings = _ReplayedEpisodes()
    words = ["live", *context.args]
    given = _given()
    if "config" in given and workspace_of(given["config"], None, None).require_signatures:
        words.append("--require-signature")
    code = main(words, resolve=recordings, prog="phasewatch", complete=_complete)
    raise typer.Exit(code or recordings.code)


def enrol(context: typer.Context) -> None:
    """Record this machine while it is clean, for a few minutes."""
    from live.cli import main

    raise typer.Exit(main(["enrol", *context.args], prog="phasewatch", complete=_complete))


def _given() -> dict[str, Path]:
    """What the environment says, as for the other commands; the device's options have no store."""
    values = {name: os.environ.get(variable_of(name)) for name in OPTIONS}
    return {name: Path(value) for name, value in values.items() if value}


def _complete(message: str) -> str:
    return addressed(message, address_of(_given()))


class _ReplayedEpisodes:
    """The recordings of an id, an archive, a batch or a folder of archives, or of unpacked ones.

    Those that are rejected are left out.
    """

    code = OK  # REJECTED if an episode was named that is not replayed

    def __call__(self, name: str) -> Iterator[RecordedEpisode]:
        from episodes.format import ARCHIVE_SUFFIX
        from live.cli import UsageError, recordings
        from pipelines.cli.episodes import episodes_of

        if Path(name).is_dir() and not any(Path(name).rglob(f"*{ARCHIVE_SUFFIX}")):
            return recordings(name)
        given = _given()
        workspace = workspace_of(*map(given.get, ("config", "store", "artifacts")))
        try:
            chosen = episodes_of(workspace, name)
        except CommandError as error:
            raise UsageError(str(error)) from None
        return self._usable(name, chosen, workspace)

    def _usable(
        self, name: str, chosen: Sequence[StoredEpisode], workspace: Workspace
    ) -> Iterator[RecordedEpisode]:
        from episodes.validation import validate
        from live.cli import NO_HOST, RecordedEpisode

        left_out: Counter[str] = Counter()
        for stored in chosen:
            record, episode = validate(stored, workspace.validation, workspace.layout.fields)
            if episode is not None and record.usable:
                host = record.host_id or NO_HOST
                yield RecordedEpisode(stored.episode_id, host, dict(episode.members))
                continue
            left_out[record.verdict] += 1
            self.code = REJECTED
            if len(chosen) == 1:
                note(f"not replayed: {record.line}")
        if left_out and len(chosen) > 1:
            counts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(left_out.items()))
            why = _complete("phasewatch validate shows why")
            skipped = f"{left_out.total()} of {len(chosen)} episodes are not replayed"
            note(f"{name}: {skipped}: {counts}; {why}")
