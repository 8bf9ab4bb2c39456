"""passel.Client against the demo registry: digests, resuming, reading ranges."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from passel.cli.demo.registry import Registry
from passel.client import Client, download
from passel.errors import DigestMismatch, InputError, PasselError, StoreError

DATA = os.urandom(3_000_000)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    """A registry in a thread of its own; for these reads a gateway looks the same."""
    folder = tmp_path / "registry" / "blobs" / "sha256"
    folder.mkdir(parents=True)
    (folder / DIGEST.removeprefix("sha256:")).write_bytes(DATA)
    loop = asyncio.new_event_loop()
    registry = Registry(tmp_path / "registry")
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield asyncio.run_coroutine_threadsafe(registry.start(), loop).result(10)
    asyncio.run_coroutine_threadsafe(registry.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def url(base: str) -> str:
    return f"{base}/v2/org/app/blobs/{DIGEST}"


def test_get_writes_a_verified_file(base: str, tmp_path: Path) -> None:
    got = Client(base).get(url(base), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert (str(got.digest), got.size, got.verified) == (DIGEST, len(DATA), True)
    assert not (tmp_path / "out.part").exists()


def test_get_takes_up_where_it_broke_off(base: str, tmp_path: Path) -> None:
    (tmp_path / "out.part").write_bytes(DATA[:1_000_000])
    got = Client(base).get(url(base), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert got.resumed == 1_000_000


def test_a_part_of_something_else_is_not_passed_off_as_the_blob(base: str, tmp_path: Path) -> None:
    (tmp_path / "out.part").write_bytes(os.urandom(1_000_000))
    try:
        Client(base).get(url(base), tmp_path / "out")
    except DigestMismatch:
        assert not (tmp_path / "out").exists()
    else:
        assert (tmp_path / "out").read_bytes() == DATA


def test_wrong_digest_leaves_no_file(base: str, tmp_path: Path) -> None:
    with pytest.raises(PasselError):
        Client(base).get(url(base), tmp_path / "out", digest="sha256:" + "0" * 64)
    assert not (tmp_path / "out").exists()


def test_get_into_a_stream_and_open_for_ranges(base: str) -> None:
    stream = io.BytesIO()
    Client(base).get(url(base), stream)
    assert stream.getvalue() == DATA
    with Client(base).open(url(base)) as file:
        file.seek(1_234_567)
        assert file.read(1000) == DATA[1_234_567 : 1_234_567 + 1000]
        file.seek(-10, io.SEEK_END)
        assert file.read() == DATA[-10:]


def test_a_folder_is_refused_before_anything_is_fetched(base: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        Client(base).get(url(base), tmp_path)
    assert not tmp_path.with_name(tmp_path.name + ".part").exists()
    with pytest.raises(InputError, match="is a folder"):
        Client(base).get(url(base), "")


def test_a_device_is_written_into_and_stays_a_device(base: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        got = Client(base).get(url(base), pipe)
        assert read.result(30) == DATA
    assert got.verified
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe", "registry"]


def test_a_link_is_followed(base: str, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    Client(base).get(url(base), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == DATA


def test_a_full_device_is_a_sentence(base: str) -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("no /dev/full here")
    with pytest.raises(StoreError, match="cannot write /dev/full: no space left on device"):
        Client(base).get(url(base), full)
    with (
        full.open("wb") as stream,
        pytest.raises(StoreError, match="cannot write the output: no space left on device"),
    ):
        Client(base).get(url(base), stream)


class Grudging(io.RawIOBase):
    """Takes a thousand bytes at a time, as an unbuffered file on an almost full disk does."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.taken += bytes(data[:1000])
        return min(len(data), 1000)


def test_a_short_write_loses_nothing(base: str) -> None:
    stream = Grudging()
    Client(base).get(url(base), stream)  # type: ignore[arg-type]
    assert stream.taken == DATA


def test_nobody_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PAUSE_S", (0.01,))
    with pytest.raises(PasselError):
        Client("http://127.0.0.1:1").get(url("http://127.0.0.1:1"), tmp_path / "out")
