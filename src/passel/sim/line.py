"""A peer's line to one shard in virtual time, as `passel.actors.links` is the live one.

Reports go in batches, one call at a time, with a heartbeat; so a busy shard makes larger batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passel.core import messages as m
from passel.core.silence import heartbeat_s

if TYPE_CHECKING:
    from passel.sim.node import Node
    from passel.sim.shard import Shard

#: The live line's own numbers, seconds.
BATCH_S = 0.005
RETRY_S = 0.1


class Line:
    """Reports of one peer to one shard."""

    def __init__(self, node: Node, shard: Shard) -> None:
        self.node = node
        self.shard = shard
        self.known = 0
        self.n_calls = 0
        self._items: list[m.ReportItem] = []
        self._is_busy = False
        self._send_at = float("inf")
        self._spoke_at = 0.0

    def tell(self, item: m.ReportItem, hurry: bool) -> None:
        """Put it into the next report."""
        last = self._items[-1] if self._items else None
        if (
            type(item) is m.Gains
            and type(last) is m.Gains
            and (last.blob, last.token) == (item.blob, item.token)
        ):
            self._items[-1] = m.Gains(item.blob, last.pieces + item.pieces, item.token)
        else:
            self._items.append(item)
        self._schedule(0.0 if hurry else BATCH_S)

    def _schedule(self, delay_s: float) -> None:
        clock = self.node.world.clock
        at = clock.now + delay_s
        if not self._is_busy and at < self._send_at:
            self._send_at = at
            clock.at(at, self._send, at)

    def _send(self, at: float) -> None:
        if at != self._send_at or self._is_busy or not self.node.alive:
            return
        self._send_at = float("inf")
        self._is_busy = True
        items, self._items = tuple(self._items), []
        self.n_calls += 1
        self.shard.call(self, items)

    def failed(self, items: tuple[m.ReportItem, ...]) -> None:
        """The shard does not answer: the same again, in a moment."""
        if not self.node.alive:
            return
        self._items[:0] = items
        self.node.step(m.ShardLost(self.shard.number))
        self.node.world.clock.after(RETRY_S, self._again)

    def _again(self) -> None:
        self._is_busy = False
        self._schedule(0.0)

    def answered(
        self, incarnation: int, is_known: bool, messages: tuple[m.ShardMessage, ...]
    ) -> None:
        """The shard took the report in; what is for this peer comes back with the answer."""
        node = self.node
        if not node.alive:
            return
        number = self.shard.number
        self._note(incarnation, is_known)
        for message in messages:
            node.step(m.ShardSaid(message))
        node.step(m.ShardHeard(number))
        self._is_busy = False
        self._schedule(0.0 if self._items else heartbeat_s(len(node.world.nodes)))

    def heard(self, incarnation: int, messages: tuple[m.ShardMessage, ...]) -> None:
        """The shard says something by itself; words of a former life are not listened to."""
        if incarnation >= self.known and self.node.alive:
            self._note(incarnation)
            for message in messages:
                self.node.step(m.ShardSaid(message))

    def _note(self, incarnation: int, is_known: bool = True) -> None:
        reborn = self.known not in (0, incarnation) or not is_known
        self.known = incarnation
        if reborn:
            self.node.step(m.ShardReborn(self.shard.number))
