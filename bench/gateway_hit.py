"""How fast is a read that hits, next to nginx with the same file?

Starts the gateway with one blob in its store and nginx with the same file, and lets wrk read ranges
from both in turn: the whole blob, 1 MiB, 128 KiB and 4 KiB at random offsets, over 1 and 8 kept
connections. Repetitions are interleaved and spread over the run, so that a disturbance of the
machine hits both. Needs nginx and wrk; everything else is made and removed here.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from report import Report

from passel.ids import BlobKey, Digest
from passel.store import Store

MIB = 1 << 20
SIZES = {"whole": 0, "1 MiB": MIB, "128 KiB": 128 * 1024, "4 KiB": 4096}
#: Requests per second, as parts of nginx's: what the project asks of itself.
GOALS = {
    ("whole", 1): 1.0,
    ("whole", 8): 1.0,
    ("1 MiB", 1): 1.0,
    ("1 MiB", 8): 1.24,
    ("128 KiB", 1): 0.6,
    ("128 KiB", 8): 0.6,
    ("4 KiB", 1): 0.4,
    ("4 KiB", 8): 0.4,
}

LUA = """
local path, n, size
function init(args)
  path = args[1]; n = tonumber(args[2]); size = tonumber(args[3])
  math.randomseed(tonumber(args[4]))
end
function request()
  if n == 0 then return wrk.format("GET", path) end
  local a = math.random(0, size - n)
  return wrk.format("GET", path, {["Range"] = "bytes=" .. a .. "-" .. (a + n - 1)})
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nJSON {"requests": %d, "us": %d, "bytes": %d, "errors": %d, "p50_us": %d, "p99_us": %d}\\n',
    summary.requests, summary.duration, summary.bytes,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""

NGINX = """
user root; worker_processes {workers}; daemon off;
pid {folder}/nginx.pid; error_log {folder}/err.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {folder}/www; }}
}}
"""


