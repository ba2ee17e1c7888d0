"""The champion: the realistic model in use, and the trial of who would replace it."""

from typing import Any

import dagster as dg
from pydantic import Field

from assets.partitions import EVERY_PARTITION, OWNERS
from evaluation.datasets import RECIPES
from evaluation.promotion import CHALLENGER, CHAMPION, Judgement
from models.champion import ChampionError, Reign
from models.checkpoint import CheckpointError
from models.registry import find_variant
from resources.guards import checkpoint_key, refuse, refuse_throwaway_instance
from resources.promotion import CANDIDATES, best_on_validation, judge, promote
from resources.reporting import Stopwatch, say
from resources.workspace import Workspace

CHAMPION_VERSION = "1"


class ChampionConfig(dg.Config):
    """Who is tried, and whether a trial that is won has consequences."""

    challenger: str = Field(
        default="", description="A model of the registry; empty: the one best on validation."
    )
    promote: bool = Field(
        default=False, description="Put the challenger in use where nothing speaks against it."
    )


@dg.asset(
    deps=[
        dg.AssetDep(checkpoint_key(which), partition_mapping=EVERY_PARTITION)
        for which in CANDIDATES
    ],
    check_specs=[
        dg.AssetCheckSpec(
            "challenger_may_replace_it",
            asset="champion",
            description=(
                "The challenger is not worse on any recipe, better on one, loses no profile or "
                "host, and verifies. Failing is no fault: the champion stays."
            ),
        )
    ],
    group_name="score",
    kinds={"json"},
    owners=OWNERS,
    code_version=CHAMPION_VERSION,
)
def champion(
    context: dg.AssetExecutionContext, config: ChampionConfig, workspace: Workspace
) -> dg.MaterializeResult:
    """The realistic model in use. A challenger is tried; it replaces it only where told to."""
    refuse_throwaway_instance(context.instance)
    watch = Stopwatch()
    try:
        which = (
            find_variant(config.challenger, "realistic")
            if config.challenger
            else best_on_validation(workspace)
        )
    except ValueError as error:
        refuse(str(error))
    if which is None:
        refuse(f"No realistic model is trained for each of {', '.join(RECIPES)}. Train: "
               "phasewatch run")  # fmt: skip
    why = f"run {context.run.run_id}"
    try:
        if config.promote:
            trial, reign = promote(workspace, which, by="dagster", why=why)
        else:
            trial = judge(workspace, which)
            reign = trial.champion
    except (ChampionError, CheckpointError) as error:
        refuse(str(error))
    judgement = trial.judgement
    verdict = (
        f"{which.name} is promoted" if reign != trial.champion
        else f"{which.name} may be promoted: phasewatch promote {which.model}" if judgement.granted
        else f"{which.name} may not be promoted: {len(judgement.reasons)} reasons"
    )  # fmt: skip
    say(context, f"champion {reign.name if reign else 'none'}: {verdict}")
    return dg.MaterializeResult(
        metadata={**reign_metadata(reign), "seconds": watch.seconds},
        data_version=dg.DataVersion(reign.checkpoints[reign.served] if reign else "none"),
        check_results=[
            dg.AssetCheckResult(
                passed=judgement.granted or trial.is_champion,
                severity=dg.AssetCheckSeverity.WARN,
                description=verdict,
                metadata={
                    "challenger": which.name,
                    "reasons": dg.MetadataValue.md(
                        "\n".join(f"- {reason}" for reason in judgement.reasons) or "none"
                    ),
                    "evidence": dg.MetadataValue.json(judgement.recipes),
                    **trial_figures(judgement),
                },
            )
        ],
    )


def trial_figures(judgement: Judgement) -> dict[str, float]:
    """The numbers of a trial that are worth a plot."""
    found = {}
    for recipe, evidence in judgement.recipes.items():
        for name in (CHALLENGER, CHAMPION):
            if name in evidence:
                found[f"macro_f1_{name}_{recipe}"] = evidence[name]
        if "difference" in evidence:
            found[f"difference_low_{recipe}"] = evidence["difference"]["low"]
    return found


def reign_metadata(reign: Reign | None) -> dict[str, Any]:
    """What Dagster shows of who is champion."""
    if reign is None:
        return {"champion": "none"}
    return {
        "champion": reign.name,
        "number": reign.number,
        "action": reign.action,
        "since": reign.since,
        "by": reign.by,
        "why": reign.why,
        "served": reign.served,
        "checkpoint_id": reign.checkpoints[reign.served],
        "checkpoints": dg.MetadataValue.json(reign.checkpoints),
        **{
            f"macro_f1_{recipe}": evidence[CHALLENGER]
            for recipe, evidence in reign.evidence.items()
            if CHALLENGER in evidence
        },
    }


def record(instance: dg.DagsterInstance, reign: Reign) -> None:
    """Tell Dagster who is champion, where that was decided outside a run."""
    instance.report_runless_asset_event(
        dg.AssetMaterialization("champion", metadata=reign_metadata(reign))
    )
