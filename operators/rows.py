"""Telemetry rows made of a scan or of samples, and both put into the order in which they arrived.

Takes the columns that ``kernels/json_scan.py`` wrote or a list of ``Sample``; gives Arrow arrays for
``DEVICE_FIELDS``, the columns of ``TELEMETRY`` that a device reports. The same sample gives the same
bytes whichever way it came.
"""

import sys
import threading
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voltmill.kernels import json_scan, schema
from voltmill.kernels.json_time import remembered
from voltmill.kernels.schema import Quality
from voltmill.operators.refusal import Refused, Rejected
from voltmill.operators.sample import DecodeSettings, Sample

#: Columns of ``TELEMETRY`` that come out of the message; the others say how it came.
DEVICE_FIELDS: Final = ("device_id", "event_time", *json_scan.KEYS[2:])
_TYPES: Final = {name: schema.TELEMETRY.field(name).type for name in DEVICE_FIELDS}
_NULLABLE: Final = {name: schema.TELEMETRY.field(name).nullable for name in DEVICE_FIELDS}
#: Largest payload that is scanned at the very end of a buffer, bytes; a larger one goes the slow way.
_TAIL_BYTES: Final = 1 << 16

Arrays = dict[str, Any]
"""Column name to pyarrow array."""


class Scanner(threading.local):
    """The scanner with its scratch memory, which is kept from batch to batch, for each thread its own.

    The worker threads of a process share one dataflow, so this too, and the kernel runs without the GIL: in shared
    memory the devices and cells of one batch would come to stand in another.
    """

    def __init__(self, settings: DecodeSettings) -> None:
        """Make room for nothing yet."""
        self._limits = np.array([settings.max_cells, settings.max_temperatures, settings.max_payload_bytes], np.uint64)
        self._order = np.full(json_scan.KEYS_REMEMBERED, -1)
        self._memory = remembered()
        self._tail = np.zeros(_TAIL_BYTES, np.uint8)
        self._lists: list[npt.NDArray[Any]] = [np.empty(0, np.uint8), np.empty(0, np.float32), np.empty(0, np.float32)]

    def scan(self, payloads: Any) -> tuple[npt.NDArray[np.bool_], Arrays]:
        """Scan a pyarrow BinaryArray: whether each payload was taken, and the rows of those that were."""
        rows = len(payloads)
        taken = np.zeros(rows, np.bool_)
        _, offsets_buffer, data = payloads.buffers()
        if rows == 0 or data is None or payloads.null_count or sys.byteorder != "little":
            return taken, {}
        offsets = np.frombuffer(offsets_buffer, np.int32, rows + 1, payloads.offset * 4)
        offsets.flags.writeable = False  # one type for the kernel, whoever made the buffer
        columns = self._columns(rows, int(offsets[-1]) - int(offsets[0]))
        base, size = np.uint64(data.address), np.uint64(data.size)
        count = json_scan.scan(
            base, size, offsets, columns.addresses(), self._limits, self._order, self._memory, self._tail, taken
        )  # fmt: skip
        return taken, _scanned(columns, count) if count else {}

    def _columns(self, rows: int, size: int) -> json_scan.Columns:
        needs = (
            min(size, rows * 256) + 8,  # ids are copied in words
            json_scan.room(size, rows, int(self._limits[0])),
            json_scan.room(size, rows, int(self._limits[1])),
        )
        for i, need in enumerate(needs):
            if len(self._lists[i]) < need:
                self._lists[i] = np.empty(need, self._lists[i].dtype)
        offsets = [np.empty(rows + 1, np.int32) for _ in range(3)]
        for each in offsets:
            each[0] = 0
        return json_scan.Columns(
            ids=self._lists[0],
            id_offsets=offsets[0],
            time=np.empty(rows, np.int64),
            seq=np.empty(rows, np.uint64),
            singles=np.empty((len(json_scan.SINGLES), rows), np.float32),
            doubles=np.empty((len(json_scan.DOUBLES), rows), np.float64),
            cells=self._lists[1],
            cell_offsets=offsets[1],
            temperatures=self._lists[2],
            temperature_offsets=offsets[2],
            present=np.empty(rows, np.uint32),
        )


def _scanned(columns: json_scan.Columns, count: int) -> Arrays:
    """The arrays of the first ``count`` rows; what lies in scratch memory is copied."""
    present = columns.present[:count]
    common, any_row = int(np.bitwise_and.reduce(present)), int(np.bitwise_or.reduce(present))

    def scalar(name: str, values: npt.NDArray[Any]) -> Any:
        bit = 1 << json_scan.KEYS.index(name)
        if common & bit or not _NULLABLE[name]:
            return _fixed(name, values[:count], None)
        return _fixed(name, values[:count], present & bit != 0) if any_row & bit else pa.nulls(count, _TYPES[name])

    ids_end = int(columns.id_offsets[count])
    ids = pa.py_buffer(columns.ids[:ids_end].tobytes())
    arrays = {
        "device_id": pa.StringArray.from_buffers(count, pa.py_buffer(columns.id_offsets[: count + 1]), ids),
        "event_time": scalar("event_time", columns.time),
        "seq": scalar("seq", columns.seq),
        "cell_voltage_volt": _lists(columns.cells, columns.cell_offsets, count),
        "cell_temperature_celsius": _lists(columns.temperatures, columns.temperature_offsets, count),
    }
    arrays |= {name: scalar(name, columns.singles[i]) for i, name in enumerate(json_scan.SINGLES)}
    return arrays | {name: scalar(name, columns.doubles[i]) for i, name in enumerate(json_scan.DOUBLES)}


