"""What a child makes of pieces: nothing is served or shared that the shard has not vouched for."""

from __future__ import annotations

import hashlib

import pytest

from passel.core import messages as m
from passel.core.peer import FULL_S, PeerMachine
from passel.core.pieces import MIN_PIECE
from passel.ids import BlobRef, Digest, PeerId

REF = BlobRef("lab", "app", Digest("sha256", hashlib.sha256(b"x").hexdigest()))
PARENT = PeerId("parent")
GOOD, BAD = bytes(32), b"\1" * 32


class Child:
    """A peer whose client reads all of a blob of two pieces."""

    def __init__(self) -> None:
        info = m.PeerInfo(PeerId("child"), "n", "z", m.Role.PEER, "127.0.0.1:1", 1, 8, 8)
        self.machine = PeerMachine(info, m.PeerLimits(), 1)
        self.machine.start()
        self.do(m.ReadStarted(1, REF, 0, None, False))
        self.do(m.ShardSaid(m.Stat(REF, 2 * MIN_PIECE, MIN_PIECE, 0.0)))

    def do(self, event: m.PeerEvent, now: float = 1.0) -> list[m.PeerCommand]:
        out = self.machine.handle(event, now)
        self.machine.check_invariants()
        return out

    def told(self, digest: bytes | None, *, authority: bool) -> int:
        """The shard names a parent for piece 0; the attempt that follows."""
        edge = m.Edge(0, PARENT, digest, wait=digest is None, authority=authority)
        address = (PARENT, "127.0.0.1:2", "z", m.Role.PEER)
        plan = m.Plan(REF.id, 1, 2 * MIN_PIECE, (edge,), (address,))
        (fetch,) = [c for c in self.do(m.ShardSaid(plan)) if isinstance(c, m.FetchPiece)]
        return fetch.attempt


def confirmed(out: list[m.PeerCommand]) -> bool:
    """Readers and other peers may have the piece."""
    gains = [c for c in out if isinstance(c, m.Tell) and isinstance(c.item, m.Gains)]
    ready = [c for c in out if isinstance(c, m.ReadReady | m.ReadProgress)]
    confirms = [c for c in out if isinstance(c, m.Confirm)]
    assert bool(gains) == bool(ready) == bool(confirms)
    return bool(confirms)


def complaints(out: list[m.PeerCommand]) -> list[m.Trouble]:
    told = [c.item for c in out if isinstance(c, m.Tell)]
    return [item.trouble for item in told if isinstance(item, m.Complaint)]


@pytest.mark.parametrize("digest", [GOOD, BAD])
def test_a_piece_is_what_the_shard_says(digest: bytes) -> None:
    child = Child()
    out = child.do(m.PieceArrived(child.told(GOOD, authority=False), digest))
    assert confirmed(out) == (digest == GOOD)
    assert complaints(out) == ([] if digest == GOOD else [m.Trouble.CORRUPT])


@pytest.mark.parametrize("digest", [GOOD, BAD])
def test_a_piece_whose_digest_nobody_said_yet_waits_for_the_shard(digest: bytes) -> None:
    child = Child()
    out = child.do(m.PieceArrived(child.told(None, authority=False), digest))
    assert not confirmed(out), "its parent's word is not enough"
    out = child.do(m.ShardSaid(m.Digests(REF.id, ((0, GOOD),))))
    assert confirmed(out) == (digest == GOOD)
    assert complaints(out) == ([] if digest == GOOD else [m.Trouble.CORRUPT])


def test_who_fetches_from_the_origin_is_believed() -> None:
    """The shard would only repeat the lease-holder's word."""
    child = Child()
    assert confirmed(child.do(m.PieceArrived(child.told(None, authority=True), GOOD)))


