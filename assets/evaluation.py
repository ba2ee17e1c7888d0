"""Evaluation: held-out predictions, a report a checkpoint, comparisons, the page of them all."""

import base64
from collections import Counter
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl

from assets.checkpoints import code_commit
from assets.partitions import EVERY_PARTITION, FRESH, OWNERS, RECIPE_PARTITIONS
from evaluation.baselines import shortcut_predictions
from evaluation.cards import body_of, model_card
from evaluation.comparisons import compare
from evaluation.datasets import inputs, read_dataset
from evaluation.documents import EvalReport, document_text
from evaluation.page import render_report
from evaluation.report import evaluate
from evaluation.scores import ABLATED, prediction_rows
from evaluation.wording import sentence
from features.ingest import STAGES
from features.manifest import (
    Manifest,
    draft,
    file_sha256,
    fingerprint,
    reusable,
    write_atomically,
)
from features.registry import MODES
from features.shards import read_table, write_table
from models.checkpoint import Checkpoint
from models.registry import VARIANTS, Variant
from resources.evaluated import (
    Evaluated,
    Watched,
    evaluated,
    read_comparisons,
    read_report,
    watched,
)
from resources.guards import (
    checkpoint_key,
    refuse,
    refuse_throwaway_instance,
    require_checkpoint,
    require_dataset,
    require_manifest,
)
from resources.reporting import Stopwatch, artefact_metadata, layout_metadata, say
from resources.workspace import Workspace

EVALUATION_VERSION = "4"
REPORT_VERSION = "5"  # reports and comparisons: documents of another form


def report_key(which: Variant) -> dg.AssetKey:
    return dg.AssetKey(["eval_reports", which.name])


@dg.asset(
    partitions_def=RECIPE_PARTITIONS,
    deps=["datasets", *(checkpoint_key(which) for which in VARIANTS)],
    group_name="evaluate",
    kinds={"parquet"},
    owners=OWNERS,
    code_version=EVALUATION_VERSION,
)
def held_out_predictions(
    context: dg.AssetExecutionContext, workspace: Workspace
) -> dg.MaterializeResult:
    """Every checkpoint's probabilities for the windows of val and test, baselines' beside them."""
    refuse_throwaway_instance(context.instance)
    watch = Stopwatch()
    recipe = context.partition_key
    dataset, shards = require_dataset(workspace, recipe)
    checkpoints = {
        which: require_checkpoint(context.instance, workspace, recipe, which) for which in VARIANTS
    }
    for which, checkpoint in checkpoints.items():
        if checkpoint.header["train_meta"]["dataset_version"] != dataset.version:
            refuse(
                f"{which.name} was trained on another version of dataset {recipe}. Retrain: "
                f"phasewatch run --recipe {recipe}"
            )
    identity = fingerprint(
        {
            "stage": EVALUATION_VERSION,
            "dataset": dataset.version,
            "checkpoints": {w.name: c.artifact_id for w, c in checkpoints.items()},
            "seed": workspace.seed,
        }
    )
    folder = workspace.held_out_predictions_folder(recipe)
    manifest = None if workspace.force else reusable(folder, identity)
    reused = manifest is not None
    if manifest is None:
        table = read_dataset(dataset)
        held_out = table.filter(pl.col("split") != "train")
        classes = workspace.layout.phases
        parts = [
            _predictions(
                held_out, checkpoint, inputs(held_out, shards, which, workspace.layout), classes
            )
            for which, checkpoint in checkpoints.items()
        ]
        parts.append(shortcut_predictions(table, classes, MODES, workspace.seed))
        with draft(folder) as staged:
            path = staged.new_file("predictions", ".parquet")
            write_table(pl.concat(parts).to_arrow(), path)
            facts = {
                "recipe": recipe,
                "windows": dict(sorted(Counter(held_out["split"]).items())),
                "dataset_version": dataset.version,
                "checkpoints": {w.name: c.artifact_id for w, c in checkpoints.items()},
            }
            manifest = staged.commit(identity, facts)
    say(context, f"held-out predictions {recipe}: {'reused' if reused else 'done'}")
    return dg.MaterializeResult(
        metadata={
            **artefact_metadata(manifest, workspace.layout, reused=reused, watch=watch),
            **{f"{split}_windows": n for split, n in manifest.facts["windows"].items()},
            "checkpoints": dg.MetadataValue.json(manifest.facts["checkpoints"]),
            **layout_metadata(workspace.layout),
        },
        data_version=dg.DataVersion(manifest.version),
    )


