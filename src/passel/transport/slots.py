"""Upload slots: how many piece bodies a peer sends at once."""

from __future__ import annotations

import asyncio
from collections import deque


class UploadSlots:
    """A counter of `n_slots` with a short, bounded, first-come line in front of it.

    Not an ``asyncio.Semaphore``: the line must have an end, and a slot given back must go to the
    first in line, not to whoever asks in the same turn of the loop. Belongs to one event loop.
    """

    def __init__(self, n_slots: int, n_waiting_max: int) -> None:
        self.n_slots = n_slots
        self.n_taken = 0
        self._n_waiting_max = n_waiting_max
        self._line: deque[asyncio.Future[None]] = deque()

    async def acquire(self, timeout_s: float) -> bool:
        """Take a slot within `timeout_s`; False when there was none, or when the line is full."""
        if self.n_taken < self.n_slots:
            self.n_taken += 1
            return True
        if len(self._line) >= self._n_waiting_max or timeout_s <= 0:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await asyncio.wait((turn,), timeout=timeout_s)
        except asyncio.CancelledError:
            if turn.done():
                self.release()
            else:
                self._line.remove(turn)
            raise
        if turn.done():
            return True
        self._line.remove(turn)
        return False

    def release(self) -> None:
        """Give a slot back: it goes to the first in line without ever being free."""
        if self._line:
            self._line.popleft().set_result(None)
        else:
            self.n_taken -= 1
