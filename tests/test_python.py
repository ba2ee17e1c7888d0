"""The Python way in: every snippet of docs/python.md runs, on a base install too."""

from __future__ import annotations

import builtins
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from builders import StoreBuilder
from lab import RECIPE, Lab

import phasewatch
from datasets.splits import SPLITS
from datasets.windows import read_dataset
from episodes.store import StoreError
from episodes.validation import EpisodeError
from evaluation.documents import EvalReport
from models.checkpoint import CheckpointError
from stages.project import Project
from stages.status import StageError
from stages.workspace import SettingsError

ROOT = Path(__file__).parent.parent
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)

BASE_INSTALL = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name in ("dagster", "torch", "xgboost", "sklearn", "matplotlib", "jinja2"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, NotInstalled())
"""


def environment(lab: Lab, folder: Path) -> dict[str, str]:
    """What names the lab: with other settings, ``make`` would rebuild what is shared."""
    config = folder / "lab.yaml"
    config.write_text(yaml.safe_dump({"resources": {"workspace": {"config": lab.settings}}}))
    return {
        "PHASEWATCH_CONFIG": str(config),
        "PHASEWATCH_STORE": str(lab.store.root),
        "PHASEWATCH_ARTIFACTS": str(lab.artifacts),
    }


def test_every_snippet_of_the_docs_runs(
    trained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(trained, tmp_path).items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    for snippet in SNIPPETS:
        exec(snippet, names)
    assert isinstance(names["report"], EvalReport)
    assert names["made"].reused
    assert (names["reasons"]["contribution"] != 0).any()
    assert len(SNIPPETS) >= 8
    called = set(re.findall(r"phasewatch\.(\w+)\(", "".join(SNIPPETS)))
    assert called == {name for name in phasewatch.__all__ if not name.endswith("Error")}


def test_snippets_run_without_training_libraries_and_dagster(trained: Lab, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BASE_INSTALL + "\n".join(SNIPPETS).replace('"gbt"', '"knn"')],
        cwd=ROOT,
        env=environment(trained, tmp_path) | {"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_door_loads_nothing_heavy() -> None:
    program = textwrap.dedent(
        """
        import sys, phasewatch
        heavy = {"numpy", "polars", "pydantic", "dagster", "stages", "episodes"}
        print(*(heavy & sys.modules.keys()), *(set(phasewatch.__all__) - set(dir(phasewatch))))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_the_version_is_the_installed_one() -> None:
    assert phasewatch.__version__ == version("phasewatch")
    assert not hasattr(phasewatch, "__versoin__")


def test_errors_can_be_caught_by_name(trained: Lab) -> None:
    with pytest.raises(phasewatch.StoreError):
        phasewatch.read_episode(trained.project, "01M7ZVV20HFQWZ385HM9KXP5BJ")
    errors = {name for name in phasewatch.__all__ if name.endswith("Error")}
    assert all(issubclass(getattr(phasewatch, name), Exception) for name in errors)
    raised = set(re.findall(r"\w+Error\b", (ROOT / "phasewatch" / "__init__.py").read_text()))
    assert raised - set(dir(builtins)) == errors


HASHED = {"AlignmentError"}
"""Another base would change the code that bundles and shards were made with: see ``features.code``.
``extract_validated`` makes an ``EpisodeError`` of it."""


def test_every_error_of_the_product_is_a_phasewatch_error() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    packages = tools["importlinter"]["root_packages"]
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages([str(ROOT)], onerror=lambda _: None)
        if module.name.partition(".")[0] in packages
    ]
    errors = {
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Exception)
        if each.__module__ == module.__name__ and not each.__name__.startswith("_")
    }
    assert len(errors) > 20
    others = {each.__name__ for each in errors if not issubclass(each, phasewatch.PhasewatchError)}
    assert others == HASHED


