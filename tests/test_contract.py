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
from hypothesis import given, settings
from hypothesis import strategies as st

import features.extraction
from features import contract, golden
from features.contract import (
    Contract,
    canonical_json,
    contract_hashes,
    contract_of,
    diff_contracts,
    section_hash,
)
from features.registry import LAYOUT, Channel, InputKind, Layout

KINDS: tuple[InputKind, ...] = ("summary", "tensor")
NAMES = LAYOUT.channel_names
EXTRA = Channel("guest.steal_jiffies", "guest", ("steal_jiffies",), "jiffies/s", "counter", True)
quick = settings(deadline=None, max_examples=100, database=None)


# --- one change of the layout at a time


def channel(which: str, /, **changes: Any) -> Layout:
    """The layout with one channel described otherwise."""
    return replace(
        LAYOUT,
        channels=tuple(replace(c, **changes) if c.name == which else c for c in LAYOUT.channels),
    )


def window(**changes: int) -> Layout:
    return replace(LAYOUT, window=replace(LAYOUT.window, **changes))


def channels(*order: int | Channel) -> Layout:
    """The layout with these channels, by position in the live one."""
    return replace(
        LAYOUT, channels=tuple(LAYOUT.channels[i] if isinstance(i, int) else i for i in order)
    )


CHANGES: dict[str, tuple[Layout, list[str]]] = {
    "add": (channels(*range(46), EXTRA), ["channel 46 is new: guest.steal_jiffies"]),
    "add_amid": (
        channels(*range(17), EXTRA, *range(17, 46)),
        [
            "channel 17 was guest.cpu_user_jiffies (moved to 18), is now guest.steal_jiffies (new)",
            "channels 18-45 (guest.cpu_system_jiffies … netflow.new_flows) moved by +1 to 19-46",
        ],
    ),
    "drop": (channels(*range(45)), ["channel 45 was netflow.new_flows (gone)"]),
    "drop_amid": (
        channels(*range(9), *range(10, 46)),
        [
            "channel 9 was proc.rss_bytes (gone), is now qmp.rd_bytes (was at 10)",
            "channels 10-45 (qmp.rd_bytes … netflow.new_flows) moved by -1 to 9-44",
        ],
    ),
    "rename": (
        channel("proc.vcpu_wait_ns", name="proc.vcpu_queue_ns"),
        ["channel 3 was proc.vcpu_wait_ns (gone), is now proc.vcpu_queue_ns (new)"],
    ),
    "reorder": (
        channels(1, 0, *range(2, 46)),
        [
            "channel 0 was proc.cpu_user_jiffies, has moved to 1",
            "channel 1 was proc.cpu_sys_jiffies, has moved to 0",
        ],
    ),
    "unit": (
        channel("guest.net_rx_bytes", unit="kB/s"),
        ["guest.net_rx_bytes: unit was B/s, is now kB/s"],
    ),
    "kind": (
        channel("guest.forks", kind="level"),
        [
            "guest.forks: kind was counter, is now level",
            "guest.forks: wrap was a decrease is missing, is now none",
        ],
    ),
    "deployable": (
        channel("proc.rss_bytes", deployable=True),
        ["proc.rss_bytes: deployable was false, is now true"],
    ),
    "path": (
        channel("guest.load_1m", path=("load", "1m")),
        ['guest.load_1m: path was ["load_1m"], is now ["load", "1m"]'],
    ),
    "source": (
        channel("proc.rss_bytes", source="qmp"),
        ["proc.rss_bytes: source was proc, is now qmp"],
    ),
    "length": (window(length_ms=20_000), ["window.length_ms was 10000, is now 20000"]),
    "stride": (window(stride_ms=2_500), ["window.stride_ms was 5000, is now 2500"]),
    "bin": (window(bin_ms=50), ["window.bin_ms was 100, is now 50"]),
    "max_age": (window(max_age_ms=2_000), ["window.max_age_ms was 1000, is now 2000"]),
    "class_order": (
        replace(LAYOUT, phases=("armed", "clean", *LAYOUT.phases[2:])),
        ["class 0 was clean, has moved to 1", "class 1 was armed, has moved to 0"],
    ),
    "class_added": (
        replace(LAYOUT, phases=(*LAYOUT.phases, "recovering")),
        ["class 5 is new: recovering"],
    ),
}
SUMMARY_CHANGES: dict[str, tuple[Layout, list[str]]] = {
    "stat_dropped": (
        replace(LAYOUT, stats=("mean", "std", "p95", "slope")),
        ["statistic 4 was zero_frac (gone)"],
    ),
    "stat_order": (
        replace(LAYOUT, stats=("std", "mean", "p95", "slope", "zero_frac")),
        ["statistic 0 was mean, has moved to 1", "statistic 1 was std, has moved to 0"],
    ),
    "min_bins": (window(min_bins=20), ["stats.min_bins was 10, is now 20"]),
}


