"""Who gives a peer the piece that one of its clients waits for. Bulk is planned in `planning`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from passel.core.messages import Edge, PeerInfo
from passel.core.swarm import Swarm
from passel.ids import PeerId

#: A source has what nobody else has; it is spared as if it had so many pieces more to send.
SOURCE_COST = 3


def urgent_edge(
    swarm: Swarm,
    peers: Mapping[PeerId, PeerInfo],
    rng: np.random.Generator,
    child: PeerId,
    piece: int,
) -> Edge | None:
    """The best parent for a piece that a client waits for, None if only the origin has it.

    In the zone before across zones; there the one from whom it comes first, counting in pieces:
    what he has to send before, and as much for every hop until he has it himself. A crowd that
    wants the same piece in the same moment becomes a binomial tree instead of a queue at its only
    holder.
    """
    zone, row = peers[child].zone, swarm.rows[child]
    known: dict[PeerId, int | None] = {child: None}
    near: list[tuple[float, PeerId, bool]] = []
    far: list[tuple[float, PeerId, bool]] = []
    # All rows are looked at for every client of a crowd: what is the same for all comes first.
    everything = swarm.geometry.all_pieces if swarm.geometry is not None else 0
    holder = None if swarm.lease is None else swarm.lease.holder
    draws = rng.random(len(swarm.rows)).tolist()
    outstanding, bit = swarm.traffic.up.outstanding, 1 << piece
    for draw, (peer, other) in zip(draws, swarm.rows.items(), strict=True):
        if peer == child or peer in row.banned or not other.can_serve:
            continue
        is_near = peers[peer].zone == zone
        cost = outstanding.get(peer, 0) + draw
        if peer == holder or other.have == everything:
            cost += SOURCE_COST
        if other.have & bit:
            (near if is_near else far).append((cost, peer, False))
        elif is_near and other.coming_bits & bit and not other.is_slow_child:
            hops = _hops(swarm, peer, piece, known)
            if hops is not None:
                near.append((cost + hops, peer, True))
    if near or far:
        _, parent, waits = min(near or far)
        return Edge(piece, parent, swarm.digest(piece), wait=waits)
    lease = swarm.lease
    if lease is None or lease.holder == child or lease.holder in row.banned:
        return None
    if swarm.is_aside(lease.holder):
        return None
    return Edge(piece, lease.holder, swarm.digest(piece), wait=True, authority=True)


def _hops(swarm: Swarm, peer: PeerId, piece: int, known: dict[PeerId, int | None]) -> int | None:
    """Over how many peers the piece comes to `peer`; None if from a child, or not at all.

    `known` has the child itself, and what was found out about others who wait for the piece.
    """
    way: list[PeerId] = []
    while peer not in known:
        coming = swarm.rows[peer].coming.get(piece) if peer in swarm.rows else None
        if coming is None:
            break
        way.append(peer)
        known[peer] = None  # whoever waits in a circle gets nothing
        peer = coming.parent
    hops = known.get(peer, 0 if way else None)
    for each in reversed(way):
        hops = None if hops is None else hops + 1
        known[each] = hops
    return hops
