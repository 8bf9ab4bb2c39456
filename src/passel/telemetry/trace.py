"""The event trace: one schema for live clusters and simulated ones, in Parquet.

One row per event; a column that means nothing for a kind of event is null. Blobs are named by their
id, which is a hash: no repository, no credential, no query string gets in here. Times are seconds,
of the Unix clock live (`clock: unix` in the file's metadata) and from 0 in a simulation
(`clock: virtual`).

Live, rows are kept in a bounded buffer and written as whole files, one after the other, so that a
file is complete, or not there yet; what did not fit is counted, never waited for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from passel.core import messages as m
from passel.errors import InputError
from passel.ids import BlobId, PeerId

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
KINDS = ("read", "piece", "lease", "epoch", "fault")
_WORD = pa.dictionary(pa.int32(), pa.string())

#: The columns; a change of any of them is a new SCHEMA_VERSION.
SCHEMA = pa.schema(
    [
        pa.field("at_s", pa.float64(), nullable=False),  # when it ended
        pa.field("kind", _WORD, nullable=False),  # one of KINDS
        pa.field("node", _WORD),  # who did it: a node's name, or "shard 0", or "origin"
        pa.field("zone", _WORD),
        pa.field("blob", _WORD),  # its id
        pa.field("piece", pa.int32()),
        pa.field("parent", _WORD),  # the node that served; null: the origin
        pa.field("parent_zone", _WORD),
        pa.field("source", _WORD),  # local, peer, seed, origin
        pa.field("start", pa.int64()),  # of a read: bytes (start, stop)
        pa.field("stop", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("queue_s", pa.float64()),  # asked -> first byte (read: asked -> ready)
        pa.field("transfer_s", pa.float64()),  # first byte -> last byte (read: ready -> done)
        pa.field("verify_s", pa.float64()),
        pa.field("outcome", _WORD),
        pa.field("token", _WORD),  # of a lease; longer than 64 bits
        pa.field("n_edges", pa.int32()),  # of an epoch
        pa.field("n_peers", pa.int32()),
        pa.field("plan_s", pa.float64()),
    ]
)
_NAMES = SCHEMA.names
_INDEX = {name: i for i, name in enumerate(_NAMES)}
_NOTHING: list[Any] = [None] * len(_NAMES)
#: A tuple: the garbage collector has nothing to look for in it.
Row = tuple[Any, ...]
ROWS_PER_GROUP = 65_536
ROWS_MAX = 262_144
_ROWS_PER_TURN = 1024


class Sink(Protocol):
    """Takes rows that have the columns of SCHEMA, in its order."""

    def add(self, row: Row) -> None: ...


class Recorder:
    """Events as rows, for live shells and simulated ones alike."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def read(
        self,
        *,
        at_s: float,
        node: str,
        zone: str | None,
        blob: BlobId,
        start: int,
        stop: int | None,
        n_bytes: int,
        source: str,
        queue_s: float,
        transfer_s: float,
        outcome: str,
    ) -> None:
        """A client's read is over; `outcome` is "ok" or what kept it from its end."""
        self._add(
            "read",
            at_s,
            node=node,
            zone=zone,
            blob=blob,
            source=source or None,
            start=start,
            stop=stop,
            bytes=n_bytes,
            queue_s=queue_s,
            transfer_s=transfer_s,
            outcome=outcome,
        )

    def local_reads(self, node: str, blob: BlobId) -> Callable[[float, int, int, float], None]:
        """A function that notes a read (at_s, start, stop, transfer_s) of what was here, all sent.

        Such reads are the most frequent events by far, and most of a row is the same for all of
        one blob.
        """
        add, first = self._sink.add, ("read", node, None, blob, None, None, None, "local")
        last = (None, "ok", *[None] * (len(_NAMES) - _INDEX["token"]))

        def note(at_s: float, start: int, stop: int, transfer_s: float) -> None:
            add((at_s, *first, start, stop, stop - start, 0.0, transfer_s, *last))

        return note

    def piece(
        self,
        *,
        at_s: float,
        node: str,
        zone: str,
        blob: BlobId,
        piece: int,
        parent: str | None,
        parent_zone: str | None,
        n_bytes: int,
        source: str,
        queue_s: float,
        transfer_s: float,
        verify_s: float,
        outcome: str,
    ) -> None:
        """A fetch of a piece ended; `outcome` is "ok" or a `Trouble`. No parent: the origin."""
        self._add(
            "piece",
            at_s,
            node=node,
            zone=zone,
            blob=blob,
            piece=piece,
            parent=parent,
            parent_zone=parent_zone,
            source=source,
            bytes=n_bytes,
            queue_s=queue_s,
            transfer_s=transfer_s,
            verify_s=verify_s,
            outcome=outcome,
        )

    def epoch(self, at_s: float, shard: int, n_edges: int, n_peers: int, plan_s: float) -> None:
        """A shard planned."""
        node = f"shard {shard}"
        self._add("epoch", at_s, node=node, n_edges=n_edges, n_peers=n_peers, plan_s=plan_s)

    def messages(self, at_s: float, shard: int, out: Iterable[m.Deliver]) -> None:
        """Of what a shard says, the leases."""
        for deliver in out:
            message = deliver.message
            if isinstance(message, m.Lease):
                self._lease(at_s, shard, deliver.peer, message.ref.id, message.token, "granted")
            elif isinstance(message, m.Revoke):
                self._lease(at_s, shard, deliver.peer, message.blob, message.token, "revoked")

    def _lease(
        self, at_s: float, shard: int, peer: PeerId, blob: BlobId, token: int, outcome: str
    ) -> None:
        node = f"shard {shard}"
        self._add(
            "lease", at_s, node=node, parent=peer, blob=blob, token=str(token), outcome=outcome
        )

    def fault(self, at_s: float, who: str, what: str) -> None:
        """Something broke, or was mended."""
        self._add("fault", at_s, node=who, outcome=what)

    def _add(self, kind: str, at_s: float, **values: Any) -> None:
        row = _NOTHING.copy()
        row[0], row[1] = at_s, kind
        for name, value in values.items():
            row[_INDEX[name]] = value
        self._sink.add(tuple(row))


