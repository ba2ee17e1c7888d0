"""Splits: which windows train, validate and test, for each recipe.

A dataset is a table of windows with a column ``split``; the inputs stay in the shards. Whole
episodes go to a side, and all kin to one: the simulated children of one episode, and that episode.
A leak, an overlap or a class that is tested but not trained stops the build.

Sides are drawn by a hash of a name and the seed, so that what arrives later moves nothing else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Annotated, Any, Literal

import polars as pl
import pydantic.dataclasses
from pydantic import AfterValidator, model_validator

from config.errors import PhasewatchError
from config.messages import unknown
from datasets.exclusions import BY_HAND, Exclusion, apply_exclusions
from episodes.format import NS_PER_S, episode_day
from episodes.settings import SETTINGS, Int, NotNegative, ShareWithin

RECIPES: dict[str, str] = {
    "host": "a host the model never saw",
    "sample": "samples the model never saw",
    "time": "the last part of the store, by start time",
    "session": "recording sessions the model never saw",
}
SPLITS = ("train", "val", "test")
UNAVAILABLE = {
    "single_host": "the store has one host ({found}), so none can be held out",
    "single_sample": "no profile has two samples, so none can be held out",
    "single_session": "the store has one recording session ({found}), so none can be held out",
}
"""Why a recipe is unavailable on a store: a sentence by code."""


def _a_day(text: str) -> str:
    if not _is_day(text):
        raise ValueError("must be a day such as 2026-11-21")
    return text


def _is_day(text: str) -> bool:
    with suppress(ValueError):
        return date.fromisoformat(text).isoformat() == text
    return False


Day = Annotated[str, AfterValidator(_a_day)]
"""A UTC day, ``2026-11-21``."""


class DatasetError(PhasewatchError):
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
    session_share: ShareWithin = 0.15  # of episodes, which the latest sessions make up for test
    sessions: dict[str, list[Day]] = field(default_factory=dict)
    """Recording sessions by name, as UTC days; a day that is not listed is a session by itself."""
    test_sessions: list[str] = field(default_factory=list)  # empty: the latest sessions

    @model_validator(mode="after")
    def _each_day_once(self) -> SplitPolicy:
        days = Counter(day for listed in self.sessions.values() for day in listed)
        twice = [day for day, n in days.items() if n > 1]
        if twice:
            raise ValueError(f"sessions must not list a day twice, got {', '.join(twice)}")
        for name in self.sessions:
            if _is_day(name) and name not in days:  # which is a session by itself
                raise ValueError(
                    f"a session must not be named after a day that no session lists, got {name}"
                )
        return self

    def session(self, episode_id: str) -> str:
        """The recording session of an episode: it follows from the id, so it never changes."""
        day = episode_day(episode_id)
        return next((name for name, days in self.sessions.items() if day in days), day)


@dataclass(frozen=True)
class Obstacle:
    """Why a recipe is unavailable on a store: a code of ``UNAVAILABLE``, and all there is."""

    code: str
    found: list[str]

    @property
    def sentence(self) -> str:
        return UNAVAILABLE[self.code].format(found=", ".join(self.found))


def obstacle(episodes: pl.DataFrame, recipe: str, policy: SplitPolicy) -> Obstacle | None:
    """Why a recipe has nothing to hold out among episodes; None where it has.

    Args:
        episodes: one row each, with ``episode_id, host_id, sample_name, profile, verdict``.
    """
    if policy.degraded == "none":
        episodes = episodes.filter(pl.col("verdict") != "degraded")
    if recipe == "host":
        hosts = sorted(set(episodes["host_id"]))
        return Obstacle("single_host", hosts) if len(hosts) == 1 else None
    if recipe == "sample":
        samples = episodes.group_by("profile").agg(pl.col("sample_name").n_unique())
        single = len(samples) and (samples["sample_name"] == 1).all()
        return Obstacle("single_sample", sorted(samples["profile"])) if single else None
    if recipe == "session":
        sessions = sorted({policy.session(episode_id) for episode_id in episodes["episode_id"]})
        return Obstacle("single_session", sessions) if len(sessions) == 1 else None
    return None


# Long, because each side is drawn from what the one before has left.
def assign_splits(episodes: pl.DataFrame, recipe: str, policy: SplitPolicy) -> pl.DataFrame:
    """Give every episode a side.

    Args:
        episodes: one row each, with ``episode_id, parent_episode_id, host_id, sample_sha256,
            sample_name, profile, verdict, started_at_wall_ns, ended_at_wall_ns``.

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

    if nothing := obstacle(episodes, recipe, policy):
        raise DatasetError(f"recipe {recipe} is unavailable: {nothing.sentence}")
    test, gap = _test_side(usable, recipe, policy)
    excluded |= dict.fromkeys(gap, "in the gap before the test period")
    near = _kin_of(test, usable)
    excluded |= dict.fromkeys(near - gap, "kin of a tested episode")
    training = [r for r in usable if r["episode_id"] not in test | near | gap]
    if near and not training:
        raise DatasetError(
            f"recipe {recipe}: an episode must be left to train on, got none: of "
            f"{len(usable)} episodes, {len(test)} are for testing and {len(near)} are kin of those"
        )
    val = validation_side(training, recipe, policy)
    near = _kin_of(val, training)
    excluded |= dict.fromkeys(near, "kin of a validation episode")
    training = [row for row in training if row["episode_id"] not in near]
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


