"""The bodies of /api/v1 as models: what is taken is validated by them, and the document shows them.

Answers have models too, for the document; the controller makes them, a test compares.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from passel.config import parse_duration

PLATFORM = r"^(all|[a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?)$"


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected text: a number and one of ms, s, min, h, d")
    seconds = parse_duration(value).total_seconds()
    if seconds <= 0:
        raise ValueError("expected more than 0 s")
    return seconds


What = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1000,
        description="UPSTREAM/REPOSITORY:TAG, UPSTREAM/REPOSITORY@DIGEST or a URL with /v2/ in it.",
        examples=["ghcr.io/org/app:v1"],
    ),
]
Ttl = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema(
        {"type": "string", "description": "A length of time with its unit.", "examples": ["7 d"]}
    ),
]
Platform = Annotated[
    str,
    Field(
        max_length=100,
        pattern=PLATFORM,
        description="os/architecture[/variant] of an image, or all.",
    ),
]


class Model(BaseModel):
    """What all bodies share: nothing unknown is taken."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Preheat(Model):
    """Bring an image or a blob to nodes before anybody asks for it."""

    what: What
    to: str = Field("all", max_length=300)
    """all, seeds, zone=ZONE or node=NODE."""
    platform: Platform = "all"
    ttl: Ttl | None = None
    """Pin it for so long."""


class Plan(Preheat):
    """A preheat that comes again. One of `every` and `at` is given."""

    every: Ttl | None = None
    """So often, from now on; 1 min at most often."""
    at: Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] | None = None
    """Each day at HH:MM, UTC."""


class PinOrder(Model):
    """Leave an image or a blob alone when room is made. Nothing is fetched."""

    what: What
    platform: Platform = "all"
    ttl: Ttl | None = None
    """For so long; left out, for good."""


class Share(Model):
    """One node's part of a job."""

    node: str
    zone: str
    blobs: int
    """That it has."""
    bytes: int
    """That it has, of all blobs of the job."""
    trouble: str
    """Why it gets no further, if it does not."""


class Job(Model):
    """A preheat."""

    job: str
    """Its id: the same order always has the same."""
    what: str
    to: str
    state: str = Field(json_schema_extra={"enum": ["running", "done", "failed", "cancelled"]})
    trouble: str
    created: str
    blobs: int
    bytes: int
    """Of all blobs whose size is known."""
    nodes: list[Share]


class Jobs(Model):
    """The preheats, the latest last."""

    jobs: list[Job]


class Schedule(Model):
    """A preheat that comes again."""

    schedule: str
    """Its id."""
    what: str
    to: str
    platform: str
    when: str
    next: str
    last: str | None
    job: str
    """What its last run became."""
    trouble: str
    """Why its last run became nothing; it is tried again before its time."""


class Schedules(Model):
    """All of them."""

    schedules: list[Schedule]


class Blob(Model):
    """A blob, and how many nodes have it."""

    digest: str
    size: int | None
    upstreams: list[str]
    complete: int
    partial: int
    wanted: int
    pinned: bool
    pinned_until: str | None
    """None: for good, or not pinned."""


class Blobs(Model):
    """The blobs of the cluster."""

    blobs: list[Blob]
    total: int
    away: list[str]
    """Shards that did not answer: what they know is missing here."""


class Removal(Model):
    """What became of a blob's complete copies."""

    digest: str
    removed: list[str]
    away: list[str]
    """Nodes that did not answer: say it again."""


class Pin(Model):
    """A pin."""

    pin: str
    what: str
    blobs: int
    created: str
    until: str | None
    """None: for good."""


class Pins(Model):
    """All pins."""

    pins: list[Pin]


class Unpinned(Model):
    """The pins that are gone."""

    unpinned: list[Pin]


class Left(Model):
    """A blob that only nodes have which are to go away."""

    digest: str
    size: int
    trouble: str
    """Why nobody has got it yet; empty: it is on its way, or waits for its turn."""


class Drain(Model):
    """A node that is to go away."""

    node: str
    state: Literal["running", "done", "incomplete"]
    """done: it may be taken away."""
    trouble: str
    blobs: int
    """Handed over so far."""
    bytes: int
    left_blobs: int
    """Still only there."""
    left_bytes: int
    left: list[Left]
    """The first of them."""


class Drains(Model):
    """All nodes that are to go away."""

    drains: list[Drain]


class Status(Model):
    """The cluster, as `passel status --json` prints it."""

    nodes: list[dict[str, Any]]
    shards: list[dict[str, Any]]
    controller: dict[str, Any]
    blobs: int
    config: dict[str, Any]


class Received(Model):
    """What became of a registry's notification."""

    jobs: list[Job]
    """Preheats that it began, or that run already."""
    skipped: list[str]
    """Pushes that are none of ours, each with the reason."""


class Problem(Model):
    """What was wrong, in a sentence."""

    code: str
    message: str


class Problems(Model):
    """Every answer with a status of 400 or more."""

    errors: list[Problem]
