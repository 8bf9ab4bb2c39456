"""A registry of ours that does what real ones do on bad days, one fault at a time.

It counts the bytes that it sends where they go out, and can be limited to a rate: all its answers
together get no more.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from passel.oci.media import BLOB_TYPE, OCI_INDEX, OCI_MANIFEST

HANG_S = 60.0
#: Bytes that are written at a time where there is a rate, and wait in the kernel at the most: what
#: is counted as sent is about what came.
CHUNK = 32 * 1024
#: Where cloud machines keep their credentials: no redirect may lead there.
METADATA = "http://169.254.169.254/latest/meta-data/iam"


class Fault(Enum):
    """What happens to every request of a victim."""

    UNAVAILABLE = "503 with Retry-After"
    LIMITED = "429"
    CUT_ONCE = "body cut once"
    CUT = "body always cut in its middle"
    HALVED = "every answer cut in half"
    HANGS = "no answer"
    STALLS = "half a body and then nothing"
    WRONG = "wrong bytes"
    FORBIDDEN = "redirect to a forbidden host"
    ELSEWHERE = "redirect to another host"
    GROWN = "size that changed"

    @property
    def upstream(self) -> str:
        """A name for the registry that has this fault."""
        return self.value.lower().replace(" ", "-") + ".test"


@dataclass
class FaultyOrigin:
    """A registry with one fault, until it is `well`. `fall_ill` gives it another one."""

    fault: Fault
    #: Bytes per second in all; None: as fast as can be.
    rate: float | None = None
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    #: Paths that the fault is for.
    victims: set[str] = field(default_factory=set)
    #: Victims that were cut once.
    cut: set[str] = field(default_factory=set)
    #: Where CUT and STALLS end, in bytes of the blob; None: in its middle.
    cut_at: int | None = None
    #: What was not answered while it was ill never is: as if a router had lost the connection.
    forgets: bool = False
    #: Path -> bytes of bodies that went out, also of those that were broken off.
    sent: Counter[str] = field(default_factory=Counter)
    well: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"origin": self})
        hosts = ["127.0.0.1", "127.0.0.2"]
        self._servers = [_Server((host, 0), handler) for host in hosts]
        ports = [server.server_address[1] for server in self._servers]
        self.url, self.elsewhere = (
            f"http://{host}:{port}" for host, port in zip(hosts, ports, strict=True)
        )
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._free_at = 0.0
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def add_image(self, repository: str, blobs: Mapping[str, bytes], victim: str) -> None:
        """An image under repository:v1; the last of its blobs is its index, then its manifest."""
        *_, manifest, index = blobs
        for digest, data in blobs.items():
            media_type = {index: OCI_INDEX, manifest: OCI_MANIFEST}.get(digest, "")
            folder = "manifests" if media_type else "blobs"
            self.files[f"/v2/{repository}/{folder}/{digest}"] = media_type or BLOB_TYPE, data
        self.files[f"/v2/{repository}/manifests/v1"] = OCI_INDEX, blobs[index]
        self.victims.add(f"/v2/{repository}/blobs/{victim}")

    def add_blob(self, repository: str, data: bytes) -> str:
        """A blob that faults are for; its path."""
        path = f"/v2/{repository}/blobs/sha256:{hashlib.sha256(data).hexdigest()}"
        self.files[path] = BLOB_TYPE, data
        self.victims.add(path)
        return path

    def fall_ill(self, fault: Fault, cut_at: int | None = None) -> None:
        """From now on, and in the middle of bodies where the fault is about these."""
        self.fault, self.cut_at = fault, cut_at
        self.well.clear()

    def ends_at(self, size: int) -> int:
        """Where bodies of victims end now, in bytes of the blob."""
        if self.well.is_set() or self.fault not in (Fault.CUT, Fault.STALLS):
            return size
        return size // 2 if self.cut_at is None else self.cut_at

    def pace(self, n_bytes: int) -> None:
        """Wait until so many bytes may go out."""
        if self.rate is None:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(self._free_at, now)
            self._free_at = begin + n_bytes / self.rate
        time.sleep(begin - now)

    def count(self, path: str, n_bytes: int) -> None:
        with self._lock:
            self.sent[path] += n_bytes

    def hang(self) -> None:
        """Say nothing until all is well again, or for ever."""
        self.well.wait(HANG_S)
        if self.forgets:
            self._over.wait(HANG_S)

    def stop(self) -> None:
        self.well.set()
        self._over.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients die here, and their connections are reset."""

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
        super().server_bind()


def flipped(data: bytes) -> bytes:
    """As many bytes, and one of them another."""
    return data[:-1] + bytes([data[-1] ^ 1])


def grown(data: bytes) -> bytes:
    """More bytes than HEAD and manifest say."""
    return data + b"grown"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin: FaultyOrigin

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        origin = self.origin
        path, _, signature = self.path.partition("?")
        if path == "/v2/":
            self._say(200, b"{}")
            return
        if path not in origin.files:
            self._say(404, b'{"errors": [{"code": "BLOB_UNKNOWN", "message": "unknown"}]}')
            return
        media_type, data = origin.files[path]
        fault = None
        if path in origin.victims and not origin.well.is_set() and not signature:
            fault = origin.fault
        if fault is Fault.UNAVAILABLE:
            self._say(503, b"busy", {"Retry-After": "1"})
        elif fault is Fault.LIMITED:
            text = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'
            self._say(429, text, {"Retry-After": "1"})
        elif fault is Fault.HANGS:
            origin.hang()
            self.close_connection = True
        elif fault is Fault.FORBIDDEN:
            self._say(307, b"", {"Location": METADATA})
        elif fault is Fault.ELSEWHERE:
            self._say(307, b"", {"Location": f"{origin.elsewhere}{path}?signature=planted"})
        else:
            if fault is Fault.WRONG:
                data = flipped(data)
            elif fault is Fault.GROWN and self.command == "GET":
                data = grown(data)
            self._content(media_type, data, fault)

    def _content(self, media_type: str, data: bytes, fault: Fault | None) -> None:
        size, status, start = len(data), 200, 0
        headers = {"Content-Type": media_type, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is not None:
            start, last = int(asked[1]), int(asked[2] or size - 1)
            data, status = data[start : last + 1], 206
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{size}"
        keep = len(data)
        if fault is Fault.HALVED:
            keep -= keep // 2  # of one byte that byte: every answer brings something
        elif fault is Fault.CUT_ONCE and self.command == "GET" and self.path not in self.origin.cut:
            self.origin.cut.add(self.path)
            keep = keep // 2
        try:
            if self._head(status, headers, len(data)):
                self._body(data, start, size, keep)
        except OSError:
            self.close_connection = True

    def _body(self, data: bytes, start: int, size: int, keep: int) -> None:
        """The first `keep` bytes, or those before the place where bodies end now."""
        origin = self.origin
        path = self.path.partition("?")[0]
        n_sent = 0
        while n_sent < keep:
            end = min(keep, n_sent + CHUNK)
            if path in origin.victims:
                end = max(min(end, origin.ends_at(size) - start), n_sent)
            if end == n_sent:
                break
            origin.pace(end - n_sent)
            self.wfile.write(data[n_sent:end])
            origin.count(path, end - n_sent)
            n_sent = end
        if n_sent < len(data):
            if origin.fault is Fault.STALLS:
                origin.hang()
            self.close_connection = True

    def _head(self, status: int, headers: dict[str, str], length: int) -> bool:
        """Whether a body is to follow. Raises OSError."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        return self.command != "HEAD"

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            if self._head(status, headers or {}, len(body)):
                self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
