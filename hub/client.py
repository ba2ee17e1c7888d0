"""Publishing to a hub: events go in order, and are answered for."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterable
from itertools import islice

from hub.events import Event
from live.outputs import post

BATCH = 100
"""Events of one request."""


class PublishError(Exception):
    """A hub did not take events; the message says why."""


def publish(url: str, events: Iterable[Event], token: str | None = None, batch: int = BATCH) -> int:
    """Send events to a hub, in order: a batch is answered before the next is made.

    Args:
        url: of the hub, such as ``http://127.0.0.1:8447``.

    Returns:
        How many the hub delivered.

    Raises:
        PublishError: no hub answers, or it refuses them.
    """
    url, delivered, rest = url.rstrip("/"), 0, iter(events)
    while several := list(islice(rest, batch)):
        delivered += _sent(url, several, token)
    return delivered


def _sent(url: str, events: list[Event], token: str | None) -> int:
    body = f"[{','.join(event.model_dump_json() for event in events)}]".encode()
    try:
        return int(json.loads(post(url, body, token, timeout_s=10))["delivered"])
    except urllib.error.HTTPError as error:
        if error.code == 401 and token is None:
            raise PublishError(
                f"{url} needs a token (401): give --token-file FILE or set PHASEWATCH_HUB_TOKEN"
            ) from None
        raise PublishError(f"{url} refuses events: {_refusal(error)}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "reason", error)
        raise PublishError(
            f"{url}: no hub answers there ({why}); start one: phasewatch hub"
        ) from None


def _refusal(error: urllib.error.HTTPError) -> str:
    """What the hub says, or only the code where something else answers."""
    try:
        return f"{json.load(error)['error']} ({error.code})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
