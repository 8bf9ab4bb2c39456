"""Quantities, addresses, names and paths as they are written in the file.

A size or a duration always carries its unit: a bare number is refused, because nobody remembers
whether it was seconds. Each validator says what it expected; `load` adds what it got, and where.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    PlainSerializer,
    ValidationInfo,
)

from passel.errors import InputError
from passel.oci.upstream import normalise_name, split_authority

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_SIZES = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB, "B": 1}
#: Units of time in microseconds, the resolution of timedelta.
_DURATIONS = {
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "min": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
}
_QUANTITY = re.compile(r" *([0-9]{1,15}(?:\.[0-9]{1,15})?) *([A-Za-z]{1,3}) *")
#: Offsets in files are signed 64-bit numbers.
SIZE_MAX = 2**63 - 1
DURATION_MAX = timedelta(days=36_500)

SIZE_EXPECTED = "expected a number and one of B, KiB, MiB, GiB, TiB"
DURATION_EXPECTED = "expected a number and one of ms, s, min, h, d"


def _quantity(text: str, units: dict[str, int]) -> int | None:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        return None
    return int(Decimal(match[1]) * units[match[2]])


def parse_size(text: str) -> int:
    """``40 GiB`` or ``40GiB`` in bytes; a fraction of a byte is dropped. Raises ValueError."""
    size = _quantity(text, _SIZES)
    if size is None or size > SIZE_MAX:
        raise ValueError(SIZE_EXPECTED)
    return size


def size_text(size: int) -> str:
    """`size` bytes as `parse_size` reads them back exactly: in the largest unit that divides it."""
    for unit, factor in _SIZES.items():
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return "0 B"


def parse_duration(text: str) -> timedelta:
    """``30 s`` or ``5min``; fractions of a microsecond are dropped. Raises ValueError."""
    microseconds = _quantity(text, _DURATIONS)
    if microseconds is None or microseconds > DURATION_MAX // timedelta(microseconds=1):
        raise ValueError(DURATION_EXPECTED)
    return timedelta(microseconds=microseconds)


def duration_text(duration: timedelta) -> str:
    """`duration` as `parse_duration` reads it back exactly."""
    microseconds = duration // timedelta(microseconds=1)
    for unit, factor in _DURATIONS.items():
        if microseconds >= factor and microseconds % factor == 0:
            return f"{microseconds // factor} {unit}"
    whole, fraction = divmod(microseconds, 1000)
    return f"{whole}.{fraction:03} ms" if fraction else f"{whole} s"


def host_port(address: str) -> tuple[str, int]:
    """``host:port`` in parts; an IPv6 host loses its brackets. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    parts = split_authority(host)
    if not colon or not digits or int(port) > 65535 or parts is None or parts[1] is not None:
        raise ValueError("expected host:port, where port 0 lets the kernel choose")
    return parts[0].strip("[]"), int(port)


def _size(value: object) -> object:
    if isinstance(value, ByteSize):
        return value
    if isinstance(value, str):
        return ByteSize(parse_size(value))
    raise ValueError(SIZE_EXPECTED)


def _duration(value: object) -> object:
    if isinstance(value, timedelta) and timedelta(0) <= value <= DURATION_MAX:
        return value
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError(DURATION_EXPECTED)


def _positive(value: timedelta) -> timedelta:
    if value == timedelta(0):
        raise ValueError("expected more than 0 s")
    return value


def _address(value: str) -> str:
    host, port = host_port(value)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _network(value: object) -> object:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError("expected a network such as 10.0.0.0/8")
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError("expected a network such as 10.0.0.0/8") from None
    raise ValueError(f"expected a network without host bits, which would be {meant}")


def _name(value: str) -> str:
    try:
        name = normalise_name(value)
    except InputError:
        raise ValueError("expected the name of an upstream as host[:port]") from None
    if name != value:
        raise ValueError(f"expected the name of an upstream in its plain form, {name}")
    if name == "none":
        raise ValueError("expected another name: none is a word of its own here")
    return name


def _api(value: str) -> str:
    expected = "expected https://host[:port] or http://host[:port], without a path or a user"
    try:
        url = urlsplit(value)
    except ValueError:
        raise ValueError(expected) from None
    bare = value.partition("://")[2].removesuffix("/")
    parts = split_authority(bare)
    if url.scheme not in ("http", "https") or parts is None:
        raise ValueError(expected)
    host, port = parts
    return f"{url.scheme}://{host}" + ("" if port is None else f":{port}")


def _path(value: Path, info: ValidationInfo) -> Path:
    folder = info.context.get("folder") if isinstance(info.context, dict) else None
    path = value.expanduser() if value.parts[:1] == ("~",) else value
    return Path(folder, path) if folder is not None else path


Size = Annotated[
    ByteSize, BeforeValidator(_size), PlainSerializer(size_text, return_type=str, when_used="json")
]
"""A number of bytes, written with its unit."""

Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(duration_text, return_type=str, when_used="json"),
]
"""A length of time, written with its unit. Zero is a value, negative numbers cannot be written."""

PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
"""A length of time that cannot be zero."""

Address = Annotated[str, AfterValidator(_address)]
"""``host:port`` to listen on; port 0 lets the kernel choose."""

Name = Annotated[str, AfterValidator(_name)]
"""What clients call an upstream: ``host[:port]`` in lower case."""

Api = Annotated[str, AfterValidator(_api)]
"""``scheme://host[:port]``."""

Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
"""A network in CIDR notation."""

FilePath = Annotated[Path, AfterValidator(_path)]
"""A path; a relative one starts at the folder of the file that it is written in."""

Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
"""How many of something; at least one."""

Switch = Annotated[bool, Field(strict=True)]
"""true or false."""
