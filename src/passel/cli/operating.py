"""`passel preheat`, `jobs`, `pin`, `ls`, `rm`, `rotate`, `drain`: what controllers do."""

from __future__ import annotations

import contextlib
import platform as machine
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from passel.cli.cluster import JsonOption, StateOption, state_folder
from passel.cli.console import err, errors_are_sentences, fail, out, print_json, print_table, size
from passel.client import Client
from passel.config import parse_duration
from passel.errors import InputError, PasselError, PeerBusy, TransientError
from passel.ids import Digest

WATCH_EVERY_S = 0.5
#: A controller that restarts is back within seconds.
AWAY_MAX_S = 60.0
#: All nodes answer within a second; the new secret alone counts 10 s later.
ROTATION_MAX_S = 60.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

ConfigOption = Annotated[
    Path | None,
    typer.Option(envvar="PASSEL_CONFIG", help="The configuration of this node of a Ray cluster."),
]


TtlOption = Annotated[
    str | None, typer.Option(help="Not to be evicted for so long: 7d, 12 h. [no promise]")
]


def _seconds(option: str, text: str | None) -> float | None:
    """A length of time as it was typed. Raises InputError."""
    try:
        seconds = None if text is None else parse_duration(text).total_seconds()
    except ValueError as error:
        raise InputError(400, "UNSUPPORTED", f"{option}: {error}, got {text}") from None
    if seconds is not None and seconds <= 0:
        raise InputError(400, "UNSUPPORTED", f"{option}: expected more than 0 s, got {text}")
    return seconds


def _client(state: Path | None, config: Path | None) -> Client:
    """The cluster of this host: the one in a state folder that is named, or of a configuration."""
    return Client(state=state_folder(state).path, config=config if state is None else None)


