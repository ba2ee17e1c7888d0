"""The champion: a challenger is tried on the current test data and promoted if it may be."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from champion.history import (
    REFERENCE_FILE,
    REMEDY,
    SERVED_RECIPE,
    TRAINING_FILE,
    ChampionEntry,
    ChampionError,
    alarm_rule_file,
    check_checkpoint_copies,
    check_checkpoint_copy,
    check_evidence,
    checkpoint_copy_folder,
    checkpoint_copy_path,
    copy_checkpoint,
    likeness_file,
    load_checkpoint_copy,
    now,
    put_in_use,
    read_champion,
    read_pointer,
    read_training,
    sign_again,
    signature_problem,
    signing_remedy,
    training_digest,
)
from champion.rules import (
    ALARM_RECIPES,
    CHALLENGER,
    CHAMPION,
    GROUP_MARGIN,
    MIN_EPISODES,
    TRAINING_COLUMNS,
    TrialOutcome,
    alarm_evidence,
    baseline_evidence,
    champion_evidence,
    grounds_against_alarms,
    grounds_against_champion,
    grounds_against_first,
    not_held_out,
)
from config.errors import PhasewatchError
from config.messages import shortened
from config.signing import signing_key
from datasets.splits import RECIPES
from datasets.windows import inputs, read_dataset
from episodes.store import StoreError
from evaluation.baselines import shortcut_predictions
from evaluation.documents import Objection, Subject
from evaluation.scores import prediction_rows
from evaluation.wording import objection, unlike_notes
from features.files import fingerprint, write_atomically
from features.shards import write_table
from models.checkpoint import (
    Checkpoint,
    CheckpointError,
    ContractMismatchError,
    check_contract,
    checkpoint_path,
    read_header,
)
from models.inspection import InventoryEntry, verify
from models.registry import VARIANTS, Variant, find_variant
from models.replay import differences
from stages.alarm_rules import read_alarm_rule
from stages.datasets import dataset_shards
from stages.drift_reference import (
    drift_reference,
    new_reference,
    read_reference_copy,
    reference_path,
    reference_text,
    training_windows,
)
from stages.stage import Artifacts, Check, CheckResult, Markdown, Progress, Stage, StageOutput
from stages.status import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from features.registry import Layout
    from models.alarm import AlarmRule
    from stages.manifest import Manifest
    from stages.project import Project
    from stages.workspace import Workspace

CANDIDATES = [variant for variant in VARIANTS if variant.mode == "realistic"]


@dataclass(frozen=True)
class ChampionOptions:
    """Which model is tried, and whether it is promoted if it may be."""

    challenger: str = ""  # a model of the registry; empty: the one best on validation
    promote: bool = False  # put the challenger in use if nothing speaks against it
    accept_alarms: str = ""  # why a model over the alarm budget may be promoted all the same


@dataclass(frozen=True)
class RenewedPage:
    """The page after the champion changed, or why it could not be made."""

    page: Manifest | None
    problem: str = ""

    @property
    def path(self) -> str | None:
        return str(self.page.place("page")) if self.page else None

    @property
    def line(self) -> str:
        if self.page is None:
            return f"The report page still shows the previous champion: {self.problem}"
        return f"The report page shows the champion: {self.path}"


@dataclass(frozen=True)
class Trial:
    """A challenger that was tried, and the champion it was tried against."""

    variant: Variant
    checkpoints: dict[str, str]  # recipe -> checkpoint id
    champion: ChampionEntry | None  # before the trial
    outcome: TrialOutcome
    promoted: ChampionEntry | None = None
    renewed: RenewedPage | None = None  # None: nothing was promoted
    only_signs: bool = False  # it is the champion, and promoting it again only signs it

    @property
    def is_champion(self) -> bool:
        return self.champion is not None and self.champion.checkpoints == self.checkpoints

    # as an artifact: the history's last entry

    @property
    def in_use(self) -> ChampionEntry | None:
        return self.promoted or self.champion

    @property
    def version(self) -> str:
        return self.in_use.checkpoints[self.in_use.served] if self.in_use else "none"


def trial_verdict(trial: Trial) -> str:
    """The outcome of a trial in one phrase."""
    name = trial.variant.name
    if trial.only_signs:
        return f"{name} is the champion, {'now' if trial.promoted else 'not yet'} signed"
    if trial.promoted:
        return f"{name} is promoted"
    if trial.outcome.granted:
        return f"{name} may be promoted: phasewatch promote {trial.variant.model}"
    return f"{name} may not be promoted: {len(trial.outcome.blocking)} reasons"


def trial_figures(outcome: TrialOutcome) -> dict[str, float]:
    """The numbers of a trial that are worth a plot."""
    figures = {}
    for recipe, evidence in outcome.recipes.items():
        for name in (CHALLENGER, CHAMPION):
            if name in evidence:
                figures[f"macro_f1_{name}_{recipe}"] = evidence[name]
        if "difference" in evidence:
            figures[f"difference_low_{recipe}"] = evidence["difference"]["low"]
        if found := evidence.get("unlike"):
            share = found["test_episodes_unlike"] / found["test_episodes"]
            figures[f"unlike_share_{recipe}"] = share
        for metric in ("false_alarms_per_hour", "clean_time_alarmed"):
            if "alarms" in evidence and evidence["alarms"][metric]["value"] is not None:
                figures[f"{metric}_{recipe}"] = evidence["alarms"][metric]["value"]
    return figures


def _may_replace_it(project: Project, key: str, trial: Trial) -> CheckResult:
    outcome = trial.outcome
    reasons, accepted = (
        "\n".join(f"- {objection(ground)}" for ground in grounds)
        for grounds in (outcome.blocking, outcome.accepted)
    )
    return CheckResult(
        outcome.granted or trial.is_champion,
        "warn",
        trial_verdict(trial),
        {
            "challenger": trial.variant.name,
            "reasons": Markdown(reasons or "none"),
            "accepted": Markdown(accepted or "none"),
            "unlike_training": Markdown(
                "\n".join(f"- {text}" for text in unlike_notes(outcome.recipes)) or "none"
            ),
            "evidence": outcome.recipes,
            **trial_figures(outcome),
        },
    )


class ChampionStage(Stage):
    """The realistic model in use. A challenger is tried; it is promoted only on request."""

    name = "champion"
    version = "1"
    partition = ""
    job = "challenge"
    automatic = False
    reusable = False
    needs_inputs = False  # the trial takes what there is and gives every reason against it
    options = ChampionOptions
    docs = "champion.md"

    inputs = tuple(f"alarm_rules/{variant.name}" for variant in CANDIDATES)

    outputs = (
        StageOutput(
            name,
            "The realistic model in use. A challenger is tried, and promoted only on request.",
            group="score",
            kinds=frozenset({"json"}),
        ),
    )

    checks = (
        Check(
            "challenger_may_replace_it",
            name,
            "The challenger is not worse on any recipe, is better on at least one, does not lose "
            f"more than {GROUP_MARGIN} of macro F1 on any profile or host, stays within the alarm "
            "budget, and verifies. If this check fails, the champion simply stays.",
            _may_replace_it,
        ),
    )

    def __init__(self, chosen: ChampionOptions | None = None, why: str = ""):
        self.chosen = chosen or ChampionOptions()
        self.why = why

    def with_options(self, options: Any, why: str) -> ChampionStage:
        return ChampionStage(options, why)

    def read(self, project: Project, key: str) -> Artifacts:
        return {self.name: read_champion(project.workspace.champion_folder)}

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint([validation_mean(project, variant) for variant in CANDIDATES])

    def reason(
        self,
        project: Project,
        key: str,
        artifacts: Artifacts,
        *,
        verify: bool,
    ) -> Reason | None:
        (champion,) = artifacts.values()
        if champion is None:
            return Reason("not_made", {"outputs": [self.name]})
        folder, layout = project.workspace.champion_folder, project.workspace.layout
        pointer = read_pointer(folder) if project.workspace.require_signatures else None
        if pointer and (problem := signature_problem(folder, pointer)):
            return Reason("signature", {"problem": problem}, remedy=signing_remedy(champion))
        path = checkpoint_copy_path(folder, champion)
        if not path.exists():
            return Reason("damaged", {"problem": f"{path}: missing"}, remedy=REMEDY)
        try:
            header = read_header(path)
            if verify:
                check_checkpoint_copies(folder, champion)
            check_contract(header, layout, str(path))
            if verify:
                check_evidence(folder, champion, layout)
            read_training(folder, champion)
            if read_reference_copy(project, champion) is None:
                training_windows(project, champion)  # it can be made again
        except ContractMismatchError as error:
            return Reason("contract", {"outputs": [self.name], "differences": error.differences})
        except (CheckpointError, ChampionError) as error:
            problem = str(error).removesuffix(f". {REMEDY}")
            return Reason("damaged", {"problem": problem}, remedy=REMEDY)
        except (StageError, StoreError) as error:
            remedy = (
                "Restore the file, or put these episodes back into the store and run: "
                "phasewatch run --ingest-only"
            )
            return Reason("damaged", {"problem": str(error)}, remedy=remedy)
        return None

    def remedy(self, key: str) -> str:
        return "phasewatch run, then phasewatch promote MODEL"

    def make(
        self,
        project: Project,
        key: str,
        outputs: Collection[str],
        progress: Progress,
    ) -> Artifacts:
        try:
            challenger = (
                find_variant(self.chosen.challenger, "realistic")
                if self.chosen.challenger
                else best_on_validation(project)
            )
        except ValueError as error:
            raise StageError(str(error)) from error
        if challenger is None:
            raise StageError(
                "No realistic model has checkpoints of all recipes "
                f"({', '.join(project.recipes)}). Run: phasewatch run"
            )
        accept = self.chosen.accept_alarms
        if not self.chosen.promote:
            return {self.name: run_trial(project, challenger, accept_alarms=accept)}
        trial = promote(project, challenger, by="dagster", why=self.why, accept_alarms=accept)
        return {self.name: trial}

    def facts(self, project: Project, output: str, artifact: Trial) -> Mapping[str, Any]:
        return champion_facts(artifact.in_use)

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        trial = artifacts[self.name]
        said = f"{trial.in_use.name if trial.in_use else 'none'}: {trial_verdict(trial)}"
        return f"{said}. {trial.renewed.line}" if trial.renewed else said


def champion_facts(champion: ChampionEntry | None) -> dict[str, Any]:
    """What Dagster shows of the champion."""
    if champion is None:
        return {"champion": "none"}
    return {
        "champion": champion.name,
        "number": champion.number,
        "action": champion.action,
        "since": champion.since,
        "by": champion.by,
        "why": champion.why,
        "served": champion.served,
        "checkpoint_id": champion.checkpoints[champion.served],
        "checkpoints": champion.checkpoints,
        "accepted_alarms": champion.accepted,
        **{
            f"macro_f1_{recipe}": evidence[CHALLENGER]
            for recipe, evidence in champion.evidence.items()
            if CHALLENGER in evidence
        },
    }


# --- trial and promotion ------------------------------------------------------------------------


# Long, because the grounds for refusal are tried in order, each with its own reason.
def run_trial(project: Project, challenger: Variant, *, accept_alarms: str = "") -> Trial:
    """Try a variant's checkpoints of all recipes against the champion, on the current test data.

    Without a champion that loads for the layout in force, the baselines are the bar. A recipe that
    the store cannot give is skipped. Nothing is written. A champion that no trusted key has signed
    is not tried against itself where there is a key: what is kept of it has to verify.

    Args:
        accept_alarms: why alarms over the budget are accepted; empty: they are not.

    Raises:
        ChampionError: the history cannot be read.
        StageError: a dataset is missing, or was made from other shards than those on disk.
    """
    workspace = project.workspace
    champion = read_champion(workspace.champion_folder)

    def refused(*grounds: Objection, checkpoints: dict[str, str] | None = None) -> Trial:
        return Trial(challenger, checkpoints or {}, champion, TrialOutcome(list(grounds)))

    if challenger.mode != "realistic":
        return refused(Objection(code="oracle", about=challenger.name))
    replayed = differences(workspace.layout)
    if champion is not None and _signs(project, challenger, champion):
        grounds = _against_signing(project, champion, replayed)
        outcome = TrialOutcome(grounds, champion.evidence)
        return Trial(challenger, champion.checkpoints, champion, outcome, only_signs=True)
    entries = {
        recipe: verify(
            checkpoint_path(workspace.checkpoint_folder(recipe), challenger),
            workspace.layout,
            replayed,
        )
        for recipe in project.recipes
    }
    grounds = [ground for recipe, entry in entries.items() for ground in _unverified(recipe, entry)]
    if grounds:
        return refused(*grounds)
    headers = {recipe: entry.header or {} for recipe, entry in entries.items()}
    ids = {recipe: header["artifact_id"] for recipe, header in headers.items()}
    rules_stage = project.stages[f"alarm_rules/{challenger.name}"]
    made = {recipe: project.artifact(rules_stage.name, recipe) for recipe in headers}
    rule_ids = {recipe: rule.facts["alarm_rule_id"] for recipe, rule in made.items() if rule}
    if champion is not None and (champion.checkpoints, champion.alarm_rules) == (ids, rule_ids):
        return refused(Objection(code="already_champion", about=challenger.name), checkpoints=ids)
    try:
        bar = champion if champion is not None and _fits(project, champion) else None
    except CheckpointError as error:
        unloadable = Objection(code="champion_unloadable", names={"problem": str(error)})
        return refused(unloadable, checkpoints=ids)
    datasets = project.stages["datasets"]
    recipes: dict[str, dict[str, Any]] = {
        recipe: {"skipped": why.code, "found": why.details["found"]}
        for recipe, why in project.unavailable.items()
    }
    for recipe, header in headers.items():
        project.require([(datasets, recipe)])
        dataset = project.existing("datasets", recipe)
        if header["train_meta"]["dataset_version"] != dataset.version:
            grounds.append(Objection(code="other_dataset", recipe=recipe, about=challenger.name))
            continue
        project.require([(rules_stage, recipe)])
        rule = read_alarm_rule(project.existing(rules_stage.name, recipe))
        recipes[recipe] = _evidence(project, recipe, challenger, bar, dataset, rule)
    if not grounds:
        grounds = grounds_against_first(recipes) if bar is None else (
            grounds_against_champion(recipes)
        )  # fmt: skip
        grounds += grounds_against_alarms(recipes, workspace.report)
    return Trial(challenger, ids, champion, TrialOutcome(grounds, recipes, accept_alarms))


def promote(
    project: Project, challenger: Variant, *, by: str, why: str, accept_alarms: str = ""
) -> Trial:
    """Try a variant and put it in use if nothing speaks against it; the page then shows it.

    Raises:
        ChampionError, CheckpointError, StageError: see ``run_trial``, ``copy_checkpoint``,
            ``put_in_use``.
    """
    trial = run_trial(project, challenger, accept_alarms=accept_alarms)
    if not trial.outcome.granted:
        return trial
    workspace = project.workspace
    if trial.only_signs and trial.champion is not None:
        value = drift_reference(project, trial.champion)  # made again if it was lost
        write_atomically(reference_path(project, trial.champion), reference_text(value))  # signed
        promoted = sign_again(workspace.champion_folder, trial.champion, by=by, why=why)
        return replace(trial, promoted=promoted, renewed=renew_page(workspace))
    kept = {
        recipe: files_to_copy(project, recipe, challenger, serves=recipe == SERVED_RECIPE)
        for recipe in trial.checkpoints
    }
    checkpoints = {
        recipe: copy_checkpoint(
            workspace.champion_folder,
            checkpoint_path(workspace.checkpoint_folder(recipe), challenger),
            beside.files,
        )
        for recipe, beside in kept.items()
    }
    if checkpoints != trial.checkpoints:
        raise CheckpointError(
            f"{challenger.name} was retrained during its trial; try again: phasewatch promote "
            f"{challenger.model}"
        )
    outcome = trial.outcome
    accepted = {
        "why": accept_alarms, "grounds": [ground.model_dump() for ground in outcome.accepted]
    }  # fmt: skip
    champion = ChampionEntry(
        number=0, action="promoted", model=challenger.model, mode=challenger.mode,
        served=SERVED_RECIPE, checkpoints=checkpoints, since=now(), by=by, why=why,
        evidence=outcome.recipes, previous=None,
        alarm_rules={recipe: beside.alarm_rule for recipe, beside in kept.items()},
        likeness=kept[SERVED_RECIPE].likeness,
        accepted=accepted if outcome.accepted else None,
        training={recipe: beside.training for recipe, beside in kept.items()},
    )  # fmt: skip
    promoted = put_in_use(workspace.champion_folder, champion, replaces=trial.champion)
    return replace(trial, promoted=promoted, renewed=renew_page(workspace))


def _signs(project: Project, challenger: Variant, champion: ChampionEntry) -> bool:
    """Whether a model is the champion and only a signature is missing that can be made here."""
    folder = project.workspace.champion_folder
    return (
        challenger.name == champion.name
        and signing_key() is not None
        and signature_problem(folder, read_pointer(folder)) is not None
    )


def _against_signing(
    project: Project, champion: ChampionEntry, replayed: list[str]
) -> list[Objection]:
    """What is wrong with what is kept of the champion; whoever signs it stands for all of it.

    Raises:
        ChampionError: a file that is kept with it is gone or changed.
    """
    folder, layout = project.workspace.champion_folder, project.workspace.layout
    check_evidence(folder, champion, layout)
    return [
        ground
        for recipe in champion.checkpoints
        for ground in _unverified(
            recipe, verify(checkpoint_copy_path(folder, champion, recipe), layout, replayed)
        )
    ]


def restore(project: Project) -> list[Path]:
    """Copy what is kept with the champion once more from where it came from; returns the folders.

    Raises:
        ChampionError: there is no champion, or something of it is not here any more as it was.
        StageError, CheckpointError: what it would be copied from is damaged, too.
    """
    folder, workspace = project.workspace.champion_folder, project.workspace
    champion = read_champion(folder)
    if champion is None:
        raise ChampionError("There is no champion. Promote one: phasewatch promote MODEL")
    variant = find_variant(champion.model, champion.mode)
    sources = {
        file.version: recipe
        for recipe in RECIPES
        if (file := project.artifact(f"checkpoints/{variant.name}", recipe)) is not None
    }
    otherwise = "Restore the file" + (
        ", or roll back: phasewatch rollback" if champion.previous else ""
    )
    layout = workspace.layout
    damaged = [r for r in champion.checkpoints if not _is_whole(folder, champion, layout, r)]
    wanted = damaged or list(champion.checkpoints)
    for recipe in wanted:
        source = sources.get(champion.checkpoints[recipe])
        copy = checkpoint_copy_path(folder, champion, recipe)
        if source is None:
            trained = recipe in sources.values()
            why = "has been retrained since" if trained else "is not in checkpoints any more"
            raise ChampionError(
                f"{copy}: cannot be rebuilt: {champion.name} {recipe} {why}. {otherwise}"
            )
        project.require([(project.stages["datasets"], source)])
        if champion.training.get(recipe) not in (None, training_digest(_training(project, source))):
            raise ChampionError(
                f"{copy.with_name(TRAINING_FILE)}: cannot be rebuilt: the dataset has changed. "
                f"{otherwise}"
            )
    copied = {champion.checkpoints[recipe] for recipe in wanted}
    for checkpoint_id in copied:
        source = sources[checkpoint_id]
        serves = checkpoint_id == champion.checkpoints[champion.served]
        copy_checkpoint(
            folder,
            checkpoint_path(workspace.checkpoint_folder(source), variant),
            files_to_copy(project, source, variant, serves=serves).files,
        )
    check_checkpoint_copies(folder, champion)
    check_evidence(folder, champion, layout)
    return sorted(checkpoint_copy_folder(folder, each) for each in copied)


def restore_reference(project: Project) -> Path | None:
    """Make the champion's drift reference again if it is lost or damaged; None if it is not.

    Raises:
        ChampionError, StageError: so is what it is made from.
    """
    champion = read_champion(project.workspace.champion_folder)
    if champion is None or read_reference_copy(project, champion) is not None:
        return None
    drift_reference(project, champion)
    return reference_path(project, champion)


def _is_whole(folder: Path, champion: ChampionEntry, layout: Layout, recipe: str) -> bool:
    try:
        check_checkpoint_copy(folder, champion, recipe)
        check_evidence(folder, champion, layout, recipe)
    except (CheckpointError, ChampionError):
        return False
    return True


def renew_page(workspace: Workspace) -> RenewedPage:
    """Make the report page again, which shows the champion. Failing is no reason to stop."""
    from stages.project import Project  # here: it imports the stages

    try:
        project = Project(workspace)  # that of the caller may have looked at the former champion
        made = project.make(project.stages["report"], "")
    except (PhasewatchError, OSError) as error:
        return RenewedPage(None, str(error))
    except ModuleNotFoundError as error:  # the base install makes no pages
        return RenewedPage(None, f"{error.name} is not installed: pip install 'phasewatch[train]'")
    return RenewedPage(made.artifacts["report"])


def validation_mean(project: Project, variant: Variant) -> float | None:
    """Macro F1 on validation, mean over the recipes; None if a recipe's checkpoint is missing."""
    files = [project.artifact(f"checkpoints/{variant.name}", recipe) for recipe in project.recipes]
    if any(file is None or file.header is None for file in files):
        return None
    return float(np.mean([file.val_macro_f1 for file in files]))


