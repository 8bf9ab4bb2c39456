"""Changing the configuration while passel runs: which keys can be, and what comes of it.

A node's own file holds what differs between nodes (addresses, folders). What is applied to the
cluster replaces the keys of `LIVE` in it, all of them together, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from passel.config.load import dump, parse
from passel.config.sections import Config
from passel.errors import ConfigError

#: What every process takes up at once. All other keys need a restart.
LIVE = (
    "upstreams",
    "default_upstream",
    "gateway.limits.header_timeout",
    "gateway.limits.connections",
    "gateway.limits.requests_per_connection",
    "gateway.limits.client_misses",
    "store.capacity",
    "store.reserve",
    "webhooks",
    "logging",
)


@dataclass(frozen=True, slots=True)
class Applied:
    """A configuration that was applied to the cluster; only its `LIVE` keys count. 0: none was."""

    version: int
    text: str


def merged(own: Config, text: str) -> Config:
    """A node's own configuration with the `LIVE` keys of the one that was applied.

    Raises ConfigError, also when both do not go together.
    """
    wanted = parse(text, source="the configuration")
    values: dict[str, Any] = yaml.safe_load(dump(own))
    given: dict[str, Any] = yaml.safe_load(dump(wanted))
    for key in LIVE:
        inner, source = values, given
        *way, last = key.split(".")
        for step in way:
            inner, source = inner[step], source[step]
        inner[last] = source[last]
    # As text, so that it is validated as if it had been written like this.
    return parse(
        yaml.safe_dump(values, sort_keys=False, allow_unicode=True), source="the configuration"
    )


def written_keys(config: Config) -> dict[str, str]:
    """The keys that need a restart and that a file has, each with its value as text."""
    return {
        key: value
        for key, value in _leaves(config.model_dump(mode="json", exclude_unset=True))
        if not _is_live(key)
    }


def refusals(current: Config, written: dict[str, str]) -> list[str]:
    """One sentence for each key that would have to change and cannot while passel runs."""
    own = dict(_leaves(current.model_dump(mode="json")))
    return [
        f"{key}: cannot be changed while passel runs: it is {own.get(key, 'not set')}, the file"
        f" says {value}; take the key out, or restart with it"
        for key, value in written.items()
        if own.get(key) != value
    ]


def read_applied(path: Path) -> Applied | None:
    """What a peer wrote down for the gateway of its node; None if there is nothing to read."""
    try:
        return decode(path.read_bytes())
    except OSError:
        return None


def applied_path(config: Config) -> Path:
    """Where the peer of a node writes it."""
    return config.store.path.parent / "applied.json"


def decode(content: bytes) -> Applied | None:
    """The inverse of `encode`; None for anything else."""
    try:
        fields = json.loads(content)
        return Applied(int(fields["version"]), str(fields["text"]))
    except (ValueError, KeyError, TypeError):
        return None


def encode(applied: Applied) -> bytes:
    """As it is written down."""
    return json.dumps({"version": applied.version, "text": applied.text}).encode() + b"\n"


def with_applied(own: Config, applied: Applied | None) -> Config:
    """`own` with what was applied, if there is something; it stays as it is if that is unusable."""
    if applied is None:
        return own
    try:
        return merged(own, applied.text)
    except ConfigError:
        return own


def _is_live(key: str) -> bool:
    return any(key == live or key.startswith(f"{live}.") for live in LIVE)


def _leaves(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and not (before == "gateway." and key == "dedicated"):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", json.dumps(value)
