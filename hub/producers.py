"""Programs that read artifacts or the store and publish what they find to a hub.

Each producer is a generator of typed events, so it cannot send what the hub refuses. Recordings are
read from the store one at a time, without shards, so memory does not grow with the store.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from champion.history import SERVED_RECIPE, read_champion
from config.messages import shortened
from datasets.windows import read_dataset
from episodes.format import NS_PER_S
from episodes.validation import EpisodeError, EpisodeRecord, ValidatedEpisode, read_validated
from evaluation.latency import measure
from features.alignment import AlignmentError, Grid, align, make_grid
from features.extraction import Extracted
from features.golden import REWRITE, read_golden
from features.windows import bin_phases, label_windows
from hub.curves import RESOURCES, AttackCurve, attack_curve, attack_shape, attack_spans, quartiles
from hub.events import (
    AttackProfile,
    Embedding,
    ModelMetric,
    ModelPerf,
    PhaseEvent,
    Prediction,
    now,
)
from models.checkpoint import Checkpoint, CheckpointError, checkpoint_path, load_checkpoint
from models.registry import VARIANTS
from models.scaling import fit_scaling, scale
from stages.report_page import comparable_documents
from stages.scoring import Scorer, intact_artifact, score_episode
from stages.status import StageError
from stages.validating import extract_validated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from episodes.store import StoredEpisode
    from evaluation.documents import Figure
    from stages.project import Project

log = logging.getLogger("phasewatch")

MAX_WINDOWS = 1000
"""Windows that an embedding shows."""
MAX_EPISODES = 100
"""Episodes that an attack profile is the median of, and that a scaling is measured on."""
_MAX_PATH = 120
CORPUS = "corpus"
NOT_MEASURED = "not measured"


# --- the recordings


def held_out_windows(scorer: Scorer) -> pl.DataFrame:
    """The test windows of a scorer's recipe, without episodes that it has learned from.

    Raises:
        StageError: the dataset is missing or damaged, or nothing in it is known to be held out.
    """
    remedy = f"Run: phasewatch run --recipe {scorer.recipe}"
    dataset = intact_artifact(scorer.project, "datasets", scorer.recipe)
    if scorer.training is None:
        raise StageError(
            f"recipe {scorer.recipe}'s dataset has changed since {scorer.name} was trained, so it "
            f"is unknown which episodes are new to it. {remedy}; or name an EPISODE"
        )
    known = scorer.training["episode_id"].unique()
    table = read_dataset(dataset).filter(
        pl.col("split") == "test", ~pl.col("episode_id").is_in(known.implode())
    )
    if table.is_empty():
        raise StageError(
            f"{scorer.name} has learned from every test episode that recipe {scorer.recipe} has "
            f"now. {remedy}, then phasewatch promote MODEL"
        )
    return table


def _read(project: Project, stored: StoredEpisode) -> ValidatedEpisode:
    """An episode that may be used.

    Raises:
        EpisodeError: it may not.
    """
    workspace = project.workspace
    episode = read_validated(stored, workspace.validation, workspace.layout.fields)
    if not episode.record.usable:
        raise EpisodeError(episode.record)
    return episode


def _extracted(
    project: Project, episode_ids: Iterable[str]
) -> Iterator[tuple[ValidatedEpisode, Extracted]]:
    """Recordings with their windows, one at a time; what cannot be used is left out and said."""
    listed = {stored.episode_id: stored for stored in project.listing.episodes}
    for episode_id in episode_ids:
        if episode_id not in listed:
            log.warning("%s: left out: it is no longer in the store", episode_id)
            continue
        try:
            episode = _read(project, listed[episode_id])
            yield episode, extract_validated(episode, project.workspace.layout)
        except EpisodeError as error:
            log.warning("%s: left out: %s", episode_id, str(error).partition("\n")[0])


def _sweep(project: Project, seed: int | None = None) -> Iterator[tuple[ValidatedEpisode, Grid]]:
    """Every usable recording of the store, one at a time; with a seed in an order that is drawn."""
    chosen = list(project.listing.episodes)
    if seed is not None:
        chosen = [chosen[i] for i in np.random.default_rng(seed).permutation(len(chosen))]
    for stored in chosen:
        try:
            episode = _read(project, stored)
            labels = episode.labels.t_wall_ns
            grid = make_grid(labels, episode.sources, project.workspace.layout.window.bin_ns)
        except (EpisodeError, AlignmentError):
            continue
        yield episode, grid


def _about(scorer: Scorer) -> str:
    return f"recipe {scorer.recipe}, checkpoint {scorer.checkpoint.artifact_id[:12]}"


def _store(project: Project) -> str:
    """The store's path, or the end of a path that is too long for an ``origin``."""
    path = project.workspace.store
    return path if len(path) <= _MAX_PATH else f"…{path[-_MAX_PATH:]}"


