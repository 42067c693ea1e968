"""A range of event time in the lake: row groups are skipped by their statistics, rows by their values."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from voltmill.kernels.schema import TIME

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICKS: Final = {"milliseconds": 1_000, "microseconds": 1, "nanoseconds": 0.001}


class EventRange:
    """The event times from ``start`` to before ``stop``; None: no end on that side.

    Raises:
        ValueError: A time without a zone.
    """

    def __init__(self, start: datetime | None = None, stop: datetime | None = None) -> None:
        self.start, self.stop = _micros(start), _micros(stop)

    def may_hold(self, group: Any) -> bool:
        """Whether the statistics of a row group (of ``pyarrow.parquet``) allow event times in the range."""
        if self.start is None and self.stop is None:
            return True
        for index in range(group.num_columns):
            column = group.column(index)
            if column.path_in_schema == "event_time":
                return self._overlaps(column)
        return True

    def filter(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows in the range; ``event_time`` is in µs."""
        if self.start is not None:
            batch = batch.filter(pc.greater_equal(batch.column("event_time"), pa.scalar(self.start, TIME)))
        if self.stop is not None:
            batch = batch.filter(pc.less(batch.column("event_time"), pa.scalar(self.stop, TIME)))
        return batch

    def _overlaps(self, column: Any) -> bool:
        statistics = column.statistics
        if statistics is None or not statistics.has_min_max or column.physical_type != "INT64":
            return True
        scale = _TICKS.get(json.loads(statistics.logical_type.to_json()).get("timeUnit", ""))
        if scale is None:
            return True
        low, high = int(statistics.min_raw * scale), int(statistics.max_raw * scale)
        return not (
            (self.start is not None and high + 1 < self.start) or (self.stop is not None and low - 1 > self.stop)
        )


def runs(metadata: Any, start: int, stop: int, wanted: Callable[[int], bool]) -> Iterator[tuple[list[int], int]]:
    """Runs of neighbouring row groups, with the number of each run's first row.

    Args:
        metadata: Of the file (``pyarrow.parquet.FileMetaData``).
        start: Number of the first row wanted.
        stop: Number of the first row no longer wanted.
        wanted: Whether the row group of an index may hold wanted rows; asked where its place allows it.
    """
    run: list[int] = []
    first = begin = 0
    for index in range(metadata.num_row_groups):
        after = first + metadata.row_group(index).num_rows
        if after > start and first < stop and wanted(index):
            begin = begin if run else first
            run.append(index)
        elif run:
            yield run, begin
            run = []
        first = after
    if run:
        yield run, begin


def _micros(when: datetime | None) -> int | None:
    if when is None:
        return None
    if when.tzinfo is None:
        raise ValueError(f"{when.isoformat()} has no time zone; write {when.isoformat()}+00:00")
    return (when - _EPOCH) // timedelta(microseconds=1)