def _predictions(
    windows: pl.DataFrame, checkpoint: Checkpoint, X: Any, classes: tuple[str, ...]
) -> pl.DataFrame:
    """A checkpoint's rows, and those of its ablations under names of their own."""
    name, mode = checkpoint.header["name"], checkpoint.header["mode"]
    predicted = {name: checkpoint.model.predict_proba(X)} | {
        f"{name}{ABLATED}{part}": proba for part, proba in checkpoint.model.ablations(X).items()
    }
    return pl.concat(
        prediction_rows(windows, known_as, mode, checkpoint.artifact_id, proba, classes)
        for known_as, proba in predicted.items()
    )


def build_report_asset(which: Variant) -> dg.AssetsDefinition:
    """The asset that evaluates one variant."""

    @dg.asset(
        key=report_key(which),
        partitions_def=RECIPE_PARTITIONS,
        deps=["held_out_predictions"],
        group_name="evaluate",
        kinds={"json"},
        owners=OWNERS,
        code_version=REPORT_VERSION,
        description=(
            f"How good {which.model} ({which.mode}) is on the test split: macro F1 with a 95 % "
            "interval over episodes, per class, profile and host, beside the baselines."
        ),
    )
    def eval_report(
        context: dg.AssetExecutionContext, workspace: Workspace
    ) -> dg.MaterializeResult:
        refuse_throwaway_instance(context.instance)
        watch = Stopwatch()
        recipe = context.partition_key
        remedy = f"phasewatch run --recipe {recipe}"
        dataset, _ = require_dataset(workspace, recipe)
        checkpoint = require_checkpoint(context.instance, workspace, recipe, which)
        predictions = _require_predictions(workspace, recipe)
        if predictions.facts["checkpoints"].get(which.name) != checkpoint.artifact_id:
            refuse(
                f"Held-out predictions {recipe} are of another {which.name}. Make them: {remedy}"
            )
        identity = fingerprint(
            {
                "stage": REPORT_VERSION,
                "variant": which.name,
                "predictions": predictions.version,
                "policy": asdict(workspace.report_policy),
            }
        )
        folder = workspace.report_folder(recipe) / which.name
        manifest = None if workspace.force else reusable(folder, identity)
        reused = manifest is not None
        if manifest is None:
            header = checkpoint.header
            report = evaluate(
                read_predictions(predictions),
                which.model,
                which.mode,
                workspace.layout.phases,
                dataset.facts,
                {
                    "recipe": recipe,
                    "dataset_version": dataset.version,
                    "contract_hash": header["contract_hash"],
                    "schema_hash": header["schema_hash"],
                    "validation_index_digest": dataset.facts["validation_index_digest"],
                    "code_commit": header["train_meta"]["code_commit"],
                    "config": header["config"],
                },
                workspace.report_policy,
                workspace.layout.window,
                header["train_meta"],
            )
            with draft(folder) as staged:
                staged.new_file("report", ".json").write_text(document_text(report))
                staged.new_file("card", ".md").write_text(model_card(header, report))
                manifest = staged.commit(identity, {"recipe": recipe, "variant": which.name})
        report = read_report(manifest)
        say(
            context,
            f"report {which.name} ({recipe}): macro F1 {report.macro_f1.value:.3f} "
            f"[{report.macro_f1.low:.3f}, {report.macro_f1.high:.3f}]"
            + (", reused" if reused else ""),
        )
        return dg.MaterializeResult(
            metadata={
                **artefact_metadata(manifest, workspace.layout, reused=reused, watch=watch),
                **_figures(report, which, recipe),
                "model_card": dg.MetadataValue.md(body_of(manifest.path("card").read_text())),
                **layout_metadata(workspace.layout, which.spec.input_kind),
            },
            data_version=dg.DataVersion(manifest.version),
        )

    return eval_report


def _require_predictions(workspace: Workspace, recipe: str) -> Manifest:
    return require_manifest(
        workspace.held_out_predictions_folder(recipe),
        f"Held-out predictions {recipe}",
        f"phasewatch run --recipe {recipe}",
    )


def _figures(report: EvalReport, which: Variant, recipe: str) -> dict[str, Any]:
    from evaluation.charts import confusion_png  # Matplotlib: slow to load, and needed here only

    picture = confusion_png(report.confusion, f"{which.name}, {recipe}")
    encoded = base64.b64encode(picture).decode()
    calibration, detection = report.calibration, report.detection
    figures = {
        "macro_f1": report.macro_f1.value,
        "macro_f1_low": report.macro_f1.low,
        "macro_f1_high": report.macro_f1.high,
        "ece": calibration.as_trained.ece.value,
        "ece_scaled": calibration.scaled.ece.value,
        "brier": calibration.as_trained.brier.value,
        "detected_share": detection.detected_share.value,
        "median_delay_s": detection.median_delay_s.value,
        "false_alarms_per_hour": detection.false_alarms_per_hour.value,
        "test_windows": report.n_windows,
        "test_episodes": report.n_episodes,
        "checkpoint_id": report.checkpoint_id,
        "confusion": dg.MetadataValue.md(f"![confusion](data:image/png;base64,{encoded})"),
        "warnings": dg.MetadataValue.md(
            "\n".join(f"- {sentence(warning)}" for warning in report.warnings) or "none"
        ),
        **{f"f1_{row.name}": row.f1.value for row in report.per_class},
        **{f"baseline_{row.name}": row.macro_f1.value for row in report.baselines},
    }
    return {name: value for name, value in figures.items() if value is not None}


