"""`passel node start` and `stop`: the gateway of a host, started once and found again."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from passel.cli.processes import identify

PASSEL = str(Path(sys.executable).with_name("passel"))


def write(folder: Path, **gateway: object) -> Path:
    settings = {
        "upstreams": {"lab": {"api": "http://127.0.0.1:9", "networks": ["127.0.0.0/8"]}},
        "store": {"path": str(folder / "store")},
        "gateway": {"listen": ["127.0.0.1:0"], "health": ["127.0.0.1:0"], **gateway},
    }
    path = folder / "passel.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def node(verb: str, config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PASSEL, "node", verb, "--config", str(config), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def note(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "gateway.json").read_text())
    return found


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    config = write(tmp_path)
    yield config
    node("stop", write(tmp_path))


def test_started_once_replaced_when_it_has_to_be_and_ended(config: Path) -> None:
    folder = config.parent
    done = node("start", config, "--name", "host7")
    assert done.returncode == 0, done.stderr
    first = note(folder)
    assert first["node"] == "host7"
    with urllib.request.urlopen(f"{first['gateway']}/server/ping", timeout=5) as answer:
        assert answer.status == 200
    again = node("start", config)
    assert "answers already" in again.stdout
    assert note(folder)["pid"] == first["pid"]
    # Another configuration: another process, at the address that clients know.
    write(folder, limits={"connections": 7})
    assert node("start", config).returncode == 0
    second = note(folder)
    assert second["pid"] != first["pid"]
    assert second["gateway"] == first["gateway"]
    assert "has ended" in node("stop", config).stdout
    pid = second["pid"]
    assert isinstance(pid, int)
    assert identify(pid) is None, "it still runs"
    assert "no gateway runs" in node("stop", config).stdout


def test_one_that_somebody_else_looks_after_is_left_alone(config: Path) -> None:
    command = [sys.executable, "-m", "passel.gateway", "--config", str(config)]
    other = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not (config.parent / "gateway.json").exists():
            assert other.poll() is None
            time.sleep(0.05)
        write(config.parent, limits={"connections": 7})
        assert "answers already" in node("start", config).stdout
        assert note(config.parent)["pid"] == other.pid
    finally:
        other.terminate()
        other.wait(10)


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = node("start", write(tmp_path, listen=[address]))
    assert done.returncode == 1
    assert f"cannot listen on {address}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = node("start", tmp_path / "nowhere.yaml")
    assert done.returncode == 2
    assert "nowhere.yaml: the configuration cannot be read" in done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("upstreams: {lab: {api: 'https://lab.corp', ca: corp.crt}}\n")
    done = node("start", wrong)
    assert done.returncode == 2
    assert "upstreams.lab.ca: there is no file" in done.stderr
