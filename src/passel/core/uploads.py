"""Which bodies a peer is sending, and how many of them count against its upload slots.

Slots are there so that a link is shared by few bodies at a time. One whose receiver is far slower
than others takes next to nothing of the link, and as long a slot as it likes: a single peer behind
a bad cable, or one that was stopped, would take all slots of the only source. So a body that takes
many times as long as is usual here counts no more. Source: BitTorrent's anti-snubbing, Cohen,
"Incentives Build Robustness in BitTorrent", 2003, §2.5, the other way round.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

#: A body is overdue after so many times the usual, and after so many seconds at the least.
OVERDUE_TIMES = 8.0
OVERDUE_S_MIN = 2.0
#: What a body takes before any was sent, seconds.
USUAL_S = 0.02

Key = TypeVar("Key", bound=Hashable)


class Uploads(Generic[Key]):
    """The bodies that are under way, by any key. Times are in seconds of any one clock.

    At most `n_slots` count, and at most as many more are overdue: none is ever cut short for it.
    """

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        #: How long a body takes: a running mean, in which one that is overdue is little more.
        self.usual_s = USUAL_S
        self._since: dict[Key, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def n_counted(self, now: float) -> int:
        """How many bodies have a slot that is theirs."""
        earliest = now - max(OVERDUE_TIMES * self.usual_s, OVERDUE_S_MIN)
        n_overdue = sum(since < earliest for since in self._since.values())
        return len(self._since) - min(n_overdue, self.n_slots)

    def is_free_for(self, turn: int, now: float) -> bool:
        """Whether a body with this turn may begin.

        The last slot (if there are several) is kept for clients that wait, whose turn is 0: bodies
        take long, and a read must not wait for the end of one.
        """
        kept = 1 if turn and self.n_slots > 1 else 0
        return self.n_counted(now) < self.n_slots - kept

    def begin(self, key: Key, now: float) -> None:
        """A body goes out."""
        self._since[key] = now

    def end(self, key: Key, now: float) -> None:
        """It is out, or broken off."""
        took_s = min(now - self._since.pop(key), max(OVERDUE_TIMES * self.usual_s, OVERDUE_S_MIN))
        self.usual_s += (took_s - self.usual_s) / 8
