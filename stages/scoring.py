"""What scores, and the scores: what a checkpoint, its alarm rule and its likeness say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from champion.history import (
    ChampionEntry,
    ChampionError,
    checkpoint_copy_path,
    load_alarm_rule,
    load_checkpoint_copy,
    load_likeness,
    read_champion,
    read_training,
    signing_remedy,
)
from config.signing import distrust
from datasets.splits import RECIPES
from datasets.windows import read_dataset
from evaluation.detection import alarm_score
from evaluation.scores import phases_of
from features.relative import episode_inputs
from models.checkpoint import Checkpoint, CheckpointError, load_checkpoint, signed_by
from models.likeness import ALPHA, Likeness
from stages.alarm_rules import alarm_rule_of
from stages.likeness import likeness_of
from stages.status import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from features.extraction import Extracted
    from features.registry import Layout
    from models.alarm import AlarmRule
    from models.base import Inputs
    from stages.manifest import Manifest
    from stages.project import Project

TOP = 5  # channels that are named for a window


@dataclass(frozen=True)
class Scorer:
    """What scores: a checkpoint, and what is bound to it, which is read when it is asked for."""

    project: Project
    checkpoint: Checkpoint
    champion: ChampionEntry | None = None  # whose checkpoint it is; None: it was named
    # takes why a named checkpoint's part is left out; None: that is raised, as for a champion
    tell: Callable[[str], None] | None = None

    @property
    def name(self) -> str:
        return self.checkpoint.variant.name

    @property
    def recipe(self) -> str:
        """The recipe of the data that trained it."""
        if self.champion is not None:
            return self.champion.served
        return str(self.checkpoint.header["train_meta"].get("recipe"))

    @cached_property
    def rule(self) -> AlarmRule | None:
        """Its alarm rule; None if no rule is bound to it.

        Raises:
            StageError, ChampionError: it is gone or was changed; see ``alarm_rule_of`` and
                ``load_alarm_rule``.
        """
        what = "alarms and filtered phases are left out"
        try:
            if self.champion is None:
                return alarm_rule_of(self.project, self.checkpoint)
            return load_alarm_rule(self.project.workspace.champion_folder, self.champion)
        except StageError as error:
            self._leave_out(what, error)
            return None
        except ChampionError as error:  # a champion that was promoted with a rule needs it
            if self.champion is not None and self.champion.served in self.champion.alarm_rules:
                raise
            self._leave_out(what, error)
            return None

    def required_rule(self) -> AlarmRule:
        """Its alarm rule.

        Raises:
            StageError, ChampionError: there is none, or see ``rule``.
        """
        if self.rule is None:
            raise StageError(
                f"No alarm rule is bound to this checkpoint of {self.name}, so it cannot raise an "
                "alarm. Run: phasewatch run"
            )
        return self.rule

    @cached_property
    def likeness(self) -> Likeness | None:
        """The likeness of its training windows; None if there is none.

        Raises:
            StageError, ChampionError: it is gone or was changed.
        """
        workspace = self.project.workspace
        if self.champion is not None:
            return load_likeness(workspace.champion_folder, self.champion, workspace.layout)
        try:
            return likeness_of(self.project, self.checkpoint)
        except StageError as error:
            self._leave_out("the column 'unlike training' is left out", error)
            return None

    @cached_property
    def training(self) -> pl.DataFrame | None:
        """Episodes (``episode_id, split``) that it has learned from; None: the dataset is gone.

        Raises:
            StageError, ChampionError: the table is gone or was changed.
        """
        if self.champion is not None:
            return read_training(self.project.workspace.champion_folder, self.champion)
        trained_on = self.checkpoint.header["train_meta"].get("dataset_version")
        dataset = self.project.artifact("datasets", self.recipe) if self.recipe in RECIPES else None
        if dataset is None or dataset.version != trained_on:
            return None
        table = read_dataset(intact_artifact(self.project, "datasets", self.recipe))
        return table.filter(pl.col("split") != "test").select("episode_id", "split").unique()

    def scores(self, extracted: Extracted, *, explain: bool = False) -> Scores:
        """The scores of an episode's windows; see ``score_episode``."""
        layout, bound = self.project.workspace.layout, (self.rule, self.likeness)
        return score_episode(self.checkpoint, *bound, extracted, layout, explain=explain)

    def _leave_out(self, what: str, error: Exception) -> None:
        if self.tell is None:
            raise error
        self.tell(f"{what}: {error}")


_SIGN = (
    "Make a key here (phasewatch keys new NAME) and retrain, or retrain on a machine whose key is "
    "trusted here"
)
_TRUST = (
    "Retrain on a machine whose key is trusted here, or trust the key that signed it: "
    "phasewatch keys trust FILE"
)


