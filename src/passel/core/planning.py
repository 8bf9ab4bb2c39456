"""The bulk of one epoch: which missing pieces each peer fetches from whom.

Rarest first, in random order among equals; inside a zone only from the zone, and a piece that no
peer of the zone has or is getting enters it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from passel.core import bitfield
from passel.core.messages import Edge, PeerInfo, ShardLimits
from passel.core.swarm import Swarm
from passel.ids import PeerId


@dataclass(slots=True)
class BulkPlan:
    """Edges and fallback parents, by child."""

    edges: dict[PeerId, list[Edge]] = field(default_factory=dict)
    fallbacks: dict[PeerId, tuple[PeerId, ...]] = field(default_factory=dict)


def plan_bulk(
    swarm: Swarm,
    peers: Mapping[PeerId, PeerInfo],
    limits: ShardLimits,
    rng: np.random.Generator,
    now: float,
) -> BulkPlan:
    """Edges for every peer that wants the rest of the blob and has room for more."""
    plan = BulkPlan()
    hungry = [p for p, row in swarm.rows.items() if row.rest and swarm.row_is_hungry(row)]
    if not hungry:
        return plan
    down = {p: limits.queue_per_peer - swarm.traffic.down.get(p, 0) for p in hungry}
    up = {
        p: limits.queue_per_peer * 2 - swarm.traffic.up.get(p, 0)
        for p, row in swarm.rows.items()
        if row.have
    }
    in_zone: dict[str, int] = {}
    copies: dict[int, int] = {}
    for peer, row in swarm.rows.items():
        zone = peers[peer].zone
        in_zone[zone] = in_zone.get(zone, 0) | row.have | row.coming_bits
        for piece in bitfield.pieces(row.have | row.coming_bits):
            copies[piece] = copies.get(piece, 0) + 1
    lease = swarm.lease
    for index in rng.permutation(len(hungry)):
        child = hungry[int(index)]
        row = swarm.rows[child]
        wanted = swarm.wanted(row) & ~row.coming_bits & swarm.held
        if lease is not None and lease.holder == child and lease.todo is not None:
            wanted &= ~lease.todo
        order = sorted(bitfield.pieces(wanted), key=lambda piece: (copies[piece], rng.random()))
        zone = peers[child].zone
        for piece in order:
            if down[child] <= 0:
                break
            parent = _parent(swarm, peers, child, piece, up, in_zone[zone], rng)
            if parent is None:
                continue
            edge = Edge(piece, parent, swarm.digest(piece))
            plan.edges.setdefault(child, []).append(edge)
            copies[piece] += 1
            in_zone[zone] |= 1 << piece
            up[parent] -= 1
            down[child] -= 1
    return plan


def _parent(
    swarm: Swarm,
    peers: Mapping[PeerId, PeerInfo],
    child: PeerId,
    piece: int,
    up: dict[PeerId, int],
    zone_bits: int,
    rng: np.random.Generator,
) -> PeerId | None:
    row = swarm.rows[child]
    zone = peers[child].zone
    able = [
        peer
        for peer, free in up.items()
        if free > 0
        and peer != child
        and peer not in row.banned
        and swarm.rows[peer].have >> piece & 1
    ]
    near = [peer for peer in able if peers[peer].zone == zone]
    if near:
        return near[int(rng.integers(len(near)))]
    if zone_bits >> piece & 1 or not able:
        return None  # it is on its way into the zone, or everybody who has it is busy
    return able[int(rng.integers(len(able)))]
