"""Drift: each new batch beside what the champion was trained on."""

import dagster as dg
import polars as pl

from assets.partitions import BATCHES, OWNERS
from evaluation.datasets import inputs, read_channel_means
from evaluation.documents import BatchDrift, DriftCheck, DriftReference, DriftRow, document_text
from evaluation.drift import compare_batch, figures
from evaluation.scores import phases_of
from evaluation.wording import DRIFT_CHECKS, findings, sentence
from features.manifest import Manifest, write_atomically
from features.shards import read_table
from models.champion import ChampionError, Reign, kept_path, load_kept, read_champion
from models.checkpoint import Checkpoint, CheckpointError
from resources.guards import refuse, refuse_throwaway_instance, require_batches
from resources.promotion import REFERENCE_FILE, read_training
from resources.reporting import Stopwatch, say
from resources.workspace import Workspace

DRIFT_VERSION = "2"


def check_name(check: str) -> str:
    return f"{check}_as_in_training"


@dg.asset(
    partitions_def=BATCHES,
    deps=["validation_index", "tensor_shards", "feature_shards"],
    check_specs=[
        dg.AssetCheckSpec(
            check_name(name), asset="drift", description=means, partitions_def=BATCHES
        )
        for name, means in DRIFT_CHECKS.items()
    ],
    group_name="ingest",
    kinds={"json"},
    owners=OWNERS,
    code_version=DRIFT_VERSION,
)
def drift(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """How a batch differs from the champion's training data, beyond what chance does.

    Compares and says, and stops nothing: without a champion there is nothing to compare with.
    """
    refuse_throwaway_instance(context.instance)
    watch = Stopwatch()
    batch = context.partition_key
    shards = require_batches(workspace, [batch])[batch]
    try:
        reign = read_champion(workspace.champion_folder)
        if reign is None:
            return _skipped(context, "there is no champion. Promote one: phasewatch promote MODEL")
        checkpoint = load_kept(workspace.champion_folder, reign, workspace.layout)
    except (ChampionError, CheckpointError) as error:
        return _skipped(context, str(error))
    document = _compared(workspace, batch, shards, reign, checkpoint)
    path = workspace.drift_path(batch)
    write_atomically(path, document_text(document).encode())
    say(context, f"drift {batch}: {document.severity}")
    return dg.MaterializeResult(
        metadata={
            "severity": document.severity,
            "champion": f"{reign.name} ({reign.served})",
            "checkpoint_id": checkpoint.artifact_id,
            "path": str(path),
            "seconds": watch.seconds,
            "notes": dg.MetadataValue.md(
                "\n".join(f"- {sentence(n)}" for n in document.notes) or "none"
            ),
            **figures(document),
        },
        check_results=[_result(check) for check in document.checks],
    )


def _skipped(context: dg.AssetExecutionContext, why: str) -> dg.MaterializeResult:
    say(context, f"drift {context.partition_key}: not compared, {why}")
    return dg.MaterializeResult(
        metadata={"severity": "not compared", "why": why},
        check_results=[
            dg.AssetCheckResult(
                check_name=check_name(name), passed=True, description=f"Not compared: {why}"
            )
            for name in DRIFT_CHECKS
        ],
    )


def _compared(
    workspace: Workspace,
    batch: str,
    shards: dict[str, Manifest],
    reign: Reign,
    checkpoint: Checkpoint,
) -> BatchDrift:
    path = kept_path(workspace.champion_folder, reign).with_name(REFERENCE_FILE)
    try:
        trained = DriftReference.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        refuse(
            f"{path}: not what batches are compared with ({error}). Restore the file, or promote "
            f"anew: phasewatch promote {reign.model}"
        )
    which, layout = checkpoint.variant, workspace.layout
    windows = read_channel_means(shards["feature_shards"], trained.channels).with_columns(
        batch=pl.lit(batch)
    )
    X = inputs(windows, {batch: shards}, which, layout)
    predicted = phases_of(checkpoint.model.predict_proba(X), layout.phases)
    training = read_training(workspace, reign, reign.served)["episode_id"]
    index = read_table(shards["validation_index"].path("index"), ["host_id", "verdict"])
    return compare_batch(
        batch,
        index["host_id"][0].as_py(),
        windows.with_columns(
            pl.Series("predicted", predicted, dtype=pl.String),
            pl.col("episode_id").is_in(training.implode()).alias("seen_in_training"),
        ),
        index["verdict"].to_pylist(),
        trained,
        {
            "champion": {
                "model": reign.model,
                "mode": reign.mode,
                "recipe": reign.served,
                "checkpoint_id": checkpoint.artifact_id,
                "dataset_version": checkpoint.header["train_meta"]["dataset_version"],
            }
        },
        workspace.seed,
    )


def _result(check: DriftCheck) -> dg.AssetCheckResult:
    severity, rows = check.severity, check.rows
    table = {}
    columns = [name for name in DriftRow.model_fields if any(dict(row)[name] is not None
                                                             for row in rows)]  # fmt: skip
    if rows:
        table["table"] = dg.MetadataValue.table(
            [
                dg.TableRecord({c: "" if dict(row)[c] is None else dict(row)[c] for c in columns})
                for row in rows
            ]
        )
    return dg.AssetCheckResult(
        check_name=check_name(check.name),
        passed=severity == "ok",
        severity=dg.AssetCheckSeverity.ERROR if severity == "fail" else dg.AssetCheckSeverity.WARN,
        description=" ".join(findings(check)) or DRIFT_CHECKS[check.name],
        metadata={
            **{
                name: value
                for name in ("value", "expected", "chance")
                if (value := getattr(check, name)) is not None
            },
            "changed": sum(row.severity not in (None, "ok") for row in rows),
            **table,
        },
    )
