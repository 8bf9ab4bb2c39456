"""One rollout looked at closely: the wave of pieces, who is done when, and the bound."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from passel.notebook import style
from passel.sim.report import Report
from passel.sim.rollout import simulate
from passel.sim.studies import scenario, wave
from passel.telemetry.analysis import pieces_over_time
from passel.telemetry.trace import Recorder, TraceFile, read_trace


@dataclass(frozen=True)
class Rollout:
    """The same rollout with passel, and with everybody at the origin.

    Attributes
    ----------
    trace : pyarrow.Table
        The events of the one with passel.
    """

    passel: Report
    direct: Report
    trace: pa.Table


def rollout(**given: object) -> Rollout:
    """Simulate a scenario message by message, and without passel beside it.

    Keywords as in a profile (configs/sim). Raises ConfigError with a sentence for what cannot be.
    """
    exact = scenario(**{**given, "engine": "messages"})
    with tempfile.TemporaryDirectory(prefix="passel-trace-") as folder:
        file = TraceFile(Path(folder) / "trace.parquet", "virtual")
        try:
            report = simulate(exact, Recorder(file))
        finally:
            file.close()
        trace = read_trace(file.path)
    direct = simulate(scenario(**{**given, "engine": "rounds", "policy": "direct"}))
    return Rollout(report, direct, trace)


def facts(done: Rollout) -> style.Table:
    """What became of both, side by side."""
    rows = []
    for name, report in (("with passel", done.passel), ("everybody at the origin", done.direct)):
        rows.append(
            (
                name,
                report.makespan_s,
                float(np.median(report.durations)),
                report.makespan_s / done.passel.bound.seconds,
                style.size(report.origin_bytes),
                style.size(report.cross_zone_bytes),
            )
        )
    columns = ["", "last node s", "median node s", "÷ bound", "from the origin", "between zones"]
    return style.table(columns, rows)


@style.picture
def when_done(done: Rollout) -> Figure:
    """The share of nodes that have everything, over time."""
    figure, (axes,) = style.canvas()
    for name, report, colour in (
        ("with passel", done.passel, style.BLUE),
        ("everybody at the origin", done.direct, style.RED),
    ):
        seconds, share = wave(report)
        axes.step(seconds, share, where="post", color=colour, label=name)
    axes.set_xscale("log")
    style.plain_numbers(axes.xaxis)
    style.as_percent(axes.yaxis)
    bound = done.passel.bound
    style.mark(axes, bound.seconds, f"bound {bound.seconds:.2f} s")
    n_nodes = f"{done.passel.ends.size} nodes"
    style.label(
        axes, f"Who has the whole image when ({n_nodes})", "time [s]", "nodes that are done"
    )
    axes.set_xlim(left=0.5 * bound.seconds)
    axes.legend(loc="center")
    return figure


@style.picture
def wave_of_pieces(done: Rollout) -> Figure:
    """How many nodes have each piece, over time: light to dark."""
    figure, (axes,) = style.canvas(height_in=3.8)
    blob = str(done.trace["blob"].drop_null()[0].as_py())
    edges, came = pieces_over_time(done.trace, blob, n_bins=240)
    share = came.cumsum(axis=1) / done.passel.ends.size
    places = np.arange(share.shape[0] + 1) - 0.5
    mesh = axes.pcolormesh(edges, places, share, cmap=style.HEAT, vmin=0, vmax=1, rasterized=True)
    bar = figure.colorbar(mesh, ax=axes, label="nodes that have it")
    style.as_percent(bar.ax.yaxis)
    axes.grid(visible=False)
    style.label(axes, "The wave: pieces spread as they come", "time [s]", "piece [number]")
    return figure


@style.picture
def bound_terms(done: Rollout) -> Figure:
    """What stands in the way of faster; the longest bar binds."""
    figure, (axes,) = style.canvas(height_in=2.9)
    bound = done.passel.bound
    values = dict(sorted(bound.terms.items(), key=lambda item: -item[1]))
    colours = [style.ORANGE if name == bound.binding else style.SKY for name in values]
    if bound.pieces_s:
        values["whole pieces only (added)"] = bound.pieces_s
        colours.append(style.GREY)
    values["simulated, last node"] = done.passel.makespan_s
    colours.append(style.BLUE)
    style.bars(axes, values, colours, text=lambda value: f"{value:.2f} s")
    style.label(axes, f"The bound and its terms; binding: {bound.binding}", "time [s]", "")
    return figure
