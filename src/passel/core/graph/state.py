"""What a plan is made from, and what it says.

Dimension names are the project's: n_peers, n_pieces, n_words, n_edges. A bit row has piece
``64 * w + b`` at bit b of word w, and zeros behind the last piece. Words are read as bytes in a few
places, which needs a little-endian host, as everything that Ray runs on is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]
Ints = NDArray[np.int32]
Flags = NDArray[np.bool_]

#: How many parents a peer is told to try when its whole plan is blocked.
N_FALLBACKS = 4


def _no_rows(width: int) -> Ints:
    return np.empty((0, width), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class SwarmState:
    """One blob in one epoch, as its shard knows it. No array is modified by planning.

    Attributes
    ----------
    n_pieces : int
    have : (n_peers, n_words) uint64
        Verified pieces.
    coming : (n_peers, n_words) uint64
        Pieces in flight or planned to the peer, from a parent or from the origin.
    wants : (n_peers, n_words) uint64
        Pieces that the peer wants in this epoch; what it has or what is coming is ignored.
    up_depth, down_depth : (n_peers,) int32
        Pieces that each link moves while this plan lasts, those under way included. The steps of
        the plan are equal parts of that time, and a link's depth is spread evenly over them.
    flying : (n_flying, 4) int32
        Rows (child, piece, parent, step): edges that were handed out and are not done, and in
        which step they will be, counted from now. All are in `coming`.
    zone : (n_peers,) int32
        Any numbers; equal means the same zone.
    rack : (n_peers,) int32
        Likewise, inside a zone; all equal (0, or -1 for unknown) means that racks do not matter.
    is_source : (n_peers,) bool
        Peers that fetch from the origin right now: their uplinks are kept for what only they have.
    can_serve : (n_peers,) bool
    banned : (n_banned, 2) int32
        Rows (child, parent) that must not meet.
    """

    n_pieces: int
    have: Bits
    coming: Bits
    wants: Bits
    up_depth: Ints
    down_depth: Ints
    zone: Ints
    rack: Ints
    is_source: Flags
    can_serve: Flags
    flying: Ints = field(default_factory=lambda: _no_rows(4))
    banned: Ints = field(default_factory=lambda: _no_rows(2))

    def __post_init__(self) -> None:
        n_peers, n_words = self.have.shape
        if n_words != (self.n_pieces + 63) // 64:
            raise ValueError(f"{self.n_pieces} pieces do not fit {n_words} words exactly")
        for name in ("have", "coming", "wants"):
            bits = getattr(self, name)
            if bits.shape != (n_peers, n_words) or bits.dtype != np.uint64:
                raise ValueError(f"{name} must be ({n_peers}, {n_words}) uint64")
        for name in ("up_depth", "down_depth", "zone", "rack", "is_source", "can_serve"):
            if getattr(self, name).shape != (n_peers,):
                raise ValueError(f"{name} must be ({n_peers},)")

    @property
    def n_peers(self) -> int:
        return int(self.have.shape[0])


@dataclass(frozen=True, slots=True)
class PieceParentGraph:
    """Who fetches which piece from whom, most important first.

    Attributes
    ----------
    child, piece, parent : (n_edges,) int32
        Edge i: `child[i]` fetches `piece[i]` from `parent[i]`. One child's edges are in the order
        in which it should start them.
    waits : (n_edges,) bool
        The parent does not have the piece yet: ask it to hold the request, or do something else
        first.
    step : (n_edges,) int32
        In which step of the plan the edge is to be carried out. Inside a step no link is used
        twice, so parents who send in this order keep out of each other's way.
    fallbacks : (n_peers, 4) int32
        Parents worth asking when the plan is blocked; -1 behind the last one.
    planned_at : float
        `now` of the plan, in seconds.
    """

    child: Ints
    piece: Ints
    parent: Ints
    waits: Flags
    step: Ints
    fallbacks: Ints
    planned_at: float

    @property
    def n_edges(self) -> int:
        return int(self.child.size)
