"""The store against a model made of dicts, with restarts, reboots and liars."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from passel.errors import DigestMismatch, NoSpace
from passel.ids import BlobId, BlobKey, Digest
from passel.store import PieceContested, Store, StoreReader, layout, piecemap

PIECE = 100
CAPACITY = 2000
SIZES = (0, 1, 99, 100, 101, 250, 400, 777)
UPSTREAMS = ("docker.io", "ghcr.io")
MISNAMED = 777


def content(size: int) -> bytes:
    return hashlib.shake_128(b"%d" % size).digest(size)


def digest_of(size: int) -> Digest:
    # One blob is not what its name says: every promotion of it must fail.
    data = b"something else" if size == MISNAMED else content(size)
    algorithm = "sha512" if size % 2 else "sha256"
    return Digest(algorithm, hashlib.new(algorithm, data).hexdigest())


@dataclass
class Model:
    partials: dict[BlobId, tuple[BlobKey, int, set[int]]] = field(default_factory=dict)
    #: Least recently used first.
    complete: dict[Digest, int] = field(default_factory=dict)

    def use(self, digest: Digest) -> bool:
        if digest not in self.complete:
            return False
        self.complete[digest] = self.complete.pop(digest)
        return True

    @property
    def used(self) -> int:
        return sum(self.complete.values()) + sum(size for _, size, _ in self.partials.values())

    def evict(self, needed: int) -> list[Digest]:
        victims = []
        for digest in list(self.complete):
            if self.used + needed <= CAPACITY:
                break
            victims.append(digest)
            del self.complete[digest]
        return victims


class StoreMachine(RuleBasedStateMachine):
    """Every step of the owner is compared with the model, every reader with the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="passel-store-"))
        self.root = self.folder / "store"
        self.now_ns = 10**18
        self.n_boots = 0
        self.boot = mock.patch.object(piecemap, "boot_id", return_value=bytes(16))
        self.boot.start()
        self.model = Model()
        self.store = self.open()
        self.reader = StoreReader(self.root, views_max=3)

    def clock_ns(self) -> int:
        # Far enough apart that each use is noted on the disk.
        self.now_ns += 100 * 10**9
        return self.now_ns

    def open(self) -> Store:
        return Store.open(self.root, CAPACITY, clock_ns=self.clock_ns)

    def teardown(self) -> None:
        self.reader.close()
        self.store.close()
        self.boot.stop()
        shutil.rmtree(self.folder)

    sizes = st.sampled_from(SIZES)
    upstreams = st.sampled_from(UPSTREAMS)
    picks = st.integers(0, 20)

    def pick(self, number: int) -> tuple[BlobKey, int, set[int]]:
        return list(self.model.partials.values())[number % len(self.model.partials)]

    @rule(size=sizes, upstream=upstreams)
    def create(self, size: int, upstream: str) -> None:
        key = BlobKey(upstream, digest_of(size))
        assume(key.digest not in self.model.complete)
        if key.id not in self.model.partials:
            evictable = sum(self.model.complete.values())
            if self.model.used - evictable + size > CAPACITY:
                with pytest.raises(NoSpace):
                    self.store.create(key, size, PIECE)
                return
            self.model.evict(size)
            self.model.partials[key.id] = (key, size, set())
        blob = self.store.create(key, size, PIECE)
        assert (blob.key, blob.size) == (key, size)

    @precondition(lambda self: self.model.partials)
    @rule(number=picks, piece=picks, parts=st.integers(1, 3))
    def fetch(self, number: int, piece: int, parts: int) -> None:
        key, size, have = self.pick(number)
        assume(size > 0)
        blob = self.store.partial(key.id)
        assert blob is not None
        piece %= blob.n_pieces
        start, stop = blob.span(piece)
        truth = content(size)
        step = -(-(stop - start) // parts)
        for at in range(start, stop, step):
            blob.write(at, truth[at : min(at + step, stop)])
        blob.confirm(piece, hashlib.sha256(truth[start:stop]).digest())
        have.add(piece)

    @precondition(lambda self: self.model.partials)
    @rule(number=picks, offset=st.integers(0, 776), length=st.integers(0, 776))
    def scribble(self, number: int, offset: int, length: int) -> None:
        key, size, _ = self.pick(number)
        blob = self.store.partial(key.id)
        assert blob is not None
        offset = min(offset, size)
        blob.write(offset, b"x" * min(length, size - offset))

    @precondition(lambda self: self.model.partials)
    @rule(number=picks, piece=picks)
    def confirm_without_having_written(self, number: int, piece: int) -> None:
        key, size, have = self.pick(number)
        blob = self.store.partial(key.id)
        assume(blob is not None and size > 0)
        assert blob is not None
        piece %= blob.n_pieces
        assume(piece not in have)
        start, stop = blob.span(piece)
        blob.write(start, b"x")
        if stop - start == 1:
            return
        try:
            blob.confirm(piece, hashlib.sha256(content(size)[start:stop]).digest())
        except PieceContested:
            return
        raise AssertionError("a piece that begins with a wrong byte was verified")

    @precondition(lambda self: self.model.partials)
    @rule(number=picks)
    def finish(self, number: int) -> None:
        key, size, have = self.pick(number)
        blob = self.store.partial(key.id)
        assert blob is not None
        for piece in range(blob.n_pieces):
            self.fetch(number, piece, 1)
        assert len(have) == blob.n_pieces
        del self.model.partials[key.id]
        if size == MISNAMED:
            with pytest.raises(DigestMismatch):
                blob.promote()
            return
        complete = blob.promote()
        assert complete.path.read_bytes() == content(size)
        if not self.model.use(key.digest):
            self.model.complete[key.digest] = size

    @precondition(lambda self: self.model.partials)
    @rule(number=picks)
    def discard(self, number: int) -> None:
        key, _, _ = self.pick(number)
        self.store.discard(key.id)
        del self.model.partials[key.id]

    @rule(size=sizes)
    def use(self, size: int) -> None:
        blob = self.store.complete(digest_of(size))
        assert (blob is not None) == self.model.use(digest_of(size))
        assert blob is None or blob.size == size

    @rule(size=sizes)
    def remove(self, size: int) -> None:
        there = self.model.complete.pop(digest_of(size), None) is not None
        assert self.store.remove(digest_of(size)) == there

    @rule(needed=st.integers(0, CAPACITY + 100))
    def evict(self, needed: int) -> None:
        assert self.store.evict(needed, lambda digest: False) == self.model.evict(needed)

    @rule(is_reboot=st.booleans(), is_recovered=st.booleans())
    def restart(self, is_reboot: bool, is_recovered: bool) -> None:
        self.store.close()
        if is_reboot:
            self.reader.close()
            self.boot.stop()
            self.n_boots += 1
            boot = self.n_boots.to_bytes(16, "little")
            self.boot = mock.patch.object(piecemap, "boot_id", return_value=boot)
            self.boot.start()
            self.reader = StoreReader(self.root, views_max=3)
        self.store = self.open()
        # A partial blob whose content is complete through another upstream is of no use any more.
        for blob_id, (key, _, _) in list(self.model.partials.items()):
            if key.digest in self.model.complete:
                del self.model.partials[blob_id]
        if is_recovered:
            assert {blob.key.id for blob in self.store.recover()} == set(self.model.partials)

    @invariant()
    def the_owner_agrees(self) -> None:
        assert self.store.used_bytes() == self.model.used <= CAPACITY
        assert set(self.store.completes()) == set(self.model.complete)
        for blob in self.store.partials():
            _, _, have = self.model.partials[blob.key.id]
            assert {piece for piece in range(blob.n_pieces) if blob.have >> piece & 1} == have

    @invariant()
    def readers_see_what_is_verified(self) -> None:
        for size in SIZES:
            for upstream in UPSTREAMS:
                self.look(BlobKey(upstream, digest_of(size)), size)

    def look(self, key: BlobKey, size: int) -> None:
        with mock.patch("passel.store.blobs.touch"):
            # A look of ours is no use of the blob: the model's order would be lost.
            view = self.reader.view(key)
        is_complete = key.digest in self.model.complete
        if view is None:
            assert not is_complete
            assert key.id not in self.model.partials
            return
        with view:
            assert view.size == size
            assert view.complete == is_complete
            have = self.model.partials.get(key.id, (key, size, set()))[2]
            is_recovered = key.id in {blob.key.id for blob in self.store.partials()}
            for piece in range(-(-size // PIECE)):
                start, stop = piece * PIECE, min((piece + 1) * PIECE, size)
                if view.covers(start, stop):
                    assert is_complete or piece in have
                    assert os.pread(view.fd, stop - start, start) == content(size)[start:stop]
                else:
                    assert not is_complete
                    assert piece not in have or not is_recovered

    @invariant()
    def nothing_is_left_lying_about(self) -> None:
        assert not [path for path in self.root.rglob("*") if layout.is_temporary(path.name)]
        assert not list((self.root / "quarantine").iterdir())


StoreMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestStoreModel = StoreMachine.TestCase
