"""What a shard makes of a complaint: nobody is left without a parent for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from passel.core import messages as m
from passel.core.pieces import MIN_PIECE
from passel.core.shard import BAN_S, ShardMachine
from passel.ids import BlobRef, Digest, PeerId

REF = BlobRef("lab", "app", Digest("sha256", hashlib.sha256(b"x").hexdigest()))
HOLDER, CHILD = PeerId("holder"), PeerId("child")


class Shard:
    """One peer has a blob of two pieces, another wants it in bulk."""

    def __init__(self) -> None:
        self.machine = ShardMachine(m.ShardLimits(), 1, np.random.default_rng(1))
        for peer in (HOLDER, CHILD):
            info = m.PeerInfo(peer, str(peer), "z", m.Role.PEER, "127.0.0.1:1", 1, 8, 8)
            self.say(peer, m.Hello(info))
        holds = m.Holds(REF.digest, None, 2 * MIN_PIECE, MIN_PIECE, 0b11, bytes(64))
        self.say(HOLDER, holds)
        self.say(CHILD, m.Wants(REF, (), True, False))

    def say(self, peer: PeerId, item: m.ReportItem, now: float = 0.0) -> None:
        self.machine.handle(m.Reported(peer, 1, (item,)), now)
        self.machine.check_invariants()

    def planned(self, now: float) -> list[int]:
        """The pieces that an epoch gives the child a parent for."""
        out = self.machine.handle_timer(now)
        plans = [d.message for d in out if d.peer == CHILD and isinstance(d.message, m.Plan)]
        return sorted(edge.piece for plan in plans for edge in plan.edges)


@pytest.mark.parametrize("trouble", [m.Trouble.DEAD, m.Trouble.STALLED])
def test_the_only_holder_is_asked_again_after_a_while(trouble: m.Trouble) -> None:
    """A word of its former life may come late, and nobody takes it back."""
    shard = Shard()
    assert shard.planned(0.1) == [0, 1]
    for piece in (0, 1):
        shard.say(CHILD, m.Complaint(REF.id, piece, HOLDER, trouble), 0.2)
    assert shard.planned(0.3) == []
    assert shard.planned(0.1 + BAN_S) == []
    assert shard.planned(0.3 + BAN_S) == [0, 1]


def test_who_sent_wrong_bytes_is_not_asked_again() -> None:
    shard = Shard()
    assert shard.planned(0.1) == [0, 1]
    for piece in (0, 1):
        shard.say(CHILD, m.Complaint(REF.id, piece, HOLDER, m.Trouble.CORRUPT), 0.2)
    assert shard.planned(0.3 + 10 * BAN_S) == []
