"""From a hundred nodes to a hundred thousand: time by the bound, and what deciding costs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from passel.errors import InputError
from passel.notebook import style
from passel.sim.report import Report
from passel.sim.rollout import simulate
from passel.sim.studies import scenario

PIECE = "4 MiB"


class Point(TypedDict):
    """One size. Seconds, bytes by the least possible, microseconds of one core per decision."""

    nodes: int
    pieces: int
    zones: int
    makespan_s: float
    ratio: float
    cross_zone: float
    decisions: int
    us_per_decision: float
    wall_s: float
    peak_mib: float


def study(
    nodes: Iterable[int], n_pieces: int = 128, zones: int = 3, link: str = "1 Gbit/s"
) -> list[Point]:
    """A flash crowd of each size, in the round engine with the production planner.

    Raises ConfigError for sizes outside 1 to 100 000. 10 000 nodes take some seconds of one core,
    100 000 about a minute.
    """
    points = []
    for n_nodes in nodes:
        one = scenario(
            nodes=n_nodes,
            zones=zones,
            blobs=[f"{n_pieces * 4} MiB"],
            piece=PIECE,
            link=link,
            origin=link,
            engine="rounds",
        )
        points.append(_point(simulate(one)))
    return points


def _point(report: Report) -> Point:
    least = report.cross_zone_min
    return {
        "nodes": int(report.ends.size),
        "pieces": report.scenario.n_pieces,
        "zones": report.scenario.zones,
        "makespan_s": report.makespan_s,
        "ratio": report.ratio,
        "cross_zone": report.cross_zone_bytes / least if least else 1.0,
        "decisions": report.n_decisions,
        "us_per_decision": report.cost.get("us_per_decision", 0.0),
        "wall_s": report.cost["wall_s"],
        "peak_mib": report.cost["peak_mib"],
    }


def save(points: Iterable[Point], path: Path) -> None:
    """Write points as lines of JSON."""
    path.write_text("".join(json.dumps(point) + "\n" for point in points), encoding="utf-8")


def load(path: Path) -> list[Point]:
    """Points that `save` wrote. Raises InputError with a sentence for anything else."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        points: list[Point] = [json.loads(line) for line in lines]
        if any(set(point) != Point.__required_keys__ for point in points):
            raise ValueError
    except FileNotFoundError as error:
        raise InputError(400, "UNKNOWN", f"{path}: no such file") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(400, "UNKNOWN", f"{path}: torn, or no result of scale.study") from error
    return points


def cores(point: Point) -> float:
    """Cores that deciding would keep busy while the rollout lasts.

    Too many rather than too few: a decision's time has all of the simulation in it.
    """
    return point["us_per_decision"] * 1e-6 * point["decisions"] / point["makespan_s"]


def shards(point: Point, use: float = 0.5) -> int:
    """Shards that would be needed with each at most so busy; a blob has one, so: many blobs."""
    return max(1, math.ceil(cores(point) / use))


def facts(points: Sequence[Point]) -> style.Table:
    """The numbers of the picture."""
    rows = [
        (
            f"{p['nodes']:,}".replace(",", " "),
            p["makespan_s"],
            f"{p['ratio']:.3f}",
            f"{p['cross_zone']:.3f}",
            p["us_per_decision"],
            f"{p['decisions']:,}".replace(",", " "),
            shards(p),
            p["wall_s"],
            f"{p['peak_mib']:.0f}",
        )
        for p in points
    ]
    columns = ["nodes", "last node s", "÷ bound", "cross-zone ÷ least", "µs per decision"]
    columns += ["decisions", "shards", "simulated in s", "memory MiB"]
    return style.table(columns, rows)


@style.picture
def picture(points: Sequence[Point], shipped: Sequence[Point] = ()) -> Figure:
    """Time by the bound, cost of a decision, shards: filled here and now, hollow as shipped."""
    figure, axes = style.canvas(3, height_in=3.2)
    everything = sorted([*points, *shipped], key=lambda point: point["nodes"])
    nodes = [point["nodes"] for point in everything]
    fresh = {id(point) for point in points}
    for each, values, title, y in (
        (axes[0], [p["ratio"] for p in everything], "Last node", "time ÷ bound"),
        (axes[1], [p["us_per_decision"] for p in everything], "A decision", "processor time [µs]"),
        (axes[2], [float(shards(p)) for p in everything], "Shards half busy", "shards needed"),
    ):
        each.plot(nodes, values, "-", color=style.SKY)
        for point, value in zip(everything, values, strict=True):
            is_fresh = id(point) in fresh
            each.plot(
                point["nodes"],
                value,
                "o",
                color=style.BLUE,
                markerfacecolor=style.BLUE if is_fresh else "white",
            )
        each.set_xscale("log")
        style.plain_numbers(each.xaxis)
        style.label(each, title, "nodes", y)
    axes[0].set_ylim(1.0, max(1.1, 1.02 * max(p["ratio"] for p in everything)))
    axes[1].set_ylim(bottom=0)
    axes[2].yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[2].set_ylim(0, max(shards(p) for p in everything) + 1)
    if shipped:
        axes[1].plot([], [], "o", color=style.BLUE, label="computed here")
        axes[1].plot([], [], "o", color=style.BLUE, markerfacecolor="white", label="shipped")
        axes[1].legend(loc="upper right")
    return figure
