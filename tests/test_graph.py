"""The graph through Dagster: what is made, what is reused, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from held_out import check_schema
from lab import RECIPE, Lab, failure, materialized, new_instance
from typer.testing import CliRunner

import features.registry
import models.checkpoint
import stages.checkpoints
import stages.ingest
import stages.likeness
from assets.factory import asset_key
from assets.partitions import RECIPE_PARTITIONS
from features.registry import LAYOUT, Layout, WindowSpec
from models.checkpoint import checkpoint_path, read_header
from models.registry import MODELS, VARIANTS, Variant, find_variant
from pipelines.cli.app import MISMATCH, app
from pipelines.graph import build_defs
from pipelines.partitions import sync_batches
from stages.evaluation import read_comparisons, read_report
from stages.manifest import read_manifest

WHICH = find_variant("gbt", "realistic")
SCORE = {
    "ops": {"predictions": {"config": {"model": "gbt", "mode": "realistic", "recipe": RECIPE}}}
}


def some_batch(lab: Lab) -> str:
    return next(iter(lab.workspace.listing().batches))


def score(lab: Lab, **options: Any) -> dg.ExecuteInProcessResult:
    return lab.execute("score", some_batch(lab), config=SCORE, **options)


# --- what is made


def test_every_stage_says_under_which_layout_it_was_made(trained: Lab) -> None:
    expected: dict[str, str] = dict.fromkeys(
        ("tensor_shards", "feature_shards"), some_batch(trained)
    )
    expected |= dict.fromkeys(("datasets", "held_out_predictions", "comparisons"), RECIPE)
    for which in VARIANTS:
        expected |= dict.fromkeys(
            (f"checkpoints/{which.name}", f"eval_reports/{which.name}"), RECIPE
        )
    assert score(trained).success
    expected["predictions"] = some_batch(trained)
    for key, partition in expected.items():
        metadata = trained.recorded(key, partition)
        assert metadata is not None, key
        assert metadata["schema_hash"], key
        assert metadata["contract_hash"], key
        assert metadata["seconds"] is not None, key


def test_predictions_mark_what_was_seen_in_training(trained: Lab) -> None:
    import polars as pl

    batch = some_batch(trained)
    result = score(trained)
    table = pl.read_parquet(
        next(Path(materialized(result)["predictions"]["path"]).glob("*.parquet"))
    )
    dataset = pl.read_parquet(
        next((trained.workspace.artifacts_path / "datasets" / RECIPE).glob("*.parquet"))
    )
    training = set(dataset.filter(pl.col("split") != "test")["episode_id"])
    assert set(table.filter("seen_in_training")["episode_id"]) == training & set(
        table["episode_id"]
    )
    assert set(table["host_id"]) == {batch.rsplit(".", 1)[0]}
    assert table.select(pl.sum_horizontal("^p_.*$")).to_series().to_list() == pytest.approx(
        [1.0] * len(table), abs=1e-5
    )


def test_evaluation_covers_val_and_test_and_is_what_the_schema_says(trained: Lab) -> None:
    import polars as pl

    dataset = pl.read_parquet(
        next((trained.workspace.artifacts_path / "datasets" / RECIPE).glob("*.parquet"))
    )
    path = next(
        (trained.workspace.artifacts_path / "held_out_predictions" / RECIPE).glob("*.parquet")
    )
    table = pl.read_parquet(path)
    held_out = dataset.filter(pl.col("split") != "train")
    for _, rows in table.group_by("model", "mode"):
        on = ["split", "episode_id", "window"]
        assert rows.select(on).sort(on).equals(held_out.select(on).sort(on))
    for which in VARIANTS:
        manifest = read_manifest(trained.workspace.report_page.parent / RECIPE / which.name)
        assert manifest is not None
        report = read_report(manifest).model_dump(mode="json")
        check_schema(report)
        header = read_header(checkpoint_path(trained.workspace.checkpoint_folder(RECIPE), which))
        assert report["checkpoint_id"] == header["artifact_id"]
        assert report["learning_curve"]["rows"] == header["train_meta"]["history"]
        assert report["val_macro_f1"]["value"] == pytest.approx(
            header["train_meta"]["val_macro_f1"]
        )
        assert {e["onset_s"] for e in report["detection"]["episodes"]} == {16.0}
        assert set(report["timeline"]["actual"]) == set(report["roster"])
    manifest = read_manifest(trained.workspace.report_page.parent / RECIPE / "comparisons")
    assert manifest is not None
    document = read_comparisons(manifest).model_dump(mode="json")
    check_schema(document)
    compared = {(p["model"], p["mode"]) for p in document["predictors"] if p["kind"] == "model"}
    assert compared == {(which.model, which.mode) for which in VARIANTS}


def test_latency_is_measured_beside_the_report_and_changes_no_version(trained: Lab) -> None:
    for which in VARIANTS:
        manifest = read_manifest(trained.workspace.report_page.parent / RECIPE / which.name)
        assert manifest is not None
        report, recorded = read_report(manifest), trained.recorded(f"eval_reports/{which.name}")
        assert report.latency is not None
        assert 0 < report.latency.median_ms <= report.latency.p99_ms
        for name in ("median_ms", "p99_ms"):
            assert recorded[f"latency_{name}"] == getattr(report.latency, name)
        header = checkpoint_path(trained.workspace.checkpoint_folder(RECIPE), which)
        sidecar = header.with_name(read_header(header)["sidecar"])
        assert report.checkpoint_bytes == header.stat().st_size + sidecar.stat().st_size
        written = json.loads(manifest.path("report").read_text())
        assert written["latency"] is None
        slower = manifest.facts["latency"] | {"median_ms": 1e6}
        other = replace(manifest, facts=manifest.facts | {"latency": slower})
        assert other.version == manifest.version
        assert read_report(other).latency != report.latency


def test_definitions_are_whole() -> None:
    definitions = build_defs()
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert {f"checkpoints/{m}_{mode}" for m in MODELS for mode in features.registry.MODES} <= keys
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.owners, key
        assert node.kinds, key
        assert node.code_version, key
        assert node.group_name != "default", key


def declared_metadata() -> dict[dg.AssetKey, dict[str, Any]]:
    """What the graph itself says of its assets."""
    return {spec.key: dict(spec.metadata) for spec in build_defs().resolve_all_asset_specs()}


def test_tables_say_what_their_columns_are(trained: Lab) -> None:
    for name, partition, column, described in (
        ("validation_index", some_batch(trained), "verdict", "accepted, degraded, rejected"),
        ("feature_shards", some_batch(trained), "guest.forks.mean", "mean over the window, 1/s"),
        ("datasets", RECIPE, "split", "train, val or test"),
        ("held_out_predictions", RECIPE, "p_infecting", "probability of infecting"),
        ("likeness/realistic", RECIPE, "p", "p value of the episode"),
    ):
        declared, recorded = declared_metadata()[asset_key(name)], trained.recorded(name, partition)
        assert len({"dagster/column_schema"} & declared.keys()) == (partition != RECIPE)
        assert len({"dagster/column_schema"} & recorded.keys()) == (partition == RECIPE)
        schema = (declared | recorded)["dagster/column_schema"]
        assert isinstance(schema, dg.TableSchema)
        (found,) = [c for c in schema.columns if c.name == column]
        assert (found.description or "").startswith(described)
        assert [c.name for c in schema.columns if not c.description] == []


# --- what is refused


def rename(layout: Layout) -> Layout:
    channels = list(layout.channels)
    channels[17] = replace(channels[17], name="guest.steal_jiffies")
    return replace(layout, channels=tuple(channels))


def add(layout: Layout) -> Layout:
    new = replace(layout.channels[17], name="guest.steal_jiffies", path=("steal_jiffies",))
    return replace(layout, channels=(*layout.channels, new))


def drop(layout: Layout) -> Layout:
    return replace(layout, channels=layout.channels[:17] + layout.channels[18:])


def reorder(layout: Layout) -> Layout:
    channels = list(layout.channels)
    channels[17], channels[18] = channels[18], channels[17]
    return replace(layout, channels=tuple(channels))


def unit(layout: Layout) -> Layout:
    channels = list(layout.channels)
    channels[31] = replace(channels[31], unit="kB/s")
    return replace(layout, channels=tuple(channels))


def window(layout: Layout) -> Layout:
    return replace(layout, window=WindowSpec(stride_ms=2_500))


def statistic(layout: Layout) -> Layout:
    return replace(layout, stats=tuple(s for s in layout.stats if s != "slope"))


DRIFTS: dict[Callable[[Layout], Layout], str] = {
    rename: "channel 17 was guest.cpu_user_jiffies (gone), is now guest.steal_jiffies (new)",
    add: "channel 46 is new: guest.steal_jiffies",
    drop: "channel 17 was guest.cpu_user_jiffies (gone)",
    reorder: "channel 17 was guest.cpu_user_jiffies, has moved to 18",
    unit: "guest.net_rx_bytes: unit was B/s, is now kB/s",
    window: "window.stride_ms was 5000, is now 2500",
    statistic: "statistic 3 was slope (gone)",
}


@pytest.fixture(params=DRIFTS, ids=lambda drift: drift.__name__)
def said(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A drifted registry is in force; what a refusal has to say about it."""
    monkeypatch.setattr(features.registry, "LAYOUT", request.param(LAYOUT))
    return DRIFTS[request.param]


