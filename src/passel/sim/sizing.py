"""How many seeds and what trunk a rollout needs to end in a given time.

The bound says at once what cannot be; the round engine, with the production planner, says what the
smallest trunk really is, by bisection between the bound and no limit at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passel.core.graph.bounds import Bound
from passel.errors import InputError
from passel.sim.report import Report, bound_of
from passel.sim.rollout import simulate
from passel.sim.scenario import Scenario

#: The trunk is found to so much of itself.
PRECISION = 0.02
#: Rounds of bisection: the trunk lies between its bound and some ten thousand times that.
STEPS_MAX = 24


@dataclass(frozen=True)
class Need:
    """The least of each that does it.

    Attributes
    ----------
    trunk : float or None
        Bytes per second into (and out of) each zone; None where there is one zone.
    report : Report
        The rollout with just that.
    """

    seeds: int
    trunk: float | None
    report: Report


def size_up(scenario: Scenario, within_s: float) -> Need:
    """The fewest seeds and the smallest trunk with which a rollout ends within `within_s`.

    Raises InputError with the term that stands in the way if nothing helps.
    """
    seeds = _fewest_seeds(scenario, within_s)
    wide = _with(scenario, seeds, None)
    report = simulate(wide)
    if report.makespan_s > within_s:
        raise InputError(
            400,
            "UNKNOWN",
            f"--within: expected at least {report.makespan_s:.3g} s, what it takes with any trunk;"
            f" the bound is {report.bound.seconds:.3g} s ({report.bound.binding})",
        )
    if scenario.zones == 1:
        return Need(seeds, None, report)
    least = scenario.size / within_s
    most = least
    best: tuple[float, Report] | None = None
    for _ in range(STEPS_MAX):
        found = simulate(_with(scenario, seeds, most))
        if found.makespan_s <= within_s:
            best = (most, found)
            break
        least, most = most, most * 2
    if best is None:
        return Need(seeds, None, report)
    while best[0] - least > PRECISION * best[0] and best[0] > least:
        middle = (least + best[0]) / 2
        found = simulate(_with(scenario, seeds, middle))
        if found.makespan_s <= within_s:
            best = (middle, found)
        else:
            least = middle
    return Need(seeds, best[0], best[1])


def _fewest_seeds(scenario: Scenario, within_s: float) -> int:
    """Of the bound: each blob has one fetcher, so more seeds than blobs do not help."""
    n_most = min(len(scenario.blobs), scenario.nodes)
    bound: Bound | None = None
    for seeds in range(1, n_most + 1):
        bound = _bound(_with(scenario, seeds, None))
        if bound.fluid_s <= within_s:
            return seeds
    assert bound is not None
    raise InputError(
        400,
        "UNKNOWN",
        f"--within: expected at least {bound.fluid_s:.3g} s: {bound.binding} takes that long,"
        " whatever seeds and trunks there are",
    )


def _bound(scenario: Scenario) -> Bound:
    return bound_of(scenario, np.zeros(scenario.nodes), np.ones(scenario.nodes))


def _with(scenario: Scenario, seeds: int, trunk: float | None) -> Scenario:
    return scenario.model_copy(update={"seeds": seeds, "trunk": trunk, "engine": "rounds"})
