"""How long does the first byte of a cold 4 KiB read take, against the origin's own first byte?

Sketch: the origin answers after 20 ms. Around it: gateway 0.5 ms, peer 1 ms, one call to the shard
and one to the seed 3 ms, one piece of 1 MiB to the seed and on to the node 4 ms, its digest 1 ms.
Expect 30 ms, 1.5 times the origin's. The comparator is the same read straight from the origin, in
the same run, interleaved; blobs are read once each, on a node that is not the seed.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "cluster")]

from ray_lab import Lab, eventually
from report import Report

MIB = 1 << 20


class Registry:
    """The demo registry as a process, with 20 ms before every answer."""

    def __init__(self, folder: Path, latency: str) -> None:
        self.root = folder / "origin"
        command = [sys.executable, "-m", "passel.cli.demo.registry", "--root", str(self.root)]
        self.process = subprocess.Popen(
            [*command, "--latency", latency], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def put(self, size: int) -> str:
        data = os.urandom(size)
        name = hashlib.sha256(data).hexdigest()
        folder = self.root / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return f"sha256:{name}"


def first_byte_s(connection: http.client.HTTPConnection, digest: str, start: int) -> float:
    """Seconds from the request to the first byte of the body; the rest of 4 KiB is read too."""
    began = time.perf_counter()
    headers = {"Range": f"bytes={start}-{start + 4095}"}
    connection.request("GET", f"/v2/bench/blob/blobs/{digest}", headers=headers)
    answer = connection.getresponse()
    answer.read(1)
    took_s = time.perf_counter() - began
    assert answer.status == 206, answer.status
    assert len(answer.read()) == 4095
    return took_s


def connect(url: str) -> http.client.HTTPConnection:
    host = urllib.parse.urlsplit(url).netloc
    return http.client.HTTPConnection(host, timeout=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reads", type=int, default=40)
    parser.add_argument("--latency", default="20 ms")
    parser.add_argument("--size-mib", type=int, default=16)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pcold"))
    # Ray would put its workers behind everything else on the machine; the registry is not there.
    os.environ.setdefault("RAY_worker_niceness", "0")
    registry = Registry(folder, options.latency)
    lab = Lab(folder / "lab", registry.url)
    try:
        lab.start(["a", "a", "a"])
        name = next(n.name for n in lab.nodes.values() if n.health()["role"] == "peer")
        note = lab.nodes[name].folder / "gateway.json"
        gateway = eventually(lambda: json.loads(note.read_text()), 30)["gateway"]
        through, direct = connect(gateway), connect(registry.url)
        digests = [registry.put(options.size_mib * MIB) for _ in range(options.reads + 2)]
        samples: dict[str, list[float]] = {"passel": [], "origin": []}
        for i, digest in enumerate(digests):
            start = (i * 7919 * 4096) % ((options.size_mib - 1) * MIB)
            ours = first_byte_s(through, digest, start)
            time.sleep(0.5)  # the rest of the blob comes in the background: let it end
            theirs = first_byte_s(direct, digest, start)
            if i >= 2:  # the first two made connections and looked up actors
                samples["passel"].append(ours * 1000)
                samples["origin"].append(theirs * 1000)
    finally:
        lab.stop()
        registry.process.terminate()
        shutil.rmtree(folder, ignore_errors=True)
    report = Report("first byte of a cold 4 KiB read through a node that is not the seed")
    parameters = {"latency": options.latency, "blob_mib": options.size_mib}
    middle = sorted(samples["origin"])[len(samples["origin"]) // 2]
    report.row("origin, direct", "ms", samples["origin"], parameters=parameters, bound=middle)
    report.row(
        "through passel", "ms", samples["passel"], parameters=parameters, bound=middle, goal=1.5
    )


if __name__ == "__main__":
    main()
