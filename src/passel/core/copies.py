"""Complete copies of blobs: who has them, and which seed has the last one.

A seed keeps the last copy in the cluster (DESIGN §7), but who else has a blob only its shard knows.
So the shard says it: `CopyIndex` is the shard's side and makes the words, `LastCopies` is the
seed's side and remembers them, `Rank` is what the store makes of it when it needs room.

It is a preference. A word that comes late, or two seeds that drop their copies in the same moment,
cost a download from the origin and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from enum import IntEnum

from passel.core.messages import Copies
from passel.ids import Digest, PeerId


class Rank(IntEnum):
    """What goes first when a store needs room: the lowest, and among equals the least used."""

    ORDINARY = 0
    """Others have it too, or nobody said anything."""
    LAST_COPY = 1
    """No other node has it whole: it goes before a new blob is refused, but after all others."""
    PINNED = 2
    """Somebody said that it stays: it goes only when the disk itself is full."""


class CompleteCopies:
    """Who has a blob whole: such copies count under every upstream."""

    def __init__(self, size: int, digests: bytes) -> None:
        self.size = size
        self.digests = digests
        #: In the order in which they came: an order of hashes would reach the graph.
        self.holders: dict[PeerId, None] = {}


class CopyIndex:
    """All complete copies that a shard knows of, and which seed was told that its is the last."""

    def __init__(self) -> None:
        self.by_digest: dict[Digest, CompleteCopies] = {}
        #: Peers whose nodes are to go away: their copies do not count, unless there are no others.
        self.draining: frozenset[PeerId] = frozenset()
        self._told: dict[Digest, tuple[PeerId, ...]] = {}
        self._changed: dict[Digest, None] = {}
        self._number = 0

    def add(self, digest: Digest, size: int, digests: bytes, peer: PeerId) -> CompleteCopies:
        """A peer has the blob whole, as it says; said again it changes nothing."""
        copies = self.by_digest.get(digest)
        if copies is None or copies.size != size:
            copies = self.by_digest[digest] = CompleteCopies(size, digests)
        copies.holders[peer] = None
        self._changed[digest] = None
        # It announces itself anew, so it may have missed what it was told.
        self._untell(digest, peer)
        return copies

    def remove(self, digest: Digest, peer: PeerId) -> None:
        """A peer has it no more, and forgets by itself what it was told about it."""
        self._untell(digest, peer)
        copies = self.by_digest.get(digest)
        if copies is None or peer not in copies.holders:
            return
        del copies.holders[peer]
        self._changed[digest] = None
        if not copies.holders:
            del self.by_digest[digest]

    def forget(self, peer: PeerId) -> None:
        """A peer is gone, with all that it has; its next life says what is still there."""
        for digest, copies in list(self.by_digest.items()):
            if peer in copies.holders:
                self.remove(digest, peer)

    def drain(self, peers: frozenset[PeerId]) -> None:
        """These peers, all together, are to go away."""
        changed = peers ^ self.draining
        self.draining = peers
        for digest, copies in self.by_digest.items() if changed else ():
            if not changed.isdisjoint(copies.holders):
                self._changed[digest] = None

    def last_holders(self, digest: Digest, keeps: Callable[[PeerId], bool]) -> tuple[PeerId, ...]:
        """Who has the last copy, of those that `keeps` such; several only if all are to go away."""
        copies = self.by_digest.get(digest)
        if copies is None:
            return ()
        staying = [peer for peer in copies.holders if peer not in self.draining]
        if len(staying) > 1:
            return ()
        return tuple(peer for peer in staying or copies.holders if keeps(peer))

    def news(self, keeps: Callable[[PeerId], bool]) -> dict[PeerId, Copies]:
        """What is to be said of all that has changed since the last time: a word for each seed."""
        sole: dict[PeerId, list[Digest]] = {}
        shared: dict[PeerId, list[Digest]] = {}
        for digest in self._changed:
            told, last = self._told.pop(digest, ()), self.last_holders(digest, keeps)
            for peer in told:
                if peer not in last:
                    shared.setdefault(peer, []).append(digest)
            for peer in last:
                if peer not in told:
                    sole.setdefault(peer, []).append(digest)
            if last:
                self._told[digest] = last
        self._changed.clear()
        self._number += bool(sole or shared)
        return {
            peer: Copies(self._number, tuple(sole.get(peer, ())), tuple(shared.get(peer, ())))
            for peer in sole | shared
        }

    def _untell(self, digest: Digest, peer: PeerId) -> None:
        told = tuple(each for each in self._told.pop(digest, ()) if each != peer)
        if told:
            self._told[digest] = told

    def check_invariants(self) -> None:
        """Re-derive what is kept twice. Raises AssertionError."""
        for copies in self.by_digest.values():
            assert copies.holders, "a blob that nobody has"
        for digest, told in self._told.items():
            assert told
            for peer in told:
                assert peer in self.by_digest[digest].holders, "told about what it does not have"


class LastCopies:
    """What a peer was told of its complete copies. Never more than it holds."""

    def __init__(self) -> None:
        #: The number of the last word, and whether the copy is the last one.
        self._said: dict[Digest, tuple[int, bool]] = {}

    def heard(self, said: Copies, holds: Container[Digest]) -> None:
        """The shard's word; one that was overtaken by a later one changes nothing."""
        for digests, is_last in ((said.sole, True), (said.shared, False)):
            for digest in digests:
                if digest in holds and self._said.get(digest, (0, False))[0] <= said.number:
                    self._said[digest] = said.number, is_last

    def lost(self, digest: Digest) -> None:
        """The copy is gone."""
        self._said.pop(digest, None)

    def forget(self, is_forgotten: Callable[[Digest], bool]) -> None:
        """Who said it has a new life and says it anew, counting from the beginning."""
        for digest in [digest for digest in self._said if is_forgotten(digest)]:
            del self._said[digest]

    def rank(self, digest: Digest, pinned: Container[Digest]) -> Rank:
        """How much the store should hold on to this blob."""
        if digest in pinned:
            return Rank.PINNED
        return Rank.LAST_COPY if digest in self else Rank.ORDINARY

    def __contains__(self, digest: Digest) -> bool:
        return self._said.get(digest, (0, False))[1]

    def check_invariants(self, holds: Container[Digest]) -> None:
        """Re-derive what is kept twice. Raises AssertionError."""
        assert all(digest in holds for digest in self._said)
