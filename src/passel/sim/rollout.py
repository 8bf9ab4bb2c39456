"""Carry out a scenario with one of the two engines, and report."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from passel.sim import messages, rounds
from passel.sim.arrivals import start_times
from passel.sim.faults import round_events
from passel.sim.policies import POLICIES, Passel
from passel.sim.report import Progress, Report, bound_of
from passel.sim.scenario import Scenario
from passel.telemetry.trace import Recorder


def simulate(
    scenario: Scenario, recorder: Recorder | None = None, progress: Progress | None = None
) -> Report:
    """One rollout. The same scenario gives the same report, and the same trace byte for byte.

    Only the message-exact engine writes a trace.
    """
    rng = np.random.default_rng([scenario.seed, 7])
    begins = start_times(scenario.arrival, scenario.nodes, rng)
    with _measured() as cost, _without_garbage_collection():
        if scenario.uses_messages:
            report = messages.run(scenario, begins, recorder, progress, rng)
        else:
            report = _run_rounds(scenario, begins, progress, rng)
    if report.n_decisions:
        cost["us_per_decision"] = cost["processor_s"] / report.n_decisions * 1e6
    report.cost.update(cost)
    return report


@contextmanager
def _measured() -> Iterator[dict[str, float]]:
    cost: dict[str, float] = {}
    wall, processor = time.perf_counter(), time.process_time()
    yield cost
    cost["wall_s"] = time.perf_counter() - wall
    cost["processor_s"] = time.process_time() - processor
    cost["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A world is millions of objects that live to its end: looking through them is for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# ------------------------------------------------------------------------------------- rounds


def _run_rounds(
    scenario: Scenario,
    begins: NDArray[np.float64],
    progress: Progress | None,
    rng: np.random.Generator,
) -> Report:
    link = scenario.link
    round_s = scenario.piece_size / link
    n_nodes = scenario.nodes
    down = (link if scenario.down is None else scenario.down) / link
    number = np.arange(n_nodes)
    swarm = rounds.Swarm(
        n_pieces=scenario.n_pieces,
        up=np.ones(n_nodes),
        down=np.full(n_nodes, down),
        zone=(number % scenario.zones).astype(np.int32),
        rack=(number // scenario.zones % scenario.racks).astype(np.int32),
        joins=np.ceil(begins / round_s),
        origin=scenario.origin / link,
        trunk=None if scenario.trunk is None else scenario.trunk / link,
        seed=scenario.seed,
    )
    speeds = np.ones(n_nodes)
    events: list[rounds.Event] = []
    for fault in scenario.faults:
        events += round_events(fault, round_s, n_nodes, speeds, rng)
    policy = Passel() if scenario.policy == "passel" else POLICIES[scenario.policy]()
    running = rounds.Rounds(swarm, policy, tuple(events))

    def each_round(now: rounds.Rounds) -> None:
        n_ended = int(np.isfinite(now.outcome.ends).sum())
        if scenario.arrival.kind == "rolling":
            n_begun = int(np.isfinite(now.joins).sum())
            n_more = min(n_ended + scenario.arrival.size, n_nodes) - n_begun
            if n_more > 0:
                now.begin_next(number[n_begun : n_begun + n_more])
        if progress is not None:
            progress(n_ended, now.now * round_s)

    outcome = running.run(each_round, int(scenario.patience.total_seconds() / round_s))
    begun = np.where(np.isfinite(begins), begins, running.joins * round_s)
    # The last piece is shorter: bytes are told from the blobs' sizes, not from whole pieces.
    per_piece = scenario.size / scenario.n_pieces
    return Report(
        scenario,
        "rounds",
        begun,
        outcome.ends * round_s,
        bound_of(scenario, begun, speeds),
        origin_bytes=round(outcome.n_origin * per_piece),
        cross_zone_bytes=round(outcome.n_cross * per_piece),
        n_decisions=outcome.n_edges,
        n_events=outcome.rounds,
    )
