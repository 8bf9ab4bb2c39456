"""What do small answers, idle connections and a crowd at one cold blob cost at the gateway?

One node of passel, nginx with the same files, and Debian's docker-registry in its proxy mode before
the same origin, in one run: warm manifests by tag and by digest, HEAD and GET, with ab; the memory
of 1 000 connections that do nothing; and 200 clients that ask for one blob that nobody has yet,
next to a single client that does. Needs docker-registry, nginx and ab.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from gateway_hit import NGINX, Side, wait_for
from report import Report

MIB = 1 << 20
TYPE = "application/vnd.oci.image.manifest.v1+json"
PASSEL = str(Path(sys.executable).with_name("passel"))


class Registry(Side):
    """docker-registry, the origin or a proxy of it."""

    _GOT = re.compile(r'"GET (\S+) HTTP/1\.1" (20\d) (\d+) ')

    def __init__(self, folder: Path, name: str, remote: str | None = None) -> None:
        port = free_port()
        self.log = folder / f"{name}.log"
        config: dict[str, Any] = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(folder / name)}},
            "http": {"addr": f"127.0.0.1:{port}"},
        }
        if remote is not None:
            config["proxy"] = {"remoteurl": remote}
        path = folder / f"{name}.yml"
        path.write_text(json.dumps(config))
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                ["docker-registry", "serve", str(path)], stdout=log, stderr=log
            )
        super().__init__(name, process, f"http://127.0.0.1:{port}")
        wait_for(f"{self.url}/v2/")

    def put_blob(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        start = urllib.request.Request(f"{self.url}/v2/app/blobs/uploads/", method="POST", data=b"")
        with urllib.request.urlopen(start) as answer:
            where = f"{answer.headers['Location']}&digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        put = urllib.request.Request(where, method="PUT", data=data, headers=headers)
        with urllib.request.urlopen(put):
            return digest

    def put_manifest(self, tag: str, body: bytes) -> None:
        url = f"{self.url}/v2/app/manifests/{tag}"
        headers = {"Content-Type": TYPE}
        with urllib.request.urlopen(
            urllib.request.Request(url, method="PUT", data=body, headers=headers)
        ):
            pass

    def sent(self, digest: str) -> tuple[int, int]:
        """Requests for a blob that got bytes, and those bytes."""
        time.sleep(0.3)
        found = [
            int(size)
            for path, _, size in self._GOT.findall(self.log.read_text(errors="replace"))
            if path.endswith(digest)
        ]
        return len(found), sum(found)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Node(Side):
    """One node of passel: its gateway is what is looked at."""

    def __init__(self, folder: Path, origin: str) -> None:
        self.state = folder / "state"
        config = {
            "upstreams": {"lab": {"api": origin, "networks": ["127.0.0.0/8"], "tag_ttl": "1 min"}},
            "default_upstream": "lab",
            "gateway": {"listen": ["127.0.0.1:0"], "health": ["127.0.0.1:0"]},
            "logging": {"level": "warning"},
        }
        (folder / "passel.yaml").write_text(json.dumps(config))
        words = ["--config", str(folder / "passel.yaml"), "--state", str(self.state)]
        subprocess.run([PASSEL, "up", *words], check=True, stdout=subprocess.DEVNULL)
        text = subprocess.run(
            [PASSEL, "status", "--json", "--state", str(self.state)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        node = json.loads(text)["nodes"][0]
        self.name = "gateway"
        self.url = node["gateway"]
        self.pid = int(node["pids"]["gateway"])

    def pids(self) -> list[int]:
        return [self.pid]

    def down(self) -> None:
        subprocess.run(
            [PASSEL, "down", "--state", str(self.state)], check=True, stdout=subprocess.DEVNULL
        )


def start_nginx(folder: Path, bodies: dict[str, bytes]) -> Side:
    """nginx with the manifests as files."""
    for name, body in bodies.items():
        path = folder / "www" / "v2" / "app" / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    conf, port = folder / "nginx.conf", free_port()
    text = NGINX.format(folder=folder, workers="1", port=port)
    conf.write_text(text.replace("worker_connections 1024", "worker_connections 4096"))
    side = Side("nginx", subprocess.Popen(["nginx", "-c", str(conf)]), f"http://127.0.0.1:{port}")
    wait_for(f"{side.url}/v2/app/manifests/v1")
    return side


def measure(side: Side, path: str, method: str, n: int, seconds: int) -> dict[str, Any]:
    """Rate and 99th percentile over `n` kept connections; wrk would wait for the body of a HEAD."""
    with tempfile.NamedTemporaryFile("r", suffix=".csv") as table:
        command = ["ab", "-q", "-k", "-c", str(n), "-t", str(seconds), "-n", "10000000"]
        command += [
            "-H",
            f"Accept: {TYPE}",
            "-e",
            table.name,
            *(["-i"] if method == "HEAD" else []),
        ]
        text = subprocess.run(
            [*command, side.url + path], capture_output=True, text=True, check=True
        ).stdout
        percentiles = dict(line.strip().split(",") for line in table)
    failed = re.search(r"(Failed requests: +[1-9].*|Non-2xx responses: .*)", text)
    if failed:
        raise SystemExit(f"{side.name}: {failed[0]}")
    rate = re.search(r"Requests per second: +([0-9.]+)", text)
    assert rate is not None, text
    return {"rate": float(rate[1]), "p99_us": round(float(percentiles["99"]) * 1000)}


def manifests(options: argparse.Namespace, sides: list[Side], digest: str) -> None:
    report = Report("How fast are warm manifests, next to nginx and docker-registry?", seed=0)
    results: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for repetition in range(options.repetitions + 1):
        for method in ("HEAD", "GET"):
            for name in ("v1", digest):
                for side in sides if repetition % 2 else reversed(sides):
                    path = f"/v2/app/manifests/{name}"
                    got = measure(side, path, method, options.connections, options.seconds)
                    if repetition:
                        results.setdefault((method, name, side.name), []).append(got)
    for method in ("HEAD", "GET"):
        for name in ("v1", digest):
            both = {side.name: results[method, name, side.name] for side in sides}
            rates = {key: [each["rate"] for each in got] for key, got in both.items()}
            report.row(
                "manifest",
                "requests/s",
                rates["gateway"],
                parameters={
                    "method": method,
                    "by": "tag" if name == "v1" else "digest",
                    "connections": options.connections,
                },
                bound=statistics.median(rates["nginx"]),
                goal=statistics.median(rates["proxy"]),
                nginx=[round(each, 1) for each in rates["nginx"]],
                docker_registry=[round(each, 1) for each in rates["proxy"]],
                p99_us={
                    key: statistics.median(each["p99_us"] for each in got)
                    for key, got in both.items()
                },
            )


def idle(options: argparse.Namespace, sides: list[Side], digest: str) -> None:
    """Connections that have asked once and then stay."""
    report = Report("What do idle connections cost?", seed=0)
    head = f"GET /v2/app/manifests/{digest} HTTP/1.1\r\nHost: x\r\nAccept: {TYPE}\r\n\r\n".encode()
    grown: dict[str, float] = {}
    for side in sides:
        before = side.rss_bytes()
        host, _, port = side.url.removeprefix("http://").rpartition(":")
        held = []
        for _ in range(options.idle):
            sock = socket.create_connection((host, int(port)), timeout=10)
            sock.sendall(head)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
            held.append(sock)
        time.sleep(1)
        grown[side.name] = (side.rss_bytes() - before) / options.idle
        for sock in held:
            sock.close()
    report.row(
        "idle connection",
        "bytes",
        [grown["gateway"]],
        parameters={"connections": options.idle},
        bound=grown["nginx"],
        goal=grown["proxy"],
        rss_bytes={side.name: side.rss_bytes() for side in sides},
    )


async def fetch(url: str, path: str, size: int) -> float:
    """Read one blob, unverified; the time at its last byte."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    got = 0
    while chunk := await reader.read(1 << 20):
        got += len(chunk)
    writer.close()
    assert got == size, (got, size)
    return time.perf_counter()


