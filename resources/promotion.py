"""Promotion: a challenger judged on what there is on disk, and put in use where it may be."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from evaluation.baselines import shortcut_predictions
from evaluation.datasets import RECIPES, inputs, read_channel_means, read_dataset
from evaluation.drift import draw_episodes, reference
from evaluation.promotion import (
    CHALLENGER,
    CHAMPION,
    MIN_EPISODES,
    TRAINING_COLUMNS,
    Judgement,
    against_baselines,
    against_champion,
    known_to,
    reasons_against_champion,
    reasons_against_first,
)
from evaluation.scores import phases_of, prediction_rows
from features.golden import differences
from features.manifest import Manifest
from features.shards import read_table
from models.champion import (
    SERVED,
    Reign,
    crown,
    keep,
    kept_path,
    load_kept,
    now,
    read_champion,
)
from models.checkpoint import (
    Checkpoint,
    CheckpointError,
    ContractMismatchError,
    checkpoint_path,
    load_checkpoint,
    read_header,
)
from models.inspection import Entry, verify
from models.registry import VARIANTS, Variant
from resources.guards import refuse, require_dataset
from resources.workspace import Workspace

TRAINING_FILE = "training.parquet"  # the episodes a kept checkpoint was trained and validated on
REFERENCE_FILE = "reference.json"  # what batches are compared with: of the one that scores
CANDIDATES = [which for which in VARIANTS if which.mode == "realistic"]
_SHOWN_LINES = 5  # of the differences of a checkpoint that does not verify

Shards = dict[str, dict[str, Manifest]]


@dataclass(frozen=True)
class Trial:
    """A challenger that was judged, and the champion it was judged against."""

    which: Variant
    checkpoints: dict[str, str]  # recipe -> checkpoint id
    champion: Reign | None
    judgement: Judgement

    @property
    def is_champion(self) -> bool:
        return self.champion is not None and self.champion.checkpoints == self.checkpoints


def judge(workspace: Workspace, which: Variant) -> Trial:
    """Try a variant's checkpoints of all recipes against the champion, on the current test data.

    Where there is no champion, or none that loads for the layout in force, the baselines are the
    bar. Nothing is written.

    Raises:
        ChampionError: the pointer cannot be read.
        dg.Failure: a dataset is absent or not of the shards there are.
    """
    champion = read_champion(workspace.champion_folder)
    if which.mode != "realistic":
        return Trial(which, {}, champion, Judgement([
            f"{which.name} cannot be promoted: it needs the host's view of the machine (/proc of "
            "QEMU, its monitor), and on a device nothing watches from outside. Only realistic "
            "models can."
        ]))  # fmt: skip
    replayed = differences(workspace.layout)
    entries = {
        recipe: verify(checkpoint_path(workspace.checkpoint_folder(recipe), which),
                       workspace.layout, replayed)
        for recipe in RECIPES
    }  # fmt: skip
    reasons = [line for recipe, entry in entries.items() for line in _unverified(recipe, entry)]
    if reasons:
        return Trial(which, {}, champion, Judgement(reasons))
    headers = {recipe: entry.header or {} for recipe, entry in entries.items()}
    trial = Trial(
        which, {r: header["artifact_id"] for r, header in headers.items()}, champion, Judgement([])
    )
    if trial.is_champion:
        return Trial(which, trial.checkpoints, champion, Judgement([
            f"{which.name} is the champion already, with these very checkpoints."
        ]))  # fmt: skip
    try:
        bar = champion if champion is not None and _fits(workspace, champion) else None
    except CheckpointError as error:
        return Trial(which, trial.checkpoints, champion, Judgement([
            f"The champion cannot be compared with: {error}. Restore the file, or go back: "
            "phasewatch rollback"
        ]))  # fmt: skip
    recipes = {}
    for recipe, header in headers.items():
        dataset, shards = require_dataset(workspace, recipe)
        if header["train_meta"]["dataset_version"] != dataset.version:
            reasons.append(
                f"Recipe {recipe}: {which.name} was trained on another version of the dataset, so "
                f"its test episodes may be known to it. Retrain: phasewatch run --recipe {recipe}"
            )
        else:
            recipes[recipe] = _evidence(workspace, recipe, which, bar, dataset, shards)
    if not reasons:
        rule = reasons_against_first if bar is None else reasons_against_champion
        reasons = rule(recipes)
    return Trial(which, trial.checkpoints, champion, Judgement(reasons, recipes))


def promote(
    workspace: Workspace, which: Variant, *, by: str, why: str
) -> tuple[Trial, Reign | None]:
    """Judge a variant and, where nothing speaks against it, put it in use.

    Returns:
        The trial, and who is champion now; where the trial was lost, that is who was before.

    Raises:
        ChampionError, CheckpointError, dg.Failure: see ``judge``, ``keep`` and ``crown``.
    """
    trial = judge(workspace, which)
    if not trial.judgement.granted:
        return trial, trial.champion
    kept = {
        recipe: keep(
            workspace.champion_folder,
            checkpoint_path(workspace.checkpoint_folder(recipe), which),
            beside(workspace, recipe, which),
        )
        for recipe in RECIPES
    }
    if kept != trial.checkpoints:
        raise CheckpointError(
            f"{which.name} was retrained while it was judged; judge it anew: phasewatch promote "
            f"{which.model}"
        )
    reign = Reign(
        number=0, action="promoted", model=which.model, mode=which.mode, served=SERVED,
        checkpoints=kept, since=now(), by=by, why=why, evidence=trial.judgement.recipes,
        previous=None,
    )  # fmt: skip
    return trial, crown(workspace.champion_folder, reign, judged_against=trial.champion)


def validation_mean(workspace: Workspace, which: Variant) -> float:
    """Macro F1 on validation, mean over the recipes, as the checkpoints' headers have it.

    Raises:
        CheckpointError: a recipe's checkpoint is absent or damaged.
    """
    return float(np.mean([
        read_header(checkpoint_path(workspace.checkpoint_folder(recipe), which))
        ["train_meta"]["val_macro_f1"]
        for recipe in RECIPES
    ]))  # fmt: skip


def best_on_validation(workspace: Workspace) -> Variant | None:
    """Of the realistic models trained for every recipe, the one best on validation, on average.

    Test data do not choose: a challenger picked on them would be flattered by them.
    """
    scores = {}
    for which in CANDIDATES:
        try:
            scores[which] = validation_mean(workspace, which)
        except CheckpointError:
            continue
    return max(scores, key=lambda which: scores[which]) if scores else None


def read_training(workspace: Workspace, reign: Reign, recipe: str) -> pl.DataFrame:
    """``TRAINING_COLUMNS`` of the episodes a champion's checkpoint was trained or validated on.

    Raises:
        dg.Failure: the table that is kept with it is gone.
    """
    path = kept_path(workspace.champion_folder, reign, recipe).with_name(TRAINING_FILE)
    try:
        table = pl.from_arrow(read_table(path))
    except OSError as error:
        refuse(f"{path}: {error}. Restore the file, or go back: phasewatch rollback")
    assert isinstance(table, pl.DataFrame)
    return table


def _unverified(recipe: str, entry: Entry) -> Iterator[str]:
    if entry.broken or entry.unverified:
        yield f"Recipe {recipe}: {entry.broken or entry.unverified}"
    elif entry.differences:
        lines = entry.differences[:_SHOWN_LINES]
        more = len(entry.differences) - len(lines)
        yield (
            f"Recipe {recipe}: {entry.path} does not verify: "
            + "; ".join(lines)
            + (f"; and {more} more (phasewatch inspect --verify {entry.path})" if more else "")
        )


def _fits(workspace: Workspace, champion: Reign) -> bool:
    """Whether the champion is for the input layout in force; else it is in nobody's way."""
    try:
        for recipe in RECIPES:
            load_kept(workspace.champion_folder, champion, workspace.layout, recipe)
    except ContractMismatchError:
        return False
    return True


