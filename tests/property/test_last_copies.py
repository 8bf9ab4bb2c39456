"""Seeds know their last copies: real shards and peers, in any order of what can happen to them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passel.core import messages as m
from passel.core.copies import LastCopies, Rank
from passel.core.peer import PeerMachine
from passel.core.shard import ShardMachine
from passel.ids import Digest, PeerId

N_SHARDS = 2
PEERS = [PeerId(name) for name in ("seed0", "seed1", "old-seed", "p0", "p1")]
DIGESTS = [Digest("sha256", hashlib.sha256(bytes([i])).hexdigest()) for i in range(5)]
A, B = DIGESTS[:2]


def info_of(peer: PeerId, incarnation: int) -> m.PeerInfo:
    role = m.Role.SEED if "seed" in peer else m.Role.PEER
    info = m.PeerInfo(peer, peer, "", role, "127.0.0.1:1", incarnation, 4, 4)
    return replace(info, wire=1) if peer.startswith("old") else info


class Cluster:
    """Two shards and five nodes; what one says the other hears at once."""

    def __init__(self) -> None:
        self.life = 1
        self.now = 0.0
        self.words: list[tuple[PeerId, m.Copies]] = []
        self.draining: frozenset[PeerId] = frozenset()
        self.disks: dict[PeerId, set[Digest]] = {peer: set() for peer in PEERS}
        self.peers: dict[PeerId, PeerMachine] = {}
        self.shards = [self._new_shard() for _ in range(N_SHARDS)]
        for peer in PEERS:
            self.start_peer(peer)

    def _new_shard(self, quiet_until: float = 0.0) -> ShardMachine:
        return ShardMachine(m.ShardLimits(), self.life, np.random.default_rng(1), quiet_until)

    def start_peer(self, peer: PeerId) -> None:
        self.life += 1
        machine = PeerMachine(info_of(peer, self.life), m.PeerLimits(), N_SHARDS)
        self.peers[peer] = machine
        self._tell(peer, machine.start())
        for digest in sorted(self.disks[peer], key=str):
            self._found(peer, digest)
        self._tell(peer, machine.handle(m.StoreRecovered(), self.now))

    def gain(self, peer: PeerId, digest: Digest) -> None:
        if peer in self.peers and digest not in self.disks[peer]:
            self.disks[peer].add(digest)
            self._found(peer, digest)

    def lose(self, peer: PeerId, digest: Digest) -> None:
        if peer in self.peers and digest in self.disks[peer]:
            self.disks[peer].remove(digest)
            self._tell(peer, self.peers[peer].handle(m.BlobLost(digest), self.now))

    def kill(self, peer: PeerId, *, for_good: bool) -> None:
        if self.peers.pop(peer, None) is not None:
            for number in range(N_SHARDS):
                self._hear(number, m.PeerGone(peer, for_good=for_good))
        if for_good:
            self.disks[peer].clear()

    def restart_shard(self, number: int, quiet_s: float = 0.0) -> None:
        self.life += 1
        self.shards[number] = self._new_shard(self.now + quiet_s)
        self._hear(number, m.Draining(self.draining))
        for peer in self.peers:
            self.announce(peer, number)

    def drain(self, peer: PeerId) -> None:
        """It is to go away; if it was already, it stays."""
        self.draining ^= {peer}
        for number in range(N_SHARDS):
            self._hear(number, m.Draining(self.draining))

    def announce(self, peer: PeerId, number: int) -> None:
        """As after a word that went lost."""
        if peer in self.peers:
            self._tell(peer, self.peers[peer].handle(m.ShardReborn(number), self.now))

    def _found(self, peer: PeerId, digest: Digest) -> None:
        found = m.BlobFound(digest, None, 1, 1 << 20, 1, bytes(32))
        self._tell(peer, self.peers[peer].handle(found, self.now))

    def _tell(self, peer: PeerId, commands: list[m.PeerCommand]) -> None:
        life = self.peers[peer].info.incarnation
        for command in commands:
            assert isinstance(command, m.Tell)
            self._hear(command.shard, m.Reported(peer, life, (command.item,)))

    def _hear(self, number: int, event: m.ShardEvent) -> None:
        out = self.shards[number].handle(event, self.now)
        assert len({deliver.peer for deliver in out}) == len(out), "one word each in a step"
        for deliver in out:
            assert isinstance(deliver.message, m.Copies)
            self.words.append((deliver.peer, deliver.message))
            machine = self.peers[deliver.peer]
            assert machine.handle(m.ShardSaid(deliver.message), self.now) == []

    def last_copies(self, peer: PeerId) -> set[Digest]:
        return {digest for digest in DIGESTS if digest in self.peers[peer].last_copies}

    def check(self) -> None:
        for shard in self.shards:
            shard.check_invariants()
        for peer, machine in self.peers.items():
            machine.check_invariants()
            last = {digest for digest in self.disks[peer] if self.is_last(digest, peer)}
            assert self.last_copies(peer) == last

    def is_last(self, digest: Digest, peer: PeerId) -> bool:
        """Whether the peer is to know its copy as the last: none that counts more is elsewhere."""
        if peer == "old-seed":
            return False
        staying = {p for p in self.peers if digest in self.disks[p] and p not in self.draining}
        if peer in self.draining:
            return not staying
        return staying == {peer} and peer.startswith("seed")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("gain"), st.sampled_from(PEERS), st.sampled_from(DIGESTS)),
        st.tuples(st.just("lose"), st.sampled_from(PEERS), st.sampled_from(DIGESTS)),
        st.tuples(st.just("kill"), st.sampled_from(PEERS), st.booleans()),
        st.tuples(st.just("start"), st.sampled_from(PEERS), st.none()),
        st.tuples(st.just("announce"), st.sampled_from(PEERS), st.integers(0, N_SHARDS - 1)),
        st.tuples(st.just("drain"), st.sampled_from(PEERS), st.none()),
        st.tuples(st.just("shard"), st.none(), st.integers(0, N_SHARDS - 1)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@given(steps)
def test_a_seed_knows_its_last_copies_whatever_happens(steps: list[tuple[str, ...]]) -> None:
    cluster = Cluster()
    for step in steps:
        match step:
            case ("gain", peer, digest):
                cluster.gain(peer, digest)
            case ("lose", peer, digest):
                cluster.lose(peer, digest)
            case ("kill", peer, for_good):
                cluster.kill(peer, for_good=for_good)
            case ("start", peer, _):
                cluster.start_peer(peer)
            case ("announce", peer, number):
                cluster.announce(peer, number)
            case ("drain", peer, _):
                cluster.drain(peer)
            case ("shard", _, number):
                cluster.restart_shard(number)
        cluster.check()


def test_a_shard_that_starts_again_says_nothing_before_all_had_time_to_announce() -> None:
    cluster = Cluster()
    for digest in DIGESTS:
        cluster.gain(PEERS[0], digest)
        if digest != A:
            cluster.gain(PEERS[1], digest)
    cluster.words.clear()
    for number in range(N_SHARDS):
        cluster.restart_shard(number, quiet_s=2.0)
    assert cluster.words == [], "every copy would look like the last one"
    cluster.now = 2.5
    for number in range(N_SHARDS):
        cluster._hear(number, m.Reported(PEERS[3], cluster.peers[PEERS[3]].info.incarnation, ()))
    assert [(peer, word.sole, word.shared) for peer, word in cluster.words] == [
        (PEERS[0], (A,), ())
    ]
    cluster.check()


def test_a_seed_that_announces_itself_anew_is_told_again() -> None:
    cluster = Cluster()
    cluster.gain(PEERS[0], A)
    for number in range(N_SHARDS):
        cluster.announce(PEERS[0], number)
    cluster.check()
    assert A in cluster.peers[PEERS[0]].last_copies


def test_all_that_changes_in_a_step_is_one_word() -> None:
    cluster = Cluster()
    for digest in DIGESTS:
        cluster.gain(PEERS[0], digest)
        cluster.gain(PEERS[3], digest)
    cluster.words.clear()
    cluster.kill(PEERS[3], for_good=True)
    assert len(cluster.words) <= N_SHARDS
    assert {digest for _, word in cluster.words for digest in word.sole} == set(DIGESTS)


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_word_that_was_overtaken_changes_nothing(overtaken: bool) -> None:
    copies = LastCopies()
    words = [m.Copies(1, (A, B), ()), m.Copies(2, (), (A,))]
    for word in reversed(words) if overtaken else words:
        copies.heard(word, {A, B})
    assert (A in copies, B in copies) == (False, True)


def test_pinned_is_more_than_last_and_what_is_not_held_is_nothing() -> None:
    copies = LastCopies()
    copies.heard(m.Copies(1, (A, B, DIGESTS[2]), ()), {A, B})
    assert copies.rank(A, {A}) is Rank.PINNED
    assert copies.rank(B, {A}) is Rank.LAST_COPY
    assert copies.rank(DIGESTS[2], {A}) is Rank.ORDINARY
    copies.lost(B)
    assert copies.rank(B, ()) is Rank.ORDINARY
