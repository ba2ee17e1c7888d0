"""The command ``predict``: phases and alarms of episodes that a checkpoint scores."""

from __future__ import annotations

import io
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.cli import options
from pipelines.cli.console import (
    EXIT_CODES,
    OK,
    TEXT_ONLY,
    USAGE,
    CommandError,
    Document,
    Table,
    existing_file,
    fail,
    note,
    one_of,
    track,
    workspace_of,
)
from pipelines.cli.episodes import extracted_episode, stored_episode, verdict_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from episodes.store import StoredEpisode
    from models.alarm import AlarmRule
    from models.checkpoint import Checkpoint
    from models.novelty import Likeness
    from stages.scoring import Scores
    from stages.workspace import Workspace

FORMATS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class Scorer:
    """What scores: a checkpoint, its alarm rule and likeness, and what it has learned from."""

    path: Path
    checkpoint: Checkpoint
    rule: AlarmRule | None
    likeness: Likeness | None
    known: set[str] | None  # episodes; None: not recorded

    @property
    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.checkpoint.variant.name,
            "checkpoint": str(self.path),
            "checkpoint_id": self.checkpoint.artifact_id,
            "alarm_rule_id": self.rule.id if self.rule else None,
            "likeness_id": self.likeness.id if self.likeness else None,
        }


@dataclass(frozen=True)
class Scored:
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

    over_time, filtered, unlike = scores.over_time, scores.filtered, scores.unlike_training
    for i, phase in enumerate(scores.phase):
        window = {
            "start_s": float(scores.start_s[i]),
            "phase": phase,
            "probabilities": by_phase(scores.proba[i]),
            "labelled": scores.labelled[i],
            "alarm_score": round(float(scores.alarm_score[i]), 6),
        }
        if over_time is not None and filtered is not None:
            window |= {
                "filtered": filtered[i],
                "filtered_probabilities": by_phase(over_time.proba[i]),
                "filtered_alarm_score": round(float(over_time.score[i]), 6),
                "alarm": bool(over_time.alarm[i]),
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
class Predictions(Document):
    """What a checkpoint says of episodes. Of one that was named, JSON has no list."""

    scorer: dict[str, Any]
    episodes: list[Scored]
    failures: list[dict[str, Any]]
    single: bool = field(metadata=TEXT_ONLY)
    contributions: Literal["exact", "occlusion", ""]  # how they were found; empty: not asked for
    out: str | None
    code: int = field(metadata=TEXT_ONLY)

    @property
    def exit_code(self) -> int:
        return self.code

    def as_json(self) -> dict[str, Any]:
        written: dict[str, Any] = (
            {"contributions": self.contributions} if self.contributions else {}
        )
        written |= {"out": self.out} if self.out else {}
        if self.single:
            [scored] = self.episodes
            return scored.verdict | self.scorer | scored.as_json | written
        each = [scored.verdict | scored.as_json for scored in self.episodes]
        return self.scorer | {"episodes": each, "failures": self.failures} | written

    def text(self) -> Iterator[str | Table]:
        if self.single:
            yield _window_table(self.episodes[0].scores)
            yield ""
        yield _summary_table(self.episodes)
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
        "alarm score": [f"{score:.4f}" for score in scores.alarm_score],
    }
    if scores.over_time is not None:
        columns |= {
            "filtered phase": scores.filtered or [],
            "alarm": [_yes(alarm) for alarm in scores.over_time.alarm],
        }
    if scores.unlike is not None:
        columns["unlike training"] = [_yes(unlike) for unlike in scores.unlike]
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


