"""Checkpoints: what is saved loads equal; what was changed, swapped or cut off is refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changes import CHANGES, Change
from tiny import (
    CNN,
    COMMIT,
    GBT,
    N_CLASSES,
    each_kind,
    each_model,
    each_variant,
    files_of,
    fitted,
    forge,
    header_of,
    make_examples,
    put,
    save,
    sidecar_of,
)

import models.checkpoint
from features.contract import Contract, contract_of
from features.registry import LAYOUT, Layout
from models.base import NotFittedError
from models.checkpoint import (
    CheckpointError,
    ContractMismatchError,
    artifact_id,
    check_contract,
    load_checkpoint,
    read_header,
    save_checkpoint,
)
from models.registry import MODELS, VARIANTS, Variant


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refuses(path: Path, why: str, layout: Layout = LAYOUT) -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        load_checkpoint(path, layout)
    assert str(path.parent) in str(caught.value)  # the message names the file


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a sidecar's bytes are given to a parser."""
    for which in VARIANTS:
        files_of(which)  # saving parses them
    for spec in MODELS.values():
        kind = type(spec.build(spec.config(), N_CLASSES, device="cpu"))
        monkeypatch.setattr(kind, "restore", lambda *_: pytest.fail("the sidecar was parsed"))


# --- what is saved


@each_variant
def test_a_loaded_model_predicts_what_the_saved_one_did(which: Variant, tmp_path: Path):
    path = save(tmp_path, which)
    X = make_examples(which, seed=1).X
    loaded = load_checkpoint(path, LAYOUT)
    np.testing.assert_array_equal(loaded.model.predict_proba(X), fitted(which).predict_proba(X))
    assert loaded.variant == which
    assert loaded.model.input_kind == which.spec.input_kind
    assert loaded.artifact_id == header_of(path)["artifact_id"]


@each_variant
def test_the_header_says_what_the_model_eats(which: Variant, tmp_path: Path):
    path = save(tmp_path, which)
    header = read_header(path)
    kind = which.spec.input_kind
    contract = contract_of(LAYOUT, kind)
    sidecar = sidecar_of(path).read_bytes()
    model = fitted(which)
    names = sorted(LAYOUT.input_names(kind))
    expected = {
        "version": 2,
        "name": which.model,
        "mode": which.mode,
        "input_kind": kind,
        "schema_hash": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "n_classes": N_CLASSES,
        "phases": list(LAYOUT.phases),
        "keep_mask": LAYOUT.keep_mask(which.mode, kind).tolist(),
        "standardize": model.standardize_,
        "sidecar": sidecar_of(path).name,
        "sidecar_sha256": hashlib.sha256(sidecar).hexdigest(),
        "sidecar_bytes": len(sidecar),
        "config": asdict(model.config),
        "contract": contract.as_header(),
        "contract_hash": contract.hash,
        "train_meta": {"code_commit": COMMIT, "seed": 0, "val_macro_f1": None},
    }
    assert {name: header[name] for name in expected} == expected
    assert header.keys() - expected.keys() == {"pca_proj", "golden", "artifact_id", "code"}
    assert np.shape(header["pca_proj"]) == (sum(header["keep_mask"]), 2)


@each_model
def test_equal_training_gives_equal_bytes(which: Variant, tmp_path: Path):
    first = save(tmp_path / "first", which)
    fitted.cache_clear()
    second = save(tmp_path / "second", which)
    assert names_in(first.parent) == names_in(second.parent)
    for name in names_in(first.parent):
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()


def test_trees_do_not_depend_on_the_number_of_threads(tmp_path: Path):
    one, two = (save(tmp_path / str(n), GBT, n_threads=n) for n in (1, 2))
    assert sidecar_of(one).read_bytes() == sidecar_of(two).read_bytes()
    assert header_of(one)["artifact_id"] != header_of(two)["artifact_id"]


def test_variants_stand_side_by_side_in_one_folder(tmp_path: Path):
    paths = [save(tmp_path, which) for which in VARIANTS]
    assert len(names_in(tmp_path)) == 2 * len(VARIANTS)
    for path, which in zip(paths, VARIANTS, strict=True):
        assert load_checkpoint(path, LAYOUT).variant == which


