"""Choices at random, and what capacity leaves of them."""

from __future__ import annotations

import numpy as np

from passel.core.graph import bits
from passel.core.graph.bits import Index
from passel.core.graph.draft import Draft
from passel.core.graph.state import Bits, Flags


def pick(able: Flags, rng: np.random.Generator) -> Index:
    """One true column per row of (n_rows, n_columns) bool, -1 for a row without any.

    The caller shuffles the columns; each row then starts at a place of its own, so that no column
    is everybody's first.
    """
    n_rows, n_columns = able.shape
    rows = np.arange(n_rows)
    first = np.asarray(able.argmax(axis=1), dtype=np.int64)
    if n_columns > 1:
        starts = rng.integers(n_columns, size=(n_rows, 1))
        later = able & (np.arange(n_columns) >= starts)
        found = np.asarray(later.argmax(axis=1), dtype=np.int64)
        first = np.where(later[rows, found], found, first)
    return np.where(able[rows, first], first, -1)


def repeats(labels: Index) -> Index:
    """How often each label stood in the array before: 0 for its first occurrence."""
    order = np.argsort(labels, kind="stable")
    found = labels[order]
    place = np.arange(labels.size)
    is_start = np.ones(labels.size, dtype=np.bool_)
    is_start[1:] = found[1:] != found[:-1]
    start = np.maximum.accumulate(np.where(is_start, place, 0))
    seen = np.empty(labels.size, dtype=np.int64)
    seen[order] = place - start
    return seen


def shuffled(flags: Flags, rng: np.random.Generator) -> Index:
    """The indices of the true entries, in random order."""
    return rng.permutation(np.flatnonzero(flags))


def find_children(
    need: Bits, peers: Index, domain: Index, domains: Index, pieces: Index, rng: np.random.Generator
) -> Index:
    """For each (domain, piece) one of `peers` in the domain that needs it, -1 if none does.

    `need` has one row per entry of `peers`, which are in random order and have free downloads.
    """
    found = np.full(pieces.size, -1, dtype=np.int64)
    if not peers.size:
        return found
    place = domain[peers]
    for part in _parts(pieces.size, peers.size):
        able = _has(need, pieces[part])
        able &= domains[part, np.newaxis] == place
        column = pick(able, rng)
        found[part] = np.where(column >= 0, peers[column], -1)
    return found


def find_parents(
    draft: Draft,
    offers: Bits,
    parents: Index,
    children: Index,
    pieces: Index,
    scope: Index,
    rng: np.random.Generator,
) -> Index:
    """For each (child, piece) one of `parents` that offers it and lies in the child's scope.

    Parameters
    ----------
    offers : (n_parents, n_words) uint64
        What each of `parents` gives.
    parents : (n_parents,) int64
        In random order; all with a free upload.
    scope : (n_peers,) int64
        Child and parent must have the same number here.

    Returns
    -------
    (n_tasks,) int64
        -1 where there is none. Slots are not counted: see `admit`.
    """
    found = np.full(children.size, -1, dtype=np.int64)
    if not parents.size:
        return found
    place = scope[parents]
    for part in _parts(children.size, parents.size):
        able = _has(offers, pieces[part])
        able &= scope[children[part], np.newaxis] == place
        if draft.banned.size:
            able &= ~draft.is_banned(children[part, np.newaxis], parents)
        column = pick(able, rng)
        found[part] = np.where(column >= 0, parents[column], -1)
    return found


def admit(draft: Draft, children: Index, parents: Index) -> Flags:
    """Which of these edges, the first ones first, the free slots of both ends allow.

    An edge that fails on one end still counts on the other, so the answer may be too small, but the
    first edge of all is always in it.
    """
    kept: Flags = repeats(parents) < draft.up[parents]
    kept &= repeats(children) < draft.down[children]
    return kept


def first_of(labels: Index) -> Flags:
    """True where a label stands for the first time."""
    seen: Flags = repeats(labels) == 0
    return seen


def _has(rows: Bits, pieces: Index) -> Flags:
    """(n_pieces, n_rows) bool: whether row j has piece i."""
    has: Flags = np.ascontiguousarray(bits.columns(rows, pieces).T) != 0
    return has


def _parts(n_tasks: int, n_columns: int) -> list[slice]:
    """Runs of tasks whose table of tasks x columns fits a block."""
    step = max(1, bits.BLOCK_CELLS // n_columns)
    return [slice(start, start + step) for start in range(0, n_tasks, step)]
