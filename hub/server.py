"""The hub: takes events from programs, and sends them to every page that is open.

One process, one event loop, all in memory but the log of decisions. Dagster, the stages and what
they need are not imported here: it has to start in a second, on a small machine too.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from config.messages import fault_text
from evaluation.decisions import Answer, tally
from hub.decisions import DecisionLog, LogError
from hub.events import EVENT, TYPES, AnyEvent, Event, LiveDetection, schema
from hub.guard import App, Guard, Message, Receive, Scope, Send
from hub.state import HubState
from live.silence import SCORER_SILENT_S

MAX_BODY = 2 << 20
MAX_CLIENTS = 500
STOPS_WITHIN_S = 3
PAGE = Path(__file__).with_name("page")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""What is served of the page's folder, by suffix."""
_FILES = {p.relative_to(PAGE).as_posix(): p for p in PAGE.rglob("*") if p.suffix in KINDS}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

log = logging.getLogger("phasewatch")

_EVENTS = TypeAdapter(list[AnyEvent])
_PROBLEMS = 10  # named of one body
_SHOWN = 80  # characters of a value


class Hub:
    """The application: what it remembers, the log it writes, and its endpoints.

    Args:
        decisions: folder of the log.
        silent_after_s: seconds after which a live host that sends nothing is silent.
        windows: log every window, not only what changes something.

    Raises:
        LogError: the log cannot be written.
    """

    def __init__(
        self, decisions: Path, *, silent_after_s: float = SCORER_SILENT_S, windows: bool = False
    ):
        self.state = HubState(silent_after_s)
        self.log = DecisionLog(decisions, windows=windows)
        self.app = _Headers(
            Starlette(
                routes=[
                    Route("/publish", self.publish, methods=["POST"]),
                    Route("/events", self.events),
                    Route("/answers", self.answer, methods=["POST"]),
                    Route("/answers", self.answers),
                    Route("/schema", self.schema),
                    Route("/healthz", self.health),
                    Route("/{name:path}", page),
                ],
                exception_handlers={ClientDisconnect: _gone, _TooLargeError: _too_large},
                lifespan=self._lifespan,
            )
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            await self.log.flush()
            self.log.close()

    async def _watch(self) -> None:
        """Notice hosts that went silent; try again what the disk did not take."""
        while True:
            await asyncio.sleep(1)
            try:
                for event in self.state.publish_silence():
                    self.log.note(event)
                await self.log.flush()
            except Exception:  # the watch must not end because one round failed
                log.exception("hub: the watch for silent hosts failed; it continues")

    async def publish(self, request: Request) -> Response:
        """Take one event or a list; all of them, or none if one is wrong."""
        body = await _body(request)
        several = body.lstrip(b" \t\r\n").startswith(b"[")
        try:
            events: Sequence[Event] = (
                _EVENTS.validate_json(body, strict=True)
                if several
                else [EVENT.validate_json(body, strict=True)]
            )
        except ValidationError as error:
            return _wrong(error, several=several)
        for event in events:
            if self.state.repeats(event):
                continue
            self.state.publish(event)
            if isinstance(event, LiveDetection):
                self.log.note(event)
        if any(isinstance(event, LiveDetection) for event in events):
            await self.log.flush()  # of repeated events, too: their first write may be under way
        return JSONResponse({"delivered": len(events)})

    async def events(self, request: Request) -> Response:
        """Server-sent events: the latest of everything, then all that comes."""
        if self.state.clients >= MAX_CLIENTS:
            return _error(503, f"{MAX_CLIENTS} clients are connected; close one")
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        last = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
        return StreamingResponse(
            self.state.follow(last or None),
            media_type="text/event-stream",
            headers={"x-accel-buffering": "no"},
        )

    async def answer(self, request: Request) -> Response:
        """An operator's answer to an alarm; it is on the disk when this says so."""
        body = await _body(request)
        try:
            answer = Answer.model_validate_json(body, strict=True)
        except ValidationError as error:
            return _wrong(error, several=False)
        alarm = self.log.content.alarms.get(answer.alarm_id)
        if alarm is None or alarm.host != answer.host:
            return _error(
                404, f"alarm_id must name an alarm of {answer.host!r}, got {answer.alarm_id!r}"
            )
        try:
            record = await self.log.answer(**answer.model_dump())
        except LogError as error:
            return _error(503, f"{error}; the answer waits in memory")
        return JSONResponse(_shown(record))

    async def answers(self, _: Request) -> Response:
        """The last answer to every alarm, and the counts; precision is of live machines alone."""
        content = self.log.content
        counted = tally(content)
        return JSONResponse(
            {
                "answers": [_shown(record) for record in content.answers.values()],
                "tally": counted.model_dump(exclude={"unreadable"}),
                "precision": counted.precision,
            }
        )

    async def schema(self, _: Request) -> Response:
        """The JSON schema of an event."""
        return JSONResponse(schema())

    async def health(self, _: Request) -> Response:
        """Whether all is well; 503 if the log cannot be written."""
        state = self.state
        problem = self.log.problem
        document = {
            "status": "the log cannot be written" if problem else "ok",
            "boot": state.boot,
            "newest": state.newest,
            "oldest": state.oldest,
            "clients": state.clients,
            "decisions_lost": self.log.lost,
        }
        return JSONResponse(document, status_code=503 if problem else 200)


async def _gone(_: Request, __: Exception) -> Response:
    return _error(400, "the body ended early")  # nobody hears it


async def page(request: Request) -> Response:
    """A file of the page."""
    path = _FILES.get(request.path_params["name"] or "index.html")
    if path is None:
        return _error(404, f"there is no {request.url.path} here")
    return Response(path.read_bytes(), media_type=KINDS[path.suffix])


class _Headers:
    """Puts the security headers on every answer, errors too."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self.app(scope, receive, with_headers)


class _TooLargeError(Exception):
    """More was sent than is taken."""


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise _TooLargeError
    return bytes(body)


async def _too_large(_: Request, __: Exception) -> Response:
    return _error(
        413, f"a body must be at most {MAX_BODY} bytes; send fewer events at a time", close=True
    )


def _error(status: int, error: str, *, close: bool = False, **more: Any) -> Response:
    headers = {"connection": "close"} if close else {}
    return JSONResponse({"error": error, **more}, status_code=status, headers=headers)


def _wrong(error: ValidationError, *, several: bool) -> Response:
    """What is wrong with a body: which event, which field, what it has."""
    problems = []
    for fault in error.errors(include_url=False)[:_PROBLEMS]:
        where = list(fault["loc"])
        index = where.pop(0) if several and where else 0
        where = where[1:] if where and where[0] in TYPES else where
        value = repr(fault["input"])
        problems.append(
            {
                "event": index,
                "field": ".".join(str(part) for part in where),
                "problem": fault_text(fault),
                "value": value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…",
            }
        )
    first = problems[0]
    what = f"event {first['event']}" + (f", {first['field']}" if first["field"] else "")
    return _error(
        422, f"{what}: {first['problem']}, got {first['value']}", problems=problems
    )  # fmt: skip


def _shown(record: BaseModel) -> dict[str, Any]:
    return record.model_dump(include={"alarm_id", "host", "verdict", "note", "at"})


class _Server(uvicorn.Server):
    """Ends the streams when it is told to stop: they would never end by themselves."""

    def __init__(self, hub: Hub, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self.hub = hub
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.hub.state.close()
        await super().shutdown(sockets)


def build_server(
    hub: Hub,
    *,
    hosts: Iterable[str] = (),
    token: str | None = None,
    read_only: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """The hub behind its guard; ``run(sockets=[…])`` serves until SIGTERM or SIGINT.

    Args:
        hosts, token, read_only: see ``Guard``.
        ready: called once, when requests are answered.
    """
    app = Guard(hub.app, hosts=hosts, token=token, read_only=read_only)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=STOPS_WITHIN_S, proxy_headers=False, ws="none",
    )  # fmt: skip
    return _Server(hub, config, ready)
