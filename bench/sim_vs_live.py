"""How far is the simulator from a real crowd?

The crowd of `flash_crowd` runs live (real gateways, peers, shards and Ray nodes in network
namespaces behind shaped links), and `passel.sim` plays the same one message by message: the same
nodes, zones, blob, links and origin. A line per shape tells the error of the last finish, of the
median node, and of bytes from the origin and between zones, as (simulated - live) / live.

The model has one set of parameters for all shapes, `MODEL`; nothing is fitted to a shape. Needs
root and tc.

    sudo python bench/sim_vs_live.py --nodes 4 8 16 --zones 1 2 > sim_vs_live.jsonl
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import flash_crowd
from netcluster import NetCluster
from netlab import PAYLOAD_SHARE, LabError, NetLab
from report import Report

from passel.sim.rollout import simulate
from passel.sim.studies import scenario

#: What all nodes together get at most: beyond it two cores are what a crowd waits for.
MBIT_IN_ALL = 800.0
GOAL = 0.10
#: One set for all shapes. Links carry `PAYLOAD_SHARE` of their rate: frames and heads are the rest.
MODEL: dict[str, object] = {
    "latency": "0.1 ms",  # estimate: veth pairs on one bridge
    "zone_latency": "0.1 ms",  # the lab's zones are on the same bridge
    "call": "0.6 ms",  # one way; a call between two Ray nodes was measured at 1.2 ms there and back
    "origin_latency": "5 ms",  # estimate: the lab's registry, one request at a time
    "jitter": 0.2,  # estimate
}


class Collected:
    """Takes the place of the flash crowd's report: what its rows say is compared, not printed."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def row(self, case: str, unit: str, values: list[float], **more: Any) -> None:
        self.rows[case] = {"unit": unit, "values": list(values), **more}


def main() -> None:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report("How far is the simulator from a real crowd?", seed=arguments.random)
    try:
        for n_nodes in arguments.nodes:
            for n_zones in arguments.zones:
                if n_zones <= n_nodes:
                    compare(arguments, report, n_nodes, n_zones)
    except LabError as error:
        sys.exit(f"sim_vs_live: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--nodes", type=int, nargs="+", default=[4, 8, 16])
    add("--zones", type=int, nargs="+", default=[1, 2])
    add("--mib", type=int, default=64, help="size of the blob")
    add("--mbit", type=float, default=100.0, help="each node's link; all together at most 800")
    add("--repetitions", type=int, default=3, help="live runs and simulated ones of each shape")
    add("--random", type=int, default=1, help="seed of the first simulated run")
    add("--prefix", default="pslsv-", help="of the namespaces")
    add("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the nodes' stores")
    arguments = parser.parse_args()
    for name, least, most in (("mib", 1, 4096), ("mbit", 1, 10_000), ("repetitions", 1, 100)):
        value = getattr(arguments, name)
        if not least <= value <= most:
            parser.error(f"--{name}: expected {least} to {most}, got {value}")
    for name, each, least in (("nodes", arguments.nodes, 2), ("zones", arguments.zones, 1)):
        if min(each) < least or max(each) > 64:
            parser.error(f"--{name}: expected {least} to 64, got {each}")
    return arguments


def compare(arguments: argparse.Namespace, report: Report, n_nodes: int, n_zones: int) -> None:
    mbit = min(arguments.mbit, MBIT_IN_ALL / n_nodes)
    shape = argparse.Namespace(
        **{**vars(arguments), "mbit": mbit, "origin_mbit": 4 * mbit, "trunk_mbit": None},
        shaper="htb", congestion=None, arrival="together", gap=1.0, batch=None,
        pattern="whole", trace=None, config=None,
    )  # fmt: skip
    real = live(shape, n_nodes, n_zones)
    model = [simulated(shape, n_nodes, n_zones, i) for i in range(arguments.repetitions)]
    live_medians, sim_medians = medians(real["runs"]), medians(model)
    errors = {
        key: round(sim_medians[key] / value - 1, 4) if value else 0.0
        for key, value in live_medians.items()
    }
    report.row(
        "crowd",
        "error of the last finish",
        [errors["last_s"]],
        parameters={"nodes": n_nodes, "zones": n_zones, "mib": arguments.mib, "mbit": mbit},
        goal=GOAL,
        errors=errors,
        within_goal=all(abs(value) <= GOAL for value in errors.values()),
        live=live_medians,
        simulated=sim_medians,
        live_runs=real["runs"],
        simulated_runs=model,
        model=MODEL,
        void=real["void"],
        calibration=real["calibration"],
    )


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    keys = ("last_s", "p50_s", "origin_bytes", "cross_zone_bytes")
    return {key: statistics.median(run[key] for run in runs) for key in keys}


def live(shape: argparse.Namespace, n_nodes: int, n_zones: int) -> dict[str, Any]:
    """Real runs: times, and bytes by the peers' and the origin's counters."""
    lab = NetLab(shape.prefix, flash_crowd.BULK_PORTS, shape.shaper, shape.congestion)
    cluster = NetCluster(lab, shape.folder / shape.prefix.rstrip("-"))
    zones = [chr(ord("a") + i * n_zones // n_nodes) for i in range(n_nodes)]
    collected = Collected()
    try:
        cluster.start(zones, shape.mbit, shape.origin_mbit, shape.trunk_mbit)
        crowd = flash_crowd.Crowd(shape, cluster, n_zones)
        crowd.report = collected  # type: ignore[assignment]
        crowd.calibrate()
        crowd.warm_up()
        crowd.measure()
    finally:
        cluster.stop()
    row = collected.rows["crowd"]
    least = shape.mib * flash_crowd.MIB * (n_zones - 1)
    runs = [
        {
            "last_s": body["last_s"],
            "p50_s": body["p50_s"],
            "origin_bytes": body["origin_bytes"]["at_end"],
            "cross_zone_bytes": round(body["cross_zone"]["by_peers"] * least) if least else 0,
            "busy_share": body["busy_share"],
            "first_byte_p50_s": body["first_byte_p50_s"],
            "cpu_s": body["cpu_s"],
        }
        for body in row["runs"]
    ]
    calibration = {
        "Mbit/s": collected.rows["calibration"]["values"],
        "bound": collected.rows["calibration"]["bound"],
    }
    return {"runs": runs, "void": row["void"], "calibration": calibration}


def simulated(
    shape: argparse.Namespace, n_nodes: int, n_zones: int, number: int
) -> dict[str, float]:
    """The same crowd in virtual time."""
    rate = "{:.9f} Mbit/s"
    report = simulate(
        scenario(
            nodes=n_nodes,
            zones=n_zones,
            seeds=1,
            blob=f"{shape.mib} MiB",
            link=rate.format(shape.mbit * PAYLOAD_SHARE),
            origin=rate.format(shape.origin_mbit * PAYLOAD_SHARE),
            engine="messages",
            seed=shape.random + number,
            **MODEL,
        )
    )
    return {
        "last_s": round(report.makespan_s, 4),
        "p50_s": round(statistics.median(report.durations.tolist()), 4),
        "origin_bytes": report.origin_bytes,
        "cross_zone_bytes": report.cross_zone_bytes,
    }


if __name__ == "__main__":
    os.umask(0o077)
    main()
