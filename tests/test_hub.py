"""The hub, asked over real connections: what it carries, what it refuses, what it remembers."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from evaluation.decisions import read_chain, read_log, tally
from features.registry import LAYOUT
from hub import decisions, events, server, state
from hub.decisions import DecisionLog, LogError
from hub.events import LiveDetection
from hub.guard import Guard
from hub.server import Hub
from hub.state import HubState
from live.silence import EVENT_INTERVAL_S, QUIET_S, SCORER_SILENT_S

TOKEN = "correct-horse-battery"
ROOT = Path(__file__).parent.parent


def phase(scope: str = "lab-a", value: str = "clean") -> dict[str, Any]:
    return {"type": "phase", "at": 1.0, "origin": "test", "scope": scope, "phase": value}


def detection(window: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "type": "live_detection", "at": 1.0, "origin": "test", "host": "pi", "model": "gbt",
        "bundle": "b", "session": "s", "window": window, "start": 5.0 * window,
        "end": 5.0 * window + 10, "source": "live", "phase": "clean",
        "probabilities": {"clean": 1.0}, "filtered": "clean", "filtered_probabilities": None,
        "confidence": 1.0, "score": 0.1, "threshold": 0.5, "alarm": "none", "unlike": None,
        "coverage": {"guest": 1.0}, "latency_ms": 3.0,
    } | changes  # fmt: skip


class Running:
    """A server on a free port, in a thread."""

    def __init__(self, made: uvicorn.Server) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.server = made
        self.thread = threading.Thread(target=made.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        while not made.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, document and headers of an answer. ``sec_fetch_site`` is Sec-Fetch-Site."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        text = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, text, named)
            answer = connection.getresponse()
            kind = answer.headers.get("content-type", "")
            content = b"" if "event-stream" in kind else answer.read()  # that one never ends
            return (
                answer.status,
                json.loads(content) if content and "json" in kind else content,
                answer.headers,
            )

    def publish(self, body: Any, **headers: str) -> tuple[int, Any]:
        return self.ask("POST", "/publish", body, **headers)[:2]


class Stream:
    """A client of ``/events``: its messages, one after the other."""

    def __init__(self, port: int, last: str | None = None, query: str = "", receive: int = 0):
        self.socket = socket.socket()
        if receive:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", port))
        header = f"Last-Event-ID: {last}\r\n" if last else ""
        self.socket.sendall(
            f"GET /events{query} HTTP/1.1\r\nHost: localhost:{port}\r\n{header}\r\n".encode()
        )
        self.response: http.client.HTTPResponse | None = None

    def __iter__(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Event, id and data of each message."""
        if self.response is None:
            self.response = http.client.HTTPResponse(self.socket)
            self.response.begin()
            assert self.response.status == 200
        event = name = data = ""
        while line := self.response.readline().decode().rstrip("\n"):
            field, _, value = line.partition(": ")
            event, name = (value, name) if field == "event" else (event, name)
            name = value if field == "id" else name
            data = value if field == "data" else data
            if field == "data":
                self.response.readline()
                yield event, name, json.loads(data)
                event = name = ""

    def until(self, wanted: Callable[[str, dict[str, Any]], bool]) -> list[tuple[str, str, Any]]:
        """The messages up to the first that is wanted, it included."""
        found = []
        for message in self:
            found.append(message)
            if wanted(message[0], message[2]):
                return found
        raise AssertionError(found)

    def first(self) -> list[tuple[str, str, Any]]:
        """What a client is given when it connects, without the mark that ends it."""
        return self.until(lambda event, _: event == "live")[:-1]

    def close(self) -> None:
        self.socket.close()
        if self.response is not None:
            self.response.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts a hub on the test's folder; all are stopped in the end."""
    running: list[Running] = []

    def begin(**options: Any) -> Running:
        running.append(Running(server.build_server(Hub(tmp_path / "decisions"), **options)))
        return running[-1]

    yield begin
    for each in running:
        each.stop()


@pytest.fixture
def hub(start: Callable[..., Running]) -> Running:
    return start()


def windows(messages: list[tuple[str, str, Any]]) -> list[int]:
    return [data["window"] for event, _, data in messages if not event]


# --- publishing