def _evidence(
    workspace: Workspace,
    recipe: str,
    which: Variant,
    champion: Reign | None,
    dataset: Manifest,
    shards: Shards,
) -> dict[str, Any]:
    """Score the challenger, and the champion or the baselines, on the test side as it is now."""
    table = read_dataset(dataset)
    test = table.filter(pl.col("split") == "test")
    classes, policy = workspace.layout.phases, workspace.report_policy
    challenger = load_checkpoint(
        checkpoint_path(workspace.checkpoint_folder(recipe), which), workspace.layout
    )
    found: dict[str, Any] = {"dataset_version": dataset.version}
    if champion is None:
        baselines = shortcut_predictions(table, classes, [which.mode], workspace.seed)
        parts = [
            _scored(workspace, CHALLENGER, challenger, test, shards),
            baselines.filter(pl.col("split") == "test"),
        ]
        return found | against_baselines(recipe, pl.concat(parts), classes, dataset.facts, policy)
    known = known_to(recipe, read_training(workspace, champion, recipe), test)
    left, left_out = test.filter(~known), test.filter(known)["episode_id"].n_unique()
    found |= {"against": champion.number, "left_out": left_out}
    if left["episode_id"].n_unique() < MIN_EPISODES:
        return found | {"episodes": left["episode_id"].n_unique()}
    theirs = load_kept(workspace.champion_folder, champion, workspace.layout, recipe)
    both = [
        _scored(workspace, CHALLENGER, challenger, left, shards),
        _scored(workspace, CHAMPION, theirs, left, shards),
    ]
    return found | against_champion(recipe, pl.concat(both), classes, policy)