def preheat(
    what: Annotated[str, typer.Argument(help="UPSTREAM/REPO:TAG, UPSTREAM/REPO@DIGEST or a URL.")],
    to: Annotated[str, typer.Option(help="all, seeds, zone=ZONE or node=NODE.")] = "all",
    platform: Annotated[
        str | None, typer.Option(help="OS/ARCHITECTURE of an image, or all. [this host's]")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it is done.")] = False,
    ttl: TtlOption = None,
    every: Annotated[
        str | None, typer.Option(help="Again and again, from now on: 6h, 30 min.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Each day at HH:MM (UTC).")] = None,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring an image or a blob to nodes before anybody asks for it."""
    with errors_are_sentences():
        client = _client(state, config)
        platform, ttl_s = platform or _own_platform(), _seconds("--ttl", ttl)
        if every is not None or at is not None:
            if watch:
                fail("a schedule has no end to watch for: leave --watch out", 2)
            every_s = _seconds("--every", every)
            facts = client.schedule(
                what, every_s=every_s, at=at, to=to, platform=platform, ttl_s=ttl_s
            )
            print_json(facts) if as_json else _print_schedules([facts])
            return
        facts = client.preheat(what, to=to, platform=platform, ttl_s=ttl_s)
        if watch:
            facts = _watch(client, str(facts["job"]))
        if as_json:
            print_json(facts)
        elif watch:
            _print_job(facts)
        else:
            job = facts["job"]
            out.print(f"job {job}: {facts['blobs']} blobs, {size(facts['bytes'])}, to {to}")
        if facts["state"] == "failed":
            fail(f"job {facts['job']} failed: {facts['trouble']}")


def jobs(
    job: Annotated[str | None, typer.Argument(help="One job, node by node.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="End this job.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it is over.")] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """The preheats, and how far they are."""
    with errors_are_sentences():
        client = _client(state, config)
        if job is None:
            if cancel or watch:
                fail("name the job: passel jobs JOB", 2)
            facts = client.ask("jobs")
            print_json(facts["jobs"]) if as_json else _print_jobs(facts["jobs"])
            return
        if cancel:
            facts = client.ask("cancel", job=job)
        elif watch:
            facts = _watch(client, job)
        else:
            facts = client.ask("jobs", job=job)["jobs"][0]
        print_json(facts) if as_json else _print_job(facts)


def schedules(
    schedule: Annotated[str | None, typer.Argument(help="Only this one.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="End it.")] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """The preheats that come again, and what became of their last run."""
    with errors_are_sentences():
        client = _client(state, config)
        if cancel:
            if schedule is None:
                fail("name the schedule: passel schedules SCHEDULE --cancel", 2)
            found = [client.ask("unschedule", schedule=schedule)]
        else:
            found = client.ask("schedules")["schedules"]
            found = [each for each in found if schedule in (None, each["schedule"])]
            if schedule is not None and not found:
                fail(f"there is no schedule {schedule}: see passel schedules")
        print_json(found) if as_json else _print_schedules(found)


def _print_schedules(facts: list[dict[str, Any]]) -> None:
    columns = ("schedule", "what", "to", "when", "next", "last", "job", "trouble")
    print_table(
        columns, (tuple(str(each[key] or "") for key in columns) for each in facts), n_left=8
    )


def _watch(client: Client, job: str) -> dict[str, Any]:
    """The job when it is over."""
    last_heard = time.monotonic()
    with err.status(job) if err.is_terminal else contextlib.nullcontext() as shown:
        while True:
            try:
                facts: dict[str, Any] = client.ask("jobs", job=job)["jobs"][0]
            except TransientError:
                if time.monotonic() > last_heard + AWAY_MAX_S:
                    raise
            else:
                last_heard = time.monotonic()
                if shown is not None:
                    shown.update(_progress(facts))
                if facts["state"] != "running":
                    return facts
            time.sleep(WATCH_EVERY_S)


def ls(
    state: StateOption = None,
    config: ConfigOption = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """The blobs in the cluster, and how many nodes have them."""
    with errors_are_sentences():
        facts = _client(state, config).ask("blobs", limit=limit)
        if as_json:
            print_json(facts)
            return
        print_table(
            ("digest", "upstream", "pinned", "size", "complete", "partial", "wanted"),
            (
                (
                    blob["digest"],
                    " ".join(blob["upstreams"]),
                    (blob["pinned_until"] or "for good") if blob["pinned"] else "",
                    "" if blob["size"] is None else size(blob["size"]),
                    *(str(blob[key]) for key in ("complete", "partial", "wanted")),
                )
                for blob in facts["blobs"]
            ),
            n_left=3,
        )
        if facts["total"] > len(facts["blobs"]):
            out.print(f"{len(facts['blobs'])} of {facts['total']} blobs; --limit shows more")
        if facts["away"]:
            raise PasselError(f"these shards do not answer: {', '.join(facts['away'])}")


def pin(
    what: Annotated[
        str | None, typer.Argument(help="UPSTREAM/REPO:TAG, UPSTREAM/REPO@DIGEST or sha256:...")
    ] = None,
    ttl: Annotated[str | None, typer.Option(help="For so long: 7d, 12 h. [for good]")] = None,
    platform: Annotated[str, typer.Option(help="OS/ARCHITECTURE of an image, or all.")] = "all",
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Leave an image or a blob alone when room is made; without a name, list what is pinned."""
    with errors_are_sentences():
        client = _client(state, config)
        if what is None:
            pins = client.ask("pins")["pins"]
            print_json(pins) if as_json else _print_pins(pins)
            return
        facts = client.pin(what, platform=platform, ttl_s=_seconds("--ttl", ttl))
        if as_json:
            print_json(facts)
        else:
            until = f"until {facts['until']}" if facts["until"] else "for good"
            out.print(f"pin {facts['pin']}: {facts['blobs']} blobs, {until}", markup=False)


def unpin(
    what: Annotated[str, typer.Argument(help="What was pinned, or the pin's id.")],
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let room be made of what was pinned again."""
    with errors_are_sentences():
        facts = _client(state, config).unpin(what)
        if as_json:
            print_json(facts)
        else:
            out.print(f"{len(facts['unpinned'])} pins are gone")


def _print_pins(pins: list[dict[str, Any]]) -> None:
    print_table(
        ("pin", "what", "until", "blobs"),
        ((p["pin"], p["what"], p["until"] or "for good", str(p["blobs"])) for p in pins),
        n_left=3,
    )


def rm(
    digest: Annotated[str, typer.Argument(help="sha256:...")],
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the complete copies of a blob from all nodes; who reads it gets it anew."""
    with errors_are_sentences():
        parsed = Digest.parse(digest)
        facts = _client(state, config).ask("remove", digest=str(parsed))
        if as_json:
            print_json(facts)
        else:
            nodes = ", ".join(facts["removed"])
            out.print(f"removed from {nodes}" if nodes else "no node has it whole")
        if facts["away"]:
            raise PasselError(
                f"these nodes do not answer: {', '.join(facts['away'])}; say it again"
            )


def rotate(
    state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Replace the secret by which peers know each other; running transfers go on."""
    with errors_are_sentences():
        client = _client(state, config)
        deadline = time.monotonic() + ROTATION_MAX_S
        facts = _ask_patiently(client, deadline, "rotate", begin=True)
        while facts["stage"] != "steady" and time.monotonic() < deadline:
            time.sleep(WATCH_EVERY_S)
            # A controller or a peer that starts again goes on where it was.
            with contextlib.suppress(TransientError):
                facts = client.ask("rotate", begin=False)
        if facts["stage"] != "steady":
            nodes = ", ".join(facts["waits_for"]) or "the controller"
            raise PasselError(
                f"the rotation waits for {nodes} and goes on by itself; the old secret is good"
                " until then"
            )
        if as_json:
            print_json(facts)
        else:
            out.print("the peers have a new secret, the old one is good for nothing")


def _ask_patiently(client: Client, deadline: float, verb: str, **fields: Any) -> dict[str, Any]:
    """Ask for something to begin. A controller that is being started again is waited for.

    Its former life may have begun it before its answer was lost: then that goes on.
    """
    while True:
        try:
            return client.ask(verb, **fields)
        except PeerBusy as busy:
            if time.monotonic() + busy.retry_after_s > deadline:
                raise
            time.sleep(busy.retry_after_s)


def drain(
    node: Annotated[str, typer.Argument(help="The node that is to go away, as status calls it.")],
    undo: Annotated[bool, typer.Option("--undo", help="It stays after all.")] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand over what only one node has, before the node is taken away."""
    with errors_are_sentences():
        client = _client(state, config)
        deadline = time.monotonic() + AWAY_MAX_S
        if undo:
            facts = _ask_patiently(client, deadline, "undrain", node=node)
            print_json(facts) if as_json else out.print(f"{node} stays", markup=False)
            return
        facts = _watch_drain(client, _ask_patiently(client, deadline, "drain", node=node))
        if as_json:
            print_json(facts)
        elif facts["state"] == "done":
            handed = f"{facts['blobs']} blobs, {size(facts['bytes'])}"
            out.print(f"{node} has handed over {handed}: it may be taken away now", markup=False)
        if facts["state"] != "done":
            for blob in facts["left"]:
                why = blob["trouble"] or "nobody has got it yet"
                err.print(f"{blob['digest']} ({size(blob['size'])}): {why}", markup=False)
            left = f"{facts['left_blobs']} blobs, {size(facts['left_bytes'])}"
            raise PasselError(
                f"{node} still has what no other node has: {left} ({facts['trouble']})"
            )


def _watch_drain(client: Client, facts: dict[str, Any]) -> dict[str, Any]:
    """The drain when it is over; the controller ends one in which nothing moves."""
    last_heard = time.monotonic()
    with err.status("asks") if err.is_terminal else contextlib.nullcontext() as shown:
        while facts["state"] == "running":
            if shown is not None:
                handed = f"{facts['blobs']} blobs, {size(facts['bytes'])} handed over"
                left = f"{facts['left_blobs']} blobs, {size(facts['left_bytes'])} left"
                shown.update(f"{handed}; {left} {facts['trouble']}".strip())
            time.sleep(WATCH_EVERY_S)
            try:
                facts = client.ask("drains", node=facts["node"])["drains"][0]
            except TransientError:
                if time.monotonic() > last_heard + AWAY_MAX_S:
                    raise
            else:
                last_heard = time.monotonic()
    return facts


def _own_platform() -> str:
    architecture = machine.machine()
    return f"linux/{_ARCHITECTURES.get(architecture, architecture)}"


def _print_jobs(facts: list[dict[str, Any]]) -> None:
    print_table(
        ("job", "state", "to", "what", "created", "blobs", "size", "nodes"),
        (
            (
                job["job"],
                job["state"],
                job["to"],
                job["what"],
                job["created"],
                str(job["blobs"]),
                size(job["bytes"]),
                f"{_n_done(job)}/{len(job['nodes'])}",
            )
            for job in facts
        ),
        n_left=5,
    )


def _print_job(job: dict[str, Any]) -> None:
    title = f"{job['what']} to {job['to']}: {job['state']} {job['trouble']}"
    out.print(title.strip(), markup=False)
    print_table(
        ("node", "zone", "trouble", "blobs", "bytes"),
        (
            (
                node["node"],
                node["zone"],
                node["trouble"],
                f"{node['blobs']}/{job['blobs']}",
                f"{size(node['bytes'])}/{size(job['bytes'])}",
            )
            for node in job["nodes"]
        ),
        n_left=3,
    )


def _n_done(job: dict[str, Any]) -> int:
    return sum(node["blobs"] == job["blobs"] for node in job["nodes"])


def _progress(job: dict[str, Any]) -> str:
    """One line: how far all nodes together are."""
    n_bytes = sum(node["bytes"] for node in job["nodes"])
    total = job["bytes"] * len(job["nodes"])
    done = f"{_n_done(job)} of {len(job['nodes'])} nodes"
    return f"{done}, {size(n_bytes)} of {size(total)}"
