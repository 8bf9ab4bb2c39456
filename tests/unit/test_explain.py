"""What is said of a pull adds up, and names what kept it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from passel.cli import main
from passel.core.messages import Role
from passel.errors import InputError
from passel.ids import BlobId
from passel.telemetry import explain as telling
from passel.telemetry.trace import Recorder, TraceFile, read_trace

MIB = 1 << 20
BLOB = BlobId("ab" * 32)


class Rollout:
    """A trace by hand: one piece per second and link."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = TraceFile(path, "virtual", {})
        self._recorder = Recorder(self._file)

    def piece(
        self, number: int, parent: str | None, child: str, asked: float, first: float, last: float
    ) -> None:
        zones = {"s": "a", "x": "a", "y": "b", None: None}
        source = "origin" if parent is None else Role.SEED.value if parent == "s" else "peer"
        self._recorder.piece(
            at_s=last,
            node=child,
            zone=str(zones[child]),
            blob=BLOB,
            piece=number,
            parent=parent,
            parent_zone=zones[parent],
            n_bytes=MIB,
            source=source,
            queue_s=first - asked,
            transfer_s=last - first,
            verify_s=0.0,
            outcome="ok",
        )

    def read(self) -> pa.Table:
        self._file.close()
        return read_trace(self.path)


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    """s has both pieces at 0.2, sends piece 0 to x and y, idles for a second, and sends piece 1."""
    rollout = Rollout(tmp_path / "t.parquet")
    for number in range(2):
        rollout.piece(number, None, "s", 0.0, 0.1, 0.2)
    rollout.piece(0, "s", "x", 0.5, 1.0, 2.0)
    rollout.piece(0, "s", "y", 0.5, 2.0, 3.0)
    rollout.piece(1, "s", "x", 0.5, 4.0, 5.0)
    rollout.piece(1, "x", "y", 0.5, 6.0, 7.0)
    return rollout


def test_the_parts_add_up_and_say_where_the_time_went(rollout: Rollout) -> None:
    found = telling.explain(rollout.read(), str(BLOB))
    assert found.size == 2 * MIB
    assert found.took_s == pytest.approx(7.0)
    assert found.bound.binding in ("seed uplink", "slowest downlink")
    assert sum(found.parts.values()) == pytest.approx(7.0)
    parts = found.parts
    assert parts["the blob once"] == pytest.approx(2.0, rel=0.05)
    assert parts["until the first byte left a source"] == pytest.approx(1.0)
    assert parts["sent twice by a source"] == pytest.approx(1.0, rel=0.05)
    assert parts["sources idle"] == pytest.approx(1.0, rel=0.1)
    assert parts["after the last piece had left"] == pytest.approx(2.0)
    assert found.cross_zone_bytes == 2 * MIB
    assert found.origin_bytes == 2 * MIB
    last = found.nodes[0]
    assert (last.node, last.n_bytes, last.from_source) == ("y", 2 * MIB, MIB)


def test_a_blob_is_named_by_how_it_begins(rollout: Rollout) -> None:
    table = rollout.read()
    assert telling.choose_blob(table, "") == str(BLOB)
    assert telling.choose_blob(table, "abab") == str(BLOB)
    with pytest.raises(InputError, match="no blob of this trace begins with ff"):
        telling.choose_blob(table, "ff")


def test_the_command(
    rollout: Rollout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout.read()
    monkeypatch.setattr("sys.argv", ["passel", "explain", str(rollout.path)])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code in (0, None)
    text = capsys.readouterr().out
    assert "sources idle" in text
    assert "2.0 MiB in 2 pieces, 3 nodes in 2 zones" in text
    monkeypatch.setattr("sys.argv", ["passel", "explain", str(rollout.path), "y", "--json"])
    with pytest.raises(SystemExit):
        main.main()
    assert json.loads(capsys.readouterr().out)["took_s"] == pytest.approx(7.0)


def test_the_command_with_what_is_no_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["passel", "explain", str(tmp_path / "none.parquet")])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code not in (0, None)
    assert "none.parquet" in capsys.readouterr().err
