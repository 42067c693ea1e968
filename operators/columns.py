"""Arrow columns as the numpy arrays that kernels read: views where possible, NaN for null.

All are read-only, also where Arrow would let them be written: numba compiles a kernel once for arrays
that can be written and once for those that cannot, which would stall a stream for seconds when the
first null comes.
"""

from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

T = TypeVar("T", bound=NDArray[Any])


def fixed(array: T) -> T:
    """The array, read-only from now on."""
    array.flags.writeable = False
    return array


def times(column: pa.TimestampArray) -> NDArray[np.int64]:
    """Microseconds since 1970 (UTC); null reads as the smallest int64."""
    if column.null_count:
        column = pc.fill_null(column.cast(pa.int64()), np.iinfo(np.int64).min)
    return fixed(np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column)])


def floats(column: pa.Array) -> NDArray[np.float32]:
    """A float32 column; null reads as NaN."""
    if column.null_count:
        column = pc.fill_null(column, np.nan)
    array: NDArray[np.float32] = column.to_numpy()
    return fixed(array)


def lists(column: pa.ListArray) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Offsets (rows + 1) and values of a list<float32> column; a null item reads as NaN, a null list as empty."""
    # A null list may hide values; and of a slice only its own values are worth filling.
    if column.null_count or column.values.null_count:
        offsets = np.zeros(len(column) + 1, np.int32)
        np.cumsum(pc.fill_null(column.value_lengths(), 0).to_numpy(), out=offsets[1:])
        return fixed(offsets), floats(column.flatten())
    values = column.values
    if len(values) == 0:
        return fixed(np.zeros(len(column) + 1, np.int32)), fixed(np.empty(0, np.float32))
    return fixed(column.offsets.to_numpy()), floats(values)


def counters(column: pa.UInt64Array) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """A uint64 column and which of its rows are not null."""
    if column.null_count:
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        return fixed(pc.fill_null(column, 0).to_numpy()), fixed(valid)
    return fixed(column.to_numpy()), fixed(np.ones(len(column), np.bool_))
