"""Upload slots: how many piece bodies a peer sends at once, and who is next."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count

from passel.core.uploads import Uploads


class UploadSlots:
    """`n_slots` of `Uploads`, with a bounded line in front of them, ordered by turn.

    Not an ``asyncio.Semaphore``: the line must have an end and an order, and a slot given back must
    go to the first in line, not to whoever asks in the same turn of the loop. Belongs to one event
    loop.
    """

    def __init__(self, n_slots: int, n_waiting_max: int) -> None:
        self._uploads: Uploads[int] = Uploads(n_slots)
        self._n_waiting_max = n_waiting_max
        self._line: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count(1)

    @property
    def n_taken(self) -> int:
        """Bodies under way: at most twice the slots, see `Uploads`."""
        return len(self._uploads)

    @property
    def usual_s(self) -> float:
        """How long a slot is taken for."""
        return self._uploads.usual_s

    async def acquire(self, turn: int, timeout_s: float) -> int | None:
        """Take a slot within `timeout_s`: what to give back later.

        None when there was none, or when the line is full. The lowest `turn` in line is served
        first, equal ones in the order of their coming.
        """
        ticket = next(self._arrivals)
        loop = asyncio.get_running_loop()
        if self._uploads.is_free_for(turn, loop.time()):
            self._uploads.begin(ticket, loop.time())
            return ticket
        if len(self._line) >= self._n_waiting_max or timeout_s <= 0:
            return None
        place = (turn, ticket, loop.create_future())
        heapq.heappush(self._line, place)
        served = place[2]
        try:
            await asyncio.wait((served,), timeout=timeout_s)
        except asyncio.CancelledError:
            if served.done():
                self.release(ticket)
            else:
                self._leave(place)
            raise
        if served.done():
            return ticket
        self._leave(place)
        return None

    def _leave(self, place: tuple[int, int, asyncio.Future[None]]) -> None:
        self._line.remove(place)
        heapq.heapify(self._line)

    def release(self, ticket: int) -> None:
        """Give a slot back: it goes to the first in line without ever being free."""
        now = asyncio.get_running_loop().time()
        self._uploads.end(ticket, now)
        if self._line and self._uploads.is_free_for(self._line[0][0], now):
            _, first, served = heapq.heappop(self._line)
            self._uploads.begin(first, now)
            served.set_result(None)
