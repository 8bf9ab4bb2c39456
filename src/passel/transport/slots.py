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
        """Slots that are taken."""
        return self._uploads.n_taken

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
        is_first = not self._line or turn < self._line[0][0]
        if is_first and self._uploads.begin(ticket, turn, loop.time()):
            return ticket
        if len(self._line) >= self._n_waiting_max or timeout_s <= 0:
            return None
        place = (turn, ticket, loop.create_future())
        heapq.heappush(self._line, place)
        self._serve_line()  # a slot may have been taken back
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
        self._uploads.end(ticket, asyncio.get_running_loop().time())
        self._serve_line()

    def _serve_line(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._line and self._uploads.begin(self._line[0][1], self._line[0][0], now):
            heapq.heappop(self._line)[2].set_result(None)
