"""``WWW-Authenticate``: challenges read and written.

Source: RFC 9110, section 11.6.1 and 5.6.4 (quoted strings). Splitting at commas is not enough:
``scope="repository:x:pull,push"`` has one inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: Longer than any honest challenge; a registry that sends more is not believed.
HEADER_LENGTH_MAX = 16 * 1024

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SEPARATORS = re.compile(r"[ \t,]*")
_PARAM = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))(?=[ \t]*(?:,|$))')
_SCHEME = re.compile(rf"({_TOKEN})(?: +|(?=,|$))")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: the scheme in lower case, its parameters by their names in lower case.

    Of a parameter that is given twice the first counts. `token68` is the other form that a scheme
    may have (``Negotiate a87421000492aa==``).
    """

    scheme: str
    params: Mapping[str, str] = field(default_factory=dict)
    token68: str | None = None


def parse_challenges(header_values: Iterable[str]) -> list[Challenge]:
    """All challenges of all ``WWW-Authenticate`` lines, in order.

    What cannot be read ends the reading of its line; the challenges before it count.
    """
    found: list[Challenge] = []
    for value in header_values:
        if len(value) <= HEADER_LENGTH_MAX:
            found += _parse_line(value)
    return found


def _parse_line(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    params: dict[str, str] | None = None
    position = _end(_SEPARATORS, text, 0)
    while position < len(text):
        if params is not None and (match := _PARAM.match(text, position)):
            value = match[3] if match[3] is not None else re.sub(r"\\(.)", r"\1", match[2])
            params.setdefault(match[1].lower(), value)
        elif match := _SCHEME.match(text, position):
            scheme = match[1].lower()
            params = {}
            token68 = None
            if not _PARAM.match(text, match.end()) and (token := _TOKEN68.match(text, match.end())):
                token68, match = token[0], token
            found.append(Challenge(scheme, params, token68))
        else:
            break
        position = _end(_SEPARATORS, text, match.end())
    return found


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return position if match is None else match.end()


def format_challenge(scheme: str, params: Mapping[str, str]) -> str:
    """A challenge as a header value. All values are quoted: nydusd needs `realm` and `service` so.

    Raises ValueError for control characters, which have no place in a header.
    """
    parts = []
    for name, value in params.items():
        if not value.isprintable() or not value.isascii() or not re.fullmatch(_TOKEN, name):
            raise ValueError("a challenge must be printable ASCII")
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        parts.append(f'{name}="{escaped}"')
    return f"{scheme} {','.join(parts)}" if parts else scheme
