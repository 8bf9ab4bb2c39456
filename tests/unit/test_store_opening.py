"""Opening a store: who may, what is refused, what damage costs."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from unit.store_makers import CAPACITY, PIECE, content, fill, key_of, put

from passel.errors import (
    StoreCorrupt,
    StoreError,
    StoreLocked,
)
from passel.ids import BlobKey
from passel.store import (
    BlobRetired,
    Store,
    StoreReader,
    piecemap,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    clock = itertools.count(10**18, 100 * 10**9)
    with Store.open(root, CAPACITY, clock_ns=lambda: next(clock)) as opened:
        opened.recover()
        yield opened


def test_two_owners_in_two_processes(store: Store, root: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from passel.store import Store\n"
        "from passel.errors import StoreLocked\n"
        "try: Store.open(Path(sys.argv[1]), 1)\n"
        "except StoreLocked as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    child = subprocess.run(
        [sys.executable, "-c", program, str(root)], capture_output=True, env=environment, check=True
    )
    assert child.stdout.decode() == f"the store {root} is in use by process {os.getpid()}\n"


def test_two_owners_in_one_process(store: Store, root: Path) -> None:
    with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
        Store.open(root, CAPACITY)
    store.close()
    store.close()
    Store.open(root, CAPACITY).close()


def test_a_closed_store(store: Store) -> None:
    data = content("a", 1500)
    blob = store.create(key_of(data), 1500, PIECE)
    fill(blob, data)
    store.close()
    with pytest.raises(StoreError):
        store.create(key_of(b"x"), 1, PIECE)
    with pytest.raises(BlobRetired):
        blob.write(0, b"x")
    with pytest.raises(BlobRetired):
        blob.promote()


def test_a_newer_format_is_refused(root: Path) -> None:
    Store.open(root, CAPACITY).close()
    (root / "format").write_text("passel store 7\n")
    with pytest.raises(StoreError, match="format 7, written by a newer passel"):
        Store.open(root, CAPACITY)
    (root / "format").write_text("passel store 1\n")
    Store.open(root, CAPACITY).close()


def test_somebody_elses_folder_is_refused(root: Path) -> None:
    """An OCI layout has blobs/ too, and recovery would move it away."""
    (root / "blobs" / "sha256").mkdir(parents=True)
    (root / "blobs" / "sha256" / ("0" * 64)).write_bytes(b"")
    with pytest.raises(StoreCorrupt, match="no file 'format'"):
        Store.open(root, CAPACITY)
    assert (root / "blobs" / "sha256" / ("0" * 64)).exists()


def test_what_others_have_in_the_folder_stays(root: Path) -> None:
    Store.open(root, CAPACITY).close()
    (root / "peer.sock").write_bytes(b"")
    (root / "notes").mkdir()
    Store.open(root, CAPACITY).close()
    assert (root / "peer.sock").exists()
    assert (root / "notes").exists()


def test_unknown_things_go_into_quarantine(root: Path, tmp_path: Path) -> None:
    with Store.open(root, 1 << 30) as store:
        put(store, content("a", 2500))
        kept = store.create(key_of(b"x"), 5000, PIECE)
    (root / "partial" / "notes").mkdir()
    (root / "partial" / "notes" / "inner").write_bytes(b"x")
    (tmp_path / "outside").write_bytes(b"x")
    (root / "blobs" / "sha256" / "link").symlink_to(tmp_path / "outside")
    (root / "partial" / kept.key.id / "extra").write_bytes(b"x")
    with Store.open(root, 1 << 30) as store:
        assert [blob.key for blob in store.recover()] == [kept.key]
        assert len(store.completes()) == 1
    names = sorted(path.name.split("-", 1)[1] for path in (root / "quarantine").iterdir())
    assert names == sorted(["partial-notes", "blobs-sha256-link", f"partial-{kept.key.id}-extra"])
    assert (tmp_path / "outside").read_bytes() == b"x"


# -- damage


def damaged_store(root: Path) -> tuple[bytes, BlobKey]:
    """A partial blob with pieces 0, 1, 2, 4 of 0 to 4."""
    data = content("a", 4500)
    with Store.open(root, CAPACITY) as store:
        blob = store.create(key_of(data), 4500, PIECE)
        fill(blob, data, range(3))
        fill(blob, data, range(4, 5))
    return data, key_of(data)


def recovered(root: Path, data: bytes, key: BlobKey) -> int:
    with Store.open(root, CAPACITY) as store:
        (blob,) = store.recover()
        reader = StoreReader(root)
        view = reader.view(key)
        assert view is not None
        for piece in range(5):
            start, stop = blob.span(piece)
            assert view.covers(start, stop) == bool(blob.have >> piece & 1)
            if view.covers(start, stop):
                assert os.pread(view.fd, stop - start, start) == data[start:stop]
        have = blob.have
        fill(blob, data)
        blob.promote()
        return have


def flip(path: Path, offset: int, mask: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= mask
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("file", "offset", "mask", "have"),
    [
        ("data", 0, 1, 0b10110),
        ("data", 1999, 0x80, 0b10101),
        ("data", 3500, 1, 0b10111),
        ("data", 4499, 1, 0b00111),
        ("map", 96, 1, 0b10110),
        ("map", 96 + 4 * 32 + 31, 1, 0b00111),
        ("map", 96 + 3 * 32, 1, 0b10111),
        ("map", 64, 0b01000, 0b10111),
        ("map", 64, 0b00001, 0b10110),
        ("map", 64, 0b100000, 0b10111),
        ("map", 0, 1, 0b10111),
        ("map", 32, 1, 0b10111),
        ("map", 16, 1, 0b10111),
    ],
)
def test_flipped_bits_cost_only_their_pieces(
    root: Path, file: str, offset: int, mask: int, have: int
) -> None:
    data, key = damaged_store(root)
    flip(root / "partial" / key.id / file, offset, mask)
    assert recovered(root, data, key) == have


@pytest.mark.parametrize(
    ("file", "size", "have"),
    [
        ("data", 4499, 0b00111),
        ("data", 1500, 0b00001),
        ("data", 0, 0),
        ("data", 9999, 0b10111),
        ("map", 96 + 2 * 32, 0b00011),
        ("map", 96 + 2 * 32 + 5, 0b00011),
        ("map", 64, 0),
        ("map", 0, 0),
    ],
)
def test_torn_files_cost_only_their_pieces(root: Path, file: str, size: int, have: int) -> None:
    data, key = damaged_store(root)
    os.truncate(root / "partial" / key.id / file, size)
    assert recovered(root, data, key) == have


def test_damaged_meta_goes_into_quarantine(root: Path) -> None:
    _, key = damaged_store(root)
    meta = root / "partial" / key.id / "meta"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "upstream": "evil"}))
    with Store.open(root, 1 << 30) as store:
        assert store.recover() == []
        assert len(list((root / "quarantine").iterdir())) == 1


def test_a_partial_is_hashed_when_it_is_asked_for(root: Path) -> None:
    """A start is quick however much is in partial/: nobody waits for blobs of no interest."""
    _, key = damaged_store(root)
    flip(root / "partial" / key.id / "data", 0)
    with Store.open(root, CAPACITY) as store:
        assert store.partials() == []
        blob = store.partial(key.id)
        assert blob is not None
        assert blob.have == 0b10110
        assert store.partials() == [blob]
    with Store.open(root, CAPACITY) as store:
        assert store.create(key, 4500, PIECE).have == 0b10110


def test_after_a_reboot_readers_wait_for_recovery(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, key = damaged_store(root)
    reader = StoreReader(root)
    view = reader.view(key)
    assert view is not None
    assert view.covers(0, 3000)
    monkeypatch.setattr(piecemap, "boot_id", lambda: b"another boot id!")
    reader = StoreReader(root)
    view = reader.view(key)
    assert view is not None
    assert view.verified_to(0) == 0
    with Store.open(root, CAPACITY) as store:
        assert view.verified_to(0) == 0
        store.recover()
        assert view.covers(0, 3000)
        assert os.pread(view.fd, 3000, 0) == data[:3000]


def test_a_damaged_sidecar_or_blob_is_not_served(root: Path) -> None:
    kinds = ("sidecar", "no sidecar", "short blob", "no blob")
    blobs = {kind: content(kind, 2500) for kind in kinds}
    with Store.open(root, 1 << 30) as store:
        for data in blobs.values():
            put(store, data)
    paths = dict.fromkeys(kinds, root / "blobs/sha256")
    for kind, data in blobs.items():
        digest = key_of(data).digest
        path = paths[kind] / digest.hex[:2] / digest.hex
        sidecar = path.with_name(path.name + ".pieces")
        if kind == "sidecar":
            flip(sidecar, 60)
        elif kind == "no sidecar":
            sidecar.unlink()
        elif kind == "short blob":
            os.truncate(path, 2000)
        else:
            path.unlink()
    with Store.open(root, 1 << 30) as store:
        reader = StoreReader(root)
        for data in blobs.values():
            assert reader.view(key_of(data)) is None
            assert store.complete(key_of(data).digest) is None
            assert put(store, data).path.read_bytes() == data
        assert store.used_bytes() == 4 * 2500
    with Store.open(root, 1 << 30) as store:
        assert len(store.completes()) == 4


def test_verify_finds_rot(store: Store) -> None:
    data = content("a", 2500)
    blob = put(store, data)
    flip(blob.path, 1234)
    assert not store.verify(blob.digest)
    assert store.complete(blob.digest) is None
    assert store.used_bytes() == 0