def champion_scorer(
    project: Project,
    instead: str = "--checkpoint FILE",
    tell: Callable[[str], None] | None = None,
) -> Scorer:
    """The champion's.

    Args:
        instead: how to name a checkpoint, for who has no champion.

    Raises:
        StageError: there is no champion.
        ChampionError, CheckpointError: it cannot be read or loaded.
    """
    folder = project.workspace.champion_folder
    champion = read_champion(folder, require_signature=project.workspace.require_signatures)
    if champion is None:
        raise StageError(
            f"{folder}: there is no champion to score with. Promote a trained model "
            f"(phasewatch promote MODEL), or name a checkpoint: {instead}"
        )
    checkpoint = load_checkpoint_copy(folder, champion, project.workspace.layout)
    _check_signed(
        project, checkpoint, checkpoint_copy_path(folder, champion), signing_remedy(champion)
    )
    return Scorer(project, checkpoint, champion, tell)


def scorer_of(
    project: Project, path: Path | None, tell: Callable[[str], None] | None = None
) -> Scorer:
    """That of a checkpoint file, or without one the champion's.

    Raises:
        StageError, ChampionError, CheckpointError: see ``champion_scorer``, ``load_checkpoint``.
    """
    if path is None:
        return champion_scorer(project, tell=tell)
    checkpoint = load_checkpoint(path, project.workspace.layout)
    _check_signed(project, checkpoint, path)
    return Scorer(project, checkpoint, tell=tell)


def _check_signed(
    project: Project, checkpoint: Checkpoint, path: Path, remedy: str | None = None
) -> None:
    """Refuse a checkpoint without a signature that holds, where signatures are required."""
    signed = signed_by(checkpoint.header)
    why = distrust(signed, required=project.workspace.require_signatures)
    if why:
        remedy = remedy or (_SIGN if signed.state == "unsigned" else _TRUST)
        raise CheckpointError(f"{path}: {why}, and signatures are required. {remedy}")


def intact_artifact(project: Project, stage: str, key: str) -> Manifest:
    """An artifact whose files are whole, current or not.

    Raises:
        StageError: it is missing or damaged.
    """
    manifest = project.existing(stage, key)
    if problem := project.refusal(manifest):
        raise StageError(f"{problem}. Run: {project.stages[stage].remedy(key)}")
    return manifest


@dataclass(frozen=True)
class RuleScores:
    """What an alarm rule makes of consecutive windows."""

    rule: AlarmRule
    proba: NDArray[np.float64]  # (n_windows, n_phases), filtered
    score: NDArray[np.float64]  # (n_windows,), what the threshold is compared with
    alarm: NDArray[np.bool_]  # (n_windows,)


@dataclass(frozen=True)
class LikenessScores:
    """How far consecutive windows are from training."""

    likeness: Likeness
    score: NDArray[np.float64]  # (n_windows,), distance
    p: NDArray[np.float64]  # (n_windows,), p value of the episode so far

    @property
    def unlike(self) -> NDArray[np.bool_]:
        """Whether the episode so far is unlike training ``(n_windows,)``."""
        return self.p <= ALPHA


@dataclass(frozen=True)
class Scores:
    """Of the windows of one episode, in order."""

    phases: tuple[str, ...]
    start_s: NDArray[np.float64]  # (n_windows,)
    length_s: float  # of a window
    labelled: Sequence[str]  # (n_windows,)
    proba: NDArray[np.float32]  # (n_windows, n_phases), as the model gives them
    rule_scores: RuleScores | None  # None: the checkpoint has no alarm rule
    likeness_scores: LikenessScores | None  # None: there is no likeness
    channels: tuple[str, ...]  # those that the model's mode may see
    why: NDArray[np.float64] | None  # (n_windows, n_channels), for the phase; None: not asked for

    def __len__(self) -> int:
        return len(self.start_s)

    @property
    def phase(self) -> list[str]:
        """The likeliest phase of every window."""
        return phases_of(self.proba, self.phases)

    @property
    def filtered(self) -> list[str] | None:
        """The likeliest phase given all windows so far."""
        return None if self.rule_scores is None else phases_of(self.rule_scores.proba, self.phases)

    @property
    def alarm(self) -> NDArray[np.bool_] | None:
        """Whether the alarm stands at each window."""
        return None if self.rule_scores is None else self.rule_scores.alarm

    @property
    def unlike(self) -> NDArray[np.bool_] | None:
        """Whether the episode is unlike training, given all windows so far."""
        return None if self.likeness_scores is None else self.likeness_scores.unlike

    @property
    def alarm_score(self) -> NDArray[np.float64]:
        """P(infecting) + P(infected_running) of each window by itself."""
        return alarm_score(self.proba.astype(float), self.phases)

    @property
    def first_alarm_s(self) -> float | None:
        """End of the first window with an alarm: it is known then."""
        if self.alarm is None or not self.alarm.any():
            return None
        return float(self.start_s[self.alarm.argmax()]) + self.length_s

    def arguments(self, window: int, top: int = TOP) -> list[tuple[str, float]]:
        """The channels that argue most for a window's phase, and how much; at most ``top``."""
        if self.why is None:
            return []
        row = self.why[window]
        return [(self.channels[i], float(row[i])) for i in np.argsort(-row)[:top] if row[i] > 0]

    def contributions(self) -> pl.DataFrame:
        """``window, start_s, phase, channel, contribution``: of each window the largest first."""
        assert self.why is not None, "score the episode with explain=True"
        n = len(self.channels)
        return pl.DataFrame(
            {
                "window": np.repeat(np.arange(len(self)), n),
                "start_s": np.repeat(self.start_s, n),
                "phase": [phase for phase in self.phase for _ in range(n)],
                "channel": list(self.channels) * len(self),
                "contribution": self.why.ravel(),
            },
            schema_overrides={"phase": pl.String, "channel": pl.String},
        ).sort("window", "contribution", descending=[False, True], maintain_order=True)

    def table(self) -> pl.DataFrame:
        """One row per window, with the columns of the asset ``predictions``."""
        table = pl.DataFrame(
            {
                "window": np.arange(len(self)),
                "start_s": self.start_s,
                "labelled": list(self.labelled),
            },
            schema_overrides={"labelled": pl.String},
        )
        return table.with_columns(
            *scored_columns(self.phases, self.proba, self.rule_scores),
            *unlike_columns(self.likeness_scores, len(self)),
        )


