"""What a shard makes of parents that fall silent."""

from __future__ import annotations

import hashlib

import numpy as np

from passel.core import messages as m
from passel.core.pieces import MIN_PIECE
from passel.core.shard import ShardMachine
from passel.ids import BlobRef, Digest, PeerId

REF = BlobRef("lab", "app", Digest("sha256", hashlib.sha256(b"x").hexdigest()))
N_PIECES = 4
DIGESTS = bytes(32 * N_PIECES)
CHILD, PARENT = PeerId("child"), PeerId("parent")


class Told:
    """A shard, a parent that holds all of a blob, and a child that wants it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.machine = ShardMachine(m.ShardLimits(), 1, np.random.default_rng(1))
        for peer in (PARENT, CHILD):
            info = m.PeerInfo(peer, peer, "z", m.Role.PEER, "127.0.0.1:1", 1, 8, 8)
            self.say(peer, m.Hello(info), m.Announced())
        size = N_PIECES * MIN_PIECE
        have = (1 << N_PIECES) - 1
        self.say(PARENT, m.Holds(REF.digest, "lab", size, MIN_PIECE, have, DIGESTS))
        self.say(CHILD, m.Wants(REF, (), True, False))

    def say(self, peer: PeerId, *items: m.ReportItem) -> None:
        self.machine.handle(m.Reported(peer, 1, items), self.now)

    def planned(self) -> set[int]:
        """The pieces that the child is to get, as the shard has it."""
        self.now += 0.1
        self.machine.handle_timer(self.now)
        self.machine.check_invariants()
        return set(self.machine.swarms[REF.id].rows[CHILD].coming)

    def stalls(self, piece: int) -> None:
        self.say(CHILD, m.Complaint(REF.id, piece, PARENT, m.Trouble.STALLED))


def test_a_parent_that_falls_silent_once_is_asked_again() -> None:
    told = Told()
    assert told.planned() == {0, 1, 2, 3}
    told.stalls(0)
    assert told.planned() == {0, 1, 2, 3}
    # A piece came from it: that was no more than a connection.
    told.say(CHILD, m.Gains(REF.id, ((1, bytes(32)),), None))
    told.stalls(0)
    assert 0 in told.planned()
    told.stalls(0)
    assert 0 not in told.planned(), "twice in a row is a parent that does not serve"


def test_plans_that_a_peer_never_heard_of_are_made_anew() -> None:
    told = Told()
    swarm = told.machine.swarms[REF.id]
    told.planned()
    before = swarm.rows[CHILD].coming[2]
    told.say(CHILD, m.UnderWay(REF.id, 0b0011))
    assert told.planned() == {0, 1, 2, 3}
    assert swarm.rows[CHILD].coming[2].since > before.since
    assert swarm.rows[CHILD].coming[1].since == before.since
