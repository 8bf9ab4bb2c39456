"""`passel fsck`: reads this host's stores again, and has what is damaged put aside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from passel.cli.cluster import JsonOption, StateOption, state_folder
from passel.cli.console import FAILURE, err, errors_are_sentences, fail, out, print_json, size
from passel.cli.operating import ConfigOption
from passel.client.exchange import to_socket
from passel.config import Config, load
from passel.errors import PasselError, PeerUnavailable
from passel.ids import Digest
from passel.store import audit
from passel.store.store import Store

#: The peer hashes the whole blob before it answers: 20 GiB at 100 MiB/s.
VERIFY_TIMEOUT_S = 300.0


def fsck(
    repair: Annotated[
        bool, typer.Option("--repair", help="Put damaged blobs into quarantine.")
    ] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every complete blob on this host with its digest. Peers may go on meanwhile."""
    with errors_are_sentences():
        os.nice(10)
        facts = [_check(name, each, repair) for name, each in _stores(state, config)]
        if not facts:
            fail("no store is known here: name a --config, or a --state")
        if as_json:
            print_json(facts)
        else:
            for each in facts:
                _print(each)
        if any(damaged["repaired"] is not True for each in facts for damaged in each["damaged"]):
            raise typer.Exit(FAILURE)


def _stores(state: Path | None, config: Path | None) -> Iterator[tuple[str, Config]]:
    if config is not None and state is None:
        yield "this node", load(config)
        return
    for folder in state_folder(state).nodes():
        yield folder.name, load(folder.config)


def _check(name: str, config: Config, repair: bool) -> dict[str, Any]:
    n_blobs = n_bytes = 0
    damaged: list[dict[str, Any]] = []
    root = config.store.path
    with err.status(f"reading {root}"):
        for finding in audit.audit(root):
            n_blobs += 1
            n_bytes += finding.size
            if finding.damage:
                damaged.append({"digest": str(finding.digest), "damage": finding.damage})
    for each in damaged:
        each["repaired"] = _put_aside(config, Digest.parse(each["digest"])) if repair else None
    return {
        "node": name,
        "store": str(root),
        "blobs": n_blobs,
        "bytes": n_bytes,
        "damaged": damaged,
    }


def _put_aside(config: Config, digest: Digest) -> bool:
    """The owner of the store puts it aside: the peer, or we while there is none."""
    root = config.store.path
    body = json.dumps({"digest": str(digest)}).encode()
    try:
        with to_socket(root / "peer.sock", VERIFY_TIMEOUT_S) as exchange:
            exchange.send("POST", "/v1/verify", {"Content-Type": "application/json"}, body)
            is_right: bool = json.loads(exchange.read(1024))["right"]
            return not is_right
    except PeerUnavailable:
        store = Store.open(root, int(config.store.capacity), int(config.store.reserve))
        try:
            return not store.verify(digest)
        finally:
            store.close()
    except (ValueError, KeyError) as error:
        raise PasselError("the peer's answer makes no sense") from error


def _print(facts: dict[str, Any]) -> None:
    read = (
        f"{facts['node']}: {facts['blobs']} blobs, {size(facts['bytes'])} read in {facts['store']}"
    )
    out.print(f"{read}, {len(facts['damaged'])} damaged" if facts["damaged"] else read)
    for each in facts["damaged"]:
        end = {True: "put aside", False: "is right again", None: "--repair puts it aside"}
        out.print(f"  {each['digest']}: {each['damage']}; {end[each['repaired']]}", markup=False)
