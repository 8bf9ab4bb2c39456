"""Files and folders: the only module of passel that renames, fsyncs or unlinks in a store.

Every step that changes the disk goes through :func:`_step` first, so that tests can count the
steps, make the n-th one fail, or stop the process there. Nothing is locked here.

Cleaning up after a failure is done on ``OSError`` only: a process that is killed does not clean up,
and a test that plays one (an exception that is no ``OSError``) must find the same leavings.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from passel.errors import NoSpace, StoreCorrupt, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from hashlib import _Hash
    from pathlib import Path

    Hook = Callable[[str, str, int, int], None]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# EFBIG: the file system or a resource limit allows no file of that size.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# hashlib and preadv let go of the GIL; at 1 MiB what is done under it is below one part in a
# thousand, and the buffer still fits into L2.
_HASH_BUFFER_BYTES = 1 << 20

_hooks: list[Hook] = []
_serial = itertools.count()


@contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    """Call ``hook(operation, path, offset, length)`` before each step, for tests.

    Operations: create, write, truncate, mkdir, rename, fsync, unlink, rmdir. `offset` and `length`
    are bytes, 0 where they mean nothing.
    """
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)


def _step(operation: str, path: str, offset: int = 0, length: int = 0) -> None:
    for hook in _hooks:
        hook(operation, path, offset, length)


def store_error(what: str, error: OSError) -> StoreError:
    """`error` as the caller should see it: NoSpace for a full disk or quota, else StoreError."""
    kind = NoSpace if error.errno in _FULL else StoreError
    return kind(f"{what}: {error.strerror or error}")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise StoreError (NoSpace) in place of OSError."""
    try:
        yield
    except OSError as error:
        raise store_error(what, error) from error


class OwnedFd:
    """A file descriptor that is closed when nobody refers to this object any more.

    Closing by reference count, not by hand: a thread that still writes or sends through the number
    must never find that it meanwhile belongs to another file.
    """

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._fd)


def open_read(path: str | Path, dir_fd: int | None = None) -> int:
    """A read-only fd on an existing regular file; StoreCorrupt if it is something else."""
    return _open_regular(path, _READ, dir_fd)


def open_unnoticed(path: Path) -> int:
    """Like `open_read`, and reading leaves the access time alone, if the file is ours."""
    try:
        return _open_regular(path, _READ | os.O_NOATIME, None)
    except PermissionError:
        return open_read(path)


def open_write(path: Path) -> int:
    """A read-write fd on an existing regular file."""
    return _open_regular(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, None)


def _open_regular(path: str | Path, flags: int, dir_fd: int | None) -> int:
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for its other end.
        fd = os.open(path, flags | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise StoreCorrupt(f"{path} is a symbolic link") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoreCorrupt(f"{path} is not a regular file")
    return fd


def create(path: Path) -> int:
    """A read-write fd on a new file, mode 0600."""
    _step("create", str(path))
    return os.open(path, _CREATE, 0o600)


def write_at(fd: int, path: str, offset: int, data: bytes | bytearray | memoryview) -> None:
    """All of `data` (items of one byte) is in the file at `offset`, not synced."""
    view = memoryview(data)
    if _hooks:
        _step("write", path, offset, len(view))
    while len(view):
        n = os.pwrite(fd, view, offset)
        if n == 0:
            raise OSError(errno.EIO, "wrote nothing", path)
        offset += n
        view = view[n:]


def truncate(fd: int, path: str, size: int) -> None:
    """The file has `size` bytes; new ones are a hole and read as zeros."""
    _step("truncate", path, 0, size)
    os.ftruncate(fd, size)


def sync_file(fd: int, path: str) -> None:
    """The file's bytes survive a power loss."""
    _step("fsync", path)
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """The folder's entries survive a power loss.

    Some network file systems know no fsync of a folder and say EINVAL: they promise nothing, and
    there is nothing more to do. EIO is a failure.
    """
    _step("fsync", str(folder))
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def make_folder(folder: Path) -> bool:
    """`folder` exists (mode 0700 if it is new); whether it is new."""
    if folder.is_dir() and not folder.is_symlink():
        return False
    _step("mkdir", str(folder))
    folder.mkdir(0o700)
    return True


def publish(final: Path, content: bytes) -> None:
    """`final` holds `content`, wholly or not at all, also after a power loss.

    Written beside it, synced, renamed, and the folder synced; on an error nothing is left behind.
    """
    new = temporary(final, "new")
    fd = create(new)
    try:
        try:
            write_at(fd, str(new), 0, content)
            if os.fstat(fd).st_size != len(content):
                raise OSError(errno.EIO, "the file has not the length that was written", str(new))
            sync_file(fd, str(new))
        finally:
            os.close(fd)
        rename(new, final)
    except OSError:
        with suppress(OSError):
            unlink(new)
        raise
    sync_folder(final.parent)


def temporary(path: Path, kind: str) -> Path:
    """A name beside `path` that recovery knows as rubbish; `kind` is ``new`` or ``gone``."""
    return path.with_name(f"{path.name}.{kind}-{os.getpid()}{next(_serial)}")


def rename(source: Path, target: Path) -> None:
    """`source` is called `target`; durable only after :func:`sync_folder` on both folders."""
    _step("rename", str(target))
    os.rename(source, target)


def unlink(path: Path) -> None:
    _step("unlink", str(path))
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Nothing is at `path` any more, whatever it was. Links are not followed."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        unlink(path)
        return
    with os.scandir(path) as entries:
        children = [path / entry.name for entry in entries]
    for child in children:
        remove_tree(child)
    _step("rmdir", str(path))
    path.rmdir()


def tree_bytes(path: Path) -> int:
    """Bytes that `path` takes on the disk (blocks, not length: partial blobs are full of holes)."""
    status = path.lstat()
    total = status.st_blocks * 512
    if stat.S_ISDIR(status.st_mode):
        with os.scandir(path) as entries:
            children = [path / entry.name for entry in entries]
        total += sum(tree_bytes(child) for child in children)
    return total


def read_small(path: str | Path, limit: int, dir_fd: int | None = None) -> bytes:
    """The content of a regular file; StoreCorrupt if it is longer than `limit` bytes."""
    fd = open_read(path, dir_fd)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise StoreCorrupt(f"{path} has more than {limit} bytes")
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def hash_range(fd: int, start: int, stop: int, hasher: _Hash) -> bytes:
    """The digest over ``[start, stop)`` of the file; a shorter file gives a digest over less.

    Runs without the GIL but for a few microseconds per MiB.
    """
    buffer = memoryview(bytearray(min(_HASH_BUFFER_BYTES, max(stop - start, 1))))
    while start < stop:
        n = os.preadv(fd, [buffer[: stop - start]], start)
        if n == 0:
            break
        hasher.update(buffer[:n])
        start += n
    return hasher.digest()


def hash_piece(fd: int, start: int, stop: int) -> bytes:
    """SHA-256 over ``[start, stop)`` of the file."""
    return hash_range(fd, start, stop, hashlib.sha256())


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user may still write on the disk of `folder`."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
