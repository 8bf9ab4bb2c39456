"""The configuration that was applied to a running cluster: checked, numbered, told to every peer.

Ray's control store has it, so it outlives the controller, and a node that joins reads it there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from passel.actors.bulletin import Bulletin
from passel.actors.duties import Duties
from passel.actors.handles import PeerHandle, write_down, written_down
from passel.actors.words import PeerSpec
from passel.config.live import Applied, decode, encode, merged, refusals
from passel.config.load import FILE_BYTES_MAX
from passel.config.sections import Config
from passel.errors import ConfigError, InputError, PeerUnavailable
from passel.ids import PeerId

log = logging.getLogger(__name__)

KEY = "config/applied"
CHECK_TIMEOUT_S = 5.0


def read_applied() -> Applied | None:
    """What counts now, if anything was applied. A blocking call."""
    values = written_down(KEY)
    return decode(values[0]) if values else None


class Configuring:
    """Belongs to the controller's event loop. `specs` and `peers` are the controller's own."""

    def __init__(
        self, own: Config, specs: dict[PeerId, PeerSpec], peers: dict[PeerId, PeerHandle]
    ) -> None:
        self._own = own
        self._specs = specs
        self._peers = peers
        self._applying = asyncio.Lock()
        self._bulletin: Bulletin[Applied] = Bulletin("config", peers, PeerHandle.take_config)
        #: What counts: the cluster's own with what was applied.
        self.config = own
        self.version = 0

    async def restore(self) -> None:
        """Take up what was applied in a former life."""
        applied = await asyncio.to_thread(read_applied)
        if applied is None:
            return
        try:
            self.config = merged(self._own, applied.text)
        except ConfigError as error:
            log.error("config_unusable version=%d why=%s", applied.version, error)
        self.version = applied.version
        self._bulletin.publish(applied)

    async def run(self, duties: Duties) -> None:
        """For ever: tell the peers."""
        await self._bulletin.run(duties)

    async def apply(self, text: str, written: dict[str, str]) -> dict[str, Any]:
        """This configuration counts from now on, under a new number, or it is refused as a whole.

        `written` are the keys of the file that need a restart. Every peer that answers is asked
        whether it can go along before any of them does. Raises InputError with all mistakes, a line
        each.
        """
        if len(text) > FILE_BYTES_MAX:
            raise InputError(400, "UNSUPPORTED", "a configuration has at most 1 MiB")
        async with self._applying:
            mistakes = refusals(self._own, written)
            config = self.config
            try:
                config = merged(self._own, text)
                mistakes = mistakes or await self._ask_peers(text)
            except ConfigError as error:
                mistakes.append(str(error))
            if mistakes:
                raise InputError(400, "UNSUPPORTED", "\n".join(mistakes[:50]))
            applied = Applied(self.version + 1, text)
            await asyncio.to_thread(write_down, KEY, encode(applied))
            self.config, self.version = config, applied.version
            self._bulletin.publish(applied)
            log.info("config_applied version=%d", applied.version)
        return self.facts()

    async def _ask_peers(self, text: str) -> list[str]:
        async def ask(peer: PeerId) -> list[str]:
            try:
                found = await self._peers[peer].check_config(text, CHECK_TIMEOUT_S)
            except (PeerUnavailable, KeyError):
                return []  # it takes it up, or says why not, when it is back
            return [f"node {self._specs[peer].place.node}: {each}" for each in found]

        answers = await asyncio.gather(*(ask(peer) for peer in list(self._peers)))
        return sorted(mistake for answer in answers for mistake in answer)

    def facts(self) -> dict[str, Any]:
        """The version, and which nodes have not taken it up."""
        nodes = sorted(
            self._specs[peer].place.node for peer in self._bulletin.behind() if peer in self._specs
        )
        return {"version": self.version, "waits_for": nodes}
