"""Detection on episodes made by hand: a threshold, false alarms, the time to the first alarm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from held_out import CLASSES, POLICY, WINDOWS, check_schema, predictions, report_of, report_on

from evaluation.bootstrap import EpisodeBootstrap
from evaluation.detection import (
    MAX_CURVE_POINTS,
    AlarmScores,
    choose_threshold,
    clean_time,
    median_delay_statistic,
    operating_curve,
)
from evaluation.documents import CleanTime, FigureNote, OperatingCurve, Subject
from evaluation.figures import ReportPolicy
from evaluation.scores import SHORTCUTS

CLEAN, ARMED, RUNNING, DORMANT = CLASSES
STRIDE_S = 5.0
SUBJECT = Subject(model="gbt", mode="realistic", checkpoint_id="c", recipe="time",
                  dataset_version="d")  # fmt: skip


def alarm_scores(
    scores: Sequence[Sequence[float]],
    clean: Sequence[str] | None = None,
    jobs: Sequence[Sequence[str]] | None = None,
) -> AlarmScores:
    """Episodes of windows with these scores; ``clean``: a letter a window, ``c`` where it is."""
    lengths = [len(s) for s in scores]
    clean = clean or ["c" * n for n in lengths]
    return AlarmScores(
        score=np.concatenate([np.array(s, dtype=float) for s in scores]),
        end_s=np.concatenate([10.0 + STRIDE_S * np.arange(n) for n in lengths]),
        clean=np.array([letter == "c" for word in clean for letter in word]),
        first=np.concatenate([np.arange(n) == 0 for n in lengths]),
        episode=np.repeat(np.arange(len(scores)), lengths),
        onset_s=np.full(len(scores), np.nan),
        job=np.concatenate(jobs) if jobs else np.full(sum(lengths), ""),
        stride_s=STRIDE_S,
    )


def code_of(note: FigureNote | None) -> str | None:
    return note and note.code


# --- false alarms and the threshold


@pytest.mark.parametrize(
    ("scores", "clean", "events"),
    [
        ([[0.1, 0.9, 0.9, 0.1]], None, 1),  # one run
        ([[0.9, 0.1, 0.9, 0.1]], None, 2),
        ([[0.9, 0.9], [0.9, 0.9]], None, 2),  # a run ends with its episode
        ([[0.1, 0.9, 0.9]], ["cc."], 1),  # it began while clean
        ([[0.1, 0.9, 0.9]], ["c.c"], 0),  # it did not
        ([[0.1, 0.1, 0.1]], None, 0),
    ],
)
def test_a_false_alarm_is_a_run_that_begins_in_a_clean_window(
    scores: list, clean: list | None, events: int
):
    assert alarm_scores(scores, clean).false_alarms(0.5).sum() == events


def budget(per_hour: float, share: float = 1.0) -> ReportPolicy:
    return ReportPolicy(false_alarms_per_hour=per_hour, clean_time_alarmed=share)


def lowest_within(val: AlarmScores, per_hour: float, share: float) -> float:
    hours = val.clean_hours.sum()
    best = math.inf
    for threshold in sorted(set(val.score), reverse=True):
        alarmed = val.alarmed(threshold)[val.clean].mean()
        if val.false_alarms(threshold).sum() / hours > per_hour or alarmed > share:
            break
        best = threshold
    return best


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_without_attacks_the_threshold_is_the_lowest_within_the_budgets(seed: int, ratio: float):
    random = np.random.default_rng(seed)
    val = alarm_scores(
        random.random((9, 40)).round(2).tolist(),
        ["".join(random.choice(["c", "."], 40)) for _ in range(9)],
    )
    val = replace(val, clear_ratio=ratio)
    for per_hour, share in product((0.0, 20.0, 60.0, 1e9), (0.0, 0.02, 0.3, 1.0)):
        threshold, _ = choose_threshold(val, budget(per_hour, share))
        expected = lowest_within(val, per_hour, share)
        if math.isinf(expected):
            assert threshold > val.score.max()
        else:
            assert threshold == expected


def test_the_threshold_leaves_room_on_both_sides():
    """Clean time reaches 0.2, both attacks reach 0.8: half way in log-odds is 0.5."""
    val = alarm_scores([[0.1, 0.2, 0.9], [0.2, 0.1, 0.8]], ["cc.", "cc."])
    val = replace(val, onset_s=np.array([15.0, 15.0]))
    threshold, _ = choose_threshold(val, budget(0.0))
    assert 0.2 < threshold == 0.8  # the lowest within the budget: nothing lies between
    val = alarm_scores([[0.1, 0.2, 0.3, 0.9], [0.1, 0.2, 0.3, 0.7]], ["cc..", "cc.."])
    val = replace(val, onset_s=np.array([20.0, 20.0]))
    threshold, _ = choose_threshold(val, budget(0.0))
    assert threshold == pytest.approx(0.5)  # of 0.3 and 0.7
    assert val.detected(threshold) == 2


@pytest.mark.parametrize("tiny", [False, True])
def test_the_threshold_lies_between_its_ends_however_sure_the_scores_are(tiny: bool):
    """Closer to 0 or 1 than log-odds are taken of."""
    clean, low, high = (1e-7, 2e-7, 3e-7) if tiny else (1 - 3e-7, 1 - 2e-7, 1 - 1e-7)
    val = alarm_scores([[clean, low, high]] * 2, ["c.."] * 2)
    val = replace(val, onset_s=np.array([15.0, 15.0]))
    threshold, _ = choose_threshold(val, budget(0.0))
    assert low <= threshold <= high
    assert (val.false_alarms(threshold).sum(), val.detected(threshold)) == (0, 2)


def test_an_alarm_stands_until_the_score_is_well_below():
    val = alarm_scores([[0.1, 0.9, 0.5, 0.5, 0.1, 0.5]])
    assert val.alarmed(0.8).tolist() == [False, True, False, False, False, False]
    held = replace(val, clear_ratio=0.5)
    assert held.alarmed(0.8).tolist() == [False, True, True, True, False, False]
    assert held.false_alarms(0.8).sum() == 1
    two = replace(alarm_scores([[0.9, 0.5], [0.5, 0.9]]), clear_ratio=0.5)
    assert two.alarmed(0.8).tolist() == [True, True, False, True]  # none is carried over


def test_an_alarm_that_never_stops_is_not_taken_for_a_quiet_one():
    """At threshold 0 there is one false alarm; on the way there, four."""
    val = alarm_scores([[0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9]])
    one_an_hour = 1 / val.clean_hours.sum()
    threshold, _ = choose_threshold(val, budget(1.5 * one_an_hour))
    assert val.false_alarms(0.0).sum() == 1
    assert threshold > 0.9


def test_a_threshold_that_validation_cannot_choose_says_so():
    threshold, note = choose_threshold(alarm_scores([[0.9, 0.1]], [".."]), budget(6.0))
    assert threshold == 0.5
    assert code_of(note) == "no_clean_validation"
    threshold, note = choose_threshold(alarm_scores([[0.5, 0.5]]), budget(6.0))
    assert threshold > 0.5
    assert code_of(note) == "over_budget_everywhere"
    threshold, note = choose_threshold(alarm_scores([[0.1, 0.2, 0.9]], ["cc."]), budget(6.0))
    assert threshold == 0.9
    assert code_of(note) == "budget_allows_none"
    assert note is not None
    assert note.numbers["hours"] * note.numbers["per_hour"] == 1
    assert choose_threshold(alarm_scores([[0.1] * 800]), budget(6.0)) == (0.1, None)


def test_the_threshold_keeps_to_the_clean_time_that_may_be_alarmed():
    """One alarm that stays on is cheap by number only."""
    val = alarm_scores([[0.1] * 50 + [0.6] * 50])
    assert choose_threshold(val, budget(1e9, 0.5))[0] == 0.6
    threshold, note = choose_threshold(val, budget(1e9, 0.02))
    assert (threshold > 0.6, code_of(note)) == (True, "over_budget_everywhere")


# --- clean time and jobs


def parts_of(test: AlarmScores, threshold: float = 0.5) -> dict[str, CleanTime]:
    bootstrap = EpisodeBootstrap(np.zeros(len(test.onset_s), dtype=np.int64), 100, 0)
    return {part.job: part for part in clean_time(test, threshold, bootstrap, SUBJECT)}


def test_alarms_are_counted_by_the_job_of_their_first_window():
    test = alarm_scores(
        [[0.9, 0.1, 0.9, 0.9], [0.1, 0.9, 0.9, 0.1]],
        ["cccc", "ccc."],
        [["", "", "backup", ""], ["build", "build", "", "index"]],
    )
    parts = parts_of(test)
    assert list(parts) == ["", "any", "none", "backup", "build"]  # no index: it is not clean
    assert {job: part.false_alarms for job, part in parts.items()} == {
        "": 3, "any": 2, "none": 1, "backup": 1, "build": 1,
    }  # fmt: skip
    windows = {job: round(part.hours * 3600 / STRIDE_S) for job, part in parts.items()}
    assert windows == {"": 7, "any": 3, "none": 4, "backup": 1, "build": 2}
    alarmed = {job: part.clean_time_alarmed.value for job, part in parts.items()}
    assert alarmed == {"": 5 / 7, "any": 2 / 3, "none": 3 / 4, "backup": 1.0, "build": 0.5}
    assert parts["build"].false_alarms_per_hour.where == {"job": "build"}
    assert parts[""].false_alarms_per_hour.where == {}


@pytest.mark.parametrize("name", ["none", "any"])
def test_a_job_may_have_the_name_of_a_part(name: str):
    test = alarm_scores([[0.9, 0.1, 0.9, 0.1]], ["cccc"], [["", "", name, name]])
    parts = parts_of(test)
    assert list(parts) == ["", "any", "none", f'"{name}"']
    windows = {job: round(part.hours * 3600 / STRIDE_S) for job, part in parts.items()}
    assert windows == {"": 4, "any": 2, "none": 2, f'"{name}"': 2}


def test_no_clean_time_with_a_job_is_said():
    with_job = parts_of(alarm_scores([[0.1, 0.9]]))["any"]
    for figure in (with_job.false_alarms_per_hour, with_job.clean_time_alarmed):
        assert (figure.value, figure.low, figure.high) == (None, None, None)
        assert code_of(figure.note) == "no_clean_time"


# --- the operating curve


def curve_of(test: AlarmScores) -> OperatingCurve:
    bootstrap = EpisodeBootstrap(np.zeros(len(test.onset_s), dtype=np.int64), 100, 0)
    return operating_curve(test, bootstrap, 0)


def test_the_curve_goes_from_no_alarm_to_nothing_but_alarm():
    random = np.random.default_rng(0)
    test = alarm_scores(
        np.concatenate([random.uniform(0, 0.5, (9, 30)), random.uniform(0.4, 1, (9, 10))], axis=1)
        .tolist(), ["c" * 30 + "." * 10] * 9,
    )  # fmt: skip
    test = replace(test, onset_s=np.full(9, 155.0))
    curve = curve_of(test)
    for points in (curve.points, curve.random):
        assert len(points) <= MAX_CURVE_POINTS
        thresholds = [point.threshold for point in points]
        assert thresholds == sorted(thresholds, reverse=True)
        alarmed = [point.clean_time_alarmed.value for point in points]
        assert alarmed == sorted(alarmed)
        assert (alarmed[0], alarmed[-1]) == (0.0, 1.0)
        assert points[0].false_alarms_per_hour.value == 0.0
        assert points[-1].detected_share.value == 1.0
        for point in points:
            rate = point.false_alarms_per_hour
            events = test.false_alarms(point.threshold).sum()
            if points is curve.points:
                assert rate.value == pytest.approx(events / test.clean_hours.sum())
            assert rate.low <= rate.value <= rate.high
    assert curve.points[0].detected_share.value > curve.random[0].detected_share.value


def test_a_curve_without_clean_time_or_attack_has_no_such_figures():
    point = curve_of(alarm_scores([[0.1, 0.9]], [".."])).points[0]
    assert (point.false_alarms_per_hour.value, point.clean_time_alarmed.value) == (None, None)
    assert (point.detected_share.value, point.median_delay_s.value) == (None, None)


# --- whole reports on made-up episodes

LETTERS = {"c": CLEAN, "a": ARMED, "r": RUNNING, "d": DORMANT}


def report(
    episodes: Mapping[str, tuple[str, float | None, str]],
    purity: float = 1.0,
    policy: ReportPolicy = POLICY,
) -> dict[str, Any]:
    """A report on episodes ``name -> (phases, onset_s, alarms)``: a letter and an ``x`` a window.

    On validation the scores are 0.7 where infected and 0.1 else, so that the threshold is 0.7.
    """
    windows = [
        WINDOWS[0]
        | {"episode_id": name, "window": i, "start_s": STRIDE_S * i, "actual": LETTERS[letter]}
        | {"onset_s": onset_s, "purity": purity}
        for name, (phases, onset_s, _) in episodes.items()
        for i, letter in enumerate(phases)
    ]
    alarmed = [RUNNING if x == "x" else DORMANT for _, _, a in episodes.values() for x in a]
    by_model = dict.fromkeys(("gbt", *SHORTCUTS), alarmed)
    actual = [w["actual"] for w in windows]
    val = dict.fromkeys(by_model, actual)
    found = report_on(predictions(windows, by_model, val), policy)
    check_schema(found)
    return found


def test_episodes_made_by_hand():
    found = report(
        {
            "before": ("cccrrr", 16.0, ".x..x."),  # an alarm before the onset detects nothing
            "late": ("cccrrr", 16.0, ".....x"),
            "never": ("ccrrrr", 11.0, "......"),
            "relapse": ("crrddr", 8.0, ".....x"),  # timed from the first onset
            "stands": ("cccrrr", 16.0, "xxxxxx"),  # raised before, and still standing
            "tier2": ("cccccc", None, "x....x"),
            "after": ("cccccc", 36.0, "......"),  # begins when the last window has ended
        }
    )["detection"]
    delays = {e["episode_id"]: e["delay_s"] for e in found["episodes"]}
    assert delays == {"before": 14.0, "late": 19.0, "never": None, "relapse": 27.0, "stands": 4.0}
    first = {e["episode_id"]: e["first_alarm_s"] for e in found["episodes"]}
    assert first["stands"] == 20.0
    assert found["undetected"] == ["never"]
    assert (found["attacked_episodes"], found["detected_episodes"]) == (5, 4)
    assert found["attacks_after_last_window"] == 1
    assert found["detected_share"]["value"] == pytest.approx(0.8)
    assert found["median_delay_s"]["value"] == 19.0  # of 4, 14, 19, 27 and infinity
    n_clean = 3 + 3 + 2 + 1 + 3 + 6 + 6
    assert found["clean_hours"]["test"] == pytest.approx(n_clean * 5 / 3600)
    assert found["false_alarms"]["test"] == 4
    assert found["false_alarms_per_hour"]["value"] == pytest.approx(4 / (n_clean * 5 / 3600))
    assert found["clean_time_alarmed"]["value"] == pytest.approx(6 / n_clean)
    assert found["threshold"]["value"] == pytest.approx(0.7)
    assert found["threshold"]["split"] == "val"


def test_the_alarm_score_is_the_probability_of_both_infected_phases():
    found = report({"one": ("ccrr", 11.0, "..xx")})
    assert found["detection"]["alarm_phases"] == ["infecting", "infected_running"]
    assert found["timeline"]["threshold"] == found["detection"]["threshold"]["value"]


def test_undetected_episodes_make_the_median_infinite_not_smaller():
    found = report({"a": ("ccrr", 11.0, "..xx"), "b": ("ccrr", 11.0, "...."),
                    "c": ("ccrr", 11.0, "....")})["detection"]  # fmt: skip
    assert found["median_delay_s"]["value"] is None
    assert found["median_delay_s"]["note"]["code"] == "half_undetected"
    sides = {"a": ("ccrr", 11.0, "..xx"), "b": ("ccrr", 11.0, "....")}
    half = report(sides | {n + n: side for n, side in sides.items()})["detection"]
    assert half["median_delay_s"]["value"] == 9.0
    assert half["median_delay_s"]["high"] is None
    note = half["median_delay_s"]["note"]
    assert note["code"] == "half_undetected_at_times"
    assert 0 < note["numbers"]["share"] < 1


def test_a_report_lists_no_more_episodes_than_a_reader_can_use(monkeypatch: pytest.MonkeyPatch):
    episodes = {f"{i:02}": ("ccrr", 11.0, "..xx" if i % 2 else "....") for i in range(20)}
    whole = report(episodes)["detection"]
    assert [len(whole[name]) for name in ("episodes", "undetected")] == [20, 10]
    monkeypatch.setattr("evaluation.detection.LISTED", 5)
    found = report(episodes)["detection"]
    assert [e["episode_id"] for e in found["episodes"]] == ["00", "05", "10", "14", "19"]
    assert len(found["undetected"]) == 5
    listed = {"episodes", "undetected"}
    assert {k: v for k, v in found.items() if k not in listed} == {
        k: v for k, v in whole.items() if k not in listed
    }


def test_the_median_is_that_of_an_explicit_loop():
    delays = np.array([3.0, np.inf, 7.0, 1.0, 2.0, np.nan])
    attacked = ~np.isnan(delays)
    bootstrap = EpisodeBootstrap(np.zeros(6, dtype=np.int64), 300, 0)
    found = bootstrap.replicates_of({"": median_delay_statistic(delays, attacked)})[""]
    for value, weights in zip(found, np.concatenate(list(bootstrap.weights())), strict=True):
        drawn = np.sort(np.repeat(delays[attacked], weights[attacked].astype(int)))
        expected = drawn[(len(drawn) - 1) // 2] if len(drawn) else np.nan
        np.testing.assert_equal(value, expected)


@pytest.mark.filterwarnings("error")
def test_without_clean_time_false_alarms_are_not_counted_and_it_is_said():
    for found in (
        report({"a": ("rrrr", 1.0, "xxxx")}),
        report({"a": ("ccrr", 11.0, "xxxx")}, purity=0.9),
    ):
        figure = found["detection"]["false_alarms_per_hour"]
        assert (figure["value"], figure["low"], figure["high"]) == (None, None, None)
        assert figure["note"]["code"] == "no_clean_time"
        assert found["detection"]["clean_time_alarmed"]["value"] is None
        assert found["detection"]["threshold"]["value"] == 0.5


@pytest.mark.filterwarnings("error")
def test_without_an_attack_nothing_can_be_detected_and_it_is_said():
    found = report({"a": ("cccc", None, "...."), "b": ("cccc", None, "...x")})["detection"]
    for metric in ("detected_share", "median_delay_s"):
        assert found[metric]["value"] is None
        assert found[metric]["note"]["code"] == "no_attack"
    assert found["episodes"] == found["undetected"] == []


def test_what_never_or_always_happened_has_an_exact_bound():
    found = report(dict.fromkeys("abcd", ("cccrrr", 16.0, "...xxx")))["detection"]
    hours = 4 * 3 * 5 / 3600
    false = found["false_alarms_per_hour"]
    assert (false["value"], false["low"]) == (0.0, 0.0)
    assert math.exp(-false["high"] * hours) == pytest.approx(0.025)
    share = found["detected_share"]
    assert (share["value"], share["high"]) == (1.0, 1.0)
    assert share["low"] ** 4 == pytest.approx(0.025)
    missed = report(dict.fromkeys("abcd", ("cccrrr", 16.0, "......")))["detection"]
    assert (1 - missed["detected_share"]["high"]) ** 4 == pytest.approx(0.025)


def test_one_false_alarm_is_bounded_no_closer_than_none():
    episodes = dict.fromkeys("abcd", ("cccccc", None, "......"))
    one = episodes | {"a": ("cccccc", None, "..x...")}
    none, found = (report(told)["detection"]["false_alarms_per_hour"] for told in (episodes, one))
    hours = 4 * 6 * 5 / 3600
    assert found["value"] == pytest.approx(1 / hours)
    mean = found["high"] * hours
    assert math.exp(-mean) * (1 + mean) <= 0.025 + 1e-9  # at most one, of that many expected
    assert 1 - math.exp(-found["low"] * hours) <= 0.025 + 1e-9  # one or more, of so few expected
    assert found["high"] > none["high"]


def test_more_false_alarms_than_allowed_are_warned_of():
    alarms = "x..x.x"
    found = report(dict.fromkeys("abcd", ("cccccc", None, alarms)))
    (warning,) = (w for w in found["warnings"] if w["code"] == "false_alarms_over_budget")
    rate = found["detection"]["false_alarms_per_hour"]["value"]
    assert (warning["numbers"]["per_hour"], warning["numbers"]["budget"]) == (rate, 2.0)


def test_the_budget_buys_a_lower_threshold():
    model = [RUNNING if w["actual"] == RUNNING else ARMED for w in WINDOWS]
    strict, loose = (
        report_of(WINDOWS, model, model, model, ReportPolicy(100, 0, allowed, 1.0))["detection"]
        for allowed in (0.0, 1e6)
    )
    assert strict["threshold"]["value"] > loose["threshold"]["value"]
    assert loose["budget_per_hour"] == 1e6
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        ReportPolicy(false_alarms_per_hour=-1.0)


@pytest.mark.parametrize(("n_windows", "provisional"), [(359, True), (360, False)])
def test_a_threshold_is_provisional_below_half_a_clean_hour(n_windows: int, provisional: bool):
    found = report({"a": ("c" * n_windows, None, "." * n_windows)})
    assert found["detection"]["provisional"] is provisional
    codes = [w["code"] for w in found["warnings"]]
    assert ("provisional_threshold" in codes) is provisional


def test_clean_time_under_alarm_beyond_the_budget_is_warned_of():
    found = report({"a": ("c" * 40, None, "x" + "." * 39)})
    (warning,) = (w for w in found["warnings"] if w["code"] == "clean_time_over_budget")
    assert warning["numbers"] == {"share": 1 / 40, "budget": 0.02}
