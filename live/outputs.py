"""Where events go: lines on standard output, a hub, a command, a page of metrics."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from queue import Full, Queue
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from live.scorer import Event

log = logging.getLogger("phasewatch")

MAX_WAITING = 5_000  # events kept while the hub is away: seven hours
_BATCH = 100
_RETRY_S = (0.5, 1, 2, 5, 10)
_COMMAND_S = 30


class EventOutput(Protocol):
    """Takes events; never makes the scorer wait."""

    @property
    def lost(self) -> int:
        """How much of what was sent did not come to its end."""

    def send(self, event: Event) -> None: ...

    def close(self) -> None: ...


class LinesOutput:
    """One JSON line per event on standard output; on a terminal, a short line for people."""

    lost = 0

    def __init__(self) -> None:
        self._short = sys.stdout.isatty()

    def send(self, event: Event) -> None:
        text = short_line(event) if self._short else json.dumps(event, separators=(",", ":"))
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def close(self) -> None:
        """Standard output stays open."""


def short_line(event: Event) -> str:
    """An event in one line of a terminal."""
    at = time.strftime("%H:%M:%S", time.localtime(event["end"]))
    if event["phase"] is None:
        return f"{at}  silent: {', '.join(event['silent'])}"
    why = ", ".join(each["channel"] for each in event["why"])
    alarm = "" if event["alarm"] == "none" else f"  alarm {event['alarm']}: {why}"
    unlike = "  unlike training" if event["unlike"] else ""
    return f"{at}  {event['filtered']:<17}{event['confidence']:>6.1%}{unlike}{alarm}"


def is_hub_address(url: str) -> bool:
    """Whether a hub may be there."""
    try:
        parts = urlsplit(url)
        return bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:  # its port is none, or a bracket is open
        return False


def post_events(url: str, events: bytes, token: str | None, timeout_s: float) -> int:
    """Send a JSON list of events to a hub; returns how many it delivered.

    Args:
        url: of the hub, such as ``http://127.0.0.1:8447``.

    Raises:
        HTTPError: it refuses them.
        OSError, ValueError: no hub answers, or not to the end, or the address is none.
    """
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{url}/publish", events, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return int(json.load(answer)["delivered"])
    except HTTPException as error:  # which is no OSError: it died in its answer, or speaks no HTTP
        raise ConnectionError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise ValueError("its answer is not a hub's") from error


def refusal_message(url: str, error: urllib.error.HTTPError, token: str | None) -> str:
    """Why a hub takes no events, and what to do: what it says, or the code where it says nothing.

    Args:
        token: that it was sent; None or empty: none was.
    """
    if error.code == 401:
        what = "does not take this token" if token else "needs a token"
        return f"{url} {what} (401): give --token-file FILE or set PHASEWATCH_HUB_TOKEN"
    try:
        return f"{url} refuses events: {json.load(error)['error']} ({error.code})"
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return f"{url} refuses events: {error.code} {error.reason}"


class HubOutput:
    """Publishes events to a hub, in order; while it is away they wait, the oldest give way.

    Args:
        url: of the hub, such as ``http://127.0.0.1:8447``.
    """

    def __init__(self, url: str, token: str | None = None):
        self._url = url.rstrip("/")
        self._token = token
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING)
        self.dropped = 0
        self.refused = 0
        self._said = ""  # the last refusal that was logged; a repeated one is not
        self._lock = threading.Lock()  # of what waits: one thread adds, another takes
        self._more = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    def send(self, event: Event) -> None:
        with self._lock:
            self.dropped += len(self._waiting) == MAX_WAITING
            self._waiting.append(event)
        self._more.set()

    def close(self) -> None:
        """Wait up to two seconds for what is left, and say what was not delivered."""
        self._stopping = True
        self._more.set()
        self._thread.join(2)
        if self.lost:
            log.error("%d events were not delivered to %s", self.lost, self._url)

    @property
    def lost(self) -> int:
        """Events that the hub did not take: dropped, refused, or still waiting."""
        return self.dropped + self.refused + len(self._waiting)

    def _run(self) -> None:
        failures = 0
        while not (self._stopping and not self._waiting):
            self._more.wait(1)
            self._more.clear()
            while self._waiting:
                with self._lock:
                    batch = list(islice(self._waiting, _BATCH))
                if self._published(batch):
                    if failures:
                        log.warning("%s answers again", self._url)
                    failures = 0
                    self._remove(batch)
                    continue
                if failures == 0:
                    log.warning("%s cannot be reached; events are kept until it answers", self._url)
                wait = _RETRY_S[min(failures, len(_RETRY_S) - 1)]
                failures += 1
                if self._stopping:
                    return
                time.sleep(wait)

    def _remove(self, batch: list[Event]) -> None:
        """Take events that the hub has answered to off the queue."""
        with self._lock:
            for event in batch:
                if self._waiting and self._waiting[0] is event:
                    self._waiting.popleft()
                else:  # it gave way while it was sent
                    self.dropped -= 1

    def _published(self, batch: list[Event]) -> bool:
        """Whether the hub has answered: it took the events, or refused them for good."""
        try:
            post_events(self._url, json.dumps(batch).encode(), self._token, timeout_s=5)
        except urllib.error.HTTPError as error:
            if error.code in (429, 500, 502, 503, 504):
                return False
            self.refused += len(batch)
            why = refusal_message(self._url, error, self._token)
            if why != self._said:
                log.error("%s", why)
            self._said = why
            return True
        except (OSError, ValueError):
            return False
        self._said = ""
        return True


class CommandOutput:
    """Runs a command when an alarm is raised or cleared, or a machine goes silent.

    The event is JSON on its standard input; ``PHASEWATCH_ALARM`` is raised, cleared or silent. One
    command runs at a time, for at most 30 s.
    """

    def __init__(self, arguments: list[str]):
        self._arguments = arguments
        self._waiting: Queue[tuple[str, Event]] = Queue(100)
        self._dropped = 0
        self._silent: set[str] = set()
        threading.Thread(target=self._run, name="on-alarm", daemon=True).start()

    def send(self, event: Event) -> None:
        new = set(event["silent"]) - self._silent
        self._silent = set(event["silent"])
        # that a silent machine is an alarm is told once
        if event["alarm"] in ("raised", "cleared") and not (new and event["phase"] is None):
            self._put(event["alarm"], event)
        if new:
            self._put("silent", event)

    def _put(self, kind: str, event: Event) -> None:
        try:
            self._waiting.put_nowait((kind, event))
        except Full:
            self._dropped += 1

    def close(self) -> None:
        """Wait up to two seconds for the remaining commands, and log how many did not finish."""
        until = time.monotonic() + 2
        while self._waiting.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.05)
        if self.lost:
            log.error("--on-alarm: %d commands did not run to their end", self.lost)

    @property
    def lost(self) -> int:
        """Commands that still run or wait, or for which there was no place."""
        return self._dropped + self._waiting.unfinished_tasks

    def _run(self) -> None:
        while True:
            kind, event = self._waiting.get()
            try:
                subprocess.run(
                    self._arguments,
                    input=json.dumps(event).encode(),
                    env=os.environ | {"PHASEWATCH_ALARM": kind},
                    timeout=_COMMAND_S,
                    check=True,
                    stdout=sys.stderr,
                )
            except subprocess.CalledProcessError as error:
                log.error("--on-alarm: exit code %d", error.returncode)
            except subprocess.TimeoutExpired:
                log.error("--on-alarm: ended, because it ran for %d s", _COMMAND_S)
            except OSError as error:
                log.error("--on-alarm: %s: %s", self._arguments[0], error.strerror)
            self._waiting.task_done()


class MetricsOutput:
    """The state of the scorer as Prometheus text at ``/metrics``, on the loopback address.

    Raises:
        OSError: the port is in use.
    """

    lost = 0

    def __init__(self, port: int):
        self._values: dict[str, float] = {}
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/metrics":
                    self.send_error(404)
                    return
                content = outer.text().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Requests are not logged."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def send(self, event: Event) -> None:
        label = f'{{host="{event["host"]}"}}'
        alarm = event["alarm"] in ("raised", "standing")
        with self._lock:
            self._add(f"phasewatch_windows_total{label}", 1)
            self._add(f"phasewatch_alarms_total{label}", event["alarm"] == "raised")
            self._values[f"phasewatch_alarm{label}"] = alarm
            self._values[f"phasewatch_silent_sources{label}"] = len(event["silent"])
            self._values[f"phasewatch_window_end_seconds{label}"] = event["end"]
            for name in ("score", "latency_ms", "unlike"):
                if event[name] is not None:
                    self._values[f"phasewatch_{name}{label}"] = float(event[name])
            for source, share in event["coverage"].items():
                name = f'phasewatch_coverage{{host="{event["host"]}",source="{source}"}}'
                self._values[name] = share
            for phase, share in (event["filtered_probabilities"] or {}).items():
                name = f'phasewatch_phase{{host="{event["host"]}",phase="{phase}"}}'
                self._values[name] = share

    def count(self, name: str, value: float) -> None:
        """Set a counter that the scorer keeps itself."""
        with self._lock:
            self._values[f"phasewatch_{name}"] = value

    def _add(self, name: str, value: float) -> None:
        self._values[name] = self._values.get(name, 0.0) + value

    def text(self) -> str:
        with self._lock:
            values = dict(self._values)
        lines, typed = [], set()
        for name, value in sorted(values.items()):
            family = name.partition("{")[0]
            if family not in typed:
                typed.add(family)
                kind = "counter" if family.endswith("_total") else "gauge"
                lines.append(f"# TYPE {family} {kind}")
            lines.append(f"{name} {value:.15g}")
        return "\n".join(lines) + "\n"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
