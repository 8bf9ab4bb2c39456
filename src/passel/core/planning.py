"""The bulk of one epoch for one blob: what the shard knows as arrays, the graph as edges.

The decisions are in `passel.core.graph`; urgent pieces are not among them, they were given a parent
in the very call that asked for them (`shard`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from passel.core import bitfield
from passel.core.graph import Ints, PieceParentGraph, SwarmState, plan
from passel.core.messages import Edge, PeerInfo
from passel.core.swarm import Row, Swarm
from passel.ids import PeerId

#: Pieces that a link moves side by side: edges of one step of a plan. Fewer leave a link idle when
#: the other end is busy; more make every piece late, and with it all that follows from it.
PER_STEP = 4
#: Holders have more and more: yesterday's choice of fallbacks is as good as a new one.
FALLBACKS_EVERY = 8


@dataclass(slots=True)
class BulkPlan:
    """Edges and fallback parents, by child; the turns that it took."""

    edges: dict[PeerId, list[Edge]] = field(default_factory=dict)
    fallbacks: dict[PeerId, tuple[PeerId, ...]] = field(default_factory=dict)
    n_steps: int = 0


def plan_bulk(
    swarm: Swarm,
    peers: Mapping[PeerId, PeerInfo],
    rng: np.random.Generator,
    now: float,
    first_turn: int,
) -> BulkPlan:
    """Edges for every peer that wants the rest of the blob and has room for more."""
    bulk = BulkPlan()
    members = list(swarm.rows)
    state = _state(swarm, members, peers)
    if not state.wants.any() or not state.have.any():
        return bulk
    bulk.n_steps = _n_steps(int(state.up_depth.max()))
    is_due = swarm.epoch % FALLBACKS_EVERY == 0
    graph = plan(state, now, rng, bulk.n_steps, with_fallbacks=is_due)
    for child, piece, parent, waits, step in zip(
        graph.child.tolist(),
        graph.piece.tolist(),
        graph.parent.tolist(),
        graph.waits.tolist(),
        graph.step.tolist(),
        strict=True,
    ):
        edge = Edge(piece, members[parent], swarm.digest(piece), wait=waits, turn=first_turn + step)
        bulk.edges.setdefault(members[child], []).append(edge)
    _note_fallbacks(bulk, graph, members)
    return bulk


def _n_steps(depth: int) -> int:
    return max(1, depth // PER_STEP)


def _note_fallbacks(bulk: BulkPlan, graph: PieceParentGraph, members: Sequence[PeerId]) -> None:
    for index, row in enumerate(graph.fallbacks.tolist()):
        if members[index] in bulk.edges:
            bulk.fallbacks[members[index]] = tuple(members[p] for p in row if p >= 0)


def _state(swarm: Swarm, members: Sequence[PeerId], peers: Mapping[PeerId, PeerInfo]) -> SwarmState:
    """The swarm as arrays over `members`."""
    assert swarm.geometry is not None
    n_pieces = swarm.geometry.n_pieces
    rows = [swarm.rows[peer] for peer in members]
    zones = {zone: i for i, zone in enumerate(sorted({peers[p].zone for p in members}))}
    racks = {rack: i for i, rack in enumerate(sorted({peers[p].rack for p in members}))}
    index = {peer: i for i, peer in enumerate(members)}
    lease = swarm.lease
    fetching = 0 if lease is None or lease.todo is None else lease.todo
    fetches = [lease is not None and lease.holder == p for p in members]
    up, down = swarm.traffic.up, swarm.traffic.down
    up_depth = [up.depth(p) for p in members]
    banned = [
        (index[child], index[parent])
        for child in members
        for parent in swarm.rows[child].banned
        if parent in index
    ]
    return SwarmState(
        n_pieces=n_pieces,
        have=bitfield.pack([row.offers for row in rows], n_pieces),
        coming=bitfield.pack(
            [
                _coming(row) | (fetching if fetches_it else 0)
                for row, fetches_it in zip(rows, fetches, strict=True)
            ],
            n_pieces,
        ),
        wants=bitfield.pack(_wants(swarm, members, peers), n_pieces),
        up_depth=np.array(up_depth, dtype=np.int32),
        down_depth=np.array(
            [
                _slow_depth(row) if row.is_slow_child else down.depth(peer)
                for peer, row in zip(members, rows, strict=True)
            ],
            dtype=np.int32,
        ),
        flying=_flying(swarm, index, up_depth),
        zone=np.array([zones[peers[p].zone] for p in members], dtype=np.int32),
        rack=np.array([racks[peers[p].rack] for p in members], dtype=np.int32),
        is_source=np.array([swarm.is_source(p) for p in members], dtype=bool),
        can_serve=np.array([row.can_serve for row in rows], dtype=bool),
        banned=np.array(banned, dtype=np.int32).reshape(-1, 2),
    )


def _flying(swarm: Swarm, index: Mapping[PeerId, int], up_depth: list[int]) -> Ints:
    """The edges that are not done, each with its step: from its place in its parent's line."""
    n_steps = _n_steps(max(up_depth))
    lines: dict[PeerId, list[tuple[int, int, int]]] = {}
    for peer, row in swarm.rows.items():
        if row.is_slow_child:
            continue  # what it takes of its parents' links is next to nothing
        for piece, coming in row.coming.items():
            lines.setdefault(coming.parent, []).append((coming.turn, index[peer], piece))
    rows: list[tuple[int, int, int, int]] = []
    for peer, line in lines.items():
        parent = index[peer]
        for place, (_, child, piece) in enumerate(sorted(line)):
            rows.append((child, piece, parent, place * n_steps // up_depth[parent]))
    return np.array(rows, dtype=np.int32).reshape(-1, 4)


def _coming(row: Row) -> int:
    """What others may wait for at a peer: nothing, if it gets it late or cannot pass it on."""
    return row.coming_bits if row.can_serve and not row.is_slow_child else 0


def _slow_depth(row: Row) -> int:
    """One piece at a time: several would each take as many times as long, and as many slots."""
    return 0 if row.coming else 1


def _wants(swarm: Swarm, members: Sequence[PeerId], peers: Mapping[PeerId, PeerInfo]) -> list[int]:
    """What each of `members` wants in bulk, and is not getting.

    A slow child does not bring pieces into its zone, nor takes them first from their source: it
    waits until others near it have what they want as well.
    """
    rows = [swarm.rows[peer] for peer in members]
    wants = [
        # What comes to it and is not in `coming` does not come there for the others.
        swarm.wanted(row) & ~(row.coming_bits & ~_coming(row)) if row.rest and row.ref else 0
        for row in rows
    ]
    if not any(row.is_slow_child for row in rows):
        return wants
    held: dict[str, int] = {}
    awaited: dict[str, int] = {}
    for peer, row, wanted in zip(members, rows, wants, strict=True):
        zone = peers[peer].zone
        if not row.is_slow_child:
            held[zone] = held.get(zone, 0) | (0 if swarm.is_source(peer) else row.offers)
            awaited[zone] = awaited.get(zone, 0) | wanted | row.coming_bits
    for i, (peer, row) in enumerate(zip(members, rows, strict=True)):
        zone = peers[peer].zone
        if row.is_slow_child:
            wants[i] &= held.get(zone, 0) | ~awaited.get(zone, 0)
    return wants
