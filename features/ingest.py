"""One batch of episodes, read once: validation index, tensor shards and feature shards.

Which batches there are and which are stale is decided by the caller, from ``batch_fingerprint``.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from episodes.format import PHASES, SOURCES
from episodes.validation import VERDICTS, Record, summary_line, validate, where
from features.alignment import AlignmentError
from features.contract import contract_hashes, contract_of
from features.extraction import extract
from features.manifest import Manifest, draft, fingerprint
from features.shards import ShardWriter, write_table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from episodes.store import StoredEpisode
    from episodes.validation import ValidationPolicy
    from features.registry import Layout

STAGES = ("validation_index", "tensor_shards", "feature_shards")
INGEST_VERSION = "2"
"""Raised when the code of this stage changes what it writes for equal inputs."""


def settings_fingerprint(policy: ValidationPolicy, layout: Layout) -> str:
    """Identity of how batches are ingested, whatever their episodes."""
    return fingerprint(
        {"stage": INGEST_VERSION, "policy": asdict(policy), "contract": contract_hashes(layout)}
    )


def batch_fingerprint(
    episodes: Sequence[StoredEpisode], policy: ValidationPolicy, layout: Layout
) -> str:
    """Identity of everything a batch's artefacts are made from."""
    return fingerprint(
        {
            "settings": settings_fingerprint(policy, layout),
            "episodes": [episode.identity for episode in episodes],
        }
    )


def ingest_batch(
    episodes: Sequence[StoredEpisode],
    folder: Path,
    policy: ValidationPolicy,
    layout: Layout,
    *,
    stages: Collection[str] = STAGES,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Manifest]:
    """Validate a batch and write its index and shards, or only some, to ``folder/<stage>``.

    One episode is in memory at a time. Shards hold the accepted and the degraded episodes; the
    index holds all of them.
    """
    identity = batch_fingerprint(episodes, policy, layout)
    records: list[Record] = []
    with ExitStack() as stack:
        drafts = {stage: stack.enter_context(draft(folder / stage)) for stage in stages}
        writer = ShardWriter(layout, drafts.get("tensor_shards"), drafts.get("feature_shards"))
        for done, stored in enumerate(episodes):
            if progress:
                progress(done, len(episodes), stored.episode_id)
            record, episode = validate(stored, policy, layout.fields)
            if record.usable and episode is not None:
                try:
                    extracted = extract(episode, layout)
                except AlignmentError as error:
                    record = record.with_reason("schema", str(error))
                except Exception as error:  # the sweep goes on
                    record = record.with_reason("unforeseen_error", where(error))
                else:
                    writer.add(record, extracted)
            records.append(record)
        writer.close()
        if progress:
            progress(len(episodes), len(episodes), summary_line([r.verdict for r in records]))
        if "validation_index" in drafts:
            path = drafts["validation_index"].new_file("index", ".parquet")
            write_table(index_table(records), path)
        facts = _shard_facts(records, writer, layout)
        hashes = facts["contract_hashes"]
        by_stage = {
            "validation_index": index_facts(records),
            "tensor_shards": facts | {"contract_hash": hashes["tensor"]},
            "feature_shards": facts | {"contract_hash": hashes["summary"]},
        }
        settings = {"settings": settings_fingerprint(policy, layout)}
        return {
            stage: drafts[stage].commit(identity, by_stage[stage] | settings) for stage in drafts
        }


def _shard_facts(records: Sequence[Record], writer: ShardWriter, layout: Layout) -> dict[str, Any]:
    return {
        "episodes": sum(record.usable for record in records),
        "windows": writer.n_windows,
        "bins": writer.n_bins,
        "windows_by_phase": writer.windows_by_phase,
        "coverage": _coverage(writer, layout),
        "missing_channels": _missing_channels(writer, layout),
        "contracts": {kind: contract_of(layout, kind).sections for kind in ("summary", "tensor")},
        "contract_hashes": contract_hashes(layout),
    }


def _coverage(writer: ShardWriter, layout: Layout) -> dict[str, float]:
    """Share of cells with a value, by source."""
    shares = writer.finite_cells / max(writer.n_bins, 1)
    return {s: float(np.mean(shares[c])) for s in SOURCES if len(c := layout.columns(s))}


def _missing_channels(writer: ShardWriter, layout: Layout) -> list[str]:
    if not writer.n_bins:
        return []
    return [
        n for n, cells in zip(layout.channel_names, writer.finite_cells, strict=True) if not cells
    ]


def index_facts(records: Sequence[Record]) -> dict[str, Any]:
    """What a validation index says in numbers."""
    verdicts = Counter(record.verdict for record in records)
    reasons = Counter(reason for record in records for reason in record.reasons)
    infected = [r for r in records if r.seconds["infecting"] or r.seconds["infected_running"]]
    return {
        "episodes": len(records),
        "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "reasons": dict(sorted(reasons.items())),
        "unjustified_usable": sorted(
            r.episode_id for r in infected if r.usable and "infection_without_event" in r.reasons
        ),
        "with_infected_labels": len(infected),
        "synthetic": sum(record.synthetic for record in records),
        "bytes_read": sum(record.size_bytes or 0 for record in records),
        "seconds_by_phase": {
            phase: round(sum(r.seconds[phase] for r in records if r.usable), 3) for phase in PHASES
        },
    }


_OPTIONAL_TYPES: dict[str, pa.DataType] = {
    "reasons": pa.list_(pa.string()),
    "details": pa.list_(pa.string()),
    "flags": pa.list_(pa.string()),
    "tier": pa.int64(),
    "synthetic": pa.bool_(),
    "producer_dirty": pa.bool_(),
    "schema_version": pa.int64(),
    "size_bytes": pa.int64(),
    "started_at_wall_ns": pa.int64(),
    "ended_at_wall_ns": pa.int64(),
    "duration_s": pa.float64(),
}


def index_table(records: Sequence[Record]) -> pa.Table:
    """The validation index: a row an episode, typed the same whatever the rows hold."""
    rows = [record.as_row() for record in records]
    arrays = {}
    for name in rows[0] if rows else ():
        kind = _OPTIONAL_TYPES.get(name)
        if kind is None:
            if name.startswith(("rows_", "unusable_values_")):
                kind = pa.int64()
            elif name.startswith(("coverage_", "largest_gap_s_", "seconds_")):
                kind = pa.float64()
            else:
                kind = pa.string()
        arrays[name] = pa.array([row[name] for row in rows], kind)
    return pa.table(arrays)
