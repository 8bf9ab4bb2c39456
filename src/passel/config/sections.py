"""The configuration as frozen models: one per section of the file, composed into `Config`.

The YAML has the same shape. A default stands on its field and nowhere else; the text after a field
says what it means and when one would change it. Relations between fields are checked here too, so
that a `Config` made in code is as sound as one that was read from a file.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import Self

from passel.config.units import (
    GIB,
    KIB,
    Address,
    Api,
    Count,
    Duration,
    FilePath,
    Name,
    Network,
    PositiveDuration,
    Size,
    Switch,
    host_port,
)
from passel.core.jobs import check_to
from passel.errors import InputError
from passel.oci.upstream import (
    DOCKER_HUB,
    DOCKER_HUB_ALIASES,
    DOCKER_HUB_API,
    normalise_name,
    split_authority,
)

#: A mistake in how fields relate: the way to the field, and what is wrong about it.
Mistake = tuple[tuple[str | int, ...], str]

_PORTS = {"http": 80, "https": 443}
_WILDCARDS = ("0.0.0.0", "::")


def _targets(value: str) -> str:
    try:
        return check_to(value)
    except InputError as error:
        raise ValueError(error.message.partition(", got")[0]) from None


class Section(BaseModel):
    """What all sections share. A section with nothing under its key has its defaults."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_means_defaults(cls, data: object) -> object:
        return {} if data is None else data

    @model_validator(mode="after")
    def _relations_hold(self) -> Self:
        mistakes = list(self.mistakes())
        if mistakes:
            raise ValidationError.from_exception_data(
                type(self).__name__,
                [
                    InitErrorDetails(
                        type=PydanticCustomError("relation", "{text}", {"text": text}),
                        loc=way,
                        input=None,
                    )
                    for way, text in mistakes
                ],
                hide_input=True,
            )
        return self

    def mistakes(self) -> Iterator[Mistake]:
        """What is wrong between the fields of this section, each of which is right in itself."""
        return iter(())


class UpstreamConfig(Section):
    """One registry that clients may be served from."""

    api: Api
    """Where the registry is, scheme://host[:port]. Left out: https:// and the upstream's name."""
    aliases: tuple[Name, ...] = ()
    """Other names that clients may use for it."""
    ca: FilePath | None = None
    """Certificates (PEM) that its TLS is checked against instead of the system's."""
    insecure: Switch = False
    """Do not check its TLS certificate at all. For trials only."""
    networks: tuple[Network, ...] = ()
    """Networks that its API, its token service and its redirects may resolve to besides public
    addresses. A registry inside your network needs its network here."""
    auth: Literal["passthrough", "anonymous", "static"] = "passthrough"
    """passthrough hands the client's credentials on; anonymous never does; static uses `username`
    and `password_file` for everybody who can reach the gateway."""
    username: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """For auth: static."""
    password_file: FilePath | None = None
    """For auth: static. Only the file's first line counts; it is read again when it changes."""
    read_policy: Literal["grant", "open", "always"] = "grant"
    """Who may read what is already in the cluster: grant asks the origin with the client's own
    credentials once per `grant_ttl`; open asks nobody; always asks the origin at every read."""
    grant_ttl: Duration = timedelta(minutes=5)
    """How long an origin's yes holds for one client, repository and digest."""
    when_origin_down: Literal["granted", "refuse", "serve"] = "granted"
    """While the origin cannot be asked: granted lets those read whose grant has run out; refuse
    nobody; serve everybody."""
    tag_ttl: Duration = timedelta(seconds=30)
    """How long a tag is believed before the origin is asked again. 0 s asks every time."""
    connections: Count = 16
    """Connections to this registry from one node at any time."""
    quota: Annotated[Size, Field(gt=0)] | None = None
    """Bytes that its blobs may take of each node's store; for more of it, its least recently used
    go. Left out, it may fill the store."""

    def mistakes(self) -> Iterator[Mistake]:
        tls = self.api.startswith("https://")
        if self.insecure and not tls:
            yield ("insecure",), f"expected an https api, {self.api} has no TLS to leave unchecked"
        if self.ca is not None and not tls:
            yield ("ca",), f"expected an https api, {self.api} has no TLS to check"
        for field in ("username", "password_file"):
            given = getattr(self, field) is not None
            if self.auth == "static" and not given:
                yield (field,), "is missing, auth: static needs username and password_file"
            elif self.auth != "static" and given:
                yield (field,), f"is for auth: static, and auth is {self.auth}"


