"""The planner on small swarms that can be read."""

from __future__ import annotations

import graph_rounds
import pytest


@pytest.mark.parametrize("n_zones", [1, 2, 4])
def test_a_blob_reaches_everybody_near_the_bound(n_zones: int) -> None:
    outcome = graph_rounds.spread(255, 64, n_zones=n_zones)
    assert outcome.ratio <= 1.06
    assert outcome.cross_ratio == 1.0
