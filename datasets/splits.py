"""Splits: which windows train, validate and test, for each recipe.

A dataset is a table of windows with a column ``split``; the inputs stay in the shards. Whole
episodes go to a side. A leak, an overlap or a class that is tested but not trained stops the build.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import polars as pl
import pydantic.dataclasses

from config.messages import unknown
from episodes.format import NS_PER_S
from episodes.settings import SETTINGS, Int, NotNegative, ShareWithin

Recipe = Literal["host", "sample", "time"]
RECIPES: dict[str, str] = {
    "host": "a host the model never saw",
    "sample": "samples the model never saw",
    "time": "the last part of the corpus, by start time",
}
SPLITS = ("train", "val", "test")


class DatasetError(Exception):
    """A dataset cannot be built soundly; the message says why and what to change."""


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=SETTINGS)
class SplitPolicy:
    """How episodes are assigned to sides."""

    seed: Int = 0
    test_host: str = "lab-c"
    test_share: ShareWithin = 0.2  # of samples per profile, of episodes by time
    val_share: ShareWithin = 0.2  # of the training side
    val_by: Literal["episode", "sample", "host"] = "sample"
    gap_s: NotNegative = 5.0  # between the end of training and the start of test, in ``time``
    degraded: Literal["none", "train", "all"] = "train"


def assign_splits(episodes: pl.DataFrame, recipe: str, policy: SplitPolicy) -> pl.DataFrame:
    """Give every episode a side.

    Args:
        episodes: one row each, with ``episode_id, host_id, sample_sha256, profile, verdict,
            started_at_wall_ns, ended_at_wall_ns``.

    Returns:
        The same rows, ordered by start, with ``split``; null if the episode takes no part,
        and then ``excluded`` says why.

    Raises:
        DatasetError: a side would be empty, or the sides break a promise of the recipe.
    """
    if recipe not in RECIPES:
        raise DatasetError(unknown("recipe", recipe, RECIPES))
    rows = episodes.sort("started_at_wall_ns", "episode_id").to_dicts()
    excluded: dict[str, str] = {}
    if policy.degraded == "none":
        excluded = {r["episode_id"]: "degraded" for r in rows if r["verdict"] == "degraded"}
    usable = [row for row in rows if row["episode_id"] not in excluded]
    if not usable:
        raise DatasetError(
            f"recipe {recipe}: must have a usable episode, got none; phasewatch validate shows why"
        )

    test, gap = _test_side(usable, recipe, policy)
    excluded |= dict.fromkeys(gap, "in the gap before the test period")
    training = [r for r in usable if r["episode_id"] not in test and r["episode_id"] not in gap]
    val = _val_side(training, recipe, policy)
    split = {row["episode_id"]: "train" for row in training}
    split |= dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    if policy.degraded == "train":
        for row in usable:
            side = split.get(row["episode_id"])
            if row["verdict"] == "degraded" and side in ("val", "test"):
                del split[row["episode_id"]]
                excluded[row["episode_id"]] = f"degraded, on the {side} side"
    assigned = pl.DataFrame(
        [
            {
                "episode_id": row["episode_id"],
                "split": split.get(row["episode_id"]),
                "excluded": excluded.get(row["episode_id"]),
            }
            for row in rows
        ],
        schema={"episode_id": pl.String, "split": pl.String, "excluded": pl.String},
    )
    result = pl.DataFrame(rows, schema=episodes.schema).join(
        assigned, on="episode_id", how="left", maintain_order="left"
    )
    check_sides(result, recipe, policy)
    return result


def _test_side(
    rows: list[dict[str, Any]], recipe: str, policy: SplitPolicy
) -> tuple[set[str], set[str]]:
    """``(test episodes, episodes in the gap)``."""
    if recipe == "host":
        hosts = sorted({row["host_id"] for row in rows})
        if policy.test_host not in hosts or len(hosts) < 2:
            raise DatasetError(
                f"recipe host: splits.test_host must be one of several hosts, "
                f"got {policy.test_host!r}; the corpus has {', '.join(hosts)}"
            )
        return {r["episode_id"] for r in rows if r["host_id"] == policy.test_host}, set()
    if recipe == "sample":
        held_out = _hold_out_samples(rows, policy.test_share, [policy.seed, 1])
        if not held_out:
            raise DatasetError(
                "recipe sample: a profile must have two samples to hold one out, got one in each; "
                "add episodes of other samples"
            )
        return {r["episode_id"] for r in rows if r["sample_sha256"] in held_out}, set()
    first_test = rows[len(rows) - max(1, round(policy.test_share * len(rows)))]
    begins = first_test["started_at_wall_ns"]
    last_end = begins - int(policy.gap_s * NS_PER_S)
    test = {r["episode_id"] for r in rows if r["started_at_wall_ns"] >= begins}
    gap = {
        r["episode_id"]
        for r in rows
        if r["episode_id"] not in test and r["ended_at_wall_ns"] > last_end
    }
    return test, gap


def _hold_out_samples(rows: list[dict[str, Any]], share: float, seed: list[int]) -> set[str]:
    """At least one sample of each profile that has two; every profile keeps one."""
    by_profile: dict[str, set[str]] = {}
    for row in rows:
        by_profile.setdefault(row["profile"], set()).add(row["sample_sha256"])
    random = np.random.default_rng(seed)
    held_out: set[str] = set()
    for profile in sorted(by_profile):
        samples = sorted(by_profile[profile])
        order = random.permutation(len(samples))
        count = min(len(samples) - 1, max(1, round(share * len(samples))))
        held_out |= {samples[i] for i in order[:count]}
    return held_out


def _val_side(rows: list[dict[str, Any]], recipe: str, policy: SplitPolicy) -> set[str]:
    random = np.random.default_rng([policy.seed, 2])
    if policy.val_by == "sample":
        held_out = _hold_out_samples(rows, policy.val_share, [policy.seed, 2])
        val = {row["episode_id"] for row in rows if row["sample_sha256"] in held_out}
    elif policy.val_by == "host":
        hosts = sorted({row["host_id"] for row in rows})
        if len(hosts) < 2:
            raise DatasetError(
                f"recipe {recipe}: splits.val_by host must have two hosts outside the test side, "
                f"got {len(hosts)}; set it to episode or sample"
            )
        chosen = hosts[int(random.integers(len(hosts)))]
        val = {row["episode_id"] for row in rows if row["host_id"] == chosen}
    else:
        count = max(1, round(policy.val_share * len(rows)))
        val = {rows[i]["episode_id"] for i in random.permutation(len(rows))[:count]}
    if not val or len(val) == len(rows):
        raise DatasetError(
            f"recipe {recipe}: splits.val_by {policy.val_by} must leave episodes to train and to "
            f"validate on, got {len(val)} of {len(rows)} for validation; add episodes or change it"
        )
    return val


def check_sides(episodes: pl.DataFrame, recipe: str, policy: SplitPolicy) -> None:
    """Check what a recipe promises about its sides.

    Raises:
        DatasetError: an episode, a sample (recipe ``sample``), the test host (``host``) or a span
            of time (``time``) is on both sides; the message names it.
    """
    sides: dict[str, set[str]] = {}
    for episode_id, split in episodes.select("episode_id", "split").drop_nulls().iter_rows():
        sides.setdefault(episode_id, set()).add(split)
    for episode_id, splits in sides.items():
        if len(splits) > 1:
            raise DatasetError(
                f"recipe {recipe}: episode {episode_id} must be on one side, "
                f"got {', '.join(sorted(splits))}"
            )
    training = episodes.filter(pl.col("split").is_in(["train", "val"]))
    test = episodes.filter(pl.col("split") == "test")
    for column in {"sample": ["sample_sha256"], "host": ["host_id"], "time": []}[recipe]:
        shared = set(training[column]) & set(test[column])
        if shared:
            raise DatasetError(
                f"recipe {recipe}: {column} must be in training or in test, "
                f"got {', '.join(sorted(shared))} in both"
            )
    if recipe == "time" and len(test) and len(training):
        # training must end before the test begins, by the gap
        begins = test["started_at_wall_ns"].cast(pl.Int64).to_list()
        ends = training["ended_at_wall_ns"].cast(pl.Int64).to_list()
        if max(ends) > min(begins) - int(policy.gap_s * NS_PER_S):
            raise DatasetError(
                f"recipe time: training must end splits.gap_s ({policy.gap_s:g} s) before the test "
                "begins, got a later training episode"
            )


def check_rosters(windows: pl.DataFrame) -> None:
    """Check that every class and profile tested is trained on, and that no side is empty.

    Raises:
        DatasetError: names the class or profile.
    """
    for split in SPLITS:
        if windows.filter(pl.col("split") == split).is_empty():
            raise DatasetError(f"{split} must have windows, got none; add episodes")
    train = windows.filter(pl.col("split") == "train")
    test = windows.filter(pl.col("split") == "test")
    for column in ("label", "profile"):
        unseen = set(test[column]) - set(train[column])
        if unseen:
            raise DatasetError(
                f"every {column} tested must be trained on, got {', '.join(sorted(unseen))} in "
                "test only; add episodes or change splits"
            )


def build_table(
    windows: pl.DataFrame, recipe: str, policy: SplitPolicy
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The dataset of a recipe.

    Args:
        windows: the window tables of all batches, with a column ``batch``.

    Returns:
        ``(windows with split, facts)``: windows that take no part are not in the table; the facts
        count their episodes.

    Raises:
        DatasetError: see ``assign_splits`` and ``check_rosters``.
    """
    episodes = windows.select(
        "episode_id", "host_id", "sample_sha256", "profile", "verdict",
        "started_at_wall_ns", "ended_at_wall_ns",
    ).unique()  # fmt: skip
    twice = episodes.filter(pl.col("episode_id").is_duplicated())["episode_id"].unique().sort()
    if len(twice):
        raise DatasetError(
            f"episodes must have one description, got several for {', '.join(twice)}; ingest their "
            "batches again: phasewatch run --force"
        )
    assigned = assign_splits(episodes, recipe, policy)
    table = (
        windows.join(assigned.select("episode_id", "split"), on="episode_id", how="left")
        .filter(pl.col("split").is_not_null())
        .sort("batch", "shard", "row")
    )
    check_rosters(table)
    return table, describe(table, assigned, recipe, policy)


