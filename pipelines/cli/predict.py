"""The command ``predict``: phases and alarms of episodes that a checkpoint scores."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.cli import options
from pipelines.cli.console import (
    OK,
    CommandError,
    Document,
    Table,
    existing_checkpoint,
    existing_folder_of,
    note,
    one_of,
    track,
    workspace_of,
    write,
)
from pipelines.cli.episodes import extracted_episode, failures, named_episodes, verdict_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from stages.project import Project
    from stages.scoring import Scorer, Scores

FORMATS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class EpisodeScores:
    """One episode's verdict and scores."""

    episode_id: str
    host_id: str
    verdict: dict[str, Any]
    seen_in_training: bool | None
    scores: Scores

    @property
    def summary(self) -> dict[str, Any]:
        """Windows by phase, when the alarm was raised first, and whether it is like training."""
        scores = self.scores
        counted = Counter(scores.filtered or scores.phase)
        return {
            "phases": {phase: counted[phase] for phase in scores.phases if counted[phase]},
            "first_alarm_s": scores.first_alarm_s,
            "unlike": None if scores.unlike is None else bool(scores.unlike.any()),
        }

    @property
    def as_json(self) -> dict[str, Any]:
        return {
            "seen_in_training": self.seen_in_training,
            "summary": self.summary,
            "windows": list(_windows(self.scores)),
        }


def _windows(scores: Scores) -> Iterator[dict[str, Any]]:
    """What is known of each window; what the rule says only where there is a rule."""

    def by_phase(row: Any) -> dict[str, float]:
        return {p: round(float(v), 6) for p, v in zip(scores.phases, row, strict=True)}

    rule_scores, filtered, unlike = scores.rule_scores, scores.filtered, scores.likeness_scores
    for i, phase in enumerate(scores.phase):
        window = {
            "start_s": float(scores.start_s[i]),
            "phase": phase,
            "probabilities": by_phase(scores.proba[i]),
            "labelled": scores.labelled[i],
            "attack_probability": round(float(scores.alarm_score[i]), 6),
        }
        if rule_scores is not None and filtered is not None:
            window |= {
                "filtered": filtered[i],
                "filtered_probabilities": by_phase(rule_scores.proba[i]),
                "alarm_score": round(float(rule_scores.score[i]), 6),
                "alarm": bool(rule_scores.alarm[i]),
            }
        if unlike is not None:
            window |= {
                "unlike_score": round(float(unlike.score[i]), 6),
                "unlike_p": round(float(unlike.p[i]), 6),
                "unlike": bool(unlike.unlike[i]),
            }
        if scores.why is not None:
            window["why"] = [
                {"channel": channel, "contribution": round(value, 4)}
                for channel, value in scores.arguments(i)
            ]
        yield window


@dataclass(frozen=True)
class PredictDocument(Document):
    """What a checkpoint says of episodes. Of one that was named, JSON has no list."""

    scorer: dict[str, Any]
    episodes: list[EpisodeScores]
    problems: list[CommandError]
    contributions: Literal["exact", "occlusion", ""]  # how they were found; empty: not asked for
    out: str | None

    @property
    def single(self) -> bool:
        return len(self.episodes) + len(self.problems) == 1

    @property
    def exit_code(self) -> int:
        return max((problem.code for problem in self.problems), default=OK)

    def as_json(self) -> dict[str, Any]:
        written: dict[str, Any] = (
            {"contributions": self.contributions} if self.contributions else {}
        )
        written |= {"out": self.out} if self.out else {}
        if self.single:
            [scored] = self.episodes
            return scored.verdict | self.scorer | scored.as_json | written
        each = [scored.verdict | scored.as_json for scored in self.episodes]
        failed = failures(self.problems)
        return self.scorer | {"episodes": each, "failures": failed} | written

    def text(self) -> Iterator[str | Table]:
        if self.single:
            scores = self.episodes[0].scores
            yield _window_table(scores)
            if scores.rule_scores is not None:
                rule = scores.rule_scores.rule
                yield (
                    f"a window raises the alarm if its score is at least {rule.threshold:.4f}; the "
                    f"alarm is cleared by a window that scores below {rule.clear_below:.4f}"
                )
            yield ""
        yield _summary_table(self.episodes)
        if self.problems:
            n_asked = len(self.episodes) + len(self.problems)
            failed = len(self.problems)
            were = "was" if failed == 1 else "were"
            yield f"{failed} of {n_asked} episodes {were} not scored; stderr says why"
        if self.contributions:
            from evaluation.wording import METHOD

            yield "\nwhy, wherever the phase or the alarm changes (--json: for every window)"
            yield METHOD[self.contributions]
        for scored in self.episodes if self.contributions else ():
            yield ""
            yield from () if self.single else [scored.episode_id]
            yield _why_table(scored.scores)
        if self.out:
            yield self.out


