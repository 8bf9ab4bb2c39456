"""One peer is far slower than the others: they must not wait for it, and it must get on."""

from __future__ import annotations

import pytest

from passel.ids import PeerId
from passel.sim.world import Setup, World

MIB = 1 << 20
SIZE = 64 * MIB
#: 100 Mbit/s.
RATE = 12.5e6


def crowd(zones: int, seed: int, rate: float = RATE) -> World:
    """Eight peers that all want the same blob now."""
    world = World(Setup(n_peers=8, zones=zones, seed=seed, rate=rate, origin_rate=4 * rate))
    ref = world.blob("b", SIZE)
    for name in list(world.nodes):
        world.read(name, ref)
    return world


def last_finish(world: World, until: float, besides: str = "") -> float:
    """Run until all reads are over besides those of one peer; when the last one was."""
    others = [log for log in world.reads.values() if log.node != besides]
    while not all(log.is_over for log in others) and world.now < until:
        world.run(world.now + 0.1, check=False)
        world.check()
    done = [log.done_at for log in others]
    assert None not in done, "somebody waits"
    return max(at for at in done if at is not None)


def n_held(world: World, name: str) -> int:
    node = world.nodes[PeerId(name)]
    return SIZE // MIB if node.done else sum(map(len, node.disk.values()))


@pytest.mark.parametrize("zones", [1, 2])
@pytest.mark.parametrize("at", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_peer_at_a_hundredth_of_its_link_holds_up_nobody_else(
    zones: int, at: float, seed: int
) -> None:
    well = last_finish(crowd(zones, seed), 30)
    world = crowd(zones, seed)
    world.clock.at(at, world.slow_down, "p1", 0.01)
    # Until it is known as slow, after two seconds, it has three of the four slots of the source.
    assert last_finish(world, 30, besides="p1") < 1.3 * well
    assert world.origin_bytes == SIZE
    assert world.cross_zone_bytes <= SIZE * (zones - 1) * 1.1
    # It gets on at its own speed: a piece in 8.4 s.
    before, began_s = n_held(world, "p1"), world.now
    world.run(began_s + 120, check=False)
    assert n_held(world, "p1") - before >= 0.7 * 120 * RATE * 0.01 / MIB


@pytest.mark.parametrize("zones", [1, 2])
@pytest.mark.parametrize("at", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(2))
def test_a_lease_holder_at_a_hundredth_of_its_link_passes_the_lease_on(
    zones: int, at: float, seed: int
) -> None:
    well = last_finish(crowd(zones, seed), 30)
    world = crowd(zones, seed)
    world.clock.at(at, world.slow_down, "p0", 0.01)
    # Until it has one piece, and nobody gets that from it, nothing tells that it is not the origin.
    assert last_finish(world, 120, besides="p0") < 20 + well
    # What only it has comes from the origin again.
    assert world.origin_bytes <= 1.15 * SIZE


@pytest.mark.parametrize("zones", [1, 2])
def test_a_crowd_on_slow_links_has_no_slow_peers(zones: int) -> None:
    world = crowd(zones, seed=0, rate=RATE / 16)
    pace = world.shards[0].machine.traffic.pace
    while not all(log.is_over for log in world.reads.values()):
        world.run(world.now + 0.25, check=False)
        assert not pace.slow_parents
        assert not pace.slow_children
        assert world.now < 130
    assert world.origin_bytes == SIZE
    assert world.cross_zone_bytes == SIZE * (zones - 1)


@pytest.mark.parametrize("name", ["p0", "p1"])
def test_a_peer_that_is_fast_again_is_one_like_any_other(name: str) -> None:
    world = crowd(zones=2, seed=0)
    world.clock.at(1.0, world.slow_down, name, 0.01)
    last_finish(world, 60, besides=name)
    pace = world.shards[0].machine.traffic.pace
    assert pace.slow_parents or pace.slow_children
    world.slow_down(name, 100)
    last_finish(world, world.now + 30)
    ref = world.blob("another", SIZE)
    world.run(world.now + 15, check=False)
    began_s = world.now
    for each in list(world.nodes):
        world.read(each, ref)
    last = last_finish(world, began_s + 20)
    assert not pace.slow_parents
    assert not pace.slow_children
    assert last - began_s < 1.1 * last_finish(crowd(2, 0), 30)
