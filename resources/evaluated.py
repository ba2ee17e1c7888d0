"""What has been evaluated and still speaks of the checkpoints, data and layout in force."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from episodes.store import StoredEpisode, StoreListing
from evaluation.datasets import RECIPES
from evaluation.documents import BatchDrift, Comparisons, EvalReport
from features.contract import contract_hashes
from features.ingest import STAGES
from features.manifest import Manifest, read_manifest
from features.shards import read_table
from models.champion import ChampionError, read_champion
from models.checkpoint import CheckpointError, checkpoint_path, read_header
from models.registry import VARIANTS, Variant
from resources.workspace import Workspace


@dataclass(frozen=True)
class Evaluated:
    """Current documents, and what is on disk but is not current."""

    reports: list[EvalReport]
    comparisons: list[Comparisons]
    left_out: list[dict[str, str]]  # recipe, name and why
    versions: list[str]  # data versions of the documents


def read_report(manifest: Manifest) -> EvalReport:
    """An evaluation report as written."""
    return EvalReport.model_validate_json(manifest.path("report").read_bytes())


def read_comparisons(manifest: Manifest) -> Comparisons:
    """The comparisons of a recipe as written."""
    return Comparisons.model_validate_json(manifest.path("comparisons").read_bytes())


@dataclass(frozen=True)
class Watched:
    """How the batches of the store look beside the champion's training data."""

    champion: str | None  # name; None: there is none that can be read
    batches: list[BatchDrift]  # what ``drift`` wrote, of this champion only
    n_others: int  # batches that were not compared with it


def watched(workspace: Workspace) -> Watched:
    """The comparisons of batches with the champion in force."""
    try:
        reign = read_champion(workspace.champion_folder)
    except ChampionError:
        reign = None
    batches = list(workspace.listing().batches)
    if reign is None:
        return Watched(None, [], len(batches))
    found = []
    for batch in batches:
        try:
            document = BatchDrift.model_validate_json(workspace.drift_path(batch).read_bytes())
        except (OSError, ValueError):
            continue
        if document.champion.checkpoint_id == reign.checkpoints[reign.served]:
            found.append(document)
    return Watched(reign.name, found, len(batches) - len(found))


def evaluated(workspace: Workspace) -> Evaluated:
    """The documents of all recipes; those that are damaged or not current are named apart."""
    found = Evaluated([], [], [], [])
    listing = workspace.listing()
    batches = workspace.shard_versions(listing)
    elsewhere = not of_this_store(workspace, listing)
    for recipe, which in product(RECIPES, VARIANTS):
        manifest = read_manifest(workspace.report_folder(recipe) / which.name)
        if manifest is None:
            continue
        why = manifest.damage()
        report = None
        if not why:
            try:
                report = read_report(manifest)
            except ValueError:
                why = "written in another form"
        if report is not None:
            why = next(
                _outdated(report, workspace, recipe, which, batches, elsewhere=elsewhere), None
            )
        if why or report is None:
            found.left_out.append({"recipe": recipe, "name": which.name, "why": why})
        else:
            found.reports.append(report)
            found.versions.append(manifest.version)
    ids = {(r.recipe, r.model, r.mode): r.checkpoint_id for r in found.reports}
    for recipe in RECIPES:
        manifest = read_manifest(workspace.comparisons_folder(recipe))
        if manifest is None or not any(recipe == key[0] for key in ids):
            continue
        why = manifest.damage()
        document = None
        if not why:
            try:
                document = read_comparisons(manifest)
            except ValueError:
                why = "written in another form"
        if document is not None:
            compared = {(recipe, p.model, p.mode): p.checkpoint_id for p in document.predictors}
            if any(compared[key] != ids[key] for key in ids.keys() & compared.keys()):
                why = "of other checkpoints than the reports"
        if why or document is None:
            found.left_out.append({"recipe": recipe, "name": "comparisons", "why": why})
        else:
            found.comparisons.append(document)
            found.versions.append(manifest.version)
    return found


def of_this_store(workspace: Workspace, listing: StoreListing) -> bool:
    """Whether what was ingested is of this store, and not of another with batches of that name."""
    return all(_is_of(workspace, batch, episodes) for batch, episodes in listing.batches.items())


def _is_of(workspace: Workspace, batch: str, episodes: tuple[StoredEpisode, ...]) -> bool:
    """Whether what was ingested as this batch is in the store; what arrived since is no matter.

    Another store may have a batch of the same name: the same host and day.
    """
    index = read_manifest(workspace.batch_folder(batch) / STAGES[0])
    if index is None or index.fingerprint == workspace.fingerprint(episodes):
        return True
    ingested = read_table(index.path("index"), ["episode_id", "size_bytes"]).to_pylist()
    here = {(episode.episode_id, episode.size_bytes) for episode in episodes}
    return all(
        row["size_bytes"] is None or (row["episode_id"], row["size_bytes"]) in here
        for row in ingested
    )


def _outdated(
    report: EvalReport,
    workspace: Workspace,
    recipe: str,
    which: Variant,
    batches: dict[str, dict[str, str]],
    *,
    elsewhere: bool,
) -> Iterator[str]:
    """Why a report does not compare with the others; nothing where it does."""
    dataset = read_manifest(workspace.dataset_folder(recipe))
    if dataset is None or dataset.version != report.dataset_version:
        yield "of another version of the dataset"
    elif elsewhere:
        yield "of another store than this one"
    elif dataset.facts["batches"] != batches:
        yield "of other data than is ingested now"
    if report.contract_hash != contract_hashes(workspace.layout)[which.spec.input_kind]:
        yield "of another input layout"
    try:
        header = read_header(checkpoint_path(workspace.checkpoint_folder(recipe), which))
    except CheckpointError:
        yield "its checkpoint is gone or damaged"
    else:
        if header["artifact_id"] != report.checkpoint_id:
            yield "of another checkpoint than the one in place"
