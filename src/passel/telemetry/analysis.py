"""Questions to a trace, live or simulated: who fed whom, from where, how long it took.

Arrays and plain tables come back; drawing them is somebody else's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from passel.telemetry.trace import read_trace

Floats = NDArray[np.float64]


def rows_of(table: pa.Table, kind: str) -> pa.Table:
    """The events of one kind."""
    return table.filter(pc.equal(pc.cast(table["kind"], pa.string()), kind))


def _texts(table: pa.Table, column: str) -> list[str | None]:
    texts: list[str | None] = table[column].to_pylist()
    return texts


def _numbers(table: pa.Table, column: str) -> Floats:
    filled = pc.fill_null(pc.cast(table[column], pa.float64()), float("nan"))
    return np.asarray(filled.to_numpy(), dtype=np.float64)


def good_pieces(table: pa.Table) -> pa.Table:
    """Fetches of pieces that brought them."""
    pieces = rows_of(table, "piece")
    return pieces.filter(pc.equal(pc.cast(pieces["outcome"], pa.string()), "ok"))


def bytes_by_source(table: pa.Table) -> dict[str, int]:
    """Bytes that nodes got from peers, seeds and the origin."""
    pieces = good_pieces(table)
    total: dict[str, int] = {"peer": 0, "seed": 0, "origin": 0}
    for source, n_bytes in zip(_texts(pieces, "source"), pieces["bytes"].to_pylist(), strict=True):
        total[str(source)] = total.get(str(source), 0) + int(n_bytes or 0)
    return total


def cross_zone_bytes(table: pa.Table) -> int:
    """Bytes of pieces that came from a node of another zone."""
    pieces = good_pieces(table)
    zones, parents = _texts(pieces, "zone"), _texts(pieces, "parent_zone")
    sizes = pieces["bytes"].to_pylist()
    return sum(
        int(n or 0)
        for z, p, n in zip(zones, parents, sizes, strict=True)
        if p is not None and z != p
    )


@dataclass(frozen=True)
class Fed:
    """`n_bytes[i, j]` went from `nodes[i]` to `nodes[j]`; the last row is the origin."""

    nodes: list[str]
    zones: list[str]
    n_bytes: Floats


def who_fed_whom(table: pa.Table, blob: str | None = None) -> Fed:
    """The piece-parent graph as it was carried out, of one blob or of all."""
    pieces = good_pieces(table)
    if blob is not None:
        pieces = pieces.filter(pc.equal(pc.cast(pieces["blob"], pa.string()), blob))
    children, parents = _texts(pieces, "node"), _texts(pieces, "parent")
    zone_of = dict(zip(map(str, children), map(str, _texts(pieces, "zone")), strict=True))
    for parent, zone in zip(parents, _texts(pieces, "parent_zone"), strict=True):
        if parent is not None:
            zone_of.setdefault(parent, str(zone))
    nodes = sorted(zone_of, key=lambda node: (zone_of[node], len(node), node))
    index = {node: i for i, node in enumerate(nodes)}
    n_bytes = np.zeros((len(nodes) + 1, len(nodes)))
    for child, parent, n in zip(children, parents, pieces["bytes"].to_pylist(), strict=True):
        row = len(nodes) if parent is None else index[parent]
        n_bytes[row, index[str(child)]] += n or 0
    return Fed(nodes, [zone_of[node] for node in nodes], n_bytes)


def pieces_over_time(table: pa.Table, blob: str, n_bins: int = 100) -> tuple[Floats, Floats]:
    """(edges of n_bins times, (n_pieces, n_bins) copies that came in each): a heat map."""
    pieces = good_pieces(table)
    pieces = pieces.filter(pc.equal(pc.cast(pieces["blob"], pa.string()), blob))
    at_s, piece = _numbers(pieces, "at_s"), _numbers(pieces, "piece")
    if not at_s.size:
        return np.zeros(n_bins + 1), np.zeros((0, n_bins))
    edges = np.linspace(at_s.min(), max(at_s.max(), at_s.min() + 1e-9), n_bins + 1)
    rows = np.arange(int(piece.max()) + 2) - 0.5
    counts, _, _ = np.histogram2d(piece, at_s, bins=(rows, edges))
    return edges, np.asarray(counts, dtype=np.float64)


def slow_parents(table: pa.Table, n_most: int = 10) -> list[dict[str, Any]]:
    """The parents with the lowest median rate, bytes per second, among those with 5 pieces."""
    pieces = good_pieces(table)
    took_s, sizes = _numbers(pieces, "transfer_s"), _numbers(pieces, "bytes")
    rates: dict[str, list[float]] = {}
    for parent, seconds, n in zip(_texts(pieces, "parent"), took_s, sizes, strict=True):
        if parent is not None and seconds > 0:
            rates.setdefault(parent, []).append(n / seconds)
    found = [
        {"parent": parent, "pieces": len(each), "rate": float(np.median(each))}
        for parent, each in rates.items()
        if len(each) >= 5
    ]
    return sorted(found, key=lambda row: (row["rate"], row["parent"]))[:n_most]


def read_latencies(table: pa.Table) -> Floats:
    """Seconds until the first byte of each read, ascending."""
    return np.sort(_numbers(rows_of(table, "read"), "queue_s"))


def read_sizes(table: pa.Table) -> Floats:
    """Bytes of each read."""
    return _numbers(rows_of(table, "read"), "bytes")


def sequential_share(table: pa.Table) -> float:
    """The share of reads that begin where the one before on the same node and blob ended."""
    reads = rows_of(table, "read")
    before: dict[tuple[str | None, str | None], int | None] = {}
    n_sequential = n_reads = 0
    columns = (_texts(reads, "node"), _texts(reads, "blob"))
    spans = zip(reads["start"].to_pylist(), reads["stop"].to_pylist(), strict=True)
    for node, blob, (start, stop) in zip(*columns, spans, strict=True):
        if (node, blob) in before:
            n_reads += 1
            n_sequential += before[node, blob] == start
        before[node, blob] = stop
    return n_sequential / n_reads if n_reads else 0.0


def prefetch_saving_s(table: pa.Table) -> float:
    """What all nodes but the first would have waited less, had they known its reads beforehand.

    The waits for first bytes of ranges of pieces that the first node had read before: a prefetch
    list made from it would have brought them in time.
    """
    reads = rows_of(table, "read")
    waits = _numbers(reads, "queue_s")
    nodes, blobs = _texts(reads, "node"), _texts(reads, "blob")
    starts = reads["start"].to_pylist()
    if not nodes:
        return 0.0
    first = nodes[int(np.argmin(_numbers(reads, "at_s") - waits))]
    known = {(b, s) for n, b, s in zip(nodes, blobs, starts, strict=True) if n == first}
    return float(
        sum(
            wait
            for wait, node, blob, start in zip(waits, nodes, blobs, starts, strict=True)
            if node != first and (blob, start) in known
        )
    )


def facts_of(path: Path) -> dict[str, Any]:
    """A trace in the terms of `passel sim --json`, as far as a trace knows them."""
    table = read_trace(path)
    reads = rows_of(table, "read")
    at_s, queue_s = _numbers(reads, "at_s"), _numbers(reads, "queue_s")
    transfer_s = np.nan_to_num(_numbers(reads, "transfer_s"))
    began = at_s - queue_s - transfer_s
    outcomes = _texts(reads, "outcome")
    ends: dict[str, float] = {}
    begins: dict[str, float] = {}
    for node, begin, end, outcome in zip(_texts(reads, "node"), began, at_s, outcomes, strict=True):
        begins[str(node)] = min(begins.get(str(node), begin), begin)
        if outcome == "ok":
            ends[str(node)] = max(ends.get(str(node), end), end)
    took = np.array([ends[node] - begins[node] for node in ends])
    first = min(begins.values(), default=0.0)
    by_source = bytes_by_source(table)
    pieces = good_pieces(table)
    sizes = dict(
        zip(
            zip(_texts(pieces, "blob"), pieces["piece"].to_pylist(), strict=True),
            pieces["bytes"].to_pylist(),
            strict=True,
        )
    )
    blobs = sum(int(n or 0) for n in sizes.values())
    n_zones = len({zone for zone in _texts(pieces, "zone") if zone is not None})
    return {
        "nodes": len(begins),
        "finished": len(ends),
        "makespan_s": max(ends.values()) - first if ends else None,
        "node_s": _quantiles(took, (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))),
        "read_s": _quantiles(queue_s, (("p50", 0.5), ("p99", 0.99), ("max", 1.0))),
        "bytes": {
            "blobs": blobs,
            "origin": by_source["origin"],
            "cross_zone": cross_zone_bytes(table),
            "cross_zone_min": blobs * max(n_zones - 1, 0),
        },
        "decisions": int(np.nansum(_numbers(rows_of(table, "epoch"), "n_edges"))),
        "failed_reads": sum(outcome != "ok" for outcome in outcomes),
        "cost": {},
    }


def _quantiles(values: Floats, wanted: tuple[tuple[str, float], ...]) -> dict[str, float | None]:
    return {name: float(np.quantile(values, q)) if values.size else None for name, q in wanted}
