"""A scenario in a world of real machines, message by message."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from passel.ids import BlobRef
from passel.sim.faults import break_world, fault_nodes
from passel.sim.node import ReadLog
from passel.sim.report import Progress, Report, bound_of
from passel.sim.scenario import Scenario
from passel.sim.world import Setup, World
from passel.telemetry.trace import Recorder

#: Up to so many nodes links are shared anew at every event, beyond it ten times in a piece's time.
EXACT_NODES_MAX = 64
QUANTA_PER_PIECE = 10
#: A client whose read failed asks again after so long, seconds.
RETRY_S = 1.0


def run(
    scenario: Scenario,
    begins: NDArray[np.float64],
    recorder: Recorder | None,
    progress: Progress | None,
    rng: np.random.Generator,
) -> Report:
    """Nodes begin at `begins`; where that is infinite, when one before them is done."""
    world = World(setup_of(scenario), recorder)
    crowd = _Crowd(world, scenario, begins)
    speeds = np.ones(scenario.nodes)
    for fault in scenario.faults:
        nodes = fault_nodes(fault, scenario.nodes, rng)
        if fault.kind == "slow" and fault.for_s is None:
            speeds[nodes] *= fault.factor
        break_world(world, fault, nodes)
    crowd.begin(rng)

    def tick() -> None:
        if progress is not None:
            progress(crowd.n_ended, world.now)

    until = scenario.patience.total_seconds()
    world.run_reads(until, tick)
    world.check()
    return Report(
        scenario,
        "messages",
        crowd.begins,
        crowd.ends,
        bound_of(scenario, crowd.begins, speeds),
        origin_bytes=world.origin_bytes,
        cross_zone_bytes=world.cross_zone_bytes,
        wasted_bytes=world.wasted_bytes,
        n_decisions=sum(shard.machine.n_edges for shard in world.shards),
        n_events=world.clock.n_events,
        failed_reads=crowd.n_failed,
        waits=np.array(crowd.waits),
    )


def setup_of(scenario: Scenario) -> Setup:
    """A scenario's numbers in base units."""
    piece_s = scenario.piece_size / scenario.link
    is_exact = scenario.nodes <= EXACT_NODES_MAX
    return Setup(
        n_peers=scenario.nodes,
        zones=scenario.zones,
        racks=scenario.racks,
        seeds=scenario.seeds,
        shards=scenario.shards,
        seed=scenario.seed,
        rate=scenario.link,
        down_rate=scenario.down,
        origin_rate=scenario.origin,
        trunk_rate=scenario.trunk,
        rack_rate=scenario.rack_trunk,
        disk_rate=scenario.disk,
        latency_s=scenario.latency.total_seconds(),
        zone_latency_s=scenario.zone_latency.total_seconds(),
        jitter=scenario.jitter,
        origin_latency_s=scenario.origin_latency.total_seconds(),
        call_s=scenario.call.total_seconds(),
        quantum_s=0.0 if is_exact else piece_s / QUANTA_PER_PIECE,
    )


class _Crowd:
    """The clients of all nodes: when they begin, what they read, when they are done."""

    def __init__(self, world: World, scenario: Scenario, begins: NDArray[np.float64]) -> None:
        self.world = world
        self.scenario = scenario
        self.begins = begins.copy()
        self.ends = np.full(begins.size, np.inf)
        self.waits: list[float] = []
        self.n_ended = 0
        self.n_failed = 0
        self._blobs = [world.blob(f"blob {i}", int(b)) for i, b in enumerate(scenario.blobs)]
        self._left = [0] * begins.size
        self._next = int(np.isfinite(begins).sum())
        self._places = np.empty((0, 2), dtype=np.int64)
        self._reading = np.zeros(begins.size, dtype=np.bool_)

    def begin(self, rng: np.random.Generator) -> None:
        readers = self.scenario.readers
        if readers is not None:
            n_readers = max(1, round(readers.share * self.begins.size))
            self._reading[rng.permutation(self.begins.size)[:n_readers]] = True
            self._places = self._draw_places(rng)
        # A crowd whose last member has not begun is not over.
        self.world.n_open_reads += 1
        last = 0.0
        for node, at in enumerate(self.begins.tolist()):
            if np.isfinite(at):
                self.world.clock.at(at, self._start, node)
                last = max(last, at)
        self.world.clock.at(last, self._all_begun)

    def _all_begun(self) -> None:
        self.world.n_open_reads -= 1

    def _draw_places(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """(n_reads, 2): blob and start of each read, in an order that all nodes share."""
        readers = self.scenario.readers
        assert readers is not None
        step = int(readers.size)
        sizes = np.array([int(blob) for blob in self.scenario.blobs])
        blobs = rng.choice(sizes.size, readers.reads, p=sizes / sizes.sum())
        n_places = np.maximum(sizes // step, 1)
        n_touched = np.maximum((n_places * readers.touched).astype(np.int64), 1)
        touched = [rng.permutation(n)[:k] for n, k in zip(n_places, n_touched, strict=True)]
        starts = [int(rng.choice(touched[blob])) * step for blob in blobs]
        return np.stack([blobs, np.array(starts)], axis=1)

    def _start(self, node: int) -> None:
        self.begins[node] = self.world.now
        work: list[Callable[[], None]] = []
        if self.scenario.bulk:
            work += [partial(self._pull, node, ref) for ref in self._blobs]
        if self._reading[node]:
            work.append(partial(self._read, node, 0))
        self._left[node] = len(work)
        for each in work:
            each()
        if not work:
            self._done(node)

    def _pull(self, node: int, ref: BlobRef) -> None:
        def over(log: ReadLog) -> None:
            if log.done_at is not None:
                self._part_done(node)
            else:
                self._again(log, self._pull, node, ref)

        self.world.read(f"p{node}", ref, then=over)

    def _read(self, node: int, number: int) -> None:
        readers = self.scenario.readers
        assert readers is not None
        if number >= readers.reads:
            self._part_done(node)
            return
        blob, start = self._places[number].tolist()
        ref = self._blobs[blob]
        stop = min(start + int(readers.size), self.world.origin.sizes[ref.id])
        think_s = readers.think.total_seconds()

        def over(log: ReadLog) -> None:
            if log.done_at is not None:
                self.waits.append(log.done_at - log.started_at)
                self._later(think_s, self._read, node, number + 1)
            else:
                self._again(log, self._read, node, number)

        self.world.read(f"p{node}", ref, start, stop, then=over)

    def _again(self, log: ReadLog, what: Callable[..., None], *args: object) -> None:
        """A client tries again, unless the origin itself said no."""
        self.n_failed += 1
        if log.refusal is not None and 400 <= log.refusal.status < 500:
            return
        self._later(RETRY_S, what, *args)

    def _later(self, delay_s: float, what: Callable[..., None], *args: object) -> None:
        """A pause of a client, which is not over in it."""
        self.world.n_open_reads += 1

        def go_on() -> None:
            self.world.n_open_reads -= 1
            what(*args)

        self.world.clock.after(delay_s, go_on)

    def _part_done(self, node: int) -> None:
        self._left[node] -= 1
        if self._left[node] == 0:
            self._done(node)

    def _done(self, node: int) -> None:
        self.ends[node] = self.world.now
        self.n_ended += 1
        if self._next < self.ends.size:
            following, self._next = self._next, self._next + 1
            self._start(following)
