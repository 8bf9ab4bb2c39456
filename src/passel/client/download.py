"""A blob into a file or a stream: hashed while it arrives, taken up again where it broke off."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from passel.client.exchange import Exchange, RequestRefused
from passel.errors import (
    DigestMismatch,
    InputError,
    LengthMismatch,
    PeerBusy,
    PeerUnavailable,
    StoreError,
)
from passel.ids import Digest
from passel.oci.ranges import parse_content_range
from passel.store import fileio

if TYPE_CHECKING:
    from hashlib import _Hash

#: Called with the bytes that are there and the size of the whole, None as long as it is unknown.
Progress = Callable[[int, "int | None"], None]
#: Asks for the content from an offset on: an exchange whose answer has begun well.
Ask = Callable[[int], Exchange]

CHUNK = 1024 * 1024
#: Attempts in a row without a single new byte.
ATTEMPTS = 6
_PAUSE_S = (0.2, 0.5, 1.0, 2.0, 4.0)
PART = ".part"


@dataclass(frozen=True, slots=True)
class Got:
    """What a download brought."""

    size: int
    digest: Digest
    verified: bool
    """Whether the digest was known beforehand, and is this one."""
    resumed: int
    """Bytes of an earlier attempt that did not have to come again."""
    seconds: float


class Sink(Protocol):
    """Where the bytes of one download go, in order."""

    def write(self, data: memoryview) -> None: ...

    def restart(self) -> bool:
        """Forget what was written; False where that cannot be done."""


class FileSink:
    """The unfinished file beside the final one, with its lock."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: memoryview) -> None:
        _write_all(self._file, data)

    def restart(self) -> bool:
        self._file.seek(0)
        self._file.truncate()
        return True


