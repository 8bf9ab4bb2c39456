"""What is to be simulated: one model for profiles (YAML) and for the command line's options."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ByteSize, Field, field_validator, model_validator

from passel.config.sections import Mistake, Section
from passel.config.units import Duration, PositiveDuration, Size, Switch
from passel.core.pieces import Geometry
from passel.sim.policies import POLICIES
from passel.sim.words import Arrival, ArrivalText, FaultText, OptionalRate, Rate

NODES_MAX = 100_000
#: More pieces than this in all (nodes x pieces) take the message-exact engine minutes.
MESSAGES_MAX = 600_000
PARTS_MAX = 64
GIB = 1 << 30
GBIT = 1e9 / 8


def between(low: float, high: float) -> AfterValidator:
    """A validator whose sentence tells the whole range."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"expected {low} to {high}")
        return value

    return AfterValidator(check)


BlobSize = Annotated[Size, Field(gt=0)]
Strict = Field(strict=True)


class ReadersConfig(Section):
    """nydusd-like clients that read ranges on demand, beside (or instead of) bulk pulls."""

    share: Annotated[float, between(0.0001, 1)] = 1.0
    """Of the nodes."""
    reads: Annotated[int, Strict, between(1, 100_000)] = 64
    """One after the other, on each such node."""
    size: BlobSize = ByteSize(128 * 1024)
    """Of one read; each begins at a random multiple of it."""
    touched: Annotated[float, between(0.0001, 1)] = 0.1
    """The share of the blob that the reads lie in. The same places on every node, as for
    containers of one image."""
    think: Duration = timedelta(milliseconds=1)
    """What the client does between two reads."""


