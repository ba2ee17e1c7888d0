"""Comparisons: paired on the same weights, adjusted within families, every pair there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from held_out import (
    BAD,
    CLASSES,
    GOOD,
    IDENTITY,
    POLICY,
    WINDOWS,
    check_schema,
    dataset,
    guess,
    predictions,
    report_on,
)
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from evaluation.bootstrap import resampling
from evaluation.comparisons import compare, holm, p_value
from evaluation.figures import ReportPolicy
from evaluation.scores import BASELINES, GUESSES, SHORTCUTS, split_predictions

MODELS = ("gbt", "cnn", "knn")
VARIANTS = [(model, mode) for model in MODELS for mode in ("realistic", "oracle")]
TOLD = {"gbt": GOOD, "cnn": guess(WINDOWS, 0.6, 4), "knn": BAD} | dict.fromkeys(SHORTCUTS, BAD)
ON_VAL = TOLD | {"gbt": BAD, "cnn": GOOD}  # another is best there
TABLE = predictions(WINDOWS, TOLD, ON_VAL)
WHOSE = {name: IDENTITY[name] for name in ("recipe", "dataset_version")}


def compared(
    table: Any, variants: Any = VARIANTS, identity: Any = WHOSE, policy: Any = POLICY
) -> dict[str, Any]:
    """A document as JSON has it."""
    document = compare(table, variants, CLASSES, dataset(), identity, policy)
    return document.model_dump(mode="json")


def comparisons(recipe: str = "host", variants: Any = VARIANTS, policy: Any = POLICY) -> Any:
    identity = WHOSE | {"recipe": recipe}
    return compared(TABLE, variants, identity, policy)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return comparisons()


def family(document: dict[str, Any], name: str, mode: str | None = "realistic") -> dict[str, Any]:
    [found] = [f for f in document["families"] if (f["name"], f["mode"]) == (name, mode)]
    return found


def pairs(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(c["model"], c["other"]["model"]) for c in found["comparisons"]]


def test_the_document_is_what_the_schema_says(document: dict[str, Any]):
    check_schema(document)
    assert document == comparisons()


def test_a_model_is_compared_with_itself_without_a_part():
    told = TOLD | {"knn:labels_alone": GOOD}
    table = predictions(WINDOWS, told, ON_VAL | {"knn:labels_alone": GOOD})
    document = compared(table)
    check_schema(document)
    found = family(document, "ablations")
    assert pairs(found) == [("knn", "knn:labels_alone")]
    [knn], [part] = (
        [p["macro_f1"]["value"] for p in document["predictors"]
         if (p["model"], p["mode"]) == (name, "realistic")]
        for name in ("knn", "knn:labels_alone")
    )  # fmt: skip
    assert found["comparisons"][0]["value"] == pytest.approx(knn - part)
    assert [p["kind"] for p in document["predictors"] if ":" in p["model"]] == ["ablation"] * 2
    assert not [f for f in comparisons()["families"] if f["name"] == "ablations"]


def test_every_question_is_asked_of_everyone(document: dict[str, Any]):
    assert pairs(family(document, "pairs")) == [("gbt", "cnn"), ("gbt", "knn"), ("cnn", "knn")]
    assert pairs(family(document, "baselines")) == [(m, b) for m in MODELS for b in BASELINES]
    modes = family(document, "modes", None)["comparisons"]
    assert [(c["model"], c["mode"], c["other"]["mode"]) for c in modes] == [
        (model, "oracle", "realistic") for model in MODELS
    ]
    for found in document["families"]:
        for c in found["comparisons"]:
            assert found["mode"] in (None, c["mode"])
            assert c["checkpoint_id"] == f"{c['model']}-{c['mode']}"


def test_the_reference_is_chosen_on_validation_and_compared_on_test(document: dict[str, Any]):
    found = family(document, "reference")
    assert found["reference"]["model"] == "cnn"
    assert pairs(found) == [("gbt", "cnn"), ("knn", "cnn")]
    assert found["comparisons"][0]["value"] > 0  # on test the other one is better
    assert found["comparisons"][0]["split"] == "test"
    of_equals = family(document, "reference", "oracle")
    assert of_equals["reference"]["model"] == "gbt"


def test_a_difference_is_paired_and_its_p_counted_by_hand(document: dict[str, Any]):
    one, other = (split_predictions(TABLE, m, "realistic", CLASSES) for m in ("gbt", "knn"))
    bootstrap, _ = resampling("host", one, POLICY)
    differences = []
    for weights in np.concatenate(list(bootstrap.weights())).astype(int):
        drawn = np.repeat(np.arange(len(one.actual)), weights[one.episode])
        present = np.unique(one.actual[drawn])
        differences.append(
            np.subtract(
                *(
                    f1_score(m.actual[drawn], m.predicted[drawn], labels=present, average="macro",
                             zero_division=0)
                    for m in (one, other)
                )
            )
        )  # fmt: skip
    observed = np.subtract(
        *(f1_score(m.actual, m.predicted, average="macro") for m in (one, other))
    )
    found = family(document, "pairs")["comparisons"][1]
    assert found["value"] == pytest.approx(observed)
    assert [found["low"], found["high"]] == pytest.approx(
        np.quantile(differences, [0.025, 0.975]).tolist()
    )
    k = sum(abs(d - observed) >= abs(observed) for d in differences)
    assert found["p"] == pytest.approx((1 + k) / 101)


def test_p_values():
    replicates = np.array([0.1, 0.2, 0.3, 0.4, 0.6, np.nan])
    assert p_value(0.3, replicates) == (1 + 1) / 6  # 0.6 is as far from 0.3 as 0.3 from 0
    assert p_value(-0.3, -replicates) == p_value(0.3, replicates)
    assert p_value(0.0, np.zeros(99)) == 1.0
    assert p_value(5.0, np.full(99, 5.0)) == 0.01
    random = np.random.default_rng(0)
    assert p_value(1.0, random.normal(1.0, 0.5, 100_000)) == pytest.approx(0.0455, abs=0.003)


def test_p_values_are_uniform_where_nothing_differs():
    random = np.random.default_rng(1)
    found = [
        p_value(sample.mean(), random.choice(sample, (400, 50)).mean(axis=1))
        for sample in random.normal(size=(300, 50))
    ]
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.08)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float]):
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.3):
        rejected: set[int] = set()
        for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[i] * (len(p) - step) > level:
                break
            rejected.add(i)
        assert {i for i, value in enumerate(adjusted) if value <= level} == rejected


def test_p_is_adjusted_within_its_family_alone(document: dict[str, Any]):
    for found in document["families"]:
        p = [c["p"] for c in found["comparisons"]]
        assert [c["p_holm"] for c in found["comparisons"]] == holm(p)
        assert all(c["p_holm"] >= c["p"] for c in found["comparisons"])


def test_reports_and_comparisons_say_the_same(document: dict[str, Any]):
    report = report_on(TABLE)
    [gbt] = [p for p in document["predictors"] if (p["model"], p["mode"]) == ("gbt", "realistic")]
    for bound in ("value", "low", "high"):
        assert gbt["macro_f1"][bound] == pytest.approx(report["macro_f1"][bound])
    assert gbt["val_macro_f1"]["value"] == report["val_macro_f1"]["value"]
    mine = [c for c in family(document, "baselines")["comparisons"] if c["model"] == "gbt"]
    for comparison, baseline in zip(mine, report["baselines"], strict=True):
        assert comparison["other"] == baseline["difference"]["other"]
        for bound in ("value", "low", "high"):
            assert comparison[bound] == pytest.approx(baseline["difference"][bound])


def test_guessing_has_a_paired_interval_wider_than_luck_alone(document: dict[str, Any]):
    by_name = {(p["model"], p["mode"]): p for p in document["predictors"]}
    for name in GUESSES:
        figure = by_name[name, "realistic"]["macro_f1"]
        assert figure["low"] < figure["value"] < figure["high"]
        assert by_name[name, "realistic"]["val_macro_f1"] is None
    found = family(document, "baselines")["comparisons"]
    assert all(c["low"] > 0 for c in found if c["model"] == "gbt")
    assert {c["metric"] for c in found} == {"macro_f1_difference"}


def test_one_model_in_one_mode_is_compared_with_baselines_alone():
    found = comparisons(variants=[("gbt", "realistic")])
    check_schema(found)
    assert [(f["name"], len(f["comparisons"])) for f in found["families"]] == [
        ("reference", 0), ("pairs", 0), ("baselines", len(BASELINES)), ("modes", 0),
    ]  # fmt: skip


def test_in_recipe_sample_the_weights_are_those_of_two_stages():
    found, other = comparisons("sample"), comparisons("host")
    assert found["bootstrap"]["stages"] == ["sample", "episode"]
    assert (
        family(found, "pairs")["comparisons"][0]["low"]
        != (family(other, "pairs")["comparisons"][0]["low"])
    )


@pytest.mark.filterwarnings("error")
def test_one_test_episode_of_one_class_is_compared_too():
    windows = [w | {"actual": "clean"} for w in WINDOWS if w["episode_id"] == "E000"]
    told = {name: ["clean"] * len(windows) for name in TOLD}
    table = predictions(windows, told)
    found = compared(table, policy=ReportPolicy(100))
    check_schema(found)
    assert found["roster"] == ["clean"]
    for c in family(found, "pairs")["comparisons"]:
        assert (c["value"], c["low"], c["high"], c["p"]) == (0.0, None, None, 1.0)


@pytest.mark.parametrize("episodes", [1, 3, 4])
def test_fewer_than_four_test_episodes_prove_nothing(episodes: int):
    ids = sorted({w["episode_id"] for w in WINDOWS})[:episodes]
    windows = [w for w in WINDOWS if w["episode_id"] in ids]
    actual = [w["actual"] for w in windows]
    told = {name: ["clean"] * len(windows) for name in TOLD} | {"gbt": actual}
    found = compared(predictions(windows, told), policy=ReportPolicy(100))
    check_schema(found)
    few = episodes < 4
    for c in (c for c in family(found, "pairs")["comparisons"] if c["model"] == "gbt"):
        assert c["value"] > 0
        assert (c["low"] is None, c["p"] == 1.0, (c["note"] or {}).get("code")) == (
            (True, True, "too_few_episodes") if few else (False, False, None)
        )