def best_on_validation(project: Project) -> Variant | None:
    """Of the realistic models trained for every recipe, the one best on validation, on average.

    Test data do not choose: they would flatter a challenger picked on them.
    """
    scores = {variant: validation_mean(project, variant) for variant in CANDIDATES}
    trained = {variant: score for variant, score in scores.items() if score is not None}
    return max(trained, key=lambda variant: trained[variant]) if trained else None


def _unverified(recipe: str, entry: InventoryEntry) -> Iterator[Objection]:
    if problem := entry.broken or entry.unverified:
        yield Objection(code="unverified", recipe=recipe, names={"problem": problem})
    elif entry.differences:
        names = {"problem": shortened(entry.differences)}
        yield Objection(code="does_not_verify", recipe=recipe, about=str(entry.path), names=names)


def _fits(project: Project, champion: ChampionEntry) -> bool:
    """Whether the champion is for the input layout in force; otherwise anyone may follow it."""
    workspace = project.workspace
    try:
        for recipe in champion.checkpoints:
            load_checkpoint_copy(workspace.champion_folder, champion, workspace.layout, recipe)
    except ContractMismatchError:
        return False
    return True


def _evidence(
    project: Project,
    recipe: str,
    challenger: Variant,
    champion: ChampionEntry | None,
    dataset: Manifest,
    rule: AlarmRule,
) -> dict[str, Any]:
    """Score the challenger, and the champion or the baselines, on the test side as it is now."""
    workspace = project.workspace
    table, shards = read_dataset(dataset), dataset_shards(project, dataset)
    test = table.filter(pl.col("split") == "test")
    classes, policy = workspace.layout.phases, workspace.report

    def scored(name: str, checkpoint: Checkpoint, windows: pl.DataFrame) -> pl.DataFrame:
        X = inputs(windows, shards, checkpoint.variant, workspace.layout)
        proba = checkpoint.model.predict_proba(X)
        mode = checkpoint.variant.mode
        return prediction_rows(windows, name, mode, checkpoint.artifact_id, proba, classes)

    loaded = project.checkpoint(challenger, recipe)
    evidence: dict[str, Any] = {
        "dataset_version": dataset.version,
        "unlike": _unlike(project, recipe, challenger),
    }
    if recipe in ALARM_RECIPES:
        held_out = scored(CHALLENGER, loaded, table.filter(pl.col("split") != "train"))
        subject = Subject(
            model=challenger.model, mode=challenger.mode, checkpoint_id=loaded.artifact_id,
            recipe=recipe, dataset_version=dataset.version,
        )  # fmt: skip
        window = workspace.layout.window
        evidence["alarms"] = alarm_evidence(
            recipe, held_out, classes, window, policy, subject, rule
        )
    if champion is None:
        if (n_episodes := test["episode_id"].n_unique()) < MIN_EPISODES:
            return evidence | {"episodes": n_episodes}
        baselines = shortcut_predictions(table, classes, [challenger.mode], workspace.seed)
        predictions = pl.concat(
            [scored(CHALLENGER, loaded, test), baselines.filter(pl.col("split") == "test")]
        )
        return evidence | baseline_evidence(recipe, predictions, classes, dataset.facts, policy)
    if recipe not in champion.checkpoints:
        return evidence | {"skipped": "not_in_champion", "found": []}
    training = read_training(workspace.champion_folder, champion, recipe)
    known = not_held_out(recipe, training, test, workspace.splits)
    unseen = test.filter(~known)
    n_unseen = unseen["episode_id"].n_unique()
    evidence |= {
        "against": champion.number, "left_out": test.filter(known)["episode_id"].n_unique()
    }  # fmt: skip
    if n_unseen < MIN_EPISODES:
        return evidence | {"episodes": n_unseen}
    former = load_checkpoint_copy(workspace.champion_folder, champion, workspace.layout, recipe)
    both = [scored(CHALLENGER, loaded, unseen), scored(CHAMPION, former, unseen)]
    return evidence | champion_evidence(recipe, pl.concat(both), classes, policy)


