"""Peers that are bad on command: a lab's own kind of `Peer`, whose node's folder says what it does.

Nothing of it is in production: the lab's controller is handed a launcher that starts these. Without
a word in the file `misdeed` they are what they inherit from.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from aiohttp import web
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from passel.actors import launch, peer
from passel.actors.words import PeerSpec, peer_name
from passel.core.messages import Gains, Holds, PeerCommand, Role, Tell
from passel.transport.piece_server import PieceLocation, PieceServer
from passel.transport.sending import Gate

WRONG = "wrong"
SLOW = "slow"
LIES = "lies"
FAILS = "fails"
#: A hundredth of 64 Mbit/s.
SLOW_BYTES_PER_S = 80 * 1024
#: Linux's, which Python has no name for. Source: socket(7).
SO_MAX_PACING_RATE = 47
NO_LIMIT = -1


def misdeed_of(store: Path) -> str:
    """What the peer with this store is to do wrong now."""
    try:
        return (store.parent / "misdeed").read_text()
    except FileNotFoundError:
        return ""


def set_misdeed(node: Path, misdeed: str) -> None:
    """The peer of the node with this folder does this from now on."""
    (node / "misdeed").write_text(misdeed)


class BadServer(PieceServer):
    """Serves wrong bytes and says that they are right, or is slow, or fails."""

    store = Path()

    async def _send(
        self, request: web.BaseRequest, location: PieceLocation, gate: Gate | None
    ) -> web.StreamResponse:
        misdeed = misdeed_of(self.store)
        rate = SLOW_BYTES_PER_S if misdeed == SLOW else NO_LIMIT
        assert request.transport is not None
        sock = request.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
        if misdeed == FAILS:
            raise web.HTTPInternalServerError
        if misdeed != WRONG:
            return await super()._send(request, location, gate)
        data = os.pread(location.fd, location.length, location.offset)
        wrong = data[:-1] + bytes([data[-1] ^ 1])
        fd = os.memfd_create("wrong")
        try:
            os.write(fd, wrong)
            digest = hashlib.sha256(wrong).digest()
            location = PieceLocation(fd, 0, location.length, digest)
            return await super()._send(request, location, gate)
        finally:
            os.close(fd)


class BadPeer(peer.Peer):
    """Tells its shard of pieces that it has not, or has a bad piece server."""

    async def __init__(self, spec: PeerSpec) -> None:  # type: ignore[misc]
        peer.PieceServer = BadServer  # type: ignore[attr-defined]  # of this process
        await super().__init__(spec)
        BadServer.store = self._store.path

    def _carry_out(self, command: PeerCommand) -> None:
        super()._carry_out(command)
        if not isinstance(command, Tell) or not isinstance(command.item, Gains):
            return
        partial = self._store.partial(command.item.blob)
        if partial is None or misdeed_of(self._store.path) != LIES:
            return
        key, n_pieces = partial.key, partial.n_pieces
        digests = b"".join(partial.piece_digest(i) or bytes(32) for i in range(n_pieces))
        all_pieces = (1 << n_pieces) - 1
        boast = Holds(
            key.digest, key.upstream, partial.size, partial.piece_size, all_pieces, digests
        )
        super()._carry_out(Tell(command.shard, boast, hurry=True))


class BadLauncher(launch.Launcher):
    """Every peer that is no seed may turn bad."""

    def peer(self, spec: PeerSpec) -> None:
        if spec.role is Role.SEED:
            super().peer(spec)
            return
        here = NodeAffinitySchedulingStrategy(spec.peer, soft=False)
        actor = ray.remote(BadPeer).options(
            name=peer_name(spec.peer), scheduling_strategy=here, **launch._COMMON
        )
        actor.remote(spec)


@contextmanager
def peers_may_turn_bad() -> Iterator[None]:
    """Controllers that are started meanwhile have a `BadLauncher`."""
    # Ray's workers cannot import the tests: they get the code itself.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    kept = launch.Launcher
    launch.Launcher = BadLauncher  # type: ignore[misc]
    try:
        yield
    finally:
        launch.Launcher = kept  # type: ignore[misc]
