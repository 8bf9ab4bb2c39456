"""`passel up`, `down`, `status`: a cluster on this machine, for trial and test."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from passel.cli import plan, processes
from passel.cli.console import (
    USAGE,
    err,
    errors_are_sentences,
    fail,
    out,
    print_json,
    print_table,
    size,
)
from passel.cli.supervisor import RUNS_ALREADY
from passel.client.state import StateFolder, default_state, read_json
from passel.client.status import cluster_status
from passel.config import load, missing_files
from passel.errors import ConfigError, PasselError
from passel.store import fileio
from passel.transport.certificates import check_available

UP_TIMEOUT_S = 120.0
DOWN_TIMEOUT_S = 20.0
#: Below this not even notes, sockets and the first logs of Ray can be written.
ROOM_BYTES = 16 * 1024 * 1024

StateOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the cluster: logs, sockets, stores. [PASSEL_STATE]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]


def state_folder(state: Path | None) -> StateFolder:
    return StateFolder(state.absolute() if state is not None else default_state())


def up(
    config: Annotated[Path | None, typer.Option(help="The configuration (YAML).")] = None,
    nodes: Annotated[int, typer.Option(help="Nodes to start on this machine.")] = 1,
    zones: Annotated[int, typer.Option(help="Zones that they are spread over.")] = 1,
    seeds: Annotated[int | None, typer.Option(help="Seed peers among them.")] = None,
    state: StateOption = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and take all down at the end.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Start nodes on this machine; return when all of them answer."""
    folder = state_folder(state)
    with errors_are_sentences():
        start_cluster(folder, config, nodes, zones, seeds, bound=foreground)
        facts = cluster_status(folder)
        if as_json:
            print_json(facts)
        else:
            print_nodes(facts)
        if foreground:
            _stay(folder)


def start_cluster(
    folder: StateFolder,
    config: Path | None,
    nodes: int,
    zones: int,
    seeds: int | None = None,
    *,
    bound: bool = False,
) -> None:
    """All nodes answer. Raises ConfigError or PasselError, and then nothing is left running.

    `bound`: the cluster ends when this process does, however that comes about.
    """
    plan.plan_nodes(nodes, zones)
    plan.check_seeds(seeds, nodes)
    plan.check_state(folder, nodes)
    if config is not None:
        missing = missing_files(load(config))
        if missing:
            raise ConfigError("\n".join(f"{config}: {each}" for each in missing))
        if load(config).peer.tls:
            check_available()
    _check_ray()
    for note in (folder.ready, folder.failed, folder.progress):
        if not supervisor_lives(folder):
            note.unlink(missing_ok=True)
    if supervisor_lives(folder):
        raise _runs_already(folder)
    command = [sys.executable, "-m", "passel.cli.supervisor", "--state", str(folder.path)]
    command += ["--nodes", str(nodes), "--zones", str(zones)]
    if config is not None:
        command += ["--config", str(config.absolute())]
    if seeds is not None:
        command += ["--seeds", str(seeds)]
    if bound:
        command += ["--owner", str(os.getpid())]
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_room(folder)
    with folder.log.open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_ready(folder, child)
    except BaseException:
        # Somebody else's cluster is left alone.
        if not _came_second(folder, child):
            stop_cluster(folder)
        raise


def _came_second(folder: StateFolder, child: subprocess.Popen[bytes]) -> bool:
    """Whether another supervisor has the folder: ours says so, or was ended by it as a leftover."""
    status = child.poll()
    return status == RUNS_ALREADY or (status is not None and supervisor_lives(folder))


def _runs_already(folder: StateFolder) -> PasselError:
    pid = read_json(folder.supervisor).get("pid")
    whose = "" if pid is None else f" (supervisor {pid})"
    return PasselError(
        f"a cluster runs in {folder.path} already{whose}: say passel down first,"
        " or choose another folder with --state"
    )


def _check_room(folder: StateFolder) -> None:
    free = fileio.free_bytes(folder.path)
    if free < ROOM_BYTES:
        raise PasselError(
            f"no space in {folder.path}: {size(free)} are free, the logs alone want"
            f" {size(ROOM_BYTES)}; choose another folder with --state"
        )


def _check_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray is not installed in this environment: pip install ray")


