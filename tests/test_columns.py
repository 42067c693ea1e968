"""Arrow columns as numpy arrays: slices, nulls, null lists, and arrays of other makers."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltmill.kernels.schema import FLOATS, TIME
from voltmill.operators import columns

NEVER = np.iinfo(np.int64).min


def rows_of(column):
    """The lists that the kernels would see."""
    at, values = columns.lists(column)
    assert at.dtype == np.int32 and values.dtype == np.float32 and len(at) == len(column) + 1
    return [values[a:b].tolist() for a, b in zip(at, at[1:], strict=False)]


def same(found, expected):
    return [list(map(repr, row)) for row in found] == [list(map(repr, row)) for row in expected]


values = st.none() | st.floats(width=32)
starts = st.integers(0, 12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.none() | st.lists(values, max_size=5), max_size=12), starts, starts, st.booleans())
def test_lists(data, begin, length, through_ipc):
    column = pa.array(data, FLOATS)
    if through_ipc:  # buffers with offsets that do not begin at 0
        column = pa.concat_arrays([pa.array([[9.0] * 3], FLOATS), column]).slice(1)
    part, expected = column.slice(begin, length), data[begin:][:length]
    assert same(rows_of(part), [[math.nan if v is None else v for v in row or ()] for row in expected])


@settings(max_examples=100, deadline=None)
@given(st.lists(values, max_size=12), starts, starts)
def test_floats(data, begin, length):
    part = pa.array(data, pa.float32()).slice(begin, length)
    expected = [math.nan if v is None else v for v in data[begin:][:length]]
    assert same([columns.floats(part).tolist()], [expected])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.integers(0, 2**64 - 1), max_size=12), starts, starts)
def test_counters(data, begin, length):
    numbers, valid = columns.counters(pa.array(data, pa.uint64()).slice(begin, length))
    expected = data[begin:][:length]
    assert numbers.dtype == np.uint64
    assert [n if v else None for n, v in zip(numbers.tolist(), valid.tolist(), strict=True)] == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.integers(-(2**62), 2**62), max_size=12), starts, starts)
def test_times(data, begin, length):
    part = pa.array(data, pa.int64()).cast(TIME).slice(begin, length)
    assert columns.times(part).tolist() == [NEVER if v is None else v for v in data[begin:][:length]]


def hiding(offsets=(0, 2, 4, 5)):
    """Three lists, the middle one null though it spans two values, as Arrow allows."""
    buffers = [pa.py_buffer(bytes([0b101])), pa.py_buffer(np.array(offsets, np.int32))]
    return pa.ListArray.from_buffers(FLOATS, 3, buffers, children=[pa.array([1, 2, 66, 66, 5], pa.float32())])


def test_values_that_a_null_list_hides_stay_hidden():
    assert rows_of(hiding()) == [[1, 2], [], [5]]
    assert rows_of(hiding().slice(1)) == [[], [5]]
    assert rows_of(hiding().slice(2)) == [[5]]


def test_no_rows_at_all():
    for column in (pa.array([], FLOATS), pa.array([None, None], FLOATS), pa.array([[], []], FLOATS)):
        assert rows_of(column) == [[] for _ in column]
    assert columns.times(pa.array([], TIME)).tolist() == []


@pytest.mark.parametrize("null", [False, True])
def test_all_arrays_are_read_only(null):
    """A kernel is compiled once for each kind; which one must not hang on whether a value is null."""
    extra = [None] if null else []
    arrays = [
        columns.times(pa.array([1, *extra], pa.int64()).cast(TIME)),
        columns.floats(pa.array(np.ones(3, np.float32)) if not null else pa.array([1.0, None], pa.float32())),
        *columns.counters(pa.array([1, *extra], pa.uint64())),
        *columns.lists(pa.array([[1.0], *extra], FLOATS)),
        *columns.lists(pa.array([[], *extra], FLOATS)),
        *columns.lists(pa.array([[1.0, *extra]], FLOATS)),
    ]
    assert not any(a.flags.writeable for a in arrays)
    assert all(a.flags.c_contiguous and a.flags.aligned for a in arrays)


def test_without_nulls_nothing_is_copied():
    column = pa.array([[1.0, 2.0], [3.0]], FLOATS)
    at, found = columns.lists(column)
    assert found.ctypes.data == column.values.buffers()[1].address
    assert at.ctypes.data == column.buffers()[1].address
