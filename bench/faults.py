"""What does each thing that can break cost a crowd: the last finish, and the longest hold-up?

Sketch: four nodes pull 64 MiB from a registry that sends 8 MiB/s, 8 s without a fault, and nobody
waits for longer than a piece takes, 0.1 s, and the first one. A process that dies is back in 2 to
3 s, so expect hold-ups of that, and of an ill registry as long as it was ill (3 s) and a second.
The comparator is the same crowd without a fault, in the same run.

    python bench/faults.py --live                       # a real cluster on this machine
    python bench/faults.py --only 'a zone is cut off'   # the simulator, in virtual time

The two engines are never in one run. Live, bytes from the registry are counted by the registry,
and every reader compares every byte. In the simulator, which has no gateways, a read fails when its
peer dies, and a wrong byte or another broken invariant ends the run with an error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "cluster")]

from fault_crowd import FAULTS, MIB, ORIGIN_BYTES_PER_S, FaultLab
from report import Report

from passel.sim.faults import break_world, fault_nodes
from passel.sim.words import parse_fault
from passel.sim.world import Setup, World

NOTHING = "nothing"
#: What the simulator knows, in its own words. p0 and p1 are seeds; zones alternate.
SIMULATED: dict[str, tuple[str, ...]] = {
    NOTHING: (),
    "two crowds": (),
    "a peer dies": ("crash p2 at {t} for 2500 ms",),
    "a seed dies": ("crash p1 at {t} for 2500 ms",),
    "the lease-holder dies": ("crash seed at {t} for 2500 ms",),
    "a shard dies": ("crash shard at {t} for 2 s",),
    "a peer is slow": ("slow p2 to 0.01",),
    "the lease-holder is slow": ("slow p0 to 0.01 at {t}",),
    "a peer serves wrong bytes": ("lie p2",),
    "a zone is cut off": ("partition z1 at {t} for 3 s",),
    "the origin says 503": ("origin down at {t} for 3 s",),
    "the origin hangs": ("origin hang at {t} for 3 s",),
    "the origin is slow": ("origin slow to 0.1 at {t} for 3 s",),
}
LINK_BYTES_PER_S = 32.0 * MIB
#: Who is not done by then is not waited for; live it is sooner.
PATIENCE_S = 600.0
RETRY_S = 0.1


@dataclass
class Outcome:
    """What one fault did, by either engine."""

    last_finish_s: float
    #: Without the node that the fault is about.
    others_finish_s: float
    held_up_s: float
    held_up_on: str
    origin_share: float
    n_wrong: int
    failures: list[str]
    #: Bytes between zones by the least that is possible; live nobody counts them from outside.
    cross_zone_share: float | None = None


class Simulated:
    """Crowds in virtual time, with the same machines."""

    def __init__(self, n_nodes: int, size: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._n_nodes, self._size, self._seed = n_nodes, size, seed

    def crowd(self, name: str) -> Outcome:
        world = World(
            Setup(
                n_peers=self._n_nodes,
                zones=2,
                seeds=2,
                seed=self._seed,
                rate=LINK_BYTES_PER_S,
                origin_rate=ORIGIN_BYTES_PER_S,
                call_s=0.001,
                origin_latency_s=0.005,
            )
        )
        at_s = self._rng.uniform(0.2, 0.4) * self._size / ORIGIN_BYTES_PER_S
        victims: set[str] = set()
        for text in SIMULATED[name]:
            fault = parse_fault(text.format(t=f"{at_s * 1000:.0f} ms"))
            nodes = fault_nodes(fault, self._n_nodes, self._rng)
            break_world(world, fault, nodes)
            victims |= {f"p{node}" for node in nodes.tolist()}
        n_blobs = 2 if name == "two crowds" else 1
        readers = [
            SimulatedReader(world, node, f"blob {i}", self._size)
            for i in range(n_blobs)
            for node in world.nodes
        ]
        while not all(reader.is_done for reader in readers) and world.now < PATIENCE_S:
            world.clock.step()
            world.check()
            for reader in readers:
                reader.look()
        held_up_s, on = max((reader.held_up_s, reader.node) for reader in readers)
        return Outcome(
            max(reader.finish_s for reader in readers),
            max(reader.finish_s for reader in readers if reader.node not in victims),
            held_up_s,
            on,
            world.origin_bytes / (self._size * n_blobs),
            0,
            [text for reader in readers for text in reader.failures],
            world.cross_zone_bytes / (self._size * n_blobs),
        )


class SimulatedReader:
    """Reads all of a blob on one node; goes on where a read failed."""

    def __init__(self, world: World, node: str, blob: str, size: int) -> None:
        self._world, self.node, self._size = world, node, size
        self._ref = world.blob(blob, size)
        self._at = 0
        self.moved_at = self.held_up_s = 0.0
        self.failures: list[str] = []
        self._ask()

    @property
    def is_done(self) -> bool:
        return self._at == self._size

    @property
    def finish_s(self) -> float:
        """Infinite if it did not finish."""
        return self.moved_at if self.is_done else float("inf")

    def _ask(self) -> None:
        self._log = self._world.reads[self._world.read(self.node, self._ref, self._at)]
        self._is_asking = True

    def look(self) -> None:
        """After every event of the world."""
        log, now = self._log, self._world.now
        upto = self._size if log.done_at is not None else min(log.upto, self._size)
        if upto > self._at:
            self.held_up_s = max(self.held_up_s, now - self.moved_at)
            self._at, self.moved_at = upto, now
        if self._is_asking and log.is_over and not self.is_done:
            self._is_asking = False
            self.failures.append(f"{self.node} at {now:.2f} s: {log.refusal}")
            self._world.clock.after(RETRY_S, self._ask)


class Live:
    """Crowds on a real cluster."""

    def __init__(self, n_nodes: int, size: int, seed: int) -> None:
        # Ray would put its workers behind everything else on the machine; the registry is not.
        os.environ.setdefault("RAY_worker_niceness", "0")
        self._folder = Path(tempfile.mkdtemp(prefix="pflt"))
        self._lab = FaultLab(self._folder / "lab", n_nodes, size, seed)

    def __enter__(self) -> Live:
        self._lab.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._lab.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def crowd(self, name: str) -> Outcome:
        # Ray prints of processes that died; lines of ours are JSON.
        with redirect_stdout(sys.stderr):
            crowd = self._lab.crowd(name)
        return Outcome(
            crowd.last_finish_s,
            crowd.others_finish_s,
            *crowd.held_up,
            crowd.origin_share,
            crowd.n_wrong,
            crowd.failures,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--live", action="store_true", help="a real cluster")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    known = tuple(FAULTS if options.live else SIMULATED)
    names = options.only or known
    if unknown := set(names) - set(known):
        parser.error(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster is taken down then too
    arguments = options.nodes, options.mib * MIB, options.seed
    if options.live:
        with Live(*arguments) as live:
            report(live, names, options)
    else:
        report(Simulated(*arguments), names, options)


def report(engine: Live | Simulated, names: list[str], options: argparse.Namespace) -> None:
    lines = Report("what does each fault cost a crowd", seed=options.seed)
    parameters: dict[str, Any] = {
        "engine": "live" if options.live else "simulated",
        "nodes": options.nodes,
        "blob_mib": options.mib,
        "origin_mib_per_s": ORIGIN_BYTES_PER_S / MIB,
    }
    without = engine.crowd(NOTHING)
    for name in names:
        outcome = without if name == NOTHING else engine.crowd(name)
        lines.row(
            name,
            "s to the last finish",
            [min(outcome.last_finish_s, PATIENCE_S)],
            parameters=parameters,
            bound=without.last_finish_s,
            all_finished=outcome.last_finish_s < PATIENCE_S,
            others_finish_s=min(round(outcome.others_finish_s, 3), PATIENCE_S),
            held_up_s=round(outcome.held_up_s, 3),
            held_up_on=outcome.held_up_on,
            without_fault_held_up_s=round(without.held_up_s, 3),
            origin_share=round(outcome.origin_share, 4),
            wrong_bytes=outcome.n_wrong,
            failed_reads=len(outcome.failures),
            failures=outcome.failures[:10],
            cross_zone_share=outcome.cross_zone_share,
        )


if __name__ == "__main__":
    main()
