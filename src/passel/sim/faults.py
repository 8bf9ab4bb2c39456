"""Faults of a scenario, as what happens to either engine at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from passel.sim import rounds
from passel.sim.clock import Action
from passel.sim.words import Fault
from passel.sim.world import World


def fault_nodes(fault: Fault, n_nodes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The numbers of the nodes that a fault is about; a share spares node 0, the first seed."""
    if fault.share:
        others = rng.permutation(np.arange(1, n_nodes))
        return np.sort(others[: max(1, round(fault.share * n_nodes))])
    if fault.who == "seed":
        return np.array([0])
    if fault.who[:1] == "p":
        return np.array([int(fault.who[1:])])
    return np.empty(0, dtype=np.int64)


def break_world(world: World, fault: Fault, nodes: NDArray[np.int64]) -> None:
    """Let a fault happen to a world at its time, and be mended at its time."""
    clock, names = world.clock, [f"p{node}" for node in nodes.tolist()]
    ends_at = None if fault.for_s is None else fault.at_s + fault.for_s

    def both(begin: Action, end: Action, *args: object) -> None:
        clock.at(fault.at_s, begin, *args)
        if ends_at is not None:
            clock.at(ends_at, end, *args)

    match fault.kind:
        case "crash":
            if fault.who == "shard":
                clock.at(fault.at_s, world.kill_shard, fault.for_s)
            for name in names:
                both(world.kill_peer, world.restart_peer, name)
        case "slow":
            for name in names:
                clock.at(fault.at_s, world.slow_down, name, fault.factor)
                if ends_at is not None:
                    clock.at(ends_at, world.slow_down, name, 1 / fault.factor)
        case "lie":
            for name in names:
                both(world.make_liar, world.make_honest, name)
        case "partition":
            clock.at(fault.at_s, world.partition, fault.who, fault.for_s)
        case "slow origin":
            clock.at(fault.at_s, world.slow_origin, fault.factor)
            if ends_at is not None:
                clock.at(ends_at, world.slow_origin, 1 / fault.factor)
        case "down" | "hang":
            clock.at(fault.at_s, world.origin_trouble, fault.kind)
            if ends_at is not None:
                clock.at(ends_at, world.origin_trouble, "")


def round_events(
    fault: Fault,
    round_s: float,
    n_nodes: int,
    speeds: NDArray[np.float64],
    rng: np.random.Generator,
) -> list[rounds.Event]:
    """A fault as what happens at the beginning of rounds; `speeds` hears of what stays slow."""
    peers = fault_nodes(fault, n_nodes, rng)
    begin: Callable[[rounds.Rounds], None]
    end: Callable[[rounds.Rounds], None]
    match fault.kind:
        case "crash":
            is_lost = fault.for_s is None

            def begin(running: rounds.Rounds) -> None:
                running.crash(peers, with_disk=is_lost)

            def end(running: rounds.Rounds) -> None:
                running.restart(peers)

        case "slow":
            if fault.for_s is None:
                speeds[peers] *= fault.factor

            def begin(running: rounds.Rounds) -> None:
                running.up[peers] *= fault.factor
                running.down[peers] *= fault.factor

            def end(running: rounds.Rounds) -> None:
                running.up[peers] /= fault.factor
                running.down[peers] /= fault.factor

        case "partition":
            zone = int(fault.who[1:])

            def begin(running: rounds.Rounds) -> None:
                running.closed_zones.append(zone)

            def end(running: rounds.Rounds) -> None:
                running.closed_zones.remove(zone)

        case _:
            factor = fault.factor if fault.kind == "slow origin" else 0.0
            before: list[float] = []

            def begin(running: rounds.Rounds) -> None:
                before.append(running.origin)
                running.origin *= factor

            def end(running: rounds.Rounds) -> None:
                running.origin = before.pop()

    events = [rounds.Event(fault.at_s / round_s, begin)]
    if fault.for_s is not None:
        events.append(rounds.Event((fault.at_s + fault.for_s) / round_s, end))
    return events
