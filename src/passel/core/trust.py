"""Whose pieces count as not held, because those who took them got wrong bytes, or nothing.

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
#: How often accusations are looked into: a look takes a microsecond, and may take a twentieth of
#: the time. In a cluster that is cut in two everybody accuses half of all others.
LOOK_S = 20e-6
FEW_LOOKS = 1000


def is_distrusted(swarm: Swarm, peers: Mapping[PeerId, PeerInfo], peer: PeerId) -> bool:
    """Whether an accused peer is to be put aside, or to stay there.

    Where others have all that it has, it is enough that nobody in its zone takes it from here: it
    costs no byte of the origin to let the zone have it from elsewhere. So that goes for a peer that
    does not answer as well. What it alone has is waited for: it may be well in a moment.
    """
    n_liar = n_accusers = others = 0
    is_believed = is_near = False
    zone = peers[peer].zone
    for child, row in swarm.rows.items():
        if child == peer:
            continue
        others |= row.offers
        until = row.banned.get(peer)
        n_liar += until == math.inf
        n_accusers += until is not None
        if until != math.inf and swarm.row_is_hungry(row):
            is_believed = True
            is_near |= until is None and peers[child].zone == zone
    if n_liar >= ACCUSERS or (n_liar and not is_believed):
        return True
    if not n_accusers or is_near:
        return False
    is_fetching = swarm.lease is not None and swarm.lease.holder == peer
    return not is_fetching and not swarm.rows[peer].have & ~others


def judge(swarm: Swarm, peers: Mapping[PeerId, PeerInfo], now: float) -> bool:
    """Put aside those whose bytes are of use to nobody, take back those who are of use again.

    One after the other: two who have the same pieces must not both go because of each other. True
    if the lease is of no more use.
    """
    if now < swarm.judge_at:
        return False
    n_looks = len(swarm.accused) * len(swarm.rows)
    swarm.judge_at = now + n_looks * LOOK_S if n_looks > FEW_LOOKS else now
    is_void = False
    for peer in list(swarm.accused):
        was, becomes = swarm.rows[peer].is_aside, is_distrusted(swarm, peers, peer)
        if becomes and not was:
            swarm.put_aside(peer)
        elif was and not becomes:
            swarm.take_back(peer)
        if was != becomes and swarm.lease is not None:
            is_void |= swarm.lease.holder == peer or swarm.lease.todo == 0
        if not becomes and not any(peer in row.banned for row in swarm.rows.values()):
            del swarm.accused[peer]
    return is_void