def test_what_nobody_wants_any_more_makes_room_before_a_read_passes_through() -> None:
    """A seed keeps the part that it fetched for others; a restarted peer, what it had begun."""
    child = Child()
    begun = Digest("sha256", hashlib.sha256(b"begun").hexdigest())
    digests = GOOD + bytes(32)
    child.do(m.BlobFound(begun, "lab", 2 * MIN_PIECE, MIN_PIECE, 0b01, digests))
    out = child.do(m.StoreFull(REF.id))
    (dropped,) = [c.blob for c in out if isinstance(c, m.DropPartial)]
    assert dropped == BlobRef("lab", "", begun).id
    told = [c.item for c in out if isinstance(c, m.Tell)]
    assert m.Loses(begun, "lab") in told
    assert [c.key for c in out if isinstance(c, m.OpenPartial)] == [REF.key], "another try"
    assert not [c for c in out if isinstance(c, m.ReadPassthrough)]
    assert child.machine.held_pieces(dropped) == 0
    # Nothing is left that could go: what is being read stays.
    out = child.do(m.StoreFull(REF.id))
    assert [c.read for c in out if isinstance(c, m.ReadPassthrough)] == [1]
    assert not [c for c in out if isinstance(c, m.DropPartial | m.OpenPartial)]


def test_a_file_that_the_store_had_no_room_for_is_made_at_the_next_try() -> None:
    """Otherwise a lease is taken for pieces that there is nothing to write to."""
    child = Child()
    child.do(m.StoreFull(REF.id))
    out = child.do(m.ReadStarted(2, REF, 0, 10, sponsor=False))
    assert [c.read for c in out if isinstance(c, m.ReadPassthrough)] == [2]
    child.do(m.BlobLost(Digest("sha256", hashlib.sha256(b"evicted").hexdigest())))
    child.do(m.ReadStarted(3, REF, 0, 10, sponsor=False))
    out = child.do(m.ShardSaid(m.Stat(REF, 2 * MIN_PIECE, MIN_PIECE, 0.0)))
    assert m.OpenPartial(REF.key, 2 * MIN_PIECE, MIN_PIECE) in out


def test_a_store_that_was_full_is_asked_again_after_a_while() -> None:
    """Room also comes without an eviction: a pin is taken away, an operator gives more."""
    child = Child()
    child.do(m.StoreFull(REF.id))
    read = m.ReadStarted(2, REF, 0, 10, sponsor=False)
    out = child.do(read, 1.0 + FULL_S - 0.1)
    assert [c.read for c in out if isinstance(c, m.ReadPassthrough)] == [2]
    out = child.do(m.ReadStarted(3, REF, 0, 10, sponsor=False), 1.0 + FULL_S)
    assert not [c for c in out if isinstance(c, m.ReadPassthrough)]
    assert [c.item for c in out if isinstance(c, m.Tell) and isinstance(c.item, m.Wants)]


def test_a_wish_that_crossed_a_refusal_does_not_stay_with_the_shard() -> None:
    child = Child()
    out = child.do(m.ShardSaid(m.Refused(REF.id, m.Refusal(503, "UNKNOWN", "the origin is away"))))
    assert [c.read for c in out if isinstance(c, m.ReadFailed)] == [1]
    told = [c.item for c in out if isinstance(c, m.Tell)]
    assert told == [m.Unwants(REF.id)]
    child.do(m.ReadStarted(2, REF, 0, 10, sponsor=False))


def test_a_reader_waits_for_the_shard_only_while_that_does_not_answer() -> None:
    """A gateway whose peer has no shard goes to the registry, where all others would follow it."""
    info = m.PeerInfo(PeerId("child"), "n", "z", m.Role.PEER, "127.0.0.1:1", 1, 8, 8)
    machine = PeerMachine(info, m.PeerLimits(), 1)
    machine.handle(m.ReadStarted(1, REF, 0, None, sponsor=False), 1.0)

    def waits_for(now: float) -> str:
        (on,) = [c.on for c in machine.handle_timer(now) if isinstance(c, m.ReadWaiting)]
        return on

    assert waits_for(2.0) == "origin", "somebody else has the lease, and the origin is slow"
    machine.handle(m.ShardLost(0), 2.0)
    assert waits_for(3.0) == "shard"
    machine.handle(m.ShardHeard(0), 3.0)
    assert waits_for(4.0) == "origin"


