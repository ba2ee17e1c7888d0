"""A training that was killed resumes, and ends with the weights of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab import RECIPE, Lab
from trainings import (
    EPOCHS,
    KILLED_AT,
    NETS,
    bookmark_in,
    build,
    fit,
    in_a_process,
    make,
    save_each_epoch,
    windows,
)  # fmt: skip

import models.bookmark
from features.files import write_atomically
from models.base import Classifier
from models.bookmark import Bookmark
from models.registry import find_variant
from stages.checkpoints import training_bookmark
from stages.project import Project
from stages.retention import DAY_S, disk_usage
from stages.workspace import Workspace


@pytest.fixture(autouse=True)
def each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    save_each_epoch(monkeypatch.setattr)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    assert in_a_process(f"killed_trainings(Path({str(folder)!r}))") == 0
    return folder


def result_of(model: Classifier) -> tuple[bytes, Any, Any, Any]:
    history = model.history_
    return model.to_sidecar(), history.epochs, history.best_step, model.standardize_


@pytest.mark.parametrize("name", NETS)
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(
    name: str, killed: Path
) -> None:
    whole, resumed = build(name), build(name)
    assert not any("resumed" in line for line in fit(whole, name, None))
    bookmark = bookmark_in(killed, name)
    saved = bookmark.path.read_bytes()
    said = fit(resumed, name, bookmark)
    assert result_of(resumed) == result_of(whole)
    assert resumed.history_.resumed_from == KILLED_AT - 1
    assert whole.history_.resumed_from == 0
    first = f"resumed from epoch {KILLED_AT - 1}"
    assert said[0] == f"{KILLED_AT - 1}: {first}"
    said = [line for line in said if "trees" not in line]  # which come after the epochs
    assert len(said) == 1 + EPOCHS - (KILLED_AT - 1)
    assert all(first in line for line in said)
    assert saved != bookmark.path.read_bytes()  # it was saved again on the way
    again = build(name)
    fit(again, name, bookmark)
    assert again.history_.resumed_from > KILLED_AT
    assert result_of(again) == result_of(whole)


@pytest.mark.parametrize("others", [{"keep": "last"}, {"patience": 2}])
def test_however_it_is_to_end(others: dict[str, Any], tmp_path: Path) -> None:
    """Killed after every epoch in turn: the best weights and the patience spent are saved too."""
    whole = build("mlp", **others)
    fit(whole, "mlp", None)
    bookmark = bookmark_in(tmp_path, "mlp")

    def stop(step: int, total: int, text: str) -> None:  # noqa: ARG001
        if ", " in text:  # an epoch's end
            trained.append(step)
        if len(trained) == 2:  # the first was saved
            raise KeyboardInterrupt

    rounds = 0
    while rounds < EPOCHS:
        trained: list[int] = []
        part = build("mlp", **others)
        try:
            part.fit(windows("mlp", 90, 0), windows("mlp", 40, 1), stop, bookmark)
            break
        except KeyboardInterrupt:
            rounds += 1
    assert rounds == len(whole.history_.epochs) - 1
    assert result_of(part) == result_of(whole)


def test_what_does_not_fit_in_memory_is_resumed_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.trainer.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("models.trainer._BLOCK", 8)
    monkeypatch.setattr("models.trainer._BUFFER", 2)
    whole, part, resumed = build("cnn"), build("cnn"), build("cnn")
    fit(whole, "cnn", None)
    bookmark = bookmark_in(tmp_path, "cnn")

    def stop(step: int, total: int, text: str) -> None:  # noqa: ARG001
        if step == KILLED_AT:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.fit(windows("cnn", 90, 0), windows("cnn", 40, 1), stop, bookmark)
    fit(resumed, "cnn", bookmark)
    assert resumed.history_.resumed_from == KILLED_AT - 1
    assert result_of(resumed) == result_of(whole)


def test_a_damaged_file_is_never_used(
    killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut and flipped at fifty places, of another training, and no file at all."""
    saved = bookmark_in(killed, "mlp").path.read_bytes()
    bookmark = bookmark_in(tmp_path, "mlp")
    random = np.random.default_rng(3)
    bad = [saved[: random.integers(len(saved))] for _ in range(25)]
    for position in [*random.integers(len(saved), size=25), 0, 30, 100]:
        flipped = bytearray(saved)
        flipped[position] ^= 1 << random.integers(8)
        bad.append(bytes(flipped))
    for content in [*bad, b"", saved + b"\0"]:
        bookmark.path.write_bytes(content)
        caplog.clear()
        assert bookmark.read() is None
        assert len(caplog.records) == 1
        assert str(bookmark.path) in caplog.text
    bookmark.path.write_bytes(saved)
    caplog.clear()
    assert bookmark_in(tmp_path, "mlp", "b" * 64).read() is None
    assert "not of this training" in caplog.text
    bookmark.path.unlink()
    os.mkfifo(bookmark.path)
    assert bookmark.read() is None
    bookmark.path.unlink()
    bookmark.path.symlink_to(bookmark_in(killed, "mlp").path)
    assert bookmark.read() is None


