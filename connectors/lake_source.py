"""The data lake as a source: the telemetry archive, or any Parquet data set in its schema, read once.

Gives TELEMETRY record batches; ends with the last row. **One order, exactly: files in name order
(their paths below the table's folder, by code point), rows in file order.** That is the order of
arrival for what ``LakeSink`` wrote, and it is why the source has one Bytewax partition.

The snapshot is the name of a file and a row in it, so a replay that was stopped goes on at the row,
also when the file has been merged since (see ``lake_reader``). It also holds how far each shard is
read: what is archived during a replay is left out, however often that is stopped. Hidden files (a
path part beginning with ``.`` or ``_``) are no part of the data.
"""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from voltmill.connectors.conform import check_columns, conform
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_files import Stream
from voltmill.connectors.lake_reader import Walk
from voltmill.connectors.store import LakeError
from voltmill.kernels.schema import TELEMETRY, TIME

#: ("v2", name of a file, row of it that comes next, the last file of each stream: base, shard, store, number).
#: The name is empty before the first file. "v1" had no last files: the streams end where they end now.
State = tuple[str, str, int, tuple[tuple[str, str, str, int], ...]]

PARTITION: Final = "lake"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICKS: Final = {"milliseconds": 1_000, "microseconds": 1, "nanoseconds": 0.001}
#: So many small files are joined into one batch at most; a call must stay short.
_FILES_A_BATCH: Final = 64


