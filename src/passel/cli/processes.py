"""The processes of one cluster on this machine, found in /proc whatever became of their parents."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from passel.client.state import StateFolder
from passel.errors import StoreError
from passel.store import fileio

#: Unix socket paths end here. Source: unix(7), `sun_path`.
SOCKET_PATH_MAX = 107
_RAY_PROGRAMS = ("raylet", "gcs_server")
_PR_SET_CHILD_SUBREAPER = 36
_MNT_DETACH = 2


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart from a later one with the same pid by its start time (clock ticks)."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return identify(self.pid) == self

    def send(self, number: int) -> None:
        """Send a signal, if it is still this process."""
        if self.alive:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def identify(pid: int) -> Process | None:
    """The process `pid`, or None when there is none, or only a zombie."""
    fields = _stat(pid)
    if fields is None or fields[0] in (b"Z", b"X"):
        return None
    return Process(pid, int(fields[19]))


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/<pid>/stat from the third (the state) on. Source: proc(5)."""
    content = _read(f"/proc/{pid}/stat")
    return content.rpartition(b")")[2].split() if content else None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def argv_of(pid: int) -> list[str]:
    """The command line; of Ray's workers it is only a title."""
    return [part.decode("utf-8", "replace") for part in _read(f"/proc/{pid}/cmdline").split(b"\0")]


def find(state: Path, *, node: str | None = None) -> list[Process]:
    """Everything that was started for the cluster in `state`, or for one node of it.

    A process counts when it is one of our programs or Ray's and names the folder, or when it
    carries the environment that nodes are started with. A shell in which somebody exported
    ``PASSEL_STATE``, or an editor with a log open, is neither. This process and its ancestors never
    count.
    """
    spared = _ancestors()
    found: list[Process] = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in spared:
            continue
        pid = int(name)
        if _is_ours(pid, str(state), node):
            process = identify(pid)
            if process is not None:
                found.append(process)
    return found


def _is_ours(pid: int, state: str, node: str | None) -> bool:
    environ = _read(f"/proc/{pid}/environ").split(b"\0")
    if f"PASSEL_STATE={state}".encode() in environ:
        if node is not None:
            if f"PASSEL_NODE={node}".encode() in environ:
                return True
        elif any(part.startswith(b"PASSEL_NODE=") for part in environ):
            return True
    if node is not None:
        return False
    argv = argv_of(pid)
    if argv and argv[0].startswith("ray::"):
        # Ray's workers and agents write their titles over the command line, and over the beginning
        # of the environment behind it; but their logs and sockets lie in the folder.
        return _has_open(pid, f"{state}/")
    ours = any(part.startswith("passel.") for part in argv[1:4])
    rays = Path(argv[0]).name in _RAY_PROGRAMS or any("/ray/" in part for part in argv[1:3])
    return (ours or rays) and any(_names(part, state) for part in argv)


def _has_open(pid: int, prefix: str) -> bool:
    """Whether a process has a file open whose path begins like that."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for number in numbers:
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{number}").startswith(prefix):
                return True
    return False


def _names(argument: str, state: str) -> bool:
    """Whether an argument is the folder, or a path in it, perhaps after ``--option=``."""
    value = argument.partition("=")[2] if argument.startswith("--") else argument
    return value == state or value.startswith(f"{state}/")


def _ancestors() -> set[int]:
    pids = {os.getpid()}
    pid = os.getppid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        fields = _stat(pid)
        pid = int(fields[1]) if fields else 0
    return pids


def end(state: Path, grace_s: float, timeout_s: float = 10.0) -> list[Process]:
    """Ask everything of the cluster to end, kill what does not; what is left after that."""
    now = time.monotonic()
    kill_at, give_up_at = now + grace_s, now + grace_s + timeout_s
    asked: set[Process] = set()
    while True:
        left = find(state)
        if not left or time.monotonic() > give_up_at:
            return left
        for process in left:
            if time.monotonic() > kill_at:
                process.send(signal.SIGKILL)
            elif process not in asked:
                asked.add(process)
                process.send(signal.SIGTERM)
        reap()
        time.sleep(0.05)


def reap(spare: frozenset[int] = frozenset()) -> None:
    """Take away the zombies among our children that nobody else waits for."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in spare:
            return
        with suppress(ChildProcessError):
            os.waitpid(found.si_pid, os.WNOHANG)


def become_subreaper() -> None:
    """Orphans among our descendants become our children, so that none stays as a zombie.

    Where that is not to be had, they go to init as ever. Source: prctl(2).
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def socket_folder(state: Path) -> Path:
    """Where Ray's sockets of this cluster lie: paths of sockets must be short, states need not."""
    name = f"passel-{os.getuid()}-{hashlib.sha256(str(state).encode()).hexdigest()[:12]}"
    base = tempfile.gettempdir()
    return Path(base if len(base) < 40 else "/tmp") / name


def make_socket_folder(state: Path) -> Path:
    """The folder exists, is ours, and nobody else can get in. Raises StoreError."""
    folder = socket_folder(state)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StoreError(f"{folder} belongs to somebody else: take it away")
    folder.chmod(0o700)
    return folder


def unmount_below(state: Path) -> list[str]:
    """Mounts in the state folder are gone; their mount points."""
    points = [line.split(b" ")[4] for line in _read("/proc/self/mountinfo").splitlines()]
    inside = [
        os.fsdecode(point.decode("unicode_escape").encode("latin-1"))
        for point in points
        if point.startswith(os.fsencode(f"{state}/"))
    ]
    for point in sorted(inside, reverse=True):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(point), _MNT_DETACH)
    return inside


def sweep(state: StateFolder) -> None:
    """What processes leave behind and a later start would stumble over. Stores and logs stay."""
    unmount_below(state.path)
    fileio.remove_tree(socket_folder(state.path))
    for folder in state.nodes():
        for leftover in (folder.door, folder.gateway_note, folder.path / "peer.json"):
            leftover.unlink(missing_ok=True)
        folder.facts.unlink(missing_ok=True)
    for leftover in (state.ready, state.failed, state.progress, state.supervisor):
        leftover.unlink(missing_ok=True)
    if state.ray.exists():
        fileio.remove_tree(state.ray)
