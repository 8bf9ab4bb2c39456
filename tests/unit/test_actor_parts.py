"""The parts of the actors that need no Ray: cutting origin bytes, answers to readers, places."""

from __future__ import annotations

import asyncio
import hashlib
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blob_names import a_digest

from passel.actors.controller import choose_seeds, place_of, shard_status
from passel.actors.door import Door, Reader
from passel.actors.fetching import Cutter
from passel.actors.peer import Peer
from passel.actors.words import Place
from passel.cli import operating
from passel.client import admin
from passel.config.load import parse
from passel.core.messages import (
    BlobLost,
    OpenPartial,
    ReadDone,
    ReadProgress,
    ReadReady,
    StoreFull,
)
from passel.errors import ContentError, PeerBusy, PeerUnavailable
from passel.ids import BlobKey, PeerId
from passel.store.store import Store, all_ordinary

MIB = 1 << 20


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (0, 2), (2, 4), (1, 5)])
@pytest.mark.parametrize("chunk", [700_001, MIB, 3 * MIB + 1])
def test_cutter_hashes_every_piece_that_it_sees_whole(
    tmp_path: Path, start: int, stop: int, chunk: int
) -> None:
    data = os.urandom(4 * MIB + 12345)
    with Store.open(tmp_path / "store", 64 * MIB) as store:
        partial = store.create(BlobKey("up", a_digest("x")), len(data), MIB)
        first, last = start * MIB, min(stop * MIB, len(data))
        cutter = Cutter(partial, first, last)
        done = []
        for at in range(first, last, chunk):
            done += cutter.take(bytearray(data[at : min(at + chunk, last)]))
        assert [cut.piece for cut in done] == list(range(start, -(-last // MIB)))
        for cut in done:
            piece = data[cut.piece * MIB : (cut.piece + 1) * MIB]
            assert cut.digest == hashlib.sha256(piece).digest()
            partial.confirm(cut.piece, cut.digest)


def test_cutter_calls_the_rim_of_a_span_a_part_and_refuses_surplus(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", 64 * MIB) as store:
        partial = store.create(BlobKey("up", a_digest("x")), 8 * MIB, 2 * MIB)
        cutter = Cutter(partial, MIB, 4 * MIB)
        done = cutter.take(bytearray(3 * MIB))
        assert [(cut.start, cut.stop, cut.digest is None) for cut in done] == [
            (MIB, 2 * MIB, True),
            (2 * MIB, 4 * MIB, False),
        ]
        with pytest.raises(ContentError):
            cutter.take(bytearray(1))


async def test_a_slow_reader_gets_the_newest_progress_only() -> None:
    reader = Reader()
    ready = ReadReady(1, 100, 10, "peer", True, 10)
    reader.put(ready)
    for upto in range(20, 100, 10):
        reader.put(ReadProgress(1, upto))
    reader.put(ReadDone(1))
    answers = await asyncio.wait_for(reader.get(), 1)
    assert answers == [ready, ReadProgress(1, 90), ReadDone(1)]


def test_places_come_from_labels_or_are_one_zone() -> None:
    node = {
        "NodeManagerAddress": "10.0.0.7",
        "Labels": {"ray.io/availability-zone": "eu-1a", "passel/rack": "r3"},
    }
    assert place_of(node) == Place("10.0.0.7", "eu-1a", "", "r3")
    assert place_of({"NodeManagerAddress": "10.0.0.8", "Labels": {}}).zone == ""


def test_seeds_by_label_by_count_and_they_stay() -> None:
    config = parse("seeds: {count: 2}")
    peers = [PeerId(f"id{i}") for i in range(6)]
    places = {peer: Place(f"n{i}", "a", "", "") for i, peer in enumerate(peers)}
    none: dict[PeerId, dict[str, str]] = {peer: {} for peer in peers}
    chosen = choose_seeds(config, places, none, set())
    assert len(chosen) == 2
    assert choose_seeds(config, places, none, set()) == chosen, "the same after a restart"
    other = {peer for peer in peers if peer not in chosen}
    current = set(sorted(other)[:2])
    assert choose_seeds(config, places, none, current) == current, "they keep what they fetched"
    labelled = {**none, peers[3]: {"passel/role": "seed"}}
    assert choose_seeds(config, places, labelled, chosen) == {peers[3]}


def test_a_shard_is_named_by_its_own_node() -> None:
    """Ray may start it again elsewhere than beside the controller."""
    names = {PeerId("id-1"): "n1", PeerId("id-2"): "n2"}
    assert shard_status({"shard": 0, "node": "id-2"}, names) == {"shard": 0, "node": "n2"}
    assert shard_status({"shard": 1, "node": "id-9"}, names)["node"] == "id-9", "its peer is away"


def test_what_was_evicted_in_vain_is_told_all_the_same(tmp_path: Path) -> None:
    """Others would go on being sent here for it."""
    with Store.open(tmp_path / "store", 4 * MIB) as store:
        said: list[object] = []
        peer = SimpleNamespace(
            _store=store,
            _serving=SimpleNamespace(know=said.append, forget=said.append),
            _rank=all_ordinary,
            _machine=SimpleNamespace(complete={a_digest("gone")}),
            _later=said.append,
            _n_evicted=0,
        )
        peer._note_evictions = partial(Peer._note_evictions, peer)
        Peer._open_partial(peer, OpenPartial(BlobKey("up", a_digest("x")), 8 * MIB, MIB))
        assert StoreFull(BlobKey("up", a_digest("x")).id) in said
        assert BlobLost(a_digest("gone")) in said


async def test_a_rotation_waits_for_a_controller_that_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer's door says what it waits for, and the command begins again."""
    asked: list[Any] = []

    async def answer(verb: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append((verb, fields))
        if len(asked) < 3:
            raise PeerUnavailable("the controller is being started again")
        return 200, {"stage": "steady", "waits_for": []}

    path = tmp_path / "peer.sock"
    door = Door(SimpleNamespace(admin=answer), path)  # type: ignore[arg-type]
    await door.open()
    try:
        with pytest.raises(PeerBusy, match="answered 503: the controller is being started again"):
            await asyncio.to_thread(admin.ask, [path], "rotate", {"begin": True})
        client = SimpleNamespace(ask=lambda verb, **fields: admin.ask([path], verb, fields))
        monkeypatch.setattr(operating, "_client", lambda state, config: client)
        await asyncio.to_thread(operating.rotate)
    finally:
        await door.close()
    assert asked == [("rotate", {"begin": True})] * 3
