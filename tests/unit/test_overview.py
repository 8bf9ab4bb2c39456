"""What a shard tells those who watch, against real machines in virtual time."""

from __future__ import annotations

from passel.core.overview import overview
from passel.ids import PeerId
from passel.sim.world import Setup, World

MIB = 1 << 20
SIZE = 40 * MIB + 4321


def test_a_blob_on_its_way_and_after() -> None:
    world = World(Setup(n_peers=3, seeds=1, rate=20 * MIB, origin_rate=20 * MIB))
    ref = world.blob("layer", SIZE)
    world.read("p1", ref)
    world.read("p2", ref)
    world.run(0.9)
    machine = world.shards[0].machine
    seen = overview(machine, 10)
    (blob,) = seen.blobs
    assert (blob.digest, blob.size, blob.upstreams) == (str(ref.digest), SIZE, ("up",))
    assert blob.fetcher == "p0"
    assert (blob.complete, blob.coming) == (0, 2)
    assert 0 < blob.held_bytes < blob.wanted_bytes == 2 * SIZE
    # The lease-holder wants nothing for itself, and has its progress all the same.
    assert set(seen.peers) == {"p0", "p1", "p2"}
    for peer, (held, wanted) in seen.peers.items():
        row = machine.swarms[ref.id].rows[PeerId(peer)]
        assert held == row.have.bit_count() * MIB
        assert wanted == SIZE

    world.run(20.0)
    (blob,) = overview(machine, 10).blobs
    assert (blob.complete, blob.coming, blob.held_bytes) == (3, 0, 0)
    assert overview(machine, 10).peers == {}


def test_a_read_of_a_part_wants_that_part() -> None:
    world = World(Setup(n_peers=2, seeds=1, rate=20 * MIB, origin_rate=20 * MIB))
    ref = world.blob("layer", SIZE)
    world.read("p1", ref, 0, 10)
    world.run(20.0)
    machine = world.shards[0].machine
    row = machine.swarms[ref.id].rows[PeerId("p1")]
    machine.copies.by_digest.clear()
    row.have, row.rest, row.urgent = 0b1, False, 0b100
    machine._active[ref.id] = None
    assert overview(machine, 10).peers == {PeerId("p1"): (MIB, 2 * MIB)}


def test_moving_blobs_come_first_and_the_list_has_an_end() -> None:
    world = World(Setup(n_peers=2, seeds=1, rate=100 * MIB, origin_rate=100 * MIB))
    for i in range(8):
        world.read("p1", world.blob(f"old {i}", MIB))
    world.run(20.0)
    moving = world.blob("new", 400 * MIB)
    world.read("p1", moving)
    world.run(21.0)
    seen = overview(world.shards[0].machine, 4)
    assert seen.n_blobs == 9
    assert [blob.digest == str(moving.digest) for blob in seen.blobs] == [True, False, False, False]
    # More blobs move than are listed: everybody's progress counts all the same.
    assert overview(world.shards[0].machine, 0).blobs == []
    assert overview(world.shards[0].machine, 0).peers == seen.peers
