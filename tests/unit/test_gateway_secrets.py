"""Secrets go in by every door that there is; none comes out by log, metric, note, file or crash.

A real gateway process with debug logging, in front of a registry that wants a token, redirects to
signed URLs, breaks off, redirects where it must not and talks nonsense.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from unit.test_gateway_process import get

DATA = random.Random(3).randbytes(300_000)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
USER, PASSWORD = "alice", "planted-password-91c2"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
TOKEN = "planted-token-" + "t" * 40
SIGNATURE = "plantedsignature5d1e"
QUERY = "planted-query-secret-77"
COOKIE = "planted-cookie-33"
SECRETS = (PASSWORD, BASIC.removeprefix("Basic "), TOKEN, SIGNATURE, QUERY, COOKIE)


class _Origin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        host = self.headers["Host"]
        if path == "/token":
            if self.headers.get("Authorization") != BASIC:
                self._say(401, b"{}")
            else:
                self._say(200, json.dumps({"token": TOKEN, "expires_in": 60}).encode())
        elif path.startswith("/cdn/"):
            self._cdn(path)
        elif self.headers.get("Authorization") not in (f"Bearer {TOKEN}", BASIC + "-direct"):
            realm = f'Bearer realm="http://{host}/token",service="s",scope="repository:app:pull"'
            self._say(401, b"{}", ("WWW-Authenticate", realm), ("Set-Cookie", COOKIE))
        elif path.startswith("/v2/forbidden/"):
            self._say(307, b"", ("Location", f"http://10.9.9.9/x?X-Amz-Signature={SIGNATURE}"))
        elif path.startswith("/v2/nonsense/"):
            self.wfile.write(f"HTTP/1.1 2x0 {TOKEN}\r\nA b: {SIGNATURE}\r\n\r\n".encode())
            self.close_connection = True
        elif path.startswith("/v2/encoded/"):
            self._say(200, b"xx", ("Content-Encoding", SIGNATURE))
        else:
            kind = path.split("/")[2]
            where = f"http://{host}/cdn/{kind}?X-Amz-Signature={SIGNATURE}&token={QUERY}"
            self._say(307, b"", ("Location", where), ("Set-Cookie", COOKIE))

    def _cdn(self, path: str) -> None:
        if path == "/cdn/refused":
            return self._say(403, f"<Error>{SIGNATURE}</Error>".encode())
        if path == "/cdn/down":
            self.close_connection = True
            return None
        if path == "/cdn/failing":
            return self._say(500, f"{SIGNATURE}".encode())
        first, _, last = self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")
        start, stop = int(first), int(last) + 1 if last else len(DATA)
        stop = min(stop, len(DATA))
        body = DATA[start:stop]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(body)))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(DATA)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if path == "/cdn/cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return None
        self.wfile.write(body)
        return None

    def _say(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def origin() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Origin)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def use_everything(base: str) -> list[tuple[int, bytes]]:
    """Each kind of request, with each kind of credential, against each kind of trouble."""
    who: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": BASIC},
        {"Authorization": f"Bearer {TOKEN}"},
        {"Authorization": BASIC + "-direct", "Cookie": COOKIE},
        {"Proxy-Authorization": BASIC, "X-Dragonfly-Registry": f"http://{USER}:{PASSWORD}@lab"},
        {"Authorization": f"Bearer {TOKEN}", "Range": f"bytes={QUERY}"},
    )
    kinds = ("app", "cut", "down", "failing", "refused", "forbidden", "nonsense", "encoded")
    paths = (f"blobs/{DIGEST}", "manifests/v1", "tags/list", f"referrers/{DIGEST}")

    def ask(kind: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        url = f"{base}/v2/{kind}/{path}?X-Amz-Signature={SIGNATURE}&token={QUERY}"
        try:
            return get(url, **headers)
        except (OSError, http.client.HTTPException):
            return 0, b""

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(lambda each: ask(*each), itertools.product(kinds, paths, who)))


def malformed(port: int) -> bytes:
    got = b""
    for head in (
        f"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: {BASIC}\x01\r\n\r\n",
        f"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN * 3000}\r\n\r\n",
        f"GET /v2/?token={QUERY} HTTP/7.7\r\nAuthorization: {BASIC}\r\n\r\n",
        f"GET http://{USER}:{PASSWORD}@lab/v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
        f"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{TOKEN}",
        f"CONNECT {USER}:{PASSWORD}@lab:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(head.encode())
            # Each is answered: silence would have no secret in it either.
            answer = sock.recv(65536)
            assert re.match(rb"HTTP/1\.1 4\d\d ", answer), (head[:40], answer)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
                while chunk := sock.recv(65536):
                    answer += chunk
            got += answer
    return got


def planted_in(data: bytes) -> list[str]:
    return [secret for secret in SECRETS if secret.encode() in data]


def test_no_secret_comes_out(tmp_path: Path, origin: str) -> None:
    config = {
        "upstreams": {"lab": {"api": origin, "networks": ["127.0.0.0/8"]}},
        "default_upstream": "lab",
        "store": {"path": str(tmp_path / "store")},
        "gateway": {
            "listen": ["127.0.0.1:0"],
            "health": [],
            "limits": {"peer_wait": "50 ms"},
        },
        "logging": {"level": "debug"},
    }
    (tmp_path / "passel.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-X", "faulthandler", "-m", "passel.gateway"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--config", str(tmp_path / "passel.yaml")],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
        )
    try:
        note = tmp_path / "gateway.json"
        deadline = time.monotonic() + 20
        while not note.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        base = json.loads(note.read_text())["gateway"]
        answers = use_everything(base)
        # It was no empty run: some got the bytes, others every kind of refusal.
        assert (200, DATA) in answers
        # A body that is cut is a broken answer, or none, if the cut comes before the first byte.
        assert {200, 401, 502} <= {status for status, _ in answers} <= {0, 200, 400, 401, 403, 502}
        for _, body in answers:
            # What the origin itself says to a client is the client's.
            assert planted_in(body) in ([], [SIGNATURE])
        assert planted_in(malformed(int(base.rpartition(":")[2]))) == []
        assert planted_in(get(f"{base}/metrics")[1]) == []
        # Whether a core is written depends on the machine; that it may not does not.
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
        os.kill(process.pid, signal.SIGABRT)
        process.wait(10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    output = (tmp_path / "log").read_bytes()
    assert b"Fatal Python error: Aborted" in output
    assert b" debug " in output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"log", "gateway.json"} <= {path.name for path in files}
    for path in files:
        assert planted_in(path.read_bytes()) == [], path
    assert not [path for path in files if path.name.startswith("core")]