def differences(changed: Layout, kind: InputKind) -> list[str]:
    return diff_contracts(contract_of(LAYOUT, kind).sections, contract_of(changed, kind).sections)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_layout_is_noticed_and_named(change: str, kind: InputKind):
    changed, expected = CHANGES[change]
    assert contract_of(changed, kind).hash != contract_of(LAYOUT, kind).hash
    assert sorted(differences(changed, kind)) == sorted(expected)


@pytest.mark.parametrize("change", SUMMARY_CHANGES)
def test_a_change_of_the_statistics_concerns_summary_inputs_only(change: str):
    changed, expected = SUMMARY_CHANGES[change]
    assert contract_of(changed, "summary").hash != contract_of(LAYOUT, "summary").hash
    assert differences(changed, "summary") == expected
    assert contract_of(changed, "tensor") == contract_of(LAYOUT, "tensor")


def test_every_change_gives_a_hash_of_its_own():
    layouts = [LAYOUT, *(layout for layout, _ in (CHANGES | SUMMARY_CHANGES).values())]
    hashes = [contract_hashes(layout)["summary"] for layout in layouts]
    assert len(set(hashes)) == len(layouts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_preprocessing_version_is_noticed(kind: InputKind, monkeypatch: pytest.MonkeyPatch):
    was = contract_of(LAYOUT, kind)
    monkeypatch.setattr(contract, "PREPROCESSING_VERSION", 2)
    now = contract_of(LAYOUT, kind)
    assert now.hash != was.hash
    assert diff_contracts(was.sections, now.sections) == [
        "preprocessing.version was 1, is now 2",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_another_golden_file_is_noticed(
    kind: InputKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    was = contract_of(LAYOUT, kind)
    content = bytearray(contract.GOLDEN_FILE.read_bytes())
    content[-1] ^= 1
    (tmp_path / "golden.npz").write_bytes(content)
    monkeypatch.setattr(contract, "GOLDEN_FILE", tmp_path / "golden.npz")
    now = contract_of(LAYOUT, kind)
    assert now.hash != was.hash
    digest = hashlib.sha256(content).hexdigest()
    [line] = diff_contracts(was.sections, now.sections)
    assert line.startswith("preprocessing.golden_sha256 was ")
    assert line.endswith(f"is now {digest}")


def test_all_that_changed_on_a_channel_is_listed_in_the_order_of_its_description():
    changed = channel(
        "guest.forks",
        source="proc", path=("forked",), unit="1", kind="level", deployable=False,
    )  # fmt: skip
    assert [line.split()[1] for line in differences(changed, "tensor")] == [
        "source", "path", "unit", "kind", "wrap", "deployable",
    ]  # fmt: skip


def test_a_section_that_comes_or_goes_is_named():
    summary, tensor = (contract_of(LAYOUT, kind).sections for kind in KINDS)
    assert diff_contracts(summary, tensor) == ["section stats was there, is gone"]
    assert diff_contracts(tensor, summary) == ["section stats is new"]


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
                r"(?:, is now (\w+) \((?:new|was at \d+)\))?",
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
    [10.0, float("nan"), 2**53, -(2**53), (1, 2), b"x", {1: 2}, {"é": 1}, {None: 1}, {"a": [0.5]}],
    ids=repr,
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
    assert list(hashes) == ["channels", "window", "stats", "labels", "preprocessing"]
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


@pytest.mark.parametrize(("kind", "count"), [("summary", 230), ("tensor", 46)])
def test_the_schema_hash_is_that_of_the_sorted_names(kind: InputKind, count: int):
    names = LAYOUT.input_names(kind)
    assert len(names) == count
    assert LAYOUT.schema_hash(kind) == hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def test_the_schema_hash_alone_misses_what_the_contract_notices():
    changes = CHANGES | SUMMARY_CHANGES
    noticed = {
        name
        for name, (layout, _) in changes.items()
        if layout.schema_hash("summary") != LAYOUT.schema_hash("summary")
    }
    assert noticed == {"add", "add_amid", "drop", "drop_amid", "rename", "stat_dropped"}


# --- golden vectors


def test_the_golden_vectors_replay():
    assert golden.differences() == []


def test_the_golden_episodes_tell_every_channel_from_every_other():
    """Otherwise two channels could be permuted unnoticed."""
    with np.load(golden.GOLDEN_FILE, allow_pickle=False) as stored:
        rows = np.concatenate([stored[name] for name in stored.files if "features" in name])
    by_channel = rows.reshape(len(rows), len(NAMES), len(LAYOUT.stats)).swapaxes(0, 1)
    assert [n for n, c in zip(NAMES, by_channel, strict=True) if np.isnan(c).all()] == []
    alike = [
        (NAMES[i], NAMES[j])
        for i, j in combinations(range(len(NAMES)), 2)
        if all(map(golden.close, by_channel[i].T, by_channel[j].T))
    ]
    assert alike == []


def test_channels_permuted_under_unchanged_names_are_noticed():
    user, system = (NAMES.index(f"guest.cpu_{who}_jiffies") for who in ("user", "system"))
    permuted = list(LAYOUT.channels)
    permuted[user] = replace(permuted[user], path=LAYOUT.channels[system].path)
    permuted[system] = replace(permuted[system], path=LAYOUT.channels[user].path)
    lines = golden.differences(replace(LAYOUT, channels=tuple(permuted)))
    assert {line.split()[1].rpartition(".")[0] for line in lines} == {NAMES[user], NAMES[system]}


@pytest.mark.parametrize("change", ["length", "stride", "bin", "max_age", "add", "drop", "reorder"])
def test_a_layout_that_gives_other_features_is_noticed(change: str):
    assert golden.differences(CHANGES[change][0])


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


def test_a_changed_label_rule_is_noticed(monkeypatch: pytest.MonkeyPatch):
    def by_the_end(labels: Any, grid: Any, spec: Any) -> Any:
        later = replace(grid, origin_ns=grid.origin_ns + spec.length_ms * 500_000)
        return real(labels, later, spec)

    real = features.extraction.label_windows
    monkeypatch.setattr(features.extraction, "label_windows", by_the_end)
    assert any(line.endswith("labels differ") for line in golden.differences())


def test_a_golden_episode_that_is_gone_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "golden"
    shutil.copytree(golden.GOLDEN_FILE.parent, folder)
    gone = sorted(folder.glob("*.tar.zst"))[0]
    gone.unlink()
    monkeypatch.setattr(golden, "GOLDEN_FILE", folder / golden.GOLDEN_FILE.name)
    lines = golden.differences()
    assert any(gone.name.removesuffix(".tar.zst") in line for line in lines), lines


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ([1.0, 2.0, np.nan], True),
        ([1.000_001, 2.0, np.nan], True),
        ([1.000_1, 2.0, np.nan], False),
        ([1.0, 2.0, 3.0], False),
        ([1.0, np.nan, np.nan], False),
    ],
)
def test_values_are_compared_within_tolerance_and_missing_ones_exactly(
    values: list[float], same: bool
):
    reference = np.array([1.0, 2.0, np.nan], dtype=np.float32)
    assert golden.close(np.array(values, dtype=np.float32), reference) is same
