"""A blob as a file that is read in ranges, with nothing kept on this side but one buffer."""

from __future__ import annotations

import io
from collections.abc import Callable

from passel.client.exchange import Exchange
from passel.errors import LengthMismatch, PeerUnavailable

#: (start, stop) -> an exchange whose answer is those bytes.
AskRange = Callable[[int, int], Exchange]


class RemoteFile(io.RawIOBase):
    """Random access to one blob. Wrap it in `io.BufferedReader` (as `Client.open` does).

    Each read is one ranged request, so that the cluster fetches what is read first.
    """

    def __init__(self, ask: AskRange, size: int) -> None:
        super().__init__()
        self._ask = ask
        self._at = 0
        self.size = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Where the next read starts; beyond the end is allowed and reads nothing."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if origin + offset < 0:
            raise ValueError("a position before the start")
        self._at = origin + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` as far as the blob goes. Raises PeerUnavailable when it is cut short."""
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self.size)
        if stop <= self._at:
            return 0
        wanted = stop - self._at
        with self._ask(self._at, stop) as exchange:
            answer = exchange.answer
            if answer.status != 206 and (self._at or wanted != self.size):
                raise LengthMismatch("the gateway sent the whole blob instead of a range")
            got = 0
            while got < wanted:
                count = exchange.read_into(view[got:wanted])
                if count == 0:
                    raise PeerUnavailable("the answer is shorter than the range")
                got += count
        self._at += got
        return got