@pytest.mark.parametrize("other", ["width", "foreign", "nonsense"])
def test_what_another_net_saved_changes_nothing(
    other: str, killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where the hash and the key are right."""
    bookmark = bookmark_in(tmp_path, "mlp")
    if other == "width":
        fit(build("mlp", width=12), "mlp", bookmark)
    elif other == "foreign":
        content = bookmark_in(killed, "gru").read()
        assert content is not None
        bookmark.save(lambda: content)
    else:
        bookmark.save(lambda: b"\x08\0\0\0\0\0\0\0{}      nothing")
    whole, model = build("mlp"), build("mlp")
    fit(whole, "mlp", None)
    caplog.clear()
    fit(model, "mlp", bookmark)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert model.history_.resumed_from == 0
    assert result_of(model) == result_of(whole)


def test_a_disk_that_takes_nothing_keeps_no_training_from_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("in the way")
    bookmark = Bookmark(tmp_path / "a file" / "mlp.state", "k")
    whole, model = build("mlp"), build("mlp")
    fit(whole, "mlp", None)
    fit(model, "mlp", bookmark)
    assert result_of(model) == result_of(whole)
    assert len([r for r in caplog.records if "without being saved" in r.message]) == 1


def test_it_is_saved_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    bookmark = bookmark_in(tmp_path, "mlp")
    fit(build("mlp"), "mlp", bookmark)
    assert not bookmark.path.exists()  # it took no twenty seconds
    monkeypatch.setattr(models.bookmark, "EVERY_S", 0.0)
    slow = bookmark_in(tmp_path, "slow")
    assert slow.due

    def write_slowly(path: Path, content: bytes) -> None:
        time.sleep(0.05)
        write_atomically(path, content)

    monkeypatch.setattr(models.bookmark, "write_atomically", write_slowly)
    slow.save(bytes)
    assert not slow.due  # five seconds have to pass: saving takes a hundredth of the time


# --- through the stage


def test_a_killed_stage_goes_on_and_leaves_nothing(ingested: Lab) -> None:
    project = ingested.project
    project.make(project.stages["datasets"], RECIPE)
    gru = ingested.workspace.models.gru  # type: ignore[attr-defined]
    settings = dict(ingested.workspace.model_dump())
    settings["models"]["gru"]["epochs"] = 4
    assert gru.epochs < 4
    stated = json.dumps(settings)
    assert in_a_process(f"make(json.loads({stated!r}), {RECIPE!r}, 3)") == -signal.SIGKILL

    folder = ingested.artifacts / models.bookmark.FOLDER
    (saved,) = folder.iterdir()
    project = Project(Workspace(**settings))
    variant = find_variant("gru", "realistic")
    assert training_bookmark(project, variant, RECIPE).path == saved
    stage = project.stages["checkpoints/gru_realistic"]
    assert project.status(stage, RECIPE).code == "not_made"

    # another seed, setting or library's version is another training
    for change in ({"seed": 9}, {"device": "auto"}):
        other = Project(project.workspace.model_copy(update=change))
        assert training_bookmark(other, variant, RECIPE).path != saved

    resumed = make(settings, RECIPE)
    assert list(folder.iterdir()) == []
    assert resumed.meta["train_meta"]["resumed_from_epoch"] == 2
    assert stage.facts(project, stage.name, resumed)["resumed_from_epoch"] == 2
    sidecar = (resumed.path.parent / resumed.meta["sidecar"]).read_bytes()
    whole = make(settings | {"force": True}, RECIPE)
    assert "resumed_from_epoch" not in whole.meta["train_meta"]
    assert (whole.path.parent / whole.meta["sidecar"]).read_bytes() == sidecar
    assert whole.meta["train_meta"]["history"] == resumed.meta["train_meta"]["history"]


def test_force_resumes_nothing_and_a_change_of_code_neither(
    ingested: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = ingested.project
    project.make(project.stages["datasets"], RECIPE)
    variant = find_variant("mlp", "realistic")
    before = training_bookmark(project, variant, RECIPE)
    monkeypatch.setattr("stages.checkpoints._TRAINING", ("models.cnn",))
    assert training_bookmark(project, variant, RECIPE).key != before.key
    monkeypatch.undo()
    before.path.parent.mkdir()
    before.path.write_bytes(b"damaged")
    forced = Project(ingested.workspace.model_copy(update={"force": True}))
    forced.make(forced.stages["checkpoints/mlp_realistic"], RECIPE)
    assert not before.path.exists()


def test_what_nobody_went_on_with_is_swept_a_day_later(tmp_path: Path) -> None:
    for name, age in (("mlp.host.1.state", DAY_S + 60), ("mlp.time.2.state", DAY_S - 60)):
        path = tmp_path / models.bookmark.FOLDER / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1234")
        os.utime(path, (time.time() - age,) * 2)
    (old,) = disk_usage(tmp_path).unfinished
    assert (old.path.name, old.n_bytes, old.kind) == ("mlp.host.1.state", 4, "unfinished")
