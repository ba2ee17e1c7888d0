"""The Python way in: every snippet of docs/python.md runs, on a base install too."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from lab import RECIPE, Lab

import phasewatch
from evaluation.documents import EvalReport

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


def paths(lab: Lab) -> dict[str, str]:
    return {"PHASEWATCH_STORE": str(lab.store.root), "PHASEWATCH_ARTIFACTS": str(lab.artifacts)}


def test_every_snippet_of_the_docs_runs(trained: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in paths(trained).items():
        monkeypatch.setenv(name, value)
    names: dict[str, object] = {}
    for snippet in SNIPPETS:
        exec(snippet, names)
    assert isinstance(names["report"], EvalReport)
    assert len(SNIPPETS) >= 7


def test_snippets_run_without_training_libraries_and_dagster(trained: Lab) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BASE_INSTALL + "\n".join(SNIPPETS)],
        cwd=ROOT,
        env=paths(trained) | {"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_door_loads_nothing_heavy() -> None:
    program = textwrap.dedent(
        """
        import sys, phasewatch
        print(*(n for n in ("numpy", "polars", "pydantic", "stages") if n in sys.modules))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


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
    proba = phasewatch.predict(project, checkpoint, episode)
    assert proba.shape == (7, len(project.workspace.layout.phases))
    by_path = phasewatch.read_episode(project, trained.store.added[0].path)
    assert by_path.episode_id == trained.store.added[0].episode_id


def test_a_trained_model_is_the_one_that_a_run_saves(trained: Lab) -> None:
    model = phasewatch.train(trained.project, RECIPE, "knn")
    windows = phasewatch.open_windows(trained.project, RECIPE, "knn", split="test")
    saved = phasewatch.load_checkpoint(trained.project, RECIPE, "knn").model
    assert np.array_equal(model.predict_proba(windows.X), saved.predict_proba(windows.X))
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'tset'"):
        phasewatch.open_windows(trained.project, RECIPE, "knn", split="tset")
