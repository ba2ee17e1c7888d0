"""Events say what the checkpoint and its rule say, window by window; silence and restarts too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from builders import StoreBuilder, make_members, pack, ulid
from lab import Lab, checkpoint_of
from typer.testing import CliRunner

from episodes.format import SOURCES
from episodes.reading import parse_episode
from episodes.store import list_store
from features.extraction import extract
from features.registry import LAYOUT
from hub.client import Publisher, PublishError
from hub.events import EVENT
from live import cli, outputs
from live import scorer as scoring
from live.bundle import Bundle, load_bundle, pack_arrays, unpack_arrays
from live.cli import FAILED, NO_HOST, OK, USAGE, _loop, main, recordings
from live.outputs import CommandOutput, HubOutput, MetricsOutput
from live.scorer import LiveScorer
from live.sources import DEPLOYABLE, FolderSource, ReplaySource, StdinSource
from live.stream import LiveWindow
from models.likeness import ALPHA
from pipelines.cli.app import REJECTED, app
from stages.scoring import Scorer

ROOT = Path(__file__).parent.parent
EPISODE = ulid(1_790_000_000_000, 7)
ATTACK = [("clean", 0.0), ("armed", 40.0), ("infecting", 50.0), ("infected_running", 60.0),
          ("dormant", 110.0)]  # fmt: skip
Bundled = Callable[[str], Path]


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    return make_members("lab-a", EPISODE, duration_s=150, phases=ATTACK)


def scored(bundle: Bundle, members: dict[str, bytes], **options: Any) -> list[dict[str, Any]]:
    replay = ReplaySource(members, 0)
    made = LiveScorer(bundle, "lab-a", "s", origin_ns=replay.origin_ns(), **options)
    return [*rows_through(made, replay), *made.close()]


def rows_through(made: LiveScorer, replay: ReplaySource) -> Iterator[dict[str, Any]]:
    while (found := replay.read()) is not None:
        for name, lines in found:
            yield from made.push(name, lines)


@pytest.mark.parametrize("model", ["gbt", "knn", "gru"])
def test_events_say_what_the_checkpoint_says_of_the_episode(
    trained: Lab, bundled: Bundled, members: dict[str, bytes], model: str
) -> None:
    bundle = load_bundle(bundled(model))
    events = scored(bundle, members, replay_of=EPISODE)
    extracted = extract(parse_episode(pack(EPISODE, members), EPISODE, LAYOUT.fields), LAYOUT)
    scorer = Scorer(trained.project, checkpoint_of(trained, model))
    scores = scorer.scores(extracted)
    assert [e["window"] for e in events] == list(range(len(scores)))
    assert scores.rule_scores is not None
    assert scorer.likeness is not None
    rows = np.concatenate([extracted.features, extracted.baseline], axis=1)
    assert len(rows) == len(events)
    for i, event in enumerate(events):
        EVENT.validate_python(event)
        close = {"abs": 2e-5}
        proba, filtered = (
            [event[key][p] for p in LAYOUT.phases]
            for key in ("probabilities", "filtered_probabilities")
        )
        assert proba == pytest.approx(scores.proba[i].tolist(), **close)
        assert filtered == pytest.approx(scores.rule_scores.proba[i].tolist(), **close)
        assert event["score"] == pytest.approx(float(scores.rule_scores.score[i]), **close)
        assert (event["alarm"] in ("raised", "standing")) == bool(scores.rule_scores.alarm[i])
        assert event["source"] == "replay"
        assert event["data_at"] == pytest.approx(event["end"], abs=0.2)  # of the recording
        assert event["data_at"] < event["end"]
        assert len(event["why"]) <= 3
        assert set(event["coverage"]) == set(DEPLOYABLE)


def test_what_argues_for_an_alarm_adds_up_for_trees(
    bundled: Bundled, members: dict[str, bytes]
) -> None:
    """The additions to the margins are exact; the log-odds of an alarm are linear in them."""
    bundle = load_bundle(bundled("gbt"))
    replay = ReplaySource(members, 0)
    made = LiveScorer(bundle, "lab-a", "s", origin_ns=replay.origin_ns())
    windows = []
    while (found := replay.read()) is not None:
        for name, lines in found:
            windows += made.windows.push(name, lines)
    trees = bundle.runtime.trees  # type: ignore[attr-defined]
    for window in windows[::5]:
        x = bundle.inputs(window)[0]
        each = trees.contributions(x[None], bundle.channel)[0]
        total = each.sum(axis=1) + trees.expected_margins
        assert total == pytest.approx(trees.margins(x[None])[0], abs=1e-4)
        proba = bundle.runtime.proba(x[None])[0]
        weight = np.where(
            bundle.infected, proba / proba[bundle.infected].sum(),
            -proba / proba[~bundle.infected].sum(),
        )  # fmt: skip
        argued = bundle.runtime.arguments(x, bundle.channel, bundle.infected)
        assert argued == pytest.approx(weight @ each, abs=1e-4)


@pytest.mark.parametrize("model", ["gru", "knn"])
def test_what_argues_for_an_alarm_is_what_an_occluded_channel_takes_away(
    bundled: Bundled, members: dict[str, bytes], model: str
) -> None:
    bundle = load_bundle(bundled(model))
    replay = ReplaySource(members, 0)
    made = LiveScorer(bundle, "lab-a", "s", origin_ns=replay.origin_ns())
    windows: list[LiveWindow] = []
    while not windows:
        for name, lines in replay.read() or ():
            windows += made.windows.push(name, lines)
    x = bundle.inputs(windows[0])[0]
    argued = bundle.runtime.arguments(x, bundle.channel, bundle.infected)
    from models.scaling import typical

    channel = int(bundle.channel[0])
    without = x.copy()
    plain = typical(bundle.head["scaling"])
    without[..., bundle.channel == channel] = plain[bundle.channel == channel]
    attack = bundle.runtime.proba(np.stack([x, without]))[:, bundle.infected].sum(axis=1)
    attack = np.clip(attack.astype(float), 1e-6, 1 - 1e-6)
    odds = np.log(attack / (1 - attack))
    assert argued[channel] == pytest.approx(odds[0] - odds[1], abs=1e-3)


# --- alarms


class _Told:
    """A model that says what it is told, window by window."""

    def __init__(self, attacks: list[float]):
        self._attacks = iter(attacks)

    def proba(self, X: np.ndarray) -> np.ndarray:
        attack = next(self._attacks)
        rest = (1 - attack) / 3
        return np.array([[rest, rest, attack / 2, attack / 2, rest]] * len(X), dtype=np.float32)

    def arguments(self, *_: np.ndarray) -> np.ndarray:
        return np.zeros(len(LAYOUT.channels))


def test_an_alarm_is_raised_stands_and_is_cleared_once(
    bundled: Bundled, members: dict[str, bytes]
) -> None:
    from dataclasses import replace

    bundle = load_bundle(bundled("knn"))
    rule = replace(bundle.rule, threshold=0.8, clear_ratio=0.5)
    told = [0.01] * 6 + [0.99] * 5 + [0.01] * 7 + [0.99] * 3 + [0.01] * 30
    bundle = replace(bundle, rule=rule, runtime=_Told(told))  # type: ignore[arg-type]
    events = scored(bundle, members)
    alarms = [e["alarm"] for e in events]
    assert alarms.count("raised") == alarms.count("cleared") == 2
    assert alarms[alarms.index("raised") + 1] == "standing"
    runs = [e["alarm_id"] for e in events if e["alarm_id"]]
    assert len(set(runs)) == 2
    for event in events:
        assert (event["alarm_id"] is None) == (event["alarm"] == "none")


# --- silence and restarts


def test_silence_is_told_at_once_and_every_stride(
    bundled: Bundled, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(scoring.time, "monotonic", lambda: clock[0])
    bundle = load_bundle(bundled("knn"))
    made, replay = LiveScorer(bundle, "lab-a", "s"), ReplaySource(members, 0)
    for name, lines in replay.read() or ():
        list(made.push(name, lines))
    assert not list(made.tick())
    told = []
    for _ in range(160):  # sixteen seconds
        clock[0] += 0.1
        told += [(round(clock[0] - 1000), event) for event in made.tick()]
    assert [at for at, _ in told] == [5, 10, 15]
    since = made.windows.newest_s
    for at, event in told:
        EVENT.validate_python(event)
        assert event["silent"] == ["lab-a", *DEPLOYABLE]
        assert event["phase"] is None
        assert event["start"] == event["data_at"] == since
        assert event["end"] == pytest.approx(since + at)
    assert [event["alarm"] for _, event in told] == ["raised", "standing", "standing"]
    assert len({event["alarm_id"] for _, event in told}) == 1
    for name, lines in replay.read() or ():
        list(made.push(name, lines))
    assert not list(made.tick())
    first, second, *_ = [*rows_through(made, replay)]
    assert (first["alarm"], first["alarm_id"]) == ("cleared", told[0][1]["alarm_id"])
    assert (second["alarm"], second["alarm_id"]) == ("none", None)


@pytest.mark.parametrize(
    "kept_up",
    [
        lambda _, i: b'{"source": "guest_agent", "i": %d}' % i,
        lambda row, _: row,
        lambda row, i: row[:-1] + b', "i": %d}' % i,
        lambda row, i: json.dumps({**json.loads(row), "t_wall_ns": i}).encode(),
    ],
    ids=["malformed", "repeated", "frozen", "stray"],
)
def test_lines_that_say_nothing_new_do_not_hide_silence(
    bundled: Bundled, monkeypatch: pytest.MonkeyPatch, kept_up: Callable[[bytes, int], bytes]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(scoring.time, "monotonic", lambda: clock[0])
    made, rows = LiveScorer(load_bundle(bundled("knn")), "lab-a", "s"), _guest_rows(300)
    told: list[tuple[float, str]] = []

    def pass_on(row: bytes) -> list[dict[str, Any]]:
        clock[0] += 0.1
        events = list(made.push("guest", row))
        told.extend((round(clock[0] - at, 1), event["alarm"]) for event in made.tick())
        return events

    for row in rows[:100]:
        pass_on(row)
    at = clock[0]
    assert told == []
    for i in range(120):
        pass_on(kept_up(rows[99], i * 1_000_000_000_000 * (-1) ** i))
    assert told == [(5, "raised"), (10, "standing")]
    events = [event for row in rows[100:] for event in pass_on(row)]
    assert events[0]["alarm"] == "cleared"
    assert len(told) == 2


def test_silence_is_told_while_lines_come(
    bundled: Bundled, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(scoring.time, "monotonic", lambda: clock[0])

    class Repeats:
        """The same row ten times a second, for eleven seconds."""

        lost: ClassVar[dict[str, int]] = {}

        def read(self) -> list[tuple[str, bytes]] | None:
            clock[0] += 0.1
            return [("guest", _guest_rows(10)[0])] if clock[0] < 1011 else None

        def close(self) -> None: ...

    sent: list[dict[str, Any]] = []
    output = SimpleNamespace(send=sent.append, close=lambda: None)
    stop = SimpleNamespace(wanted=False)
    made = LiveScorer(load_bundle(bundled("knn")), "lab-a", "s")
    _loop(made, Repeats(), [output], stop, None)  # type: ignore[arg-type, list-item]
    assert [event["alarm"] for event in sent] == ["raised", "standing"]


def _guest_rows(n: int, start_ns: int = 1_790_000_000_000_000_000) -> list[bytes]:
    members = make_members("lab-a", EPISODE, duration_s=n / 10, start_ns=start_ns)
    return members[SOURCES["guest"].file].splitlines()


def test_silence_before_the_first_row_is_told(
    bundled: Bundled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, began = LiveScorer(load_bundle(bundled("knn")), "lab-a", "s"), time.time()
    monkeypatch.setattr(scoring.time, "monotonic", lambda: made._heard + 7)
    (told,) = made.tick()
    assert (told["alarm"], told["data_at"]) == ("raised", None)
    assert [told["start"], told["end"]] == pytest.approx([began, began + 7], abs=1)


def test_a_source_without_a_value_in_a_window_is_silent_in_it(
    bundled: Bundled, members: dict[str, bytes]
) -> None:
    guest = SOURCES["guest"].file
    rows = members[guest].splitlines(keepends=True)
    kept = b"".join(rows[:400] + rows[700:])  # a hole of 30 s
    events = scored(load_bundle(bundled("knn")), members | {guest: kept})
    assert len(events) == 29
    for event in events:
        assert ("guest" in event["silent"]) == (event["coverage"]["guest"] == 0)
    assert sum("guest" in event["silent"] for event in events) in (4, 5)


def test_a_replay_that_ends_is_not_silent(
    bundled: Bundled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = LiveScorer(load_bundle(bundled("knn")), "lab-a", "s", replay_of=EPISODE)
    monkeypatch.setattr(scoring.time, "monotonic", lambda: 1e9)
    assert not list(made.tick())


@pytest.mark.parametrize("model", ["gbt", "knn"])
def test_a_restart_goes_on_as_if_there_had_been_none(bundled: Bundled, model: str) -> None:
    start = time.time_ns() - 140_000_000_000
    members = make_members("lab-a", EPISODE, duration_s=150, phases=ATTACK, start_ns=start)
    bundle = load_bundle(bundled(model))
    whole = scored(bundle, members)
    replay = ReplaySource(members, 0)
    first = LiveScorer(bundle, "lab-a", "s", origin_ns=replay.origin_ns())
    events: list[dict[str, Any]] = []
    while len(events) < 15:
        for name, lines in replay.read() or ():
            events += first.push(name, lines)
    second = LiveScorer(bundle, "lab-a", "other")
    assert second.resume(first.state())
    events += [*rows_through(second, replay), *second.close()]
    varies = {"at", "latency_ms"}
    assert [{k: v for k, v in e.items() if k not in varies} for e in events] == [
        {k: v for k, v in e.items() if k not in varies} for e in whole
    ]


@pytest.mark.parametrize("duration_s", [60, 700])
def test_a_followed_folder_goes_on_where_its_last_scorer_stopped(
    bundled: Bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], duration_s: int,
) -> None:  # fmt: skip
    class Ends(FolderSource):
        """Stops the scorer when all is read."""

        def read(self) -> list[tuple[str, bytes]] | None:
            if not (found := super().read()):
                os.kill(os.getpid(), signal.SIGTERM)
            return found

    monkeypatch.setattr(cli, "FolderSource", Ends)
    folder, state = tmp_path / "episode", tmp_path / "state.npz"
    folder.mkdir()
    start = time.time_ns() - duration_s * 1_000_000_000
    members = make_members("lab-a", EPISODE, duration_s=duration_s, start_ns=start)
    bundle = load_bundle(bundled("knn"))
    whole = scored(bundle, members)
    (folder / "labels.jsonl").write_bytes(members["labels.jsonl"])
    events: list[dict[str, Any]] = []
    for share in (0.6, 0.6, 0.9, 1):
        for name in DEPLOYABLE:
            rows = members[SOURCES[name].file].splitlines(keepends=True)
            until = start + share * duration_s * 1_000_000_000
            n = sum(json.loads(row)["t_wall_ns"] < until for row in rows)
            written = b"".join(rows[:n]) + b"".join(rows[n : n + 1])[:50]  # a line is cut
            (folder / SOURCES[name].file).write_bytes(written)
        words = ["--follow", str(folder), "--host", "lab-a", "--state", str(state)]
        assert main(["live", str(bundled("knn")), *words]) == OK
        events += [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(events) > 0.8 * len(whole)
    same = ("window", "start", "input_digest", "restarted")
    assert [[e[k] for k in same] for e in events] == [[e[k] for k in same] for e in whole][
        : len(events)
    ]


def test_the_state_of_another_bundle_is_not_used(
    bundled: Bundled, members: dict[str, bytes]
) -> None:
    one, other = (load_bundle(bundled(model)) for model in ("gbt", "knn"))
    first, replay = LiveScorer(one, "lab-a", "s"), ReplaySource(members, 0)
    list(rows_through(first, replay))
    assert not LiveScorer(other, "lab-a", "s").resume(first.state())


def test_the_state_of_another_host_is_not_used(bundled: Bundled) -> None:
    bundle, start = load_bundle(bundled("knn")), time.time_ns() - 20_000_000_000
    first = LiveScorer(bundle, "old", "s")
    for row in _guest_rows(150, start):
        list(first.push("guest", row))
    assert LiveScorer(bundle, "old", "s").resume(first.state())
    assert not LiveScorer(bundle, "new", "s").resume(first.state())


def test_the_alarm_of_silence_is_cleared_after_a_restart(
    bundled: Bundled, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, rows = load_bundle(bundled("knn")), _guest_rows(300, time.time_ns() - 30_000_000_000)
    first = LiveScorer(bundle, "lab-a", "s")
    for row in rows[:150]:
        list(first.push("guest", row))
    monkeypatch.setattr(scoring.time, "monotonic", lambda: first._heard + 7)
    (silent,) = first.tick()
    second = LiveScorer(bundle, "lab-a", "other")
    assert second.resume(first.state())
    event = next(event for row in rows[150:] for event in second.push("guest", row))
    assert (event["alarm"], event["alarm_id"]) == ("cleared", silent["alarm_id"])


def test_a_clock_set_back_during_a_restart_keeps_the_past_and_the_alarm(bundled: Bundled) -> None:
    bundle, now = load_bundle(bundled("knn")), time.time_ns()
    first = LiveScorer(bundle, "lab-a", "s")
    for row in _guest_rows(300, now):  # up to 30 s from now
        list(first.push("guest", row))
    first._alarm_id, first._follower.alarm = "lab-a-s-1", True
    second = LiveScorer(bundle, "lab-a", "other")
    assert second.resume(first.state())
    again = [event for row in _guest_rows(200, now) for event in second.push("guest", row)]
    assert ["30 s" in (event["restarted"] or "") for event in again] == [True, False]
    assert again[0]["window"] == first.windows.number
    assert again[0]["alarm_id"] == "lab-a-s-1"
    assert second.windows.past == first.windows.past + len(again)


def test_a_baseline_does_not_replace_the_past_that_a_state_has(
    bundled: Bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bundle, rows = load_bundle(bundled("knn")), _guest_rows(600, time.time_ns() - 60_000_000_000)
    given: list[list[tuple[str, bytes]]] = []

    class Given(StdinSource):
        def read(self) -> list[tuple[str, bytes]] | None:
            return given.pop(0) if given else None

    monkeypatch.setattr(cli, "StdinSource", Given)
    baseline, kept = tmp_path / "baseline.npz", tmp_path / "state.npz"
    features = np.full((12, len(LAYOUT.channels) * len(LAYOUT.stats)), 1e6, dtype=np.float32)
    baseline.write_bytes(
        pack_arrays({"features": features, "contract": np.array(bundle.contract_hash)})
    )

    def digests(rows: list[bytes], *more: str) -> list[str]:
        given[:] = [[("guest", row)] for row in rows]
        words = ["live", str(bundled("knn")), "--stdin", "--host", "lab-a", *more]
        assert main(words) == OK
        return [json.loads(e)["input_digest"] for e in capsys.readouterr().out.splitlines()]

    digests(rows[:300], "--state", str(kept))
    state = kept.read_bytes()
    expected = digests(rows[300:], "--state", str(kept))
    kept.write_bytes(state)
    more = ["--baseline", str(baseline)]
    assert digests(rows[300:], "--state", str(kept), *more) == expected
    assert digests(rows[300:], *more) != digests(rows[300:])


def test_a_state_that_cannot_be_saved_is_said_once_and_scoring_goes_on(
    bundled: Bundled, members: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    sent: list[dict[str, Any]] = []
    output = SimpleNamespace(send=sent.append, close=lambda: None)
    stop = SimpleNamespace(wanted=False)
    made = LiveScorer(load_bundle(bundled("knn")), "lab-a", "s", replay_of=EPISODE)
    source, state = ReplaySource(members, 0), tmp_path / "file" / "state.npz"
    _loop(made, source, [output], stop, state)  # type: ignore[arg-type, list-item]
    assert len(sent) > 20
    assert sum(str(state) in record.message for record in caplog.records) == 1


def test_unlike_is_said_as_in_batch(
    trained: Lab, bundled: Bundled, members: dict[str, bytes]
) -> None:
    bundle = load_bundle(bundled("gbt"))
    likeness = Scorer(trained.project, checkpoint_of(trained, "gbt")).likeness
    extracted = extract(parse_episode(pack(EPISODE, members), EPISODE, LAYOUT.fields), LAYOUT)
    from features.relative import summary_inputs

    X = summary_inputs(extracted.features, extracted.baseline)
    X = X[:, LAYOUT.keep_mask("realistic", "summary")]
    assert likeness is not None
    expected = likeness.p_values(likeness.scores(X)) <= ALPHA
    assert [e["unlike"] for e in scored(bundle, members)] == expected.tolist()


# --- the program


def program(*words: str) -> list[str]:
    return [sys.executable, "-c", "from live.cli import entry; entry()", *words]


@pytest.fixture
def recorded(tmp_path: Path, members: dict[str, bytes]) -> Path:
    folder = tmp_path / "unpacked" / EPISODE
    folder.mkdir(parents=True)
    for name, content in members.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_replay_prints_one_event_per_window(
    bundled: Bundled, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["live", str(bundled("gbt")), "--replay", str(recorded), "--speed", "0"]
    assert main(words) == OK
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(events) == 29
    assert {e["replay_of"] for e in events} == {EPISODE}
    assert {e["host"] for e in events} == {"lab-a"}


def test_recordings_are_read_in_their_turn_and_wrong_names_are_refused_before(
    bundled: Bundled, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(recorded, recorded.with_name("second"))
    found = recordings(str(recorded.parent))
    shutil.rmtree(recorded.with_name("second"))
    assert next(found).name == EPISODE
    with pytest.raises(FileNotFoundError):
        next(found)
    words = ["live", str(bundled("knn")), "--speed", "0", "--replay", str(recorded)]
    assert main([*words, "--replay", str(recorded.parent / "third")]) == USAGE
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("meta", [b"", b"[]", b'{"host_id": 7}', b'{"host_id": ""}'])
def test_a_recording_that_names_no_host_has_one_all_the_same(recorded: Path, meta: bytes) -> None:
    (recorded / "meta.json").write_bytes(meta)
    (found,) = recordings(str(recorded))
    assert found.host == NO_HOST


def test_an_archive_outside_a_store_has_the_host_that_it_names(
    bundled: Bundled, members: dict[str, bytes], tmp_path: Path
) -> None:
    archive = tmp_path / f"{EPISODE}.tar.zst"
    archive.write_bytes(pack(EPISODE, members))
    words = ["live", str(bundled("knn")), "--speed", "0", "--replay", str(archive)]
    ran = CliRunner().invoke(app, words)
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    assert (ran.exit_code, {event["host"] for event in events}) == (OK, {"lab-a"})
    for event in events:
        EVENT.validate_python(event)


def test_rejected_episodes_of_a_batch_are_not_replayed(
    bundled: Bundled, members: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreBuilder(tmp_path / "store")
    store.add("lab-a", members)
    short = store.add("lab-a", start_ns=1_790_001_000_000_000_000, duration_s=5)
    store.add("lab-a", start_ns=1_790_002_000_000_000_000, packed=b"no archive")
    (batch,) = list_store(store.root).batches
    monkeypatch.setenv("PHASEWATCH_STORE", str(store.root))

    def replayed(name: str) -> tuple[int, set[str], str]:
        words = ["live", str(bundled("knn")), "--speed", "0", "--replay", name]
        ran = CliRunner().invoke(app, words)
        events = [json.loads(line) for line in ran.stdout.splitlines()]
        return ran.exit_code, {event["replay_of"] for event in events}, ran.stderr

    code, found, told = replayed(batch)
    assert (code, found) == (REJECTED, {EPISODE})
    assert "2 of 3 episodes are not replayed: 2 rejected" in told
    assert f"phasewatch validate --store {store.root}" in told
    assert replayed(str(store.root / "episodes"))[:2] == (REJECTED, {EPISODE})
    code, found, told = replayed(short.episode_id)
    assert (code, found, short.episode_id in told) == (REJECTED, set(), True)
    code, found, told = replayed(f"{EPISODE[:-1]}Z")
    assert (code, found, EPISODE in told) == (USAGE, set(), True)


@pytest.mark.parametrize(
    "words",
    [
        ["--replay", "no-such-folder"],
        ["--this-machine", "--host", "a b"],
        ["--follow", "nowhere"],
        ["--this-machine", "--to", "ftp://x"],
        ["--this-machine", "--to", "http://[::1"],
        ["--this-machine", "--to", "http://127.0.0.1:84x7"],
        ["--this-machine", "--to", "http://x", "--token-file", "token"],
        ["--this-machine", "--on-alarm", "sh -c 'x"],
        ["--this-machine", "--on-alarm", "no-such-program"],
        ["--this-machine", "--state", "."],
        ["--this-machine", "--state", "nowhere/state.npz"],
        ["--this-machine", "--state", "token/state.npz"],
        ["--this-machine", "--state", "other.npz"],
        ["--stdin", "--baseline", "other.npz"],
        ["--this-machine", "--to", "http://x", "--token-file", "nowhere"],
        ["--this-machine", "--metrics", "99999"],
        ["--replay", ".", "--baseline", "x"],
        ["--stdin", "--baseline", "nowhere"],
        ["--this-machine", "--speed", "-1"],
        [],
    ],
)
def test_what_cannot_be_done_is_a_usage_error(
    bundled: Bundled, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("süß" * 9, encoding="utf-8")
    Path("other.npz").write_bytes(pack_arrays({"features": np.zeros(1)}))
    assert main(["live", str(bundled("knn")), *words]) == USAGE
    assert unpack_arrays(Path("other.npz").read_bytes()).keys() == {"features"}


@pytest.mark.parametrize("words", [["--follow", ""], ["--state="], ["--replay", "x" * 300]])
def test_a_path_that_no_file_can_have_is_a_usage_error(
    bundled: Bundled, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["live", str(bundled("knn")), "--speed", "0", *words])
    except SystemExit as end:  # the parser's
        code = end.code if isinstance(end.code, int) else FAILED
    assert (code, "Traceback" in capsys.readouterr().err) == (USAGE, False)


def test_a_replay_keeps_no_state(
    bundled: Bundled, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["live", str(bundled("knn")), "--replay", str(recorded), "--speed", "0"]
    assert main([*words, "--state", str(tmp_path / "state.npz")]) == USAGE
    assert "--state" in capsys.readouterr().err


def test_a_folder_of_episodes_is_not_followed(
    bundled: Bundled, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["live", str(bundled("knn")), "--follow", str(recorded.parent)]) == USAGE
    assert str(recorded) in capsys.readouterr().err


def test_what_a_followed_folder_lacks_is_said(bundled: Bundled, tmp_path: Path) -> None:
    words = program("live", str(bundled("knn")), "--follow", str(tmp_path), "--quiet")
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        process.terminate()
    assert str(tmp_path) in said
    assert all(SOURCES[name].file in said for name in DEPLOYABLE)


def test_sigterm_ends_cleanly_and_a_restart_goes_on(bundled: Bundled, tmp_path: Path) -> None:
    state = tmp_path / "state.npz"
    words = program("live", str(bundled("knn")), "--this-machine", "--state", str(state))

    def run(n_events: int) -> list[dict[str, Any]]:
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            events = [json.loads(process.stdout.readline()) for _ in range(n_events)]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        return events

    [first] = run(1)
    again = run(1)
    assert first["window"] == 0
    assert again[0]["window"] == 1
    assert again[0]["session"] == first["session"]
    assert again[0]["start"] == pytest.approx(first["start"] + 5)
    for event in (first, *again):
        EVENT.validate_python(event)
        assert event["coverage"]["guest"] > 0.4
        assert event["source"] == "live"


def test_a_command_runs_when_an_alarm_changes(tmp_path: Path) -> None:
    out = tmp_path / "alarms"
    script = tmp_path / "note.sh"
    script.write_text(f'#!/bin/sh\nread line\necho "$PHASEWATCH_ALARM" >> {out}\n')
    script.chmod(0o755)
    command = CommandOutput([str(script)])
    event = {"phase": "clean", "alarm": "none", "silent": []}
    for change in ({}, {"alarm": "raised"}, {"alarm": "standing"}, {"alarm": "cleared"},
                   {"silent": ["guest"]}, {"silent": ["guest"]},
                   {"silent": ["pi"], "phase": None, "alarm": "raised"}):  # fmt: skip
        command.send(event | change)
    command.close()
    assert out.read_text().split() == ["raised", "cleared", "silent", "silent"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sh", "-c", "exit 3"], "--on-alarm: exit code 3"),
        (["sh", "-c", "kill -9 $$"], "--on-alarm: exit code -9"),
        (["sleep", "9"], "--on-alarm: ended, because it ran for 1 s"),
        (["/no/such/program"], "--on-alarm: /no/such/program: No such file or directory"),
    ],
)
def test_a_command_that_fails_is_told_and_the_scorer_goes_on(
    words: list[str], told: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_COMMAND_S", 1)
    failing = CommandOutput(words)
    failing.send({"phase": "clean", "alarm": "raised", "silent": []})
    failing.close()
    assert [record.message for record in caplog.records] == [told]


def test_commands_that_did_not_end_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    command = CommandOutput(["sleep", "4"])
    for alarm in ("raised", "cleared"):
        command.send({"phase": "clean", "alarm": alarm, "silent": []})
    command.close()
    assert command.lost == 2
    for _ in range(150):
        command.send({"phase": "clean", "alarm": "raised", "silent": []})
    assert command.lost == 152
    assert ["2 commands" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--this-machine", "--on-alarm", ""], "--on-alarm"), (["--follow="], "--follow")],
)
def test_an_empty_value_is_refused_with_its_option(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["live", "bundle", *words])
    assert ended.value.code == USAGE
    assert f"{named} must not be empty" in capsys.readouterr().err


def test_a_lost_command_is_a_failure(
    bundled: Bundled, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["live", str(bundled("knn")), "--replay", str(recorded), "--speed", "0", "--quiet"]
    assert main([*words, "--on-alarm", "true"]) == OK
    monkeypatch.setattr(CommandOutput, "lost", 1)
    assert main([*words, "--on-alarm", "true"]) == FAILED


@pytest.mark.parametrize("sent", [None, "", "wrong-horse-battery"])
def test_a_refusal_is_said_once_with_what_to_do(
    sent: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(401)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = HubOutput(f"http://127.0.0.1:{server.server_port}", sent)
    for n in range(1, 4):
        hub.send({})
        while hub.refused < n:
            time.sleep(0.01)
    hub.close()
    server.shutdown()
    server.server_close()
    assert hub.lost == 3
    (said,) = (record.message for record in caplog.records if "401" in record.message)
    assert "--token-file" in said
    assert "PHASEWATCH_HUB_TOKEN" in said
    assert ("needs" in said) == (not sent)


def test_events_that_give_way_while_they_are_sent_are_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, go_on = threading.Event(), threading.Event()
    published: list[dict[str, int]] = []

    def post(_url: str, body: bytes, _token: str | None, timeout_s: float) -> int:  # noqa: ARG001
        began.set()
        assert go_on.wait(60)
        published.extend(json.loads(body))
        return 1

    monkeypatch.setattr(outputs, "post_events", post)
    monkeypatch.setattr(outputs, "MAX_WAITING", 3)
    hub = HubOutput("http://127.0.0.1:1")
    hub.send({"n": 0})
    assert began.wait(60)
    for n in range(1, 6):
        hub.send({"n": n})
    go_on.set()
    hub.close()
    assert [event["n"] for event in published] == [0, 3, 4, 5]
    assert hub.lost == 2


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """The address of a hub that gives these answers, one per connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        given: list[bytes] = []

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    request = b""
                    while not request.endswith(b"]"):  # what is unread would reset the connection
                        request += connection.recv(65_536)
                    connection.sendall(answer)
                given.append(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()
    assert given == list(answers)


TAKEN = b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"delivered":1}'
BROKEN = (
    b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"deli',
    b"HTTP/1.1 200 OK\r\ncont",
    b"HTTP/1.1 200 OK\r\n\r\n<html>",
    b"SSH-2.0-OpenSSH\r\n",
    b"HTTP/1.1 503 Busy\r\ncontent-length: 15\r\n\r\n{",
    b"",
)
"""Of a hub that dies in its answer, and of what is no hub."""


