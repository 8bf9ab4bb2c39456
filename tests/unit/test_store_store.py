"""The store as its owner and its readers use it, without crashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from unit.store_makers import CAPACITY, PIECE, content, fill, key_of, put, tree

from passel.core.copies import Rank
from passel.errors import (
    DigestMismatch,
    LengthMismatch,
    NoSpace,
    StoreError,
)
from passel.store import (
    BlobRetired,
    CompleteBlob,
    PieceContested,
    Store,
    StoreReader,
    all_ordinary,
    fileio,
)
from passel.store import (
    store as store_module,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from passel.ids import Digest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    clock = itertools.count(10**18, 100 * 10**9)
    with Store.open(root, CAPACITY, clock_ns=lambda: next(clock)) as opened:
        opened.recover()
        yield opened


@pytest.fixture
def reader(root: Path) -> Iterator[StoreReader]:
    opened = StoreReader(root)
    yield opened
    opened.close()


# -- a blob's life


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 9999])
def test_a_blob_from_nothing_to_complete(
    store: Store, reader: StoreReader, root: Path, size: int, algorithm: str
) -> None:
    data = content("a", size)
    key = key_of(data, algorithm=algorithm)
    assert reader.view(key) is None
    blob = store.create(key, size, PIECE)
    assert store.create(key, size, PIECE) is blob
    assert store.partial(key.id) is blob
    assert store.partials() == [blob]
    view = reader.view(key)
    assert view is not None
    assert not view.complete
    fill(blob, data)
    assert view.covers(0, size)
    complete = blob.promote()
    assert view.complete
    assert os.pread(view.fd, size + 1, 0) == data
    assert store.partial(key.id) is None
    assert store.completes() == [key.digest]
    assert store.complete(key.digest) == complete
    assert complete.n_pieces == -(-size // PIECE)
    assert complete.path.read_bytes() == data
    assert complete.path == root / "blobs" / algorithm / key.digest.hex[:2] / key.digest.hex
    assert store.used_bytes() == size
    assert blob.promote() is complete
    assert tree(root / "partial") == set()
    assert store.verify(key.digest)


def test_modes_are_private(store: Store, root: Path) -> None:
    put(store, content("a", 2500))
    store.create(key_of(b"x" * 5000), 5000, PIECE)
    for path in (root, *root.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_wrong_whole_digest_destroys_the_blob(
    store: Store, reader: StoreReader, root: Path
) -> None:
    """Every piece matched what the first fetch told, and the whole is not what its name says."""
    key = key_of(b"something else")
    data = content("a", 2500)
    blob = store.create(key, len(data), PIECE)
    view = reader.view(key)
    assert view is not None
    fill(blob, data)
    assert view.covers(0, 2500)
    with pytest.raises(DigestMismatch) as caught:
        blob.promote()
    assert caught.value.expected == key.digest.hex
    assert caught.value.got == hashlib.sha256(data).hexdigest()
    assert view.is_dead
    assert view.verified_to(0) == 0
    assert not view.covers(0, 1)
    assert reader.view(key) is None
    assert tree(root) == {"format", "lock"}
    assert store.used_bytes() == 0
    for call in (lambda: blob.write(0, b"x"), lambda: blob.confirm(0, bytes(32)), blob.promote):
        with pytest.raises(BlobRetired):
            call()


def test_hashing_ahead_goes_no_further_than_the_first_gap(store: Store) -> None:
    data = content("a", 9 * PIECE + 5)
    blob = store.create(key_of(data), len(data), PIECE)
    for pieces in (range(5, 7), range(2), range(8, 10), range(2, 5)):
        fill(blob, data, pieces)
        blob.hash_ahead()
        assert blob.unhashed_bytes == 0
    fill(blob, data, range(7, 8))
    assert blob.unhashed_bytes == len(data) - 7 * PIECE
    assert blob.promote().path.read_bytes() == data


def test_two_upstreams_make_one_blob(store: Store, reader: StoreReader, root: Path) -> None:
    data = content("a", 2500)
    first, second = (key_of(data, name) for name in ("docker.io", "ghcr.io"))
    one, two = (store.create(key, 2500, PIECE) for key in (first, second))
    assert store.used_bytes() == 5000
    fill(one, data)
    other = reader.view(second)
    assert other is not None
    assert other.verified_to(0) == 0
    complete = one.promote()
    # The partial one is still there, and the complete one is better for whoever asks anew.
    anew = reader.view(second)
    assert anew is not None
    assert anew.complete
    fill(two, data)
    assert two.promote() == complete
    assert other.is_whole  # who reads it may go on: it was hashed too
    assert store.used_bytes() == 2500
    assert tree(root / "partial") == set()
    with pytest.raises(BlobRetired):
        two.promote()


def test_discard(store: Store, reader: StoreReader, root: Path) -> None:
    data = content("a", 2500)
    key = key_of(data)
    blob = store.create(key, 2500, PIECE)
    fill(blob, data, range(2))
    view = reader.view(key)
    assert view is not None
    store.discard(key.id)
    store.discard(key.id)
    assert view.verified_to(0) == 0
    assert tree(root) == {"format", "lock"}
    again = store.create(key, 2500, PIECE)
    assert again is not blob
    assert again.have == 0
    assert view.verified_to(0) == 0
    fill(again, data, range(1))
    anew = reader.view(key)
    assert anew is not None
    assert anew.verified_to(0) == 1000


@pytest.mark.parametrize("operation", ["write", "rename", "unlink", "rmdir"])
def test_a_discard_that_fails_leaves_no_zombie(store: Store, operation: str) -> None:
    data = content("a", 2500)
    blob = store.create(key_of(data), 2500, PIECE)

    def fail(step: str, path: str, offset: int, length: int) -> None:
        if step == operation:
            raise OSError(errno.EIO, "broken")

    with fileio.hooked(fail), pytest.raises(StoreError):
        store.discard(blob.key.id)
    with pytest.raises(BlobRetired):
        blob.write(0, b"x")
    assert store.used_bytes() == 0
    put(store, data)


def test_another_size_is_refused_another_piece_size_is_not(store: Store) -> None:
    key = key_of(b"x")
    blob = store.create(key, 5000, 1000)
    assert store.create(key, 5000, 500) is blob
    with pytest.raises(LengthMismatch):
        store.create(key, 5001, 1000)


# -- writing and confirming


def test_writes_beyond_the_end_are_refused(store: Store) -> None:
    blob = store.create(key_of(b"x"), 1500, PIECE)
    for offset, length in ((1400, 101), (1501, 1), (-1, 1)):
        with pytest.raises(LengthMismatch):
            blob.write(offset, bytes(length))
    blob.write(1500, b"")


def test_one_write_may_span_pieces_and_be_any_buffer(store: Store) -> None:
    data = content("a", 4500)
    blob = store.create(key_of(data), 4500, PIECE)
    blob.write(0, memoryview(bytearray(data))[:700])
    blob.write(700, memoryview(data)[700:])
    for piece in range(5):
        start, stop = blob.span(piece)
        blob.confirm(piece, hashlib.sha256(data[start:stop]).digest())
    assert blob.is_full
    blob.promote()


def test_confirming_a_piece_that_nobody_wrote(store: Store) -> None:
    data = content("a", 1500)
    blob = store.create(key_of(data), 1500, PIECE)
    blob.write(0, data[:999])
    for piece in (0, 1):
        with pytest.raises(PieceContested):
            blob.confirm(piece, hashlib.sha256(data[piece * 1000 : piece * 1000 + 1000]).digest())
    assert blob.have == 0
    assert blob.piece_digest(0) is None


def test_a_verified_piece_is_never_written_again(store: Store, reader: StoreReader) -> None:
    data = content("a", 2500)
    blob = store.create(key_of(data), 2500, PIECE)
    fill(blob, data, range(1, 2))
    blob.write(0, b"x" * 2500)
    fill(blob, data)
    view = reader.view(blob.key)
    assert view is not None
    assert os.pread(view.fd, 2500, 0) == data
    blob.promote()


def test_confirming_twice(store: Store) -> None:
    data = content("a", 1000)
    blob = store.create(key_of(data), 1000, PIECE)
    fill(blob, data)
    digest = hashlib.sha256(data).digest()
    blob.confirm(0, digest)
    with pytest.raises(DigestMismatch):
        blob.confirm(0, bytes(32))
    assert blob.piece_digest(0) == digest


@pytest.mark.parametrize("order", ["other first", "between", "other last", "tail only"])
def test_a_second_writer_cannot_slip_wrong_bytes_in(
    store: Store, reader: StoreReader, order: str
) -> None:
    """The caller's digest is over what it sent; somebody else wrote to the same place meanwhile."""
    data = content("a", 1000)
    digest = hashlib.sha256(data).digest()
    blob = store.create(key_of(data), 1000, PIECE)
    if order == "other first":
        blob.write(0, b"x" * 1000)
    blob.write(0, data[:500])
    if order == "between":
        blob.write(0, b"x" * 500)
    if order == "tail only":
        blob.write(500, b"x" * 500)
    blob.write(500, data[500:])
    if order == "other last":
        blob.write(300, b"x")
    is_right = order in ("other first", "tail only")
    if is_right:
        blob.confirm(0, digest)
    else:
        with pytest.raises(PieceContested):
            blob.confirm(0, digest)
    view = reader.view(blob.key)
    assert view is not None
    assert view.covers(0, 1000) == is_right
    fill(blob, data)
    assert os.pread(view.fd, 1000, 0) == data
    blob.promote()