class TraceFile:
    """Rows into one file, row group by row group; complete only after `close`."""

    def __init__(self, path: Path, clock: str, about: dict[str, Any] | None = None) -> None:
        self.path = path
        self.n_rows = 0
        self._rows: list[Row] = []
        schema = SCHEMA.with_metadata(_metadata(clock, about or {}))
        try:
            self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        except OSError as error:
            raise InputError(400, "UNKNOWN", f"{path}: {_reason(error)}") from error

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self.n_rows += 1
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(_table(self._rows))
            self._rows = []

    def close(self, lost: int = 0) -> None:
        """Write what is left; `lost` rows did not get here."""
        self._flush()
        self._writer.add_key_value_metadata({"passel.lost": str(lost)})
        self._writer.close()


class TraceFolder:
    """The live side of one process: a bounded buffer, and files that follow each other.

    `add` never blocks and never fails. Somebody calls `write` now and then, on a thread.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        bytes_max: int,
        rows_max: int = ROWS_MAX,
        about: dict[str, Any] | None = None,
    ) -> None:
        self._folder = folder
        self._name = name
        self._about = about or {}
        self._bytes_max = bytes_max
        self._rows_max = rows_max
        self._rows: list[Row] = []
        self._number = 0
        self._files: list[Path] = []
        self.n_rows = 0
        self.n_lost = 0

    def add(self, row: Row) -> None:
        if len(self._rows) >= self._rows_max:
            self.n_lost += 1
            return
        self._rows.append(row)
        self.n_rows += 1

    @property
    def is_full(self) -> bool:
        """It is time to write."""
        return len(self._rows) * 2 >= self._rows_max

    def write(self) -> Path | None:
        """Put what there is into the next file; the oldest files go when there are too many bytes.

        A disk that refuses costs these rows, which are counted as lost.
        """
        rows, self._rows = self._rows, []
        if not rows:
            return None
        path = self._folder / f"{self._name}-{os.getpid()}-{self._number:06}.parquet"
        self._number += 1
        under_way = path.with_suffix(".new")  # who collects the files takes those that are whole
        schema = SCHEMA.with_metadata(_metadata("unix", {**self._about, "lost": self.n_lost}))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(_table(rows).cast(schema), under_way, compression="zstd")
            under_way.replace(path)
            self._files.append(path)
            self._make_room()
        except (OSError, pa.ArrowException) as error:
            self.n_lost += len(rows)
            with contextlib.suppress(OSError):
                under_way.unlink(missing_ok=True)
            log.warning("trace_not_written path=%s rows=%d why=%s", path, len(rows), error)
            return None
        return path

    def _make_room(self) -> None:
        sizes = {path: path.stat().st_size for path in self._files if path.is_file()}
        while len(sizes) > 1 and sum(sizes.values()) > self._bytes_max:
            oldest = next(iter(sizes))
            oldest.unlink(missing_ok=True)
            del sizes[oldest]
        self._files = list(sizes)


@dataclass(frozen=True)
class TraceInfo:
    """What a trace file says about itself."""

    path: Path
    clock: str
    rows: int
    kinds: dict[str, int]
    lost: int
    first_s: float
    last_s: float
    about: dict[str, Any]


def read_trace(path: Path) -> pa.Table:
    """All rows of one trace file. Raises InputError with a sentence for anything else."""
    try:
        file = pq.ParquetFile(path)
        metadata = file.schema_arrow.metadata or {}
        version = metadata.get(b"passel.trace", b"").decode()
        if version != str(SCHEMA_VERSION):
            raise InputError(
                400,
                "UNKNOWN",
                f"{path}: this is no trace of schema version {SCHEMA_VERSION}, it says"
                f" {version or 'nothing'}; record or simulate it again with this passel",
            )
        return file.read()
    except (pa.ArrowException, OSError) as error:
        is_away = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
        what = _reason(error) if is_away else "torn or no trace"
        raise InputError(400, "UNKNOWN", f"{path}: {what}") from error


def info(path: Path) -> TraceInfo:
    """What is in a trace file."""
    table = read_trace(path)
    metadata = table.schema.metadata or {}
    more = pq.read_metadata(path).metadata or {}
    about = json.loads(metadata.get(b"passel.about", b"{}"))
    times = table.column("at_s").to_numpy()
    counts = {str(row["values"]): row["counts"] for row in table["kind"].value_counts().to_pylist()}
    return TraceInfo(
        path=path,
        clock=metadata[b"passel.clock"].decode(),
        rows=table.num_rows,
        kinds={kind: int(counts.get(kind, 0)) for kind in KINDS},
        lost=int(more.get(b"passel.lost", b"0")) + int(about.get("lost", 0)),
        first_s=float(times.min()) if times.size else 0.0,
        last_s=float(times.max()) if times.size else 0.0,
        about=about,
    )


def merge(paths: Iterable[Path], target: Path, since: float | None = None) -> int:
    """The rows of several traces in one file, in the order of their times; returns how many.

    Files of both clocks do not go together. Parents, which live peers know by their ids, get the
    names of their nodes if the traces of these are among them. Events before `since` are left out.
    """
    tables: list[pa.Table] = []
    clocks: set[str] = set()
    lost: dict[str, int] = {}
    names: dict[str, str] = {}
    for path in paths:
        found = info(path)
        clocks.add(found.clock)
        # The files of one process count its losses over and over.
        process = path.name.rpartition("-")[0] or path.name
        lost[process] = max(lost.get(process, 0), found.lost)
        if "peer" in found.about:
            names[found.about["peer"]] = found.about["node"]
        tables.append(read_trace(path))
    if not tables:
        raise InputError(400, "UNKNOWN", "there is no trace to merge")
    if len(clocks) > 1:
        raise InputError(400, "UNKNOWN", "a simulated trace and a live one have different clocks")
    table = pa.concat_tables([each.replace_schema_metadata(None) for each in tables])
    table = table.unify_dictionaries().sort_by([("at_s", "ascending")])
    if since is not None:
        table = table.filter(pc.greater_equal(table["at_s"], since))
    if names:
        index = table.schema.get_field_index("parent")
        parents = [names.get(parent, parent) for parent in table["parent"].to_pylist()]
        table = table.set_column(index, SCHEMA.field(index), _array(parents, SCHEMA.field(index)))
    about = {"lost": sum(lost.values()), "files": len(tables)}
    schema = SCHEMA.with_metadata(_metadata(clocks.pop(), about))
    pq.write_table(table.cast(schema), target, compression="zstd")
    return int(table.num_rows)


def export(path: Path) -> Iterator[str]:
    """The rows of a trace as lines of JSON, without the columns that are null."""
    for batch in read_trace(path).to_batches():
        for row in batch.to_pylist():
            yield json.dumps({key: value for key, value in row.items() if value is not None})


def _metadata(clock: str, about: dict[str, Any]) -> dict[str, str]:
    return {
        "passel.trace": str(SCHEMA_VERSION),
        "passel.clock": clock,
        "passel.about": json.dumps(about, sort_keys=True),
    }


def _table(rows: list[Row]) -> pa.Table:
    columns: list[list[Any]] = [[] for _ in SCHEMA]
    # By parts that the processor's cache holds: all at once takes three times as long.
    for at in range(0, len(rows), _ROWS_PER_TURN):
        parts = zip(*rows[at : at + _ROWS_PER_TURN], strict=True)
        for column, part in zip(columns, parts, strict=True):
            column.extend(part)
    arrays = [_array(column, field) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    if values.count(None) == len(values):
        return pa.nulls(len(values), field.type)
    if pa.types.is_dictionary(field.type):
        return pa.array(values, type=pa.string()).dictionary_encode().cast(field.type)
    return pa.array(values, type=field.type)


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"  # in pyarrow's words it is longer, and without the errno
    return (error.strerror or str(error)).lower()
