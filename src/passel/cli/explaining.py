"""`passel explain`: why a pull took as long as it took."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from passel.cli.cluster import JsonOption
from passel.cli.console import errors_are_sentences, out, print_json, print_table, size

if TYPE_CHECKING:
    from passel.telemetry.explain import Explanation, NodePull

NODES_SHOWN = 12


def explain(
    trace: Annotated[Path, typer.Argument(help="From `passel trace record` or `sim --trace`.")],
    what: Annotated[
        str, typer.Argument(help="A node, or how a blob's id begins. Left out: the largest pull.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Why a pull took as long as it took: the bound, what binds it, what was lost and where."""
    from passel.telemetry import explain as telling
    from passel.telemetry.trace import read_trace

    with errors_are_sentences():
        table = read_trace(trace)
        node = what if what in set(table["node"].to_pylist()) else ""
        blob = telling.choose_blob(table, "" if node else what)
        found = telling.explain(table, blob)
        if as_json:
            facts = asdict(found)
            facts["bound"] = {**facts["bound"], "seconds": found.bound.seconds}
            print_json({**facts, "ratio": found.ratio})
            return
        _print_blob(found)
        chosen = [each for each in found.nodes if each.node == node] if node else found.nodes
        _print_nodes(chosen[:NODES_SHOWN], len(found.nodes))


def _print_blob(found: Explanation) -> None:
    bound = found.bound
    out.print(f"blob {found.blob}", markup=False)
    out.print(
        f"{size(found.size)} in {found.n_pieces} pieces, {found.n_nodes} nodes in "
        f"{found.n_zones} zones",
        markup=False,
    )
    out.print(
        f"took {found.took_s:.3f} s, {found.ratio:.2f} x the bound of {bound.seconds:.3f} s",
        markup=False,
    )
    terms = sorted(bound.terms.items(), key=lambda item: -item[1])
    out.print("bound by " + ", ".join(f"{name} {s:.3f} s" for name, s in terms), markup=False)
    if bound.pieces_s:
        out.print(
            f"         and {bound.pieces_s:.3f} s because whole pieces are passed on", markup=False
        )
    least = found.size * max(found.n_zones - 1, 0)
    out.print(
        f"the origin sent {size(found.origin_bytes)}, between zones went "
        f"{size(found.cross_zone_bytes)} (the least: {size(least)})",
        markup=False,
    )
    out.print("what the sources' uplinks did with the time:", markup=False)
    rows = [
        [name, f"{seconds:.3f}", f"{seconds / found.took_s:.1%}"]
        for name, seconds in found.parts.items()
        if abs(seconds) >= 5e-4
    ]
    print_table(["part", "seconds", "share"], rows)


def _print_nodes(nodes: list[NodePull], n_all: int) -> None:
    rows = [
        [
            each.node,
            each.zone,
            "source" if each.is_source else "",
            f"{each.done_s:.3f}",
            size(each.from_origin),
            size(each.from_source),
            size(each.n_bytes - each.from_source - each.from_origin),
            size(each.sent_bytes),
            f"{each.waits_s * 1000:.0f} ms",
            each.slowest_parent,
        ]
        for each in nodes
    ]
    out.print(f"nodes, the last ones first ({len(nodes)} of {n_all}):", markup=False)
    columns = ["node", "zone", "", "seconds", "origin", "source", "others", "sent", "waits"]
    print_table([*columns, "slowest parent"], rows)