def _fixed(name: str, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None) -> Any:
    bitmap = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(_TYPES[name], len(values), [bitmap, pa.py_buffer(values)])


def _lists(values: npt.NDArray[np.float32], offsets: npt.NDArray[np.int32], count: int) -> Any:
    end = int(offsets[count])
    items = pa.Array.from_buffers(pa.float32(), end, [None, pa.py_buffer(values[:end].copy())])
    return pa.Array.from_buffers(
        schema.FLOATS, count, [None, pa.py_buffer(offsets[: count + 1])], children=[items]
    )  # fmt: skip


def from_samples(samples: list[Sample]) -> Arrays:
    """The arrays of samples that ``check`` has let pass, one row each."""
    return {name: _from_values(name, [getattr(sample, name) for sample in samples]) for name in DEVICE_FIELDS}


def _from_values(name: str, values: list[Any]) -> Any:
    type_ = _TYPES[name]
    if type_ == schema.FLOATS:
        offsets = np.zeros(len(values) + 1, np.int32)
        np.cumsum([len(row) for row in values], out=offsets[1:])
        flat = [np.nan if value is None else value for row in values for value in row]
        return _lists(np.array(flat, np.float64).astype(np.float32), offsets, len(values))
    if not _NULLABLE[name] and type_ == pa.float32():
        return pa.array(np.array([np.nan if v is None else v for v in values], np.float64).astype(np.float32))
    if type_ == pa.float32():
        return pa.array(np.array([0.0 if v is None else v for v in values], np.float64).astype(np.float32),
                        mask=np.array([v is None for v in values]))  # fmt: skip
    return pa.array(values, type_)


def merge(sets: list[Arrays], order: npt.NDArray[np.int64]) -> Arrays:
    """The rows of many sets in one order; ``order`` counts on from one set to the next."""
    return {name: pa.concat_arrays([each[name] for each in sets]).take(pa.array(order)) for name in DEVICE_FIELDS}


class Gathered:
    """What came of a batch so far, each with its place: the row of the payload, the element in it."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, int, Sample]] = []
        self.rejected: list[tuple[int, int, Rejected]] = []
        self.texts: list[tuple[int, int, bytes]] = []
        self.sets: list[Arrays] = []
        self._rows: list[npt.NDArray[np.int64]] = []
        self._elements: list[npt.NDArray[np.int64]] = []
        self._bits: list[npt.NDArray[np.uint32]] = []

    def reject(self, row: int, element: int, payload: bytes, error: Exception) -> None:
        """Keep a payload, or an element of one, with the reason that ``error`` gives."""
        if not isinstance(error, Refused):
            error = Refused("internal", f"{type(error).__name__}: {error}")
        self.rejected.append((row, element, Rejected(error.reason, error.detail, payload)))

    def add_rows(
        self,
        arrays: Arrays,
        at_rows: npt.NDArray[np.int64],
        elements: npt.NDArray[np.int64] | None = None,
        bits: npt.NDArray[np.uint32] | None = None,
    ) -> None:
        """Add rows that are columns already."""
        size = len(at_rows)
        if size:
            self.sets.append(arrays)
            self._rows.append(at_rows)
            self._elements.append(np.zeros(size, np.int64) if elements is None else elements)
            self._bits.append(np.zeros(size, np.uint32) if bits is None else bits)

    def add_samples(self) -> None:
        """Make columns of the samples."""
        if not self.samples:
            return
        self.samples.sort(key=lambda each: each[:2])
        places = np.array([each[:2] for each in self.samples], np.int64)
        samples = [sample for _, _, sample in self.samples]
        bits = np.array([Quality.UNIT_CONVERTED if each.converted else 0 for each in samples], np.uint32)
        self.add_rows(from_samples(samples), places[:, 0], places[:, 1], bits)

    def in_order(self) -> tuple[Arrays, npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
        """All columns in order of arrival, the payload's row of each, and its quality bits."""
        if len(self.sets) == 1:
            return self.sets[0], self._rows[0], self._bits[0]
        at_rows = np.concatenate(self._rows)
        order = np.lexsort((np.concatenate(self._elements), at_rows))
        return merge(self.sets, order), at_rows[order], np.concatenate(self._bits)[order]
