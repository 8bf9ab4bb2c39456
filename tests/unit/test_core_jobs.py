"""Jobs in virtual time: orders, nodes that come and go, refusals, restarts."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from passel.core.jobs import (
    ASK_MAX,
    JOBS_MAX,
    STALLED_S,
    Ask,
    Cancelled,
    Forget,
    Held,
    JobMachine,
    JobState,
    Keep,
    Member,
    MembersSeen,
    NodeSaid,
    Order,
    Restored,
    Submitted,
    Wanted,
    check_to,
)
from passel.core.messages import Role
from passel.errors import InputError
from passel.ids import BlobRef, Digest, PeerId

SIZE = 100
SEED = Member(PeerId("p1"), "n1", "a", Role.SEED)
SECOND = Member(PeerId("p2"), "n2", "a", Role.PEER)
THIRD = Member(PeerId("p3"), "n3", "b", Role.PEER)


def wanted(number: int) -> Wanted:
    return Wanted(BlobRef("lab", "app", Digest("sha256", f"{number:064x}")), SIZE)


def order(n_blobs: int = 2, to: str = "all") -> Order:
    return Order("lab/app:v1", to, tuple(wanted(i) for i in range(n_blobs)))


@pytest.fixture
def machine() -> Iterator[JobMachine]:
    machine = JobMachine()
    machine.handle(MembersSeen((SEED, SECOND, THIRD)), 0.0)
    yield machine
    machine.check_invariants()


WHOLE = Held(SIZE, SIZE, complete=True)


def say(machine: JobMachine, ask: Ask, held: Held | None, now: float) -> list[object]:
    answer = None if held is None else tuple(held for _ in ask.blobs)
    return list(machine.handle(NodeSaid(ask.job, ask.peer, ask.blobs, answer), now))


def asks(machine: JobMachine, now: float) -> list[Ask]:
    return [each for each in machine.handle_timer(now) if isinstance(each, Ask)]


def test_a_job_is_done_when_every_node_has_every_blob(machine: JobMachine) -> None:
    job = order()
    assert machine.handle(Submitted(job, 1.0), 0.0) == [Keep(job.id)]
    first = asks(machine, 0.0)
    assert {(ask.peer, ask.blobs) for ask in first} == {
        (member.peer, (0, 1)) for member in (SEED, SECOND, THIRD)
    }
    assert asks(machine, 9.0) == [], "a node is asked once at a time"
    for ask in first:
        say(machine, ask, Held(50, SIZE, complete=False), 1.0)
    assert machine.jobs[job.id].state is JobState.RUNNING
    *others, last = asks(machine, 1.5)
    for ask in others:
        assert say(machine, ask, WHOLE, 2.0) == []
    assert say(machine, last, WHOLE, 2.0) == [Keep(job.id)]
    assert machine.jobs[job.id].state is JobState.DONE
    assert asks(machine, 3.0) == []


@pytest.mark.parametrize(
    ("to", "nodes"),
    [("all", "n1 n2 n3"), ("seeds", "n1"), ("zone=b", "n3"), ("node=n2", "n2")],
)
def test_who_is_meant(machine: JobMachine, to: str, nodes: str) -> None:
    machine.handle(Submitted(order(1, to), 0.0), 0.0)
    names = {machine.members[ask.peer].node for ask in asks(machine, 0.0)}
    assert names == set(nodes.split())


def test_nobody_is_meant(machine: JobMachine) -> None:
    with pytest.raises(InputError, match="zones are a, b"):
        machine.handle(Submitted(order(1, "zone=c"), 0.0), 0.0)
    with pytest.raises(InputError, match="nodes are n1, n2, n3"):
        machine.handle(Submitted(order(1, "node=n9"), 0.0), 0.0)
    with pytest.raises(InputError, match="no node has its peer yet"):
        JobMachine().handle(Submitted(order(1), 0.0), 0.0)
    for wrong in ("everyone", "zone=", "label=x", ""):
        with pytest.raises(InputError, match="expected all, seeds"):
            check_to(wrong)
    assert machine.jobs == {}


def test_the_same_order_again_changes_nothing_while_it_runs(machine: JobMachine) -> None:
    job = order()
    machine.handle(Submitted(job, 1.0), 0.0)
    before = asks(machine, 0.0)
    assert machine.handle(Submitted(order(), 9.0), 5.0) == []
    assert machine.jobs[job.id].created_s == 1.0
    for ask in before:
        say(machine, ask, WHOLE, 6.0)
    assert machine.jobs[job.id].state is JobState.DONE
    machine.handle(Submitted(order(), 9.0), 7.0)
    assert machine.jobs[job.id].state is JobState.RUNNING, "what was evicted comes back"


def test_nodes_that_join_are_asked_and_those_that_go_are_not_waited_for(
    machine: JobMachine,
) -> None:
    job = order(1)
    machine.handle(MembersSeen((SEED, SECOND)), 0.0)
    machine.handle(Submitted(job, 0.0), 0.0)
    first = {ask.peer: ask for ask in asks(machine, 0.0)}
    machine.handle(MembersSeen((SEED, SECOND, THIRD)), 1.0)
    assert [ask.peer for ask in asks(machine, 1.0)] == [THIRD.peer]
    say(machine, first[SEED.peer], WHOLE, 2.0)
    machine.handle(MembersSeen((SEED, THIRD)), 3.0)
    assert say(machine, first[SECOND.peer], WHOLE, 3.0) == [], "a late answer of one that is gone"
    assert machine.handle(MembersSeen((SEED,)), 4.0) == [Keep(job.id)]
    assert machine.jobs[job.id].state is JobState.DONE


def test_a_refusal_of_the_registry_ends_it_and_trouble_of_ours_does_not(
    machine: JobMachine,
) -> None:
    job = order(1)
    machine.handle(Submitted(job, 0.0), 0.0)
    for ask in asks(machine, 0.0):
        say(machine, ask, Held(0, None, complete=False, status=503, trouble="no room"), 1.0)
    assert machine.jobs[job.id].state is JobState.RUNNING
    for ask in asks(machine, 2.0):
        say(machine, ask, Held(0, None, complete=False, status=404, trouble="unknown blob"), 2.0)
    assert machine.jobs[job.id].state is JobState.FAILED
    assert machine.jobs[job.id].trouble == "unknown blob"


def test_a_job_that_does_not_move_fails_and_says_what_it_was(machine: JobMachine) -> None:
    job = order(1)
    machine.handle(Submitted(job, 0.0), 0.0)
    now = 0.0
    while machine.jobs[job.id].state is JobState.RUNNING:
        for ask in asks(machine, now):
            say(machine, ask, None, now)
        now += 10.0
        assert now < 2 * STALLED_S
    assert now > STALLED_S
    assert "does not answer" in machine.jobs[job.id].trouble


def test_cancelled_is_cancelled(machine: JobMachine) -> None:
    job = order()
    machine.handle(Submitted(job, 0.0), 0.0)
    first = asks(machine, 0.0)
    assert machine.handle(Cancelled(job.id), 1.0) == [Keep(job.id)]
    for ask in first:
        assert say(machine, ask, WHOLE, 1.0) == []
    assert asks(machine, 2.0) == []
    assert machine.handle(Cancelled(job.id), 3.0) == []
    with pytest.raises(InputError, match="there is no job nix"):
        machine.handle(Cancelled("nix"), 3.0)


def test_after_a_restart_it_goes_on(machine: JobMachine) -> None:
    job = order(1)
    reborn = JobMachine()
    reborn.handle(Restored(job, JobState.RUNNING, 1.0, ""), 0.0)
    reborn.handle(Restored(order(2), JobState.DONE, 1.0, ""), 0.0)
    assert asks(reborn, 0.0) == [], "no node is known yet"
    reborn.handle(MembersSeen((SEED,)), 1.0)
    (ask,) = asks(reborn, 1.0)
    assert say(reborn, ask, WHOLE, 2.0) == [Keep(job.id)]
    reborn.check_invariants()


def test_what_is_kept_is_bounded(machine: JobMachine) -> None:
    for number in range(JOBS_MAX):
        one = Order("x", "all", (wanted(number),))
        machine.handle(Submitted(one, 0.0), 0.0)
    extra = Order("x", "all", (wanted(JOBS_MAX),))
    with pytest.raises(InputError, match="running already"):
        machine.handle(Submitted(extra, 0.0), 0.0)
    oldest = Order("x", "all", (wanted(0),))
    machine.handle(Cancelled(oldest.id), 0.0)
    out = machine.handle(Submitted(extra, 0.0), 0.0)
    assert out == [Forget(oldest.id), Keep(extra.id)]
    with pytest.raises(InputError, match="not for 0"):
        machine.handle(Submitted(Order("x", "all", ()), 0.0), 0.0)


def test_large_jobs_are_asked_for_in_parts(machine: JobMachine) -> None:
    machine.handle(Submitted(order(3 * ASK_MAX, "seeds"), 0.0), 0.0)
    seen: list[int] = []
    now = 0.0
    while found := asks(machine, now):
        assert len(found[0].blobs) <= ASK_MAX
        seen += found[0].blobs
        say(machine, found[0], WHOLE, now)
        now += 1.0
    assert seen == list(range(3 * ASK_MAX))


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_events_ends_well(seed: int) -> None:
    """Nodes die and come, answers are lost or late; when that stops, every job ends."""
    rng = random.Random(seed)
    machine = JobMachine()
    everybody = [SEED, SECOND, THIRD]
    machine.handle(MembersSeen(tuple(everybody)), 0.0)
    orders = [order(rng.randint(1, 4), rng.choice(["all", "zone=a"])) for _ in range(3)]
    has: dict[tuple[PeerId, int], int] = {}
    late: list[NodeSaid] = []
    for step in range(200):
        now = float(step)
        calm = step > 100
        if not calm and rng.random() < 0.1:
            machine.handle(Submitted(rng.choice(orders), now), now)
        if not calm and rng.random() < 0.2:
            alive = [SEED, *(member for member in (SECOND, THIRD) if rng.random() < 0.7)]
            machine.handle(MembersSeen(tuple(alive)), now)
        if calm and step == 101:
            machine.handle(MembersSeen(tuple(everybody)), now)
        for ask in asks(machine, now):
            held = []
            for index in ask.blobs:
                have = min(has.get((ask.peer, index), 0) + rng.choice([0, 40]), SIZE)
                has[ask.peer, index] = have
                held.append(Held(have, SIZE, complete=have == SIZE))
            answer = None if not calm and rng.random() < 0.2 else tuple(held)
            late.append(NodeSaid(ask.job, ask.peer, ask.blobs, answer))
        rng.shuffle(late)
        while late and (calm or rng.random() < 0.8):
            machine.handle(late.pop(), now)
        machine.check_invariants()
    assert all(job.state is JobState.DONE for job in machine.jobs.values())
