"""The configuration of a node: its own file, with what was applied to the cluster.

The peer writes what was applied beside the store, where the node's gateway reads it: at its start,
and within a second when it changes.
"""

from __future__ import annotations

import asyncio
import logging

from passel.actors.configuring import read_applied
from passel.config.live import Applied, applied_path, encode, merged
from passel.config.load import missing_files
from passel.config.sections import Config
from passel.errors import ConfigError
from passel.store import fileio

log = logging.getLogger(__name__)


class Standing:
    """Belongs to the peer's event loop."""

    def __init__(self, own: Config) -> None:
        self._own = own
        #: What counts.
        self.config = own
        self.version = 0

    async def take_up(self) -> None:
        """What was applied before this life began. The controller tells what comes later."""
        applied = await asyncio.to_thread(read_applied)
        if applied is not None:
            self.take(applied)
            return
        try:
            # Of another cluster that had this folder.
            applied_path(self._own).unlink(missing_ok=True)
        except OSError as error:
            log.warning("applied_config_not_removed why=%s", error.strerror)

    def check(self, text: str) -> list[str]:
        """What hinders this node from going by `text`, a sentence each."""
        try:
            missing = missing_files(merged(self._own, text))
            return [each for each in missing if each.startswith("upstreams.")]
        except ConfigError as error:
            return str(error).splitlines()

    def take(self, applied: Applied) -> bool:
        """Go by this from now on; False for what is no news, or cannot be."""
        if applied.version <= self.version:
            return False
        try:
            self.config = merged(self._own, applied.text)
        except ConfigError as error:
            log.error("config_unusable version=%d why=%s", applied.version, error)
            return False
        self.version = applied.version
        try:
            fileio.publish(applied_path(self._own), encode(applied))
        except OSError as error:
            log.error("applied_config_not_written why=%s", error.strerror)
        log.info("config_taken version=%d", applied.version)
        return True
