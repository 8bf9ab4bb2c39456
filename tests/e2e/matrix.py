"""Which cells the table of docs/clients.md has, and which are no plain success. Only data."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("public", "basic", "bearer")
PHASES = ("cold", "warm", "down")
CLIENTS = (
    "containerd 1",
    "containerd 2",
    "podman",
    "buildah",
    "skopeo",
    "skopeo prefix",
    "crane",
    "curl",
    "nydusd mirror",
    "nydusd proxy",
    "nydusd host",
)


@dataclass(frozen=True)
class Cell:
    """One client in one mode, and one kind of registry."""

    client: str
    kind: str

    def __str__(self) -> str:
        return f"{self.client}-{self.kind}".replace(" ", "-")


@dataclass(frozen=True)
class Exception_:
    """What happens instead of a pull through the gateway."""

    mark: str
    why: str
    #: A pattern of what the client prints; None: the pull works, without the gateway.
    fails: str | None = None


CELLS = [Cell(client, kind) for client in CLIENTS for kind in KINDS]

#: A client with a new token is a stranger to a gateway that cannot ask the origin about it.
_STRANGER = Exception_(
    "refused",
    "a new token is a new name, and whether it may read only the origin can say"
    " (`when_origin_down: serve` lets everybody read)",
    "502|cannot be reached|ConnectionRefused",
)
_DIRECT = Exception_(
    "origin",
    "the library shows credentials only to a mirror whose `/v2/` asks for them, which an address"
    " for all registries cannot do: it goes to the registry itself",
)
_AWAY = Exception_(
    "no",
    "without the registry there is nobody to ask for a password, and the gateway is not asked",
    "connection refused|ConnectionRefused",
)

EXCEPTIONS: dict[tuple[str, str, str], Exception_] = {
    **{(client, "bearer", "down"): _STRANGER for client in CLIENTS},
    ("skopeo prefix", "basic", "cold"): _DIRECT,
    ("skopeo prefix", "basic", "warm"): _DIRECT,
    ("skopeo prefix", "bearer", "cold"): _DIRECT,
    ("skopeo prefix", "bearer", "warm"): _DIRECT,
    ("skopeo prefix", "basic", "down"): _AWAY,
    ("skopeo prefix", "bearer", "down"): _AWAY,
    # This generation fetches its challenge from the registry, past the mirror.
    ("nydusd mirror", "basic", "down"): _AWAY,
    ("nydusd mirror", "bearer", "down"): _AWAY,
}