def test_threads_on_one_blob(store: Store) -> None:
    """Liars and honest fetchers on all pieces at once: what gets confirmed is right."""
    data = content("a", 32 * PIECE)
    blob = store.create(key_of(data), len(data), PIECE)
    failures: list[BaseException] = []

    def fetch(seed: int, is_liar: bool) -> None:
        try:
            for _ in range(20):
                for step in range(32):
                    piece = (step * 7 + seed) % 32
                    start, stop = blob.span(piece)
                    for at in range(start, stop, 250):
                        blob.write(at, b"x" * 250 if is_liar else data[at : at + 250])
                    if not is_liar:
                        try:
                            blob.confirm(piece, hashlib.sha256(data[start:stop]).digest())
                        except PieceContested:
                            continue
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=fetch, args=(n, n % 2 == 1)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    for piece in range(32):
        if blob.have >> piece & 1:
            start, stop = blob.span(piece)
            assert os.pread(blob.fileno(), stop - start, start) == data[start:stop]
    fill(blob, data)
    blob.promote()


def test_late_writers_after_promotion_change_nothing(store: Store) -> None:
    data = content("a", 1500)
    blob = store.create(key_of(data), 1500, PIECE)
    fill(blob, data)
    complete = blob.promote()
    blob.write(0, b"x" * 1500)
    blob.confirm(0, hashlib.sha256(data[:1000]).digest())
    store.discard(blob.key.id)
    assert complete.path.read_bytes() == data
    assert os.pread(blob.fileno(), 1500, 0) == data


