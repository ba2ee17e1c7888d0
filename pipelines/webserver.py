"""Dagster's web server behind our guard: ``phasewatch ui`` starts it in place of Dagster's own.

Takes the options of ``dagster-webserver``. Whatever this process serves, it serves through the
guard, so that nothing depends on how Dagster builds its application.
"""

from __future__ import annotations

import os
from typing import Any

import uvicorn
from dagster_webserver.cli import dagster_webserver

from hub.guard import Guard
from pipelines.cli.ui import HOSTS, TOKEN


def guard_all() -> None:
    """Put every application that uvicorn is given from now on behind the guard."""
    configure = uvicorn.Config.__init__

    def guarded(self: uvicorn.Config, app: Any, *args: Any, **options: Any) -> None:
        hosts = os.environ.get(HOSTS, "").split()
        token = os.environ.get(TOKEN) or None
        behind = Guard(app, hosts=hosts, token=token, graphql="graphql")
        configure(self, behind, *args, **options)

    uvicorn.Config.__init__ = guarded  # type: ignore[method-assign]


if __name__ == "__main__":
    guard_all()
    dagster_webserver()
