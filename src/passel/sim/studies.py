"""Families of rollouts, for notebooks and benchmarks: the same question at many sizes.

Everything here is arrays and reports; nothing draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from passel.config import build
from passel.sim.report import Report
from passel.sim.rollout import simulate
from passel.sim.scenario import Scenario

Floats = NDArray[np.float64]


def scenario(**given: object) -> Scenario:
    """A scenario from keywords as a profile has them. Raises ConfigError with one sentence each."""
    return build(Scenario, dict(given))


def variations(base: Scenario, **keys: Sequence[object]) -> list[Scenario]:
    """The base with each value of one key: ``variations(base, nodes=[10, 100])``."""
    (key, values) = next(iter(keys.items()))
    given = base.model_dump(mode="json", exclude_defaults=True)
    return [build(Scenario, given | {key: value}) for value in values]


def by_policy(base: Scenario, policies: Iterable[str]) -> dict[str, Report]:
    """The same rollout under several policies, all in the round engine: like with like."""
    given = base.model_dump(mode="json", exclude_defaults=True) | {"engine": "rounds"}
    return {name: simulate(build(Scenario, given | {"policy": name})) for name in policies}


def wave(report: Report) -> tuple[Floats, Floats]:
    """(seconds, share of all nodes that are done by then), one step per node."""
    ends = np.sort(report.ends[np.isfinite(report.ends)])
    return ends, np.arange(1, ends.size + 1) / max(report.ends.size, 1)


def table(reports: Mapping[str, Report]) -> list[dict[str, object]]:
    """One row per report: name, times by the bound, bytes by their minimum, cost of a decision."""
    rows: list[dict[str, object]] = []
    for name, report in reports.items():
        minimum = report.cross_zone_min
        rows.append(
            {
                "name": name,
                "nodes": int(report.ends.size),
                "makespan_s": report.makespan_s,
                "bound_s": report.bound.seconds,
                "binding": report.bound.binding,
                "ratio": report.ratio,
                "origin": report.origin_bytes / report.scenario.size,
                "cross_zone": report.cross_zone_bytes / minimum if minimum else 0.0,
                "us_per_decision": report.cost.get("us_per_decision", 0.0),
            }
        )
    return rows


def repeated(base: Scenario, n_seeds: int) -> Floats:
    """(n_seeds,) makespans of the same rollout with seeds 0, 1, ...: how much is chance."""
    runs = variations(base, seed=list(range(n_seeds)))
    return np.array([simulate(each).makespan_s for each in runs])
