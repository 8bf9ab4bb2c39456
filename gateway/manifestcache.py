"""Manifests by digest, in memory and in a folder beside the store. Bounded, least recently used.

Several nodes' gateways never share a folder; two gateways of one node may, since a file's name is
the digest of its bytes and is written whole or not at all. What is read back is hashed again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from passel.errors import DigestMismatch, OriginNonsense
from passel.ids import Digest
from passel.oci.manifests import MANIFEST_BYTES_MAX, Descriptor, check_manifest
from passel.store import fileio

log = logging.getLogger(__name__)

MEMORY_BYTES = 32 * 1024 * 1024
#: Manifests are some kB each: tens of thousands of images.
FOLDER_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """A checked manifest, byte for byte as it came."""

    digest: Digest
    media_type: str
    body: bytes
    descriptors: tuple[Descriptor, ...]


def checked(body: bytes, content_type: str | None, digest: Digest) -> Kept:
    """A manifest that passed all checks at the door. Raises DigestMismatch, OriginNonsense."""
    manifest = check_manifest(body, content_type, digest)
    return Kept(digest, manifest.media_type, body, manifest.descriptors)


class ManifestCache:
    """Owned by the loop's thread; files are read and written in threads."""

    def __init__(
        self, folder: Path, memory_bytes: int = MEMORY_BYTES, folder_bytes: int = FOLDER_BYTES
    ) -> None:
        self._folder = folder
        self._memory: OrderedDict[Digest, Kept] = OrderedDict()
        self._used = 0
        self._memory_bytes = memory_bytes
        self._folder_bytes = folder_bytes
        #: Bytes in the folder; None until it was first looked at.
        self._folder_used: int | None = None
        self._folder_lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, digest: Digest) -> Kept | None:
        """The manifest, or None."""
        kept = self._memory.get(digest)
        if kept is not None:
            self._memory.move_to_end(digest)
            return kept
        kept = await asyncio.to_thread(self._load, digest)
        if kept is not None:
            self._remember(kept)
        # Somebody else may have brought it meanwhile: it must not be asked for again.
        return kept or self._memory.get(digest)

    def put(self, kept: Kept) -> None:
        """Keep a manifest; the file is written in the background and may fail without harm."""
        self._remember(kept)
        task = asyncio.get_running_loop().create_task(self._write(kept))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _remember(self, kept: Kept) -> None:
        old = self._memory.pop(kept.digest, None)
        self._used += len(kept.body) - (len(old.body) if old is not None else 0)
        self._memory[kept.digest] = kept
        while self._used > self._memory_bytes and len(self._memory) > 1:
            _, gone = self._memory.popitem(last=False)
            self._used -= len(gone.body)

    def _path(self, digest: Digest) -> Path:
        return self._folder / f"{digest.algorithm}-{digest.hex}"

    def _load(self, digest: Digest) -> Kept | None:
        path = self._path(digest)
        try:
            content = fileio.read_small(path, MANIFEST_BYTES_MAX + 256)
            media_type, _, body = content.partition(b"\n")
            kept = checked(body, media_type.decode("ascii"), digest)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, DigestMismatch, OriginNonsense) as error:
            log.warning("manifest_unreadable reason=%s", type(error).__name__)
            with suppress(OSError):
                fileio.unlink(path)
            return None
        return kept

    async def _write(self, kept: Kept) -> None:
        try:
            await asyncio.to_thread(self._publish, kept)
        except OSError as error:
            # It is in memory, and the origin has it. A full disk must not fail a read.
            log.warning("manifest_not_kept reason=%s", error.strerror)

    def _publish(self, kept: Kept) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(kept.digest)
        if path.exists():
            return
        content = kept.media_type.encode("ascii") + b"\n" + kept.body
        fileio.publish(path, content)
        with self._folder_lock:
            if self._folder_used is None:
                self._folder_used = sum(size for _, size, _ in self._files())
            else:
                self._folder_used += len(content)
            if self._folder_used > self._folder_bytes:
                self._evict()

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
        return found

    def _evict(self) -> None:
        """Delete the least recently used down to nine tenths."""
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used <= self._folder_bytes * 9 // 10:
                break
            with suppress(OSError):
                fileio.unlink(path)
                used -= size
        self._folder_used = used