def describe(
    table: pl.DataFrame, assigned: pl.DataFrame, recipe: str, policy: SplitPolicy
) -> dict[str, Any]:
    """What a dataset covers, and what it does not."""
    profiles = sorted(set(table["profile"]))
    attacked = table.filter((pl.col("split") == "test") & (pl.col("label") == "infected_running"))
    tested = sorted(set(attacked["profile"]))
    excluded = assigned.filter(pl.col("split").is_null())
    per_split: dict[str, Any] = {}
    for split in SPLITS:
        side = table.filter(pl.col("split") == split)
        per_split[split] = {
            "windows": len(side),
            "episodes": side["episode_id"].n_unique(),
            "hosts": sorted(set(side["host_id"])),
            "samples": sorted(set(side["sample_name"])),
            "synthetic_episodes": side.filter(pl.col("synthetic"))["episode_id"].n_unique(),
            "windows_by_phase": dict(sorted(Counter(side["label"]).items())),
            "coverage": {
                name.removeprefix("coverage_"): round(float(side[name].to_numpy().mean()), 4)
                for name in side.columns
                if name.startswith("coverage_")
            },
        }
    return {
        "recipe": recipe,
        "policy": asdict(policy),
        "splits": per_split,
        "profiles": profiles,
        "tested_profiles": tested,
        "untested_profiles": [profile for profile in profiles if profile not in tested],
        "excluded": dict(sorted(Counter(excluded["excluded"]).items())),
    }
