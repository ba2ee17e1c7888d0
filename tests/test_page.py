"""The hub's page without a browser: what its files may contain, and that they fit the events."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import SCENES, SHOWN

from episodes.format import PHASES
from evaluation.drawing import PHASE_COLOURS
from evaluation.wording import BASELINE_MEANS, moment
from hub import vendor
from hub.events import CURVE_POINTS, LIVE_WINDOWS, TYPES, schema
from hub.server import KINDS, PAGE
from live.silence import SCORER_SILENT_S

OWN = sorted(path for path in PAGE.iterdir() if path.is_file())
MODULES = [path for path in OWN if path.suffix == ".js"]
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, not an address


class _Markup(HTMLParser):
    """Every attribute and every text of a document, by tag."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._tag, data))


def _markup() -> _Markup:
    found = _Markup()
    found.feed((PAGE / "index.html").read_text())
    return found


def test_markup_has_no_inline_style_or_script() -> None:
    found = _markup()
    assert not [each for each in found.attributes if each[1] == "style" or each[1][:2] == "on"]
    assert not [text for text in found.texts if text[0] in ("style", "script")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_make_no_markup_or_code_of_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|cssText"
    )
    assert not re.findall(forbidden, text)
    assert not re.findall(r"""["']style["']|\bstyle:""", text)  # as an attribute; the CSSOM is used


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert not re.findall(r"(?:https?:)?//[\w-]+\.\w+|@import|url\(", text)


def test_every_file_that_is_named_is_served() -> None:
    named = {value for _, name, value in _markup().attributes if name in ("href", "src")}
    for path in MODULES:
        named |= set(re.findall(r'from "\./([^"]+)"', path.read_text()))
    named -= {value for value in named if value.startswith("#")}
    assert named
    for name in named:
        assert (PAGE / name).is_file(), name
        assert (PAGE / name).suffix in KINDS, name


def test_vendored_files_are_the_recorded_ones() -> None:
    kept = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.VENDOR.iterdir()
        if path != vendor.RECORD
    }
    assert kept == {name: file["sha256"] for name, file in vendor.read_record()["files"].items()}
    assert "MIT" in (vendor.VENDOR / "uPlot.LICENSE.txt").read_text()
    assert vendor.read_record()["licence"] == "MIT"


def test_every_type_of_event_has_a_scene_and_can_be_looked_for() -> None:
    shown = {}
    for path in MODULES:
        text = path.read_text()
        if types := re.search(r"^  types: (\[.*\]),$", text, re.MULTILINE):
            name = re.search(r'^  id: "(\w+)",$', text, re.MULTILINE)
            assert name is not None
            shown |= dict.fromkeys(json.loads(types[1]), name[1])
            assert f'from "./{path.name}"' in (PAGE / "app.js").read_text()
    assert shown == SCENES
    assert set(shown) == set(TYPES) == set(SHOWN)
    kept = re.findall(r"^  (\w+)\(store, event", (PAGE / "store.js").read_text(), re.MULTILINE)
    assert set(kept) == set(TYPES)


def test_phases_are_those_of_the_format() -> None:
    named = re.search(r"PHASES = (\[[^\]]*\])", (PAGE / "phases.js").read_text())
    assert named is not None
    assert tuple(json.loads(named[1])) == PHASES
    shapes = (PAGE / "embedding.js").read_text().partition("SHAPES = {")[2].partition("};")[0]
    assert tuple(re.findall(r"^  (\w+):", shapes, re.MULTILINE)) == PHASES


def test_phases_have_the_colours_of_the_report_page() -> None:
    style = (PAGE / "style.css").read_text()
    for phase, (light, dark) in PHASE_COLOURS.items():
        assert f"  --{phase}: light-dark({light}, {dark});" in style
        assert f".p-{phase} {{ background: var(--{phase}); fill: var(--{phase}); }}" in style


