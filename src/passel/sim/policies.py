"""Policies for the round engine: passel's own, `passel.core.graph`, and models of others.

The others are models of what is published about them, for comparison on the same links; they are
not those products, and nothing in passel uses them but a comparison. Each says its source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from passel.core.graph import SwarmState, plan
from passel.core.graph.bits import Index, lowest
from passel.core.graph.choose import repeats
from passel.core.graph.state import Bits, Flags, Ints


@dataclass(frozen=True)
class Board:
    """A swarm at the beginning of a round. No policy changes it.

    Attributes
    ----------
    have, coming, wants : (n_peers, n_words) uint64
        Bit rows as in `passel.core.graph.SwarmState`.
    up_free, down_free : (n_peers,) int32
        Pieces that each link can carry in this round.
    zone, rack : (n_peers,) int32
    is_source, can_serve : (n_peers,) bool
    """

    n_pieces: int
    have: Bits
    coming: Bits
    wants: Bits
    up_free: Ints
    down_free: Ints
    zone: Ints
    rack: Ints
    is_source: Flags
    can_serve: Flags

    @property
    def n_peers(self) -> int:
        return int(self.have.shape[0])


#: (child, piece, parent), each (n_edges,) int64, most important first.
Edges = tuple[Index, Index, Index]
#: Rounds of offers per round of time: a turned down child asks somebody else.
SWEEPS = 3
_ONE = np.uint64(1)


class Policy(Protocol):
    """Who fetches which piece from whom in the next round."""

    def edges(self, board: Board, now: float, rng: np.random.Generator) -> Edges:
        """Edges from holders to those who want; free slots are not to be exceeded."""
        ...


class Passel:
    """The production planner, as the shards call it."""

    def edges(self, board: Board, now: float, rng: np.random.Generator) -> Edges:
        state = SwarmState(
            n_pieces=board.n_pieces,
            have=board.have,
            coming=board.coming,
            wants=board.wants,
            # Nothing is under way at the beginning of a round: what is free is all that there is.
            up_depth=board.up_free,
            down_depth=board.down_free,
            zone=board.zone,
            rack=board.rack,
            is_source=board.is_source,
            can_serve=board.can_serve,
        )
        graph = plan(state, now, rng)
        return _as_index(graph.child), _as_index(graph.piece), _as_index(graph.parent)


class DirectFromOrigin:
    """Everybody pulls from the origin, in order; no peer serves. `is_source` is the origin.

    Source: what every node does without a mirror. N F / u_s, Kumar and Ross 2006.
    """

    def edges(self, board: Board, now: float, rng: np.random.Generator) -> Edges:
        sources = np.flatnonzero(board.is_source)
        parents = np.repeat(sources, np.maximum(board.up_free[sources], 0))
        need = board.wants & ~board.have & ~board.coming
        children = rng.permutation(np.flatnonzero((board.down_free > 0) & need.any(axis=1)))
        children = children[~board.is_source[children]]
        n = min(parents.size, children.size)
        return children[:n], _first(need[children[:n]]), parents[:n]


class DragonflyLike:
    """Model: an acyclic graph of peers, three parents each, pieces in order.

    Of 15 peers drawn at random each peer keeps the 3 best by load and place that make no circle;
    pieces are taken in the order in which parents announce them, whoever of the parents is least
    loaded. There is no notion of rarity, and two peers never feed each other.

    Source: dragonflyoss/dragonfly scheduler and client, as described in the project's notes of
    2026-08 (filter of 15, 3 parents, `CanAddPeerEdges`, weights 0.6 load, 0.2 IDC, 0.1 location,
    0.1 host type). A model, not that product.
    """

    SAMPLE = 15
    PARENTS = 3

    def __init__(self) -> None:
        self._parents: NDArray[np.int64] | None = None
        self._joined = np.empty(0, dtype=np.int64)
        self._n_children = np.empty(0)

    def edges(self, board: Board, now: float, rng: np.random.Generator) -> Edges:
        if self._parents is None:
            self._parents = np.full((board.n_peers, self.PARENTS), -1, dtype=np.int64)
            self._n_children = np.zeros(board.n_peers)
            self._joined = np.flatnonzero(board.is_source)
            self._parents[self._joined[1:], 0] = self._joined[:1]
        is_new: Flags = np.asarray(board.wants.any(axis=1))
        is_new[self._joined] = False
        self._join(board, self._parents, rng.permutation(np.flatnonzero(is_new)), rng)
        return _take_offers(board, self._parents, rng, _in_order)

    def _join(
        self, board: Board, parents: NDArray[np.int64], new: Index, rng: np.random.Generator
    ) -> None:
        """Give new peers their parents, all of whom joined before: so there is no circle.

        In batches of half of those who are there, as a crowd joins while it grows.
        """
        while new.size:
            n_joined = self._joined.size
            batch, new = np.split(new, [max(n_joined // 2, 1)])
            sample = self._joined[rng.integers(n_joined, size=(batch.size, self.SAMPLE))]
            score = 0.6 / (1.0 + self._n_children[sample])
            score += 0.3 * (board.zone[sample] == board.zone[batch, np.newaxis])
            score += 0.1 * rng.random(score.shape)
            best = np.argsort(-score, axis=1)[:, : self.PARENTS]
            parents[batch] = np.take_along_axis(sample, best, axis=1)
            self._n_children += np.bincount(parents[batch].ravel(), minlength=board.n_peers)
            self._joined = np.concatenate([self._joined, batch])


class KrakenLike:
    """Model: a random regular graph of ten connections, pieces rarest first among neighbours.

    Source: uber/kraken scheduler (about 10 connections per torrent, `rarest_first` over connected
    peers or random pieces) and its simulator's random regular graph, as described in the project's
    notes of 2026-08. Announcements are immediate here. A model, not that product.
    """

    CONNECTIONS = 10

    def __init__(self, *, rarest: bool = True) -> None:
        self._rarest = rarest
        self._neighbours: NDArray[np.int64] | None = None

    def edges(self, board: Board, now: float, rng: np.random.Generator) -> Edges:
        if self._neighbours is None:
            self._neighbours = self._graph(board.n_peers, rng)
        choose = self._rarest_near if self._rarest else _at_random
        return _take_offers(board, self._neighbours, rng, choose)

    def _graph(self, n_peers: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(n_peers, 10): each column pairs are mutual, from random matchings of all peers."""
        neighbours = np.full((n_peers, self.CONNECTIONS), -1, dtype=np.int64)
        for column in range(self.CONNECTIONS):
            order = rng.permutation(n_peers)
            half = n_peers // 2
            one, other = order[:half], order[half : 2 * half]
            neighbours[one, column], neighbours[other, column] = other, one
        return neighbours

    def _rarest_near(
        self, board: Board, children: Index, useful: Bits, rng: np.random.Generator
    ) -> Index:
        assert self._neighbours is not None
        copies = np.zeros((children.size, board.n_pieces), dtype=np.uint8)
        for column in range(self.CONNECTIONS):
            near = self._neighbours[children, column]
            copies += _cells(board.have[near], board.n_pieces) * (near >= 0)[:, np.newaxis]
        return _least(copies, useful, rng)


