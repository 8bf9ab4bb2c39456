"""Nodes that are to go away: what only they have is brought to others first. Decided here.

::

    begun ──► running ──► done          nothing whole is only there any more, it may be taken away
               ▲   └────► incomplete    something cannot be brought anywhere: no room, no answer
               └──────────────┘ asked for again

What is kept across a restart of the controller is which nodes drain, and what they handed over. The
rest comes from the shards, which are asked all the time what only these nodes have; so a blob that
becomes whole on a draining node later is handed over too, and one that a receiver gave up again.
Each blob has one receiver at a time: of the seeds the one that rendezvous hashing names, then the
next, then other nodes in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from typing_extensions import assert_never

from passel.core import rendezvous
from passel.core.handover import OnlyCopy, Remaining
from passel.core.jobs import Held, Member, MembersSeen
from passel.core.messages import Role
from passel.ids import Digest, PeerId

#: A receiver fetches so many blobs at a time; it is asked again after so long.
AT_ONCE = 4
ASK_EVERY_S = 0.5
#: A receiver that gets nothing for so long is left for another.
PATIENCE_S = 45.0
#: A drain in which nothing moves for so long is given up, until somebody asks again.
STALLED_S = 120.0
#: A receiver's peer may start again, and is back with what it had within so long.
BACK_S = 10.0
#: Blobs that arrived, remembered to see whether they stay.
DONE_MAX = 10_000


class DrainState(str, Enum):
    """See the drawing above."""

    RUNNING = "running"
    DONE = "done"
    INCOMPLETE = "incomplete"


@dataclass(slots=True)
class Drain:
    """One node that is to go away. `blobs` and `bytes` were handed over."""

    peer: PeerId
    node: str
    moved_at: float
    blobs: int = 0
    bytes: int = 0
    state: DrainState = DrainState.RUNNING
    #: Why it does not get on, or was given up.
    trouble: str = ""
    has_given_up: bool = False
    #: (blobs, bytes) that are still only there.
    left: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Task:
    """One blob on its way from draining nodes to one that stays."""

    copy: OnlyCopy
    receiver: PeerId | None = None
    tried: set[PeerId] = field(default_factory=set)
    held_bytes: int = 0
    moved_at: float = 0.0
    ask_at: float = 0.0
    is_begun: bool = False
    trouble: str = ""
    #: Nobody else can be tried.
    has_failed: bool = False
    #: A node that stays has it, its shard says.
    is_done: bool = False
    #: Since when it is missing there again.
    missing_since: float | None = None

    @property
    def is_pending(self) -> bool:
        return not self.is_done and not self.has_failed


# --- events and commands ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun:
    """A node is to go away. Said again, what could not be handed over is tried anew."""

    peer: PeerId
    node: str


@dataclass(frozen=True, slots=True)
class Undone:
    """The node stays after all."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Restored:
    """A drain of the controller's former life."""

    peer: PeerId
    node: str
    blobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ShardsSaid:
    """What all shards answered, by their names; None from one that did not."""

    answers: dict[str, Remaining | None]


@dataclass(frozen=True, slots=True)
class ReceiverSaid:
    """The answer to `AskReceiver`, one `Held` for each blob; None when there was no answer."""

    receiver: PeerId
    digests: tuple[Digest, ...]
    held: tuple[Held, ...] | None


