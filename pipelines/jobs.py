"""Jobs: what is run together. Their assets follow from the stages."""

from typing import Any

import dagster as dg

from assets.factory import asset_keys
from stages.registry import STAGES

DESCRIPTIONS = {
    "ingest": "Validate a batch's episodes, write its shards, and report its drift.",
    "retrain": "Split, train every model, evaluate, compare and report, for one recipe.",
    "host_rotation": "Hold out every host once, for gbt and the best net; only on request.",
    "decisions": "Count the alarms of live machines and what operators answered.",
    "score": "Score a batch's episodes with the champion, or with a named checkpoint.",
    "challenge": "Try a challenger against the champion; promote it only on request.",
    "bundle": "Put the champion into one folder for scoring on a device.",
}


def build_jobs() -> dict[str, Any]:
    """The jobs by name.

    Raises:
        KeyError: a stage is of a job that ``DESCRIPTIONS`` lacks.
    """
    for stage in STAGES.values():
        if stage.job not in DESCRIPTIONS:
            raise KeyError(f"stage {stage.name}: describe its job {stage.job!r} in {__file__}")
    return {
        name: dg.define_asset_job(
            name,
            selection=dg.AssetSelection.assets(*asset_keys(name)),
            description=description,
        )
        for name, description in DESCRIPTIONS.items()
    }
