"""Pieces that a client waits for: before everything else, from the best parent that there is."""

from __future__ import annotations

import numpy as np

from passel.core.graph import bits, choose
from passel.core.graph.bits import Index
from passel.core.graph.draft import Draft
from passel.core.graph.state import Bits, Flags


def feed_urgent(draft: Draft, rng: np.random.Generator) -> None:
    """Feed the urgent pieces by rank, then by rarity, from who has them before who will.

    A source is as good a parent as any here. A piece that is on its way into the child's zone does
    not enter it again: the child waits for it, with ``predict`` at the peer that is getting it.
    """
    rows = draft.urgent
    if not rows.size:
        return
    order = np.lexsort((draft.priorities(rows[:, 1], rng), rows[:, 2]))
    children, pieces = rows[order, 0], rows[order, 1]
    first = choose.first_of(children * draft.n_pieces + pieces)
    children, pieces = children[first], pieces[first]
    for table in (draft.have, draft.held) if draft.predict else (draft.have,):
        children, pieces = _feed(draft, table, children, pieces, rng)


def _feed(
    draft: Draft, table: Bits, children: Index, pieces: Index, rng: np.random.Generator
) -> tuple[Index, Index]:
    """Feed until nobody more can be fed from this table; who is left comes back."""
    while children.size:
        parents = choose.shuffled(draft.up > 0, rng)
        rank = _scopes(draft, children, pieces)
        found = np.full(children.size, -1, dtype=np.int64)
        found_any = draft.down[children] > 0
        for number, scope in enumerate(_scope_arrays(draft)):
            of_scope = np.flatnonzero(found_any & (rank == number))
            found[of_scope] = choose.find_parents(
                draft, table[parents], parents, children[of_scope], pieces[of_scope], scope, rng
            )
        ready = np.flatnonzero(found >= 0)
        ready = ready[_enters_once(draft, children[ready], pieces[ready], rank[ready])]
        if not ready.size:
            break
        kept = ready[choose.admit(draft, children[ready], found[ready])]
        draft.take(children[kept], pieces[kept], found[kept], urgent=True)
        left = np.ones(children.size, dtype=np.bool_)
        left[kept] = False
        children, pieces = children[left], pieces[left]
    return children, pieces


def _scope_arrays(draft: Draft) -> list[Index]:
    """From anywhere to the child's own narrowest domain."""
    return [draft.levels[0].group, *(level.domain for level in draft.levels)]


def _scopes(draft: Draft, children: Index, pieces: Index) -> Index:
    """How narrow the scope of each parent must be: the number of levels that the piece entered."""
    rank = np.zeros(children.size, dtype=np.int64)
    if draft.is_flat:
        return rank
    for number, level in enumerate(draft.levels, start=1):
        if level.n_domains > 1:
            rank[bits.is_set(level.entered, level.domain[children], pieces)] = number
    return rank


def _enters_once(draft: Draft, children: Index, pieces: Index, rank: Index) -> Flags:
    """Keep only the first of several tasks that would bring one piece into one domain."""
    kept = np.ones(children.size, dtype=np.bool_)
    if draft.is_flat:
        return kept
    for number, level in enumerate(draft.levels, start=1):
        enters = np.flatnonzero((rank < number) & (level.n_domains > 1))
        label = level.domain[children[enters]] * draft.n_pieces + pieces[enters]
        kept[enters] &= choose.first_of(label)
    return kept
