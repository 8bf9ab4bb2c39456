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
    steps: int = 1,
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
    steps : int
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
    everybody = np.ones(state.n_peers, dtype=np.bool_)
    feed_urgent(draft, rng)
    for step in range(steps):
        draft.begin_step(steps - step)
        inject(draft, rng)
        enter(draft, rng)
        match_waves(draft, ~draft.keeper, rng)
        if draft.keeper.any():
            match_waves(draft, everybody, rng)
        feed_leftovers(draft, rng)
        enter_late(draft, rng)
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
