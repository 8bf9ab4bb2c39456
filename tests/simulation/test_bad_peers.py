"""Peers that serve wrong bytes: they hold up nobody, and slander costs next to nothing."""

from __future__ import annotations

import pytest

from passel.core.messages import Role
from passel.ids import PeerId
from passel.sim.world import Setup, World

MIB = 1 << 20


def crowd(n_peers: int, zones: int, seed: int, liar: str | None, seeds: int = 1) -> World:
    """Everybody reads 64 MiB at once; the liar, if any, sends garbage from the first piece on."""
    world = World(Setup(n_peers=n_peers, zones=zones, seed=seed, seeds=seeds))
    ref = world.blob("b", 64 * MIB)
    for name in list(world.nodes):
        world.read(name, ref)
    if liar is not None:
        world.make_liar(liar)
    world.run(60)
    return world


def last_finish(world: World) -> float:
    ends = [log.done_at for log in world.reads.values()]
    assert None not in ends, "a reader starved"
    return max(end for end in ends if end is not None)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n_peers", "zones"), [(8, 1), (8, 2), (4, 2), (6, 3)])
def test_the_pieces_of_a_liar_do_not_count_as_in_its_zone(
    n_peers: int, zones: int, seed: int
) -> None:
    """Its zone waited for ever for somebody to take them: the last of 8 nodes came at 145 s."""
    honest = last_finish(crowd(n_peers, zones, seed, None))
    world = crowd(n_peers, zones, seed, "p1")
    assert last_finish(world) <= 1.5 * honest + 0.5
    assert world.origin_bytes == 64 * MIB


@pytest.mark.parametrize("zones", [1, 2])
def test_what_only_a_liar_has_is_read_from_the_origin_again(zones: int) -> None:
    world = World(Setup(n_peers=3, zones=zones, seeds=0))
    ref = world.blob("b", 16 * MIB)
    world.read("p1", ref)
    world.run(10)
    world.make_liar("p1")
    world.read("p2", ref)
    world.run(20)
    assert last_finish(world) < 12
    world.read("p0", ref)
    world.run(30)
    assert last_finish(world) < 22
    assert world.origin_bytes == 2 * 16 * MIB, "p0 had it from p2"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("zones", [1, 2])
def test_a_lease_holder_that_lies_from_some_time_on_is_replaced(zones: int, seed: int) -> None:
    world = World(Setup(n_peers=6, zones=zones, seed=seed, seeds=2))
    ref = world.blob("b", 64 * MIB)
    for name in list(world.nodes):
        world.read(name, ref)
    world.run(0.2)
    lease = next(iter(world.shards[0].machine.swarms.values())).lease
    assert lease is not None
    world.make_liar(lease.holder)
    world.run(60)
    assert last_finish(world) < 5
    assert world.origin_bytes <= 2 * 64 * MIB


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("zones", [1, 2])
@pytest.mark.parametrize("at", [0.0, 0.2])
def test_a_child_that_spoils_what_it_gets_costs_the_others_nothing(
    zones: int, seed: int, at: float
) -> None:
    """It accuses everybody. Its word alone put half of the crowd aside, and it starved itself.

    What it needs it gets in the end, from the origin.
    """
    honest = last_finish(crowd(8, zones, seed, None))
    world = World(Setup(n_peers=8, zones=zones, seed=seed))
    ref = world.blob("b", 64 * MIB)
    for name in list(world.nodes):
        world.read(name, ref)
    world.run(at)
    world.nodes[PeerId("p3")].spoils = True
    world.run(60)
    last_finish(world)
    others = [log.done_at for log in world.reads.values() if log.node != "p3"]
    assert max(done for done in others if done is not None) <= 1.5 * honest + 0.5
    assert world.origin_bytes <= 2 * 64 * MIB
    # And whoever comes later gets it from peers.
    world.add_peer("p9", "z0", Role.PEER)
    before = world.origin_bytes
    world.run(61)
    world.read("p9", ref)
    world.run(65)
    last_finish(world)
    assert world.origin_bytes == before


def test_who_is_left_with_a_liar_alone_is_not_left_without() -> None:
    """Others had it when the child found the liar out; then they went away."""
    world = World(Setup(n_peers=4, seeds=0))
    ref = world.blob("b", 64 * MIB)
    for name in ("p0", "p1"):
        world.read(name, ref)
    world.run(10)
    world.make_liar("p1")
    world.read("p2", ref)
    world.run(10.2)
    swarm = world.shards[0].machine.swarms[ref.id]
    assert PeerId("p1") in swarm.rows[PeerId("p2")].banned
    world.kill_peer("p0")
    world.run(60)
    assert world.reads[3].done_at is not None
    assert world.reads[3].done_at < 25


def test_a_liar_still_gets_its_own_bytes() -> None:
    """Nobody else wants them any more, so nobody else goes to the origin for them."""
    world = World(Setup(n_peers=3, seeds=0))
    ref = world.blob("b", 64 * MIB)
    world.read("p1", ref, 0, 20 * MIB)
    world.run(0.1)
    world.make_liar("p1")
    world.read("p2", ref, 0, 1000)
    world.run(0.12)
    for _ in range(3):
        world.run(world.clock.now + 0.05)
    world.kill_peer("p2")
    world.run(60)
    log = world.reads[1]
    assert log.done_at is not None


def test_a_peer_that_gave_its_bytes_up_is_trusted_with_new_ones() -> None:
    world = World(Setup(n_peers=4, seeds=0))
    ref = world.blob("b", 16 * MIB)
    world.read("p1", ref)
    world.run(10)
    world.make_liar("p1")
    for name in ("p2", "p3"):
        world.read(name, ref)
    world.run(20)
    swarm = world.shards[0].machine.swarms[ref.id]
    assert swarm.rows[PeerId("p1")].is_aside
    world.make_honest("p1")
    world.kill_peer("p1")
    world.run(22)
    world.restart_peer("p1")
    world.run(24)
    assert not swarm.rows[PeerId("p1")].is_aside
    assert not any(PeerId("p1") in row.banned for row in swarm.rows.values())
