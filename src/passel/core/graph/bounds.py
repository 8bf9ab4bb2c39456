"""How fast a blob could reach everybody at best, and what stands in the way of faster.

One module for the simulator, the benchmarks and `passel explain`: a time is told together with the
bound that it is compared with, and with the name of the term that binds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passel.core.graph import bits
from passel.core.graph.state import Bits

Floats = NDArray[np.float64]


def rounds_bound(n_receivers: int, n_pieces: int) -> int:
    """Rounds in which one holder can bring all pieces to everybody, all links equal.

    Source: Mundinger, Weber, Weiss 2008, "Optimal scheduling of peer-to-peer file dissemination".
    """
    return n_pieces + max(0, n_receivers.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class Bound:
    """No schedule is faster than `fluid_s`.

    Attributes
    ----------
    fluid_s : float
        Bytes as a fluid that is passed on as it comes, in seconds: the largest of `terms`.
    binding : str
        The name of that term.
    terms : dict
        Name -> seconds. Names: "origin", "seed uplink", "slowest downlink", "all uplinks",
        "trunk", "disk", "last arrival", "rare piece".
    pieces_s : float
        What is added because only whole pieces are passed on, for equal links: one piece time per
        doubling of the holders. Never part of `fluid_s`.
    """

    fluid_s: float
    binding: str
    terms: dict[str, float]
    pieces_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The bound for a system that passes on whole pieces."""
        return self.fluid_s + self.pieces_s


def largest(terms: dict[str, float], pieces_s: float = 0.0) -> Bound:
    """The bound of some terms; the first one of equal ones binds."""
    binding = max(terms, key=terms.__getitem__)
    return Bound(terms[binding], binding, terms, pieces_s)


def rollout_bound(
    size: float,
    up: Floats,
    down: Floats,
    *,
    seed_up: float,
    piece_size: float = 0.0,
    origin: float | None = None,
    trunk: float | None = None,
    n_zones: int = 1,
    disk: float | None = None,
    arrivals: Floats | None = None,
) -> Bound:
    """The bound of a rollout of one blob that only the origin has.

    Parameters
    ----------
    size : float
        Bytes of the blob.
    up, down : (n_receivers,) float64
        Links of those who want the blob and do not fetch it from the origin, bytes per second.
    seed_up : float
        Uplinks of all that fetch from the origin, together.
    piece_size : float
        Bytes, for the correction for whole pieces; 0 leaves it out.
    origin, trunk, disk : float, optional
        Bytes per second of the origin's link; into each zone; of a node's disk. None: no limit.
    arrivals : (n_receivers,) float64, optional
        When each begins to want it, seconds after the first.

    Notes
    -----
    Source: Kumar and Ross 2006, "Peer-assisted file distribution: the minimum distribution time":
    ``max(F/u_s, F/d_min, N F/(u_s + sum u))``, which can be reached; the origin, the trunk and the
    disk are links that every byte must pass once.
    """
    n_receivers = up.size
    terms: dict[str, float] = {}
    if origin is not None:
        terms["origin"] = size / origin
    if n_receivers:
        terms["seed uplink"] = size / seed_up
        terms["slowest downlink"] = size / float(down.min())
        terms["all uplinks"] = n_receivers * size / (seed_up + float(up.sum()))
    if trunk is not None and n_zones > 1:
        terms["trunk"] = size / trunk
    if disk is not None:
        terms["disk"] = size / disk
    if arrivals is not None and n_receivers:
        terms["last arrival"] = float((arrivals + size / down).max())
    if not terms:
        terms["nothing to do"] = 0.0
    pieces_s = 0.0
    if piece_size and n_receivers:
        hops = rounds_bound(n_receivers, 1) - 1
        pieces_s = hops * min(piece_size, size) / float(np.median(up))
    return largest(terms, pieces_s)


def remaining_bound(
    have: Bits,
    wants: Bits,
    piece_sizes: Floats,
    up: Floats,
    down: Floats,
    *,
    origin: float | None = None,
) -> Bound:
    """The bound of what is still to do while a rollout runs.

    Parameters
    ----------
    have, wants : (n_peers, n_words) uint64
    piece_sizes : (n_pieces,) float64
        Bytes.
    up, down : (n_peers,) float64
        Bytes per second.
    origin : float, optional
        Bytes per second for what nobody holds; None: no limit.

    Notes
    -----
    Every peer must take in what it lacks, all uplinks together must send it, and what only some
    hold must leave them at least once ("rare piece", which rarest first attacks).
    Source: Kumar and Ross 2006, carried over to partial holdings.
    """
    n_pieces = piece_sizes.size
    missing = wants & ~have
    cells = np.unpackbits(missing.view(np.uint8), axis=1, count=n_pieces, bitorder="little").astype(
        np.float64
    )
    lacks = cells @ piece_sizes
    terms = {"slowest downlink": float((lacks / down).max(initial=0.0))}
    holds = np.unpackbits(have.view(np.uint8), axis=1, count=n_pieces, bitorder="little")
    n_holders = holds.sum(axis=0, dtype=np.int64)
    is_wanted = bits.count_columns(missing, n_pieces=n_pieces) > 0
    nowhere = float(piece_sizes[is_wanted & (n_holders == 0)].sum())
    if origin is not None and nowhere:
        terms["origin"] = nowhere / origin
    total = float(lacks.sum())
    if total:
        terms["all uplinks"] = total / float(up.sum())
    alone = is_wanted & (n_holders == 1)
    if alone.any():
        only = holds[:, alone].astype(np.float64) @ piece_sizes[alone]
        terms["rare piece"] = float((only / up).max())
    return largest(terms)
