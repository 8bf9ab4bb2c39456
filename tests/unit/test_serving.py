"""What a peer's piece server finds on the peer's disk."""

from __future__ import annotations

from pathlib import Path

from unit.store_makers import PIECE, content, fill, key_of, put

from passel.actors.serving import Serving
from passel.ids import BlobKey
from passel.store.store import Store

DATA = content("x", 100_000)
KEY = key_of(DATA)
ELSEWHERE = BlobKey("quay.io", KEY.digest)


def test_a_whole_blob_is_served_under_every_upstream_also_in_the_next_life(tmp_path: Path) -> None:
    """Nobody reads it here in the meantime."""
    with Store.open(tmp_path / "store", 1 << 20) as store:
        put(store, DATA)
    with Store.open(tmp_path / "store", 1 << 20) as store:
        store.recover()
        serving = Serving(store)
        assert serving.locate(KEY.id, 0) is None, "of whom nothing was said"
        serving.know_complete(KEY.digest, ("docker.io", "quay.io"))
        for key in (KEY, ELSEWHERE):
            found = serving.locate(key.id, 0)
            assert found is not None
        store.remove(KEY.digest)
        serving.forget(KEY.digest)
        assert serving.locate(KEY.id, 0) is None


def test_what_is_fetched_anew_is_not_forgotten_with_what_was_evicted(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", 1 << 20) as store:
        serving = Serving(store)
        serving.know(KEY)
        partial = store.create(KEY, len(DATA), PIECE)
        serving.forget(KEY.digest)
        fill(partial, DATA)
        partial.promote()
        assert serving.locate(KEY.id, 0) is not None
