"""What all browsers of one gateway look at: one question a second to the controller, one stream.

Nothing is asked while nobody looks. Times in seconds of the loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from passel.errors import PasselError, PeerUnavailable
from passel.telemetry.frames import Frames

log = logging.getLogger(__name__)

EVERY_S = 1.0
ASK_TIMEOUT_S = 6.0
WATCHERS_MAX = 16
#: A page that is loaded again finds the last two minutes still there.
LINGER_S = 15.0


class Feed:
    """Frames for those who watch, as server-sent events."""

    def __init__(self, ask: Callable[[float], Awaitable[dict[str, Any]]]) -> None:
        self._ask = ask
        self._frames = Frames()
        #: Why the newest frame is not new; empty while all is well.
        self._trouble = ""
        self._n_watchers = 0
        self._runner: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._last_watched = 0.0
        self.is_closed = False

    @property
    def has_room(self) -> bool:
        """Whether one more may watch."""
        return self._n_watchers < WATCHERS_MAX and not self.is_closed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """As long as somebody is inside, the cluster is looked at."""
        self._n_watchers += 1
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())
        try:
            yield
        finally:
            self._n_watchers -= 1
            self._last_watched = asyncio.get_running_loop().time()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._n_watchers or loop.time() < self._last_watched + LINGER_S:
            next_at = loop.time() + EVERY_S
            await self.step()
            await asyncio.sleep(max(0.0, next_at - loop.time()))

    async def step(self) -> None:
        """One look at the cluster; who waits in `wait` goes on."""
        try:
            view = await self._ask(ASK_TIMEOUT_S)
            self._frames.take(view)
            self._trouble = ""
        except PasselError as error:
            self._trouble = str(error)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            self._trouble = str(PeerUnavailable("the controller is of another version"))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self, timeout_s: float) -> bool:
        """Until there is something new; False: there is not."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)
            return True
        return False

    def events(self, seen: tuple[int | None, str]) -> tuple[bytes, tuple[int | None, str]]:
        """What is to be sent to somebody who has `seen` that much, and what he has seen then.

        At first he has seen ``(None, "")``.
        """
        version, trouble = seen
        frames = self._frames.since(version)
        if frames:
            version = self._frames.version
        if self._trouble and self._trouble != trouble:
            frames.append(json.dumps({"kind": "trouble", "why": self._trouble}).encode())
        elif trouble and not self._trouble:
            frames.append(b'{"kind":"well"}')
        # One event is one line: JSON has no line breaks of its own.
        return b"".join(b"data: %b\n\n" % frame for frame in frames), (version, self._trouble)

    async def close(self) -> None:
        """Everybody goes, nobody comes."""
        self.is_closed = True
        self._changed.set()
        if self._runner is not None:
            self._runner.cancel()
            with suppress(asyncio.CancelledError):
                await self._runner
