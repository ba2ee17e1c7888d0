"""Datasets: per recipe, which windows train, validate and test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from config.messages import unknown
from datasets.exclusions import ExclusionError, read_exclusions
from datasets.splits import (
    KIN,
    RECIPES,
    SPLITS,
    DatasetError,
    Obstacle,
    SplitPolicy,
    build_table,
    gap_before_test_s,
    obstacle,
    on_several_sides,
    shared_by_sides,
)
from datasets.windows import EXAMPLE_COLUMNS, examples, inputs_of_kind, read_dataset
from episodes.validation import USABLE
from evaluation.wording import sentence
from features.files import fingerprint
from features.loaders import read_windows
from features.shards import read_table, write_table
from models.base import Examples
from models.registry import Variant
from stages.batch import INDEX, TENSORS, read_index
from stages.manifest import Draft, Manifest
from stages.stage import (
    Artifacts,
    Check,
    CheckResult,
    FactTable,
    FolderStage,
    Progress,
    Stage,
    StageOutput,
)
from stages.status import Reason, StageError

if TYPE_CHECKING:
    from stages.project import Project

Versions = dict[str, dict[str, str]]  # batch -> output -> data version


def every_episode_ingested(project: Project, key: str, dataset: Manifest) -> CheckResult:
    stale = [s.key for s in project.statuses(project.stages["ingest"]) if not s.current]
    description = (
        f"{len(stale)} batches changed since they were ingested; the dataset lacks what is new in "
        "them. Ingest them: phasewatch run --ingest-only"
    )
    return CheckResult(not stale, "warn", description if stale else None, {"batches": stale})


def splits_disjoint(project: Project, key: str, dataset: Manifest) -> CheckResult:
    """Evidence from the table as written: counts of what is on two sides."""
    table = read_dataset(dataset)
    on_two = list(on_several_sides(table, pl.col("episode_id")))
    kin = list(on_several_sides(table, KIN))
    test = table.filter(pl.col("split") == "test")
    training = table.filter(pl.col("split") != "test")
    policy = SplitPolicy(**dataset.facts["policy"])
    shared = sorted(shared_by_sides(training, test, key, policy)[1])
    gap_s = gap_before_test_s(training, test)
    overlap = key == "time" and gap_s is not None and gap_s < policy.gap_s
    return CheckResult(
        not on_two and not kin and not shared and not overlap,
        facts={
            "episodes_on_two_sides": on_two,
            "kin_on_two_sides": kin,
            "shared": shared,
            "seconds_between_training_and_test": gap_s,
        },
    )


def no_leak_found(project: Project, key: str, dataset: Manifest) -> CheckResult:
    """What the inputs give away, whatever the names on both sides are."""
    from evaluation.leaks import find_leaks, windows_to_check

    layout = project.workspace.layout
    table = windows_to_check(read_dataset(dataset))
    windows = inputs_of_kind(table, dataset_shards(project, dataset), "summary", "oracle", layout)
    channel = layout.channel_of("oracle", "summary")
    leaks = find_leaks(table, windows[:], channel, layout.channel_names)
    said = [sentence(leak) for leak in leaks]
    return CheckResult(not leaks, "warn", " ".join(said) or None, {"leaks": said})


class DatasetsStage(FolderStage):
    """Windows of all batches with their split: a table over the shards, never a copy of data."""

    name = "datasets"
    version = "3"
    partition = "recipe"
    job = "retrain"
    docs = "evaluation.md"

    inputs = ("ingest",)

    outputs = (
        StageOutput(
            name,
            "Windows of all batches with their split: a table over the shards, never a copy "
            "of data.",
            group="train",
            kinds=frozenset({"parquet"}),
        ),
    )

    checks = (
        Check(
            "splits_disjoint",
            name,
            "Nothing is on two sides: no episode, no kin, no held-out host, sample or session, and "
            "no span of time.",
            splits_disjoint,
            blocking=True,
        ),
        Check(
            "no_leak_found",
            name,
            "No channel alone tells the phase, the episode or the sample, and no episode is on two "
            "sides under two ids.",
            no_leak_found,
        ),
        Check(
            "every_episode_ingested",
            name,
            "No batch has gained episodes since it was ingested. If one has, the dataset lacks the "
            "new episodes.",
            every_episode_ingested,
        ),
    )

    def fingerprint(self, project: Project, key: str) -> str:
        return dataset_fingerprint(
            self.version,
            key,
            policy=asdict(project.workspace.splits),
            batches=shard_versions(project),
            excluded_by_hand=exclusions_fingerprint(project),
        )

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
        if manifest.facts.get("version") != self.version:
            return Reason("format")
        before, now = manifest.facts["batches"], shard_versions(project)
        changed = sorted(batch for batch in before if now.get(batch) != before[batch])
        if changed:
            return Reason("inputs", {"inputs": changed})
        if manifest.facts["excluded_by_hand"] != exclusions_fingerprint(project):
            return Reason("exclusions")
        added = sorted(now.keys() - before.keys())
        return Reason("batches_added", {"batches": added}) if added else Reason("settings")

    def made_from(self, project: Project, key: str) -> Iterator[tuple[Stage, str]]:
        """The batches it was built on; those that came later are of no matter."""
        manifest = project.artifact(self.name, key)
        for batch in manifest.facts["batches"] if manifest else ():
            yield project.stages["ingest"], batch

    def write(
        self,
        project: Project,
        key: str,
        staged: Draft,
        progress: Progress,
    ) -> dict[str, Any]:
        windows, shards = ingested_windows(project)
        try:
            table, facts = split_windows(project, windows, key, project.workspace.splits)
        except DatasetError as error:
            raise StageError(str(error)) from error
        facts["excluded_by_hand"] = exclusions_fingerprint(project)
        facts["version"] = self.version
        facts["batches"] = shard_versions(project)
        facts["validation_index_digest"] = fingerprint(
            {batch: files[INDEX].version for batch, files in shards.items()}
        )
        write_table(table.to_arrow(), staged.new_file("windows", ".parquet"))
        return facts

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        facts = artifact.facts
        profiles, untested = facts["profiles"], facts["untested_profiles"]
        splits = facts["splits"]
        return {
            "profiles_tested": f"{len(profiles) - len(untested)} of {len(profiles)} profiles "
            "tested",
            "untested_profiles": untested,
            "excluded_episodes": facts["excluded"],
            "excluded_windows": facts["excluded_windows"],
            "windows_excluded_by_hand": facts["windows_excluded_by_hand"],
            "exclusions": FactTable(
                [
                    {name: "" if value is None else value for name, value in entry.items()}
                    for entry in facts["exclusions"]
                ]
            )
            if facts["exclusions"]
            else None,
            "validation_index_digest": facts["validation_index_digest"],
            "roster": {split: splits[split]["windows_by_phase"] for split in SPLITS},
            **{f"{split}_windows": splits[split]["windows"] for split in SPLITS},
            **{f"{split}_episodes": splits[split]["episodes"] for split in SPLITS},
        }


def dataset_fingerprint(
    version: str, recipe: str, *, policy: dict[str, Any], batches: Versions, excluded_by_hand: str
) -> str:
    """Identity of what a dataset is made from; its manifest states each part as a fact."""
    return fingerprint(
        {
            "stage": version,
            "recipe": recipe,
            "policy": policy,
            "batches": batches,
            "exclusions": excluded_by_hand,
        }
    )


def ingested_windows(project: Project) -> tuple[pl.DataFrame, dict[str, Artifacts]]:
    """The windows of all batches, with a column ``batch``, and the shards by batch.

    Raises:
        StageError: the store has no batch.
    """
    shards = {batch: project.artifacts("ingest", batch) for batch in project.listing.batches}
    if not shards:
        raise StageError(f"The store {project.workspace.store_path} has no batch.")
    return pl.concat(batch_windows(batch, files) for batch, files in shards.items()), shards


def batch_windows(batch: str, files: Artifacts) -> pl.DataFrame:
    """The windows of a batch, with a column ``batch``, from its artifacts."""
    windows = pl.DataFrame(read_windows(files[TENSORS].paths("windows")))
    return windows.with_columns(batch=pl.lit(batch))


def unavailable_recipes(project: Project) -> dict[str, Reason]:
    """The recipes that what is ingested cannot give, and why; none before anything is.

    More episodes never take a recipe away, so no more are read than show that all can be had: of a
    large store the first few batches.
    """
    found: dict[str, Obstacle | None] = {}
    tables: list[pl.DataFrame] = []
    batches, size = list(project.listing.batches), 1
    while batches:
        some, batches, size = batches[:size], batches[size:], 2 * size
        indices = [project.artifacts("ingest", batch)[INDEX] for batch in some]
        tables += _described(i.path("index") for i in indices if i and not i.damage())
        if not tables:
            continue
        episodes = pl.concat(tables).filter(pl.col("verdict").is_in(USABLE))
        found = {r: obstacle(episodes, r, project.workspace.splits) for r in RECIPES}
        if not any(found.values()) and (episodes["verdict"] == "accepted").any():
            return {}
    remedy = "Nothing to do until the store has more."
    return {
        recipe: Reason(each.code, {"found": each.found}, remedy)
        for recipe, each in found.items()
        if each is not None
    }


def _described(indices: Iterable[Path]) -> Iterator[pl.DataFrame]:
    """What ``obstacle`` asks of the episodes in these tables; of damaged ones their status says."""
    columns = ["episode_id", "host_id", "sample_name", "profile", "verdict"]
    paths = list(indices)
    try:
        if paths:
            yield pl.scan_parquet(paths).select(columns).collect()  # many at once: six times faster
    except (OSError, pl.exceptions.PolarsError):
        for path in paths:
            with suppress(OSError, ValueError):
                yield pl.DataFrame(read_table(path, columns))


def split_windows(
    project: Project, windows: pl.DataFrame, recipe: str, policy: SplitPolicy
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """``datasets.splits.build_table`` without what a person excludes.

    Raises:
        DatasetError: see there.
        StageError: the exclusions cannot be read.
    """
    try:
        exclusions = read_exclusions(
            project.workspace.exclusions_path,
            {episode.episode_id for episode in project.listing.episodes},
        )
    except ExclusionError as error:
        raise StageError(str(error)) from error
    window_s = project.workspace.layout.window.length_ms / 1000
    return build_table(windows, recipe, policy, exclusions, window_s)


def exclusions_fingerprint(project: Project) -> str:
    """Fingerprint of what a person excludes; a file with faults has one too, and is refused when
    the dataset is made.

    An entry for a rejected episode does not count, because no dataset has it. Nor does the reason:
    to retrain every model for a corrected word would be absurd.
    """
    try:
        entries = read_exclusions(project.workspace.exclusions_path)
    except ExclusionError as error:
        return fingerprint(str(error))
    named = {entry.episode for entry in entries}
    batches = {each.batch for each in project.listing.episodes if each.episode_id in named}
    rejected = {key for batch in batches for key in _rejected(project, batch)}
    kept_out = [
        entry.model_dump(include={"episode", "from_s", "to_s"}, exclude_none=True)
        for entry in entries
        if entry.episode not in rejected
    ]
    return fingerprint(kept_out)


def _rejected(project: Project, batch: str) -> list[str]:
    """The episodes of a batch that were ingested and have no windows."""
    index = project.artifacts("ingest", batch)[INDEX]
    if index is None or index.damage():
        return []
    return [key for key, entry in read_index(index).items() if entry.place is None]


def shard_versions(project: Project) -> Versions:
    """Data version of every artifact, by batch and output, of the batches that are ingested."""
    versions = {
        batch: {
            name: manifest.version
            for name, manifest in project.artifacts("ingest", batch).items()
            if manifest is not None
        }
        for batch in project.listing.batches
    }
    return {batch: found for batch, found in versions.items() if found}


def open_windows(project: Project, recipe: str, variant: Variant, split: str) -> Examples:
    """The windows of one split as a variant's inputs: lazy views into the shards.

    Raises:
        StageError: there is no dataset, or it was made from other shards than those on disk.
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    project.require([(project.stages[DatasetsStage.name], recipe)])
    dataset = project.existing(DatasetsStage.name, recipe)
    shards = dataset_shards(project, dataset)
    table = read_dataset(dataset, EXAMPLE_COLUMNS)
    return examples(table, shards, split, variant, project.workspace.layout)


def dataset_shards(project: Project, dataset: Manifest) -> dict[str, dict[str, Manifest]]:
    """The shards that a dataset points into, by batch and output.

    Raises:
        StageError: some are missing, or their manifest is damaged.
    """
    shards = {batch: project.artifacts("ingest", batch) for batch in dataset.facts["batches"]}
    gone = [batch for batch, files in shards.items() if None in files.values()]
    if gone:
        raise StageError.of(project.statuses(project.stages["ingest"], gone))
    return shards
