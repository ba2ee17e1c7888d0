"""Rows to series to windows to features: against the slow reference, then rule by rule."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import REMOVED, pack
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import CHANNELS, FILES, LEVELS, STATS, Result, reference

from episodes.archive import read_members, read_packed
from episodes.format import FAILED, PHASES, SOURCES
from episodes.jsonl import Rows, parse_rows
from episodes.reading import Moments, parse_episode, read_episode
from features.alignment import AlignmentError, Grid, align, instants, make_grid
from features.extraction import Extracted, extract
from features.registry import LAYOUT, Channel, Layout
from features.summary import summarise
from features.windows import (
    label_windows,
    onset_s,
    source_coverage,
    window_jobs,
    window_views,
)

STORE = Path(__file__).resolve().parent.parent / "data" / "store" / "episodes"
MS = 1_000_000
S = 1_000 * MS
BIN = 100 * MS
ORIGIN = 1_795_292_082 * S  # a whole second: as good a first label as any
NAN = math.nan
quick = settings(deadline=None, max_examples=100, database=None)
rngs = st.integers(0, 2**32).map(random.Random)


# --- against the reference


def assert_near(got: np.ndarray, want: np.ndarray, scale: np.ndarray) -> None:
    """Missing at the same places; else within 1e-5 of the larger of the value and the scale."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    got, want = np.nan_to_num(got.astype(float)), np.nan_to_num(want.astype(float))
    assert (np.abs(got - want) <= 1e-5 * np.maximum(np.abs(want), scale)).all()


def assert_same(got: Extracted, want: Result) -> None:
    squares = np.nan_to_num(want.series.astype(float)) ** 2
    there = np.maximum(np.count_nonzero(~np.isnan(want.series), axis=0), 1)
    rms = np.sqrt(squares.sum(axis=0) / there)
    assert_near(got.series, want.series, rms)
    of_stat = np.repeat(rms, len(STATS))
    of_stat[STATS.index("zero_frac") :: len(STATS)] = 1.0
    assert_near(got.features, want.features, of_stat)
    assert got.windows.label.tolist() == want.labels
    np.testing.assert_allclose(got.windows.purity, want.purity, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.windows.start_s, want.starts_s, rtol=0, atol=1e-9)


def test_channels_are_those_of_the_data_format():
    assert list(LAYOUT.channel_names) == CHANNELS
    assert [c.name for c in LAYOUT.channels if c.kind == "level"] == LEVELS
    buckets = [c.name for c in LAYOUT.channels if c.kind == "bucket"]
    assert buckets == [name for name in CHANNELS if name.startswith("netflow.")]
    assert sum(channel.deployable for channel in LAYOUT.channels) == 29
    assert LAYOUT.stats == STATS


@pytest.mark.parametrize(
    ("host", "episode_id"),
    [
        ("lab-a", "01M7ZXJ52WC7TZYFN3421Y5WJ7"),
        ("lab-a", "01M7ZVQ33Y7CRGNSXTFPKTJYNM"),  # no guest rows
        ("lab-b", "01M7ZXNJH0QV013ZK1FGP2HW3W"),  # netflow wall time at 1 s precision
        ("lab-b", "01M7ZXSYXAVNNVJF4YD9YTCQ43"),  # the same, clean from end to end
        ("lab-c", "01M7ZVY78KWK1N359G30J0DB65"),  # a gap in the guest's rows
        ("lab-c", "01M7ZWNAY9ZCS9C59JD7B3B64E"),  # ends in failed
    ],
)
def test_recorded_episode_agrees_with_the_reference(host, episode_id):
    path = STORE / host / f"{episode_id}.tar.zst"
    want = reference(read_members(read_packed(path), episode_id))
    assert len(want.labels) > 5
    assert_same(extract(read_episode(path, episode_id, LAYOUT.fields), LAYOUT), want)


