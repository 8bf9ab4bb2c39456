"""Whose pieces count as not held, because those who took them got wrong bytes.

A child never asks a parent again that sent it wrong bytes. One child's word keeps that child away
and costs nobody else anything: a node with bad memory accuses everybody. A parent is put aside when
two accuse it, or as long as what it has is of no use: while it counts as being in its zone, or as
held at all, the zone is not sent the piece again, and nobody fetches what only this parent has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from passel.core.messages import PeerInfo
from passel.core.swarm import Swarm
from passel.ids import PeerId

#: So many children that got wrong bytes from a parent are believed by all the others.
ACCUSERS = 2


def is_distrusted(swarm: Swarm, peers: Mapping[PeerId, PeerInfo], peer: PeerId) -> bool:
    """Whether an accused peer is to be put aside, or to stay there.

    Where others have all that it has, it is enough that nobody in its zone takes it from here: it
    costs no byte of the origin to let the zone have it from elsewhere.
    """
    trusting: list[PeerId] = []
    n_accusers = others = 0
    for child, row in swarm.rows.items():
        if child == peer:
            continue
        others |= row.offers
        if row.banned.get(peer) == math.inf:
            n_accusers += 1
        elif swarm.row_is_hungry(row):
            trusting.append(child)
    if n_accusers >= ACCUSERS:
        return True
    if not trusting:
        return n_accusers > 0
    if not n_accusers or any(peers[child].zone == peers[peer].zone for child in trusting):
        return False
    is_fetching = swarm.lease is not None and swarm.lease.holder == peer
    return not is_fetching and not swarm.rows[peer].have & ~others
