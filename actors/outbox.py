"""What a shard has to say to peers that did not ask: in batches, one call at a time per peer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from passel.actors.duties import Duties
from passel.core.messages import ShardMessage
from passel.errors import PeerUnavailable
from passel.ids import PeerId


@dataclass(slots=True)
class _Batch:
    """For one life of a peer: what was meant for the one before means nothing to the next."""

    incarnation: int | None
    messages: list[ShardMessage] = field(default_factory=list)


class Outbox:
    """Delivers with `deliver`, which raises PeerUnavailable; then `lost` hears of peer and life.

    `life` tells a peer's incarnation, or None while it is unknown. A call that fails speaks of the
    life that it was meant for and of no other: when it does, the next one may have said hello.
    """

    def __init__(
        self,
        duties: Duties,
        deliver: Callable[[PeerId, tuple[ShardMessage, ...]], Awaitable[None]],
        life: Callable[[PeerId], int | None],
        lost: Callable[[PeerId, int], None],
    ) -> None:
        self._duties = duties
        self._deliver = deliver
        self._life = life
        self._lost = lost
        self._pending: dict[PeerId, _Batch] = {}
        self._sending: set[PeerId] = set()
        self.n_calls = 0

    def post(self, peer: PeerId, *messages: ShardMessage) -> None:
        """To be sent soon; without a message it is a sign of life."""
        batch = self._pending.get(peer)
        if batch is None or batch.incarnation != self._life(peer):
            batch = self._pending[peer] = _Batch(self._life(peer))
        batch.messages.extend(messages)
        if peer not in self._sending:
            self._sending.add(peer)
            self._duties.start(self._send(peer))

    async def _send(self, peer: PeerId) -> None:
        try:
            while (batch := self._pending.pop(peer, None)) is not None:
                self.n_calls += 1
                try:
                    await self._deliver(peer, tuple(batch.messages))
                except PeerUnavailable:
                    waiting = self._pending.get(peer)
                    if waiting is not None and waiting.incarnation == batch.incarnation:
                        del self._pending[peer]
                    if batch.incarnation is not None:
                        self._lost(peer, batch.incarnation)
        finally:
            self._sending.discard(peer)
