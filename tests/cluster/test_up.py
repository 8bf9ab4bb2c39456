"""`passel up`, `status`, `get`, `down` as a user runs them; afterwards nothing of it is left."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Origin
from ray_lab import eventually

from passel.cli import processes
from passel.telemetry import analysis
from passel.telemetry.trace import export, info, read_trace

pytestmark = pytest.mark.cluster

PASSEL = str(Path(sys.executable).with_name("passel"))


def passel(*words: str, timeout_s: float = 150) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PASSEL, *words], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def status(state: Path) -> dict[str, Any]:
    done = passel("status", "--json", "--state", str(state))
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.fixture
def state() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pup")) / "state"
    yield path
    passel("down", "--state", str(path))
    shutil.rmtree(path.parent, ignore_errors=True)


@pytest.fixture
def config(state: Path, origin: Origin) -> Path:
    path = state.parent / "config.yaml"
    fields = {
        "upstreams": {"lab": {"api": origin.url, "networks": ["127.0.0.0/8"]}},
        "default_upstream": "lab",
        "gateway": {"listen": ["127.0.0.1:0"], "health": ["127.0.0.1:0"]},
        "store": {"capacity": "1 GiB", "reserve": "0 B"},
    }
    path.write_text(yaml.safe_dump(fields))
    return path


def listening() -> set[tuple[str, str]]:
    """Local address and inode of every listening TCP socket. Source: proc(5), /proc/net/tcp."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    lines += Path("/proc/net/tcp6").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {(field[1], field[9]) for field in fields if field[3] == "0A"}


def sockets_of(state: Path) -> set[str]:
    """Inodes of the sockets that processes of the cluster hold."""
    found: set[str] = set()
    for process in processes.find(state):
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(fd)
                    if target.startswith("socket:["):
                        found.add(target.removeprefix("socket:[").removesuffix("]"))
    return found


@dataclass
class Traces:
    """What a cluster can leave behind. Looked for while it runs too: the test must see it then."""

    state: Path
    ports: set[tuple[str, str]]

    @classmethod
    def of(cls, state: Path) -> Traces:
        ours = sockets_of(state)
        return cls(state, {each for each in listening() if each[1] in ours})

    def left(self) -> set[str]:
        found: set[str] = set()
        if processes.find(self.state):
            found.add("a process")
        if self.ports & listening():
            found.add("a port")
        if str(self.state) in Path("/proc/self/mounts").read_text():
            found.add("a mount")
        if list(self.state.rglob("*.sock")):
            found.add("a socket")
        if processes.socket_folder(self.state).exists():
            found.add("the folder of Ray's sockets")
        return found


ALL_TRACES = {"a process", "a port", "a socket", "the folder of Ray's sockets"}


def test_up_status_get_down_leave_nothing(state: Path, config: Path, origin: Origin) -> None:
    done = passel(
        "up", "--config", str(config), "--nodes", "4", "--zones", "2", "--state", str(state)
    )
    assert done.returncode == 0, done.stderr
    facts = status(state)
    traces = Traces.of(state)
    assert traces.left() == ALL_TRACES
    if os.geteuid() == 0:
        (state / "mnt").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(state / "mnt")], check=True)
        assert "a mount" in traces.left()
    assert [node["node"] for node in facts["nodes"]] == ["n1", "n2", "n3", "n4"]
    assert [node["zone"] for node in facts["nodes"]] == ["a", "a", "b", "b"]
    for node in facts["nodes"]:
        assert node["alive"] is True
        assert set(node["pids"]) == {"gateway", "peer", "raylet"}
        assert all(os.path.exists(f"/proc/{pid}") for pid in node["pids"].values()), node
        assert set(node["bytes"]) == {"local", "peer", "seed", "origin"}
        assert node["store"].startswith(str(state))
    assert facts["shards"][0]["pid"]
    assert facts["controller"]["pid"]
    data = os.urandom(7_000_000)
    digest = origin.put(data)
    token = state / "api-token"
    assert token.stat().st_mode & 0o777 == 0o600
    headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
    order = json.dumps({"what": digest}).encode()
    pins = urllib.request.Request(f"{facts['nodes'][3]['health']}/api/v1/pins", order, headers)
    with urllib.request.urlopen(pins, timeout=10) as answer:
        assert json.load(answer)["until"] is None
    # What the file says of ports and folders, `up` has given each node its own of.
    applied = passel("config", "apply", str(config), "--state", str(state))
    assert "version 1 is what counts" in applied.stdout, applied.stderr
    target = state.parent / "got"
    got = passel("get", f"lab/org/app@{digest}", "-o", str(target), "--state", str(state))
    assert got.returncode == 0, got.stderr
    assert target.read_bytes() == data
    url = f"{facts['nodes'][3]['gateway']}/v2/org/app/blobs/{digest}"
    piped = subprocess.run(
        [PASSEL, "get", url, "-o", "-"], capture_output=True, timeout=60, check=True
    )
    assert hashlib.sha256(piped.stdout).hexdigest() == digest.removeprefix("sha256:")
    assert origin.sent(digest) == len(data)
    assert passel("down", "--state", str(state)).returncode == 0
    assert traces.left() == set()
    assert passel("down", "--state", str(state)).returncode == 0, "down is idempotent"


