"""Checkpoints looked at: the inventory tells what there is, verification what changed silently."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changes import CHANGES
from tiny import (
    CNN,
    GBT,
    ONE_OF_EACH_KIND,
    each_kind,
    each_model,
    each_variant,
    forge,
    header_of,
    put,
    sidecar_of,
)
from typer.testing import CliRunner

import features.extraction
import features.relative
import models.base
import models.checkpoint
from features import registry
from features.contract import contract_of, golden_digest
from features.golden import read_golden
from features.registry import LAYOUT
from models.checkpoint import CheckpointError, MissingLibraryError, load_checkpoint, read_header
from models.inspection import find_checkpoints, inspect, verify
from models.registry import MODELS, VARIANTS, Variant
from pipelines.cli.app import FAILED, MISMATCH, OK, USAGE, app

BASE_LIBRARIES = {"numpy"}  # of the base install; every other one is in the extra train


def phasewatch(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def drifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LAYOUT", CHANGES["unit"].layout)


# --- golden probabilities


@each_variant
def test_a_header_holds_what_the_model_says_of_the_golden_windows(which: Variant, tmp_path: Path):
    path = put(tmp_path, which)
    golden = header_of(path)["golden"]
    assert golden["sha256"] == golden_digest()
    frozen = read_golden()
    assert frozen is not None
    assert golden["proba"].keys() == frozen.keys()
    loaded = load_checkpoint(path, LAYOUT)
    for episode_id, episode in frozen.items():
        said = np.array(golden["proba"][episode_id])
        scored = loaded.predict_episode(episode.series, episode.features, LAYOUT)
        np.testing.assert_allclose(said, scored, atol=1e-6)
        assert said.shape == (len(episode.labels), len(LAYOUT.phases))


@each_variant
def test_what_was_just_trained_verifies(which: Variant, tmp_path: Path):
    entry = verify(put(tmp_path, which), LAYOUT, [])
    assert (entry.broken, entry.differences) == (None, [])


SILENT: dict[str, tuple[tuple[str, ...], str, Callable[[Callable], Callable]]] = {
    "series scaled": (
        ("summary", "tensor"), "features.extraction.align",
        lambda real: lambda *args: real(*args) * np.float32(1.0001),
    ),
    "statistics shifted": (
        ("summary", "tensor"), "features.extraction.summarise",
        lambda real: lambda *args: real(*args) + np.float32(0.001),
    ),
    "inputs permuted before the model": (
        ("summary", "tensor"), "models.base.Classifier.predict_proba",
        lambda real: lambda self, X: real(self, X[..., ::-1]),
    ),
    "classes permuted behind the model": (
        ("summary", "tensor"), "models.base.Classifier.predict_proba",
        lambda real: lambda self, X: real(self, X)[:, ::-1],
    ),
    "windows cut one bin late": (
        ("tensor",), "features.relative.window_views",
        lambda real: lambda series, window: real(np.roll(series, 1, axis=0), window),
    ),
}  # fmt: skip


@each_kind
@pytest.mark.parametrize("name", SILENT)
def test_code_changed_without_a_word_is_noticed(
    name: str, which: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kinds, where, change = SILENT[name]
    if which.spec.input_kind not in kinds:
        return
    path = put(tmp_path, which)
    module, _, attribute = where.rpartition(".")
    holder = {
        "features.extraction": features.extraction,
        "features.relative": features.relative,
        "models.base.Classifier": models.base.Classifier,
        "models.checkpoint": models.checkpoint,
    }[module]
    monkeypatch.setattr(holder, attribute, change(getattr(holder, attribute)))
    load_checkpoint(path, LAYOUT)  # loading alone cannot tell
    entry = verify(path, LAYOUT)
    assert entry.broken is None
    assert entry.differences


def test_a_difference_names_window_class_and_amount(tmp_path: Path):
    path = put(tmp_path, GBT)
    golden = header_of(path)["golden"]
    episode_id = sorted(golden["proba"])[0]
    was = golden["proba"][episode_id][3][1]
    golden["proba"][episode_id][3][1] = was + 0.25
    forge(path, golden=golden)
    assert verify(path, LAYOUT, ["of the features"]).differences == [
        "of the features",
        f"{episode_id}: window 3: probability of armed was {was + 0.25:.6f}, is {was:.6f} (-0.25)",
    ]


@pytest.mark.parametrize(
    ("golden", "says"),
    [
        ({"sha256": golden_digest(), "proba": {}}, "but one is missing"),
        ({"sha256": golden_digest(), "proba": None}, "no golden probabilities"),
        ({"sha256": "0" * 64, "proba": {}}, "for another golden file"),
        ({"sha256": golden_digest(), "proba": {"01M7ZVNCNV5MT2GQHFWCZKMY7M": [[1.0]]}}, "was (1"),
        ({}, "golden is malformed"),
        ({"sha256": golden_digest(), "proba": [1]}, "golden is malformed"),
        ({"sha256": golden_digest(), "proba": {"a": [[1], [1, 2]]}}, "golden is malformed"),
        ({"sha256": golden_digest(), "proba": {"a": "x"}}, "golden is malformed"),
    ],
)
def test_a_header_without_fitting_golden_probabilities_does_not_verify(
    golden: dict[str, Any], says: str, tmp_path: Path
):
    path = put(tmp_path, GBT)
    forge(path, golden=golden)
    entry = verify(path, LAYOUT, [])
    assert not entry.usable
    assert any(says in line for line in [*entry.differences, str(entry.broken)])


# --- inventory


def test_an_inventory_tells_what_the_headers_say(tmp_path: Path):
    paths = {put(tmp_path / which.name, which): which for which in VARIANTS}
    assert find_checkpoints(tmp_path) == sorted(paths)
    for path, which in paths.items():
        forge(path, train_meta={"recipe": "host", "val_macro_f1": 0.5, "dataset_version": "ab",
                                "code_commit": "3fa1c2e"})  # fmt: skip
        header = header_of(path)
        assert inspect(path, LAYOUT).as_row() == {
            "path": str(path),
            "model": which.model,
            "mode": which.mode,
            "recipe": "host",
            "val_macro_f1": 0.5,
            "dataset_version": "ab",
            "contract_hash": contract_of(LAYOUT, which.spec.input_kind).hash,
            "schema_hash": LAYOUT.schema_hash(which.spec.input_kind),
            "checkpoint_id": header["artifact_id"],
            "bytes": path.stat().st_size + sidecar_of(path).stat().st_size,
            "code_commit": "3fa1c2e",
            "usable": True,
            "broken": None,
            "unverified": None,
            "differences": [],
        }


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "which_file", "says"),
    [
        (_truncate, "sidecar", "not the sidecar saved with this header"),
        (Path.unlink, "sidecar", "is missing; copy both files, or retrain"),
        (_link, "sidecar", "symlinks are not followed"),
        (_flip, "sidecar", "not the sidecar saved with this header"),
        (_flip, "header", ""),
        (_link, "header", "symlinks are not followed"),
        (lambda path: path.write_text("{"), "header", "not a checkpoint header"),
    ],
)
def test_a_broken_checkpoint_is_an_entry_with_its_error(
    damage: Callable[[Path], None], which_file: str, says: str, tmp_path: Path
):
    path = put(tmp_path, GBT)
    damage(path if which_file == "header" else sidecar_of(path))
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(path, LAYOUT)
    assert says in str(refused.value)
    seen, verified = inspect(path, LAYOUT), verify(path, LAYOUT, [])
    assert seen.broken == verified.broken == str(refused.value)  # one message, whoever asks
    assert phasewatch("inspect", path).exit_code == FAILED


def uninstall(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let imports of a library fail, and with it the models that need it."""
    monkeypatch.setitem(sys.modules, library, None)
    for module in {spec.module for spec in MODELS.values() if library in spec.libraries}:
        monkeypatch.delitem(sys.modules, module, raising=False)


