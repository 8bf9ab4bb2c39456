"""The gateway of this host as a process of its own: started once, found again, ended.

Whoever starts a gateway here leaves a record beside the gateway's note. By it a later start knows
whether the one that runs is its own and has the same configuration. One that somebody else looks
after (systemd, the node's peer) has no record, and is left to them.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from passel._version import __version__
from passel.cli import processes
from passel.cli.processes import Process
from passel.client.exchange import to_gateway
from passel.client.state import read_json
from passel.config import Config, dump
from passel.errors import PasselError

START_TIMEOUT_S = 20.0
#: A gateway lets running answers finish for 5 s.
STOP_TIMEOUT_S = 8.0
PING_TIMEOUT_S = 2.0
LOG_BYTES = 4 * 1024 * 1024


class NodeGateway:
    """The gateway that belongs to a configuration on this host."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.folder = config.store.path.parent
        self.log = self.folder / "gateway.log"
        self._note = self.folder / "gateway.json"
        self._record = self.folder / "gateway.started.json"

    @property
    def address(self) -> str | None:
        """The base URL for clients, as the gateway announced it."""
        found = read_json(self._note).get("gateway")
        return found if isinstance(found, str) else None

    def process(self) -> Process | None:
        """The gateway that runs for this store, whoever started it."""
        pid = read_json(self._note).get("pid")
        process = processes.identify(pid) if isinstance(pid, int) else None
        if process is None or "passel.gateway" not in processes.argv_of(process.pid):
            return None
        return process

    def start(self, config_path: Path, name: str) -> bool:
        """It answers; whether it had to be started. Raises PasselError.

        One that was started here with another configuration, or by another version, is replaced.
        """
        running = self.process()
        # One that answers and is no process here runs in another container of this host.
        if self._answers() and (running is None or not self._is_outdated(running)):
            return False
        if running is not None:
            self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        command = [sys.executable, "-m", "passel.gateway"]
        command += ["--config", str(config_path.absolute()), "--node", name]
        with self.log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if not self._await(child):
            return False
        self._record.write_text(json.dumps({"pid": child.pid, "of": self._fingerprint()}))
        return True

    def _await(self, child: subprocess.Popen[bytes]) -> bool:
        """Whether it is the child that answers; False when somebody else was quicker."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while read_json(self._note).get("pid") != child.pid or not self._answers():
            if child.poll() is not None:
                # The node's peer starts one too when it finds none for some seconds.
                if self._answers():
                    return False
                if self._is_locked() and time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                raise PasselError(f"the gateway does not start: {_last_line(self.log)}")
            if time.monotonic() > deadline:
                child.kill()
                raise PasselError(
                    f"the gateway does not answer within {START_TIMEOUT_S:g} s, see {self.log}"
                )
            time.sleep(0.05)
        return True

    def _answers(self) -> bool:
        address = self.address
        if address is None:
            return False
        try:
            with to_gateway(address, PING_TIMEOUT_S) as exchange:
                exchange.send("GET", "/server/ping", {})
                return exchange.answer.status == 200
        except (PasselError, OSError, http.client.HTTPException):
            return False

    def _is_locked(self) -> bool:
        """Whether a gateway of this node runs, or is about to."""
        try:
            with (self.folder / "gateway.lock").open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False

    def _is_outdated(self, running: Process) -> bool:
        record = read_json(self._record)
        return record.get("pid") == running.pid and record.get("of") != self._fingerprint()

    def _fingerprint(self) -> str:
        return hashlib.sha256(f"{__version__}\n{dump(self._config)}".encode()).hexdigest()

    def stop(self) -> bool:
        """It runs no more; whether there was one. Answers that are under way are finished."""
        running = self.process()
        if running is not None:
            running.send(signal.SIGTERM)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while running.alive and time.monotonic() < deadline:
                time.sleep(0.05)
            running.send(signal.SIGKILL)
        with suppress(FileNotFoundError):
            self._record.unlink()
        return running is not None


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"it says nothing in {path}"
