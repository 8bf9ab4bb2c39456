"""Rates, arrivals and faults as they are written in profiles and on the command line.

One form for both, so that what a profile says can be tried as an option. Each parser says what it
expected when it cannot read something.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer

from passel.config.units import parse_duration, parse_size

_BITS = {"Tbit/s": 1e12, "Gbit/s": 1e9, "Mbit/s": 1e6, "kbit/s": 1e3}
_RATE = re.compile(r" *([0-9]{1,12}(?:\.[0-9]{1,9})?) *([A-Za-z]{1,4}/s) *")
RATE_EXPECTED = "expected a number and one of kbit/s, Mbit/s, Gbit/s, Tbit/s, KiB/s, MiB/s, GiB/s"
ARRIVAL_EXPECTED = "expected at-once, poisson N/s, waves N every TIME, rolling N, or trace FILE"
FAULT_EXPECTED = (
    "expected crash|slow|partition|lie|origin, as in: crash seed at 2 s for 1 s; crash 10% at 2 s"
    " for 5 s; crash shard at 1 s for 1 s; slow 5% to 0.1; partition z1 at 1 s for 5 s; lie p3;"
    " origin down|hang at 1 s for 3 s; origin slow to 0.1 at 1 s for 3 s"
)


def parse_rate(text: str) -> float:
    """``1 Gbit/s`` or ``100 MiB/s`` in bytes per second. Raises ValueError."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(RATE_EXPECTED)
    number, unit = float(match[1]), match[2]
    if unit in _BITS:
        rate = number * _BITS[unit] / 8
    else:
        try:
            rate = number * parse_size(f"1 {unit.removesuffix('/s')}")
        except ValueError:
            raise ValueError(RATE_EXPECTED) from None
    if rate <= 0:
        raise ValueError("expected more than 0 bit/s")
    return rate


def rate_text(rate: float) -> str:
    """`rate` bytes per second as `parse_rate` reads it back, to six digits."""
    for unit, factor in _BITS.items():
        if rate * 8 >= factor:
            return f"{rate * 8 / factor:.6g} {unit}"
    return f"{rate * 8 / 1e3:.6f} kbit/s"


def _rate(value: object) -> object:
    if isinstance(value, float):
        return value
    if isinstance(value, str):
        return parse_rate(value)
    raise ValueError(RATE_EXPECTED)


Rate = Annotated[
    float,
    BeforeValidator(_rate),
    PlainSerializer(rate_text, return_type=str, when_used="json"),
]
"""Bytes per second, written with its unit."""


def _rate_or_none(value: object) -> object:
    return None if value in (None, "none") else _rate(value)


OptionalRate = Annotated[
    float | None,
    BeforeValidator(_rate_or_none),
    PlainSerializer(
        lambda rate: "none" if rate is None else rate_text(rate), return_type=str, when_used="json"
    ),
]
"""A rate, or `none` for no limit."""


@dataclass(frozen=True)
class Arrival:
    """When the nodes begin.

    Attributes
    ----------
    rate : float
        Nodes per second, for poisson.
    size : int
        Nodes of a wave; nodes that a rolling restart lets be under way at once.
    every_s : float
        Between two waves.
    file : Path
        A trace whose reads tell when each node began.
    """

    text: str
    kind: Literal["at-once", "poisson", "waves", "rolling", "trace"] = "at-once"
    rate: float = 0.0
    size: int = 0
    every_s: float = 0.0
    file: Path = Path()


