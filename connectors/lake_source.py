"""The data lake as a source: the telemetry archive, or any Parquet data set in its schema, read once.

Gives TELEMETRY record batches; ends with the last row. **One order, exactly: files in name order
(their paths below the table's folder, by code point), rows in file order.** That is the order of
arrival for what ``LakeSink`` wrote, and it is why the source has one Bytewax partition.

The snapshot is the name of a file and a row in it, so a replay that was stopped goes on at the row.
Hidden files (a path part beginning with ``.`` or ``_``) are no part of the data.
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
from voltmill.connectors.store import LakeError, Store
from voltmill.kernels.schema import TELEMETRY, TIME

#: ("v1", name of a file, row of it that comes next); the name is empty before the first file.
State = tuple[str, str, int]

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
        self._store = source.settings.open()
        files = [path for path in self._store.find(source.table) if path.endswith(".parquet")]
        if not files:
            raise LakeError(f"lake {source.settings.url}: no Parquet file in {source.table}")
        self._file, self._row = _position(state)
        if self._file and self._file not in files:
            raise LakeError(f"lake {source.settings.url}: {source.table}/{self._file} was being read and is gone")
        self._total = len(files)
        self._rest = iter([path for path in files if path >= self._file])
        self._done = sum(path < self._file for path in files) - 1
        self._rows = 0
        self._batches: Iterator[tuple[int, pa.RecordBatch]] = iter(())

    def next_batch(self) -> list[pa.RecordBatch]:
        """The next batch; ``StopIteration`` after the last."""
        pieces, rows, opened = self._pieces()
        if not rows and not opened:
            self._progress(self._total)
            raise StopIteration
        self._rows += rows
        self._progress(self._done)
        if not rows:
            return []
        return [pieces[0] if len(pieces) == 1 else _joined(pieces)]

    def snapshot(self) -> State:
        """The row that comes next."""
        return ("v1", self._file, self._row)

    def _pieces(self) -> tuple[list[pa.RecordBatch], int, int]:
        """Batches for one item, their rows, and how many files were opened for them."""
        pieces: list[pa.RecordBatch] = []
        rows = opened = 0
        while 2 * rows < self._source.batch_rows and opened < _FILES_A_BATCH:
            found = next(self._batches, None)
            if found is None:
                name = next(self._rest, None)
                if name is None:
                    break
                self._open(name)
                opened += 1
                continue
            self._row, batch = found
            if batch.num_rows:
                pieces.append(batch)
                rows += batch.num_rows
        return pieces, rows, opened

    def _open(self, name: str) -> None:
        if name != self._file:
            self._file, self._row = name, 0
        self._done += 1
        self._batches = _rows_of(self._store, self._source, name, self._row)

    def _progress(self, done: int) -> None:
        if self._source.on_progress is not None:
            self._source.on_progress(done, self._total, self._rows)


def _rows_of(store: Store, source: LakeSource, name: str, row: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The wanted rows of a file from ``row`` on, each batch with the number of the row after it."""
    path = f"{source.table}/{name}"
    try:
        opened = store.open(path)
        with pq.ParquetFile(opened, pre_buffer=True) as file:
            check_columns(file.schema_arrow, path)
            columns = [column for column in source.columns if column in file.schema_arrow.names]
            for groups, first in _runs(file.metadata, source, row):
                reader = file.iter_batches(source.batch_rows, row_groups=groups, columns=columns, use_threads=False)
                yield from _cut(reader, source, name, first, row)
    except (pa.ArrowException, OSError) as error:
        raise LakeError(f"{path}: not readable as Parquet: {' '.join(str(error).split())}") from error


def _cut(
    reader: Iterator[pa.RecordBatch], source: LakeSource, name: str, first: int, row: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in reader:
        after = first + batch.num_rows
        if after > row:
            skip = max(row - first, 0)
            yield after, _between(conform(batch.slice(skip), name, first + skip), source.start, source.stop)
        first = after


def _runs(metadata: Any, source: LakeSource, row: int) -> Iterator[tuple[list[int], int]]:
    """Runs of neighbouring row groups that may hold wanted rows, with the number of each run's first row."""
    run: list[int] = []
    first = begin = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if first + group.num_rows > row and _may_hold(group, source.start, source.stop):
            begin = begin if run else first
            run.append(index)
        elif run:
            yield run, begin
            run = []
        first += group.num_rows
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


def _position(state: Any) -> tuple[str, int]:
    if state is None:
        return "", 0
    if isinstance(state, tuple) and len(state) == 3 and state[0] == "v1":
        return state[1], state[2]
    version = state[0] if isinstance(state, tuple) and state else type(state).__name__
    raise LakeError(f"the recovery store holds lake position {version!r}, this release reads 'v1'; begin afresh")
