"""A small real cluster on this machine, and the trace of what it did."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from passel.cli.demo.run import DemoRegistry
from passel.client.state import StateFolder
from passel.client.status import cluster_status
from passel.errors import InputError, PasselError
from passel.telemetry.recording import LOOK_EVERY_S, SWITCH

MIB = 1 << 20
#: nydusd asks for at most so much at a time. Source: nydus 2.2, `amplify_io` and merging_size.
MERGED = 128 * 1024
N_MAX = 16
STEP_TIMEOUT_S = 180.0
RECORD_S = 14


def record(
    target: Path,
    *,
    nodes: int = 6,
    zones: int = 2,
    crowd_mib: int = 48,
    lazy_mib: int = 24,
    rate: str = "24 MiB",
    seed: int = 1,
) -> Path:
    """Record real nodes: all pull one blob at once, some read ranges of another as nydusd does.

    Starts ``passel up`` and a registry that sends `rate` per second, in a folder of its own;
    nothing of it is left. Takes about a minute, and wants Ray.

    Raises InputError for parameters that cannot be, PasselError when the cluster does not start.
    """
    for name, value, least, most in (
        ("nodes", nodes, 2, N_MAX),
        ("zones", zones, 1, nodes),
        ("crowd_mib", crowd_mib, 1, 512),
        ("lazy_mib", lazy_mib, 4, 512),
    ):
        if not least <= value <= most:
            raise InputError(400, "UNKNOWN", f"{name}: expected {least} to {most}, got {value}")
    folder = Path(tempfile.mkdtemp(prefix="pnb-"))
    state = StateFolder(folder / "state")
    registry = DemoRegistry(state, rate)
    try:
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(one_registry(registry.url)), encoding="utf-8")
        words = ["--nodes", str(nodes), "--zones", str(zones), "--config", str(config)]
        run_passel("up", *words, "--state", str(state.path))
        registry.start()
        crowd, lazy = (_blob(state, n * MIB, seed + n) for n in (crowd_mib, lazy_mib))
        with _recording(state, target) as recording:
            _wait_for_switch(state, nodes)
            gateways = [node["gateway"] for node in cluster_status(state)["nodes"]]
            _crowd(gateways, crowd)
            for gateway in gateways[1:4]:
                _read_lazily(gateway, lazy, nydusd_ranges(lazy_mib * MIB, seed))
            _, errors = recording.communicate(timeout=STEP_TIMEOUT_S)
            if recording.returncode:
                raise PasselError(f"passel trace record: {errors.strip()}")
    finally:
        run_passel("down", "--state", str(state.path))
        registry.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return target


def nydusd_ranges(size: int, seed: int = 0, share: float = 0.25) -> list[tuple[int, int]]:
    """Ranges (start, stop) as nydusd reads a blob while a container starts.

    Files lie anywhere; a file is read from its start on, in merged requests, most of them short.
    About `share` of the blob is touched.
    """
    rng = random.Random(seed)
    found: list[tuple[int, int]] = []
    touched = 0
    while touched < share * size:
        length = min(int(rng.lognormvariate(11.5, 1.2)) + 4096, 2 * MIB)
        start = rng.randrange(0, max(size - length, 1), 4096)
        stop = min(start + length, size)
        found += [(at, min(at + MERGED, stop)) for at in range(start, stop, MERGED)]
        touched += stop - start
    return found


def one_registry(registry: str) -> dict[str, object]:
    """A configuration for trial: this registry, and ports that the kernel chooses."""
    return {
        "upstreams": {"lab": {"api": registry, "networks": ["127.0.0.0/8"]}},
        "default_upstream": "lab",
        "gateway": {"listen": ["127.0.0.1:0"], "health": ["127.0.0.1:0"]},
        "store": {"capacity": "2 GiB", "reserve": "0 B"},
    }


def run_passel(*words: str) -> None:
    """The command line with these words. Raises PasselError with its last line if it fails."""
    command = [sys.executable, "-c", "from passel.cli.main import main; main()", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise PasselError(f"passel {words[0]}: {last}")


def _recording(state: StateFolder, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from passel.cli.main import main; main()"]
    command += ["trace", "record", "-o", str(target), "--for", f"{RECORD_S} s"]
    command += ["--state", str(state.path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _wait_for_switch(state: StateFolder, nodes: int) -> None:
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while len(list(state.path.rglob(SWITCH))) < nodes:
        if time.monotonic() > deadline:
            raise PasselError("passel trace record does not begin")
        time.sleep(0.1)
    time.sleep(1.5 * LOOK_EVERY_S)


def _blob(state: StateFolder, size: int, seed: int) -> str:
    data = random.Random(seed).randbytes(size)
    name = hashlib.sha256(data).hexdigest()
    folder = state.path / "registry" / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return f"sha256:{name}"


def _crowd(gateways: Sequence[str], digest: str) -> None:
    def pull(gateway: str) -> None:
        with urllib.request.urlopen(f"{gateway}/v2/org/app/blobs/{digest}", timeout=120) as answer:
            while answer.read(MIB):
                pass

    with ThreadPoolExecutor(len(gateways)) as pool:
        list(pool.map(pull, gateways))


def _read_lazily(gateway: str, digest: str, ranges: Sequence[tuple[int, int]]) -> None:
    for start, stop in ranges:
        request = urllib.request.Request(f"{gateway}/v2/org/app/blobs/{digest}")
        request.add_header("Range", f"bytes={start}-{stop - 1}")
        with urllib.request.urlopen(request, timeout=120) as answer:
            answer.read()
