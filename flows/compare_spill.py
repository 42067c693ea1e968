"""Predictions of any number on their way to be compared: as records in files, cut by device.

What stays in memory is a buffer, a record a device, and the labels. The files are temporary ones; a
prediction takes 45 bytes in them.
"""

import tempfile
from contextlib import ExitStack
from typing import IO, Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill.connectors.store import LakeError
from voltmill.flows.compare_rows import FLOATS, NUMBERS, ROW, Rows
from voltmill.kernels.fleet import Fleet
from voltmill.kernels.schema import PREDICTION
from voltmill.operators.table import DeviceTable

#: Parts that are compared one after the other; all rows of a device are in one.
PARTS: Final = 64
#: Rows that are gathered before they are cut, so that each part gets some.
BUFFER_ROWS: Final = 1 << 17

#: Columns that say what a prediction is; what they say together is one number, ``kind``.
KIND: Final = ("target", "model_sha256", "model_name", "model_version", "unit")
ORIGIN: Final = ("source", "source_partition")
#: All that is compared: everything but ``mode``, which says where a prediction was made, not what it is.
COMPARED: Final = tuple(name for name in PREDICTION.names if name != "mode")


def check_columns(batch: pa.RecordBatch) -> None:
    """See that a batch has all that is compared.

    Raises:
        LakeError: A column is missing.
    """
    if missing := [name for name in COMPARED if name not in batch.schema.names]:
        raise LakeError(f"not predictions: no column {missing[0]}; there are: {', '.join(batch.schema.names)}")


class Labels:
    """Combinations of labels, as numbers.

    Attributes:
        known: the combinations, by number.
    """

    def __init__(self) -> None:
        self.known: list[tuple[str | None, ...]] = []
        self._numbers: dict[tuple[str | None, ...], int] = {}

    def codes(self, columns: list[Any]) -> NDArray[np.int32]:
        """The number of each row's combination; Python sees each distinct one of a batch once."""
        encoded = [c if pa.types.is_dictionary(c.type) else c.dictionary_encode() for c in columns]
        values = [[*c.dictionary.to_pylist(), None] for c in encoded]  # None stands where the index is -1
        packed = np.zeros(len(columns[0]), np.int64)
        for column, of in zip(encoded, values, strict=True):
            packed = packed * len(of) + column.indices.fill_null(len(of) - 1).to_numpy()
        distinct = pa.array(packed).dictionary_encode()
        numbers = [self._number(_unpacked(key, values)) for key in distinct.dictionary.to_pylist()]
        codes: NDArray[np.int32] = np.array(numbers, np.int32)[distinct.indices.to_numpy()]
        return codes

    def _number(self, labels: tuple[str | None, ...]) -> int:
        number = self._numbers.setdefault(labels, len(self.known))
        if number == len(self.known):
            self.known.append(labels)
        return number


def _unpacked(key: int, values: list[list[str | None]]) -> tuple[str | None, ...]:
    out = []
    for of in reversed(values):
        key, index = divmod(key, len(of))
        out.append(of[index])
    return tuple(reversed(out))


class Encoder:
    """Makes records of predictions; two sets that share one can be compared.

    Attributes:
        devices: the devices of both sets.
        kinds: what ``kind`` means.
    """

    def __init__(self) -> None:
        self.devices = DeviceTable(np.dtype([("unused", "u1")]), Fleet())
        self.kinds, self._origins = Labels(), Labels()

    def rows(self, batch: pa.RecordBatch) -> Rows:
        """The records of a batch.

        Raises:
            LakeError: A column is missing, or is not what predictions have.
        """
        check_columns(batch)
        rows = np.zeros(len(batch), ROW)
        try:
            rows["device"] = self.devices.slots(_whole(batch, "device_id", pa.string()))
            rows["event_time"] = _whole(batch, "event_time", PREDICTION.field("event_time").type).cast(pa.int64())
            rows["kind"] = self.kinds.codes([batch.column(name) for name in KIND])
            rows["origin"] = self._origins.codes([batch.column(name) for name in ORIGIN])
            for k, name in enumerate(NUMBERS):
                column = batch.column(name).cast(PREDICTION.field(name).type)
                if column.null_count:
                    rows["null"] |= column.is_null().to_numpy(zero_copy_only=False).astype(np.uint8) << k
                    column = column.fill_null(0)
                rows[name] = column.to_numpy().view(np.int32) if name in FLOATS else column.to_numpy()
        except pa.ArrowException as error:
            raise LakeError(f"not predictions: {' '.join(str(error).split())}") from None
        return rows


def _whole(batch: pa.RecordBatch, name: str, type_: pa.DataType) -> Any:
    """A column of the key."""
    column = batch.column(name).cast(type_)
    if column.null_count:
        raise LakeError(f"not predictions: a {name} is null")
    return column


class Spill:
    """The records of one set, cut by device into ``PARTS`` temporary files (in ``TMPDIR``); a context manager.

    Attributes:
        rows: how many there are.
        kinds: what is among them.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.kinds: set[int] = set()
        self._open = ExitStack()
        self._files: dict[int, IO[bytes]] = {}
        self._waiting: list[Rows] = []
        self._waiting_rows = 0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """The files are gone."""
        self._open.close()

    def add(self, rows: Rows) -> None:
        """Take rows in, in order."""
        self.rows += len(rows)
        self.kinds.update(np.flatnonzero(np.bincount(rows["kind"])).tolist())
        self._waiting.append(rows)
        self._waiting_rows += len(rows)
        if self._waiting_rows >= BUFFER_ROWS:
            self._cut()

    def part(self, number: int) -> Rows:
        """The rows of a part, in order."""
        self._cut()
        file = self._files.get(number)
        if file is None:
            return np.empty(0, ROW)
        file.seek(0)
        return np.frombuffer(file.read(), ROW)

    def _cut(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        self._waiting, self._waiting_rows = [], 0
        parts = (rows["device"] % PARTS).astype(np.uint8)
        rows = rows[np.argsort(parts, kind="stable")]
        ends = np.cumsum(np.bincount(parts, minlength=PARTS))
        for number, piece in enumerate(np.split(rows, ends[:-1])):
            if len(piece):
                self._file(number).write(piece.tobytes())

    def _file(self, number: int) -> IO[bytes]:
        if number not in self._files:
            self._files[number] = self._open.enter_context(tempfile.TemporaryFile())
        return self._files[number]
