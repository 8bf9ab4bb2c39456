"""Why a pull took as long as it took: its bound, the term that binds, and what was lost against it.

From the pieces of a trace, live or simulated. Links are not known to a trace: the speed of one is
the best that it was seen to do for a while, which is what it can do at least, so the bound is one
for links of that speed.

A rollout waits first of all for those who fetch from the origin (the sources), because every piece
has to leave them once. Therefore the time is told as what their uplinks did with it; the parts add
up to the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from passel.core.graph.bounds import Bound, rollout_bound
from passel.errors import InputError
from passel.telemetry.analysis import good_pieces

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

#: A pull is looked at in so many equal times; a link's speed is that of its best ones.
N_BINS = 60
#: Of the times in which a link was busy, those above this quantile count as its speed.
BEST = 0.9


@dataclass(frozen=True, slots=True)
class Transfers:
    """The pieces of one blob, one entry per fetch that brought one. Times in seconds.

    Attributes
    ----------
    child, parent : (n,) int64
        Indices into `nodes`; -1 as parent is the origin.
    piece, n_bytes : (n,) int64
    asked_s, first_s, last_s : (n,) float64
        When it was asked for, when its first byte came, when it was verified.
    """

    nodes: list[str]
    zones: list[str]
    child: Index
    parent: Index
    piece: Index
    n_bytes: Floats
    asked_s: Floats
    first_s: Floats
    last_s: Floats


@dataclass(frozen=True, slots=True)
class NodePull:
    """One node's part. `waits_s`: how long its pieces took to begin, the median."""

    node: str
    zone: str
    is_source: bool
    done_s: float
    n_bytes: int
    from_source: int
    from_origin: int
    sent_bytes: int
    waits_s: float
    slowest_parent: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`parts` add up to `took_s`; the first one, "the blob once", is what cannot be saved."""

    blob: str
    size: int
    n_pieces: int
    n_nodes: int
    n_zones: int
    took_s: float
    bound: Bound
    parts: dict[str, float]
    origin_bytes: int
    cross_zone_bytes: int
    nodes: list[NodePull]

    @property
    def ratio(self) -> float:
        return self.took_s / self.bound.seconds if self.bound.seconds else 1.0


def _wrong(sentence: str) -> InputError:
    return InputError(400, "UNKNOWN", sentence)


def blobs_of(table: pa.Table) -> dict[str, int]:
    """Blob -> bytes that were fetched of it, most first."""
    pieces = good_pieces(table)
    total: dict[str, int] = {}
    for blob, n in zip(pieces["blob"].to_pylist(), pieces["bytes"].to_pylist(), strict=True):
        total[blob] = total.get(blob, 0) + int(n or 0)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def choose_blob(table: pa.Table, name: str) -> str:
    """The blob whose id begins with `name`; the one that was fetched most for "".

    Raises InputError when there is none, or more than one.
    """
    known = blobs_of(table)
    if not known:
        raise _wrong("no piece was fetched in this trace")
    found = [blob for blob in known if blob.startswith(name)]
    if not found:
        raise _wrong(f"no blob of this trace begins with {name}; it has {', '.join(known)}")
    if name and len(found) > 1:
        raise _wrong(f"{name} may be {' or '.join(found)}")
    return found[0]


def transfers_of(table: pa.Table, blob: str) -> Transfers:
    """What was fetched of a blob."""
    pieces = good_pieces(table)
    pieces = pieces.filter(pc.equal(pc.cast(pieces["blob"], pa.string()), blob))
    children, parents = pieces["node"].to_pylist(), pieces["parent"].to_pylist()
    zone_of = dict(zip(children, pieces["zone"].to_pylist(), strict=True))
    for parent, zone in zip(parents, pieces["parent_zone"].to_pylist(), strict=True):
        if parent is not None:
            zone_of.setdefault(parent, zone)
    nodes = sorted(zone_of, key=lambda node: (str(zone_of[node]), len(node), node))
    index = {node: i for i, node in enumerate(nodes)}

    def numbers(column: str) -> Floats:
        filled = pc.fill_null(pc.cast(pieces[column], pa.float64()), 0.0)
        return np.asarray(filled.to_numpy(), dtype=np.float64)

    last_s = numbers("at_s")
    first_s = last_s - numbers("transfer_s") - numbers("verify_s")
    return Transfers(
        nodes,
        [str(zone_of[node]) for node in nodes],
        np.array([index[child] for child in children], dtype=np.int64),
        np.array([-1 if p is None else index[p] for p in parents], dtype=np.int64),
        numbers("piece").astype(np.int64),
        numbers("bytes"),
        first_s - numbers("queue_s"),
        first_s,
        last_s,
    )


def explain(table: pa.Table, blob: str) -> Explanation:
    """Raises InputError if nothing of the blob was fetched."""
    pulled = transfers_of(table, blob)
    if not pulled.child.size:
        raise _wrong(f"nothing of {blob} was fetched in this trace")
    _, firsts = np.unique(pulled.piece, return_index=True)
    size, largest = float(pulled.n_bytes[firsts].sum()), float(pulled.n_bytes.max())
    began = float(pulled.asked_s.min())
    took_s = float(pulled.last_s.max()) - began
    sources = np.unique(pulled.child[pulled.parent < 0])
    up, down = _speeds(pulled, began, took_s)
    receivers = np.setdiff1d(np.unique(pulled.child), sources)
    # Who sent nothing has an uplink too, most likely one like the others'.
    usual = float(np.median(up[up > 0])) if (up > 0).any() else float(down.max())
    up = np.where(up > 0, up, usual)
    seed_up = float(up[sources].sum()) if sources.size else usual
    origin = _speed(pulled, pulled.parent < 0, began, took_s)
    bound = rollout_bound(
        size,
        up[receivers],
        down[receivers],
        seed_up=seed_up,
        piece_size=largest,
        origin=origin or None,
        n_zones=len(set(pulled.zones)),
    )
    zone = np.array(pulled.zones)
    between = pulled.parent >= 0
    crosses = zone[pulled.child[between]] != zone[pulled.parent[between]]
    return Explanation(
        blob,
        int(size),
        int(firsts.size),
        len(pulled.nodes),
        len(set(pulled.zones)),
        took_s,
        bound,
        _parts(pulled, sources, size, seed_up, began, took_s),
        int(pulled.n_bytes[pulled.parent < 0].sum()),
        int(pulled.n_bytes[between][crosses].sum()),
        _nodes(pulled, sources, began),
    )


def _speed(pulled: Transfers, chosen: NDArray[np.bool_], began: float, took_s: float) -> float:
    """The best rate at which the chosen transfers went together, bytes per second; 0: none."""
    if not chosen.any():
        return 0.0
    edges = np.linspace(began, began + max(took_s, 1e-6), N_BINS + 1)
    first, last = pulled.first_s[chosen], pulled.last_s[chosen]
    length = np.maximum(last - first, 1e-6)
    inside = np.minimum(last, edges[1:, None]) - np.maximum(first, edges[:-1, None])
    rates = (np.maximum(inside, 0.0) * (pulled.n_bytes[chosen] / length)).sum(axis=1)
    rates /= edges[1] - edges[0]
    return float(np.quantile(rates[rates > 0], BEST)) if (rates > 0).any() else 0.0


def _speeds(pulled: Transfers, began: float, took_s: float) -> tuple[Floats, Floats]:
    """(n_nodes,) uplinks and downlinks; 0 where nothing went."""
    each = range(len(pulled.nodes))
    up = [_speed(pulled, pulled.parent == node, began, took_s) for node in each]
    down = [_speed(pulled, pulled.child == node, began, took_s) for node in each]
    return np.array(up), np.array(down)


def _parts(
    pulled: Transfers, sources: Index, size: float, seed_up: float, began: float, took_s: float
) -> dict[str, float]:
    """What the sources' uplinks did with the time."""
    sent = np.flatnonzero(np.isin(pulled.parent, sources) & ~np.isin(pulled.child, sources))
    if not sent.size:
        return {"from the origin alone": took_s}
    order = sent[np.argsort(pulled.last_s[sent], kind="stable")]
    _, first = np.unique(pulled.piece[order], return_index=True)
    once = order[first]
    first_s, last_s = float(pulled.first_s[sent].min()), float(pulled.last_s[once].max())
    in_time = sent[pulled.last_s[sent] <= last_s]
    again = float(pulled.n_bytes[in_time].sum() - pulled.n_bytes[once].sum())
    blob_s, again_s = size / seed_up, again / seed_up
    left_once = float(pulled.n_bytes[once].sum())
    return {
        "the blob once": blob_s,
        "until the first byte left a source": first_s - began,
        "sent twice by a source": again_s,
        "sources idle": (last_s - first_s) - left_once / seed_up - again_s,
        "pieces that no source had to send": (left_once - size) / seed_up,
        "after the last piece had left": began + took_s - last_s,
    }


