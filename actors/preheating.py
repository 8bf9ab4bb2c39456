"""Blobs that the controller wants this peer to have: fetched as if somebody had begun to read them.

Such a read asks for the first byte and is over when that is there; the rest of the blob follows in
the background, behind everything that clients wait for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from passel.actors.door import Reader
from passel.actors.duties import Duties
from passel.core.jobs import Held
from passel.core.messages import ReadDone, ReadFailed, ReadPassthrough
from passel.core.peer import PeerMachine
from passel.ids import BlobId, BlobRef

#: Blobs that are begun at a time: the others wait for these to be whole.
AT_ONCE = 4
#: A blob that could not be begun is tried again after so many seconds.
RETRY_S = 5.0
TROUBLES_MAX = 10_000


class Host(Protocol):
    """What this needs of the peer."""

    def begin_read(
        self, ref: BlobRef, start: int, stop: int | None, authorization: str | None
    ) -> tuple[int, Reader]: ...

    def end_read(self, read: int) -> None: ...


class Preheating:
    """Soft: a peer that restarts is asked again."""

    def __init__(self, host: Host, machine: PeerMachine, duties: Duties) -> None:
        self._host = host
        self._machine = machine
        self._duties = duties
        self._begun: set[BlobId] = set()
        #: Why a blob could not be begun: HTTP status, sentence, when.
        self._troubles: OrderedDict[BlobId, tuple[int, str, float]] = OrderedDict()

    def hold(self, refs: tuple[BlobRef, ...], now: float) -> tuple[Held, ...]:
        """See to it that these blobs are coming, in this order, and say how much is here."""
        n_running = 0
        told: list[Held] = []
        for ref in refs:
            held = self._held(ref)
            told.append(held)
            if held.complete:
                self._troubles.pop(ref.id, None)
                continue
            trouble = self._troubles.get(ref.id)
            if trouble is not None and now < trouble[2] + RETRY_S:
                continue
            n_running += 1
            if n_running <= AT_ONCE and not self._is_coming(ref):
                self._begun.add(ref.id)
                self._duties.start(self._begin(ref, now))
        return tuple(told)

    def take_over(
        self, blobs: tuple[tuple[BlobRef, int], ...], spare_bytes: int, now: float
    ) -> tuple[Held, ...]:
        """As `hold`, but what is larger than the room that is left is refused."""
        told: list[Held] = []
        for ref, size in blobs:
            if ref.digest not in self._machine.complete and not self._is_coming(ref):
                if size > spare_bytes:
                    text = f"no room for {size} bytes but that of last copies or pinned blobs"
                    told.append(Held(0, size, complete=False, status=507, trouble=text))
                    continue
                spare_bytes -= size
            told += self.hold((ref,), now)
        return tuple(told)

    def _is_coming(self, ref: BlobRef) -> bool:
        holding = self._machine.blobs.get(ref.id)
        is_wanted = holding is not None and holding.rest and not holding.full
        return ref.id in self._begun or (is_wanted and ref.id not in self._troubles)

    def _held(self, ref: BlobRef) -> Held:
        complete = self._machine.complete.get(ref.digest)
        if complete is not None:
            return Held(complete[0], complete[0], complete=True)
        status, sentence, _ = self._troubles.get(ref.id, (0, "", 0.0))
        holding = self._machine.blobs.get(ref.id)
        if holding is None or holding.geometry is None:
            return Held(0, None, complete=False, status=status, trouble=sentence)
        geometry = holding.geometry
        held = min(self._machine.held_pieces(ref.id) * geometry.piece_size, geometry.size)
        return Held(held, geometry.size, complete=False, status=status, trouble=sentence)

    async def _begin(self, ref: BlobRef, now: float) -> None:
        number, reader = self._host.begin_read(ref, 0, 1, None)
        try:
            self._troubles.pop(ref.id, None)
            while True:
                for answer in await reader.get():
                    match answer:
                        case ReadDone():
                            return
                        case ReadFailed(_, refusal):
                            self._note(ref, refusal.status, refusal.message, now)
                            return
                        case ReadPassthrough(_, reason):
                            self._note(ref, 503, reason, now)
                            return
                        case _:
                            continue
        finally:
            self._begun.discard(ref.id)
            self._host.end_read(number)

    def _note(self, ref: BlobRef, status: int, sentence: str, now: float) -> None:
        self._troubles[ref.id] = (status, sentence, now)
        while len(self._troubles) > TROUBLES_MAX:
            self._troubles.popitem(last=False)