class Scenario(Section):
    """One rollout."""

    nodes: Annotated[int, Strict, between(1, NODES_MAX)] = 100
    """How many want the blob."""
    zones: Annotated[int, Strict, between(1, 1024)] = 1
    """Availability zones; nodes are dealt out in turn."""
    racks: Annotated[int, Strict, between(1, 4096)] = 1
    """Racks in each zone."""
    seeds: Annotated[int, Strict, between(0, 1024)] = 1
    """Nodes with the seed role; 0: one of the readers goes to the origin."""
    shards: Annotated[int, Strict, between(1, 256)] = 1
    """Scheduler shards."""
    blobs: tuple[BlobSize, ...] = (ByteSize(GIB),)
    """The sizes of the image's blobs; every node pulls all of them at the same time."""
    piece: BlobSize | None = None
    """Length of a piece. Left out: what every peer makes of the blob's size; only the engine for
    large clusters can take another one."""
    link: Rate = GBIT
    """Uplink and downlink of a node."""
    down: OptionalRate = None
    """Downlink, where it differs."""
    trunk: OptionalRate = None
    """What a zone sends, and what it receives, over its border."""
    rack_trunk: OptionalRate = None
    """The same for a rack."""
    origin: Rate = GBIT
    """What the registry sends, to all together."""
    disk: OptionalRate = None
    """How fast a node writes."""
    latency: Duration = timedelta(microseconds=200)
    """One way between two nodes."""
    zone_latency: Duration = timedelta(milliseconds=1)
    """One way between two nodes of different zones."""
    origin_latency: Duration = timedelta(milliseconds=20)
    """From a request to the first byte of the origin's answer."""
    call: Duration = timedelta(microseconds=600)
    """One way of a call to a shard, beside the latency; Ray's measured 1.2 ms there and back."""
    jitter: Annotated[float, between(0, 3)] = 0.2
    """Standard deviation of the logarithm of a latency."""
    arrival: ArrivalText = Arrival("at-once")
    """When nodes begin: at-once, poisson N/s, waves N every TIME, rolling N, trace FILE."""
    faults: tuple[FaultText, ...] = ()
    """What breaks, e.g. crash seed at 2 s for 1 s; slow 5% to 0.1; origin down at 1 s for 3 s."""
    bulk: Switch = True
    """Nodes pull the blobs whole, as containerd does."""
    readers: ReadersConfig | None = None
    """On-demand readers."""
    policy: str = "passel"
    """passel, or a model of another system: see `passel sim policies`."""
    engine: Literal["auto", "messages", "rounds"] = "auto"
    """messages: every message of the real machines. rounds: whole arrays, for large clusters. auto
    takes messages up to 600 000 pieces in all."""
    seed: Annotated[int, Strict, between(0, (1 << 63) - 1)] = 0
    """Everything random follows from it."""
    patience: PositiveDuration = timedelta(hours=6)
    """Virtual time after which a rollout that does not end is given up."""

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, value: str) -> str:
        if value not in POLICIES:
            raise ValueError(f"expected one of {', '.join(POLICIES)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _one_blob(cls, data: Any) -> Any:
        """`blob: 1 GiB` is short for `blobs: [1 GiB]`."""
        if isinstance(data, dict) and "blob" in data and "blobs" not in data:
            data = dict(data)
            data["blobs"] = (data.pop("blob"),)
        return data

    def mistakes(self) -> Iterator[Mistake]:
        if self.zones > self.nodes:
            yield ("zones",), f"expected at most nodes ({self.nodes}), got {self.zones}"
        if self.seeds > self.nodes:
            yield ("seeds",), f"expected at most nodes ({self.nodes}), got {self.seeds}"
        for key, many in (("blobs", self.blobs), ("faults", self.faults)):
            if len(many) > PARTS_MAX:
                yield (key,), f"expected at most {PARTS_MAX}, got {len(many)}"
        if not self.blobs:
            yield ("blobs",), "expected at least one size"
            return
        if not self.bulk and self.readers is None:
            yield ("bulk",), "expected true, or readers: otherwise nobody wants anything"
        if self.arrival.kind == "rolling" and self.readers is not None:
            yield ("arrival",), "expected another arrival: rolling waits for whole pulls"
        for i, fault in enumerate(self.faults):
            if fault.kind == "partition" and int(fault.who[1:]) >= self.zones:
                yield ("faults", i), f"expected a zone below z{self.zones}, got {fault.who}"
            if fault.who[:1] == "p" and int(fault.who[1:]) >= self.nodes:
                yield ("faults", i), f"expected a node below p{self.nodes}, got {fault.who}"
            if fault.who == "seed" and not self.seeds:
                yield ("faults", i), "expected seeds to be at least 1 for a fault of a seed"
        if self.uses_messages:
            if self.piece is not None:
                yield ("piece",), "expected none: the machines make it of the blob's size"
            return
        for key, is_used in (
            ("readers", self.readers is not None),
            ("bulk", not self.bulk),
            ("faults", any(f.kind == "lie" or f.who == "shard" for f in self.faults)),
            ("rack_trunk", self.rack_trunk is not None),
        ):
            if is_used:
                yield (key,), self._needs_messages()

    def _needs_messages(self) -> str:
        if self.policy != "passel":
            return f"expected policy passel: {self.policy} is a model without messages"
        if self.engine == "rounds":
            return "expected engine messages: rounds knows nothing of this"
        return (
            f"expected at most {MESSAGES_MAX} pieces in all (nodes x pieces), got"
            f" {self.nodes * self.n_pieces}: only the message-exact engine knows this"
        )

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(int(blob) for blob in self.blobs)

    @property
    def piece_size(self) -> int:
        """As given, or of the largest blob."""
        if self.piece is not None:
            return int(self.piece)
        return Geometry.of(max(int(blob) for blob in self.blobs)).piece_size

    @property
    def n_pieces(self) -> int:
        geometries = [
            Geometry.of(int(blob)) if self.piece is None else Geometry(int(blob), int(self.piece))
            for blob in self.blobs
        ]
        return sum(geometry.n_pieces for geometry in geometries)

    @property
    def uses_messages(self) -> bool:
        """Whether the message-exact engine is used."""
        if self.policy != "passel":
            return False
        if self.engine != "auto":
            return self.engine == "messages"
        return self.nodes * self.n_pieces <= MESSAGES_MAX