def test_one_event_or_a_list_is_delivered(hub: Running) -> None:
    assert hub.publish(phase()) == (200, {"delivered": 1})
    assert hub.publish([phase(), detection()]) == (200, {"delivered": 2})
    assert hub.publish([]) == (200, {"delivered": 0})


@pytest.mark.parametrize(
    ("wrong", "field", "value"),
    [
        (phase(value="klean"), "phase", "'klean'"),
        (phase() | {"colour": "red"}, "colour", "'red'"),
        (phase() | {"type": "accuracy"}, "", "accuracy"),
        (phase() | {"at": "1"}, "at", "'1'"),
        (detection(threshold=1.5), "threshold", "1.5"),
        (detection(end=1.7e18), "end", "1.7e+18"),  # nanoseconds
        (detection(start=1.7e12), "start", "1700000000000.0"),  # milliseconds
        (detection(start=-1.0), "start", "-1.0"),
        (phase() | {"at": 1.7e12}, "at", "1700000000000.0"),
        (phase() | {"data_at": 1.7e12}, "data_at", "1700000000000.0"),
    ],
)
def test_what_is_wrong_is_named(hub: Running, wrong: Any, field: str, value: str) -> None:
    status, document = hub.publish([phase(), wrong])
    (problem,) = document["problems"]
    assert (status, problem["event"], problem["field"]) == (422, 1, field)
    assert value in problem["value"]
    assert value in document["error"]
    assert "nput" not in document["error"]  # pydantic's wording
    assert hub.publish(wrong)[1]["problems"][0]["field"] == field
    assert hub.server.hub.state.newest == 0  # all or none


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b'"phase"', b"\xff", b"[" * 5000])
def test_a_body_that_is_no_event_is_refused(hub: Running, body: bytes) -> None:
    assert hub.publish(body)[0] == 422


def test_a_body_that_is_too_large_is_refused(hub: Running) -> None:
    assert hub.publish(b" " * (server.MAX_BODY + 1))[0] == 413
    assert hub.publish(phase())[0] == 200


# --- reading


def test_a_new_client_is_given_the_latest_of_everything(hub: Running) -> None:
    hub.publish([phase(), phase("lab-b"), phase(value="armed"), *map(detection, range(3))])
    messages = Stream(hub.port).first()
    assert [data.get("scope", data["type"]) for _, _, data in messages] == [
        "lab-b", "lab-a", *["live_detection"] * 3,
    ]  # fmt: skip
    assert windows(messages[2:]) == [0, 1, 2]


def test_a_replay_of_a_host_replaces_nothing_that_is_live(
    hub: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveDetection, "kept_per_subject", 2)
    hub.publish([detection(n, silent=["guest"]) for n in range(2)])
    hub.publish([detection(n, source="replay", session="r") for n in range(5)])
    hub.publish(detection(2, silent=["guest"]))
    kept = [(data["source"], data["window"]) for _, _, data in Stream(hub.port).first()]
    assert kept == [("live", 1), ("replay", 3), ("replay", 4), ("live", 2)]
    assert [record["event"]["window"] for record in lines(tmp_path)] == [0]  # silent all the time


def test_a_window_that_is_published_again_is_not_doubled(hub: Running) -> None:
    """Its scorer had no answer, so it does not know that it was taken."""
    for sent in ([detection(0)], [detection(0), detection(1)], [detection(1, at=2.0)]):
        assert hub.publish(sent) == (200, {"delivered": len(sent)})
    assert hub.ask("GET", "/healthz")[1]["newest"] == 3


def test_no_more_of_a_subject_is_kept_than_it_says(hub: Running) -> None:
    hub.publish([detection(n) for n in range(events.LIVE_WINDOWS + 10)])
    assert windows(Stream(hub.port).first()) == list(range(10, events.LIVE_WINDOWS + 10))


def test_what_comes_later_is_sent_to_all(hub: Running) -> None:
    streams = [Stream(hub.port) for _ in range(3)]
    for stream in streams:
        assert stream.first() == []
    hub.publish([detection(0), detection(1)])
    for stream in streams:
        assert windows(stream.until(lambda _, data: data["window"] == 1)) == [0, 1]


