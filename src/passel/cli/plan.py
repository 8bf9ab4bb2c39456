"""What `passel up` starts: the nodes, and the configuration of each."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from passel.cli.processes import SOCKET_PATH_MAX
from passel.client.state import StateFolder
from passel.config import Config, GatewayConfig, PeerConfig, StoreConfig, host_port
from passel.errors import ConfigError

NODES_MAX = 64
#: Keys that `passel up` sets itself, whatever the file says.
OWN_KEYS = ("store.path", "peer.listen", "seeds.count", "gateway.api.token_file")


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node: n1, n2, ..., and the zone that it plays."""

    number: int
    zone: str

    @property
    def name(self) -> str:
        return f"n{self.number}"


def plan_nodes(nodes: int, zones: int) -> list[NodePlan]:
    """`nodes` nodes in `zones` zones of nearly the same size. Raises ConfigError."""
    if nodes < 1:
        raise ConfigError(f"--nodes must be at least 1, got {nodes}")
    if nodes > NODES_MAX:
        raise ConfigError(f"--nodes must be at most {NODES_MAX} on one machine, got {nodes}")
    if zones < 1:
        raise ConfigError(f"--zones must be at least 1, got {zones}")
    if zones > nodes:
        raise ConfigError(f"--zones must be at most --nodes ({nodes}), got {zones}")
    return [NodePlan(i + 1, zone_name(i * zones // nodes)) for i in range(nodes)]


def zone_name(index: int) -> str:
    """a, b, c, ... and after z: z27, z28, ..."""
    return chr(ord("a") + index) if index < 26 else f"z{index + 1}"


def check_state(state: StateFolder, nodes: int) -> None:
    """It is a folder or can become one, and sockets in it have names that fit.

    Raises ConfigError.
    """
    if state.path.exists() and not state.path.is_dir():
        raise ConfigError(f"{state.path} is not a folder: choose another one with --state")
    longest = len(str(state.node(nodes).door).encode())
    if longest > SOCKET_PATH_MAX:
        excess = longest - SOCKET_PATH_MAX
        raise ConfigError(
            f"the state folder's path is {excess} bytes too long for Unix sockets in it:"
            f" choose a shorter one with --state"
        )


def cluster_config(config: Config, seeds: int | None) -> Config:
    """What all nodes share: one name for the cluster, the seeds asked for, peers on loopback."""
    changes: dict[str, object] = {"cluster": config.cluster or f"passel-{secrets.token_hex(4)}"}
    if seeds is not None:
        changes["seeds"] = config.seeds.model_copy(update={"count": seeds})
    if config.peer.listen == PeerConfig().listen:
        # All peers are on this machine: nobody else needs to reach them.
        changes["peer"] = config.peer.model_copy(update={"listen": "127.0.0.1:0"})
    return config.model_copy(update=changes)


def with_token(config: Config, token_file: Path) -> Config:
    """The HTTP API takes the token in this file, unless the configuration names another one."""
    if config.gateway.api.token_file is not None:
        return config
    api = config.gateway.api.model_copy(update={"token_file": token_file})
    gateway = config.gateway.model_copy(update={"api": api})
    return config.model_copy(update={"gateway": gateway})


def node_config(config: Config, number: int, store: Path) -> Config:
    """Node 1 has the configured ports, the others get free ones; each has its own store."""
    changes: dict[str, object] = {"store": _with_path(config.store, store)}
    if number > 1:
        changes["gateway"] = _elsewhere(config.gateway)
        host, _ = host_port(config.peer.listen)
        changes["peer"] = config.peer.model_copy(update={"listen": _address(host, 0)})
    return config.model_copy(update=changes)


def _with_path(store: StoreConfig, path: Path) -> StoreConfig:
    return store.model_copy(update={"path": path})


def _elsewhere(gateway: GatewayConfig) -> GatewayConfig:
    """The same listeners on ports that the kernel chooses, one for each address."""
    return gateway.model_copy(
        update={
            "listen": _any_ports(gateway.listen),
            "health": _any_ports(gateway.health),
            # The address is the key here, so "any port" could stand only once.
            "dedicated": {_free(address): key for address, key in gateway.dedicated.items()},
        }
    )


def _any_ports(addresses: tuple[str, ...]) -> tuple[str, ...]:
    hosts = dict.fromkeys(host_port(address)[0] for address in addresses)
    return tuple(_address(host, 0) for host in hosts)


def _free(address: str) -> str:
    host, _ = host_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        return _address(host, sock.getsockname()[1])


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_seeds(seeds: int | None, nodes: int) -> None:
    """Raises ConfigError when there cannot be so many."""
    if seeds is not None and not 1 <= seeds <= nodes:
        raise ConfigError(f"--seeds must be between 1 and --nodes ({nodes}), got {seeds}")
