"""The tasks that an actor has running: kept, counted, and never lost silently."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Any

#: Exit code of an actor that met a bug: Ray starts it again, from what is on the disk.
BUG = 70


class Duties:
    """A set of tasks. One that dies of an unexpected exception takes the process with it.

    A task that failed silently would leave a piece, a reader or a lease hanging for ever; a process
    that ends is started again by Ray and recovers (DESIGN §9.5).
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, duty: Coroutine[Any, Any, None]) -> None:
        """Run it until it ends by itself or `stop` is called."""
        _ = self.task(duty)

    def task(self, duty: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """The same, for callers that may want to cancel it."""
        task = asyncio.get_running_loop().create_task(duty)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._log.critical("bug: a task died, the process ends", exc_info=error)
            for handler in logging.getLogger().handlers:
                handler.flush()
            os._exit(BUG)

    async def stop(self, timeout_s: float) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout_s)
