"""The list of stages, in the order of the data's way. Everything that lists stages reads it.

The order counts: the first stage of a job stands for it where a request is identified.
"""

from __future__ import annotations

from features.registry import MODES
from models.registry import VARIANTS
from stages.alarm_rules import AlarmRules
from stages.champion import ChampionStage
from stages.checkpoints import Checkpoints
from stages.datasets import Datasets
from stages.decisions import Decisions
from stages.device_bundle import DeviceBundle
from stages.drift import Drift
from stages.evaluation import Comparisons, EvalReports
from stages.held_out_predictions import HeldOutPredictions
from stages.host_rotation import HostRotationStage
from stages.ingest import Ingest
from stages.likeness import LikenessStage
from stages.predictions import Predictions
from stages.report_page import ReportPage
from stages.stage import Stage

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Ingest(),
        Drift(),
        Datasets(),
        *map(Checkpoints, VARIANTS),
        *map(LikenessStage, MODES),
        HeldOutPredictions(),
        *map(AlarmRules, VARIANTS),
        *map(EvalReports, VARIANTS),
        Comparisons(),
        HostRotationStage(),
        Decisions(),
        ReportPage(),
        ChampionStage(),
        Predictions(),
        DeviceBundle(),
    )
}
