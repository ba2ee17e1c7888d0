"""A bundle is its checkpoint, or it is refused."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lab import RECIPE, Lab, checkpoint_of, put_in_use

from features.registry import LAYOUT, Layout, WindowSpec
from live.bundle import (
    HEAD_FILE,
    Bundle,
    BundleContractError,
    BundleError,
    NotABundleError,
    bundle_id,
    load_bundle,
)
from live.cli import FAILED, MISMATCH, OK, USAGE, main
from live.runtime import NeighbourRuntime, OnnxRuntime, TreeRuntime
from models.registry import MODELS
from stages import device_bundle
from stages.device_bundle import (
    OracleError,
    bundle_files,
    check_parity,
    measure_parity,
    write_bundle,
)
from stages.scoring import Scorer


@pytest.mark.parametrize("model", MODELS)
def test_a_bundle_gives_the_probabilities_of_its_checkpoint(
    trained: Lab, bundled: Any, model: str
) -> None:
    bundle, checkpoint = load_bundle(bundled(model)), checkpoint_of(trained, model)
    found = check_parity(trained.project, bundle, checkpoint)[RECIPE]
    assert found.n_windows > 20
    assert found.proba <= 1e-5
    assert found.holds
    assert (found.margin is not None) == (model == "gbt")
    assert found.margin in (None, 0.0)
    assert bundle.head["checkpoint_id"] == checkpoint.artifact_id
    [metric] = bundle.head["metrics"]
    assert metric["low"] <= metric["value"] <= metric["high"]


# --- mutants: each is wrong in one way that an exporter or a hand may get wrong


def _another_reset(bundle: Bundle, folder: Path) -> Bundle:
    """The gate that resets before the product, not after: the known fault of an exporter."""
    graph = onnx.load(folder / bundle.head["runtime"]["file"])
    flags = [a for n in graph.graph.node for a in n.attribute if a.name == "linear_before_reset"]
    assert flags
    for flag in flags:
        flag.i = 0
    return replace(bundle, runtime=OnnxRuntime(graph.SerializeToString(), bundle.head["scaling"]))


def _another_base(bundle: Bundle, _: Path) -> Bundle:
    trees = bundle.runtime.trees  # type: ignore[attr-defined]
    base = trees.base.copy()
    base[0] += 0.1
    return replace(bundle, runtime=TreeRuntime(replace(trees, base=base)))


def _unscaled(bundle: Bundle, folder: Path) -> Bundle:
    runtime, scaling = bundle.runtime, bundle.head["scaling"]
    none = scaling | {"mean": [0.0] * len(scaling["mean"]), "std": [1.0] * len(scaling["std"])}
    if isinstance(runtime, NeighbourRuntime):
        return replace(bundle, runtime=replace(runtime, scaling=none))
    graph = (folder / bundle.head["runtime"]["file"]).read_bytes()
    return replace(bundle, runtime=OnnxRuntime(graph, none))


class _Swapped:
    """Two channels change places before the model."""

    def __init__(self, bundle: Bundle):
        self._runtime = bundle.runtime
        channel = bundle.channel
        used = np.arange(len(channel))
        if isinstance(bundle.runtime, TreeRuntime):  # small trees do not see every channel
            used = np.unique(bundle.runtime.trees.feature)
        sizes = np.bincount(channel)
        first = channel[used[0]]
        second = next(c for c in channel[used] if c != first and sizes[c] == sizes[first])
        a, b = np.flatnonzero(channel == first), np.flatnonzero(channel == second)
        self._order = np.arange(len(channel))
        self._order[a], self._order[b] = b, a

    def proba(self, X: np.ndarray) -> np.ndarray:
        return self._runtime.proba(X[..., self._order])


def _swapped(bundle: Bundle, _: Path) -> Bundle:
    return replace(bundle, runtime=_Swapped(bundle))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "mutate"),
    [
        ("gru", _another_reset), ("gbt", _another_base), ("gru", _unscaled), ("knn", _unscaled),
        ("cnn", _unscaled), ("gbt", _swapped), ("gru", _swapped), ("mlp", _swapped),
    ],
)  # fmt: skip
def test_a_mutant_is_refused(trained: Lab, bundled: Any, model: str, mutate: Any) -> None:
    folder = bundled(model)
    mutant = mutate(load_bundle(folder), folder)
    found = check_parity(trained.project, mutant, checkpoint_of(trained, model))
    assert not found[RECIPE].holds


def test_a_probability_that_is_not_a_number_is_no_parity(trained: Lab, bundled: Any) -> None:
    class Absent:
        def proba(self, X: np.ndarray) -> np.ndarray:
            return np.full((len(X), 5), np.nan, dtype=np.float32)

    bundle = replace(load_bundle(bundled("knn")), runtime=Absent())  # type: ignore[arg-type]
    model = checkpoint_of(trained, "knn").model
    n = model.n_inputs_ or 0
    assert not measure_parity(bundle, model, np.zeros((3, n), dtype=np.float32)).holds


# --- what does not load


@pytest.fixture
def copy(bundled: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled("gbt"), tmp_path / "bundle"))


def edited(folder: Path, **changes: Any) -> None:
    """Change a head and give it the id that fits."""
    path = folder / HEAD_FILE
    head = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(head | {"id": bundle_id(head)}))


@pytest.mark.parametrize("kind", ["bundle", "model", "golden", "expected", "likeness"])
def test_a_flipped_bit_is_refused(copy: Path, kind: str) -> None:
    [path] = copy.glob(f"{kind}.*")
    content = bytearray(path.read_bytes())
    for at in (len(content) // 3, len(content) // 2, len(content) - 2):
        content[at] ^= 4
        path.write_bytes(content)
        with pytest.raises(BundleError):
            load_bundle(copy)
        assert main(["check", str(copy)]) in (FAILED, USAGE)
        content[at] ^= 4


def test_a_file_that_is_gone_or_leads_elsewhere_is_refused(copy: Path) -> None:
    [path] = copy.glob("model.*")
    moved = path.rename(copy.parent / path.name)
    assert main(["check", str(copy)]) == FAILED
    path.symlink_to(moved)
    assert main(["check", str(copy)]) == FAILED
    path.unlink()
    moved.rename(path)
    head = json.loads((copy / HEAD_FILE).read_bytes())
    escaping = {f"../{name}": about for name, about in head["files"].items()}
    edited(copy, files=escaping)
    with pytest.raises(BundleError):
        load_bundle(copy)


def test_another_layout_is_refused_with_the_differences(copy: Path) -> None:
    channels = LAYOUT.channels[:-1]
    for layout, word in (
        (replace(LAYOUT, channels=channels), "netflow.new_flows"),
        (Layout(window=WindowSpec(horizon_windows=13)), "horizon_windows"),
    ):
        with pytest.raises(BundleContractError) as refusal:
            load_bundle(copy, layout)
        assert any(word in line for line in refusal.value.differences)
    head = json.loads((copy / HEAD_FILE).read_bytes())
    head["contract"]["window"]["value"]["stride_ms"] = 4000
    edited(copy, contract=head["contract"])
    assert main(["check", str(copy)]) == MISMATCH


def test_golden_rows_that_come_out_otherwise_are_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("live.stream.summarise", lambda *a: np.nan_to_num(_summarised(*a)) * 1.001)
    with pytest.raises(BundleError, match="golden"):
        load_bundle(copy)


def _summarised(*arguments: Any) -> np.ndarray:
    from features.summary import summarise

    return summarise(*arguments)


def test_a_bundle_that_has_the_time_it_was_made_loads(copy: Path) -> None:
    """Earlier ones have it."""
    edited(copy, made_at=1.5)
    assert load_bundle(copy).head["made_at"] == 1.5


@pytest.mark.parametrize("changes", [{"mode": "oracle"}, {"format": "other/1"}, {"more": 1}])
def test_a_foreign_bundle_is_refused(copy: Path, changes: dict[str, Any]) -> None:
    edited(copy, **changes)
    with pytest.raises(NotABundleError):
        load_bundle(copy)
    assert main(["check", str(copy)]) == USAGE


def test_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == USAGE
    assert capsys.readouterr().err.startswith(f"{tmp_path}: ")  # as of every other command
    (tmp_path / HEAD_FILE).write_text("[" * 10_000)
    assert main(["check", str(tmp_path)]) == FAILED


def test_a_sound_bundle_is_shown(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(copy)]) == OK
    assert json.loads((copy / HEAD_FILE).read_bytes())["id"] in capsys.readouterr().out


@pytest.mark.parametrize("model", ["cnn", "gbt", "knn"])
def test_a_bundle_made_again_is_equal(trained: Lab, bundled: Any, model: str) -> None:
    """But for the path of the store: another process may have made the first, of its own lab."""

    def comparable(files: dict[str, bytes]) -> dict[str, Any]:
        head = json.loads(files[HEAD_FILE])
        return files | {HEAD_FILE: head | {"id": None, "data": head["data"] | {"store": None}}}

    first = {path.name: path.read_bytes() for path in bundled(model).iterdir()}
    again = bundle_files(Scorer(trained.project, checkpoint_of(trained, model)))
    assert comparable(first) == comparable(again)
    assert again == bundle_files(Scorer(trained.project, checkpoint_of(trained, model)))


def test_two_bundles_that_are_written_at_once_leave_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begun, second_done = device_bundle.write_atomically, threading.Event(), threading.Event()

    def slow(path: Path, content: bytes) -> None:
        if content == b"first" and path.name == HEAD_FILE:
            begun.set()
            second_done.wait(0.5)
        write(path, content)

    def files(name: str) -> dict[str, bytes]:
        return {HEAD_FILE: name.encode(), f"model.{name}.npz": name.encode()}

    monkeypatch.setattr(device_bundle, "write_atomically", slow)
    first = threading.Thread(target=write_bundle, args=(tmp_path, files("first")))
    first.start()
    assert begun.wait(60)
    write_bundle(tmp_path, files("second"))
    second_done.set()
    first.join(60)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files("second")


def test_an_oracle_is_refused(trained: Lab) -> None:
    with pytest.raises(OracleError):
        bundle_files(Scorer(trained.project, checkpoint_of(trained, "knn", "oracle")))


# --- the asset


def test_dagster_makes_the_champions_bundle_and_checks_it(retrained: Lab) -> None:
    result = retrained.execute("bundle", None)  # type: ignore[arg-type]
    assert not result.success  # there is no champion
    put_in_use(retrained, "gbt")
    result = retrained.execute("bundle", None)  # type: ignore[arg-type]
    assert result.success
    [check] = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == ("bundle_equals_checkpoint", True)
    folder = retrained.workspace.artifacts_path / "device_bundle"
    bundle = load_bundle(folder)
    assert retrained.recorded("device_bundle")["bundle_id"] == bundle.id
    status = retrained.project.status(retrained.project.stages["device_bundle"], "")
    assert status.code == "current"
    put_in_use(retrained, "knn")
    status = retrained.project.status(retrained.project.stages["device_bundle"], "")
    assert status.code == "inputs"
    assert load_bundle(folder).id == bundle.id  # until it is made again