def _nodes(pulled: Transfers, sources: Index, began: float) -> list[NodePull]:
    found = []
    for node, name in enumerate(pulled.nodes):
        mine = pulled.child == node
        if not mine.any():
            continue
        n_bytes = pulled.n_bytes[mine]
        parent = pulled.parent[mine]
        found.append(
            NodePull(
                name,
                pulled.zones[node],
                bool(np.isin(node, sources)),
                float(pulled.last_s[mine].max()) - began,
                int(n_bytes.sum()),
                int(n_bytes[np.isin(parent, sources)].sum()),
                int(n_bytes[parent < 0].sum()),
                int(pulled.n_bytes[pulled.parent == node].sum()),
                float(np.median(pulled.first_s[mine] - pulled.asked_s[mine])),
                _slowest_parent(pulled, mine),
            )
        )
    return sorted(found, key=lambda each: -each.done_s)


def _slowest_parent(pulled: Transfers, mine: NDArray[np.bool_]) -> str:
    """The name of whoever took longest per byte, waiting included, of those with several pieces."""
    rates: dict[int, float] = {}
    for parent in np.unique(pulled.parent[mine]):
        its = mine & (pulled.parent == parent)
        if np.count_nonzero(its) >= 2:
            took = (pulled.last_s[its] - pulled.asked_s[its]).sum()
            rates[int(parent)] = float(pulled.n_bytes[its].sum() / max(took, 1e-9))
    if not rates:
        return ""
    slowest = min(rates, key=rates.__getitem__)
    return "the origin" if slowest < 0 else pulled.nodes[slowest]
