"""Answers that are made here: heads by hand, error bodies, and what each error of the tree becomes.

Nothing of a request is ever put into an answer but validated names (an upstream's key, a digest).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Literal

from passel.errors import (
    ConfigError,
    ContentError,
    DigestMismatch,
    InputError,
    InvalidTransition,
    LengthMismatch,
    NoSpace,
    OriginNonsense,
    OriginRefused,
    OriginTimeout,
    OriginUnavailable,
    PasselError,
    PeerBusy,
    PeerUnavailable,
    StoreCorrupt,
    StoreError,
    StoreLocked,
    TransientError,
)
from passel.oci.errors import error_body

Header = tuple[str, str]
Blame = Literal["backend", "proxy"]
"""``X-Dragonfly-Error-Type``: the origin's word, or ours. nydusd >= 2.4.3 reads it."""

#: On every answer. ``Via``: RFC 9110 7.6.3; the registry header is what old docker looks for.
ALWAYS: tuple[Header, ...] = (
    ("Docker-Distribution-Api-Version", "registry/2.0"),
    ("Via", "1.1 passel"),
)
#: What may come from an origin's answer to a client. Everything else stays here, above all
#: Set-Cookie, Location and Content-Encoding.
PASSED_ON = (
    "www-authenticate",
    "retry-after",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "docker-ratelimit-source",
    "oci-subject",
    "oci-filters-applied",
    "warning",
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that is not the content: status, one OCI error, and headers that explain it."""

    status: int
    code: str
    message: str
    blame: Blame = "proxy"
    headers: tuple[Header, ...] = ()
    #: The body as the origin wrote it, if it is the origin's word; None: ours, from code and
    #: message.
    body: bytes | None = None
    close: bool = False

    def encode(self, *, head_only: bool, keep: bool) -> bytes:
        """The whole answer as bytes. A HEAD has the headers that GET would have, and no body."""
        body = error_body(self.code, self.message) if self.body is None else self.body
        keep = keep and not self.close
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            *ALWAYS,
            ("X-Dragonfly-Error-Type", self.blame),
            *self.headers,
        ]
        return head(self.status, headers, keep=keep) + (b"" if head_only else body)


class Refusal(Exception):
    """Carries a :class:`Failure` to the one place that writes it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.status, failure.code)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class _Row:
    status: int
    code: str
    blame: Blame
    retry_after_s: int | None = None
    #: None: the error's own sentence.
    message: str | None = None


_BUSY = "this node cannot serve it at the moment"
_BROKEN = "this node's store cannot serve it"
_WRONG = "what arrived does not have the digest that was asked for"

#: Every leaf of the error tree, most special first within a branch. Our own troubles are 503 and
#: never a status that a client takes for the origin's word. Source: DESIGN §5.6 and §10.
TABLE: dict[type[PasselError], _Row] = {
    PeerUnavailable: _Row(503, "UNAVAILABLE", "proxy", 1, _BUSY),
    PeerBusy: _Row(503, "UNAVAILABLE", "proxy", 1, _BUSY),
    OriginUnavailable: _Row(
        502, "UNAVAILABLE", "backend", 1, "the origin registry cannot be reached"
    ),
    OriginTimeout: _Row(
        504, "UNAVAILABLE", "backend", 1, "the origin registry said nothing in time"
    ),
    TransientError: _Row(503, "UNAVAILABLE", "proxy", 1, _BUSY),
    OriginNonsense: _Row(
        502, "UNAVAILABLE", "backend", None, "the origin registry's answer is not valid"
    ),
    DigestMismatch: _Row(502, "UNAVAILABLE", "backend", None, _WRONG),
    LengthMismatch: _Row(
        502, "UNAVAILABLE", "backend", None, "more or fewer bytes came than announced"
    ),
    ContentError: _Row(502, "UNAVAILABLE", "backend", None, _WRONG),
    NoSpace: _Row(503, "UNAVAILABLE", "proxy", 5, _BROKEN),
    StoreLocked: _Row(503, "UNAVAILABLE", "proxy", 5, _BROKEN),
    StoreCorrupt: _Row(503, "UNAVAILABLE", "proxy", 5, _BROKEN),
    StoreError: _Row(503, "UNAVAILABLE", "proxy", 5, _BROKEN),
    ConfigError: _Row(500, "UNKNOWN", "proxy", None, "this gateway is not configured correctly"),
    InvalidTransition: _Row(500, "UNKNOWN", "proxy", None, "internal error"),
}
#: The two leaves that carry their own status.
SPEAK_FOR_THEMSELVES = (OriginRefused, InputError)