def scored_columns(
    phases: tuple[str, ...], proba: NDArray, rule_scores: RuleScores | None
) -> list[pl.Series]:
    """``predicted, p_<phase>…``, and with a rule ``filtered, f_<phase>…, alarm``."""
    columns = [
        pl.Series("predicted", phases_of(proba, phases), pl.String),
        *(pl.Series(f"p_{phase}", proba[:, i]) for i, phase in enumerate(phases)),
    ]
    if rule_scores is not None:
        columns += [
            pl.Series("filtered", phases_of(rule_scores.proba, phases), pl.String),
            *(pl.Series(f"f_{phase}", rule_scores.proba[:, i]) for i, phase in enumerate(phases)),
            pl.Series("alarm", rule_scores.alarm),
        ]
    return columns


def unlike_columns(found: LikenessScores | None, n_windows: int) -> list[pl.Series]:
    """``unlike_score, unlike_p, unlike``; null where there is no likeness."""
    if found is None:
        kinds = {"unlike_score": pl.Float64, "unlike_p": pl.Float64, "unlike": pl.Boolean}
        return [pl.Series(name, [None] * n_windows, kind) for name, kind in kinds.items()]
    return [
        pl.Series("unlike_score", found.score),
        pl.Series("unlike_p", found.p),
        pl.Series("unlike", found.unlike),
    ]


def apply_likeness(
    likeness: Likeness, X: Inputs, first: NDArray[np.bool_] | None = None
) -> LikenessScores:
    """How far consecutive windows are from training.

    Args:
        X: the summary inputs that the likeness's mode sees.
        first: ``(n_windows,)``, where an episode begins; by default the first window alone.
    """
    scores = likeness.scores(X, first)
    return LikenessScores(likeness, scores, likeness.p_values(scores, first))


def apply_rule(
    rule: AlarmRule, proba: NDArray, first: NDArray[np.bool_] | None = None
) -> RuleScores:
    """A rule on the posteriors of consecutive windows.

    Args:
        first: ``(n_windows,)``, where an episode begins; by default the first window alone.
    """
    filtered = rule.filter(proba, first)
    score = rule.score(filtered)
    return RuleScores(rule, filtered, score, rule.alarms(score, first))


def score_episode(
    checkpoint: Checkpoint,
    rule: AlarmRule | None,
    likeness: Likeness | None,
    extracted: Extracted,
    layout: Layout,
    *,
    explain: bool = False,
) -> Scores:
    """The scores of an episode's windows; without a rule and a likeness what the model says.

    Args:
        explain: also find which channels argue for each window's phase.
    """
    inputs = extracted.series, extracted.features, layout
    X = checkpoint.inputs(*inputs)
    proba = checkpoint.model.predict_proba(X)
    found = None
    if likeness is not None:
        seen = layout.keep_mask(likeness.mode, "summary")
        found = apply_likeness(likeness, episode_inputs("summary", *inputs)[:, seen])
    seen_by_it = layout.channels_of(checkpoint.variant.mode)
    return Scores(
        phases=layout.phases,
        start_s=extracted.windows.start_s,
        length_s=layout.window.length_ms / 1000,
        labelled=[str(label) for label in extracted.windows.label],
        proba=proba,
        rule_scores=None if rule is None else apply_rule(rule, proba),
        likeness_scores=found,
        channels=tuple(compress(layout.channel_names, seen_by_it)),
        why=checkpoint.explain(X, layout)[:, seen_by_it] if explain else None,
    )
