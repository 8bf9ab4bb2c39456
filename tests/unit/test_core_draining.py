"""Nodes that are to go away, in virtual time: receivers, refusals, silence, restarts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from passel.core import messages as m
from passel.core.draining import (
    AT_ONCE,
    BACK_S,
    PATIENCE_S,
    STALLED_S,
    AskReceiver,
    Begun,
    Drain,
    DrainMachine,
    DrainState,
    Forget,
    Keep,
    ReceiverSaid,
    Restored,
    ShardsSaid,
    Undone,
)
from passel.core.handover import OnlyCopy, Remaining, remaining
from passel.core.jobs import Held, Member, MembersSeen
from passel.core.messages import Role
from passel.core.shard import ShardMachine
from passel.ids import BlobRef, Digest, PeerId

SIZE = 100
GOING = PeerId("p3")
MEMBERS = (
    Member(PeerId("p1"), "n1", "a", Role.SEED),
    Member(PeerId("p2"), "n2", "a", Role.PEER),
    Member(GOING, "n3", "a", Role.PEER),
)
WHOLE = Held(SIZE, SIZE, complete=True)
FULL = Held(0, SIZE, complete=False, status=507, trouble="no room")


def digest(number: int) -> Digest:
    return Digest("sha256", f"{number:064x}")


def only(number: int, *holders: PeerId) -> OnlyCopy:
    return OnlyCopy(digest(number), SIZE, holders or (GOING,), None)


class Shards:
    """One shard: what it would say about blobs that only these have."""

    def __init__(self, machine: DrainMachine) -> None:
        self.machine = machine
        self.copies: dict[Digest, OnlyCopy] = {}
        self.fetching: frozenset[PeerId] = frozenset()
        self.heard = frozenset({GOING, PeerId("p1")})
        self.kept: set[Digest] = set()

    def put(self, *copies: OnlyCopy) -> None:
        self.copies.update({copy.digest: copy for copy in copies})

    def keep(self, *digests: Digest) -> None:
        """A node that stays has them."""
        for digest in digests:
            del self.copies[digest]
            self.kept.add(digest)

    def say(self, now: float) -> None:
        peers = {holder for copy in self.copies.values() for holder in copy.holders}
        counts = {p: sum(p in c.holders for c in self.copies.values()) for p in peers}
        totals = {peer: (n, n * SIZE) for peer, n in counts.items()}
        kept = frozenset(self.kept.intersection(self.machine.under_way()))
        said = Remaining(self.heard, self.fetching, totals, tuple(self.copies.values()), kept)
        self.machine.handle(ShardsSaid({"shard": said}), now)


@pytest.fixture
def machine() -> Iterator[DrainMachine]:
    machine = DrainMachine()
    machine.handle(MembersSeen(MEMBERS), 0.0)
    machine.handle(Begun(GOING, "n3"), 0.0)
    yield machine
    machine.check_invariants()


@pytest.fixture
def shards(machine: DrainMachine) -> Shards:
    return Shards(machine)


def asks(machine: DrainMachine, now: float) -> list[AskReceiver]:
    return [each for each in machine.handle_timer(now) if isinstance(each, AskReceiver)]


def answer(machine: DrainMachine, ask: AskReceiver, held: Held | None, now: float) -> None:
    digests = tuple(copy.digest for copy in ask.copies)
    answers = None if held is None else tuple(held for _ in digests)
    machine.handle(ReceiverSaid(ask.receiver, digests, answers), now)


def drain_of(machine: DrainMachine) -> Drain:
    return machine.drains[GOING]


def test_a_node_without_only_copies_may_go_at_once(machine: DrainMachine, shards: Shards) -> None:
    assert drain_of(machine).state is DrainState.RUNNING
    shards.say(1.0)
    assert drain_of(machine).state is DrainState.DONE


def test_only_copies_go_to_seeds_a_few_at_a_time(machine: DrainMachine, shards: Shards) -> None:
    shards.put(*(only(i) for i in range(AT_ONCE + 2)))
    shards.say(0.0)
    seen: set[Digest] = set()
    for now in (1.0, 2.0):
        (ask,) = asks(machine, now)
        assert ask.receiver == "p1"
        assert len(ask.copies) <= AT_ONCE
        seen |= {copy.digest for copy in ask.copies}
        shards.keep(*(copy.digest for copy in ask.copies))
        shards.say(now)
        answer(machine, ask, WHOLE, now)
    assert len(seen) == AT_ONCE + 2
    drain = drain_of(machine)
    assert (drain.state, drain.blobs, drain.bytes) == (DrainState.DONE, 6, 6 * SIZE)


def test_it_is_not_done_before_the_shard_knows_of_the_new_copy(
    machine: DrainMachine, shards: Shards
) -> None:
    shards.put(only(1))
    shards.say(0.0)
    answer(machine, asks(machine, 0.1)[0], WHOLE, 0.2)
    shards.say(0.3)
    assert (drain_of(machine).state, drain_of(machine).blobs) == (DrainState.RUNNING, 0)
    shards.keep(digest(1))
    shards.say(0.4)
    assert (drain_of(machine).state, drain_of(machine).blobs) == (DrainState.DONE, 1)


def test_what_is_removed_meanwhile_was_not_handed_over(
    machine: DrainMachine, shards: Shards
) -> None:
    shards.put(only(1))
    shards.say(0.0)
    asks(machine, 0.1)
    shards.copies.clear()
    shards.say(0.2)
    assert (drain_of(machine).state, drain_of(machine).blobs) == (DrainState.DONE, 0)


def test_a_full_receiver_is_left_for_the_next_and_without_any_it_is_incomplete(
    machine: DrainMachine, shards: Shards
) -> None:
    shards.put(only(1))
    shards.say(0.0)
    for now, peer in ((1.0, "p1"), (2.0, "p2")):
        (ask,) = asks(machine, now)
        assert ask.receiver == peer, "seeds first"
        answer(machine, ask, FULL, now)
    assert asks(machine, 3.0) == []
    shards.say(3.0)
    drain = drain_of(machine)
    assert (drain.state, drain.blobs, drain.left) == (DrainState.INCOMPLETE, 0, (1, SIZE))
    (task,) = machine.pending(GOING)
    assert task.trouble == "n2: no room"
    # Asked for again, all are tried again.
    assert machine.handle(Begun(GOING, "n3"), 4.0) == [Keep(GOING)]
    assert drain.state is DrainState.RUNNING
    shards.say(4.0)
    assert [ask.receiver for ask in asks(machine, 5.0)] == ["p1"]


def test_what_a_receiver_gave_up_again_goes_to_another(
    machine: DrainMachine, shards: Shards
) -> None:
    shards.put(only(1))
    shards.say(0.0)
    assert len(asks(machine, 0.1)) == 1
    shards.keep(digest(1))
    shards.say(0.2)
    assert drain_of(machine).blobs == 1
    # Its peer starts again, and is back in time.
    shards.put(only(1))
    shards.say(1.0)
    assert drain_of(machine).state is DrainState.RUNNING
    shards.copies.clear()
    shards.say(1.0 + BACK_S)
    assert drain_of(machine).state is DrainState.DONE
    shards.put(only(1))
    shards.say(20.0)
    assert asks(machine, 20.0) == []
    shards.say(20.1 + BACK_S)
    assert drain_of(machine).blobs == 0
    assert [ask.receiver for ask in asks(machine, 21 + BACK_S)] == ["p2"]


def test_a_receiver_that_gets_nothing_is_left(machine: DrainMachine, shards: Shards) -> None:
    shards.put(only(1))
    shards.say(0.0)
    (ask,) = asks(machine, 1.0)
    answer(machine, ask, Held(10, SIZE, complete=False), 40.0)
    assert [a.receiver for a in asks(machine, 1.0 + PATIENCE_S + 1)] == ["p1"], "it got something"
    answer(machine, ask, None, 50.0)
    assert [a.receiver for a in asks(machine, 41.0 + PATIENCE_S)] == ["p2"]


def test_a_receiver_that_is_gone_or_drains_too_is_left(
    machine: DrainMachine, shards: Shards
) -> None:
    shards.put(only(1))
    shards.say(0.0)
    assert [ask.receiver for ask in asks(machine, 1.0)] == ["p1"]
    machine.handle(Begun(PeerId("p1"), "n1"), 2.0)
    assert [ask.receiver for ask in asks(machine, 3.0)] == ["p2"]
    machine.handle(MembersSeen((MEMBERS[0], MEMBERS[2])), 4.0)
    assert asks(machine, 5.0) == []
    shards.say(5.0)
    assert drain_of(machine).state is DrainState.INCOMPLETE
    assert machine.pending(GOING)[0].trouble == "there is no other node"


def test_a_drain_in_which_nothing_moves_ends(machine: DrainMachine) -> None:
    machine.handle(ShardsSaid({"shard": None}), 1.0)
    machine.handle_timer(STALLED_S - 1)
    assert drain_of(machine).state is DrainState.RUNNING
    machine.handle_timer(STALLED_S + 1)
    drain = drain_of(machine)
    assert (drain.state, drain.trouble) == (DrainState.INCOMPLETE, "shard does not answer")


@pytest.mark.parametrize("why", ["not announced", "fetches"])
def test_it_is_not_done_before(machine: DrainMachine, shards: Shards, why: str) -> None:
    if why == "not announced":
        shards.heard = frozenset()
    else:
        shards.fetching = frozenset({GOING})
    shards.say(1.0)
    assert drain_of(machine).state is DrainState.RUNNING
    assert drain_of(machine).trouble


def test_what_becomes_whole_there_later_is_handed_over_too(
    machine: DrainMachine, shards: Shards
) -> None:
    shards.say(1.0)
    assert drain_of(machine).state is DrainState.DONE
    shards.put(only(1))
    shards.say(1.0 + 2 * STALLED_S)
    assert len(asks(machine, 2.0 + 2 * STALLED_S)) == 1
    assert drain_of(machine).state is DrainState.RUNNING


def test_undone_and_gone_are_struck_out(machine: DrainMachine, shards: Shards) -> None:
    shards.put(only(1))
    shards.say(0.0)
    assert machine.handle(Undone(GOING), 1.0) == [Forget(GOING)]
    assert asks(machine, 2.0) == []
    machine.handle(Begun(GOING, "n3"), 3.0)
    assert machine.handle(MembersSeen(MEMBERS[:2]), 4.0) == [Forget(GOING)]
    assert machine.drains == {}


def test_a_restarted_controller_goes_on(shards: Shards) -> None:
    machine = DrainMachine()
    machine.handle(Restored(GOING, "n3", 2, 2 * SIZE), 100.0)
    machine.handle(MembersSeen(MEMBERS), 100.0)
    shards.machine = machine
    shards.put(only(1))
    shards.say(101.0)
    assert len(asks(machine, 102.0)) == 1
    shards.keep(digest(1))
    shards.say(104.0)
    drain = drain_of(machine)
    assert (drain.state, drain.blobs, drain.bytes) == (DrainState.DONE, 3, 3 * SIZE)


# --- the shard --------------------------------------------------------------------------------


def shard_with(roles: dict[str, Role], holders: dict[int, str]) -> ShardMachine:
    machine = ShardMachine(m.ShardLimits(), 1, np.random.default_rng(1))
    for name, role in roles.items():
        info = m.PeerInfo(PeerId(name), name, "", role, "127.0.0.1:1", 1, 4, 4)
        held = [
            m.Holds(digest(i), None, SIZE, 1 << 20, 1, bytes(32))
            for i, names in holders.items()
            if name in names.split()
        ]
        machine.handle(m.Reported(info.peer, 1, (m.Hello(info), *held, m.Announced())), 0.0)
    return machine


def test_a_shard_names_what_only_those_have_that_go() -> None:
    roles = {"p1": Role.SEED, "p2": Role.PEER, "p3": Role.PEER}
    machine = shard_with(roles, {1: "p3", 2: "p1 p3", 3: "p2 p3", 4: "p1"})
    ref = BlobRef("lab", "app", digest(1))
    machine.handle(m.Reported(PeerId("p3"), 1, (m.Wants(ref, (), True, False),)), 0.0)
    said = remaining(machine, {GOING}, (digest(1), digest(2)), 10, 0.0)
    assert [(copy.digest, copy.ref) for copy in said.copies] == [(digest(1), ref)]
    assert said.totals == {GOING: (1, SIZE)}
    assert (said.heard, said.kept) == ({GOING}, {digest(2)})
    both = remaining(machine, {GOING, PeerId("p2")}, (), 1, 0.0)
    assert both.totals == {GOING: (2, 2 * SIZE), PeerId("p2"): (1, SIZE)}
    assert len(both.copies) == 1


def test_a_node_that_drains_gets_no_lease_while_there_is_another() -> None:
    def holder(draining: set[str], wanting: str) -> PeerId:
        machine = shard_with({"p1": Role.SEED, "p2": Role.PEER, "p3": Role.PEER}, {})
        machine.handle(m.Draining(frozenset(map(PeerId, draining))), 0.0)
        wants = m.Wants(BlobRef("lab", "app", digest(9)), ((0, 1),), True, False)
        out = [
            each
            for name in wanting.split()
            for each in machine.handle(m.Reported(PeerId(name), 1, (wants,)), 1.0)
        ]
        (lease,) = [each for each in out if isinstance(each.message, m.Lease)]
        return lease.peer

    assert holder(set(), "p3") == "p1"
    assert holder({"p1"}, "p3") == "p3", "a seed that drains is none"
    assert holder({"p3"}, "p3") == "p1"
    assert holder({"p1", "p3"}, "p3") == "p3", "its own client still wants its bytes"
