"""The piece-parent graph of one blob for one epoch.

Stages of each step, in order of what goes first: pieces into the zones (and racks) that lack them;
rarest pieces first inside each; leftovers. What a client waits for is not planned here: the shard
gives it a parent in the very call that asks. `draft.Draft` carries what they have in common.
"""

from __future__ import annotations

import numpy as np

from passel.core.graph.draft import Draft
from passel.core.graph.fallbacks import choose_fallbacks, no_fallbacks
from passel.core.graph.ingress import enter, enter_late, inject
from passel.core.graph.leftovers import feed_leftovers
from passel.core.graph.state import PieceParentGraph, SwarmState
from passel.core.graph.wave import match_waves


def plan(
    state: SwarmState,
    now: float,
    rng: np.random.Generator,
    n_steps: int = 1,
    with_fallbacks: bool = True,
) -> PieceParentGraph:
    """Decide who fetches which piece from whom.

    Parameters
    ----------
    state : SwarmState
        Not modified.
    now : float
        Seconds; only noted in the result.
    rng : np.random.Generator
        Breaks all ties. Lowest index first would turn the first peers into hot spots.
    n_steps : int
        How many steps the plan has; one is about the time in which a link moves a piece. What an
        edge of one step brings can be passed on by an edge of the next.
    with_fallbacks : bool
        Whether to choose fallbacks as well: a fifth of the work.

    Returns
    -------
    PieceParentGraph
        Slots of no step are exceeded; nobody gets what he has or what is coming; a piece crosses
        into a zone only if nobody there has it or is getting it.
    """
    draft = Draft(state, n_steps)
    for number in range(n_steps):
        draft.begin_step(number)
        _feed_all(draft, rng)
    child, piece, parent, waits, step = draft.edges()
    return PieceParentGraph(
        child.astype(np.int32),
        piece.astype(np.int32),
        parent.astype(np.int32),
        waits,
        step.astype(np.int32),
        choose_fallbacks(draft, rng) if with_fallbacks else no_fallbacks(draft.n_peers),
        now,
    )


def _feed_all(draft: Draft, rng: np.random.Generator) -> None:
    """Use the open slots until nobody who may be fed can be."""
    inject(draft, rng)
    enter(draft, rng)
    match_waves(draft, ~draft.keeper, rng)
    able = ~draft.saving()
    if draft.keeper.any():
        match_waves(draft, able, rng)
    feed_leftovers(draft, able, rng)
    enter_late(draft, rng)
