"""What the hub remembers: a bounded ring of events, and the latest of every subject.

No client has a queue. Each has a place in the ring, which is one number; one that is too slow finds
the ring gone on, is told how many events it missed, and goes on. Everything here is called from one
event loop.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from evaluation.decisions import window_key
from hub.events import Event, LiveDetection, now
from live.silence import SCORER_SILENT_S, silence_fields

RING_EVENTS, RING_BYTES = 10_000, 16 << 20
"""Of what a client that comes back is given; at 50 events a second, three minutes."""
KEPT_EVENTS, KEPT_BYTES = 10_000, 8 << 20
"""Of the latest of all subjects, for each type of event, so that none pushes out another."""
WATCHED_HOSTS = 1000
KNOWN_WINDOWS = 10_000  # in which a window that is published twice is noticed
CHUNK_BYTES = 64 << 10
HEARTBEAT_S = 15.0


@dataclass(frozen=True, slots=True)
class Frame:
    """An event as it is sent to every client."""

    number: int
    subject: tuple[str | int, ...]
    text: bytes


@dataclass
class _Kept:
    """The latest events of one type: of each subject the last, and some before it."""

    last: OrderedDict[tuple[str | int, ...], Frame] = field(default_factory=OrderedDict)
    former: OrderedDict[int, Frame] = field(default_factory=OrderedDict)
    of_subject: dict[tuple[str | int, ...], deque[int]] = field(default_factory=dict)
    size: int = 0

    def add(self, frame: Frame, kept: int) -> Iterator[Frame]:
        """Remember a frame; yields those that are forgotten for it."""
        before = self.last.pop(frame.subject, None)
        self.last[frame.subject] = frame
        self.size += len(frame.text)
        if before is not None:
            self.former[before.number] = before
            numbers = self.of_subject.setdefault(frame.subject, deque())
            numbers.append(before.number)
            if len(numbers) >= kept:
                yield self._forget_former(numbers[0])
        while self.size > KEPT_BYTES or len(self.last) + len(self.former) > KEPT_EVENTS:
            if self.former:  # the past of a subject goes before the subject
                yield self._forget_former(next(iter(self.former)))
            else:
                _, forgotten = self.last.popitem(last=False)
                self.size -= len(forgotten.text)
                yield forgotten

    def _forget_former(self, number: int) -> Frame:
        frame = self.former.pop(number)
        numbers = self.of_subject[frame.subject]
        numbers.popleft()  # the oldest of all is the oldest of its subject
        if not numbers:
            del self.of_subject[frame.subject]
        self.size -= len(frame.text)
        return frame


@dataclass(frozen=True, slots=True)
class LastContact:
    """When a host was last heard, on the monotonic clock, and what it said."""

    at: float
    event: LiveDetection


class HubState:
    """Events in order, numbered from 1 within one life of the hub.

    An id is ``<boot>-<number>``: after a restart, the numbers that a client knows mean nothing, and
    it is told so.
    """

    def __init__(self, silent_after_s: float = SCORER_SILENT_S) -> None:
        self.boot = secrets.token_hex(4)
        self.newest = 0
        self.clients = 0
        self.silent_after_s = silent_after_s
        self.closed = False
        self._ring: deque[Frame] = deque()
        self._ring_bytes = 0
        self._kept: dict[str, _Kept] = {}
        self._by_number: OrderedDict[int, Frame] = OrderedDict()  # all that is kept, in order
        self._heard: OrderedDict[str, LastContact] = OrderedDict()
        self._known: OrderedDict[tuple[object, ...], None] = OrderedDict()
        self._news = asyncio.Event()

    @property
    def oldest(self) -> int:
        """Number of the first event in the ring; one more than the newest if it is empty."""
        return self._ring[0].number if self._ring else self.newest + 1

    def repeats(self, event: Event) -> bool:
        """Whether this window was published before: its scorer had no answer and sent it again."""
        if not isinstance(event, LiveDetection):
            return False
        key = window_key(vars(event))
        if key in self._known:
            return True
        self._known[key] = None
        if len(self._known) > KNOWN_WINDOWS:
            self._known.popitem(last=False)
        return False

    def publish(self, event: Event) -> str:
        """Give an event its number, remember it and wake the clients; returns its id.

        It is serialised here, once for all clients.
        """
        if isinstance(event, LiveDetection) and event.source == "live":
            # a replay that ends is over, so only what is live is watched
            self._heard.pop(event.host, None)
            self._heard[event.host] = LastContact(time.monotonic(), event)
            if len(self._heard) > WATCHED_HOSTS:
                self._heard.popitem(last=False)
        return self._add(event)

    def publish_silence(self) -> list[LiveDetection]:
        """Publish an alarm, once, for every host that was not heard for too long."""
        clock, found = time.monotonic(), []
        while self._heard:
            host, heard = next(iter(self._heard.items()))
            if clock - heard.at < self.silent_after_s:
                break
            del self._heard[host]  # what is said of it below is no sign of life
            if host not in heard.event.silent:  # the scorer has said it already
                found.append(
                    _silence(heard.event, clock - heard.at, f"{self.boot}-{self.newest + 1}")
                )
                self._add(found[-1])
        return found

    def _add(self, event: Event) -> str:
        self.newest += 1
        name = f"{self.boot}-{self.newest}"
        text = f"id: {name}\ndata: {event.model_dump_json()}\n\n".encode()
        frame = Frame(self.newest, event.subject, text)
        self._ring.append(frame)
        self._ring_bytes += len(text)
        while len(self._ring) > RING_EVENTS or self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft().text)
        self._by_number[frame.number] = frame
        for forgotten in self._kept.setdefault(event.type, _Kept()).add(
            frame, event.kept_per_subject
        ):
            del self._by_number[forgotten.number]
        self._news.set()
        self._news = asyncio.Event()
        return name

    def close(self) -> None:
        """End all streams: the hub stops."""
        self.closed = True
        self._news.set()

    async def follow(self, last_id: str | None) -> AsyncIterator[bytes]:
        """What a client is sent: the latest of everything, or what it missed; then all that comes.

        Args:
            last_id: of the last event that it has; None for a new client.
        """
        self.clients += 1
        try:
            place = self._place(last_id)
            if place is None:
                if last_id is not None:
                    yield _message("gap", missed=None, reason="restart")
                place, numbers = self.newest, list(self._by_number)
                for chunk in self._kept_frames(numbers):
                    yield chunk
            yield _message("live", boot=self.boot, at=now())
            while not self.closed:
                if place + 1 < self.oldest:
                    # the latest of every subject is sent; the rest is lost to this client
                    oldest = self.oldest
                    numbers = [n for n in self._by_number if place < n < oldest]
                    if missed := oldest - 1 - place - len(numbers):
                        yield _message("gap", missed=missed, reason="behind")
                    place = oldest - 1
                    for chunk in self._kept_frames(numbers):
                        yield chunk
                    continue
                news = self._news
                frames = list(self._after(place))
                if frames:
                    place = frames[-1].number
                    yield b"".join(frame.text for frame in frames)
                    continue
                try:
                    await asyncio.wait_for(news.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self.clients -= 1

    def _place(self, last_id: str | None) -> int | None:
        """The number in an id of this life of the hub; None if it is none."""
        boot, _, number = (last_id or "").partition("-")
        if boot != self.boot or not (number.isascii() and number.isdigit()):
            return None
        return int(number) if len(number) < 20 and int(number) <= self.newest else None

    def _kept_frames(self, numbers: list[int]) -> Iterator[bytes]:
        """Frames of these numbers; the successor of one that was replaced meanwhile comes later.

        Numbers are held instead of frames, so that a client that stalls here holds no memory.
        """
        texts: list[bytes] = []
        size = 0
        for number in numbers:
            if frame := self._by_number.get(number):
                texts.append(frame.text)
                size += len(frame.text)
                if size > CHUNK_BYTES:
                    yield b"".join(texts)
                    texts, size = [], 0
        if texts:
            yield b"".join(texts)

    def _after(self, place: int) -> Iterator[Frame]:
        """The next frames of the ring, up to a chunk of them."""
        size = 0
        for behind in range(self.newest - place, 0, -1):
            frame = self._ring[-behind]
            yield frame
            size += len(frame.text)
            if size > CHUNK_BYTES:
                return


def _message(event: str, **data: Any) -> bytes:
    """A message of the hub itself: without an id, so that no client takes it for its place."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()


def _silence(last: LiveDetection, quiet_s: float, name: str) -> LiveDetection:
    """What the hub says of a host that stopped: an alarm, or that the one that stood goes on."""
    standing = last.alarm_id if last.alarm in ("raised", "standing") else None
    said = silence_fields(last.end, round(last.end + quiet_s, 3), standing, f"silent-{name}")
    return last.model_copy(
        update=said
        | {
            "at": now(),
            "origin": "hub",
            "window": last.window + 1,
            "coverage": {},
            "silent": [last.host],
        }
    )
