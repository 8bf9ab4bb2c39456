"""The cluster's secret: made once, written down, told to every peer, replaced on demand.

The controller's shell around the `RotationMachine`. Ray's control store has what counts: whoever
may read it may run code on every node anyway.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from typing import Any

from passel.actors.duties import Duties
from passel.actors.handles import PeerHandle, write_down, written_down
from passel.actors.words import PeerSpec
from passel.core.rotation import Ring, RotationMachine, Stage
from passel.errors import PeerUnavailable
from passel.ids import PeerId

log = logging.getLogger(__name__)

SECRET_BYTES = 32
TICK_S = 0.5
TELL_TIMEOUT_S = 2.0
KEY = "secrets"


def read_ring() -> Ring | None:
    """The ring that counts, if there is one. A blocking call."""
    values = written_down(KEY)
    if not values:
        return None
    fields = json.loads(values[0])
    known = tuple(bytes.fromhex(each) for each in fields["secrets"])
    return Ring(int(fields["generation"]), Stage(fields["stage"]), known)


def _write_ring(ring: Ring) -> None:
    fields = {
        "generation": ring.generation,
        "stage": ring.stage.value,
        "secrets": [each.hex() for each in ring.secrets],
    }
    write_down(KEY, json.dumps(fields).encode())


class Rotation:
    """Belongs to the controller's event loop. `specs` and `peers` are the controller's own."""

    def __init__(
        self,
        machine: RotationMachine,
        specs: dict[PeerId, PeerSpec],
        peers: dict[PeerId, PeerHandle],
    ) -> None:
        self._machine = machine
        self._specs = specs
        self._peers = peers
        self._writing = asyncio.Lock()

    @classmethod
    async def take_up(
        cls, specs: dict[PeerId, PeerSpec], peers: dict[PeerId, PeerHandle]
    ) -> Rotation:
        """The rotation as a former life left it; the first life makes the secret."""
        ring = await asyncio.to_thread(read_ring)
        if ring is None:
            ring = Ring(1, Stage.STEADY, (secrets.token_bytes(SECRET_BYTES),))
            await asyncio.to_thread(_write_ring, ring)
        return cls(RotationMachine(ring), specs, peers)

    async def run(self, duties: Duties) -> None:
        """For ever: tell who does not know, and go on when all know."""
        loop = asyncio.get_running_loop()
        telling: set[PeerId] = set()

        async def tell(peer: PeerId, ring: Ring) -> None:
            try:
                await self._peers[peer].take_ring(ring, TELL_TIMEOUT_S)
                self._machine.told(peer, ring.generation)
            except (PeerUnavailable, KeyError):
                log.debug("ring_not_told peer=%s", peer)
            finally:
                telling.discard(peer)

        while True:
            for peer in self._machine.behind(self._specs):
                if peer not in telling:
                    telling.add(peer)
                    duties.start(tell(peer, self._machine.ring))
            await self._adopt(self._machine.advance(self._specs, loop.time()))
            await asyncio.sleep(TICK_S)

    async def begin(self) -> dict[str, Any]:
        """Begin a rotation, unless one is under way; how far it is."""
        await self._adopt(self._machine.begin(secrets.token_bytes(SECRET_BYTES)))
        return self.facts()

    def facts(self) -> dict[str, Any]:
        """How far it is, and which nodes it waits for."""
        behind = self._machine.behind(self._specs)
        ring = self._machine.ring
        return {
            "generation": ring.generation,
            "stage": ring.stage.value,
            "waits_for": sorted(self._specs[peer].place.node for peer in behind),
        }

    async def _adopt(self, ring: Ring | None) -> None:
        if ring is None:
            return
        async with self._writing:
            if ring.generation != self._machine.ring.generation + 1:
                return  # somebody else was quicker
            await asyncio.to_thread(_write_ring, ring)
            self._machine.adopt(ring)
            log.info("secret_rotation generation=%d stage=%s", ring.generation, ring.stage.value)
