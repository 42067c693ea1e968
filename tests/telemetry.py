"""Batches of telemetry for tests: samples as dictionaries, times in seconds from a fixed start."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from voltmill.kernels.schema import TELEMETRY

#: The start of all times, µs since 1970: 2026-11-22 12:00:00 UTC, a whole number of ten-minute panes.
START_US = 1_795_348_800_000_000


def at(seconds: float) -> int:
    """Event time in µs."""
    return START_US + round(seconds * 1e6)


def sample(t: float, *, arrival: float | None = ..., **change: Any) -> dict[str, Any]:  # type: ignore[assignment]
    """A sound sample of device ``m`` at ``t`` seconds, with some columns changed.

    It arrives 0.2 s after it was measured, at ``arrival`` seconds if given; None: arrival unknown.
    """
    if arrival is ...:
        arrival = t + 0.2
    sound = {
        "device_id": "m",
        "event_time": at(t),
        "ingest_time": None if arrival is None else at(arrival),
        "current_ampere": 0.0,
        "cell_voltage_volt": [3.70, 3.71, 3.69, 3.70],
        "cell_temperature_celsius": [25.0, 26.0],
        "source": "test",
        "source_partition": "p",
        "source_offset": 0,
        "quality_bits": 0,
    }
    return sound | change


def batch(samples: Iterable[dict[str, Any]]) -> pa.RecordBatch:
    """The samples as a batch of ``TELEMETRY``; missing columns are null."""
    return pa.RecordBatch.from_pylist(list(samples), schema=TELEMETRY)


def cut(whole: pa.RecordBatch, at: Iterable[int]) -> list[pa.RecordBatch]:
    """The batch in pieces, as slices of it."""
    ends = [0, *sorted(at), len(whole)]
    return [whole.slice(a, b - a) for a, b in zip(ends, ends[1:], strict=False) if b > a]


def content(rows: pa.RecordBatch) -> dict[str, bytes]:
    """Every column as bytes: equal if the values are, to the bit, however they are laid out."""
    out = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if pa.types.is_floating(column.type):
            out[name] = column.fill_null(-1).to_numpy().tobytes() + column.is_null().to_numpy(False).tobytes()
        else:
            out[name] = repr(column.to_pylist()).encode()
    return out


def joined(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of all their rows."""
    table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
    return table.to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], schema=table.schema)