def _recorded_at(record: EpisodeRecord) -> float | None:
    ended = record.ended_at_wall_ns
    return None if ended is None else ended / NS_PER_S


# --- metrics and phases


def metrics(project: Project) -> Iterator[ModelMetric]:
    """Macro F1 of every current report, and of the baselines beside them.

    Raises:
        StageError: no report is current; StoreError: there is no store.
    """
    found = comparable_documents(project)
    if not found.reports:
        counted = Counter(status.message for status in found.left_out)
        why = shortened([f"{n} {message}" for message, n in counted.items()]) or "none is made"
        raise StageError(
            f"{project.workspace.report_page.parent}: no report is current: {why}. "
            "Run: phasewatch run"
        )
    baselines: dict[tuple[str, str], dict[str, ModelMetric]] = defaultdict(dict)
    for report in found.reports:
        made = project.existing(f"eval_reports/{report.model}_{report.mode}", report.recipe)
        about: dict[str, Any] = {
            "at": now(),
            "origin": f"test side of recipe {report.recipe}, dataset {report.dataset_version[:12]}",
            "data_at": made.place("report").stat().st_mtime,
            "recipe": report.recipe,
        }
        yield _metric(report.macro_f1, model=report.model, mode=report.mode, **about)
        for each in report.baselines:
            baselines[report.recipe, each.name][report.mode] = _metric(
                each.macro_f1, model=each.name, mode=report.mode, baseline=True, **about
            )
    for by_mode in baselines.values():
        first, *others = by_mode.values()
        figures = {(one.value, one.low, one.high) for one in by_mode.values()}
        if len(figures) == 1:  # what a mode sees makes no difference to it
            yield first.model_copy(update={"mode": None})
        else:
            yield from (first, *others)


def _metric(figure: Figure, **about: Any) -> ModelMetric:
    return ModelMetric(
        value=figure.value, low=figure.low, high=figure.high, level=figure.level, **about
    )


def phases(project: Project) -> Iterator[PhaseEvent]:
    """How many windows of the store's usable recordings are in each phase: of all, and by host.

    Raises:
        StageError: no recording is usable; StoreError: there is no store.
    """
    mixes: dict[str, Counter[str]] = defaultdict(Counter)
    episodes: Counter[str] = Counter()
    newest: dict[str, float] = {}
    for episode, grid in _sweep(project):
        labels = label_windows(episode.labels, grid, project.workspace.layout.window).label
        for scope in (CORPUS, episode.record.host_id):
            mixes[scope].update(labels.tolist())
            episodes[scope] += 1
            newest[scope] = max(newest.get(scope, 0.0), _recorded_at(episode.record) or 0.0)
    if not mixes:
        command = project.workspace.addressed("phasewatch validate")
        raise StageError(f"{project.workspace.store_path}: no episode is usable; see {command}")
    for scope, mix in mixes.items():
        yield PhaseEvent(
            at=now(),
            origin=f"labels of {episodes[scope]} usable episodes, store {_store(project)}",
            data_at=newest[scope] or None,
            scope=scope,
            mix={phase: mix[phase] for phase in project.workspace.layout.phases},  # type: ignore[misc]
        )


# --- replay


def replay(
    scorer: Scorer, chosen: Iterable[StoredEpisode] = (), *, speed: float = 0.0
) -> Iterator[Prediction]:
    """Every window of recordings, predicted and actual.

    Args:
        chosen: recordings; none: the test episodes of the scorer's recipe, without the windows
            that were excluded. Only windows of these are marked with the recipe.
        speed: times the pace of the recording; 0: at once.

    Raises:
        StageError: see ``held_out_windows``; a dataset is not needed for chosen recordings.
        EpisodeError: a chosen recording cannot be used.
    """
    chosen, project = list(chosen), scorer.project
    try:
        table = held_out_windows(scorer)
    except StageError:
        if not chosen:
            raise
        table = pl.DataFrame(schema={"episode_id": pl.String, "window": pl.Int64})
    held_out: dict[str, set[int]] = defaultdict(set)
    for episode_id, window in table.select("episode_id", "window").iter_rows():
        held_out[episode_id].add(window)
    if not chosen:
        for episode, extracted in _extracted(project, sorted(held_out)):
            yield from _windows(scorer, episode, extracted, held_out, speed)
        return
    for stored in chosen:
        episode = _read(project, stored)
        extracted = extract_validated(episode, project.workspace.layout)
        yield from _windows(scorer, episode, extracted, held_out, speed)


