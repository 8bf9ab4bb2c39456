"""Pictures of a trace, recorded or simulated: who fed whom, what came when, what readers read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from passel.errors import InputError
from passel.notebook import style
from passel.telemetry import analysis
from passel.telemetry.trace import read_trace

MIB = 1 << 20
#: More nodes than this are too many arrows to follow; a matrix shows them.
DRAWN_MAX = 30
#: More names than this leave no room beside them.
LEGEND_MAX = 10


def blobs(table: pa.Table) -> dict[str, int]:
    """Bytes that moved of each blob, largest first."""
    moved: dict[str, int] = {}
    pieces = analysis.good_pieces(table)
    rows = zip(pieces["blob"].to_pylist(), pieces["bytes"].to_pylist(), strict=True)
    for blob, n_bytes in rows:
        moved[blob] = moved.get(blob, 0) + int(n_bytes or 0)
    return dict(sorted(moved.items(), key=lambda item: (-item[1], item[0])))


def pulled_whole(table: pa.Table) -> str:
    """The blob that moved most: in a trace of a crowd, the crowd's. InputError if none did."""
    found = blobs(table)
    if not found:
        raise InputError(400, "UNKNOWN", "in this trace no piece was fetched")
    return next(iter(found))


def facts(path: Path) -> style.Table:
    """What a trace says about itself, and in the terms of `passel sim`."""
    known = analysis.facts_of(path)
    table = read_trace(path)
    rows: list[tuple[str, str]] = [
        ("events", str(table.num_rows)),
        ("nodes with readers", str(known["nodes"])),
        ("blobs", ", ".join(style.size(n) + " moved" for n in blobs(table).values())),
        ("distinct bytes", style.size(known["bytes"]["blobs"])),
        ("from the registry", style.size(known["bytes"]["origin"])),
        ("between zones", style.size(known["bytes"]["cross_zone"])),
        ("reads", str(analysis.rows_of(table, "read").num_rows)),
        ("reads that failed", str(known["failed_reads"])),
    ]
    return style.table(["", path.name], rows)


# ------------------------------------------------------------------------------------- who fed whom


@style.picture
def who_fed_whom(table: pa.Table, blob: str | None = None) -> Figure:
    """The piece-parent graph: an arrow for who sent to whom, as thick as the bytes."""
    fed = analysis.who_fed_whom(table, blob)
    if len(fed.nodes) > DRAWN_MAX:
        return _matrix(fed)
    figure, (left, right) = style.canvas(2, height_in=4.3, widths=(1.15, 1))
    _graph(left, fed)
    _matrix_on(figure, right, fed)
    return figure


def _graph(axes: Axes, fed: analysis.Fed) -> None:
    n_nodes = len(fed.nodes)
    angles = np.pi / 2 - 2 * np.pi * (np.arange(n_nodes) + 0.5) / max(n_nodes, 1)
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places = np.concatenate([places, [[0.0, 0.0]]])
    zones = list(dict.fromkeys(fed.zones))
    colour_of = dict(zip(zones, style.CYCLE * 8, strict=False))
    most = fed.n_bytes.max(initial=1.0)
    for i, j in zip(*np.nonzero(fed.n_bytes), strict=True):
        is_origin = i == n_nodes
        colour = style.RED if is_origin else colour_of[fed.zones[i]]
        axes.add_patch(
            FancyArrowPatch(
                tuple(places[i]),
                tuple(places[j]),
                connectionstyle="arc3,rad=0.12",
                arrowstyle="-|>",
                mutation_scale=11,
                shrinkA=11,
                shrinkB=12,
                linewidth=0.6 + 3.4 * fed.n_bytes[i, j] / most,
                color=colour,
                alpha=0.75,
            )
        )
    names = [*fed.nodes, "registry"]
    colours = [*(colour_of[zone] for zone in fed.zones), style.RED]
    for (x, y), name, colour in zip(places, names, colours, strict=True):
        axes.plot(x, y, "o", color=colour, markersize=17, markeredgecolor="white", zorder=3)
        is_short = len(name) <= 4
        axes.annotate(
            name,
            (x, y) if is_short else (x, y - 0.13),
            ha="center",
            va="center" if is_short else "top",
            color="white" if is_short else style.BLACK,
            fontsize=8,
            zorder=4,
        )
    for zone in zones:
        axes.plot([], [], "o", color=colour_of[zone], label=f"zone {zone}")
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
    axes.axis("off")
    axes.set_title("Who fed whom")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.12, -0.06))


def _matrix(fed: analysis.Fed) -> Figure:
    figure, (axes,) = style.canvas(height_in=5.0)
    _matrix_on(figure, axes, fed)
    return figure


