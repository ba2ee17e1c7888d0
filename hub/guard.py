"""What stands in front of a web server: who may ask, from where, and with which token.

Pure ASGI, so that it goes in front of any application; the hub's and Dagster's servers are behind
it. It never lets a page of another origin write or read, and answers every refusal with what was
wrong and what to do. It sends no CORS headers: there is nothing to allow.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
COOKIE = "phasewatch_token"
MIN_TOKEN = 16
"""Characters that a token has at least."""

_NAME = re.compile(r"[\w.-]+|\[?[\da-fA-F:.]+(%\w+)?\]?", re.ASCII)  # of a host, or its address
_READS = ("GET", "HEAD", "OPTIONS")
_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class Refusal:
    """Why a request is not let through: a status, a code for programs, a sentence for people."""

    status: int
    code: str
    error: str


class Guard:
    """ASGI middleware that lets through what is asked from here, by name and with the token.

    Args:
        app: the application behind it.
        hosts: names that it is reached under, beside those of the loopback interface and the
            address that a connection came in on. A name that is not among them may be one that
            someone else's DNS answers for.
        token: if given, every request must bear it.
        read_only: refuse whatever is not a plain read.
        graphql: last part of the paths that take GraphQL: by POST and as JSON only, because a link
            or a form of another page can send all else.
        closed: beginnings of parts of a path under which nothing may be posted.

    Raises:
        ValueError: the token is too short to be one, or a name is none of a host.
    """

    def __init__(
        self,
        app: App,
        *,
        hosts: Iterable[str] = (),
        token: str | None = None,
        read_only: bool = False,
        graphql: str | None = None,
        closed: tuple[str, ...] = (),
    ):
        if token is not None and (len(token) < MIN_TOKEN or not token.isascii()):
            raise ValueError(
                f"the token must be {MIN_TOKEN} or more ASCII characters, got {len(token)}; make "
                'one: python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        names = [host.lower() for host in hosts]
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"a host must be a name or an address alone, got {name!r}")
        self.app = app
        self.hosts = {*LOOPBACK, *names}
        self.token = token
        # not the token: a browser sends cookies to every port of a host, and each server of the
        # host that has another token needs a cookie of its own
        self.cookie = hmac.new((token or "").encode(), COOKIE.encode(), hashlib.sha256).hexdigest()
        self.cookie_name = f"{COOKIE}_{self.cookie[:8]}"
        self.read_only = read_only
        self.graphql = graphql
        self.closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):  # lifespan
            await self.app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await _refuse(scope, receive, send, refusal)
        elif (location := self._without_token(scope)) is not None:
            await self._give_cookie(scope, send, location)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        return (
            self._foreign_host(scope)
            or self._foreign_page(scope)
            or self._graphql_by_link_or_form(scope)
            or self._closed_to_all(scope)
            or self._changes_at_all(scope)
            or self._without_right(scope)
        )

    def _foreign_host(self, scope: Scope) -> Refusal | None:
        """A name of ours that is not ours: DNS rebinding, or a name that nobody configured."""
        given = _headers(scope, b"host")
        name = _name(given[0]) if len(given) == 1 else None
        server = (scope.get("server") or ("",))[0]
        if name and (name in self.hosts or name == server):
            return None
        got = repr(given[0]) if len(given) == 1 else f"{len(given)} Host headers"
        return Refusal(
            403, "host",
            f"Host must be one of {', '.join(sorted(self.hosts))}, got {got}; if the name is "
            "yours, start the server with --allow-host NAME",
        )  # fmt: skip

    def _foreign_page(self, scope: Scope) -> Refusal | None:
        """A page of another origin, whatever it asks for; following a link to here is let through.

        Programs send neither header, and browsers at least one of them with everything that
        changes something, so that what has none is no page.
        """
        here = _headers(scope, b"host")[0]
        for origin in _headers(scope, b"origin"):
            if not _same_origin(origin, here):
                return Refusal(
                    403, "origin",
                    f"pages of {origin} may neither read nor write here, only those of this "
                    f"server ({here})",
                )  # fmt: skip
        sites = _headers(scope, b"sec-fetch-site")
        if all(site in ("same-origin", "none") for site in sites):
            return None
        follows_a_link = (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and _headers(scope, b"sec-fetch-mode") == ["navigate"]
            and _headers(scope, b"sec-fetch-dest") == ["document"]
        )
        if follows_a_link and sites in (["cross-site"], ["same-site"]):
            return None
        return Refusal(
            403, "origin",
            f"a page of another origin (Sec-Fetch-Site: {', '.join(sites)}) may neither read nor "
            f"write here, only pages of this server ({here})",
        )  # fmt: skip

    def _graphql_by_link_or_form(self, scope: Scope) -> Refusal | None:
        """What a page of an old browser could send without saying where it comes from."""
        if not self.graphql or scope["type"] != "http" or _parts(scope)[-1:] != [self.graphql]:
            return None
        if scope["method"] in _READS:
            if not scope["query_string"]:
                return None
            return Refusal(
                403, "graphql_get", "GraphQL over GET could be sent by a link: send it by POST"
            )
        kinds = [kind.partition(";")[0].strip() for kind in _headers(scope, b"content-type")]
        if kinds == ["application/json"]:  # then the address is not looked at
            return None
        return Refusal(
            403, "graphql_form",
            "GraphQL must be sent as application/json, got "
            f"{', '.join(kinds) or 'no Content-Type'}",
        )  # fmt: skip

    def _closed_to_all(self, scope: Scope) -> Refusal | None:
        if _reads(scope) or not any(part.startswith(self.closed) for part in _parts(scope)):
            return None
        return Refusal(
            403, "closed", f"nothing may be reported at {scope['path']}: only runs report results"
        )

    def _changes_at_all(self, scope: Scope) -> Refusal | None:
        if not self.read_only or _reads(scope):
            return None
        return Refusal(
            403, "read_only", "this server allows no changes; start it without --read-only"
        )

    def _without_right(self, scope: Scope) -> Refusal | None:
        if self.token is None:
            return None
        (scheme, _, bearer), cookie = _bearer(scope), _cookie(scope, self.cookie_name)
        asked = _asked_token(scope)
        if (
            (scheme.lower() == "bearer" and _equal(bearer.strip(), self.token))
            or (cookie is not None and _equal(cookie, self.cookie))
            or (asked is not None and _reads(scope) and _equal(asked, self.token))
        ):
            return None
        wrong = "is wrong" if bearer or asked or cookie else "is missing"
        return Refusal(
            401, "token",
            f"the token {wrong}: send Authorization: Bearer TOKEN, or open this address in a "
            "browser with ?token=TOKEN once",
        )  # fmt: skip

    def _without_token(self, scope: Scope) -> str | None:
        """Where a page that was opened with ``?token=`` goes on, without it in its address."""
        if self.token is None or _asked_token(scope) is None or not _reads(scope):
            return None
        rest = [(name, value) for name, value in _query(scope) if name != "token"]
        # a path that began with two slashes would lead to another server
        raw = scope.get("raw_path") or scope["path"].encode()
        path = "/" + raw.decode("latin-1").lstrip("/\\")
        return path + (f"?{urlencode(rest)}" if rest else "")

    async def _give_cookie(self, scope: Scope, send: Send, location: str) -> None:
        """For what cannot send a header: a page's EventSource.

        Lax, because a strict cookie would not follow the redirect of a link from another page;
        what another page asks for itself is refused before any cookie counts.
        """
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = f"{self.cookie_name}={self.cookie}; HttpOnly; SameSite=Lax; Path=/{secure}"
        headers = {
            "location": location, "set-cookie": cookie, "cache-control": "no-store",
            "referrer-policy": "no-referrer", "content-length": "0",
        }  # fmt: skip
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 303, "headers": raw})
        await send({"type": "http.response.body", "body": b""})


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _name(host: str) -> str | None:
    """The name or address of a ``Host`` header, without its port; None if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # a port that is no number
    except ValueError:
        return None
    clean = parts.netloc == host and not parts.path and "@" not in host
    return parts.hostname if clean else None


