"""The lines of `flash_crowd`: bounds, ratios, balances, from what readers and links showed."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crowd_watch import Watch
from netlab import PAYLOAD_SHARE

from passel.core.pieces import Geometry

if TYPE_CHECKING:
    from crowd_clients import Answer
    from flash_crowd import Crowd, Pull

CORES = len(os.sched_getaffinity(0))
#: Above this share of the processor the links were not what the crowd waited for.
BUSY_MAX = 0.85
GOAL = 1.15
FORMULA = "max(S/u, S/o, (N-1)*S/(N*u), S/t)"


def bound(crowd: Crowd, n_bytes: int) -> tuple[float, str]:
    """Seconds in which nobody could be quicker, and the term that says so."""
    arguments, n_nodes = crowd.arguments, len(crowd.nodes)
    terms = {"downlink S/u": n_bytes / crowd.link}
    terms["origin S/o"] = n_bytes / (arguments.origin_mbit * 1e6 / 8)
    if arguments.arrival == "together":
        terms["uplinks (N-1)*S/(N*u)"] = (n_nodes - 1) * n_bytes / (n_nodes * crowd.link)
    if arguments.trunk_mbit is not None and crowd.n_zones > 1:
        terms["trunk S/t"] = n_bytes / (arguments.trunk_mbit * 1e6 / 8)
    term = max(terms, key=lambda name: terms[name])
    return terms[term], term


def touched_bytes(crowd: Crowd, pulls: Sequence[Pull]) -> int:
    """The pieces that the readers' ranges lie in."""
    if crowd.arguments.pattern == "whole":
        return crowd.size
    geometry = Geometry.of(crowd.size)
    pieces = {piece for span in crowd.spans for piece in geometry.pieces_of(*span)}
    return sum(geometry.length(piece) for piece in pieces)


# --- one repetition ---------------------------------------------------------------------------


def run_facts(
    crowd: Crowd,
    watch: Watch,
    pulls: Sequence[Pull],
    before: dict[str, Any],
    after: dict[str, Any],
) -> dict[str, Any]:
    """What one repetition showed."""
    first = min(pull.started for pull in pulls)
    together = crowd.arguments.arrival == "together"
    # With arrivals over time everybody is timed by himself.
    times = [pull.finished - first if together else pull.elapsed_s for pull in pulls]
    wall = max(pull.finished for pull in pulls) - first
    links = watch.links()
    needed = touched_bytes(crowd, pulls)
    facts: dict[str, Any] = {
        "last_s": round(max(times), 3),
        "p50_s": round(statistics.median(times), 3),
        "p99_s": round(quantile(times, 0.99), 3),
        "first_byte_p50_s": round(
            statistics.median(pull.answers[0].first_byte_s for pull in pulls), 4
        ),
        "wall_s": round(wall, 3),
        "needed_bytes": needed,
        "busy_share": round(watch.busy_share(CORES, wall), 3),
        "own_busy_share": round(sum(watch.cpu_s.values()) / (CORES * watch.samples[-1].at), 3),
        "cpu_s": {kind: round(spent, 2) for kind, spent in sorted(watch.cpu_s.items())},
        "link_use": watch.use(crowd.link, wall),
        "control_share": watch.control_share(crowd.link, wall),
        "uploads": balance([links[node.name].up for node in crowd.nodes]),
        "downloads_over_size": balance(
            [links[node.name].down / crowd.size for node in crowd.nodes]
        ),
        "shard": shard_facts(before, after, wall),
    }
    if crowd.arguments.pattern == "lazy":
        facts["reads"] = read_facts([answer for pull in pulls for answer in pull.answers])
    if crowd.n_zones > 1:
        facts["cross_zone"] = cross_zone(crowd, watch, before, after)
    return facts


def cross_zone(
    crowd: Crowd, watch: Watch, before: dict[str, Any], after: dict[str, Any]
) -> dict[str, float]:
    """Bytes into zones over S * (Z - 1): by the peers' counters, and on the trunks.

    On the trunks there are also acknowledgements, heads and Ray; what the origin sent is taken off.
    """
    least = crowd.size * (crowd.n_zones - 1)
    links = watch.links()
    on_trunks = sum(link.down for name, link in links.items() if name.startswith("trunk-"))
    by_peers = _total(after, "cross_zone_bytes") - _total(before, "cross_zone_bytes")
    return {
        "by_peers": round(by_peers / least, 4),
        "on_trunks": round((on_trunks - links["origin"].up) / least, 4),
    }


def shard_facts(before: dict[str, Any], after: dict[str, Any], wall: float) -> dict[str, Any]:
    """What the scheduler did for one blob."""

    def more(key: str) -> float:
        earlier = sum(float(shard[key]) for shard in before["shards"])
        return sum(float(shard[key]) for shard in after["shards"]) - earlier

    edges, calls = more("edges"), more("reports") + more("delivers")
    busy_s = more("handle_s") + more("plan_s")
    return {
        "epochs": int(more("epochs")),
        "decisions": int(edges),
        "plan_s": round(more("plan_s"), 4),
        "handle_s": round(more("handle_s"), 4),
        "us_per_decision": round(busy_s * 1e6 / max(edges, 1.0), 1),
        "reports": int(more("reports")),
        "delivers": int(more("delivers")),
        "calls_per_s": round(calls / wall, 1),
        "leases": int(more("leases")),
        "origin_requests": _total(after, "origin_requests") - _total(before, "origin_requests"),
        "bytes_from": {
            kind: sum(node["bytes"][kind] for node in after["nodes"])
            - sum(node["bytes"][kind] for node in before["nodes"])
            for kind in ("seed", "peer", "origin")
        },
    }


