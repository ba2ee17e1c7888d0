"""What commit b141616 made opens: artifacts are reused or named stale with a remedy.

Every later part keeps this promise for its predecessor. The archive holds a store, an artifacts
folder and a Dagster home, made by that commit's own labs: recipe ``sample`` trained, gbt champion,
one batch scored. ``keep_artifacts`` makes such an archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from builders import StoreBuilder
from lab import RECIPE, TINY, Lab, dagster_at, failure, materialized

import phasewatch
from champion.history import load_kept, read_champion
from models.registry import VARIANTS
from stages.status import StageError

ARCHIVE = Path(__file__).parent / "data" / "b141616.tar.zst"


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Lab]:
    content = zstandard.ZstdDecompressor().stream_reader(ARCHIVE.open("rb"))
    with tarfile.open(fileobj=content, mode="r|") as archive:
        archive.extractall(tmp_path, filter="data")
    with dagster_at(tmp_path / "home") as instance:
        store = StoreBuilder.reopen(tmp_path / "store")
        yield Lab(store, tmp_path / "artifacts", instance, TINY)


def test_what_is_not_current_has_another_form_and_a_remedy(old: Lab) -> None:
    project = old.project
    _, *others = project.listing.batches
    expected = {
        "ingest": "policy", "drift": "format", "champion": "current", "checkpoints": "current",
        "datasets": "format", "held_out_predictions": "format", "eval_reports": "format",
        "comparisons": "format", "predictions": "format",
    }  # fmt: skip
    made = {*project.listing.batches, RECIPE, ""}
    for stage in project.stages.values():
        name = stage.name.split("/")[0]
        for status in project.statuses(stage, verify=True):
            if not status.available:
                assert status.key == "session"
                continue
            here = status.key in made and not (status.key in others and name != "ingest")
            code = expected.get(name, "not_made") if here else "not_made"
            assert status.code == code, status
            if not status.current:
                assert status.remedy.startswith(("Run: phasewatch run", "Run: dagster job")), status
                assert status.key in status.remedy or stage.job == "ingest", status


def test_the_champion_and_every_checkpoint_load(old: Lab) -> None:
    project, folder = old.project, old.workspace.champion_folder
    champion = read_champion(folder)
    assert champion is not None
    assert (project.champion, champion.model) == (champion, "gbt")
    for recipe in champion.checkpoints:
        load_kept(folder, champion, old.workspace.layout, recipe)
    for variant in VARIANTS:
        loaded = project.checkpoint(variant, RECIPE)
        assert old.recorded(f"checkpoints/{variant.name}", RECIPE)["checkpoint_id"] == (
            loaded.artifact_id
        )


def test_a_run_makes_all_of_it_anew(old: Lab) -> None:
    """Windows have another column since, so nothing that is made from them is kept."""
    batches = list(old.project.listing.batches)
    for job, keys in (("ingest", batches), ("retrain", [RECIPE])):
        for key in keys:
            result = old.execute(job, key)
            assert result.success, failure(result)
            reused = {asset: facts["reused"] for asset, facts in materialized(result).items()}
            assert set(reused.values()) == {False}
            stages = [s for s in old.project.stages.values() if s.job == job]
            assert reused.keys() == {output.name for s in stages for output in s.outputs}
    assert old.project.due("ingest") == []
    assert {due.key for due in old.project.due("retrain")} == {"host", "time"}


def test_a_batch_is_scored_with_the_champion_that_dagster_recorded(old: Lab) -> None:
    old.ingest()
    batch = next(iter(old.project.listing.batches))
    result = old.execute("score", batch)
    assert result.success, failure(result)
    recorded = old.recorded("checkpoints/gbt_realistic", RECIPE)["checkpoint_id"]
    assert materialized(result)["predictions"]["checkpoint_id"] == recorded
    config = {"ops": {"predictions": {"config": {"model": "knn", "recipe": RECIPE}}}}
    refused = failure(old.execute("score", batch, config=config))
    assert f"Run: phasewatch run --recipe {RECIPE}" in refused


def test_python_reads_it_or_names_the_command(old: Lab) -> None:
    with pytest.raises(StageError, match=f"older form\nRun: phasewatch run --recipe {RECIPE}"):
        phasewatch.read_report(old.project, RECIPE, "gbt")
    with pytest.raises(StageError, match=f"older form\nRun: phasewatch run --recipe {RECIPE}"):
        phasewatch.open_windows(old.project, RECIPE, "gbt", split="test")
    with pytest.raises(StageError, match=f"older form\nRun: phasewatch run --recipe {RECIPE}"):
        phasewatch.find_misclassified(old.project, RECIPE, "cnn")
