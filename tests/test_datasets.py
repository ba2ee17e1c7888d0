"""Splits: what each recipe promises, that every planted leak stops the build, what facts say."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import product
from typing import Any

import polars as pl
import pytest
from builders import DAY_NS, HOSTS, PROFILES, ulid
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datasets.splits import (
    RECIPES,
    SPLITS,
    DatasetError,
    Obstacle,
    SplitPolicy,
    _rank,
    assign_splits,
    build_table,
    check_rosters,
    check_sides,
    obstacle,
)
from episodes.format import NS_PER_S, PHASES
from episodes.settings import settings_errors

POLICY = SplitPolicy()
LENGTH_S, EVERY_S = 60, 100  # an episode's length; from one start to the next
each_recipe = pytest.mark.parametrize("recipe", RECIPES)
DAY_ERROR = "sessions.a.0 must be a day such as 2026-11-21, got '21.11.2026'"
quick = settings(deadline=None, max_examples=60, database=None)


# --- made-up episodes and windows


def episode(number: int, **values: Any) -> dict[str, Any]:
    start_ns = values.pop("day", 0) * DAY_NS + number * EVERY_S * NS_PER_S
    sample = values.pop("sample", "s0")
    return {
        "episode_id": ulid(start_ns // 1_000_000, number),
        "parent_episode_id": "",
        "host_id": "lab-a",
        "sample_sha256": f"sha-{sample}",
        "sample_name": sample,
        "profile": "cpu-saturate",
        "verdict": "accepted",
        "started_at_wall_ns": start_ns,
        "ended_at_wall_ns": start_ns + LENGTH_S * NS_PER_S,
    } | values


def table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides={"split": pl.String} if "split" in rows[0] else None)


def corpus(samples: int = 3, repeats: int = 1, **values: Any) -> pl.DataFrame:
    """For each repeat, sample and profile an episode a host, one after the other.

    The last third is of another day, and so of another session.
    """
    combinations = list(product(range(repeats), range(samples), PROFILES, HOSTS))
    return table(
        [
            episode(
                number,
                host_id=host,
                profile=profile,
                sample=f"{profile}.v{sample}",
                **{"day": int(3 * number >= 2 * len(combinations))} | values,
            )
            for number, (_, sample, profile, host) in enumerate(combinations)
        ]
    )


def with_values(episodes: pl.DataFrame, number: int, **values: Any) -> pl.DataFrame:
    rows = episodes.to_dicts()
    rows[number] |= values
    return pl.DataFrame(rows, schema=episodes.schema)


def side(episodes: pl.DataFrame, *splits: str) -> pl.DataFrame:
    return episodes.filter(pl.col("split").is_in(splits))


def sides_of(episodes: pl.DataFrame) -> dict[str, str | None]:
    return dict(episodes.select("episode_id", "split").iter_rows())


def windows_of(episodes: pl.DataFrame, phases: tuple[str, ...] = PHASES) -> pl.DataFrame:
    """Two windows a phase for each episode, as all batches together give them."""
    return pl.DataFrame(
        [
            row
            | {
                "synthetic": True,
                "window": i,
                "start_s": 5.0 * i,
                "label": phase,
                "purity": 1.0,
                "coverage_proc": 1.0,
                "coverage_guest": 0.25 if i else 0.75,
                "shard": 0,
                "first_bin": 50 * i,
                "row": number * 100 + i,
                "batch": f"{row['host_id']}.2026-11-02",
            }
            for number, row in enumerate(episodes.to_dicts())
            for i, phase in enumerate(phases * 2)
        ]
    )


# --- what each recipe promises


@each_recipe
def test_every_episode_has_one_side_or_a_reason(recipe: str):
    episodes = corpus()
    assigned = assign_splits(episodes, recipe, POLICY)
    assert assigned["episode_id"].to_list() == episodes["episode_id"].to_list()
    assert assigned.columns == [*episodes.columns, "split", "excluded"]
    for split, excluded in assigned.select("split", "excluded").iter_rows():
        assert (split in SPLITS) != (excluded is not None)
    assert set(assigned["split"]) - {None} == set(SPLITS)


def test_recipe_host_tests_on_the_test_host_and_on_it_alone():
    for host in HOSTS:
        assigned = assign_splits(corpus(), "host", replace(POLICY, test_host=host))
        assert set(side(assigned, "test")["host_id"]) == {host}
        assert set(side(assigned, "train", "val")["host_id"]) == set(HOSTS) - {host}


@pytest.mark.parametrize("share", [0.1, 0.34, 0.9])
def test_recipe_sample_tests_on_unseen_samples_of_every_profile(share: float):
    policy = replace(POLICY, test_share=share, val_by="episode")
    assigned = assign_splits(corpus(samples=5), "sample", policy)
    test, training = side(assigned, "test"), side(assigned, "train", "val")
    assert not set(test["sample_sha256"]) & set(training["sample_sha256"])
    assert set(test["profile"]) == set(training["profile"]) == set(PROFILES)


def test_recipe_sample_keeps_the_only_sample_of_a_profile_for_training():
    episodes = corpus().filter(
        (pl.col("profile") != "io-walk") | (pl.col("sample_name") == "io-walk.v0")
    )
    assigned = assign_splits(episodes, "sample", POLICY)
    assert set(assigned.filter(pl.col("profile") == "io-walk")["split"]) == {"train"}


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_recipe_time_tests_on_the_last_part(share: float):
    assigned = assign_splits(corpus(), "time", replace(POLICY, test_share=share))
    test, training = side(assigned, "test"), side(assigned, "train", "val")
    assert len(test) == round(share * len(assigned))
    begins = test["started_at_wall_ns"].min()
    assert training["ended_at_wall_ns"].max() <= begins - POLICY.gap_s * NS_PER_S


def test_episodes_that_start_together_are_on_one_side():
    episodes = corpus().with_columns(
        (pl.col("started_at_wall_ns") // (EVERY_S * NS_PER_S) // 10 * 1_000 * NS_PER_S).alias(
            "started_at_wall_ns"
        )
    )
    episodes = episodes.with_columns(ended_at_wall_ns=pl.col("started_at_wall_ns") + NS_PER_S)
    assigned = assign_splits(episodes, "time", POLICY)
    by_start = assigned.group_by("started_at_wall_ns").agg((pl.col("split") == "test").n_unique())
    assert set(by_start["split"]) == {1}


@pytest.mark.parametrize(
    ("gap_s", "excluded"), [(0.0, 0), (40.0, 0), (40.001, 1), (140.0, 1), (140.001, 2)]
)
def test_training_ends_the_gap_before_the_test_begins(gap_s: float, excluded: int):
    """An episode is over 40 s before the next one starts."""
    assigned = assign_splits(corpus(), "time", replace(POLICY, gap_s=gap_s))
    reasons = assigned.filter(pl.col("split").is_null())["excluded"].to_list()
    assert reasons == ["in the gap before the test period"] * excluded


@each_recipe
@pytest.mark.parametrize("val_by", ["episode", "sample", "host"])
def test_validation_is_carved_from_training_by_what_was_asked(recipe: str, val_by: str):
    assigned = assign_splits(corpus(samples=4), recipe, replace(POLICY, val_by=val_by))
    val, train = side(assigned, "val"), side(assigned, "train")
    column = {"episode": "episode_id", "sample": "sample_sha256", "host": "host_id"}[val_by]
    assert not set(val[column]) & set(train[column])
    if val_by == "episode":
        assert 0.05 < len(val) / (len(val) + len(train)) < 0.35
    if val_by == "sample":
        assert set(val["profile"]) == set(train["profile"]) == set(PROFILES)
    if val_by == "host":
        assert val["host_id"].n_unique() == 1


@each_recipe
@quick
@given(shuffle=st.randoms(use_true_random=False), seed=st.integers(0, 5))
def test_the_sides_follow_from_the_seed_whatever_the_order_of_rows(
    recipe: str, shuffle: random.Random, seed: int
):
    policy = replace(POLICY, seed=seed)
    rows = corpus().to_dicts()
    expected = assign_splits(table(rows), recipe, policy)
    shuffle.shuffle(rows)
    assert assign_splits(table(rows), recipe, policy).equals(expected)


@each_recipe
@pytest.mark.parametrize("val_by", ["episode", "sample", "host"])
def test_another_seed_gives_other_sides(recipe: str, val_by: str):
    found = {
        tuple(assign_splits(corpus(), recipe, replace(POLICY, seed=seed, val_by=val_by))["split"])
        for seed in range(8)
    }
    assert len(found) > 1


def test_the_sides_are_the_same_in_every_process():
    """Written down once: neither the hash seed of a process nor new code moves a sample."""
    assigned = assign_splits(corpus(samples=4), "sample", POLICY)
    held_out = {
        split: " ".join(sorted(set(side(assigned, split)["sample_name"]))) for split in SPLITS[1:]
    }
    assert held_out == {
        "val": "bulk-upload.v1 cpu-saturate.v0 fork-churn.v2 "
        "io-walk.v2 low-and-slow.v1 scan-and-dial.v1 scan-and-dial.v3",
        "test": "bulk-upload.v0 cpu-saturate.v1 fork-churn.v0 "
        "io-walk.v0 io-walk.v1 low-and-slow.v2 scan-and-dial.v0",
    }


# --- recording sessions


def on_days(*days: int) -> pl.DataFrame:
    """An episode a day, of these days after the first."""
    return table([episode(number, day=day) for number, day in enumerate(days)])


def held_out_sessions(episodes: pl.DataFrame, policy: SplitPolicy) -> set[str]:
    test = side(assign_splits(episodes, "session", policy), "test")
    return {policy.session(e) for e in test["episode_id"]}


DAYS = [f"1970-01-0{day}" for day in range(1, 7)]
BY_EPISODE = replace(POLICY, val_by="episode")


@pytest.mark.parametrize(
    ("days", "latest"),
    [
        ([0] * 9 + [1], 1),
        ([0] * 18 + [1, 2], 2),  # one of twenty, then two, and all that is left is for training
        ([0] * 15 + [1, 1, 2, 2, 2], 1),
        ([0, 0, 1, 1, 1, 1, 1, 1], 1),
    ],
)
def test_the_latest_sessions_that_make_up_the_share_are_tested(days: list[int], latest: int):
    assert held_out_sessions(on_days(*days), BY_EPISODE) == set(DAYS[1 : max(days) + 1][-latest:])


def test_sessions_and_those_tested_are_what_the_configuration_lists():
    policy = replace(BY_EPISODE, sessions={"lab": DAYS[1:3]})
    episodes = on_days(0, 0, 0, 1, 2, 3, 3)
    assert held_out_sessions(episodes, policy) == {DAYS[3]}
    assert held_out_sessions(episodes, replace(policy, test_sessions=["lab"])) == {"lab"}
    assert held_out_sessions(on_days(0, 0, 0, 1, 2), policy) == {"lab"}
    assert obstacle(on_days(1, 1, 2), "session", policy) == Obstacle("single_session", ["lab"])


def test_hosts_and_samples_are_on_both_sides_of_a_session():
    assigned = assign_splits(corpus(repeats=3), "session", POLICY)
    test, training = side(assigned, "test"), side(assigned, "train", "val")
    for column in ("host_id", "sample_sha256"):
        assert set(test[column]) == set(training[column])


def test_what_cannot_be_held_out_has_a_code():
    one = corpus(samples=1, day=0).filter(pl.col("host_id") == "lab-a")
    assert {recipe: found and found.code for recipe in RECIPES
            for found in [obstacle(one, recipe, POLICY)]} == {
        "host": "single_host", "sample": "single_sample", "session": "single_session",
        "time": None,
    }  # fmt: skip
    assert [obstacle(corpus(), recipe, POLICY) for recipe in RECIPES] == [None] * len(RECIPES)
    rebuilt = corpus(samples=1, repeats=2).with_columns(sample_sha256=pl.col("episode_id"))
    found = obstacle(rebuilt, "sample", POLICY)
    assert found is not None
    assert found.code == "single_sample"


# --- what arrives later moves nothing that is there


@pytest.mark.parametrize("val_by", ["episode", "sample"])
def test_another_sample_or_episode_moves_no_other(val_by: str):
    policy = replace(POLICY, val_by=val_by, test_share=0.5, val_share=0.5)
    many = [f"io-walk.v{sample}" for sample in range(30)]

    def sides(samples: list[str]) -> dict[str, str | None]:
        rows = [episode(i, sample=sample) for i, sample in enumerate(samples)]
        return sides_of(assign_splits(table(rows), "sample", policy))

    before = sides(many[:20])
    assert set(before.values()) == set(SPLITS)
    assert before.items() <= sides(many).items()


def test_a_profile_without_a_side_gives_the_sample_of_lowest_or_highest_rank():
    rows = [episode(i, sample=f"io-walk.v{i}") for i in range(4)]
    by_rank = sorted(rows, key=lambda row: _rank(row["sample_name"], "0.1"))
    for share, expected in ((1e-9, by_rank[:1]), (1 - 1e-9, by_rank[:3])):
        policy = replace(BY_EPISODE, test_share=share)
        rows_ = table([*rows, episode(9, sample="s9", profile="scan-and-dial")])
        rows_ = pl.concat([rows_, table([episode(10 + i, sample="s9", profile="scan-and-dial")
                                         for i in range(3)])])  # fmt: skip
        test = side(assign_splits(rows_, "sample", policy), "test")
        assert set(test["sample_name"]) == {row["sample_name"] for row in expected}


# --- degraded episodes


def degraded_corpus() -> pl.DataFrame:
    return corpus().with_columns(
        verdict=pl.when(pl.int_range(pl.len()) % 5 == 0)
        .then(pl.lit("degraded"))
        .otherwise(pl.lit("accepted"))
    )


@each_recipe
def test_degraded_episodes_take_part_as_the_policy_says(recipe: str):
    episodes = degraded_corpus()
    bad = set(episodes.filter(pl.col("verdict") == "degraded")["episode_id"])
    found = {}
    for degraded in ("none", "train", "all"):
        assigned = assign_splits(episodes, recipe, replace(POLICY, degraded=degraded))
        found[degraded] = {
            split: set(side(assigned, split)["episode_id"]) & bad for split in SPLITS
        }
        reasons = assigned.filter(pl.col("episode_id").is_in(bad) & pl.col("split").is_null())
        allowed = {
            "none": {"degraded"},
            "train": {"degraded, on the val side", "degraded, on the test side"},
            "all": set(),
        }
        assert set(reasons["excluded"]) == allowed[degraded]
    assert not any(found["none"].values())
    assert found["train"]["train"]
    assert not found["train"]["val"] | found["train"]["test"]
    assert all(found["all"].values())
    assert found["all"]["train"] == found["train"]["train"]


def test_degraded_episodes_alone_are_no_corpus():
    episodes = corpus(verdict="degraded")
    with pytest.raises(DatasetError, match="must have a usable episode"):
        assign_splits(episodes, "host", replace(POLICY, degraded="none"))


# --- planted leaks


def split_corpus(recipe: str) -> pl.DataFrame:
    assigned = assign_splits(corpus(), recipe, POLICY)
    check_sides(assigned, recipe, POLICY)  # nothing is wrong yet
    return assigned


def first(episodes: pl.DataFrame, split: str) -> dict[str, Any]:
    return side(episodes, split).row(0, named=True)


@each_recipe
@pytest.mark.parametrize(("one", "other"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_an_episode_on_two_sides_is_caught(recipe: str, one: str, other: str):
    episodes = split_corpus(recipe)
    leak = first(episodes, one) | {"split": other}
    leaking = pl.concat([episodes, pl.DataFrame([leak], schema=episodes.schema)])
    with pytest.raises(DatasetError, match=f"episode {leak['episode_id']} must be on one side"):
        check_sides(leaking, recipe, POLICY)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("recipe", "column"), [("host", "host_id"), ("sample", "sample_sha256")])
def test_what_was_held_out_and_is_trained_on_is_caught(recipe: str, column: str, split: str):
    episodes = split_corpus(recipe)
    held_out = first(episodes, "test")[column]
    number = episodes["split"].to_list().index(split)
    leaking = with_values(episodes, number, **{column: held_out})
    with pytest.raises(DatasetError, match=f"{column} must be .* got {held_out} in both"):
        check_sides(leaking, recipe, POLICY)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_session_on_both_sides_is_caught(split: str):
    episodes = split_corpus("session")
    number = episodes["split"].to_list().index(split)
    leaking = with_values(episodes, number, episode_id=ulid(DAY_NS // 1_000_000, 999))
    with pytest.raises(DatasetError, match=r"session must be .* got 1970-01-02 in both"):
        check_sides(leaking, "session", POLICY)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("late_s", [-POLICY.gap_s + 0.001, 0.0, 30.0])
def test_training_that_overlaps_the_test_period_is_caught(split: str, late_s: float):
    episodes = split_corpus("time")
    begins = side(episodes, "test")["started_at_wall_ns"].min()
    number = episodes["split"].to_list().index(split)
    ends = {"ended_at_wall_ns": begins + int(late_s * NS_PER_S)}
    with pytest.raises(DatasetError, match=r"training must end .* before the test"):
        check_sides(with_values(episodes, number, **ends), "time", POLICY)


@each_recipe
def test_the_sides_are_checked_wherever_they_come_from(
    recipe: str, monkeypatch: pytest.MonkeyPatch
):
    def everything(rows: list[dict[str, Any]], *_: Any) -> tuple[set[str], set[str]]:
        return {row["episode_id"] for row in rows[::2]}, set()

    monkeypatch.setattr("datasets.splits._test_side", everything)
    with pytest.raises(DatasetError, match=f"recipe {recipe}"):
        assign_splits(corpus(), recipe, POLICY)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (pl.col("label") != "armed", "every label tested .* got armed in test only"),
        (pl.col("profile") != "io-walk", "every profile tested .* got io-walk in test only"),
        (
            ~pl.col("label").is_in(["armed", "dormant"]),
            "every label tested .* got armed, dormant in test only",
        ),
    ],
)
def test_what_is_tested_and_never_trained_is_caught(keep: pl.Expr, message: str):
    windows, _ = build_table(windows_of(corpus()), "host", POLICY)
    with pytest.raises(DatasetError, match=message):
        check_rosters(windows.filter((pl.col("split") != "train") | keep))


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_side_is_caught(split: str):
    windows, _ = build_table(windows_of(corpus()), "host", POLICY)
    with pytest.raises(DatasetError, match=f"{split} must have windows, got none"):
        check_rosters(windows.filter(pl.col("split") != split))


def test_what_only_training_has_is_no_problem():
    windows, _ = build_table(windows_of(corpus()), "host", POLICY)
    check_rosters(windows.filter((pl.col("split") == "train") | (pl.col("label") == "clean")))


# --- corpora and policies that cannot work


@pytest.mark.parametrize(
    ("recipe", "episodes", "policy", "message"),
    [
        ("place", corpus(), POLICY, "must be one of host, sample, time, session, got 'place'"),
        ("host", corpus(), replace(POLICY, test_host="lab-x"), "test_host must be .*, got 'lab-x'"),
        (
            "host",
            corpus().filter(pl.col("host_id") == "lab-c"),
            POLICY,
            r"the store has one host \(lab-c\)",
        ),
        ("sample", corpus(samples=1), POLICY, "no profile has two samples"),
        ("session", corpus(day=0), POLICY, r"has one recording session \(1970-01-01\)"),
        ("session", corpus(), replace(POLICY, test_sessions=["x"]), "must be some, not all, of"),
        ("sample", corpus(samples=2), POLICY, "val_by sample must leave episodes to .* got 0 of"),
        ("host", corpus(samples=1), POLICY, "val_by sample must leave episodes to .* got 0 of"),
        (
            "host",
            corpus().filter(pl.col("host_id") != "lab-a"),
            replace(POLICY, val_by="host"),
            "val_by host must have two hosts .*, got 1",
        ),
        ("time", corpus().head(1), POLICY, "must leave episodes to train"),
        ("time", corpus(), replace(POLICY, gap_s=1e5), "must leave episodes to train"),
        ("host", corpus().clear(), POLICY, "must have a usable episode"),
    ],
)  # fmt: skip
def test_a_corpus_that_cannot_be_split_says_why(
    recipe: str, episodes: pl.DataFrame, policy: SplitPolicy, message: str
):
    with pytest.raises(DatasetError, match=message):
        assign_splits(episodes, recipe, policy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"val_by": "window"}, "val_by must be 'episode', 'sample' or 'host', got 'window'"),
        ({"degraded": "some"}, "degraded must be 'none', 'train' or 'all', got 'some'"),
        ({"test_share": 0.0}, "test_share must be above 0, got 0.0"),
        ({"test_share": 1.0}, "test_share must be below 1, got 1.0"),
        ({"val_share": -0.1}, "val_share must be above 0, got -0.1"),
        ({"val_share": float("nan")}, "val_share must be finite, got nan"),
        ({"gap_s": -1.0}, "gap_s must be at least 0, got -1.0"),
        ({"sessions": {"a": ["21.11.2026"]}}, DAY_ERROR),
        ({"sessions": {"a": ["2026-99-99"]}}, DAY_ERROR.replace("21.11.2026", "2026-99-99")),
        (
            {"sessions": {"a": ["2026-11-21"], "b": ["2026-11-21"]}},
            "sessions must not list a day twice, got 2026-11-21",
        ),
        (
            {"sessions": {"2026-11-21": ["2026-11-25"]}},
            "a session must not be named after a day that no session lists, got 2026-11-21",
        ),
        ({"gap_s": float("nan")}, "gap_s must be finite, got nan"),
    ],
)
def test_a_wrong_policy_is_refused_by_the_name_of_its_value(values: dict, message: str):
    with pytest.raises(ValidationError) as refused:
        SplitPolicy(**values)
    assert settings_errors(refused.value, SplitPolicy) == [message]


# --- the table and its facts


@each_recipe
def test_the_table_holds_the_windows_of_the_episodes_that_take_part(recipe: str):
    episodes = degraded_corpus()
    windows = windows_of(episodes)
    got, _ = build_table(windows.sample(fraction=1.0, shuffle=True, seed=3), recipe, POLICY)
    sides = sides_of(assign_splits(episodes, recipe, POLICY))
    expected = [e for e, split in sides.items() if split for _ in range(10)]
    assert sorted(got["episode_id"]) == sorted(expected)
    assert got["split"].to_list() == [sides[e] for e in got["episode_id"]]
    assert (
        got.select(windows.columns)
        .sort("row")
        .equals(windows.filter(pl.col("episode_id").is_in(expected)).sort("row"))
    )
    assert got.equals(got.sort("batch", "shard", "row"))


@each_recipe
def test_the_facts_are_those_of_the_table(recipe: str):
    got, facts = build_table(windows_of(degraded_corpus()), recipe, POLICY)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["recipe"] == recipe
    assert facts["policy"]["val_by"] == "sample"
    assert list(facts["splits"]) == list(SPLITS)
    for split, said in facts["splits"].items():
        here = side(got, split)
        assert said["windows"] == len(here)
        assert said["episodes"] == said["synthetic_episodes"] == here["episode_id"].n_unique()
        assert said["hosts"] == sorted(set(here["host_id"]))
        assert said["samples"] == sorted(set(here["sample_name"]))
        assert said["windows_by_phase"] == {phase: len(here) // 5 for phase in sorted(PHASES)}
        assert said["coverage"] == {"proc": 1.0, "guest": 0.3}
    left_out = degraded_corpus()["episode_id"].n_unique() - got["episode_id"].n_unique()
    assert sum(facts["excluded"].values()) == left_out > 0
    tested = set(side(got, "test")["profile"])
    assert facts["profiles"] == sorted(PROFILES)
    assert facts["tested_profiles"] == sorted(tested)
    assert facts["untested_profiles"] == sorted(set(PROFILES) - tested)


def test_a_window_without_a_value_takes_no_part_and_is_counted():
    windows = windows_of(corpus()).with_row_index("n")
    silent, half = pl.col("n") % 7 == 0, pl.col("n") % 7 == 1
    windows = windows.with_columns(
        coverage_proc=pl.when(silent | half).then(0.0).otherwise("coverage_proc"),
        coverage_guest=pl.when(silent).then(0.0).otherwise("coverage_guest"),
    )
    whole, _ = build_table(windows_of(corpus()), "host", POLICY)
    got, facts = build_table(windows, "host", POLICY)
    assert not (got["n"] % 7 == 0).any()
    assert facts["excluded_windows"] == len(whole) - len(got) > 0
    assert sum(facts["splits"][split]["windows"] for split in SPLITS) == len(got)


def test_a_profile_is_tested_only_where_it_runs_infected():
    windows = windows_of(corpus()).filter(
        ~(
            (pl.col("profile") == "io-walk")
            & (pl.col("host_id") == "lab-c")
            & (pl.col("label") == "infected_running")
        )
    )
    got, facts = build_table(windows, "host", POLICY)
    assert "io-walk" in set(side(got, "test")["profile"])
    assert facts["untested_profiles"] == ["io-walk"]
    assert facts["tested_profiles"] == [p for p in sorted(PROFILES) if p != "io-walk"]


def test_a_table_without_a_class_in_training_is_not_built():
    windows = windows_of(corpus()).filter(
        (pl.col("host_id") == "lab-c") | (pl.col("label") != "dormant")
    )
    with pytest.raises(DatasetError, match=r"every label tested .* got dormant in test only"):
        build_table(windows, "host", POLICY)


def test_an_episode_described_in_two_ways_is_refused():
    """Its windows would be counted once for each description."""
    windows = windows_of(corpus())
    first = windows["episode_id"][0]
    twice = windows.filter(pl.col("episode_id") == first).with_columns(host_id=pl.lit("lab-b"))
    with pytest.raises(DatasetError, match=first):
        build_table(pl.concat([windows, twice]), "host", POLICY)
