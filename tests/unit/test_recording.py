"""Recording is off until somebody says otherwise, and stops when it is over."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from blob_names import a_ref

from passel.config import TraceConfig
from passel.telemetry import recording as live
from passel.telemetry.recording import NO_NOTE, Recording, switch_off, switch_on
from passel.telemetry.trace import info, read_trace


async def looked(recording: Recording, wanted: bool) -> None:
    deadline = time.monotonic() + 20
    while recording.is_on is not wanted:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_file_switches_it_on_and_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOOK_EVERY_S", 0.01)
    recording = Recording(TraceConfig(), tmp_path, "gateway-n1")
    task = asyncio.get_running_loop().create_task(recording.run())
    try:
        assert recording.read(a_ref(), "n1") is NO_NOTE
        folder = tmp_path / "trace"
        switch_on([folder], time.time() + 60)
        await looked(recording, True)
        with recording.read(a_ref(), "n1") as note:
            note.ready("local", 0, 100)
        with pytest.raises(ConnectionResetError), recording.read(a_ref(), "n1"):
            raise ConnectionResetError("Authorization: Basic s3cret")
        switch_off([folder])
        await looked(recording, False)
        for _ in range(1000):
            if files := list(folder.glob("*.parquet")):
                break
            await asyncio.sleep(0.01)
        await asyncio.to_thread(recording.close)
        assert info(files[0]).kinds["read"] == 2
        rows = read_trace(files[0]).to_pylist()
        assert [row["outcome"] for row in rows] == ["ok", "ConnectionResetError"]
        assert [row["bytes"] for row in rows] == [100, 0]
        assert rows[0]["source"] == "local"
    finally:
        task.cancel()


async def test_it_ends_by_itself_when_nobody_switches_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOOK_EVERY_S", 0.01)
    recording = Recording(TraceConfig(), tmp_path, "peer-n1")
    task = asyncio.get_running_loop().create_task(recording.run())
    switch_on([tmp_path / "trace"], time.time() + 0.5)
    await looked(recording, True)
    await looked(recording, False)
    task.cancel()


def test_the_configuration_switches_it_on_from_the_start(tmp_path: Path) -> None:
    recording = Recording(TraceConfig(record=True, path=tmp_path / "here"), tmp_path, "shard-0")
    assert recording.is_on
    assert recording.read(a_ref(), "n1") is not NO_NOTE


def test_a_repeat_is_recorded_as_the_read_that_it_repeats(tmp_path: Path) -> None:
    recording = Recording(TraceConfig(record=True, path=tmp_path), tmp_path, "gateway-n1")
    with recording.read(a_ref(), "n1") as note:
        note.ready("local", 100, 300)
    sent = recording.repeats(a_ref(), "n1").begin(100, 300)
    assert sent is not None
    sent()
    recording.close()
    read, repeat = read_trace(next(tmp_path.glob("*.parquet"))).to_pylist()
    times = ("at_s", "queue_s", "transfer_s")
    assert all(isinstance(repeat.pop(name), float) for name in times)
    assert repeat == {name: value for name, value in read.items() if name not in times}
