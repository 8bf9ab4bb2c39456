"""A live process's side of the trace: off until the configuration or a file says otherwise.

`passel trace record` puts the file ``RECORD`` with a point in time (Unix seconds) into the trace
folder of a node; its processes look for it once a second, and record until then. While recording is
off a hook costs one comparison.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from passel.config.sections import TraceConfig
from passel.ids import BlobRef

if TYPE_CHECKING:
    from passel.telemetry.trace import Recorder, TraceFolder

SWITCH = "RECORD"
LOOK_EVERY_S = 1.0
#: Rows that nobody wrote to the disk yet are lost with the process.
WRITE_EVERY_S = 10.0


def trace_folder(section: TraceConfig, store: Path) -> Path:
    """Where the processes of a node write their traces."""
    return section.path if section.path is not None else store / "trace"


def switch_on(folders: Iterable[Path], until: float) -> None:
    """Let the processes of these trace folders record until that time (Unix seconds)."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SWITCH).write_text(f"{until:.3f}\n")


def switch_off(folders: Iterable[Path]) -> None:
    """Let them stop, and write what they have, within a second or so."""
    for folder in folders:
        (folder / SWITCH).unlink(missing_ok=True)


class Recording:
    """The trace of one process. `recorder` is to be used only while `is_on`."""

    def __init__(
        self, section: TraceConfig, store: Path, name: str, about: dict[str, Any] | None = None
    ) -> None:
        self._section = section
        self._folder = trace_folder(section, store)
        self._name = name
        self._about = about or {}
        self._files: TraceFolder | None = None
        self._recorder: Recorder | None = None
        self.is_on = section.record

    @property
    def recorder(self) -> Recorder:
        if self._recorder is None:
            # pyarrow is 50 MB and 0.2 s of every gateway's start, and most never record.
            from passel.telemetry.trace import Recorder, TraceFolder

            self._files = TraceFolder(
                self._folder,
                self._name,
                bytes_max=int(self._section.capacity),
                about=self._about,
            )
            self._recorder = Recorder(self._files)
        return self._recorder

    @property
    def n_lost(self) -> int:
        return 0 if self._files is None else self._files.n_lost

    async def run(self) -> None:
        """For ever: look whether to record, and write what was recorded."""
        wrote_at = time.monotonic()
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                was_on, self.is_on = self.is_on, self._is_wanted()
                is_late = time.monotonic() - wrote_at > WRITE_EVERY_S
                if self._files is None:
                    continue
                if (was_on and not self.is_on) or self._files.is_full or (was_on and is_late):
                    await asyncio.to_thread(self._files.write)
                    wrote_at = time.monotonic()
        finally:
            self.close()

    def close(self) -> None:
        """Write what is left."""
        if self._files is not None:
            self._files.write()

    def _is_wanted(self) -> bool:
        if self._section.record:
            return True
        try:
            return float((self._folder / SWITCH).read_text()) > time.time()
        except (OSError, ValueError):
            return False

    def read(self, ref: BlobRef, node: str) -> ReadNote:
        """A client's read begins; use it as a context."""
        return ReadNote(self, ref, node) if self.is_on else NO_NOTE

    def repeats(self, ref: BlobRef, node: str) -> Repeats:
        """For reads of a blob that is here, which are answered without a handler."""
        return Repeats(self, ref, node)


class Repeats:
    """Reads of one blob like one before. `begin` is one comparison while recording is off."""

    __slots__ = ("_blob", "_node", "_note", "_recording")

    def __init__(self, recording: Recording, ref: BlobRef, node: str) -> None:
        self._recording = recording
        self._blob = ref.id
        self._node = node
        self._note: Callable[[float, int, int, float], None] | None = None

    def begin(self, start: int, stop: int) -> Callable[[], None] | None:
        """A read of the bytes (start, stop); to be called when they are sent, unless None."""
        if not self._recording.is_on:
            return None
        return partial(self._sent, start, stop, time.time())

    def _sent(self, start: int, stop: int, began_at: float) -> None:
        if self._note is None:
            self._note = self._recording.recorder.local_reads(self._node, self._blob)
        now = time.time()
        self._note(now, start, stop, now - began_at)


class ReadNote:
    """One read of a client, from its request to its last byte."""

    __slots__ = ("_began_at", "_node", "_ready_at", "_recording", "_ref", "_source", "_span")

    def __init__(self, recording: Recording | None, ref: BlobRef | None, node: str) -> None:
        self._recording = recording
        self._ref = ref
        self._node = node
        self._began_at = time.time()
        self._ready_at: float | None = None
        self._source = ""
        self._span: tuple[int, int] = (0, 0)

    def ready(self, source: str, start: int, stop: int) -> None:
        """The first byte of the answer is at hand, and which bytes it has is known."""
        self._ready_at = time.time()
        self._source = source
        self._span = (start, stop)

    def __enter__(self) -> ReadNote:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._recording is None or self._ref is None:
            return
        now = time.time()
        ready_at = now if self._ready_at is None else self._ready_at
        start, stop = self._span
        self._recording.recorder.read(
            at_s=now,
            node=self._node,
            zone=None,
            blob=self._ref.id,
            start=start,
            stop=stop,
            n_bytes=stop - start if error is None else 0,
            source=self._source,
            queue_s=ready_at - self._began_at,
            transfer_s=now - ready_at,
            # The error's kind, not its text: that may repeat what the client sent.
            outcome="ok" if kind is None else kind.__name__,
        )


NO_NOTE = ReadNote(None, None, "")
