"""Jobs: what is run together."""

import dagster as dg

from assets.evaluation import report_key
from features.ingest import STAGES
from models.registry import VARIANTS
from resources.guards import checkpoint_key

INGEST_KEYS = [dg.AssetKey(stage) for stage in (*STAGES, "drift")]
RETRAIN_KEYS = [
    dg.AssetKey("datasets"),
    *(checkpoint_key(which) for which in VARIANTS),
    dg.AssetKey("held_out_predictions"),
    *(report_key(which) for which in VARIANTS),
    dg.AssetKey("comparisons"),
    dg.AssetKey("report"),
]

ingest = dg.define_asset_job(
    "ingest",
    selection=dg.AssetSelection.assets(*INGEST_KEYS),
    description="Validate a batch's episodes, write its shards, and say how it drifted.",
)

retrain = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.assets(*RETRAIN_KEYS),
    description="Split, train every model, evaluate, compare and report, for one recipe.",
)

score = dg.define_asset_job(
    "score",
    selection=dg.AssetSelection.assets("predictions"),
    description="Score a batch's episodes with the champion, or with a checkpoint that is named.",
)

challenge = dg.define_asset_job(
    "challenge",
    selection=dg.AssetSelection.assets("champion"),
    description="Try a challenger against the champion; it is promoted only where told to.",
)

JOBS = [ingest, retrain, score, challenge]