def _same_origin(origin: str, host: str) -> bool:
    """Whether an ``Origin`` is of the server that ``Host`` names; its scheme may be a proxy's."""
    scheme, _, rest = origin.partition("://")
    if scheme not in _PORTS or not rest:
        return False  # "null", an extension
    default = _PORTS[scheme]

    def full(authority: str) -> str:
        return f"{authority.lower().removesuffix(f':{default}')}:{default}"

    return full(rest) == full(host)


def _parts(scope: Scope) -> list[str]:
    return [part for part in scope["path"].split("/") if part]


def _reads(scope: Scope) -> bool:
    return bool(scope["type"] == "http" and scope["method"] in _READS)


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _asked_token(scope: Scope) -> str | None:
    return next((value for name, value in _query(scope) if name == "token"), None)


def _bearer(scope: Scope) -> tuple[str, str, str]:
    given = _headers(scope, b"authorization")
    return given[0].partition(" ") if len(given) == 1 else ("", "", "")


def _cookie(scope: Scope, wanted: str) -> str | None:
    pairs = (pair.strip().partition("=") for line in _headers(scope, b"cookie")
             for pair in line.split(";"))  # fmt: skip
    return next((value for name, _, value in pairs if name == wanted), None)


def _equal(given: str, right: str) -> bool:
    """Compared in a time that tells nothing of how much was right."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), right.encode())


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    kind = "http"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008})  # the server answers 403
            return
        kind = "websocket.http"
    body = json.dumps({"error": refusal.error, "code": refusal.code}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": f"{kind}.response.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})