def parse_arrival(text: str) -> Arrival:
    """Raises ValueError."""
    words = " ".join(text.split())
    if words == "at-once":
        return Arrival(words)
    match = re.fullmatch(r"poisson (\d{1,9}(?:\.\d{1,6})?)/s", words)
    if match is not None and float(match[1]) > 0:
        return Arrival(words, "poisson", rate=float(match[1]))
    match = re.fullmatch(r"waves (\d{1,6}) every (.+)", words)
    if match is not None and int(match[1]) > 0:
        return Arrival(words, "waves", size=int(match[1]), every_s=_seconds(match[2]))
    match = re.fullmatch(r"rolling (\d{1,6})", words)
    if match is not None and int(match[1]) > 0:
        return Arrival(words, "rolling", size=int(match[1]))
    match = re.fullmatch(r"trace (.+)", words)
    if match is not None:
        return Arrival(words, "trace", file=Path(match[1]))
    raise ValueError(ARRIVAL_EXPECTED)


@dataclass(frozen=True)
class Fault:
    """Something that breaks at `at_s`, and is mended `for_s` later (never, if that is None).

    `who` is "seed", "shard", "origin", a node (p3), a zone (z1), or empty with a `share` of all
    nodes.
    """

    text: str
    kind: Literal["crash", "slow", "partition", "lie", "down", "hang", "slow origin"]
    who: str
    share: float = 0.0
    at_s: float = 0.0
    for_s: float | None = None
    factor: float = 1.0


_FAULT = re.compile(
    r"(?P<kind>crash|slow|partition|lie|origin) (?P<who>seed|shard|p\d{1,6}|z\d{1,6}"
    r"|\d{1,3}(?:\.\d{1,4})?%|down|hang|slow)"
    r"(?: to (?P<factor>\d(?:\.\d{1,6})?))?(?: at (?P<at>[\d.]+ ?[a-z]+))?"
    r"(?: for (?P<for>[\d.]+ ?[a-z]+))?"
)


def parse_fault(text: str) -> Fault:
    """Raises ValueError."""
    words = " ".join(text.split())
    match = _FAULT.fullmatch(words)
    if match is None:
        raise ValueError(FAULT_EXPECTED)
    kind, who = match["kind"], match["who"]
    is_node = who == "seed" or who[0] == "p" or who[-1] == "%"
    fits = {
        "crash": is_node or who == "shard",
        "slow": is_node,
        "lie": is_node,
        "partition": who[0] == "z",
        "origin": who in ("down", "hang", "slow"),
    }
    needs_factor = "slow" in (kind, who)
    factor = float(match["factor"]) if match["factor"] else 1.0
    if not fits[kind] or needs_factor != bool(match["factor"]) or not 0 < factor <= 1:
        raise ValueError(FAULT_EXPECTED)
    share = 0.0
    if who[-1] == "%":
        share = float(who[:-1]) / 100
        if not 0 < share <= 1:
            raise ValueError("expected a share of more than 0% and at most 100%")
        who = ""
    for_s = _seconds(match["for"]) if match["for"] else None
    if for_s is None and (kind == "partition" or who in ("shard", "down", "hang")):
        raise ValueError("expected a time after which it is mended: for TIME")
    at_s = _seconds(match["at"]) if match["at"] else 0.0
    name = kind if kind != "origin" else ("slow origin" if who == "slow" else who)
    who = "origin" if kind == "origin" else who
    return Fault(words, name, who, share, at_s, for_s, factor)  # type: ignore[arg-type]


def _seconds(text: str) -> float:
    return parse_duration(text).total_seconds()


def _arrival(value: object) -> object:
    if isinstance(value, Arrival):
        return value
    if isinstance(value, str):
        return parse_arrival(value)
    raise ValueError(ARRIVAL_EXPECTED)


def _fault(value: object) -> object:
    if isinstance(value, Fault):
        return value
    if isinstance(value, str):
        return parse_fault(value)
    raise ValueError(FAULT_EXPECTED)


ArrivalText = Annotated[
    Arrival,
    BeforeValidator(_arrival),
    PlainSerializer(lambda each: each.text, return_type=str, when_used="json"),
]
FaultText = Annotated[
    Fault,
    BeforeValidator(_fault),
    PlainSerializer(lambda each: each.text, return_type=str, when_used="json"),
]
