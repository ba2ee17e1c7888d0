"""Commands about the model in use: ``champion``, ``promote``, ``rollback``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli import options
from pipelines.cli.console import (
    FAILED,
    MISMATCH,
    OK,
    USAGE,
    Document,
    Table,
    fail,
    note,
    one_of,
    user_name,
    workspace_of,
)
from pipelines.home import dagster_home, dagster_instance

if TYPE_CHECKING:
    from champion.history import ChampionEntry
    from evaluation.documents import Objection
    from stages.champion import RenewedPage, Trial
    from stages.project import Project
    from stages.workspace import Workspace

_NOT_COMPARED = "No batch was compared with this champion yet. Run: phasewatch run"


@dataclass(frozen=True)
class ChampionDocument(Document):
    """The champion, and the history of champions."""

    champion: dict[str, Any] | None
    history: list[dict[str, Any]]
    problem: dict[str, Any] | None  # why the champion does not load, and what to do
    signed: str  # who signed the history, in words

    @property
    def exit_code(self) -> int:
        if self.problem is None:
            return OK
        return MISMATCH if self.problem["differences"] else FAILED

    def text(self) -> Iterator[str | Table]:
        if self.champion is None:
            yield "There is no champion yet. Promote a trained model: phasewatch promote MODEL"
            return
        from evaluation.wording import moment

        yield f"The champion is {self.champion['model']}_{self.champion['mode']}. It scores with"
        yield self.champion["path"]
        yield f"history: {self.signed}"
        if self.problem:
            yield f"problem: {self.problem['problem']}"
            yield from (f"  - {line}" for line in self.problem["differences"])
            yield f"  remedy: {self.problem['remedy']}"
        yield ""
        yield from _evidence(self.champion["evidence"])
        yield "\nHistory, newest first:"
        for entry in reversed(self.history):
            yield (
                f"{entry['number']:>3}  {entry['model']}_{entry['mode']}, {entry['action']} "
                f"{moment(entry['since'])} by {entry['by']}"
                + (f": {entry['why']}" if entry["why"] else "")
            )
            yield f"     checkpoint {entry['checkpoints'][entry['served']]}"
            if entry["accepted"]:
                yield f"     over the alarm budget, accepted: {entry['accepted']['why']}"


def champion(
    restore: Annotated[
        bool,
        typer.Option(
            "--restore",
            help="If the champion's files are damaged, copy them again from the trained "
            "checkpoints.",
        ),
    ] = False,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> ChampionDocument:
    """Show the model in use, its evidence and the history."""
    from champion.history import checkpoint_copy_path, history_signature_problem, read_pointer
    from stages import champion as core
    from stages.drift_reference import read_reference_copy, reference_path
    from stages.project import Project

    project = Project(workspace_of(config, store, artifacts, must_exist=True))
    folder = project.workspace.champion_folder
    if restore:
        damaged = not project.status(project.stages["champion"], "", verify=True).current
        copied = core.restore(project) if damaged else []
        for kept in copied:
            note(f"copied again: {kept}")
        project = Project(project.workspace)
        rebuilt = core.restore_reference(project)
        if not (copied or rebuilt):
            note("nothing is damaged: nothing was copied")
    pointer = read_pointer(folder)
    history = pointer.history
    status = project.status(project.stages["champion"], "", verify=True)
    if history and status.current and read_reference_copy(project, history[-1]) is None:
        note(
            f"{reference_path(project, history[-1])}: lost or damaged; the next comparison of a "
            "batch rebuilds it, or, at once: phasewatch champion --restore"
        )
    if not history:
        return ChampionDocument(None, [], None, pointer.signed.line)
    return ChampionDocument(
        champion=asdict(history[-1]) | {"path": str(checkpoint_copy_path(folder, history[-1]))},
        history=[asdict(champion) for champion in history],
        problem=None if status.current else {
            "problem": status.message,
            "differences": status.differences,
            "remedy": status.remedy,
        },
        signed=(history_signature_problem(pointer) or pointer.signed.line)
        + ("" if pointer.sealed else ", written before seals existed"),
    )  # fmt: skip


@dataclass(frozen=True)
class PromoteDocument(Document):
    """The outcome of a trial."""

    trial: Trial
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        trial, outcome, renewed = self.trial, self.trial.outcome, self.trial.renewed
        return {
            "challenger": trial.variant.name,
            "checkpoints": trial.checkpoints,
            "against": trial.champion.name if trial.champion else None,
            "granted": outcome.granted,
            "promoted": trial.promoted is not None,
            "reasons": _said(outcome.blocking),  # a code, its numbers, and the sentence
            "accepted": _said(outcome.accepted),
            "notes": self.notes,
            "recipes": outcome.recipes,
            "page": renewed.path if renewed else None,  # made again, or see the problem
            "page_problem": renewed.problem if renewed else "",
        }

    def text(self) -> Iterator[str | Table]:
        from champion.rules import ALARM_GROUNDS
        from evaluation.wording import objection

        trial, outcome = self.trial, self.trial.outcome
        name = trial.variant.name
        if outcome.recipes:
            yield from _evidence(outcome.recipes)
            yield ""
        if not outcome.granted:
            yield f"{name} is not promoted:"
            yield from (f"  - {line}" for line in objection_lines(outcome.blocking))
            if {ground.code for ground in outcome.blocking} <= ALARM_GROUNDS:
                model = trial.variant.model
                yield f"To accept its alarms: phasewatch promote {model} --accept-alarms WHY"
        elif trial.only_signs:
            number = trial.promoted.number if trial.promoted else None
            yield (
                f"{name} stays champion, unchanged and without a trial. Its kept checkpoints and "
                f"entry {number} of the history are signed now"
                if number
                else f"{name} is already the champion; promoting it again only signs it: "
                f"phasewatch promote {trial.variant.model}"
            )
            yield from [trial.renewed.line] if trial.renewed else []
        elif not trial.promoted:
            accept = ' --accept-alarms "WHY"' if outcome.accepted else ""
            yield f"{name} may be promoted: phasewatch promote {trial.variant.model}{accept}"
        else:
            before = f"; before, it was {trial.champion.name}" if trial.champion else ""
            yield f"{name} is champion{before}"
            yield from [trial.renewed.line] if trial.renewed else []
            yield _NOT_COMPARED
        if outcome.granted:
            yield from (f"accepted: {objection(ground)}" for ground in outcome.accepted)
        yield from (f"note: {note}" for note in self.notes)

    @property
    def exit_code(self) -> int:
        outcome = self.trial.outcome
        differs = any(ground.code == "does_not_verify" for ground in outcome.blocking)
        return OK if outcome.granted else MISMATCH if differs else FAILED


def promote(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, such as gbt.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge it and change nothing; same exit codes.")
    ] = False,
    why: options.Why = "",
    accept_alarms: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Promote it although it exceeds the alarm budget, for this reason; kept in the "
            "history.",
        ),
    ] = None,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> PromoteDocument:
    """Make a trained model the champion, if the rules allow it.

    docs/champion.md explains the rules. Exit code 4 if a checkpoint has a contract mismatch or its
    golden vectors differ, 1 if the model is not promoted for another reason.
    """
    from models.registry import MODELS, VARIANTS, find_variant
    from stages import champion as core
    from stages.project import Project

    by_name = {variant.name: variant for variant in VARIANTS}
    # an oracle can be named, and is rejected with the reason
    if model not in by_name:
        one_of("model", model, MODELS)
    if accept_alarms is not None and not accept_alarms.strip():
        fail("--accept-alarms must not be empty: it says why", USAGE)
    accepted = accept_alarms or ""
    challenger = by_name.get(model) or find_variant(model, "realistic")
    project = Project(workspace_of(config, store, artifacts, must_exist=True))
    if dry_run:
        trial = core.run_trial(project, challenger, accept_alarms=accepted)
    else:
        dagster_home(project.workspace)  # refused before anything is changed
        note(f"trying {challenger.name}; if it is promoted, the report page is rebuilt")
        by = user_name()
        trial = core.promote(project, challenger, by=by, why=why, accept_alarms=accepted)
        if trial.promoted:
            _tell_dagster(project.workspace, trial.promoted)
    return PromoteDocument(trial, list(_notes(project, trial)))


@dataclass(frozen=True)
class RollbackDocument(Document):
    """The champion after a rollback."""

    champion: ChampionEntry
    renewed: RenewedPage

    def as_json(self) -> dict[str, Any]:
        page = {"page": self.renewed.path, "page_problem": self.renewed.problem}
        return asdict(self.champion) | page

    def text(self) -> Iterator[str]:
        number = self.champion.number
        yield f"{self.champion.name} is champion again (number {number} of the history)"
        yield self.renewed.line
        yield _NOT_COMPARED


def rollback(
    why: options.Why = "",
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> RollbackDocument:
    """Make the previous champion the champion again.

    Exit code 4 if the previous champion was trained for another input layout.
    """
    from champion.history import roll_back
    from stages.champion import renew_page

    workspace = workspace_of(config, store, artifacts, must_exist=True)
    dagster_home(workspace)  # refused before anything is changed
    champion = roll_back(workspace.champion_folder, workspace.layout, by=user_name(), why=why)
    _tell_dagster(workspace, champion)
    return RollbackDocument(champion, renew_page(workspace))


def objection_lines(grounds: list[Objection]) -> Iterator[str]:
    """The sentences of grounds; of the profiles and hosts that fall on a recipe, the deepest."""
    from evaluation.wording import objection

    fallen: dict[str | None, list[Objection]] = {}
    for ground in grounds:
        if ground.code == "group_falls":
            fallen.setdefault(ground.recipe, []).append(ground)
    for ground in grounds:
        if ground.code != "group_falls":
            yield objection(ground)
        elif groups := fallen.pop(ground.recipe, None):
            deepest = max(groups, key=lambda group: group.numbers["falls_by"] or 0.0)
            others = len(groups) - 1
            lose = "profile or host loses" if others == 1 else "profiles or hosts lose"
            more = f" {others} more {lose} more than allowed; --json lists all." if others else ""
            yield f"{objection(deepest)}{more}"


def _said(grounds: list[Objection]) -> list[dict[str, Any]]:
    from evaluation.wording import objection

    return [ground.model_dump() | {"sentence": objection(ground)} for ground in grounds]


def _tell_dagster(workspace: Workspace, champion: ChampionEntry) -> None:
    try:
        import dagster as dg
    except ModuleNotFoundError:  # the base install: there is no Dagster to tell
        return

    from assets.metadata import as_metadata
    from stages.champion import champion_facts

    with dagster_instance(workspace) as instance:
        instance.report_runless_asset_event(
            dg.AssetMaterialization("champion", metadata=as_metadata(champion_facts(champion)))
        )


def _notes(project: Project, trial: Trial) -> Iterator[str]:
    """What does not speak against a challenger, but is good to know before it is in use."""
    from champion.history import read_pointer, signature_problem, signing_remedy
    from config.signing import trusted_keys
    from evaluation.wording import unlike_notes
    from stages.champion import best_on_validation, validation_mean

    yield from unlike_notes(trial.outcome.recipes)
    folder = project.workspace.champion_folder
    entry = trial.promoted if trusted_keys() else None
    if entry is not None and (why := signature_problem(folder, read_pointer(folder))):
        yield f"{why}. {signing_remedy(entry)}"
    challenger = trial.variant
    stage = project.stages[f"checkpoints/{challenger.name}"]
    statuses = {recipe: project.status(stage, recipe) for recipe in trial.checkpoints}
    outdated: dict[str, list[str]] = {}
    for recipe, status in statuses.items():
        if status.code in ("settings", "version"):
            outdated.setdefault(status.message, []).append(recipe)
    for message, recipes in outdated.items():
        yield (
            f"recipe {', '.join(recipes)}: {challenger.name} was {message}; retrain: "
            f"phasewatch run {' '.join(f'--recipe {recipe}' for recipe in recipes)}"
        )
    best = None if trial.champion else best_on_validation(project)
    if best is not None and best != challenger and trial.checkpoints:
        scores = [validation_mean(project, variant) for variant in (best, challenger)]
        yield (
            f"{best.name} is better on validation: macro F1 {scores[0]:.3f} against "
            f"{scores[1]:.3f}, mean of all recipes. To see whether the rules allow it: "
            f"phasewatch promote {best.model} --dry-run"
        )


def _evidence(recipes: dict[str, dict[str, Any]]) -> Iterator[str | Table]:
    """Macro F1 on each recipe, beside the champion it replaced or the best of the baselines."""
    from datasets.splits import RECIPES
    from evaluation.detection import MIN_VALIDATION_HOURS
    from evaluation.wording import RATE_MEANS, baseline_label, skipped

    rows: list[tuple[str, ...]] = []
    for recipe in sorted(recipes, key=[*RECIPES, *recipes].index):
        evidence = recipes[recipe]
        if "skipped" in evidence:
            why = skipped(evidence["skipped"], evidence["found"])
            rows.append((recipe, f"skipped: {why}", *[""] * 6))
            continue
        alarms = _alarms(evidence)
        if "difference" in evidence:
            other, against = "champion", evidence["champion"]
            difference = evidence["difference"]
        elif "baselines" in evidence:
            closest = max(evidence["baselines"], key=lambda b: b["macro_f1"])
            other, against = baseline_label(closest["name"]), closest["macro_f1"]
            difference = closest["difference"]
        else:
            rows.append((recipe, *["-"] * 4, _episodes(evidence), *alarms))
            continue
        rows.append((
            recipe, f"{evidence['challenger']:.3f}", f"{against:.3f} ({other})",
            f"{difference['value']:+.3f}",
            f"{difference['low']:+.3f} to {difference['high']:+.3f}",
            _episodes(evidence), *alarms,
        ))  # fmt: skip
    columns = (
        "recipe", "macro F1", "against", "change", "95% interval", "episodes", "false/h",
        "clean time alarmed",
    )  # fmt: skip
    yield Table(columns, rows)
    marks = [evidence.get("alarms") for evidence in recipes.values()]
    if any(marks):
        yield f"false/h: {RATE_MEANS}. The alarm budget applies to host, session and time"
    if any(alarms and alarms["provisional"] for alarms in marks):
        yield f"provisional: the threshold rests on under {MIN_VALIDATION_HOURS:g} clean hours"


def _alarms(evidence: dict[str, Any]) -> tuple[str, str]:
    """False alarms per hour and the share of clean time alarmed, where they count."""
    from evaluation import wording

    alarms = evidence.get("alarms")
    if alarms is None:
        return "-", "-"
    per_hour, share = alarms["false_alarms_per_hour"], alarms["clean_time_alarmed"]
    rate = wording.rate(per_hour["value"], alarms["clean_hours"]["test"])
    mark = " (provisional)" if alarms["provisional"] else ""
    return rate, wording.percent(share["value"]) + mark


def _episodes(evidence: dict[str, Any]) -> str:
    left_out = evidence.get("left_out", 0)
    return f"{evidence['episodes']}" + (f" ({left_out} left out)" if left_out else "")
