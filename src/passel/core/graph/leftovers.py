"""What the fast stages left over: nobody stays hungry while somebody near could feed him.

Random pairs find almost everything at almost no cost; the last few edges are found here by looking
at every (child, piece) against every parent that still has a slot.
"""

from __future__ import annotations

import numpy as np

from passel.core.graph import bits, choose
from passel.core.graph.bits import Index
from passel.core.graph.draft import Draft
from passel.core.graph.state import Bits, Flags


def feed_leftovers(draft: Draft, parents_able: Flags, rng: np.random.Generator) -> None:
    """Feed inside the domains until no free child needs what a free parent near it holds."""
    need = draft.need
    if draft.banned.size:
        need = need.copy()  # pairs that are banned are struck out here, not in the draft
    while True:
        children, pieces = _proposals(draft, need, parents_able, rng)
        if not children.size:
            return
        parents = choose.shuffled((draft.up > 0) & parents_able, rng)
        found = choose.find_parents(
            draft, draft.held[parents], parents, children, pieces, draft.domain, rng
        )
        hopeless = found < 0
        bits.switch_off(need, children[hopeless], pieces[hopeless])
        children, pieces, found = (each[~hopeless] for each in (children, pieces, found))
        kept = choose.admit(draft, children, found)
        draft.take(children[kept], pieces[kept], found[kept])
        if need is not draft.need:
            bits.switch_off(need, children[kept], pieces[kept])


def _proposals(
    draft: Draft, need: Bits, parents_able: Flags, rng: np.random.Generator
) -> tuple[Index, Index]:
    """The rarest pieces that children with free slots can get in their domain, rarest first.

    As many per child as it has slots, and not more in all than a block holds.
    """
    none = np.empty(0, dtype=np.int64)
    children = choose.shuffled(draft.down > 0, rng)
    parents = np.flatnonzero((draft.up > 0) & parents_able)
    if not children.size or not parents.size:
        return none, none
    n_domains = draft.levels[-1].n_domains
    offers = bits.union_by(draft.held[parents], draft.domain[parents], n_domains)
    wanted = need[children] & offers[draft.domain[children]]
    hungry = wanted.any(axis=1)
    if not hungry.any():
        return none, none
    children, wanted = children[hungry], wanted[hungry]
    order = bits.members(bits.union(wanted))
    order = order[np.argsort(draft.priorities(order, rng))]
    rows = max(1, bits.BLOCK_CELLS // order.size)
    children, wanted = children[:rows], wanted[:rows]
    cells = bits.columns(wanted, order) != 0
    if (draft.down[children] == 1).all():
        place, row = cells.argmax(axis=1), np.arange(children.size)
    else:
        cells &= cells.cumsum(axis=1, dtype=np.int32) <= draft.down[children, np.newaxis]
        row, place = np.nonzero(cells)
    by_rarity = np.argsort(place, kind="stable")
    return children[row[by_rarity]], order[place[by_rarity]]