def _windows(
    scorer: Scorer,
    episode: ValidatedEpisode,
    extracted: Extracted,
    held_out: dict[str, set[int]],
    speed: float,
) -> Iterator[Prediction]:
    layout = scorer.project.workspace.layout
    # a champion that was promoted before alarm rules has none
    rule = None if scorer.champion and not scorer.champion.alarm_rules else scorer.rule
    scores = score_episode(scorer.checkpoint, rule, None, extracted, layout)
    windows = held_out.get(episode.episode_id)
    phase, filtered, alarm = scores.phase, scores.filtered, scores.alarm
    began, length_s = time.monotonic(), layout.window.length_ms / 1000
    for i in range(len(scores)):
        if windows is not None and i not in windows:
            continue
        start_s = float(scores.start_s[i])
        if speed > 0:
            time.sleep(max(0.0, began + (start_s + length_s) / speed - time.monotonic()))
        yield Prediction(
            at=now(),
            origin=f"replay, {_about(scorer)}",
            data_at=_recorded_at(episode.record),
            episode_id=episode.episode_id,
            window=i,
            start_s=start_s,
            end_s=start_s + length_s,
            predicted=phase[i],  # type: ignore[arg-type]
            filtered=filtered[i] if filtered else None,  # type: ignore[arg-type]
            actual=scores.labelled[i],  # type: ignore[arg-type]
            alarm=None if alarm is None else bool(alarm[i]),
            model=scorer.name,
            recipe=None if windows is None else scorer.recipe,
        )


# --- embedding


def embedding(scorer: Scorer, n_windows: int = MAX_WINDOWS) -> Iterator[Embedding]:
    """Test windows along the two principal axes that are kept in the checkpoint's header.

    Args:
        n_windows: of more, as many are drawn.

    Raises:
        StageError: see ``held_out_windows``.
    """
    project, checkpoint = scorer.project, scorer.checkpoint
    layout, seed = project.workspace.layout, project.workspace.seed
    table = held_out_windows(scorer).sort("episode_id", "window")
    if len(table) > n_windows:
        drawn = np.random.default_rng(seed).choice(len(table), n_windows, replace=False)
        table = table[np.sort(drawn)]
    wanted = {
        episode_id: (rows["window"].to_numpy(), rows["profile"][0])
        for (episode_id,), rows in table.group_by("episode_id", maintain_order=True)
    }
    axes = np.array(checkpoint.header["pca_proj"])
    scaling, scaled_by = _scaling(scorer)
    for episode, extracted in _extracted(project, wanted):
        windows, profile = wanted[episode.episode_id]
        windows = windows[windows < len(extracted.windows)]
        X = checkpoint.inputs(extracted.series, extracted.features, layout)[windows]
        rows = scale(X, scaling).astype(np.float64)
        places = (rows.mean(axis=1) if rows.ndim == 3 else rows) @ axes
        predicted = checkpoint.model.predict_proba(X).argmax(axis=1)
        for i, window in enumerate(windows.tolist()):
            yield Embedding(
                at=now(),
                origin=f"test windows, {_about(scorer)}{scaled_by}",
                data_at=_recorded_at(episode.record),
                episode_id=episode.episode_id,
                window=window,
                x=round(float(places[i, 0]), 4),
                y=round(float(places[i, 1]), 4),
                phase=str(extracted.windows.label[window]),  # type: ignore[arg-type]
                predicted=layout.phases[predicted[i]],
                cluster=profile,
                model=scorer.name,
            )


def _scaling(scorer: Scorer) -> tuple[dict[str, Any], str]:
    """The scaling under which the header's axes were found, and what to say of it.

    A header does not keep it. For summary inputs it is that of the likeness, made from the same
    windows; for tensors it is measured on training recordings.
    """
    if scorer.checkpoint.variant.spec.input_kind == "summary" and scorer.likeness:
        return scorer.likeness.space.scaling | {"limit": None}, ""
    assert scorer.training is not None, "held_out_windows has refused it"
    training = scorer.training.filter(pl.col("split") == "train")["episode_id"].unique().sort()
    random = np.random.default_rng(scorer.project.workspace.seed)
    drawn = [training[int(i)] for i in random.permutation(len(training))[:MAX_EPISODES]]
    checkpoint, layout = scorer.checkpoint, scorer.project.workspace.layout
    found = [
        checkpoint.inputs(extracted.series, extracted.features, layout)
        for _, extracted in _extracted(scorer.project, drawn)
    ]
    if not found:
        raise StageError(
            f"The scaling of {scorer.name}'s axes is measured on its training episodes, and none "
            "of them is in the store"
        )
    return fit_scaling(np.concatenate(found)), f", scaled by {len(found)} training episodes"


# --- perf


