"""The commands ``produce …``: read artifacts or the store, and publish to a hub."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config.progress import EVERY_S
from hub.client import BATCH, PORT, Publisher
from live.outputs import is_hub_address
from pipelines.cli import options, serving
from pipelines.cli.console import (
    USAGE,
    Command,
    Document,
    existing_checkpoint,
    exit_code_of,
    fail,
    log_to_stderr,
    note,
    one_of,
    set_parameters,
    with_json,
    workspace_of,
)
from pipelines.cli.hub import TOKEN

if TYPE_CHECKING:
    from hub.events import Event
    from stages.project import Project
    from stages.workspace import Workspace

To = Annotated[str, typer.Option("--to", metavar="URL", help="The hub.")]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File with the hub's token, if it needs one.")
]
Once = Annotated[bool, typer.Option("--once", help="Publish once and end; the default.")]
Every = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=1, help="Publish again at this interval."),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Score with this .ckpt.json; default: the champion."),
]
MeasuredRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="Measure the latency of this recipe's checkpoints: host, sample, time or session; "
        "default: the recipe of the champion's checkpoint.",
    ),
]
HUB = f"http://127.0.0.1:{PORT}"
Events = Callable[[Any], Iterator[Any]]
"""What a producer publishes of a ``Project``."""

log = logging.getLogger("phasewatch")

produce_app = typer.Typer(no_args_is_help=True, help="Publish figures and recordings to a hub.")


@dataclass(frozen=True)
class ProduceDocument(Document):
    """What a producer published."""

    producer: str
    to: str
    events: int

    def text(self) -> Iterator[str]:
        yield f"{self.producer}: {self.events:,} events to {self.to}"


def _producer(*, reads_artifacts: bool = True) -> Callable[[Callable[..., Events]], None]:
    """Makes a command of a function that has a producer's own options and returns its events.

    The options that all producers share are added, and the function's name is the command's.
    """

    def add(function: Callable[..., Events]) -> None:
        name = function.__name__.removesuffix("_")  # `all` is Python's own

        def run(
            to: To = HUB,
            token_file: TokenFile = None,
            once: Once = False,
            every: Every = None,
            config: options.Config = None,
            store: options.Store = None,
            artifacts: options.Artifacts = None,
            **own: Any,
        ) -> ProduceDocument:
            if once and every is not None:
                fail("--once and --every exclude each other; give one of them", USAGE)
            if not is_hub_address(to):
                fail(f"--to must be the address of a hub, such as {HUB}, got {to!r}", USAGE)
            token = serving.read_token(token_file, TOKEN)
            workspace = workspace_of(config, store, artifacts, must_exist=reads_artifacts)
            events = function(**own)
            batch = 1 if own.get("speed") else None  # at a pace they go out one by one
            published = _publish(workspace, _told(events, name), to, token, every, batch)
            return ProduceDocument(name, to, published)

        *shared, _ = inspect.signature(run, eval_str=True).parameters.values()
        wraps(function)(run)
        set_parameters(run, function, shared)
        produce_app.command(name, cls=Command)(with_json(run))

    return add


def _told(events: Events, producer: str) -> Events:
    """The events, with a line now and then on how many there were."""

    def told(project: Project) -> Iterator[Event]:
        said = time.monotonic()
        for n, event in enumerate(events(project), start=1):
            yield event
            if time.monotonic() - said >= EVERY_S:
                said = time.monotonic()
                log.info("%s: events so far: %s", producer, f"{n:,}", extra={"progress": True})

    return told


def _publish(
    workspace: Workspace,
    events: Events,
    to: str,
    token: str | None,
    every: float | None,
    batch: int | None,
) -> int:
    """Publish once, or until Ctrl-C; what fails after the first time is said and tried anew."""
    from stages.project import Project

    log_to_stderr()
    publisher = Publisher(to, token)
    published, again = 0, False
    while True:
        try:
            publisher.check()  # before the work that it would be in vain for
            published += publisher.publish(events(Project(workspace)), batch or BATCH)
        except Exception as error:
            if not again or exit_code_of(error) is None:
                raise
            note(workspace.addressed(str(error)))
        if every is None:
            return published
        again = True
        time.sleep(every)


@_producer()
def replay(
    episodes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EPISODE…]",
            help="Ids, or paths of .tar.zst files; default: the test episodes of the checkpoint's "
            "recipe.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    speed: Annotated[
        float,
        typer.Option(metavar="N", min=0, help="Speed, relative to the recording; 0: all at once."),
    ] = 0.0,
) -> Events:
    """Publish recorded episodes: predicted and actual phases."""
    from hub import producers
    from pipelines.cli.episodes import stored_episode
    from stages.scoring import scorer_of

    def events(project: Project) -> Iterator[Event]:
        chosen = [stored_episode(project.workspace, name) for name in episodes or ()]
        scorer = scorer_of(project, checkpoint and existing_checkpoint(checkpoint))
        return producers.replay(scorer, chosen, speed=speed)

    return events


@_producer()
def metrics() -> Events:
    """Publish macro F1 of every report and baseline."""
    from hub import producers

    return producers.metrics


@_producer()
def perf(recipe: MeasuredRecipe = None) -> Events:
    """Measure and publish the latency of each model."""
    from hub import producers

    _check_recipe(recipe)
    return lambda project: producers.perf(project, recipe)


def _check_recipe(recipe: str | None) -> None:
    from datasets.splits import RECIPES

    if recipe is not None:
        one_of("recipe", recipe, RECIPES)


@_producer(reads_artifacts=False)
def profiles() -> Events:
    """Publish how channels change during attacks."""
    from hub import producers

    return producers.profiles


@_producer()
def embedding(
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Use the axes that are kept in this .ckpt.json; default: the champion's.",
        ),
    ] = None,
    windows: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Maximum number of windows, drawn at random."),
    ] = 1000,
) -> Events:
    """Publish where test windows lie on two principal axes."""
    from hub import producers
    from stages.scoring import scorer_of

    return lambda project: producers.embedding(
        scorer_of(project, checkpoint and existing_checkpoint(checkpoint)), windows
    )


@_producer(reads_artifacts=False)
def phases() -> Events:
    """Publish how many windows are in each phase."""
    from hub import producers

    return producers.phases


@_producer()
def all_(recipe: MeasuredRecipe = None) -> Events:
    """Publish what every tab of the live page shows, except Live."""
    from hub import producers
    from stages.scoring import scorer_of

    _check_recipe(recipe)

    def events(project: Project) -> Iterator[Event]:
        scorer = scorer_of(project, None)  # first: without a champion nothing is published
        yield from producers.metrics(project)
        yield from producers.replay(scorer)
        yield from producers.embedding(scorer)
        yield from producers.perf(project, recipe)
        yield from producers.phases(project)  # these two read the whole store
        yield from producers.profiles(project)

    return events
