"""The folder of a cluster that `passel up` started on this machine: where things lie in it.

::

    <state>/lock              held by the supervisor as long as it lives
    <state>/supervisor.json   its pid, and how the cluster was started
    <state>/progress          what it does, a line each
    <state>/ready | failed    all nodes answer | why they do not, one sentence
    <state>/api-token         what callers of /api/v1 show, mode 0600
    <state>/ray               Ray's own folder
    <state>/<node>/           passel.yaml node.json gateway.json gateway.log store/
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NODE = re.compile(r"n([1-9][0-9]{0,3})")


def default_state() -> Path:
    """``PASSEL_STATE``, else ``passel/default`` in the user's XDG state folder."""
    named = os.environ.get("PASSEL_STATE")
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return (Path(base).expanduser() / "passel" / "default").absolute()


@dataclass(frozen=True, slots=True)
class NodeFolder:
    """One node's part of the folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "passel.yaml"

    @property
    def facts(self) -> Path:
        """node.json: name and zone, written before the node starts."""
        return self.path / "node.json"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def door(self) -> Path:
        """The peer's Unix socket."""
        return self.store / "peer.sock"

    @property
    def gateway_note(self) -> Path:
        """gateway.json, which the gateway writes when it listens."""
        return self.path / "gateway.json"

    @property
    def gateway_log(self) -> Path:
        return self.path / "gateway.log"


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The folder of one cluster."""

    path: Path

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def supervisor(self) -> Path:
        return self.path / "supervisor.json"

    @property
    def log(self) -> Path:
        return self.path / "supervisor.log"

    @property
    def progress(self) -> Path:
        return self.path / "progress"

    @property
    def ready(self) -> Path:
        return self.path / "ready"

    @property
    def failed(self) -> Path:
        return self.path / "failed"

    @property
    def config(self) -> Path:
        """The configuration of the cluster as a whole."""
        return self.path / "passel.yaml"

    @property
    def api_token(self) -> Path:
        """The token of the HTTP API, its first line."""
        return self.path / "api-token"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    @property
    def is_used(self) -> bool:
        """Whether a cluster was ever started here; its lock and its log stay for good."""
        return self.lock.is_file() and self.log.is_file()

    def node(self, number: int) -> NodeFolder:
        """Node `number`, counted from 1."""
        return NodeFolder(self.path / f"n{number}")

    def nodes(self) -> list[NodeFolder]:
        """The nodes that were started here last, by number."""
        found: list[tuple[int, NodeFolder]] = []
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        for name in names:
            match = _NODE.fullmatch(name)
            folder = NodeFolder(self.path / name)
            if match is not None and folder.facts.is_file():
                found.append((int(match[1]), folder))
        return [folder for _, folder in sorted(found, key=lambda each: each[0])]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a small file; empty when there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
