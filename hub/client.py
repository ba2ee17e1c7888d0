"""Publishing to a hub: events go in order, and are answered for."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from config.errors import PhasewatchError
from live.outputs import post_events, refusal_message

if TYPE_CHECKING:  # pydantic, which a command that only shows its help must not wait for
    from hub.events import Event

PORT = 8447
"""Of a hub, if nobody says another."""
BATCH = 100
"""Events of one request."""


class PublishError(PhasewatchError):
    """A hub did not take events; the message says why."""


class Publisher:
    """Sends events to a hub, in order: a batch is answered before the next is made.

    Args:
        url: of the hub, such as ``http://127.0.0.1:8447``.
    """

    def __init__(self, url: str, token: str | None = None):
        self.url = url.rstrip("/")
        self._token = token

    def check(self) -> None:
        """Ask the hub to take nothing, which needs all that taking something needs.

        Raises:
            PublishError: no hub answers, or it would refuse events.
        """
        self._send([])

    def publish(self, events: Iterable[Event], batch: int = BATCH) -> int:
        """Send all events; returns how many the hub delivered.

        What was made before ``events`` fails is sent, too.

        Raises:
            PublishError: no hub answers, or it refuses them.
        """
        delivered = 0
        waiting: list[Event] = []
        try:
            for event in events:
                waiting.append(event)
                if len(waiting) == batch:
                    full, waiting = waiting, []
                    delivered += self._send(full)
        finally:
            if waiting:
                delivered += self._send(waiting)
        return delivered

    def _send(self, events: list[Event]) -> int:
        body = f"[{','.join(event.model_dump_json() for event in events)}]".encode()
        try:
            return post_events(self.url, body, self._token, timeout_s=10)
        except urllib.error.HTTPError as error:
            raise PublishError(refusal_message(self.url, error, self._token)) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", error)
            try:
                port = urlsplit(self.url).port
            except ValueError:  # which is why nobody answers
                port = None
            start = "phasewatch hub" + (f" --port {port}" if port not in (None, PORT) else "")
            raise PublishError(
                f"{self.url}: no hub answers there ({why}); start one: {start}"
            ) from None