def test_an_episode_without_a_usable_clock_is_an_episode_error(
    trained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.alignment.MAX_SPAN_S", 1)
    episode_id = trained.project.listing.episodes[0].episode_id
    with pytest.raises(phasewatch.EpisodeError, match="check the host's clock") as refused:
        phasewatch.extract(trained.project, episode_id)
    assert refused.value.record.reasons == ("schema",)


def test_a_model_that_gives_no_numbers_and_a_machine_that_fails_have_errors(
    trained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, episode_id = trained.project, trained.store.added[0].episode_id
    checkpoint = phasewatch.load_checkpoint(project, RECIPE, "knn")

    def not_finite(X: Any) -> Any:
        return np.full((len(X), len(project.workspace.layout.phases)), np.nan, dtype=np.float32)

    monkeypatch.setattr(checkpoint.model, "_predict_proba", not_finite)
    for call in (phasewatch.predict, phasewatch.explain):
        with pytest.raises(phasewatch.NotFiniteError):
            call(project, checkpoint, episode_id)

    def fails(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("episodes.validation._validate", fails)
    monkeypatch.setattr("episodes.environment.PAUSES_S", (0,))
    with pytest.raises(phasewatch.MachineError):
        phasewatch.read_episode(project, episode_id)


def test_what_a_notebook_shows_is_short(trained: Lab) -> None:
    project = trained.project
    episode = phasewatch.read_episode(project, trained.store.added[0].episode_id)
    checkpoint = phasewatch.load_checkpoint(project, RECIPE, "knn")
    made = project.make("datasets", RECIPE)
    assert max(len(repr(each)) for each in (project, episode, checkpoint, made)) < 300


def test_the_episode_of_each_window_has_an_id(trained: Lab) -> None:
    (dataset,) = trained.project.artifacts("datasets", RECIPE).values()
    table = read_dataset(dataset)
    n_inputs = trained.project.workspace.layout.keep_mask("realistic", "summary").sum()
    for split in SPLITS:
        windows = phasewatch.open_windows(trained.project, RECIPE, "knn", split=split)
        assert windows.episode is not None
        assert windows.episode_ids is not None
        assert windows.X.shape == (len(windows.y), n_inputs)
        ids = table.filter(pl.col("split") == split)["episode_id"].to_list()
        assert windows.episode_ids[windows.episode].tolist() == ids
        assert windows.episode_ids.tolist() == sorted(set(ids))


def test_misclassified_windows_are_those_that_the_report_counts_as_wrong(trained: Lab) -> None:
    report = phasewatch.read_report(trained.project, RECIPE, "gbt", "oracle")
    errors = phasewatch.find_misclassified(trained.project, RECIPE, "gbt", "oracle")
    counts = np.array(report.confusion.counts)
    assert len(errors) == counts.sum() - np.trace(counts)
    assert (errors["actual"] != errors["predicted"]).all()
    assert errors["probability"].to_list() == sorted(errors["probability"], reverse=True)


def test_predictions_are_those_of_the_checkpoint(trained: Lab) -> None:
    project = trained.project
    episode_id = project.listing.episodes[0].episode_id
    episode = phasewatch.read_episode(project, episode_id)
    checkpoint = phasewatch.load_checkpoint(project, RECIPE, "gbt")
    scores = phasewatch.predict(project, checkpoint, episode)
    assert scores.proba.shape == (7, len(project.workspace.layout.phases))
    by_path = phasewatch.read_episode(project, trained.store.added[0].path)
    assert by_path.episode_id == trained.store.added[0].episode_id


def test_an_episode_may_be_given_as_read_by_id_or_by_path(trained: Lab) -> None:
    project = trained.project
    stored = project.listing.episodes[0]
    checkpoint = phasewatch.load_checkpoint(project, RECIPE, "knn")
    given = (phasewatch.read_episode(project, stored.path), stored.episode_id, str(stored.path))
    for call in (
        lambda episode: phasewatch.extract(project, episode).features,
        lambda episode: phasewatch.predict(project, checkpoint, episode).proba,
        lambda episode: phasewatch.explain(project, checkpoint, episode)["contribution"],
    ):
        first, *others = map(call, (*given, stored.path))
        assert all(np.array_equal(first, other, equal_nan=True) for other in others)


def test_an_artifacts_folder_that_is_not_there_yet_is_fine(trained: Lab, tmp_path: Path) -> None:
    artifacts = tmp_path / "made" / "later"
    project = phasewatch.open_project(store=trained.store.root, artifacts=artifacts)
    assert project.workspace.artifacts_path == artifacts
    assert not artifacts.exists()


def test_a_store_that_nobody_named_may_be_absent(
    trained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive and a checkpoint need none."""
    monkeypatch.setattr("stages.workspace.base_folder", lambda: tmp_path)
    project = phasewatch.open_project(artifacts=trained.artifacts)
    checkpoint = phasewatch.load_checkpoint(project, RECIPE, "knn")
    path = trained.project.listing.episodes[0].path
    assert len(phasewatch.predict(project, checkpoint, path).proba)
    with pytest.raises(StoreError):
        _ = project.listing


def test_a_rejected_episode_is_refused_unless_asked_for(trained: Lab, tmp_path: Path) -> None:
    shutil.copytree(trained.store.root, tmp_path / "store")
    store = StoreBuilder.reopen(tmp_path / "store")
    short = store.add(host="lab-a", profile="io-walk", duration_s=12).episode_id
    project = phasewatch.open_project(store=store.root, artifacts=trained.artifacts)
    episode = phasewatch.read_episode(project, short)
    assert (episode.record.verdict, episode.record.reasons) == ("rejected", ("too_short",))
    checkpoint = phasewatch.load_checkpoint(project, RECIPE, "knn")
    for call in (
        lambda **words: phasewatch.extract(project, episode, **words).features,
        lambda **words: phasewatch.predict(project, checkpoint, episode, **words),
    ):
        with pytest.raises(EpisodeError, match=rf"{short} lab-a rejected: .*\[too_short\]") as told:
            call()
        assert "anyway=True" in str(told.value)
        assert len(call(anyway=True)) > 0
    path = project.listing.find(short).path
    path.write_bytes(b"?" * path.stat().st_size)
    with pytest.raises(EpisodeError, match="broken_archive"):
        phasewatch.read_episode(project, path)


def test_a_trained_model_is_the_one_that_a_run_saves(trained: Lab) -> None:
    model = phasewatch.train(trained.project, RECIPE, "knn")
    windows = phasewatch.open_windows(trained.project, RECIPE, "knn", split="test")
    saved = phasewatch.load_checkpoint(trained.project, RECIPE, "knn").model
    assert np.array_equal(model.predict_proba(windows.X), saved.predict_proba(windows.X))


WRONG: dict[str, tuple[Callable[[Project], Any], type[Exception], str]] = {
    # call, error, what it says
    "episode": (lambda p: phasewatch.read_episode(p, "nowhere"), StoreError, "nowhere"),
    "file": (lambda p: phasewatch.read_episode(p, "/no/e.tar.zst"), OSError, "/no/e.tar.zst"),
    "recipe": (
        lambda p: phasewatch.open_windows(p, "moon", "knn"), StageError,
        "recipe must be one of host, sample, time, session, got 'moon'",
    ),
    "recipe of a training": (
        lambda p: phasewatch.train(p, "moon", "knn"), StageError, "recipe must be one of",
    ),
    "recipe of a report": (
        lambda p: phasewatch.read_report(p, "moon", "knn"), StageError, "recipe must be one of",
    ),
    "split": (
        lambda p: phasewatch.open_windows(p, RECIPE, "knn", split="tset"), ValueError,
        "split must be one of train, val, test, got 'tset'",
    ),
    "split not held out": (
        lambda p: phasewatch.find_misclassified(p, RECIPE, "knn", split="train"), ValueError,
        "split must be one of test, val, got 'train'",
    ),
    "model": (lambda p: phasewatch.read_report(p, RECIPE, "nope"), ValueError, "'nope'"),
    "variant": (
        lambda p: phasewatch.load_checkpoint(p, RECIPE, "knn_oracle"), ValueError,
        "give the model 'knn' and the mode 'oracle'",
    ),
    "mode": (lambda p: phasewatch.find_misclassified(p, RECIPE, "knn", "x"), ValueError, "'x'"),
    "not made": (
        lambda p: phasewatch.open_windows(p, "host", "knn"), StageError,
        "datasets host: missing\nRun: phasewatch run --recipe host",
    ),
    "not trained": (
        lambda p: phasewatch.load_checkpoint(p, "host", "knn"),
        CheckpointError,
        "train it with phasewatch run",
    ),
    "recipe of a checkpoint": (
        lambda p: phasewatch.load_checkpoint(p, "sampl", "knn"), StageError,
        "recipe must be one of host, sample, time, session, got 'sampl'; did you mean sample?",
    ),
    "recipe of errors": (
        lambda p: phasewatch.find_misclassified(p, "sampl", "knn"), StageError,
        "did you mean sample?",
    ),
    "recipe to make": (
        lambda p: p.make("datasets", "sampl"), StageError, "did you mean sample?",
    ),
    "stage to make": (
        lambda p: p.make("dataset", "sample"), StageError, "did you mean datasets?",
    ),
    "what is no path": (lambda _: phasewatch.open_project(artifacts=42), TypeError, "not int"),
    "job": (lambda p: p.due("retrian"), ValueError, "did you mean retrain?"),
    "what is no episode": (
        lambda p: phasewatch.read_episode(p, p.listing.episodes[0]), TypeError,
        "episode must be an id or the path of a .tar.zst, got StoredEpisode",
    ),
    "what is no episode either": (
        lambda p: phasewatch.extract(p, 7), TypeError, "got int",
    ),
    "what is no checkpoint": (
        lambda p: phasewatch.predict(p, "a.ckpt.json", "x"), TypeError,
        "checkpoint must be what load_checkpoint returns, got str",
    ),
    "what is no checkpoint to explain": (
        lambda p: phasewatch.explain(p, None, "x"), TypeError, "got NoneType",
    ),
    "artifacts": (
        lambda _: phasewatch.open_project(artifacts=__file__), SettingsError,
        f"{__file__}: artifacts must be a folder",
    ),
    "artifacts in a file": (
        lambda _: phasewatch.open_project(artifacts=f"{__file__}/a/b"), SettingsError,
        f"{__file__}/a/b: artifacts must be a folder, but {__file__} is a file",
    ),
    "configuration": (lambda _: phasewatch.open_project("no.yaml"), SettingsError, "no.yaml"),
    "store": (lambda _: phasewatch.open_project(store="/no"), StoreError, "/no: "),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_an_error_says_what_is_wrong(name: str, trained: Lab) -> None:
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=re.escape(message)):
        call(trained.project)


def test_windows_of_shards_that_changed_are_refused(retrained: Lab) -> None:
    """The dataset's rows would point at other windows."""
    shard = next(retrained.artifacts.glob("batches/*/tensor_shards/*.npy"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StageError, match="was changed after it was written"):
        phasewatch.open_windows(retrained.project, RECIPE, "cnn")
    shard.write_bytes(content)
    phasewatch.open_windows(retrained.project, RECIPE, "cnn")

    late = retrained.store.add(host="lab-a", profile="io-walk", sample="io-walk.v0", duration_s=40)
    batch = retrained.project.listing.find(late.episode_id).batch
    assert retrained.ingest() == [batch]
    for call in (phasewatch.open_windows, phasewatch.train):
        with pytest.raises(StageError, match=f"datasets {RECIPE}: these inputs .* made: {batch}"):
            call(retrained.project, RECIPE, "knn")
