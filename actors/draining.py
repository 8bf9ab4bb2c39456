"""Nodes that are to go away, on the controller: a shell around the `DrainMachine`.

A drain is for one life of a node in Ray: a node that comes back, under whatever name, is a new one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from typing_extensions import assert_never

from passel.actors.configuring import Configuring
from passel.actors.duties import Duties
from passel.actors.handles import (
    PeerHandle,
    ShardHandle,
    strike_out,
    write_down,
    written_down,
)
from passel.actors.words import PeerSpec
from passel.core.draining import (
    AskReceiver,
    Begun,
    Drain,
    DrainCommand,
    DrainEvent,
    DrainMachine,
    Forget,
    Keep,
    ReceiverSaid,
    Restored,
    ShardsSaid,
    Undone,
)
from passel.core.handover import OnlyCopy, Remaining
from passel.core.jobs import Held, Member, MembersSeen
from passel.errors import InputError, PeerUnavailable
from passel.ids import BlobRef, Digest, PeerId

log = logging.getLogger(__name__)

KEY = "drain/"
TICK_S = 0.5
ASK_TIMEOUT_S = 5.0
#: Of each shard at a time; what is behind them is named when these are done.
COPIES_MAX = 2000
#: Blobs that facts name.
LEFT_MAX = 20
NODES_NAMED_MAX = 20


class Draining:
    """Belongs to the controller's event loop. `specs` and `peers` are the controller's own."""

    def __init__(
        self,
        duties: Duties,
        configuring: Configuring,
        shards: list[ShardHandle],
        specs: dict[PeerId, PeerSpec],
        peers: dict[PeerId, PeerHandle],
    ) -> None:
        self._machine = DrainMachine()
        self._duties = duties
        self._configuring = configuring
        self._shards = shards
        self._specs = specs
        self._peers = peers
        self._loop = asyncio.get_running_loop()
        #: What each shard knows for sure; one of whom that is not known is told at once.
        self._told: dict[str, frozenset[PeerId]] = {}
        self._asking: set[PeerId] = set()
        self._writing = asyncio.Lock()

    @property
    def peers(self) -> frozenset[PeerId]:
        """Whose nodes are to go away."""
        return frozenset(self._machine.drains)

    async def restore(self) -> None:
        """Take up the drains of a former life."""
        for value in await asyncio.to_thread(written_down, KEY):
            try:
                fields = json.loads(value)
                peer, node = PeerId(str(fields["peer"])), str(fields["node"])
                event = Restored(peer, node, int(fields["blobs"]), int(fields["bytes"]))
            except (ValueError, KeyError, TypeError) as error:
                log.error("drain_unreadable why=%s", error)
                continue
            self._machine.handle(event, self._loop.time())

    async def run(self) -> None:
        """For ever, and not before all nodes are known: who is not among them counts as gone."""
        while True:
            members = tuple(member_of(spec) for spec in self._specs.values())
            await self._step(MembersSeen(members))
            answers = await self._ask_shards()
            if answers:
                await self._step(ShardsSaid(answers))
            commands = self._machine.handle_timer(self._loop.time())
            await self._perform(commands)
            await asyncio.sleep(TICK_S)

    # --- verbs ----------------------------------------------------------------------------------

    async def begin(self, node: str) -> dict[str, Any]:
        """Hand over what only this node has; asked again, what could not be is tried anew."""
        peer = self._peer_of(node)
        event = Begun(peer, self._specs[peer].place.node)
        await self._write(self._machine.handle(event, self._loop.time()))
        log.info("drain_begun node=%s", node)
        return self._facts(self._machine.drains[peer])

    async def undo(self, node: str) -> dict[str, Any]:
        """The node stays. What was handed over stays where it is, too."""
        drain = self._drain_of(node)
        facts = self._facts(drain)
        await self._write(self._machine.handle(Undone(drain.peer), self._loop.time()))
        log.info("drain_undone node=%s", node)
        return facts

    def one(self, node: str) -> dict[str, Any]:
        """How far one drain is."""
        return self._facts(self._drain_of(node))

    def all(self) -> list[dict[str, Any]]:
        """All nodes that drain or have drained, and are still there."""
        return [self._facts(drain) for drain in self._machine.drains.values()]

    def _peer_of(self, node: str) -> PeerId:
        names = {spec.place.node: peer for peer, spec in self._specs.items()}
        if node not in names:
            known = ", ".join(sorted(names)[:NODES_NAMED_MAX]) or "not known yet"
            raise InputError(404, "UNSUPPORTED", f"there is no node {node}; nodes are {known}")
        return names[node]

    def _drain_of(self, node: str) -> Drain:
        drain = self._machine.drains.get(self._peer_of(node))
        if drain is None:
            raise InputError(404, "UNSUPPORTED", f"node {node} does not drain")
        return drain

    def _facts(self, drain: Drain) -> dict[str, Any]:
        pending = self._machine.pending(drain.peer)
        n_left, left_bytes = drain.left
        return {
            "node": drain.node,
            "state": drain.state.value,
            "trouble": drain.trouble,
            "blobs": drain.blobs,
            "bytes": drain.bytes,
            "left_blobs": n_left,
            "left_bytes": left_bytes,
            "left": [
                {
                    "digest": str(task.copy.digest),
                    "size": task.copy.size,
                    "trouble": task.trouble,
                }
                for task in pending[:LEFT_MAX]
            ],
        }

    # --- the machine ----------------------------------------------------------------------------

    async def _ask_shards(self) -> dict[str, Remaining | None]:
        """What each shard says; nothing when there is nothing to say or to ask."""
        peers = self.peers
        shards = [s for s in self._shards if peers or self._told.get(s.name) != peers]
        answers = await asyncio.gather(*(self._ask_shard(shard, peers) for shard in shards))
        return {shard.name: each for shard, each in zip(shards, answers, strict=True)}

    async def _ask_shard(self, shard: ShardHandle, peers: frozenset[PeerId]) -> Remaining | None:
        try:
            watched = self._machine.under_way()
            answer = await shard.drain(peers, watched, COPIES_MAX, ASK_TIMEOUT_S)
        except PeerUnavailable as error:
            log.debug("drain_not_told shard=%s why=%s", shard.name, error)
            return None
        self._told[shard.name] = peers
        return answer

    async def _step(self, event: DrainEvent) -> None:
        await self._perform(self._machine.handle(event, self._loop.time()))

    async def _perform(self, commands: list[DrainCommand]) -> None:
        for command in commands:
            if isinstance(command, AskReceiver) and command.receiver not in self._asking:
                self._asking.add(command.receiver)
                self._duties.start(self._ask_receiver(command))
        await self._write(commands)

    async def _ask_receiver(self, command: AskReceiver) -> None:
        held: tuple[Held, ...] | None = None
        try:
            blobs = await self._named(command.copies)
            held = await self._peers[command.receiver].take_over(blobs, ASK_TIMEOUT_S)
        except (PeerUnavailable, KeyError) as error:
            log.info("receiver_away peer=%s why=%s", command.receiver, error)
        finally:
            self._asking.discard(command.receiver)
        digests = tuple(copy.digest for copy in command.copies)
        said = ReceiverSaid(command.receiver, digests, held)
        await self._write(self._machine.handle(said, self._loop.time()))

    async def _named(self, copies: tuple[OnlyCopy, ...]) -> tuple[tuple[BlobRef, int], ...]:
        """The blobs as they can be asked for: a node knows where its own came from."""
        unnamed: dict[PeerId, list[Digest]] = {}
        for copy in copies:
            if copy.ref is None:
                unnamed.setdefault(copy.holders[0], []).append(copy.digest)
        upstreams: dict[Digest, str | None] = {}
        for holder, digests in unnamed.items():
            found = await self._peers[holder].upstreams(tuple(digests), ASK_TIMEOUT_S)
            upstreams.update(zip(digests, found, strict=True))
        config = self._configuring.config
        default = config.default_upstream or next(iter(config.upstreams), "")
        return tuple(
            (copy.ref or BlobRef(upstreams[copy.digest] or default, "", copy.digest), copy.size)
            for copy in copies
        )

    async def _write(self, commands: list[DrainCommand]) -> None:
        """What was promised to somebody survives this process."""
        changed: dict[PeerId, None] = {}
        for command in commands:
            match command:
                case Keep(peer) | Forget(peer):
                    changed[peer] = None
                case AskReceiver():
                    continue
                case _:
                    assert_never(command)
        async with self._writing:
            for peer in changed:
                drain = self._machine.drains.get(peer)
                if drain is None:
                    await asyncio.to_thread(strike_out, KEY + peer)
                else:
                    await asyncio.to_thread(write_down, KEY + peer, _written(drain))


def member_of(spec: PeerSpec) -> Member:
    """A node of the controller's, as jobs and drains see it."""
    return Member(spec.peer, spec.place.node, spec.place.zone, spec.role)


def _written(drain: Drain) -> bytes:
    fields = {
        "peer": drain.peer,
        "node": drain.node,
        "blobs": drain.blobs,
        "bytes": drain.bytes,
    }
    return json.dumps(fields).encode()
