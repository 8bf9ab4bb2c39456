"""The parts of the store by themselves: names, piece map, recovery table, sidecar, quarantine."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from passel.errors import NoSpace, StoreCorrupt, StoreError
from passel.ids import BlobKey, Digest
from passel.store import BlobRetired, PieceContested, blobs, fileio, layout, partial, recover
from passel.store.layout import Layout
from passel.store.piecemap import MapLayout, MapState, MapView, PieceMap
from passel.store.recover import Adopt, FoundBlob, FoundPartial, Keep, Listing, Quarantine, Remove

DIGEST = Digest("sha256", "ab" * 32)
KEY = BlobKey("docker.io", DIGEST)
ID = KEY.id
SHAPE = MapLayout(2500, 1000)
FILES = {"data": True, "map": True, "meta": True}

# -- names


def test_names_go_both_ways() -> None:
    paths = Layout(Path("/s"))
    assert str(paths.blob(DIGEST)) == f"/s/blobs/sha256/ab/{DIGEST.hex}"
    for path, is_sidecar in ((paths.blob(DIGEST), False), (paths.sidecar(DIGEST), True)):
        assert layout.parse_blob("sha256", "ab", path.name) == (DIGEST, is_sidecar)
    assert layout.parse_partial(paths.partial_folder(ID).name) == ID


@pytest.mark.parametrize(
    ("algorithm", "prefix", "name"),
    [
        ("sha256", "ac", "ab" * 32),
        ("sha256", "ab", "ab" * 31),
        ("sha512", "ab", "ab" * 32),
        ("sha256", "AB", "AB" * 32),
        ("md5", "ab", "ab" * 16),
        ("sha256", "ab", "ab" * 32 + ".new-1"),
        ("sha256", "ab", "ab" + "../" * 20 + "ab"),
        ("sha256", "ab", "ab" * 32 + "\n"),
    ],
)
def test_foreign_names_are_no_blobs(algorithm: str, prefix: str, name: str) -> None:
    assert layout.parse_blob(algorithm, prefix, name) is None


def test_temporary_names_are_known_as_such() -> None:
    assert layout.is_temporary(fileio.temporary(Path("/s/x"), "new").name)
    assert layout.is_temporary(fileio.temporary(Path("/s/x"), "gone").name)
    assert not layout.is_temporary(ID)


@pytest.mark.parametrize("line", [b"", b"passel store 1", b"passel store x\n", b"\xff"])
def test_a_format_that_tells_no_version(line: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        layout.parse_format(line)
    assert layout.parse_format(layout.format_line()) == layout.FORMAT_VERSION


# -- the piece map


def test_map_layout_is_the_documented_one() -> None:
    """docs/store-format.md: header of 64 bytes, bits, digests at a multiple of 32."""
    assert (MapLayout(0, 1000).n_pieces, MapLayout(0, 1000).length) == (0, 64)
    shape = MapLayout(1000 * 300, 1000)
    assert (shape.n_pieces, shape.bits_stop, shape.digests_start) == (300, 64 + 38, 128)
    assert shape.length == 128 + 300 * 32


@pytest.mark.parametrize(("size", "piece_size"), [(-1, 1000), (1, 0), ((1 << 20) + 1, 1)])
def test_impossible_maps(size: int, piece_size: int) -> None:
    with pytest.raises(StoreCorrupt):
        MapLayout(size, piece_size)


def view_of(path: Path) -> MapView:
    fd = os.open(path, os.O_RDONLY)
    try:
        return MapView(fd)
    finally:
        os.close(fd)


def test_a_reader_sees_bits_as_they_come(tmp_path: Path) -> None:
    piece_map = PieceMap.create(tmp_path / "map", MapLayout(20_000, 1000))
    view = view_of(tmp_path / "map")
    assert view.verified() == 0
    piece_map.verify(9, b"\x09" * 32)
    piece_map.verify(0, b"\x01" * 32)
    assert view.verified() == 0b10_0000_0001
    raw = (tmp_path / "map").read_bytes()
    assert raw[:8] == b"PASSELMP"
    assert raw[64:67] == b"\x01\x02\x00"
    assert raw[96 + 9 * 32 : 96 + 10 * 32] == b"\x09" * 32
    piece_map.set_state(MapState.DEAD)
    assert view.verified() == 0


def test_the_digest_is_there_before_the_bit(tmp_path: Path) -> None:
    piece_map = PieceMap.create(tmp_path / "map", SHAPE)
    offsets: list[int] = []
    with fileio.hooked(lambda operation, path, offset, length: offsets.append(offset)):
        piece_map.verify(2, b"\x02" * 32)
    assert offsets == [96 + 2 * 32, 64]


@pytest.mark.parametrize(
    ("offset", "replacement"),
    [(0, b"X"), (8, b"\x02"), (32, b"\xff\xff"), (48, b"\x09"), (40, b"\0" * 8)],
)
def test_a_reader_refuses_a_header_that_is_off(
    tmp_path: Path, offset: int, replacement: bytes
) -> None:
    PieceMap.create(tmp_path / "map", SHAPE)
    raw = bytearray((tmp_path / "map").read_bytes())
    raw[offset : offset + len(replacement)] = replacement
    (tmp_path / "map").write_bytes(raw)
    with pytest.raises(StoreCorrupt):
        view_of(tmp_path / "map")


@pytest.mark.parametrize("length", [0, 63, 64, 150])
def test_a_reader_refuses_a_short_map(tmp_path: Path, length: int) -> None:
    PieceMap.create(tmp_path / "map", SHAPE)
    os.truncate(tmp_path / "map", length)
    with pytest.raises(StoreCorrupt):
        view_of(tmp_path / "map")


def test_a_claim_beyond_the_last_piece_is_ignored(tmp_path: Path) -> None:
    PieceMap.create(tmp_path / "map", SHAPE)
    raw = bytearray((tmp_path / "map").read_bytes())
    raw[64] = 0xFF
    (tmp_path / "map").write_bytes(raw)
    assert PieceMap.adopt(tmp_path / "map", SHAPE)[1] == 0b111


# -- sidecar and meta


def test_sidecar_goes_both_ways() -> None:
    digests = b"".join(bytes([n]) * 32 for n in range(3))
    content = blobs.encode_sidecar(2500, 1000, digests)
    assert blobs.decode_sidecar(content) == (2500, 1000, blobs.split_digests(digests))
    assert blobs.decode_sidecar(blobs.encode_sidecar(0, 1000, b"")) == (0, 1000, ())


def test_a_sidecar_with_any_bit_flipped_is_refused() -> None:
    content = blobs.encode_sidecar(2500, 1000, bytes(96))
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1
        with pytest.raises(StoreCorrupt):
            blobs.decode_sidecar(bytes(flipped))
        with pytest.raises(StoreCorrupt):
            blobs.decode_sidecar(content[:at])


def test_meta_goes_both_ways() -> None:
    assert partial.decode_meta(partial.encode_meta(KEY, 2500, 1000)) == (KEY, SHAPE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"[]",
        b"{}",
        b"[" * 3000,
        b"\xff\xfe",
        partial.encode_meta(KEY, 2500, 1000).replace(b'"format": 1', b'"format": 2'),
        partial.encode_meta(KEY, 2500, 1000).replace(b"2500", b"-1"),
        partial.encode_meta(KEY, 2500, 1000).replace(b"2500", b"true"),
        partial.encode_meta(KEY, 2500, 1000).replace(b"2500", b"1e3"),
        partial.encode_meta(KEY, 2500, 1000).replace(b"sha256", b"../256"),
    ],
)
def test_meta_that_passel_did_not_write(content: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        partial.decode_meta(content)


# -- recovery, by table


def found_partial(**changes: object) -> FoundPartial:
    fields: dict[str, object] = {
        "name": ID,
        "files": FILES,
        "meta": (KEY, SHAPE),
        "map": (1, MapState.LIVE),
    }
    return FoundPartial(**{**fields, **changes})  # type: ignore[arg-type]


HERE = f"partial/{ID}"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (found_partial(), [Adopt(ID, KEY, SHAPE)]),
        (found_partial(map=None), [Adopt(ID, KEY, SHAPE)]),
        (
            found_partial(name=f"{ID}.new-12"),
            [Remove(f"{HERE}.new-12", "half made or half removed")],
        ),
        (
            found_partial(name=f"{ID}.gone-9"),
            [Remove(f"{HERE}.gone-9", "half made or half removed")],
        ),
        (found_partial(map=(1, MapState.DEAD)), [Remove(HERE, "destroyed")]),
        (
            found_partial(files={"map": True, "meta": True}, map=(1, MapState.COMPLETE)),
            [Remove(HERE, "its data was promoted or removed")],
        ),
        (found_partial(files={}, meta=None), [Remove(HERE, "its data was promoted or removed")]),
        (found_partial(meta=None), [Quarantine(HERE, "meta does not say which blob this is")]),
        (
            found_partial(meta=(BlobKey("ghcr.io", DIGEST), SHAPE)),
            [Quarantine(HERE, "meta does not say which blob this is")],
        ),
        (
            found_partial(files={**FILES, "data": False}),
            [Quarantine(HERE, "no data and piece map that are regular files")],
        ),
        (
            found_partial(files={"data": True, "meta": True}),
            [Quarantine(HERE, "no data and piece map that are regular files")],
        ),
        (found_partial(map=(2, 0)), [Quarantine(HERE, "a piece map of format 2")]),
        (found_partial(name="notes"), [Quarantine("partial/notes", "no partial blob")]),
        (found_partial(is_folder=False), [Quarantine(HERE, "no partial blob")]),
        (
            found_partial(files={**FILES, "more": True}),
            [Quarantine(f"{HERE}/more", "no file of a partial blob"), Adopt(ID, KEY, SHAPE)],
        ),
    ],
)
def test_plan_for_a_partial(found: FoundPartial, expected: list[recover.Action]) -> None:
    assert recover.plan(Listing(partials=(found,))) == expected


def found_blob(name: str, **changes: object) -> FoundBlob:
    fields: dict[str, object] = {"algorithm": "sha256", "prefix": "ab", "size": 5, "used_ns": 7}
    return FoundBlob(name=name, **{**fields, **changes})  # type: ignore[arg-type]


BLOB = found_blob(DIGEST.hex)
SIDECAR = found_blob(DIGEST.hex + ".pieces")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((BLOB, SIDECAR), [Keep(DIGEST, 5, 7)]),
        ((SIDECAR,), [Remove(SIDECAR.path, "a sidecar without its blob")]),
        ((BLOB,), [Quarantine(BLOB.path, "a blob without its sidecar")]),
        (
            (found_blob(DIGEST.hex + ".pieces.new-3"),),
            [Remove(SIDECAR.path + ".new-3", "it was never published")],
        ),
        ((found_blob("README"),), [Quarantine("blobs/sha256/ab/README", "no file of a store")]),
        (
            (found_blob(DIGEST.hex, is_file=False), SIDECAR),
            [
                Quarantine(BLOB.path, "no file of a store"),
                Remove(SIDECAR.path, "a sidecar without its blob"),
            ],
        ),
    ],
)
def test_plan_for_blobs(found: tuple[FoundBlob, ...], expected: list[recover.Action]) -> None:
    assert recover.plan(Listing(blobs=found)) == expected


def test_a_partial_goes_when_its_blob_is_complete() -> None:
    actions = recover.plan(Listing(partials=(found_partial(),), blobs=(BLOB, SIDECAR)))
    assert actions == [Keep(DIGEST, 5, 7), Remove(HERE, "the blob is complete")]


def test_a_stray_goes_into_quarantine() -> None:
    actions = recover.plan(Listing(strays=("blobs/x",)))
    assert actions == [Quarantine("blobs/x", "no folder of a store")]


# -- quarantine


def test_quarantine_is_bounded_in_number_and_bytes(tmp_path: Path) -> None:
    paths = Layout(tmp_path)
    for n in range(recover.QUARANTINE_ENTRIES_MAX + 5):
        (tmp_path / f"thing-{n}").write_bytes(b"x")
        recover.quarantine(paths, tmp_path / f"thing-{n}", "a test", 1 << 30)
    names = sorted(path.name for path in paths.quarantine.iterdir())
    assert len(names) == recover.QUARANTINE_ENTRIES_MAX
    assert names[0].endswith("-thing-5")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "big").write_bytes(bytes(100_000))
    recover.quarantine(paths, tmp_path / "folder", "a test", 150_000)
    names = [path.name for path in paths.quarantine.iterdir()]
    assert any(name.endswith("-folder") for name in names)
    assert sum(fileio.tree_bytes(path) for path in paths.quarantine.iterdir()) <= 150_000
    (tmp_path / "huge").write_bytes(bytes(200_000))
    recover.quarantine(paths, tmp_path / "huge", "a test", 150_000)
    assert list(paths.quarantine.iterdir()) == []


# -- files


def test_publish_is_all_or_nothing(tmp_path: Path) -> None:
    steps: list[str] = []
    with fileio.hooked(lambda operation, *rest: steps.append(operation)):
        fileio.publish(tmp_path / "x", b"content")
    assert steps == ["create", "write", "fsync", "rename", "fsync"]
    assert (tmp_path / "x").read_bytes() == b"content"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(StoreCorrupt):
            fileio.open_read(tmp_path / name)
        with pytest.raises(StoreCorrupt):
            fileio.open_write(tmp_path / name)
    with pytest.raises(StoreCorrupt):
        fileio.open_read(tmp_path / "folder")
    (tmp_path / "folder" / "inner").symlink_to(tmp_path / "target")
    fileio.remove_tree(tmp_path / "folder")
    assert (tmp_path / "target").read_bytes() == b"secret"


def test_an_owned_fd_is_closed_with_its_last_reference(tmp_path: Path) -> None:
    owned = fileio.OwnedFd(fileio.create(tmp_path / "x"))
    fd = owned.fileno()
    os.fstat(fd)
    del owned
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_the_errors_survive_pickling() -> None:
    for error in (BlobRetired("x"), PieceContested("y"), NoSpace("z"), StoreError("s")):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
