"""The rows of one shard on their way into files of the lake, and which files of a lost epoch are removed.

**What is settled.** Each file bears in its metadata up to which number (exclusive) the files of its store
and shard are of durable epochs for sure: the sequence as of the partition's *last snapshot but one*, or the
one it was resumed with, which is durable by definition. Compaction merges only below the highest such
number of a shard, so no recovery can ever want to remove a merged row. Why it holds:

- Sources hand out nothing for epoch e + 1 before epoch e is durable in all of the cluster. A partition
  takes its snapshot of an epoch only if it was given something in it; so when it takes the one of a later
  epoch, the one before is durable. (The last one may not be: at the end of the stream, or where an
  upstream step speaks without a source, files are written though nothing proves that epoch durable.)
- A shard that is given nothing in some epochs takes no snapshots; those it has taken only grow older.
- Without a recovery store nothing is durable, whatever snapshots are taken. But then a start finds no
  state, and sets aside all that is there under its store's name, merged or not, rather than remove any.
"""

import logging
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bytewax.outputs import StatefulSinkPartition

from voltmill.connectors.lake_files import LakeFile, parse
from voltmill.connectors.parquet import ROWS_KEY, SEQUENCE_KEY, SETTLED_KEY, SHARD_KEY, STORE_KEY, encode
from voltmill.connectors.store import LakeError

if TYPE_CHECKING:
    from voltmill.connectors.lake import LakeSink

#: ("v1", sequence of the next file, date of the last one, when the first buffered row came, Arrow IPC streams)
State = tuple[str, int, str, float, tuple[bytes, ...]]

#: Beside the tables: files of a store that begins anew under its old name.
ASIDE: Final = "_set_aside"

#: What dates a file, the first of these that the table has a value in.
TIME_COLUMNS: Final = ("ingest_time", "event_time", "opened_at")

log = logging.getLogger("voltmill.lake")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MEASURE_EVERY: Final = 16


