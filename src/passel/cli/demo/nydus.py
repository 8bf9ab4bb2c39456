"""Real Nydus: an image made with nydus-image, mounted by nydusd with a gateway as its mirror.

nydusd 2.2.0 (crate nydus-rs) is of the generation that leaves its mirror out as long as it has
no Authorization to send, so it is given a token that means nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passel.errors import PasselError

_FOLDERS = ("/opt/nydus/bin", "/usr/local/bin", "/usr/sbin")
START_S = 20.0


class NydusFailed(PasselError):
    """nydusd or nydus-image did not do what it should."""


def find_program(name: str) -> str | None:
    """nydusd or nydus-image: in $PASSEL_NYDUS_BIN, on PATH, or where it is usually put."""
    folders = [os.environ.get("PASSEL_NYDUS_BIN", ""), os.environ.get("PATH", ""), *_FOLDERS]
    return shutil.which(name, path=os.pathsep.join(filter(None, folders)))


def why_not() -> str | None:
    """Why Nydus cannot be shown here, None if it can."""
    for name in ("nydusd", "nydus-image"):
        if find_program(name) is None:
            return f"{name} is not installed (cargo install nydus-rs --version 2.2.0 --locked)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.geteuid() != 0:
        return "mounting needs /dev/fuse and root"
    return None


@dataclass(frozen=True, slots=True)
class NydusImage:
    """A tree, and what nydus-image made of it."""

    source: Path
    bootstrap: Path
    blob: Path

    @property
    def digest(self) -> str:
        return f"sha256:{self.blob.name}"


def build_image(folder: Path, source: Path) -> NydusImage:
    """RAFS v6, one data blob whose name is its digest."""
    program = find_program("nydus-image")
    if program is None:
        raise NydusFailed("nydus-image is not installed")
    blobs, bootstrap, report = folder / "blobs", folder / "boot", folder / "out.json"
    blobs.mkdir(parents=True, exist_ok=True)
    command = [program, "create", "-t", "dir-rafs", "-D", str(blobs), "-B", str(bootstrap)]
    done = subprocess.run(
        [*command, "-J", str(report), str(source)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NydusFailed(f"nydus-image failed: {done.stderr.strip()[-300:]}")
    name = json.loads(report.read_text())["blobs"][-1]
    return NydusImage(source, bootstrap, blobs / name)


def _config(
    registry: str, repository: str, gateway: str, ping: str, cache: Path, timeout_s: int
) -> dict[str, Any]:
    """nydusd's configuration, version 1 (JSON); without a gateway there is no mirror."""
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
        "host": registry.removeprefix("http://"),
        "repo": repository,
        "registry_token": "dummy",
        "mirrors": [mirror] if gateway else [],
        "timeout": timeout_s,
        "connect_timeout": 5,
        "retry_limit": 2,
    }
    return {
        "device": {
            "backend": {"type": "registry", "config": backend},
            "cache": {"type": "blobcache", "config": {"work_dir": str(cache)}},
        },
        "mode": "direct",
        "digest_validate": False,
        "iostats_files": False,
        "enable_xattr": True,
        "fs_prefetch": {"enable": False, "threads_count": 8, "merging_size": 1048576},
    }


class Nydusd:
    """One nydusd with a FUSE mount at `mount`. `stop` unmounts; without a gateway it has no mirror.

    A second one in the same folder finds the first one's cache.
    """

    def __init__(
        self,
        folder: Path,
        image: NydusImage,
        registry: str,
        repository: str,
        gateway: str,
        ping: str,
        state: Path | None = None,
        timeout_s: int = 5,
        settings: dict[str, Any] | None = None,
    ) -> None:
        program = find_program("nydusd")
        if program is None:
            raise NydusFailed("nydusd is not installed")
        self.mount = folder / "mnt"
        self.mount.mkdir(parents=True, exist_ok=True)
        self.cache = folder / "cache"
        self._api = folder / "api.sock"
        config = folder / "nydusd.json"
        if settings is None:
            settings = _config(registry, repository, gateway, ping, self.cache, timeout_s)
        config.write_text(json.dumps(settings))
        # A proxy of the environment would be used for the mirror too.
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        if state is not None:
            environment |= {"PASSEL_STATE": str(state), "PASSEL_NODE": "nydusd"}
        command = [program, "--config", str(config), "--mountpoint", str(self.mount)]
        command += ["--bootstrap", str(image.bootstrap), "--apisock", str(self._api)]
        command += ["--log-level", "info", "--log-file", str(folder / "nydusd.log")]
        # Without CAP_SYS_RESOURCE it would fail to ask for a million descriptors.
        command += ["--rlimit-nofile", "0"]
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._wait(folder / "nydusd.log")

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if b"RUNNING" in self._ask("/api/v1/daemon"):
                    return
            except OSError:
                pass
            time.sleep(0.02)
        self.stop()
        raise NydusFailed(f"nydusd does not come up, see {log}")

    def _ask(self, path: str) -> bytes:
        """The body of a GET over nydusd's API socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self._api))
            sock.sendall(f"GET {path} HTTP/1.0\r\nHost: nydusd\r\n\r\n".encode())
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
                head, _, body = data.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                if length and len(body) >= int(length[1]):
                    break
        return data.partition(b"\r\n\r\n")[2]

    def backend_metrics(self) -> dict[str, Any]:
        """read_count, read_errors, read_amount_total, ..."""
        metrics: dict[str, Any] = json.loads(self._ask("/api/v1/metrics/backend"))
        return metrics

    def stop(self) -> None:
        """The mount and the process are gone."""
        subprocess.run(["umount", "-l", str(self.mount)], check=False, stderr=subprocess.DEVNULL)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
