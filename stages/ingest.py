"""Ingest: validation index, tensor shards and feature shards of a batch, from one pass over it."""

from __future__ import annotations

import json
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from config.signing import sealed, unsealed
from features.code import PATH, code_of
from features.contract import Contract, canonical_json, contract_hashes, contract_of, diff_contracts
from features.files import fingerprint, write_atomically
from features.registry import LAYOUT
from features.shards import read_table, shard_columns
from models.checkpoint import check_code
from models.replay import other_layout, recorded_code
from stages.batch import (
    FEATURES,
    INDEX,
    TENSORS,
    VERSION,
    fingerprint_under,
    index_columns,
    ingest_batch,
    outputs_differ,
    to_validate,
)
from stages.manifest import Manifest, manifest_damage, read_manifest
from stages.stage import Artifacts, Check, CheckResult, Stage, StageOutput
from stages.status import Reason, StageError
from stages.validating import validating_ahead

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from episodes.store import StoredEpisode
    from features.registry import Layout
    from stages.project import Project
    from stages.stage import Progress
    from stages.workspace import Workspace


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


class IngestStage(Stage):
    """Validates a batch's episodes and writes its shards, each episode read once."""

    name = "ingest"
    version = VERSION
    partition = "batch"
    job = "ingest"
    docs = "data-format.md"

    outputs = (
        StageOutput(
            INDEX,
            "One row per episode: verdict, every reason for it, coverage, gaps, seconds per "
            "phase. Rejected and errored episodes stay in the validation index and go no further.",
            group="ingest",
            kinds=frozenset({"parquet"}),
            fresh=True,
            columns=index_columns,
        ),
        StageOutput(
            TENSORS,
            "The 10 Hz series of every usable episode, stored once and memory-mapped; windows "
            "are views.",
            group="ingest",
            kinds=frozenset({"numpy", "parquet"}),
            input_kind="tensor",
            after=(INDEX,),
            columns=partial(shard_columns, kind="tensor"),
        ),
        StageOutput(
            FEATURES,
            "Five statistics of every channel for every window: a row of float32 each, "
            "memory-mapped, and the table of the windows.",
            group="ingest",
            kinds=frozenset({"numpy", "parquet"}),
            input_kind="summary",
            after=(INDEX,),
            columns=partial(shard_columns, kind="summary"),
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

    def folders(self, project: Project, key: str) -> list[str]:
        folder = project.workspace.batch_folder(key)
        return [f"{folder}/{output.name}" for output in self.outputs]

    def read(self, project: Project, key: str) -> Artifacts:
        folder = project.workspace.batch_folder(key)
        return {o.name: read_manifest(folder / o.name, _command(key)) for o in self.outputs}

    def episodes(self, project: Project, batch: str) -> tuple[StoredEpisode, ...]:
        """The batch's episodes as the store lists them.

        Raises:
            StageError: the store has no such batch.
        """
        if batch not in project.listing.batches:
            raise StageError.of([project.status(self, batch)])
        return project.listing.batches[batch]

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint_under(project.batch_settings, self.episodes(project, key))

    def reason(
        self, project: Project, key: str, artifacts: Artifacts, *, verify: bool
    ) -> Reason | None:
        workspace = project.workspace
        if key not in project.listing.batches:
            remedy = (
                "Name a batch of this store (phasewatch sync --json lists them), or, with --store, "
                "the store that has this batch."
            )
            return Reason("not_in_store", {"store": str(workspace.store_path)}, remedy=remedy)
        missing = [name for name, manifest in artifacts.items() if manifest is None]
        folder = project.workspace.batch_folder(key)
        for name in missing:
            if damage := manifest_damage(folder / name):
                return Reason("damaged", {"problem": damage}, remedy=_remake(key))
        if missing:
            return Reason("not_made", {"outputs": missing})
        settings = project.batch_settings
        changed = [n for n, m in artifacts.items() if m.facts.get("settings") != settings]
        if changed:
            differences = contract_drift(artifacts, workspace.contracts_folder, workspace.layout)
            code = "contract" if differences else "policy"
            return Reason(code, {"outputs": changed, "differences": differences})
        for manifest in artifacts.values():
            if damage := manifest.damage(verify=verify):
                return Reason("damaged", {"problem": damage}, remedy=_remake(key))
        if outputs_differ(artifacts.values()):
            return Reason("outputs_differ")
        if next(iter(artifacts.values())).fingerprint == self.fingerprint(project, key):
            return None
        return _changed(project.listing.batches[key], self.read(project, key)[INDEX])

    def make(
        self, project: Project, key: str, outputs: Collection[str], progress: Progress
    ) -> Artifacts:
        workspace = project.workspace
        check_corpus_code(workspace)
        made = ingest_batch(
            self.episodes(project, key),
            project.workspace.batch_folder(key),
            workspace.validation,
            workspace.layout,
            outputs=outputs,
            again=workspace.force,
            progress=progress,
        )
        keep_contracts(workspace.contracts_folder, workspace.layout)
        return made

    def working_ahead(self, project: Project, keys: Sequence[str]) -> AbstractContextManager[None]:
        workspace = project.workspace
        check_corpus_code(workspace)
        policy, layout = workspace.validation, workspace.layout
        new = [
            episode
            for key in keys
            for episode in to_validate(
                self.episodes(project, key),
                project.workspace.batch_folder(key),
                policy,
                layout,
                again=workspace.force,
            )
        ]
        return validating_ahead(new, policy, layout)

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


def _command(batch: str) -> str:
    return f"phasewatch run --batch {batch}"


def _remake(batch: str) -> str:
    return f"Run: {_command(batch)}"


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


def keep_contracts(folder: Path, layout: Layout) -> None:
    """Write the contracts in force where a later difference can be explained from, and the code."""
    for name, content in _contracts(layout).items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            write_atomically(path, content)
    recorded = _recorded(layout)
    path = folder / f"{_CODE}{fingerprint(recorded)}.json"
    if _read_code(path) != recorded:
        write_atomically(path, sealed(recorded, None))


@cache
def _contracts(layout: Layout) -> dict[str, bytes]:
    """The files of the contracts in force, by name."""
    return {
        f"{digest}.json": canonical_json(contract_of(layout, kind).sections)
        for kind, digest in contract_hashes(layout).items()
    }


_CODE = "code-"


def _recorded(layout: Layout) -> dict[str, Any]:
    return recorded_code(code_of(PATH)) | {"contracts": contract_hashes(layout)}


def _read_code(path: Path) -> dict[str, Any] | None:
    """A code as ``keep_contracts`` wrote it; None: it is not there, or was changed since."""
    try:
        return unsealed(path.read_bytes(), set(_recorded(LAYOUT))).value
    except (OSError, ValueError):
        return None


def check_corpus_code(workspace: Workspace) -> None:
    """Refuse to add to a corpus what other code would make of the same rows.

    A corpus may have been made with several codes: each was held to the golden vectors.

    Raises:
        CodeChangedError: lists what comes out otherwise, by rule.
    """
    folder, code, layout = workspace.contracts_folder, code_of(PATH), workspace.layout
    fresh = not any(folder.glob("*.json"))
    found = [_read_code(path) for path in sorted(folder.glob(f"{_CODE}*.json"))]
    hashes = contract_hashes(layout)  # what was made under another contract is made again
    made_with = [each for each in found if each and each.get("contracts") == hashes]
    same = [recorded for recorded in made_with if not code.changes(recorded)]
    if same or (fresh and other_layout(layout)):
        return  # the golden vectors say nothing of another layout
    check_code(
        made_with[0] if made_with else None,
        layout,
        code,
        str(workspace.batch_folder("")),
        "ingest again: phasewatch run",
    )


def contract_drift(artifacts: Artifacts, folder: Path, layout: Layout) -> list[str]:
    """Every difference between the contracts that shards were made under and the live ones.

    Args:
        folder: where ``keep_contracts`` wrote the contracts.
    """
    live = contract_hashes(layout)
    made = {
        (kind, digest)
        for manifest in artifacts.values()
        for kind, digest in manifest.facts.get("contract_hashes", {}).items()
        if digest != live.get(kind)
    }
    lines = []
    for kind, digest in sorted(made):
        try:
            sections = json.loads((folder / f"{digest}.json").read_bytes())
            if Contract(sections).hash != digest:
                raise ValueError("it was changed after it was written")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            damaged = "" if isinstance(error, OSError) else f" ({folder / digest}.json is damaged)"
            now = live.get(kind, "")[:12]
            lines.append(f"{kind}: was contract {digest[:12]}, now {now}{damaged}")
        else:
            lines += diff_contracts(sections, contract_of(layout, kind).sections)
    return list(dict.fromkeys(lines))