@each_variant
def test_a_model_that_was_never_fitted_is_not_saved(which: Variant, tmp_path: Path):
    model = which.spec.build(which.spec.config(), N_CLASSES, device="cpu")
    with pytest.raises(NotFittedError, match=which.name):
        save_checkpoint(tmp_path, which, model, LAYOUT, pca_proj=np.zeros((1, 2)), train_meta={})
    assert names_in(tmp_path) == set()


# --- another layout


@each_kind
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.usefixtures("unparsed")
def test_another_contract_is_refused_with_every_difference_and_the_remedy(
    change: Change, which: Variant, tmp_path: Path
):
    path = put(tmp_path, which)
    with change.in_force() as layout:
        if not change.concerns(which.spec.input_kind):
            check_contract(header_of(path), layout, "it")  # raises nothing
            return
        with pytest.raises(ContractMismatchError) as caught:
            load_checkpoint(path, layout)
    assert caught.value.differences == list(change.lines)
    first, *listed, remedy = str(caught.value).splitlines()
    assert str(path) in first
    assert listed == [f"  - {line}" for line in change.lines]
    assert remedy == (
        f"Retrain {which.name}, or check out the code that trained it (commit 3fa1c2e)."
    )


@each_variant
@pytest.mark.usefixtures("unparsed")
def test_every_variant_is_refused_under_another_layout(which: Variant, tmp_path: Path):
    with pytest.raises(ContractMismatchError):
        load_checkpoint(put(tmp_path, which), CHANGES["stride"].layout)


@pytest.mark.parametrize(
    ("commit", "advice"),
    [
        (COMMIT, "or check out the code that trained it (commit 3fa1c2e)."),
        (f"{COMMIT}-dirty", "(commit 3fa1c2e, which had uncommitted changes)."),
        ("unknown", "Retrain gbt_realistic; the commit that wrote it is unknown."),
    ],
)
def test_the_remedy_says_what_is_known_of_the_commit(commit: str, advice: str, tmp_path: Path):
    path = put(tmp_path, GBT)
    forge(path, train_meta={"code_commit": commit})
    refuses(path, re.escape(advice), CHANGES["stride"].layout)


def test_a_contract_of_other_types_under_fitting_hashes_is_refused(tmp_path: Path):
    """1 and True are equal to Python, not in JSON."""
    path = put(tmp_path, GBT)
    sections = {name: s["value"] for name, s in header_of(path)["contract"].items()}
    for each in sections["channels"]:
        each["deployable"] = int(each["deployable"])
    other = Contract(sections)
    forge(path, contract=other.as_header(), contract_hash=other.hash)
    refuses(path, "section channels has another hash")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep_mask", [int(kept) for kept in LAYOUT.keep_mask("realistic", "summary")]),
        ("schema_hash", LAYOUT.schema_hash("tensor")),
        ("phases", [*LAYOUT.phases[1:], LAYOUT.phases[0]]),
        ("input_kind", "tensor"),
    ],
)
def test_a_field_that_does_not_follow_from_the_contract_is_refused(
    name: str, value: object, tmp_path: Path
):
    path = put(tmp_path, GBT)
    forge(path, **{name: value})
    refuses(path, f"{name} was ")


# --- changed files