def messy_members(rng: random.Random) -> dict[str, bytes]:
    """An episode with everything wrong that may be wrong in one that is still read."""
    origin = ORIGIN + rng.choice([0, rng.randrange(S)])
    moments = [0, *rng.choices(range(25), k=rng.randrange(8))]
    labels = [
        {"t_wall_ns": origin + t * S, "phase": rng.choice([*PHASES, FAILED])} for t in moments
    ]
    rng.shuffle(labels)
    members = {"labels.jsonl": "".join(json.dumps(row) + "\n" for row in labels).encode()}
    if rng.random() < 0.7:  # some rows may lie outside, under and over 1%
        ended = origin + rng.choice([30 * S, 23 * S, 22_700 * MS, 22_500 * MS])
        meta = {"started_at_wall_ns": origin - rng.randrange(2 * S), "ended_at_wall_ns": ended}
        members["meta.json"] = json.dumps(meta).encode()
    for source, file in FILES.items():
        if rng.random() < 0.15:
            continue
        lines, total = [], rng.choice([0, 10**9, 2**53])
        time = origin - rng.randrange(2 * S)
        coarse, phase = source == "netflow" and rng.random() < 0.6, rng.randrange(BIN)
        boot, silent = 7777 * S, rng.random() < 0.1
        while time < origin + 25 * S:
            usual = BIN + rng.randrange(-2 * MS, 2 * MS)
            time += rng.choices([usual, BIN, 0, 1, S, S + 1, 3 * S], [90, 9, 2, 1, 1, 1, 1])[0]
            at = time - (time - phase) % BIN if coarse else time
            boot += rng.choices([0, S, -S // 2, 3600 * S], [200, 1, 1, 1])[0]  # of the collector
            row = {"t_wall_ns": at - at % S if coarse else at, "t_mono_ns": at - origin + boot}
            if rng.random() < 0.005:
                row["t_mono_ns"] = rng.choice([-1, 0, row["t_mono_ns"] // 1000])
            total += rng.choice([0, 0, 1, 1000, 10**6])
            total = rng.choice([0, total // 2]) if rng.random() < 0.005 else total
            for name in (name for name in CHANNELS if name.startswith(source + ".")):
                value = rng.choice([0, 0.1, total * 0.3]) if name in LEVELS else total
                odd = [None, "7", True, NAN, -math.inf, [1], 10**400, {}]
                row[name.split(".")[1]] = (
                    rng.choice(odd) if silent or rng.random() < 0.005 else value
                )
            if rng.random() < 0.02:
                del row[rng.choice(list(row)[2:])]
            lines += [json.dumps(row) + "\n"] * rng.choices([1, 2], [50, 1])[0]
            if rng.random() < 0.01:
                lines.append(rng.choice(["\n", "{}\n", "[1]\n", '{"t_wall_ns": 17\n', "\u00e9\n"]))
        for _ in range(rng.randrange(20)):
            i = rng.randrange(len(lines))
            lines.insert(max(0, i - rng.randrange(5)), lines.pop(i))
        members[file] = "".join(lines).encode()
    return members


@pytest.mark.parametrize("seed", range(40))
def test_messy_episode_agrees_with_the_reference(seed, tmp_path):
    members = messy_members(random.Random(seed))
    path = tmp_path / "messy.tar.zst"
    path.write_bytes(pack("messy", members))
    got = extract(read_episode(path, "messy", LAYOUT.fields), LAYOUT)
    assert_same(got, reference(members))


# --- from lines to rows

FIELDS = (("a",), ("b",), ("deep", "a"), ("deep", "er", "a"))
TAG = "host_proc"

ODD_NUMBERS = [str(n + d) for n in (2**53, 2**63, -(2**63)) for d in (-1, 0, 1)]
ODD_NUMBERS += ["-0", "-0.0", "0e999", "1e999", "-1e999", "1e22", "1e-22", "1e23", "NaN"]
ODD_NUMBERS += ["-Infinity", "0.1234567890123456789", "12345678901234567.89", "0.30000000000000004"]
ODD_NUMBERS += [str(2**64 + 5), f"0.{2**64 + 5}", f"{2**64 + 5}e-3"]  # 5, where 64 bits wrap
NO_NUMBERS = ["01", "-01", "1.", ".5", "+1", "1e", "1e+", "-", "0x1", "1_0", "--1", "1.e5", "Inf"]
NOT_JSON = ["nul", "trueish", "'a'", '"\t"', '"\x1f"', '"\\x"', ",", "}", "{", '"', ":", "]"]
KEYS = ["a", "b", "deep", "er", "t_mono_ns", "t_wall_ns", "source", "available_in_deployment"]
STRINGS = [f'"{TAG}"', '"host"', '""', '"\\u0061"', '"\\""', '"}"', '"\u00fc"', '"\U0001f600"']


def some_number(rng: random.Random) -> str:
    digits = str(rng.randrange(10 ** rng.randrange(1, 20)))
    fraction = f".{rng.randrange(10**6):0{rng.randrange(1, 12)}d}" if rng.random() < 0.5 else ""
    exponent = f"{rng.choice('eE')}{rng.choice(['', '+', '-'])}{rng.randrange(30)}"
    spelled = rng.choice(["", "-"]) + digits + fraction + rng.choice(["", exponent])
    return rng.choice([str(rng.randrange(2 ** rng.randrange(1, 66))), spelled, spelled])


def some_object(rng: random.Random, odd: float, inside: str = "") -> str:
    """An object in any spelling; ``odd`` is the share of what no collector writes."""

    def space() -> str:
        return rng.choice(["", "", "", " ", "\t", "\r "])

    def value(key: str) -> str:
        if (inside, key) in (("", "deep"), ("deep", "er")) or rng.random() < odd:
            return some_object(rng, odd, key)
        if rng.random() < odd:
            return rng.choice([*STRINGS, *ODD_NUMBERS, "[1]", "{}", "3"])
        if key in ("source", "available_in_deployment"):
            return rng.choice([*STRINGS[:3], "true", "false", "null"])
        return some_number(rng) if rng.random() < 0.9 else rng.choice(["null", "true", '"7"'])

    keys = rng.choices([*KEYS, *KEYS[:2]], k=rng.randrange(6))
    keys = keys if rng.random() < odd else list(dict.fromkeys(keys))
    pairs = [
        (f'"{key}"' if rng.random() >= odd else rng.choice(STRINGS), value(key)) for key in keys
    ]
    if not inside:
        pairs.insert(rng.randrange(len(pairs) + 1), ('"t_wall_ns"', str(rng.randrange(2**63))))
    items = (space() + key + space() + ":" + space() + value for key, value in pairs)
    return "{" + (space() + ",").join(items) + space() + "}"


def some_line(rng: random.Random) -> bytes:
    """Mostly an object; sometimes cut off, or with a piece put in that does not belong there."""
    line = (some_object(rng, rng.choice([0, 0, 0.15])) + rng.choice(["", "", " ", "\r"])).encode()
    begin = rng.randrange(len(line))
    end = begin + rng.randrange(3)
    piece = rng.choice([b"\xff", *(text.encode() for text in NO_NUMBERS + NOT_JSON)])
    broken = [line[:begin], line[:begin] + piece + line[end:]]
    return line if rng.random() < 0.8 else rng.choice(broken)


def fits_64_bits(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def by_the_standard_library(content: bytes) -> tuple[list, list, list, list, int]:
    """Walls, monos, values, ``[unusable, absent]`` counts by field, malformed lines."""
    walls, monos, values, malformed = [], [], [], 0
    counts = [[0, 0] for _ in FIELDS]
    for line in content.split(b"\n"):
        if not line.strip(b" \t\r"):
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        wall = row.get("t_wall_ns") if isinstance(row, dict) else None
        if not fits_64_bits(wall):
            malformed += 1
            continue
        mono = row.get("t_mono_ns")
        walls.append(wall)
        monos.append(mono if fits_64_bits(mono) else None)
        values.append([])
        for path, count in zip(FIELDS, counts, strict=True):
            held = row
            for key in path:
                held = held.get(key, ...) if isinstance(held, dict) else ...
            usable = type(held) in (int, float) and math.isfinite(held)
            values[-1].append(float(held) if usable else NAN)
            if not usable:
                count[held is ...] += 1
    return walls, monos, values, counts, malformed


def assert_read_like_the_standard_library(content: bytes) -> None:
    rows = parse_rows(content, FIELDS, TAG)
    walls, monos, values, counts, malformed = by_the_standard_library(content)
    assert rows.t_wall_ns.tolist() == walls, content
    assert np.where(rows.has_mono, rows.t_mono_ns, None).tolist() == monos, content
    want = np.array(values, dtype=float).reshape(len(walls), len(FIELDS))
    np.testing.assert_array_equal(rows.values, want, err_msg=repr(content))
    np.testing.assert_array_equal(np.signbit(rows.values), np.signbit(want), repr(content))
    assert np.column_stack([rows.unusable, rows.absent]).tolist() == counts, content
    assert rows.n_malformed == malformed, content


@quick
@given(rngs)
def test_rows_are_what_the_standard_library_reads(rng):
    lines = [some_line(rng) for _ in range(20)]
    for line in lines:
        assert_read_like_the_standard_library(line)
    assert_read_like_the_standard_library(b"\n".join(lines))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n \n\r\n",
        b'{"t_wall_ns":1,"a":3,"a":null}\n{"t_wall_ns":2,"a":null,"a":3}\n',
        b'{"t_wall_ns":1,"t_wall_ns":"2"}\n{"t_wall_ns":"1","t_wall_ns":2}',
        b'{"t_wall_ns":1,"deep":{"a":1},"deep":{"er":{"a":2}}}',
        b'{"t_wall_ns":1,"deep":{"er":{"a":2},"a":3},"a":4}',
        b'{"t_wall_ns":1,"a":{"a":2},"deep":{"b":3,"er":{}}}',
        b'{"t_wall_ns":1.0}\n{"t_wall_ns":1e3}\n{"t_wall_ns":true}\n{"t_wall_ns":"1"}',
        b'{"t_wall_ns":1,"a":1}\n{"t_wall_ns":2,"a":',
        b'{"t_wall_ns":1,"deep":{"a":2}\n{"t_wall_ns":1,"deep":{"er":{"a":2}}',
        b'{"t_wall_ns":1,"a":1}{"t_wall_ns":2}\n{"t_wall_ns":1},',
        b'{"t_wall_ns":1,"c":"\xff"}\n{"t_wall_ns":2,"c":"\xc3\xbc"}\n{"t_wall_ns":3,"\xff":0}',
    ],
)
def test_rows_in_odd_spelling(content):
    assert_read_like_the_standard_library(content)


@pytest.mark.parametrize("text", ODD_NUMBERS + NO_NUMBERS + STRINGS + NOT_JSON)
def test_tokens_in_odd_spelling(text):
    for where in ('"a":%s', '"deep":{"a":%s}', '"t_mono_ns":%s', '"c":%s', '"a":1,"a":%s', "%s:1"):
        line = '{"t_wall_ns":1,' + where % text + ',"b":2}'
        assert_read_like_the_standard_library(line.encode())


@pytest.mark.parametrize(
    "value", ["true", "false", "null", '"1"', "NaN", "Infinity", "-Infinity", "1e999", "[1]", "{}"]
)
def test_value_that_is_no_finite_number_is_missing_and_counted(value):
    content = b'{"t_wall_ns":1,"a":2}\n{"t_wall_ns":2,"a":%s}\n' % value.encode()
    rows = parse_rows(content, [("a",), ("b",)], TAG)
    np.testing.assert_array_equal(rows.values, [[2, NAN], [NAN, NAN]])
    assert rows.unusable.tolist() == [1, 0]
    assert rows.absent.tolist() == [0, 2]
    assert rows.n_malformed == 0


def test_problems_are_named_by_line_and_limited():
    good = b'{"t_mono_ns":1,"t_wall_ns":1,"source":"host_proc","available_in_deployment":true}\n'
    bad = [good.replace(b"proc", b"qmp"), good.replace(b"true", b"1"), b"nonsense\n"]
    rows = parse_rows(b"\n" + good + b"".join(bad) + good * 2, (), TAG)
    assert [text.split(":")[0] for text in rows.problems] == ["line 3", "line 4", "line 5"]
    assert (len(rows), rows.n_malformed, rows.n_repeated) == (3, 1, 2)
    many = parse_rows(b"nonsense\n" * 30, (), TAG, max_problems=5)
    assert (len(many.problems), many.n_malformed) == (6, 30)


@quick
@given(rngs)
def test_equal_lines_count_once(rng):
    lines = [some_line(rng) for _ in range(8)]
    lines += [line.replace(b":1", b": 1", 1) for line in lines]  # equal times, other bytes
    lines = rng.choices(lines, k=30)
    rows, once = (parse_rows(b"\n".join(x), FIELDS, TAG) for x in (lines, dict.fromkeys(lines)))
    assert rows.t_wall_ns.tolist() == once.t_wall_ns.tolist()
    np.testing.assert_array_equal(rows.values, once.values)
    assert rows.absent.tolist() == once.absent.tolist()
    well_formed = sum(len(parse_rows(line, FIELDS, TAG)) for line in lines)
    assert (rows.n_repeated, once.n_repeated) == (well_formed - len(rows), 0)


# --- from rows to the grid


def jsonl(points: list[tuple[int, dict]]) -> bytes:
    rows = ({"t_wall_ns": ORIGIN + at, "t_mono_ns": at, **values} for at, values in points)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_of(source: str, points: list[tuple[int, dict]]) -> Rows:
    """Rows at nanoseconds since the first label."""
    return parse_rows(jsonl(points), LAYOUT.fields[source], SOURCES[source].tag)


def aligned(channel: str, points: list[tuple[int, object]], n_bins: int) -> np.ndarray:
    """One channel's bins from ``(ns since the first label, value)``."""
    source, name = channel.split(".")
    rows = rows_of(source, [(at, {name: value}) for at, value in points])
    series = align({source: rows}, Grid(ORIGIN, BIN, n_bins), LAYOUT)
    return series[:, LAYOUT.channel_names.index(channel)]


def missing(bins: np.ndarray) -> list[int]:
    return np.flatnonzero(np.isnan(bins)).tolist()


LEVEL, COUNTER, BUCKET = "guest.anon_bytes", "guest.forks", "netflow.bytes_in"
STEADY = [(j * BIN, 5 * j) for j in range(31)]


def test_level_is_the_last_row_in_the_bin():
    bins = aligned(LEVEL, [(-1, 1), (0, 2), (BIN - 1, 3), (BIN, 4)], 2)
    assert bins.tolist() == [3, 4]


def test_level_is_carried_for_one_second_and_not_a_nanosecond_more():
    assert missing(aligned(LEVEL, [(BIN, 7)], 13)) == [0, 11, 12]
    assert missing(aligned(LEVEL, [(BIN - 1, 7)], 13)) == [10, 11, 12]
    assert missing(aligned(LEVEL, [(-900 * MS, 7)], 2)) == [1]  # from before the first label


@quick
@given(
    st.lists(st.tuples(st.integers(1, S), st.integers(0, 10**6)), min_size=1, max_size=30),
    st.integers(0, 2**50),
)
def test_counter_bins_add_up_to_what_it_gained(steps, start):
    points = [(0, start)]
    for after, gain in steps:
        points.append((points[-1][0] + after, points[-1][1] + gain))
    at, held = points[-1]
    points.append((at - at % -BIN, held + 5)) if at % BIN else None  # up to the end of the bin
    n_bins = points[-1][0] // BIN
    bins = aligned(COUNTER, points, n_bins)
    assert not missing(bins)
    assert bins.sum(dtype=float) * 0.1 == pytest.approx(points[-1][1] - start, rel=1e-6)


@quick
@given(st.lists(st.integers(1, S), min_size=2, max_size=20), st.integers(0, 2**63))
def test_unmoved_counter_is_exactly_zero(steps, held):
    times = np.cumsum([0, *steps]).tolist()
    bins = aligned(COUNTER, [(at, held) for at in times], times[-1] // BIN)
    assert bins.tolist() == [0.0] * len(bins)


def test_counter_rate_is_interpolated_per_second():
    bins = aligned(COUNTER, [(50 * MS, 0), (250 * MS, 8), (350 * MS, 8), (450 * MS, 9)], 5)
    np.testing.assert_allclose(bins, [NAN, 40, 20, 5, NAN])


@pytest.mark.parametrize(
    ("begin", "end", "lost"),
    [
        (350 * MS, 1350 * MS, []),  # 1.0 s is no gap
        (350 * MS, 1350 * MS + 1, range(3, 14)),
        (400 * MS, 1500 * MS, range(4, 15)),  # bins that only touch it keep their value
        (400 * MS - 1, 1500 * MS, range(3, 15)),
        (400 * MS, 1500 * MS + 1, range(4, 16)),
    ],
)
def test_gap_in_a_counter_spoils_the_bins_it_overlaps(begin, end, lost):
    around = [(at, value) for at, value in STEADY if not begin < at < end]
    points = sorted({*around, (begin, begin * 5 / BIN), (end, end * 5 / BIN)})
    bins = aligned(COUNTER, points, 30)
    assert missing(bins) == list(lost)
    np.testing.assert_allclose(bins[~np.isnan(bins)], 50)


@pytest.mark.parametrize(("begin", "end", "lost"), [(200, 300, [2]), (150, 250, [1, 2])])
def test_decrease_of_a_counter_spoils_the_bins_it_overlaps(begin, end, lost):
    points = [(0, 2**32), (begin * MS, 2**32 + begin), (end * MS, 0), (500 * MS, 500 - end)]
    bins = aligned(COUNTER, points, 5)
    assert missing(bins) == lost
    np.testing.assert_allclose(bins[~np.isnan(bins)], 1000)


def test_bucket_is_summed_and_no_row_is_zero():
    points = [(-1, 64), (0, 1), (60 * MS, 2), (BIN - 1, 4), (3 * BIN, 8), (4 * BIN, 16)]
    assert aligned(BUCKET, points, 4).tolist() == [7, 0, 0, 8]


def test_value_missing_from_a_bucket_row_spoils_that_bin_only():
    points = [(0, 1), (30 * MS, None), (120 * MS, 3), (210 * MS, True), (330 * MS, 5)]
    np.testing.assert_array_equal(aligned(BUCKET, points, 5), [NAN, 3, NAN, 5, 0])


def test_source_without_rows_is_missing():
    nothing = rows_of("netflow", [])
    malformed = parse_rows(b"{}\n[]\n", LAYOUT.fields["netflow"], "bridge_pcap")
    for rows in (nothing, malformed):
        assert np.isnan(align({"netflow": rows}, Grid(ORIGIN, BIN, 3), LAYOUT)).all()
    assert np.isnan(align({}, Grid(ORIGIN, BIN, 3), LAYOUT)).all()


def test_row_without_a_usable_value_is_skipped_by_levels_and_counters():
    assert aligned(LEVEL, [(0, 1), (50 * MS, None), (90 * MS, "9")], 2).tolist() == [1, 1]
    points = [(0, 0), (100 * MS, True), (200 * MS, 8), (900 * MS, None), (1201 * MS, 9)]
    assert missing(aligned(COUNTER, points, 12)) == list(range(2, 12))  # 1.001 s without a value


def test_of_equal_instants_the_last_row_wins():
    assert aligned(LEVEL, [(0, 1), (0, 3), (0, 2), (0, None)], 1).tolist() == [2]
    points = [(0, 0), (BIN, 99), (BIN, 1), (BIN, None), (2 * BIN, 2)]
    assert aligned(COUNTER, points, 2).tolist() == [10, 10]


@quick
@given(rngs, st.integers(1, 30))
def test_order_of_the_rows_does_not_matter(rng, n):
    times = rng.sample(range(-S, 4 * S), n)
    for source, columns in LAYOUT.fields.items():
        points = [
            (at, {path[0]: rng.choice([rng.random(), 3, None]) for path in columns}) for at in times
        ]
        ordered = align({source: rows_of(source, points)}, Grid(ORIGIN, BIN, 30), LAYOUT)
        rng.shuffle(points)
        shuffled = align({source: rows_of(source, points)}, Grid(ORIGIN, BIN, 30), LAYOUT)
        np.testing.assert_array_equal(ordered, shuffled)


def test_number_too_large_for_float32_is_missing():
    assert missing(aligned(LEVEL, [(0, 1e300), (BIN, 5)], 2)) == [0]
    assert missing(aligned(BUCKET, [(0, 1e308), (1, 1e308), (BIN, 5)], 2)) == [0]


def test_nested_values_need_a_registry_edit_only():
    channels = (
        Channel("guest.free", "guest", ("memory", "free"), "B", "level", True),
        Channel("guest.forks", "guest", ("kernel", "total", "forks"), "1/s", "counter", True),
    )
    layout = Layout(channels=channels)
    points = [
        (j * BIN, {"kernel": {"total": {"forks": j}}, "free": -1, "memory": {"free": j * j}})
        for j in range(4)
    ]
    rows = parse_rows(jsonl(points), layout.fields["guest"], "guest_agent")
    series = align({"guest": rows}, Grid(ORIGIN, BIN, 3), layout)
    assert series.tolist() == [[0, 10], [1, 10], [4, 10]]


# --- netflow's clock


def netflow(at: list[int], boot: int, precision: int) -> Rows:
    """One packet a bucket, buckets starting at ``at``; ``t_mono_ns`` counts from a boot."""
    rows = [
        {
            "t_wall_ns": (ORIGIN + t) // precision * precision,
            "t_mono_ns": t + boot,
            "packets_in": 1,
        }
        for t in at
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return parse_rows(content, LAYOUT.fields["netflow"], "bridge_pcap")


# ten rows at least, with the one that each test puts first
bins = st.integers(-20, 300).filter(lambda j: j != 100)
buckets = st.lists(bins, min_size=9, max_size=40, unique=True)
boots = st.integers(0, 10**6).map(lambda seconds: seconds * S + 123_456_789)


@quick
@given(buckets, st.integers(0, BIN - 1), boots)
def test_whole_second_netflow_gets_its_instants_back(at, phase, boot):
    true = [phase + 10 * S, *(j * BIN + phase for j in at)]  # the first in the first tenth
    early = ORIGIN + np.array(true) - instants("netflow", netflow(true, boot, S))
    assert early.tolist() == [early[0]] * len(true)
    assert 0 <= early[0] < BIN


@quick
@given(buckets, boots)
def test_whole_second_netflow_aligns_like_precise_netflow(at, boot):
    true = [10 * S, *(j * BIN for j in at)]  # one on the second: nothing is lost
    grid = Grid(ORIGIN, BIN, 300)
    fine = align({"netflow": netflow(true, boot, 1)}, grid, LAYOUT)
    coarse = align({"netflow": netflow(true, boot, S)}, grid, LAYOUT)
    np.testing.assert_array_equal(fine, coarse)


@quick
@given(buckets, st.integers(1, S - 1), boots)
def test_one_finer_instant_and_no_clock_is_touched(at, odd, boot):
    rows = netflow([*(j * S for j in at), odd], boot, 1)
    moved = replace(rows, t_mono_ns=rows.t_mono_ns * 2)
    np.testing.assert_array_equal(instants("netflow", moved), rows.t_wall_ns)


def test_netflow_row_without_a_monotonic_clock_keeps_its_second():
    at = [0, 1234 * MS, 2345 * MS, *range(3 * S, 4 * S, BIN)]
    rows = netflow(at, 77 * S, S)
    has_mono = np.arange(len(at)) != 2
    rows = replace(rows, t_mono_ns=rows.t_mono_ns * has_mono, has_mono=has_mono)
    assert (instants("netflow", rows) - ORIGIN).tolist() == [*at[:2], 2 * S, *at[3:]]


def with_mono(at: list[int], mono: list[int]) -> Rows:
    """Whole-second netflow with a monotonic clock of its own."""
    return replace(netflow(at, 0, S), t_mono_ns=np.array(mono, dtype=np.int64))


TENTHS = [j * BIN for j in range(95)]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        # the monotonic clock, and which of 95 rows keep the second that they state
        (lambda mono: mono, []),
        (lambda mono: mono[:40] + [m - mono[40] for m in mono[40:]], []),  # restarted
        (lambda mono: mono[:40] + [m + 3600 * S for m in mono[40:]], []),  # suspended
        (lambda mono: [m % (5 * S) for m in mono], []),  # wraps
        (lambda _: [0] * 95, range(95)),  # stands still
        (lambda mono: [*mono[:50], -1, *mono[51:]], [50]),
        (lambda mono: [*mono[:50], mono[50] - S, *mono[51:]], [50]),
        (lambda mono: [*mono[:5], -1, *mono[6:]], range(6)),  # five rows are no run
        (lambda mono: [*mono[:86], 2**63 - 1, *mono[87:]], range(86, 95)),  # nor are eight
        (lambda mono: [-(2**63), *mono[1:]], [0]),
        (lambda mono: [m + i % 2 * 2 * S for i, m in enumerate(mono)], range(95)),
    ],
)
def test_a_monotonic_clock_is_believed_where_it_fits(change, kept):
    rows = with_mono(TENTHS, change([t + 77 * S for t in TENTHS]))
    want = [t - t % S if i in kept else t for i, t in enumerate(TENTHS)]
    assert (instants("netflow", rows) - ORIGIN).tolist() == want


@quick
@given(rngs, st.sampled_from([1, 1000, 10**6, 10**9]))
def test_no_row_leaves_the_second_that_it_states(rng, unit):
    mono = [(t + 77 * S) // unit for t in TENTHS]
    for _ in range(rng.randrange(5)):
        i, by = rng.randrange(95), rng.choice([S, -S, S // 2, 3600 * S, 2**62, -(2**62)])
        mono = [*mono[:i], *(m + by for m in mono[i : i + rng.choice([1, 5, 95])]), *mono][:95]
    rows = with_mono(TENTHS, [max(-(2**63), min(m, 2**63 - 1)) for m in mono])
    later = instants("netflow", rows) - rows.t_wall_ns
    assert later.min() >= 0
    assert later.max() < S


@pytest.mark.parametrize(("n_rows", "recovered"), [(9, False), (10, True)])
def test_ten_rows_are_a_run(n_rows, recovered):
    at = [j * BIN for j in range(n_rows)]
    got = instants("netflow", netflow(at, 5 * S, S)) - ORIGIN
    assert got.tolist() == (at if recovered else [0] * n_rows)


@pytest.mark.parametrize("precision", [1, S])
def test_netflow_is_not_lost_to_its_boot_relative_clock(precision):
    """The reference aligned on ``t_mono_ns`` and dropped every netflow row without an error."""
    at, grid = [j * BIN for j in range(0, 100, 3)], Grid(ORIGIN, BIN, 100)
    column = CHANNELS.index("netflow.packets_in")
    for hours in (0, 3, 2000):
        rows = netflow(at, hours * 3600 * S, precision)
        bins = align({"netflow": rows}, grid, LAYOUT)[:, column]
        assert np.flatnonzero(bins).tolist() == list(range(0, 100, 3))


def test_only_netflow_is_taken_for_coarse():
    points = [(0, {"anon_bytes": 1}), (S, {"anon_bytes": 2})]
    rows = replace(rows_of("guest", points), t_mono_ns=np.array([5, 5 + BIN]))
    assert instants("guest", rows).tolist() == [ORIGIN, ORIGIN + S]
    series = align({"guest": rows}, Grid(ORIGIN, BIN, 12), LAYOUT)
    assert series[:, CHANNELS.index(LEVEL)].tolist() == [1] * 10 + [2] * 2


# --- the grid


def test_grid_goes_from_the_earliest_label_to_the_last_polled_row():
    sources = {
        "proc": rows_of("proc", [(-S, {}), (899 * MS, {})]),
        "guest": rows_of("guest", [(1200 * MS, {}), (300 * MS, {})]),
        "netflow": rows_of("netflow", [(9001 * MS, {})]),
    }
    labels = np.array([ORIGIN + 7 * S, ORIGIN, ORIGIN + 2 * S])
    assert make_grid(labels, sources, BIN) == Grid(ORIGIN, BIN, 12)
    assert make_grid(labels, {"proc": sources["proc"]}, BIN).n_bins == 8
    late = rows_of("guest", [(-S, {})])
    assert make_grid(labels, sources | {"guest": late, "proc": late}, BIN).n_bins == 0


def test_grid_ends_with_netflow_only_where_it_is_alone():
    labels = np.array([ORIGIN])
    alone = {"guest": rows_of("guest", []), "netflow": netflow([300 * MS, 2 * S], 77, S)}
    assert make_grid(labels, alone, BIN).n_bins == 20
    tenths = range(0, S, BIN)
    late = netflow([*tenths, 2900 * MS], 77, S)  # the recovered instant counts, not the written
    assert make_grid(labels, {"netflow": late}, BIN).n_bins == 29
    assert make_grid(labels, {}, BIN).n_bins == 0


def test_no_grid_without_a_label_or_over_a_day():
    with pytest.raises(AlignmentError, match="must have a label"):
        make_grid(np.zeros(0, dtype=np.int64), {}, BIN)
    with pytest.raises(AlignmentError, match="after the first label"):
        make_grid(np.array([0]), {"proc": rows_of("proc", [(0, {})])}, BIN)


# --- windows


def moments(*labels: tuple[int, str]) -> Moments:
    return Moments(
        np.array([ORIGIN + at for at, _ in labels]), tuple(name for _, name in labels), ()
    )


def windows(n_bins: int, *labels: tuple[int, str]):
    return label_windows(moments(*labels), Grid(ORIGIN, BIN, n_bins), LAYOUT.window)


@pytest.mark.parametrize(
    ("n_bins", "starts"),
    [(0, []), (99, []), (100, [0]), (149, [0]), (150, [0, 5]), (251, [0, 5, 10, 15])],
)
def test_only_whole_windows(n_bins, starts):
    table = windows(n_bins, (0, "clean"))
    assert table.start_s.tolist() == starts
    assert table.start_bin.tolist() == [10 * start for start in starts]
    series = np.arange(n_bins * 3, dtype=np.float32).reshape(n_bins, 3)
    views = window_views(series, LAYOUT.window)
    assert views.shape == (len(starts), 100, 3)
    for view, start in zip(views, table.start_bin, strict=True):
        np.testing.assert_array_equal(view, series[start : start + 100])
        assert np.shares_memory(view, series)


def test_label_is_the_phase_at_the_centre():
    assert windows(100, (0, "clean"), (5 * S, "armed")).label.tolist() == ["armed"]
    assert windows(100, (0, "clean"), (5 * S + 1, "armed")).label.tolist() == ["clean"]
    late = windows(150, (12 * S, "dormant"), (9 * S, "armed"), (0, "clean"))
    assert late.label.tolist() == ["clean", "armed"]


def test_of_labels_at_one_instant_the_last_wins():
    table = windows(100, (2 * S, "armed"), (0, "armed"), (2 * S, "infecting"), (0, "clean"))
    assert table.label.tolist() == ["infecting"]
    assert table.purity.tolist() == [0.8]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([(0, "clean"), (7 * S + 1, "infecting"), (9 * S, "infected_running")], 7.000000001),
        ([(9 * S, "infected_running"), (0, "clean")], 9.0),  # in whatever order they stand
        ([(0, "clean"), (8 * S, "infected_running"), (9 * S, "clean"), (12 * S, "infecting")], 8.0),
        ([(0, "infecting")], 0.0),
        ([(0, "clean"), (5 * S, "infecting"), (5 * S, "armed")], None),  # at once taken back
        ([(0, "clean"), (5 * S, "armed"), (6 * S, "dormant")], None),
    ],
)
def test_the_onset_is_the_first_label_of_an_infected_phase(labels, expected):
    assert onset_s(moments(*labels), Grid(ORIGIN, BIN, 100)) == expected


@pytest.mark.parametrize(
    ("events", "jobs"),
    [
        # windows begin at 0, 5 and 10 s
        ([], ["", "", ""]),
        ([(3, "start", "a"), (4, "end", "a")], ["a", "", ""]),
        ([(4, "end", "a"), (3, "start", "a")], ["a", "", ""]),  # in whatever order they stand
        ([(10, "start", "a"), (11, "end", "a")], ["", "a", "a"]),
        ([(1, "start", "a"), (4, "end", "a"), (6, "start", "b"), (10, "end", "b")], list("bb ")),
        ([(1, "start", "a"), (6, "start", "b"), (9, "end", "b"), (4, "end", "a")], list("ab ")),
        ([(2, "start", "a"), (1, "start", "b"), (4, "end", "b"), (5, "end", "a")], list("b  ")),
        ([(12, "start", "a")], ["", "a", "a"]),  # to the end of the episode
        ([(6, "end", "a")], ["a", "a", ""]),  # from the first label
        ([(6, "end", "a"), (-3, "start", "b"), (7, "end", "b")], list("bb ")),
        ([(-3, "start", "a"), (0, "end", "a"), (20, "start", "b")], ["", "", ""]),
        ([(3, "start", "a"), (3, "end", "a")], ["", "", ""]),
        ([(1, "start", "a"), (2, "start", "a"), (3, "end", "a"), (9, "end", "a")], list("aa ")),
        ([(1, "start", "a"), (2, "start", "a"), (3, "end", "a")], list("aaa")),
        ([(3, "start", name) for name in ("", None, 7, ["a"], "\ud800", REMOVED)], ["", "", ""]),
        (
            [(3, "START", "a"), (3, ["start"], "a"), (None, "start", "a"), (1.5, "end", "a")],
            list("   "),
        ),
        ([(-(2**40), "start", "a"), (2**40, "end", "a")], list("aaa")),  # beyond any episode
    ],
)
def test_a_window_carries_the_job_that_overlaps_it_longest(events, jobs):
    rows = [
        {
            "t_wall_ns": at
            if at is None or at % 1
            else max(-(2**63), min(ORIGIN + at * S, 2**63 - 1)),
            "event": f"benign_job_{mark}" if isinstance(mark, str) else mark,
            "job": name,
        }
        for at, mark, name in events
    ]
    rows = [{key: value for key, value in row.items() if value is not REMOVED} for row in rows]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in [*rows, [], {"event": 3}])
    members = {"events.jsonl": content, "labels.jsonl": b""}
    read = parse_episode(pack("x", members), "x", LAYOUT.fields).jobs
    got = window_jobs(read, np.array([0, 50, 100]), Grid(ORIGIN, BIN, 200), LAYOUT.window)
    assert got.tolist() == [job.strip() for job in jobs]


def test_purity_is_the_share_of_bin_centres():
    assert windows(100, (0, "clean")).purity.tolist() == [1.0]
    on_centre = windows(100, (0, "clean"), (1050 * MS, "armed"))
    past_centre = windows(100, (0, "clean"), (1050 * MS + 1, "armed"))
    assert (on_centre.purity.tolist(), past_centre.purity.tolist()) == ([0.9], [0.89])
    relapse = windows(100, (0, "clean"), (3 * S, "armed"), (4 * S, "clean"))
    assert (relapse.label.tolist(), relapse.purity.tolist()) == (["clean"], [0.9])


def test_coverage_is_the_share_of_values_a_source_has():
    series = np.zeros((150, 46), dtype=np.float32)
    series[:, 36:] = NAN
    series[:75, 0:5] = NAN
    shares = source_coverage(series, np.array([0, 50]), LAYOUT, ("proc", "qmp", "netflow"))
    np.testing.assert_allclose(shares, [[1 - 0.75 / 2, 1, 0], [1 - 0.25 / 2, 1, 0]])


# --- statistics


def statistics(values: np.ndarray) -> np.ndarray:
    """The five of one channel whose one window holds ``values``."""
    series = np.full((100, 46), NAN, dtype=np.float32)
    series[:, 3] = values
    features = summarise(series, np.array([0]), LAYOUT)
    assert features.shape == (1, 230)
    assert np.isnan(np.delete(features[0], range(15, 20))).all()
    return features[0, 15:20]


@quick
@given(rngs, st.integers(10, 100), st.sampled_from([1e-3, 1, 1e9]))
def test_statistics_are_numpys(rng, n, scale):
    values = np.full(100, NAN, dtype=np.float32)
    there = sorted(rng.sample(range(100), n))
    drawn = [rng.choice([0, 0, 1, rng.gauss(0, 1), rng.random()]) * scale for _ in there]
    values[there] = drawn
    exact = values[there].astype(float)
    times = np.array(there) * 0.1
    want = [
        np.mean(exact),
        np.std(exact),
        np.percentile(exact, 95),
        np.polyfit(times, exact, 1)[0],
        np.mean(exact == 0),
    ]
    np.testing.assert_allclose(statistics(values), want, rtol=1e-6, atol=1e-9 * scale)


def test_statistics_of_known_windows():
    ramp = np.arange(100, dtype=np.float32)
    np.testing.assert_allclose(statistics(ramp), [49.5, math.sqrt(833.25), 94.05, 10, 0.01])
    # A large value with a small movement: sums of squares in float32 would lose it.
    huge = np.where(np.arange(100) % 2, 2.0**24, 2.0**24 + 2).astype(np.float32)
    assert statistics(huge)[1] == 1.0
    zeros = np.where(np.arange(100) < 25, 0, NAN)
    assert statistics(zeros).tolist() == [0, 0, 0, 0, 1]


def test_fewer_than_ten_bins_have_no_statistics():
    bins = np.arange(100)
    assert np.isnan(statistics(np.where(bins % 11 == 1, bins, NAN))).all()  # 9 of them
    assert not np.isnan(statistics(np.where(bins % 11 == 0, bins, NAN))).any()  # 10


def test_features_are_named_channel_by_channel():
    names = LAYOUT.feature_names
    assert names[:6] == (
        *(f"proc.cpu_user_jiffies.{stat}" for stat in STATS),
        "proc.cpu_sys_jiffies.mean",
    )
    assert list(names) == [f"{channel}.{stat}" for channel in CHANNELS for stat in STATS]
    series = np.tile(np.arange(46, dtype=np.float32), (100, 1))
    features = summarise(series, np.array([0]), LAYOUT)[0]
    assert features[0::5].tolist() == list(range(46))
