"""A peer that serves wrong bytes holds up nobody, and what only it has is read from the origin."""

from __future__ import annotations

import pytest

from passel.sim.world import Setup, World

MIB = 1 << 20


def last_finish(n_peers: int, zones: int, seed: int, liar: str | None) -> tuple[float, World]:
    """A crowd; the liar has pulled the first part of the blob honestly, as everybody thinks."""
    world = World(Setup(n_peers=n_peers, zones=zones, seed=seed))
    ref = world.blob("b", 64 * MIB)
    for name in list(world.nodes):
        world.read(name, ref)
    if liar is not None:
        world.make_liar(liar)
    world.run(40)
    ends = {log.node: log.done_at for log in world.reads.values()}
    assert all(end is not None for end in ends.values()), "a reader starved"
    return max(end for end in ends.values() if end is not None), world


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("n_peers", "zones"), [(8, 1), (8, 2), (4, 2), (6, 3)])
def test_the_pieces_of_a_liar_do_not_count(n_peers: int, zones: int, seed: int) -> None:
    """In its zone nobody takes them: they come into it once more."""
    without, _ = last_finish(n_peers, zones, seed, None)
    last, world = last_finish(n_peers, zones, seed, "p1")
    assert last <= 2 * without + 1.0, (last, without)
    assert world.origin_bytes <= 1.1 * 64 * MIB


@pytest.mark.parametrize("zones", [1, 2])
def test_what_only_a_liar_has_comes_from_the_origin(zones: int) -> None:
    world = World(Setup(n_peers=3, zones=zones, seeds=0))
    ref = world.blob("b", 16 * MIB)
    world.read("p1", ref)
    world.run(10)
    world.make_liar("p1")
    world.read("p2", ref)
    world.run(20)
    assert all(log.done_at is not None for log in world.reads.values())
    assert world.origin_bytes <= 2 * 16 * MIB
    world.read("p0", ref)
    world.run(30)
    assert all(log.done_at is not None for log in world.reads.values())
    assert world.origin_bytes <= 2 * 16 * MIB, "p2 has it now"
