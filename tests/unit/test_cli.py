"""What the command line says when it is used wrongly, and what needs no cluster."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from passel.cli import cluster, main, plan, processes, supervisor
from passel.cli.console import print_table, size
from passel.cli.supervisor import Supervisor
from passel.client.state import StateFolder
from passel.config import Config, dump, load
from passel.errors import ConfigError, PasselError
from passel.store import Store, fileio

PASSEL = str(Path(sys.executable).with_name("passel"))


def passel(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PASSEL, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stauts"], "Did you mean 'status'?"),
        (["status", "--jsn"], "--json"),
        (["up", "--nodes", "two"], "--nodes"),
        (["up", "--nodes", "2", "--zones", "3"], "--zones must be at most --nodes (2), got 3"),
        (["up", "--nodes", "2", "--seeds", "5"], "--seeds must be between 1 and --nodes (2)"),
        (["config", "check", "/nowhere.yaml"], "/nowhere.yaml"),
        (["up", "--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["get"], "what"),
        (["get", "what is this", "-o", "x"], "passel: "),
        (["demo", "--size", "12 parsecs"], "KiB, MiB, GiB"),
        (["demo", "--nodes", "1"], "--zones must be at most --nodes (1), got 2"),
        (["up", "--state", "/dev/null"], "/dev/null is not a folder"),
        (["sim", "--nodes", "0"], "--nodes: expected 1 to 100000, got 0"),
        (["sim", "--nodes", "3", "--zones", "4"], "--zones: expected at most nodes (3), got 4"),
        (["sim", "--trunk", "0 Gbit/s"], "--trunk: expected more than 0 bit/s"),
        (["sim", "--link", "10"], "--link: expected a number and one of kbit/s"),
        (["sim", "--policy", "magic"], "--policy: expected one of passel"),
        (["sim", "--faults", "melt p1"], "--faults: expected crash|slow"),
        (["sim", "--arrival", "trace /nowhere"], "/nowhere: no such file"),
        (["sim", "--compare", "/nowhere.json"], "--compare: expected"),
        (["sim", "--profile", "/nowhere.yaml"], "/nowhere.yaml"),
        (["sim", "plan", "--within", "soon"], "--within: expected a number and one of ms"),
        (["sim", "plan", "--within", "1 ms", "--nodes", "4"], "origin takes that long"),
        (["trace", "info", "/nowhere"], "/nowhere: no such file"),
        (["trace", "info", __file__], "torn or no trace"),
        (["trace", "record", "-o", "x", "--for", "ever"], "--for: expected a number"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(words: list[str], said: str) -> None:
    done = passel(*words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_typing_mistake_is_answered_once() -> None:
    assert passel("statsu").stderr.count("mean") == 1


def test_no_command_is_the_help_and_nothing_else() -> None:
    done = passel()
    assert done.returncode == 2
    assert "Usage" in done.stdout
    assert not done.stderr.strip()
    assert passel("--version").stdout.startswith("passel ")


def test_what_is_not_built_is_not_promised() -> None:
    names = {"up", "down", "status", "get", "demo", "config", "node"}
    names |= {
        "preheat",
        "jobs",
        "pin",
        "unpin",
        "schedules",
        "ls",
        "rm",
        "rotate",
        "drain",
        "fsck",
        "sim",
        "trace",
        "explain",
    }
    assert {
        command.name or command.callback.__name__ for command in main.app.registered_commands
    } | {group.name for group in main.app.registered_groups} == names


def test_purge_removes_nothing_but_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    done = passel("down", "--purge", "--state", str(tmp_path))
    assert done.returncode == 2
    assert "no state folder" in done.stderr
    assert (tmp_path / "precious").exists()


def test_a_disk_without_room_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fileio, "free_bytes", lambda folder: 200 * 1024)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(PasselError, match=r"no space in .*: 200 KiB are free"):
        cluster.start_cluster(StateFolder(tmp_path / "s"), None, 1, 1)


def test_a_folder_that_cannot_be_written_is_not_taken_for_a_running_cluster(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not cluster.supervisor_lives(StateFolder(tmp_path / "file" / "s"))
    (tmp_path / "s").mkdir()
    folder = StateFolder(tmp_path / "s")
    with folder.lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cluster.supervisor_lives(folder)
    assert not cluster.supervisor_lives(folder)


def test_who_comes_second_says_so_and_touches_nothing(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with folder.lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        words = ["--state", str(tmp_path), "--nodes", "1", "--zones", "1"]
        child = subprocess.Popen([sys.executable, "-m", "passel.cli.supervisor", *words])
        assert child.wait() == supervisor.RUNS_ALREADY
        # As if the other one had come up in the meantime.
        folder.ready.touch()
        with pytest.raises(PasselError, match=r"runs in .* already"):
            cluster._wait_until_ready(folder, child)
        # Or the other one took ours for a leftover of an earlier cluster, which it ends.
        child = subprocess.Popen(["sleep", "60"])
        child.terminate()
        child.wait()
        with pytest.raises(PasselError, match=r"runs in .* already"):
            cluster._wait_until_ready(folder, child)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "ready"]


def test_a_reader_that_has_enough_is_no_error() -> None:
    done = subprocess.run(
        f"{PASSEL} config show --defaults | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    assert not done.stderr


class Mender(Supervisor):
    """A supervisor of nothing, whose look goes as the test has it."""

    def __init__(self, path: Path, owner: int | None, looks: list[Exception | None]) -> None:
        super().__init__(StateFolder(path), Config(), [], owner)
        self.looks = looks

    def _mend(self) -> None:
        look = self.looks.pop(0)
        self.stopping = not self.looks
        if look is not None:
            raise look


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.0)
    yield
    shutil.rmtree(processes.socket_folder(tmp_path), ignore_errors=True)


@pytest.mark.usefixtures("at_once")
def test_a_full_disk_does_not_take_the_cluster_down(tmp_path: Path) -> None:
    looks = [OSError(errno.ENOSPC, "no space"), supervisor.StartFailed("no"), None]
    mender = Mender(tmp_path, None, looks)
    mender.watch()
    assert looks == []


@pytest.mark.usefixtures("at_once")
def test_a_cluster_that_is_bound_ends_with_its_command(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    mender = Mender(tmp_path, child.pid, [None, None])
    child.kill()
    child.wait()
    mender.watch()
    assert len(mender.looks) == 2, "it did not look once more"
    Mender(tmp_path, os.getpid(), [None]).watch()


@pytest.mark.usefixtures("at_once")
def test_a_store_of_somebody_else_is_said_before_anything_starts(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    starting = Supervisor(state, Config(), plan.plan_nodes(1, 1))
    owner = f"in use by process {os.getpid()}"
    with (
        Store.open(state.node(1).store, 1 << 30),
        pytest.raises(supervisor.StartFailed, match=owner),
    ):
        starting.start()
    (state.node(1).store / "format").write_text("passel store 99\n")
    with pytest.raises(supervisor.StartFailed, match="has format 99"):
        starting.start()
    assert processes.find(tmp_path) == []


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
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1023.7, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (99.96 * 1024, "100 KiB"),
        (256 << 20, "256 MiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_sizes_are_readable(n_bytes: int, text: str) -> None:
    assert size(n_bytes) == text


def test_a_table_has_whole_cells_when_it_is_piped(capsys: pytest.CaptureFixture[str]) -> None:
    cells = ["n1", "http://127.0.0.1:65001", *["1000 MiB"] * 12]
    print_table(["node", "gateway", *(f"column {i}" for i in range(12))], [cells], n_left=2)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["node", "gateway", "column"]
    assert row.split() == " ".join(cells).split()
    assert "\x1b" not in head + row


def test_sim_prints_facts_and_writes_a_trace_that_can_be_compared(tmp_path: Path) -> None:
    trace, facts = tmp_path / "t.parquet", tmp_path / "facts.json"
    words = ["sim", "--nodes", "6", "--zones", "2", "--blob", "3 MiB"]
    done = passel(*words, "--trace", str(trace), "--json")
    assert done.returncode == 0, done.stderr
    facts.write_text(done.stdout)
    found = json.loads(done.stdout)
    assert found["finished"] == 6
    assert found["bytes"]["origin"] == 3 << 20
    assert found["bound"]["binding"] == "origin"
    for other in (trace, facts):
        table = passel(*words, "--compare", str(other))
        assert table.returncode == 0, table.stderr
        assert "compared" in table.stdout
        assert table.stdout.count("6 of 6") == 2
    told = json.loads(passel("trace", "info", str(trace), "--json").stdout)
    assert told["kinds"]["piece"] == 6 * 3
    assert told["rollout"]["makespan_s"] == pytest.approx(found["makespan_s"], abs=1e-6)
    merged = tmp_path / "m.parquet"
    assert passel("trace", "merge", str(trace), "-o", str(merged)).returncode == 0
    lines = passel("trace", "export", str(merged)).stdout.splitlines()
    assert len(lines) == told["rows"]


def test_policies_are_compared_like_with_like() -> None:
    names = ("passel", "kraken-like", "direct")
    options = [word for name in names for word in ("--policy", name)]
    done = passel("sim", "--nodes", "40", "--zones", "2", "--blob", "16 MiB", "--json", *options)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [each["policy"] for each in facts] == list(names)
    assert {each["engine"] for each in facts} == {"rounds"}
    assert facts[0]["makespan_s"] < facts[1]["makespan_s"] < facts[2]["makespan_s"]
