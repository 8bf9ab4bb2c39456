"""``python -m passel.cli.supervisor``: starts the nodes of one cluster on this machine.

It keeps them up. Its children are gateways and Ray's processes. A gateway or a raylet that dies is
started again; peers and shards are Ray's and the controller's business. When Ray's control store
dies, all of Ray is started anew: stores and gateways stay. SIGTERM takes everything down.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any

from passel.cli import plan, processes
from passel.cli.plan import NodePlan
from passel.cli.processes import Process, identify
from passel.client.exchange import fetch_json, to_socket
from passel.client.state import NodeFolder, StateFolder, read_json
from passel.config import Config, dump, load
from passel.config.live import applied_path
from passel.errors import ConfigError, PasselError, StoreError
from passel.store import Store
from passel.telemetry.logs import LineFormatter

log = logging.getLogger("passel.cli.supervisor")

#: Exit status of a supervisor that came second.
RUNS_ALREADY = 3
GATEWAY_TIMEOUT_S = 20.0
RAY_TIMEOUT_S = 60.0
PEER_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.3
LOG_BYTES = 4 * 1024 * 1024
STARTS_MAX = 4
STARTS_WITHIN_S = 10.0
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray gives a raylet up after this many failed checks; with its own 5 times 3 s a controller
    # whose node died would be away for 15 s. A raylet that is only slow does not fail a check: it
    # has 10 s for its answer. Source: ray_config_def.h.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # Ray's own 15 would put peers behind everything else on the machine, and clients wait for them.
    "RAY_worker_niceness": "0",
}


class StartFailed(PasselError):
    """The cluster could not be started; the sentence is for the user."""


class RunningNode:
    """One node's processes."""

    def __init__(self, node: NodePlan, folder: NodeFolder, labels: dict[str, str]) -> None:
        self.plan = node
        self.folder = folder
        self.labels = labels
        self.gateway: Process | None = None
        self.raylet: Process | None = None
        self.incarnation = 0
        self._starts: list[float] = []

    def may_start(self) -> bool:
        """At most four starts in ten seconds: what dies at once again must not spin."""
        now = time.monotonic()
        self._starts = [at for at in self._starts if at > now - STARTS_WITHIN_S]
        if len(self._starts) >= STARTS_MAX:
            return False
        self._starts.append(now)
        return True


