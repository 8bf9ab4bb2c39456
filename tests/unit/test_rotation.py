"""A secret is replaced in steps, each of which waits for everybody."""

from __future__ import annotations

import random

import pytest

from passel.core.rotation import GRACE_S, Ring, RotationMachine, Stage
from passel.ids import PeerId
from passel.transport.auth import ClusterAuth

OLD, NEW = b"o" * 32, b"n" * 32
A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def begun() -> RotationMachine:
    machine = RotationMachine(Ring(1, Stage.STEADY, (OLD,)))
    ring = machine.begin(NEW)
    assert ring is not None
    machine.adopt(ring)
    return machine


def tell(machine: RotationMachine, *peers: PeerId) -> None:
    for peer in peers:
        machine.told(peer, machine.ring.generation)
    machine.check_invariants()


def step(machine: RotationMachine, now: float) -> Stage:
    ring = machine.advance((A, B), now)
    assert ring is not None
    machine.adopt(ring)
    machine.check_invariants()
    return ring.stage


def test_three_steps() -> None:
    machine = begun()
    assert machine.ring.secrets == (OLD, NEW)
    tell(machine, A, B)
    assert step(machine, 0) is Stage.SIGNING
    assert machine.ring.secrets == (NEW, OLD)
    assert machine.behind((A, B)) == (A, B)
    tell(machine, A, B)
    assert machine.advance((A, B), 5.0) is None, "what was signed with the old one may be under way"
    assert machine.advance((A, B), 5.0 + GRACE_S - 0.1) is None
    assert step(machine, 5.0 + GRACE_S) is Stage.STEADY
    assert machine.ring.secrets == (NEW,)
    tell(machine, A)
    assert machine.behind((A, B)) == (B,), "it must forget the old one too"


def test_one_that_does_not_answer_holds_it_up_and_one_that_is_gone_does_not() -> None:
    machine = begun()
    tell(machine, A)
    assert machine.behind((A, B)) == (B,)
    assert machine.advance((A, B), 1000.0) is None
    assert machine.advance((A,), 1000.0) is not None


def test_one_rotation_at_a_time() -> None:
    machine = begun()
    assert machine.begin(b"x" * 32) is None
    assert b"n" * 8 not in repr(machine.ring).encode()


@pytest.mark.parametrize("seed", range(30))
def test_no_request_between_members_is_refused_at_any_time(seed: int) -> None:
    """Peers hear of rings late, in any order, and start again from what is written down."""
    rng = random.Random(seed)
    machine = begun()
    rings = {peer: Ring(1, Stage.STEADY, (OLD,)) for peer in (A, B, C)}
    now = 0.0
    while machine.ring.stage is not Stage.STEADY:
        now += 1.0
        peer = rng.choice((A, B, C))
        if rng.random() < 0.8:
            rings[peer] = machine.ring  # told, or started again
            if rng.random() < 0.7:  # its answer may be lost
                machine.told(peer, machine.ring.generation)
        ring = machine.advance(rings, now)
        if ring is not None:
            machine.adopt(ring)
        for one in rings.values():
            header = ClusterAuth(*one.secrets).sign("GET", "/", now)
            for other in rings.values():
                assert ClusterAuth(*other.secrets).verify("GET", "/", header, now)
        assert now < 1000