class LimitsConfig(Section):
    """Bounds of the gateway."""

    header_timeout: PositiveDuration = timedelta(seconds=10)
    """A client must have sent its request's header by then."""
    header_bytes: Annotated[Size, Field(ge=KIB, le=1024 * KIB)] = ByteSize(64 * KIB)
    """Longest request line, and longest single header: long bearer tokens and multi-range requests
    need more than the usual 8 KiB."""
    connections: Count = 4096
    """Clients connected at the same time; more are told 503."""
    requests_per_connection: Count = 100_000
    """A connection is closed after this many."""
    client_misses: Count = 512
    """Reads of blobs that are not here yet which one client address may have under way at the same
    time; more are told 503."""
    direct: Count = 32
    """Reads that go straight to the origin at the same time, for want of the node's peer."""
    peer_wait: PositiveDuration = timedelta(milliseconds=3500)
    """How long a read waits for a peer that is away, has lost its shard or brings nothing more,
    before it goes to the origin. A killed process is back in 2 to 3 s; nydusd gives a read up
    after 5 s."""


class ApiConfig(Section):
    """The HTTP API, /api/v1 on the listeners of `gateway.health`."""

    enabled: Switch = True
    """Whether it is there at all."""
    token_file: FilePath | None = None
    """The first line of this file is the token that callers must show for whatever changes
    something, and for webhooks; it is read at every such request. Left out, nothing can be changed.
    `passel up` makes one."""


