"""The head of an HTTP/1.1 answer, as strict as the one server that piece clients talk to.

Anything else on that port (another program on a reused address, a proxy in between) fails here,
instead of being understood half.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_STATUS = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(r"[0-9]{1,15}")


class BadAnswer(ValueError):
    """The bytes are not an answer of a piece server."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Status, length of the body, whether the connection goes on, and the fields by lower case."""

    status: int
    length: int
    keep_alive: bool
    fields: dict[str, str]


def parse_head(head: bytes) -> AnswerHead:
    """Read status line and fields, without the blank line that ends them.

    Raises
    ------
    BadAnswer
        Not HTTP/1.1, no ``Content-Length`` or several, any ``Transfer-Encoding``.
    """
    first, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise BadAnswer("no HTTP/1.1 status line")
    fields: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadAnswer("a header line without a name and a colon")
        name = field[1].decode("ascii").lower()
        if name == "content-length" and name in fields:
            raise BadAnswer("more than one Content-Length")
        fields[name] = field[2].decode("latin-1").strip(" \t")
    length = fields.get("content-length", "")
    if _LENGTH.fullmatch(length) is None or "transfer-encoding" in fields:
        raise BadAnswer("no plain Content-Length")
    keep_alive = fields.get("connection", "").lower() != "close"
    return AnswerHead(int(status[1]), int(length), keep_alive, fields)
