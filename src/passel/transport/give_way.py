"""Bulk gives way on a node's downlink while a piece arrives that a client waits for.

The parent lets its other bodies pause meanwhile (`sending.Gate`), but a child has several parents,
and what they send shares its downlink. So the child's threads stop reading bulk: the kernel's
buffers fill, and the senders wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class GiveWay:
    """Shared by the threads of one node's piece client.

    Bulk stops for at most `pause_s` in a row: clients that follow each other must not stop it for
    good. After that it goes on until no client's piece is arriving.
    """

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self.n_clients = 0
        self._until = 0.0
        self._changed = threading.Condition()

    @contextmanager
    def first(self) -> Iterator[None]:
        """A client's piece arrives."""
        with self._changed:
            if self.n_clients == 0:
                self._until = time.monotonic() + self._pause_s
            self.n_clients += 1
        try:
            yield
        finally:
            with self._changed:
                self.n_clients -= 1
                if self.n_clients == 0:
                    self._changed.notify_all()

    def wait(self, check: Callable[[], None]) -> None:
        """A bulk body goes on when this returns. `check` raises if it is not to."""
        if self.n_clients == 0:
            return
        with self._changed:
            while self.n_clients and (left_s := self._until - time.monotonic()) > 0:
                check()
                self._changed.wait(min(left_s, 0.05))
