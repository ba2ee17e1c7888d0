"""The commands ``produce …``: read artifacts or the store, and publish to a hub."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from pipelines.cli import options, serving
from pipelines.cli.console import (
    USAGE,
    Command,
    Document,
    existing_file,
    exit_code_of,
    fail,
    log_to_stderr,
    note,
    one_of,
    with_json,
    workspace_of,
)
from pipelines.cli.hub import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hub.events import Event
    from stages.project import Project
    from stages.scoring import Scorer
    from stages.workspace import Workspace

To = Annotated[str, typer.Option("--to", metavar="URL", help="The hub.")]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File with the hub's token, if it needs one.")
]
Once = Annotated[bool, typer.Option("--once", help="Publish once and end; the default.")]
Every = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=1, help="Publish every so many seconds."),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Score with this .ckpt.json; default: the champion."),
]
HUB = "http://127.0.0.1:8447"

produce_app = typer.Typer(
    no_args_is_help=True, help="Publish what artifacts and the store say to a hub."
)


@dataclass(frozen=True)
class Produced(Document):
    """What a producer published."""

    producer: str
    to: str
    events: int

    def text(self) -> Iterator[str]:
        yield f"{self.events} events to {self.to}"


@dataclass(frozen=True)
class Plan:
    """Where a producer publishes, and how often."""

    to: str
    token: str | None
    every: float | None

    def run(
        self,
        producer: str,
        workspace: Workspace,
        events: Callable[[Project], Iterator[Event]],
        *,
        one_by_one: bool = False,
    ) -> Produced:
        """Publish once, or until Ctrl-C; what fails after the first time is said and tried anew."""
        from hub.client import BATCH, Publisher
        from stages.project import Project

        log_to_stderr()
        publisher = Publisher(self.to, self.token)
        published, again = 0, False
        while True:
            try:
                found = events(Project(workspace))
                published += publisher.publish(found, 1 if one_by_one else BATCH)
            except Exception as error:
                if not again or exit_code_of(error) is None:
                    raise
                note(workspace.addressed(str(error)))
            if self.every is None:
                return Produced(producer, self.to, published)
            again = True
            time.sleep(self.every)


def _plan(to: str, token_file: Path | None, once: bool, every: float | None) -> Plan:
    if once and every is not None:
        fail("--once and --every exclude each other; give one of them", USAGE)
    parts = urlsplit(to)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        fail(f"--to must be the address of a hub, such as {HUB}, got {to!r}", USAGE)
    return Plan(to, serving.read_token(token_file, TOKEN), every)


@produce_app.command(cls=Command)
@with_json
def replay(
    episodes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EPISODE…]",
            help="Ids, or paths of a .tar.zst; default: the test episodes of its recipe.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    speed: Annotated[
        float,
        typer.Option(metavar="N", min=0, help="Times the pace of the recording; 0: all at once."),
    ] = 0.0,
    to: To = HUB,
    token_file: TokenFile = None,
    once: Once = False,
    every: Every = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> Produced:
    """Publish recorded episodes: predicted beside actual."""
    plan = _plan(to, token_file, once, every)
    workspace = workspace_of(config, store, artifacts, must_exist=True)
    from hub import producers
    from pipelines.cli.episodes import stored_episode

    chosen = [stored_episode(workspace, name) for name in episodes or ()]

    def events(project: Project) -> Iterator[Event]:
        return producers.replay(_scorer(project, checkpoint), chosen, speed=speed)

    return plan.run("replay", workspace, events, one_by_one=speed > 0)


@produce_app.command(cls=Command)
@with_json
def metrics(
    to: To = HUB,
    token_file: TokenFile = None,
    once: Once = False,
    every: Every = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> Produced:
    """Publish macro F1 of every report and baseline."""
    plan = _plan(to, token_file, once, every)
    workspace = workspace_of(config, store, artifacts, must_exist=True)
    from hub import producers

    return plan.run("metrics", workspace, producers.metrics)


@produce_app.command(cls=Command)
@with_json
def perf(
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose checkpoints: host, sample, time or session; default: the champion's.",
        ),
    ] = None,
    to: To = HUB,
    token_file: TokenFile = None,
    once: Once = False,
    every: Every = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> Produced:
    """Measure and publish the latency of each model."""
    plan = _plan(to, token_file, once, every)
    from datasets.splits import RECIPES

    if recipe is not None:
        one_of("recipe", recipe, RECIPES)
    workspace = workspace_of(config, store, artifacts, must_exist=True)
    from hub import producers

    return plan.run("perf", workspace, lambda project: producers.perf(project, recipe))


@produce_app.command(cls=Command)
@with_json
def profiles(
    to: To = HUB,
    token_file: TokenFile = None,
    once: Once = False,
    every: Every = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> Produced:
    """Publish how signals run through attacks."""
    plan = _plan(to, token_file, once, every)
    workspace = workspace_of(config, store, artifacts)
    from hub import producers

    return plan.run("profiles", workspace, producers.profiles)


@produce_app.command(cls=Command)
@with_json
def embedding(
    checkpoint: Checkpoint = None,
    windows: Annotated[
        int, typer.Option(metavar="N", min=1, help="At most so many windows, drawn at random.")
    ] = 1000,
    to: To = HUB,
    token_file: TokenFile = None,
    once: Once = False,
    every: Every = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> Produced:
    """Publish test windows along two principal axes."""
    plan = _plan(to, token_file, once, every)
    workspace = workspace_of(config, store, artifacts, must_exist=True)
    from hub import producers

    def events(project: Project) -> Iterator[Event]:
        return producers.embedding(_scorer(project, checkpoint), windows)

    return plan.run("embedding", workspace, events)


@produce_app.command(cls=Command)
@with_json
def phases(
    to: To = HUB,
    token_file: TokenFile = None,
    once: Once = False,
    every: Every = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> Produced:
    """Publish how many windows are in each phase."""
    plan = _plan(to, token_file, once, every)
    workspace = workspace_of(config, store, artifacts)
    from hub import producers

    return plan.run("phases", workspace, producers.phases)


def _scorer(project: Project, checkpoint: Path | None) -> Scorer:
    from stages.scoring import scorer_of

    return scorer_of(project, checkpoint and existing_file(checkpoint))