@pytest.mark.parametrize("how", ["header", "query"])
def test_a_client_that_comes_back_misses_nothing(hub: Running, how: str) -> None:
    hub.publish([detection(n) for n in range(5)])
    _, last, _ = Stream(hub.port).first()[1]
    hub.publish([detection(n) for n in range(5, 8)])
    query = f"?last_event_id={last}" if how == "query" else ""
    stream = Stream(hub.port, last if how == "header" else None, query)
    messages = stream.until(lambda _, data: data.get("window") == 7)
    assert [event for event, _, _ in messages if event] == ["live"]
    assert windows(messages) == list(range(2, 8))


def test_a_gap_is_announced_when_the_ring_has_gone_on(
    hub: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "RING_EVENTS", 4)
    hub.publish(phase())
    ((_, last, _),) = Stream(hub.port).first()
    hub.publish([phase("once"), *[phase(f"lab-{n % 3}") for n in range(9)], phase("end")])
    stream = Stream(hub.port, last)
    messages = stream.until(lambda _, data: data.get("scope") == "end")
    assert [data for event, _, data in messages if event == "gap"] == [
        {"missed": 6, "reason": "behind"}
    ]
    # of eleven, six are lost, one is the latest of its subject, and four are in the ring
    scopes = [data["scope"] for event, _, data in messages if not event]
    assert scopes == ["once", "lab-0", "lab-1", "lab-2", "end"]


def test_a_restart_is_a_gap_and_not_a_pretence(start: Callable[..., Running]) -> None:
    first = start()
    first.publish([phase(f"lab-{n}") for n in range(5)])
    _, last, _ = Stream(first.port).first()[-1]
    first.stop()
    second = start()
    second.publish([phase("after") for _ in range(9)])
    messages = Stream(second.port, last).first()
    assert messages[0][::2] == ("gap", {"missed": None, "reason": "restart"})
    assert [data["scope"] for event, _, data in messages if not event] == ["after"]


@pytest.mark.parametrize(
    "last", ["", "x", "-", "x-1", "{boot}-", "{boot}-x", "{boot}-99", "{boot}--1"]
)
def test_an_id_that_is_none_is_no_place(last: str) -> None:
    kept = HubState()
    kept.publish(events.EVENT.validate_python(phase()))
    assert kept._place(last.format(boot=kept.boot)) is None
    assert kept._place(f"{kept.boot}-1") == 1


def test_a_slow_client_is_told_of_its_gap_and_slows_nobody(
    hub: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event is 200 kB, so that the sockets' buffers are soon full."""
    monkeypatch.setattr(state, "RING_BYTES", 4 << 20)
    monkeypatch.setattr(state, "KEPT_BYTES", 1 << 20)
    large = {f"{n}-{'x' * 180}": 1.0 for n in range(1000)}
    slow = Stream(hub.port, receive=4096)
    quick = Stream(hub.port)
    quick.first()
    for n in range(200):
        hub.publish(detection(n, coverage=large))
        assert windows(quick.until(lambda event, _: not event)) == [n]
    messages = slow.until(lambda _, data: data.get("window") == 199)
    missed = sum(data["missed"] for event, _, data in messages if event == "gap")
    assert missed > 0
    assert len(windows(messages)) == 200 - missed
    assert windows(messages) == sorted(set(windows(messages)))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "KEPT_EVENTS", 6)
    kept = HubState()

    def publish(document: dict[str, Any]) -> None:
        kept.publish(events.EVENT.validate_python(document))

    def hosts() -> list[tuple[str, int]]:
        frames = [json.loads(f.text.partition(b"data: ")[2]) for f in kept._by_number.values()]
        return [(f["host"], f["window"]) for f in frames if f["type"] == "live_detection"]

    publish(phase())
    for n in range(6):
        publish(detection(n, host="a"))
    publish(detection(0, host="b"))
    publish(detection(1, host="b"))
    # the past goes before a host goes, and one type pushes out no other
    assert hosts() == [("a", 2), ("a", 3), ("a", 4), ("a", 5), ("b", 0), ("b", 1)]
    for name in "cdefgh":
        publish(detection(0, host=name))
    assert hosts() == [(name, 0) for name in "cdefgh"]
    assert len(kept._by_number) == 7


def test_the_memory_of_a_ring_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "RING_BYTES", 2000)
    kept = HubState()
    for n in range(100):
        kept.publish(events.EVENT.validate_python(phase(f"lab-{n}")))
    assert sum(len(frame.text) for frame in kept._ring) == kept._ring_bytes <= 2000
    assert kept.oldest > 80


