"""Peers prove to each other that they belong to the same cluster, request by request.

Every request carries a MAC made with a secret of the cluster over method, path with query, time and
nonce. There may be two secrets for a while, so that one can be replaced under running transfers.
There is no session and nothing to negotiate, so a pooled connection that changes hands, or a peer
that restarts, needs no extra round trip. What this does not do: it hides nothing from someone who
listens on the wire (`passel.transport.certificates` does), and it does not vouch for answers
(pieces are checked against the shard's digests).
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import re
import secrets
from typing import Final

#: The request header that carries the MAC. Proxies and loggers know to keep this one out of logs.
AUTH_HEADER: Final = "Authorization"

SECRET_BYTES_MIN: Final = 16
WINDOW_S: Final = 60.0

_NONCE_BYTES: Final = 12
_HEADER = re.compile(r"Passel-MAC v=1,t=([0-9]{1,15}),n=([0-9a-f]{24}),m=([0-9a-f]{64})")
# The secret is shared with nothing else today, and must not become a signing oracle if it ever is.
_PURPOSE: Final = b"passel peer request v1"


class ClusterAuth:
    """Signs requests to other peers and verifies theirs; knows the secrets and never shows them.

    `sign` may be called from any thread. `replace` and `verify`, which keeps the nonces that it has
    seen, belong to one thread, the one that runs the piece server's event loop.
    """

    __slots__ = ("_floor_ms", "_keys", "_recent", "_replays_max", "_seen", "_window_ms")

    def __init__(
        self, *secrets: bytes, window_s: float = WINDOW_S, replays_max: int = 131_072
    ) -> None:
        """Keep keys derived from `secrets`.

        Parameters
        ----------
        secrets : bytes
            The first signs, all verify; at least 16 bytes each (``ValueError`` otherwise).
        window_s : float
            How far a request's time may be from ours, both ways.
        replays_max : int
            Nonces remembered. 131 072 is 2 000 requests/s for the whole window; see `verify` for
            what happens above that.
        """
        self.replace(*secrets)
        self._window_ms = int(window_s * 1000)
        self._replays_max = replays_max
        self._seen: set[bytes] = set()
        self._recent: list[tuple[int, bytes]] = []
        self._floor_ms = -1

    def replace(self, *secrets: bytes) -> None:
        """From now on the first of these signs, and all of them verify; see `__init__`.

        The nonces that were seen stay seen: they are good once, whichever secret made their MAC.
        """
        if not secrets or min(map(len, secrets)) < SECRET_BYTES_MIN:
            raise ValueError(f"a cluster secret must have at least {SECRET_BYTES_MIN} bytes")
        # One assignment: a thread that signs sees the old keys or the new ones.
        self._keys = tuple(hmac.digest(secret, _PURPOSE, "sha256") for secret in secrets)

    def __repr__(self) -> str:
        return "<ClusterAuth>"

    def __reduce__(self) -> str | tuple[object, ...]:
        # Pickles end up in logs, object stores and core dumps. The secret travels on its own.
        raise TypeError("ClusterAuth is not pickled: hand over the secret and build it there")

    def sign(self, method: str, path: str, now_s: float) -> str:
        """The value of the `AUTH_HEADER` for one request; good once, so a retry signs again.

        `path` is the request target as it goes over the wire, query included; `now_s` is wall
        time, seconds since the epoch.
        """
        time_ms = int(now_s * 1000)
        nonce = secrets.token_bytes(_NONCE_BYTES).hex()
        mac = _mac(self._keys[0], method, path, time_ms, nonce)
        return f"Passel-MAC v=1,t={time_ms},n={nonce},m={mac}"

    def verify(self, method: str, path: str, header: str | None, now_s: float) -> bool:
        """Whether `header` was made for this request by a member of the cluster, lately, once.

        A nonce is remembered until its time leaves the window, and only if its MAC was good:
        outsiders cannot fill the table. When members do, the oldest nonce is forgotten and no
        request as old as that one is accepted any more: the window shrinks, and a replay stays
        refused.
        """
        match = _HEADER.fullmatch(header) if header is not None else None
        if match is None:
            return False
        time_ms, nonce = int(match[1]), match[2]
        if not any(
            hmac.compare_digest(_mac(key, method, path, time_ms, nonce), match[3])
            for key in self._keys
        ):
            return False
        now_ms = int(now_s * 1000)
        if abs(now_ms - time_ms) > self._window_ms or time_ms <= self._floor_ms:
            return False
        raw = bytes.fromhex(nonce)
        if raw in self._seen:
            return False
        self._remember(time_ms, raw, now_ms)
        return True

    def _remember(self, time_ms: int, nonce: bytes, now_ms: int) -> None:
        while self._recent and self._recent[0][0] < now_ms - self._window_ms:
            # A clock that is set back later would let these in again, hence the floor.
            self._forget_oldest()
        while len(self._recent) >= self._replays_max:
            self._forget_oldest()
        self._seen.add(nonce)
        heapq.heappush(self._recent, (time_ms, nonce))

    def _forget_oldest(self) -> None:
        time_ms, nonce = heapq.heappop(self._recent)
        self._seen.discard(nonce)
        self._floor_ms = max(self._floor_ms, time_ms)


def _mac(key: bytes, method: str, path: str, time_ms: int, nonce: str) -> str:
    text = f"{method}\n{path}\n{time_ms}\n{nonce}".encode("utf-8", "surrogateescape")
    return hmac.new(key, text, hashlib.sha256).hexdigest()
