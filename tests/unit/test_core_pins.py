"""Pins in virtual time: who holds, until when, what takes them away."""

from __future__ import annotations

import pytest

from passel.core.pins import DIGESTS_MAX, PINS_MAX, Pin, PinMachine
from passel.errors import InputError
from passel.ids import Digest


def digest(number: int) -> Digest:
    return Digest("sha256", f"{number:064x}")


def pin(*numbers: int, until: float | None = None, what: str = "lab/app:v1") -> Pin:
    return Pin(what, tuple(digest(n) for n in numbers), 0.0, until)


def test_a_pin_holds_until_its_end_and_each_change_is_a_new_generation() -> None:
    machine = PinMachine(7)
    machine.pin(pin(1, 2, until=10.0))
    machine.pin(pin(2, 3))
    assert machine.pinned().generation == 9
    assert machine.pinned().digests == {digest(1), digest(2), digest(3)}
    ends = {digest(1): 10.0, digest(2): None, digest(3): None}
    assert machine.ends() == ends, "of two pins the longer one counts"
    assert machine.expire(9.9) == []
    assert machine.pinned().generation == 9
    assert [each.until_s for each in machine.expire(10.0)] == [10.0]
    assert machine.pinned().generation == 10
    assert machine.pinned().digests == {digest(2), digest(3)}


def test_the_same_blobs_again_make_it_longer_and_never_shorter() -> None:
    machine = PinMachine()
    assert machine.pin(pin(1, 2, until=10.0)).until_s == 10.0
    assert machine.pin(pin(2, 1, until=5.0)).until_s == 10.0, "in any order"
    assert machine.pin(pin(1, 2, until=20.0)).until_s == 20.0
    assert machine.pin(pin(1, 2)).until_s is None
    assert machine.pin(pin(1, 2, until=30.0)).until_s is None
    assert len(machine.pins) == 1


@pytest.mark.parametrize("name", ["lab/app:v1", "{id}", f"sha256:{1:064x}"])
def test_unpinned_by_what_it_is_called(name: str) -> None:
    machine = PinMachine()
    one = machine.pin(pin(1))
    machine.pin(pin(1, 2, what="lab/other:v1"))
    assert machine.unpin(name.replace("{id}", one.id)) == [one]
    assert len(machine.pins) == 1
    with pytest.raises(InputError, match="there is no pin"):
        machine.unpin(name.replace("{id}", one.id))


def test_pins_are_bounded() -> None:
    machine = PinMachine()
    with pytest.raises(InputError, match="at least one"):
        machine.pin(pin())
    machine.pin(pin(*range(DIGESTS_MAX)))
    with pytest.raises(InputError, match=f"hold {DIGESTS_MAX} blobs"):
        machine.pin(pin(DIGESTS_MAX))
    machine = PinMachine()
    for number in range(PINS_MAX):
        machine.pin(pin(number))
    machine.pin(pin(0, until=1.0))
    with pytest.raises(InputError, match=f"{PINS_MAX} pins already"):
        machine.pin(pin(PINS_MAX))
