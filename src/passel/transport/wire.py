"""What piece server and piece client agree on: paths, headers, addresses, limits.

Both sides are strict: a target is one of two shapes, digits are ASCII and bounded, an address is an
IP literal with a port. Nothing here touches a socket.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

from passel.errors import PeerUnavailable, TransientError
from passel.ids import BlobId

#: SHA-256 of the whole piece, hex, as the parent believes it. A hint: children compare with the
#: shard's digest.
PIECE_DIGEST_HEADER: Final = "X-Passel-Piece-Digest"
#: Milliseconds. RFC 9110 §10.2.3 has whole seconds only for ``Retry-After``, which is an age here.
RETRY_AFTER_MS_HEADER: Final = "X-Passel-Retry-After-Ms"

WAIT_S_MAX: Final = 30.0
HEAD_BYTES_MAX: Final = 8192
#: How long bulk bodies pause in a row, on either side, for those that clients wait for.
PAUSE_S: Final = 0.5

_TARGET = re.compile(
    r"/v1/blobs/([0-9a-f]{64})/"
    r"(?:(credentials)|pieces/(0|[1-9][0-9]{0,8})\?turn=(0|[1-9][0-9]{0,17})"
    r"(?:&wait=([0-9]{1,3}(?:\.[0-9]{1,3})?))?)"
)
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([1-9][0-9]{0,4})")


class PeerSilent(PeerUnavailable):
    """The peer took the request and fell silent; whether it is the connection or itself is open."""


class PieceNotHeld(TransientError):
    """The parent does not hold this piece: it was evicted, or the news of it was wrong."""


@dataclass(frozen=True, slots=True)
class PieceTarget:
    """One piece of one blob, its turn, and how long the asker waits until it is held.

    Of the requests that stand in line for a slot the lowest turn goes first; 0 is a client that
    waits.
    """

    blob: BlobId
    piece: int
    turn: int = 0
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CredentialsTarget:
    """The credentials that a waiting client gave for this blob; for the origin fetcher only."""

    blob: BlobId


def piece_path(blob: BlobId, piece: int, turn: int = 0, wait_s: float = 0.0) -> str:
    """The request target of one piece; `wait_s` is cut to `WAIT_S_MAX`."""
    path = f"/v1/blobs/{blob}/pieces/{piece}?turn={turn}"
    wait_s = min(wait_s, WAIT_S_MAX)
    return f"{path}&wait={wait_s:.3f}" if wait_s >= 0.001 else path


def credentials_path(blob: BlobId) -> str:
    """The request target of a blob's credentials."""
    return f"/v1/blobs/{blob}/credentials"


def parse_target(target: str) -> PieceTarget | CredentialsTarget | None:
    """Read a request target; None for everything that the two functions above do not make."""
    match = _TARGET.fullmatch(target)
    if match is None:
        return None
    blob = BlobId(match[1])
    if match[2] is not None:
        return CredentialsTarget(blob)
    wait_s = min(float(match[5]), WAIT_S_MAX) if match[5] is not None else 0.0
    return PieceTarget(blob, int(match[3]), int(match[4]), wait_s)


def parse_address(address: str) -> tuple[socket.AddressFamily, str, int]:
    """Read ``1.2.3.4:5`` or ``[::1]:5``; ``ValueError`` for anything else.

    Names are refused: looking one up blocks without a deadline, and peers know each other by the
    addresses that Ray gives.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"not an address of the form 1.2.3.4:5 or [::1]:5: {address!r}")
    if match[1] is not None:
        return socket.AF_INET6, str(ipaddress.IPv6Address(match[1])), int(match[3])
    return socket.AF_INET, str(ipaddress.IPv4Address(match[2])), int(match[3])


def format_address(host: str, port: int) -> str:
    """The inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