def _matrix_on(figure: Figure, axes: Axes, fed: analysis.Fed) -> None:
    mesh = axes.imshow(fed.n_bytes / MIB, cmap=style.HEAT, aspect="auto", vmin=0)
    figure.colorbar(mesh, ax=axes, label="sent [MiB]")
    axes.grid(visible=False)
    if len(fed.nodes) <= DRAWN_MAX:
        axes.set_xticks(range(len(fed.nodes)), fed.nodes)
        axes.set_yticks(range(len(fed.nodes) + 1), [*fed.nodes, "registry"])
    style.label(axes, "The same in bytes", "child", "parent")


@style.picture
def way_of_a_piece(table: pa.Table, piece: int = 0, blob: str | None = None) -> Figure:
    """How one piece went from node to node, over time. InputError if nobody fetched it."""
    blob = pulled_whole(table) if blob is None else blob
    pieces = analysis.good_pieces(table)
    rows = [
        row
        for row in pieces.select(
            ["at_s", "node", "zone", "parent", "piece", "blob", "queue_s", "transfer_s"]
        ).to_pylist()
        if row["blob"] == blob and row["piece"] == piece
    ]
    if not rows:
        raise InputError(400, "UNKNOWN", f"piece: nobody fetched piece {piece} of this blob")
    rows.sort(key=lambda row: row["at_s"])
    first = min(row["at_s"] - row["transfer_s"] for row in rows)
    place = {row["node"]: (row["at_s"] - first, i) for i, row in enumerate(rows)}
    zones = sorted({str(row["zone"]) for row in rows})
    colour_of = dict(zip(zones, style.CYCLE * 8, strict=False))
    figure, (axes,) = style.canvas(height_in=max(2.4, 1.2 + 0.24 * len(rows)))
    for i, row in enumerate(rows):
        began, end = row["at_s"] - row["transfer_s"] - first, row["at_s"] - first
        colour = colour_of[str(row["zone"])]
        axes.plot([began * 1e3, end * 1e3], [i, i], color=colour, linewidth=5, alpha=0.45)
        axes.plot(end * 1e3, i, "o", color=colour)
        parent = place.get(row["parent"])
        if parent is not None:
            axes.annotate(
                "",
                (began * 1e3, i),
                (parent[0] * 1e3, parent[1]),
                arrowprops={"arrowstyle": "->", "color": style.GREY, "shrinkA": 4, "shrinkB": 1},
            )
    names = [f"{row['node']}" + (" (registry)" if row["parent"] is None else "") for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    for zone in zones:
        axes.plot([], [], "o", color=colour_of[zone], label=f"zone {zone}")
    axes.legend(loc="lower left")
    title = f"The way of piece {piece}: bars are transfers, arrows say from whom"
    style.label(axes, title, "time since its first byte [ms]", "node")
    return figure


# ------------------------------------------------------------------------------------- pieces


@style.picture
def heat_map(table: pa.Table, blob: str | None = None) -> Figure:
    """Copies of each piece that came over time."""
    blob = pulled_whole(table) if blob is None else blob
    edges, came = analysis.pieces_over_time(table, blob, n_bins=60)
    figure, (axes,) = style.canvas(height_in=3.8)
    rows = np.arange(came.shape[0] + 1) - 0.5
    mesh = axes.pcolormesh(edges - edges[0], rows, came, cmap=style.HEAT, rasterized=True)
    figure.colorbar(mesh, ax=axes, label="copies that came")
    axes.grid(visible=False)
    style.label(axes, "Pieces over time", "time [s]", "piece [number]")
    return figure


@style.picture
def sources(table: pa.Table) -> Figure:
    """Where each node got its bytes from, and how many reads were hits."""
    figure, (left, right) = style.canvas(2, height_in=3.4, widths=(1.5, 1))
    pieces = analysis.good_pieces(table)
    by_node: dict[str, dict[str, float]] = {}
    columns = (pieces[name].to_pylist() for name in ("node", "source", "bytes"))
    for node, source, n_bytes in zip(*columns, strict=True):
        row = by_node.setdefault(node, {})
        row[source] = row.get(source, 0.0) + (n_bytes or 0) / MIB
    nodes = sorted(by_node, key=lambda node: (len(node), node))
    below = np.zeros(len(nodes))
    for source in ("peer", "seed", "origin"):
        values = np.array([by_node[node].get(source, 0.0) for node in nodes])
        name = "registry" if source == "origin" else source
        colour = style.SOURCE_COLOURS[source]
        left.bar(range(len(nodes)), values, bottom=below, color=colour, label=name)
        below += values
    if len(nodes) <= DRAWN_MAX:
        left.set_xticks(range(len(nodes)), nodes)
    left.set_ylim(0, below.max(initial=1.0) * 1.3)
    left.grid(visible=False, axis="x")
    style.label(left, "What nodes fetched, by source", "node", "fetched [MiB]")
    left.legend(ncols=3, loc="upper left")
    style.bars(
        right,
        hit_shares(table),
        [style.SOURCE_COLOURS.get(name, style.BLACK) for name in hit_shares(table)],
        text=lambda value: f"{value * 100:.1f} %",
    )
    style.as_percent(right.xaxis)
    style.label(right, "Reads by the source of their first byte", "share of reads", "")
    return figure


def hit_shares(table: pa.Table) -> dict[str, float]:
    """The share of reads by where their first byte came from."""
    counts: dict[str, int] = {}
    for source in analysis.rows_of(table, "read")["source"].to_pylist():
        counts[source or "unknown"] = counts.get(source or "unknown", 0) + 1
    total = sum(counts.values())
    order = ["local", "peer", "seed", "origin", "unknown"]
    known = sorted(counts, key=lambda name: order.index(name) if name in order else len(order))
    return {name: counts[name] / total for name in known}


@style.picture
def slow_parents(table: pa.Table) -> Figure:
    """The slowest parents by the median rate of what they sent. InputError if nobody sent much."""
    found = analysis.slow_parents(table, n_most=10)
    if not found:
        raise InputError(400, "UNKNOWN", "no parent sent five pieces in this trace")
    figure, (axes,) = style.canvas(height_in=0.9 + 0.32 * len(found))
    values = {f"{row['parent']} ({row['pieces']} pieces)": row["rate"] / MIB for row in found}
    middle = float(np.median(list(values.values())))
    colours = [style.RED if value < 0.5 * middle else style.BLUE for value in values.values()]
    style.bars(axes, values, colours, text=lambda value: f"{style.number(value)} MiB/s")
    title = "Slowest parents (red: less than half of the median)"
    style.label(axes, title, "median rate of a piece [MiB/s]", "")
    return figure


# ------------------------------------------------------------------------------------- reads


@style.picture
def reads(table: pa.Table, blob: str) -> Figure:
    """Sizes of reads and where they lie, in the order of time. InputError if there is none."""
    wanted = [row for row in analysis.rows_of(table, "read").to_pylist() if row["blob"] == blob]
    if not wanted:
        raise InputError(400, "UNKNOWN", "blob: nobody read this blob in the trace")
    figure, (left, right) = style.canvas(2, height_in=3.5, widths=(1, 1.5))
    sizes = np.array([max(row["bytes"] or 0, 1) for row in wanted]) / 1024
    edges = np.geomspace(max(sizes.min() / 1.5, 0.5), sizes.max() * 1.5, 24)
    left.hist(sizes, bins=list(edges), color=style.BLUE)
    left.set_xscale("log")
    style.plain_numbers(left.xaxis)
    style.label(left, "Sizes of reads", "bytes of a read [KiB]", "reads")
    nodes = sorted({row["node"] for row in wanted}, key=lambda node: (len(node), node))
    for i, (node, colour) in enumerate(zip(nodes, style.CYCLE * 8, strict=False)):
        mine = [row for row in wanted if row["node"] == node]
        right.plot(
            range(len(mine)),
            [row["start"] / MIB for row in mine],
            ".",
            markersize=max(12 - 4 * i, 3),  # the same reads on another node stay visible
            color=colour,
            label=str(node),
        )
    share = analysis.sequential_share(table)
    title = f"Sequence: {share * 100:.0f} % go on where the last ended"
    style.label(right, title, "read [number on its node]", "place in the blob [MiB]")
    if len(nodes) <= LEGEND_MAX:
        right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.2)
    return figure


@style.picture
def prefetch(table: pa.Table, blob: str) -> Figure:
    """How long reads of one blob waited, and what a list made on the first node would have saved.

    InputError if nobody read it.
    """
    wanted = table.filter(pc.equal(table["blob"].cast(pa.string()), blob))
    waits = analysis.read_latencies(wanted)
    if not waits.size:
        raise InputError(400, "UNKNOWN", "blob: nobody read this blob in the trace")
    total, saved = float(np.nansum(waits)), analysis.prefetch_saving_s(wanted)
    figure, (left, right) = style.canvas(2, height_in=3.0)
    share = np.arange(1, waits.size + 1) / waits.size
    left.step(waits * 1e3, share, where="post", color=style.BLUE)
    left.set_xscale("log")
    style.plain_numbers(left.xaxis)
    style.as_percent(left.yaxis)
    style.label(left, "Until the first byte", "wait of a read [ms]", "reads")
    values: Mapping[str, float] = {"all waits": total, "saved by a list": saved}
    style.bars(right, values, [style.SKY, style.GREEN], text=lambda value: f"{value:.2f} s")
    style.label(right, "All nodes together", "time waited [s]", "")
    return figure