def test_a_peer_without_its_shard_asks_a_fallback() -> None:
    child, other = Child(), PeerId("other")
    edge = m.Edge(0, PARENT, GOOD)
    addresses = tuple((p, "127.0.0.1:2", "z", m.Role.PEER) for p in (PARENT, other))
    plan = m.Plan(REF.id, 1, 2 * MIN_PIECE, (edge,), addresses, (other,))
    (fetch,) = [c for c in child.do(m.ShardSaid(plan)) if isinstance(c, m.FetchPiece)]
    child.do(m.ShardLost(0))
    child.do(m.PieceFailed(fetch.attempt, m.Trouble.DEAD))
    (again,) = [c for c in child.machine.handle_timer(2.0) if isinstance(c, m.FetchPiece)]
    assert (again.piece, again.parent) == (0, other)
    assert confirmed(child.do(m.PieceArrived(again.attempt, GOOD), 2.1))


class Puller(Child):
    """Its client pulls a blob of 16 pieces, and one parent has the slots that a parent has."""

    def __init__(self) -> None:
        info = m.PeerInfo(PeerId("child"), "n", "z", m.Role.PEER, "127.0.0.1:1", 1, 8, 8)
        self.machine = PeerMachine(info, m.PeerLimits(small_read_bytes=MIN_PIECE), 1)
        self.machine.start()
        self.do(m.ReadStarted(1, REF, 0, None, False))
        self.do(m.ShardSaid(m.Stat(REF, 16 * MIN_PIECE, MIN_PIECE, 0.0)))

    def planned(self, turn: int, *pieces: int) -> list[tuple[int, int]]:
        """The shard names the parent for these; (piece, turn) of what is fetched at once."""
        edges = tuple(m.Edge(piece, PARENT, GOOD, turn=turn) for piece in pieces)
        address = (PARENT, "127.0.0.1:2", "z", m.Role.PEER)
        plan = m.Plan(REF.id, 1, 16 * MIN_PIECE, edges, (address,))
        return self.fetched(self.do(m.ShardSaid(plan)))

    @staticmethod
    def fetched(out: list[m.PeerCommand]) -> list[tuple[int, int]]:
        return [(c.piece, c.turn) for c in out if isinstance(c, m.FetchPiece)]


def test_what_a_client_waits_for_does_not_stand_behind_bulk_from_the_same_parent() -> None:
    child = Puller()
    assert child.planned(7, 1, 2, 3, 4, 5, 6) == [(1, 7), (2, 7), (3, 7), (4, 7)]
    assert child.planned(0, 9) == [(9, 0)]


def test_bulk_that_has_not_begun_becomes_urgent_when_a_client_waits_for_it() -> None:
    """It was on its way in the shard's eyes, and nobody would have planned it anew."""
    child = Puller()
    child.planned(7, 1, 2, 3, 4, 5, 6)
    out = child.do(m.ReadStarted(2, REF, 6 * MIN_PIECE, 6 * MIN_PIECE + 10, False))
    assert child.fetched(out) == [(6, 0)]


def test_bulk_is_down_to_a_few_pieces_while_a_client_reads_here_and_there() -> None:
    """They share the node's downlink with what the client waits for."""
    child = Puller()
    child.do(m.ReadStarted(2, REF, 6 * MIN_PIECE, 6 * MIN_PIECE + 10, False))
    assert child.planned(7, 1, 2, 3, 4) == [(1, 7), (2, 7)]
    assert child.planned(0, 6) == [(6, 0)]
    lazy_s = m.PeerLimits().lazy_s
    assert child.machine.next_timer() is not None
    out = child.machine.handle_timer(1.0 + lazy_s)
    assert child.fetched(out) == [(3, 7)], "four per parent, with the client's"