def test_more_clients_than_it_can_bear_are_refused(
    hub: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 1)
    with closing(Stream(hub.port)) as stream:
        stream.first()
        assert hub.ask("GET", "/events")[0] == 503


def test_asking_for_the_headers_alone_opens_no_stream(hub: Running) -> None:
    assert hub.ask("HEAD", "/events")[0] == 200
    assert hub.server.hub.state.clients == 0


def test_the_schema_in_the_tree_is_the_one_served(hub: Running) -> None:
    assert json.loads(events.SCHEMA_FILE.read_text()) == events.schema()
    assert hub.ask("GET", "/schema")[1] == events.schema()


@pytest.mark.parametrize("path", ["/", "/healthz", "/nothing", "/schema", "/answers", "/publish"])
def test_every_answer_has_the_security_headers(hub: Running, path: str) -> None:
    headers = hub.ask("GET", path)[2]
    assert {name: headers[name] for name in server.HEADERS} == server.HEADERS
    assert "access-control-allow-origin" not in headers
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/..",
        "/../../constraints.txt",
        "/%2e%2e/%2e%2e/constraints.txt",
        "/..%2f..%2fconstraints.txt",
        f"/{ROOT}/constraints.txt",
        f"/%2f{str(ROOT)[1:]}/constraints.txt",
        "/vendor/../../guard.py",
        "/%00.js",
        f"/{'x' * 400}.js",
    ],
)
def test_only_the_page_is_served(hub: Running, path: str) -> None:
    assert hub.ask("GET", path)[0] == 404


# --- silence


def live(kept: HubState, **changes: Any) -> None:
    kept.publish(events.EVENT.validate_python(detection(**changes)))


def test_a_host_that_stops_is_an_alarm_once() -> None:
    kept = HubState(silent_after_s=0)
    live(kept, data_at=14.9)
    (said,) = kept.publish_silence()
    assert said.data_at == 14.9  # nothing newer is known
    assert said.silent == ["pi"]
    assert (said.phase, said.alarm, said.model, said.threshold) == (None, "raised", "gbt", 0.5)
    assert said.start == events.EVENT.validate_python(detection()).end
    assert said.end >= said.start
    assert said.alarm_id
    assert kept.newest == 2
    assert kept.publish_silence() == []
    live(kept, window=1)
    assert [each.alarm_id != said.alarm_id for each in kept.publish_silence()] == [True]


def test_an_alarm_that_stands_goes_on_in_silence() -> None:
    kept = HubState(silent_after_s=0)
    live(kept, alarm="standing", alarm_id="a1")
    (said,) = kept.publish_silence()
    assert (said.alarm, said.alarm_id) == ("standing", "a1")


def test_a_replay_that_ends_is_over() -> None:
    kept = HubState(silent_after_s=0)
    live(kept, source="replay", replay_of="E")
    live(kept, host="told", silent=["told"], phase=None)  # the scorer said it
    assert kept.publish_silence() == []


def test_a_hub_waits_for_three_words_of_a_scorer() -> None:
    stride_s = LAYOUT.window.stride_ms / 1000
    assert stride_s == EVENT_INTERVAL_S
    assert HubState().silent_after_s == SCORER_SILENT_S > QUIET_S + 2 * stride_s


def test_a_host_that_is_heard_is_not_silent() -> None:
    kept = HubState(silent_after_s=60)
    live(kept)
    assert kept.publish_silence() == []


def test_a_running_hub_notices(tmp_path: Path) -> None:
    hub = Running(server.build_server(Hub(tmp_path / "decisions", silent_after_s=0.1)))
    try:
        stream = Stream(hub.port)
        hub.publish(detection())
        *_, (_, _, said) = stream.until(lambda _, data: bool(data.get("silent")))
        assert said["host"] == "pi"
    finally:
        hub.stop()
    assert tally(read_log(tmp_path / "decisions")).alarms == 1


# --- the guard

