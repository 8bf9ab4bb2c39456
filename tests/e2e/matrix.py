"""Which cells the table of docs/clients.md has, and which are no plain success. Only data."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("public", "basic", "bearer")
PHASES = ("cold", "warm", "down")
#: Name -> what it is in the table: program, version in CI, how it finds the gateway.
CLIENTS: dict[str, tuple[str, str, str]] = {
    "containerd 1": ("containerd", "1.6.20", "hosts.toml"),
    "containerd 2": ("containerd", "2.4.2", "hosts.toml, parallel ranged fetch"),
    "podman": ("podman", "4.3.1", "mirror, own listener"),
    "buildah": ("buildah", "1.28.2", "mirror, own listener"),
    "skopeo": ("skopeo", "1.9.3", "mirror, own listener"),
    "skopeo prefix": ("skopeo", "1.9.3", "mirror, name in the path"),
    "docker": ("docker", "20.10.24", "`registry-mirrors`, own listener"),
    "crane": ("crane", "0.22.1", "the gateway as registry, own listener"),
    "curl": ("curl", "7.88.1", "name in the path"),
    "nydusd mirror": ("nydusd", "2.2.0", "`mirrors`"),
    "nydusd proxy": ("nydusd", "2.2.0", "`proxy`"),
    "nydusd host": ("nydusd", "2.2.0", "host rewritten, own listener"),
    "nydusd B mirror": ("nydusd (model)", "2.2.3 to 2.3.4", "`mirrors`"),
    "nydusd C proxy": ("nydusd (model)", "2.3.5 to 2.4.2", "`proxy`"),
    "nydusd C host": ("nydusd (model)", "2.3.5 to 2.4.2", "host rewritten, own listener"),
    "nydusd D proxy": ("nydusd (model)", "from 2.4.3", "`proxy`"),
    "nydusd D host": ("nydusd (model)", "from 2.4.3", "host rewritten, own listener"),
}


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


def table() -> str:
    """The table of docs/clients.md, in Markdown, with its notes."""
    notes: list[str] = []
    lines = [
        "| client | version | how | registry | cold | warm | origin down | tests |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in CELLS:
        row = [*CLIENTS[cell.client], cell.kind]
        for phase in PHASES:
            found = EXCEPTIONS.get((cell.client, cell.kind, phase))
            if found is None:
                row.append("yes")
                continue
            if found.why not in notes:
                notes.append(found.why)
            row.append(f"{found.mark} [{notes.index(found.why) + 1}]")
        lines.append(f"| {' | '.join(row)} | `{cell}` |")
    lines += ["", *(f"[{i + 1}] {why}." for i, why in enumerate(notes))]
    return "\n".join(lines) + "\n"
