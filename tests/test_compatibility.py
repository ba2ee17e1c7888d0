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
CODES = {
    "ingest": "policy",  # rows are judged by other rules since
    "datasets": "settings",
    **dict.fromkeys(("eval_reports", "comparisons", "drift", "predictions"), "format"),
}
"""Stage whose artifacts are stale since -> the reason; all others are current."""


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
    batch, *others = project.listing.batches
    of_recipe = (
        "datasets", "checkpoints", "held_out_predictions", "eval_reports", "comparisons",
    )  # fmt: skip
    made = {
        "ingest": [batch, *others], "drift": [batch], "predictions": [batch], "champion": [""],
        **{name: [RECIPE] for name in of_recipe},
    }  # fmt: skip
    for stage in project.stages.values():
        name = stage.name.split("/")[0]
        for status in project.statuses(stage, verify=True):
            expected = (
                CODES.get(name, "current") if status.key in made.get(name, ()) else "not_made"
            )
            assert status.code == expected, status
            if status.current:
                continue
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


def test_a_run_makes_it_again_once(old: Lab) -> None:
    batches = list(old.project.listing.batches)
    for job, keys in (("ingest", batches), ("retrain", [RECIPE])):
        for key in keys:
            result = old.execute(job, key)
            assert result.success, failure(result)
            reused = {asset: facts["reused"] for asset, facts in materialized(result).items()}
            assert not any(reused.values())  # the windows have further columns since
            stages = [s for s in old.project.stages.values() if s.job == job]
            assert reused.keys() == {output.name for s in stages for output in s.outputs}
    assert old.project.due("ingest") == []
    assert {due.key for due in old.project.due("retrain")} == {"host", "time"}


def test_a_batch_is_scored_by_the_champion_that_was_kept(old: Lab) -> None:
    old.ingest()
    batch = next(iter(old.project.listing.batches))
    result = old.execute("score", batch)
    assert result.success, failure(result)
    facts = materialized(result)["predictions"]
    assert (
        facts["checkpoint_id"] == old.recorded("checkpoints/gbt_realistic", RECIPE)["checkpoint_id"]
    )
    config = {"ops": {"predictions": {"config": {"model": "knn", "recipe": RECIPE}}}}
    refused = old.execute("score", batch, config=config)
    assert f"Run: phasewatch run --recipe {RECIPE}" in failure(refused)


def test_python_reads_it_or_names_the_command(old: Lab) -> None:
    with pytest.raises(StageError, match=f"older form\nRun: phasewatch run --recipe {RECIPE}"):
        phasewatch.read_report(old.project, RECIPE, "gbt")
    with pytest.raises(StageError, match="Run: phasewatch run --ingest-only"):
        phasewatch.open_windows(old.project, RECIPE, "gbt", split="test")
    assert len(phasewatch.find_misclassified(old.project, RECIPE, "cnn")) > 0
