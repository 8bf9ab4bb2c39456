"""Logging of a process: one line per event, ``event key=value``, and no secret in any of them.

Modules log with ``logging.getLogger(__name__)`` and a constant format; levels as operators read
them:
info is per blob, debug per piece or request.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Final, TextIO

#: What follows these words is cut out of every record, whoever wrote it. aiohttp logs the first
#: bytes of a header line that it refuses; exceptions of HTTP clients carry URLs with signatures.
_SECRETS: Final = (
    re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?)[^\r\n]+"),
    re.compile(r"(?i)\b(basic|bearer)\s+[A-Za-z0-9+/=._~-]{6,}"),
    re.compile(
        r"(?i)([?&;](?:[a-z0-9_.-]*(?:signature|token|credential|password|secret|policy)"
        r"|sig|x-amz-[a-z-]+|x-goog-[a-z-]+|key-pair-id)=)[^&\s'\"]+"
    ),
    re.compile(r"(://)[^/@\s]+@"),
    re.compile(
        r"(?i)(['\"]?(?:password|refresh_token|access_token|token)['\"]?\s*[:=]\s*['\"]?)[^\s,'\"&}]+"
    ),
)
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def redact(text: str) -> str:
    """`text` without anything that looks like a credential."""
    for pattern in _SECRETS:
        text = pattern.sub(lambda match: (match[1] if match.lastindex else "") + "<redacted>", text)
    return text


class LineFormatter(logging.Formatter):
    """``2026-08-20T12:00:00.123Z info passel.gateway.app event key=value``, redacted as a whole.

    The redaction is here and not in a filter only: a traceback is rendered by the formatter.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The finished line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        who = f"{record.levelname.lower()} {record.name}"
        text = f"{stamp}.{int(record.msecs):03d}Z {who} {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return redact(text)


class ServerFilter(logging.Filter):
    """Leaves of aiohttp's own server records only that they happened.

    Its report of a malformed request is a traceback with the head's bytes in it, credentials and
    all.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Strip the record; it is always let through."""
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else "none"
        record.msg, record.args = "server_event error=%s", (kind,)
        record.exc_info, record.exc_text, record.stack_info = None, None, None
        return True


def setup(level: str = "info", stream: TextIO | None = None) -> None:
    """Make this process log to `stream` (standard error). Calling it again replaces the handler."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    server = logging.getLogger("aiohttp.server")
    server.filters[:] = [ServerFilter()]
    # Clients that hang up and connections that are reset are daily business of asyncio and aiohttp.
    for name in ("asyncio", "aiohttp.access", "aiohttp.client"):
        logging.getLogger(name).setLevel(max(_LEVELS[level], logging.WARNING))