def test_axis_of_profiles_is_that_of_the_events() -> None:
    named = re.search(r"AXIS = (\[\[.*\]\]);", (PAGE / "profiles.js").read_text())
    assert named is not None
    axis = [(phase, points) for phase, points in json.loads(named[1])]
    assert axis == [
        ("clean", 10), ("armed", 5), ("infecting", 10), ("infected_running", 40), ("clean", 15),
    ]  # fmt: skip
    assert sum(points for _, points in axis) == CURVE_POINTS


def test_curves_below_phases_begin_where_phases_do() -> None:
    script, style = (PAGE / "phases.js").read_text(), (PAGE / "style.css").read_text()
    for name in ("gutter", "edge"):
        px = re.search(rf"{name.upper()} = (\d+);", script)
        assert px is not None
        assert re.findall(rf"--{name}: (\d+)px", style) == [px[1]]


def test_windows_kept_are_those_of_the_hub() -> None:
    assert f"LIVE_WINDOWS = {LIVE_WINDOWS};" in (PAGE / "store.js").read_text()


def test_silence_is_hatched_in_a_legend_as_in_a_figure() -> None:
    script, style = (PAGE / "phases.js").read_text(), (PAGE / "style.css").read_text()
    px = re.search(r"HATCH_PX = (\d+);", script)
    assert px is not None
    assert f"var(--hatch) 0 1px, transparent 1px {px[1]}px" in style
    for name in ("alarmed", "silent"):
        assert f".swatch.{name} " in style
        assert f".rows .{name} " in style


def test_a_lane_is_stale_when_the_hub_would_call_its_host_silent() -> None:
    assert f"STALE_S = {SCORER_SILENT_S};" in (PAGE / "live.js").read_text()


def test_every_baseline_is_explained() -> None:
    named = (PAGE / "models.js").read_text().partition("BASELINES = {")[2].partition("};")[0]
    assert set(re.findall(r"^  (\w+):", named, re.MULTILINE)) == set(BASELINE_MEANS)


@pytest.mark.parametrize("module", ["live.js", "embedding.js"])
def test_scenes_read_fields_that_events_have(module: str) -> None:
    fields = {name for part in schema()["$defs"].values() for name in part.get("properties", {})}
    read = set(re.findall(r"\b(?:event|last)\.(\w+)", (PAGE / module).read_text()))
    browsers = {
        "key", "clientX", "clientY", "pointerId", "target", "preventDefault", "ctrlKey", "metaKey",
        "altKey",
    }  # fmt: skip
    assert read - browsers <= fields


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@needs_node
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_parse(path: Path) -> None:
    command = ["node", "--input-type=module", "--check"]
    ran = subprocess.run(
        command, input=path.read_bytes(), capture_output=True, timeout=180, check=False
    )
    assert ran.returncode == 0, ran.stderr


