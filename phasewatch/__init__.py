"""The Python API: the few stable functions that a notebook needs. See docs/python.md.

Importing this loads nothing heavy. Each function loads what it needs when it is called, and none
needs Dagster; training libraries are needed only by the models that use them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from champion.history import ChampionError
    from config.errors import PhasewatchError
    from episodes.environment import MachineError
    from episodes.store import StoreError
    from episodes.validation import EpisodeError, ValidatedEpisode
    from evaluation.documents import EvalReport
    from features.extraction import Extracted
    from models.base import Classifier, Examples, NotFiniteError
    from models.checkpoint import Checkpoint, CheckpointError, ContractMismatchError
    from stages.project import Project
    from stages.scoring import Scores
    from stages.status import StageError
    from stages.workspace import SettingsError

    __version__: str
else:
    _ERRORS = {
        "ChampionError": "champion.history",
        "CheckpointError": "models.checkpoint",
        "ContractMismatchError": "models.checkpoint",
        "EpisodeError": "episodes.validation",
        "MachineError": "episodes.environment",
        "NotFiniteError": "models.base",
        "PhasewatchError": "config.errors",
        "SettingsError": "stages.workspace",
        "StageError": "stages.status",
        "StoreError": "episodes.store",
    }

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("phasewatch")
        if name in _ERRORS:
            from importlib import import_module

            return getattr(import_module(_ERRORS[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_ERRORS, "__version__"})


__all__ = [
    "ChampionError",
    "CheckpointError",
    "ContractMismatchError",
    "EpisodeError",
    "MachineError",
    "NotFiniteError",
    "PhasewatchError",
    "SettingsError",
    "StageError",
    "StoreError",
    "explain",
    "extract",
    "find_misclassified",
    "load_checkpoint",
    "open_project",
    "open_windows",
    "predict",
    "read_episode",
    "read_report",
    "train",
]


def open_project(
    config: str | Path | None = None,
    store: str | Path | None = None,
    artifacts: str | Path | None = None,
) -> Project:
    """A store and an artifacts folder under some settings; the other functions take it.

    Args:
        config: run configuration (YAML); default: PHASEWATCH_CONFIG, or the defaults.
        store: episode store; default: PHASEWATCH_STORE, or what the configuration says.
        artifacts: folder, which need not exist yet; default: PHASEWATCH_ARTIFACTS, or what the
            configuration says.

    Raises:
        SettingsError: the configuration cannot be used, or artifacts is not a folder.
        StoreError: ``store`` was given and is not an episode store. If it was not given, the store
            may be absent until it is listed: an episode may be given by its path.
    """
    import os

    from episodes.store import check_store
    from stages.project import Project
    from stages.workspace import check_artifacts, workspace_from_environment

    given = {"config": config, "store": store, "artifacts": artifacts}
    chosen = {f"PHASEWATCH_{n.upper()}": os.fspath(p) for n, p in given.items() if p is not None}
    workspace = workspace_from_environment(os.environ | chosen)
    if "store" in workspace.model_fields_set:
        check_store(workspace.store_path)
    check_artifacts(workspace)
    return Project(workspace)


def read_episode(project: Project, episode: str | Path) -> ValidatedEpisode:
    """One episode, usable or not: labels, events, the rows of every source, and its verdict.

    Args:
        episode: an id in the project's store, or the path of a ``.tar.zst``.

    Returns:
        The episode; ``record`` has its ``verdict``, ``reasons`` and ``details``, by the project's
        validation policy.

    Raises:
        StoreError: the store has no such episode.
        OSError: there is no such file.
        EpisodeError: the archive cannot be read; the message has the reasons.
        MachineError: reading failed for a reason outside the episode, such as a disk error.
        TypeError: it is something else.
    """
    from episodes.format import ARCHIVE_SUFFIX
    from episodes.store import find_archive
    from episodes.validation import read_validated

    _check_type("episode", episode, (str, Path), "an id or the path of a .tar.zst")
    if str(episode).endswith(ARCHIVE_SUFFIX):
        stored = find_archive(Path(episode))
    else:
        stored = project.listing.find(str(episode))
    workspace = project.workspace
    return read_validated(stored, workspace.validation, workspace.layout.fields)


def extract(
    project: Project, episode: ValidatedEpisode | str | Path, *, anyway: bool = False
) -> Extracted:
    """The 10 Hz series, windows and features of an episode.

    Args:
        episode: what ``read_episode`` returned, or what it takes: an id or the path of an archive.
        anyway: continue if the episode is rejected or errored.

    Returns:
        ``series (n_bins, n_channels)``, ``windows``, ``features (n_windows, n_features)``.

    Raises:
        EpisodeError: the episode is rejected or errored, or has no usable clock; the message has
            the reasons.
        StoreError, OSError, MachineError, TypeError: see ``read_episode``.
    """
    from episodes.validation import ValidatedEpisode, check_usable
    from stages.validating import extract_validated

    if not isinstance(episode, ValidatedEpisode):
        episode = read_episode(project, episode)
    check_usable(episode.record, anyway=anyway)
    return extract_validated(episode, project.workspace.layout)


def open_windows(
    project: Project, recipe: str, model: str, mode: str = "realistic", split: str = "train"
) -> Examples:
    """The windows of one split as a model's inputs: lazy views, ``X[:]`` reads them all.

    Returns:
        ``X (n_windows, n_inputs)``, or for nets on windows ``(n_windows, n_timepoints, n_inputs)``,
        NaN = missing; ``y (n_windows,)``, positions in ``project.workspace.layout.phases``;
        ``episode (n_windows,)``, positions in ``episode_ids (n_episodes,)``, which are sorted
        strings.

    Raises:
        StageError: there is no such recipe; or the dataset is missing, or was made from other
            shards than those on disk: the message names the command that makes it.
        ValueError: there is no such model, mode or split.
    """
    from models.registry import find_variant
    from stages import datasets

    return datasets.open_windows(project, recipe, find_variant(model, mode), split)


def train(project: Project, recipe: str, model: str, mode: str = "realistic") -> Classifier:
    """Train a model on a recipe's training split with the project's settings. Nothing is saved.

    Raises:
        StageError: see ``open_windows``.
        ValueError: there is no such model or mode.
        RuntimeError: the loss is not finite, or device cuda is not available.
    """
    from models.registry import find_variant
    from stages.checkpoints import fit

    return fit(project, find_variant(model, mode), recipe).model


def load_checkpoint(
    project: Project, recipe: str, model: str, mode: str = "realistic"
) -> Checkpoint:
    """A trained checkpoint, if it was trained for the current input layout.

    Raises:
        ContractMismatchError: lists every difference of the layouts.
        CheckpointError: the checkpoint is missing or damaged, or a library is not installed.
        StageError: there is no such recipe.
        ValueError: there is no such model or mode.
    """
    from models.registry import find_variant

    return project.checkpoint(find_variant(model, mode), recipe)


def predict(
    project: Project,
    checkpoint: Checkpoint,
    episode: ValidatedEpisode | str | Path,
    *,
    anyway: bool = False,
) -> Scores:
    """What a checkpoint, its alarm rule and its likeness say about an episode's windows.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        episode: see ``extract``.
        anyway: continue if the episode is rejected or errored.

    Returns:
        ``proba (n_windows, n_classes)``, the model's probabilities in class order; ``phase``,
        ``filtered``, ``alarm`` and ``unlike`` of each window; ``first_alarm_s``; ``table()`` with
        all of it. Where the checkpoint has no alarm rule, ``filtered`` and ``alarm`` are None, and
        without a likeness ``unlike`` is.

    Raises:
        EpisodeError, StoreError, OSError, MachineError, TypeError: see ``extract``.
        NotFiniteError: the model gave a probability that is not a number.
        StageError, ChampionError: rule or likeness was changed after it was written.
    """
    _check_checkpoint(checkpoint)
    from stages.scoring import Scorer

    return Scorer(project, checkpoint).scores(extract(project, episode, anyway=anyway))


def explain(
    project: Project,
    checkpoint: Checkpoint,
    episode: ValidatedEpisode | str | Path,
    *,
    anyway: bool = False,
) -> pl.DataFrame:
    """Which channels argue for the phase that a checkpoint gives each window of an episode.

    Exact for ``gbt``: with a constant, the contributions add up to the margin of the phase. For the
    others how far the logarithm of its probability falls when the channel's inputs, absolute and
    relative, are typical of training: their median for ``mlp``, else their mean as scaled.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        episode: see ``extract``.
        anyway: continue if the episode is rejected or errored.

    Returns:
        ``window, start_s, phase, channel, contribution``: of every window each channel that the
        model may see, those that argue most for its phase first. Below 0 a channel argues against
        it.

    Raises:
        EpisodeError, StoreError, OSError, MachineError, TypeError: see ``extract``.
        NotFiniteError: see ``predict``.
    """
    _check_checkpoint(checkpoint)
    from stages.scoring import score_episode

    extracted = extract(project, episode, anyway=anyway)
    layout = project.workspace.layout
    return score_episode(checkpoint, None, None, extracted, layout, explain=True).contributions()


def read_report(project: Project, recipe: str, model: str, mode: str = "realistic") -> EvalReport:
    """The evaluation report on a checkpoint.

    Raises:
        StageError: there is no such recipe; or the report is missing, in an older form, or on
            another checkpoint or dataset: the message names the command that makes it.
        ValueError: there is no such model or mode.
    """
    from models.registry import find_variant
    from stages import evaluation

    variant = find_variant(model, mode)
    return evaluation.read_report(project.usable(f"eval_reports/{variant.name}", recipe))


def find_misclassified(
    project: Project, recipe: str, model: str, mode: str = "realistic", split: str = "test"
) -> pl.DataFrame:
    """The windows that a model got wrong, the most confident errors first.

    Returns:
        ``episode_id, host_id, profile, window, start_s, actual, predicted, probability`` (of the
        predicted phase).

    Raises:
        StageError: there is no such recipe; or the held-out predictions are missing, or of other
            checkpoints: the message names the command that makes them.
        ValueError: there is no such model, mode or split (val or test).
    """
    from evaluation.scores import misclassified
    from models.registry import find_variant
    from stages.held_out_predictions import read_predictions

    variant = find_variant(model, mode)
    predictions = read_predictions(project.usable("held_out_predictions", recipe))
    phases = project.workspace.layout.phases
    return misclassified(predictions, variant.model, variant.mode, phases, split)


def _check_checkpoint(value: object) -> None:
    from models.checkpoint import Checkpoint

    _check_type("checkpoint", value, (Checkpoint,), "what load_checkpoint returns")


def _check_type(name: str, value: object, kinds: tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}")