def test_drift_is_refused_with_the_difference(trained: Lab, said: str) -> None:
    refused = score(trained)
    assert not refused.success
    assert said in failure(refused)
    assert "Retrain gbt_realistic, or check out the code that trained it" in failure(refused)

    stale = trained.execute("retrain", RECIPE, only=[dg.AssetKey("datasets")])
    assert not stale.success
    assert said in failure(stale)
    assert "phasewatch run --ingest-only" in failure(stale)

    check = trained.execute("retrain", RECIPE, only=[dg.AssetKey("held_out_predictions")])
    assert not check.success

    path = checkpoint_path(trained.workspace.checkpoint_folder(RECIPE), WHICH)
    episode = next(e for e in trained.workspace.listing().episodes)
    told = CliRunner().invoke(app, ["predict", str(episode.path), "--checkpoint", str(path)])
    assert told.exit_code == MISMATCH
    assert said in told.output


def test_each_guard_refuses_drift_by_itself(trained: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards are taken out one after the other; only without all of them does scoring run."""
    monkeypatch.setattr(features.registry, "LAYOUT", unit(LAYOUT))

    difference = "guest.net_rx_bytes: unit was B/s, is now kB/s"
    by_status = failure(score(trained))
    assert f"checkpoints/{WHICH.name} {RECIPE}: contract mismatch" in by_status
    assert difference in by_status

    monkeypatch.setattr(stages.checkpoints, "contract_differences", lambda *_: [])
    by_shards = failure(score(trained))
    assert "tensor_shards, feature_shards: contract mismatch" in by_shards
    assert "checkpoints/" not in by_shards

    monkeypatch.setattr(stages.ingest.IngestStage, "reason", lambda *_, **__: None)
    by_likeness = failure(score(trained))
    assert "likeness/realistic" in by_likeness
    assert "the input layout" in by_likeness

    monkeypatch.setattr(stages.likeness.LikenessStage, "reason", lambda *_, **__: None)
    by_loader = failure(score(trained))
    assert difference in by_loader
    assert "Inputs are missing" not in by_loader

    monkeypatch.setattr(models.checkpoint, "check_contract", lambda *_: None)
    assert score(trained).success


def to_score_with(which: Variant) -> list[dg.AssetKey]:
    """The assets that scoring with a variant needs of a recipe."""
    stages = (f"checkpoints/{which.name}", f"alarm_rules/{which.name}", f"likeness/{which.mode}")
    return [dg.AssetKey("datasets"), *map(asset_key, stages)]


def test_after_drift_ingest_and_retrain_make_all_work_again(
    retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = retrained
    only = to_score_with(WHICH)
    monkeypatch.setattr(features.registry, "LAYOUT", drop(LAYOUT))
    assert not score(lab).success
    batches = list(lab.workspace.listing().batches)
    assert "python -m features.golden" in failure(lab.execute("ingest", batches[0]))
    shutil.rmtree(lab.workspace.contracts_folder)  # a new corpus has nothing to agree with
    assert lab.ingest() == batches
    assert not score(lab).success
    assert lab.execute("retrain", RECIPE, only=only).success
    result = score(lab)
    assert result.success, failure(result)


def test_a_checkpoint_that_was_never_trained_is_refused(
    trained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_instance(tmp_path / "home") as other:
        sync_batches(other, trained.workspace)
        refused = score(trained, instance=other)
        assert "gbt_realistic sample: Dagster has no record of its training" in failure(refused)
        monkeypatch.setattr("assets.factory.check_recorded", lambda *_: None)
        assert score(trained, instance=other).success


def test_a_checkpoint_swapped_by_hand_is_refused(
    retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = retrained
    folder = lab.workspace.checkpoint_folder(RECIPE)
    aside = lab.artifacts / "aside"
    shutil.copytree(folder, aside)
    lab.settings = lab.settings | {"seed": 1}
    only = to_score_with(WHICH)
    assert lab.execute("retrain", RECIPE, only=only).success
    assert score(lab).success
    shutil.copytree(aside, folder, dirs_exist_ok=True)
    assert "not the checkpoint that was trained" in failure(score(lab))
    # without that guard its alarm rule, bound to another checkpoint, stops it
    monkeypatch.setattr("assets.factory.check_recorded", lambda *_: None)
    assert f"alarm_rules/{WHICH.name} {RECIPE}: these inputs have changed" in failure(score(lab))


def test_a_blocking_check_stops_the_run_that_made_a_bad_checkpoint(
    retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = retrained
    checkpoint_path(lab.workspace.checkpoint_folder(RECIPE), WHICH).unlink()
    only = [asset_key(f"checkpoints/{WHICH.name}"), dg.AssetKey("held_out_predictions")]
    save = stages.checkpoints.save_checkpoint

    def save_under_another_layout(folder, which, model, layout, **rest):
        return save(folder, which, model, unit(layout), **rest)

    monkeypatch.setattr(stages.checkpoints, "save_checkpoint", save_under_another_layout)
    result = lab.execute("retrain", RECIPE, only=only)
    assert not result.success
    assert f"checkpoints/{WHICH.name}" in materialized(result)
    assert "held_out_predictions" not in materialized(result)
    evaluations = {
        e.check_name: e
        for e in result.get_asset_check_evaluations()
        if e.asset_key == asset_key(f"checkpoints/{WHICH.name}")
    }
    assert not evaluations["contract_current"].passed
    assert "unit was kB/s, is now B/s" in str(
        evaluations["contract_current"].metadata["differences"].value
    )
    # Without the check the step runs, and its own guard refuses.
    monkeypatch.setattr("pipelines.graph.build_checks", lambda _: [])
    unchecked = lab.execute("retrain", RECIPE, only=only)
    assert "unit was kB/s, is now B/s" in failure(unchecked)
    assert "held_out_predictions:" in failure(unchecked)


def test_a_throwaway_instance_is_refused(trained: Lab) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        sync_batches(instance, trained.workspace)
        for job, partition in (("ingest", some_batch(trained)), ("retrain", RECIPE)):
            result = trained.execute(job, partition, instance=instance)
            assert "DAGSTER_HOME is not set" in failure(result)


def test_the_store_is_never_written(trained: Lab) -> None:
    listed = {a.path.name for a in trained.store.added}
    assert {p.name for p in trained.store.root.rglob("*.tar.zst")} == listed
    assert {p.name for p in trained.store.root.iterdir()} == {"index.jsonl", "episodes"}


def test_recipes_are_partitions() -> None:
    assert RECIPE_PARTITIONS.get_partition_keys() == ["host", "sample", "time", "session"]