def _scored(
    workspace: Workspace, name: str, checkpoint: Checkpoint, windows: pl.DataFrame, shards: Shards
) -> pl.DataFrame:
    which = checkpoint.variant
    proba = checkpoint.model.predict_proba(inputs(windows, shards, which, workspace.layout))
    return prediction_rows(
        windows, name, which.mode, checkpoint.artifact_id, proba, workspace.layout.phases
    )


def beside(workspace: Workspace, recipe: str, which: Variant) -> dict[str, bytes]:
    """What is kept with a checkpoint: the next dataset forgets what this one was trained on."""
    dataset, shards = require_dataset(workspace, recipe)
    table = read_dataset(dataset).filter(pl.col("split") != "test")
    episodes = io.BytesIO()
    table.select(TRAINING_COLUMNS).unique().sort("episode_id").write_parquet(episodes)
    files = {TRAINING_FILE: episodes.getvalue()}
    if recipe == SERVED:
        value = _reference(workspace, which, table, shards)
        files[REFERENCE_FILE] = json.dumps(value, allow_nan=False).encode()
    return files


def _reference(
    workspace: Workspace, which: Variant, table: pl.DataFrame, shards: Shards
) -> dict[str, Any]:
    layout = workspace.layout
    seen = layout.keep_mask(which.mode, "tensor")
    channels = [name for name, kept in zip(layout.channel_names, seen, strict=True) if kept]
    train, val = (
        draw_episodes(table.filter(pl.col("split") == split), workspace.seed)
        for split in ("train", "val")
    )
    checkpoint = load_checkpoint(
        checkpoint_path(workspace.checkpoint_folder(SERVED), which), layout
    )
    proba = checkpoint.model.predict_proba(inputs(val, shards, which, layout))
    verdicts = pl.concat(
        pl.from_arrow(read_table(found["validation_index"].path("index"), ["host_id", "verdict"]))
        for found in shards.values()
    )
    features = pl.concat(
        read_channel_means(found["feature_shards"], channels).filter(
            pl.col("episode_id").is_in(train["episode_id"].implode())
        )
        for found in shards.values()
    )
    return reference(
        features, val.with_columns(predicted=pl.Series(phases_of(proba, layout.phases))), verdicts,
        channels, workspace.seed,
    )  # fmt: skip