def _kin(row: dict[str, Any]) -> str:
    """What kin have in common: the episode that they were made from, or are."""
    return str(row["parent_episode_id"] or row["episode_id"])


def _kin_of(side: set[str], rows: list[dict[str, Any]]) -> set[str]:
    """The episodes that are kin of one of a side, without that side."""
    kin = {_kin(row) for row in rows if row["episode_id"] in side}
    return {row["episode_id"] for row in rows if _kin(row) in kin} - side


def _test_side(
    rows: list[dict[str, Any]], recipe: str, policy: SplitPolicy
) -> tuple[set[str], set[str]]:
    """``(test episodes, episodes in the gap)``."""
    if recipe == "host":
        hosts = sorted({row["host_id"] for row in rows})
        if policy.test_host not in hosts:
            raise DatasetError(
                f"recipe host: splits.test_host must be one of {', '.join(hosts)}, "
                f"got {policy.test_host!r}"
            )
        return {r["episode_id"] for r in rows if r["host_id"] == policy.test_host}, set()
    if recipe == "sample":
        held_out = _hold_out_samples(rows, policy.test_share, f"{policy.seed}.1")
        return {r["episode_id"] for r in rows if r["sample_sha256"] in held_out}, set()
    if recipe == "session":
        held_out = _hold_out_sessions(rows, policy)
        return {r["episode_id"] for r in rows if policy.session(r["episode_id"]) in held_out}, set()
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


def _hold_out_sessions(rows: list[dict[str, Any]], policy: SplitPolicy) -> set[str]:
    """The sessions listed, or the latest that make up the share; one is always left."""
    counts: Counter[str] = Counter()
    latest: dict[str, str] = {}  # session -> its last day
    for row in rows:
        name, day = policy.session(row["episode_id"]), episode_day(row["episode_id"])
        counts[name] += 1
        latest[name] = max(day, latest.get(name, day))
    if policy.test_sessions:
        chosen = set(policy.test_sessions)
        if not chosen <= counts.keys() or chosen == counts.keys():
            raise DatasetError(
                f"recipe session: splits.test_sessions must be some, not all, of "
                f"{', '.join(sorted(counts))}, got {', '.join(policy.test_sessions)}"
            )
        return chosen
    held_out: set[str] = set()
    for name in sorted(counts, key=lambda name: latest[name], reverse=True)[:-1]:
        if sum(counts[n] for n in held_out) >= policy.session_share * len(rows):
            break
        held_out.add(name)
    return held_out


