"""The real machines in a small virtual world: what must hold, with and without faults."""

from __future__ import annotations

import pytest

from passel.core.messages import PeerGone, PeerLimits, Role
from passel.sim.world import Setup, World

MIB = 1 << 20


def finished(world: World) -> bool:
    return all(log.done_at is not None for log in world.reads.values())


def test_one_cold_read_moves_one_first_request_and_then_the_rest() -> None:
    world = World(Setup(n_peers=3))
    ref = world.blob("b", 40 * MIB)
    read = world.read("p1", ref, 5000, 9096)
    world.run(0.2)
    log = world.reads[read]
    assert log.done_at is not None
    assert log.done_at < 0.05, "latency of the origin 20 ms, of one piece 10 ms"
    world.run(5)
    assert world.origin_bytes == 40 * MIB
    assert ref.digest in world.nodes["p1"].done, "the rest of the blob came in the background"


@pytest.mark.parametrize("zones", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_crowd_reads_the_origin_once_and_each_zone_once(zones: int, seed: int) -> None:
    world = World(Setup(n_peers=8, zones=zones, seed=seed))
    size = 64 * MIB + 12345
    ref = world.blob("b", size)
    for name in list(world.nodes):
        world.read(name, ref)
    world.run(30)
    assert finished(world)
    assert world.origin_bytes == size
    assert world.cross_zone_bytes == size * (zones - 1)


@pytest.mark.parametrize("seed", range(5))
def test_lazy_pattern_everybody_reads_the_same_scattered_ranges(seed: int) -> None:
    world = World(Setup(n_peers=8, zones=2, seed=seed))
    size = 300 * MIB
    ref = world.blob("b", size)
    for name in list(world.nodes):
        for k in range(16):
            world.read(name, ref, 7 * k * MIB + 333, 7 * k * MIB + 333 + MIB)
    world.run(60, check=False)
    world.check()
    assert finished(world)
    assert max(log.done_at - log.started_at for log in world.reads.values()) < 3
    assert world.origin_bytes == size
    assert world.cross_zone_bytes == size


@pytest.mark.parametrize("seed", range(3))
def test_without_whole_blobs_only_what_is_touched_leaves_the_origin(seed: int) -> None:
    limits = PeerLimits(whole_blobs=False)
    world = World(Setup(n_peers=8, zones=2, seed=seed, peer_limits=limits))
    size = 300 * MIB
    ref = world.blob("b", size)
    for name in list(world.nodes):
        for k in range(16):
            world.read(name, ref, 7 * k * MIB + 333, 7 * k * MIB + 333 + MIB)
    world.run(60)
    assert finished(world)
    assert max(log.done_at - log.started_at for log in world.reads.values()) < 3
    assert world.origin_bytes == 2 * 16 * MIB, "each range touches two pieces"
    later = world.read("p3", ref, 200 * MIB, 200 * MIB + 1)
    world.run(70)
    assert world.reads[later].done_at is not None
    assert world.origin_bytes == (2 * 16 + 1) * MIB
    whole = world.read("p4", ref)
    world.run(100)
    assert world.reads[whole].done_at is not None
    assert world.origin_bytes == size, "a long read fetches the whole blob"


def test_huge_blob_first_request_is_no_whole_piece_and_no_byte_comes_twice() -> None:
    world = World(Setup(n_peers=2, origin_rate=2e9, rate=2e9))
    size = 5000 * MIB + 17
    ref = world.blob("b", size)
    read = world.read("p1", ref, 3 * MIB + 5, 3 * MIB + 4101)
    world.run(120, check=False)
    assert world.reads[read].done_at is not None
    assert world.origin_bytes == size


def test_second_crowd_does_not_ask_the_origin() -> None:
    world = World(Setup(n_peers=4))
    ref = world.blob("b", 10 * MIB)
    world.read("p1", ref)
    world.run(5)
    before = world.origin.n_requests
    for name in ("p2", "p3"):
        world.read(name, ref)
    world.run(10)
    assert finished(world)
    assert world.origin.n_requests == before


def test_no_seed_then_one_of_the_readers_fetches() -> None:
    world = World(Setup(n_peers=3, seeds=0))
    ref = world.blob("b", 9 * MIB)
    for name in list(world.nodes):
        world.read(name, ref)
    world.run(10)
    assert finished(world)
    assert world.origin_bytes == 9 * MIB


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("at", [0.03, 0.2, 0.4])
def test_dead_lease_holder_is_replaced_and_comes_back(seed: int, at: float) -> None:
    world = World(Setup(n_peers=5, zones=2, seed=seed))
    size = 64 * MIB
    ref = world.blob("b", size)
    for name in ("p1", "p2", "p3", "p4"):
        world.read(name, ref)
    world.run(at)
    world.kill_peer("p0")
    world.run(at + 1.5)
    world.restart_peer("p0")
    world.run(at + 30)
    assert finished(world)
    # What the dead one had comes back with its disk; only what was in flight is read again.
    assert world.origin_bytes <= size + 4 * MIB
    world.check()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("at", [0.0, 0.025, 0.3])
def test_shard_dies_and_is_rebuilt_from_announcements(seed: int, at: float) -> None:
    world = World(Setup(n_peers=5, zones=2, seed=seed))
    size = 64 * MIB
    ref = world.blob("b", size)
    for name in ("p1", "p2", "p3", "p4"):
        world.read(name, ref)
    world.run(at)
    world.kill_shard(1.0)
    world.run(at + 30)
    assert finished(world)
    assert world.origin_bytes <= size + 2 * MIB


def test_read_across_the_death_of_a_shard_when_others_hold_the_blob_whole() -> None:
    """The new shard learns the size from a holder, after it was asked: the reader must get to know.

    Once its plan went out before any word on the size, and was thrown away for ever.
    """
    world = World(Setup(n_peers=4))
    ref = world.blob("b", 20 * MIB)
    world.read("p1", ref)
    world.run(3)
    world.kill_shard(0.5)
    read = world.read("p2", ref)
    world.run(10)
    assert world.reads[read].done_at is not None
    assert world.origin_bytes == 20 * MIB


def test_a_read_that_nothing_can_serve_ends_within_its_patience() -> None:
    world = World(Setup(n_peers=2))
    ref = world.blob("b", MIB)
    world.shards[0].die()
    read = world.read("p1", ref)
    world.run(40)
    assert world.reads[read].refusal is not None
    assert world.reads[read].refusal.status == 503


def test_child_dies_and_the_others_finish() -> None:
    world = World(Setup(n_peers=5))
    ref = world.blob("b", 64 * MIB)
    for name in ("p1", "p2", "p3", "p4"):
        world.read(name, ref)
    world.run(0.3)
    world.kill_peer("p2")
    world.run(20)
    assert all(log.done_at for n, log in world.reads.items() if log.node != "p2")
    assert world.origin_bytes == 64 * MIB


def test_liar_is_found_out_and_nobody_serves_its_bytes() -> None:
    world = World(Setup(n_peers=6, seed=3))
    ref = world.blob("b", 32 * MIB)
    world.read("p1", ref)
    world.run(5)
    world.nodes["p1"].lies = True
    for name in ("p2", "p3", "p4", "p5"):
        world.read(name, ref)
    world.run(20)
    assert finished(world)


def test_origin_with_wrong_bytes_is_found_out_and_not_asked_for_ever() -> None:
    """A reader sees the origin's own bytes, or an error; nothing of it is ever called complete."""
    world = World(Setup(n_peers=2))
    ref = world.blob("b", 64 * MIB)
    world.origin.corrupt.add(ref.id)
    world.read("p1", ref)
    world.run(60)
    assert not any(ref.digest in node.done for node in world.nodes.values())
    asked = world.origin_bytes
    assert asked <= 8 * 64 * MIB
    world.run(120)
    assert world.origin_bytes == asked


@pytest.mark.parametrize("wrong_size", [63 * MIB, 64 * MIB, 65 * MIB + 5])
def test_an_origin_that_is_well_again_is_believed_again(wrong_size: int) -> None:
    """Neither the bytes nor the size of its bad day are kept."""
    world = World(Setup(n_peers=3))
    ref = world.blob("b", 64 * MIB)
    world.origin.corrupt.add(ref.id)
    world.origin.sizes[ref.id] = wrong_size
    world.read("p1", ref)
    world.run(60)
    assert not any(ref.digest in node.done for node in world.nodes.values())
    world.origin.corrupt.clear()
    world.origin.sizes[ref.id] = 64 * MIB
    again = [world.read("p1", ref), world.read("p2", ref)]
    world.run(90)
    assert all(world.reads[read].done_at is not None for read in again)
    assert all(ref.digest in world.nodes[name].done for name in ("p1", "p2"))


def test_refusals_of_the_origin_reach_the_reader() -> None:
    world = World(Setup(n_peers=3))
    gone = world.blob("gone", MIB)
    world.origin.missing.add(gone.id)
    first = world.read("p1", gone)
    world.run(1)
    assert world.reads[first].refusal.status == 404
    private = world.blob("private", 2 * MIB)
    world.origin.private.add(private.id)
    without = world.read("p1", private)
    world.run(2)
    assert world.reads[without].refusal.status == 401
    with_rights = world.read("p2", private, sponsor=True)
    world.run(4)
    assert world.reads[with_rights].done_at is not None


@pytest.mark.parametrize("at", [0.1, 0.4, 0.8])
def test_peer_that_was_taken_for_dead_gets_on_within_a_heartbeat(at: float) -> None:
    """A call to a busy peer ran into its deadline: nothing will make that peer say hello."""
    world = World(Setup(n_peers=4))
    ref = world.blob("b", 64 * MIB)
    for name in list(world.nodes):
        world.read(name, ref)
    world.run(at)
    for name in list(world.nodes):
        info = world.nodes[name].info
        world.shards[0].hear_of(PeerGone(info.peer, info.incarnation))
    world.run(10)
    assert finished(world)
    assert world.origin_bytes <= 64 * MIB + 3 * MIB, "what was under way may come again"


def test_full_disk_is_a_passthrough_and_another_peer_fetches() -> None:
    world = World(Setup(n_peers=3))
    world.nodes["p0"].full = True
    world.nodes["p1"].full = True
    ref = world.blob("b", 4 * MIB)
    full, good = world.read("p1", ref), world.read("p2", ref)
    world.run(30)
    assert world.reads[full].passthrough
    assert world.reads[good].done_at is not None


def test_origin_down_is_our_503_within_a_bound() -> None:
    world = World(Setup(n_peers=2))
    world.origin.trouble = "down"
    ref = world.blob("b", MIB)
    read = world.read("p1", ref)
    world.run(3)
    assert world.reads[read].refusal.status == 503


def test_empty_blob_needs_no_origin() -> None:
    world = World(Setup(n_peers=2))
    ref = world.blob("", 0)
    read = world.read("p1", ref)
    world.run(1)
    assert world.reads[read].done_at is not None
    assert world.origin.n_requests == 0


def test_late_joiner_gets_everything_from_peers() -> None:
    world = World(Setup(n_peers=3))
    ref = world.blob("b", 20 * MIB)
    world.read("p1", ref)
    world.run(3)
    world.add_peer("p9", "z0", Role.PEER)
    world.run(3.1)
    read = world.read("p9", ref)
    world.run(10)
    assert world.reads[read].done_at is not None
    assert world.origin_bytes == 20 * MIB


@pytest.mark.parametrize("seed", range(3))
def test_seeds_know_which_copies_are_the_last(seed: int) -> None:
    world = World(Setup(n_peers=5, seeds=2, shards=2, seed=seed))
    refs = [world.blob(f"b{i}", 3 * MIB) for i in range(4)]
    for ref in refs:
        world.read("p0", ref)
    world.run(5)
    world.kill_peer("p1")
    world.read("p4", refs[0])
    world.run(8)
    world.restart_peer("p1")
    world.kill_shard(down_s=1.0)
    world.run(20)
    assert finished(world)
    n_last = 0
    for node in world.nodes.values():
        others = {d for n in world.nodes.values() if n is not node for d in n.done}
        alone = set(node.done) - others if node.info.role is Role.SEED else set()
        assert {digest for digest in node.done if digest in node.machine.last_copies} == alone
        n_last += len(alone)
    assert n_last > 0
