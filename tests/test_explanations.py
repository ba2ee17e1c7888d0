"""Importance by phase and the surest errors, as reports and the page have them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lab import RECIPE, Lab

import phasewatch
from datasets.windows import read_dataset
from evaluation.documents import ChannelTrace, SureError
from evaluation.drawing import sparks
from evaluation.explanations import ERRORS, TRACES, WINDOWS, channel_trace, importance, spread
from evaluation.scores import split_predictions
from features.registry import LAYOUT
from models.registry import find_variant
from stages.evaluation import read_report
from stages.explanations import explain
from stages.held_out_predictions import read_predictions


def test_importance_is_the_mean_absolute_contribution_by_phase() -> None:
    contributions = np.array([[1.0, -2.0, 9.0], [3.0, 0.0, 9.0], [-1.0, 1.0, 9.0]])
    seen = np.array([True, True, False])
    found = importance(
        contributions, np.array([0, 0, 2]), ("clean", "armed", "dormant"), "abc", seen, "exact"
    )
    assert found.channels == ["a", "b"]
    assert [(p.name, p.windows, p.values) for p in found.phases] == [
        ("clean", 2, [2.0, 1.0]),
        ("dormant", 1, [1.0, 1.0]),
    ]


def test_the_sample_is_bounded_and_has_every_phase_predicted(trained: Lab) -> None:
    predictions = read_predictions(trained.project.existing("held_out_predictions", RECIPE))
    test = split_predictions(predictions, "gbt", "realistic", LAYOUT.phases)
    rows = spread(test, 10)
    assert len(rows) <= 10
    assert np.unique(test.predicted[rows]).tolist() == np.unique(test.predicted).tolist()
    assert len(np.unique(rows)) == len(rows)
    assert spread(test, 10**6).tolist() == list(range(len(test.predicted)))
    nothing = replace(test, proba=test.proba[:0], actual=test.actual[:0])
    assert len(spread(nothing, 10)) == 0


def test_a_trace_has_a_mean_for_every_second() -> None:
    series = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 7.0], dtype=np.float32)
    assert channel_trace(series, 2) == [2.0, 5.0, None, 7.0]


@pytest.mark.parametrize(("model", "method"), [("gbt", "exact"), ("cnn", "occlusion")])
def test_the_surest_errors_have_their_signals(trained: Lab, model: str, method: str) -> None:
    project, variant = trained.project, find_variant(model, "realistic")
    predictions = read_predictions(project.existing("held_out_predictions", RECIPE))
    found = explain(project, RECIPE, variant, predictions, errors=True)
    assert found.importance is not None
    assert found.importance.method == method
    assert 0 < found.importance.windows <= WINDOWS[method]  # type: ignore[index]
    seen = LAYOUT.channels_of("realistic")
    assert found.importance.channels == [
        name for name, kept in zip(LAYOUT.channel_names, seen, strict=True) if kept
    ]

    wrong = phasewatch.find_misclassified(project, RECIPE, model).head(ERRORS)
    assert [(e.episode_id, e.window) for e in found.errors] == list(
        wrong.select("episode_id", "window").iter_rows()
    )
    table = read_dataset(project.existing("datasets", RECIPE))
    checkpoint = phasewatch.load_checkpoint(project, RECIPE, model)
    for error in found.errors:
        assert len(error.channels) == TRACES
        episode = phasewatch.read_episode(project, error.episode_id)
        extracted = phasewatch.extract(project, episode)
        first = round(error.from_s * 10)
        last = table.filter(episode_id=error.episode_id)["start_s"].max()
        assert isinstance(last, float)
        n = round(min(last + 10, error.start_s + 40) - error.from_s)
        reasons = phasewatch.explain(project, checkpoint, episode).filter(window=error.window)
        assert [c.name for c in error.channels] == reasons["channel"].head(TRACES).to_list()
        for channel in error.channels:
            column = extracted.series[:, LAYOUT.channel_names.index(channel.name)]
            assert len(channel.values) == n
            expected = channel_trace(column[first : first + 10 * n], 10)
            assert channel.values == pytest.approx(expected, rel=1e-3, nan_ok=True)
    assert explain(project, RECIPE, variant, predictions, errors=False).errors == []


def test_reports_and_the_page_show_them(retrained: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    report = read_report(retrained.project.existing("eval_reports/gbt_realistic", RECIPE))
    assert report.importance is not None
    assert report.errors == []  # not the served recipe
    monkeypatch.setattr("stages.evaluation.SERVED_RECIPE", RECIPE)
    retrained.settings = retrained.settings | {"report": {"replicates": 150}}
    stages = retrained.project.stages
    for name in ("alarm_rules/gbt_realistic", "eval_reports/gbt_realistic"):
        retrained.project.make(stages[name], RECIPE)
    report = read_report(retrained.project.existing("eval_reports/gbt_realistic", RECIPE))
    retrained.project.make(stages["report"], "")
    page = retrained.workspace.report_page.read_text()
    for error in report.errors:
        assert f"phasewatch exclude {error.episode_id} --from {error.start_s:g} " in page
    assert bool(report.errors) == ("Most confident errors" in page)
    assert "Importance by phase" in page


def test_sparks_are_drawn_between_the_least_and_the_largest_value() -> None:
    error = SureError(
        episode_id="E", host_id="lab-a", profile="io-walk", window=1, start_s=5.0, actual="clean",
        predicted="armed", probability=0.9, from_s=0.0,
        channels=[
            ChannelTrace(name="a", contribution=1.0, values=[1.0, None, 3.0, 5.0] * 5),
            ChannelTrace(name="b", contribution=0.5, values=[None] * 20),
            ChannelTrace(name="c", contribution=0.1, values=[2.0] * 20),
        ],
    )  # fmt: skip
    drawn = sparks(error, 10.0)
    assert [(spark["low"], spark["high"]) for spark in drawn] == [(1, 5), (0, 0), (2, 2)]
    assert drawn[0]["window"] == "M250 0H750V1000H250z"
    assert drawn[1]["line"] == ""
    assert [spark["name"] for spark in drawn] == ["a", "b", "c"]