FOREIGN = "https://evil.example"
IMAGE = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}
FRAME = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}
WRONG = (
    {},
    {"Authorization": f"Bearer {TOKEN}x"},
    {"Authorization": f"Basic {TOKEN}"},
)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "host"),
        ({"Host": "evil.example:{port}"}, "host"),
        ({"Host": "localhost.evil.example:{port}"}, "host"),
        ({"Host": "evil.example@localhost:{port}"}, "host"),
        ({"Host": "localhost:{port}/x"}, "host"),
        ({"Host": "localhost:x"}, "host"),
        ({"Host": ""}, "host"),
        ({"Origin": FOREIGN}, "origin"),
        ({"Origin": "null"}, "origin"),
        ({"Origin": "http://localhost:1"}, "origin"),
        ({"Origin": "http://127.0.0.1:1"}, "origin"),
        ({"Origin": "http://127.0.0.1"}, "origin"),
        ({"Origin": "http://127.0.0.1.evil.example:{port}"}, "origin"),
        ({"Origin": "chrome-extension://127.0.0.1:{port}"}, "origin"),
        ({"sec_fetch_site": "cross-site"}, "origin"),
        ({"sec_fetch_site": "same-site"}, "origin"),
        (IMAGE, "origin"),
        (FRAME, "origin"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/publish"), ("GET", "/events"), ("GET", "/answers"), ("OPTIONS", "/publish")],
)
def test_strangers_neither_write_nor_read(
    hub: Running, headers: dict[str, str], code: str, method: str, path: str
) -> None:
    named = {name: value.format(port=hub.port) for name, value in headers.items()}
    status, document, answered = hub.ask(method, path, phase(), **named)
    assert (status, document["code"]) == (403, code)
    assert "access-control-allow-origin" not in answered
    assert hub.server.hub.state.newest == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost:{port}"},
        {"Host": "LOCALHOST"},
        {"Host": "[::1]:{port}"},
        {"Origin": "http://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:{port}", "sec_fetch_site": "same-origin"},
        {"Host": "localhost", "Origin": "http://localhost"},
        {"sec_fetch_site": "none"},
    ],
)
def test_our_own_are_let_through(hub: Running, headers: dict[str, str]) -> None:
    named = {name: value.format(port=hub.port) for name, value in headers.items()}
    assert hub.publish(phase(), **named)[0] == 200
    assert hub.ask("GET", "/answers", **named)[0] == 200


def test_a_link_from_elsewhere_opens_the_page_but_posts_nothing(hub: Running) -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert hub.ask("GET", "/healthz", **link, sec_fetch_dest="document")[0] == 200
    assert hub.ask("POST", "/publish", phase(), **link, sec_fetch_dest="document")[0] == 403


def test_a_configured_name_is_one_of_ours(start: Callable[..., Running]) -> None:
    hub = start(hosts=["Hub.Lab"])
    assert hub.ask("GET", "/healthz", Host="hub.lab:80")[0] == 200
    assert hub.ask("GET", "/healthz", Host="other.lab")[0] == 403


def test_without_the_token_nothing_is_said(start: Callable[..., Running]) -> None:
    hub = start(token=TOKEN)
    right = {"Authorization": f"Bearer {TOKEN}"}
    cookie = {"Cookie": f"{Guard(echo, token=TOKEN).cookie_name}={TOKEN}"}
    for method, path in (
        ("POST", "/publish"),
        ("GET", "/events"),
        ("GET", "/"),
        ("GET", "/healthz"),
    ):
        for given in (*WRONG, cookie):
            status, document, _ = hub.ask(method, path, phase(), **given)
            assert (status, document["code"]) == (401, "token")
    assert hub.publish(phase(), **right) == (200, {"delivered": 1})
    assert hub.publish(phase(), **right, Origin=FOREIGN)[0] == 403
    assert hub.ask("POST", f"/publish?token={TOKEN}", phase())[0] == 401


def test_a_page_changes_its_token_for_a_cookie(start: Callable[..., Running]) -> None:
    hub = start(token=TOKEN)
    assert hub.ask("GET", f"/?token={TOKEN}x")[0] == 401
    status, _, headers = hub.ask("GET", f"//evil.example/a?x=1&token={TOKEN}&y=%26")
    assert (status, headers["location"]) == (303, "/evil.example/a?x=1&y=%26")
    cookie, *attributes = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax"} <= set(attributes)
    assert TOKEN not in headers["set-cookie"]
    assert hub.ask("GET", "/healthz", Cookie=f"a=b; {cookie}")[0] == 200
    assert hub.publish(phase(), Cookie=cookie)[0] == 200
    assert hub.publish(phase(), Cookie=cookie, Origin=FOREIGN)[0] == 403


