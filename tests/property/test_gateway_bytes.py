"""Any bytes at all, over a socket: what comes back is HTTP, with an error body for an error.

Nothing raises inside, nothing is left open, and memory does not grow. The corpus has every header
that the references name, with values that are wrong in some way.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import os
import re
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.gateway_fakes import PIECE, World, noise, world
from unit.test_gateway_manifests import manifest, publish

DATA = noise(3 * PIECE)
#: Ours, and only on purpose: nothing else from 500 up.
DELIBERATE = {502, 503, 504, 508}
HEADERS = (
    "Host",
    "Accept",
    "Accept-Encoding",
    "Authorization",
    "Cache-Control",
    "Connection",
    "Content-Encoding",
    "Content-Length",
    "Cookie",
    "Docker-Distribution-Api-Version",
    "Expect",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "OCI-Namespace",
    "Proxy-Authorization",
    "Range",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "User-Agent",
    "Via",
    "X-Dragonfly-Application",
    "X-Dragonfly-Filter",
    "X-Dragonfly-Filtered-Query-Params",
    "X-Dragonfly-Prefetch",
    "X-Dragonfly-Priority",
    "X-Dragonfly-Registry",
    "X-Dragonfly-Tag",
    "X-Dragonfly-Use-P2P",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Passel-Registry",
)
VALUES = (
    "", "x", "lab", "other", "lab.test:99999", "https://lab/", "http://169.254.169.254", "chunked",
    "chunked, identity", "identity", "gzip", "0", "5", "-1", "+3", "0x10", "99999999999999999999",
    "bytes=0-", "bytes=-0", "bytes=5-1", "bytes=0-0,1-1,-1", "bytes=" + "0-0," * 2000, "items=0-1",
    'W/"x"', '"', "*", "Bearer ", "Basic !!!", "Basic Og==", "close", "keep-alive", "upgrade",
    "100-continue", "h2c", "no-cache", "1.1 here", "\xff\xfe", "a\tb", "a" * 9000,
)  # fmt: skip
TARGETS = (
    "/", "*", "/v2/", "/v2", "/v2/_catalog", "/v2/app/manifests/v1", "/v2/app/tags/list?n=x&last=",
    "/v2/app/blobs/DIGEST", "/v2/app/blobs/DIGEST?ns=lab", "/v2/app/blobs/DIGEST?ns=lab&ns=other",
    "/v2/lab/app/blobs/DIGEST", "/lab/v2/app/blobs/DIGEST", "/v2/app/blobs/sha256:00",
    "/v2/app/referrers/DIGEST?artifactType=x", "/v2/../../etc/passwd", "/v2/%2e%2e/blobs/DIGEST",
    "/v2/app%00/blobs/DIGEST", "/v2/app/blobs/DIGEST%0d%0aX:%20y", "http://lab/v2/app/manifests/v1",
    "http://169.254.169.254/latest", "http://[::1/v2/", "lab:443", "//x/v2/", "/server/ping",
    "/metrics", "/healthy", "/v2/" + "a/" * 400 + "tags/list", "/\xff", "/v2/app/blobs/DIGEST#x",
)  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "get", "G\x00T")

_line_end = st.sampled_from(["\r\n"] * 12 + ["\n", "\r", "\r\n ", "\x00"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Nearly a request."""
    version = draw(st.sampled_from(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/9.9", "HTTP/1.1 ", ""]))
    lines = [f"{draw(st.sampled_from(METHODS))} {draw(st.sampled_from(TARGETS))} {version}"]
    if draw(st.booleans()):
        lines.append("Host: x")
    for name, value in draw(
        st.lists(st.tuples(st.sampled_from(HEADERS), st.sampled_from(VALUES)), max_size=5)
    ):
        colon = draw(st.sampled_from([": "] * 8 + [":", " : ", ""]))
        lines.append(f"{name}{colon}{value}")
    text = "".join(line + draw(_line_end) for line in lines) + "\r\n"
    body = draw(st.sampled_from(["", "", "", "hello", "5\r\nhello\r\n0\r\n\r\n", "0\r\n\r\n"]))
    return (text + body).encode("latin-1")


class Running:
    """A gateway on a loop in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready, self._over = threading.Event(), threading.Event()
        self.world: World
        self.digest = ""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._ready.wait(20)

    async def _run(self) -> None:
        async with world(self._folder) as w:
            self.world = w
            self.digest = str(w.add(DATA))
            publish(w, manifest())
            self._ready.set()
            await asyncio.to_thread(self._over.wait)

    def stop(self) -> None:
        self._over.set()
        self._thread.join(20)

    def ask(self, data: bytes) -> bytes:
        """Everything that comes back for these bytes and the end of them."""
        data = data.replace(b"DIGEST", self.digest.encode())
        with socket.create_connection(("127.0.0.1", self.world.port), timeout=10) as sock:
            got = b""
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while chunk := sock.recv(1 << 16):
                    got += chunk
            except ConnectionError:
                pass
            return got


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("gateway"))
    yield running
    running.stop()


class _Alarms(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.seen.append(f"{record.name} {record.getMessage()} {record.exc_info}")


@pytest.fixture(scope="module")
def alarms() -> Iterator[_Alarms]:
    handler = _Alarms()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")


def check(got: bytes) -> None:
    if not got:
        return
    assert got.startswith(b"HTTP/1.1 "), got[:100]
    rest = got
    while match := _STATUS.match(rest):
        status = int(match[1])
        assert status < 500 or status in DELIBERATE, rest[:300]
        head, _, rest = rest.partition(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: ([0-9]+)", head)
        body = b"" if length is None else rest[: int(length[1])]
        if status >= 400 and body.startswith(b"{"):
            assert json.loads(body)["errors"][0]["message"]
            rest = rest[len(body) :]
        elif not rest.startswith(b"HTTP/1.1 "):
            rest = rest[len(body) :]


@given(data=st.one_of(st.binary(max_size=400), st.lists(requests(), max_size=3).map(b"".join)))
@settings(max_examples=400, deadline=None)
def test_any_bytes(gateway: Running, alarms: _Alarms, data: bytes) -> None:
    check(gateway.ask(data))
    assert not alarms.seen, alarms.seen[0]


def test_every_header_with_every_wrong_value(gateway: Running, alarms: _Alarms) -> None:
    """Nothing is left over either: no descriptor, no memory."""

    pairs = [(name, value) for name in HEADERS for value in VALUES]

    def corpus(step: int) -> None:
        for name, value in pairs[::step]:
            head = f"GET /v2/app/blobs/DIGEST HTTP/1.1\r\nHost: x\r\n{name}: {value}\r\n\r\n"
            check(gateway.ask(head.encode("latin-1")))
        assert not alarms.seen, alarms.seen[0]

    corpus(1)
    descriptors = len(os.listdir("/proc/self/fd"))
    sizes = []
    tracemalloc.start()
    try:
        for _ in range(4):
            corpus(4)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # A leak shows in every round, what is only late to be freed in some.
    assert min(after - before for before, after in itertools.pairwise(sizes)) < 20_000, sizes
    # The pool of connections to the peer breathes; a leak would be one of 1 300.
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 32
