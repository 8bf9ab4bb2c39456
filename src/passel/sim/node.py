"""A node in virtual time: the shell around one `PeerMachine`; `passel.actors.peer` is the live one.

Carries commands out over simulated links and a store without bytes: the digest of a piece is a
function of (blob, piece), a peer that lies sends another one. Decides nothing.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from typing_extensions import assert_never

from passel.core import bitfield
from passel.core import messages as m
from passel.core.peer import PeerMachine
from passel.core.pieces import Geometry
from passel.core.uploads import Uploads
from passel.ids import BlobId, BlobKey, Digest, PeerId
from passel.sim.line import Line
from passel.sim.spans import SpanFetch

if TYPE_CHECKING:
    from passel.sim.world import World

#: The live shell's deadlines, seconds: all of a piece, a held-back request, a slot's line.
PIECE_TIMEOUT_S = 120.0
WAIT_S = 5.0
SLOT_WAIT_S = 5.0
LINE_MAX = 128
BUSY_RETRY_S = 0.02
#: How long a child waits for a node that cannot be reached, for an answer, and in a silent body.
CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 7.0
STALL_S = 3.0
LIE = hashlib.sha256(b"lie").digest()


def true_digest(blob: BlobId, piece: int) -> bytes:
    """The digest that a piece has in every simulation."""
    return hashlib.sha256(f"{blob} {piece}".encode()).digest()


@dataclass(slots=True)
class ReadLog:
    """What became of one read."""

    node: PeerId
    blob: BlobId
    start: int
    stop: int | None
    started_at: float
    ready_at: float | None = None
    done_at: float | None = None
    source: str = ""
    upto: int = 0
    refusal: m.Refusal | None = None
    passthrough: bool = False

    @property
    def is_over(self) -> bool:
        return self.done_at is not None or self.refusal is not None or self.passthrough


@dataclass(slots=True, eq=False)
class PieceFetch:
    """One fetch of a piece, from the command to its end."""

    child: Node
    parent: Node
    command: m.FetchPiece
    asked_at: float
    sent_at: float = 0.0
    transfer: int | None = None
    digest: bytes = b""
    is_over: bool = False


@dataclass
class Place:
    """The links of one node, as numbers of the network."""

    up: int
    down: int
    disk: int
    #: Zone and rack trunks: out of here, and into here.
    rack_out: int
    rack_in: int
    zone_out: int
    zone_in: int


@dataclass(eq=False)
class Node:
    """One node of the world; a restarted one is a new object with the old one's disk."""

    world: World
    info: m.PeerInfo
    machine: PeerMachine
    place: Place
    disk: dict[BlobId, dict[int, bytes]] = field(default_factory=dict)
    keys: dict[BlobId, tuple[BlobKey, int, int]] = field(default_factory=dict)
    done: dict[Digest, tuple[int, bytes]] = field(default_factory=dict)
    alive: bool = True
    lies: bool = False
    #: Spoils what it gets from peers.
    spoils: bool = False
    full: bool = False
    lines: list[Line] = field(default_factory=list)
    fetches: dict[int, PieceFetch | SpanFetch] = field(default_factory=dict)
    n_sending_max: int = 0
    #: Those who wait for an upload slot: (turn, in the order of asking, fetch).
    line: list[tuple[int, int, PieceFetch]] = field(default_factory=list)
    n_asked: int = 0
    waiters: dict[tuple[BlobId, int], list[PieceFetch]] = field(default_factory=dict)
    timer_at: float = float("inf")

    def __post_init__(self) -> None:
        self.lines = [Line(self, shard) for shard in self.world.shards]
        self.uploads: Uploads[PieceFetch] = Uploads(self.info.upload_slots)

    @property
    def peer(self) -> PeerId:
        return self.info.peer

    # --- the machine ----------------------------------------------------------------------------

    def step(self, event: m.PeerEvent) -> None:
        """An event for the machine, if it lives."""
        if self.alive:
            self.perform(self.machine.handle(event, self.world.clock.now))

    def perform(self, commands: list[m.PeerCommand]) -> None:
        for command in commands:
            self._carry_out(command)
        at = self.machine.next_timer()
        if at is not None and at < self.timer_at:
            self.timer_at = at
            self.world.clock.at(at, self._on_timer, at)

    def _on_timer(self, at: float) -> None:
        if not self.alive or at != self.timer_at:
            return
        self.timer_at = float("inf")
        due = self.machine.next_timer()
        now = self.world.clock.now
        # The machine may have put it off since.
        self.perform(self.machine.handle_timer(now) if due is not None and due <= now else [])

    def _carry_out(self, command: m.PeerCommand) -> None:
        match command:
            case m.Tell(shard, item, hurry):
                self.lines[shard].tell(item, hurry)
            case m.FetchPiece():
                self._fetch_piece(command)
            case m.Confirm(blob, piece, digest):
                self._confirm(blob, piece, digest)
            case m.FetchSpan():
                span = SpanFetch(self, command)
                self.fetches[command.attempt] = span
                span.begin()
            case m.CancelAttempt(attempt):
                self._cancel(attempt)
            case m.OpenPartial(key, size, piece_size):
                if self.full:
                    self.world.clock.after(0.0, self.step, m.StoreFull(key.id))
                else:
                    self.disk.setdefault(key.id, {})
                    self.keys[key.id] = (key, size, piece_size)
            case m.HashPiece(blob, piece):
                digest = self.world.digest(blob, piece)
                self.world.clock.after(0.001, self.step, m.PieceHashed(blob, piece, digest))
            case m.Promote(blob):
                self.world.clock.after(0.01, self._promote, blob)
            case m.DropPartial(blob):
                self.disk.pop(blob, None)
            case _:
                self._answer(command)

    def _answer(
        self,
        command: m.ReadReady
        | m.ReadProgress
        | m.ReadDone
        | m.ReadFailed
        | m.ReadPassthrough
        | m.ReadWaiting,
    ) -> None:
        log = self.world.reads[command.read]
        match command:
            case m.ReadReady(_, _, _, source, _, upto):
                log.ready_at, log.source, log.upto = self.world.clock.now, source, upto
                self._check_served(log)
            case m.ReadProgress(_, upto):
                log.upto = upto
            case m.ReadDone():
                log.done_at = self.world.clock.now
                self.world.read_over(log)
            case m.ReadFailed(_, refusal):
                log.refusal = refusal
                self.world.read_over(log)
            case m.ReadPassthrough():
                log.passthrough = True
                self.world.read_over(log)
            case m.ReadWaiting():
                pass
            case _:
                assert_never(command)

    def _check_served(self, log: ReadLog) -> None:
        if log.blob in self.disk and not self.world.origin.is_corrupt(log.blob):
            for piece, digest in self.disk[log.blob].items():
                assert digest == self.world.digest(log.blob, piece), "readers see a wrong byte"

    # --- the store ------------------------------------------------------------------------------

    def _confirm(self, blob: BlobId, piece: int, digest: bytes) -> None:
        pieces = self.disk.get(blob)
        if pieces is None:
            return
        pieces[piece] = digest
        for fetch in self.waiters.pop((blob, piece), ()):
            self._serve(fetch)

    def _promote(self, blob: BlobId) -> None:
        if blob not in self.disk or not self.alive:
            return
        key, size, _ = self.keys[blob]
        pieces = self.disk.pop(blob)
        wanted = [self.world.digest(blob, piece) for piece in range(Geometry.of(size).n_pieces)]
        if [pieces.get(piece) for piece in range(len(wanted))] != wanted:
            self.step(m.PromotionFailed(blob, corrupt=True))
            return
        self.done[key.digest] = (size, b"".join(wanted))
        self.step(m.Promoted(blob, b"".join(wanted)))

    def recover(self) -> None:
        """What a restarted peer finds on its disk."""
        for digest, (size, digests) in self.done.items():
            geometry = Geometry.of(size)
            self.step(
                m.BlobFound(digest, None, size, geometry.piece_size, geometry.all_pieces, digests)
            )
        for blob, pieces in self.disk.items():
            key, size, piece_size = self.keys[blob]
            n_pieces = Geometry(size, piece_size).n_pieces
            digests = b"".join(pieces.get(piece, bytes(32)) for piece in range(n_pieces))
            have = bitfield.of(pieces)
            self.step(m.BlobFound(key.digest, key.upstream, size, piece_size, have, digests))
        self.step(m.StoreRecovered())

    def _held(self, blob: BlobId, piece: int) -> bytes | None:
        """The digest of a piece that can be served, None if it is not held."""
        digest = self.disk.get(blob, {}).get(piece)
        if digest is None and self.done:
            known = self.done.get(self.world.keys[blob].digest)
            if known is not None:
                digest = known[1][piece * 32 : piece * 32 + 32]
        return digest

    # --- pieces: the child's side ---------------------------------------------------------------

    def _fetch_piece(self, command: m.FetchPiece) -> None:
        world = self.world
        fetch = PieceFetch(self, world.nodes[command.parent], command, world.clock.now)
        self.fetches[command.attempt] = fetch
        if not world.are_connected(self, fetch.parent):
            world.clock.after(CONNECT_TIMEOUT_S, self.fail, fetch, m.Trouble.DEAD)
            return
        # There and back at once: when the parent decides does not matter to anybody else.
        delay_s = world.latency_s(self, fetch.parent) + world.latency_s(self, fetch.parent)
        world.clock.after(delay_s, fetch.parent.asked, fetch)

    def fail(self, fetch: PieceFetch, trouble: m.Trouble, retry_after_s: float = 0.0) -> None:
        if fetch.is_over:
            return
        fetch.is_over = True
        attempt = fetch.command.attempt
        self.fetches.pop(attempt, None)
        self.world.record_piece(fetch, trouble.value)
        self.step(m.PieceFailed(attempt, trouble, retry_after_s))

    def came(self, is_whole: bool, fetch: PieceFetch) -> float:
        """The transfer is over: all bytes are here, or it took too long."""
        fetch.transfer = None
        fetch.parent.sent(fetch)
        if fetch.is_over:
            return 0.0
        if not is_whole:
            self.fail(fetch, m.Trouble.DEAD)
            return 0.0
        verify_s = self.world.verify_s(fetch.command.stop - fetch.command.start)
        if verify_s:
            self.world.clock.after(verify_s, self._arrived, fetch, verify_s)
        else:
            self._arrived(fetch, 0.0)
        return 0.0

    def _arrived(self, fetch: PieceFetch, verify_s: float) -> None:
        if fetch.is_over or not self.alive:
            return
        fetch.is_over = True
        command = fetch.command
        del self.fetches[command.attempt]
        self.world.count_piece(fetch, verify_s)
        self.step(m.PieceArrived(command.attempt, fetch.digest))

    def _cancel(self, attempt: int) -> None:
        fetch = self.fetches.pop(attempt, None)
        if isinstance(fetch, SpanFetch):
            fetch.cancel()
        elif fetch is not None:
            fetch.is_over = True
            fetch.parent.hung_up(fetch)

    # --- pieces: the parent's side --------------------------------------------------------------

    def asked(self, fetch: PieceFetch) -> None:
        """A child asks for a piece: sent, held back until it is here, or refused."""
        if fetch.is_over:
            return
        if not self.alive:
            fetch.child.fail(fetch, m.Trouble.DEAD)
            return
        blob, piece = fetch.command.blob, fetch.command.piece
        if self._held(blob, piece) is not None:
            self._serve(fetch)
        elif fetch.command.wait:
            self.waiters.setdefault((blob, piece), []).append(fetch)
            self.world.clock.after(WAIT_S, self._waited, fetch)
        else:
            fetch.child.fail(fetch, m.Trouble.MISSING)

    def _waited(self, fetch: PieceFetch) -> None:
        waiting = self.waiters.get((fetch.command.blob, fetch.command.piece), [])
        if fetch in waiting:
            waiting.remove(fetch)
            fetch.child.fail(fetch, m.Trouble.MISSING)

    def _serve(self, fetch: PieceFetch) -> None:
        """Take an upload slot, or a place in the short line before it."""
        if fetch.is_over:
            return
        turn = fetch.command.turn
        is_first = not self.line or turn < self.line[0][0]
        if is_first and self.uploads.begin(fetch, turn, self.world.clock.now):
            self._send(fetch)
        elif len(self.line) < LINE_MAX:
            self.n_asked += 1
            heapq.heappush(self.line, (fetch.command.turn, self.n_asked, fetch))
            self.world.clock.after(SLOT_WAIT_S, self._refuse, fetch)
            self._serve_line()  # a slot may have been taken back
        else:
            fetch.child.fail(fetch, m.Trouble.BUSY, BUSY_RETRY_S)

    def _refuse(self, fetch: PieceFetch) -> None:
        waiting = [each for each in self.line if each[2] is not fetch]
        if not fetch.is_over and len(waiting) < len(self.line):
            self.line = waiting
            heapq.heapify(self.line)
            fetch.child.fail(fetch, m.Trouble.BUSY, BUSY_RETRY_S)

    def _send(self, fetch: PieceFetch) -> None:
        command, child = fetch.command, fetch.child
        digest = self._held(command.blob, command.piece)
        if digest is None:
            self.uploads.end(fetch, self.world.clock.now)
            child.fail(fetch, m.Trouble.MISSING)
            return
        self.n_sending_max = max(self.n_sending_max, self.uploads.n_taken)
        fetch.digest = LIE if self.lies or child.spoils else digest
        fetch.sent_at = self.world.clock.now
        fetch.transfer = self.world.network.begin(
            self.world.route(self, child),
            command.stop - command.start,
            max(PIECE_TIMEOUT_S - (fetch.sent_at - fetch.asked_at), 0.0),
            child.came,
            fetch,
        )

    def sent(self, fetch: PieceFetch) -> None:
        """A body is out, or broken off: its slot goes to the first in line."""
        self.uploads.end(fetch, self.world.clock.now)
        self._serve_line()

    def _serve_line(self) -> None:
        while self.line and self.alive:
            turn, _, fetch = self.line[0]
            if not fetch.is_over and not self.uploads.begin(fetch, turn, self.world.clock.now):
                return
            heapq.heappop(self.line)
            if not fetch.is_over:
                self._send(fetch)

    def hung_up(self, fetch: PieceFetch) -> None:
        """The child does not want it any more."""
        if fetch.transfer is not None:
            left = self.world.network.cancel(fetch.transfer)
            self.world.count_wasted(fetch, left)
            fetch.transfer = None
            self.sent(fetch)

    # --- death ----------------------------------------------------------------------------------

    def die(self) -> None:
        """The process ends: its connections are reset, its disk stays."""
        self.alive = False
        for attempt in list(self.fetches):
            self._cancel(attempt)
        in_line = [each[2] for each in self.line]
        for fetch in [*self.uploads, *in_line, *chain(*self.waiters.values())]:
            if fetch.transfer is not None:
                self.world.count_wasted(fetch, self.world.network.cancel(fetch.transfer))
                fetch.transfer = None
            fetch.child.fail(fetch, m.Trouble.DEAD)
        self.line.clear()
        self.waiters.clear()
        self.uploads = Uploads(self.info.upload_slots)

    def cut_off(self, is_cut: set[PeerId]) -> None:
        """A partition: bodies from beyond it stop, and are given up after a while."""
        for fetch in list(self.fetches.values()):
            if isinstance(fetch, PieceFetch) and fetch.parent.peer in is_cut:
                given_up_s = READ_TIMEOUT_S if fetch.transfer is None else STALL_S
                fetch.parent.hung_up(fetch)
                self.world.clock.after(given_up_s, self.fail, fetch, m.Trouble.STALLED)
