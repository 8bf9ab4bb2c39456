"""What breaks, and how long readers wait for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from passel.notebook import style
from passel.sim.report import Report
from passel.sim.rollout import simulate
from passel.sim.scenario import Scenario
from passel.sim.studies import scenario, wave

#: Name -> the scenario's faults. Everything breaks while pieces are under way.
FAULTS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "the seed, for 2 s": ("crash seed at 300 ms for 2 s",),
    "the shard, for 1 s": ("crash shard at 300 ms for 1 s",),
    "a tenth of the nodes, for 2 s": ("crash 10% at 300 ms for 2 s",),
    "a zone cut off for 2 s": ("partition z1 at 300 ms for 2 s",),
    "the registry hangs for 2 s": ("origin hang at 300 ms for 2 s",),
    "a node lies": ("lie p5",),
    "a tenth is slow": ("slow 10% to 0.1",),
}


def zone_down(one: Scenario, zone: int, at: str = "300 ms", lasts: str = "2 s") -> tuple[str, ...]:
    """Faults that end every node of a zone, and bring it back."""
    nodes = range(zone, one.nodes, one.zones)
    return tuple(f"crash p{node} at {at} for {lasts}" for node in nodes)


def study(faults: Mapping[str, Sequence[str]] | None = None, **given: object) -> dict[str, Report]:
    """The same rollout with each of these faults, message by message.

    Left out: `FAULTS`, and a whole zone that dies. Raises ConfigError with what was expected for a
    fault that cannot be.
    """
    base = scenario(**{**given, "engine": "messages"})
    if faults is None:
        faults = {**FAULTS, "a whole zone, for 2 s": zone_down(base, base.zones - 1)}
    return {
        name: simulate(scenario(**{**given, "engine": "messages", "faults": list(each)}))
        for name, each in faults.items()
    }


def facts(reports: Mapping[str, Report]) -> style.Table:
    """Ends, waits and what was read from the registry."""
    rows = []
    for name, report in reports.items():
        waits = report.waits if report.waits.size else np.array([np.nan])
        rows.append(
            (
                name,
                f"{int(np.isfinite(report.ends).sum())} of {report.ends.size}",
                report.makespan_s,
                float(np.quantile(waits, 0.5)) * 1e3,
                float(np.quantile(waits, 0.99)) * 1e3,
                float(waits.max()),
                report.failed_reads,
                report.origin_bytes / report.scenario.size,
            )
        )
    columns = ["what breaks", "nodes done", "last node s", "read p50 ms", "read p99 ms"]
    columns += ["longest read s", "reads asked again", "origin bytes ÷ image"]
    return style.table(columns, rows)


@style.picture
def waits(reports: Mapping[str, Report]) -> Figure:
    """How long readers wait: p90, p99 and the longest of all reads, per fault."""
    figure, (axes,) = style.canvas(height_in=0.9 + 0.36 * len(reports))
    for place, report in zip(range(len(reports) - 1, -1, -1), reports.values(), strict=True):
        p90, p99, most = np.maximum(np.quantile(report.waits, [0.9, 0.99, 1.0]), 1e-3)
        axes.plot([p90, most], [place, place], color="#CCCCCC", linewidth=3, zorder=1)
        for value, colour, mark in (
            (p90, style.SKY, "o"),
            (p99, style.BLUE, "s"),
            (most, style.RED, "D"),
        ):
            axes.plot(value, place, mark, color=colour, markersize=7)
    for name, colour, mark in (
        ("p90", style.SKY, "o"),
        ("p99", style.BLUE, "s"),
        ("longest", style.RED, "D"),
    ):
        axes.plot([], [], mark, color=colour, label=name)
    axes.set_yticks(range(len(reports) - 1, -1, -1), list(reports))
    axes.set_ylim(-0.6, len(reports) - 0.4)
    axes.set_xscale("log")
    style.plain_numbers(axes.xaxis)
    axes.grid(visible=False, axis="y")
    style.label(axes, "How long a read waits when this breaks", "time [s]", "")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


@style.picture
def waves(reports: Mapping[str, Report], names: Sequence[str] | None = None) -> Figure:
    """Who is done when, under each fault. KeyError for a name that is none of `reports`."""
    figure, (axes,) = style.canvas(height_in=3.6)
    chosen = list(reports) if names is None else list(names)
    looks = [(colour, line) for line in ("-", "--", ":") for colour in style.CYCLE]
    for name, (colour, line) in zip(chosen, looks, strict=False):
        seconds, share = wave(reports[name])
        axes.step(seconds, share, line, where="post", label=name, color=colour)
    style.as_percent(axes.yaxis)
    axes.set_xlim(left=0)
    style.label(axes, "Who is done when", "time [s]", "nodes that are done")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="what breaks")
    return figure
