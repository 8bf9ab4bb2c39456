"""Reads the node's complete blobs again, one at a time while nothing else goes on.

Disks lie now and then. A blob whose bytes are no longer those of its name is put aside, and fetched
anew by whoever asks for it next; its holder stops offering it to others.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from passel.errors import PasselError
from passel.ids import Digest
from passel.store import audit
from passel.store.layout import Layout
from passel.store.store import Store

log = logging.getLogger(__name__)

#: How often it is looked whether a blob is due.
TICK_MIN_S = 0.1
TICK_MAX_S = 60.0


class Scrubbing:
    """`period_s`: the time in which every blob comes round once; 0 for never."""

    def __init__(
        self,
        store: Store,
        period_s: float,
        rng: random.Random,
        is_busy: Callable[[], bool],
        lost: Callable[[Digest], None],
    ) -> None:
        self._store = store
        self._paths = Layout(store.path)
        self._period_s = period_s
        self._rng = rng
        self._is_busy = is_busy
        self._lost = lost
        self.read_bytes = 0
        self.n_damaged = 0

    async def run(self) -> None:
        """For ever, or not at all."""
        if self._period_s == 0:
            return
        due = 0.0
        waiting: list[Digest] = []
        while True:
            n_blobs = len(self._store.completes())
            tick_s = min(max(self._period_s / max(n_blobs, 1), TICK_MIN_S), TICK_MAX_S)
            await asyncio.sleep(tick_s)
            due = min(due + n_blobs * tick_s / self._period_s, 1.0)
            if due < 1.0 or self._is_busy():
                continue
            due = 0.0
            if not waiting:
                waiting = self._store.completes()
                # In another order each time: a peer that is often restarted gets round too.
                self._rng.shuffle(waiting)
            if waiting:
                await self._look(waiting.pop())

    async def _look(self, digest: Digest) -> None:
        # Not by `Store.verify`: that counts as a use, and would keep what nobody reads.
        try:
            finding = await asyncio.to_thread(audit.examine, self._paths, digest)
        except OSError as error:
            log.warning("blob_not_read digest=%s why=%s", digest, error)
            await self.verify(digest)
            return
        if finding is not None:
            self.read_bytes += finding.size
            if finding.damage:
                log.error("blob_damaged digest=%s how=%s", digest, finding.damage)
                await self.verify(digest)

    async def verify(self, digest: Digest) -> bool:
        """Whether the blob is here and right; a wrong one is in quarantine now. Idempotent."""
        try:
            is_right = await asyncio.to_thread(self._store.verify, digest)
        except PasselError as error:
            log.error("blob_unreadable digest=%s why=%s", digest, error)
            await asyncio.to_thread(self._store.remove, digest)
            is_right = False
        if not is_right:
            self.n_damaged += 1
            self._lost(digest)
        return is_right
