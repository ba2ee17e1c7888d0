"""Ingest: validation index, tensor shards and feature shards of a batch, from one pass over it."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from episodes.environment import MachineError, retried
from episodes.format import PHASES, SOURCES
from episodes.validation import VERDICTS, Record, summary_line, validate, where
from features.alignment import AlignmentError
from features.contract import contract_hashes, contract_of, diff_contracts
from features.extraction import extract
from features.files import fingerprint
from features.shards import ShardWriter, read_table, write_table
from models.base import silent
from stages.manifest import Manifest, draft, read_manifest
from stages.stage import Artifacts, Check, CheckResult, Output, Stage
from stages.status import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from episodes.store import StoredEpisode
    from episodes.validation import ValidationPolicy
    from features.registry import Layout
    from stages.project import Project
    from stages.stage import Progress

INDEX, TENSORS, FEATURES = "validation_index", "tensor_shards", "feature_shards"


def labels_match_events(project: Project, key: str, index: Manifest) -> CheckResult:
    unjustified = index.facts["unjustified_usable"]
    return CheckResult(
        not unjustified,
        facts={
            "episodes_with_infected_labels": index.facts["with_infected_labels"],
            "usable_without_event": unjustified,
            "rejected_without_event": index.facts["reasons"].get("infection_without_event", 0),
        },
    )


def no_channel_all_missing(
    project: Project,
    key: str,
    shards: Manifest,
) -> CheckResult:
    missing = shards.facts["missing_channels"]
    return CheckResult(
        not missing,
        "warn",
        facts={"missing_channels": missing, "coverage": shards.facts["coverage"]},
    )


class Ingest(Stage):
    """Validates a batch's episodes and writes its shards, each episode read once."""

    name = "ingest"
    version = "4"
    # not raised for other words or another code for what was rejected and still is
    partition = "batch"
    job = "ingest"
    docs = "data-format.md"

    outputs = (
        Output(
            INDEX,
            "One row per episode: verdict, every reason for it, coverage, gaps, seconds per "
            "phase. Rejected and errored episodes stay in the index and go no further.",
            group="ingest",
            kinds=frozenset({"parquet"}),
            fresh=True,
        ),
        Output(
            TENSORS,
            "The 10 Hz series of every usable episode, stored once and memory-mapped; windows "
            "are views.",
            group="ingest",
            kinds=frozenset({"numpy", "parquet"}),
            input_kind="tensor",
            after=(INDEX,),
        ),
        Output(
            FEATURES,
            "Five statistics of every channel for every window: a row of float32 each, "
            "memory-mapped, and the table of the windows.",
            group="ingest",
            kinds=frozenset({"numpy", "parquet"}),
            input_kind="summary",
            after=(INDEX,),
        ),
    )

    checks = (
        Check(
            "labels_match_events",
            INDEX,
            "No usable episode is labelled infected without the event that shows it.",
            labels_match_events,
            blocking=True,
        ),
        Check(
            "no_channel_all_missing",
            TENSORS,
            "Every channel has a value somewhere in the batch.",
            no_channel_all_missing,
        ),
    )

    def folder(self, project: Project, batch: str) -> Path:
        return project.workspace.batch_folder(batch)

    def read(self, project: Project, key: str) -> Artifacts:
        folder = self.folder(project, key)
        return {output.name: read_manifest(folder / output.name) for output in self.outputs}

    def episodes(self, project: Project, batch: str) -> tuple[StoredEpisode, ...]:
        """The batch's episodes as the store lists them.

        Raises:
            StageError: the store has no such batch.
        """
        if batch not in project.listing.batches:
            raise StageError.of([project.status(self, batch)])
        return project.listing.batches[batch]

    def fingerprint(self, project: Project, key: str) -> str:
        workspace = project.workspace
        return batch_fingerprint(
            self.episodes(project, key), workspace.validation, workspace.layout
        )

    def reason(
        self, project: Project, key: str, artifacts: Artifacts, *, verify: bool
    ) -> Reason | None:
        workspace = project.workspace
        if key not in project.listing.batches:
            remedy = "Name a batch of this store (phasewatch sync --json lists them), or its store."
            return Reason("not_in_store", {"store": str(workspace.store_path)}, remedy=remedy)
        missing = [name for name, manifest in artifacts.items() if manifest is None]
        if missing:
            return Reason("not_made", {"outputs": missing})
        settings = settings_fingerprint(workspace.validation, workspace.layout)
        changed = [n for n, m in artifacts.items() if m.facts.get("settings") != settings]
        if changed:
            differences = contract_drift(artifacts, workspace.layout)
            code = "contract" if differences else "policy"
            return Reason(code, {"outputs": changed, "differences": differences})
        for manifest in artifacts.values():
            if damage := manifest.damage(verify=verify):
                return Reason("damaged", {"problem": damage}, remedy=_remake(key))
        fingerprints = {manifest.fingerprint for manifest in artifacts.values()}
        if len(fingerprints) > 1:
            return Reason("outputs_differ")
        if fingerprints == {self.fingerprint(project, key)}:
            return None
        return _changed(project.listing.batches[key], self.read(project, key)[INDEX])

    def make(
        self, project: Project, key: str, outputs: Collection[str], progress: Progress
    ) -> Artifacts:
        return ingest_batch(
            self.episodes(project, key),
            self.folder(project, key),
            project.workspace.validation,
            project.workspace.layout,
            outputs=outputs,
            progress=progress,
        )

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        facts = artifact.facts
        if output == INDEX:
            return {
                "dagster/partition_row_count": facts["episodes"],
                "episodes_read_bytes": facts["bytes_read"],
                "synthetic_episodes": facts["synthetic"],
                "reasons": facts["reasons"],
                "seconds_by_phase": facts["seconds_by_phase"],
                **facts["verdicts"],
            }
        return {
            "dagster/partition_row_count": facts["windows"],
            "episodes": facts["episodes"],
            "bins": facts["bins"],
            "windows_by_phase": facts["windows_by_phase"],
            **{f"coverage_{source}": share for source, share in facts["coverage"].items()},
        }


