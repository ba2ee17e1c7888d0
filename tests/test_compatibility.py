"""What commit b141616 made opens: artifacts are reused or named stale with a remedy.

Every later part keeps this promise for its predecessor. The archive holds a store, an artifacts
folder and a Dagster home, made by that commit's own labs: recipe ``sample`` trained, gbt champion,
one batch scored. ``keep_artifacts`` makes such an archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from builders import StoreBuilder
from lab import RECIPE, TINY, Lab, dagster_at, failure, materialized

import phasewatch
from champion.history import load_kept, read_champion
from datasets.splits import RECIPES
from models.registry import VARIANTS
from stages.status import StageError

ARCHIVE = Path(__file__).parent / "data" / "b141616.tar.zst"
CHANGED_FORM = ("eval_reports", "comparisons", "report", "drift", "predictions")
"""Stages whose documents have another form since; what they build on is reused."""


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
    trained, evaluated = (
        {name: [RECIPE] for name in names}
        for names in (
            ("datasets", "checkpoints", "held_out_predictions"),
            ("eval_reports", "comparisons"),
        )
    )
    current = {"ingest": [batch, *others], "champion": [""], **trained}
    older = {"predictions": [batch], **evaluated}
    assert {*older, "report", "drift"} == set(CHANGED_FORM)  # these two in other files
    for stage in project.stages.values():
        name = stage.name.split("/")[0]
        for status in project.statuses(stage, verify=True):
            if status.key in current.get(name, ()):
                assert status.code == "current", status
                continue
            in_older_form = status.key in older.get(name, ())
            assert status.code == ("format" if in_older_form else "not_made"), status
            assert status.remedy.startswith(("Run: phasewatch run", "Run: dagster job")), status
            assert status.key in status.remedy or stage.job == "ingest", status


def test_the_champion_and_every_checkpoint_load(old: Lab) -> None:
    project, folder = old.project, old.workspace.champion_folder
    champion = read_champion(folder)
    assert champion is not None
    assert (project.champion, champion.model) == (champion, "gbt")
    for recipe in RECIPES:
        load_kept(folder, champion, old.workspace.layout, recipe)
    for variant in VARIANTS:
        loaded = project.checkpoint(variant, RECIPE)
        assert old.recorded(f"checkpoints/{variant.name}", RECIPE)["checkpoint_id"] == (
            loaded.artifact_id
        )


def test_a_run_reuses_what_was_made(old: Lab) -> None:
    batches = list(old.project.listing.batches)
    for job, keys in (("ingest", batches), ("retrain", [RECIPE])):
        for key in keys:
            result = old.execute(job, key)
            assert result.success, failure(result)
            reused = {asset: facts["reused"] for asset, facts in materialized(result).items()}
            assert reused == {asset: asset.split("/")[0] not in CHANGED_FORM for asset in reused}
            stages = [s for s in old.project.stages.values() if s.job == job]
            assert reused.keys() == {output.name for s in stages for output in s.outputs}
    assert old.project.due("ingest") == []
    assert {due.key for due in old.project.due("retrain")} == set(RECIPES) - {RECIPE}


@pytest.mark.parametrize("chosen", [{}, {"model": "knn", "recipe": RECIPE}])
def test_a_batch_is_scored_with_what_dagster_recorded(old: Lab, chosen: dict[str, Any]) -> None:
    batch = next(iter(old.project.listing.batches))
    config = {"ops": {"predictions": {"config": chosen}}}
    result = old.execute("score", batch, config=config)
    assert result.success, failure(result)
    facts = materialized(result)["predictions"]
    model = chosen.get("model", "gbt")
    assert (
        facts["checkpoint_id"]
        == (old.recorded(f"checkpoints/{model}_realistic", RECIPE)["checkpoint_id"])
    )


def test_python_reads_it_or_names_the_command(old: Lab) -> None:
    with pytest.raises(StageError, match=f"older form\nRun: phasewatch run --recipe {RECIPE}"):
        phasewatch.read_report(old.project, RECIPE, "gbt")
    windows = phasewatch.open_windows(old.project, RECIPE, "gbt", split="test")
    errors = phasewatch.find_misclassified(old.project, RECIPE, "cnn")
    assert 0 < len(errors) < len(windows)