def read_predictions(manifest: Manifest) -> pl.DataFrame:
    """The table of held-out predictions."""
    table = pl.from_arrow(read_table(manifest.path("predictions")))
    assert isinstance(table, pl.DataFrame)
    return table


REPORT_ASSETS = [build_report_asset(which) for which in VARIANTS]


@dg.asset(
    partitions_def=RECIPE_PARTITIONS,
    deps=["held_out_predictions"],
    group_name="evaluate",
    kinds={"json"},
    owners=OWNERS,
    code_version=REPORT_VERSION,
)
def comparisons(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Which model is better than which, paired on the same resampled test episodes."""
    refuse_throwaway_instance(context.instance)
    watch = Stopwatch()
    recipe = context.partition_key
    dataset, _ = require_dataset(workspace, recipe)
    predictions = _require_predictions(workspace, recipe)
    if predictions.facts["dataset_version"] != dataset.version:
        refuse(
            f"Held-out predictions {recipe} are of another dataset. Make them: "
            f"phasewatch run --recipe {recipe}"
        )
    identity = fingerprint(
        {
            "stage": REPORT_VERSION,
            "predictions": predictions.version,
            "policy": asdict(workspace.report_policy),
        }
    )
    folder = workspace.comparisons_folder(recipe)
    manifest = None if workspace.force else reusable(folder, identity)
    reused = manifest is not None
    if manifest is None:
        document = compare(
            read_predictions(predictions),
            [(which.model, which.mode) for which in VARIANTS],
            workspace.layout.phases,
            dataset.facts,
            {"recipe": recipe, "dataset_version": dataset.version},
            workspace.report_policy,
        )
        with draft(folder) as staged:
            staged.new_file("comparisons", ".json").write_text(document_text(document))
            manifest = staged.commit(identity, {"recipe": recipe})
    families = read_comparisons(manifest).families
    say(context, f"comparisons {recipe}: {'reused' if reused else 'done'}")
    return dg.MaterializeResult(
        metadata={
            **artefact_metadata(manifest, workspace.layout, reused=reused, watch=watch),
            "comparisons": sum(len(family.comparisons) for family in families),
            **{
                f"reference_{family.mode}": family.reference.model
                for family in families
                if family.reference
            },
            **layout_metadata(workspace.layout),
        },
        data_version=dg.DataVersion(manifest.version),
    )


@dg.asset(
    deps=[
        dg.AssetDep(key, partition_mapping=EVERY_PARTITION)
        for key in (*map(report_key, VARIANTS), "comparisons", "drift")
    ],
    group_name="evaluate",
    kinds={"html"},
    owners=OWNERS,
    freshness_policy=FRESH,
    code_version=EVALUATION_VERSION,
)
def report(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """One page on every checkpoint and recipe evaluated so far, to be read by people."""
    refuse_throwaway_instance(context.instance)
    watch = Stopwatch()
    found = evaluated(workspace)
    for item in found.left_out:
        say(context, f"report page: {item['name']} ({item['recipe']}) left out: {item['why']}")
    if not found.reports:
        refuse("No current evaluation report. Make one: phasewatch run")
    watching = watched(workspace)
    page = render_report(
        found.reports, _facts(workspace, found, watching), found.comparisons, watching.batches
    )
    write_atomically(workspace.report_page, page.encode())
    say(context, f"report page: {workspace.report_page}")
    return dg.MaterializeResult(
        metadata={
            "path": dg.MetadataValue.path(str(workspace.report_page)),
            "reports": len(found.reports),
            "comparisons": len(found.comparisons),
            "left_out": dg.MetadataValue.json(found.left_out),
            "bytes": len(page.encode()),
            "seconds": watch.seconds,
            **layout_metadata(workspace.layout),
        },
        data_version=dg.DataVersion(file_sha256(workspace.report_page)),
    )


def _facts(workspace: Workspace, found: Evaluated, watching: Watched) -> dict[str, Any]:
    verdicts: Counter[str] = Counter()
    for batch in workspace.listing().batches:
        index = workspace.batch_manifests(batch)[STAGES[0]]
        verdicts.update(index.facts["verdicts"] if index else {})
    return {
        "store": workspace.store,
        "episodes": verdicts.total(),
        "verdicts": dict(verdicts),
        "code_commit": code_commit(),
        "generated_from": found.versions,
        "left_out": found.left_out,
        "champion": watching.champion,
        "not_compared": watching.n_others,
    }