def _rank(name: str, seed: str) -> float:
    """A number from 0 to 1 that follows from a name and a seed alone."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _drawn(names: Collection[str], share: float, seed: str) -> set[str]:
    """The names whose rank is below the share, so that another name moves none of them.

    Of several names one at least is drawn, that of lowest rank, and one is left, that of highest.
    """
    if len(names) < 2:
        return set()
    order = sorted(names, key=lambda name: (_rank(name, seed), name))
    below = sum(_rank(name, seed) < share for name in order)
    return set(order[: min(len(order) - 1, max(1, below))])


def _hold_out_samples(rows: list[dict[str, Any]], share: float, seed: str) -> set[str]:
    """At least one sample of each profile that has two or more; every profile keeps one."""
    names: dict[str, str] = {}  # sample -> its name: what is drawn, as a rebuilt sample keeps it
    by_profile: dict[str, set[str]] = {}
    for row in rows:
        sample, name = row["sample_sha256"], row["sample_name"]
        names[sample] = min(name, names.get(sample, name))
        by_profile.setdefault(row["profile"], set()).add(sample)
    held_out: set[str] = set()
    for samples in by_profile.values():
        drawn = _drawn({names[sample] for sample in samples}, share, seed)
        held_out |= {sample for sample in samples if names[sample] in drawn}
    return held_out


def validation_side(rows: list[dict[str, Any]], recipe: str, policy: SplitPolicy) -> set[str]:
    """The episodes to validate on, of those that are not tested.

    Raises:
        DatasetError: they would be none or all.
    """
    seed = f"{policy.seed}.2"
    if policy.val_by == "sample":
        held_out = _hold_out_samples(rows, policy.val_share, seed)
        val = {row["episode_id"] for row in rows if row["sample_sha256"] in held_out}
    elif policy.val_by == "host":
        hosts = {row["host_id"] for row in rows}
        if len(hosts) < 2:
            raise DatasetError(
                f"recipe {recipe}: splits.val_by host must have two hosts outside the test side, "
                f"got {len(hosts)}; set it to episode or sample"
            )
        chosen = min(hosts, key=lambda host: _rank(host, seed))
        val = {row["episode_id"] for row in rows if row["host_id"] == chosen}
    else:
        drawn = _drawn({_kin(row) for row in rows}, policy.val_share, seed)
        val = {row["episode_id"] for row in rows if _kin(row) in drawn}
    if not val or len(val) == len(rows):
        raise DatasetError(
            f"recipe {recipe}: splits.val_by {policy.val_by} must leave episodes to train and to "
            f"validate on, got {len(val)} of {len(rows)} for validation; add episodes or change it"
        )
    return val


def held_out_by(episodes: pl.DataFrame, recipe: str, policy: SplitPolicy) -> pl.Series:
    """By row what the recipe never has on both sides: a host, a sample, a session; else null."""
    if recipe == "session":
        of = {e: policy.session(e) for e in episodes["episode_id"].unique()}
        return episodes["episode_id"].replace_strict(of, return_dtype=pl.String).alias("session")
    column = {"host": "host_id", "sample": "sample_sha256"}.get(recipe)
    if column is None:
        return pl.Series("none", [None] * len(episodes), dtype=pl.String)
    return episodes[column]


def shared_by_sides(
    training: pl.DataFrame, test: pl.DataFrame, recipe: str, policy: SplitPolicy
) -> tuple[str, set[str]]:
    """What the recipe holds out, and which of it is on both sides all the same."""
    one, other = (held_out_by(side, recipe, policy) for side in (training, test))
    return one.name, (set(one) & set(other)) - {None}


KIN = (
    pl.when(pl.col("parent_episode_id") == "")
    .then("episode_id")
    .otherwise("parent_episode_id")
    .alias("kin")
)
"""Of episodes or windows: what kin have in common, see ``_kin``."""


def on_several_sides(rows: pl.DataFrame, names: pl.Expr) -> dict[str, list[str]]:
    """Of rows with ``split``: the names that are on more than one side, and these sides."""
    sides = (
        rows.filter(pl.col("split").is_not_null())
        .group_by(names.alias("name"))
        .agg(pl.col("split").unique().sort())
        .filter(pl.col("split").list.len() > 1)
        .sort("name")
    )
    return dict(sides.iter_rows())


def check_sides(episodes: pl.DataFrame, recipe: str, policy: SplitPolicy) -> None:
    """Check what a recipe promises about its sides.

    Raises:
        DatasetError: an episode, kin, a sample (recipe ``sample``), the test host (``host``), a
            session (``session``) or a span of time (``time``) is on both sides; the message names
            it.
    """
    for what, names in (("episode", pl.col("episode_id")), ("kin of", KIN)):
        for name, splits in on_several_sides(episodes, names).items():
            raise DatasetError(
                f"recipe {recipe}: {what} {name} must be on one side, got {', '.join(splits)}"
            )
    training = episodes.filter(pl.col("split").is_in(["train", "val"]))
    test = episodes.filter(pl.col("split") == "test")
    what, shared = shared_by_sides(training, test, recipe, policy)
    if shared:
        raise DatasetError(
            f"recipe {recipe}: {what} must be in training or in test, "
            f"got {', '.join(sorted(shared))} in both"
        )
    gap_s = gap_before_test_s(training, test)
    if recipe == "time" and gap_s is not None and gap_s < policy.gap_s:
        raise DatasetError(
            f"recipe time: training must end splits.gap_s ({policy.gap_s:g} s) before the test "
            f"begins, got {gap_s:g} s"
        )


def gap_before_test_s(training: pl.DataFrame, test: pl.DataFrame) -> float | None:
    """Seconds from the last end of training to the first begin of test; None if a side is empty."""
    if test.is_empty() or training.is_empty():
        return None
    begins: Any = test["started_at_wall_ns"].cast(pl.Int64).min()
    ends: Any = training["ended_at_wall_ns"].cast(pl.Int64).max()
    return float(begins - ends) / NS_PER_S


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
    windows: pl.DataFrame,
    recipe: str,
    policy: SplitPolicy,
    exclusions: Sequence[Exclusion] = (),
    window_s: float = 0.0,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The dataset of a recipe.

    Args:
        windows: the window tables of all batches, with a column ``batch``.
        exclusions: what a person keeps out; windows are ``window_s`` long.

    Returns:
        ``(windows with split, facts)``: windows that take no part are not in the table; the facts
        count their episodes, and the windows left out because no channel has a value in them, and
        list the exclusions.

    Raises:
        DatasetError: see ``assign_splits`` and ``check_rosters``.
    """
    episodes = windows.select(
        "episode_id", "parent_episode_id", "host_id", "sample_sha256", "sample_name", "profile",
        "verdict", "started_at_wall_ns", "ended_at_wall_ns",
    ).unique()  # fmt: skip
    twice = episodes.filter(pl.col("episode_id").is_duplicated())["episode_id"].unique().sort()
    if len(twice):
        raise DatasetError(
            f"episodes must have one description, got several for {', '.join(twice)}; ingest their "
            "batches again: phasewatch run --force"
        )
    assigned = assign_splits(episodes, recipe, policy).with_columns(
        session=pl.col("episode_id").map_elements(policy.session, return_dtype=pl.String)
    )
    taking_part = (
        windows.join(assigned.select("episode_id", "session", "split"), on="episode_id", how="left")
        .filter(pl.col("split").is_not_null())
        .sort("batch", "episode_id", "window")  # whatever shard they came to be in
    )
    with_values = taking_part.filter(pl.any_horizontal(pl.col("^coverage_.*$") > 0))
    table, listed = apply_exclusions(with_values, exclusions, window_s)
    check_rosters(table)
    left_out = {
        "excluded_windows": len(taking_part) - len(with_values),
        "exclusions": listed,
        "windows_excluded_by_hand": len(with_values) - len(table),
    }
    by_hand = {exclusion.episode for exclusion in exclusions if exclusion.whole}
    return table, describe(table, _without(assigned, by_hand), recipe, policy) | left_out


def _without(assigned: pl.DataFrame, by_hand: Collection[str]) -> pl.DataFrame:
    """Episodes with those that a person excluded taking no part."""
    out = pl.col("episode_id").is_in(list(by_hand)) & pl.col("split").is_not_null()
    return assigned.with_columns(
        split=pl.when(out).then(None).otherwise("split"),
        excluded=pl.when(out).then(pl.lit(BY_HAND)).otherwise("excluded"),
    )


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
            "sessions": sorted(set(side["session"])),
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
