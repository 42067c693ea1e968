"""What a model remembers of each device between its rows, by kind of model.

features: nothing. step: the numbers that the model itself carries. window: the device's last rows.
All are plain arrays with one row a slot of the devices of a shard, and grow with them.
"""

from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill.kernels.sequence import ranks, windows
from voltmill.operators.contract import Contract, Matrix
from voltmill.operators.model import PredictModel, StepModel

#: Numbers in the windows that a model is given at once: 16 MB, whatever the batch.
_WINDOW_NUMBERS = 4_000_000
_LZ4 = pa.Codec("lz4")

Flags = NDArray[np.bool_]
#: Which rows the model had seen enough for, and what it raised.
Asked = tuple[Flags, Exception | None]


class Memory(Protocol):
    """The memory of one model for the devices of one shard."""

    def ask(self, slots: NDArray[np.int32], restarts: Flags, features: Matrix, out: Matrix) -> Asked:
        """Ask the model about rows, in their order.

        Args:
            slots: (rows,) slot of the row's device.
            restarts: (rows,) whether what came before says nothing any more.
            features: (rows, n features).
            out: (rows, n outputs) out; rows stay as they are where there was no answer.

        Returns:
            Which rows the model had seen enough for, and what it raised, if it did; the rows answered
            before stand in ``out``.
        """

    def grow(self, slots: int) -> None:
        """Make room for so many devices."""

    def snapshot(self, count: int) -> tuple[Any, ...]:
        """The first so many slots: a copy, builtins only."""

    def restore(self, count: int, snapshot: tuple[Any, ...]) -> None:
        """Go on from what ``snapshot`` gave."""


class NoMemory:
    """For models that need none."""

    def __init__(self, model: PredictModel) -> None:
        self._model = model

    def ask(self, slots: NDArray[np.int32], restarts: Flags, features: Matrix, out: Matrix) -> Asked:
        """All rows at once."""
        seen = np.ones(len(features), np.bool_)
        try:
            out[:] = _shaped(self._model.predict(features), out.shape)
        except Exception as e:  # any model may fail in any way; the stream goes on
            return seen, e
        return seen, None

    def grow(self, slots: int) -> None:
        """Nothing grows."""

    def snapshot(self, count: int) -> tuple[Any, ...]:
        """Nothing."""
        return ()

    def restore(self, count: int, snapshot: tuple[Any, ...]) -> None:
        """Nothing."""


class StepMemory:
    """The numbers that a step model carries: one row of each device is asked about at a time."""

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._carried = np.zeros((0, model.contract.state_size), np.float32)
        self._counts = np.zeros(0, np.int32)

    def ask(self, slots: NDArray[np.int32], restarts: Flags, features: Matrix, out: Matrix) -> Asked:
        """A call for each row of the device that has the most in the batch."""
        seen, rank = np.ones(len(slots), np.bool_), np.empty(len(slots), np.int32)
        calls = ranks(slots, self._counts, rank)
        order = np.argsort(rank, kind="stable")
        ends = np.searchsorted(rank[order], np.arange(calls + 1))
        for first, last in zip(ends, ends[1:], strict=False):
            rows = order[first:last]
            carried = self._carried[slots[rows]]
            carried[restarts[rows]] = 0.0
            self._carried[slots[rows]] = 0.0  # should the model raise, these devices begin anew
            try:
                found, on = self._model.step(np.ascontiguousarray(features[rows]), carried)
                out[rows] = _shaped(found, (len(rows), out.shape[1]))
                on = _shaped(on, carried.shape)
            except Exception as e:  # as above; rows of later calls are not asked about
                return seen, e
            self._carried[slots[rows]] = np.where(np.isfinite(on).all(axis=1, keepdims=True), on, 0.0)
        return seen, None

    def grow(self, slots: int) -> None:
        """More rows of zeros."""
        self._carried, self._counts = grown(self._carried, slots), grown(self._counts, slots)

    def snapshot(self, count: int) -> tuple[Any, ...]:
        """What is carried, compressed."""
        return (packed(self._carried[:count]),)

    def restore(self, count: int, snapshot: tuple[Any, ...]) -> None:
        """As it was carried."""
        unpack(snapshot[0], self._carried[:count])


class WindowMemory:
    """The last rows of each device."""

    def __init__(self, model: PredictModel) -> None:
        self._model = model
        self._shape = (model.contract.window_rows, len(model.contract.features))
        self._kept = np.zeros((0, *self._shape), np.float32)
        self._filled = np.zeros(0, np.int32)

    def ask(self, slots: NDArray[np.int32], restarts: Flags, features: Matrix, out: Matrix) -> Asked:
        """All rows are appended, whatever the model then does with their windows."""
        full = np.empty(len(slots), np.bool_)
        part = max(1, _WINDOW_NUMBERS // (self._shape[0] * self._shape[1]))
        failure: Exception | None = None
        for first in range(0, len(slots), part):
            rows = slice(first, first + part)
            some = np.empty((len(slots[rows]), *self._shape), np.float32)
            windows(self._kept, self._filled, slots[rows], restarts[rows], features[rows], some, full[rows])
            asked = full[rows]
            if failure is not None or not asked.any():
                continue
            try:
                found = self._model.predict(some[asked])
                out[rows][asked] = _shaped(found, (int(asked.sum()), out.shape[1]))
            except Exception as e:  # the windows of the rows that follow must still move on
                failure = e
        return full, failure

    def grow(self, slots: int) -> None:
        """More empty windows."""
        self._kept, self._filled = grown(self._kept, slots), grown(self._filled, slots)

    def snapshot(self, count: int) -> tuple[Any, ...]:
        """The windows, compressed, and how full they are."""
        return (packed(self._kept[:count]), packed(self._filled[:count]))

    def restore(self, count: int, snapshot: tuple[Any, ...]) -> None:
        """As they were."""
        unpack(snapshot[0], self._kept[:count])
        unpack(snapshot[1], self._filled[:count])


def memory(model: Any) -> Memory:
    """The memory that the model's kind needs."""
    contract: Contract = model.contract
    if contract.kind == "step":
        return StepMemory(model)
    return WindowMemory(model) if contract.kind == "window" else NoMemory(model)


def _shaped(found: Matrix, shape: tuple[int, ...]) -> Matrix:
    if found.shape != shape:
        raise ValueError(f"gave an array of shape {found.shape}, the contract asks for {shape}")
    return found


def grown(old: NDArray[Any], slots: int) -> NDArray[Any]:
    """The array with so many rows, the new ones zeros."""
    new = np.zeros((slots, *old.shape[1:]), old.dtype)
    new[: len(old)] = old
    return new


def packed(array: NDArray[Any]) -> bytes:
    """The array's bytes, compressed: recovery stores are written at a third of the speed of LZ4."""
    return bytes(_LZ4.compress(array.tobytes(), asbytes=True))


def unpack(data: bytes, out: NDArray[Any]) -> None:
    """Put back what ``packed`` took, of the same type and shape."""
    out[:] = np.frombuffer(_LZ4.decompress(data, out.nbytes), out.dtype).reshape(out.shape)
