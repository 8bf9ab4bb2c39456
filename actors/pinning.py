"""Pins on the controller: a shell around the `PinMachine`, and where peers read them at start."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

from passel.actors.bulletin import Bulletin
from passel.actors.duties import Duties
from passel.actors.handles import PeerHandle, strike_out, write_down, written_down
from passel.core.pins import Pin, PinMachine, Pinned
from passel.errors import InputError
from passel.ids import Digest, PeerId

log = logging.getLogger(__name__)

KEY = "pin/"
EXPIRE_EVERY_S = 1.0


def read_pins() -> list[Pin]:
    """The pins that are written down. A blocking call."""
    pins = []
    for value in written_down(KEY):
        try:
            pins.append(_pin(json.loads(value)))
        except (ValueError, KeyError, TypeError, InputError) as error:
            log.error("pin_unreadable why=%s", error)
    return pins


class Pinning:
    """Belongs to the controller's event loop."""

    def __init__(self, peers: dict[PeerId, PeerHandle]) -> None:
        # Beyond that of any former life, by the clock; peers take no older one.
        self.machine = PinMachine(time.time_ns())
        self._bulletin: Bulletin[Pinned] = Bulletin("pins", peers, PeerHandle.take_pins)
        self._writing = asyncio.Lock()

    async def restore(self) -> None:
        """Take up what a former life has pinned."""
        for pin in await asyncio.to_thread(read_pins):
            self.machine.restore(pin)
        self._bulletin.publish(self.machine.pinned())

    async def run(self, duties: Duties) -> None:
        """For ever: tell the peers, and take away what is over."""
        duties.start(self._bulletin.run(duties))
        while True:
            gone = self.machine.expire(time.time())
            if gone:
                await self._note([], gone)
            await asyncio.sleep(EXPIRE_EVERY_S)

    async def pin(
        self, what: str, digests: tuple[Digest, ...], ttl_s: float | None
    ) -> dict[str, Any]:
        """These blobs are not evicted for so long; None: until they are unpinned.

        Raises InputError.
        """
        now = time.time()
        until = None if ttl_s is None else now + ttl_s
        pin = self.machine.pin(Pin(what, digests, now, until))
        await self._note([pin], [])
        return facts(pin)

    async def unpin(self, name: str) -> dict[str, Any]:
        """Eviction may have them again. Raises InputError when there is no such pin."""
        gone = self.machine.unpin(name)
        await self._note([], gone)
        return {"unpinned": [facts(pin) for pin in gone]}

    async def _note(self, pins: list[Pin], gone: list[Pin]) -> None:
        async with self._writing:
            for pin in gone:
                if pin.id not in self.machine.pins:  # nobody has pinned it again meanwhile
                    log.info("unpinned pin=%s what=%s", pin.id, pin.what)
                    await asyncio.to_thread(strike_out, KEY + pin.id)
            for pin in pins:
                log.info("pinned pin=%s what=%s", pin.id, pin.what)
                await asyncio.to_thread(write_down, KEY + pin.id, _written(pin))
        self._bulletin.publish(self.machine.pinned())


def facts(pin: Pin) -> dict[str, Any]:
    """A pin for people and programs."""
    return {
        "pin": pin.id,
        "what": pin.what,
        "blobs": len(pin.digests),
        "created": stamp(pin.created_s),
        "until": None if pin.until_s is None else stamp(pin.until_s),
    }


def stamp(wall_s: float) -> str:
    """Wall time in seconds as RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s))


def _written(pin: Pin) -> bytes:
    fields = {
        "what": pin.what,
        "digests": [str(digest) for digest in pin.digests],
        "created_s": pin.created_s,
        "until_s": pin.until_s,
    }
    return json.dumps(fields).encode()


def _pin(fields: dict[str, Any]) -> Pin:
    until = fields["until_s"]
    digests = tuple(Digest.parse(str(each)) for each in fields["digests"])
    return Pin(
        str(fields["what"]),
        digests,
        float(fields["created_s"]),
        None if until is None else float(until),
    )