@each_model
def test_a_missing_library_leaves_a_checkpoint_unverified_and_not_broken(
    which: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, library = put(tmp_path, which), which.spec.libraries[0]
    if library in BASE_LIBRARIES:
        return
    reason = (
        f"{path}: {which.name} needs {library}, which is not installed; install the extra: "
        "pip install 'phasewatch[train]'"
    )
    uninstall(library, monkeypatch)
    with pytest.raises(MissingLibraryError, match=f"^{re.escape(reason)}$"):
        load_checkpoint(path, LAYOUT)
    entry = verify(path, LAYOUT, [])
    assert (entry.unverified, entry.broken, entry.differences) == (reason, None, [])
    assert not entry.usable
    assert inspect(path, LAYOUT).usable  # the header needs no library
    told = phasewatch("inspect", "--verify", path)
    assert told.exit_code == OK
    assert "not verified: " in told.stdout
    [row] = json.loads(phasewatch("inspect", "--verify", "--json", path).stdout)["checkpoints"]
    assert (row["unverified"], row["usable"]) == (reason, False)


def test_what_a_model_itself_misses_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = put(tmp_path, GBT)
    monkeypatch.setitem(sys.modules, "models.gbt", None)
    assert "cannot be rebuilt" in (verify(path, LAYOUT, []).broken or "")


def test_one_of_another_layout_lists_every_difference(tmp_path: Path):
    path = put(tmp_path, GBT)
    change = CHANGES["several at once"]
    with change.in_force() as layout:
        for entry in (inspect(path, layout), verify(path, layout, [])):
            assert entry.differences == list(change.lines)
            assert entry.broken is None


# --- commands


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with checkpoints of both kinds of input, in folders of their own."""
    for which in ONE_OF_EACH_KIND:
        put(tmp_path / which.name, which)
    return tmp_path


def rows(told: Any) -> dict[str, dict[str, Any]]:
    document = json.loads(told.stdout)
    return {f"{row['model']}_{row['mode']}": row for row in document["checkpoints"]}


def test_inspect_lists_a_folder(shelf: Path):
    told = phasewatch("inspect", shelf)
    assert told.exit_code == OK
    head, *lines = told.stdout.split("\n\n")[0].splitlines()
    assert head.split()[:3] == ["model", "mode", "recipe"]
    assert len(lines) == len(ONE_OF_EACH_KIND)
    assert all(line.endswith("yes") for line in lines)
    assert len(told.stdout.splitlines()) == len(ONE_OF_EACH_KIND) + 3
    for path in find_checkpoints(shelf):  # of one, hashes are shown whole, to be copied
        assert read_header(path)["artifact_id"] in phasewatch("inspect", path).stdout
    listed = rows(phasewatch("inspect", shelf, "--json"))
    assert listed.keys() == {which.name for which in ONE_OF_EACH_KIND}
    one = find_checkpoints(shelf)[0]
    assert phasewatch("inspect", one, one, shelf).stdout == told.stdout


@pytest.mark.parametrize("name", ["README.md", "/dev/null"])
@pytest.mark.parametrize(
    "words",
    [
        ("inspect",),
        ("contract", "diff"),
        ("predict", "EPISODE", "--checkpoint"),
        ("bundle", "--out", "x", "--checkpoint"),
    ],
    ids=lambda words: words[0],
)
def test_a_checkpoint_is_known_by_its_name(words: tuple[str, ...], name: str, tmp_path: Path):
    (tmp_path / "README.md").write_text("# Not a checkpoint\n")
    (tmp_path / "x.tar.zst").touch()
    told = phasewatch(
        *(tmp_path / "x.tar.zst" if word == "EPISODE" else word for word in words), tmp_path / name
    )
    assert (told.exit_code, "not a checkpoint" in told.output) == (USAGE, True)


def test_inspect_shows_a_broken_checkpoint_as_a_row(shelf: Path):
    _truncate(sidecar_of(find_checkpoints(shelf)[0]))
    (shelf / "x.ckpt.json").write_text("{")
    told = phasewatch("inspect", shelf)
    assert told.exit_code == FAILED
    assert told.stdout.count("broken: ") == 2
    told = phasewatch("inspect", "--verify", shelf, "--json")
    assert told.exit_code == FAILED
    assert [row["usable"] for row in json.loads(told.stdout)["checkpoints"]] == [False, True, False]


@pytest.mark.usefixtures("drifted")
def test_inspect_says_in_a_line_why_one_would_not_load(shelf: Path):
    told = phasewatch("inspect", shelf)
    assert told.exit_code == OK
    assert told.stdout.count("no, 1 difference") == 2
    assert told.stdout.count("guest.net_rx_bytes: unit was B/s, is now kB/s") == 1
    assert phasewatch("inspect", shelf, "--verify").exit_code == MISMATCH


def test_inspect_verify_passes_what_is_sound_and_names_what_is_not(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
):
    told = phasewatch("inspect", "--verify", shelf)
    assert (told.exit_code, told.stdout.count("  yes\n")) == (OK, 2)
    real = features.extraction.summarise
    monkeypatch.setattr(features.extraction, "summarise", lambda *args: real(*args) * 2)
    told = phasewatch("inspect", "--verify", shelf)
    assert told.exit_code == MISMATCH
    about = "01M7ZVNCNV5MT2GQHFWCZKMY7M: netflow.packets_in: "
    assert told.stdout.count(about) == 1  # once for all that it concerns
    assert all(f"{path}\n" in told.stdout for path in find_checkpoints(shelf))
    assert all(
        row["differences"]
        for row in rows(phasewatch("inspect", "--verify", "--json", shelf)).values()
    )


@pytest.mark.parametrize("what", ["nowhere", "."])
def test_inspect_names_a_place_without_checkpoints(what: str, tmp_path: Path):
    told = phasewatch("inspect", tmp_path / what)
    assert told.exit_code == USAGE
    assert str(tmp_path) in told.output


def test_contract_shows_what_is_in_force():
    told = phasewatch("contract")
    assert told.exit_code == OK
    live = {kind: contract_of(LAYOUT, kind) for kind in ("summary", "tensor")}
    for shown in (
        *(contract.hash for contract in live.values()),
        *live["summary"].hashes.values(),
        *LAYOUT.channel_names,
        *LAYOUT.phases,
        ", ".join(LAYOUT.stats),
        "stride_ms",
        golden_digest(),
    ):
        assert shown in told.stdout
    document = json.loads(phasewatch("contract", "--json").stdout)
    for kind, contract in live.items():
        assert document[kind]["contract_hash"] == contract.hash
        assert document[kind]["sections"] == json.loads(json.dumps(contract.as_header()))
    assert list(json.loads(phasewatch("contract", "--json", "--kind", "tensor").stdout)) == [
        "tensor"
    ]
    assert "stats" not in phasewatch("contract", "--kind", "tensor").stdout
    assert phasewatch("contract", "--kind", "other").exit_code == USAGE


def test_contract_diff_is_empty_for_the_layout_in_force(tmp_path: Path):
    path = put(tmp_path, CNN)
    told = phasewatch("contract", "diff", path)
    assert (told.exit_code, told.stdout) == (OK, "no difference\n")
    document = json.loads(phasewatch("contract", "diff", path, "--json").stdout)
    assert (document["differences"], document["remedy"]) == ([], None)


def test_contract_diff_lists_every_difference_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = put(tmp_path, CNN)
    change = CHANGES["several at once"]
    with change.in_force() as layout:
        monkeypatch.setattr(registry, "LAYOUT", layout)
        told = phasewatch("contract", "diff", path)
        document = json.loads(phasewatch("contract", "diff", path, "--json").stdout)
    assert told.exit_code == MISMATCH
    *lines, blank, remedy = told.stdout.splitlines()
    assert (tuple(lines), blank) == (change.lines, "")
    assert remedy.startswith("Retrain cnn_realistic, or check out the code that trained it")
    assert (tuple(document["differences"]), document["remedy"]) == (change.lines, remedy)


def test_contract_diff_of_what_is_no_header_fails(tmp_path: Path):
    (tmp_path / "x.ckpt.json").write_text("{")
    told = phasewatch("contract", "diff", tmp_path / "x.ckpt.json")
    assert told.exit_code == FAILED
    assert "not a checkpoint header" in told.output
