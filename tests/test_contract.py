"""The input contract: every change of meaning is noticed and said in words, nothing else is."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changes import CHANGES, Change, channel
from hypothesis import given, settings
from hypothesis import strategies as st

import features.extraction
from features import contract, golden
from features.contract import (
    Contract,
    canonical_json,
    contract_of,
    diff_contracts,
    section_hash,
)
from features.files import file_sha256
from features.registry import LAYOUT, Channel, InputKind
from features.windows import window_views

KINDS: tuple[InputKind, ...] = ("summary", "tensor")
NAMES = LAYOUT.channel_names
quick = settings(deadline=None, max_examples=100, database=None)


# --- one change of meaning at a time


def differences(change: Change, kind: InputKind) -> list[str]:
    was = contract_of(LAYOUT, kind)
    with change.in_force() as layout:
        return diff_contracts(was.sections, contract_of(layout, kind).sections)


def hash_under(change: Change, kind: InputKind) -> str:
    with change.in_force() as layout:
        return contract_of(layout, kind).hash


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_meaning_is_noticed_and_told_once(change: Change, kind: InputKind):
    changed = hash_under(change, kind) != contract_of(LAYOUT, kind).hash
    assert changed == change.concerns(kind)
    assert differences(change, kind) == (list(change.lines) if changed else [])


def test_every_change_gives_a_hash_of_its_own():
    hashes = {hash_under(change, "summary") for change in CHANGES.values()}
    assert len(hashes | {contract_of(LAYOUT, "summary").hash}) == len(CHANGES) + 1


def test_the_committed_golden_file_is_part_of_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = bytearray(contract.GOLDEN_FILE.read_bytes())
    content[-1] ^= 1
    (tmp_path / "golden.npz").write_bytes(content)
    monkeypatch.setattr(contract, "GOLDEN_FILE", tmp_path / "golden.npz")
    stated = contract_of(LAYOUT, "tensor").sections["preprocessing"]["golden_sha256"]
    assert stated == hashlib.sha256(content).hexdigest()


def test_all_that_changed_on_a_channel_is_listed_in_the_order_of_its_description():
    changed = channel(
        "guest.forks",
        source="proc", path=("forked",), unit="1", kind="level", deployable=False,
    )  # fmt: skip
    assert [line.split()[1] for line in differences(Change((), changed), "tensor")] == [
        "source", "path", "unit", "kind", "wrap", "deployable",
    ]  # fmt: skip


def test_a_section_that_comes_or_goes_is_named():
    summary, tensor = (contract_of(LAYOUT, kind).sections for kind in KINDS)
    assert diff_contracts(summary, tensor) == [
        'relative.of was "the statistic", is now "the window\'s mean"',
        "section stats was there, is gone",
    ]
    assert diff_contracts(tensor, summary) == [
        "section stats is new",
        'relative.of was "the window\'s mean", is now "the statistic"',
    ]


@pytest.mark.parametrize(
    ("was", "now", "line"),
    [
        ({"a": 1}, {}, "window.a was 1, is now absent"),
        ({}, {"a": 1}, "window.a was absent, is now 1"),
        ({"a": 1}, {"a": 0}, "window.a was 1, is now 0"),
        ({"a": "x"}, {"a": ""}, 'window.a was x, is now ""'),
        ({"a": {"b": [1]}}, {"a": {"b": []}}, "window.a.b was [1], is now []"),
    ],
)
def test_a_value_that_comes_goes_or_empties_is_named(was: object, now: object, line: str):
    assert diff_contracts({"window": was}, {"window": now}) == [line]


# --- several changes at once


def orders(what: Sequence[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(what), unique=True, max_size=len(what))


def as_told(was: list[str], lines: list[str]) -> list[str]:
    """The order of channels that follows from the old one and the lines alone."""
    staying, coming = dict(enumerate(was)), {}
    for line in lines:
        if m := re.fullmatch(r"channels (\d+)-(\d+) \(\w+ … \w+\) moved by (.+) to .+", line):
            for i in range(int(m[1]), int(m[2]) + 1):
                coming[i + int(m[3])] = staying.pop(i)
        elif m := re.fullmatch(r"channel (\d+) is new: (\w+)", line):
            coming[int(m[1])] = m[2]
        elif m := re.fullmatch(r"channel (\d+) was (\w+), has moved to (\d+)", line):
            coming[int(m[3])] = staying.pop(int(m[1]))
        else:
            m = re.fullmatch(
                r"channel (\d+) was (\w+) \((?:gone|moved to (\d+))\)"
                r"(?:, is now (\w+) \(new\))?",
                line,
            )
            assert m, line
            assert staying.pop(int(m[1])) == m[2]
            if m[3]:
                coming[int(m[3])] = m[2]
            if m[4]:
                coming[int(m[1])] = m[4]
    now = staying | coming
    assert sorted(now) == list(range(len(now)))
    return [now[i] for i in range(len(now))]


@quick
@given(was=orders("abcdefgh"), now=orders("abcdefgh"))
def test_the_lines_tell_every_move_drop_and_addition(was: list[str], now: list[str]):
    def sections(names: list[str]) -> dict[str, Any]:
        return {"channels": [{"name": name} for name in names]}

    lines = diff_contracts(sections(was), sections(now))
    assert as_told(was, lines) == now
    assert (lines == []) == (was == now)
    # each fate is told once: a channel that went, came or moved by itself is in one line
    words = [word for line in lines if not line.startswith("channels") for word in line.split()]
    assert all(words.count(name) <= 1 for name in "abcdefgh")


def edits() -> st.SearchStrategy[list[Callable[[list[Channel]], None]]]:
    """Changes of a list of channels, each in place."""
    at = st.integers(0, 7)

    def describe(i: int, **changes: Any) -> Callable[[list[Channel]], None]:
        def edit(these: list[Channel]) -> None:
            these[i % len(these)] = replace(these[i % len(these)], **changes)

        return edit

    return st.lists(
        st.one_of(
            at.map(lambda i: lambda these: these.insert(0, these.pop(i % len(these)))),
            at.map(lambda i: lambda these: len(these) > 1 and these.pop(i % len(these))),
            at.map(lambda i: describe(i, unit="furlong")),
            at.map(lambda i: describe(i, kind="level")),
            at.map(lambda i: describe(i, name=f"new_{i}", path=(f"new_{i}",))),
        ),
        max_size=4,
    )


@quick
@given(changes=edits(), max_age_ms=st.sampled_from([1_000, 2_000]))
def test_no_difference_is_left_out_when_several_come_together(
    changes: list[Callable[[list[Channel]], None]], max_age_ms: int
):
    before = replace(LAYOUT, channels=LAYOUT.channels[17:25])
    these = list(before.channels)
    for change in changes:
        change(these)
    if len({c.name for c in these}) < len(these):
        return  # two renamed alike: the registry refuses that
    after = replace(
        before, channels=tuple(these), window=replace(before.window, max_age_ms=max_age_ms)
    )
    was, now = contract_of(before, "tensor"), contract_of(after, "tensor")
    lines = diff_contracts(was.sections, now.sections)
    assert (lines == []) == (was.sections == now.sections) == (was.hash == now.hash)
    assert ("window.max_age_ms was 1000, is now 2000" in lines) == (max_age_ms == 2_000)
    kept = {c.name: c for c in these}
    for old in before.channels:
        new = kept.pop(old.name, None)
        if new is None:
            assert any(f"was {old.name} (gone)" in line for line in lines)
            continue
        for key in ("unit", "kind"):
            line = f"{old.name}: {key} was {getattr(old, key)}, is now {getattr(new, key)}"
            assert (line in lines) == (getattr(old, key) != getattr(new, key))
    for name in kept:
        assert any(f"is now {name} (new)" in li or f"is new: {name}" in li for li in lines)


# --- encoding and hashes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, "x"]}, '{"a":[true,null,"x"],"b":1}'),
        ({"B": 0, "a": 0, "": 0}, '{"":0,"B":0,"a":0}'),
        # the order of UTF-16 code units; by code points U+FF21 would come before U+1F600
        ({"\uff21": 0, "\U0001f600": 0, "é": 0, "z": 0}, '{"z":0,"é":0,"\U0001f600":0,"\uff21":0}'),
        ("é/…", '"é/…"'),
        ('"\\\b\t\n\f\r\x07', r'"\"\\\b\t\n\f\r\u0007"'),
        (2**53 - 1, "9007199254740991"),
        (-(2**53) + 1, "-9007199254740991"),
        ([], "[]"),
    ],
)
def test_canonical_json_is_that_of_rfc_8785(value: object, text: str):
    assert canonical_json(value) == text.encode()


@pytest.mark.parametrize(
    "value",
    [10.0, float("nan"), 2**53, -(2**53), (1, 2), b"x", {1: 2}, {None: 1}, {"a": [0.5]}, "\ud800"],
    ids=ascii,
)
def test_what_has_no_canonical_form_is_refused(value: object):
    with pytest.raises(ValueError):
        canonical_json(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner),
    max_leaves=8,
)


@quick
@given(json_values)
def test_canonical_json_reads_back_and_forgets_the_order_of_keys(value: object):
    def turned(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(item)}
        return [turned(x) for x in item] if isinstance(item, list) else item

    assert json.loads(canonical_json(value)) == value
    assert canonical_json(turned(value)) == canonical_json(value)


def test_a_section_is_hashed_under_its_own_name():
    expected = hashlib.sha256(b'phasewatch/window/v1\0{"bin_ms":100}').hexdigest()
    assert section_hash("window", {"bin_ms": 100}) == expected
    assert section_hash("stats", {"bin_ms": 100}) != expected


def test_the_contract_hash_is_the_hash_of_the_section_hashes():
    live = contract_of(LAYOUT, "summary")
    hashes = {name: section_hash(name, value) for name, value in live.sections.items()}
    assert list(hashes) == [
        "channels", "window", "stats", "relative", "labels", "preprocessing",
    ]  # fmt: skip
    assert live.hash == section_hash("contract", hashes)


@pytest.mark.parametrize("kind", KINDS)
def test_key_order_and_white_space_of_a_header_are_harmless(kind: InputKind):
    live = contract_of(LAYOUT, kind)
    header = live.as_header()
    shuffled = dict(reversed(header.items()))
    for text in (json.dumps(shuffled, indent=7), json.dumps(header, sort_keys=True)):
        read = json.loads(text)
        again = Contract({name: section["value"] for name, section in read.items()})
        assert again.hash == live.hash
        assert again.hashes == {name: section["hash"] for name, section in read.items()}
        assert diff_contracts(again.sections, live.sections) == []


@pytest.mark.parametrize(("kind", "count"), [("summary", 460), ("tensor", 92)])
def test_the_schema_hash_is_that_of_the_sorted_names(kind: InputKind, count: int):
    names = LAYOUT.input_names(kind)
    assert len(names) == count
    assert LAYOUT.schema_hash(kind) == hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def test_the_schema_hash_alone_misses_what_the_contract_notices():
    noticed = {
        name
        for name, change in CHANGES.items()
        if change.layout.schema_hash("summary") != LAYOUT.schema_hash("summary")
    }
    assert noticed == {
        "channel renamed",
        "channel added",
        "channel added amid",
        "channel dropped",
        "channel dropped amid",
        "statistic added",
        "statistic dropped",
        "several at once",
    }


# --- golden vectors


def test_the_golden_vectors_replay():
    assert golden.differences() == []


def test_the_golden_files_are_small_and_their_episodes_have_whole_windows():
    files = list(golden.GOLDEN_FILE.parent.iterdir())
    assert sum(path.stat().st_size for path in files) < 1_000_000
    frozen = golden.read_golden()
    assert frozen is not None
    assert 2 <= len(frozen) <= 3
    for episode in frozen.values():
        assert len(window_views(episode.series, LAYOUT.window)) == len(episode.features) > 10
    assert set(np.concatenate([e.labels for e in frozen.values()])) == set(LAYOUT.phases)


def test_the_golden_episodes_tell_every_channel_from_every_other():
    """Otherwise two channels could be permuted unnoticed."""
    frozen = golden.read_golden()
    assert frozen is not None
    series = np.concatenate([episode.series for episode in frozen.values()]).T
    assert [n for n, c in zip(NAMES, series, strict=True) if np.isnan(c).all()] == []
    alike = [
        (NAMES[i], NAMES[j])
        for i, j in combinations(range(len(NAMES)), 2)
        if golden.difference(series[i], series[j], "series", "bin") is None
    ]
    assert alike == []


def test_channels_permuted_under_unchanged_names_are_noticed():
    swapped = CHANGES["two channels read each other's field"].layout
    lines = golden.differences(swapped)
    assert {line.split(": ")[1] for line in lines} == {NAMES[17], NAMES[18]}
    for line in lines:
        for what in ("series in ", "mean in ", "p95 in "):
            assert what in line


@pytest.mark.parametrize("change", ["stride", "channel added", "channels reordered"])
def test_a_layout_of_other_inputs_is_told_to_rewrite_the_vectors(change: str):
    [line] = golden.differences(CHANGES[change].layout)
    assert "python -m features.golden" in line
    assert golden.read_golden(CHANGES[change].layout) is None


def test_another_rule_for_missing_values_is_noticed():
    assert golden.differences(CHANGES["maximum age"].layout)


def _a_tenth_of_a_permille(values: np.ndarray) -> np.ndarray:
    return values * np.float32(1.0001)


def _one_bin_late(values: np.ndarray) -> np.ndarray:
    return np.roll(values, 1, axis=0)


def _missing_is_zero(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values)


@pytest.mark.parametrize("change", [_a_tenth_of_a_permille, _one_bin_late, _missing_is_zero])
@pytest.mark.parametrize("step", ["align", "summarise"])
def test_changed_preprocessing_is_noticed(
    step: str, change: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    real = getattr(features.extraction, step)
    monkeypatch.setattr(features.extraction, step, lambda *args: change(real(*args)))
    assert golden.differences()


def test_a_changed_label_rule_is_noticed_window_by_window(monkeypatch: pytest.MonkeyPatch):
    def by_the_end(labels: Any, grid: Any, spec: Any) -> Any:
        later = replace(grid, origin_ns=grid.origin_ns + spec.length_ms * 500_000)
        return real(labels, later, spec)

    real = features.extraction.label_windows
    monkeypatch.setattr(features.extraction, "label_windows", by_the_end)
    lines = golden.differences()
    assert "01M7ZVNCNV5MT2GQHFWCZKMY7M: window 2: label was clean, is armed" in lines


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The golden folder, where a test may damage it."""
    folder = tmp_path / "golden"
    shutil.copytree(golden.GOLDEN_FILE.parent, folder)
    monkeypatch.setattr(golden, "GOLDEN_FILE", folder / golden.GOLDEN_FILE.name)
    return folder