class GatewayConfig(Section):
    """The registry mirror and proxy on every node."""

    listen: tuple[Address, ...] = ("127.0.0.1:65001", "127.0.0.1:4001")
    """Where clients find the mirror; both ports are those that Dragonfly's users have configured.
    Everybody who can reach an address may ask for what the upstreams' `read_policy` allows."""
    dedicated: dict[Address, Name] = Field(default_factory=dict)
    """Listeners bound to one upstream each, for clients that cannot say which one they mean."""
    health: tuple[Address, ...] = ("127.0.0.1:40901", "127.0.0.1:4003")
    """Where GET /server/ping, /healthy and /metrics are answered."""
    ui: Switch = True
    """Whether the health listeners show the cluster at /ui, to browsers on the same node only: it
    tells names of nodes, blobs and preheats, no more than Ray's dashboard tells the same ones."""
    limits: LimitsConfig = LimitsConfig()
    """Bounds."""
    api: ApiConfig = ApiConfig()
    """Jobs, blobs and pins over HTTP; webhooks of registries."""

    def mistakes(self) -> Iterator[Mistake]:
        seen: list[tuple[str, int, str]] = []
        for way, address in self._addresses():
            host, port = host_port(address)
            for other_host, other_port, other in seen:
                same_host = host == other_host or host in _WILDCARDS or other_host in _WILDCARDS
                if port != 0 and port == other_port and same_host:
                    yield way, f"{address} is taken by {other} already"
            seen.append((host, port, str(way[0])))

    def _addresses(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for i, address in enumerate(self.listen):
            yield ("listen", i), address
        for address in self.dedicated:
            yield ("dedicated", address), address
        for i, address in enumerate(self.health):
            yield ("health", i), address


class StoreConfig(Section):
    """What a node keeps on its disk."""

    path: FilePath = Path("/var/lib/passel")
    """The folder. `passel up --nodes` gives every node one of its own instead."""
    capacity: Annotated[Size, Field(gt=0)] = ByteSize(40 * GIB)
    """Blobs beyond this are evicted, least recently used first."""
    reserve: Size = ByteSize(GIB)
    """Free space of the disk that passel never uses."""
    scrub: Duration = timedelta(days=30)
    """Every complete blob is read again once in this time, while the node has nothing else to do,
    and compared with its digest. 0 s never does it."""


class PeerConfig(Section):
    """How nodes serve each other."""

    listen: Address = "0.0.0.0:0"
    """The piece server. Port 0 lets the kernel choose, the other peers learn it by themselves;
    name one if a firewall stands between the nodes."""
    upload_slots: Count = 6
    """Pieces that one node sends at the same time, one of them to a client that waits; the other
    requests stand in line. More slots make every piece late, and all that depends on it."""
    download_slots: Count = 16
    """Pieces that one node fetches at the same time."""
    per_parent: Count = 4
    """Pieces that one node fetches from the same parent at the same time."""
    whole_blobs: Switch = True
    """Whether the rest of a blob is fetched in the background as soon as a part of it is read. Off,
    only the pieces are fetched that reads of up to 8 MiB touch (nydusd's are 2 MiB at most): less
    leaves the registry, and what is touched later is cold then. Longer reads fetch the whole
    blob."""
    tls: Switch = False
    """Whether pieces travel through TLS, with certificates that the cluster makes for itself.
    Costs processor time on both sides; leave it out where the network between the nodes is
    trusted or encrypted. Counts in the configuration that starts the cluster. Needs passel[tls]."""


class SchedulerConfig(Section):
    """The scheduler shards."""

    shards: Count = 1
    """How many. One serves about a thousand nodes that pull at the same time."""
    epoch: PositiveDuration = timedelta(milliseconds=15)
    """The least time between two plans of a shard; it grows with the number of peers. Shorter
    reacts sooner and costs more processor time."""
    lease_ttl: PositiveDuration = timedelta(seconds=10)
    """A back-to-source fetcher that reports nothing for this long loses its lease."""
    revive: PositiveDuration = timedelta(seconds=3)
    """How long a client waits for a process that died, when nobody else has the piece; then the
    origin sends it again."""
    revive_bulk: PositiveDuration = timedelta(seconds=8)
    """The same for pieces that no client waits for."""


class SeedsConfig(Section):
    """The peers that are asked first and may go back to source."""

    count: Count = 1
    """How many the controller chooses when no node carries the label."""
    label: Annotated[str, Field(min_length=1, max_length=255)] = "passel/role"
    """The Ray node label whose value `seed` gives a node the role."""


class TraceConfig(Section):
    """The record of single reads, pieces, leases and epochs, for `passel trace`."""

    record: Switch = False
    """Record from the start on. `passel trace record` does it for a while instead."""
    path: FilePath | None = None
    """The folder. Left out, it is `trace` in the store's."""
    capacity: Annotated[Size, Field(ge=1024 * KIB)] = ByteSize(256 * 1024 * KIB)
    """Bytes that one process keeps; its oldest files go."""


class WebhooksConfig(Section):
    """What is done with images that a registry says were pushed: they are preheated."""

    targets: Annotated[str, AfterValidator(_targets)] = "seeds"
    """Where to: seeds, all, zone=ZONE or node=NODE."""
    repositories: tuple[Annotated[str, Field(min_length=1, max_length=255)], ...] = ("*",)
    """Which ones, as patterns for UPSTREAM/REPOSITORY: * is any text, slashes too."""
    platform: Annotated[str, Field(min_length=1, max_length=255)] = "all"
    """os/architecture[/variant] of images for several, or all."""
    ttl: Duration | None = None
    """For how long they are pinned. Left out, they are not."""


class LoggingConfig(Section):
    """What passel's processes write about themselves."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """debug tells every piece, info every blob."""


def _none_word(value: object) -> object:
    return None if value == "none" else value


class Config(Section):
    """The whole file."""

    upstreams: dict[Name, UpstreamConfig] = Field(default_factory=dict)
    """The closed table of registries: clients reach these and no other. The key is what clients
    call it. Left out, it is Docker Hub alone."""
    default_upstream: Annotated[Name | None, BeforeValidator(_none_word)] = None
    """The upstream of requests that name none; `none` makes that a 404. Left out, it is docker.io
    if that is an upstream, else none."""
    cluster: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\z")] | None = None
    """The cluster's name, by which a request is recognised that has come round in a circle. Left
    out, one is made when the cluster is started."""
    gateway: GatewayConfig = GatewayConfig()
    """The registry mirror."""
    store: StoreConfig = StoreConfig()
    """The disk."""
    peer: PeerConfig = PeerConfig()
    """Between nodes."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """The shards."""
    seeds: SeedsConfig = SeedsConfig()
    """Back to source."""
    trace: TraceConfig = TraceConfig()
    """Recording."""
    webhooks: WebhooksConfig = WebhooksConfig()
    """Pushes that registries tell of."""
    logging: LoggingConfig = LoggingConfig()
    """Logs."""

    _names: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: object) -> object:
        """Give every upstream the API that its name implies, and the table its default."""
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        upstreams = filled.get("upstreams")
        if upstreams is None:
            upstreams = {DOCKER_HUB: None}
        if isinstance(upstreams, dict):
            default = DOCKER_HUB if DOCKER_HUB in upstreams else None
            filled.setdefault("default_upstream", default)
            upstreams = {key: _upstream_defaults(key, upstreams) for key in upstreams}
        filled["upstreams"] = upstreams
        return filled

    def model_post_init(self, context: Any, /) -> None:
        self._names.update(_names_of(self.upstreams))

    def upstream_for(self, name: str) -> str | None:
        """The key of the upstream that clients may call `name`, or None.

        Key, aliases, the host of its API, and each with the default port of its scheme; upper case
        and a trailing dot do not matter.
        """
        try:
            return self._names.get(normalise_name(name))
        except InputError:
            return None

    def mistakes(self) -> Iterator[Mistake]:
        if not self.upstreams:
            yield ("upstreams",), "expected at least one upstream"
        claimed = set(self.upstreams)
        for key, upstream in self.upstreams.items():
            for i, alias in enumerate(upstream.aliases):
                if alias in claimed:
                    owner = self._names[alias]
                    text = f"{alias} is a name of the upstream {owner} already"
                    yield ("upstreams", key, "aliases", i), text
                claimed.add(alias)
        default = self.default_upstream
        if default is not None and default not in self.upstreams:
            yield ("default_upstream",), self._expected_upstream(default, " or none")
        for address, name in self.gateway.dedicated.items():
            if name not in self.upstreams:
                yield ("gateway", "dedicated", address), self._expected_upstream(name)

    def _expected_upstream(self, got: str, more: str = "") -> str:
        keys = list(self.upstreams)
        known = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
        owner = self.upstream_for(got)
        alias = "" if owner is None else f", which is another name of {owner}"
        return f"expected the key of an upstream ({known}){more}, got {got}{alias}"


def _upstream_defaults(key: object, upstreams: dict[object, object]) -> object:
    """An upstream's fields as given, with the API (and Docker Hub's names) filled in."""
    given = upstreams[key]
    if given is None:
        given = {}
    if not isinstance(key, str) or not isinstance(given, dict):
        return given
    if key != DOCKER_HUB:
        # A key that is no name is told as such; it need not be told as a wrong API as well.
        api = f"https://{key}" if split_authority(key) else "https://name.invalid"
        return {"api": api, **given}
    taken = set(upstreams)
    for other in upstreams.values():
        aliases = other.get("aliases") if isinstance(other, dict) else None
        taken.update(alias for alias in aliases or () if isinstance(alias, str))
    free = tuple(alias for alias in DOCKER_HUB_ALIASES if alias not in taken)
    return {"api": DOCKER_HUB_API, "aliases": free, **given}


def _names_of(upstreams: dict[str, UpstreamConfig]) -> dict[str, str]:
    """Every name -> key. What the file says comes first; what follows from it never overrides."""
    names = {key: key for key in upstreams}
    for key, upstream in upstreams.items():
        for alias in upstream.aliases:
            names.setdefault(alias, key)
    if DOCKER_HUB in upstreams:
        for alias in DOCKER_HUB_ALIASES:
            names.setdefault(alias, DOCKER_HUB)
    for name, key in list(names.items()):
        for form in _port_forms(name, upstreams[key].api):
            names.setdefault(form, key)
    hosts = {key: upstream.api.partition("://")[2] for key, upstream in upstreams.items()}
    sharing = Counter(hosts.values())
    for key, host in hosts.items():
        # The host of an API is a name too, for clients that use passel as their HTTP proxy. Not
        # when two upstreams share it, and not a bare word, which could begin a repository's name.
        if sharing[host] == 1 and ("." in host or ":" in host):
            for form in (host, *_port_forms(host, upstreams[key].api)):
                names.setdefault(form, key)
    return names


def _port_forms(name: str, api: str) -> list[str]:
    """The other way to write `name`: with, or without, the default port of the API's scheme."""
    parts = split_authority(name)
    assert parts is not None, name
    host, port = parts
    default = _PORTS[api.partition("://")[0]]
    if port is None:
        return [f"{host}:{default}"]
    return [host] if port == default else []