class LakePartition(StatefulSinkPartition[pa.RecordBatch, State]):
    """The rows of one shard on their way into files.

    Rows that a snapshot kept are written at once when it is resumed. When the flow had ended in
    good order, ``close`` has already written them, to a file of the same number: that file is
    replaced by its equal, and readers never miss a row.
    """

    def __init__(self, sink: "LakeSink", shard: str, state: State | None) -> None:
        self._sink = sink
        self._settings = sink.settings
        self._files = sink.settings.open(sink.patience)
        self._shard = shard
        self._sequence, self._date, self._since, kept = _checked(state, sink.table, shard)
        self._settled = self._last_snapshot = self._sequence
        self._buffer: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._serialized: list[bytes] = []
        self._serialized_batches = 0
        self._row_bytes, self._total_measured, self._countdown = 0.0, 0, 0
        for stream in kept:
            for batch in pa.ipc.open_stream(stream):
                self._add(batch)
        if not sink.existing:
            self._files.make()
        self._look_again_at = math.inf if self._files.local else time.monotonic() + sink.settings.attempt_seconds
        own = self._path() if self._rows else None
        self._remove_orphans(keep=own, first=state is None)
        self._flush()

    def write_batch(self, values: list[pa.RecordBatch]) -> None:
        """Buffer the batches; write a file where a limit is reached. An empty batch only has the age looked at."""
        for batch in values:
            began = time.perf_counter()
            self._add(batch)
            if self._full() or self._aged():
                self._flush()
            self._sink.observe(time.perf_counter() - began)

    def snapshot(self) -> State:
        """Where the shard stands; rows not yet in a file are part of it, each serialised once."""
        began = time.perf_counter()
        if self._bytes > self._settings.max_snapshot_bytes or self._aged():
            self._flush()
        if fresh := self._buffer[self._serialized_batches :]:
            self._serialized.append(_stream(fresh, self._sink.schema))
            self._serialized_batches = len(self._buffer)
        self._settled, self._last_snapshot = self._last_snapshot, self._sequence
        self._sink.observe(time.perf_counter() - began)
        return ("v1", self._sequence, self._date, self._since, tuple(self._serialized))

    def close(self) -> None:
        """At the end of the stream: write what is buffered, so that the lake is whole for readers."""
        self._flush()
        self._remove_late(-math.inf)

    def _add(self, batch: pa.RecordBatch) -> None:
        if not batch.schema.equals(self._sink.schema):
            raise LakeError(f"lake table {self._sink.table}: {_difference(batch.schema, self._sink.schema)}")
        if not batch.num_rows:
            return
        if not self._rows:
            self._since = self._since or self._sink.now()
        self._buffer.append(batch)
        self._rows += batch.num_rows
        self._bytes += self._size(batch)

    def _size(self, batch: pa.RecordBatch) -> int:
        """About the bytes of the rows. Exact for a slice is 30 µs, so it is done now and then and when batches grow."""
        total = batch.get_total_buffer_size()
        if not self._countdown or total > 2 * self._total_measured:
            self._row_bytes, self._total_measured = batch.nbytes / batch.num_rows, total
            self._countdown = _MEASURE_EVERY
        self._countdown -= 1
        return int(self._row_bytes * batch.num_rows)

    def _full(self) -> bool:
        return self._rows >= self._settings.max_file_rows or self._bytes >= self._settings.max_file_bytes

    def _aged(self) -> bool:
        return self._rows > 0 and self._sink.now() - self._since >= self._settings.max_file_age_seconds

    def _flush(self) -> None:
        """Write what is buffered as the next file."""
        if not self._rows:
            return
        self._remove_late(self._look_again_at)
        path = self._path()
        level = self._settings.compression_level
        data = encode(self._buffer, self._sink.schema, level=level, metadata=self._facts())
        self._files.write(path, data)
        self._date = _date_of(path)
        written, self._buffer = self._buffer, []
        self._sequence += 1
        self._rows = self._bytes = self._serialized_batches = 0
        self._since = 0.0
        self._serialized = []
        if self._sink.on_written is not None:
            for batch in written:
                self._sink.on_written(batch)

    def _facts(self) -> dict[str, str]:
        facts = {STORE_KEY: self._sink.store, SHARD_KEY: self._shard}
        numbers = {SEQUENCE_KEY: self._sequence, ROWS_KEY: self._rows, SETTLED_KEY: self._settled}
        return facts | {key: str(number) for key, number in numbers.items()}

    def _path(self) -> str:
        date = max(self._date, _arrival_date(self._buffer) or self._today_at_least())
        name = f"{self._sink.store}-{self._sequence:010d}.parquet"
        return f"{self._sink.table}/date={date}/shard={self._shard}/{name}"

    def _today_at_least(self) -> str:
        """For rows without any time: where the last file is, else the wall clock's day."""
        return self._date or (_EPOCH + timedelta(seconds=self._sink.now())).date().isoformat()

    def _remove_orphans(self, keep: str | None, *, first: bool) -> None:
        """Remove the files of this store and shard at or past the sequence; none of them can be dated earlier.

        On the first start of a store only its first epochs can have left any. Should the recovery store have
        been lost while its name was kept, it is the whole archive: so nothing is deleted then, but set aside.
        """
        orphans = [file for file in self._written(-math.inf) if file.last >= self._sequence]
        if first:
            aside = f"{ASIDE}/{self._sink.now():.6f}"
            for file in orphans:
                log.warning("lake file set aside", extra={"file": file.path, "into": aside})
                self._files.move(file.path, f"{aside}/{file.path}")
            return
        for file in orphans:
            self._check_orphan(file)
        for file in orphans:
            if file.path != keep:
                self._files.remove(file.path)

    def _remove_late(self, due: float) -> None:
        """Look for orphans once more, from ``due`` on, in an object store.

        The last request of a killed process may have been under way to it, and be carried out after the start.
        """
        if math.isinf(self._look_again_at) or time.monotonic() < due:
            return
        self._look_again_at = math.inf
        for file in self._written(due):
            if file.last >= self._sequence:
                log.info("lake file removed that came late", extra={"file": file.path})
                self._files.remove(file.path)

    def _written(self, after: float) -> list[LakeFile]:
        """The files of this store and shard from the last date on, merged ones too, as of ``after`` or later.

        What a killed write left half is removed on the way; a half merged file is the compaction's.
        """
        found = []
        names = self._sink.look.names(self._files, self._sink.table, self._shard, since=self._date, after=after)
        for path in names:
            folder, _, name = path.rpartition("/")
            file = parse(f"{folder}/{name.removeprefix('.').removesuffix('.tmp')}")
            if file is None or file.stream.store != self._sink.store:
                continue
            if file.path == path:
                found.append(file)
            elif not file.merged:
                self._files.remove(path)
        return found

    def _check_orphan(self, file: LakeFile) -> None:
        """Refuse to remove rows that were durable once.

        An orphan's epoch never was, so nothing that it says is settled can lie past the sequence that is
        resumed; and what was merged was settled.
        """
        if file.merged or self._settled_by(file.path) > self._sequence:
            raise LakeError(
                f"lake {self._files.url}: {file.path} is of a later state of recovery store {self._sink.store} than "
                f"the one that is resumed, whose next file is {self._sequence}: an older copy of the store was put "
                "back; put back the newest one, or begin with a fresh recovery store"
            )

    def _settled_by(self, path: str) -> int:
        """What a file says is settled; 0 where it says nothing."""
        try:
            facts = pq.read_metadata(self._files.open(path)).metadata or {}
        except (pa.ArrowException, FileNotFoundError):
            return 0
        return int(facts.get(SETTLED_KEY.encode(), b"0"))


