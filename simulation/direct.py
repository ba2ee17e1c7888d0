"""Shards of a simulated store, as ingest would write them from its archives, without any archive.

An episode's rows go from the simulation to the validator and to extraction in memory. Text, packing
and parsing are left out, so what is written is what ingest writes, sooner. The store has sparse
files in place of the archives; only defective episodes are there in full and are read.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from episodes.format import EVENTS_FILE, LABELS_FILE, META_FILE, batch_key
from episodes.jsonl import Rows
from episodes.reading import Episode, assemble
from episodes.validation import validate_content
from simulation.children import as_lines, make_content
from simulation.corpus import Progress, complete, parent_of
from stages.batch import ingest_batch
from stages.ingest import check_corpus_code, keep_contracts
from stages.project import Project
from stages.validating import extract_if_usable, validate_and_extract
from stages.workers import cores, worker_processes

if TYPE_CHECKING:
    from pathlib import Path

    from episodes.store import StoredEpisode
    from episodes.validation import ValidationPolicy
    from features.registry import Layout
    from simulation.corpus import Corpus
    from simulation.parents import Parent
    from simulation.plan import Child
    from simulation.sheets import Sheet
    from stages.validating import Validated
    from stages.workspace import Workspace

_PER_PROCESS = 4  # batches


@dataclass(frozen=True)
class _Batch:
    """What a process needs to write the shards of one batch."""

    stored: tuple[StoredEpisode, ...]
    children: Mapping[str, Child]  # those with a placeholder, by id
    folder: Path
    seed: int
    policy: ValidationPolicy
    layout: Layout


def write_shards(
    corpus: Corpus,
    workspace: Workspace,
    processes: int | None,
    progress: Progress = lambda *_: None,
    prepare: Callable[[], None] = lambda: None,
) -> int:
    """Ingest the batches of the last part that are not current; returns how many windows they have.

    The bytes are the same however many processes write them.

    Args:
        workspace: of the store that was written; its artifacts folder is written to.
        processes: None: as many as pay.
        prepare: called in each process, once.

    Raises:
        MachineError, OSError: see ``stages.ingest.ingest_batch``.
    """
    check_corpus_code(workspace)
    keep_contracts(workspace.contracts_folder, workspace.layout)
    project = Project(workspace)
    stage = project.stages["ingest"]
    children: dict[str, dict[str, Child]] = defaultdict(dict)
    keys: dict[str, None] = {}  # in order
    for child in corpus.plan.children(corpus.part):
        key = batch_key(child.host_id, child.episode_id)
        keys[key] = None
        if child.placeholder:
            children[key][child.episode_id] = child
    stale = [status.key for status in project.statuses(stage, list(keys)) if not status.current]
    batches = [
        _Batch(
            project.listing.batches[key],
            children[key],
            workspace.batch_folder(key),
            corpus.plan.seed,
            workspace.validation,
            workspace.layout,
        )
        for key in stale
    ]
    n_episodes = sum(len(batch.stored) for batch in batches)
    done = n_windows = 0
    count = processes or max(1, min(cores(), len(batches) // _PER_PROCESS))
    for batch, windows in zip(batches, _write_all(batches, count, prepare), strict=True):
        n_windows += windows
        done += len(batch.stored)
        progress(done, n_episodes)
    complete(corpus)
    return n_windows


def _write_all(batches: Sequence[_Batch], count: int, prepare: Callable[[], None]) -> Iterator[int]:
    if count < 2:
        yield from map(_write, batches)
        return
    with ExitStack() as stack:
        yield from stack.enter_context(worker_processes(count, prepare)).map(_write, batches)


def _write(batch: _Batch) -> int:
    made = ingest_batch(
        batch.stored,
        batch.folder,
        batch.policy,
        batch.layout,
        validate=partial(_validate_child, batch),
    )
    return int(made["feature_shards"].facts["windows"])


def _validate_child(
    batch: _Batch, stored: StoredEpisode, policy: ValidationPolicy, layout: Layout
) -> Validated:
    child = batch.children.get(stored.episode_id)
    if child is None:
        return validate_and_extract(stored, policy, layout)
    episode = episode_of(child, parent_of(child), batch.seed, layout)
    record = validate_content(episode, stored, policy, layout.fields)
    return extract_if_usable(record, episode, stored, layout)


def episode_of(child: Child, parent: Parent, seed: int, layout: Layout) -> Episode:
    """A child without a defect as it would be read from its archive, without telemetry files."""
    content = make_content(child, parent, seed)
    members = {LABELS_FILE: as_lines(content.labels), EVENTS_FILE: as_lines(content.events)}
    files = {name: {"sha256": hashlib.sha256(m).hexdigest()} for name, m in members.items()}
    members[META_FILE] = json.dumps(content.meta | {"files": files}).encode()
    sources = {
        name: _rows(sheet, [path[-1] for path in layout.fields[name]])
        for name, sheet in content.sources.items()
    }
    return assemble(child.episode_id, members, sources)


def _rows(sheet: Sheet, fields: Sequence[str]) -> Rows:
    at = [sheet.fields.index(field) for field in fields]
    scale = np.where(sheet.hundredths[at], 100.0, 1.0)
    none = np.zeros(len(fields), dtype=np.int64)
    return Rows(
        t_wall_ns=sheet.column("t_wall_ns").copy(),
        t_mono_ns=sheet.column("t_mono_ns").copy(),
        has_mono=np.ones(len(sheet), dtype=np.bool_),
        values=sheet.numbers[:, at] / scale,
        unusable=none,
        absent=none.copy(),
        problems=(),
        n_lines=len(sheet),
        n_malformed=0,
    )
