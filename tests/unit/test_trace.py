"""The trace: what is written is read back, what is broken is called so, what is lost is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from blob_names import a_ref

from passel.core import messages as m
from passel.errors import InputError
from passel.ids import BlobId, PeerId
from passel.telemetry import analysis
from passel.telemetry.trace import (
    SCHEMA,
    Recorder,
    TraceFile,
    TraceFolder,
    export,
    info,
    merge,
    read_trace,
)

BLOB = BlobId("b" * 64)


def fill(recorder: Recorder, n_pieces: int = 3) -> None:
    for piece in range(n_pieces):
        recorder.piece(
            at_s=1.0 + piece,
            node="p1",
            zone="z0",
            blob=BLOB,
            piece=piece,
            parent="p0" if piece else None,
            parent_zone="z1" if piece else None,
            n_bytes=100,
            source="peer" if piece else "origin",
            queue_s=0.1,
            transfer_s=0.5,
            verify_s=0.0,
            outcome="ok",
        )
    recorder.epoch(2.5, 0, 7, 2, 0.001)
    # As long as the tokens of a live shard, whose incarnation is a time.
    lease = m.Lease(a_ref(), 1_764_000_000_000 << 32, None, (), "host:1", 10.0)
    recorder.messages(2.6, 0, [m.Deliver(PeerId("p0"), lease)])
    recorder.fault(2.7, "p0", "crash")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    file = TraceFile(path, "virtual", {"seed": 3})
    fill(Recorder(file))
    file.close(lost=2)
    found = info(path)
    assert (found.rows, found.lost, found.clock, found.about) == (6, 2, "virtual", {"seed": 3})
    assert found.kinds == {"read": 0, "piece": 3, "lease": 1, "epoch": 1, "fault": 1}
    table = read_trace(path)
    assert table.schema.names == SCHEMA.names
    assert analysis.bytes_by_source(table) == {"peer": 200, "seed": 0, "origin": 100}
    assert analysis.cross_zone_bytes(table) == 200
    fed = analysis.who_fed_whom(table)
    assert fed.n_bytes[-1, fed.nodes.index("p1")] == 100
    assert fed.n_bytes[fed.nodes.index("p0"), fed.nodes.index("p1")] == 200
    edges, counts = analysis.pieces_over_time(table, BLOB, 10)
    assert (edges.size, counts.shape, counts.sum()) == (11, (3, 10), 3)


def test_export_is_one_json_object_per_event(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    file = TraceFile(path, "virtual")
    fill(Recorder(file))
    file.close()
    rows = [json.loads(line) for line in export(path)]
    assert rows[0]["kind"] == "piece"
    assert rows[-1] == {"at_s": 2.7, "kind": "fault", "node": "p0", "outcome": "crash"}


def test_merge_keeps_the_order_of_time_and_the_losses(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.parquet" for i in range(2)]
    for lost, path in enumerate(paths):
        file = TraceFile(path, "unix")
        fill(Recorder(file))
        file.close(lost)
    target = tmp_path / "all.parquet"
    assert merge(paths, target) == 12
    times = read_trace(target)["at_s"].to_pylist()
    assert times == sorted(times)
    assert info(target).lost == 1


def test_a_simulated_trace_and_a_live_one_do_not_go_together(tmp_path: Path) -> None:
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, clock in zip(paths, ("unix", "virtual"), strict=True):
        TraceFile(path, clock).close()
    with pytest.raises(InputError, match="different clocks"):
        merge(paths, tmp_path / "c.parquet")


def test_a_torn_file_another_version_and_no_trace_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    file = TraceFile(path, "virtual")
    fill(Recorder(file))
    file.close()
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="torn or no trace"):
        read_trace(torn)
    table = read_trace(path)
    newer = tmp_path / "newer.parquet"
    metadata = {**table.schema.metadata, b"passel.trace": b"99"}
    pq.write_table(table.replace_schema_metadata(metadata), newer)
    with pytest.raises(InputError, match="schema version 1, it says 99"):
        read_trace(newer)
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "none.parquet")


def test_a_full_buffer_counts_what_it_loses_and_old_files_make_room(tmp_path: Path) -> None:
    folder = TraceFolder(tmp_path, "peer-n1", bytes_max=1, rows_max=4)
    fill(Recorder(folder))
    assert (folder.n_rows, folder.n_lost, folder.is_full) == (4, 2, True)
    first = folder.write()
    assert folder.write() is None, "nothing new, no new file"
    fill(Recorder(folder), n_pieces=1)
    second = folder.write()
    assert first is not None
    assert second is not None
    assert not first.exists(), "the oldest went, there were too many bytes"
    assert info(second).lost == 2


def test_a_disk_that_refuses_costs_rows_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    folder = TraceFolder(tmp_path / "file", "peer-n1", bytes_max=1 << 20)
    fill(Recorder(folder))
    assert folder.write() is None
    assert folder.n_lost == 6


def test_a_file_that_is_being_written_is_no_trace_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may collect the files at any moment."""
    written = pq.write_table
    whole: list[Path] = []

    def write_half(table: object, path: Path, **options: object) -> None:
        path.write_bytes(b"PAR1")
        assert len(list(tmp_path.glob("*.parquet"))) == len(whole)
        if folder.n_rows > 6:
            raise OSError("no space left on device")
        written(table, path, **options)

    monkeypatch.setattr(pq, "write_table", write_half)
    folder = TraceFolder(tmp_path, "peer-n1", bytes_max=1 << 20)
    fill(Recorder(folder))
    first = folder.write()
    assert first is not None
    assert info(first).rows == 6
    whole.append(first)
    fill(Recorder(folder))
    assert folder.write() is None
    assert list(tmp_path.iterdir()) == [first]
