"""One value that every peer is to have: told until it has been heard, the newest only.

The value stands in Ray's control store before it is told, and a peer reads it there when it starts;
this is for the peers that run already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from passel.actors.duties import Duties
from passel.actors.handles import PeerHandle
from passel.errors import PeerUnavailable
from passel.ids import PeerId

log = logging.getLogger(__name__)

TICK_S = 0.25
TELL_TIMEOUT_S = 5.0
#: Large clusters are told in turns: a value may have megabytes.
AT_ONCE = 32

T = TypeVar("T")


class Bulletin(Generic[T]):
    """Belongs to the controller's event loop; `peers` is the controller's own."""

    def __init__(
        self,
        what: str,
        peers: dict[PeerId, PeerHandle],
        tell: Callable[[PeerHandle, T, float], Awaitable[None]],
    ) -> None:
        self._what = what
        self._peers = peers
        self._tell = tell
        self._value: T | None = None
        self._number = 0
        #: Which value each peer has heard last.
        self._heard: dict[PeerId, int] = {}

    def publish(self, value: T) -> None:
        """From now on this is what peers are told."""
        self._value = value
        self._number += 1

    def behind(self) -> list[PeerId]:
        """The peers that have not heard the newest value."""
        if self._value is None:
            return []
        return [peer for peer in self._peers if self._heard.get(peer) != self._number]

    async def run(self, duties: Duties) -> None:
        """For ever: tell who does not know."""
        telling: set[PeerId] = set()

        async def tell(peer: PeerId, number: int, value: T) -> None:
            try:
                await self._tell(self._peers[peer], value, TELL_TIMEOUT_S)
                self._heard[peer] = number
            except (PeerUnavailable, KeyError):
                log.debug("not_told what=%s peer=%s", self._what, peer)
            finally:
                telling.discard(peer)

        while True:
            self._heard = {p: n for p, n in self._heard.items() if p in self._peers}
            for peer in self.behind():
                if peer not in telling and len(telling) < AT_ONCE and self._value is not None:
                    telling.add(peer)
                    duties.start(tell(peer, self._number, self._value))
            await asyncio.sleep(TICK_S)
