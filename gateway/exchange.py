"""One request and the answer to it, as the handlers see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from passel.errors import InputError
from passel.gateway.replies import ALWAYS, Failure, Header, head

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from passel.gateway.connection import Connection

#: Parameters of a query beyond these are not looked at.
QUERY_FIELDS_MAX = 32


@dataclass(frozen=True, slots=True)
class Target:
    """A request target: `authority` is ``scheme://host[:port]`` of an absolute-form one."""

    authority: str | None
    path: str
    query: str


def parse_target(raw: str) -> Target:
    """Split a request target. Source: RFC 9112 3.2. Raises InputError for what is no path."""
    authority = None
    rest = raw
    scheme, separator, after = raw.partition("://")
    if separator and scheme.lower() in ("http", "https") and not raw.startswith("/"):
        host, slash, path = after.partition("/")
        host, question, query = host.partition("?")
        if question:
            slash, path = "/", f"?{query}"
        authority = f"{scheme.lower()}://{host}"
        rest = f"{slash or '/'}{path}"
    if not rest.startswith("/"):
        raise InputError(400, "UNSUPPORTED", "the request target must be a path or an absolute URL")
    path, _, query = rest.partition("?")
    return Target(authority, path, query.partition("#")[0])


class Exchange:
    """A request, and the ways to answer it. Each of them is final."""

    __slots__ = (
        "authorization",
        "connection",
        "keep",
        "kind",
        "method",
        "request",
        "status",
        "target",
    )

    def __init__(self, request: BaseRequest, connection: Connection, target: Target) -> None:
        self.request = request
        self.connection = connection
        self.target = target
        self.method = request.method
        #: Another request may follow on this connection.
        self.keep = request.keep_alive
        self.authorization: str | None = request.headers.get("Authorization")
        #: For the metrics: what was asked for and what became of it.
        self.kind = "other"
        self.status = 0

    @property
    def client(self) -> str:
        """The address of the client, without its port."""
        peer = self.request.transport and self.request.transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""

    @property
    def is_head(self) -> bool:
        """HEAD has the headers of GET and no body."""
        return self.method == "HEAD"

    def header(self, name: str) -> str | None:
        """The first line of a header."""
        return self.request.headers.get(name)

    def lines(self, name: str) -> list[str]:
        """All lines of a header: containers/image and docker send six of Accept."""
        return self.request.headers.getall(name, [])

    def query(self, name: str) -> list[str]:
        """All values of a query parameter. Raises InputError for what is no query."""
        try:
            fields = parse_qsl(
                self.target.query,
                keep_blank_values=True,
                errors="strict",
                max_num_fields=QUERY_FIELDS_MAX,
            )
        except ValueError:
            raise InputError(400, "UNSUPPORTED", "the query cannot be read") from None
        return [value for key, value in fields if key == name]

    def head(self, status: int, headers: Sequence[Header]) -> bytes:
        """Status line and headers, and a note of the status for the metrics."""
        self.status = status
        return head(status, headers, keep=self.keep)

    async def reply(
        self, status: int, headers: Sequence[Header], body: bytes, media_type: str
    ) -> None:
        """A short answer in one write."""
        fields = [("Content-Type", media_type), ("Content-Length", str(len(body))), *headers]
        data = self.head(status, [*fields, *ALWAYS])
        await self.connection.write(data if self.is_head else data + body)

    async def fail(self, failure: Failure) -> None:
        """The OCI error; once bytes of another answer are out, a reset that no client overlooks."""
        if self.connection.started:
            self.connection.abort()
            raise ConnectionAbortedError("the rest of the answer cannot be had")
        self.keep = self.keep and not failure.close
        self.status = failure.status
        await self.connection.write(failure.encode(head_only=self.is_head, keep=self.keep))