@needs_node
class TestStore:
    """What the page keeps, in the JavaScript engine of node."""

    def test_windows_are_bounded_and_none_is_doubled(self) -> None:
        found = _node("""
            for (let n = 0; n < 300; n++) store.receive(live(n), n);
            for (let n = 280; n < 300; n++) store.receive(live(n), n);
            const lane = store.lanes.get("live a");
            const numbers = lane.windows.map((event) => event.window);
            print([numbers.length, numbers[0], numbers.at(-1), lane.known.size]);
        """)
        assert found == [LIVE_WINDOWS, 60, 299, LIVE_WINDOWS]

    def test_late_window_takes_its_place(self) -> None:
        found = _node("""
            for (const n of [0, 1, 3, 2, 4]) store.receive(live(n), 0);
            print(store.lanes.get("live a").windows.map((event) => event.window));
        """)
        assert found == [0, 1, 2, 3, 4]

    def test_a_replay_has_its_own_lane_and_hides_no_live_alarm(self) -> None:
        found = _node("""
            for (let n = 0; n < 3; n++) {
              store.receive(live(n, { alarm: "standing", alarm_id: "x" }), 0);
              store.receive(live(n, { source: "replay", session: "r" }), 0);
            }
            print(store.sorted().map(({ key, name, last, windows }) =>
              [key, name, last.alarm, windows.map((event) => event.source)]));
        """)
        assert found == [
            ["live a", "a", "standing", ["live"] * 3],
            ["replay a", "a (replay)", "none", ["replay"] * 3],
        ]

    def test_second_replay_of_the_same_rows_begins_anew(self) -> None:
        found = _node("""
            for (let n = 0; n < 9; n++) store.receive(live(n), 0);
            store.receive(live(0, { session: "again" }), 0);
            store.receive(live(1, { session: "again" }), 0);
            print(store.lanes.get("live a").windows.map((event) => event.session));
        """)
        assert found == ["again", "again"]

    def test_restarted_scorer_goes_on(self) -> None:
        found = _node("""
            store.receive(live(7), 0);
            store.receive(live(0, { session: "t", start: 40, end: 50 }), 0);
            print(store.lanes.get("live a").windows.length);
        """)
        assert found == 2

    def test_alarm_is_news_once_and_knows_its_ends(self) -> None:
        found = _node("""
            const states = [[1, "raised"], [1, "raised"], [2, "standing"], [3, "cleared"]];
            const news = states.map(([n, alarm]) =>
              store.receive(live(n, { alarm, alarm_id: "x", score: n / 10 }), 0)[1]);
            const { from, until, peak, seen } = store.lanes.get("live a").alarms.get("x");
            print([news, from, until, peak, seen]);
        """)
        assert found == [["raised", None, None, "cleared"], 15, 25, 0.3, True]

    def test_alarm_whose_beginning_was_missed_says_so(self) -> None:
        found = _node("""
            store.receive(live(5, { alarm: "standing", alarm_id: "x" }), 0);
            const { from, seen } = store.lanes.get("live a").alarms.get("x");
            print([from, seen]);
        """)
        assert found == [35, False]

    def test_silence_ends_with_the_next_window(self) -> None:
        found = _node("""
            store.receive(live(5), 0);
            const silent = live(6, {
              phase: null, filtered: null, score: null, silent: ["a"], alarm: "raised",
              alarm_id: "s", start: 35, end: 60,
            });
            const back = live(6, { start: 70, end: 80 });
            const news = [silent, back].map((event) => store.receive(event, 0)[1]);
            const lane = store.lanes.get("live a");
            print([news, lane.alarms.get("s").until, lane.windows.length]);
        """)
        assert found == [["raised", "back"], 70, 3]

    def test_silence_ends_after_it_was_raised_though_the_window_began_before(self) -> None:
        found = _node("""
            const silent = { phase: null, score: null, silent: ["a"], alarm_id: "s", start: 35 };
            store.receive(live(6, { ...silent, alarm: "raised", end: 40 }), 0);
            store.receive(live(6, { ...silent, alarm: "standing", end: 55 }), 0);
            const lane = store.lanes.get("live a");
            const whole = lane.windows.map(({ start, end }) => [start, end]);
            store.receive(live(6, { alarm: "cleared", alarm_id: "s", score: 0.4 }), 0);
            const { from, until, peak } = lane.alarms.get("s");
            print([whole, from, until, peak]);
        """)
        assert found == [[[35, 55]], 40, 55, None]

    def test_hosts_and_points_are_bounded(self) -> None:
        found = _node("""
            for (let n = 0; n < 300; n++) {
              store.receive(live(0, { host: `h${n}` }), 0);
              store.receive(live(n, { host: "busy" }), 0);
            }
            for (let n = 0; n < 25000; n++) {
              store.receive({ v: 1, type: "embedding", episode_id: "e", window: n }, 0);
            }
            const { lanes, points } = store;
            print([lanes.size, lanes.has("live h299"), lanes.has("live busy"), points.size]);
        """)
        assert found == [100, True, True, 20000]

    def test_unknown_event_is_counted_and_not_kept(self) -> None:
        found = _node("""
            const events = [{ v: 2, type: "phase" }, { v: 1, type: "constructor" }, null];
            const taken = events.map((event) => store.receive(event, 0)[0]);
            print([taken, store.unknown, store.lastAt]);
        """)
        assert found == [[None, None, None], 3, None]

    def test_the_newest_event_is_known_whether_kept_or_new(self) -> None:
        found = _node("""
            for (const heard of [40, 70, 55]) store.receive(live(heard), heard);
            print(store.lastAt);
        """)
        assert found == 70

    def test_standing_alarms_come_first_and_replays_last(self) -> None:
        found = _node("""
            const alarm = { alarm: "standing", alarm_id: "x" };
            store.receive(live(0, { host: "a", source: "replay", ...alarm }), 0);
            store.receive(live(0, { host: "b" }), 0);
            store.receive(live(0, { host: "d", phase: null, ...alarm }), 0);
            store.receive(live(0, { host: "c", ...alarm }), 0);
            print(store.sorted().map(({ host }) => host));
        """)
        assert found == ["c", "d", "b", "a"]


