"""Parents worth asking when every entry of a peer's plan is blocked.

With jitter, a plan without them ends up at 1.5 times the bound, with them at 1.15.
Source: simulation, lognormal service times.
"""

from __future__ import annotations

import numpy as np

from passel.core.graph import bits
from passel.core.graph.bits import Index
from passel.core.graph.draft import Draft
from passel.core.graph.state import N_FALLBACKS, Ints

#: Candidates looked at per child.
_CANDIDATES = 2 * N_FALLBACKS


def no_fallbacks(n_peers: int) -> Ints:
    """(n_peers, 4) int32, all -1."""
    return np.full((n_peers, N_FALLBACKS), -1, dtype=np.int32)


def choose_fallbacks(draft: Draft, rng: np.random.Generator) -> Ints:
    """(n_peers, 4) int32: holders of what the child lacks, in its own domain; -1 behind the last.

    Each peer is a candidate for the same number of others, so that nobody becomes everybody's
    fallback. Slots play no part: the parent says itself when it is busy.
    """
    chosen = no_fallbacks(draft.n_peers)
    lacking = draft.wants & ~draft.have
    children = np.flatnonzero(lacking.any(axis=1))
    parents = np.flatnonzero(draft.can_serve & draft.have.any(axis=1))
    if not children.size or not parents.size:
        return chosen
    # The parents as a ring in random order, each domain an arc; every child starts somewhere on
    # the arc of its domain and looks at the next few.
    parents = parents[np.argsort(draft.domain[parents] + rng.random(parents.size))]
    length = np.bincount(draft.domain[parents], minlength=draft.levels[-1].n_domains)
    start = np.cumsum(length) - length
    children = children[length[draft.domain[children]] > 0]
    arc, first = length[draft.domain[children]], start[draft.domain[children]]
    offset = rng.permutation(children.size) % np.maximum(arc, 1)
    n_chosen = np.zeros(draft.n_peers, dtype=np.int64)
    step = max(1, bits.BLOCK_CELLS // (8 * draft.have.shape[1]))
    for number in range(_CANDIDATES):
        for begin in range(0, children.size, step):
            part = slice(begin, begin + step)
            candidate = parents[first[part] + (offset[part] + number) % arc[part]]
            useful = (number < arc[part]) & (n_chosen[children[part]] < N_FALLBACKS)
            useful &= candidate != children[part]
            useful &= (draft.have[candidate] & lacking[children[part]]).any(axis=1)
            useful &= ~draft.is_banned(children[part], candidate)
            _put(chosen, n_chosen, children[part][useful], candidate[useful])
    return chosen


def _put(chosen: Ints, n_chosen: Index, children: Index, parents: Index) -> None:
    chosen[children, n_chosen[children]] = parents
    n_chosen[children] += 1
