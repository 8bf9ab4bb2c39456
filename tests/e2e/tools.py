"""Real programs that the e2e tests use: found, required or skipped with the reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

#: Comma-separated programs that must be there: CI sets it to what it has installed.
REQUIRED = set(filter(None, os.environ.get("PASSEL_REQUIRE", "").split(",")))
_FOLDERS = [os.environ.get("PASSEL_NYDUS_BIN", ""), "/opt/nydus/bin", "/usr/sbin", "/usr/local/bin"]


def need(program: str) -> str:
    """The path of a program; a missing one skips the test, or fails it where it is required."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *filter(None, _FOLDERS)])
    found = shutil.which(program, path=path)
    if found is None:
        if program in REQUIRED:
            pytest.fail(f"{program} is required here (PASSEL_REQUIRE) and was not found")
        pytest.skip(f"{program} is not installed")
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until(what: Callable[[], Any], timeout_s: float = 20.0, every_s: float = 0.05) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            answer = what()
        except OSError:
            answer = None
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s")
        time.sleep(every_s)


class DockerRegistry:
    """Debian's docker-registry on a free port, with its access log as the count of bytes."""

    _ACCESS = re.compile(r'"(GET|HEAD) (\S+) HTTP/1\.1" (\d+) (\d+) ')

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "registry.log"
        config = folder / "registry.yml"
        config.write_text(
            "version: 0.1\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\n"
            f"http: {{addr: 127.0.0.1:{self.port}}}\n"
        )
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [need("docker-registry"), "serve", str(config)], stdout=output, stderr=output
            )
        until(lambda: urllib.request.urlopen(f"{self.url}/v2/", timeout=2).status == 200)

    def push_blob(self, repository: str, path: Path, digest: str) -> None:
        start = urllib.request.Request(
            f"{self.url}/v2/{repository}/blobs/uploads/", method="POST", data=b""
        )
        location = urllib.request.urlopen(start, timeout=30).headers["Location"]
        url = f"{location}&digest={digest}"
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(path.stat().st_size),
        }
        with path.open("rb") as body:
            put = urllib.request.Request(url, method="PUT", data=body, headers=headers)
            assert urllib.request.urlopen(put, timeout=120).status == 201

    def requests(self) -> list[tuple[str, str, int, int]]:
        """(method, path, status, bytes) of every GET and HEAD so far."""
        text = self.log.read_text(errors="replace")
        found = self._ACCESS.findall(text)
        return [(method, path, int(status), int(size)) for method, path, status, size in found]

    def blob_bytes(self, digest: str) -> int:
        return sum(
            size
            for method, path, status, size in self.requests()
            if method == "GET" and path.split("?")[0].endswith(digest) and status < 300
        )

    def blob_requests(self) -> int:
        return sum("/blobs/" in path for _, path, _, _ in self.requests())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class Nydusd:
    """One nydusd with a FUSE mount, its mirror pointing at a gateway."""

    def __init__(
        self, folder: Path, bootstrap: Path, registry: str, repository: str, gateway: str, ping: str
    ) -> None:
        self.folder = folder
        self.mount = folder / "mnt"
        self.mount.mkdir(parents=True)
        self.api = folder / "api.sock"
        host = registry.removeprefix("http://")
        mirror = {
            "host": gateway,
            "headers": {"X-Dragonfly-Registry": registry},
            "auth_through": False,
            "ping_url": f"{ping}/server/ping",
            "health_check_interval": 5,
            "failure_limit": 5,
        }
        backend = {
            "scheme": "http",
            "host": host,
            "repo": repository,
            # Generation A leaves the mirror out as long as it has no Authorization to send.
            "registry_token": "dummy",
            "mirrors": [mirror],
            "timeout": 5,
            "connect_timeout": 5,
            "retry_limit": 2,
        }
        config = {
            "device": {
                "backend": {"type": "registry", "config": backend},
                "cache": {"type": "blobcache", "config": {"work_dir": str(folder / "cache")}},
            },
            "mode": "direct",
            "digest_validate": False,
            "iostats_files": False,
            "enable_xattr": True,
            "fs_prefetch": {"enable": False, "threads_count": 8, "merging_size": 1048576},
        }
        (folder / "nydusd.json").write_text(json.dumps(config))
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        command = [need("nydusd"), "--config", str(folder / "nydusd.json")]
        command += ["--mountpoint", str(self.mount), "--bootstrap", str(bootstrap)]
        command += ["--apisock", str(self.api), "--log-level", "info"]
        command += ["--log-file", str(folder / "nydusd.log"), "--rlimit-nofile", "0"]
        self.process = subprocess.Popen(command, env=environment)
        until(lambda: b"RUNNING" in self.ask("/api/v1/daemon"))

    def ask(self, path: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self.api))
            sock.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
                head, _, body = data.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                if length and len(body) >= int(length[1]):
                    break
        return data.partition(b"\r\n\r\n")[2]

    def backend_metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads(self.ask("/api/v1/metrics/backend"))
        return metrics

    def stop(self) -> None:
        subprocess.run(["umount", "-l", str(self.mount)], check=False)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def make_nydus_image(folder: Path) -> tuple[Path, Path, Path, str]:
    """(source tree, bootstrap, blob file, blob digest) of an image with a bit of everything."""
    source = folder / "src"
    (source / "etc").mkdir(parents=True)
    (source / "lib").mkdir()
    for i in range(400):
        (source / "lib" / f"small{i}").write_bytes(os.urandom(200 + 37 * i))
    with (source / "model.bin").open("wb") as output:
        for _ in range(110):
            output.write(os.urandom(1 << 20))
    (source / "empty").touch()
    (source / "etc" / "os-release").write_text("NAME=test\n")
    (source / "etc" / "link").symlink_to("os-release")
    os.setxattr(source / "etc" / "os-release", "user.colour", b"green")
    blobs, bootstrap, report = folder / "blobs", folder / "boot", folder / "out.json"
    blobs.mkdir()
    command = [need("nydus-image"), "create", "-t", "dir-rafs", "-D", str(blobs)]
    command += ["-B", str(bootstrap), "-J", str(report), str(source)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    blob = json.loads(report.read_text())["blobs"][-1]
    return source, bootstrap, blobs / blob, f"sha256:{blob}"