def _window_table(scores: Scores) -> Table:
    columns = {
        "start": [f"{start:6.1f} s" for start in scores.start_s],
        "phase": scores.phase,
        "probability": [f"{p.max():.2f}" for p in scores.proba],
        "labelled": scores.labelled,
    }
    if scores.rule_scores is None:
        columns["attack probability"] = [f"{score:.4f}" for score in scores.alarm_score]
    else:
        columns |= {
            "filtered phase": scores.filtered or [],
            "alarm score": [f"{score:.4f}" for score in scores.rule_scores.score],
            "alarm": [_yes(alarm) for alarm in scores.rule_scores.alarm],
        }
    if scores.unlike is not None:
        columns["unlike training"] = [_yes(unlike) for unlike in scores.unlike]
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


def _summary_table(episodes: list[EpisodeScores]) -> Table:
    columns: dict[str, list[str]] = {
        "episode": [scored.episode_id for scored in episodes],
        "host": [scored.host_id for scored in episodes],
        "windows": [str(len(scored.scores)) for scored in episodes],
    }
    if any(scored.scores.rule_scores for scored in episodes):
        first = [scored.scores.first_alarm_s for scored in episodes]
        columns["first alarm"] = ["none" if at is None else f"{at:.1f} s" for at in first]
    if any(scored.scores.likeness_scores for scored in episodes):
        columns["unlike training"] = [_yes(scored.summary["unlike"]) for scored in episodes]
    columns["phases"] = [
        ", ".join(f"{phase} {n}" for phase, n in scored.summary["phases"].items())
        for scored in episodes
    ]
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


_SHOWN = 0.005  # least contribution, which two decimals show


def _why_table(scores: Scores) -> Table:
    """The channels that argue for the phase, wherever it or the alarm changes."""
    alarm = [_yes(each) for each in scores.alarm] if scores.alarm is not None else None
    states = list(zip(scores.phase, alarm or scores.phase, strict=True))
    changes = [i for i, state in enumerate(states) if i == 0 or state != states[i - 1]]
    columns = {
        "start": [f"{scores.start_s[i]:6.1f} s" for i in changes],
        "phase": [scores.phase[i] for i in changes],
    }
    if alarm is not None:
        columns["alarm"] = [alarm[i] for i in changes]
    columns["channels that argue for the phase"] = [
        ", ".join(
            f"{channel} +{value:.2f}" for channel, value in scores.arguments(i) if value >= _SHOWN
        )
        or "none on its own"
        for i in changes
    ]
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


def _yes(value: Any) -> str:
    return "yes" if value else "no"