def _likeness(project: Project, recipe: str, variant: Variant) -> Manifest | None:
    """The likeness of a recipe, if it is there and speaks of the dataset in force."""
    stage = project.stages[f"likeness/{variant.mode}"]
    usable = project.status(stage, recipe, verify=True).usable
    return project.artifact(stage.name, recipe) if usable else None


def _unlike(project: Project, recipe: str, variant: Variant) -> dict[str, Any] | None:
    """How many test episodes are unlike training: to be known, not held against a model."""
    manifest = _likeness(project, recipe, variant)
    if manifest is None:
        return None
    names = ("alpha", "calibration_episodes", "test_episodes", "test_episodes_unlike")
    return {name: manifest.facts[name] for name in names}


@dataclass(frozen=True)
class FilesToCopy:
    """Files kept with a checkpoint, by name, and what the history records of them."""

    files: dict[str, bytes]
    training: str  # digest of the list of training episodes
    alarm_rule: str  # its id
    likeness: str  # its id; empty: there is none, or the checkpoint is not the one that scores


def files_to_copy(project: Project, recipe: str, variant: Variant, *, serves: bool) -> FilesToCopy:
    """What is kept with a checkpoint: the next dataset forgets what this one was trained on.

    Args:
        serves: whether it is the one that scores.
    """
    dataset = project.existing("datasets", recipe)
    table = read_dataset(dataset).filter(pl.col("split") != "test")
    training, episodes = _training(project, recipe), io.BytesIO()
    write_table(training.to_arrow(), episodes)
    likeness_id = ""
    rule = read_alarm_rule(project.existing(f"alarm_rules/{variant.name}", recipe))
    files = {TRAINING_FILE: episodes.getvalue(), alarm_rule_file(rule.id): rule.text().encode()}
    if serves:
        checkpoint = project.checkpoint(variant, recipe)
        value = new_reference(project, checkpoint, table, dataset_shards(project, dataset))
        files[REFERENCE_FILE] = reference_text(value)
        if manifest := _likeness(project, recipe, variant):
            likeness_id = manifest.facts["likeness_id"]
            files[likeness_file(likeness_id)] = manifest.path("likeness").read_bytes()
    return FilesToCopy(files, training_digest(training), rule.id, likeness_id)


def _training(project: Project, recipe: str) -> pl.DataFrame:
    """The episodes of a recipe's training side."""
    table = read_dataset(project.existing("datasets", recipe), [*TRAINING_COLUMNS, "split"])
    training = table.filter(pl.col("split") != "test").select(TRAINING_COLUMNS)
    return training.unique().sort("episode_id")
