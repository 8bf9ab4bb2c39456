"""Which upstreams cannot be asked at the moment, so that nobody waits for them again and again.

An upstream is down from the first question that it does not answer until the first one that it
does. While it is down, questions that have another answer (a grant that has run out, a tag that is
old) try it once in `AGAIN_S`; everybody in between gets that other answer at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from passel.errors import OriginRefused, OriginTimeout, OriginUnavailable

if TYPE_CHECKING:
    from prometheus_client import Gauge

AGAIN_S = 5.0

WARNING = '299 - "the origin registry cannot be asked, this comes from the cache"'
"""Value of the ``Warning`` header. containerd and containers/image print it. RFC 7234 5.5."""


class Outages:
    """One per gateway. Runs on the loop's thread only."""

    def __init__(self, up: Gauge) -> None:
        self._up = up
        self._ask_again_at: dict[str, float] = {}

    def is_on(self, upstream: str) -> bool:
        """Whether the last question to this upstream got no answer."""
        return upstream in self._ask_again_at

    def is_fresh(self, upstream: str) -> bool:
        """Whether that was a moment ago: asking again is a waste of the client's time."""
        return asyncio.get_running_loop().time() < self._ask_again_at.get(upstream, 0.0)

    def failed(self, upstream: str) -> None:
        """A question to this upstream got no answer."""
        self._ask_again_at[upstream] = asyncio.get_running_loop().time() + AGAIN_S
        self._up.labels(upstream).set(0)

    def answered(self, upstream: str) -> None:
        """This upstream has said something."""
        self._ask_again_at.pop(upstream, None)
        self._up.labels(upstream).set(1)

    @asynccontextmanager
    async def asking(self, upstream: str) -> AsyncIterator[None]:
        """Around a question: takes note of how it ends."""
        if self.is_on(upstream):
            # One tries it, the others need not wait for that.
            self.failed(upstream)
        try:
            yield
        except (OriginUnavailable, OriginTimeout):
            self.failed(upstream)
            raise
        except OriginRefused:
            self.answered(upstream)
            raise
        else:
            self.answered(upstream)
