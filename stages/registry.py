"""The list of stages, in the order of the data's way. Everything that lists stages reads it.

The order counts: the first stage of a job stands for it where a request is identified.
"""

from __future__ import annotations

from features.registry import MODES
from models.registry import VARIANTS
from stages.alarm_rules import AlarmRulesStage
from stages.champion import ChampionStage
from stages.checkpoints import CheckpointsStage
from stages.datasets import DatasetsStage
from stages.decisions import DecisionsStage
from stages.device_bundle import DeviceBundleStage
from stages.drift import DriftStage
from stages.evaluation import ComparisonsStage, EvalReportsStage
from stages.held_out_predictions import HeldOutPredictionsStage
from stages.host_rotation import HostRotationStage
from stages.ingest import IngestStage
from stages.likeness import LikenessStage
from stages.predictions import PredictionsStage
from stages.report_page import ReportPageStage
from stages.stage import Stage

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        IngestStage(),
        DriftStage(),
        DatasetsStage(),
        *map(CheckpointsStage, VARIANTS),
        *map(LikenessStage, MODES),
        HeldOutPredictionsStage(),
        *map(AlarmRulesStage, VARIANTS),
        *map(EvalReportsStage, VARIANTS),
        ComparisonsStage(),
        HostRotationStage(),
        DecisionsStage(),
        ReportPageStage(),
        ChampionStage(),
        PredictionsStage(),
        DeviceBundleStage(),
    )
}
