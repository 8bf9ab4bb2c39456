"""The simulator's own parts: clock, links, words, arrivals, bounds, policies, rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from passel.config import build, load_as
from passel.core.graph.bounds import remaining_bound, rollout_bound, rounds_bound
from passel.errors import ConfigError, InputError
from passel.sim.arrivals import start_times
from passel.sim.clock import Clock
from passel.sim.network import Network
from passel.sim.policies import POLICIES
from passel.sim.rounds import Event, Rounds, Swarm
from passel.sim.scenario import Scenario
from passel.sim.sizing import size_up
from passel.sim.words import parse_arrival, parse_fault, parse_rate, rate_text

PROFILES = sorted((Path(__file__).parents[2] / "configs" / "sim").glob("*.yaml"))
MIB = 1 << 20


def test_things_happen_in_order_of_time_and_then_of_asking() -> None:
    clock, seen = Clock(), []
    for when, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        clock.at(when, seen.append, name)
    while clock.next_at() < float("inf"):
        clock.step()
    assert (seen, clock.now) == (["a", "b", "c"], 2.0)


def finish_times(quantum_s: float, *transfers: tuple[float, tuple[str, ...], float]) -> list[float]:
    """Transfers (begin, links, bytes) over links a (100 B/s), b (100 B/s), c (30 B/s)."""
    clock = Clock()
    network = Network(clock, quantum_s)
    links = {name: network.add_link(rate) for name, rate in (("a", 100), ("b", 100), ("c", 30))}
    ends = [float("nan")] * len(transfers)

    def over(is_whole: bool, i: int) -> float:
        assert is_whole
        ends[i] = clock.now
        return 0.0

    for i, (at, names, n_bytes) in enumerate(transfers):
        route = tuple(links[name] for name in names)
        clock.at(at, network.begin, route, n_bytes, 1e9, over, i)
    while clock.next_at() < float("inf"):
        clock.step()
    return ends


def test_one_transfer_has_its_tightest_link_to_itself() -> None:
    assert finish_times(0.0, (0.0, ("a", "b"), 100.0)) == [pytest.approx(1.0)]
    assert finish_times(0.0, (0.0, ("a", "c"), 60.0)) == [pytest.approx(2.0)]


def test_who_is_held_back_elsewhere_leaves_the_rest_to_others() -> None:
    # On link a: one transfer gets 30 of link c, the other one the remaining 70.
    ends = finish_times(0.0, (0.0, ("a", "c"), 60.0), (0.0, ("a", "b"), 140.0))
    assert ends == [pytest.approx(2.0), pytest.approx(2.0)]


def test_rates_follow_those_who_come_and_go() -> None:
    ends = finish_times(0.0, (0.0, ("a",), 100.0), (0.5, ("a",), 25.0))
    # 50 alone, then 25 + 25 side by side until 1.0, then 25 alone.
    assert ends == [pytest.approx(1.25), pytest.approx(1.0)]


def test_a_quantum_costs_no_more_than_itself_per_change() -> None:
    transfers = [(i * 0.013, ("a", "b"), 40.0) for i in range(10)]
    exact, coarse = finish_times(0.0, *transfers), finish_times(0.05, *transfers)
    # Ten beginnings and as many ends, each noticed late by half a quantum on average.
    assert max(coarse) == pytest.approx(max(exact), abs=0.05 * 20)
    assert max(coarse) >= max(exact) - 1e-9, "links cannot carry more than they do"


def test_a_transfer_that_stands_still_is_given_up_at_its_deadline() -> None:
    clock = Clock()
    network = Network(clock)
    link, seen = network.add_link(10.0), []
    network.begin((link,), 100.0, 3.0, lambda is_whole: seen.append((clock.now, is_whole)))
    network.set_capacity(link, 0.0)
    while clock.next_at() < float("inf"):
        clock.step()
    assert seen == [(3.0, False)]


@pytest.mark.parametrize("quantum_s", [0.0, 0.1])
def test_a_stream_that_goes_on_does_not_make_others_late(quantum_s: float) -> None:
    clock = Clock()
    network = Network(clock, quantum_s)
    more, ends = [10.0] * 9, []

    def piece_came(_: bool) -> float:
        return more.pop() if more else 0.0

    def other_came(_: bool) -> None:
        ends.append(clock.now)

    network.begin((network.add_link(10.0),), 10.0, 60.0, piece_came)
    network.begin((network.add_link(10.0),), 25.0, 60.0, other_came)
    while clock.next_at() < 60:
        clock.step()
    assert ends == [pytest.approx(2.5, abs=quantum_s + 1e-9)]


def test_a_cancelled_transfer_says_what_did_not_come_and_never_ends() -> None:
    clock = Clock()
    network = Network(clock)
    link = network.add_link(10.0)
    transfer = network.begin((link,), 100.0, 99.0, pytest.fail)
    clock.at(4.0, lambda: None)
    while clock.now < 4.0:
        clock.step()
    assert network.cancel(transfer) == pytest.approx(60.0)
    while clock.next_at() < float("inf"):
        clock.step()
    assert network.n_active == 0


@pytest.mark.parametrize(
    ("text", "rate"),
    [("1 Gbit/s", 125e6), ("8kbit/s", 1000.0), ("100 MiB/s", 100 * MIB), ("0.5 Tbit/s", 62.5e9)],
)
def test_rates_carry_their_unit(text: str, rate: float) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(rate_text(rate)) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize(
    "text", ["", "5", "1 GB/s", "0 Mbit/s", "-1 Gbit/s", "1 Gbit", "nan bit/s"]
)
def test_what_is_no_rate_is_told_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_rate(text)


def test_arrivals_and_faults_are_read_as_they_are_written() -> None:
    assert parse_arrival("waves 5 every 2 s").every_s == 2.0
    assert parse_arrival("poisson 2.5/s").rate == 2.5
    fault = parse_fault("crash 10% at 2 s for 500 ms")
    assert (fault.kind, fault.share, fault.at_s, fault.for_s) == ("crash", 0.1, 2.0, 0.5)
    assert parse_fault("origin slow to 0.1 at 1 s for 3 s").kind == "slow origin"


@pytest.mark.parametrize(
    "text",
    [
        "melt p3", "crash", "slow p3", "slow p3 to 0", "crash 0%", "crash 200%", "partition z1",
        "origin down", "lie z1", "crash shard at 1 s", "crash p3 at 1", "slow p3 to 2",
    ],
)  # fmt: skip
def test_what_is_no_fault_is_told_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_fault(text)


def test_start_times_of_each_kind() -> None:
    rng = np.random.default_rng(0)
    assert not start_times(parse_arrival("at-once"), 5, rng).any()
    waves = start_times(parse_arrival("waves 2 every 3 s"), 5, rng)
    assert waves.tolist() == [0, 0, 3, 3, 6]
    rolling = start_times(parse_arrival("rolling 2"), 4, rng)
    assert np.isfinite(rolling).tolist() == [True, True, False, False]
    poisson = start_times(parse_arrival("poisson 100/s"), 1000, rng)
    assert poisson.min() == 0
    assert poisson.max() == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nodes": 0}, "nodes: expected 1 to 100000, got 0"),
        ({"nodes": 5, "zones": 6}, "zones: expected at most nodes"),
        ({"trunk": "0 bit/s"}, "trunk: expected"),
        ({"blob": "0 B"}, "blobs[0]: expected more than 0"),
        ({"policy": "best"}, "policy: expected one of passel"),
        ({"faults": ["partition z9 at 1 s for 1 s"]}, "faults[0]: expected a zone below z1"),
        ({"nodes": 100_000, "blob": "1 GiB", "faults": ["lie p3"]}, "600000 pieces"),
        ({"policy": "direct", "readers": {}}, "is a model without messages"),
        ({"nodse": 3}, "did you mean nodes"),
        ({"piece": "2 MiB"}, "piece: expected none"),
        ({"bulk": False}, "nobody wants anything"),
    ],
)
def test_an_impossible_scenario_is_one_sentence(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(Scenario, given)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_can_be_read(path: Path) -> None:
    assert load_as(Scenario, path).nodes > 1


def test_the_bound_names_the_term_that_binds() -> None:
    up = np.full(10, 100.0)
    quick = {"seed_up": 100.0, "origin": 1000.0}
    assert rollout_bound(1000.0, up, up, **quick).binding == "seed uplink"
    assert rollout_bound(1000.0, up, up, seed_up=1e9, origin=10.0).binding == "origin"
    trunk = rollout_bound(1000.0, up, up, trunk=50.0, n_zones=2, **quick)
    assert (trunk.binding, trunk.fluid_s) == ("trunk", 20.0)
    assert rollout_bound(1000.0, up, up / 10, **quick).binding == "slowest downlink"
    weak = rollout_bound(1000.0, up / 20, up, **quick)
    assert (weak.binding, weak.fluid_s) == ("all uplinks", pytest.approx(10 * 1000 / 150))
    late = rollout_bound(1000.0, up, up, arrivals=np.arange(10.0), **quick)
    assert (late.binding, late.fluid_s) == ("last arrival", 19.0)


def test_whole_pieces_cost_one_piece_time_per_doubling() -> None:
    up = np.full(1023, 1.0)
    bound = rollout_bound(64.0, up, up, seed_up=1.0, piece_size=1.0)
    assert bound.seconds == rounds_bound(1023, 64)


def test_what_only_one_holds_bounds_the_rest() -> None:
    have = np.array([[0b11], [0b01], [0b00]], dtype=np.uint64)
    wants = np.full((3, 1), 0b11, dtype=np.uint64)
    up, down = np.array([1.0, 100.0, 100.0]), np.full(3, 100.0)
    bound = remaining_bound(have, wants, np.array([10.0, 10.0]), up, down)
    assert (bound.binding, bound.fluid_s) == ("rare piece", 10.0)


def a_swarm(n_peers: int = 64, n_pieces: int = 32, n_zones: int = 1, **more: object) -> Swarm:
    same = np.ones(n_peers)
    zone = (np.arange(n_peers) % n_zones).astype(np.int32)
    rack = np.zeros(n_peers, np.int32)
    return Swarm(n_pieces, same, same, zone, rack, np.zeros(n_peers), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "direct"])
def test_every_policy_brings_everything_to_everybody_within_its_links(name: str) -> None:
    outcome = Rounds(a_swarm(n_zones=2), POLICIES[name]()).run()
    assert np.isfinite(outcome.ends).all()
    assert outcome.n_origin == 32
    assert outcome.rounds >= rounds_bound(63, 32), "faster than the bound cannot be"
    passel = Rounds(a_swarm(n_zones=2)).run()
    assert passel.rounds <= outcome.rounds
    assert passel.n_cross <= outcome.n_cross


def test_without_peers_the_origin_sends_everything_to_everybody() -> None:
    outcome = Rounds(a_swarm(16, 8), POLICIES["direct"]()).run()
    assert outcome.n_origin == 16 * 8
    assert outcome.rounds == 15 * 8


def test_a_trunk_carries_no_more_than_it_can() -> None:
    wide = Rounds(a_swarm(n_zones=2)).run()
    narrow = Rounds(a_swarm(n_zones=2, trunk=0.25)).run()
    assert narrow.n_cross == wide.n_cross == 32
    assert narrow.rounds >= 32 / 0.25


def test_crashed_peers_and_a_crashed_source_do_not_stop_the_rest() -> None:
    def crash(rounds: Rounds) -> None:
        rounds.crash(np.array([0, 5, 6]), with_disk=True)

    outcome = Rounds(a_swarm(n_zones=2), events=(Event(10.0, crash),)).run()
    alive = np.setdiff1d(np.arange(64), [0, 5, 6])
    assert np.isfinite(outcome.ends[alive]).all()
    assert np.isinf(outcome.ends[[5, 6]]).all()
    assert outcome.n_origin <= 2 * 32


def test_fast_links_are_used_as_fast_links() -> None:
    fast = np.full(64, 4.0)
    base = a_swarm()
    swarm = Swarm(128, fast, fast, base.zone, base.rack, base.joins, origin=4.0)
    assert Rounds(swarm).run().rounds <= 1.2 * (128 / 4 + 6)


def test_a_deadline_tells_seeds_and_trunk() -> None:
    scenario = build(Scenario, {"nodes": 24, "zones": 3, "blob": "32 MiB"})
    need = size_up(scenario, 1.0)
    assert need.trunk is not None
    assert need.report.makespan_s <= 1.0
    assert need.trunk >= 32 * MIB / 1.0
    with pytest.raises(InputError, match="origin takes that long"):
        size_up(scenario, 0.1)