class LakeSource(FixedPartitionedSource[pa.RecordBatch, State]):
    """Reads a telemetry table from start to end.

    Args:
        where: the lake: a folder, an fsspec URL, or settings with credentials.
        table: folder below it that holds the Parquet files, at any depth.
        batch_rows: rows a batch, about: small files are joined, so it may hold half as many more.
        start: the first event time wanted, with a zone; None: from the start of the archive.
        stop: the first event time no longer wanted, with a zone.
        payload: whether to read the kept native messages; they are null otherwise.
        on_progress: called after each batch with files done, files in all and rows given so far.

    Raises:
        LakeError: when it is built: no such table. While it runs: a file that is not Parquet or
            lacks a required column.
        ValueError: a time without a zone.

    Rows are given whatever their quality bits say. ``start`` and ``stop`` skip row groups by their
    statistics, and the rows left by their values; a row's place is counted in the whole file.
    """

    def __init__(
        self,
        where: LakeSettings | str,
        *,
        table: str = "telemetry",
        batch_rows: int = 8192,
        start: datetime | None = None,
        stop: datetime | None = None,
        payload: bool = False,
        on_progress: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.settings = where if isinstance(where, LakeSettings) else LakeSettings(url=str(where))
        self.table = table
        self.batch_rows = batch_rows
        self.start = _micros(start)
        self.stop = _micros(stop)
        self.columns = [name for name in TELEMETRY.names if payload or name != "payload"]
        self.on_progress = on_progress

    def list_parts(self) -> list[str]:
        """One partition: one order."""
        return [PARTITION]

    def build_part(self, step_id: str, for_part: str, resume_state: State | None) -> "LakeReader":
        """The reader, at the start or where a snapshot left it."""
        return LakeReader(self, resume_state)


class LakeReader(StatefulSourcePartition[pa.RecordBatch, State]):
    """The rows of a table's files, one file after the other."""

    def __init__(self, source: LakeSource, state: State | None) -> None:
        self._source = source
        file, row, ends = _position(state)
        self._walk = Walk(source.settings.open(), source.table, self._read, file=file, row=row, ends=ends)
        self._ends = tuple((*stream, last) for stream, last in sorted(self._walk.ends.items()))
        self._rows = 0

    def next_batch(self) -> list[pa.RecordBatch]:
        """The next batch; ``StopIteration`` after the last."""
        pieces, rows, opened = self._pieces()
        if not rows and not opened:
            self._progress(self._walk.total)
            raise StopIteration
        self._rows += rows
        self._progress(self._walk.done)
        if not rows:
            return []
        return [pieces[0] if len(pieces) == 1 else _joined(pieces)]

    def snapshot(self) -> State:
        """The row that comes next, and where the reading ends."""
        return ("v2", self._walk.file, self._walk.row, self._ends)

    def _pieces(self) -> tuple[list[pa.RecordBatch], int, int]:
        """Batches for one item, their rows, and how many files were opened for them."""
        pieces: list[pa.RecordBatch] = []
        rows = opened = 0
        while 2 * rows < self._source.batch_rows and opened < _FILES_A_BATCH:
            try:
                batch = self._walk.next()
            except StopIteration:
                break
            if batch is None:
                opened += 1
            elif batch.num_rows:
                pieces.append(batch)
                rows += batch.num_rows
        return pieces, rows, opened

    def _progress(self, done: int) -> None:
        if self._source.on_progress is not None:
            self._source.on_progress(done, self._walk.total, self._rows)

    def _read(self, file: pq.ParquetFile, name: str, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The wanted rows of a file from ``start`` to before ``stop``."""
        source = self._source
        check_columns(file.schema_arrow, f"{source.table}/{name}")
        columns = [column for column in source.columns if column in file.schema_arrow.names]
        for groups, first in _runs(file.metadata, source, start, stop):
            reader = file.iter_batches(source.batch_rows, row_groups=groups, columns=columns, use_threads=False)
            yield from _cut(reader, source, name, first, start, stop)


def _cut(
    reader: Iterator[pa.RecordBatch], source: LakeSource, name: str, first: int, start: int, stop: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in reader:
        after = min(first + batch.num_rows, stop)
        skip = max(start - first, 0)
        if skip < after - first:
            part = batch.slice(skip, after - first - skip)
            yield after, _between(conform(part, name, first + skip), source.start, source.stop)
        first += batch.num_rows


def _runs(metadata: Any, source: LakeSource, start: int, stop: int) -> Iterator[tuple[list[int], int]]:
    """Runs of neighbouring row groups that may hold wanted rows, with the number of each run's first row."""
    run: list[int] = []
    first = begin = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        after = first + group.num_rows
        if after > start and first < stop and _may_hold(group, source.start, source.stop):
            begin = begin if run else first
            run.append(index)
        elif run:
            yield run, begin
            run = []
        first = after
    if run:
        yield run, begin


def _may_hold(group: Any, start: int | None, stop: int | None) -> bool:
    """Whether the statistics of a row group allow event times in the range, in µs."""
    if start is None and stop is None:
        return True
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == "event_time":
            return _overlaps(column, start, stop)
    return True


def _overlaps(column: Any, start: int | None, stop: int | None) -> bool:
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max or column.physical_type != "INT64":
        return True
    scale = _TICKS.get(json.loads(statistics.logical_type.to_json()).get("timeUnit", ""))
    if scale is None:
        return True
    low, high = int(statistics.min_raw * scale), int(statistics.max_raw * scale)
    return not ((start is not None and high + 1 < start) or (stop is not None and low - 1 > stop))


def _between(batch: pa.RecordBatch, start: int | None, stop: int | None) -> pa.RecordBatch:
    times = batch.column("event_time")
    if start is not None:
        batch = batch.filter(pc.greater_equal(times, pa.scalar(start, TIME)))
        times = batch.column("event_time")
    if stop is not None:
        batch = batch.filter(pc.less(times, pa.scalar(stop, TIME)))
    return batch


def _joined(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of several, whose labels may differ in their dictionaries."""
    table = pa.Table.from_batches(pieces, TELEMETRY).unify_dictionaries()
    return table.combine_chunks().to_batches()[0]


def _micros(when: datetime | None) -> int | None:
    if when is None:
        return None
    if when.tzinfo is None:
        raise ValueError(f"{when.isoformat()} has no time zone; write {when.isoformat()}+00:00")
    return (when - _EPOCH) // timedelta(microseconds=1)


def _position(state: Any) -> tuple[str, int, dict[Stream, int] | None]:
    """File, row and ends of a stored state."""
    if state is None:
        return "", 0, None
    if isinstance(state, tuple) and len(state) == 3 and state[0] == "v1":
        return state[1], state[2], None
    if isinstance(state, tuple) and len(state) == 4 and state[0] == "v2":
        return state[1], state[2], {Stream(base, shard, store): last for base, shard, store, last in state[3]}
    version = state[0] if isinstance(state, tuple) and state else type(state).__name__
    raise LakeError(
        f"the recovery store holds lake position {version!r}, this release reads 'v1' and 'v2'; begin afresh"
    )