def _summary_table(episodes: list[Scored]) -> Table:
    columns: dict[str, list[str]] = {
        "episode": [scored.episode_id for scored in episodes],
        "host": [scored.host_id for scored in episodes],
        "windows": [str(len(scored.scores)) for scored in episodes],
    }
    if any(scored.scores.over_time for scored in episodes):
        first = [scored.scores.first_alarm_s for scored in episodes]
        columns["first alarm"] = ["none" if at is None else f"{at:.1f} s" for at in first]
    if any(scored.scores.unlike_training for scored in episodes):
        columns["unlike training"] = [_yes(scored.summary["unlike"]) for scored in episodes]
    columns["phases"] = [
        ", ".join(f"{phase} {n}" for phase, n in scored.summary["phases"].items())
        for scored in episodes
    ]
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


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
        ", ".join(f"{channel} +{value:.2f}" for channel, value in scores.arguments(i)) or "none"
        for i in changes
    ]
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def predict(
    episodes: Annotated[
        list[str],
        typer.Argument(
            metavar="EPISODE…",
            help="Ids, paths of a .tar.zst, batches of the store, or folders of archives.",
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Score with this .ckpt.json, its sidecar in the same folder; default: the "
            "champion.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write every window to this .parquet, .csv or .jsonl, too."
        ),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Name the channels that argue for each phase, too.")
    ] = False,
    anyway: options.Anyway = False,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> Predictions:
    """Score episodes: their phases, and where the alarm stands.

    The champion scores, or the checkpoint that is named. An episode that cannot be scored does not
    stop the others; the exit code then is the highest of theirs.
    """
    workspace = workspace_of(config, store, artifacts, must_exist=checkpoint is None)
    if out is not None:
        _check_writable(out)
    scorer = _load(workspace, checkpoint)
    chosen, problems = _chosen(workspace, episodes)
    single = len(chosen) + len(problems) == 1
    scored: list[Scored] = []
    for stored in track(chosen, "scoring"):
        try:
            scored.append(_score(workspace, scorer, stored, anyway=anyway, why=why))
        except CommandError as error:
            problems.append(error)
    if single and problems:
        raise problems[0]
    for problem in problems:
        note(str(problem))
    note(f"scored by {scorer.checkpoint.variant.name}, {scorer.path}")
    if any(each.seen_in_training for each in scored):
        note(_seen(scored))
    if out is not None and scored:
        _write(out, _table(scorer, scored))
    return Predictions(
        scorer=scorer.as_json,
        episodes=scored,
        failures=[problem.document | {"error": str(problem)} for problem in problems],
        single=single,
        contributions=_method(scorer) if why else "",
        out=str(out) if out is not None and scored else None,
        code=max((problem.code for problem in problems), default=OK),
    )


def _method(scorer: Scorer) -> Literal["exact", "occlusion"]:
    return "exact" if scorer.checkpoint.model.explains_exactly else "occlusion"


def _seen(scored: list[Scored]) -> str:
    seen = [each.episode_id for each in scored if each.seen_in_training]
    if len(scored) == 1:
        return "warning: this episode was in the training set"
    return f"warning: {len(seen)} of {len(scored)} episodes were in the training set"


def _score(
    workspace: Workspace, scorer: Scorer, stored: StoredEpisode, *, anyway: bool, why: bool
) -> Scored:
    from stages.scoring import score_episode

    read, extracted = extracted_episode(workspace, stored, anyway=anyway)
    return Scored(
        episode_id=read.episode_id,
        host_id=read.record.host_id,
        verdict=verdict_of(read.record),
        seen_in_training=None if scorer.known is None else read.episode_id in scorer.known,
        scores=score_episode(
            *(scorer.checkpoint, scorer.rule, scorer.likeness),
            *(extracted, workspace.layout),
            explain=why,
        ),
    )


def _chosen(
    workspace: Workspace, names: list[str]
) -> tuple[list[StoredEpisode], list[CommandError]]:
    """Every episode that is meant, each once; and what names none."""
    chosen: dict[Path, StoredEpisode] = {}
    problems: list[CommandError] = []
    for name in names:
        try:
            chosen |= {stored.path.absolute(): stored for stored in _meant(workspace, name)}
        except CommandError as error:
            problems.append(error)
    return list(chosen.values()), problems


def _meant(workspace: Workspace, name: str) -> list[StoredEpisode]:
    """The episodes of a folder or a batch, or the one of a path or an id."""
    from episodes.format import ARCHIVE_SUFFIX
    from episodes.store import StoreError, find_archive

    if Path(name).is_dir():
        found = sorted(Path(name).rglob(f"*{ARCHIVE_SUFFIX}"))
        if not found:
            fail(f"{name}: no {ARCHIVE_SUFFIX} in this folder", USAGE, episode=name)
        return [find_archive(path) for path in found]
    try:
        if name.endswith(ARCHIVE_SUFFIX):
            return [stored_episode(workspace, name)]
        return list(workspace.listing().named(name))
    except StoreError as error:
        fail(str(error), EXIT_CODES["StoreError"], episode=name)


def _load(workspace: Workspace, path: Path | None) -> Scorer:
    """The checkpoint at a path, or without one the champion's, with its rule and likeness."""
    from champion.history import (
        ChampionError,
        kept_path,
        load_kept,
        load_likeness,
        load_rule,
        read_champion,
        read_training,
    )
    from models.checkpoint import load_checkpoint
    from stages.alarm_rules import rule_of
    from stages.likeness import likeness_of
    from stages.project import Project
    from stages.status import StageError

    layout, folder = workspace.layout, workspace.champion_folder
    rule, likeness, known = None, None, None
    if path is not None:
        checkpoint, project = load_checkpoint(existing_file(path), layout), Project(workspace)
        rule = rule_of(project, checkpoint)
        if rule is None:
            note(f"no alarm rule is bound to {path}: alarms and filtered phases are left out")
        try:
            likeness = likeness_of(project, checkpoint)
        except (StageError, ChampionError) as error:
            note(f"not said what is unlike training: {workspace.addressed(str(error))}")
        return Scorer(path, checkpoint, rule, likeness, None)
    champion = read_champion(folder)
    if champion is None:
        fail(
            f"{folder}: there is no champion to score with. Promote a trained model "
            "(phasewatch promote MODEL), or name a checkpoint: --checkpoint FILE"
        )
    checkpoint = load_kept(folder, champion, layout)
    try:
        rule = load_rule(folder, champion)
    except ChampionError as error:
        note(f"no alarms and filtered phases: {workspace.addressed(str(error))}")
    try:
        likeness = load_likeness(folder, champion, layout)
    except ChampionError as error:
        note(f"not said what is unlike training: {workspace.addressed(str(error))}")
    with suppress(ChampionError):  # the champion scores all the same
        known = set(read_training(folder, champion)["episode_id"])
    return Scorer(kept_path(folder, champion), checkpoint, rule, likeness, known)


# --- the file


def _check_writable(out: Path) -> None:
    one_of("the suffix of --out", out.suffix, FORMATS)
    if not out.absolute().parent.is_dir():
        fail(f"{out}: folder {out.absolute().parent} does not exist", USAGE)


def _table(scorer: Scorer, scored: list[Scored]) -> pl.DataFrame:
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


def _write(out: Path, table: pl.DataFrame) -> None:
    from features.files import write_atomically

    content = io.BytesIO()
    if out.suffix == ".parquet":
        table.write_parquet(content)
    elif out.suffix == ".csv":
        table.write_csv(content)
    else:
        table.write_ndjson(content)
    try:
        write_atomically(out, content.getvalue())
    except OSError as error:
        fail(f"{out}: not written ({error.strerror})", USAGE)
