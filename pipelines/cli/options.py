"""Options and arguments that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", envvar="PHASEWATCH_CONFIG",
        help="Run configuration (YAML), such as config/default.yaml.",
    ),
]  # fmt: skip
Store = Annotated[
    Path | None,
    typer.Option(
        "--store", metavar="FOLDER", envvar="PHASEWATCH_STORE",
        help="Episode store (index.jsonl and episodes/); overrides the configuration.",
    ),
]  # fmt: skip
Artifacts = Annotated[
    Path | None,
    typer.Option(
        "--artifacts", metavar="FOLDER", envvar="PHASEWATCH_ARTIFACTS",
        help="Folder for all output; overrides the configuration.",
    ),
]  # fmt: skip
Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe", metavar="NAME", help="host, sample, time or session; repeat for several."
    ),
]
Episode = Annotated[
    str, typer.Argument(metavar="EPISODE", help="An episode's id, or the path of a .tar.zst.")
]
EPISODES = "Ids, paths of .tar.zst files, batches of the store, or folders of archives."
"""Help of an argument that ``pipelines.cli.episodes`` resolves."""
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Continue if the episode is rejected or errored.")
]
RequireSignature = Annotated[
    bool,
    typer.Option("--require-signature", help="Refuse what is not signed by a trusted key."),
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Reason, kept in the history.")]
