"""Who fetches which piece from whom: array functions only."""

from passel.core.graph.planner import plan
from passel.core.graph.state import N_FALLBACKS, Ints, PieceParentGraph, SwarmState

__all__ = ["N_FALLBACKS", "Ints", "PieceParentGraph", "SwarmState", "plan"]