@pytest.mark.parametrize("broken", BROKEN)
def test_events_wait_for_a_hub_that_dies_in_its_answer(
    broken: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_RETRY_S", (0,))
    with answering(broken, TAKEN) as url:
        hub = HubOutput(url)
        hub.send({})
    hub.close()
    assert hub.lost == 0


@pytest.mark.parametrize("broken", BROKEN)
def test_a_producer_says_that_a_hub_died_in_its_answer(broken: bytes) -> None:
    with answering(broken) as url, pytest.raises(PublishError, match=url):
        Publisher(url).check()


@pytest.mark.parametrize("url", ["http://127.0.0.1:84x7", "http://[::1", "http://a b"])
def test_a_producer_says_that_an_address_is_none(url: str) -> None:
    with pytest.raises(PublishError):
        Publisher(url).check()


def test_a_refusal_that_is_cut_short_is_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    with answering(b"HTTP/1.1 422 No\r\ncontent-length: 99\r\n\r\n{") as url:
        hub = HubOutput(url)
        hub.send({})
    hub.close()
    assert hub.refused == hub.lost == 1
    assert any("422" in record.message for record in caplog.records)


def test_metrics_can_be_scraped(bundled: Bundled, members: dict[str, bytes]) -> None:
    metrics = MetricsOutput(0)
    events = scored(load_bundle(bundled("knn")), members)
    for event in events:
        metrics.send(event)
    address = f"http://127.0.0.1:{metrics.port}"
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        text = answer.read().decode()
    assert f'phasewatch_windows_total{{host="lab-a"}} {len(events)}' in text
    assert 'phasewatch_coverage{host="lab-a",source="guest"} ' in text
    assert text.count("# TYPE phasewatch_windows_total counter") == 1
    metrics.close()


def test_lines_that_are_too_long_are_said(
    bundled: Bundled, recorded: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with (recorded / SOURCES["guest"].file).open("ab") as file:
        file.write(2 * (b"x" * 70_000 + b"\n"))
    ended = SimpleNamespace(send=lambda _: None, close=lambda: None)
    stop = SimpleNamespace(wanted=False)
    made, source = LiveScorer(load_bundle(bundled("knn")), "lab-a", "s"), FolderSource(recorded)
    monkeypatch.setattr(scoring.LiveScorer, "tick", lambda _: setattr(stop, "wanted", True) or ())
    _loop(made, source, [ended], stop, None)  # type: ignore[arg-type, list-item]
    assert "rows: 2 malformed" in [record.message for record in caplog.records]


def test_a_reader_that_goes_away_ends_the_program(bundled: Bundled, recorded: Path) -> None:
    words = program("live", str(bundled("knn")), "--replay", str(recorded), "--speed", "0")
    ends = os.pipe()
    os.close(ends[0])
    done = subprocess.run(words, cwd=ROOT, stdout=ends[1], stderr=subprocess.PIPE, check=False)
    os.close(ends[1])
    assert done.returncode in (OK, FAILED)
    assert b"Traceback" not in done.stderr
