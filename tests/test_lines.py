"""What benchmarks write: ratios, merging, refusal, the page."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks.lines import Point, Recording, bench_folder, curves, paired, read_bench, recording


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHASEWATCH_ARTIFACTS", str(tmp_path))
    return tmp_path / "bench"


def test_a_ratio_above_one_is_better_whatever_is_measured() -> None:
    out = Recording("x")
    out.limit("memory", 2.0, 4.0, "GB")
    out.limit("rate", 200.0, 100.0, "/s", better="more")
    out.line("seconds", 3.0, 1.0, "s", "another")
    out.limit("lost", 0.0, 0.0, "")
    out.limit("lost", 3.0, 0.0, "")
    out.alone("latency", 5.0, "ms")
    assert [line.ratio for line in out.lines] == pytest.approx([2, 2, 1 / 3, 1, 0, None])


def test_ways_are_timed_in_turn_each_round_from_another_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.lines.TURN_S", 0.0)
    called: list[str] = []
    seconds = paired({name: partial(called.append, name) for name in "abc"}, rounds=3)
    assert "".join(called) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(rounds) for name, rounds in seconds.items()} == dict.fromkeys("abc", 3)


def test_a_slow_peer_may_do_less(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"": [1.0, 2.0, 4.0], "peer": [1.0, 1.0, 8.0]}
    monkeypatch.setattr("benchmarks.lines.paired", lambda *_: given)
    out = Recording("x")
    out.against("rows", print, {"peer": print}, 100, "rows", fewer={"peer": 10})
    (line,) = out.lines
    # a tenth of the work: ten times 1, 0.5 and 2
    assert (line.ours, line.other, line.ratio) == (50, 10, 10)


def test_a_benchmark_replaces_its_own_figures_only() -> None:
    for name, figure in (("one", 1.0), ("two", 2.0), ("one", 3.0)):
        with recording(name) as out:
            out.alone("cost", figure, "s")
    found = read_bench().benchmarks
    assert {name: each.lines[0].ours for name, each in found.items()} == {"one": 3.0, "two": 2.0}
    assert {"python", "numpy"} <= set(found["one"].versions)


def test_a_benchmark_that_fails_changes_nothing() -> None:
    with recording("one") as out:
        out.alone("cost", 1.0, "s")
    before = (bench_folder() / "latest.json").read_bytes()
    with pytest.raises(ZeroDivisionError), recording("one") as out:
        out.alone("cost", 2.0 / (out.load * 0), "s")
    assert (bench_folder() / "latest.json").read_bytes() == before


def test_a_file_that_is_none_of_ours_is_refused_before_measuring(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "latest.json").write_text(json.dumps({"format": 2, "benchmarks": {}}))
    measured = False
    with pytest.raises(ValueError, match=r"latest\.json"), recording("one"):
        measured = True
    assert not measured


def test_points_of_one_curve_are_one_plot_with_a_line_for_each_series(folder: Path) -> None:
    with recording("one") as out:
        for size in (1000, 10, 100):
            out.point("Cost", size, "shards", 5.0, "s", "flat & <wide>")
            out.point("Cost", size, "shards", 0.01 * size, "s", "linear")
    (curve,) = curves(read_bench())
    places = {name: [(x, y) for x, y, _ in points] for name, points in curve.series.items()}
    assert {y for _, y in places["flat & <wide>"]} == {places["flat & <wide>"][0][1]}
    assert [x for x, _ in places["linear"]] == sorted(x for x, _ in places["linear"])
    (x0, y0), (x1, y1), (x2, y2) = places["linear"]
    assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2), abs=0.2)
    page = (folder / "bench.html").read_text()
    assert "flat &amp; &lt;wide&gt;" in page
    assert "<script" not in page


def test_a_cost_of_nothing_has_no_place_on_a_logarithmic_axis() -> None:
    with pytest.raises(ValueError, match="cost"):
        Point(curve="c", series="s", size=1, size_is="n", cost=0, unit="s")