@each_model
@pytest.mark.usefixtures("unparsed")
def test_a_flipped_bit_in_a_sidecar_is_refused_before_parsing(which: Variant, tmp_path: Path):
    sidecar = sidecar_of(path := put(tmp_path, which))
    content = sidecar.read_bytes()
    chosen = random.Random(0)
    drawn = [chosen.randrange(len(content)) for _ in range(40)]
    for position in (0, 8, len(content) - 1, *drawn):
        for bit in (0, 7, chosen.randrange(8)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            sidecar.write_bytes(damaged)
            refuses(path, "not the sidecar saved with this header")


@pytest.mark.parametrize("content", [b"", b"\0", "shorter", "longer"])
@pytest.mark.usefixtures("unparsed")
def test_a_sidecar_of_another_length_is_refused(content: bytes | str, tmp_path: Path):
    sidecar = sidecar_of(path := put(tmp_path, CNN))
    whole = sidecar.read_bytes()
    sidecar.write_bytes({"shorter": whole[:-1], "longer": whole + b"\0"}.get(content, content))
    refuses(path, "not the sidecar saved with this header")


@each_model
@pytest.mark.usefixtures("unparsed")
def test_a_swapped_sidecar_is_refused(which: Variant, tmp_path: Path):
    one, other = put(tmp_path, which), put(tmp_path, replace(which, mode="oracle"))
    sidecar_of(one).write_bytes(sidecar_of(other).read_bytes())
    refuses(one, "not the sidecar saved with this header")


@pytest.mark.parametrize("model", MODELS)
def test_a_sidecar_of_another_mode_under_a_fitting_hash_is_refused(model: str, tmp_path: Path):
    one, other = (put(tmp_path, Variant(model, mode)) for mode in ("realistic", "oracle"))
    stolen = {
        name: header_of(other)[name] for name in ("sidecar", "sidecar_sha256", "sidecar_bytes")
    }
    forge(one, **stolen)
    refuses(one, "cannot be rebuilt")


@each_model
def test_a_flipped_digit_in_any_field_of_a_header_is_refused(which: Variant, tmp_path: Path):
    path = put(tmp_path, which)
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    fields = [i for i, line in enumerate(lines) if line.startswith(' "')]
    assert len(fields) == len(models.checkpoint._FIELDS | models.checkpoint._OPTIONAL)
    for first, after in zip(fields, [*fields[1:], len(lines)], strict=True):
        field = "".join(lines[first:after])
        at = next((i for i, c in enumerate(field) if c.isdigit()), None)
        if at is None:
            continue
        changed = field[:at] + str((int(field[at]) + 1) % 10) + field[at + 1 :]
        path.write_text(text.replace(field, changed, 1))
        with pytest.raises(CheckpointError):
            read_header(path)


def test_a_flipped_digit_in_standardize_is_refused(tmp_path: Path):
    path = put(tmp_path, CNN)
    text = path.read_text()
    mean = repr(header_of(path)["standardize"]["mean"][3])
    for at in (0, 2, 5):
        digit = str((int(mean[at]) + 1) % 10)
        path.write_text(text.replace(mean, mean[:at] + digit + mean[at + 1 :], 1))
        refuses(path, "changed after it was written")


def test_a_file_moved_to_another_folder_and_name_is_harmless(tmp_path: Path):
    path = put(tmp_path / "here", GBT)
    elsewhere = (tmp_path / "here").rename(tmp_path / "there")
    moved = (elsewhere / path.name).rename(elsewhere / "other.ckpt.json")
    assert load_checkpoint(moved, LAYOUT).artifact_id == header_of(moved)["artifact_id"]


@each_kind
def test_a_flipped_bit_in_a_header_is_refused_or_means_nothing(which: Variant, tmp_path: Path):
    path = put(tmp_path, which)
    content, header = path.read_bytes(), header_of(path)
    chosen = random.Random(0)
    for _ in range(150):
        damaged = bytearray(content)
        damaged[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        with suppress(CheckpointError):
            assert read_header(path) == header  # white space became other white space


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda header: json.dumps(header, indent=5),
        lambda header: json.dumps(header, separators=(",", ":")),
        lambda header: json.dumps(dict(reversed(header.items()))),
        lambda header: "\r\n" + json.dumps(header) + "\n\n",
    ],
    ids=["indent", "compact", "key order", "line ends"],
)
def test_white_space_and_key_order_of_a_header_are_harmless(
    rewrite: Callable[[dict[str, Any]], str], tmp_path: Path
):
    path = put(tmp_path, GBT)
    path.write_text(rewrite(header_of(path)))
    assert load_checkpoint(path, LAYOUT).header == header_of(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a checkpoint header: it is empty; restore the file or retrain"),
        (" \n", "not a checkpoint header: it is empty; restore the file or retrain"),
        ('{\n"a"', "not a checkpoint header: it is not JSON (line 2, column 4); restore the file"),
        ("[]", "must be a JSON object"),
        ("{}", "version must be 2, got none"),
        ('{"version": 1}', "version must be 2, got 1; retrain"),
        ('{"version": 2}', "has no field name, mode"),
        ('{"version": 2, "version": 2}', "has a field twice"),
        ('{"version": 2, "train_meta": {"a": 1, "a": 1}}', "has a field twice"),
        ('{"version": 2, "a": NaN}', "not finite"),
        ('{"version": 2, "a": 1e999}', "not finite"),
        ('{"version": ' + "9" * 5000 + "}", "not a checkpoint header"),
        ('{"version": 2, "a": ' + "[" * 17 + "]" * 17 + "}", "nested deeper"),
        ('{"a":' * 100_000, "not a checkpoint header: it is nested too deeply"),
        ("[" * 100_000, "not a checkpoint header: it is nested too deeply"),
        (b"\xff\xfe\x00", "not a checkpoint header: it is not UTF-8 text (byte 1)"),
        ('{"version": 2, "a": "' + "x" * 2**20 + '"}', "at most 1,048,576 bytes"),
    ],
    ids=lambda value: str(value[:32]),
)
def test_what_is_no_header_is_refused(text: str | bytes, why: str, tmp_path: Path):
    path = tmp_path / "gbt_realistic.ckpt.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    refuses(path, re.escape(why))


