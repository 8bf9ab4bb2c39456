"""Virtual time: what is to happen, in order of time, then of asking."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Action = Callable[..., object]


class Clock:
    """A heap of (time, sequence number, action, arguments). Seconds; never goes back."""

    def __init__(self) -> None:
        self.now = 0.0
        self.n_events = 0
        self._heap: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._n = 0

    def at(self, when: float, action: Action, *args: Any) -> None:
        """Do it at `when`, or now if that is over."""
        self._n += 1
        heapq.heappush(self._heap, (max(when, self.now), self._n, action, args))

    def after(self, delay_s: float, action: Action, *args: Any) -> None:
        self._n += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._n, action, args))

    def next_at(self) -> float:
        """When something is to happen next, infinity if nothing is."""
        return self._heap[0][0] if self._heap else float("inf")

    def step(self) -> None:
        """Do the next thing."""
        self.now, _, action, args = heapq.heappop(self._heap)
        self.n_events += 1
        action(*args)
