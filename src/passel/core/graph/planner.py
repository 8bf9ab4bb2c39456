"""The piece-parent graph of one blob for one epoch.

Stages, in order of what goes first: urgent pieces; pieces into the zones (and racks) that lack
them; rarest pieces first inside each; leftovers. `draft.Draft` carries what they have in common.
"""

from __future__ import annotations

import numpy as np

from passel.core.graph.draft import Draft
from passel.core.graph.fallbacks import choose_fallbacks
from passel.core.graph.ingress import enter, enter_late, inject
from passel.core.graph.leftovers import feed_leftovers
from passel.core.graph.state import PieceParentGraph, SwarmState
from passel.core.graph.urgent import feed_urgent
from passel.core.graph.wave import match_waves


def plan(
    state: SwarmState,
    now: float,
    rng: np.random.Generator,
    *,
    predict: bool = False,
    n_steps: int = 1,
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
    predict : bool
        Let peers be parents of pieces that are still on their way to them.
    n_steps : int
        In how many steps the slots are shared out: an edge of one step can use, if `predict`, what
        an edge of an earlier step brings. About the number of pieces that a peer moves one after
        the other in an epoch.

    Returns
    -------
    PieceParentGraph
        Slots are not exceeded; nobody gets what he has or what is coming; a piece crosses into a
        zone only if nobody there has it or is getting it.
    """
    draft = Draft(state, predict=predict)
    feed_urgent(draft, rng)
    for step in range(n_steps):
        draft.begin_step(step, n_steps)
        _feed_all(draft, rng)
        draft.end_step()
    child, piece, parent, waits, urgent = draft.edges()
    return PieceParentGraph(
        child.astype(np.int32),
        piece.astype(np.int32),
        parent.astype(np.int32),
        waits,
        urgent,
        choose_fallbacks(draft, rng),
        now,
    )


def _feed_all(draft: Draft, rng: np.random.Generator) -> None:
    """Use the open slots until nobody who may be fed can be."""
    inject(draft, rng)
    enter(draft, rng)
    match_waves(draft, ~draft.keeper, rng)
    if draft.keeper.any():
        match_waves(draft, np.ones(draft.n_peers, dtype=np.bool_), rng)
    feed_leftovers(draft, rng)
    enter_late(draft, rng)
