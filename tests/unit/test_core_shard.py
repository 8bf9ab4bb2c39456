"""What a shard makes of a complaint: nobody is left without a parent for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from passel.core import messages as m
from passel.core.pieces import MIN_PIECE
from passel.core.planning import FALLBACKS_EVERY
from passel.core.shard import BAN_S, ShardMachine
from passel.core.silence import LOST_HEARTBEATS, SUSPECT_HEARTBEATS
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

    def say(self, peer: PeerId, *items: m.ReportItem, now: float = 0.0) -> list[object]:
        """What the shard says to the peer."""
        out = self.machine.handle(m.Reported(peer, 1, items), now)
        self.machine.check_invariants()
        return [deliver.message for deliver in out if deliver.peer == peer]

    def beat(self, *peers: PeerId, begin: float, end: float) -> None:
        """Empty reports, one a second."""
        for now in np.arange(begin, end, 1.0):
            for peer in peers:
                self.say(peer, now=float(now))

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
        shard.say(CHILD, m.Complaint(REF.id, piece, HOLDER, trouble), now=0.2)
    assert shard.planned(0.3) == []
    shard.beat(HOLDER, CHILD, begin=1.0, end=BAN_S)
    assert shard.planned(0.1 + BAN_S) == []
    assert shard.planned(0.3 + BAN_S) == [0, 1]


def test_a_child_gets_to_know_whom_to_ask_when_the_shard_is_away() -> None:
    """With the first plan, and anew once in a while: choosing is a fifth of the work of a plan."""
    shard = Shard()
    told = []
    for epoch in range(2 * FALLBACKS_EVERY):
        out = shard.machine.handle_timer(0.1 + 0.1 * epoch)
        told += [d.message.fallbacks for d in out if isinstance(d.message, m.Plan)]
        busy = m.Complaint(REF.id, 0, HOLDER, m.Trouble.BUSY)
        shard.say(CHILD, busy, now=0.15 + 0.1 * epoch)
    assert len(told) == 2 * FALLBACKS_EVERY, "planned anew each time"
    named = [epoch for epoch, fallbacks in enumerate(told) if fallbacks == (HOLDER,)]
    assert named == [0, FALLBACKS_EVERY]


def test_who_sent_wrong_bytes_is_not_asked_again() -> None:
    shard = Shard()
    assert shard.planned(0.1) == [0, 1]
    for piece in (0, 1):
        shard.say(CHILD, m.Complaint(REF.id, piece, HOLDER, m.Trouble.CORRUPT), now=0.2)
    assert shard.planned(0.3 + 10 * BAN_S) == []


def test_who_calls_everybody_a_liar_takes_no_holder_from_the_others() -> None:
    """It may spoil what it gets. Alone it goes to the origin; for others nothing changes."""
    shard = Shard()
    other, late = PeerId("other"), PeerId("late")
    for peer in (other, late):
        info = m.PeerInfo(peer, str(peer), "z", m.Role.PEER, "127.0.0.1:2", 1, 8, 8)
        shard.say(peer, m.Hello(info))
    shard.say(other, m.Holds(REF.digest, None, 2 * MIN_PIECE, MIN_PIECE, 0b11, bytes(64)))
    swarm = shard.machine.swarms[REF.id]
    shard.planned(0.1)
    said = shard.say(CHILD, m.Complaint(REF.id, 0, HOLDER, m.Trouble.CORRUPT), now=0.2)
    assert not any(isinstance(word, m.Lease) for word in said)
    said = shard.say(CHILD, m.Complaint(REF.id, 0, other, m.Trouble.CORRUPT), now=0.3)
    assert any(isinstance(word, m.Lease) for word in said), "there is nobody whom it would believe"
    said = shard.say(late, m.Wants(REF, (), True, False), now=0.4)
    assert not swarm.is_aside(HOLDER)
    assert not swarm.is_aside(other)
    assert swarm.held == 0b11
    assert swarm.lease is None


def test_who_is_put_aside_is_believed_again_when_it_got_the_blob_anew() -> None:
    shard = Shard()
    shard.planned(0.1)
    shard.say(CHILD, m.Complaint(REF.id, 0, HOLDER, m.Trouble.CORRUPT), now=0.2)
    swarm = shard.machine.swarms[REF.id]
    assert swarm.rows[HOLDER].is_aside
    assert swarm.held == 0
    holds = m.Holds(REF.digest, None, 2 * MIN_PIECE, MIN_PIECE, 0b11, bytes(64))
    shard.say(HOLDER, m.Loses(REF.digest, None), now=0.3)
    shard.say(HOLDER, holds, now=0.4)
    assert swarm.held == 0b11
    assert shard.planned(0.5) == [0, 1], "the child too forgets what it said of the former bytes"


def test_a_holder_that_nobody_hears_of_is_forgotten_and_its_blob_fetched() -> None:
    """Its node and the controller died together: nobody says that it is gone."""
    shard = Shard()
    shard.beat(CHILD, begin=1.0, end=LOST_HEARTBEATS)
    assert HOLDER in shard.machine.peers
    assert not any(isinstance(word, m.Lease) for word in shard.say(CHILD, now=LOST_HEARTBEATS))
    leases = [w for w in shard.say(CHILD, now=LOST_HEARTBEATS + 1.5) if isinstance(w, m.Lease)]
    assert HOLDER not in shard.machine.peers
    assert len(leases) == 1


@pytest.mark.parametrize("trouble", [m.Trouble.DEAD, m.Trouble.STALLED])
def test_a_complaint_about_a_silent_holder_is_believed(trouble: m.Trouble) -> None:
    """A reader waits: the blob is leased once the disk is not expected back any more."""
    shard = Shard()
    shard.planned(0.1)
    shard.beat(CHILD, begin=1.0, end=SUSPECT_HEARTBEATS + 1)
    shard.say(CHILD, m.Complaint(REF.id, 0, HOLDER, trouble), now=SUSPECT_HEARTBEATS + 0.5)
    assert HOLDER not in shard.machine.peers
    assert any(
        isinstance(deliver.message, m.Lease)
        for deliver in shard.machine.handle_timer(m.ShardLimits().grace_s + 0.1)
    )


def test_a_complaint_about_a_holder_that_reports_does_not_forget_it() -> None:
    shard = Shard()
    shard.planned(0.1)
    shard.beat(HOLDER, CHILD, begin=1.0, end=10.0)
    shard.say(CHILD, m.Complaint(REF.id, 0, HOLDER, m.Trouble.DEAD), now=10.0)
    assert HOLDER in shard.machine.peers


def test_a_shard_that_stood_still_forgets_nobody() -> None:
    shard = Shard()
    shard.beat(HOLDER, CHILD, begin=1.0, end=5.0)
    shard.say(CHILD, now=1000.0)
    assert HOLDER in shard.machine.peers
    shard.beat(CHILD, begin=1001.0, end=1000.0 + LOST_HEARTBEATS + 3)
    assert HOLDER not in shard.machine.peers


def test_who_was_forgotten_wrongly_is_counted_again() -> None:
    shard = Shard()
    shard.beat(CHILD, begin=1.0, end=LOST_HEARTBEATS + 3)
    now = LOST_HEARTBEATS + 4.0
    shard.say(HOLDER, m.Announced(), now=now)
    assert HOLDER not in shard.machine.peers  # so that it is told that it is not known
    info = m.PeerInfo(HOLDER, "holder", "z", m.Role.PEER, "127.0.0.1:1", 1, 8, 8)
    holds = m.Holds(REF.digest, None, 2 * MIN_PIECE, MIN_PIECE, 0b11, bytes(64))
    shard.say(HOLDER, m.Hello(info), holds, m.Announced(), now=now)
    assert shard.planned(now + 0.1) == [0, 1]


def test_what_a_boaster_says_of_pieces_is_overruled_by_whoever_fetches_them() -> None:
    """It says that it has all of the blob, with digests that it made up."""
    shard, seed, boaster = Shard(), PeerId("seed"), PeerId("boaster")
    for peer in (seed, boaster):
        role = m.Role.SEED if peer == seed else m.Role.PEER
        shard.say(peer, m.Hello(m.PeerInfo(peer, str(peer), "z", role, "127.0.0.1:2", 1, 8, 8)))
    ref = BlobRef("lab", "app", Digest("sha256", hashlib.sha256(b"y").hexdigest()))
    shard.say(CHILD, m.Wants(ref, (), True, False))
    swarm = shard.machine.swarms[ref.id]
    assert swarm.lease is not None
    token = swarm.lease.token
    shard.say(seed, m.LeaseOpened(ref.id, token, 2 * MIN_PIECE, False))
    boast = m.Holds(ref.digest, "lab", 2 * MIN_PIECE, MIN_PIECE, 0b11, bytes(64))
    shard.say(boaster, boast, now=0.1)
    shard.planned(0.2)
    true = [bytes([piece + 1]) * 32 for piece in (0, 1)]
    shard.say(seed, m.Gains(ref.id, ((0, true[0]),), token), now=0.3)
    assert [swarm.digest(0), swarm.rows[seed].have, swarm.rows[boaster].have] == [true[0], 1, 2]
    shard.say(CHILD, m.Complaint(ref.id, 1, boaster, m.Trouble.MISSING), now=0.4)
    assert swarm.lease is not None
    assert swarm.lease.todo == 0b10
    shard.say(seed, m.Gains(ref.id, ((1, true[1]),), None), now=0.5)
    assert [swarm.digest(1), swarm.held] == [true[1], 0b11]


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_neighbour_that_never_answers_does_not_keep_pieces_out_of_the_zone(
    elsewhere: bool,
) -> None:
    """A piece enters a zone once; but not if nobody there can have it from who took it in.

    What the neighbour alone has is waited for: the origin is not asked again for a lost connection.
    """
    shard, far = Shard(), PeerId("far")
    if elsewhere:
        shard.say(far, m.Hello(m.PeerInfo(far, "far", "y", m.Role.PEER, "127.0.0.1:2", 1, 8, 8)))
        shard.say(far, m.Holds(REF.digest, None, 2 * MIN_PIECE, MIN_PIECE, 0b11, bytes(64)))
    assert shard.planned(0.1) == [0, 1]
    for piece in (0, 1):
        shard.say(CHILD, m.Complaint(REF.id, piece, HOLDER, m.Trouble.DEAD), now=0.2)
    assert shard.planned(0.3) == ([0, 1] if elsewhere else [])
    swarm = shard.machine.swarms[REF.id]
    assert swarm.held == 0b11
    assert swarm.lease is None
    shard.beat(HOLDER, CHILD, far, begin=1.0, end=BAN_S + 1)
    shard.planned(BAN_S + 1)
    assert not swarm.accused
    assert not swarm.rows[HOLDER].is_aside
