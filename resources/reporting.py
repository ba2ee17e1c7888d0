"""Progress and metadata, said the same way by every asset."""

import logging
import time
from collections.abc import Callable
from typing import Any

import dagster as dg

from features.contract import contract_hashes
from features.manifest import Manifest
from features.registry import InputKind, Layout

log = logging.getLogger("phasewatch")

_EVERY_S = 2.0


def reporter(context: dg.AssetExecutionContext, what: str) -> Callable[[int, int, str], None]:
    """A progress callback: a line at once, then at most one every two seconds, and the last."""
    last = [0.0]

    def report(done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if done < total and now - last[0] < _EVERY_S:
            return
        last[0] = now
        say(context, f"{what}: {done}/{total} {text}")

    return report


def say(context: dg.AssetExecutionContext, line: str) -> None:
    """One line to whoever watches: the run's log in the UI, and the terminal."""
    context.log.info(line)
    log.info(line)


def layout_metadata(layout: Layout, kind: InputKind | None = None) -> dict[str, Any]:
    """Schema and contract hash: of one kind of input, or of both where an asset carries both."""
    contracts = contract_hashes(layout)
    if kind is not None:
        return {"schema_hash": layout.schema_hash(kind), "contract_hash": contracts[kind]}
    return {
        "schema_hash": " ".join(f"{k}:{layout.schema_hash(k)}" for k in contracts),
        "contract_hash": " ".join(f"{k}:{value}" for k, value in contracts.items()),
    }


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)


def artefact_metadata(manifest: Manifest, *, reused: bool, watch: Stopwatch) -> dict[str, Any]:
    """What every asset says of the artefact it made or found."""
    return {
        "reused": reused,
        "fingerprint": manifest.fingerprint,
        "seconds": watch.seconds,
        "bytes": manifest.n_bytes,
        "path": str(manifest.folder),
    }