# Long, because every option is declared here.
def predict(
    episodes: Annotated[
        list[str],
        typer.Argument(metavar="EPISODE…", help=options.EPISODES),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Score with this .ckpt.json (its sidecar must be next to it); default: the "
            "champion.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write every window to this .parquet, .csv or .jsonl."
        ),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Also name the channels that argue for each phase.")
    ] = False,
    anyway: options.Anyway = False,
    require_signature: options.RequireSignature = False,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> PredictDocument:
    """Score episodes: their phases, and when the alarm stands.

    Scores with the champion, or with --checkpoint. If one of several episodes cannot be scored,
    the others are still scored. The command exits with the highest exit code among the episodes.
    """
    from champion.history import checkpoint_copy_path
    from episodes.validation import HINT
    from stages.project import Project

    workspace = workspace_of(
        config,
        store,
        artifacts,
        must_exist=checkpoint is None,
        require_signatures=require_signature,
    )
    if out is not None:
        one_of("the suffix of --out", existing_folder_of(out).suffix, FORMATS)
    chosen, problems = named_episodes(workspace, episodes)
    if len(problems) == 1 and not chosen:
        raise problems[0]  # before a model is loaded, which takes seconds
    scorer = _load(Project(workspace), checkpoint)
    champion = scorer.champion
    path = checkpoint_copy_path(workspace.champion_folder, champion) if champion else checkpoint
    known = _learned_from(scorer)
    scored: list[EpisodeScores] = []
    for stored in track(chosen, "scoring"):
        try:
            read, extracted = extracted_episode(workspace, stored, anyway=anyway)
            scored.append(
                EpisodeScores(
                    episode_id=read.episode_id,
                    host_id=read.record.host_id,
                    verdict=verdict_of(read.record),
                    seen_in_training=None if known is None else read.episode_id in known,
                    scores=scorer.scores(extracted, explain=why),
                )
            )
        except CommandError as error:
            problems.append(error)
    if len(problems) == 1 and not scored:
        raise problems[0]
    for problem in problems:
        note(str(problem).removesuffix(HINT))
    if any(str(problem).endswith(HINT) for problem in problems):
        note(HINT.lstrip())
    note(f"scored by {scorer.name}, {path}")
    if any(each.seen_in_training for each in scored):
        note(_seen(scored))
    if out is not None and scored:
        write(out, _content(_table(scorer, scored), out.suffix))
    return PredictDocument(
        scorer={
            "model": scorer.name,
            "checkpoint": str(path),
            "checkpoint_id": scorer.checkpoint.artifact_id,
            "alarm_rule_id": scorer.rule.id if scorer.rule else None,
            "alarm_threshold": scorer.rule.threshold if scorer.rule else None,
            "alarm_clear_below": scorer.rule.clear_below if scorer.rule else None,
            "likeness_id": scorer.likeness.id if scorer.likeness else None,
        },
        episodes=scored,
        problems=problems,
        contributions=scorer.checkpoint.model.explained if why else "",
        out=str(out) if out is not None and scored else None,
    )


def _seen(scored: list[EpisodeScores]) -> str:
    seen = [each.episode_id for each in scored if each.seen_in_training]
    if len(scored) == 1:
        return "warning: the checkpoint was trained or validated on this episode"
    return (
        f"warning: the checkpoint was trained or validated on {len(seen)} of these {len(scored)} "
        "episodes"
    )


def _load(project: Project, path: Path | None) -> Scorer:
    """The checkpoint at a path, or without one the champion's; what is left out is noted."""
    from stages.scoring import scorer_of

    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        note(project.workspace.addressed(text))

    scorer = scorer_of(project, path and existing_checkpoint(path), tell)
    for part, nothing in (
        ("rule", "no alarm rule is bound to {}: alarms and filtered phases are left out"),
        ("likeness", "no likeness belongs to {}: the column 'unlike training' is left out"),
    ):
        told.clear()
        if getattr(scorer, part) is None and path is not None and not told:
            note(nothing.format(path))
    return scorer


def _learned_from(scorer: Scorer) -> set[str] | None:
    """Episodes that the model has learned from; None: its dataset is not here as it was."""
    from champion.history import ChampionError
    from stages.status import StageError

    try:
        return None if scorer.training is None else set(scorer.training["episode_id"])
    except (ChampionError, StageError) as error:  # the model scores all the same
        why = scorer.project.workspace.addressed(str(error))
        note(f"cannot tell whether the model was trained on these episodes: {why}")
        return None


# --- the file


def _table(scorer: Scorer, scored: list[EpisodeScores]) -> pl.DataFrame:
    """Every window of every episode, with the columns of the asset ``predictions``."""
    import polars as pl

    return pl.concat(
        each.scores.table().select(
            pl.lit(each.episode_id).alias("episode_id"),
            pl.lit(each.host_id).alias("host_id"),
            pl.all(),
            pl.lit(each.seen_in_training, pl.Boolean).alias("seen_in_training"),
            pl.lit(scorer.checkpoint.artifact_id).alias("checkpoint_id"),
            pl.lit(scorer.rule.id if scorer.rule else None, pl.String).alias("alarm_rule_id"),
        )
        for each in scored
    )


def _content(table: pl.DataFrame, suffix: str) -> bytes:
    content = io.BytesIO()
    if suffix == ".parquet":
        table.write_parquet(content)
    elif suffix == ".csv":
        table.write_csv(content)
    else:
        table.write_ndjson(content)
    return content.getvalue()
