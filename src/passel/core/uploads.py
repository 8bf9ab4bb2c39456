"""Which bodies a peer is sending, and which of them have one of its upload slots.

Slots are there so that a link is shared by few bodies at a time. One whose receiver is far slower
than others takes next to nothing of the link, and as long a slot as it likes: a single peer behind
a bad cable, or one that was stopped, would take all slots of the only source. So a body that takes
many times as long as is usual here loses its slot, and goes on without one. Source: the other way
round, BitTorrent's anti-snubbing, Cohen, "Incentives Build Robustness in BitTorrent", 2003, §3.4.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

#: A body is overdue after so many times the usual, and after so many seconds at the least.
OVERDUE_TIMES = 8.0
OVERDUE_S_MIN = 2.0
#: What a body takes before any was sent, seconds.
USUAL_S = 0.02

Key = TypeVar("Key", bound=Hashable)


class Uploads(Generic[Key]):
    """The bodies that are under way, by any key. Times are in seconds of any one clock.

    At most `n_slots` have a slot, and at most as many more are overdue: none is cut short for it.
    """

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        #: How long a body takes: a running mean, in which one that is overdue is little more.
        self.usual_s = USUAL_S
        #: Those with a slot and since when, the oldest first; those without.
        self._since: dict[Key, float] = {}
        self._overdue: dict[Key, None] = {}

    @property
    def n_taken(self) -> int:
        """Slots that are taken."""
        return len(self._since)

    def __len__(self) -> int:
        return len(self._since) + len(self._overdue)

    def __iter__(self) -> Iterator[Key]:
        yield from self._since
        yield from self._overdue

    @property
    def overdue_s(self) -> float:
        """How long a body may keep its slot."""
        return max(OVERDUE_TIMES * self.usual_s, OVERDUE_S_MIN)

    def begin(self, key: Key, turn: int, now: float) -> bool:
        """Take a slot for a body with this turn; False if there is none.

        The last slot (if there are several) is kept for clients that wait, whose turn is 0: bodies
        take long, and a read must not wait for the end of one.
        """
        self._take_back(now)
        kept = 1 if turn and self.n_slots > 1 else 0
        if len(self._since) >= self.n_slots - kept:
            return False
        self._since[key] = now
        return True

    def _take_back(self, now: float) -> None:
        for key, since in list(self._since.items()):
            if now - since <= self.overdue_s or len(self._overdue) >= self.n_slots:
                return
            del self._since[key]
            self._overdue[key] = None

    def end(self, key: Key, now: float) -> None:
        """It is out, or broken off."""
        took_s = self.overdue_s
        if key in self._overdue:
            del self._overdue[key]
        else:
            took_s = min(now - self._since.pop(key), took_s)
        self.usual_s += (took_s - self.usual_s) / 8
