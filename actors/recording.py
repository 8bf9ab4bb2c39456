"""A peer's fetches as events of the trace."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from passel.actors.words import Place
from passel.core.holding import Parent
from passel.core.messages import FetchPiece
from passel.ids import BlobId, PeerId
from passel.telemetry.recording import Recording


@dataclass
class PieceNote:
    """One fetch under way: when it was asked for, and when its first byte came."""

    asked_at: float
    first_at: float | None = None

    def came(self) -> None:
        """Some bytes are here. Called on a thread, for every buffer."""
        if self.first_at is None:
            self.first_at = time.time()


class PeerRecording:
    """Thin calls for the shell: they return at once while nothing is recorded."""

    def __init__(
        self, recording: Recording, place: Place, parents: Mapping[PeerId, Parent]
    ) -> None:
        self._recording = recording
        self._place = place
        self._parents = parents

    def begin(self) -> PieceNote | None:
        """A fetch begins; None while nothing is recorded."""
        return PieceNote(time.time()) if self._recording.is_on else None

    def piece(self, note: PieceNote | None, command: FetchPiece, outcome: str) -> None:
        """It ended."""
        if note is None:
            return
        now = time.time()
        first_at = now if note.first_at is None else note.first_at
        parent = self._parents.get(command.parent)
        self._recording.recorder.piece(
            at_s=now,
            node=self._place.node,
            zone=self._place.zone,
            blob=command.blob,
            piece=command.piece,
            parent=command.parent,
            parent_zone=None if parent is None else parent.zone,
            n_bytes=command.stop - command.start,
            source=command.source,
            queue_s=first_at - note.asked_at,
            transfer_s=now - first_at,
            verify_s=0.0,  # hashed as it comes
            outcome=outcome,
        )

    def origin(self, blob: BlobId, piece: int, n_bytes: int, began_at: float) -> float:
        """Bytes of a piece came from the origin; the time now, when the next one begins."""
        now = time.time()
        if self._recording.is_on:
            self._recording.recorder.piece(
                at_s=now,
                node=self._place.node,
                zone=self._place.zone,
                blob=blob,
                piece=piece,
                parent=None,
                parent_zone=None,
                n_bytes=n_bytes,
                source="origin",
                queue_s=0.0,
                transfer_s=now - began_at,
                verify_s=0.0,
                outcome="ok",
            )
        return now
