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

EXCEPTIONS: dict[tuple[str, str, str], Exception_] = {}
