"""Arrow columns as the numpy arrays that kernels read: views where possible, NaN for null."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def times(column: pa.TimestampArray) -> NDArray[np.int64]:
    """Microseconds since 1970 (UTC); null reads as the smallest int64."""
    if column.null_count:
        column = pc.fill_null(column.cast(pa.int64()), np.iinfo(np.int64).min)
    return np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column)]


def floats(column: pa.Array) -> NDArray[np.float32]:
    """A float32 column; null reads as NaN."""
    if column.null_count:
        column = pc.fill_null(column, np.nan)
    array: NDArray[np.float32] = column.to_numpy()
    return array


def lists(column: pa.ListArray) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Offsets (rows + 1) and values of a list<float32> column; a null entry reads as NaN."""
    values = column.values
    if len(values) == 0:
        return np.zeros(len(column) + 1, np.int32), np.empty(0, np.float32)
    return column.offsets.to_numpy(), floats(values)


def counters(column: pa.UInt64Array) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """A uint64 column and which of its rows are not null."""
    if column.null_count:
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        return pc.fill_null(column, 0).to_numpy(), valid
    return column.to_numpy(), np.ones(len(column), np.bool_)
