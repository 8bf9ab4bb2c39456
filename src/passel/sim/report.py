"""What became of a rollout: times and bytes, and their bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passel.core.graph.bounds import Bound, rollout_bound
from passel.sim.scenario import Scenario

Floats = NDArray[np.float64]
#: Called now and then with (nodes that ended, virtual seconds).
Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Report:
    """Seconds and bytes. `begins` and `ends` are per node, `ends` infinite for who never ended.

    Attributes
    ----------
    cross_zone_min : int
        What must cross borders of zones: the blobs once into every zone but one.
    failed_reads : int
        Reads that ended in a refusal.
    waits : (n_reads,) float64
        How long each on-demand reader's read took.
    cost : dict
        What the simulation itself took: wall and processor seconds, microseconds per decision.
    """

    scenario: Scenario
    engine: str
    begins: Floats
    ends: Floats
    bound: Bound
    origin_bytes: int
    cross_zone_bytes: int
    wasted_bytes: int = 0
    n_decisions: int = 0
    n_events: int = 0
    failed_reads: int = 0
    waits: Floats = field(default_factory=lambda: np.empty(0))
    cost: dict[str, float] = field(default_factory=dict)

    @property
    def durations(self) -> Floats:
        """Per node that ended."""
        ended = np.isfinite(self.ends)
        return np.asarray(self.ends[ended] - self.begins[ended])

    @property
    def makespan_s(self) -> float:
        """From the first beginning to the last end; infinite if somebody never ended."""
        return float(self.ends.max(initial=0.0))

    @property
    def ratio(self) -> float:
        """The makespan by the bound for whole pieces."""
        return self.makespan_s / self.bound.seconds if self.bound.seconds else 1.0

    @property
    def cross_zone_min(self) -> int:
        return self.scenario.size * (self.scenario.zones - 1)

    def facts(self) -> dict[str, Any]:
        """For programs. The same scenario gives the same facts, except for `cost`."""
        durations = self.durations
        quantiles = {}
        for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
            quantiles[name] = float(np.quantile(durations, q)) if durations.size else None
        waits = {}
        for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            waits[name] = float(np.quantile(self.waits, q)) if self.waits.size else None
        finished = bool(np.isfinite(self.ends).all())
        return {
            "engine": self.engine,
            "policy": self.scenario.policy,
            "nodes": int(self.ends.size),
            "finished": int(np.isfinite(self.ends).sum()),
            "makespan_s": self.makespan_s if finished else None,
            "node_s": quantiles,
            "read_s": waits,
            "bound": asdict(self.bound) | {"seconds": self.bound.seconds},
            "ratio": self.ratio if finished else None,
            "bytes": {
                "blobs": self.scenario.size,
                "origin": self.origin_bytes,
                "cross_zone": self.cross_zone_bytes,
                "cross_zone_min": self.cross_zone_min,
                "wasted": self.wasted_bytes,
            },
            "decisions": self.n_decisions,
            "failed_reads": self.failed_reads,
            "cost": self.cost,
        }


def bound_of(scenario: Scenario, begins: Floats, speeds: Floats) -> Bound:
    """The physical bound of a scenario; `speeds` are factors of each node's links."""
    up = speeds * scenario.link
    down = speeds * (scenario.link if scenario.down is None else scenario.down)
    # One lease per blob: only so many seeds fetch as there are blobs.
    n_sources = max(1, min(scenario.seeds, len(scenario.blobs)))
    others = slice(n_sources, None)
    starts = np.where(np.isfinite(begins), begins, 0.0)
    return rollout_bound(
        scenario.size,
        up[others],
        down[others],
        seed_up=float(up[:n_sources].sum()),
        piece_size=scenario.piece_size,
        origin=scenario.origin,
        trunk=scenario.trunk,
        n_zones=scenario.zones,
        disk=scenario.disk,
        arrivals=starts[others],
    )
