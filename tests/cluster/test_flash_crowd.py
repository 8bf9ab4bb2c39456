"""The live bench in network namespaces: what it counts, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

BENCH = Path(__file__).parents[2] / "bench" / "flash_crowd.py"
PREFIX = "psltest-"
NAMESPACES = Path("/run/netns")
SMALL = ["--nodes", "3", "--zones", "2", "--mib", "8", "--mbit", "200", "--repetitions", "1"]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The command line of a small crowd; skips where namespaces cannot be had."""
    missing = "root" if os.geteuid() != 0 else "tc" if shutil.which("tc") is None else ""
    if missing:
        if "tc" in os.environ.get("PASSEL_REQUIRE", "").split(","):
            pytest.fail(f"tc in network namespaces is required here (PASSEL_REQUIRE): no {missing}")
        pytest.skip(f"network namespaces and tc need {missing}")
    return [sys.executable, str(BENCH), *SMALL, "--prefix", PREFIX, "--folder", str(tmp_path)]


def leftovers(folder: Path) -> list[str]:
    """Namespaces, files and processes of the bench."""
    found = [path.name for path in NAMESPACES.glob(f"{PREFIX}*")] if NAMESPACES.is_dir() else []
    found += [str(path) for path in folder.glob("psltest*")]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_a_crowd_is_counted_from_outside(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    rows: dict[str, dict[str, Any]] = {}
    for line in done.stdout.splitlines():
        row = json.loads(line)
        rows[row["case"]] = row
    assert set(rows) == {"calibration", "crowd", "straight"}
    crowd, straight = rows["crowd"], rows["straight"]
    assert crowd["origin_over_size"] == [1.0]
    assert straight["origin_over_size"] == [3.0]
    run = crowd["runs"][0]
    assert run["cross_zone"]["by_peers"] == 1.0
    # On the trunk there are acknowledgements and Ray's own words besides; but no second copy.
    assert 1.0 <= run["cross_zone"]["on_trunks"] < 1.5
    assert run["shard"]["decisions"] >= 16
    # Two nodes took the blob in from others, so that much left somebody's uplink.
    assert run["uploads"]["mean"] * 3 >= 2 * 8 * 1024 * 1024
    assert crowd["median"] >= 0.95 * crowd["bound"]
    assert leftovers(tmp_path) == []


def test_a_killed_bench_is_cleaned_up_by_the_next(command: list[str], tmp_path: Path) -> None:
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (NAMESPACES / f"{PREFIX}n3").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2.0)  # Ray's processes are on their way up
    first.kill()
    first.wait(10)
    assert leftovers(tmp_path) != []
    second = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(4.0)
    assert second.poll() is None, "the second one does not start"
    second.send_signal(signal.SIGINT)
    second.wait(60)
    assert leftovers(tmp_path) == []
