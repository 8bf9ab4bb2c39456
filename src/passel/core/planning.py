"""The bulk of one epoch for one blob: what the shard knows as arrays, the graph as edges.

The decisions are in `passel.core.graph`; urgent pieces are not among them, they were given a parent
in the very call that asked for them (`shard`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from passel.core import bitfield
from passel.core.graph import PieceParentGraph, SwarmState, plan
from passel.core.messages import Edge, PeerInfo
from passel.core.swarm import Row, Swarm
from passel.ids import PeerId


@dataclass(slots=True)
class BulkPlan:
    """Edges and fallback parents, by child."""

    edges: dict[PeerId, list[Edge]] = field(default_factory=dict)
    fallbacks: dict[PeerId, tuple[PeerId, ...]] = field(default_factory=dict)


def plan_bulk(
    swarm: Swarm,
    peers: Mapping[PeerId, PeerInfo],
    rng: np.random.Generator,
    now: float,
) -> BulkPlan:
    """Edges for every peer that wants the rest of the blob and has room for more."""
    bulk = BulkPlan()
    members = [p for p, row in swarm.rows.items() if row.have or swarm.row_is_hungry(row)]
    state = _state(swarm, members, peers)
    if not state.wants.any() or not state.have.any():
        return bulk
    graph = plan(state, now, rng)
    for child, piece, parent in zip(
        graph.child.tolist(), graph.piece.tolist(), graph.parent.tolist(), strict=True
    ):
        edge = Edge(piece, members[parent], swarm.digest(piece))
        bulk.edges.setdefault(members[child], []).append(edge)
    _note_fallbacks(bulk, graph, members)
    return bulk


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
    is_source = np.array([lease is not None and lease.holder == p for p in members], dtype=bool)
    up, down = swarm.traffic.up, swarm.traffic.down
    banned = [
        (index[child], index[parent])
        for child in members
        for parent in swarm.rows[child].banned
        if parent in index
    ]
    return SwarmState(
        n_pieces=n_pieces,
        have=bitfield.pack([row.have for row in rows], n_pieces),
        coming=bitfield.pack(
            [
                row.coming_bits | (fetching if src else 0)
                for row, src in zip(rows, is_source, strict=True)
            ],
            n_pieces,
        ),
        wants=bitfield.pack([_wants(swarm, row) for row in rows], n_pieces),
        up_free=np.array([up.free(p) for p in members], dtype=np.int32),
        down_free=np.array([down.free(p) for p in members], dtype=np.int32),
        zone=np.array([zones[peers[p].zone] for p in members], dtype=np.int32),
        rack=np.array([racks[peers[p].rack] for p in members], dtype=np.int32),
        is_source=is_source,
        can_serve=np.ones(len(members), dtype=bool),
        banned=np.array(banned, dtype=np.int32).reshape(-1, 2),
    )


def _wants(swarm: Swarm, row: Row) -> int:
    return swarm.wanted(row) if row.rest and row.ref is not None else 0
