"""Which upstream each complete blob came from: what quotas are counted by.

One line of text per promotion, appended to the file ``owners`` of the store and never synced. It is
a hint: content does not depend on it, and a blob whose line was lost counts for no upstream. The
last line about a blob counts; lines about blobs that are gone are dropped when a store is opened.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from passel.errors import InputError
from passel.ids import Digest
from passel.store import fileio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 64 * 1024 * 1024
#: The file is written anew when it has more lines about nothing than this.
IDLE_LINES_MAX = 1000


class Owners:
    """Not thread-safe: the store locks around it."""

    def __init__(self, path: Path, is_complete: Callable[[Digest], bool]) -> None:
        self._path = path
        self._of: dict[Digest, str] = {}
        content = self._read()
        lines = content.decode("utf-8", "replace").splitlines()
        for line in lines:
            name, _, upstream = line.partition(" ")
            try:
                digest = Digest.parse(name)
            except InputError:
                continue  # half a line, from a crash
            if upstream and is_complete(digest):
                self._of[digest] = upstream
        # After half a line the next one would be none either.
        is_torn = content[-1:] not in (b"", b"\n")
        if is_torn or len(lines) > len(self._of) + IDLE_LINES_MAX:
            self._rewrite()

    def _read(self) -> bytes:
        try:
            return fileio.read_small(self._path, FILE_BYTES_MAX)
        except FileNotFoundError:
            return b""
        except OSError as error:
            log.warning("owners_unreadable path=%s why=%s", self._path, error.strerror)
            return b""

    def _rewrite(self) -> None:
        lines = "".join(f"{digest} {upstream}\n" for digest, upstream in self._of.items())
        try:
            fileio.publish(self._path, lines.encode())
        except OSError as error:
            log.warning("owners_not_written path=%s why=%s", self._path, error.strerror)

    def of(self, digest: Digest) -> str | None:
        """The upstream that a complete blob came from, if that is known."""
        return self._of.get(digest)

    def note(self, digest: Digest, upstream: str) -> None:
        """A blob is complete now."""
        self._of[digest] = upstream
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(self._path, flags, 0o600)
            try:
                os.write(file, f"{digest} {upstream}\n".encode())
            finally:
                os.close(file)
        except OSError as error:
            log.warning("owner_not_noted path=%s why=%s", self._path, error.strerror)

    def forget(self, digest: Digest) -> None:
        """A blob is gone."""
        self._of.pop(digest, None)
