"""Preheats: blobs that are to be on certain nodes before anybody asks. Decided here, run elsewhere.

::

    submitted ──► running ──► done         every chosen node has had every blob
                     │   └──► failed       a registry refuses a blob, or nothing moves any more
                     └──────► cancelled

What is kept across a restart of the controller is the order and its state. Progress is not: nodes
are asked, again and again, to have the blobs and say how far they are; asking is idempotent. Nodes
that join while a job runs are chosen too, nodes that go are forgotten.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum

from typing_extensions import assert_never

from passel.core.messages import Role
from passel.errors import InputError
from passel.ids import BlobRef, PeerId

JOBS_MAX = 200
BLOBS_MAX = 5000
#: A job fails when none of its nodes gets a byte further for so long.
STALLED_S = 600.0
#: A node is asked for so many blobs at a time that it does not have yet, in the job's order.
ASK_MAX = 64
#: A node is asked again after half a second, in a large cluster later: so many asks in a second.
ASK_EVERY_S = 0.5
ASKS_PER_S = 500.0
#: What only the operator can change: the same request would be answered in the same way.
_FINAL = (401, 403, 404)


class JobState(str, Enum):
    """See the drawing above."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob of a job; its size as the manifest tells it, None when nothing does."""

    ref: BlobRef
    size: int | None


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants to be where. The same order always has the same id."""

    what: str
    to: str
    blobs: tuple[Wanted, ...]

    @property
    def id(self) -> str:
        lines = [
            self.to,
            *(f"{w.ref.upstream} {w.ref.repository} {w.ref.digest}" for w in self.blobs),
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Member:
    """A live node, as far as jobs care."""

    peer: PeerId
    node: str
    zone: str
    role: Role


@dataclass(frozen=True, slots=True)
class Held:
    """How much of one blob a peer has. `status` is the HTTP status of a refusal, 0 for none."""

    held_bytes: int
    size: int | None
    complete: bool
    status: int = 0
    trouble: str = ""


@dataclass(slots=True)
class Share:
    """One node's part of a job. A blob that was whole once counts, even if it is evicted later."""

    done: set[int] = field(default_factory=set)
    held_bytes: dict[int, int] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    trouble: str = ""
    #: When to ask next; None while an answer is awaited.
    ask_at: float | None = 0.0

    def missing(self, n_blobs: int) -> list[int]:
        """The blobs to ask for next, by index."""
        over = self.done | self.refused.keys()
        return [i for i in range(n_blobs) if i not in over][:ASK_MAX]


@dataclass(slots=True)
class Job:
    """An order, and how far it is. `created_s` is wall time, for people."""

    order: Order
    state: JobState
    created_s: float
    moved_at: float
    trouble: str = ""
    shares: dict[PeerId, Share] = field(default_factory=dict)


# --- events and commands ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """Somebody wants this; wall time in seconds. Said again, it changes nothing while it runs."""

    order: Order
    wall_s: float


