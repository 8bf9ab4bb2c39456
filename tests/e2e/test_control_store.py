"""Ray's control store is killed and started again over its storage: passel has not noticed.

Both storages that Ray has: a Redis server, and files on the head's disk. Without one, a control
store that comes back knows no node, and everybody starts over (`test_ray_up`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import gateway_of
from ray_lab import Lab, eventually
from tools import DockerRegistry, free_port, need

pytestmark = pytest.mark.e2e

MIB = 1 << 20
AWAY_S = 3.0


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[dict[str, str]]:
    port = free_port()
    words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen([need("redis-server"), *words], stdout=log, stderr=log)
    try:
        yield {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        server.terminate()
        server.wait(10)


@contextlib.contextmanager
def rocksdb(folder: Path) -> Iterator[dict[str, str]]:
    yield {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}


@pytest.fixture(params=[redis, rocksdb], ids=lambda storage: str(storage.__name__))
def kept_lab(request: pytest.FixtureRequest, registry: DockerRegistry) -> Iterator[Lab]:
    """Three nodes; what Ray's head is told, it is told by its environment."""
    path = Path(tempfile.mkdtemp(prefix="pgcs"))
    lab = Lab(path, registry.url)
    try:
        with request.param(path) as environment, pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            try:
                lab.start(["a", "a", "b"])
                for node in lab.nodes.values():
                    eventually(lambda n=node: gateway_of(n.folder), 30)
                yield lab
            finally:
                lab.stop()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def push(registry: DockerRegistry, folder: Path, size: int) -> tuple[bytes, str]:
    data = os.urandom(size)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    (folder / "blob").write_bytes(data)
    registry.push_blob("org/app", folder / "blob", digest)
    return data, digest


def read(lab: Lab, node: str, digest: str) -> tuple[bytes, str]:
    url = f"{gateway_of(lab.nodes[node].folder)['gateway']}/v2/org/app/blobs/{digest}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read(), answer.headers["X-Passel-Source"]


def facts(lab: Lab, *words: str) -> Any:
    done = lab.passel(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def actors(lab: Lab) -> dict[str, int]:
    """The process of every actor."""
    status = lab.status()
    pids = {node["node"]: node["pids"]["peer"] for node in status["nodes"]}
    pids |= {f"shard {each['shard']}": each["pid"] for each in status["shards"]}
    return pids | {"controller": status["controller"]["pid"]}


def control_store(lab: Lab) -> subprocess.Popen[bytes]:
    assert lab.cluster is not None
    (info,) = lab.cluster.head_node.all_processes["gcs_server"]
    process: subprocess.Popen[bytes] = info.process
    return process


def test_nothing_is_lost_with_the_control_store(
    kept_lab: Lab, registry: DockerRegistry, tmp_path: Path
) -> None:
    lab = kept_lab
    assert lab.cluster is not None
    data, old = push(registry, tmp_path, 3 * MIB)
    job = facts(lab, "preheat", f"lab/org/app@{old}", "--watch")
    assert job["state"] == "done"
    before = actors(lab)
    assert set(before) == {"n1", "n2", "n3", "shard 0", "controller"}
    fresh, new = push(registry, tmp_path, 20 * MIB)

    store = control_store(lab)
    store.send_signal(signal.SIGKILL)
    assert store.wait(10) == -signal.SIGKILL
    back = threading.Event()
    timer = threading.Timer(AWAY_S, back.set)
    timer.start()
    sources = set()
    n_reads = 0
    while not back.is_set() or n_reads < 2:
        node = f"n{n_reads % 2 + 2}"
        assert read(lab, node, old) == (data, "local")
        body, source = read(lab, node, new)
        assert body == fresh
        sources.add(source)
        n_reads += 1
    # Without the control store, too, they get it from each other: calls between actors need none.
    assert sources & {"seed", "peer"}, sources
    assert registry.blob_bytes(new) <= len(fresh) + 4 * MIB

    head = lab.cluster.head_node
    head.kill_gcs_server(check_alive=False)  # as Ray's own bookkeeping must know
    head.start_gcs_server()
    assert control_store(lab).pid != store.pid
    # A node that joins gets its peer: the controller can start actors again.
    lab.add("n4", "b")
    eventually(lab.nodes["n4"].health, 60)
    eventually(lambda: len(lab.status()["nodes"]) == 4)
    after = actors(lab)
    assert {name: after[name] for name in before} == before, "the same processes as before"
    assert [each["job"] for each in facts(lab, "jobs")] == [job["job"]]

    # What the next controller knows, it has from the control store.
    os.kill(before["controller"], signal.SIGKILL)
    eventually(lambda: lab.status()["controller"]["pid"] != before["controller"], 30)
    eventually(lambda: lab.passel("jobs").stdout.count(job["job"]) == 1, 30)
    eventually(lambda: facts(lab, "preheat", f"lab/org/app@{new}", "--watch")["state"] == "done")
    assert read(lab, "n4", new) == (fresh, "local")