_ORIGIN_CODES = {
    401: ("UNAUTHORIZED", "authentication required"),
    403: ("DENIED", "the origin registry denies access"),
    404: ("NAME_UNKNOWN", "the origin registry does not know it"),
    429: ("TOOMANYREQUESTS", "the origin registry's rate limit is reached"),
}


def failure_of(error: PasselError, *, unknown: str = "NAME_UNKNOWN") -> Failure:
    """What a client is told about an error, without anything private in it.

    `unknown` is the OCI code for the origin's 404.
    """
    if isinstance(error, OriginRefused):
        return _refused(error, unknown)
    if isinstance(error, InputError):
        return Failure(error.status, error.code, error.message)
    row = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    retry = getattr(error, "retry_after_s", None) or row.retry_after_s
    headers = () if retry is None else (("Retry-After", str(max(1, round(retry)))),)
    return Failure(row.status, row.code, row.message or str(error), row.blame, headers)


def _refused(error: OriginRefused, unknown: str) -> Failure:
    code, message = _ORIGIN_CODES.get(error.status, ("UNKNOWN", "the origin registry refused"))
    if error.status == 404:
        code = unknown
    headers = tuple((k, v) for k, v in error.headers.items() if k.lower() in PASSED_ON)
    # A body that is not JSON (a proxy's page) is replaced: clients parse it.
    body = error.body if error.body.lstrip()[:1] == b"{" else None
    return Failure(error.status, code, message, "backend", headers, body)


def unavailable(message: str, retry_after_s: int = 1) -> Failure:
    """503 with ``Retry-After``: the one answer to troubles of our own."""
    return Failure(503, "UNAVAILABLE", message, "proxy", (("Retry-After", str(retry_after_s)),))


def failure_bytes(
    status: int, code: str, message: str, *, retry_after_s: int | None = None
) -> bytes:
    """A failure on a connection that ends with it."""
    headers = () if retry_after_s is None else (("Retry-After", str(retry_after_s)),)
    failure = Failure(status, code, message, headers=headers, close=True)
    return failure.encode(head_only=False, keep=False)


def head(status: int, headers: Iterable[Header], *, keep: bool = True) -> bytes:
    """Status line and headers up to and with the empty line.

    Values come from this package, the configuration or the origin; a line break in one of them
    would split the answer, so those are dropped here once and for all.
    """
    lines = [f"HTTP/1.1 {status} {_reason(status)}", f"Date: {_date_at(int(time.time()))}"]
    for name, value in headers:
        if value.isprintable() and value.isascii():
            lines.append(f"{name}: {value}")
    lines.append("Connection: keep-alive" if keep else "Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def blob_headers(
    upstream: str, task_id: str, digest: str, source: str, *, private: bool
) -> list[Header]:
    """The headers that every answer with a blob's bytes has. Source: reference oci.md §1.3."""
    cache = "max-age=31536000, immutable"
    return [
        ("Content-Type", "application/octet-stream"),
        ("Accept-Ranges", "bytes"),
        ("Docker-Content-Digest", digest),
        ("ETag", f'"{digest}"'),
        ("Cache-Control", f"private, {cache}" if private else cache),
        *ALWAYS,
        ("OCI-Namespace", upstream),
        ("X-Dragonfly-Task-ID", task_id),
        ("X-Passel-Source", source),
    ]


def passed_on(headers: Iterable[tuple[str, str]]) -> list[Header]:
    """The part of an origin's headers that clients may see."""
    return [(k, v) for k, v in headers if k.lower() in PASSED_ON]


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


@lru_cache(maxsize=4)
def _date_at(second: int) -> str:
    return formatdate(second, usegmt=True)
