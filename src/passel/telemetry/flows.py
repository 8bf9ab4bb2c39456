"""From whom a peer got its bytes lately: what the piece-parent graph is drawn from."""

from __future__ import annotations

from collections import OrderedDict

from passel.ids import PeerId

#: In a second or two a peer has no more parents than it has slots, times a few.
PARENTS_MAX = 64
#: A parent that gave nothing for so long is forgotten; its count begins at 0 again.
FORGET_S = 10.0


class Flows:
    """Bytes by parent, each counted since that parent was last forgotten. Times in seconds."""

    def __init__(self) -> None:
        self._from: OrderedDict[PeerId, tuple[int, float]] = OrderedDict()

    def add(self, parent: PeerId, n_bytes: int, now: float) -> None:
        """A piece came."""
        before, _ = self._from.pop(parent, (0, 0.0))
        self._from[parent] = before + n_bytes, now
        if len(self._from) > PARENTS_MAX:
            self._from.popitem(last=False)

    def recent(self, now: float) -> dict[PeerId, int]:
        """The counts of those that gave something lately."""
        while self._from:
            parent, (_, at) = next(iter(self._from.items()))
            if at > now - FORGET_S:
                break
            del self._from[parent]
        return {parent: n_bytes for parent, (n_bytes, _) in self._from.items()}