def perf(project: Project, recipe: str | None = None) -> Iterator[ModelPerf]:
    """What each realistic checkpoint of a recipe costs per window, measured here and now.

    Args:
        recipe: default: the one that the champion was served from.

    Raises:
        StageError: there is no realistic checkpoint of the recipe.
    """
    workspace = project.workspace
    if recipe is None:
        champion = read_champion(workspace.champion_folder)
        recipe = champion.served if champion else SERVED_RECIPE
    folder = workspace.checkpoint_folder(recipe)
    here = [v for v in VARIANTS if v.mode == "realistic" and checkpoint_path(folder, v).exists()]
    if not here:
        raise StageError(
            f"{folder}: no realistic checkpoint. Run: phasewatch run --recipe {recipe}"
        )
    reports = {(r.model, r.mode): r for r in comparable_documents(project, [recipe]).reports}
    for variant in here:
        path = checkpoint_path(folder, variant)
        report = reports.get((variant.model, variant.mode))
        about: dict[str, Any] = {
            "model": variant.model,
            "mode": variant.mode,
            "recipe": recipe,
            "macro_f1": report.macro_f1.value if report else None,
        }
        try:
            checkpoint = load_checkpoint(path, workspace.layout)
            X = _golden_inputs(project, checkpoint)
        except (CheckpointError, StageError) as error:
            log.warning("%s: not measured: %s", variant.name, str(error).partition("\n")[0])
            origin = f"recipe {recipe}; {variant.name} cannot be used here"
            yield ModelPerf(
                at=now(), origin=origin, device=NOT_MEASURED, latency_ms=None, **about
            )  # fmt: skip
            continue
        with checkpoint.model.one_thread():
            taken = measure(checkpoint.model.predict_proba, X)
        yield ModelPerf(
            at=now(),
            origin=f"{taken.windows} windows of the golden vectors, one at a time on one thread; "
            f"macro F1 on recipe {recipe}",
            data_at=now(),
            device=taken.processor,
            latency_ms=taken.median_ms,
            latency_p99_ms=taken.p99_ms,
            size_bytes=path.stat().st_size + checkpoint.header["sidecar_bytes"],
            **about,
        )


def _golden_inputs(project: Project, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """A checkpoint's inputs of every golden window: the same windows on every machine.

    Raises:
        StageError: the golden vectors are for another input layout.
    """
    layout = project.workspace.layout
    golden = read_golden(layout)
    if golden is None:
        raise StageError(f"the golden vectors are for another layout; {REWRITE}")
    return np.concatenate(
        [checkpoint.inputs(each.series, each.features, layout) for each in golden.values()]
    )


# --- attack profiles


def profiles(project: Project, n_episodes: int = MAX_EPISODES) -> Iterator[AttackProfile]:
    """How the channels of ``RESOURCES`` run through the attacks of each profile.

    Args:
        n_episodes: of more recordings of a profile, as many are drawn.

    Raises:
        StageError: no recording has an attack; StoreError: there is no store.
    """
    layout = project.workspace.layout
    columns = [layout.channel_names.index(channel) for channel in RESOURCES.values()]
    found: dict[str, list[AttackCurve]] = defaultdict(list)
    newest: dict[str, float] = {}
    for episode, grid in _sweep(project, project.workspace.seed):
        profile = episode.record.profile
        if profile is None or len(found[profile]) >= n_episodes:
            continue
        spans = attack_spans(bin_phases(episode.labels, grid).tolist())
        if spans is None:
            continue
        series = align(episode.sources, grid, layout)[:, columns].astype(np.float64)
        found[profile].append(attack_curve(series, spans))
        newest[profile] = max(newest.get(profile, 0.0), _recorded_at(episode.record) or 0.0)
    attacked = {profile: attacks for profile, attacks in sorted(found.items()) if attacks}
    if not attacked:
        raise StageError(f"{project.workspace.store_path}: no usable episode has an attack")
    units = {channel.name: channel.unit for channel in layout.channels}
    for profile, attacks in attacked.items():
        form = attack_shape(np.stack([one.growth for one in attacks]))
        for i, channel in enumerate(RESOURCES.values()):
            curves = np.stack([one.curve[:, i] for one in attacks])
            with_values = ~np.isnan(curves).all(axis=1)
            if not with_values.any():
                continue
            low, middle, high = quartiles(curves)
            yield AttackProfile(
                at=now(),
                origin=f"usable episodes with an attack, store {_store(project)}",
                data_at=newest[profile] or None,
                name=profile,
                shape=form,
                channel=channel,
                unit=units[channel],
                n_episodes=int(with_values.sum()),
                curve=middle,
                p25=low,
                p75=high,
            )
