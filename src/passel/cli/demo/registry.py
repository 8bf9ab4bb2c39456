"""A small, real OCI registry: the origin of the demo and of tests, with a limit and a log.

Push and pull of the distribution specification 1.1 (monolithic and chunked uploads, manifests by
tag and digest, ranges), blobs as files under a folder. All connections together get `rate` bytes a
second; every answer waits `latency` before its first byte. Each request is one line of JSON in the
log, with the bytes that were really sent, and is counted (`GET /_demo/stats`).

No authentication, no garbage collection, no deletion: it is an origin to try passel with.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from aiohttp import web

from passel.config.units import parse_duration, parse_size
from passel.errors import InputError
from passel.ids import Digest
from passel.oci.errors import error_body
from passel.oci.media import OCI_MANIFEST
from passel.oci.names import V2Request, parse_path
from passel.oci.ranges import content_range, content_range_unsatisfied, parse_range

CHUNK_BYTES = 64 * 1024
MANIFEST_BYTES_MAX = 4 * 1024 * 1024
UPLOADS_MAX = 256
_UPLOAD = re.compile(r"/v2/(?P<name>[a-z0-9._/-]+)/blobs/uploads/(?P<id>[0-9a-f]*)")


@dataclass
class Counts:
    """What went out so far."""

    requests: int = 0
    manifest_requests: int = 0
    blob_requests: int = 0
    blob_bytes: int = 0
    by_digest: dict[str, int] = field(default_factory=dict)


@dataclass
class Sent:
    """The body bytes that one answer really sent."""

    n_bytes: int = 0


class Limit:
    """A rate that all connections share, first come, first served, in chunks."""

    def __init__(self, rate_bytes_per_s: float | None) -> None:
        self._rate = rate_bytes_per_s
        self._free_at = 0.0

    async def take(self, n_bytes: int) -> None:
        if self._rate is None:
            return
        loop = asyncio.get_running_loop()
        begin = max(self._free_at, loop.time())
        self._free_at = begin + n_bytes / self._rate
        await asyncio.sleep(max(0.0, self._free_at - loop.time()))


class Registry:
    """Serves one folder. `start` listens, on the loopback unless told otherwise; `stop` ends it."""

    def __init__(
        self,
        root: Path,
        *,
        rate_bytes_per_s: float | None = None,
        latency_s: float = 0.0,
        log: TextIO | None = None,
    ) -> None:
        self.root = root
        self.counts = Counts()
        self.limit = Limit(rate_bytes_per_s)
        self.latency_s = latency_s
        self.url = ""
        self._log = log
        self._uploads: dict[str, Path] = {}
        self._runner: web.AppRunner | None = None
        for folder in ("blobs", "manifests", "uploads"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> str:
        """Listen; returns the base URL."""
        app = web.Application(client_max_size=1 << 40)
        app.router.add_get("/_demo/stats", self._stats)
        app.router.add_route("*", "/{tail:.*}", self._logged)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        assert self._runner.addresses
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"
        return self.url

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # --- requests -------------------------------------------------------------------------------

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(asdict(self.counts))

    async def _logged(self, request: web.Request) -> web.StreamResponse:
        """Answer, count, and write one line to the log."""
        sent = Sent()
        began = time.time()
        try:
            answer = await self._answer(request, sent)
        except InputError as error:
            body = error_body(error.code, error.message)
            answer = web.Response(status=error.status, body=body, content_type="application/json")
        self.counts.requests += 1
        if self._log is not None:
            line = {
                "t": began,
                "method": request.method,
                "path": request.path,
                "range": request.headers.get("Range"),
                "status": answer.status,
                "bytes": sent.n_bytes,
                "agent": request.headers.get("User-Agent", "")[:80],
            }
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()
        return answer

    async def _answer(self, request: web.Request, sent: Sent) -> web.StreamResponse:
        upload = _UPLOAD.fullmatch(request.path)
        if upload is not None:
            return await self._upload(request, upload["name"], upload["id"])
        parsed = parse_path(request.raw_path.partition("?")[0])
        if parsed.kind == "ping":
            return web.json_response({})
        if parsed.kind == "tags":
            return self._tags(parsed)
        if parsed.kind == "blob":
            return await self._blob(request, parsed, sent)
        if parsed.kind == "manifest":
            return await self._manifest(request, parsed)
        raise InputError(404, "UNSUPPORTED", "this demo registry has no such endpoint")

    # --- pull -----------------------------------------------------------------------------------

    async def _blob(
        self, request: web.Request, parsed: V2Request, sent: Sent
    ) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise InputError(405, "UNSUPPORTED", "blobs are pushed through /blobs/uploads/")
        assert parsed.digest is not None
        self.counts.blob_requests += 1
        path = self._blob_path(parsed.digest)
        if not path.is_file():
            raise InputError(404, "BLOB_UNKNOWN", "this registry has no such blob")
        return await self._send_file(request, path, parsed.digest, sent)

    async def _send_file(
        self, request: web.Request, path: Path, digest: Digest, sent: Sent
    ) -> web.StreamResponse:
        size = path.stat().st_size
        headers = {
            "Docker-Content-Digest": str(digest),
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
        }
        status, (start, stop) = 200, (0, size)
        spans = parse_range(request.headers.get("Range"), size) if request.method == "GET" else None
        if spans is not None:
            if not spans:
                headers["Content-Range"] = content_range_unsatisfied(size)
                return web.Response(status=416, headers=headers)
            status, (start, stop) = 206, spans[0]
            headers["Content-Range"] = content_range(start, stop, size)
        answer = web.StreamResponse(status=status, headers=headers)
        answer.content_type = "application/octet-stream"
        answer.content_length = stop - start
        await asyncio.sleep(self.latency_s)
        await answer.prepare(request)
        if request.method == "GET":
            await self._send(answer, path, (start, stop), str(digest), sent)
        await answer.write_eof()
        return answer

    async def _send(
        self,
        answer: web.StreamResponse,
        path: Path,
        span: tuple[int, int],
        digest: str,
        sent: Sent,
    ) -> None:
        counts = self.counts
        at, stop = span
        with path.open("rb") as file:
            file.seek(at)
            while at < stop:
                data = file.read(min(CHUNK_BYTES, stop - at))
                await self.limit.take(len(data))
                try:
                    await answer.write(data)
                except ConnectionError:
                    return  # the client has left: what it got is counted
                at += len(data)
                sent.n_bytes += len(data)
                counts.blob_bytes += len(data)
                counts.by_digest[digest] = counts.by_digest.get(digest, 0) + len(data)

    def _tags(self, parsed: V2Request) -> web.Response:
        assert parsed.repository is not None
        folder = self._manifest_folder(parsed.repository) / "tags"
        tags = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return web.json_response({"name": parsed.repository, "tags": tags})

    # --- manifests ------------------------------------------------------------------------------

    async def _manifest(self, request: web.Request, parsed: V2Request) -> web.StreamResponse:
        assert parsed.repository is not None
        folder = self._manifest_folder(parsed.repository)
        if request.method == "PUT":
            return await self._put_manifest(request, parsed, folder)
        if request.method not in ("GET", "HEAD"):
            raise InputError(405, "UNSUPPORTED", "manifests are read and pushed, nothing else")
        self.counts.manifest_requests += 1
        digest = parsed.digest
        if digest is None:
            tag = folder / "tags" / str(parsed.reference)
            digest = Digest.parse(tag.read_text()) if tag.is_file() else None
        path = folder / digest.hex if digest else None
        if digest is None or path is None or not path.is_file():
            raise InputError(404, "MANIFEST_UNKNOWN", "this registry has no such manifest")
        await asyncio.sleep(self.latency_s)
        body = path.read_bytes()
        headers = {"Docker-Content-Digest": str(digest), "ETag": f'"{digest}"'}
        answer = web.Response(body=body, headers=headers)
        answer.content_type = json.loads(body).get("mediaType", OCI_MANIFEST)
        return answer

    async def _put_manifest(
        self, request: web.Request, parsed: V2Request, folder: Path
    ) -> web.Response:
        body = b""
        async for chunk in request.content.iter_chunked(CHUNK_BYTES):
            body += chunk
            if len(body) > MANIFEST_BYTES_MAX:
                raise InputError(413, "MANIFEST_INVALID", "the manifest is larger than 4 MiB")
        digest = Digest("sha256", hashlib.sha256(body).hexdigest())
        if parsed.digest is not None and parsed.digest != digest:
            raise InputError(400, "DIGEST_INVALID", f"the manifest's digest is {digest}")
        (folder / "tags").mkdir(parents=True, exist_ok=True)
        (folder / digest.hex).write_bytes(body)
        if parsed.digest is None:
            (folder / "tags" / str(parsed.reference)).write_text(str(digest))
        headers = {
            "Docker-Content-Digest": str(digest),
            "Location": f"/v2/{parsed.repository}/manifests/{digest}",
        }
        return web.Response(status=201, headers=headers)

    # --- push of blobs --------------------------------------------------------------------------

    async def _upload(self, request: web.Request, name: str, upload: str) -> web.Response:
        if request.method == "POST" and not upload:
            if len(self._uploads) >= UPLOADS_MAX:
                raise InputError(503, "UNKNOWN", f"{UPLOADS_MAX} uploads are under way")
            upload = secrets.token_hex(16)
            self._uploads[upload] = self.root / "uploads" / upload
            self._uploads[upload].touch()
        path = self._uploads.get(upload)
        if path is None or request.method not in ("POST", "PATCH", "PUT"):
            raise InputError(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload")
        with path.open("ab") as file:
            async for chunk in request.content.iter_chunked(1 << 20):
                file.write(chunk)
        text = request.query.get("digest")
        if text is not None and request.method in ("PUT", "POST"):
            return self._finish(name, upload, path, Digest.parse(text))
        headers = {
            "Location": f"/v2/{name}/blobs/uploads/{upload}",
            "Docker-Upload-UUID": upload,
            "Range": f"0-{max(path.stat().st_size - 1, 0)}",
        }
        return web.Response(status=202, headers=headers)

    def _finish(self, name: str, upload: str, path: Path, digest: Digest) -> web.Response:
        del self._uploads[upload]
        hasher = digest.hasher()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                hasher.update(chunk)
        if hasher.hexdigest() != digest.hex:
            path.unlink()
            raise InputError(400, "DIGEST_INVALID", "the bytes do not have that digest")
        final = self._blob_path(digest)
        final.parent.mkdir(parents=True, exist_ok=True)
        path.replace(final)
        headers = {
            "Location": f"/v2/{name}/blobs/{digest}",
            "Docker-Content-Digest": str(digest),
        }
        return web.Response(status=201, headers=headers)

    def _blob_path(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest.algorithm / digest.hex

    def _manifest_folder(self, repository: str) -> Path:
        # The grammar of names leaves no "." component and no leading slash.
        return self.root / "manifests" / repository.replace("/", "+")


async def serve(options: argparse.Namespace, log: TextIO | None) -> None:
    """Run until SIGINT or SIGTERM; the first line on stdout is the URL."""
    with ExitStack() as stack:
        root = options.root
        if root is None:
            root = stack.enter_context(tempfile.TemporaryDirectory(prefix="passel-registry-"))
        rate = parse_size(options.rate) if options.rate else None
        latency_s = parse_duration(options.latency).total_seconds()
        registry = Registry(Path(root), rate_bytes_per_s=rate, latency_s=latency_s, log=log)
        print(await registry.start(options.port, options.host), flush=True)
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
        await registry.stop()


def main(words: list[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m passel.cli.demo.registry", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: the kernel chooses")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--root", help="folder of the blobs; left out: a temporary one")
    parser.add_argument("--rate", help="bytes per second for all together, as in '64 MiB'")
    parser.add_argument("--latency", default="0 s", help="before every answer, as in '20 ms'")
    parser.add_argument("--log", help="file for a line of JSON per request")
    # Named in the command line so that `passel down` finds the process.
    parser.add_argument("--state", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    try:
        if options.log is None:
            asyncio.run(serve(options, None))
        else:
            with Path(options.log).open("a", encoding="utf-8") as log:
                asyncio.run(serve(options, log))
    except (OSError, ValueError) as error:
        print(f"passel demo registry: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    os.umask(0o077)
    main()
