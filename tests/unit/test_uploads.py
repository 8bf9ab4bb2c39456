"""Upload slots are not blocked by receivers that take next to nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passel.core.uploads import Uploads

BULK, CLIENT = 7, 0


def test_the_last_slot_is_for_clients() -> None:
    uploads: Uploads[str] = Uploads(2)
    assert uploads.begin("a", BULK, 0.0)
    assert not uploads.begin("b", BULK, 0.0)
    assert uploads.begin("c", CLIENT, 0.0)
    assert not uploads.begin("d", CLIENT, 0.0)
    uploads.end("a", 0.1)
    assert uploads.begin("d", CLIENT, 0.1)
    assert list(uploads) == ["c", "d"]


def test_a_single_slot_is_for_all() -> None:
    assert Uploads[str](1).begin("a", BULK, 0.0)


@pytest.mark.parametrize("usual_s", [0.1, 2.0])
def test_who_takes_many_times_as_long_as_others_blocks_no_slot(usual_s: float) -> None:
    uploads: Uploads[int] = Uploads(2)
    now = 0.0
    for number in range(100):
        assert uploads.begin(number, BULK, now)
        now += usual_s
        uploads.end(number, now)
    assert uploads.usual_s == pytest.approx(usual_s, rel=0.01)
    overdue_s = uploads.overdue_s
    assert overdue_s == pytest.approx(max(8 * usual_s, 2.0), rel=0.01)
    assert uploads.begin(-1, CLIENT, now)
    assert uploads.begin(-2, CLIENT, now)
    assert not uploads.begin(-3, CLIENT, now + 0.99 * overdue_s)
    assert uploads.begin(-3, BULK, now + 1.01 * overdue_s)
    assert (uploads.n_taken, len(uploads)) == (1, 3)
    # What it took in the end makes nobody else look fast.
    before_s = uploads.usual_s
    uploads.end(-1, now + 100 * overdue_s)
    assert before_s < uploads.usual_s <= before_s + overdue_s / 8


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 20.0)), max_size=200), st.integers(1, 6))
def test_slots_are_never_exceeded_nor_twice_as_many_bodies(
    steps: list[tuple[bool, float]], n_slots: int
) -> None:
    uploads: Uploads[int] = Uploads(n_slots)
    under_way: list[int] = []
    now = 0.0
    for number, (ends, wait_s) in enumerate(steps):
        now += wait_s
        if ends and under_way:
            uploads.end(under_way.pop(), now)
        elif uploads.begin(number, CLIENT, now):
            under_way.append(number)
        assert sorted(uploads) == under_way
        assert uploads.n_taken <= n_slots
        assert len(under_way) <= 2 * n_slots
