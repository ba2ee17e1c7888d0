"""Commands about the model in use: ``champion``, ``promote``, ``rollback``."""

import getpass
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.console import (
    FAILED,
    MISMATCH,
    USAGE,
    ConfigOption,
    JsonOption,
    RunArtifactsOption,
    RunStoreOption,
    failing,
    say_json,
    say_table,
    workspace_of,
)

if TYPE_CHECKING:
    from champion.history import Champion
    from stages.champion import Trial
    from stages.project import Project

WhyOption = Annotated[str, typer.Option(help="Kept in the history, for whoever asks later.")]
_SHOWN_DIGITS = 12


def champion(
    config: ConfigOption = None,
    artifacts: RunArtifactsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which model is in use, since when, on which evidence, and which were before."""
    from champion.history import ChampionError, kept_path, read_history

    folder = workspace_of(config, None, artifacts, made=True).champion_folder
    with failing({ChampionError: FAILED}):
        history = read_history(folder)
    if as_json:
        from dataclasses import asdict

        say_json({
            "champion": asdict(history[-1]) | {"path": str(kept_path(folder, history[-1]))}
            if history else None,
            "history": [asdict(reign) for reign in history],
        })  # fmt: skip
        return
    if not history:
        typer.echo("There is no champion yet. Promote a trained model: phasewatch promote MODEL")
        return
    reign = history[-1]
    typer.echo(f"{reign.name}, {reign.action} {reign.since} by {reign.by}" + _because(reign))
    typer.echo(f"scores with {kept_path(folder, reign)}\n")
    _show_evidence(reign.evidence)
    typer.echo()
    columns = ("#", "champion", "since", "by", "how", f"checkpoint ({reign.served})", "why")
    say_table(columns, [
        (r.number, r.name, r.since, r.by, r.action, r.checkpoints[r.served][:_SHOWN_DIGITS], r.why)
        for r in reversed(history)
    ])  # fmt: skip


def promote(
    model: Annotated[str, typer.Argument(help="A model of the registry, such as gbt.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge it, change nothing; exit codes as without.")
    ] = False,
    why: WhyOption = "",
    config: ConfigOption = None,
    store: RunStoreOption = None,
    artifacts: RunArtifactsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a trained model in use where the rules allow it (docs/champion.md); else say why not."""
    from champion.history import ChampionError
    from models.checkpoint import CheckpointError
    from stages import champion as core
    from stages.project import Project
    from stages.status import StageError

    which = _variant(model)
    workspace = workspace_of(config, store, artifacts, made=True)
    project = Project(workspace)
    with failing({ChampionError: FAILED, CheckpointError: FAILED, StageError: FAILED}):
        if dry_run:
            trial = core.judge(project, which)
        else:
            trial = core.promote(project, which, by=_user(), why=why)
            if trial.promoted:
                _tell_dagster(trial.promoted)
    granted = trial.judgement.granted
    notes = list(_notes(project, trial))
    if as_json:
        say_json({
            "challenger": which.name,
            "checkpoints": trial.checkpoints,
            "against": trial.champion.name if trial.champion else None,
            "granted": granted,
            "promoted": granted and not dry_run,
            "reasons": trial.judgement.reasons,
            "notes": notes,
            "recipes": trial.judgement.recipes,
        })  # fmt: skip
    else:
        _show_trial(trial, dry_run=dry_run)
        for note in notes:
            typer.echo(f"note: {note}")
    if not granted:
        raise typer.Exit(FAILED)


def rollback(
    why: WhyOption = "",
    config: ConfigOption = None,
    artifacts: RunArtifactsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the previous champion in use again; exit 4 if it is for another input layout."""
    from dataclasses import asdict

    from champion.history import ChampionError, roll_back
    from features import registry
    from models.checkpoint import CheckpointError, ContractMismatchError

    folder = workspace_of(config, None, artifacts, made=True).champion_folder
    with failing({ContractMismatchError: MISMATCH, CheckpointError: FAILED, ChampionError: FAILED}):
        reign = roll_back(folder, registry.LAYOUT, by=_user(), why=why)
    _tell_dagster(reign)
    if as_json:
        say_json(asdict(reign))
    else:
        typer.echo(f"{reign.name} is champion again (number {reign.number} of the history)")


def _variant(name: str) -> Any:
    """``gbt`` is gbt_realistic; ``gbt_oracle`` can be named, and is refused with the reason."""
    from models.registry import VARIANTS, find_variant

    known = {which.name: which for which in VARIANTS}
    with failing({ValueError: USAGE}):
        return known.get(name) or find_variant(name, "realistic")


def _user() -> str:
    """The person at the terminal, as far as the system knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _tell_dagster(reign: "Champion") -> None:
    try:
        import dagster as dg
    except ModuleNotFoundError:  # the base install: there is no Dagster to tell
        return

    from assets.metadata import as_metadata
    from pipelines.home import prepare_dagster_home
    from stages.champion import champion_facts

    prepare_dagster_home()
    with dg.DagsterInstance.get() as instance:
        instance.report_runless_asset_event(
            dg.AssetMaterialization("champion", metadata=as_metadata(champion_facts(reign)))
        )


def _notes(project: "Project", trial: "Trial") -> Iterator[str]:
    """What is no reason against a challenger, but good to know before it is in use."""
    from stages.champion import best_on_validation, validation_mean

    challenger = trial.variant
    for recipe in trial.checkpoints:
        stage = project.stages[f"checkpoints/{challenger.name}"]
        if project.status(stage, recipe).code == "settings":
            yield (
                f"recipe {recipe}: {challenger.name} was trained with other settings than those "
                f"in force; retrain: phasewatch run --recipe {recipe}"
            )
    best = None if trial.champion else best_on_validation(project)
    if best is not None and best != challenger and trial.checkpoints:
        scores = [validation_mean(project, variant) for variant in (best, challenger)]
        yield (
            f"{best.name} is better on validation, {scores[0]:.3f} against {scores[1]:.3f} over "
            f"all recipes: phasewatch promote {best.model}"
        )


def _because(reign: "Champion") -> str:
    return f": {reign.why}" if reign.why else ""


def _show_trial(trial: "Trial", *, dry_run: bool) -> None:
    if trial.judgement.recipes:
        _show_evidence(trial.judgement.recipes)
        typer.echo()
    name = trial.variant.name
    if not trial.judgement.granted:
        typer.echo(f"{name} is not promoted:")
        for reason in trial.judgement.reasons:
            typer.echo(f"  - {reason}")
    elif dry_run:
        typer.echo(f"{name} may be promoted: phasewatch promote {trial.variant.model}")
    else:
        after = f"; {trial.champion.name} was before" if trial.champion else ""
        typer.echo(f"{name} is champion{after}")


def _show_evidence(recipes: dict[str, dict[str, Any]]) -> None:
    """Macro F1 on each recipe, beside the champion it replaced or the best of the baselines."""
    from evaluation.wording import baseline_label

    rows = []
    for recipe, found in recipes.items():
        if "difference" in found:
            other, against, difference = "champion", found["champion"], found["difference"]
        elif "baselines" in found:
            closest = max(found["baselines"], key=lambda b: b["macro_f1"])
            other, against = baseline_label(closest["name"]), closest["macro_f1"]
            difference = closest["difference"]
        else:
            rows.append((recipe, "-", "-", "-", "-", found["episodes"], found["left_out"]))
            continue
        low, high = difference["low"], difference["high"]
        rows.append((
            recipe, f"{found['challenger']:.3f}", f"{against:.3f} ({other})",
            f"{difference['value']:+.3f}", f"{low:+.3f} to {high:+.3f}",
            found["episodes"], found.get("left_out", 0),
        ))  # fmt: skip
    say_table(
        ("recipe", "macro F1", "against", "difference", "95 % interval", "episodes", "left out"),
        rows,
    )
