"""Zones, trunks and seeds: who takes what from where, under several policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from passel.notebook import style
from passel.sim.policies import POLICIES
from passel.sim.report import Report
from passel.sim.rollout import simulate
from passel.sim.scenario import Scenario
from passel.sim.studies import by_policy, scenario, table, variations, wave
from passel.sim.words import rate_text

#: Models of what others publish; each policy's docstring has its source.
BASELINES = ("passel", "dragonfly-like", "kraken-like", "rarest-random")
_COLOURS = dict(zip(BASELINES, (style.BLUE, style.ORANGE, style.GREEN, style.PINK), strict=True))


def policies(names: Sequence[str] = BASELINES, **given: object) -> dict[str, Report]:
    """The same rollout under several policies, in the round engine: like with like.

    Raises ConfigError for a policy that there is not.
    """
    return by_policy(scenario(**given), names)


def sources_of(names: Sequence[str] = BASELINES) -> style.Table:
    """What each model is, and where that is described."""
    rows = []
    for name in names:
        text = type(POLICIES[name]()).__doc__ or ""
        first, _, rest = text.partition("\n")
        source = " ".join(rest.partition("Source:")[2].split())
        rows.append((name, first.strip(), source or "passel.core.graph, the code of the shards"))
    return style.table(["policy", "what it is", "source"], rows)


def facts(reports: Mapping[str, Report]) -> style.Table:
    """Times by the bound, and bytes by the least that they could be."""
    rows = [
        (r["name"], r["makespan_s"], r["ratio"], r["origin"], r["cross_zone"])
        for r in table(reports)
    ]
    columns = ["policy", "last node s", "÷ bound", "origin bytes ÷ image", "cross-zone ÷ least"]
    return style.table(columns, rows)


@style.picture
def compared(reports: Mapping[str, Report]) -> Figure:
    """Time and cross-zone bytes of each policy, by the least possible."""
    figure, (left, right) = style.canvas(2, height_in=2.8)
    rows = {str(row["name"]): row for row in table(reports)}
    colours = [_COLOURS.get(name, style.GREY) for name in rows]
    for axes, key, title, x in (
        (left, "ratio", "Last node", "time ÷ bound [1 is perfect]"),
        (right, "cross_zone", "Between zones", "bytes ÷ least [1 is perfect]"),
    ):
        values = {name: float(str(row[key])) for name, row in rows.items()}
        axes.set_xscale("log")
        style.bars(axes, values, colours, text=lambda value: f"{value:.2f}")
        axes.set_xlim(0.8, max(max(values.values()) * 3, 4))
        style.plain_numbers(axes.xaxis)
        style.label(axes, title, x, "")
    right.set_yticklabels([])
    return figure


@style.picture
def waves(reports: Mapping[str, Report]) -> Figure:
    """Who is done when, under each policy."""
    figure, (axes,) = style.canvas()
    for name, report in reports.items():
        seconds, share = wave(report)
        colour = _COLOURS.get(name, style.GREY)
        axes.step(seconds, share, where="post", color=colour, label=name)
    bound = next(iter(reports.values())).bound
    style.mark(axes, bound.seconds, f"bound {bound.seconds:.2f} s")
    axes.set_xscale("log")
    axes.set_xlim(left=0.6 * bound.seconds)
    style.plain_numbers(axes.xaxis)
    style.as_percent(axes.yaxis)
    style.label(axes, "Who has the whole image when", "time [s]", "nodes that are done")
    axes.legend(loc="upper center")
    return figure


def trunks(rates: Sequence[str], **given: object) -> list[Report]:
    """The same rollout with trunks of these rates between the zones."""
    base = scenario(**{**given, "engine": "rounds"})
    return [simulate(each) for each in variations(base, trunk=list(rates))]


@style.picture
def trunk_picture(reports: Sequence[Report]) -> Figure:
    """How narrow a trunk may be before a rollout waits for it."""
    figure, (left, right) = style.canvas(2)
    mbit = [_trunk(report.scenario) * 8e-6 for report in reports]
    left.plot(mbit, [r.makespan_s for r in reports], "o-", color=style.BLUE, label="simulated")
    left.plot(mbit, [r.bound.seconds for r in reports], "--", color=style.BLACK, label="bound")
    left.set_xscale("log")
    left.set_yscale("log")
    style.plain_numbers(left.yaxis)
    style.label(left, "Last node", "trunk of a zone [Mbit/s]", "time [s]")
    left.legend()
    right.plot(
        mbit, [r.cross_zone_bytes / r.cross_zone_min for r in reports], "o-", color=style.BLUE
    )
    right.set_xscale("log")
    for axes in (left, right):
        style.rate_ticks(axes.xaxis, mbit)
    right.set_ylim(0, 2)
    style.label(right, "Between zones", "trunk of a zone [Mbit/s]", "bytes ÷ least")
    return figure


def _trunk(one: Scenario) -> float:
    return one.link if one.trunk is None else one.trunk


def seeds(counts: Sequence[int], **given: object) -> list[Report]:
    """The same image with so many seed nodes, message by message."""
    base = scenario(**{**given, "engine": "messages"})
    return [simulate(each) for each in variations(base, seeds=list(counts))]


@style.picture
def seed_picture(reports: Sequence[Report]) -> Figure:
    """What more seeds are good for: an image of several blobs has a fetcher for each."""
    figure, (axes,) = style.canvas(height_in=3.0)
    places = np.arange(len(reports))
    ends = [report.makespan_s for report in reports]
    medians = [float(np.median(report.durations)) for report in reports]
    axes.bar(places - 0.2, ends, 0.38, color=style.BLUE, label="last node")
    axes.bar(places + 0.2, medians, 0.38, color=style.SKY, label="median node")
    for place, report in zip(places, reports, strict=True):
        axes.plot([place - 0.42, place + 0.42], [report.bound.seconds] * 2, "--", color=style.BLACK)
    axes.plot([], [], "--", color=style.BLACK, label="bound")
    axes.set_xticks(places, [str(report.scenario.seeds) for report in reports])
    axes.set_ylim(0, max(ends) * 1.35)
    axes.grid(visible=False, axis="x")
    first = reports[0].scenario
    title = f"{len(first.blobs)} blobs of {style.size(first.blobs[0])},"
    title += f" links of {rate_text(first.link)}"
    style.label(axes, title, "seed nodes", "time [s]")
    axes.legend(ncols=3, loc="upper right")
    return figure
