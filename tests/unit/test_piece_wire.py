"""Targets, addresses and heads: what is understood, and what is not."""

from __future__ import annotations

import socket

import pytest

from passel.ids import BlobId
from passel.transport.answer import BadAnswer, parse_head
from passel.transport.wire import (
    CredentialsTarget,
    PieceTarget,
    credentials_path,
    format_address,
    parse_address,
    parse_target,
    piece_path,
)

BLOB = BlobId("0f" * 32)


@pytest.mark.parametrize(
    ("piece", "turn", "wait_s"), [(0, 0, 0.0), (7, 1, 1.5), (123_456_789, 10**17, 29.999)]
)
def test_piece_target_round_trip(piece: int, turn: int, wait_s: float) -> None:
    assert parse_target(piece_path(BLOB, piece, turn, wait_s)) == PieceTarget(
        BLOB, piece, turn, wait_s
    )


def test_wait_is_cut_on_both_sides() -> None:
    assert parse_target(piece_path(BLOB, 1, 2, 500.0)) == PieceTarget(BLOB, 1, 2, 30.0)
    target = parse_target(f"/v1/blobs/{BLOB}/pieces/1?turn=7&wait=999")
    assert target == PieceTarget(BLOB, 1, 7, 30.0)


def test_credentials_target_round_trip() -> None:
    assert parse_target(credentials_path(BLOB)) == CredentialsTarget(BLOB)


@pytest.mark.parametrize(
    "target",
    [
        "/",
        f"/v1/blobs/{BLOB}",
        f"/v1/blobs/{BLOB[:-1]}/pieces/0",
        f"/v1/blobs/{BLOB.upper()}/pieces/0",
        f"/v1/blobs/../{BLOB}/pieces/0",
        f"/v1/blobs/{BLOB}/pieces/",
        f"/v1/blobs/{BLOB}/pieces/-1",
        f"/v1/blobs/{BLOB}/pieces/01",
        f"/v1/blobs/{BLOB}/pieces/1234567890",
        f"/v1/blobs/{BLOB}/pieces/\u0661",
        f"/v1/blobs/{BLOB}/pieces/1?turn=0&wait=",
        f"/v1/blobs/{BLOB}/pieces/1?turn=0&wait=-1",
        f"/v1/blobs/{BLOB}/pieces/1?turn=0&wait=nan",
        f"/v1/blobs/{BLOB}/pieces/1?turn=0&wait=1&x=2",
        f"/v1/blobs/{BLOB}/pieces/1",
        f"/v1/blobs/{BLOB}/pieces/1?turn=-1",
        f"/v1/blobs/{BLOB}/pieces/1?turn=0\n",
        f"/v1/blobs/{BLOB}/credentials?wait=1",
        f"http://peer/v1/blobs/{BLOB}/pieces/1",
    ],
)
def test_other_targets_are_none(target: str) -> None:
    assert parse_target(target) is None


@pytest.mark.parametrize(
    ("text", "family", "host", "port"),
    [
        ("10.0.0.1:65535", socket.AF_INET, "10.0.0.1", 65535),
        ("[::1]:80", socket.AF_INET6, "::1", 80),
        ("[fd00::a]:8080", socket.AF_INET6, "fd00::a", 8080),
    ],
)
def test_addresses(text: str, family: socket.AddressFamily, host: str, port: int) -> None:
    assert parse_address(text) == (family, host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0:1", "host:1", "::1:80", "[1]:1", ":1"],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_address(text)


def test_head() -> None:
    head = parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:  b \r\nConnection: Close")
    assert (head.status, head.length, head.keep_alive) == (200, 5, False)
    assert head.fields["x-a"] == "b"
    assert parse_head(b"HTTP/1.1 503 \r\ncontent-length: 0").keep_alive


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 0",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 20,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n folded",
        b"SSH-2.0-OpenSSH_9.6",
    ],
)
def test_other_heads_are_refused(head: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_head(head)
