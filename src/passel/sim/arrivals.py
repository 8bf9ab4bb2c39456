"""When nodes begin: start times, or for a rolling restart the size of what is under way at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from passel.errors import InputError
from passel.sim.words import Arrival
from passel.telemetry.trace import read_trace


def start_times(arrival: Arrival, n_nodes: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(n_nodes,) seconds; infinity for those of a rolling restart who must wait for others."""
    match arrival.kind:
        case "at-once":
            return np.zeros(n_nodes)
        case "poisson":
            times = rng.exponential(1 / arrival.rate, n_nodes).cumsum()
            return np.asarray(rng.permutation(times - times[0]))
        case "waves":
            return np.asarray(np.arange(n_nodes) // arrival.size * arrival.every_s)
        case "rolling":
            return np.where(np.arange(n_nodes) < arrival.size, 0.0, np.inf)
        case "trace":
            return _recorded(arrival, n_nodes)


def _recorded(arrival: Arrival, n_nodes: int) -> NDArray[np.float64]:
    """The first read of each node of a trace, from the first of all on; in turn for more nodes."""
    table = read_trace(arrival.file)
    kinds = table.column("kind").to_pylist()
    ends = table.column("at_s").to_pylist()
    first: dict[str, float] = {}
    columns = ("node", "queue_s", "transfer_s")
    rows = zip(kinds, ends, *(table.column(name).to_pylist() for name in columns), strict=True)
    for kind, end, node, queue_s, transfer_s in rows:
        if kind == "read":
            began = end - (queue_s or 0.0) - (transfer_s or 0.0)
            first[node] = min(first.get(node, began), began)
    if not first:
        raise InputError(400, "UNKNOWN", f"arrival: {arrival.file} has no read in it")
    times = np.sort(np.array(list(first.values())))
    return np.asarray(np.resize(times - times[0], n_nodes))