def _wait_until_ready(folder: StateFolder, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + UP_TIMEOUT_S
    shown = 0
    with err.status("starting") if err.is_terminal else contextlib.nullcontext() as status:
        while True:
            if _came_second(folder, child):
                raise _runs_already(folder)
            if folder.ready.exists():
                return
            if folder.failed.exists():
                raise PasselError(folder.failed.read_text(encoding="utf-8").strip())
            if child.poll() is not None and not folder.failed.exists():
                raise PasselError(f"the supervisor ended at once, see {folder.log}")
            if time.monotonic() > deadline:
                raise PasselError(f"not up within {UP_TIMEOUT_S:g} s, see {folder.log}")
            for line in _progress(folder, shown):
                shown += 1
                if status is not None:
                    status.update(line)
            time.sleep(0.1)


def _progress(folder: StateFolder, skip: int) -> Iterator[str]:
    if folder.progress.exists():
        yield from folder.progress.read_text(encoding="utf-8").splitlines()[skip:]


def _stay(folder: StateFolder) -> None:
    err.print("passel: running, Ctrl-C ends it", markup=False)
    try:
        while supervisor_lives(folder):
            time.sleep(0.5)
        raise PasselError(f"the supervisor has ended, see {folder.log}")
    finally:
        stop_cluster(folder)


def supervisor_lives(folder: StateFolder) -> bool:
    """Whether somebody holds the lock of the folder."""
    try:
        with folder.lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # There is no lock, or none that we may look at: starting will say so.
        return False
    return False


def down(
    state: StateOption = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove the stores and logs too.")] = False,
) -> None:
    """End everything that `up` started, also after a crash of anything."""
    folder = state_folder(state)
    with errors_are_sentences():
        if not folder.path.is_dir():
            err.print(f"passel: there is no cluster in {folder.path}", markup=False)
            return
        if purge and not folder.is_used:
            fail(f"{folder.path} is no state folder of passel: nothing is removed", USAGE)
        stop_cluster(folder)
        if purge:
            fileio.remove_tree(folder.path)


def stop_cluster(folder: StateFolder) -> None:
    """Nothing of the cluster runs any more. Idempotent."""
    pid = read_json(folder.supervisor).get("pid")
    supervisor = processes.identify(pid) if isinstance(pid, int) else None
    if supervisor is not None and supervisor_lives(folder):
        supervisor.send(signal.SIGTERM)
        deadline = time.monotonic() + DOWN_TIMEOUT_S
        while supervisor.alive and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(supervisor.pid, os.WNOHANG)
            time.sleep(0.05)
    if not folder.path.is_dir():
        return
    left = processes.end(folder.path, grace_s=0.5)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise PasselError(f"these processes do not end: {pids}")
    processes.sweep(folder)


def status(state: StateOption = None, as_json: JsonOption = False) -> None:
    """What runs, where, and where its bytes came from."""
    folder = state_folder(state)
    with errors_are_sentences():
        facts = cluster_status(folder)
        if as_json:
            print_json(facts)
            return
        if not facts["nodes"]:
            fail(f"no cluster in {folder.path}: start one with passel up, or name its --state")
        print_nodes(facts)
        shards = ", ".join(f"{each['shard']} on {each['node']}" for each in facts["shards"])
        out.print(f"shards: {shards or 'none answers'}; blobs: {facts['blobs']}")


def _role(node: dict[str, Any]) -> str:
    role = (node["role"] or "") if node["alive"] else "down"
    return f"{role}, drains" if node.get("draining") else role


def print_nodes(facts: dict[str, Any]) -> None:
    """A table, one line for each node."""
    sources = ("local", "peer", "seed", "origin")
    print_table(
        ("node", "zone", "role", "gateway", *sources),
        (
            (
                node["node"],
                node["zone"],
                _role(node),
                node["gateway"] or "",
                *(size(node["bytes"][source]) for source in sources),
            )
            for node in facts["nodes"]
        ),
        n_left=4,
    )
    for node in facts["nodes"]:
        if node.get("trouble"):
            out.print(f"{node['node']}: {node['trouble']}", markup=False)
    config = facts.get("config") or {}
    if config.get("version"):
        behind = ", ".join(
            node["node"]
            for node in facts["nodes"]
            if set((node.get("config") or {}).values()) != {config["version"]}
        )
        rest = f"; not yet on {behind}" if behind else ""
        out.print(f"configuration: version {config['version']}{rest}", markup=False)
