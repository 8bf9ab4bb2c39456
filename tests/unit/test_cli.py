"""What the command line says when it is used wrongly, and what needs no cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from passel.cli import plan
from passel.cli.console import size
from passel.client.state import StateFolder
from passel.config import Config, dump, load
from passel.errors import ConfigError

PASSEL = str(Path(sys.executable).with_name("passel"))


def passel(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PASSEL, *words], capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stauts"], "Did you mean 'status'?"),
        (["status", "--jsn"], "--json"),
        (["up", "--nodes", "two"], "--nodes"),
        (["up", "--nodes", "2", "--zones", "3"], "--zones must be at most --nodes (2), got 3"),
        (["up", "--nodes", "2", "--seeds", "5"], "--seeds must be between 1 and --nodes (2)"),
        (["config", "check", "/nowhere.yaml"], "/nowhere.yaml"),
        (["get"], "what"),
        (["get", "what is this", "-o", "x"], "passel: "),
        (["demo", "--size", "12 parsecs"], "KiB, MiB, GiB"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(words: list[str], said: str) -> None:
    done = passel(*words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_cluster_is_a_failure_that_says_what_to_do(tmp_path: Path) -> None:
    done = passel("status", "--state", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "passel up" in done.stderr
    assert passel("down", "--state", str(tmp_path / "none")).returncode == 0


def test_config_show_defaults_reads_back(tmp_path: Path) -> None:
    done = passel("config", "show", "--defaults")
    assert done.returncode == 0
    path = tmp_path / "shown.yaml"
    path.write_text(done.stdout)
    assert dump(load(path)) == dump(Config())
    assert passel("config", "check", str(path)).returncode == 0


def test_zones_have_nearly_the_same_size() -> None:
    zones = [node.zone for node in plan.plan_nodes(7, 3)]
    assert zones == ["a", "a", "a", "b", "b", "c", "c"]
    assert [node.name for node in plan.plan_nodes(2, 1)] == ["n1", "n2"]


def test_node_1_has_the_configured_ports_and_the_others_free_ones(tmp_path: Path) -> None:
    first = plan.node_config(Config(), 1, tmp_path / "n1")
    second = plan.node_config(Config(), 2, tmp_path / "n2")
    assert "127.0.0.1:65001" in first.gateway.listen
    assert set(second.gateway.listen) == {"127.0.0.1:0"}
    assert second.store.path == tmp_path / "n2"


def test_a_state_folder_whose_sockets_would_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="too long"):
        plan.check_state(StateFolder(Path("/" + "x" * 120)), 4)


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_are_readable(n_bytes: int, text: str) -> None:
    assert size(n_bytes) == text
