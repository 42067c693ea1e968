"""The data lake as a source: the archive of telemetry or sessions, or any Parquet data set in its schema, read once.

Gives record batches of the table's schema; ends with the last row. **One order, exactly: files in order of arrival
(``lake_files.arrival``; a data set from elsewhere in name order), rows in file order.** That is why
the source has one Bytewax partition.

The snapshot is the name of a file and a row in it, so a replay that was stopped goes on at the row,
also when the file has been merged since (see ``lake_reader``). It also holds how far each shard is
read: what is archived during a replay is left out, however often that is stopped. Hidden files (a
path part beginning with ``.`` or ``_``) are no part of the data.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from voltmill.connectors.conform import TELEMETRY_FORM, Form, check_columns, conform
from voltmill.connectors.drain import Drain
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_files import Stream
from voltmill.connectors.lake_range import EventRange, runs
from voltmill.connectors.lake_reader import Walk
from voltmill.connectors.store import LakeError

#: ("v2", name of a file, row of it that comes next, the last file of each stream: base, shard, store, number;
#: rows given so far). The name is empty before the first file. "v1" had neither last files (the streams end where
#: they end now) nor the rows (they count from there).
State = tuple[str, str, int, tuple[tuple[str, str, str, int], ...], int]

PARTITION: Final = "lake"

#: So many files are opened, and pieces of them read, for one batch at most; a call must stay short.
_STEPS_A_BATCH: Final = 128


class Devices(Protocol):
    """Which devices are wanted: ``voltmill.operators.patterns.DevicePatterns`` is one."""

    def any(self, ids: Any) -> bool:
        """Whether one of the ids, as a file has them, is wanted."""

    def filter(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of the wanted devices."""


class LakeSource(FixedPartitionedSource[pa.RecordBatch, State]):
    """Reads a table from start to end.

    Args:
        where: the lake: a folder, an fsspec URL, or settings with credentials.
        table: folder below it that holds the Parquet files, at any depth.
        form: what its rows are made to fit.
        batch_rows: rows a batch, about: small files are joined, so it may hold half as many more.
        start: the first event time wanted, with a zone; None: from the start of the archive.
        stop: the first event time no longer wanted, with a zone.
        devices: the devices wanted; None: all.
        payload: whether to read the kept native messages; they are null otherwise.
        drain: once it is requested no more is read, and the stream ends when what was read is durable.
        on_progress: called at the start and after each batch with files done, files in all and rows given so
            far, those before a snapshot included; files done are all of them only at the end.

    Raises:
        LakeError: when it is built: no such table. While it runs: a file that is not Parquet or
            lacks a required column.
        ValueError: a time without a zone.

    Rows are given whatever their quality bits say. ``start`` and ``stop`` skip row groups by their
    statistics, ``devices`` those in whose ids there is none of them, and then rows by their values; a
    row's place is counted in the whole file.
    """

    def __init__(
        self,
        where: LakeSettings | str,
        *,
        table: str = "telemetry",
        form: Form = TELEMETRY_FORM,
        batch_rows: int = 8192,
        start: datetime | None = None,
        stop: datetime | None = None,
        devices: Devices | None = None,
        payload: bool = False,
        drain: Drain | None = None,
        on_progress: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.settings = where if isinstance(where, LakeSettings) else LakeSettings(url=str(where))
        self.table, self.form = table, form
        self.batch_rows = batch_rows
        self.times = EventRange(start, stop)
        self.devices = devices
        self.columns = [name for name in form.schema.names if payload or name != "payload"]
        self.drain = drain or Drain()
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
        file, row, ends, self._rows = _position(state)
        self._walk = Walk(source.settings.open(), source.table, self._read, file=file, row=row, ends=ends)
        self._ends = tuple((*stream, last) for stream, last in sorted(self._walk.ends.items()))
        self._waits = self._durable = False
        self._progress(self._walk.done)

    def next_batch(self) -> list[pa.RecordBatch]:
        """The next batch; ``StopIteration`` after the last, or when all is durable that came before a drain."""
        if self._source.drain.requested:
            if self._durable:
                raise StopIteration
            self._waits = True
            return []
        pieces, ended = self._pieces()
        self._rows += sum(piece.num_rows for piece in pieces)
        if ended and not pieces:
            self._progress(self._walk.total)
            raise StopIteration
        self._progress(self._walk.done)
        if not pieces:
            return []
        return [pieces[0] if len(pieces) == 1 else _joined(pieces, self._source.form.schema)]

    def snapshot(self) -> State:
        """The row that comes next, and where the reading ends; the next call of ``next_batch`` finds it durable."""
        self._durable = self._waits
        return ("v2", self._walk.file, self._walk.row, self._ends, self._rows)

    def _pieces(self) -> tuple[list[pa.RecordBatch], bool]:
        """What makes one batch, and whether it was the last."""
        pieces: list[pa.RecordBatch] = []
        rows = steps = 0
        while 2 * rows < self._source.batch_rows and steps < _STEPS_A_BATCH:
            steps += 1
            try:
                batch = self._walk.next()
            except StopIteration:
                return pieces, True
            if batch is not None and batch.num_rows:
                pieces.append(batch)
                rows += batch.num_rows
        return pieces, False

    def _progress(self, done: int) -> None:
        if self._source.on_progress is not None:
            self._source.on_progress(done, self._walk.total, self._rows)

    def _read(self, file: pq.ParquetFile, name: str, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The wanted rows of a file from ``start`` to before ``stop``."""
        source = self._source
        check_columns(file.schema_arrow, f"{source.table}/{name}", source.form)
        columns = [column for column in source.columns if column in file.schema_arrow.names]
        for groups, first in runs(file.metadata, start, stop, lambda group: _may_hold(file, group, source)):
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
            rows = source.times.filter(conform(part, name, first + skip, source.form))
            yield after, rows if source.devices is None else source.devices.filter(rows)
        first += batch.num_rows


def _may_hold(file: pq.ParquetFile, group: int, source: LakeSource) -> bool:
    """Whether a row group may hold wanted rows. The ids are a tenth of it; they spare the rest where none matches."""
    if not source.times.may_hold(file.metadata.row_group(group)):
        return False
    if source.devices is None:
        return True
    ids = file.read_row_group(group, columns=["device_id"], use_threads=False).column(0)
    return source.devices.any(ids)


def _joined(pieces: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """One batch of several, whose labels may differ in their dictionaries."""
    table = pa.Table.from_batches(pieces, schema).unify_dictionaries()
    return table.combine_chunks().to_batches()[0]


def _position(state: Any) -> tuple[str, int, dict[Stream, int] | None, int]:
    """File, row, ends and rows of a stored state."""
    if state is None:
        return "", 0, None, 0
    if isinstance(state, tuple) and len(state) == 3 and state[0] == "v1":
        return state[1], state[2], None, 0
    if isinstance(state, tuple) and len(state) == 5 and state[0] == "v2":
        ends = {Stream(base, shard, store): last for base, shard, store, last in state[3]}
        return state[1], state[2], ends, state[4]
    version = state[0] if isinstance(state, tuple) and state else type(state).__name__
    raise LakeError(
        f"the recovery store holds lake position {version!r}, this release reads 'v1' and 'v2'; begin afresh"
    )