class StreamSink:
    """A pipe: what was written stays written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: memoryview) -> None:
        _write_all(self._stream, data)

    def restart(self) -> bool:
        return False


def _write_all(stream: BinaryIO, data: memoryview) -> None:
    # An unbuffered file writes what fits and says how much that was.
    while data:
        data = data[stream.write(data) :]


def is_special(output: Path) -> bool:
    """Whether `output` is a pipe or a device: written into, never replaced by a file.

    Raises InputError when it is a folder.
    """
    try:
        mode = output.stat().st_mode
    except OSError:
        return False
    if stat.S_ISDIR(mode):
        raise InputError(400, "UNKNOWN", f"{output} is a folder: name the file to write in it")
    return not stat.S_ISREG(mode)


class Transfer:
    """One content on its way into a sink."""

    def __init__(self, ask: Ask, sink: Sink, expected: Digest | None, progress: Progress) -> None:
        self._ask = ask
        self._sink = sink
        self._expected = expected
        self._progress = progress
        self._hasher = self._new_hasher()
        self._buffer = bytearray(CHUNK)
        self.at = 0
        self.total: int | None = None

    def _new_hasher(self) -> _Hash:
        return (self._expected or Digest("sha256", "")).hasher()

    def adopt(self, file: BinaryIO) -> None:
        """Begin with what `file` holds from an earlier attempt."""
        file.seek(0)
        while count := file.readinto(self._buffer):  # type: ignore[attr-defined]
            self._hasher.update(memoryview(self._buffer)[:count])
            self.at += count

    def run(self) -> Digest:
        """The digest of everything that came. Raises the last error when attempts run out."""
        failures = 0
        while self.total is None or self.at < self.total:
            before = self.at
            try:
                self._attempt()
            except (PeerUnavailable, PeerBusy) as error:
                failures = failures + 1 if self.at == before else 1
                if failures >= ATTEMPTS:
                    raise
                wanted = error.retry_after_s if isinstance(error, PeerBusy) else 0.0
                time.sleep(max(wanted, _PAUSE_S[min(failures, len(_PAUSE_S)) - 1]))
        return Digest((self._expected or Digest("sha256", "")).algorithm, self._hasher.hexdigest())

    def _attempt(self) -> None:
        try:
            exchange = self._ask(self.at)
        except RequestRefused as error:
            if error.status != 416 or self.at == 0:
                raise
            # No more to have: all of it is here, or what was left over is of something else.
            if self._expected is not None and self._hasher.hexdigest() == self._expected.hex:
                self.total = self.at
            else:
                self._start_over()
            return
        with exchange:
            self._check_start(exchange)
            view = memoryview(self._buffer)
            while count := exchange.read_into(view):
                self._hasher.update(view[:count])
                self._sink.write(view[:count])
                self.at += count
                self._progress(self.at, self.total)
                if self.total is not None and self.at > self.total:
                    raise LengthMismatch("more bytes came than were announced")
            if self.total is None:
                self.total = self.at

    def _check_start(self, exchange: Exchange) -> None:
        answer = exchange.answer
        length = answer.headers.get("Content-Length")
        if answer.status == 206:
            try:
                start, _, total = parse_content_range(answer.headers.get("Content-Range", ""))
            except ValueError as error:
                raise LengthMismatch(f"the gateway answered with {error}") from error
            if start != self.at:
                raise LengthMismatch(f"asked from byte {self.at}, answered from {start}")
            self.total = total if total is not None else self.total
        else:
            if self.at:
                self._start_over()
            self.total = int(length) if length is not None and length.isdigit() else None
        self._progress(self.at, self.total)

    def _start_over(self) -> None:
        if not self._sink.restart():
            raise PeerUnavailable("the gateway cannot go on where it broke off")
        self._hasher = self._new_hasher()
        self.at = 0


def part_of(output: Path) -> Path:
    """Where the bytes of an unfinished download to `output` lie."""
    return output.with_name(output.name + PART)


def to_file(
    ask: Ask, output: Path, expected: Digest | None, *, resume: bool, progress: Progress
) -> Got:
    """`output` holds the content, or is as it was.

    An interrupted download stays beside it as ``<output>.part`` and is taken up by the next one. A
    link is followed. Raises DigestMismatch when the bytes are not what the digest says; they are
    thrown away then.
    """
    output = output.resolve()
    part = part_of(output)
    with _locked(part) as file:
        started = time.monotonic()
        adopt = resume and expected is not None
        while True:
            transfer = Transfer(ask, FileSink(file), expected, progress)
            if adopt:
                transfer.adopt(file)
            else:
                FileSink(file).restart()
            resumed = transfer.at
            digest = _run(transfer, part)
            if expected is None or digest == expected:
                break
            FileSink(file).restart()
            if not resumed:
                part.unlink(missing_ok=True)
                raise DigestMismatch(output.name, str(expected), str(digest))
            # What was left over from an earlier download was of something else, or damaged.
            adopt = False
        file.flush()
        try:
            fileio.rename(part, output)
        except OSError as error:
            raise _cannot_write(str(output), error) from error
        seconds = time.monotonic() - started
    return Got(transfer.at, digest, expected is not None, resumed, seconds)


def _run(transfer: Transfer, part: Path) -> Digest:
    try:
        return transfer.run()
    except RequestRefused:
        # Refused before the first byte: leave nothing behind that was not there before.
        if transfer.at == 0:
            part.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise _cannot_write(str(part), error) from error


def _cannot_write(where: str, error: OSError) -> StoreError:
    return StoreError(f"cannot write {where}: {(error.strerror or str(error)).lower()}")


def to_special(ask: Ask, output: Path, expected: Digest | None, progress: Progress) -> Got:
    """The content in a pipe or a device, like :func:`to_stream`."""
    try:
        with output.open("wb", buffering=0) as stream:
            return to_stream(ask, stream, expected, progress, str(output))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _cannot_write(str(output), error) from error


def to_stream(
    ask: Ask,
    stream: BinaryIO,
    expected: Digest | None,
    progress: Progress,
    where: str = "the output",
) -> Got:
    """The content in `stream`. Raises DigestMismatch when it is too late to take it back.

    BrokenPipeError is raised as it is: whoever read has enough.
    """
    started = time.monotonic()
    transfer = Transfer(ask, StreamSink(stream), expected, progress)
    try:
        digest = transfer.run()
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _cannot_write(where, error) from error
    if expected is not None and digest != expected:
        raise DigestMismatch("what was written", str(expected), str(digest))
    return Got(transfer.at, digest, expected is not None, 0, time.monotonic() - started)


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The unfinished file, ours alone."""
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        raise InputError(400, "UNKNOWN", f"there is no folder {part.parent}") from None
    except OSError as error:
        raise _cannot_write(str(part), error) from error
    with os.fdopen(fd, "r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"another download writes {part} at the moment") from None
        yield file
