"""The actor around one `ShardMachine`: reports in, messages out, one timer."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from passel.actors.duties import Duties
from passel.actors.handles import ControllerHandle, PeerHandle, is_second_life, own_node
from passel.actors.metrics import Publisher
from passel.actors.outbox import Outbox
from passel.actors.words import Reply, shard_limits
from passel.config.load import load
from passel.config.sections import Config
from passel.core.handover import Remaining, remaining
from passel.core.inventory import BlobEntry, inventory
from passel.core.messages import (
    Deliver,
    Draining,
    Hello,
    PeerGone,
    PeersExpected,
    Reported,
    ReportItem,
    ShardEvent,
    ShardMessage,
)
from passel.core.overview import Overview, overview
from passel.core.shard import ShardMachine
from passel.core.silence import heartbeat_s
from passel.core.versions import refusal
from passel.errors import PeerUnavailable
from passel.ids import BlobRef, Digest, PeerId
from passel.telemetry import logs
from passel.telemetry.recording import Recording
from passel.telemetry.series import Measure, shard_measures

log = logging.getLogger(__name__)

#: A restarted shard waits this long for announcements before it sends anybody to the origin.
QUIET_S = 2.0
DELIVER_TIMEOUT_S = 5.0
#: Peers that cannot take part ask again now and then, as everybody.
REFUSED_HEARTBEAT_S = 5.0
REFUSED_MAX = 10_000


class Shard:
    """A scheduler shard. All state is soft: peers say it again when `incarnation` changes."""

    # Ray awaits the constructor of an async actor.
    async def __init__(self, shard: int, config: Config) -> None:  # type: ignore[misc]
        logs.setup(config.logging.level)
        self._shard = shard
        self._loop = asyncio.get_running_loop()
        self._incarnation = time.time_ns() // 1_000_000
        now = self._loop.time()
        seed = int.from_bytes(os.urandom(8), "big")
        is_restart = is_second_life()
        self._machine = ShardMachine(
            shard_limits(config),
            self._incarnation,
            np.random.default_rng(seed),
            now + QUIET_S if is_restart else 0.0,
        )
        self._peers: dict[PeerId, PeerHandle] = {}
        #: Peers of another version, and the sentence that each was told.
        self._refused: dict[PeerId, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._duties = Duties(log)
        self._outbox = Outbox(self._duties, self._deliver, self._life, self._lost)
        # The node's own file says where its store is; what a shard decides follows from the
        # cluster's.
        path = os.environ.get("PASSEL_CONFIG")
        local = load(path) if path else config
        self._recording = Recording(local.trace, local.store.path, f"shard-{shard}")
        self._duties.start(self._recording.run())
        self.n_reports = 0
        #: Seconds that the machine took for reports, and for epochs.
        self.handle_s = 0.0
        self.plan_s = 0.0
        self._publisher = Publisher({"shard": str(shard)})
        self._duties.start(self._publisher.run(self._measures))
        if is_restart:
            self._duties.start(self._wake_peers())
        log.info("shard_started shard=%d incarnation=%d seed=%d", shard, self._incarnation, seed)

    def __repr__(self) -> str:
        # Ray asks once, after the constructor, and shows that for the actor's life: no counts.
        return f"Shard({self._shard})"

    async def report(self, peer: PeerId, incarnation: int, items: tuple[ReportItem, ...]) -> Reply:
        """Take in what a peer says; what is for that peer comes back at once. Idempotent."""
        self.n_reports += 1
        refused = self._refusal(peer, items)
        if refused:
            return Reply(self._incarnation, True, (), REFUSED_HEARTBEAT_S, refused)
        before = self._life(peer)
        mine = self._step(Reported(peer, incarnation, items), peer)
        if self._life(peer) != before:
            # Ray takes half a second to look somebody up for the first time. The first word that
            # is meant for this peer may be one that a client waits for.
            self._outbox.post(peer)
        is_known = self._life(peer) == incarnation
        every_s = heartbeat_s(len(self._machine.peers))
        return Reply(self._incarnation, is_known, tuple(mine), every_s)

    def _refusal(self, peer: PeerId, items: tuple[ReportItem, ...]) -> str:
        """Why a peer cannot take part: its first word says what it speaks."""
        hello = next((item.info for item in items if isinstance(item, Hello)), None)
        if hello is not None:
            # One from before there were versions lacks the fields.
            wire, oldest = getattr(hello, "wire", 0), getattr(hello, "oldest", 0)
            why = refusal(wire, oldest, hello.node)
            if not why:
                self._refused.pop(peer, None)
            elif self._refused.get(peer) != why and len(self._refused) < REFUSED_MAX:
                log.error("peer_refused peer=%s why=%s", peer, why)
                self._refused[peer] = why
        return self._refused.get(peer, "")

    async def peer_gone(self, peer: PeerId) -> None:
        """The controller says that a peer's node is gone. Idempotent."""
        self._refused.pop(peer, None)
        self._step(PeerGone(peer, for_good=True))

    async def stat(self, ref: BlobRef) -> tuple[int | None, float]:
        """(size or None, seconds for which the blob counts as public)."""
        return self._machine.stat(ref, self._loop.time())

    async def status(self) -> dict[str, Any]:
        """Facts for `passel status`."""
        machine = self._machine
        return {
            "shard": self._shard,
            "node": own_node(),
            "pid": os.getpid(),
            "blobs": len(machine.swarms),
            "peers": len(machine.peers),
            "refused": sorted(self._refused.values()),
            "epochs": machine.n_epochs,
            "edges": machine.n_edges,
            "leases": machine.n_leases,
            "reports": self.n_reports,
            "delivers": self._outbox.n_calls,
            "handle_s": round(self.handle_s, 6),
            "plan_s": round(self.plan_s, 6),
            "us_per_decision": round(
                (self.handle_s + self.plan_s) * 1e6 / max(machine.n_edges, 1), 2
            ),
        }

    async def blobs(self, limit: int) -> tuple[list[BlobEntry], int]:
        """For `passel ls`."""
        return inventory(self._machine, limit)

    async def drain(
        self, peers: frozenset[PeerId], watched: tuple[Digest, ...], limit: int
    ) -> Remaining:
        """These peers' nodes are to go away; what only they have. Idempotent."""
        self._step(Draining(peers))
        return remaining(self._machine, peers, watched, limit, self._loop.time())

    async def overview(self, limit: int) -> Overview:
        """For the page."""
        return overview(self._machine, limit)

    async def _measures(self) -> Iterable[Measure]:
        return shard_measures(await self.status())

    async def _wake_peers(self) -> None:
        """Make yourself known to those who are alive: they announce at once what they hold."""
        try:
            peers = await ControllerHandle().peers(QUIET_S)
        except PeerUnavailable as error:
            log.info("controller_away why=%s; the peers notice by themselves", error)
            return
        self._step(PeersExpected(peers))
        for peer in peers:
            self._outbox.post(peer)

    def _step(self, event: ShardEvent, caller: PeerId | None = None) -> list[ShardMessage]:
        # Synchronous on purpose: nothing else of this actor runs between event and messages.
        began = time.perf_counter()
        out = self._machine.handle(event, self._loop.time())
        self.handle_s += time.perf_counter() - began
        self._rearm()
        return self._send(out, caller)

    def _send(self, out: list[Deliver], caller: PeerId | None) -> list[ShardMessage]:
        if self._recording.is_on and out:
            self._recording.recorder.messages(time.time(), self._shard, out)
        mine: list[ShardMessage] = []
        for deliver in out:
            if deliver.peer == caller:
                mine.append(deliver.message)
                continue
            self._outbox.post(deliver.peer, deliver.message)
        return mine

    async def _deliver(self, peer: PeerId, messages: tuple[ShardMessage, ...]) -> None:
        handle = self._peers.setdefault(peer, PeerHandle(peer))
        await handle.deliver(self._shard, self._incarnation, messages, DELIVER_TIMEOUT_S)

    def _life(self, peer: PeerId) -> int | None:
        known = self._machine.peers.get(peer)
        return None if known is None else known.incarnation

    def _lost(self, peer: PeerId, incarnation: int) -> None:
        """It died or restarts: its next life says hello. What it was to get is planned anew."""
        known = self._machine.peers.get(peer)
        if known is None or known.incarnation != incarnation:
            return
        log.info("peer_lost peer=%s node=%s", peer, known.node)
        if self._recording.is_on:
            self._recording.recorder.fault(time.time(), known.node, "gone")
        self._step(PeerGone(peer, incarnation))

    def _rearm(self) -> None:
        at = self._machine.next_timer()
        if self._timer is not None:
            if at is not None and self._timer.when() <= at and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        began, n_edges = time.perf_counter(), self._machine.n_edges
        out = self._machine.handle_timer(self._loop.time())
        took_s = time.perf_counter() - began
        self.plan_s += took_s
        if self._recording.is_on:
            self._recording.recorder.epoch(
                time.time(),
                self._shard,
                self._machine.n_edges - n_edges,
                len(self._machine.peers),
                took_s,
            )
        self._rearm()
        self._send(out, None)
