"""The model card of a checkpoint: Markdown with Hugging Face's headings and YAML front matter.

Arranges the checkpoint's header and its evaluation report; computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from datasets.splits import RECIPES
from evaluation import wording
from evaluation.documents import EvalReport
from evaluation.templating import templates
from models.registry import MODELS

_RULE = "---\n"
_SEEN = {
    "realistic": "what a deployed guest sees of itself: its own counters and its network flows",
    "oracle": "what a deployed guest sees of itself, plus the host's view of the VM, which does "
    "not exist in deployment",
}


def model_card(header: Mapping[str, Any], report: EvalReport) -> str:
    """The card, as text: the same header and report give the same bytes.

    Raises:
        ValueError: the report is about another checkpoint.
    """
    if header["artifact_id"] != report.checkpoint_id:
        raise ValueError(
            f"model card: the report is about checkpoint {report.checkpoint_id}, the header is of "
            f"{header['artifact_id']}; evaluate again"
        )
    spec = MODELS.get(header["name"])
    body = (
        templates(autoescape=False)
        .get_template("card.md.j2")
        .render(
            header=header,
            report=report,
            meta=header["train_meta"],
            description=spec.description if spec else "",
            recipe=RECIPES.get(report.recipe, ""),
            seen=_SEEN.get(header["mode"], header["mode"]),
            n_inputs=sum(header["keep_mask"]),
            alarms=wording.alarms(report.detection),
            untested=wording.untested(report),
            gaps=wording.gaps(report),
            warnings=[
                wording.sentence(warning)
                for warning in report.warnings
                if warning.code not in wording.DATASET_WARNINGS
            ],
        )
    )
    front = yaml.safe_dump(_front_matter(header, report), sort_keys=False, allow_unicode=True)
    return f"{_RULE}{front}{_RULE}{body}"


def body_of(card: str) -> str:
    """A card without its front matter, for places that show Markdown only."""
    return card.split(f"\n{_RULE}", 1)[1]


def _front_matter(header: Mapping[str, Any], report: EvalReport) -> dict[str, Any]:
    spec = MODELS.get(header["name"])
    detection, calibration = report.detection, report.calibration.as_trained
    figures = {
        "Macro F1": report.macro_f1,
        "Expected calibration error": calibration.ece,
        "Brier score": calibration.brier,
        "Attacks detected": detection.detected_share,
        "Median delay (s)": detection.median_delay_s,
        "False alarms per hour": detection.false_alarms_per_hour,
        "Clean time alarmed": detection.clean_time_alarmed,
    }
    return {
        "model_name": f"phasewatch {header['name']} {header['mode']}, recipe {report.recipe}",
        **({"library_name": spec.libraries[0]} if spec and len(spec.libraries) == 1 else {}),
        "pipeline_tag": "tabular-classification",
        "tags": ["phasewatch", "time-series-classification", "intrusion-detection"],
        "metrics": ["f1"],
        "model-index": [
            {
                "name": f"{header['name']}_{header['mode']}",
                "results": [
                    {
                        "task": {
                            "type": "tabular-classification",
                            "name": "Phase of a compromise, window by window",
                        },
                        "dataset": {
                            "type": "phasewatch",
                            "name": f"phasewatch episodes, recipe {report.recipe}",
                            "config": report.recipe,
                            "split": report.split,
                            "revision": report.dataset_version,
                        },
                        "metrics": [
                            {"type": figure.metric, "name": name, "value": figure.value}
                            for name, figure in figures.items()
                            if figure.value is not None
                        ],
                    }
                ],
            }
        ],
    }
