"""The test set as a sample: what is resampled, and what its intervals are conditional on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from episodes.format import NS_PER_S
from evaluation.bootstrap import EpisodeBootstrap

if TYPE_CHECKING:
    import polars as pl

    from evaluation.figures import ReportPolicy
    from evaluation.scores import Scored


def resampling(
    recipe: str, own: Scored, policy: ReportPolicy
) -> tuple[EpisodeBootstrap, dict[str, Any]]:
    """The bootstrap of a recipe's test set, and what a document says of it.

    In recipe ``sample`` held-out samples are drawn first, then episodes of each: another sample
    could have been held out as well as these. A held-out host is one; nothing can be drawn from it.
    """
    episodes = own.episodes
    two_stage = recipe == "sample"
    group = (
        episodes["sample_sha256"].rank("dense").to_numpy().astype(np.int64) - 1
        if two_stage
        else np.zeros(len(episodes), dtype=np.int64)
    )
    bootstrap = EpisodeBootstrap(group, policy.replicates, policy.seed)
    support = own.confusion.sum(axis=2)[:, own.roster].astype(np.float64)
    lacking = bootstrap.replicates_of({"": lambda w: ((w @ support) == 0).any(axis=1)})[""]
    return bootstrap, {
        "unit": "episode",
        "stages": ["sample", "episode"] if two_stage else ["episode"],
        "replicates": policy.replicates,
        "seed": policy.seed,
        "replicates_lacking_a_class": int(lacking.sum()),
        "conditional_on": conditional_on(recipe, episodes),
    }


def conditional_on(recipe: str, episodes: pl.DataFrame) -> dict[str, Any]:
    """What was held out, how much of it there is, and what no interval speaks of."""
    if recipe == "host":
        names = sorted(set(episodes["host_id"]))
        return _condition("host", names, "held-out host", "what another host would bring")
    if recipe == "sample":
        samples = episodes.unique("sample_sha256")["sample_name"]
        return _condition(
            "sample", sorted(samples), "held-out sample", "samples of another kind than these"
        )
    first, last = episodes["started_at_wall_ns"].min(), episodes["ended_at_wall_ns"].max()
    begins, ends = (
        datetime.fromtimestamp(int(t) // NS_PER_S, tz=UTC).strftime("%Y-%m-%d %H:%M")  # type: ignore[arg-type]
        for t in (first, last)
    )
    names = [f"{begins} to {ends} UTC"]
    return _condition("period", names, "period", "what another time would bring")


def _condition(unit: str, names: list[str], what: str, beyond: str) -> dict[str, Any]:
    n = len(names)
    return {
        "unit": unit,
        "n": n,
        "names": names,
        "text": f"Conditional on {n} {what}{'' if n == 1 else 's'} ({', '.join(names)}): an "
        f"interval does not cover {beyond}.",
    }
