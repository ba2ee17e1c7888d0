"""What Dagster shows of an artifact: its facts, its contract, the columns of its tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from features.contract import contract_hashes
from features.registry import InputKind, Layout
from stages.stage import FactTable, Markdown


def as_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as metadata values: lists and dicts as JSON, ``differences`` as a list to read."""
    return {name: _value(name, fact) for name, fact in facts.items() if not _is_nothing(fact)}


def _is_nothing(fact: Any) -> bool:
    return fact is None or (isinstance(fact, FactTable) and not fact.rows)  # Dagster takes no such


def _value(name: str, fact: Any) -> Any:
    if isinstance(fact, Markdown):
        return dg.MetadataValue.md(fact.text)
    if isinstance(fact, FactTable):
        return dg.MetadataValue.table([dg.TableRecord(row) for row in fact.rows])
    if isinstance(fact, Path):
        return dg.MetadataValue.path(str(fact))
    if name == "differences":
        return dg.MetadataValue.md("\n".join(f"- {line}" for line in fact))
    return dg.MetadataValue.json(fact) if isinstance(fact, dict | list) else fact


def layout_metadata(layout: Layout, kind: InputKind | None = None) -> dict[str, Any]:
    """Schema and contract hash: of one kind of input, or of both if an asset carries both."""
    contracts = contract_hashes(layout)
    if kind is not None:
        return {"schema_hash": layout.schema_hash(kind), "contract_hash": contracts[kind]}
    return {
        "schema_hash": " ".join(f"{k}:{layout.schema_hash(k)}" for k in contracts),
        "contract_hash": " ".join(f"{k}:{value}" for k, value in contracts.items()),
    }


def artifact_metadata(artifact: Any) -> dict[str, Any]:
    """Where an artifact lies, its size and identity."""
    if not hasattr(artifact, "fingerprint"):
        return {}
    return {
        "fingerprint": artifact.fingerprint,
        "bytes": artifact.n_bytes,
        "path": dg.MetadataValue.path(str(artifact.folder)),
    }


_COLUMNS = {
    "episode_id": "ULID of the episode; sorts by time",
    "host_id": "lab host that recorded it",
    "batch": "host and UTC day",
    "split": "train, val or test",
    "verdict": "accepted, degraded, rejected or errored",
    "reasons": "codes behind the verdict",
    "details": "one sentence per reason, in the same order",
    "flags": "worth knowing, but no reason to degrade",
    "sample_name": "name of the sample",
    "sample_sha256": "hash of the sample",
    "image_sha256": "hash of the VM's image; empty: not stated",
    "profile": "profile that the sample was run with",
    "tier": "tier of the experiment",
    "synthetic": "made by `phasewatch simulate`",
    "parent_episode_id": "episode that a simulated one was made from; empty: recorded",
    "producer_commit": "commit of the collector's code",
    "producer_dirty": "the collector's code had changes that were not committed",
    "schema_version": "version of the episode format",
    "sha256": "hash of the archive, as it was read",
    "size_bytes": "size of the archive, bytes",
    "received_at_wall": "when the receiver got the episode, RFC 3339",
    "started_at_wall_ns": "start of the episode, Unix time in nanoseconds",
    "ended_at_wall_ns": "end of the episode, Unix time in nanoseconds",
    "duration_s": "length of the episode, seconds",
    "identity": "hash of what the verdict was given to",
    "window": "position of the window in its episode",
    "start_s": "start of the window, seconds after the first label",
    "label": "phase at the centre of the window",
    "actual": "phase at the centre of the window",
    "labelled": "phase at the centre of the window",
    "predicted": "most probable phase",
    "filtered": "most probable phase, all windows so far considered",
    "alarm": "an alarm is raised in this window",
    "model": "model",
    "mode": "realistic or oracle",
    "job": "benign job of the machine under way; empty: none",
    "session": "recording session of the episode",
    "purity": "share of the window that has its label's phase",
    "onset_s": "start of the attack, seconds after the first label; null: there is none",
    "unlike_score": "distance from the training windows",
    "unlike_p": "p value of the episode so far: small if it is unlike training",
    "unlike": "the episode so far is unlike training",
    "score": "highest distance of the episode from the training windows",
    "p": "p value of the episode: small if it is unlike training",
    "seen_in_training": "the checkpoint was trained or validated on this episode",
    "checkpoint_id": "hash of the checkpoint's contents",
    "shard": "number of the shard that holds the window",
    "first_bin": "row of the tensor shard at which the window or episode begins",
    "row": "row of the feature shard",
    "bins": "rows of the episode in the tensor shard",
    "first_row": "row of the feature shard at which the episode begins",
    "windows": "windows of the episode",
}
_COLUMNS_OF = {  # the rest of the name is a source or a phase; the first that fits counts
    "coverage_": "share of {}'s values that are present",
    "largest_gap_s_": "longest time between two rows of {}, seconds",
    "rows_repeated_": "lines of {} left out because an equal one is kept",
    "rows_outside_": "rows of {} before the start or after the end of the episode",
    "rows_": "rows of {}",
    "unusable_values_": "values of {} that are not finite numbers",
    "seconds_": "time labelled {}, seconds",
    "p_": "probability of {}",
    "f_": "probability of {}, all windows so far considered",
}


def _described(column: str, layout: Layout) -> str | None:
    """What a column of any of our tables holds."""
    plain, relative = column.removesuffix(".relative"), column.endswith(".relative")
    name, _, statistic = plain.rpartition(".")
    for channel in layout.channels:
        if channel.name == name:
            if relative:
                return f"distance of `{plain}` from the baseline, on a log scale"
            return f"{statistic} over the window, {channel.unit}"
    if column in _COLUMNS:
        return _COLUMNS[column]
    for prefix, text in _COLUMNS_OF.items():
        if column.startswith(prefix):
            return text.format(column.removeprefix(prefix))
    return None


def table_schema(artifact: Any, layout: Layout) -> dict[str, Any]:
    """The columns of an artifact's tables, described."""
    files = getattr(artifact, "files", {})
    tables = sorted(role for role in files if artifact.path(role).suffix == ".parquet")
    if not tables:
        return {}
    schema = pq.read_schema(artifact.path(tables[0]))
    return column_schema({field.name: str(field.type) for field in schema}, layout)


def column_schema(types: Mapping[str, str], layout: Layout) -> dict[str, Any]:
    """Columns of a table, described; their types as Arrow names them."""
    columns = [dg.TableColumn(n, kind, _described(n, layout)) for n, kind in types.items()]
    return {"dagster/column_schema": dg.TableSchema(columns)}