@dataclass(frozen=True, slots=True)
class Restored:
    """A job of the controller's former life."""

    order: Order
    state: JobState
    created_s: float
    trouble: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody wants it any more. What is on its way to a node still arrives there."""

    job: str


@dataclass(frozen=True, slots=True)
class MembersSeen:
    """All nodes that are alive."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class NodeSaid:
    """The answer to `Ask`, one `Held` for each blob; None when there was no answer."""

    job: str
    peer: PeerId
    blobs: tuple[int, ...]
    held: tuple[Held, ...] | None


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a peer to have these blobs (by index in the order), and how much of each it has."""

    job: str
    peer: PeerId
    blobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Write the job down."""

    job: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Strike the job out: newer ones need the room."""

    job: str


JobEvent = Submitted | Restored | Cancelled | MembersSeen | NodeSaid
JobCommand = Ask | Keep | Forget


class JobMachine:
    """All jobs of a cluster. Touched only through `handle` and `handle_timer`."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.members: dict[PeerId, Member] = {}
        self._out: list[JobCommand] = []

    def handle(self, event: JobEvent, now: float) -> list[JobCommand]:
        """Take in one event. Raises InputError for an order that cannot be."""
        self._out = []
        match event:
            case Submitted(order, wall_s):
                self._submitted(order, wall_s, now)
            case Restored(order, state, created_s, trouble):
                self.jobs[order.id] = Job(order, state, created_s, now, trouble)
            case Cancelled(job):
                if self._job(job).state is JobState.RUNNING:
                    self._end(job, JobState.CANCELLED, "")
            case MembersSeen(members):
                self.members = {member.peer: member for member in members}
                self._choose(now)
            case NodeSaid(job, peer, blobs, held):
                self._node_said(job, peer, blobs, held, now)
            case _:
                assert_never(event)
        return self._out

    def handle_timer(self, now: float) -> list[JobCommand]:
        """Ask every node that has something to do and is not being asked; end what is over."""
        self._out = []
        for name, job in list(self.jobs.items()):
            if job.state is not JobState.RUNNING:
                continue
            for peer, share in job.shares.items():
                missing = share.missing(len(job.order.blobs))
                if missing and share.ask_at is not None and now >= share.ask_at:
                    share.ask_at = None
                    self._out.append(Ask(name, peer, tuple(missing)))
            if now > job.moved_at + STALLED_S:
                troubles = sorted({share.trouble for share in job.shares.values()} - {""})
                why = troubles[0] if troubles else "no node that it is for is alive"
                self._end(name, JobState.FAILED, f"nothing moved for {STALLED_S:g} s: {why}")
        return self._out

    def check_invariants(self) -> None:
        """What must hold between any two events."""
        assert len(self.jobs) <= JOBS_MAX
        for name, job in self.jobs.items():
            assert name == job.order.id
            assert job.shares.keys() <= self.members.keys()
            for share in job.shares.values():
                assert not share.done & share.refused.keys()
            if job.state is JobState.RUNNING and job.shares:
                assert any(share.missing(len(job.order.blobs)) for share in job.shares.values())

    def _submitted(self, order: Order, wall_s: float, now: float) -> None:
        if not order.blobs or len(order.blobs) > BLOBS_MAX:
            text = f"a job is for 1 to {BLOBS_MAX} blobs, not for {len(order.blobs)}"
            raise InputError(400, "UNSUPPORTED", text)
        if not self.members:
            text = "no node has its peer yet: try again in a moment"
            raise InputError(503, "TOOMANYREQUESTS", text)
        if not [each for each in self.members.values() if is_chosen(order.to, each)]:
            raise InputError(400, "UNSUPPORTED", nobody(order.to, list(self.members.values())))
        known = self.jobs.get(order.id)
        if known is not None and known.state is JobState.RUNNING:
            return
        # Asked for again: what has been evicted since comes back, what is there costs one question.
        self.jobs.pop(order.id, None)
        self._make_room()
        self.jobs[order.id] = Job(order, JobState.RUNNING, wall_s, now)
        self._out.append(Keep(order.id))
        self._choose(now)

    def _make_room(self) -> None:
        over = [name for name, job in self.jobs.items() if job.state is not JobState.RUNNING]
        while len(self.jobs) >= JOBS_MAX:
            if not over:
                text = f"{JOBS_MAX} jobs are running already: wait, or cancel some"
                raise InputError(503, "TOOMANYREQUESTS", text)
            name = over.pop(0)
            del self.jobs[name]
            self._out.append(Forget(name))

    def _job(self, name: str) -> Job:
        job = self.jobs.get(name)
        if job is None:
            raise InputError(404, "UNSUPPORTED", f"there is no job {name}: see passel jobs")
        return job

    def _choose(self, now: float) -> None:
        for name, job in list(self.jobs.items()):
            for peer in [peer for peer in job.shares if peer not in self.members]:
                del job.shares[peer]
            if job.state is not JobState.RUNNING:
                continue
            for peer, member in self.members.items():
                if peer not in job.shares and is_chosen(job.order.to, member):
                    job.shares[peer] = Share()
                    job.moved_at = now
            self._maybe_over(name, job)

    def _node_said(
        self,
        name: str,
        peer: PeerId,
        blobs: tuple[int, ...],
        held: tuple[Held, ...] | None,
        now: float,
    ) -> None:
        job = self.jobs.get(name)
        share = None if job is None else job.shares.get(peer)
        if job is None or share is None:
            return
        share.ask_at = now + max(ASK_EVERY_S, len(job.shares) / ASKS_PER_S)
        if held is None:
            share.trouble = "its peer does not answer"
            return
        share.trouble = next((each.trouble for each in held if each.trouble), "")
        for index, each in zip(blobs, held, strict=True):
            if each.held_bytes > share.held_bytes.get(index, 0) or each.complete:
                job.moved_at = now
            share.held_bytes[index] = each.held_bytes
            if each.complete:
                share.done.add(index)
                share.refused.pop(index, None)
            elif each.status in _FINAL:
                share.refused[index] = each.trouble
        if job.state is JobState.RUNNING:
            self._maybe_over(name, job)

    def _maybe_over(self, name: str, job: Job) -> None:
        n_blobs = len(job.order.blobs)
        if not job.shares or any(share.missing(n_blobs) for share in job.shares.values()):
            return
        refused = [why for share in job.shares.values() for why in share.refused.values()]
        state = JobState.FAILED if refused else JobState.DONE
        self._end(name, state, refused[0] if refused else "")

    def _end(self, name: str, state: JobState, trouble: str) -> None:
        job = self.jobs[name]
        job.state, job.trouble = state, trouble
        self._out.append(Keep(name))


def is_chosen(to: str, member: Member) -> bool:
    """Whether a node is one of those that `to` means."""
    kind, _, value = to.partition("=")
    match kind:
        case "all":
            return True
        case "seeds":
            return member.role is Role.SEED
        case "zone":
            return member.zone == value
        case "node":
            return member.node == value
        case _:
            return False


def check_to(to: str) -> str:
    """`to`, if it can be one. Raises InputError."""
    kind, equals, value = to.partition("=")
    if to in ("all", "seeds") or (kind in ("zone", "node") and equals and value):
        return to
    text = f"expected all, seeds, zone=<zone> or node=<node>, got {to!r}"
    raise InputError(400, "UNSUPPORTED", text)


def nobody(to: str, members: list[Member]) -> str:
    """The sentence for an order that no node is meant by."""
    kind, _, _ = check_to(to).partition("=")
    if kind == "zone":
        zones = sorted({member.zone or "(none)" for member in members})
        return f"no node is in {to}; zones are {', '.join(zones[:20])}"
    if kind == "node":
        nodes = sorted(member.node for member in members)
        return f"there is no {to}; nodes are {', '.join(nodes[:20])}"
    return f"no node is meant by {to}"
