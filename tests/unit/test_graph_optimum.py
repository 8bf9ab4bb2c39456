"""On tiny swarms: the least number of rounds by looking at all schedules, and what `plan` needs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import graph_rounds
import pytest

from passel.core.graph.bounds import rounds_bound

#: What each receiver has, as bit sets in ascending order: who is who does not matter.
Haves = tuple[int, ...]


def next_states(haves: Haves, full: int) -> Iterator[Haves]:
    """What can be after one round: each uploads one piece at most, and downloads one at most."""

    def extend(child: int, free: tuple[int, ...], after: Haves) -> Iterator[Haves]:
        if child == len(haves):
            yield tuple(sorted(after))
            return
        own = haves[child]
        yield from extend(child + 1, free, (*after, own))
        # Parents with the same pieces are one choice.
        for held in dict.fromkeys(free):
            rest = list(free)
            rest.remove(held)
            useful = held & ~own
            while useful:
                piece = useful & -useful
                useful -= piece
                yield from extend(child + 1, tuple(rest), (*after, own | piece))

    return extend(0, (full, *haves), ())


@cache
def fewest_rounds(n_receivers: int, n_pieces: int) -> int:
    """From one source to everybody, by breadth first search over all schedules."""
    full = (1 << n_pieces) - 1
    states, n_rounds = {(0,) * n_receivers}, 0
    while (full,) * n_receivers not in states:
        states = {after for haves in states for after in next_states(haves, full)}
        n_rounds += 1
    return n_rounds


TINY = [
    (1, 1),
    (1, 4),
    (2, 1),
    (2, 2),
    (2, 3),
    (2, 4),
    (3, 1),
    (3, 2),
    (3, 3),
    (4, 1),
    (4, 2),
    (5, 1),
]


@pytest.mark.parametrize(("n_receivers", "n_pieces"), TINY)
def test_the_bound_is_what_the_best_schedule_takes(n_receivers: int, n_pieces: int) -> None:
    assert fewest_rounds(n_receivers, n_pieces) == rounds_bound(n_receivers, n_pieces)


@pytest.mark.parametrize(("n_receivers", "n_pieces"), TINY)
def test_the_plan_takes_hardly_more_than_the_best_schedule(n_receivers: int, n_pieces: int) -> None:
    best = fewest_rounds(n_receivers, n_pieces)
    rounds = [graph_rounds.spread(n_receivers, n_pieces, seed=s).rounds for s in range(20)]
    assert min(rounds) == best, "with luck in its ties it finds a best one"
    assert max(rounds) <= best + 1