class RarestRandom:
    """Model: everybody asks random peers for the globally rarest piece; nobody coordinates.

    Copies under way are not counted, and several children may ask the same parent.

    Source: Legout et al. 2006, "Rarest first and choke algorithms are enough" (peer set as large
    as the swarm), without choking. A model.
    """

    def edges(self, board: Board, now: float, rng: np.random.Generator) -> Edges:
        anybody = rng.integers(board.n_peers, size=(board.n_peers, SWEEPS))
        copies = np.zeros(board.n_pieces, dtype=np.int64)
        for start in range(0, board.n_peers, 8192):
            rows = _cells(board.have[start : start + 8192], board.n_pieces)
            copies += rows.sum(axis=0, dtype=np.int64)
        rank = np.empty(board.n_pieces, dtype=np.uint8)
        order = np.lexsort((rng.random(board.n_pieces), copies))
        # 250 classes of rarity do; ties are broken at random anyway.
        rank[order] = np.arange(board.n_pieces) * 250 // board.n_pieces

        def rarest(_: Board, children: Index, useful: Bits, rng_: np.random.Generator) -> Index:
            rows = np.broadcast_to(rank, (children.size, board.n_pieces))
            return _least(rows, useful, rng_)

        return _take_offers(board, anybody, rng, rarest)