def crowd(options: argparse.Namespace, sides: list[Side], origin: Registry) -> None:
    """All at once at a cold blob, next to one client at another cold blob."""
    report = Report("What does a crowd at one cold blob cost?", seed=0)
    size = options.blob_mib * MIB

    async def at_once(url: str, digest: str, n: int) -> float:
        began = time.perf_counter()
        path = f"/v2/app/blobs/{digest}"
        return max(await asyncio.gather(*(fetch(url, path, size) for _ in range(n)))) - began

    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.repetitions):
        for side in sides:
            if side.name == "nginx":
                continue
            one, many = (origin.put_blob(os.urandom(size)) for _ in range(2))
            alone = asyncio.run(at_once(side.url, one, 1))
            together = asyncio.run(at_once(side.url, many, options.clients))
            requests, n_bytes = origin.sent(many)
            mine = found.setdefault(side.name, {})
            for key, value in {
                "alone_s": alone,
                "last_s": together,
                "ratio": together / alone,
                "origin_requests": requests,
                "origin_copies": n_bytes / size,
            }.items():
                mine.setdefault(key, []).append(round(value, 3))
    gateway = found["gateway"]
    report.row(
        "crowd",
        "x alone",
        gateway["ratio"],
        parameters={"clients": options.clients, "blob_mib": options.blob_mib},
        bound=1.0,
        goal=statistics.median(found["proxy"]["ratio"]),
        gateway=gateway,
        docker_registry=found["proxy"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--blob-mib", type=int, default=8)
    options = parser.parse_args()
    for tool in ("nginx", "ab", "docker-registry"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed")
    started: list[Side] = []
    node: Node | None = None
    with tempfile.TemporaryDirectory(prefix="pbench-") as name:
        folder = Path(name)
        try:
            origin = Registry(folder, "origin")
            started.append(origin)
            config = origin.put_blob(b"{}")
            layer = origin.put_blob(os.urandom(100_000))
            body = json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": TYPE,
                    "config": {"mediaType": "c", "digest": config, "size": 2},
                    "layers": [{"mediaType": "l", "digest": layer, "size": 100_000}],
                    "annotations": {f"key{i}": "value" * 8 for i in range(20)},
                }
            ).encode()
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            origin.put_manifest("v1", body)
            started.append(start_nginx(folder, {"v1": body, digest: body}))
            started.append(Registry(folder, "proxy", origin.url))
            node = Node(folder, origin.url)
            sides = [node, *started[1:]]
            manifests(options, sides, digest)
            idle(options, sides, digest)
            crowd(options, sides, origin)
        finally:
            if node is not None:
                node.down()
            for side in started:
                side.process.send_signal(signal.SIGTERM)
            for side in started:
                side.process.wait(10)


if __name__ == "__main__":
    main()
