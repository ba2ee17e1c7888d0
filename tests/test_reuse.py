"""What is made anew, what is reused, what is noticed to be stale."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
from lab import RECIPE, Lab, failure, materialized, new_instance

from assets.factory import asset_key, asset_keys
from datasets.windows import read_dataset
from models.registry import find_variant
from pipelines.partitions import sync_batches
from stages.manifest import read_manifest

WHICH = find_variant("gbt", "realistic")


def test_a_second_run_reuses_everything_and_growth_touches_one_batch(retrained: Lab) -> None:
    lab = retrained
    batch, *_ = lab.workspace.listing().batches
    assert lab.ingest() == []
    again = materialized(lab.execute("ingest", batch))
    assert all(again[output]["reused"] for output in again if output != "drift")
    stages = {
        key.to_user_string(): key for key in asset_keys("retrain") if key.path[-1] != "report"
    }
    before = {name: lab.recorded(name, RECIPE) for name, key in stages.items()}
    after = materialized(lab.execute("retrain", RECIPE))
    assert after.keys() == {*stages, "report"}
    for name, first in before.items():
        assert not first["reused"], name
        assert after[name]["reused"], name
        assert after[name]["fingerprint"] == first["fingerprint"], name

    lab.store.add(host="lab-d", profile="io-walk", sample="io-walk.v0", duration_s=40)
    new = lab.ingest()
    assert [batch.rsplit(".", 1)[0] for batch in new] == ["lab-d"]
    models = [f"checkpoints/{name}_realistic" for name in ("gbt", "knn", "cnn")]
    grown = materialized(
        lab.execute("retrain", RECIPE, only=[stages[name] for name in ("datasets", *models)])
    )
    assert grown.keys() == {"datasets", *models}
    assert not any(made["reused"] for made in grown.values())


def test_a_damaged_artefact_is_made_anew(ingested: Lab) -> None:
    lab = ingested
    batch, *_ = lab.workspace.listing().batches
    shard = next(lab.workspace.batch_folder(batch).glob("tensor_shards/*.npy"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused = failure(lab.execute("retrain", RECIPE, only=[dg.AssetKey("datasets")]))
    assert f"{shard} was changed after it was written" in refused
    result = materialized(lab.execute("ingest", batch))
    assert not result["tensor_shards"]["reused"]
    assert shard.read_bytes() == content


def test_a_deleted_file_makes_its_batch_stale(ingested: Lab) -> None:
    batch, *_ = ingested.workspace.listing().batches
    next(ingested.workspace.batch_folder(batch).glob("tensor_shards/*.npy")).unlink()
    assert ingested.ingest() == [batch]


def test_the_page_leaves_out_what_is_of_other_data(retrained: Lab) -> None:
    lab = retrained
    lab.store.add(host="lab-d", profile="io-walk", sample="io-walk.v0", duration_s=40)
    lab.ingest()
    shown = lab.execute("retrain", RECIPE, only=[dg.AssetKey("report")])
    assert shown.success, failure(shown)  # the page names the batch that its results lack
    lab.project.make("datasets", RECIPE)
    refused = lab.execute("retrain", RECIPE, only=[dg.AssetKey("report")])
    assert "No evaluation report is current" in failure(refused)


def test_one_stage_alone_can_be_materialized(ingested: Lab) -> None:
    lab = ingested
    batch, *_ = lab.workspace.listing().batches
    shutil.rmtree(lab.workspace.batch_folder(batch) / "feature_shards")
    result = lab.execute("ingest", batch, only=[dg.AssetKey("feature_shards")])
    assert result.success, failure(result)
    assert set(materialized(result)) == {"feature_shards"}
    assert sync_batches(lab.instance, lab.workspace).stale == []


def test_equal_input_gives_equal_bytes(trained: Lab, tmp_path: Path) -> None:
    with new_instance(tmp_path / "home") as instance:
        twin = Lab(trained.store, tmp_path / "again", instance, trained.settings)
        twin.ingest()
        only = [dg.AssetKey("datasets"), asset_key(f"checkpoints/{WHICH.name}")]
        assert twin.execute("retrain", RECIPE, only=only).success
    made = {
        path.relative_to(twin.artifacts): path.read_bytes()
        for path in twin.artifacts.rglob("*")
        if path.is_file()
    }
    assert any(path.suffix == ".ubj" for path in made)
    assert {path: (trained.artifacts / path).read_bytes() for path in made} == made


def test_datasets_name_the_batches_that_are_missing(lab: Lab) -> None:
    missing = failure(lab.execute("retrain", RECIPE, only=[dg.AssetKey("datasets")]))
    for batch in lab.workspace.listing().batches:
        assert (
            f"ingest {batch}: validation_index, tensor_shards, feature_shards: missing" in missing
        )
    assert "phasewatch run --ingest-only" in missing


def test_a_batch_ingested_in_part_is_refused(ingested: Lab) -> None:
    late = ingested.store.add(host="lab-a", profile="io-walk", duration_s=40)
    batch = ingested.workspace.listing().find(late.episode_id).batch
    assert ingested.execute("ingest", batch, only=[dg.AssetKey("tensor_shards")]).success
    refused = failure(ingested.execute("retrain", RECIPE, only=[dg.AssetKey("datasets")]))
    assert f"{batch}: its outputs were not made from the same episodes" in refused


def test_a_training_goes_on_while_the_store_grows(retrained: Lab) -> None:
    """Late episodes of a batch are left out, named, and in the dataset after the next ingest."""
    late = retrained.store.add(host="lab-a", profile="io-walk", sample="io-walk.v0", duration_s=40)
    batch = retrained.workspace.listing().find(late.episode_id).batch
    only = [dg.AssetKey("datasets"), asset_key(f"checkpoints/{WHICH.name}"), dg.AssetKey("report")]
    result = retrained.execute("retrain", RECIPE, only=only)
    assert result.success, failure(result)
    assert materialized(result)["datasets"]["reused"]
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    behind = checks["every_episode_ingested"]
    assert not behind.passed
    assert behind.metadata["batches"].value == [batch]
    assert "phasewatch run --ingest-only" in (behind.description or "")

    assert retrained.ingest() == [batch]
    result = retrained.execute("retrain", RECIPE, only=[dg.AssetKey("datasets")])
    assert not materialized(result)["datasets"]["reused"]
    assert all(check.passed for check in result.get_asset_check_evaluations())
    dataset = read_manifest(retrained.workspace.artifacts_path / "datasets" / RECIPE)
    assert dataset is not None
    assert late.episode_id in set(read_dataset(dataset)["episode_id"])
