"""The rows of one device in a table of the lake, in order of arrival, each with the file and the row it stands in.

Files are left unopened, and row groups undecoded, where they cannot hold the device: within a recovery
store a device has one shard, so once it was found the files of the others are passed over; row groups
are judged by the statistics of ``device_id``, then by the ids themselves.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from voltmill.connectors.conform import check_columns, conform
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_files import parse
from voltmill.connectors.lake_range import EventRange, runs
from voltmill.connectors.lake_reader import Walk
from voltmill.flows.forms import FORMS

BATCH_ROWS: Final = 8192
_ROW: Final = "file_row"


class Rows(NamedTuple):
    """Neighbouring rows of the device."""

    file: str
    """Path below the table."""
    numbers: NDArray[np.int64]
    """Of the rows in that file, from 0."""
    batch: pa.RecordBatch

    @property
    def store(self) -> str:
        """The recovery store they were taken in with; empty for files that are not named like the lake's."""
        file = parse(self.file)
        return file.stream.store if file else ""


class DeviceRows:
    """Reads them; iterate once.

    Args:
        settings: Of the lake.
        table: Folder below it; the rows of ``telemetry`` and ``sessions`` are made to be of that schema.
        device_id: The device.
        columns: Those wanted; a file that lacks one gives batches without it. None: all.
        times: The event times wanted; None: all.

    Attributes:
        cut: by store, the number of the first file of the device's shard; above 0, older ones are gone.

    Raises:
        LakeError: There is no such table, or a file cannot be read.
    """

    def __init__(
        self,
        settings: LakeSettings,
        table: str,
        device_id: str,
        columns: Sequence[str] | None = None,
        times: EventRange | None = None,
    ) -> None:
        self._device, self._columns, self._times = device_id, columns, times or EventRange()
        self._table, self._form = table, FORMS.get(table)
        self._shards: dict[tuple[str, str], str] = {}
        self.cut: dict[str, int] = {}
        self._first: dict[tuple[str, str, str], int] = {}
        self._walk = Walk(settings.open(), table, self._read, wanted=self._may_be_in)

    def __iter__(self) -> Iterator[Rows]:
        """The rows, some at a time."""
        while True:
            try:
                found = self._walk.next()
            except StopIteration:
                return
            if found is None or not found.num_rows:
                continue
            self._learn(self._walk.file)
            batch = self._times.filter(found)
            if batch.num_rows:
                yield Rows(self._walk.file, batch.column(_ROW).to_numpy(), batch.drop_columns([_ROW]))

    def _learn(self, path: str) -> None:
        file = parse(path)
        if file is not None:
            base, shard, store = file.stream
            self._shards.setdefault((base, store), shard)
            self.cut.setdefault(store, self._first[base, store, shard])

    def _may_be_in(self, path: str) -> bool:
        file = parse(path)
        if file is None:
            return True
        base, shard, store = file.stream
        self._first.setdefault((base, store, shard), file.first)
        return self._shards.get((base, store), shard) == shard

    def _read(self, file: pq.ParquetFile, path: str, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        if self._form:
            check_columns(file.schema_arrow, f"{self._table}/{path}", self._form)
        names = [n for n in file.schema_arrow.names if self._columns is None or n in self._columns]
        for groups, after in runs(file.metadata, start, stop, lambda k: self._may_hold(file, k)):
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=names, use_threads=False):
                first, after = after, after + batch.num_rows
                if self._form:
                    batch = conform(batch, path, first, self._form)
                mine = pc.equal(batch.column("device_id").cast(pa.string()), self._device)
                rows = np.flatnonzero(mine.to_numpy(zero_copy_only=False)) + first
                rows = rows[(rows >= start) & (rows < stop)]
                yield after, batch.take(pa.array(rows - first)).append_column(_ROW, pa.array(rows))

    def _may_hold(self, file: pq.ParquetFile, group: int) -> bool:
        facts = file.metadata.row_group(group)
        if not (self._times.may_hold(facts) and _allows(facts, self._device)):
            return False
        ids = file.read_row_group(group, columns=["device_id"], use_threads=False).column(0)
        return bool(pc.any(pc.equal(ids.cast(pa.string()), self._device)).as_py())


def _allows(group: Any, device_id: str) -> bool:
    """Whether the statistics of a row group allow the device."""
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == "device_id":
            statistics = column.statistics
            if statistics is None or not statistics.has_min_max or not isinstance(statistics.min, str):
                return True
            # Compared as bytes, as Parquet orders text; a long bound may have been cut short.
            low, high, wanted = (text.encode() for text in (statistics.min, statistics.max, device_id))
            return low <= wanted and (wanted <= high or wanted.startswith(high))
    return True
