"""A crash at every step: nothing unverified is readable afterwards, nothing verified is lost."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from unit import store_child
from unit.store_child import KEYS, PIECE, SIZES, content, live, open_store

from passel.errors import NoSpace, StoreError
from passel.store import StoreReader, fileio, layout, piecemap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Crash(BaseException):
    """The process is gone: no clean-up of the code under test runs for it."""


class CrashAt:
    """A hook that raises at the n-th step; counts them all."""

    def __init__(self, step: int, error: Callable[[], BaseException] = Crash) -> None:
        self.step = step
        self.count = 0
        self.at = ""
        self._error = error

    def __call__(self, operation: str, path: str, offset: int, length: int) -> None:
        self.count += 1
        if self.count == self.step:
            self.at = f"{operation} {path}"
            raise self._error()


class Notes:
    """What the store said was done."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, int]] = []

    def __call__(self, when: str, what: str, piece: int) -> None:
        self.lines.append((when, what, piece))

    def has(self, when: str, what: str, piece: int = 0) -> bool:
        return (when, what, piece) in self.lines

    def confirmed(self, name: str) -> set[int]:
        return {piece for when, what, piece in self.lines if what == f"confirm {name}"}


def readable(root: Path) -> dict[str, set[int]]:
    """Pieces that a reader is allowed to read; each is compared with the truth."""
    found: dict[str, set[int]] = {}
    reader = StoreReader(root)
    for name, key in KEYS.items():
        view = reader.view(key)
        if view is None:
            continue
        found[name] = set()
        truth = content(name, SIZES[name])
        assert view.size == len(truth)
        for piece in range(-(-view.size // PIECE)):
            start, stop = piece * PIECE, min((piece + 1) * PIECE, view.size)
            if view.covers(start, stop):
                assert os.pread(view.fd, stop - start, start) == truth[start:stop], (name, piece)
                found[name].add(piece)
        if view.complete:
            assert os.fstat(view.fd).st_size == view.size
            assert len(found[name]) == -(-view.size // PIECE)
        view.close()
    reader.close()
    return found


def check(root: Path, notes: Notes, quarantine_is_empty: bool = True) -> None:
    """Recover, and compare what is there with what was promised."""
    readable(root)
    store = open_store(root)
    try:
        found = readable(root)
        for name in ("whole", "part", "empty"):
            assert notes.confirmed(name) <= found.get(name, set()), name
        for name in ("whole", "empty", "evicted"):
            blob = store.complete(KEYS[name].digest)
            if blob is None:
                removed = notes.has("begin", f"remove {name}")
                assert removed or not notes.has("done", f"promote {name}"), name
                continue
            assert blob.path.read_bytes() == content(name, SIZES[name])
            pieces = [
                content(name, SIZES[name])[at : at + PIECE] for at in range(0, blob.size, PIECE)
            ]
            assert blob.piece_digests == tuple(hashlib.sha256(piece).digest() for piece in pieces)
            assert notes.has("begin", f"promote {name}")
            assert not notes.has("done", f"remove {name}")
        if notes.has("done", "discard dropped"):
            assert store.partial(KEYS["dropped"].id) is None
        expected = sum(SIZES[name] for name in found)
        assert store.used_bytes() == expected
    finally:
        store.close()
    assert not [path for path in root.rglob("*") if layout.is_temporary(path.name)]
    if quarantine_is_empty:
        assert not list((root / "quarantine").iterdir())


def check_the_rest(root: Path) -> None:
    """Life goes on from here, to the end that it has without a crash."""
    live(root, Notes()).close()
    found = readable(root)
    assert found == {"whole": {0, 1, 2, 3}, "part": {0, 1}, "empty": set()}


def crash_once(root: Path, step: int, notes: Notes) -> bool:
    """Whether the step was reached."""
    hook = CrashAt(step)
    try:
        with fileio.hooked(hook):
            live(root, notes).close()
    except Crash:
        return True
    assert hook.count < step
    return False


def count_steps(root: Path) -> int:
    hook = CrashAt(0)
    with fileio.hooked(hook):
        live(root, Notes()).close()
    assert hook.count > 60
    return hook.count


def test_crash_at_every_step(tmp_path: Path) -> None:
    step = 1
    while True:
        root, notes = tmp_path / f"{step}", Notes()
        if not crash_once(root, step, notes):
            break
        check(root, notes)
        check_the_rest(root)
        step += 1
    assert step > 60


def test_crash_at_every_step_and_again_while_recovering(tmp_path: Path) -> None:
    for step in range(1, count_steps(tmp_path / "count") + 1, 3):
        for again in (1, 2, 3, 5):
            root, notes = tmp_path / f"{step}-{again}", Notes()
            assert crash_once(root, step, notes)
            crash_once(root, again, notes)
            check(root, notes)


class Disk:
    """Remembers which bytes were written and not synced, by inode; then pulls the plug."""

    def __init__(self, step: int) -> None:
        self._crash = CrashAt(step)
        self._unsynced: dict[int, list[tuple[int, int]]] = {}

    def __call__(self, operation: str, path: str, offset: int, length: int) -> None:
        self._crash(operation, path, offset, length)
        if operation == "write":
            inode = Path(path).stat().st_ino
            self._unsynced.setdefault(inode, []).append((offset, length))
        elif operation == "fsync":
            self._unsynced.pop(Path(path).stat().st_ino, None)

    def lose_power(self, root: Path, rng: random.Random) -> None:
        """Of each unsynced write all, nothing or the first part came to the disk."""
        for path in sorted(root.rglob("*")):
            if not path.is_file() or path.is_symlink():
                continue
            fd = os.open(path, os.O_RDWR)
            try:
                for offset, length in self._unsynced.get(os.fstat(fd).st_ino, []):
                    lost = rng.choice((0, length, rng.randint(0, length)))
                    os.pwrite(fd, bytes(lost), offset + length - lost)
                if self._unsynced.get(os.fstat(fd).st_ino) and rng.random() < 0.2:
                    os.ftruncate(fd, rng.randint(0, os.fstat(fd).st_size))
            finally:
                os.close(fd)


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def new_boot() -> None:
        made = uuid.uuid4().bytes
        monkeypatch.setattr(piecemap, "boot_id", lambda: made)

    return new_boot


def test_power_loss_at_every_step(tmp_path: Path, boot: Callable[[], None]) -> None:
    """Maps that came to the disk before their data are believed by nobody."""
    for step in range(1, count_steps(tmp_path / "count") + 1):
        rng = random.Random(step)
        root, notes, disk = tmp_path / f"{step}", Notes(), Disk(step)
        boot()
        with contextlib.suppress(Crash), fileio.hooked(disk):
            live(root, notes).close()
        disk.lose_power(root, rng)
        boot()
        # The gateway may be up before the peer: of partial blobs nothing is readable yet.
        before = readable(root)
        assert not before.get("part")
        store = open_store(root)
        readable(root)
        for name in ("whole", "empty"):
            # What was promised to be durable is.
            if notes.has("done", f"promote {name}"):
                assert store.complete(KEYS[name].digest) is not None
                assert store.verify(KEYS[name].digest)
        store.close()
        check_the_rest(root)


def test_disk_full_or_broken_at_every_step(tmp_path: Path) -> None:
    """One call fails, with the right error and without leavings; the next attempt goes through."""
    for number, kind in ((errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, StoreError)):
        total = count_steps(tmp_path / f"count-{number}")
        for step in range(1, total + 1):
            root = tmp_path / f"{number}-{step}"
            hook = CrashAt(step, lambda number=number: OSError(number, os.strerror(number)))
            caught = None
            try:
                with fileio.hooked(hook):
                    live(root, Notes()).close()
            except StoreError as error:
                caught = error
            # Only what is tidied up after a promotion may fail unseen: the blob is complete.
            unseen = re.search(r"^write .*/map$|\.gone-[0-9]+(/meta|/map|)$", hook.at)
            assert isinstance(caught, kind) or unseen, hook.at
            if not hook.at.startswith(("unlink", "rmdir", "rename")):
                leavings = [path for path in root.rglob("*") if layout.is_temporary(path.name)]
                assert not leavings, hook.at
            readable(root)
            check_the_rest(root)


@pytest.fixture
def children() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    with subprocess.Popen(
        [sys.executable, store_child.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        bufsize=1,
    ) as nursery:
        yield nursery
        nursery.kill()


def run_child(children: subprocess.Popen[str], root: Path, step: int) -> tuple[Notes, int]:
    """What the child noted, and its exit status."""
    assert children.stdin is not None
    assert children.stdout is not None
    print(root, step, file=children.stdin)
    notes = Notes()
    for line in children.stdout:
        when, *what, number = line.split()
        if when == "end":
            return notes, int(number)
        notes(when, " ".join(what), int(number))
    raise AssertionError("the children's parent died")


def test_sigkill_at_every_step(tmp_path: Path, children: subprocess.Popen[str]) -> None:
    """The real thing: a process kills itself, and this one takes its store over."""
    step = 1
    while True:
        root = tmp_path / f"{step}"
        notes, status = run_child(children, root, step)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        check(root, notes)
        step += 1
    assert step > 60