def test_a_duplicate_key_is_refused_even_if_it_says_the_same(tmp_path: Path):
    path = put(tmp_path, GBT)
    path.write_text(path.read_text().replace('"mode": "realistic",', '"mode": "realistic",' * 2))
    refuses(path, "has a field twice")


@pytest.mark.parametrize("name", sorted(models.checkpoint._FIELDS))
def test_a_header_that_lacks_a_field_is_refused_by_its_name(name: str, tmp_path: Path):
    path = put(tmp_path, GBT)
    header = header_of(path)
    del header[name]
    if name != "artifact_id":
        header["artifact_id"] = artifact_id(header)
    path.write_text(json.dumps(header))
    refuses(
        path,
        "version must be 2, got none" if name == "version" else f"has no field {name}; retrain$",
    )


def test_a_sidecar_size_that_is_not_the_files_is_refused(tmp_path: Path):
    path = put(tmp_path, GBT)
    forge(path, sidecar_bytes=header_of(path)["sidecar_bytes"] + 1)
    refuses(path, "not the sidecar saved with this header")


NONSENSE = (None, -1, 3, "x", [], {}, [[]], {"x": {}})


@pytest.mark.parametrize("layout", [LAYOUT, CHANGES["stride"].layout], ids=["live", "drifted"])
@pytest.mark.parametrize("name", sorted(set(models.checkpoint._FIELDS) - {"artifact_id"}))
def test_nonsense_in_a_field_is_a_refusal_or_harmless_never_another_error(
    name: str, layout: Layout, tmp_path: Path
):
    path = put(tmp_path, GBT)
    X = make_examples(GBT).X
    unforeseen = {}
    for value in NONSENSE:
        forge(path, **{name: value})
        try:
            model = load_checkpoint(path, layout).model
            np.testing.assert_array_equal(model.predict_proba(X), fitted(GBT).predict_proba(X))
        except CheckpointError:
            pass
        except Exception as error:
            unforeseen[repr(value)] = repr(error)
    assert unforeseen == {}


# --- links, paths, files that are none


@pytest.mark.parametrize("which_file", ["header", "sidecar"])
def test_links_are_refused(which_file: str, tmp_path: Path):
    path = put(tmp_path, GBT)
    link = path if which_file == "header" else sidecar_of(path)
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    refuses(path, "symlinks are not followed")


@pytest.mark.parametrize(
    "name", ["../sidecar", "/etc/hostname", "a/b", ".", "..", "", 3, None, "\0"], ids=repr
)
@pytest.mark.usefixtures("unparsed")
def test_a_sidecar_that_is_no_name_beside_the_header_is_refused(name: object, tmp_path: Path):
    path = put(tmp_path / "in", GBT)
    (tmp_path / "sidecar").write_bytes(sidecar_of(path).read_bytes())
    forge(path, sidecar=name)
    refuses(path, "must be a file name in the same folder")


