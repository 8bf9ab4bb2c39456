"""A peer's line to one shard: reports in batches, one call at a time, with a heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

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
        self._wake = asyncio.Event()
        self._hurry = False
        self._overflown = False
        self._known = 0
        self._call: asyncio.Task[Reply] | None = None
        self._heartbeat_s = 1.0
        self.n_calls = 0

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
        self._wake.set()

    def heard(self, incarnation: int) -> bool:
        """The shard spoke first; False if that was its former life, whose word counts no more."""
        if incarnation < self._known:
            return False
        if incarnation > self._known and self._call is not None:
            # It went to the former life and may hang until its deadline. The new one leases to
            # others what this peer is fetching, if it does not hear of it soon.
            self._call.cancel()
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
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._heartbeat_s)
            if self._items and not self._hurry:
                await asyncio.sleep(BATCH_S)
            self._wake.clear()
            self._hurry = False
            items, self._items = tuple(self._items), []
            self.n_calls += 1
            try:
                reply = await self._ask(items)
            except PeerUnavailable:
                self._items[:0] = items
                self._step(ShardLost(self.shard))
                await asyncio.sleep(RETRY_S)
                continue
            if reply is None:
                self._items[:0] = items
                continue
            self._heartbeat_s = reply.heartbeat_s
            self._note(reply.incarnation, reply.is_known)
            self._step(ShardHeard(self.shard))
            for message in reply.messages:
                self._step(ShardSaid(message))

    async def _ask(self, items: tuple[ReportItem, ...]) -> Reply | None:
        """The shard's answer; None if a new life of it spoke up meanwhile."""
        report = self.handle.report(self._peer, self._incarnation, items, REPORT_TIMEOUT_S)
        self._call = call = asyncio.get_running_loop().create_task(report)
        try:
            await asyncio.wait({call})
        finally:
            self._call = None
            call.cancel()
        return None if call.cancelled() else call.result()
