"""What commit b141616 made opens: artifacts are reused or named stale with a remedy.

Every later part keeps this promise for its predecessor. The archive holds a store, an artifacts
folder and a Dagster home, made by that commit's own labs: recipe ``sample`` trained, gbt champion,
one batch scored.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import zstandard
from builders import StoreBuilder
from lab import RECIPE, TINY, Lab, dagster_at, failure, materialized

ARCHIVE = Path(__file__).parent / "data" / "b141616.tar.zst"
CHANGED_FORM = ("eval_reports", "comparisons", "report", "drift")


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
    assert project.champion is not None
    for stage in project.stages.values():
        for status in project.statuses(stage, verify=True):
            if status.current or stage.name == "predictions":
                continue
            assert status.remedy.startswith("Run: phasewatch "), status
            if status.key in ("", RECIPE) or stage.partition == "batch":
                assert stage.name.split("/")[0] in CHANGED_FORM, status
                assert status.code in ("format", "not_made"), status
            else:  # never trained at that commit
                assert status.code == "not_made", status


def test_a_run_reuses_what_was_made(old: Lab) -> None:
    batch = next(iter(old.project.listing.batches))
    for job, key in (("ingest", batch), ("retrain", RECIPE)):
        result = old.execute(job, key)
        assert result.success, failure(result)
        for asset, metadata in materialized(result).items():
            changed = asset.split("/")[0] in CHANGED_FORM
            assert metadata["reused"] is not changed, asset
    assert old.project.due("ingest")[0].key != batch
    assert not [d for d in old.project.due("retrain") if d.key in ("", RECIPE)]


def test_dagster_knows_the_checkpoints_it_recorded(old: Lab) -> None:
    batch = next(iter(old.project.listing.batches))
    named = {"ops": {"predictions": {"config": {"model": "knn", "recipe": RECIPE}}}}
    for config in ({}, named):
        result = old.execute("score", batch, config=config)
        assert result.success, failure(result)
    assert isinstance(old.instance, dg.DagsterInstance)