def test_a_golden_episode_that_is_gone_or_damaged_is_noticed(copied: Path):
    first, second = sorted(copied.glob("*.tar.zst"))
    first.unlink()
    gone = first.name.removesuffix(".tar.zst")
    assert golden.differences() == [f"{gone}: the golden episode is missing"]
    second.write_bytes(second.read_bytes()[:100])
    [line] = golden.differences()
    assert line.startswith("the golden episodes cannot be replayed: ")


def test_rewriting_the_golden_file_says_what_it_wrote(copied: Path):
    path = copied / "golden.npz"
    size = f"2 episodes, {len(LAYOUT.channels)} channels"
    assert golden._write() == f"wrote {path}: {size}, sha256 {file_sha256(path)[:12]} (unchanged)"
    np.savez(path, inputs=np.array(golden._inputs(LAYOUT)))
    lost = file_sha256(path)
    assert f"(was {lost[:12]}: retrain every checkpoint)" in golden._write()
    assert golden.differences() == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.0, 2.0, np.nan], None),
        ([1.000_001, 2.0, np.nan], None),
        ([1.001, 2.0, np.nan], "x in 1 of 3 bins, most in bin 0 (was 1, is 1.001)"),
        ([1.5, 3.0, np.nan], "x in 2 of 3 bins, most in bin 1 (was 2, is 3)"),
        ([1.0, 2.0, 3.0], "x in 1 of 3 bins, most in bin 2 (was missing, is 3)"),
        ([9.0, np.nan, np.nan], "x in 2 of 3 bins, most in bin 1 (was 2, is missing)"),
        ([1.0, np.inf, np.nan], "x in 1 of 3 bins, most in bin 1 (was 2, is inf)"),
    ],
)
def test_values_are_compared_within_tolerance_and_missing_ones_exactly(
    values: list[float], told: str | None
):
    reference = np.array([1.0, 2.0, np.nan], dtype=np.float32)
    assert golden.difference(reference, np.array(values, dtype=np.float32), "x", "bin") == told
