import pytest

from passel.errors import InputError
from passel.oci.ranges import (
    RANGES_MAX,
    Multipart,
    content_range,
    content_range_unsatisfied,
    etag,
    none_match,
    parse_content_range,
    parse_content_range_unsatisfied,
    parse_range,
    range_applies,
    range_header,
)

TAG = etag("sha256:" + "ab" * 32)


@pytest.mark.parametrize(
    ("header", "spans"),
    [
        (None, None),
        ("", None),
        ("bytes=", None),
        ("bytes=,", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("items=0-1", None),
        ("bytes=5-4", None),
        ("bytes=0-1,x", None),
        ("bytes=0-1;2-3", None),
        ("bytes=+1-2", None),
        ("bytes=0-" + "9" * 20, None),
        ("bytes=\u0661-2", None),
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-99", [(0, 100)]),
        ("bytes=0-", [(0, 100)]),
        ("bytes=99-", [(99, 100)]),
        # regclient resumes one past the end
        ("bytes=50-100", [(50, 100)]),
        ("bytes=50-" + "9" * 19, [(50, 100)]),
        ("bytes=100-", []),
        ("bytes=100-200", []),
        ("bytes=-1", [(99, 100)]),
        ("bytes=-1000", [(0, 100)]),
        ("bytes=-0", []),
        ("BYTES = 1-2", [(1, 3)]),
        ("bytes=1-2,", [(1, 3)]),
        # in the order of the request, not merged, what is beyond the end is left out
        ("bytes=10-19, 0-9,,10-10,500-", [(10, 20), (0, 10), (10, 11)]),
        ("bytes=0-49,0-49", [(0, 50), (0, 50)]),
        ("bytes=0-50,0-49", None),
    ],
)
def test_range_of_a_hundred_bytes(header: str | None, spans: list[tuple[int, int]] | None) -> None:
    assert parse_range(header, 100) == spans


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=-5", "bytes=7-9"])
def test_an_empty_body_is_sent_whole(header: str) -> None:
    assert parse_range(header, 0) is None


def test_too_many_ranges() -> None:
    most = ",".join(f"{2 * i}-{2 * i}" for i in range(RANGES_MAX))
    spans = parse_range(f"bytes={most}", 10_000)
    assert spans is not None
    assert len(spans) == RANGES_MAX
    for more in (f"bytes={most},9000-", "bytes=" + "," * 10_000):
        with pytest.raises(InputError) as caught:
            parse_range(more, 10_000)
        assert caught.value.status == 400


def test_content_range() -> None:
    assert content_range(0, 100, 1234) == "bytes 0-99/1234"
    assert content_range_unsatisfied(7) == "bytes */7"
    assert range_header(5, 6) == "bytes=5-5"
    assert parse_content_range("bytes 0-99/1234") == (0, 100, 1234)
    assert parse_content_range("Bytes 5-5/*") == (5, 6, None)
    assert parse_content_range_unsatisfied("bytes */7") == 7


@pytest.mark.parametrize(
    "text",
    ["", "bytes */7", "bytes 5-4/10", "bytes 0-10/10", "bytes 0-9/", "bytes=0-9/10", "0-9/10"],
)
def test_content_ranges_that_are_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match="Content-Range"):
        parse_content_range(text)


def test_unsatisfied_content_range_that_is_nonsense() -> None:
    with pytest.raises(ValueError, match="416"):
        parse_content_range_unsatisfied("bytes 0-1/2")


@pytest.mark.parametrize(
    ("lines", "same"),
    [
        ([], False),
        ([""], False),
        (["*"], True),
        ([TAG], True),
        ([f"W/{TAG}"], True),
        (['"x", ' + TAG], True),
        (['"x"', TAG], True),
        ([TAG.strip('"')], True),
        (['"x,y"'], False),
        (['"x*"'], False),
    ],
)
def test_if_none_match(lines: list[str], same: bool) -> None:
    assert none_match(lines, TAG) is same


@pytest.mark.parametrize(
    ("header", "applies"),
    [
        (None, True),
        (TAG, True),
        (f"W/{TAG}", False),
        ('"x"', False),
        ("Wed, 21 Oct 2026 07:28:00 GMT", False),
        ("", False),
    ],
)
def test_if_range(header: str | None, applies: bool) -> None:
    assert range_applies(header, TAG) is applies


def test_multipart_has_the_length_that_it_says() -> None:
    body = bytes(range(100))
    frame = Multipart.of([(10, 20), (0, 5), (99, 100)], 100, "0" * 32)
    written = b"".join(
        head + body[start:stop]
        for head, (start, stop) in zip(frame.heads, frame.spans, strict=True)
    )
    written += frame.tail
    assert len(written) == frame.content_length
    assert frame.content_type == f"multipart/byteranges; boundary={'0' * 32}"
    parts = written.split(b"--" + b"0" * 32)
    assert parts[0] == b""
    assert parts[-1] == b"--\r\n"
    assert [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts[1:-1]] == [
        body[10:20], body[0:5], body[99:100],
    ]  # fmt: skip
    assert b"Content-Range: bytes 99-99/100\r\n" in parts[3]
