"""One pass over a batch: its episodes validated and extracted, or taken over from the last pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from episodes.format import PHASES, SOURCES
from episodes.store import StoredEpisode
from episodes.validation import VERDICTS, EpisodeRecord, ValidationPolicy, summary_line
from features.contract import contract_hashes
from features.files import fingerprint
from features.registry import Layout
from features.shards import (
    EPISODES_PER_SHARD,
    EpisodeRows,
    Place,
    ShardWriter,
    read_episodes,
    read_table,
    write_table,
)
from models.base import silent
from stages.manifest import Draft, Manifest, draft, read_manifest
from stages.validating import Validated, validate_and_extract

if TYPE_CHECKING:
    from stages.stage import Artifacts, Progress

ValidateAndExtract = Callable[[StoredEpisode, ValidationPolicy, Layout], Validated]

VERSION = "4"
INDEX, TENSORS, FEATURES = OUTPUTS = "validation_index", "tensor_shards", "feature_shards"
_SHARD_ROLES = {TENSORS: ("series", "level", "windows"), FEATURES: ("features", "windows")}


def settings_fingerprint(policy: ValidationPolicy, layout: Layout) -> str:
    """Identity of how batches are ingested, whatever their episodes."""
    return fingerprint(
        {"stage": VERSION, "policy": asdict(policy), "contract": contract_hashes(layout)}
    )


def batch_fingerprint(
    episodes: Sequence[StoredEpisode], policy: ValidationPolicy, layout: Layout
) -> str:
    """Identity of everything that a batch's artifacts are made from."""
    return fingerprint_under(settings_fingerprint(policy, layout), episodes)


def fingerprint_under(settings: str, episodes: Sequence[StoredEpisode]) -> str:
    """``batch_fingerprint`` for many batches: the settings' fingerprint costs more than theirs."""
    return fingerprint(
        {"settings": settings, "episodes": [episode.identity for episode in episodes]}
    )


def outputs_differ(artifacts: Collection[Manifest]) -> bool:
    """Whether outputs of a batch are of different passes: one would not point into another."""
    passes = [(artifact.fingerprint, artifact.facts["shards"]) for artifact in artifacts]
    return any(each != passes[0] for each in passes)


@dataclass(frozen=True)
class IngestedEpisode:
    """An episode of a batch: its verdict, and where it is in the shards if it is usable."""

    record: EpisodeRecord
    identity: str  # fingerprint of ``StoredEpisode.identity``: what the verdict was given to
    place: Place | None = None


@dataclass(frozen=True)
class LastPass:
    """What the last pass over a batch left that still holds."""

    entries: Mapping[str, IngestedEpisode]  # of the episodes that are as they were, by id
    kept: tuple[dict[str, Any], ...]  # shards that stay as they are
    merged: tuple[dict[str, Any], ...]  # shards whose episodes go into a new one
    artifacts: Artifacts

    @property
    def next_shard(self) -> int:
        return max((shard["number"] for shard in self.kept), default=-1) + 1

    def rows(self) -> Iterator[tuple[str, EpisodeRows]]:
        """The episodes of the shards that are merged."""
        for shard in self.merged:
            entries = [
                (key, entry.place)
                for key, entry in self.entries.items()
                if entry.place and entry.place.shard == shard["number"]
            ]
            tensor, feature = self.artifacts[TENSORS], self.artifacts[FEATURES]
            places = [place for _, place in entries]
            read = read_episodes(tensor, feature, shard["number"], places)
            yield from zip((key for key, _ in entries), read, strict=True)


_NOTHING = LastPass({}, (), (), {})


