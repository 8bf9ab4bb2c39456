"""Ranges and conditions of HTTP requests, for bodies that never change.

Inside passel a range is half-open, (start, stop); the inclusive form of HTTP exists only in the
texts that are read and written here.

Source: RFC 9110, sections 8.8.3 (entity-tags), 13.1 (preconditions) and 14 (ranges).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from passel.errors import InputError

Span = tuple[int, int]
"""Bytes (start, stop), half-open."""

#: containers/storage asks for at most this many (`maxNumberMissingChunks`).
RANGES_MAX = 1024

_UNIT = re.compile(r"[ \t]*bytes[ \t]*=(.*)", re.IGNORECASE | re.DOTALL)
_SPEC = re.compile(r"([0-9]{0,19})-([0-9]{0,19})")
_CONTENT_RANGE = re.compile(
    r"bytes[ \t]+([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE
)
_UNSATISFIED = re.compile(r"bytes[ \t]+\*/([0-9]{1,19})", re.IGNORECASE)
_ETAG = re.compile(r'(W/)?"([^"]*)"|([^\s,"]+)')


def parse_range(header: str | None, size: int) -> list[Span] | None:
    """The spans that a GET's Range header asks for, clamped to `size`, in the order of the request.

    None: there is nothing to honour, answer 200 with the whole body. An empty list: answer 416.
    Spans are neither merged nor sorted: containers/image counts the parts. Of several ranges those
    beyond the end are left out. More than the body in sum is None, more than `RANGES_MAX` ranges
    raise InputError 400, which makes podman and stargz-snapshotter ask again with fewer.
    """
    match = _UNIT.fullmatch(header) if header is not None else None
    if match is None:
        return None
    if match[1].count(",") > 2 * RANGES_MAX:
        raise _too_many()
    specs = [spec for spec in (part.strip(" \t") for part in match[1].split(",")) if spec]
    if not specs:
        return None
    if len(specs) > RANGES_MAX:
        raise _too_many()
    spans: list[Span] = []
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None or spec == "-":
            return None
        first, last = match[1], match[2]
        if not first:
            start, stop = max(0, size - int(last)), size
        else:
            start, stop = int(first), int(last) + 1 if last else max(size, int(first) + 1)
        if stop <= start and first:
            return None
        stop = min(stop, size)
        if start < stop:
            spans.append((start, stop))
    if size == 0:
        # As Go's ServeContent does; containerd's parallel fetch sends `bytes=0-` for empty blobs.
        return None
    if len(spans) > 1 and sum(stop - start for start, stop in spans) > size:
        return None
    return spans


def _too_many() -> InputError:
    return InputError(400, "UNSUPPORTED", f"at most {RANGES_MAX} ranges in one request")


def range_header(start: int, stop: int) -> str:
    """The value of a Range header that asks for (start, stop), which must not be empty."""
    assert 0 <= start < stop, (start, stop)
    return f"bytes={start}-{stop - 1}"


def content_range(start: int, stop: int, size: int) -> str:
    """The value of Content-Range for a 206 with the bytes (start, stop) of `size`."""
    assert 0 <= start < stop <= size, (start, stop, size)
    return f"bytes {start}-{stop - 1}/{size}"


def content_range_unsatisfied(size: int) -> str:
    """The value of Content-Range for a 416."""
    return f"bytes */{size}"


def parse_content_range(text: str) -> tuple[int, int, int | None]:
    """(start, stop, size) of a 206's Content-Range; size is None for ``*``. Raises ValueError."""
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        raise ValueError("not a Content-Range of a 206")
    start, stop = int(match[1]), int(match[2]) + 1
    size = None if match[3] == "*" else int(match[3])
    if stop <= start or (size is not None and stop > size):
        raise ValueError("a Content-Range that contradicts itself")
    return start, stop, size


def parse_content_range_unsatisfied(text: str) -> int:
    """The size in a 416's Content-Range. Raises ValueError."""
    match = _UNSATISFIED.fullmatch(text)
    if match is None:
        raise ValueError("not a Content-Range of a 416")
    return int(match[1])


def etag(digest: object) -> str:
    """The strong entity-tag of content with this digest: quoted, as the RFC has it."""
    return f'"{digest}"'


def none_match(lines: Sequence[str], tag: str) -> bool:
    """Whether If-None-Match says that the client has `tag` already: answer 304.

    Weak comparison, lists, ``*``, several header lines. A tag without quotes counts too: some
    registries send them so, and clients send back what they got.
    """
    opaque = tag.removeprefix("W/").strip('"')
    for line in lines:
        if line.strip(" \t") == "*":
            return True
        for match in _ETAG.finditer(line):
            if (match[3] if match[3] is not None else match[2]) == opaque:
                return True
    return False


def range_applies(if_range: str | None, tag: str) -> bool:
    """Whether Range may be honoured next to this If-Range: it is absent or exactly the strong tag.

    Everything else (another tag, a weak one, a date) means 200 with the whole body.
    """
    return if_range is None or if_range.strip(" \t") == tag


@dataclass(frozen=True, slots=True)
class Multipart:
    """The frame of a ``multipart/byteranges`` body: heads[i], bytes of spans[i], ..., tail.

    One part per span, in the order of the spans, never merged.
    """

    spans: tuple[Span, ...]
    heads: tuple[bytes, ...]
    tail: bytes
    content_type: str
    content_length: int

    @classmethod
    def of(
        cls,
        spans: Sequence[Span],
        size: int,
        boundary: str,
        media_type: str = "application/octet-stream",
    ) -> Multipart:
        """The frame for `spans` of a body of `size` bytes.

        `boundary` must be random letters and digits (32 hex digits): bytes that contain a boundary
        known beforehand could forge parts.
        """
        assert re.fullmatch(r"[A-Za-z0-9]{16,70}", boundary), "an unfit boundary"
        heads: list[bytes] = []
        for start, stop in spans:
            lead = "\r\n" if heads else ""
            heads.append(
                f"{lead}--{boundary}\r\n"
                f"Content-Type: {media_type}\r\n"
                f"Content-Range: {content_range(start, stop, size)}\r\n\r\n".encode()
            )
        tail = f"\r\n--{boundary}--\r\n".encode()
        body = sum(stop - start for start, stop in spans)
        return cls(
            tuple(spans),
            tuple(heads),
            tail,
            f"multipart/byteranges; boundary={boundary}",
            sum(map(len, heads)) + body + len(tail),
        )