class Supervisor:
    """One cluster: `start`, then `watch` until told to stop, then `stop`."""

    def __init__(
        self, state: StateFolder, config: Config, nodes: list[NodePlan], owner: int | None = None
    ) -> None:
        self.state = state
        self.config = config
        #: The command that the cluster lives for; None: it outlives its command.
        self.owner = identify(owner) if owner is not None else None
        self.is_owned = owner is not None
        self.nodes = [
            RunningNode(
                node,
                state.node(node.number),
                {"passel/node": node.name, "ray.io/availability-zone": node.zone},
            )
            for node in nodes
        ]
        self.gcs = ""
        self.gcs_process: Process | None = None
        self.sockets = processes.make_socket_folder(state.path)
        self.stopping = False

    # --- starting -------------------------------------------------------------------------------

    def start(self) -> None:
        """All nodes answer, or StartFailed."""
        self._write_configs()
        self._try_stores()
        for node in self.nodes:
            self._start_gateway(node)
        self._say("gateways listen")
        self._start_ray()
        self._wait_for_peers()

    def _write_configs(self) -> None:
        _write(self.state.config, dump(self.config))
        self._make_token()
        for node in self.nodes:
            folder = node.folder
            folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            config = plan.node_config(self.config, node.plan.number, folder.store)
            config = plan.with_token(config, self.state.api_token)
            # What was applied to the cluster that was here before does not count for this one.
            applied_path(config).unlink(missing_ok=True)
            _write(folder.config, dump(config))
            _write(folder.facts, json.dumps({"node": folder.name, "zone": node.plan.zone}))

    def _make_token(self) -> None:
        """Once in the life of the folder: whoever calls the API has the token written down."""
        with suppress(FileExistsError):
            file = os.open(self.state.api_token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(file, "w") as token:
                token.write(secrets.token_urlsafe(32) + "\n")

    def _try_stores(self) -> None:
        """Say at once what a peer could say only in its log, after having been started in vain."""
        store = self.config.store
        for node in self.nodes:
            try:
                Store.open(node.folder.store, int(store.capacity), int(store.reserve)).close()
            except StoreError as error:
                raise StartFailed(str(error)) from error

    def _start_gateway(self, node: RunningNode) -> None:
        # The note of a gateway that died stays: the next one takes its ports, which clients know.
        command = [sys.executable, "-m", "passel.gateway", "--config", str(node.folder.config)]
        command += ["--state", str(self.state.path), "--node", node.folder.name]
        with _log_file(node.folder.gateway_log) as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self._environment(node.folder),
            )
        deadline = time.monotonic() + GATEWAY_TIMEOUT_S
        while read_json(node.folder.gateway_note).get("pid") != child.pid:
            if child.poll() is not None:
                said = _last_line(node.folder.gateway_log).removeprefix("passel gateway: ")
                raise StartFailed(f"the gateway of {node.folder.name} {said}")
            if time.monotonic() > deadline:
                raise StartFailed(f"the gateway of {node.folder.name} does not come up")
            time.sleep(0.02)
        node.gateway = identify(child.pid)

    def _environment(self, folder: NodeFolder) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= {
            "PASSEL_CONFIG": str(folder.config),
            "PASSEL_STATE": str(self.state.path),
            "PASSEL_NODE": folder.name,
            **RAY_SETTINGS,
        }
        return environment

    def _start_ray(self) -> None:
        self.gcs = ""
        for node in self.nodes:
            self._start_raylet(node)
            self._say(f"Ray node {node.folder.name} is up")
        command = [sys.executable, "-m", "passel.cli.launcher", "--gcs", self.gcs]
        command += ["--config", str(self.state.config)]
        environment = self._environment(self.nodes[0].folder)
        self._run(command, environment, "passel cannot be started in Ray")
        self._say("the controller is up")

    def _start_raylet(self, node: RunningNode) -> None:
        node.incarnation += 1
        command = [sys.executable, "-m", "passel.cli.raynode", "--state", str(self.state.path)]
        command += ["--node", node.folder.name, "--labels", json.dumps(node.labels)]
        command += ["--sockets", str(self.sockets), "--incarnation", str(node.incarnation)]
        if self.gcs:
            command += ["--gcs", self.gcs]
        said = self._run(command, self._environment(node.folder), "Ray does not start")
        try:
            facts: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        except (ValueError, IndexError) as error:
            raise StartFailed(f"Ray does not start, see {self.state.log}") from error
        pids = facts["pids"]
        node.raylet = identify(pids["raylet"])
        if not self.gcs:
            self.gcs = facts["gcs"]
            self.gcs_process = identify(pids["gcs_server"])

    def _run(self, command: list[str], environment: dict[str, str], what: str) -> str:
        with _log_file(self.state.log) as errors:
            begun = errors.tell()
            try:
                done = subprocess.run(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    timeout=RAY_TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise StartFailed(f"{what} within {RAY_TIMEOUT_S:g} s") from error
        if done.returncode != 0:
            said = _said_since(self.state.log, begun)
            raise StartFailed(f"{what}{': ' if said else ''}{said} (see {self.state.log})")
        return done.stdout

    def _wait_for_peers(self) -> None:
        deadline = time.monotonic() + PEER_TIMEOUT_S
        for node in self.nodes:
            while not _peer_answers(node.folder):
                if time.monotonic() > deadline:
                    raise StartFailed(
                        f"the peer of {node.folder.name} does not answer, see the files"
                        f" worker-*.err in {self.state.ray}/session_latest/logs"
                    )
                time.sleep(0.1)
            self._say(f"peer {node.folder.name} answers")

    def _say(self, text: str) -> None:
        log.info("%s", text)
        with self.state.progress.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    # --- keeping --------------------------------------------------------------------------------

    def watch(self) -> None:
        """Until told to stop, or left by the owner: whatever dies is started again."""
        while not self.stopping and not self._is_orphaned():
            processes.reap()
            try:
                self._mend()
            except (StartFailed, OSError) as error:
                # A full disk, say. What runs goes on running, and the next look may do better.
                log.error("not_mended why=%s", error)
            time.sleep(LOOK_EVERY_S)

    def _is_orphaned(self) -> bool:
        return self.is_owned and (self.owner is None or not self.owner.alive)

    def _mend(self) -> None:
        if self.gcs_process is None or not self.gcs_process.alive:
            log.warning("ray_died all of Ray is started again")
            self._end_ray()
            self._start_ray()
            return
        # Gateways first: they are back in half a second, and clients hang on them.
        for node in self.nodes:
            if not self._gateway_lives(node) and node.may_start():
                log.warning("gateway_died node=%s", node.folder.name)
                self._start_gateway(node)
        for node in self.nodes:
            if (node.raylet is None or not node.raylet.alive) and node.may_start():
                log.warning("raylet_died node=%s", node.folder.name)
                self._start_raylet(node)

    def _gateway_lives(self, node: RunningNode) -> bool:
        """Ours, or one that the peer started in the meantime."""
        if node.gateway is not None and node.gateway.alive:
            return True
        pid = read_json(node.folder.gateway_note).get("pid")
        other = identify(pid) if isinstance(pid, int) else None
        if other is not None and "passel.gateway" in processes.argv_of(other.pid):
            node.gateway = other
            return True
        return False

    def _end_ray(self) -> None:
        spared = {node.gateway.pid for node in self.nodes if node.gateway is not None}
        for process in processes.find(self.state.path):
            if process.pid not in spared:
                process.send(signal.SIGKILL)
        processes.reap()

    # --- ending ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Nothing of the cluster runs any more; its sockets and notes are gone."""
        left = processes.end(self.state.path, grace_s=3.0)
        processes.reap()
        if left:
            log.error("still_running pids=%s", [process.pid for process in left])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text(text, encoding="utf-8")


def _log_file(path: Path) -> IO[bytes]:
    """The log, opened for appending; a full one becomes ``.1`` first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(path.suffix + ".1"))
    return path.open("ab")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended at once, see {path}"


def _said_since(path: Path, begun: int) -> str:
    """The last line of the log after that byte: of an error that is its gist."""
    with path.open("rb") as file:
        file.seek(begun)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def _peer_answers(folder: NodeFolder) -> bool:
    try:
        return bool(fetch_json(to_socket(folder.door, 2.0), "/v1/health"))
    except PasselError:
        return False


def _lock(state: StateFolder) -> IO[bytes]:
    """The supervisor's own lock; released by the kernel however this process ends.

    Raises BlockingIOError when another one has it.
    """
    state.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = state.lock.open("ab")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def run(state: StateFolder, config: Config, nodes: list[NodePlan], owner: int | None) -> int:
    """Start, watch, stop. Exit status 0 after SIGTERM, 1 when the start failed."""
    processes.become_subreaper()
    leftovers = processes.end(state.path, grace_s=1.0)
    if leftovers:
        raise StartFailed(f"processes of an earlier cluster in {state.path} do not end")
    processes.sweep(state)
    _write(state.supervisor, json.dumps({"pid": os.getpid(), "nodes": len(nodes)}))
    supervisor = Supervisor(state, config, nodes, owner)

    def stop(number: int, frame: object) -> None:
        supervisor.stopping = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    failure = ""
    try:
        supervisor.start()
        _write(state.ready, str(os.getpid()))
        log.info("ready")
        supervisor.watch()
    except KeyboardInterrupt:
        log.info("told to stop")
    except (StartFailed, OSError) as error:
        log.error("start_failed why=%s", error)
        failure = str(error)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        supervisor.stop()
        processes.sweep(state)
    if failure:
        _write(state.failed, failure)
    return 1 if failure else 0


def main() -> int:
    """The command line of this module; `passel up` writes it."""
    parser = argparse.ArgumentParser(prog="python -m passel.cli.supervisor", description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--zones", type=int, required=True)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--owner", type=int, help="end when this process ends")
    options = parser.parse_args()
    state = StateFolder(options.state)
    try:
        lock = _lock(state)
    except BlockingIOError:
        # Not a word in the folder: it is another cluster's.
        return RUNS_ALREADY
    try:
        handler = RotatingFileHandler(state.log, maxBytes=LOG_BYTES, backupCount=1)
        handler.setFormatter(LineFormatter())
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        config = load(options.config) if options.config else Config()
        shared = plan.cluster_config(config, options.seeds)
        with lock:
            nodes = plan.plan_nodes(options.nodes, options.zones)
            return run(state, shared, nodes, options.owner)
    except (StartFailed, ConfigError, OSError) as error:
        _write(state.failed, str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
