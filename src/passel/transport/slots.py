"""Upload slots: how many piece bodies a peer sends at once, and who is next."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count


class UploadSlots:
    """A counter of `n_slots` with a bounded line in front of it, ordered by turn.

    The last slot (if there are several) is kept for clients that wait, whose turn is 0: bodies take
    long, and a read must not wait for the end of one.

    Not an ``asyncio.Semaphore``: the line must have an end and an order, and a slot given back must
    go to the first in line, not to whoever asks in the same turn of the loop. Belongs to one event
    loop.
    """

    def __init__(self, n_slots: int, n_waiting_max: int) -> None:
        self.n_slots = n_slots
        self.n_taken = 0
        self._n_waiting_max = n_waiting_max
        self._line: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    async def acquire(self, turn: int, timeout_s: float) -> bool:
        """Take a slot within `timeout_s`; False when there was none, or when the line is full.

        The lowest `turn` in line is served first, equal ones in the order of their coming.
        """
        if self._is_free_for(turn):
            self.n_taken += 1
            return True
        if len(self._line) >= self._n_waiting_max or timeout_s <= 0:
            return False
        place = (turn, next(self._arrivals), asyncio.get_running_loop().create_future())
        heapq.heappush(self._line, place)
        served = place[2]
        try:
            await asyncio.wait((served,), timeout=timeout_s)
        except asyncio.CancelledError:
            if served.done():
                self.release()
            else:
                self._leave(place)
            raise
        if served.done():
            return True
        self._leave(place)
        return False

    def _is_free_for(self, turn: int) -> bool:
        kept = 1 if turn and self.n_slots > 1 else 0
        return self.n_taken < self.n_slots - kept

    def _leave(self, place: tuple[int, int, asyncio.Future[None]]) -> None:
        self._line.remove(place)
        heapq.heapify(self._line)

    def release(self) -> None:
        """Give a slot back: it goes to the first in line without ever being free."""
        self.n_taken -= 1
        if self._line and self._is_free_for(self._line[0][0]):
            self.n_taken += 1
            heapq.heappop(self._line)[2].set_result(None)
