"""What operators ask of the controller: jobs, blobs, removal. A shell around the `JobMachine`."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from typing_extensions import assert_never

from passel.actors.configuring import Configuring
from passel.actors.draining import Draining, member_of
from passel.actors.duties import Duties
from passel.actors.handles import (
    PeerHandle,
    ShardHandle,
    own_node,
    strike_out,
    write_down,
    written_down,
)
from passel.actors.pinning import Pinning, facts, stamp
from passel.actors.resolving import resolve
from passel.actors.rotating import Rotation
from passel.actors.scheduling import Scheduling
from passel.actors.words import PeerSpec
from passel.config.sections import Config
from passel.core.inventory import BlobEntry
from passel.core.jobs import (
    Ask,
    Cancelled,
    Forget,
    Job,
    JobCommand,
    JobEvent,
    JobMachine,
    JobState,
    Keep,
    MembersSeen,
    NodeSaid,
    Order,
    Restored,
    Submitted,
    Wanted,
    check_to,
)
from passel.core.messages import Role
from passel.errors import InputError, PeerUnavailable
from passel.ids import BlobRef, Digest, PeerId
from passel.oci.names import parse_repository
from passel.telemetry.series import Measure, controller_measures

log = logging.getLogger(__name__)

TICK_S = 0.5
ASK_TIMEOUT_S = 5.0
GATEWAY_TIMEOUT_S = 2.0
BLOBS_LISTED_MAX = 10_000
WHAT_MAX = 1000
TTL_MAX_S = 36_500 * 86_400.0
_KEY = "job/"


class Admin:
    """Belongs to the controller's event loop. `specs` and `peers` are the controller's own."""

    def __init__(
        self,
        duties: Duties,
        config: Config,
        shards: list[ShardHandle],
        specs: dict[PeerId, PeerSpec],
        peers: dict[PeerId, PeerHandle],
        rotation: Rotation,
    ) -> None:
        self._duties = duties
        self.configuring = Configuring(config, specs, peers)
        self._shards = shards
        self._specs = specs
        self._peers = peers
        self._rotation = rotation
        self._machine = JobMachine()
        self.draining = Draining(duties, self.configuring, shards, specs, peers)
        self._pinning = Pinning(peers)
        self._scheduling = Scheduling(self._submit)
        self._loop = asyncio.get_running_loop()
        self._is_restored = asyncio.Event()
        self._writing = asyncio.Lock()
        self._last_write: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """For ever: take up the jobs of a former life, then look after all of them."""
        for value in await asyncio.to_thread(written_down, _KEY):
            try:
                self._step(_restored(value))
            except (ValueError, KeyError, TypeError, InputError) as error:
                log.error("job_unreadable why=%s", error)
        await self.draining.restore()
        await self._pinning.restore()
        await self._scheduling.restore()
        await self.configuring.restore()
        self._is_restored.set()
        self._duties.start(self._pinning.run(self._duties))
        self._duties.start(self._scheduling.run(self._duties, lambda: bool(self._machine.members)))
        self._duties.start(self.configuring.run(self._duties))
        while True:
            staying = (s for s in self._specs.values() if s.peer not in self.draining.peers)
            self._step(MembersSeen(tuple(member_of(spec) for spec in staying)))
            self._perform(self._machine.handle_timer(self._loop.time()))
            await asyncio.sleep(TICK_S)

    async def drain(self) -> None:
        """For ever: hand over what only nodes have that are to go away. All nodes are known."""
        await self._is_restored.wait()
        await self.draining.run()

    async def answer(self, verb: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """An HTTP status, and the facts or the error in the shape of the registry API."""
        verbs: dict[str, Callable[[dict[str, Any]], Any]] = {
            "jobs": self._jobs,
            "submit": self._submit,
            "cancel": self._cancel,
            "blobs": self._blobs,
            "remove": self._remove,
            "pins": self._pins,
            "pin": self._pin,
            "unpin": self._unpin,
            "apply": self._apply,
            "config": self._config_facts,
            "schedules": self._schedules,
            "schedule": self._schedule,
            "unschedule": self._unschedule,
            "rotate": self._rotate,
            "drains": self._drains,
            "drain": self._drain,
            "undrain": self._undrain,
        }
        await asyncio.wait_for(self._is_restored.wait(), ASK_TIMEOUT_S)
        try:
            if verb not in verbs:
                raise InputError(404, "UNSUPPORTED", f"expected one of {', '.join(verbs)}")
            for name in (fields.get("what", ""), fields.get("node", "")):
                if not isinstance(name, str) or not name.isprintable() or len(name) > WHAT_MAX:
                    text = f"a name is text of {WHAT_MAX} characters at most, on one line"
                    raise InputError(400, "NAME_INVALID", text)
            return 200, await verbs[verb](fields)
        except InputError as error:
            return error.status, _error(error.code, error.message)
        except (KeyError, TypeError, ValueError) as error:
            return 400, _error("UNSUPPORTED", f"the request lacks something: {error!r}")

    def measures(self) -> Iterable[Measure]:
        """Nodes by role and jobs by state, as Prometheus is told."""
        roles = Counter({role.value: 0 for role in Role})
        roles.update(spec.role.value for spec in self._specs.values())
        states = Counter({state.value: 0 for state in JobState})
        states.update(job.state.value for job in self._machine.jobs.values())
        return controller_measures(roles, states)

    def newest_jobs(self, limit: int) -> list[dict[str, Any]]:
        """The facts of so many jobs: those that run, then the newest of the others."""
        newest = list(reversed(self._machine.jobs.values()))
        newest.sort(key=lambda job: job.state is not JobState.RUNNING)
        return [self._facts(job) for job in newest[:limit]]

    # --- verbs ----------------------------------------------------------------------------------

    async def _jobs(self, fields: dict[str, Any]) -> dict[str, Any]:
        wanted = fields.get("job")
        jobs = [
            self._facts(job) for name, job in self._machine.jobs.items() if wanted in (None, name)
        ]
        if wanted is not None and not jobs:
            raise InputError(404, "UNSUPPORTED", f"there is no job {wanted}: see passel jobs")
        return {"jobs": jobs}

    async def _submit(self, fields: dict[str, Any]) -> dict[str, Any]:
        order = await self._ordered(fields)
        ttl_s = _ttl_s(fields)
        for upstream in {wanted.ref.upstream for wanted in order.blobs}:
            if upstream not in self.configuring.config.upstreams:
                known = ", ".join(list(self.configuring.config.upstreams)[:8])
                text = f"there is no upstream {upstream}; upstreams are {known}"
                raise InputError(400, "NAME_UNKNOWN", text)
        self._step(Submitted(order, time.time()))
        if ttl_s is not None:
            await self._pinning.pin(order.what, _digests(order), ttl_s)
        await self._all_written()
        return self._facts(self._machine.jobs[order.id])

    async def _ordered(self, fields: dict[str, Any]) -> Order:
        """The order that `fields` has; what an image is made of is found out here if need be."""
        if "blobs" not in fields:
            check_to(str(fields["to"]))
            digest = fields.get("digest")
            blobs = await resolve(
                await self._gateway(), str(fields["what"]), str(fields["platform"]), digest
            )
            fields = {**fields, "blobs": blobs}
        return _order(fields)

    async def _gateway(self) -> str | None:
        """The gateway of this node, as its peer knows it."""
        peer = self._peers.get(PeerId(own_node()))
        try:
            return None if peer is None else (await peer.status(GATEWAY_TIMEOUT_S))["gateway"]
        except PeerUnavailable:
            return None

    async def _pins(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"pins": [facts(pin) for pin in self._pinning.machine.pins.values()]}

    async def _pin(self, fields: dict[str, Any]) -> dict[str, Any]:
        what = str(fields["what"])
        if what.startswith("sha256:"):
            digests: tuple[Digest, ...] = (Digest.parse(what),)
        else:
            digests = _digests(await self._ordered({**fields, "to": "all"}))
        return await self._pinning.pin(what, digests, _ttl_s(fields))

    async def _unpin(self, fields: dict[str, Any]) -> dict[str, Any]:
        return await self._pinning.unpin(str(fields["what"]))

    async def _rotate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Begin to replace the cluster's secret, or only say how far that is."""
        return await self._rotation.begin() if fields["begin"] else self._rotation.facts()

    async def _drains(self, fields: dict[str, Any]) -> dict[str, Any]:
        node = fields.get("node")
        return {"drains": self.draining.all() if node is None else [self.draining.one(str(node))]}

    async def _drain(self, fields: dict[str, Any]) -> dict[str, Any]:
        return await self.draining.begin(str(fields["node"]))

    async def _undrain(self, fields: dict[str, Any]) -> dict[str, Any]:
        return await self.draining.undo(str(fields["node"]))

    async def _cancel(self, fields: dict[str, Any]) -> dict[str, Any]:
        name = str(fields["job"])
        self._step(Cancelled(name))
        await self._all_written()
        return self._facts(self._machine.jobs[name])

    async def _blobs(self, fields: dict[str, Any]) -> dict[str, Any]:
        limit = max(1, min(int(fields.get("limit", BLOBS_LISTED_MAX)), BLOBS_LISTED_MAX))
        entries: list[BlobEntry] = []
        total = 0
        silent = []
        for shard in self._shards:
            try:
                some, count = await shard.blobs(limit, ASK_TIMEOUT_S)
            except PeerUnavailable:
                silent.append(shard.name)
                continue
            entries += some
            total += count
        entries.sort(key=lambda each: each.digest)
        ends = {str(digest): end for digest, end in self._pinning.machine.ends().items()}
        blobs = [_blob_facts(each, ends) for each in entries[:limit]]
        return {"blobs": blobs, "total": total, "away": silent}

    async def _apply(self, fields: dict[str, Any]) -> dict[str, Any]:
        written = {str(key): str(value) for key, value in dict(fields["written"]).items()}
        return await self.configuring.apply(str(fields["text"]), written)

    async def _config_facts(self, fields: dict[str, Any]) -> dict[str, Any]:
        return self.configuring.facts()

    async def _schedules(self, fields: dict[str, Any]) -> dict[str, Any]:
        return self._scheduling.all()

    async def _schedule(self, fields: dict[str, Any]) -> dict[str, Any]:
        return await self._scheduling.plan(fields, _ttl_s(fields))

    async def _unschedule(self, fields: dict[str, Any]) -> dict[str, Any]:
        return await self._scheduling.drop(str(fields["schedule"]))

    async def _remove(self, fields: dict[str, Any]) -> dict[str, Any]:
        digest = Digest.parse(str(fields["digest"]))
        specs = list(self._specs.values())
        answers = await asyncio.gather(*(self._remove_from(spec.peer, digest) for spec in specs))
        told = dict(zip((spec.place.node for spec in specs), answers, strict=True))
        return {
            "digest": str(digest),
            "removed": sorted(node for node, gone in told.items() if gone),
            "away": sorted(node for node, gone in told.items() if gone is None),
        }

    async def _remove_from(self, peer: PeerId, digest: Digest) -> bool | None:
        try:
            return await self._peers[peer].remove(str(digest), ASK_TIMEOUT_S)
        except PeerUnavailable:
            return None

    def _facts(self, job: Job) -> dict[str, Any]:
        order = job.order
        sizes = [wanted.size for wanted in order.blobs]
        nodes = []
        for peer, share in job.shares.items():
            member = self._machine.members[peer]
            nodes.append(
                {
                    "node": member.node,
                    "zone": member.zone,
                    "blobs": len(share.done),
                    "bytes": sum(share.held_bytes.values()),
                    "trouble": next(iter(share.refused.values()), share.trouble),
                }
            )
        return {
            "job": order.id,
            "what": order.what,
            "to": order.to,
            "state": job.state.value,
            "trouble": job.trouble,
            "created": stamp(job.created_s),
            "blobs": len(order.blobs),
            "bytes": sum(size for size in sizes if size is not None),
            "nodes": sorted(nodes, key=lambda node: str(node["node"])),
        }

    # --- the machine ----------------------------------------------------------------------------

    def _step(self, event: JobEvent) -> None:
        self._perform(self._machine.handle(event, self._loop.time()))

    def _perform(self, commands: list[JobCommand]) -> None:
        for command in commands:
            match command:
                case Ask():
                    self._duties.start(self._ask(command))
                case Keep(name):
                    job = self._machine.jobs[name]
                    log.info("job_%s job=%s what=%s", job.state.value, name, job.order.what)
                    self._last_write = self._duties.task(self._write(name, _written(job)))
                case Forget(name):
                    self._last_write = self._duties.task(self._write(name, None))
                case _:
                    assert_never(command)

    async def _ask(self, command: Ask) -> None:
        job = self._machine.jobs.get(command.job)
        if job is None:
            return  # it was forgotten a moment ago
        blobs = job.order.blobs
        refs = tuple(blobs[index].ref for index in command.blobs)
        handle = self._peers.get(command.peer)
        held = None
        if handle is not None:
            try:
                held = await handle.hold(refs, ASK_TIMEOUT_S)
            except PeerUnavailable:
                held = None
        self._step(NodeSaid(command.job, command.peer, command.blobs, held))

    async def _all_written(self) -> None:
        """What was promised to somebody survives this process."""
        if self._last_write is not None:
            await asyncio.shield(self._last_write)

    async def _write(self, name: str, value: bytes | None) -> None:
        async with self._writing:  # in the order of what happened
            if value is None:
                await asyncio.to_thread(strike_out, _KEY + name)
            else:
                await asyncio.to_thread(write_down, _KEY + name, value)


