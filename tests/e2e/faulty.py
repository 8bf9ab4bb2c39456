"""A registry of ours that does what real ones do on bad days, one fault per registry."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from origins import INDEX, MANIFEST, Image, make_image

HANG_S = 60.0
OCTETS = "application/octet-stream"
#: Where cloud machines keep their credentials: no redirect may lead there.
METADATA = "http://169.254.169.254/latest/meta-data/iam"


class Fault(Enum):
    """What happens to every request of the largest layer of every image."""

    UNAVAILABLE = "503 with Retry-After"
    LIMITED = "429"
    CUT_ONCE = "body cut once"
    CUT = "body always cut in its middle"
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
    """A registry with one fault, until it is `well`."""

    fault: Fault
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    #: Paths that the fault is for.
    victims: set[str] = field(default_factory=set)
    #: Victims that were cut once.
    cut: set[str] = field(default_factory=set)
    well: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"origin": self})
        hosts = ["127.0.0.1", "127.0.0.2"]
        self._servers = [ThreadingHTTPServer((host, 0), handler) for host in hosts]
        ports = [server.server_address[1] for server in self._servers]
        self.url, self.elsewhere = (
            f"http://{host}:{port}" for host, port in zip(hosts, ports, strict=True)
        )
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def add(self, repository: str, size: int = 300_000) -> Image:
        """A new image under repository:v1."""
        image = make_image(repository, size)
        index = list(image.blobs)[-1]
        for digest, data in image.blobs.items():
            media_type = {index: INDEX, image.manifest: MANIFEST}.get(digest, "")
            folder = "manifests" if media_type else "blobs"
            self.files[f"/v2/{repository}/{folder}/{digest}"] = media_type or OCTETS, data
        self.files[f"/v2/{repository}/manifests/v1"] = INDEX, image.blobs[index]
        self.victims.add(f"/v2/{repository}/blobs/{image.largest}")
        return image

    def stop(self) -> None:
        self.well.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


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
            origin.well.wait(HANG_S)
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
        size, status = len(data), 200
        headers = {"Content-Type": media_type, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is not None:
            start, last = int(asked[1]), int(asked[2] or size - 1)
            data, status = data[start : last + 1], 206
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{size}"
        keep = len(data)
        if fault in (Fault.CUT, Fault.STALLS):
            keep = max(0, size // 2 - int(asked[1] if asked else 0))
        elif fault is Fault.CUT_ONCE and self.command == "GET" and self.path not in self.origin.cut:
            self.origin.cut.add(self.path)
            keep = keep // 2
        self._say(status, data, headers, keep, stalls=fault is Fault.STALLS)

    def _say(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        keep: int | None = None,
        *,
        stalls: bool = False,
    ) -> None:
        """Answer; only the first `keep` bytes of the body are sent, and then nothing or an end."""
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[:keep])
            self.wfile.flush()
            if keep is not None and keep < len(body):
                if stalls:
                    self.origin.well.wait(HANG_S)
                self.close_connection = True
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