@needs_node
class TestSpans:
    """Where things stand on an axis of time; windows are 10 s long, one every 5 s."""

    def test_a_window_is_drawn_around_its_centre(self) -> None:
        found = _node("""
            const windows = [live(0), live(1), live(2)];
            const stride = spans.strideOf(windows);
            const cells = windows.map((each) => spans.cell(each, stride));
            print([stride, cells, windows.map(spans.centre), spans.strideOf([live(4)])]);
        """)
        assert found == [5, [[2.5, 7.5], [7.5, 12.5], [12.5, 17.5]], [5, 10, 15], 5]

    def test_silence_is_drawn_to_the_next_word_and_the_last_to_the_edge(self) -> None:
        found = _node("""
            const silent = (start, end) => live(9, { phase: null, start, end });
            const windows = [live(0), silent(12, 17), live(8), silent(55, 60)];
            print([spans.silences(windows, 100), spans.strideOf(windows)]);
        """)
        assert found == [[[12, 40], [55, 100]], 40]

    def test_an_alarm_goes_on_through_silence_without_a_hole(self) -> None:
        found = _node("""
            const stands = { alarm: "standing", alarm_id: "x" };
            const windows = [
              live(0), live(1, { alarm: "raised", alarm_id: "x" }), live(2, stands),
              live(3, { phase: null, start: 22, end: 40, ...stands }),
            ];
            print(spans.alarmed(windows, 60, 5));
        """)
        assert found == [[7.5, 60]]

    def test_two_alarms_are_two_spans(self) -> None:
        found = _node("""
            const windows = [
              live(0, { alarm: "raised", alarm_id: "x" }),
              live(1, { alarm: "cleared", alarm_id: "x" }),
              live(2, { alarm: "raised", alarm_id: "y" }),
            ];
            print(spans.alarmed(windows, 20, 5));
        """)
        assert found == [[2.5, 7.5], [12.5, 17.5]]

    def test_boxes_that_touch_are_one(self) -> None:
        found = _node("""
            const boxes = [[0, 5, "a"], [5, 9, "a"], [9, 12, "b"], [8, 20, "b"], [30, 31, "b"]];
            print(spans.merged(boxes));
        """)
        assert found == [[0, 9, "a"], [8, 20, "b"], [30, 31, "b"]]


def _node(script: str) -> object:
    """What a script prints; it has ``store``, and ``live(n)``: window ``n`` of host ``a``."""
    program = f"""
        import {{ Store }} from "{(PAGE / "store.js").as_uri()}";
        import * as spans from "{(PAGE / "spans.js").as_uri()}";
        const store = new Store();
        const live = (n, more = {{}}) => ({{
          v: 1, type: "live_detection", at: 0, origin: "o", host: "a", model: "m", bundle: "b",
          session: "s", window: n, start: 5 * n, end: 5 * n + 10, source: "live", phase: "clean",
          filtered: "clean", score: 0.1, threshold: 0.5, alarm: "none", alarm_id: null, silent: [],
          ...more,
        }});
        const print = (value) => console.log(JSON.stringify(value));
        {script}
    """
    ran = subprocess.run(
        ["node", "--input-type=module"],
        input=program,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("timestamp", ["2026-11-29T14:38:39+00:00", "2026-11-29T16:38:39+02:00"])
def test_moments_are_given_in_utc_to_the_minute(timestamp: str) -> None:
    assert moment(timestamp) == "2026-11-29 14:38 UTC"
