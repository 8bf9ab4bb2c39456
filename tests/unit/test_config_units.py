import contextlib
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passel.config.units import (
    DURATION_MAX,
    SIZE_MAX,
    duration_text,
    host_port,
    parse_duration,
    parse_size,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0 B", 0),
        ("1B", 1),
        ("40 GiB", 40 * 2**30),
        ("40GiB", 40 * 2**30),
        ("  1.5   MiB ", 3 * 2**19),
        ("0.3 KiB", 307),
        ("2 TiB", 2**41),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "40", "GiB", "40 GB", "40 gib", "-1 B", "1e3 B", "1_0 B", "1 GiB\n", "1.B", ".5 B",
     "\u0661 B", "9999999999 TiB", "5 min"],
)  # fmt: skip
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number and one of B, KiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0 s", 0),
        ("30 s", 30),
        ("30s", 30),
        ("5 min", 300),
        ("1.5 h", 5400),
        ("250 ms", 0.25),
        ("2 d", 172_800),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "s", "30 sec", "5 m", "-1 s", "1 s\n", "99999999 d", "1 B"]
)
def test_texts_that_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number and one of ms, s"):
        parse_duration(text)


@given(st.integers(0, SIZE_MAX) | st.integers(0, 2**20).map(lambda n: n << 20))
def test_a_size_comes_back(size: int) -> None:
    # Fifteen digits are read; beyond that a size that no unit divides is not written by anybody.
    text = size_text(size)
    if len(text.split()[0]) <= 15:
        assert parse_size(text) == size


@given(st.timedeltas(timedelta(0), DURATION_MAX))
def test_a_duration_comes_back(duration: timedelta) -> None:
    assert parse_duration(duration_text(duration)) == duration


@given(st.text() | st.text("0123456789. KMGiBsmhd"))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:65001", ("127.0.0.1", 65001)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(text: str, parts: tuple[str, int]) -> None:
    assert host_port(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", ":1", "127.0.0.1", "localhost:", "::1:1", "a:65536", "a:-1", "a:x", "a:1:1", "u@a:1"],
)
def test_texts_that_are_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        host_port(text)