#: What `--compare` and profiles may name.
POLICIES: dict[str, Callable[[], Policy]] = {
    "passel": Passel,
    "direct": DirectFromOrigin,
    "dragonfly-like": DragonflyLike,
    "kraken-like": KrakenLike,
    "kraken-like-random": lambda: KrakenLike(rarest=False),
    "rarest-random": RarestRandom,
}

_Choose = Callable[[Board, Index, Bits, np.random.Generator], Index]


def _take_offers(
    board: Board, parents: NDArray[np.int64], rng: np.random.Generator, choose: _Choose
) -> Edges:
    """Every child asks its parents in random order for one piece each; first come, first served.

    `parents` is (n_peers, k), -1 for none.
    """
    up = np.where(board.can_serve, np.maximum(board.up_free, 0), 0).astype(np.int64)
    down = np.maximum(board.down_free, 0).astype(np.int64)
    need = board.wants & ~board.have & ~board.coming
    found: list[Edges] = []
    columns = rng.permuted(np.tile(np.arange(parents.shape[1]), (board.n_peers, 1)), axis=1)
    for sweep in range(parents.shape[1]):
        children = np.flatnonzero((down > 0) & need.any(axis=1))
        asked = parents[children, columns[children, sweep]]
        able = (asked >= 0) & (asked != children)
        able &= up[asked] > 0
        children, asked = children[able], asked[able]
        useful = need[children] & board.have[asked]
        some = useful.any(axis=1)
        children, asked, useful = children[some], asked[some], useful[some]
        if not children.size:
            continue
        pieces = choose(board, children, useful, rng)
        order = rng.permutation(children.size)
        children, asked, pieces = children[order], asked[order], pieces[order]
        kept = repeats(asked) < up[asked]
        children, asked, pieces = children[kept], asked[kept], pieces[kept]
        np.subtract.at(up, asked, 1)
        np.subtract.at(down, children, 1)
        need[children, pieces >> 6] &= ~(_ONE << (pieces & 63).astype(np.uint64))
        found.append((children, pieces, asked))
    if not found:
        none = np.empty(0, dtype=np.int64)
        return none, none, none
    child, piece, parent = (np.concatenate(part) for part in zip(*found, strict=True))
    return child, piece, parent


def _in_order(_: Board, __: Index, useful: Bits, ___: np.random.Generator) -> Index:
    return _first(useful)


def _at_random(board: Board, children: Index, useful: Bits, rng: np.random.Generator) -> Index:
    flat = np.zeros((children.size, board.n_pieces), dtype=np.uint8)
    return _least(flat, useful, rng)


def _first(rows: Bits) -> Index:
    """The lowest piece of each row; rows must not be empty."""
    if not rows.shape[0]:
        return np.empty(0, dtype=np.int64)
    column = (rows != 0).argmax(axis=1)
    pieces: Index = column * 64 + lowest(rows[np.arange(rows.shape[0]), column])
    return pieces


def _least(keys: NDArray[np.uint8], useful: Bits, rng: np.random.Generator) -> Index:
    """The useful piece with the smallest key in each row, at random among equals."""
    chosen = np.empty(keys.shape[0], dtype=np.int64)
    for start in range(0, keys.shape[0], 8192):
        part = slice(start, start + 8192)
        able = _cells(useful[part], keys.shape[1]) != 0
        ranked = keys[part].astype(np.float32) + rng.random(able.shape, dtype=np.float32)
        chosen[part] = np.where(able, ranked, np.inf).argmin(axis=1)
    return chosen


def _cells(rows: Bits, n_pieces: int) -> NDArray[np.uint8]:
    return np.unpackbits(
        np.ascontiguousarray(rows).view(np.uint8), axis=1, count=n_pieces, bitorder="little"
    )


def _as_index(values: NDArray[np.int32]) -> Index:
    return values.astype(np.int64)