def test_two_servers_of_a_host_have_a_cookie_each(start: Callable[..., Running]) -> None:
    """A browser keeps cookies by host and name, whatever the port."""
    jar: dict[str, str] = {}
    for end in "ab":
        running = start(token=TOKEN + end)
        cookie = running.ask("GET", f"/?token={TOKEN}{end}")[2]["set-cookie"].partition("; ")[0]
        jar[cookie.partition("=")[0]] = cookie
        running.stop()
    for end in "ab":
        running = start(token=TOKEN + end)
        assert running.ask("GET", "/healthz", Cookie="; ".join(jar.values()))[0] == 200
        running.stop()


@pytest.mark.parametrize("token", ["", "short", "e" * 15, "é" * 20])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Guard(Hub.__call__, token=token)  # type: ignore[attr-defined]


@pytest.mark.parametrize("host", ["http://x", "x/y", "x:8447", "", "a b"])
def test_what_is_no_host_name_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="name or an address"):
        Guard(Hub.__call__, hosts=[host])  # type: ignore[attr-defined]
    for name in ("lab-a.example", "[::1]", "fe80::1%eth0", "10.0.0.1", "pi_4"):
        Guard(Hub.__call__, hosts=[name])  # type: ignore[attr-defined]


def test_a_hub_that_only_shows(start: Callable[..., Running]) -> None:
    hub = start(read_only=True)
    assert hub.publish(phase()) == (403, hub.publish(phase())[1])
    assert hub.publish(phase())[1]["code"] == "read_only"
    assert hub.ask("GET", "/answers")[0] == 200


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application with a WebSocket and something like GraphQL, to stand behind the guard."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def guarded() -> Iterator[Running]:
    config = uvicorn.Config(Guard(echo, graphql="graphql"), log_level="warning", lifespan="off")
    running = Running(uvicorn.Server(config))
    yield running
    running.stop()


UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "sec_websocket_version": "13",
    "sec_websocket_key": "AAAAAAAAAAAAAAAAAAAAAA==",
}  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 101),
        ({"Origin": "http://127.0.0.1:{port}"}, 101),
        ({"Origin": FOREIGN}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "websocket"}, 403),
    ],
)
def test_a_websocket_is_guarded_too(guarded: Running, headers: dict[str, str], status: int) -> None:
    named = {name: value.format(port=guarded.port) for name, value in headers.items()}
    assert guarded.ask("GET", "/graphql", **UPGRADE, **named)[0] == status


def test_graphql_changes_nothing_by_a_link(guarded: Running) -> None:
    for path in ("/graphql?query=mutation", "/graphql/?query=x", "/a/graphql?q", "/%67raphql?q=1"):
        for method in ("GET", "HEAD"):
            assert guarded.ask(method, path)[0] == 403, path
    json_body = {"Content-Type": "application/json"}
    assert guarded.ask("POST", "/graphql?op=x", **json_body)[0] == 200
    assert guarded.ask("POST", "/graphql?query=x")[0] == 403
    assert guarded.ask("GET", "/graphql")[0] == 200
    assert guarded.ask("GET", "/runs?query=x")[0] == 200


# --- the log of decisions


def raised(name: str = "a1", **changes: Any) -> dict[str, Any]:
    return detection(alarm="raised", alarm_id=name, **changes)


