"""WaveMatch: rarest pieces first, over random pairs of a free uplink and a free downlink.

Copies in flight count as copies; without that, the peer that has the new pieces sends the same one
to everybody. Columns are looked at in windows, rarest first: while a crowd pulls a blob only a few
dozen pieces can be of use to anybody at any time, and these fit one word per peer.

Source: Legout et al. 2006 (rarest first is enough), Mundinger et al. 2008 (the bound), and
simulation: 1.02-1.06 x the bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passel.core.graph import bits, choose
from passel.core.graph.bits import Index
from passel.core.graph.draft import Draft
from passel.core.graph.state import Bits, Flags

#: Columns of the first windows; the last one is for all later windows.
WINDOWS = (64, 256, 1024)
#: Random matchings per window. More find little: the leftovers are found by looking.
SWEEPS = 4
#: Edges that one round should make before rarity is counted anew. Below it, numpy's price per call
#: is higher than that of the work; so small swarms hand out several slots per peer and round.
EDGES_PER_ROUND = 512


def match_waves(draft: Draft, parents_able: Flags, rng: np.random.Generator) -> None:
    """Match free slots inside the domains, in rounds, while a round finds a fair part of them."""
    while True:
        free = min(int(draft.up[parents_able].sum()), int(draft.down.sum()))
        n_children = int(np.count_nonzero(draft.down))
        if not free or not n_children:
            return
        share = max(1, EDGES_PER_ROUND // n_children)
        n_edges = _round(draft, parents_able, share, rng)
        if n_edges * 4 < min(free, EDGES_PER_ROUND):
            return


def _round(draft: Draft, parents_able: Flags, share: int, rng: np.random.Generator) -> int:
    """At most `share` new edges per peer and direction; how many there are in all."""
    up = np.where(parents_able, np.minimum(draft.up, share), 0)
    down = np.minimum(draft.down, share)
    seen = np.zeros(draft.need.shape[1], dtype=np.uint64)
    n_edges = 0
    for number in range(draft.n_pieces):
        size = WINDOWS[min(number, len(WINDOWS) - 1)]
        window = _window(draft, up, down, seen, size, rng)
        if window is None:
            break
        children, pieces, parents = window.sweep(rng)
        draft.take(children, pieces, parents)
        n_edges += children.size
        if window.is_last:
            break
    return n_edges


@dataclass(slots=True)
class _Window:
    """Some columns, in order of rarity, of the peers that could have a part in them.

    `offers` and `wants` have one row per entry of `parents` and `children`; `up` and `down` are the
    slots of this round of all peers, and are used up.
    """

    pieces: Index
    parents: Index
    children: Index
    offers: Bits
    wants: Bits
    up: Index
    down: Index
    domain: Index
    n_domains: int
    draft: Draft
    is_last: bool

    def sweep(self, rng: np.random.Generator) -> tuple[Index, Index, Index]:
        """A few random matchings: children, pieces, parents."""
        found: list[tuple[Index, Index, Index]] = []
        for _ in range(SWEEPS):
            edges = self._match(rng)
            if edges is None:
                break
            if edges[0].size:
                found.append(edges)
        if not found:
            none = np.empty(0, dtype=np.int64)
            return none, none, none
        children, pieces, parents = (np.concatenate(part) for part in zip(*found, strict=True))
        return children, pieces, parents

    def _match(self, rng: np.random.Generator) -> tuple[Index, Index, Index] | None:
        givers, given = self._slots(self.parents, self.up, self.offers)
        takers, taken = self._slots(self.children, self.down, self.wants)
        if not givers.size or not takers.size:
            return None
        left, right = self._pair(givers, takers, rng)
        words = self.offers[givers[left]] & self.wants[takers[right]]
        fits = words.any(axis=1)
        if self.draft.banned.size:
            fits &= ~self.draft.is_banned(self.children[takers[right]], self.parents[givers[left]])
        left, right, words = left[fits], right[fits], words[fits]
        place = self._choose(words, given[left] + taken[right])
        u, v = givers[left], takers[right]
        if taken.any():
            new = choose.first_of(v * self.pieces.size + place)
            u, v, place = u[new], v[new], place[new]
        bits.switch_off(self.wants, v, place)
        parents, children = self.parents[u], self.children[v]
        np.subtract.at(self.up, parents, 1)
        np.subtract.at(self.down, children, 1)
        return children, self.pieces[place], parents

    def _slots(self, peers: Index, free: Index, rows: Bits) -> tuple[Index, Index]:
        """One entry per free slot of peers with anything in the window: row, and which slot."""
        able = np.flatnonzero((free[peers] > 0) & rows.any(axis=1))
        count = free[peers[able]]
        if not count.size or count.max() == 1:
            return able, np.zeros(able.size, dtype=np.int64)
        starts = np.cumsum(count) - count
        return np.repeat(able, count), np.arange(count.sum()) - np.repeat(starts, count)

    def _pair(self, givers: Index, takers: Index, rng: np.random.Generator) -> tuple[Index, Index]:
        """A random matching of the slots inside each domain, as indices into both."""
        if self.n_domains == 1:
            n_pairs = min(givers.size, takers.size)
            return rng.permutation(givers.size)[:n_pairs], rng.permutation(takers.size)[:n_pairs]
        place_u = self.domain[self.parents[givers]]
        place_v = self.domain[self.children[takers]]
        left = np.argsort(place_u + rng.random(givers.size))
        right = np.argsort(place_v + rng.random(takers.size))
        count_u = np.bincount(place_u, minlength=self.n_domains)
        count_v = np.bincount(place_v, minlength=self.n_domains)
        size = np.minimum(count_u, count_v)
        return _heads(left, count_u, size), _heads(right, count_v, size)

    def _choose(self, words: Bits, slots: Index) -> Index:
        """The first piece of each pair, for a later slot of a peer a later one.

        Several slots of one peer would otherwise all choose the same rarest piece.
        """
        rows = np.arange(words.shape[0])
        column = (words != 0).argmax(axis=1) if words.shape[1] > 1 else np.zeros_like(rows)
        word = words[rows, column]
        if slots.any():
            skip = np.minimum(slots, 63).astype(np.uint64)
            later = word >> skip << skip
            word = np.where(later != 0, later, word)
        return column * 64 + bits.lowest(word)


def _heads(order: Index, count: Index, size: Index) -> Index:
    """Of `order`, which is grouped in runs of `count`, the first `size` of each run."""
    starts = np.cumsum(count) - count
    rank = np.arange(order.size) - np.repeat(starts, count)
    heads: Index = order[rank < np.repeat(size, count)]
    return heads


def _window(
    draft: Draft, up: Index, down: Index, seen: Bits, size: int, rng: np.random.Generator
) -> _Window | None:
    """The `size` rarest pieces, not yet seen, that a free parent can give a free child near it."""
    parents, children = np.flatnonzero(up), np.flatnonzero(down)
    if not parents.size or not children.size:
        return None
    held, need = draft.held[parents], draft.need[children]
    n_domains = draft.levels[-1].n_domains
    offered = bits.union_by(held, draft.domain[parents], n_domains)
    wanted = bits.union_by(need, draft.domain[children], n_domains)
    useful = bits.members(bits.union(offered & wanted) & ~seen)
    if not useful.size:
        return None
    pieces = useful[np.argsort(draft.priorities(useful, rng))[:size]]
    bits.switch_on(seen[np.newaxis], np.zeros(pieces.size, dtype=np.int64), pieces)
    return _Window(
        pieces,
        parents,
        children,
        bits.packed_columns(held, pieces),
        bits.packed_columns(need, pieces),
        up,
        down,
        draft.domain,
        n_domains,
        draft,
        is_last=useful.size <= size,
    )