def last_pass(
    episodes: Sequence[StoredEpisode], folder: Path, policy: ValidationPolicy, layout: Layout
) -> LastPass:
    """What of the last pass over a batch is not done again.

    An episode that is as it was keeps its verdict and its rows. Its shard stays as it is if all of
    it does, and if what is new is small beside it: with every pass that adds a shard, the last
    shards that are no larger are merged with it. So an episode is copied a few times at most, and
    a batch that grows by single episodes has few shards.
    """
    artifacts: Artifacts = {name: read_manifest(folder / name) for name in OUTPUTS}
    settings = settings_fingerprint(policy, layout)
    found = [m for m in artifacts.values() if m and m.facts.get("settings") == settings]
    if len(found) < len(OUTPUTS) or outputs_differ(found):
        return _NOTHING
    if any(manifest.damage() for manifest in found):  # it must not be copied under a new hash
        return _NOTHING
    before = read_index(artifacts[INDEX])
    entries = {
        episode.episode_id: entry
        for episode in episodes
        if (entry := before.get(episode.episode_id)) and entry.identity == episode_identity(episode)
    }
    lost = {e.place.shard for key, e in before.items() if key not in entries and e.place}
    kept = [s for s in artifacts[TENSORS].facts["shards"] if s["number"] not in lost]
    merged = [s for s in artifacts[TENSORS].facts["shards"] if s["number"] in lost]
    new = len(episodes) - len(entries)
    if new or merged:
        moving = new + sum(entry.place.shard in lost for entry in entries.values() if entry.place)
        while kept and kept[-1]["episodes"] <= min(moving, EPISODES_PER_SHARD - moving):
            merged.append(kept.pop())
            moving += merged[-1]["episodes"]
    return LastPass(entries, tuple(kept), tuple(merged), artifacts)


def to_validate(
    episodes: Sequence[StoredEpisode],
    folder: Path,
    policy: ValidationPolicy,
    layout: Layout,
    *,
    again: bool,
) -> list[StoredEpisode]:
    """The episodes that ``ingest_batch`` would validate, in its order."""
    last = _NOTHING if again else last_pass(episodes, folder, policy, layout)
    return [episode for episode in episodes if episode.episode_id not in last.entries]


def ingest_batch(
    episodes: Sequence[StoredEpisode],
    folder: Path,
    policy: ValidationPolicy,
    layout: Layout,
    *,
    outputs: Collection[str] = OUTPUTS,
    again: bool = False,
    validate: ValidateAndExtract | None = None,
    progress: Progress = silent,
) -> Artifacts:
    """Validate a batch and write its index and shards, or only some, to ``folder/<output>``.

    Shards hold the accepted and the degraded episodes; the index holds all of them.

    Args:
        again: validate every episode, also those that are as they were.
        validate: validates and extracts an episode; default: ``validate_and_extract``.

    Raises:
        MachineError: an episode could not be read or extracted, for no fault of its own.
        OSError: an output could not be written.
    """
    whole = set(outputs) == set(OUTPUTS)
    last = _NOTHING if again or not whole else last_pass(episodes, folder, policy, layout)
    entries = dict(last.entries)
    with ExitStack() as stack:
        drafts = {name: stack.enter_context(draft(folder / name)) for name in outputs}
        writer = ShardWriter(
            layout, drafts.get(TENSORS), drafts.get(FEATURES), first=last.next_shard
        )
        stack.callback(writer.abandon)
        for name in drafts.keys() & _SHARD_ROLES.keys():
            for shard in last.kept:
                roles = [f"{role}-{shard['number']:05}" for role in _SHARD_ROLES[name]]
                drafts[name].keep(last.artifacts[name], roles)
        taken_over = dict(last.rows())
        for done, stored in enumerate(episodes):
            key = stored.episode_id
            rows: EpisodeRows | None
            if key in taken_over:
                entry, rows = entries[key], taken_over.pop(key)
            elif key in entries:
                continue
            else:
                progress(done, len(episodes), key)
                record, rows = (validate or validate_and_extract)(stored, policy, layout)
                entry = IngestedEpisode(record, episode_identity(stored))
            place = writer.add(rows) if rows else None
            entries[key] = IngestedEpisode(entry.record, entry.identity, place)
        writer.close()
        listed = [entries[stored.episode_id] for stored in episodes]
        progress(len(episodes), len(episodes), summary_line([e.record.verdict for e in listed]))
        if INDEX in drafts:
            write_table(index_table(listed), drafts[INDEX].new_file("index", ".parquet"))
        return _commit(drafts, episodes, listed, [*last.kept, *writer.shards], policy, layout)


