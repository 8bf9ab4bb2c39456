"""One HTTP request to a gateway or to a peer's door, and what can go wrong with it in our words.

`http.client` and not aiohttp: the command line must start quickly, and a download is one stream.
No proxy of the environment is used: the gateway is the proxy.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from passel.errors import PasselError, PeerBusy, PeerUnavailable

#: Longest time without a single byte. A cold blob may wait for a slow origin.
READ_TIMEOUT_S = 60.0
_ERROR_BYTES_MAX = 64 * 1024
_RETRY_AFTER_MAX_S = 10.0


class RequestRefused(PasselError):
    """The gateway answered with an error that asking again will not change."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"the gateway answered {self.status}: {self.message}"


class Exchange:
    """One request and its answer. Close it, or use it in a `with`."""

    def __init__(self, connection: http.client.HTTPConnection, where: str) -> None:
        self._connection = connection
        self._where = where
        self.answer: http.client.HTTPResponse

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection up."""
        self._connection.close()

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> None:
        """Have the answer's head in `answer`, a good one: otherwise an error is raised.

        Raises PeerUnavailable, PeerBusy (503 and 429, with the wait that was asked for) or
        RequestRefused.
        """
        try:
            self._connection.request(method, path, body, dict(headers))
            self.answer = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise PeerUnavailable(f"{self._where} does not answer: {reason(error)}") from error
        if self.answer.status >= 400:
            raise self._refusal()

    def _refusal(self) -> PasselError:
        status = self.answer.status
        try:
            body = self.answer.read(_ERROR_BYTES_MAX)
        except (OSError, http.client.HTTPException):
            body = b""
        code, message = _explain(body, self.answer.reason)
        if status in (429, 503):
            return PeerBusy(f"{self._where} answered {status}: {message}", self._retry_after_s())
        return RequestRefused(status, code, message)

    def _retry_after_s(self) -> float:
        try:
            asked = float(self.answer.headers.get("Retry-After", "1"))
        except ValueError:
            asked = 1.0
        return min(max(asked, 0.1), _RETRY_AFTER_MAX_S)

    def read_into(self, buffer: memoryview) -> int:
        """Bytes of the body that are in `buffer` now, 0 at its end. Raises PeerUnavailable."""
        try:
            count = self.answer.readinto(buffer)
        except (OSError, http.client.HTTPException) as error:
            text = f"{self._where} broke off: {reason(error)}"
            raise PeerUnavailable(text) from error
        if count == 0 and self.answer.length:
            raise PeerUnavailable(f"{self._where} broke off in the middle of the answer")
        return count

    def read(self, limit: int) -> bytes:
        """The whole body. Raises RequestRefused if it is longer than `limit`."""
        try:
            body = self.answer.read(limit + 1)
        except (OSError, http.client.HTTPException) as error:
            raise PeerUnavailable(f"{self._where} broke off: {reason(error)}") from error
        if len(body) > limit:
            raise RequestRefused(502, "UNKNOWN", f"an answer of more than {limit} bytes")
        return body


def to_gateway(base: str, timeout_s: float = READ_TIMEOUT_S) -> Exchange:
    """An exchange with the gateway at `base`, ``http://host[:port]``."""
    parts = urlsplit(base)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return Exchange(kind(parts.hostname or "", parts.port, timeout=timeout_s), base)


def to_socket(path: Path, timeout_s: float) -> Exchange:
    """An exchange with the peer behind the Unix socket at `path`."""
    return Exchange(_SocketConnection(path, timeout_s), f"the peer at {path}")


def fetch_json(exchange: Exchange, path: str, limit: int = 16 * 1024 * 1024) -> dict[str, Any]:
    """The JSON object that GET `path` answers. Closes the exchange."""
    with exchange:
        exchange.send("GET", path, {"Accept": "application/json"})
        body = exchange.read(limit)
    try:
        content = json.loads(body)
    except ValueError as error:
        raise PeerUnavailable("the answer is not JSON") from error
    if not isinstance(content, dict):
        raise PeerUnavailable("the answer is not a JSON object")
    return content


def reason(error: Exception) -> str:
    """What an error of sockets or HTTP says, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection"
    return str(error) or type(error).__name__


def _explain(body: bytes, fallback: str) -> tuple[str, str]:
    """Code and message of the specification's error JSON."""
    try:
        first = json.loads(body)["errors"][0]
        return str(first["code"]), str(first.get("message") or first["code"])
    except (ValueError, KeyError, IndexError, TypeError):
        return "UNKNOWN", fallback


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("peer", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self.timeout)
        try:
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            raise
        self.sock = sock
