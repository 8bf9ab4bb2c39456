"""The state of a cluster on this machine, put together without Ray.

Any peer that answers is asked for the controller's view. What the controller cannot say is taken
from the node folders, so that a status comes out whatever has died.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from passel.client.exchange import fetch_json, to_socket
from passel.client.state import NodeFolder, StateFolder, read_json
from passel.errors import PasselError

HEALTH_TIMEOUT_S = 2.0
#: The controller itself waits for peers that do not answer.
CLUSTER_TIMEOUT_S = 8.0


def cluster_status(state: StateFolder) -> dict[str, Any]:
    """The cluster in the state folder, in the shape of `passel status --json`."""
    folders = state.nodes()
    if not folders:
        return {"nodes": [], "shards": [], "controller": {"node": None, "pid": None}, "blobs": 0}
    with ThreadPoolExecutor(max_workers=min(32, len(folders))) as pool:
        healths = list(pool.map(_health, folders))
    view = _whole([folder for folder, health in zip(folders, healths, strict=True) if health])
    by_name = {str(node.get("node")): node for node in view.get("nodes", [])}
    nodes = [
        _node(folder, health, by_name.get(folder.name))
        for folder, health in zip(folders, healths, strict=True)
    ]
    known = {folder.name for folder in folders}
    nodes += [node for name, node in by_name.items() if name not in known]
    return {
        "nodes": nodes,
        "shards": view.get("shards", []),
        "controller": view.get("controller", {"node": None, "pid": None}),
        "blobs": view.get("blobs", 0),
        "config": view.get("config", {"version": 0, "waits_for": []}),
    }


def peer_status(store: Path) -> dict[str, Any]:
    """The controller's view, asked of the peer that owns `store`. Raises PeerUnavailable."""
    return fetch_json(to_socket(store / "peer.sock", CLUSTER_TIMEOUT_S), "/v1/status")


def _health(folder: NodeFolder) -> dict[str, Any]:
    try:
        return fetch_json(to_socket(folder.door, HEALTH_TIMEOUT_S), "/v1/health")
    except PasselError:
        return {}


def _whole(folders: list[NodeFolder]) -> dict[str, Any]:
    """The controller's view through the first peer that gets one; empty when time is up."""
    deadline = time.monotonic() + CLUSTER_TIMEOUT_S
    for folder in folders:
        if time.monotonic() > deadline:
            break
        try:
            return peer_status(folder.store)
        except PasselError:
            continue
    return {}


def _node(
    folder: NodeFolder, health: dict[str, Any], known: dict[str, Any] | None
) -> dict[str, Any]:
    """One node; the peer's own word on being alive counts more than the controller's."""
    facts, note = read_json(folder.facts), read_json(folder.gateway_note)
    base: dict[str, Any] = {
        "node": folder.name,
        "zone": facts.get("zone", ""),
        "role": health.get("role") or facts.get("role"),
        "alive": False,
        "gateway": None,
        "health": None,
        "store": str(folder.store),
        "pids": {"gateway": None, "peer": None, "raylet": None},
        "bytes": {"local": 0, "peer": 0, "seed": 0, "origin": 0},
    }
    node = {**base, **{k: v for k, v in (known or {}).items() if v is not None}}
    node["alive"] = bool(health)
    node["gateway"] = note.get("gateway") or node["gateway"]
    node["health"] = note.get("health") or node["health"]
    pids = dict(node["pids"])
    pids["gateway"] = _running(note.get("pid"))
    pids["peer"] = health.get("pid")
    pids["raylet"] = _raylet(health.get("raylet")) or _raylet(pids.get("raylet"))
    node["pids"] = pids
    return node


def _raylet(pid: object) -> int | None:
    """`pid` if it is a raylet: what a peer takes for its parent may be who adopted it since."""
    if not isinstance(pid, int):
        return None
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None
    return pid if name == "raylet" else None


def _running(pid: object) -> int | None:
    """`pid` if such a process exists."""
    if not isinstance(pid, int) or pid <= 0:
        return None
    return pid if os.path.exists(f"/proc/{pid}") else None
