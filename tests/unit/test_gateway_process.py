from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unit.gateway_fakes import PIECE, FakeDoor, noise


def write_config(folder: Path, **gateway: object) -> Path:
    config = {
        "upstreams": {
            "lab": {"api": "http://127.0.0.1:9", "networks": ["127.0.0.0/8"], "read_policy": "open"}
        },
        "default_upstream": "lab",
        "store": {"path": str(folder / "store")},
        "gateway": {
            "listen": ["127.0.0.1:0"],
            "dedicated": {"127.0.0.2:0": "lab"},
            "health": ["127.0.0.1:0"],
            **gateway,
        },
    }
    path = folder / "passel.yaml"
    path.write_text(json.dumps(config))
    return path


def spawn(config: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "passel.gateway", "--config", str(config), "--node", "n1"]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


@contextmanager
def running(config: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    process = spawn(config)
    note_path = config.parent / "gateway.json"
    try:
        deadline = time.monotonic() + 20
        while True:
            assert time.monotonic() < deadline
            assert process.poll() is None
            if note_path.exists():
                note = json.loads(note_path.read_text())
                if note["pid"] == process.pid:
                    break
            time.sleep(0.02)
        yield process, note
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def get(url: str, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_life_of_a_gateway(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    data = noise(300 * PIECE)
    door = FakeDoor(tmp_path / "store")
    digest = door.put(data)
    door.store.close()
    with running(config) as (process, note):
        assert note["node"] == "n1"
        for url in (note["gateway"], note["health"], *note["dedicated"]):
            assert get(f"{url}/server/ping")[0] == 200
        assert get(f"{note['gateway']}/v2/app/blobs/{digest}") == (200, data)
        assert get(f"{note['gateway']}/v2/app/blobs/sha256:{'0' * 64}")[0] == 502
        # A client that reads slowly gets its whole answer while the gateway goes down.
        host, _, port = note["gateway"].removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = slow.recv(1000)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            while chunk := slow.recv(1 << 20):
                got += chunk
        assert got.partition(b"\r\n\r\n")[2] == data
        assert process.wait(10) == 0
    assert json.loads((tmp_path / "gateway.json").read_text())["pid"] is None
    # The next one is where the last one was.
    with running(config) as (process, again):
        assert again["bound"] == note["bound"]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = spawn(write_config(tmp_path, listen=["127.0.0.1:0", f"127.0.0.1:{port}"]))
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.decode().strip() == (
        f"passel gateway: cannot listen on 127.0.0.1:{port}: another program listens there already"
    )
    assert sorted(os.listdir(tmp_path)) == ["gateway.lock", "passel.yaml"]


def test_a_node_has_one_gateway_and_its_address_is_never_another_ones(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with running(config) as (process, note):
        second = spawn(config)
        _, errors = second.communicate()
        assert second.returncode == 1
        assert b"another gateway has" in errors
        assert json.loads((tmp_path / "gateway.json").read_text()) == note
        process.kill()
        process.wait()
        with running(config) as (_, again):
            assert again["bound"] == note["bound"]


def test_a_wrong_configuration_is_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "passel.yaml"
    path.write_text("gateway: {listne: []}\n")
    process = spawn(path)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert b"listne" in errors
    assert b"Traceback" not in errors


async def test_more_connections_than_allowed_are_told(tmp_path: Path) -> None:
    config = write_config(tmp_path, limits={"connections": 2})
    with running(config) as (_, note):
        host, _, port = note["gateway"].removeprefix("http://").partition(":")
        kept = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        reader, writer = await asyncio.open_connection(host, int(port))
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        for _, each in kept:
            each.close()
        writer.close()


def test_a_gateway_carries_no_arrays_and_no_cluster() -> None:
    """Each costs a gateway tens of megabytes and a tenth of a second of every start."""
    code = "import sys, passel.gateway.app, passel.gateway.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "aiohttp" in loaded
    assert not loaded & {"ray", "passel.actors", "numpy", "pyarrow", "rich", "typer"}
