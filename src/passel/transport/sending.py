"""Sending a part of a file over an asyncio transport's socket with ``sendfile(2)``.

``loop.sendfile`` does that too, but it cannot tell whether a receiver is still reading, it moves
the position of a shared file, and it needs a file object per call.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final

# The event loop serves others between two calls. 1 MiB takes about 0.3 ms.
_CALL_BYTES: Final = 1 << 20
#: Where bytes are copied and encrypted, that is 0.2 ms.
_COPY_BYTES: Final = 1 << 18


class SendStalled(ConnectionError):
    """The receiver took nothing for the whole deadline."""


class Gate:
    """Lets bulk bodies pause while a client waits for one: the link is the client's alone then.

    At most for `pause_s` in a row: clients that follow each other must not stop bulk for good.
    Belongs to one event loop.
    """

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._n_clients = 0
        self._timer: asyncio.TimerHandle | None = None
        self._resumes: list[Callable[[], None]] = []
        self.is_closed = False

    def enter(self) -> None:
        """A client's body begins."""
        self._n_clients += 1
        if self._n_clients == 1:
            self.is_closed = True
            self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._open)

    def leave(self) -> None:
        """It ended, well or not."""
        self._n_clients -= 1
        if self._n_clients == 0:
            if self._timer is not None:
                self._timer.cancel()
            self._open()

    def wait(self, resume: Callable[[], None]) -> None:
        """Call `resume` once, when bulk may go on."""
        self._resumes.append(resume)

    def _open(self) -> None:
        self.is_closed = False
        resumes, self._resumes = self._resumes, []
        for resume in resumes:
            resume()


class FileTooShort(ConnectionError):
    """The file ended before the announced length; the connection is of no more use."""


async def send_file(
    transport: asyncio.Transport,
    fd: int,
    offset: int,
    count: int,
    *,
    stall_s: float,
    progress: Callable[[int], None],
    gate: Gate | None = None,
) -> None:
    """Send `count` bytes of `fd` from `offset`, after what the transport still has to write.

    Returns when the kernel has taken all of them. `progress` is told the size of each step. Where
    there is a `gate`, the bytes pause while it is closed. The caller keeps `fd` open, and aborts
    the transport on any exception: part of the body is out.

    Raises
    ------
    SendStalled
        `stall_s` seconds went by without a byte taken.
    FileTooShort
        The file is shorter than it was said to be.
    OSError
        The connection broke.
    """
    if count == 0:
        return
    await _drain(transport, stall_s)
    # The loop refuses writers on a descriptor that one of its transports owns.
    duplicate = _duplicate(transport)
    try:
        await _Pump(duplicate, fd, offset, count, stall_s, progress, gate).run()
    finally:
        duplicate.close()


def _duplicate(transport: asyncio.Transport) -> socket.socket:
    own = transport.get_extra_info("socket")
    if own is None or transport.is_closing():
        raise ConnectionResetError("the connection is closed")
    duplicate: socket.socket = own.dup()
    duplicate.setblocking(False)
    return duplicate


async def _drain(transport: asyncio.Transport, stall_s: float) -> None:
    """Wait until the transport's own buffer is empty: the head of the answer goes first.

    It nearly always is: the head goes out in one ``send``. A receiver whose window is full of an
    earlier answer is the exception, and polling is good enough for it.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + stall_s
    while transport.get_write_buffer_size():
        if loop.time() > deadline:
            raise SendStalled("the receiver does not read")
        if transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        await asyncio.sleep(0.005)


async def send_copied(
    write: Callable[[bytes], Awaitable[None]],
    transport: asyncio.Transport,
    fd: int,
    offset: int,
    count: int,
    *,
    stall_s: float,
    progress: Callable[[int], None],
    gate: Gate | None = None,
) -> None:
    """What `send_file` does, for a transport that has to see the bytes, as TLS has.

    `write` takes bytes and returns when there is room for more. Raises as `send_file` does.
    """
    while count:
        if gate is not None and gate.is_closed:
            opened = asyncio.Event()
            gate.wait(opened.set)
            await opened.wait()
        data = os.pread(fd, min(_COPY_BYTES, count), offset)
        if not data:
            raise FileTooShort(f"the file ends at {offset}")
        if transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        try:
            await asyncio.wait_for(write(data), stall_s)
        except asyncio.TimeoutError as error:
            raise SendStalled(f"nothing taken for {stall_s:.1f} s") from error
        offset, count = offset + len(data), count - len(data)
        progress(len(data))


class _Pump:
    """One transfer: a writer callback that sends, a timer that looks whether anything moved."""

    def __init__(
        self,
        sock: socket.socket,
        fd: int,
        offset: int,
        count: int,
        stall_s: float,
        progress: Callable[[int], None],
        gate: Gate | None,
    ) -> None:
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._sock_fd = sock.fileno()
        self._fd = fd
        self._offset = offset
        self._stop = offset + count
        self._stall_s = stall_s
        self._progress = progress
        self._moved_at = self._loop.time()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_later(stall_s, self._check)

    async def run(self) -> None:
        try:
            self._loop.add_writer(self._sock_fd, self._step)
            self._step()
            await self._done
        finally:
            self._loop.remove_writer(self._sock_fd)
            self._timer.cancel()

    def _step(self) -> None:
        if self._done.done():
            return
        if self._gate is not None and self._gate.is_closed:
            self._loop.remove_writer(self._sock_fd)
            self._gate.wait(self._resume)
            return
        try:
            sent = os.sendfile(
                self._sock_fd, self._fd, self._offset, min(_CALL_BYTES, self._stop - self._offset)
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._done.set_exception(error)
            return
        if sent == 0:
            self._done.set_exception(FileTooShort(f"the file ends at {self._offset}"))
            return
        self._offset += sent
        self._moved_at = self._loop.time()
        self._progress(sent)
        if self._offset == self._stop:
            self._done.set_result(None)

    def _resume(self) -> None:
        if not self._done.done():
            self._moved_at = self._loop.time()
            self._loop.add_writer(self._sock_fd, self._step)

    def _check(self) -> None:
        if self._done.done():
            return
        idle_s = self._loop.time() - self._moved_at
        if idle_s >= self._stall_s:
            self._done.set_exception(SendStalled(f"nothing taken for {idle_s:.1f} s"))
        else:
            self._timer = self._loop.call_later(self._stall_s - idle_s, self._check)
