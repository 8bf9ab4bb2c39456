"""Real programs that the e2e tests use: found, required or skipped with the reason."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from passel.cli.demo.nydus import NydusImage, build_image

#: Comma-separated programs that must be there: CI sets it to what it has installed.
REQUIRED = set(filter(None, os.environ.get("PASSEL_REQUIRE", "").split(",")))
_FOLDERS = [
    os.environ.get("PASSEL_NYDUS_BIN", ""),
    os.environ.get("PASSEL_GO_BIN", ""),
    "/opt/nydus/bin",
    "/usr/sbin",
    "/usr/local/bin",
]


def need(program: str) -> str:
    """The path of a program; a missing one skips the test, or fails it where it is required."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *filter(None, _FOLDERS)])
    found = shutil.which(program, path=path)
    if found is None:
        if program in REQUIRED:
            pytest.fail(f"{program} is required here (PASSEL_REQUIRE) and was not found")
        pytest.skip(f"{program} is not installed")
    return found


def need_ray_default() -> None:
    """Ray's launcher and its metrics need more than the plain package has."""
    if importlib.util.find_spec("opencensus") and importlib.util.find_spec("aiohttp_cors"):
        return
    if "ray[default]" in REQUIRED:
        pytest.fail("ray[default] is required here (PASSEL_REQUIRE): pip install '.[cluster]'")
    pytest.skip("ray[default] is not installed: pip install '.[cluster]'")


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

    _ACCESS = re.compile(r'"(GET|HEAD) (\S+) HTTP/1\.1" (\d+) (\d+) "[^"]*" "([^"]*)"')

    def __init__(
        self,
        folder: Path,
        name: str = "registry",
        auth: dict[str, Any] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.port = free_port()
        self.url = f"http://{host}:{self.port}"
        self.log = folder / f"{name}.log"
        self._config = folder / f"{name}.yml"
        config = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(folder / name)}},
            "http": {"addr": f"{host}:{self.port}"},
        }
        # JSON is YAML.
        self._config.write_text(json.dumps({**config, **({"auth": auth} if auth else {})}))
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [need("docker-registry"), "serve", str(self._config)], stdout=output, stderr=output
            )
        until(self._answers)

    def configure(self, **sections: Any) -> None:
        """Start again, at the same address, with these sections too."""
        self.stop()
        config = json.loads(self._config.read_text())
        self._config.write_text(json.dumps({**config, **sections}))
        self.start()

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.url}/v2/", timeout=2).status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 401

    def push_blob(
        self, repository: str, path: Path, digest: str, authorization: str | None = None
    ) -> None:
        who = {"Authorization": authorization} if authorization else {}
        start = urllib.request.Request(
            f"{self.url}/v2/{repository}/blobs/uploads/", method="POST", data=b"", headers=who
        )
        location = urllib.request.urlopen(start, timeout=30).headers["Location"]
        url = f"{location}&digest={digest}"
        headers = {
            **who,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(path.stat().st_size),
        }
        with path.open("rb") as body:
            put = urllib.request.Request(url, method="PUT", data=body, headers=headers)
            assert urllib.request.urlopen(put, timeout=120).status == 201

    def push_manifest(
        self,
        repository: str,
        reference: str,
        body: bytes,
        media_type: str,
        authorization: str | None = None,
    ) -> None:
        who = {"Authorization": authorization} if authorization else {}
        put = urllib.request.Request(
            f"{self.url}/v2/{repository}/manifests/{reference}",
            method="PUT",
            data=body,
            headers={**who, "Content-Type": media_type},
        )
        assert urllib.request.urlopen(put, timeout=30).status == 201

    def requests(self) -> list[tuple[str, str, int, int]]:
        """(method, path, status, bytes) of every GET and HEAD so far."""
        text = self.log.read_text(errors="replace")
        found = self._ACCESS.findall(text)
        return [(method, path, int(status), int(size)) for method, path, status, size, _ in found]

    def who_got(self, repository: str) -> set[str]:
        """The programs (User-Agent up to the slash) that got content of a repository here."""
        found = self._ACCESS.findall(self.log.read_text(errors="replace"))
        return {
            agent.partition("/")[0]
            for _, path, status, _, agent in found
            if path.startswith(f"/v2/{repository}/") and status in ("200", "206")
        }

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


class SlowRegistry(DockerRegistry):
    """The same behind nginx, which sends `bytes_per_s` per request and keeps the access log."""

    def __init__(self, folder: Path, bytes_per_s: int) -> None:
        super().__init__(folder)
        behind, self.port = self.port, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "front.log"
        config = folder / "front.conf"
        config.write_text(
            f"user {getpass.getuser()}; daemon off; pid {folder}/front.pid;\n"
            f"error_log {folder}/front-error.log;\n"
            "events {} http {\n"
            "log_format bytes '\"$request_method $uri HTTP/1.1\" $status $body_bytes_sent '\n"
            '\'"" "$http_user_agent"\';\n'
            f"access_log {self.log} bytes;\n"
            f"client_body_temp_path {folder}/front-body; proxy_temp_path {folder}/front-proxy;\n"
            f"server {{ listen 127.0.0.1:{self.port}; client_max_body_size 0; location / {{\n"
            f"proxy_pass http://127.0.0.1:{behind}; proxy_set_header Host $http_host;\n"
            f"proxy_max_temp_file_size 0; limit_rate {bytes_per_s}; }} }} }}\n"
        )
        self.front = subprocess.Popen([need("nginx"), "-c", str(config), "-p", str(folder)])
        until(lambda: urllib.request.urlopen(f"{self.url}/v2/", timeout=2).status == 200)

    def stop(self) -> None:
        self.front.terminate()
        self.front.wait(10)
        super().stop()


def make_nydus_image(folder: Path) -> NydusImage:
    """An image with a bit of everything: many small files, a large one, an empty one, links."""
    need("nydus-image")
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
    return build_image(folder, source)
