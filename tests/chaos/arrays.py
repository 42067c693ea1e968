"""Keys and comparisons of whole tables, to the bit."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

#: Event times in µs and counters are below 2**51 until the year 2041; device codes have the bits above.
_SHIFT: Final = 51


def column(table: pa.Table, name: str) -> pa.Array:
    """A column as one array, dictionaries as text."""
    whole = table.column(name).combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], whole.type)
    return whole.dictionary_decode() if pa.types.is_dictionary(whole.type) else whole


def keys(table: pa.Table, devices: pa.Array, number: str) -> Ints:
    """A key a row: the device's place in ``devices`` and a number, ``seq`` or ``event_time``; -1 if unknown."""
    code = pc.index_in(column(table, "device_id"), devices).fill_null(-1).to_numpy(zero_copy_only=False)
    value = column(table, number).cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    known = (code >= 0) & (value >= 0)
    return np.where(known, (code.astype(np.int64) << _SHIFT) | np.maximum(value, 0), -1)


def counted(found: Ints, wanted: Ints) -> Ints:
    """How often each of the sorted, unique keys ``wanted`` is among ``found``."""
    places = np.searchsorted(wanted, found)
    places[places == len(wanted)] = 0
    hits = places[wanted[places] == found] if len(wanted) else places[:0]
    return np.bincount(hits, minlength=len(wanted)).astype(np.int64)


def places(found: Ints, wanted: Ints) -> Ints:
    """The place of each of ``found`` in the sorted keys ``wanted``; -1 where it is none of them."""
    if not len(wanted):
        return np.full(len(found), -1, np.int64)
    at = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
    return np.where(wanted[at] == found, at, -1)


def differing(left: pa.Array, right: pa.Array) -> Bools:
    """In which rows two columns differ, nulls and the bits of floats included."""
    if pa.types.is_list(left.type):
        return _lists_differ(left, right)
    if pa.types.is_string(left.type) or pa.types.is_binary(left.type):
        unequal = pc.not_equal(left, right).fill_null(True).to_numpy(zero_copy_only=False)
        return unequal & ~(_null(left) & _null(right))
    return (_null(left) != _null(right)) | (~_null(left) & (_bits(left) != _bits(right)))


def _lists_differ(left: pa.Array, right: pa.Array) -> Bools:
    lengths = left.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    differ = lengths != right.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    same = pa.array(~differ)
    items = differing(left.filter(same).flatten(), right.filter(same).flatten())
    rows = np.repeat(np.flatnonzero(~differ), np.maximum(lengths[~differ], 0))
    differ[rows[items]] = True
    return differ


def _null(values: pa.Array) -> Bools:
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _bits(values: pa.Array) -> Ints:
    if pa.types.is_float32(values.type):
        values = values.view(pa.int32())
    elif pa.types.is_float64(values.type) or pa.types.is_timestamp(values.type):
        values = values.view(pa.int64())
    return np.asarray(values.fill_null(0).to_numpy(zero_copy_only=False))
