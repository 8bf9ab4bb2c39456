"""The page at `/ui`: its files, and its stream of events. Read-only, for programs on this node.

A browser is used by whoever wrote the last page that it opened, so three things are checked: the
connection comes from this node, the name that was typed is a number or ``localhost`` (a name that
somebody else owns could point here, "DNS rebinding"), and no other site asks.
"""

from __future__ import annotations

import asyncio
import ipaddress
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from passel.gateway.feed import Feed
from passel.gateway.replies import Failure, Header, Refusal

if TYPE_CHECKING:
    from passel.gateway.context import Context
    from passel.gateway.exchange import Exchange

#: Nothing from elsewhere, nothing inline, in nobody's frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: tuple[Header, ...] = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-cache"),
)
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
EVENTS = "/ui/events"
#: Something is sent at least so often, so that a dead connection is noticed on both sides.
HEARTBEAT_S = 10.0
#: Who does not take what was sent for so long is dropped.
SLOW_S = 10.0
#: A browser connects again by itself; a forgotten one does not stay for ever.
STREAM_S = 3600.0


class Page:
    """What a listener for health shows at `/ui`."""

    def __init__(self, context: Context) -> None:
        self._feed = Feed(context.door.watch)

    async def serve(self, exchange: Exchange) -> bool:
        """Answer if the path is one of the page's. Raises Refusal."""
        path = exchange.target.path
        if path != "/ui" and not path.startswith("/ui/"):
            return False
        exchange.kind = "page"
        _check(exchange)
        if path == "/ui/":
            # What the page is made of is named relative to /ui.
            await exchange.reply(308, (("Location", "/ui"),), b"", "text/plain")
            return True
        if path == EVENTS:
            await self._stream(exchange)
            return True
        found = _files().get(path)
        if found is None:
            raise Refusal(Failure(404, "UNSUPPORTED", "the page has no such part: see /ui"))
        media_type, body = found
        await exchange.reply(200, HEADERS, body, media_type)
        return True

    async def _stream(self, exchange: Exchange) -> None:
        feed = self._feed
        if not feed.has_room:
            later = (("Retry-After", "10"),)
            text = "as many browsers as may be look at this page already"
            raise Refusal(Failure(503, "TOOMANYREQUESTS", text, headers=later))
        exchange.keep = False  # the end of the stream is the end of the connection
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STREAM_S
        seen: tuple[int | None, str] = (None, "")
        kind = ("Content-Type", "text/event-stream; charset=utf-8")
        with feed.watching():
            await self._send(exchange, exchange.head(200, [kind, *HEADERS]))
            if exchange.is_head:
                return
            while loop.time() < deadline and not feed.is_closed:
                events, seen = feed.events(seen)
                if events:
                    await self._send(exchange, events)
                elif not await feed.wait(HEARTBEAT_S):
                    await self._send(exchange, b": nothing new\n\n")

    async def _send(self, exchange: Exchange, data: bytes) -> None:
        try:
            await asyncio.wait_for(exchange.connection.write(data), SLOW_S)
        except asyncio.TimeoutError:
            exchange.connection.abort()
            raise ConnectionResetError("the browser does not read") from None

    async def close(self) -> None:
        """End all streams: a gateway that stops waits for nobody who only looks on."""
        await self._feed.close()


def _check(exchange: Exchange) -> None:
    if not _is_loopback(exchange.client):
        text = (
            "the page is for programs on this node: look at it through a tunnel,"
            " ssh -L 40901:127.0.0.1:40901 NODE, then http://127.0.0.1:40901/ui"
        )
        raise Refusal(Failure(403, "DENIED", text))
    if not _is_plain_host(exchange.header("Host") or ""):
        text = "open the page as http://127.0.0.1 or http://localhost, with the port"
        raise Refusal(Failure(403, "DENIED", text))
    if (exchange.header("Sec-Fetch-Site") or "none").lower() not in ("none", "same-origin"):
        # Following a link to the page is fine; what it is made of is for itself.
        is_visit = (exchange.header("Sec-Fetch-Mode") or "").lower() == "navigate"
        if exchange.target.path != "/ui" or not is_visit:
            raise Refusal(Failure(403, "DENIED", "other sites get nothing of this page"))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_plain_host(host: str) -> bool:
    """``localhost`` or an address in digits, with any port: a tunnel has a port of its own."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():
        name = host
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1)
def _files() -> dict[str, tuple[str, bytes]]:
    """Path to media type and content, read once: the page does not change while we run."""
    found: dict[str, tuple[str, bytes]] = {}
    for file in resources.files("passel.gateway").joinpath("page_files").iterdir():
        dot = file.name.rfind(".")
        if dot > 0 and file.name[dot:] in MEDIA_TYPES:
            path = "/ui" if file.name == "index.html" else f"/ui/{file.name}"
            found[path] = (MEDIA_TYPES[file.name[dot:]], file.read_bytes())
    return found
