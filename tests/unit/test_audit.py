"""What the disk spoils is found by reading, told in a sentence, and put aside by the owner."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from passel.actors.scrubbing import Scrubbing
from passel.errors import StoreCorrupt
from passel.ids import BlobKey, Digest
from passel.store import audit
from passel.store.layout import Layout
from passel.store.store import Store

PASSEL = str(Path(sys.executable).with_name("passel"))
MIB = 1 << 20


def put(store: Store, data: bytes) -> Digest:
    """The store has a complete blob of these bytes."""
    hasher = Digest("sha256", "").hasher()
    hasher.update(data)
    digest = Digest("sha256", hasher.hexdigest())
    blob = store.create(BlobKey("lab", digest), len(data), MIB)
    for piece in range(blob.n_pieces):
        start, stop = blob.span(piece)
        blob.write(start, memoryview(data)[start:stop])
        one = Digest("sha256", "").hasher()
        one.update(data[start:stop])
        blob.confirm(piece, one.digest())
    blob.promote()
    return digest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", 1 << 30)


def spoil(store: Store, digest: Digest) -> None:
    path = Layout(store.path).blob(digest)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\0rotten\0")


def test_a_sound_store_has_no_findings(store: Store) -> None:
    digests = [put(store, os.urandom(size)) for size in (1, MIB, 3 * MIB + 5)]
    findings = list(audit.audit(store.path))
    assert [each.digest for each in findings] == sorted(digests)
    assert not [each for each in findings if each.damage]


def test_every_kind_of_damage_is_told(store: Store) -> None:
    rotten, short, alone, garbled = (put(store, os.urandom(MIB)) for _ in range(4))
    paths = Layout(store.path)
    spoil(store, rotten)
    paths.blob(short).chmod(0o600)
    os.truncate(paths.blob(short), 1000)
    paths.sidecar(alone).unlink()
    paths.sidecar(garbled).write_bytes(b"nonsense" * 20)
    told = {each.digest: each.damage for each in audit.audit(store.path)}
    assert "its bytes have the digest sha256:" in told[rotten]
    assert told[short] == f"it has 1000 bytes, and its sidecar tells {MIB}"
    assert told[alone] == "its sidecar is missing"
    assert "checksum" in told[garbled]


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreCorrupt, match="there is no store"):
        list(audit.audit(tmp_path))
    (tmp_path / "format").write_text("passel store 9\n")
    with pytest.raises(StoreCorrupt, match="of a newer passel"):
        list(audit.audit(tmp_path))


def fsck(config: Path, *words: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [PASSEL, "fsck", "--config", str(config), "--json", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout, done.stderr
    facts: dict[str, object] = json.loads(done.stdout)[0]
    return done.returncode, facts


def test_fsck_without_a_peer(store: Store, tmp_path: Path) -> None:
    good, bad = put(store, os.urandom(MIB)), put(store, os.urandom(MIB))
    store.close()
    config = tmp_path / "passel.yaml"
    config.write_text(yaml.safe_dump({"store": {"path": str(store.path)}}))
    assert fsck(config)[0] == 0
    spoil(store, bad)
    status, facts = fsck(config)
    assert status == 1
    assert facts["blobs"] == 2
    assert [each["digest"] for each in facts["damaged"]] == [str(bad)]  # type: ignore[attr-defined]
    status, facts = fsck(config, "--repair")
    assert status == 0
    assert facts["damaged"][0]["repaired"] is True  # type: ignore[index]
    status, facts = fsck(config)
    assert (status, facts["blobs"]) == (0, 1)
    assert Layout(store.path).blob(good).exists()
    assert list(Layout(store.path).quarantine.iterdir()), "it is kept for whoever wants to look"


async def test_scrubbing_finds_it_and_counts_no_use(store: Store) -> None:
    digests = [put(store, os.urandom(MIB)) for _ in range(5)]
    used = {digest: os.stat(Layout(store.path).blob(digest)).st_atime_ns for digest in digests}
    spoil(store, digests[2])
    lost: list[Digest] = []
    busy = True
    scrubbing = Scrubbing(store, 0.5, random.Random(1), lambda: busy, lost.append)
    task = asyncio.get_running_loop().create_task(scrubbing.run())
    await asyncio.sleep(0.5)
    assert scrubbing.read_bytes == 0, "it gives way to everything else"
    busy = False
    deadline = time.monotonic() + 20
    while not lost or scrubbing.read_bytes < 5 * MIB:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    task.cancel()
    assert lost == [digests[2]]
    assert scrubbing.n_damaged == 1
    assert digests[2] not in store.completes()
    for digest in digests[:2] + digests[3:]:
        assert os.stat(Layout(store.path).blob(digest)).st_atime_ns == used[digest]
    store.close()