def pids_of(facts: dict[str, Any]) -> dict[str, int | None]:
    """All pids of a status by what they are."""
    found = {
        f"{kind} {node['node']}": pid
        for node in facts["nodes"]
        for kind, pid in node["pids"].items()
    }
    found |= {f"shard {each['shard']}": each["pid"] for each in facts["shards"]}
    return {**found, "controller": facts["controller"]["pid"]}


def test_what_up_started_is_kept_alive_and_down_works_after_a_crash(
    state: Path, config: Path
) -> None:
    done = passel(
        "up", "--config", str(config), "--nodes", "2", "--zones", "2", "--state", str(state)
    )
    assert done.returncode == 0, done.stderr
    old = status(state)["nodes"]
    traces = Traces.of(state)
    for what in ("gateway n2", "peer n2", "shard 0", "controller", "raylet n2", "raylet n1"):
        before = pids_of(status(state))
        os.kill(before[what] or 0, signal.SIGKILL)
        began = time.monotonic()

        def is_back(what: str = what, before: dict[str, int | None] = before) -> bool:
            facts = status(state)
            now = pids_of(facts)
            return (
                all(node["alive"] for node in facts["nodes"])
                and now.keys() == before.keys()
                and None not in now.values()
                and now[what] != before[what]
            )

        # 10 s are promised; a machine that is busy with other things may take longer.
        eventually(is_back, 40)
        print(f"{what} answers again after {time.monotonic() - began:.1f} s")
    assert status(state)["nodes"][1]["gateway"] == old[1]["gateway"], "clients know that address"
    second = passel("up", "--nodes", "1", "--state", str(state))
    assert second.returncode == 1
    assert "runs in" in second.stderr
    os.kill(json.loads((state / "supervisor.json").read_text())["pid"], signal.SIGKILL)
    assert passel("down", "--state", str(state)).returncode == 0
    assert traces.left() == Traces.of(state).left() == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_cluster_in_the_foreground_ends_with_its_command(
    state: Path, config: Path, number: signal.Signals
) -> None:
    words = ["up", "--config", str(config), "--foreground", "--state", str(state)]
    with subprocess.Popen([PASSEL, *words], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert "gateway" in command.stdout.readline()
        traces = Traces.of(state)
        assert traces.left() == ALL_TRACES
        command.send_signal(number)
    eventually(lambda: not traces.left(), 40)


def test_a_running_cluster_is_recorded_for_a_while(
    state: Path, config: Path, origin: Origin
) -> None:
    done = passel(
        "up", "--config", str(config), "--nodes", "3", "--zones", "2", "--state", str(state)
    )
    assert done.returncode == 0, done.stderr
    data = os.urandom(9_000_000)
    digest = origin.put(data)
    trace = state.parent / "live.parquet"
    words = ["trace", "record", "-o", str(trace), "--for", "8 s", "--state", str(state)]
    with subprocess.Popen([PASSEL, *words], stderr=subprocess.PIPE, text=True) as recording:
        eventually(lambda: len(list(state.rglob("RECORD"))) == 3, 20)
        time.sleep(1.5)  # the processes look once a second
        for node in status(state)["nodes"]:
            url = f"{node['gateway']}/v2/org/app/blobs/{digest}?ns=lab&token=s3cret"
            for _ in range(2):
                with urllib.request.urlopen(url, timeout=60) as answer:
                    assert len(answer.read()) == len(data)
        assert recording.wait(60) == 0, recording.communicate()
    table = read_trace(trace)
    by_source = analysis.bytes_by_source(table)
    assert by_source["origin"] == len(data), "every byte from the origin, once"
    assert by_source["peer"] + by_source["seed"] == 2 * len(data)
    assert analysis.cross_zone_bytes(table) == len(data)
    reads = analysis.rows_of(table, "read")
    assert reads.num_rows == 6
    assert set(reads["outcome"].to_pylist()) == {"ok"}
    assert reads["source"].to_pylist().count("local") >= 3, "the second time it is here"
    assert set(analysis.who_fed_whom(table).nodes) == {"n1", "n2", "n3"}
    facts = info(trace)
    assert (facts.clock, facts.lost) == ("unix", 0)
    assert facts.kinds["lease"] >= 1
    assert facts.kinds["epoch"] >= 1
    rows = "".join(export(trace))
    assert not {word for word in ("org/app", "s3cret", "ns=", "http") if word in rows}


def test_a_start_that_fails_says_why_and_leaves_nothing(state: Path, config: Path) -> None:
    fields = yaml.safe_load(config.read_text())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        fields["gateway"]["listen"] = [address]
        config.write_text(yaml.safe_dump(fields))
        done = passel("up", "--config", str(config), "--nodes", "2", "--state", str(state))
        assert done.returncode == 1
        assert address in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    assert Traces.of(state).left() == set()
    config.write_text("upstreamz: {}\n")
    done = passel("up", "--config", str(config), "--state", str(state))
    assert done.returncode == 2
    assert "upstreams" in done.stderr
    assert passel("up", "--nodes", "0", "--state", str(state)).returncode == 2
    assert Traces.of(state).left() == set()