class Origin(http.server.BaseHTTPRequestHandler):
    """Says that the blob is public; the gateway asks that once."""

    size = 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(self.size))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Side:
    """One of the two servers, and what its processes use."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], url: str) -> None:
        self.name = name
        self.process = process
        self.url = url

    def pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [self.process.pid, *map(int, children.split())]

    def cpu_s(self) -> float:
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int:
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
        return total


def put_blob(folder: Path, size: int) -> tuple[Digest, Path]:
    """A complete blob in a new store, and the same file for nginx."""
    data = os.urandom(size)
    digest = Digest("sha256", hashlib.sha256(data).hexdigest())
    store = Store.open(folder / "store", 1 << 40)
    blob = store.create(BlobKey("lab", digest), size, MIB)
    for piece in range(blob.n_pieces):
        start, stop = blob.span(piece)
        blob.write(start, data[start:stop])
        blob.confirm(piece, hashlib.sha256(data[start:stop]).digest())
    complete = blob.promote()
    store.close()
    served = folder / "www" / "v2" / "app" / "blobs" / str(digest)
    served.parent.mkdir(parents=True)
    os.link(complete.path, served)
    return digest, served


def start_gateway(folder: Path, size: int) -> Side:
    Origin.size = size
    origin = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    threading.Thread(target=origin.serve_forever, daemon=True).start()
    config = {
        "upstreams": {
            "lab": {
                "api": f"http://127.0.0.1:{origin.server_address[1]}",
                "networks": ["127.0.0.0/8"],
            }
        },
        "default_upstream": "lab",
        "gateway": {"listen": ["127.0.0.1:0"], "health": []},
        "store": {"path": str(folder / "store")},
        "logging": {"level": "warning"},
    }
    (folder / "passel.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "passel.gateway", "--config", str(folder / "passel.yaml")]
    process = subprocess.Popen(command)
    note = folder / "gateway.json"
    deadline = time.monotonic() + 15
    while not note.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the gateway did not start")
        time.sleep(0.05)
    return Side("gateway", process, json.loads(note.read_text())["gateway"])


def start_nginx(folder: Path, workers: str, port: int) -> Side:
    conf = folder / "nginx.conf"
    conf.write_text(NGINX.format(folder=folder, workers=workers, port=port))
    return Side("nginx", subprocess.Popen(["nginx", "-c", str(conf)]), f"http://127.0.0.1:{port}")


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def check(side: Side, path: str, file: Path) -> None:
    """The side answers with the right bytes, or there is nothing to measure."""
    wait_for(side.url + path)
    with file.open("rb") as stream:
        for start, stop in ((0, 4096), (12345, 12345 + MIB), (7, 7 + 100_000)):
            request = urllib.request.Request(side.url + path)
            request.add_header("Range", f"bytes={start}-{stop - 1}")
            stream.seek(start)
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 206, answer.status
                assert answer.read() == stream.read(stop - start), "wrong bytes"


def measure(
    side: Side, lua: Path, path: str, length: int, size: int, n_connections: int, options: Any
) -> dict[str, float]:
    before = side.cpu_s()
    command = [
        *("wrk", "-t1", f"-c{n_connections}", f"-d{options.seconds}s", "--timeout", "20s"),
        *("-s", str(lua), side.url, "--", path, str(length), str(size), str(options.seed)),
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(each for each in text.splitlines() if each.startswith("JSON "))
    result: dict[str, float] = json.loads(line.removeprefix("JSON "))
    if result["errors"]:
        raise SystemExit(f"{side.name}: {result['errors']} failed requests")
    result["rate"] = result["requests"] / (result["us"] / 1e6)
    result["cpu_s"] = side.cpu_s() - before
    result["gib"] = result["bytes"] / 2**30
    return result


def run(options: argparse.Namespace, folder: Path, started: list[Side]) -> None:
    size = options.size_mib * MIB
    digest, file = put_blob(folder, size)
    started.append(start_gateway(folder, size))
    started.append(start_nginx(folder, options.nginx_workers, options.nginx_port))
    path = f"/v2/app/blobs/{digest}"
    lua = folder / "range.lua"
    lua.write_text(LUA)
    for side in started:
        check(side, path, file)
    cases = [(name, n) for name in options.range or SIZES for n in (1, 8)]
    results: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    for repetition in range(options.repetitions + 1):
        for name, n_connections in cases:
            for side in started if repetition % 2 else reversed(started):
                got = measure(side, lua, path, SIZES[name], size, n_connections, options)
                if repetition:
                    results.setdefault((name, n_connections, side.name), []).append(got)
    tell(options, started, cases, results)


def tell(
    options: argparse.Namespace,
    sides: list[Side],
    cases: list[tuple[str, int]],
    results: dict[tuple[str, int, str], list[dict[str, float]]],
) -> None:
    report = Report("How fast is a hit, next to nginx with the same file?", seed=options.seed)
    rss = {side.name: side.rss_bytes() for side in sides}
    for name, n_connections in cases:
        both = {side.name: results[name, n_connections, side.name] for side in sides}
        rates = {side: [each["rate"] for each in got] for side, got in both.items()}
        ratios = [a / b for a, b in zip(rates["gateway"], rates["nginx"], strict=True)]
        report.row(
            "hit",
            "requests/s",
            rates["gateway"],
            parameters={
                "range": name,
                "connections": n_connections,
                "blob_mib": options.size_mib,
                "nginx_workers": options.nginx_workers,
            },
            bound=statistics.median(rates["nginx"]),
            goal=GOALS[name, n_connections] * statistics.median(rates["nginx"]),
            ratio_to_nginx=round(statistics.median(ratios), 3),
            ratio_goal=GOALS[name, n_connections],
            ratios=[round(each, 3) for each in ratios],
            nginx=[round(each, 1) for each in rates["nginx"]],
            cpu_s_per_gib={
                side: round(sum(r["cpu_s"] for r in got) / sum(r["gib"] for r in got), 4)
                for side, got in both.items()
            },
            p99_us={
                side: statistics.median(r["p99_us"] for r in got) for side, got in both.items()
            },
            rss_bytes=rss,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--range", action="append", choices=SIZES, help="only this one; repeatable")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--nginx-workers", default="1", help="1: one process on each side")
    parser.add_argument("--nginx-port", type=int, default=18080)
    options = parser.parse_args()
    for tool in ("nginx", "wrk"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed")
    started: list[Side] = []
    with tempfile.TemporaryDirectory(prefix="passel-bench-") as name:
        try:
            run(options, Path(name), started)
        finally:
            for side in started:
                side.process.send_signal(signal.SIGTERM)
            for side in started:
                side.process.wait(10)


if __name__ == "__main__":
    main()
