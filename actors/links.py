"""A peer's line to one shard: reports in batches, one call at a time, with a heartbeat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from passel.actors.handles import ShardHandle
from passel.actors.words import Reply
from passel.core.messages import (
    Gains,
    PeerEvent,
    ReportItem,
    ShardHeard,
    ShardLost,
    ShardReborn,
    ShardSaid,
)
from passel.errors import PeerUnavailable
from passel.ids import PeerId

log = logging.getLogger(__name__)

REPORT_TIMEOUT_S = 2.0
#: Unhurried items wait this long for others.
BATCH_S = 0.005
RETRY_S = 0.1
#: Beyond this a shard that is away gets everything anew when it is back, instead of the backlog.
BACKLOG_MAX = 20_000


class ShardLink:
    """Reports to one shard. At most one call is under way, so a busy shard makes larger batches."""

    def __init__(
        self, shard: int, peer: PeerId, incarnation: int, step: Callable[[PeerEvent], None]
    ) -> None:
        self.shard = shard
        self.handle = ShardHandle(shard)
        self._peer = peer
        self._incarnation = incarnation
        self._step = step
        self._items: list[ReportItem] = []
        self._waker: asyncio.Future[None] | None = None
        self._hurry = False
        self._overflown = False
        self._known = 0
        self._reborn: asyncio.Future[None] | None = None
        self._heartbeat_s = 1.0
        self.n_calls = 0
        #: Why the shard does not let this peer take part; '' if it does.
        self.refused = ""

    def tell(self, item: ReportItem, hurry: bool) -> None:
        last = self._items[-1] if self._items else None
        if (
            isinstance(item, Gains)
            and isinstance(last, Gains)
            and (last.blob, last.token) == (item.blob, item.token)
        ):
            self._items[-1] = Gains(item.blob, last.pieces + item.pieces, item.token)
        else:
            self._items.append(item)
        if len(self._items) > BACKLOG_MAX:
            self._items.clear()
            self._overflown = True
        self._hurry = self._hurry or hurry
        if self._waker is not None:
            _wake(self._waker)

    def heard(self, incarnation: int) -> bool:
        """The shard spoke first; False if that was its former life, whose word counts no more."""
        if incarnation < self._known:
            return False
        if 0 < self._known < incarnation and self._reborn is not None:
            # A report that went to the former life may hang until its deadline. The new one leases
            # to others what this peer is fetching, if it does not hear of it soon.
            _wake(self._reborn)
        self._note(incarnation)
        return True

    def _note(self, incarnation: int, is_known: bool = True) -> None:
        reborn = self._known not in (0, incarnation) or self._overflown or not is_known
        self._known = incarnation
        self._overflown = False
        if reborn:
            self._step(ShardReborn(self.shard))

    async def run(self) -> None:
        """For ever: send what there is, or an empty report as a heartbeat."""
        while True:
            if not self._items:
                await self._pause()
            if self._items and not self._hurry:
                await asyncio.sleep(BATCH_S)
            self._hurry = False
            items, self._items = tuple(self._items), []
            self.n_calls += 1
            self._reborn = reborn = asyncio.get_running_loop().create_future()
            try:
                reply = await self.handle.report(
                    self._peer, self._incarnation, items, REPORT_TIMEOUT_S, reborn
                )
            except PeerUnavailable:
                self._items[:0] = items
                if not reborn.done():
                    self._step(ShardLost(self.shard))
                    await asyncio.sleep(RETRY_S)
                continue
            finally:
                self._reborn = None
            self._heartbeat_s = reply.heartbeat_s
            if reply.refused:
                await self._stay_outside(reply)
                continue
            self.refused = ""
            self._note(reply.incarnation, reply.is_known)
            for message in reply.messages:
                self._step(ShardSaid(message))
            self._step(ShardHeard(self.shard))

    async def _stay_outside(self, reply: Reply) -> None:
        """The shard is of another version: do without it, and say hello again after a while."""
        if reply.refused != self.refused:
            log.error("shard_refuses shard=%d why=%s", self.shard, reply.refused)
        self.refused = reply.refused
        self._items.clear()
        self._step(ShardLost(self.shard))
        await asyncio.sleep(reply.heartbeat_s)
        self._note(reply.incarnation, is_known=False)

    async def _pause(self) -> None:
        """Until there is something to say, or a heartbeat is due.

        By hand: `wait_for` on an event takes three turns of the loop to wake up, and in each of
        them a piece may be in the way of the client that waits for this report.
        """
        loop = asyncio.get_running_loop()
        self._waker = waker = loop.create_future()
        timer = loop.call_later(self._heartbeat_s, _wake, waker)
        try:
            await waker
        finally:
            timer.cancel()
            self._waker = None


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