@dataclass(frozen=True, slots=True)
class AskReceiver:
    """Ask a peer to get these blobs if it has room, and how much of each it has."""

    receiver: PeerId
    copies: tuple[OnlyCopy, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Write the drain down."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Forget:
    """Strike the drain out: the node stays, or is gone."""

    peer: PeerId


DrainEvent = Begun | Undone | Restored | MembersSeen | ShardsSaid | ReceiverSaid
DrainCommand = AskReceiver | Keep | Forget


class DrainMachine:
    """All drains of a cluster. Touched only through `handle` and `handle_timer`."""

    def __init__(self) -> None:
        self.drains: dict[PeerId, Drain] = {}
        self.tasks: dict[Digest, Task] = {}
        self.members: dict[PeerId, Member] = {}
        self._out: list[DrainCommand] = []

    def handle(self, event: DrainEvent, now: float) -> list[DrainCommand]:
        """Take in one event."""
        self._out = []
        match event:
            case Begun(peer, node):
                self._begun(peer, node, now)
            case Undone(peer):
                self._forget(peer)
            case Restored(peer, node, blobs, n_bytes):
                self.drains[peer] = Drain(peer, node, now, blobs, n_bytes)
            case MembersSeen(members):
                self.members = {member.peer: member for member in members}
                for peer in [peer for peer in self.drains if peer not in self.members]:
                    self._forget(peer)
            case ShardsSaid(answers):
                self._shards_said(answers, now)
            case ReceiverSaid(receiver, digests, held):
                self._receiver_said(receiver, digests, held, now)
            case _:
                assert_never(event)
        return self._out

    def handle_timer(self, now: float) -> list[DrainCommand]:
        """Give every blob a receiver, ask those whose turn it is, give up what does not move."""
        self._out = []
        by_receiver: dict[PeerId, list[Task]] = {}
        for task in self.tasks.values():
            if not task.is_pending:
                continue
            self._leave_silent(task, now)
            if task.receiver is None:
                self._choose(task)
            if task.receiver is not None:
                by_receiver.setdefault(task.receiver, []).append(task)
        for receiver, tasks in by_receiver.items():
            # Those that are on their way first: they keep their places.
            tasks.sort(key=lambda task: not task.is_begun)
            self._ask(receiver, tasks[:AT_ONCE], now)
        for drain in self.drains.values():
            if drain.state is DrainState.RUNNING and now > drain.moved_at + STALLED_S:
                drain.has_given_up = True
                drain.state = DrainState.INCOMPLETE
                drain.trouble = drain.trouble or f"nothing moved for {STALLED_S:g} s"
        return self._out

    def pending(self, peer: PeerId) -> list[Task]:
        """What only this node has, as far as it is known by name, the hopeless first."""
        found = [t for t in self.tasks.values() if not t.is_done and peer in t.copy.holders]
        return sorted(found, key=lambda task: not task.has_failed)

    def under_way(self) -> tuple[Digest, ...]:
        """The blobs that a receiver is getting: whether it has them the shards say."""
        return tuple(d for d, t in self.tasks.items() if t.is_pending and t.is_begun)

    def check_invariants(self) -> None:
        """What must hold between any two events."""
        for peer, drain in self.drains.items():
            assert drain.peer == peer
            assert drain.blobs >= 0
            assert drain.bytes >= 0
        for digest, task in self.tasks.items():
            assert task.copy.digest == digest
            assert not (task.has_failed and task.receiver is not None)
            assert task.receiver not in task.tried

    def _begun(self, peer: PeerId, node: str, now: float) -> None:
        drain = self.drains.get(peer)
        if drain is None:
            drain = self.drains[peer] = Drain(peer, node, now)
        drain.moved_at = now
        drain.has_given_up = False
        drain.state, drain.trouble = DrainState.RUNNING, ""
        for digest, task in list(self.tasks.items()):
            if not task.is_done and peer in task.copy.holders:
                del self.tasks[digest]
        self._out.append(Keep(peer))

    def _forget(self, peer: PeerId) -> None:
        if self.drains.pop(peer, None) is None:
            return
        for digest, task in list(self.tasks.items()):
            if peer in task.copy.holders:
                del self.tasks[digest]  # shards name it again, if others that drain have it too
        self._out.append(Forget(peer))

    # --- what shards say ------------------------------------------------------------------------

    def _shards_said(self, answers: dict[str, Remaining | None], now: float) -> None:
        listed = {
            copy.digest: copy
            for answer in answers.values()
            if answer is not None
            for copy in answer.copies
            if all(holder in self.drains for holder in copy.holders)
        }
        kept = {d for each in answers.values() if each is not None for d in each.kept}
        for digest in kept & self.tasks.keys():
            self._done(self.tasks[digest], now)
        for digest, copy in listed.items():
            self._note(digest, copy, now)
        if all(answer is not None for answer in answers.values()):
            for digest in [digest for digest in self.tasks if digest not in listed]:
                self.tasks[digest].missing_since = None
                if not self.tasks[digest].is_done:
                    del self.tasks[digest]  # others have it without our doing, or nobody
        done = [digest for digest, task in self.tasks.items() if task.is_done]
        for digest in done[: max(0, len(done) - DONE_MAX)]:
            del self.tasks[digest]
        unsettled = {
            holder
            for digest, copy in listed.items()
            if digest in self.tasks and not self.tasks[digest].has_failed
            for holder in copy.holders
        }
        for drain in self.drains.values():
            self._judge(drain, answers, drain.peer in unsettled, now)

    def _note(self, digest: Digest, copy: OnlyCopy, now: float) -> None:
        task = self.tasks.get(digest)
        if task is None:
            self.tasks[digest] = Task(copy, moved_at=now)
            return
        task.copy = copy
        if not task.is_done:
            return
        if task.missing_since is None:
            task.missing_since = now
        elif now > task.missing_since + BACK_S:
            self._credit(copy, -1)
            task.is_done, task.missing_since = False, None
            self._leave(task, "it had the blob and has it no more")

    def _done(self, task: Task, now: float) -> None:
        if task.is_pending and task.is_begun:
            task.is_done = True
            self._moved(task.copy.holders, now)
            self._credit(task.copy, 1)

    def _judge(
        self, drain: Drain, answers: dict[str, Remaining | None], is_pending: bool, now: float
    ) -> None:
        """Whether the node may go, by what the shards say."""
        totals = [answer.totals.get(drain.peer, (0, 0)) for answer in answers.values() if answer]
        drain.left = sum(n for n, _ in totals), sum(n for _, n in totals)
        if drain.has_given_up:
            return
        if drain.state is not DrainState.RUNNING:
            drain.moved_at = now  # should it be running again, it is from now on
        drain.state = DrainState.RUNNING
        silent = [name for name, each in answers.items() if each is None]
        unsure = [n for n, each in answers.items() if each and drain.peer not in each.heard]
        fetches = any(each is not None and drain.peer in each.fetching for each in answers.values())
        if silent:
            drain.trouble = f"{silent[0]} does not answer"
        elif unsure:
            drain.trouble = f"{unsure[0]} has not heard yet all that the node has"
        elif is_pending:
            drain.trouble = ""
        elif drain.left[0]:
            drain.trouble = "some blobs found no other node"
            drain.state = DrainState.INCOMPLETE
        elif fetches:
            drain.trouble = "the node is still fetching from a registry"
        else:
            drain.trouble = ""
            drain.state = DrainState.DONE

    # --- receivers ------------------------------------------------------------------------------

    def _choose(self, task: Task) -> None:
        """The next receiver for a blob; without any left it has failed."""
        able = [
            member
            for peer, member in self.members.items()
            if peer not in self.drains and peer not in task.tried
        ]
        seeds = [member.peer for member in able if member.role is Role.SEED]
        others = [member.peer for member in able if member.role is not Role.SEED]
        chosen = rendezvous.owner(str(task.copy.digest), seeds or others)
        if chosen is None:
            task.has_failed = True
            task.trouble = task.trouble or "there is no other node"
            return
        task.receiver, task.held_bytes, task.is_begun = PeerId(chosen), 0, False

    def _leave_silent(self, task: Task, now: float) -> None:
        receiver = task.receiver
        if receiver is None:
            return
        if receiver not in self.members or receiver in self.drains:
            task.receiver = None
        elif task.is_begun and now > task.moved_at + PATIENCE_S:
            self._leave(task, f"nothing came there for {PATIENCE_S:g} s")

    def _leave(self, task: Task, why: str) -> None:
        receiver, task.receiver = task.receiver, None
        if receiver is not None:
            task.tried.add(receiver)
            member = self.members.get(receiver)
            task.trouble = f"{receiver if member is None else member.node}: {why}"

    def _ask(self, receiver: PeerId, tasks: list[Task], now: float) -> None:
        for task in tasks:
            if not task.is_begun:
                task.is_begun, task.moved_at = True, now
        due = [task for task in tasks if now >= task.ask_at]
        for task in due:
            task.ask_at = now + ASK_EVERY_S
        if due:
            self._out.append(AskReceiver(receiver, tuple(task.copy for task in due)))

    def _receiver_said(
        self,
        receiver: PeerId,
        digests: tuple[Digest, ...],
        held: tuple[Held, ...] | None,
        now: float,
    ) -> None:
        if held is None:
            return  # patience will end
        for digest, each in zip(digests, held, strict=True):
            task = self.tasks.get(digest)
            if task is None or task.receiver != receiver or not task.is_pending:
                continue
            if each.trouble and not each.complete:
                self._leave(task, each.trouble)
                self._moved(task.copy.holders, now)
            elif each.held_bytes > task.held_bytes:
                task.held_bytes, task.moved_at = each.held_bytes, now
                self._moved(task.copy.holders, now)

    def _moved(self, peers: Iterable[PeerId], now: float) -> None:
        for peer in peers:
            drain = self.drains.get(peer)
            if drain is not None:
                drain.moved_at = now

    def _credit(self, copy: OnlyCopy, sign: int) -> None:
        for holder in copy.holders:
            drain = self.drains.get(holder)
            if drain is not None:
                drain.blobs = max(0, drain.blobs + sign)
                drain.bytes = max(0, drain.bytes + sign * copy.size)
                self._out.append(Keep(holder))