def _commit(
    drafts: Mapping[str, Draft],
    episodes: Sequence[StoredEpisode],
    entries: Sequence[IngestedEpisode],
    shards: Sequence[dict[str, Any]],
    policy: ValidationPolicy,
    layout: Layout,
) -> Artifacts:
    facts = shard_facts(shards, layout)
    hashes = contract_hashes(layout)
    by_output = {
        INDEX: index_facts([entry.record for entry in entries]) | {"shards": facts["shards"]},
        TENSORS: facts | {"contract_hash": hashes["tensor"]},
        FEATURES: facts | {"contract_hash": hashes["summary"]},
    }
    settings = {"settings": settings_fingerprint(policy, layout)}
    identity = batch_fingerprint(episodes, policy, layout)
    return {
        name: drafts[name].commit(identity, by_output[name] | settings, VERSION) for name in drafts
    }


def episode_identity(stored: StoredEpisode) -> str:
    return fingerprint(stored.identity)[:32]


def shard_facts(shards: Sequence[dict[str, Any]], layout: Layout) -> dict[str, Any]:
    """What is in the shards of a batch, in numbers."""
    bins = sum(shard["bins"] for shard in shards)
    finite = np.zeros(len(layout.channels), dtype=np.int64)
    phases: Counter[str] = Counter(dict.fromkeys(layout.phases, 0))
    for shard in shards:
        finite += np.array(shard["finite_cells"], dtype=np.int64)
        phases.update(shard["windows_by_phase"])
    missing = [n for n, cells in zip(layout.channel_names, finite, strict=True) if not cells]
    shares = finite / max(bins, 1)
    return {
        "episodes": sum(shard["episodes"] for shard in shards),
        "windows": sum(shard["windows"] for shard in shards),
        "bins": bins,
        "windows_by_phase": dict(phases),
        "coverage": {
            source: float(np.mean(shares[columns]))
            for source in SOURCES
            if len(columns := layout.columns(source))
        },
        "missing_channels": missing if bins else [],
        "contract_hashes": contract_hashes(layout),
        "shards": list(shards),
    }


def index_facts(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
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


_TYPES: dict[str, pa.DataType] = {
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
_PREFIXES = {
    "rows_": pa.int64(),
    "unusable_values_": pa.int64(),
    "coverage_": pa.float64(),
    "largest_gap_s_": pa.float64(),
    "seconds_": pa.float64(),
}
_PLACE = {name: pa.int64() for name in Place.__dataclass_fields__}


def _type_of(name: str) -> pa.DataType:
    by_prefix = (kind for prefix, kind in _PREFIXES.items() if name.startswith(prefix))
    return _TYPES.get(name) or next(by_prefix, pa.string())


_INDEX_SCHEMA = pa.schema(
    {name: _type_of(name) for name in EpisodeRecord.columns()} | _PLACE | {"identity": pa.string()}
)


def index_columns(_layout: Layout) -> dict[str, str]:
    """Types of the columns of a validation index."""
    return {field.name: str(field.type) for field in _INDEX_SCHEMA}


def index_table(entries: Sequence[IngestedEpisode]) -> pa.Table:
    """The validation index: one row per episode, with the same types whatever the rows hold.

    The last columns say where a usable episode is in the shards, and what its verdict was given to.
    """
    rows = [
        entry.record.as_row()
        | (asdict(entry.place) if entry.place else {})
        | {"identity": entry.identity}
        for entry in entries
    ]
    return pa.Table.from_pylist(rows, _INDEX_SCHEMA)


def read_index(index: Manifest) -> dict[str, IngestedEpisode]:
    """A validation index as it was written, by episode."""
    entries = {}
    for row in read_table(index.path("index")).to_pylist():
        place = {name: row.pop(name) for name in _PLACE}
        identity = row.pop("identity")
        entries[row["episode_id"]] = IngestedEpisode(
            EpisodeRecord.from_row(row),
            identity,
            None if place["shard"] is None else Place(**place),
        )
    return entries
