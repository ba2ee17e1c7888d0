"""The report page says what the documents say, whatever their names, and keeps to itself."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from held_out import (
    CLASSES,
    FACTS,
    IDENTITY,
    POLICY,
    PROMOTED,
    TRAINING,
    WINDOWS,
    Page,
    check_schema,
    dataset,
    documents,
    plain_rule,
    predictions,
    render_report,
    report,
)

from datasets.splits import RECIPES
from evaluation.charts import confusion_png
from evaluation.documents import (
    SCHEMA_FILE,
    Confusion,
    DriftNote,
    Estimate,
    EvalReport,
    FigureNote,
    Leak,
    LearningCurve,
    Objection,
    ReportWarning,
    Timeline,
    schema_text,
)
from evaluation.drawing import PHASE_COLOURS, learning_curve, operating, path, timeline
from evaluation.report import evaluate
from evaluation.scores import BASELINES, SHORTCUTS
from evaluation.tables import tables
from evaluation.wording import (
    SENTENCES,
    clean_time,
    conditional_on,
    measure,
    number,
    rate,
    rate_span,
)
from features.registry import LAYOUT, MODES
from models.registry import MODELS, VARIANTS


def full() -> list[dict[str, Any]]:
    return [report(v.model, v.mode, recipe) for v in VARIANTS for recipe in RECIPES]


def comparisons() -> list[dict[str, Any]]:
    return copy.deepcopy(documents()[1])


def figures_in(value: Any) -> Any:
    """Every figure of a document, however deep."""
    if isinstance(value, dict):
        if "metric" in value:
            yield value
        else:
            for each in value.values():
                yield from figures_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from figures_in(each)


def page_of(*reports: dict[str, Any], **facts: Any) -> Page:
    return Page(render_report(reports, FACTS | facts))


def test_the_documents_are_what_the_schema_says() -> None:
    for document in itertools.chain(*documents()):
        check_schema(document)


def test_the_committed_schema_is_that_of_the_models() -> None:
    assert SCHEMA_FILE.read_text() == schema_text()  # else: python -m evaluation.documents


def test_every_code_has_a_sentence() -> None:
    codes = [
        code
        for remark in (ReportWarning, FigureNote, DriftNote, Objection, Leak)
        for code in get_args(remark.model_fields["code"].annotation)
    ]
    assert sorted(codes) == sorted(SENTENCES)  # no code twice


def test_every_model_mode_and_recipe_is_there() -> None:
    html = render_report(full(), FACTS)
    page = Page(html)
    for v in VARIANTS:
        for recipe in RECIPES:
            assert f"{v.model} {v.mode}, recipe {recipe}" in page.text
    assert "not evaluated" not in page.text
    assert "position-only" in page.text
    assert "1\u202f234 episodes" in html
    assert len(html.encode()) < 3_000_000


def test_each_section_has_the_numbers_of_its_report() -> None:
    reports, compared = documents()
    page = Page(render_report(reports, FACTS, compared))
    for one in reports:
        text = page.inside(f"{one['model']}-{one['mode']}-{one['recipe']}")
        assert f"{number(one['macro_f1']['value'])} macro F1" in text
        kept = [one["macro_f1"], one["val_macro_f1"]]
        kept += [row[name] for row in one["per_class"] for name in ("f1", "precision", "recall")]
        kept += [row["macro_f1"] for row in (*one["per_profile"], *one["per_host"])]
        kept += [
            one["calibration"][how][name]
            for how in ("as_trained", "scaled")
            for name in ("ece", "brier", "log_loss")
        ]
        kept += [one["detection"]["threshold"], one["detection"]["clean_time_alarmed"]]
        for figure in kept:
            assert number(figure["value"]) in text, figure
        for figure in (*kept[:1], *(row["f1"] for row in one["per_class"])):
            if figure["low"] is not None:
                assert f"{number(figure['low'])} to {number(figure['high'])}" in text, figure
        alarms = one["detection"]
        for name in ("median_delay_s", "false_alarms_per_hour"):
            assert measure(alarms[name]["value"]) in text
        assert f"{alarms['detected_episodes']} of {alarms['attacked_episodes']}" in text
        assert all(episode in text for episode in alarms["undetected"])
        assert one["timeline"]["episode_id"] in text
        for row in one["confusion"]["counts"]:
            assert " ".join(str(n) if n else "·" for n in row) in text


def test_every_comparison_is_there_with_its_interval_or_its_p() -> None:
    reports, compared = documents()
    page = Page(render_report(reports, FACTS, compared))
    text = page.inside("compared")
    for document in compared:
        for family in document["families"]:
            for row in family["comparisons"]:
                if family["name"] in ("reference", "modes"):
                    p = "p <0.001" if row["p_holm"] < 0.001 else f"p {number(row['p_holm'])}"
                    assert f"{row['model']} {number(row['value'], sign=True)} {p}" in text
                elif family["name"] == "baselines":
                    low = f"from {number(row['low'], sign=True)}"
                    assert f"{number(row['value'], sign=True)} {low}" in text
                else:
                    assert f"{round(100 * row['value']):+d}".replace("-", "−") in text
    assert "minus gbt , the best on validation" in text
    assert "oracle than position-only" in text  # the oracle's nonsense beats nobody
    assert page.inside("compared").count("not compared") == 6  # no document of two recipes


def test_without_comparisons_there_is_no_empty_section() -> None:
    page = page_of(report())
    assert "compared" not in page.ids


def test_what_is_best_is_decided_on_validation() -> None:
    modest, lucky = report("gbt"), report("cnn")
    modest["val_macro_f1"]["value"], lucky["val_macro_f1"]["value"] = 0.8, 0.7
    modest["macro_f1"]["value"], lucky["macro_f1"]["value"] = 0.61234, 0.91234
    text = page_of(modest, lucky).inside("short")
    assert "gbt 0.612 macro F1" in text
    assert "On test, cnn (0.912) does better than gbt" in text


def test_a_share_without_an_upper_end_has_no_interval() -> None:
    one = report()
    one["detection"]["median_delay_s"] |= {"value": 6.25, "low": 2.0, "high": 9.0}
    one["detection"]["clean_time_alarmed"] |= {
        "value": 0.0, "low": 0.0, "high": None, "note": {"code": "never_alarmed", "numbers": {}},
    }  # fmt: skip
    assert "or more" not in render_report([one], FACTS)


def test_in_short_says_how_good_the_alarms_are() -> None:
    one = report()
    alarms = one["detection"]
    alarms |= {
        "attacked_episodes": 5,
        "detected_episodes": 4,
        "false_alarms": {"val": 0, "test": 3},
    }
    alarms["clean_hours"]["test"] = 0.25
    alarms["median_delay_s"] |= {"value": 6.25, "low": 2.0, "high": None}
    alarms["false_alarms_per_hour"] |= {"value": 12.0, "low": 4.0, "high": 20.0}
    text = page_of(one).inside("short")
    assert (
        "4 of 5 attacks; half of all attacks within 6.25 s of their start (2.00 s or more)" in text
    )
    assert (
        "3 false alarms in 15.0 clean minutes: 12.0 per hour (4.00 to 20.0), budget 2 per hour; "
        in text
    )
    condition = EvalReport.model_validate(one).bootstrap.conditional_on
    assert conditional_on(condition) in text
    alarms["median_delay_s"] |= {"low": None}
    assert "half of all attacks within 6.25 s of their start." in page_of(one).inside("short")
    alarms["median_delay_s"]["value"] = None
    alarms["false_alarms_per_hour"] |= {"value": 0.0, "low": 0.0}
    text = page_of(one).inside("short")
    assert "4 of 5 attacks: fewer than half" in text
    assert "No false alarm in 15.0 clean minutes: 0 per hour (0 to 20.0)." in text


def test_a_rate_of_little_clean_time_is_shown_as_what_was_counted() -> None:
    """One false alarm in five seconds is not 720 per hour."""
    one = report()
    alarms, hours = one["detection"], 5 / 3600
    for each in (alarms, one["unfiltered_detection"]):
        each["clean_hours"]["test"] = hours
    for each in (alarms, one["unfiltered_detection"], *alarms["by_job"]):
        each["false_alarms_per_hour"] |= {"value": 720.0, "low": 18.2, "high": 4011.0}
    for each in alarms["by_job"]:
        each |= {"hours": hours, "false_alarms": 1}
    numbers = {"per_hour": 720.0, "hours": hours, "budget": 2.0, "val_hours": 0.5}
    one["warnings"] = [{"code": "false_alarms_over_budget", "numbers": numbers}]
    text = page_of(one).text
    assert "1 in 5 s" in text
    assert "1 false alarm in 5 clean seconds" in text
    assert not re.search(r"\b(720|18\.2|4011)\b", text)


@pytest.mark.parametrize(
    ("value", "hours", "cell", "interval"),
    [
        (None, 0.0, "–", ""),
        (10.01, 0.0999, "1 in 360 s", ""),
        (10.0, 0.1, "10.0", "1.00 to 20.0"),
        (0.0, 0.05, "0 in 180 s", ""),
    ],
)
def test_a_rate_needs_six_minutes(
    value: float | None, hours: float, cell: str, interval: str
) -> None:
    assert rate(value, hours) == cell
    assert rate_span(Estimate(value=value, low=1.0, high=20.0), hours) == interval


def test_every_figure_says_where_it_comes_from() -> None:
    one = report()
    titles = [value for name, value in page_of(one).attributes if name == "title"]
    for key in ("checkpoint_id", "dataset_version", "contract_hash", "schema_hash", "code_commit"):
        assert one[key] in titles
    assert "n_rounds 12" in page_of(one).inside("model-gbt")


def test_an_ablation_without_a_report_stands_with_its_model() -> None:
    reports, compared = documents()[0], comparisons()
    document = compared[0]
    without = copy.deepcopy(document["predictors"][0]) | {"kind": "ablation"}
    assert (without["model"], without["mode"]) == ("gbt", "realistic")
    without["model"] = "gbt:labels_alone"
    without["macro_f1"]["value"] = 0.54321
    document["predictors"].append(without)
    page = Page(render_report(reports, FACTS, compared))
    assert "trained without pseudo-labels , recipe host: macro F1 0.543" in page.inside("model-gbt")
    assert "Ablation" not in page.inside("model-cnn")
    row = copy.deepcopy(document["families"][0]["comparisons"][0])
    document["families"][0]["comparisons"].append(
        row | {"model": "gbt", "value": 0.12345, "p_holm": 0.04}
        | {"other": {"model": "gbt:labels_alone", "mode": "realistic", "checkpoint_id": "x"}}
    )  # fmt: skip
    text = Page(render_report(reports, FACTS, compared)).inside("model-gbt")
    assert "full model minus this ablation: +0.123" in text
    assert "Holm’s p 0.040" in text


def test_what_is_missing_is_said() -> None:
    text = page_of(report("gbt", "realistic", "host")).text
    for recipe in list(RECIPES)[1:]:
        assert f"recipe {recipe}: not evaluated" in text
    for v in VARIANTS:
        if (v.model, v.mode) != ("gbt", "realistic"):
            assert re.search(rf"Not evaluated: [^.]*{v.model} {v.mode}", text)


def test_what_is_left_out_is_said() -> None:
    item = {"recipe": "time", "name": "gbt_oracle", "why": "of another input layout"}
    assert "of another input layout: gbt_oracle (time)" in page_of(report(), left_out=[item]).text


def test_a_recipe_that_the_store_cannot_give_is_named_and_is_not_missing() -> None:
    why = "unavailable: the store has one recording session (2026-11-02)"
    reports = [one for one in full() if one["recipe"] != "session"]
    page = Page(render_report(reports, FACTS | {"unavailable": {"session": why}}, comparisons()))
    assert f"recipe session: {why}" in page.inside("short")
    assert "not evaluated" not in page.text
    assert "session" not in page.inside("model-gbt")


def test_alarms_accepted_with_the_champion_are_said() -> None:
    accepted = {
        "by": "ann",
        "since": PROMOTED["since"],
        "why": "a small corpus",
        "grounds": ["Loud."],
    }
    text = page_of(report(), **PROMOTED, accepted=accepted).text
    assert (
        "ann promoted it anyway on 2026-11-24 02:00 UTC. Reason given: “a small corpus”. Loud."
        in text
    )


def test_a_provisional_threshold_is_marked_wherever_it_is_shown() -> None:
    one = report()
    assert one["detection"]["provisional"]
    text = page_of(one).inside("gbt-realistic-host")
    assert "threshold (a probability) 0.700 provisional ; budget 2" in text
    assert "reaches the provisional threshold of 0.700" in text
    assert "The alarm threshold is provisional" in page_of(one).inside("recipe-host")
    one["detection"]["provisional"] = False
    assert "provisional" not in page_of(one).inside("gbt-realistic-host")


def test_alarms_are_shown_by_job() -> None:
    one = report()
    part = copy.deepcopy(one["detection"]["by_job"][1]) | {"job": "backup", "hours": 0.5}
    part["false_alarms"] = 3
    part["false_alarms_per_hour"] |= {"value": 6.0, "low": 1.5, "high": 12.5}
    part["clean_time_alarmed"] |= {"value": 0.25, "low": 0.125, "high": 0.5}
    one["detection"]["by_job"].append(part)
    page = page_of(one)
    assert "during a benign job – no clean time" in page.inside("gbt-realistic-host")
    said = "during backup jobs 6.00 (1.50 to 12.5) 3 false alarms in 30.0 clean minutes; 25.0% "
    assert said + "under alarm (12.5% to 50.0%)" in page.inside("gbt-realistic-host")
    short = page.inside("short")
    assert "Clean time without a benign job: " in short
    assert "backup jobs" not in short  # each kind of job is with its model


def test_the_operating_curve_is_drawn_up_to_where_alarms_merge() -> None:
    one = EvalReport.model_validate(report())
    drawn = operating(one.detection)
    assert drawn is not None
    rates = [p.false_alarms_per_hour.value or 0 for p in one.detection.operating_curve.points]
    assert drawn["top"] == max(rates)
    assert drawn["found"][0].startswith("M0 ")
    nothing = one.detection.operating_curve.model_copy(update={"points": []})
    assert operating(one.detection.model_copy(update={"operating_curve": nothing})) is None


CORPORA = {
    # what is special of it -> changes of every window
    "no clean time": {"purity": 0.5},
    "no attack": {"onset_s": None, "actual": "clean"},
    "a single host": {"host_id": "lab-a"},
    "a job in all clean time": {"job": "backup"},
}


@pytest.mark.parametrize("which", CORPORA)
def test_a_report_on_a_poor_store_is_honest_and_complete(which: str) -> None:
    """Every figure is there, and each that has no value says why; page and card show it."""
    windows = [window | CORPORA[which] for window in WINDOWS]
    told = {name: [w["actual"] for w in windows] for name in ("gbt", *SHORTCUTS)}
    facts = dataset(untested_profiles=["scan-and-dial"])
    table = predictions(windows, told)
    one = evaluate(
        table, "gbt", "realistic", CLASSES, facts,
        IDENTITY | {"recipe": "time"}, POLICY, LAYOUT.window, TRAINING, *plain_rule(table, "gbt"),
    ).model_dump(mode="json")  # fmt: skip
    check_schema(one)
    for figure in figures_in(one["detection"]):
        assert figure["value"] is not None or figure["note"], figure
    why = "unavailable: the store has one"
    text = Page(
        render_report([one], FACTS | {"unavailable": {"session": why, "host": why}})
    ).inside("gbt-realistic-time")
    detection, codes = one["detection"], [w["code"] for w in one["warnings"]]
    parts = {part["job"]: part for part in detection["by_job"]}
    assert "provisional_threshold" in codes
    if which == "no clean time":
        for name in ("false_alarms_per_hour", "clean_time_alarmed"):
            assert detection[name]["note"]["code"] == "no_clean_time"
        assert detection["threshold"]["note"]["code"] == "no_clean_validation"
        assert "No test window is entirely clean" in text
        assert "Not drawn" in text
    if which == "no attack":
        for name in ("detected_share", "median_delay_s"):
            assert detection[name]["note"]["code"] == "no_attack"
        assert {"armed", "infected_running", "dormant"} <= set(one["absent_classes"])
        assert "No test episode contains an attack" in text
    if which == "a single host":
        assert [row["name"] for row in one["per_host"]] == ["lab-a"]
    if which == "a job in all clean time":
        assert list(parts) == ["any", "none", "backup"]
        assert parts["backup"]["hours"] == parts["any"]["hours"] == detection["clean_hours"]["test"]
        assert parts["none"]["false_alarms_per_hour"]["note"]["code"] == "no_clean_time"


def test_no_report_at_all_is_a_page_too() -> None:
    text = page_of().text
    assert all(f"recipe {recipe}: not evaluated" in text for recipe in RECIPES)


def test_untested_profiles_and_absent_phases_are_said_once_in_words() -> None:
    one = report() | {"absent_classes": ["gone"]}
    one["warnings"].append({"code": "absent_class", "about": "gone"})
    text = page_of(one).text
    assert "3 of 4 profiles tested; scan-and-dial was never tested." in text
    assert "Phase gone does not occur in the test split" in text
    assert text.count("scan-and-dial was never tested.") == 2  # leaderboard, recipe
    assert text.count("Phase gone") == 2


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (
            {"hosts", "samples", "sessions"},
            "Every test host, sample and session also has training episodes",
        ),
        ({"samples"}, "Every test sample also has training episodes"),
        (set(), ""),
    ],
)
def test_what_is_on_both_sides_is_said(known: set[str], said: str) -> None:
    one = report()
    for kind in ("hosts", "samples", "sessions"):
        one["splits"]["train"][kind] = ["a", "b"]
        one["splits"]["test"][kind] = ["b"] if kind in known else ["b", "c"]
    text = page_of(one).inside("recipe-host")
    assert said in text
    assert text.count("also has training episodes") == bool(known)


def test_synthetic_episodes_and_coverage_are_said() -> None:
    one = report()
    one["splits"]["train"]["synthetic_episodes"] = 4
    one["splits"]["test"]["coverage"]["guest"] = 0.1
    text = page_of(one).text
    assert "The dataset contains synthetic episodes: 4 of 12 in train." in text
    assert "Source guest: 90.0% of its values are present in training, 10.0% in test" in text


def test_a_model_that_beats_no_shortcut_is_marked() -> None:
    one = report()
    one["baselines"][0]["difference"]["low"] = -0.01
    numbers = {"value": 0.25, "low": -0.125, "high": 0.5}
    one["warnings"] = [
        {"code": "not_better_than_baseline", "about": "position_only", "numbers": numbers}
    ]
    other = report(mode="oracle") | {"warnings": []}
    page = page_of(one, other)
    assert "gbt realistic: Not significantly better than position-only (difference +0.250" in (
        page.text
    )
    assert "† not significantly better than" in page.text
    other["warnings"] = [one["warnings"][0] | {"numbers": numbers | {"high": 0.75}}]
    assert "all models: Not significantly better than position-only: it may" in (
        page_of(one, other).text
    )


def test_two_dataset_versions_of_a_recipe_are_called_incomparable() -> None:
    other = report(mode="oracle") | {"dataset_version": "other"}
    assert "not comparable" in page_of(report(), other).text
    assert "not comparable" not in page_of(report()).text


def test_models_modes_recipes_and_phases_unknown_to_the_registries_appear() -> None:
    one = report("novel", "wired", "moon")
    text = page_of(one).text
    assert "novel wired, recipe moon" in text
    assert all(name in text for name in (*MODELS, *MODES))


def test_hostile_names_are_escaped() -> None:
    evil = "<script>alert(1)</script>\"'&{{ 7*7 }};}"
    one = report(evil, evil, evil)
    one["classes"] = one["confusion"]["classes"] = [evil, *CLASSES[1:]]
    one["roster"][0] = one["per_class"][0]["name"] = evil
    one["timeline"]["proba"][evil] = one["timeline"]["proba"]["clean"]
    one["detection"]["undetected"] = one["detection"]["alarm_phases"] = [evil]
    one["untested_profiles"] = [evil]
    one["warnings"] = [{"code": "not_better_than_baseline", "about": evil,
                        "numbers": {"value": 0, "low": 0, "high": 0}}]  # fmt: skip
    one["per_host"][0]["name"] = one["per_profile"][0]["name"] = evil
    one["checkpoint_id"] = one["dataset_version"] = evil
    one["timeline"] |= {"sample_name": evil, "host_id": evil, "episode_id": evil}
    one["bootstrap"]["conditional_on"] |= {"names": [evil]}
    one["splits"]["test"] |= {"hosts": [evil], "coverage": {evil: 0.1}}
    one["excluded_episodes"] = {evil: 1}
    one["exclusions"] = [{"episode": evil, "from_s": 1, "to_s": None, "reason": evil, "who": evil,
                          "windows": 2}]  # fmt: skip
    one["importance"] = {"method": "exact", "windows": 2, "channels": [evil],
                         "phases": [{"name": evil, "windows": 2, "values": [0.5]}]}  # fmt: skip
    one["errors"] = [{"episode_id": evil, "host_id": evil, "profile": evil, "window": 1,
                      "start_s": 5, "actual": evil, "predicted": evil, "probability": 0.9,
                      "from_s": 0, "channels": [
                          {"name": evil, "contribution": 0.1, "values": [1, None, 2]},
                      ]}]  # fmt: skip
    one["config"] = {evil: evil}
    item = {"recipe": evil, "name": evil, "why": evil}
    facts = {"store": evil, "code_commit": evil, "generated_from": [evil], "left_out": [item]}
    compared = comparisons()[0] | {"recipe": evil}
    compared["predictors"][0] |= {"model": f"{evil}:{evil}", "mode": evil, "kind": "ablation"}
    html = render_report([one], FACTS | facts | {"verdicts": {evil: 1}}, [compared])
    page = Page(html)
    assert "script" not in page.tags
    assert evil in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert evil not in html[: html.index("</style>")]


def test_latency_and_size_stand_by_model_and_recipe() -> None:
    quick, slow = report(), report(recipe="time")
    measured = {"processor": "A <fast> one", "windows": 200, "median_ms": 0.4321, "p99_ms": 12.34}
    quick |= {"latency": measured, "checkpoint_bytes": 654_321}
    slow |= {"latency": measured | {"processor": "Another", "median_ms": 98.76}}
    text = page_of(quick, slow, report("cnn")).inside("latency")
    assert "0.43 p99 12.3, 654 kB" in text
    assert "98.8 p99 12.3, 123 kB" in text
    assert "on A <fast> one and Another." in text
    assert "cnn" not in text  # it was not measured
    assert "Latency" not in page_of(report()).text
    [row, other] = tables([EvalReport.model_validate(r) for r in (quick, slow)], [])[
        "latency"
    ].to_dicts()
    assert (row["recipe"], other["recipe"]) == ("host", "time")
    assert row["checkpoint_bytes"] == 654_321
    assert {name: row[name] for name in measured} == measured


def test_a_row_of_figures_says_what_it_is_a_figure_of() -> None:
    rows = tables([EvalReport.model_validate(r) for r in full()], [])["figures"]
    apart = ["place", "recipe", "model", "mode", "split", "metric", "where", "other_model"]
    beside = rows.filter(pl.col("place").str.starts_with("baselines."))
    assert not beside.select(*apart, "other_mode").is_duplicated().any()
    assert set(beside.filter(place="baselines.difference")["other_model"]) == set(BASELINES)


def test_the_page_is_self_contained() -> None:
    text = render_report(full(), FACTS, comparisons())
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "use", "image"}
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    linked = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    anchors = {str(value)[1:] for value in linked if str(value).startswith("#")}
    assert anchors <= set(map(str, page.ids))
    beside = {str(value) for value in linked if not str(value).startswith("#")}
    assert beside == {"tables/figures.csv"}  # for download; the page does without
    assert len(page.ids) == len(set(page.ids))


def test_figures_that_are_no_number_are_dashes() -> None:
    one, compared = report(), comparisons()
    for figure in figures_in([one, compared]):
        figure |= {"value": None, "low": None, "high": None}
    one["timeline"]["onset_s"] = None
    one["learning_curve"]["rows"] = []
    text = render_report([one], FACTS, compared)
    assert not re.search(r"\b(nan|NaN|inf|None|null|Undefined)\b", Page(text).text)
    assert not re.search(r"[\"':](nan|inf|None)", text)
    assert "This model does not learn in steps." in text


def test_equal_documents_in_any_order_give_equal_bytes() -> None:
    reports, compared = full(), comparisons()
    before = copy.deepcopy((reports, compared))
    assert render_report(reports, FACTS, compared) == render_report(
        reports[::-1], FACTS, compared[::-1]
    )
    assert (reports, compared) == before


def test_documents_that_cannot_be_shown_are_refused() -> None:
    with pytest.raises(ValueError, match=r"schema\s+Input should be 'phasewatch.eval_report/9'"):
        render_report([report() | {"schema": "other/1"}], FACTS)
    with pytest.raises(ValueError, match=r"schema\s+Input should be 'phasewatch.comparisons/3'"):
        render_report([], FACTS, [comparisons()[0] | {"schema": "other/1"}])
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        render_report([report() | {"more": 1}], FACTS)
    with pytest.raises(ValueError, match="Input should be a finite number"):
        render_report([report() | {"macro_f1": report()["macro_f1"] | {"value": np.nan}}], FACTS)
    with pytest.raises(ValueError, match="two reports have the same model, mode and recipe"):
        render_report([report(), report()], FACTS)
    with pytest.raises(ValueError, match="two comparisons have the same recipe"):
        render_report([], FACTS, [comparisons()[0]] * 2)


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.12345, False, "0.123"),
        (-0.0001, True, "+0.000"),
        (-0.5, True, "−0.500"),
        (1, False, "1.000"),
        (None, False, "–"),
        (float("nan"), False, "–"),
    ],
)
def test_number(value: float | None, sign: bool, text: str) -> None:
    assert number(value, sign=sign) == text


def test_measures_have_the_digits_a_reader_needs() -> None:
    assert [measure(v) for v in (0, 1.234, 12.34, 1234.5, None)] == [
        "0",
        "1.23",
        "12.3",
        "1234",
        "–",
    ]
    assert [clean_time(h) for h in (0.1, 2.5)] == ["6.00 clean minutes", "2.50 clean hours"]


# --- charts -------------------------------------------------------------------------------------


def test_a_line_is_broken_where_a_value_is_unknown() -> None:
    assert path([(0, 0.0), (0.5, 1.0), (0.6, None), (1, 2.0)]) == "M0 1000L500 0M1000 0L1000 0"


def test_a_long_learning_curve_keeps_its_ends_and_its_best_step() -> None:
    rows = [[step, 2.0 - step / 1000, 4.0 if step == 777 else 1.0, None] for step in range(1000)]
    curve = learning_curve(LearningCurve.model_validate({"rows": rows, "best_step": 777}))
    assert curve is not None
    assert curve["top"] == 4.0
    assert (curve["first"], curve["last"], curve["best"]) == (0, 999, 778)
    points = curve["val"].removeprefix("M").split("L")
    assert len(points) < 70
    assert (points[0], points[-1]) == ("0 750", "1000 750")
    assert "778 0" in points
    assert curve["score"] == ""


def test_a_timeline_puts_phases_at_centres_and_alarms_at_ends() -> None:
    shown = {
        "start_s": [0.0, 5.0, 10.0], "length_s": 10.0, "threshold": 0.5, "onset_s": 10.0,
        "actual": ["clean", "clean", "infecting"], "predicted": ["clean", "infecting", "infecting"],
        "proba": {"infecting": [0.1, 0.4, 0.6], "infected_running": [0.0, 0.2, 0.1]},
        "episode_id": "E", "host_id": "h", "profile": "p", "sample_name": "s",
    }  # fmt: skip
    drawn = timeline(
        Timeline.model_validate(shown), LAYOUT.phases, ["infecting", "infected_running"], 5.0, 0.5
    )
    assert drawn is not None
    assert drawn["end"] == 20.0
    actual, predicted = dict(drawn["strips"])["actual"], dict(drawn["strips"])["predicted"]
    assert actual == [(0, "M125 0H625V1000H125z"), (2, "M625 0H875V1000H625z")]
    assert predicted == [(0, "M125 0H375V1000H125z"), (2, "M375 0H875V1000H375z")]
    assert drawn["score"] == "M500 900L750 400L1000 300"
    assert drawn["alarmed"] == "M750 0H1000V1000H750z"
    assert (drawn["threshold"], drawn["onset"]) == (500, 500)


def _linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.0888]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


VISION = {  # Machado, Oliveira and Fernandes 2009, severity 1
    "normal": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}  # fmt: skip


@pytest.mark.parametrize(("scheme", "paper"), [(0, "#ffffff"), (1, "#14171a")])
def test_phases_are_told_apart_with_every_kind_of_colour_vision(scheme: int, paper: str) -> None:
    assert tuple(PHASE_COLOURS) == LAYOUT.phases
    colours = {phase: pair[scheme] for phase, pair in PHASE_COLOURS.items()}
    for vision in VISION.values():
        for one, other in itertools.combinations(colours.values(), 2):
            seen = [_lab(np.array(vision) @ _linear(colour)) for colour in (one, other)]
            assert np.linalg.norm(seen[0] - seen[1]) > 15, (one, other)
    for phase, colour in colours.items():
        bright, dark = sorted(
            (float(_linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (colour, paper)), reverse=True
        )
        assert phase == "clean" or (bright + 0.05) / (dark + 0.05) >= 3, phase


def test_confusion_png_is_a_small_deterministic_picture() -> None:
    confusion = Confusion.model_validate(report()["confusion"])
    picture = confusion_png(confusion, "gbt $realistic_x$ <b>")
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert 300 <= int.from_bytes(picture[16:20], "big") <= 500
    assert len(picture) < 50_000
    assert picture == confusion_png(confusion, "gbt $realistic_x$ <b>")
