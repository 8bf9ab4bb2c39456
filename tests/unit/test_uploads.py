"""Upload slots are not blocked by receivers that take next to nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passel.core.uploads import OVERDUE_S_MIN, OVERDUE_TIMES, Uploads

BULK, CLIENT = 7, 0


def test_the_last_slot_is_for_clients() -> None:
    uploads: Uploads[str] = Uploads(2)
    uploads.begin("a", 0.0)
    assert not uploads.is_free_for(BULK, 0.0)
    assert uploads.is_free_for(CLIENT, 0.0)
    uploads.begin("b", 0.0)
    assert not uploads.is_free_for(CLIENT, 0.0)
    uploads.end("a", 0.1)
    assert uploads.is_free_for(CLIENT, 0.1)


def test_a_single_slot_is_for_all() -> None:
    assert Uploads[str](1).is_free_for(BULK, 0.0)


@pytest.mark.parametrize("usual_s", [0.1, 2.0])
def test_who_takes_many_times_as_long_as_others_blocks_no_slot(usual_s: float) -> None:
    uploads: Uploads[int] = Uploads(2)
    now = 0.0
    for number in range(100):
        uploads.begin(number, now)
        now += usual_s
        uploads.end(number, now)
    assert uploads.usual_s == pytest.approx(usual_s, rel=0.01)
    uploads.begin(-1, now)
    uploads.begin(-2, now)
    overdue_s = max(OVERDUE_TIMES * uploads.usual_s, OVERDUE_S_MIN)
    assert not uploads.is_free_for(CLIENT, now + 0.99 * overdue_s)
    assert uploads.is_free_for(BULK, now + 1.01 * overdue_s)
    # What it took in the end makes nobody else look fast.
    uploads.end(-1, now + 100 * overdue_s)
    assert uploads.usual_s <= 2 * usual_s or usual_s < OVERDUE_S_MIN / OVERDUE_TIMES


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 20.0)), max_size=200), st.integers(1, 6))
def test_there_are_never_more_than_twice_the_slots(
    steps: list[tuple[bool, float]], n_slots: int
) -> None:
    uploads: Uploads[int] = Uploads(n_slots)
    under_way: list[int] = []
    now = 0.0
    for number, (ends, wait_s) in enumerate(steps):
        now += wait_s
        if ends and under_way:
            uploads.end(under_way.pop(), now)
        elif uploads.is_free_for(CLIENT, now):
            uploads.begin(number, now)
            under_way.append(number)
        assert len(uploads) == len(under_way) <= 2 * n_slots
        assert 0 <= uploads.n_counted(now) <= len(uploads)
