"""The cluster as somebody who watches it sees it: asked of peers and shards while somebody does.

All watchers, on whatever node they are, share one picture, made once a second. When nobody has
asked for a few seconds, nothing is done any more.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
import zlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from passel.actors.duties import Duties
from passel.actors.handles import PeerHandle, ShardHandle
from passel.actors.words import PeerSpec
from passel.errors import PeerUnavailable
from passel.ids import PeerId
from passel.telemetry.scene import BLOBS_MAX, JOBS_MAX, Scene, Spot

log = logging.getLogger(__name__)

EVERY_S = 1.0
#: Who watches asks every second.
LINGER_S = 5.0
#: The first picture comes as soon as the quick ones have answered.
FIRST_S = 0.25
FIRST_PICTURE_TIMEOUT_S = 3.0
ASK_TIMEOUT_S = 3.0
#: In a large cluster a peer is not asked in every second: a call costs a third of a millisecond.
PEERS_PER_S = 250


class Watching:
    """Belongs to the controller's event loop; `specs` and `peers` are the controller's own."""

    def __init__(
        self,
        duties: Duties,
        cluster: str,
        specs: Mapping[PeerId, PeerSpec],
        peers: Mapping[PeerId, PeerHandle],
        shards: list[ShardHandle],
        jobs: Callable[[int], list[dict[str, Any]]],
    ) -> None:
        self._duties = duties
        self._cluster = cluster
        self._specs = specs
        self._peers = peers
        self._shards = shards
        self._jobs = jobs
        self._loop = asyncio.get_running_loop()
        self._asked_at = float("-inf")
        self._picture: asyncio.Future[bytes] | None = None
        #: Peers and shards that have not answered yet.
        self._asking: set[str] = set()
        self._turn = 0

    async def view(self) -> bytes:
        """The JSON of `Scene.view`, packed with zlib. Raises PeerUnavailable."""
        self._asked_at = self._loop.time()
        if self._picture is None:
            self._picture = self._loop.create_future()
            self._duties.start(self._run())
        picture = asyncio.shield(self._picture)
        try:
            return await asyncio.wait_for(picture, FIRST_PICTURE_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise PeerUnavailable("the controller has no picture of the cluster yet") from None

    async def _run(self) -> None:
        """As long as somebody asks. Numbers of nodes are new each time: `life` tells them apart."""
        names = [shard.name for shard in self._shards]
        scene = Scene(secrets.token_hex(6), self._cluster, names, self._loop.time())
        wait_s = FIRST_S
        while self._loop.time() < self._asked_at + LINGER_S:
            scene.members(_spot(spec) for spec in self._specs.values())
            self._ask(scene)
            await asyncio.sleep(wait_s)
            wait_s = EVERY_S
            scene.jobs(self._jobs(JOBS_MAX))
            view = scene.view(self._loop.time(), time.time())
            packed = zlib.compress(json.dumps(view, separators=(",", ":")).encode(), 1)
            if self._picture is None or self._picture.done():
                self._picture = self._loop.create_future()
            self._picture.set_result(packed)
        self._picture = None

    def _ask(self, scene: Scene) -> None:
        """Those whose turn it is, each once at a time."""
        for shard in self._shards:
            self._once(shard.name, self._ask_shard(scene, shard))
        n_turns = -(-len(self._peers) // PEERS_PER_S) or 1
        for i, (peer, handle) in enumerate(self._peers.items()):
            if i % n_turns == self._turn % n_turns:
                self._once(handle.name, self._ask_peer(scene, peer, handle))
        self._turn += 1

    def _once(self, name: str, question: Coroutine[Any, Any, None]) -> None:
        if name in self._asking:
            question.close()
            return
        self._asking.add(name)
        task = self._duties.task(question)
        task.add_done_callback(lambda _: self._asking.discard(name))

    async def _ask_peer(self, scene: Scene, peer: PeerId, handle: PeerHandle) -> None:
        try:
            glance = await handle.glance(ASK_TIMEOUT_S)
        except PeerUnavailable as error:
            log.debug("peer_not_seen why=%s", error)
            return
        scene.peer_said(peer, glance, self._loop.time())

    async def _ask_shard(self, scene: Scene, shard: ShardHandle) -> None:
        try:
            said = await shard.overview(BLOBS_MAX, ASK_TIMEOUT_S)
        except PeerUnavailable as error:
            log.debug("shard_not_seen why=%s", error)
            return
        scene.shard_said(shard.name, said, self._loop.time())


def _spot(spec: PeerSpec) -> Spot:
    return Spot(spec.peer, spec.place.node, spec.place.zone, spec.role.value)
