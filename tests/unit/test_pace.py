"""Who counts as slow, from nothing but what moved between whom."""

from __future__ import annotations

from collections.abc import Iterable

from passel.core.pace import MOVED_ELSEWHERE, SLOW_S, STARVED_S, USUAL_AFTER, Pace
from passel.ids import PeerId

MIB = 1 << 20
A, B, C, D, SLOW = (PeerId(name) for name in ("a", "b", "c", "d", "slow"))


class Crowd:
    """Pieces that move between some pairs every tenth of a second, and never between others."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pace = Pace()

    def run(
        self,
        for_s: float,
        moving: Iterable[tuple[PeerId, PeerId]],
        still: Iterable[tuple[PeerId, PeerId]] = (),
    ) -> None:
        until = self.now + for_s
        while self.now < until:
            self.now += 0.1
            for child, parent in moving:
                self.pace.moved(child, parent, self.now)
            self.pace.judge([*moving, *still], MIB, self.now)


HEALTHY = ((A, B), (B, C), (C, A))


def test_nobody_is_slow_in_a_crowd_that_moves() -> None:
    crowd = Crowd()
    crowd.run(60, HEALTHY)
    assert not crowd.pace.slow_parents
    assert not crowd.pace.slow_children


def test_a_child_that_gets_nothing_from_two_parents_is_slow_and_they_are_not() -> None:
    crowd = Crowd()
    crowd.run(10, HEALTHY)
    # One of the two sends to nobody else: the slots that it has are the slow child's.
    crowd.run(5, HEALTHY, still=((SLOW, A), (SLOW, D)))
    assert set(crowd.pace.slow_children) == {SLOW}
    assert not crowd.pace.slow_parents


def test_a_parent_that_sends_nothing_to_those_who_get_on_with_others_is_slow() -> None:
    crowd = Crowd()
    crowd.run(10, HEALTHY)
    crowd.run(5, HEALTHY, still=((A, SLOW), (B, SLOW)))
    assert set(crowd.pace.slow_parents) == {SLOW}
    assert not crowd.pace.slow_children


def test_of_a_single_pair_nobody_can_tell_which_is_slow() -> None:
    crowd = Crowd()
    crowd.run(10, HEALTHY)
    crowd.run(5, HEALTHY, still=((SLOW, D),))
    assert not crowd.pace.slow_parents
    assert not crowd.pace.slow_children


def test_when_all_stand_still_nobody_is_slower_than_the_others() -> None:
    crowd = Crowd()
    crowd.run(10, HEALTHY)
    crowd.run(STARVED_S - 0.5, (), still=((A, B), (A, C), (B, C), (C, A), (C, B)))
    assert not crowd.pace.slow_parents
    assert not crowd.pace.slow_children


def test_before_anything_moved_nobody_knows_what_is_usual() -> None:
    crowd = Crowd()
    crowd.run(0.1 * (USUAL_AFTER - MOVED_ELSEWHERE) / 3, HEALTHY, still=((A, SLOW), (B, SLOW)))
    crowd.run(4, (), still=((A, SLOW), (B, SLOW)))
    assert not crowd.pace.slow_parents


def test_one_whom_several_wait_for_in_vain_is_slow_in_the_end_and_the_next_has_more_time() -> None:
    crowd = Crowd()
    crowd.run(STARVED_S + 1, (), still=((A, SLOW), (B, SLOW)))
    assert set(crowd.pace.slow_parents) == {SLOW}
    crowd.run(STARVED_S + 2, (), still=((A, D), (B, D)))
    assert D not in crowd.pace.slow_parents
    crowd.run(STARVED_S, (), still=((A, D), (B, D)))
    assert D in crowd.pace.slow_parents


def test_who_is_fast_again_is_slow_no_more() -> None:
    crowd = Crowd()
    crowd.run(10, HEALTHY)
    crowd.run(5, HEALTHY, still=((A, SLOW), (SLOW, B), (SLOW, C)))
    assert crowd.pace.is_slow(SLOW)
    crowd.run(SLOW_S + 1, (*HEALTHY, (A, SLOW), (SLOW, B)))
    assert not crowd.pace.is_slow(SLOW)


def test_who_is_gone_is_forgotten() -> None:
    crowd = Crowd()
    crowd.run(10, HEALTHY)
    crowd.run(5, HEALTHY, still=((A, SLOW), (B, SLOW)))
    crowd.pace.forget(SLOW)
    assert not crowd.pace.is_slow(SLOW)