@pytest.mark.parametrize("which_file", ["header", "sidecar"])
def test_a_missing_file_is_named_with_the_remedy(which_file: str, tmp_path: Path):
    path = put(tmp_path, GBT)
    gone = path if which_file == "header" else sidecar_of(path)
    gone.unlink()
    remedy = {
        "header": "no such checkpoint; train it with phasewatch run",
        "sidecar": f"sidecar of {path.name} is missing; copy both files, or retrain",
    }
    refuses(path, f"{gone}: {remedy[which_file]}")


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        pytest.fail(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
@pytest.mark.parametrize("which_file", ["header", "sidecar"])
def test_only_regular_files_are_read(which_file: str, make: Callable[[Path], None], tmp_path: Path):
    path = put(tmp_path, GBT)
    file = path if which_file == "header" else sidecar_of(path)
    file.unlink()
    make(file)
    with at_most(1.0):
        refuses(path, str(file))


def test_a_header_over_the_limit_is_refused_unread(tmp_path: Path):
    path = put(tmp_path, GBT)
    with path.open("ab") as file:
        file.truncate(2**40)  # sparse: reading it whole would not end
    with at_most(1.0):
        refuses(path, "at most 1,048,576 bytes")


def test_a_sidecar_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = put(tmp_path, GBT)
    monkeypatch.setattr(models.checkpoint, "MAX_SIDECAR_BYTES", 1_000)
    refuses(path, "at most 1,000 bytes")


# --- writing


def test_a_successful_overwrite_leaves_the_new_checkpoint_and_nothing_else(tmp_path: Path):
    old = sidecar_of(save(tmp_path, GBT, seed=0))
    path = save(tmp_path, GBT, seed=1)
    assert not old.exists()
    assert names_in(tmp_path) == {path.name, sidecar_of(path).name}
    assert load_checkpoint(path, LAYOUT).header["train_meta"]["seed"] == 1


def test_saving_the_same_again_keeps_the_sidecar(tmp_path: Path):
    save(tmp_path, GBT)
    load_checkpoint(save(tmp_path, GBT), LAYOUT)


def test_a_damaged_checkpoint_can_be_overwritten(tmp_path: Path):
    path = save(tmp_path, GBT)
    path.write_text("{")
    load_checkpoint(save(tmp_path, GBT, seed=1), LAYOUT)


@pytest.mark.parametrize(
    "name", ["../victim", "{folder}/victim", "..", ".", "", 3, None, "\0"], ids=repr
)
def test_a_sidecar_elsewhere_is_neither_deleted_nor_in_the_way(name: object, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("not ours")
    path = put(tmp_path / "in", GBT)
    forge(path, sidecar=name.format(folder=tmp_path) if isinstance(name, str) else name)
    save(tmp_path / "in", GBT, seed=1)
    assert victim.exists()
    load_checkpoint(path, LAYOUT)


@pytest.mark.parametrize("call", [1, 2], ids=["sidecar", "header"])
def test_a_kill_before_a_write_leaves_the_old_checkpoint(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = save(tmp_path, GBT, seed=0)
    old = read_header(path)
    real, calls = models.checkpoint.write_atomically, []

    def killed(*args: Any) -> None:
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(models.checkpoint, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, GBT, seed=1)
    assert load_checkpoint(path, LAYOUT).header == old
    monkeypatch.undo()
    save(tmp_path, GBT, seed=1)
    assert names_in(tmp_path) == {path.name, sidecar_of(path).name}


@pytest.mark.parametrize("call", [1, 2], ids=["sidecar", "header"])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_scrap(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = save(tmp_path, GBT, seed=0)
    old = read_header(path)
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        if not os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            calls.append(handle)
            if len(calls) == call:
                raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, GBT, seed=1)
    assert len(calls) == call
    assert load_checkpoint(path, LAYOUT).header == old
    assert not [name for name in names_in(tmp_path) if name.startswith(".tmp")]


def test_a_header_that_would_be_refused_is_not_written(tmp_path: Path):
    path = save(tmp_path, GBT)
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    with pytest.raises(CheckpointError, match="at most 1,048,576 bytes"):
        save_checkpoint(
            tmp_path,
            GBT,
            fitted(GBT, seed=1),
            LAYOUT,
            pca_proj=np.zeros((1, 2)),
            train_meta={"note": "x" * 2**20},
        )
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before
    load_checkpoint(path, LAYOUT)