def _total(status: dict[str, Any], key: str) -> int:
    return sum(int(node.get(key) or 0) for node in status["nodes"])


def balance(values: Sequence[float]) -> dict[str, float]:
    """Lowest, mean and highest, and the highest over the mean."""
    mean = statistics.fmean(values)
    return {
        "lowest": round(min(values), 3),
        "mean": round(mean, 3),
        "highest": round(max(values), 3),
        "highest_over_mean": round(max(values) / mean, 3) if mean else 0.0,
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


# --- lines --------------------------------------------------------------------------------------


def crowd_row(crowd: Crowd, bodies: Sequence[dict[str, Any]]) -> None:
    """The line of a crowd: all repetitions."""
    needed = max(body["needed_bytes"] for body in bodies)
    limit, term = bound(crowd, needed)
    arguments = crowd.arguments
    crowd.report.row(
        "crowd",
        "s",
        [body["last_s"] for body in bodies],
        parameters={
            **crowd.parameters,
            "pattern": arguments.pattern,
            "arrival": arguments.arrival,
            "gap_s": arguments.gap if arguments.arrival == "poisson" else None,
            "batch": arguments.batch if arguments.arrival == "rolling" else None,
        },
        bound=limit,
        goal=GOAL * limit,
        bound_formula=FORMULA,
        binding_term=term,
        payload_share=round(PAYLOAD_SHARE, 4),
        p50_over_bound=_ratios(bodies, "p50_s", limit),
        p99_over_bound=_ratios(bodies, "p99_s", limit),
        origin_over_needed=[
            round(body["origin_bytes"]["at_last_read"] / needed, 4) for body in bodies
        ],
        origin_over_size=[round(body["origin_bytes"]["at_end"] / crowd.size, 4) for body in bodies],
        void=_void(crowd, [body["busy_share"] for body in bodies]),
        runs=list(bodies),
    )


def _ratios(bodies: Sequence[dict[str, Any]], key: str, limit: float) -> list[float]:
    return [round(body[key] / limit, 4) for body in bodies]


def _void(crowd: Crowd, busy: Sequence[float]) -> list[str]:
    """Why the line is worth nothing; empty if it is worth something."""
    return crowd.void + [
        f"repetition {i + 1} took {share:.2f} of the processor"
        for i, share in enumerate(busy)
        if share > BUSY_MAX
    ]


def straight_row(crowd: Crowd, watch: Watch, pulls: Sequence[Pull], sent: int) -> None:
    """The line of everybody from the origin."""
    first = min(pull.started for pull in pulls)
    together = crowd.arguments.arrival == "together"
    times = [pull.finished - first if together else pull.elapsed_s for pull in pulls]
    limit, term = bound(crowd, crowd.size)
    wall = max(pull.finished for pull in pulls) - first
    busy = watch.busy_share(CORES, wall)
    crowd.report.row(
        "straight",
        "s",
        [max(times)],
        parameters={**crowd.parameters, "arrival": crowd.arguments.arrival},
        bound=limit,
        bound_formula=FORMULA,
        binding_term=term,
        p50_over_bound=[round(statistics.median(times) / limit, 4)],
        p99_over_bound=[round(quantile(times, 0.99) / limit, 4)],
        origin_over_size=[round(sent / crowd.size, 4)],
        void=_void(crowd, [busy]),
        busy_share=round(busy, 3),
    )


def mixed_row(
    crowd: Crowd, idle: Sequence[Answer], loaded: Sequence[Answer], walls: Sequence[float]
) -> None:
    """The line of a reader's latencies beside a crowd, per read."""
    limit, _ = bound(crowd, crowd.size)
    quiet, busy = read_facts(idle), read_facts(loaded)
    crowd.report.row(
        "mixed",
        "s",
        [answer.elapsed_s for answer in loaded],
        parameters={**crowd.parameters, "reads": crowd.arguments.mixed},
        goal=2 * quiet["p99_s"],
        idle=quiet,
        loaded=busy,
        p99_loaded_over_idle=round(busy["p99_s"] / quiet["p99_s"], 3),
        crowd_over_bound=[round(wall / limit, 3) for wall in walls],
        void=crowd.void,
    )


def read_facts(answers: Sequence[Answer]) -> dict[str, Any]:
    """Latencies of reads: of all, and of those whose bytes were not on the node yet."""
    times = [answer.elapsed_s for answer in answers]
    missed = [answer.elapsed_s for answer in answers if answer.source != "local"]
    facts: dict[str, Any] = {
        "reads": len(times),
        "p50_s": round(quantile(times, 0.5), 5),
        "p99_s": round(quantile(times, 0.99), 5),
        "highest_s": round(max(times), 5),
        "missed": len(missed),
    }
    if missed:
        facts["missed_p50_s"] = round(quantile(missed, 0.5), 5)
        facts["missed_p99_s"] = round(quantile(missed, 0.99), 5)
    return facts


def write_trace(
    path: Path, watch: Watch, parameters: dict[str, Any], pulls: Sequence[Pull]
) -> None:
    """A head with the parameters and the nodes' ends, then what was seen, in time order."""
    ends = {pull.node.name: round(pull.finished - watch.began, 3) for pull in pulls}
    zones = {pull.node.name: pull.node.zone for pull in pulls}
    head = {"t": 0.0, "event": "crowd", **parameters, "finished": ends, "zone_of": zones}
    with path.open("w", encoding="utf-8") as file:
        for line in [head, *watch.lines()]:
            file.write(json.dumps(line) + "\n")