def _checked(state: Any, table: str, shard: str) -> tuple[int, str, float, tuple[bytes, ...]]:
    """The parts of a stored state, those of a start without one, or ``LakeError`` if another version wrote it."""
    if state is None:
        return 0, "", 0.0, ()
    if isinstance(state, tuple) and state and state[0] == "v1" and len(state) == 5:
        return state[1], state[2], state[3], state[4]
    version = state[0] if isinstance(state, tuple) and state else type(state).__name__
    raise LakeError(
        f"lake table {table}, shard {shard}: the recovery store holds state {version!r}, this release reads 'v1'; "
        "run the release that wrote it, or begin with a fresh recovery store"
    )


def _stream(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> bytes:
    """The batches as one Arrow IPC stream; it carries the dictionaries, which a bare batch message does not."""
    table = pa.Table.from_batches(batches, schema).unify_dictionaries().combine_chunks()
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, schema) as writer:
        writer.write_table(table)
    stream: bytes = out.getvalue().to_pybytes()
    return stream


def _arrival_date(batches: Sequence[pa.RecordBatch]) -> str | None:
    """The UTC day of the middle one of the batches' times; the middle, for a single clock may be far off."""
    for name in TIME_COLUMNS:
        if batches and name in batches[0].schema.names:
            columns = [batch.column(name).drop_null().cast(pa.int64()).to_numpy() for batch in batches]
            times = np.concatenate(columns)
            if len(times):
                middle = int(np.partition(times, len(times) // 2)[len(times) // 2])
                return (_EPOCH + timedelta(microseconds=middle)).date().isoformat()
    return None


def _date_of(path: str) -> str:
    return path.split("/")[1].removeprefix("date=")


def _difference(found: pa.Schema, wanted: pa.Schema) -> str:
    """The first column in which a batch is not what the table takes."""
    if found.names != wanted.names:
        return f"a batch has the columns {', '.join(found.names)}; it takes {', '.join(wanted.names)}"
    pairs = zip(found, wanted, strict=True)
    return next(
        (f"column {a.name} is {a.type}, it takes {b.type}" for a, b in pairs if a.type != b.type),
        "a batch differs in which columns may be null",
    )