def _remake(batch: str) -> str:
    return f"Run: phasewatch run --batch {batch}"


def _changed(episodes: Sequence[StoredEpisode], index: Manifest | None) -> Reason:
    """What of a batch changed since it was ingested.

    Another store may have a batch of the same name: the same host and day.
    """
    if index is None:
        return Reason("episodes", {"changed": len(episodes)})
    ingested = {
        (row["episode_id"], row["size_bytes"])
        for row in read_table(index.path("index"), ["episode_id", "size_bytes"]).to_pylist()
    }
    listed = {(episode.episode_id, episode.size_bytes) for episode in episodes}
    gone = {episode_id for episode_id, size in ingested - listed if size is not None}
    if gone:
        return Reason("other_store", {"episodes": sorted(gone)})
    return Reason("episodes", {"changed": max(1, len(listed - ingested))})


def contract_drift(artifacts: Artifacts, layout: Layout) -> list[str]:
    """Every difference between the contracts that shards were made under and the live ones."""
    lines = [
        line
        for manifest in artifacts.values()
        for kind, sections in manifest.facts.get("contracts", {}).items()
        for line in diff_contracts(sections, contract_of(layout, kind).sections)
    ]
    return list(dict.fromkeys(lines))


# --- one pass over a batch ----------------------------------------------------------------------


def settings_fingerprint(policy: ValidationPolicy, layout: Layout) -> str:
    """Identity of how batches are ingested, whatever their episodes."""
    return fingerprint(
        {"stage": Ingest.version, "policy": asdict(policy), "contract": contract_hashes(layout)}
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
    outputs: Collection[str] = (INDEX, TENSORS, FEATURES),
    progress: Progress = silent,
) -> Artifacts:
    """Validate a batch and write its index and shards, or only some, to ``folder/<output>``.

    One episode is in memory at a time. Shards hold the accepted and the degraded episodes; the
    index holds all of them.

    Raises:
        MachineError: an episode could not be read or extracted, for no fault of its own.
        OSError: an output could not be written.
    """
    identity = batch_fingerprint(episodes, policy, layout)
    records: list[Record] = []
    with ExitStack() as stack:
        drafts = {name: stack.enter_context(draft(folder / name)) for name in outputs}
        writer = ShardWriter(layout, drafts.get(TENSORS), drafts.get(FEATURES))
        for done, stored in enumerate(episodes):
            progress(done, len(episodes), stored.episode_id)
            record, episode = validate(stored, policy, layout.fields)
            if record.usable and episode is not None:
                try:
                    extracted = retried(partial(extract, episode, layout), stored.path)
                except AlignmentError as error:
                    record = record.with_reason("schema", str(error))
                except MachineError:
                    raise
                except Exception as error:  # the sweep goes on
                    record = record.with_reason("unforeseen_error", where(error))
                else:
                    writer.add(record, extracted)
            records.append(record)
        writer.close()
        progress(len(episodes), len(episodes), summary_line([r.verdict for r in records]))
        if INDEX in drafts:
            path = drafts[INDEX].new_file("index", ".parquet")
            write_table(index_table(records), path)
        facts = _shard_facts(records, writer, layout)
        hashes = facts["contract_hashes"]
        by_output = {
            INDEX: index_facts(records),
            TENSORS: facts | {"contract_hash": hashes["tensor"]},
            FEATURES: facts | {"contract_hash": hashes["summary"]},
        }
        settings = {"settings": settings_fingerprint(policy, layout)}
        return {
            name: d.commit(identity, by_output[name] | settings, Ingest.version)
            for name, d in drafts.items()
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
    """The validation index: one row per episode, with the same types whatever the rows hold."""
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
