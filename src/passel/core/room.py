"""The pieces that a peer is fetching from parents, and whether there is room for more.

Bulk has fewer slots than there are, so that a client's piece finds one free. And while a client
reads here and there, bulk is down to a few pieces at a time: whatever is on its way shares the
node's downlink with what the client waits for next. With a dozen pieces beside it a read of 4 KiB
took two seconds over a link of 50 Mbit/s. (To stop reading them is not enough: on such a link the
kernel's buffers take in all the rest of a piece.)
"""

from __future__ import annotations

from passel.core.holding import Attempt
from passel.core.messages import PeerLimits
from passel.ids import PeerId

#: Fetches beside which no bulk is begun while a client reads.
BULK_BESIDE_READS = 2


class Room:
    """Touched only by its `PeerMachine`."""

    def __init__(self, limits: PeerLimits) -> None:
        self._limits = limits
        self._running: dict[int, Attempt] = {}
        self._per_parent: dict[PeerId, int] = {}
        #: Until when a client that just had to wait is likely to read more.
        self.lazy_until = 0.0

    def __getitem__(self, number: int) -> Attempt:
        return self._running[number]

    def read_waits(self, now: float) -> None:
        """A client's small read found nothing on the node."""
        self.lazy_until = now + self._limits.lazy_s

    def is_free(self, parent: PeerId, urgent: bool, now: float) -> bool:
        """Whether one more fetch from this parent can be begun."""
        slots, each = self._limits.download_slots, self._limits.per_parent
        if urgent:
            each *= 2
        else:
            slots -= min(each, slots // 4)
            if now < self.lazy_until:
                slots = min(slots, BULK_BESIDE_READS)
        return len(self._running) < slots and self._per_parent.get(parent, 0) < each

    def begin(self, number: int, attempt: Attempt) -> None:
        self._running[number] = attempt
        parent = attempt.edge.parent
        self._per_parent[parent] = self._per_parent.get(parent, 0) + 1

    def end(self, number: int) -> Attempt | None:
        attempt = self._running.pop(number, None)
        if attempt is not None:
            self._per_parent[attempt.edge.parent] -= 1
        return attempt

    def check_invariants(self) -> dict[tuple[str, int], int]:
        """Re-derive what is kept twice; (blob, piece) -> attempt. Raises AssertionError."""
        per_parent: dict[PeerId, int] = {}
        for attempt in self._running.values():
            parent = attempt.edge.parent
            per_parent[parent] = per_parent.get(parent, 0) + 1
        assert per_parent == {p: n for p, n in self._per_parent.items() if n}
        assert len(self._running) <= self._limits.download_slots
        assert max(per_parent.values(), default=0) <= 2 * self._limits.per_parent
        return {(a.blob_key, a.piece): number for number, a in self._running.items()}
