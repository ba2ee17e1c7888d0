"""Shared fixtures: one small synthetic store and what the graph makes of it, built once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import RECIPE, Lab, build_lab, bundle_of, copy_of, failure, new_instance, once

from evaluation import latency

os.environ["PHASEWATCH_KEYS"] = str(Path(__file__).with_name("no-keys"))  # nobody's own
latency.CALLS, latency.WARM_UP = 5, 1  # a seventh of a retrain would go into measuring


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands start no worker processes: the tests are side by side already."""
    monkeypatch.setattr("stages.workers.cores", lambda: 1)


@pytest.fixture(scope="session")
def ingested_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        with new_instance(root / "home") as instance:
            build_lab(root, instance).ingest()

    return once(tmp_path_factory, "ingested-lab", make)


@pytest.fixture(scope="session")
def trained_lab(tmp_path_factory: pytest.TempPathFactory, ingested_lab: Path) -> Path:
    def make(root: Path) -> None:
        with copy_of(ingested_lab, root) as lab:
            result = lab.execute("retrain", RECIPE)
            assert result.success, failure(result)

    return once(tmp_path_factory, "trained-lab", make)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A fresh lab: nothing is ingested yet."""
    with new_instance(tmp_path / "home") as instance:
        yield build_lab(tmp_path, instance)


@pytest.fixture
def ingested(tmp_path: Path, ingested_lab: Path) -> Iterator[Lab]:
    """A lab of one's own after ``ingest``."""
    with copy_of(ingested_lab, tmp_path / "ingested") as lab:
        yield lab


@pytest.fixture
def retrained(tmp_path: Path, trained_lab: Path) -> Iterator[Lab]:
    """A lab of one's own after ``ingest`` and ``retrain``."""
    with copy_of(trained_lab, tmp_path / "retrained") as lab:
        yield lab


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, trained_lab: Path) -> Iterator[Lab]:
    """A lab after ``ingest`` and ``retrain``. Shared: tests must leave it as it is."""
    with copy_of(trained_lab, tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory, trained: Lab) -> Callable[[str], Path]:
    """Model -> the folder of its device bundle. Shared: tests must leave it as it is."""

    def folder(model: str) -> Path:
        name = f"bundle-{model}"
        return once(tmp_path_factory, name, lambda root: bundle_of(trained, model, root))

    return folder
