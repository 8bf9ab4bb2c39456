"""A life of a store, step by step, for the crash tests: in this process, or as a program.

As a program it reads lines ``STORE STEP``, and for each starts a process that runs :func:`live` and
kills itself with SIGKILL before the STEP-th change to the disk. What that one prints, unbuffered,
is what it was told is done: ``begin`` before and ``done`` after each call to the store.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from passel.ids import BlobKey, Digest
from passel.store import Store, fileio

if TYPE_CHECKING:
    from collections.abc import Callable

    Note = Callable[[str, str, int], None]

PIECE = 1000
CAPACITY = 1 << 20


def content(name: str, size: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(size)


def key_of(name: str, size: int, algorithm: str = "sha256") -> BlobKey:
    hexes = hashlib.new(algorithm, content(name, size)).hexdigest()
    return BlobKey(f"registry-{name}", Digest(algorithm, hexes))


SIZES = {"whole": 3500, "part": 2500, "empty": 0, "evicted": 1000, "dropped": 1500}
KEYS = {
    name: key_of(name, size, "sha512" if name == "part" else "sha256")
    for name, size in SIZES.items()
}


def open_store(root: Path) -> Store:
    store = Store.open(root, CAPACITY)
    try:
        store.recover()
    except BaseException:
        store.close()
        raise
    return store


def fill(store: Store, name: str, pieces: range, note: Note) -> None:
    """Fetch the pieces that are missing, two writes per piece."""
    data = content(name, SIZES[name])
    note("begin", f"create {name}", 0)
    blob = store.create(KEYS[name], SIZES[name], PIECE)
    note("done", f"create {name}", 0)
    for piece in pieces:
        if blob.have >> piece & 1:
            continue
        start, stop = blob.span(piece)
        middle = (start + stop) // 2
        blob.write(start, data[start:middle])
        blob.write(middle, data[middle:stop])
        blob.confirm(piece, hashlib.sha256(data[start:stop]).digest())
        note("done", f"confirm {name}", piece)


def complete(store: Store, name: str, note: Note) -> None:
    """Fetch and promote, unless that was done before."""
    if store.complete(KEYS[name].digest) is not None:
        return
    n_pieces = -(-SIZES[name] // PIECE)
    fill(store, name, range(n_pieces), note)
    blob = store.partial(KEYS[name].id)
    assert blob is not None
    note("begin", f"promote {name}", 0)
    blob.promote()
    note("done", f"promote {name}", 0)


def live(root: Path, note: Note) -> Store:
    """Open the store, and whatever was done before, bring it to the same end."""
    store = open_store(root)
    try:
        complete(store, "evicted", note)
        fill(store, "part", range(2), note)
        part = store.partial(KEYS["part"].id)
        assert part is not None
        part.write(2000, b"wrong, and never confirmed")
        complete(store, "empty", note)
        complete(store, "whole", note)
        fill(store, "dropped", range(1), note)
        note("begin", "discard dropped", 0)
        store.discard(KEYS["dropped"].id)
        note("done", "discard dropped", 0)
        note("begin", "remove evicted", 0)
        store.remove(KEYS["evicted"].digest)
        note("done", "remove evicted", 0)
    except BaseException:
        store.close()
        raise
    return store


def run(root: Path, step: int) -> None:
    left = step

    def kill(operation: str, path: str, offset: int, length: int) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def note(when: str, what: str, piece: int) -> None:
        os.write(1, f"{when} {what} {piece}\n".encode())

    with fileio.hooked(kill):
        live(root, note)


def main() -> None:
    """One process per line of standard input; forked, for an interpreter takes long to start."""
    for line in sys.stdin:
        root, step = line.split()
        pid = os.fork()
        if not pid:
            run(Path(root), int(step))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        os.write(1, f"end exit {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