def test_many_promotions_at_once(store: Store) -> None:
    data = content("a", 5000)
    partials = [store.create(key_of(data, f"r{n}"), 5000, PIECE) for n in range(4)]
    for blob in partials:
        fill(blob, data)
    results: list[CompleteBlob] = []
    threads = [
        threading.Thread(target=lambda blob=blob: results.append(blob.promote()))
        for blob in partials
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 4
    assert len(set(results)) == 1
    assert store.used_bytes() == 5000
    assert store.partials() == []


# -- readers


def test_verified_to_and_covers(store: Store, reader: StoreReader) -> None:
    data = content("a", 4500)
    blob = store.create(key_of(data), 4500, PIECE)
    fill(blob, data, range(1, 3))
    fill(blob, data, range(4, 5))
    view = reader.view(blob.key)
    assert view is not None
    assert (view.size, view.piece_size) == (4500, 1000)
    table = {0: 0, 999: 999, 1000: 3000, 1500: 3000, 2999: 3000, 3000: 3000, 4000: 4500, 4499: 4500}
    assert {start: view.verified_to(start) for start in table} == table
    for start in (4500, 5000, -1):
        assert view.verified_to(start) == start
    assert view.covers(1200, 3000)
    assert not view.covers(1200, 3001)
    assert not view.covers(4400, 4501)
    assert not view.covers(3000, 2000)
    assert view.covers(1000, 1000)
    view.close()
    view.close()


def test_a_question_costs_microseconds(store: Store, reader: StoreReader) -> None:
    blob = store.create(key_of(b"x"), 4096 * 10, 10)
    for piece in range(4096):
        blob.write(piece * 10, b"0123456789")
        blob.confirm(piece, hashlib.sha256(b"0123456789").digest())
    view = reader.view(blob.key)
    assert view is not None
    best = min(_time(lambda: view.covers(3, 40_000)) for _ in range(50))
    # Measured at 2; a thousand would mean that somebody began to loop over pieces.
    assert best < 100e-6


def _time(call: object) -> float:
    start = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - start


def test_a_view_survives_eviction_and_a_new_blob_of_that_name(
    store: Store, reader: StoreReader
) -> None:
    data = content("a", 2500)
    key = key_of(data)
    put(store, data)
    view = reader.view(key)
    assert view is not None
    assert store.remove(key.digest)
    assert not store.remove(key.digest)
    assert view.covers(0, 2500)
    assert os.pread(view.fd, 2500, 0) == data
    assert reader.view(key) is None
    blob = store.create(key, 2500, PIECE)
    anew = reader.view(key)
    assert anew is not None
    assert anew.verified_to(0) == 0
    fill(blob, data)
    assert anew.covers(0, 2500)


def test_sweep_gives_the_disk_its_bytes_back(store: Store, reader: StoreReader) -> None:
    before = set(os.listdir("/proc/self/fd"))
    data = content("a", 2500)
    put(store, data)
    view = reader.view(key_of(data))
    assert view is not None
    store.remove(key_of(data).digest)
    assert reader.sweep() == 1
    assert os.pread(view.fd, 2500, 0) == data
    view.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_open_views_are_bounded_and_leak_nothing(store: Store, root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = StoreReader(root, views_max=3)
    keys = []
    for n in range(10):
        data = content(f"{n}", 1500)
        keys.append(key_of(data))
        put(store, data)
    views = [reader.view(key) for key in keys]
    assert all(view is not None and view.covers(0, 1500) for view in views)
    for view in views:
        assert view is not None
        view.close()
    assert len(os.listdir("/proc/self/fd")) == before + 3
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_upstreams_partial_is_not_visible(store: Store, reader: StoreReader) -> None:
    data = content("a", 2500)
    fill(store.create(key_of(data, "private"), 2500, PIECE), data)
    assert reader.view(key_of(data, "docker.io")) is None


def test_a_reader_before_the_store(root: Path, reader: StoreReader) -> None:
    assert reader.view(key_of(b"x")) is None


def test_a_reader_in_another_process(store: Store, root: Path) -> None:
    """The bits that it sees come while it looks, without a word between the two."""
    data = content("a", 3000)
    blob = store.create(key_of(data), 3000, PIECE)
    program = (
        "import sys, time, os; from pathlib import Path\n"
        "from passel.ids import *; from passel.store import StoreReader\n"
        "v = StoreReader(Path(sys.argv[1])).view(BlobKey('docker.io', Digest.parse(sys.argv[2])))\n"
        "print(v.verified_to(0), flush=True)\n"
        "end = time.monotonic() + 20\n"
        "while not v.complete and time.monotonic() < end: time.sleep(0.005)\n"
        "print(v.verified_to(0), len(os.pread(v.fd, 9999, 0)), flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(root), str(blob.key.digest)],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "0\n"
        fill(blob, data)
        blob.promote()
        assert child.stdout.readline() == "3000 3000\n"


# -- room


def pinning(digests: Collection[Digest]) -> Callable[[Digest], Rank]:
    return lambda digest: Rank.PINNED if digest in digests else Rank.ORDINARY


def test_eviction_takes_the_least_recently_used(
    store: Store, reader: StoreReader, root: Path
) -> None:
    data = [content(f"{n}", 20_000) for n in range(5)]
    keys = [key_of(each) for each in data]
    for each in data:
        put(store, each)
    assert store.evict(0, all_ordinary) == []
    store.complete(keys[0].digest)
    # The gateway's reads count as uses too; its clock is the real one and far ahead of ours.
    assert reader.view(keys[1]) is not None
    n_files = len(tree(root))
    assert store.evict(30_000, all_ordinary) == [keys[2].digest, keys[3].digest]
    assert store.used_bytes() == 60_000
    assert len(tree(root)) == n_files - 4
    assert store.complete(keys[2].digest) is None
    seed = {keys[4].digest}
    assert store.evict(100_000, pinning(seed)) == [keys[0].digest, keys[1].digest]


def test_the_order_of_use_survives_a_restart(root: Path) -> None:
    clock = itertools.count(10**18, 100 * 10**9)
    keys = [key_of(content(f"{n}", 1000)) for n in range(3)]
    with Store.open(root, CAPACITY, clock_ns=lambda: next(clock)) as store:
        for n in range(3):
            put(store, content(f"{n}", 1000))
        store.complete(keys[0].digest)
    with Store.open(root, CAPACITY, clock_ns=lambda: next(clock)) as store:
        assert store.evict(CAPACITY, all_ordinary) == [keys[n].digest for n in (1, 2, 0)]


def test_what_is_pinned_goes_last_and_only_when_the_disk_itself_is_full(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = 10**9
    monkeypatch.setattr(fileio, "free_bytes", lambda folder: free)
    with Store.open(root, CAPACITY) as store:
        pinned = {put(store, content(f"p{i}", 30_000)).digest for i in range(2)}
        loose = put(store, content("l", 30_000)).digest
        # The capacity is used up by what is pinned: the new one does not fit, nothing is lost.
        with pytest.raises(NoSpace):
            store.create(key_of(b"n"), 60_000, PIECE, pinning(pinned))
        assert set(store.completes()) == {*pinned, loose}
        # Somebody else fills the disk: first what is not pinned, although it was used last.
        free = 5_000
        monkeypatch.setattr(store, "reserve_bytes", 1_000)
        assert store.evict(25_000, pinning(pinned)) == [loose]
        gone = store.evict(25_000, pinning(pinned))
        assert len(gone) == 1
        assert set(gone) < pinned
        assert "evicted_although_pinned" in caplog.text


def test_a_last_copy_goes_after_all_others_and_before_a_new_blob_is_refused(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = itertools.count(10**18, 100 * 10**9)
    with Store.open(root, CAPACITY, clock_ns=lambda: next(clock)) as store:
        # From the least recently used on: two last copies, a pinned one, two of which others exist.
        names = ("s1", "s2", "p", "o1", "o2")
        digests = {name: put(store, content(name, 20_000)).digest for name in names}
        ranks = {
            digests["s1"]: Rank.LAST_COPY,
            digests["s2"]: Rank.LAST_COPY,
            digests["p"]: Rank.PINNED,
        }

        def rank(digest: Digest) -> Rank:
            return ranks.get(digest, Rank.ORDINARY)

        for size, left in ((20_000, {"s1", "s2", "p", "o2"}), (60_000, {"s2", "p"})):
            new = key_of(b"new" + bytes(size))
            store.create(new, size, PIECE, rank)
            assert set(store.completes()) == {digests[name] for name in left}
            store.discard(new.id)
        assert f"last_copy_evicted digest={digests['s1']}" in caplog.text
        with pytest.raises(NoSpace):
            store.create(key_of(b"large"), 81_000, PIECE, rank)
        assert set(store.completes()) == {digests["s2"], digests["p"]}, "nothing goes in vain"


def test_a_quota_takes_last_copies_after_the_others(root: Path) -> None:
    clock = itertools.count(10**18, 100 * 10**9)
    with Store.open(root, CAPACITY, clock_ns=lambda: next(clock)) as store:
        sole, *rest = (put(store, content(f"{i}", 10_000), "lab").digest for i in range(3))
        store.quotas = {"lab": 30_000}

        def rank(digest: Digest) -> Rank:
            return Rank.LAST_COPY if digest == sole else Rank.ORDINARY

        store.create(key_of(b"x", "lab"), 10_000, PIECE, rank)
        assert set(store.completes()) == {sole, rest[1]}
        store.create(key_of(b"y", "lab"), 20_000, PIECE, rank)
        assert set(store.completes()) == set()


def test_what_could_be_had_without_a_last_copy_or_a_pin(store: Store) -> None:
    last, pinned, _ = (put(store, content(name, 20_000), "lab").digest for name in "lpo")
    ranks = {last: Rank.LAST_COPY, pinned: Rank.PINNED}

    def rank(digest: Digest) -> Rank:
        return ranks.get(digest, Rank.ORDINARY)

    assert store.spare_bytes(rank) == CAPACITY - 40_000
    store.create(key_of(b"new"), 50_000, PIECE, rank)
    assert set(store.completes()) == {last, pinned}
    assert store.spare_bytes(rank) == CAPACITY - 90_000
    assert (store.upstream_of(last), store.upstream_of(key_of(b"x").digest)) == ("lab", None)


def test_create_evicts_as_much_as_needed_and_nothing_in_vain(store: Store) -> None:
    keys = [key_of(put(store, content(f"{n}", 30_000)).path.read_bytes()) for n in range(3)]
    with pytest.raises(NoSpace):
        store.create(key_of(b"x"), CAPACITY + 1, PIECE)
    with pytest.raises(NoSpace):
        store.create(key_of(b"x"), 50_000, PIECE, pinning({key.digest for key in keys}))
    assert len(store.completes()) == 3
    store.create(key_of(b"x"), 50_000, PIECE)
    assert set(store.completes()) == {keys[2].digest}
    assert store.used_bytes() == 80_000
    with pytest.raises(NoSpace):
        store.create(key_of(b"y"), 60_000, PIECE)
    assert set(store.completes()) == {keys[2].digest}


def test_the_reserve_counts_what_was_promised(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fileio, "free_bytes", lambda folder: 10_000)
    with Store.open(root, CAPACITY, reserve_bytes=2000) as store:
        data = content("a", 5000)
        blob = store.create(key_of(data), 5000, PIECE)
        with pytest.raises(NoSpace):
            store.create(key_of(b"x"), 3001, PIECE)
        store.create(key_of(b"x"), 3000, PIECE)
        store.discard(key_of(b"x").id)
        fill(blob, data, range(3))
        monkeypatch.setattr(fileio, "free_bytes", lambda folder: 7000)
        store.create(key_of(b"x"), 3000, PIECE)


def test_an_upstream_over_its_quota_loses_its_own_least_recently_used(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = itertools.count(10**18, 100 * 10**9)
    with Store.open(root, CAPACITY, clock_ns=lambda: next(clock)) as store:
        other = put(store, content("o", 20_000), "other").digest
        ours = [put(store, content(f"m{i}", 10_000), "lab").digest for i in range(3)]
        assert store.upstream_bytes("lab") == 30_000
    # Who brought what is known after a restart, and half a line hurts nobody.
    with (root / "owners").open("a") as file:
        file.write("sha256:12")
    with Store.open(root, CAPACITY, clock_ns=lambda: next(clock)) as store:
        store.quotas = {"lab": 35_000}
        store.complete(ours[0])
        with pytest.raises(NoSpace, match="its quota of 35000"):
            store.create(key_of(b"x", "lab"), 36_000, PIECE)
        with pytest.raises(NoSpace, match="30000 of its quota of 35000"):
            store.create(key_of(b"x", "lab"), 20_000, PIECE, pinning(set(ours)))
        assert len(store.completes()) == 4, "nothing is evicted in vain"
        store.create(key_of(b"x", "lab"), 20_000, PIECE)
        assert set(store.completes()) == {other, ours[0]}, "what was used last stays"
        assert store.upstream_bytes("lab") == 30_000, "what is under way counts"
        assert "sha256:12\n" not in (root / "owners").read_text()
        store.create(key_of(b"y", "other"), 50_000, PIECE)
        assert set(store.completes()) == {other, ours[0]}
        # Nothing of the quota's victims is lost when the store as a whole has no room.
        with pytest.raises(NoSpace):
            store.create(key_of(b"z", "lab"), 15_000, PIECE, pinning({other}))
        assert set(store.completes()) == {other, ours[0]}


def test_the_file_of_owners_does_not_grow_for_ever(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passel.store.owners.IDLE_LINES_MAX", 10)
    with Store.open(root, CAPACITY) as store:
        for i in range(20):
            blob = put(store, content(f"{i}", 100), "lab")
            store.remove(blob.digest)
        kept = put(store, content("kept", 100), "lab")
        assert len((root / "owners").read_text().splitlines()) == 21
    with Store.open(root, CAPACITY) as store:
        assert (root / "owners").read_text() == f"{kept.digest} lab\n"
        assert store.upstream_bytes("lab") == 100


def test_blobs_and_partials_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PARTIALS_MAX", 2)
    store.create(key_of(b"1"), 1, PIECE)
    store.create(key_of(b"2"), 1, PIECE)
    with pytest.raises(NoSpace):
        store.create(key_of(b"3"), 1, PIECE)
    monkeypatch.setattr(store_module, "PARTIALS_MAX", 100)
    put(store, b"old")
    put(store, b"new")
    monkeypatch.setattr(store_module, "BLOBS_MAX", 4)
    store.create(key_of(b"3"), 1, PIECE)
    assert store.completes() == [key_of(b"new").digest]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 2 MiB. Elsewhere the injected ENOSPC of test_store_crash.py has to do."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "passel-test", str(folder)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"may not mount a tmpfs: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up(tiny_disk: Path) -> None:
    root = tiny_disk / "store"
    data = content("a", 1_000_000)
    with Store.open(root, 1 << 30) as store:
        with pytest.raises(NoSpace):
            store.create(key_of(b"x"), 3 << 20, PIECE)
        blob = store.create(key_of(data), len(data), 100_000)
        fill(blob, data, range(2))
        hog = tiny_disk / "hog"
        with hog.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(65536)):
                pass
        assert fileio.free_bytes(tiny_disk) == 0
        with pytest.raises(NoSpace):
            fill(blob, data)
        n_before = blob.have.bit_count()
        assert n_before >= 2
        hog.unlink()
        fill(blob, data)
        hog.write_bytes(bytes(fileio.free_bytes(tiny_disk)))
        with pytest.raises(NoSpace):
            blob.promote()
        assert [path for path in tree(root) if ".new-" in path] == []
        hog.unlink()
        assert blob.promote().path.read_bytes() == data


def test_a_limit_on_file_sizes_is_no_space(root: Path) -> None:
    """EFBIG from a file system or from RLIMIT_FSIZE; in a child, for the limit cannot be lifted."""
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from passel.errors import NoSpace\n"
        "from passel.ids import *; from passel.store import Store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "store = Store.open(Path(sys.argv[1]), 1 << 30)\n"
        "try: store.create(BlobKey('x', Digest('sha256', '0' * 64)), 200_000, 1000)\n"
        "except NoSpace as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    child = subprocess.run(
        [sys.executable, "-c", program, str(root)], capture_output=True, env=environment, check=True
    )
    assert b"File too large" in child.stdout
    assert tree(root) == {"format", "lock"}
