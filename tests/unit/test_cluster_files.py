"""The cluster files say nothing that Ray, a shell or passel's command line would not take."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from passel.cli.main import app
from passel.config import load

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def commands(cluster: dict[str, Any]) -> Iterator[str]:
    for key, value in cluster.items():
        if key.endswith("_commands"):
            yield from value


def test_the_file_at_the_top_is_the_one_for_own_hosts() -> None:
    assert (ROOT / "cluster.yaml").resolve() == ROOT / "configs" / "cluster" / "local.yaml"
    assert {path.name for path in FILES} == {"aws.yaml", "gcp.yaml", "local.yaml"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_takes_it(path: Path) -> None:
    folder = Path(ray.__file__).parent / "autoscaler"
    schema = json.loads((folder / "ray-schema.json").read_text())
    cluster = read(path)
    defaults = folder / cluster["provider"]["type"] / "defaults.yaml"
    jsonschema.validate({**yaml.safe_load(defaults.read_text()), **cluster}, schema)
    types = cluster.get("available_node_types")
    assert types is None or cluster["head_node_type"] in types


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_it_copies_is_there_and_is_a_configuration(path: Path) -> None:
    mounts = read(path)["file_mounts"]
    assert mounts["~/passel/wheel"] == "dist", "where `python -m build` puts the wheel"
    config = load(ROOT / mounts["~/passel/passel.yaml"])
    # The gateway's note, its log and its manifests lie beside the store, in a folder of passel's.
    assert config.store.path == Path("/var/lib/passel/store")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_its_commands_are_shell_and_passel_knows_its_own(path: Path) -> None:
    own = []
    for command in commands(read(path)):
        subprocess.run(["bash", "-n", "-c", command], check=True, timeout=10)
        if command.startswith("passel "):
            own.append(shlex.split(command)[1:])
    start = ["node", "start", "--config", "~/passel/passel.yaml"]
    assert own == [start, ["node", "start", "--head", *start[2:]], start]
    for words in own:
        # `--help` at the end: the options before it are parsed, and nothing is done.
        done = CliRunner().invoke(app, [*words, "--help"])
        assert done.exit_code == 0, done.output
    assert get_command(app).name == "passel"


def test_zones_of_own_hosts_follow_their_names() -> None:
    commands = read(ROOT / "cluster.yaml")["worker_start_ray_commands"]
    command = next(each for each in commands if "ray start" in each)
    choice = command.partition("ulimit")[0].replace("$(hostname)", "$NAME")
    for name, zone in (("rack-a7", "a"), ("rack-b12", "b"), ("head", "a")):
        done = subprocess.run(
            ["bash", "-c", f"{choice} echo $zone"],
            env={"NAME": name},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == zone
