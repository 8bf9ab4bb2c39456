"""Pins: blobs that eviction is to leave alone, for a while or until somebody takes the pin away.

A pin holds on every node that has the blobs; it fetches nothing. What is kept across a restart of
the controller are the pins; peers are told which digests they add up to, as a whole, and a newer
generation replaces an older one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from passel.errors import InputError
from passel.ids import Digest

PINS_MAX = 1000
DIGESTS_MAX = 50_000


@dataclass(frozen=True, slots=True)
class Pin:
    """One pin. Times are wall time in seconds; `until_s` None: for good."""

    what: str
    digests: tuple[Digest, ...]
    created_s: float
    until_s: float | None

    @property
    def id(self) -> str:
        """The same blobs always have the same pin."""
        lines = sorted(str(digest) for digest in self.digests)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Pinned:
    """All that is pinned. `generation` only ever grows."""

    generation: int
    digests: frozenset[Digest]


class PinMachine:
    """All pins of a cluster. What a method returns is to be written down or struck out."""

    def __init__(self, generation: int = 0) -> None:
        self.pins: dict[str, Pin] = {}
        self.generation = generation

    def pin(self, pin: Pin) -> Pin:
        """The pin as it is now: one for the same blobs is made longer by this, never shorter.

        Raises InputError when there are too many.
        """
        if not pin.digests:
            raise InputError(400, "UNSUPPORTED", "a pin is for at least one blob")
        known = self.pins.get(pin.id)
        if known is not None:
            pin = replace(known, until_s=_later(known.until_s, pin.until_s))
        elif len(self.pins) >= PINS_MAX:
            text = f"there are {PINS_MAX} pins already: take some away with passel unpin"
            raise InputError(503, "TOOMANYREQUESTS", text)
        elif self._n_digests() + len(pin.digests) > DIGESTS_MAX:
            text = f"the pins hold {DIGESTS_MAX} blobs already: take some away with passel unpin"
            raise InputError(503, "TOOMANYREQUESTS", text)
        self.pins[pin.id] = pin
        self.generation += 1
        return pin

    def unpin(self, name: str) -> list[Pin]:
        """The pins that `name` means are gone: an id, what was pinned, or a blob's digest.

        Raises InputError when there is none.
        """
        gone = [
            pin
            for pin in self.pins.values()
            if name in (pin.id, pin.what) or [name] == [str(digest) for digest in pin.digests]
        ]
        if not gone:
            raise InputError(404, "UNSUPPORTED", f"there is no pin {name}: see passel pin")
        self._drop(gone)
        return gone

    def expire(self, wall_s: float) -> list[Pin]:
        """The pins whose time is over are gone."""
        gone = [p for p in self.pins.values() if p.until_s is not None and p.until_s <= wall_s]
        self._drop(gone)
        return gone

    def restore(self, pin: Pin) -> None:
        """A pin of the controller's former life."""
        self.pins[pin.id] = pin
        self.generation += 1

    def pinned(self) -> Pinned:
        """What peers are to be told."""
        digests = {digest for pin in self.pins.values() for digest in pin.digests}
        return Pinned(self.generation, frozenset(digests))

    def ends(self) -> dict[Digest, float | None]:
        """Every pinned blob, and until when it is; None: for good."""
        ends: dict[Digest, float | None] = {}
        for pin in self.pins.values():
            for digest in pin.digests:
                is_new = digest not in ends
                ends[digest] = pin.until_s if is_new else _later(ends[digest], pin.until_s)
        return ends

    def _n_digests(self) -> int:
        return sum(len(pin.digests) for pin in self.pins.values())

    def _drop(self, gone: list[Pin]) -> None:
        for pin in gone:
            del self.pins[pin.id]
        self.generation += bool(gone)


def _later(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)
