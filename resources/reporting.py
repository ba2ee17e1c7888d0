"""Progress and metadata, said the same way by every asset."""

import logging
import time
from collections.abc import Callable
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

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


_COLUMNS = {
    "episode_id": "ULID of the episode; sorts by time",
    "host_id": "lab host that recorded it",
    "batch": "host and UTC day",
    "split": "train, val or test",
    "verdict": "accepted, degraded, rejected or errored",
    "reasons": "codes behind the verdict; `details` says each in words",
    "window": "position of the window in its episode",
    "start_s": "start of the window, seconds after the first label",
    "label": "phase at the centre of the window",
    "actual": "phase at the centre of the window",
    "labelled": "phase at the centre of the window",
    "predicted": "most probable phase",
    "purity": "share of the window that has its label's phase",
    "onset_s": "start of the attack, seconds after the first label; null: there is none",
    "seen_in_training": "the checkpoint was trained or validated on this episode",
    "checkpoint_id": "hash of the checkpoint's contents",
    "shard": "number of the shard that holds the window",
    "first_bin": "row of the tensor shard at which the window begins",
    "row": "row of the feature shard",
}


def _described(column: str, layout: Layout) -> str | None:
    """What a column of any of our tables holds."""
    name, _, statistic = column.rpartition(".")
    for channel in layout.channels:
        if channel.name == name:
            return f"{statistic} over the window, {channel.unit}"
    prefix, _, rest = column.partition("_")
    if prefix == "p":
        return f"probability of {rest}"
    if prefix == "coverage":
        return f"share of values that {rest} has"
    return _COLUMNS.get(column)


def _table_schema(manifest: Manifest, layout: Layout) -> dict[str, Any]:
    tables = sorted(role for role in manifest.files if manifest.path(role).suffix == ".parquet")
    if not tables:
        return {}
    schema = pq.read_schema(manifest.path(tables[0]))
    columns = [
        dg.TableColumn(field.name, str(field.type), _described(field.name, layout))
        for field in schema
    ]
    return {"dagster/column_schema": dg.TableSchema(columns)}


def artefact_metadata(
    manifest: Manifest, layout: Layout, *, reused: bool, watch: Stopwatch
) -> dict[str, Any]:
    """What every asset says of the artefact it made or found; of tables, their columns too."""
    return _table_schema(manifest, layout) | {
        "reused": reused,
        "fingerprint": manifest.fingerprint,
        "seconds": watch.seconds,
        "bytes": manifest.n_bytes,
        "path": str(manifest.folder),
    }