def _order(fields: dict[str, Any]) -> Order:
    """An order from JSON. Raises InputError, KeyError, TypeError or ValueError."""
    blobs = []
    for each in fields["blobs"]:
        size = each.get("size")
        digest = Digest.parse(str(each["digest"]))
        repository = parse_repository(str(each["repository"]))
        ref = BlobRef(str(each["upstream"]), repository, digest)
        blobs.append(Wanted(ref, None if size is None else int(size)))
    return Order(str(fields["what"]), check_to(str(fields["to"])), tuple(blobs))


def _blob_facts(entry: BlobEntry, ends: dict[str, float | None]) -> dict[str, Any]:
    end = ends.get(entry.digest)
    until = None if end is None else stamp(end)
    return {**asdict(entry), "pinned": entry.digest in ends, "pinned_until": until}


def _ttl_s(fields: dict[str, Any]) -> float | None:
    """For how long a pin is to hold, in seconds; None: nothing was said."""
    ttl = fields.get("ttl_s")
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl <= TTL_MAX_S:
        raise InputError(
            400, "UNSUPPORTED", "a time to live is more than 0 s, and 100 years at most"
        )
    return float(ttl)


def _digests(order: Order) -> tuple[Digest, ...]:
    return tuple(dict.fromkeys(wanted.ref.digest for wanted in order.blobs))


def _written(job: Job) -> bytes:
    order = job.order
    blobs = [
        {
            "upstream": wanted.ref.upstream,
            "repository": wanted.ref.repository,
            "digest": str(wanted.ref.digest),
            "size": wanted.size,
        }
        for wanted in order.blobs
    ]
    fields = {
        "what": order.what,
        "to": order.to,
        "blobs": blobs,
        "state": job.state.value,
        "created_s": job.created_s,
        "trouble": job.trouble,
    }
    return json.dumps(fields).encode()


def _restored(value: bytes) -> Restored:
    fields = json.loads(value)
    order = _order(fields)
    return Restored(
        order, JobState(fields["state"]), float(fields["created_s"]), str(fields["trouble"])
    )


def _error(code: str, message: str) -> dict[str, Any]:
    return {"errors": [{"code": code, "message": message}]}