def answer(name: str = "a1", verdict: Any = True, **changes: Any) -> dict[str, Any]:
    return {"alarm_id": name, "host": "pi", "verdict": verdict, "note": "seen"} | changes


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted((folder / "decisions").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def test_changes_are_written_and_windows_between_are_not(hub: Running, tmp_path: Path) -> None:
    standing = [detection(n, alarm="standing", alarm_id="a1") for n in range(2, 20)]
    hub.publish([detection(0), raised(window=1), *standing])
    hub.publish(detection(20, alarm="cleared", alarm_id="a1"))
    hub.publish([detection(21, silent=["guest"]), detection(22, silent=["guest"]), detection(23)])
    written = [record["event"]["window"] for record in lines(tmp_path)]
    assert written == [1, 20, 21, 23]
    assert lines(tmp_path)[0]["event"] == json.loads(
        LiveDetection.model_validate(raised(window=1)).model_dump_json()
    )


def test_a_standing_alarm_that_the_log_has_not_is_written_once(
    hub: Running, tmp_path: Path
) -> None:
    """As with another artifacts folder, or if the log was moved away."""
    hub.publish([detection(n, alarm="standing", alarm_id="a1") for n in range(3)])
    assert [record["event"]["window"] for record in lines(tmp_path)] == [0]
    assert hub.ask("POST", "/answers", answer("a1"))[0] == 200


def test_a_decision_that_is_sent_again_after_a_restart_is_shown_but_not_written_again(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    for _ in range(2):
        running = start()
        running.publish(raised("a1"))
        with closing(Stream(running.port)) as stream:
            assert [data["alarm_id"] for _, _, data in stream.first()] == ["a1"]
        running.stop()
    assert len(lines(tmp_path)) == 1


def test_an_answer_is_kept_and_counted(hub: Running, tmp_path: Path) -> None:
    hub.publish([raised("a1"), raised("a2"), raised("a3"), raised("r1", source="replay")])
    for body in (
        answer("a1"),
        answer("a2"),
        answer("r1"),
        answer("a2", verdict=False, note="cron"),
    ):
        assert hub.ask("POST", "/answers", body)[0] == 200
    document = hub.ask("GET", "/answers")[1]
    assert [(a["alarm_id"], a["verdict"], a["note"]) for a in document["answers"]] == [
        ("a1", True, "seen"), ("a2", False, "cron"), ("r1", True, "seen"),
    ]  # fmt: skip
    assert document["precision"] == 0.5  # of what was live
    counted = tally(read_log(tmp_path / "decisions"))
    assert (counted.decisions, counted.alarms, counted.answered, counted.true) == (4, 4, 3, 2)
    assert [(row.source, row.alarms, row.answered, row.precision) for row in counted.by_model] == [
        ("live", 3, 2, 0.5), ("replay", 1, 1, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (answer("unknown"), 404),
        (answer(host="other"), 404),
        (answer(verdict="yes"), 422),
        (answer(verdict=1), 422),
        (answer(note="x" * 2001), 422),
        (answer(by="me"), 422),
    ],
)
def test_an_answer_that_is_none_is_refused(
    hub: Running, tmp_path: Path, body: Any, status: int
) -> None:
    hub.publish(raised())
    assert hub.ask("POST", "/answers", body)[0] == status
    assert len(lines(tmp_path)) == 1


def test_answers_survive_a_restart(start: Callable[..., Running]) -> None:
    first = start()
    first.publish([raised("a1"), raised("a2")])
    first.ask("POST", "/answers", answer("a1"))
    first.stop()
    second = start()
    assert [a["alarm_id"] for a in second.ask("GET", "/answers")[1]["answers"]] == ["a1"]
    assert second.ask("POST", "/answers", answer("a2"))[0] == 200


def test_a_torn_line_is_kept_aside_and_said(tmp_path: Path) -> None:
    """As ``kill -9`` leaves it in the middle of a write."""
    note(tmp_path, raised("a1"), raised("a2"))
    (path,) = tmp_path.glob("*.jsonl")
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    torn = content[:-20].splitlines()[1]
    note(tmp_path, raised("a3"))
    log = read_log(tmp_path)
    assert (list(log.alarms), log.torn, log.unreadable) == (["a1", "a3"], 1, [])
    assert path.with_suffix(".torn").read_bytes() == torn + b"\n"
    assert json.loads(path.read_text().splitlines()[1])["bytes"] == len(torn)


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    note(tmp_path, raised("a1"))
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"v": 2, "kind": "decision"}\n\xff\n')
    note(tmp_path, raised("a2"))
    log = read_log(tmp_path)
    assert list(log.alarms) == ["a1", "a2"]
    assert log.unreadable == [f"{path.name}:2", f"{path.name}:3"]


def note(folder: Path, *documents: dict[str, Any]) -> None:
    """Open the log, take these detections down, close it."""
    log = DecisionLog(folder)
    for document in documents:
        log.note(LiveDetection.model_validate(document))
    asyncio.run(log.flush())
    log.close()


def test_a_second_hub_on_the_same_log_is_refused(tmp_path: Path) -> None:
    first = DecisionLog(tmp_path)
    with pytest.raises(LogError):
        DecisionLog(tmp_path)
    first.close()
    DecisionLog(tmp_path).close()


def test_what_the_disk_does_not_take_waits(hub: Running, tmp_path: Path) -> None:
    hub.publish(raised("a1"))
    (path,) = (tmp_path / "decisions").glob("*.jsonl")
    written = path.rename(path.with_name("kept"))
    path.mkdir()  # nothing can be written there
    assert hub.publish(raised("a2"))[0] == 200  # pages are told all the same
    assert hub.ask("POST", "/answers", answer("a2"))[0] == 503
    assert hub.ask("GET", "/healthz")[0] == 503
    path.rmdir()
    written.rename(path)
    assert hub.ask("POST", "/answers", answer("a1"))[0] == 200
    assert hub.ask("GET", "/healthz")[0] == 200
    kinds = [
        (r["kind"], r.get("alarm_id", r.get("event", {}).get("alarm_id"))) for r in lines(tmp_path)
    ]
    assert kinds == [("decision", "a1"), ("decision", "a2"), ("answer", "a2"), ("answer", "a1")]


def test_a_write_whose_caller_is_cancelled_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub is stopped while a slow disk writes."""
    log = DecisionLog(tmp_path)
    begun, slow = threading.Event(), threading.Event()

    def sync(_: int) -> None:
        begun.set()
        assert slow.wait(60)

    monkeypatch.setattr(decisions, "sync", sync)

    async def stop() -> None:
        log.note(LiveDetection.model_validate(raised()))
        first = asyncio.create_task(log.flush())
        await asyncio.to_thread(begun.wait, 20)
        first.cancel()
        last = asyncio.create_task(log.flush())
        await asyncio.sleep(0.1)
        slow.set()
        await asyncio.gather(first, last, return_exceptions=True)

    asyncio.run(stop())
    log.close()
    assert read_chain(tmp_path).faults == []
    assert list(read_log(tmp_path).alarms) == ["a1"]


def test_what_is_sent_again_is_confirmed_only_when_it_is_written(
    hub: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, slow = threading.Event(), threading.Event()
    sync = decisions.sync

    def wait(handle: int) -> None:
        begun.set()
        assert slow.wait(60)
        sync(handle)

    monkeypatch.setattr(decisions, "sync", wait)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(hub.publish(raised())[0])) for _ in range(2)
    ]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    threads[1].join(0.5)
    assert answers == []
    slow.set()
    for thread in threads:
        thread.join(60)
    assert answers == [200, 200]
    assert len(lines(tmp_path)) == 1


# --- the command


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli.app", "hub", *words]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--host", "0.0.0.0", "--port", "0"], 2),
        (["--host", "no.such.host.invalid"], 2),
        (["--port", "0", "--token-file", "short"], 2),
        (["--token-file", "missing"], 2),
        (["--port", "{taken}"], 1),
        (["--port", "99999"], 2),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(words: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("short\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [word.format(taken=taken.getsockname()[1]) for word in words]
        done = subprocess.run(
            command(*words, "--artifacts", str(tmp_path / "artifacts")), cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            capture_output=True, text=True, check=False, timeout=180,
        )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_sigterm_ends_it_with_pages_open(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        "--port",
        str(port),
        "--artifacts",
        str(tmp_path),
        "--token-file",
        str(token),
        "--json",
    ]
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stderr is not None
        assert f"http://127.0.0.1:{port}" in process.stderr.readline()
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as reader:
            reader.request("GET", "/events", headers={"Authorization": f"Bearer {TOKEN}"})
            assert reader.getresponse().status == 200
            process.send_signal(signal.SIGTERM)
            out, said = process.communicate(timeout=90)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert (process.returncode, said) == (0, "")  # the streams were ended, not cut off
    assert json.loads(out)["events"] == 0


def test_the_server_needs_neither_stages_nor_arrays() -> None:
    code = (
        "import sys, hub.server; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    forbidden = {"stages", "dagster", "numpy", "polars", "numba", "torch", "xgboost", "features"}
    assert not forbidden & set(done.stdout.split())
