"""A model card says what header and report say, in a form that others can read."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import yaml
from held_out import GOOD, WINDOWS, report_of
from lab import RECIPE, Lab

from evaluation import cards
from evaluation.cards import body_of
from evaluation.documents import EvalReport
from evaluation.wording import conditional_on, measure, number
from models.checkpoint import checkpoint_path, read_header
from models.registry import VARIANTS
from stages.manifest import read_manifest

HEADINGS = [
    "## Model Details", "## Uses", "## Bias, Risks, and Limitations",
    "## How to Get Started with the Model", "## Training Details", "## Evaluation",
    "## Environmental Impact", "## Technical Specifications",
]  # fmt: skip
BAD = ["clean"] * len(WINDOWS)


def header() -> dict[str, Any]:
    return {
        "name": "gbt", "mode": "realistic", "input_kind": "summary", "n_classes": 5,
        "phases": ["clean", "armed"], "keep_mask": [True] * 145 + [False] * 85,
        "config": {"n_rounds": 12, "learning_rate": 0.05}, "contract_hash": "c" * 64,
        "sidecar": "gbt_realistic.0123456789ab.ubj", "sidecar_bytes": 12345,
        "artifact_id": "gbt-realistic",
        "train_meta": {
            "train_windows": 1234, "val_windows": 56, "seed": 7, "device": "cpu", "best_step": 3,
            "code_commit": "k" * 40, "libraries": {"xgboost": "3.2.0"},
        },
    }  # fmt: skip


def report(**facts: Any) -> dict[str, Any]:
    return report_of(WINDOWS, GOOD, BAD, BAD, **facts)


def model_card(header: dict[str, Any], report: dict[str, Any]) -> str:
    return cards.model_card(header, EvalReport.model_validate(report))


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return yaml.safe_load(card[4 : card.index("\n---\n", 4)])


def test_a_rate_of_little_clean_time_is_shown_as_what_was_counted() -> None:
    one = report()
    one["detection"]["clean_hours"]["test"] = 5 / 3600
    one["warnings"] = []
    one["detection"]["false_alarms_per_hour"] |= {"value": 720.0, "low": 18.2, "high": 4011.0}
    card = model_card(header(), one)
    assert "| 1 in 5 s |" in card
    assert "720 |" not in card
    assert "4011" not in body_of(card)


def test_the_figures_are_those_of_the_report() -> None:
    one = report(untested_profiles=["scan-and-dial"])
    card = model_card(header(), one)
    (entry,) = front_matter(card)["model-index"]
    (result,) = entry["results"]
    assert result["dataset"]["revision"] == one["dataset_version"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["macro_f1"] == one["macro_f1"]["value"]
    assert values["ece"] == one["calibration"]["as_trained"]["ece"]["value"]
    delay = one["detection"]["median_delay_s"]["value"]
    assert values.get("median_delay_s") == delay
    for row in one["per_class"]:
        assert re.search(
            rf"\| {row['name']} \| {row['support']} \| {number(row['f1']['value'])} \|", card
        )
    low, high = one["macro_f1"]["low"], one["macro_f1"]["high"]
    assert f"| {number(one['macro_f1']['value'])} | {number(low)} to {number(high)} |" in card
    assert measure(one["detection"]["false_alarms_per_hour"]["value"]) in card
    assert "scan-and-dial was never tested" in card
    condition = EvalReport.model_validate(one).bootstrap.conditional_on
    assert conditional_on(condition) in card
    assert "145 features per window" in card
    assert "| n_rounds | 12 |" in card
    assert "1\u202f234 training" in card


def test_it_has_the_headings_of_the_template_in_their_order() -> None:
    body = body_of(model_card(header(), report()))
    places = [body.index(f"\n{heading}\n") for heading in HEADINGS]
    assert places == sorted(places)
    assert body.startswith("\n# Model Card for gbt realistic, recipe host\n")
    assert "{{" not in body
    assert "\n\n\n" not in body


def test_what_has_no_value_is_no_metric_and_no_none() -> None:
    one = report()
    one["detection"]["median_delay_s"] |= {"value": None, "low": None, "high": None}
    card = model_card(header(), one)
    metrics = front_matter(card)["model-index"][0]["results"][0]["metrics"]
    assert "median_delay_s" not in [metric["type"] for metric in metrics]
    assert not re.search(r"\b(None|nan|Undefined)\b", card)


def test_a_name_breaks_neither_table_nor_front_matter() -> None:
    evil = "a|b <b>\n---\nx: [1"
    one = report() | {"recipe": evil}
    one["per_profile"][0]["name"] = one["per_class"][0]["name"] = evil
    card = model_card(header() | {"name": evil}, one)
    assert front_matter(card)["model-index"][0]["results"][0]["dataset"]["config"] == evil
    rows = [line for line in card.splitlines() if line.startswith("| a\\|b &lt;b>")]
    assert len(rows) == 2


def test_the_oracle_is_not_for_deployment() -> None:
    assert "Deployment on a guest" not in model_card(header(), report())
    assert "Deployment on a guest" in model_card(header() | {"mode": "oracle"}, report())


def test_equal_input_gives_equal_bytes() -> None:
    one = report()
    before = copy.deepcopy(one)
    assert model_card(header(), one) == model_card(header(), one)
    assert one == before


def test_a_report_on_another_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluate again"):
        model_card(header() | {"artifact_id": "other"}, report())


def test_every_report_has_its_card_beside_it(trained: Lab) -> None:
    for which in VARIANTS:
        manifest = read_manifest(trained.workspace.report_page.parent / RECIPE / which.name)
        assert manifest is not None
        card = manifest.path("card").read_text()
        one = json.loads(manifest.path("report").read_text())
        path = checkpoint_path(trained.workspace.checkpoint_folder(RECIPE), which)
        assert card == model_card(read_header(path), one)
        assert front_matter(card)["model-index"][0]["name"] == which.name
        assert str(trained.artifacts) not in card
