"""Max-min fairness, whatever the links look like."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from passel.sim.network import NO_LINK, max_min_rates


@st.composite
def networks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n_links = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    capacity = np.r_[np.inf, rng.choice([0.0, 1.0, 2.5, 10.0, 1e6], n_links)]
    n_transfers = draw(st.integers(1, 30))
    links = np.zeros((n_transfers, 3), dtype=np.int64)
    for row in links:
        used = rng.permutation(n_links)[: rng.integers(1, 4)] + 1
        row[: used.size] = used
    return links, capacity


@settings(max_examples=300, deadline=None)
@given(networks())
def test_no_link_is_overfull_and_everybody_has_a_reason(
    network: tuple[np.ndarray, np.ndarray],
) -> None:
    links, capacity = network
    rates = max_min_rates(links, capacity)
    load = np.bincount(links.ravel(), weights=np.repeat(rates, 3), minlength=capacity.size)
    load[NO_LINK] = 0
    assert (load <= capacity * (1 + 1e-9) + 1e-9).all()
    for rate, used in zip(rates, links, strict=True):
        # Fair: on one of its links, which is full, nobody gets more than this transfer.
        reasons = [
            load[link] >= capacity[link] * (1 - 1e-9)
            and rate >= rates[(links == link).any(axis=1)].max() * (1 - 1e-9)
            for link in used
            if link != NO_LINK
        ]
        assert any(reasons)


@settings(max_examples=200, deadline=None)
@given(networks(), st.integers(1, 3))
def test_fewer_rounds_are_safe(network: tuple[np.ndarray, np.ndarray], rounds_max: int) -> None:
    links, capacity = network
    rates = max_min_rates(links, capacity, rounds_max)
    load = np.bincount(links.ravel(), weights=np.repeat(rates, 3), minlength=capacity.size)
    load[NO_LINK] = 0
    assert (load <= capacity * (1 + 1e-9) + 1e-9).all()
