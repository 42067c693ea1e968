"""Canonical JSON straight from an Arrow binary buffer into columns, without an object in between.

Takes a batch of payloads as they lie in memory; gives the columns of the rows it took, one after
another, and a flag per payload. It takes a payload only if it can prove that the slow way, ``msgspec``
and the checks of ``operators/sample.py``, would make the same row bit for bit: known keys in any order,
each once, beside unknown ones with plain values; texts of printable ASCII; numbers that one rounding
gets right; UTC times of the usual shape or epoch integers. All else is left to the slow way.

Memory is read by address: no load runs over the edge, as the last byte of a payload is a ``}``, at which
every token ends, and payloads with less than ``SLACK`` bytes behind them are scanned from a copy.
"""

from typing import Any, Final

import numpy as np

from voltmill.kernels.compile import inline, kernel
from voltmill.kernels.json_fields import COMMA, FOUR, OFFSETS, PRESENT, Columns, address, field, null, past_value
from voltmill.kernels.json_keys import (
    CELLS,
    DEVICE_ID,
    DOUBLES,
    EVENT_TIME,
    FIRST_DOUBLE,
    FIRST_SINGLE,
    KEYS,
    KEYS_REMEMBERED,
    SEQ,
    SINGLES,
    TEMPERATURES,
    UNKNOWN,
    key_at,
)
from voltmill.kernels.json_tokens import NOWHERE, ONE, is_space, past_space
from voltmill.kernels.words import load1, load4, store4, store8, store_double, store_single

__all__ = ["DOUBLES", "KEYS", "KEYS_REMEMBERED", "SINGLES", "SLACK", "Columns", "room", "scan"]

_u = np.uint64
#: Bytes that must be readable behind a payload: the longest key, rounded up to words, and a number.
SLACK: Final = 64
#: No object of all the required keys is shorter.
_SHORTEST: Final = 64
#: The keys that every sample has, as bits.
_REQUIRED: Final = (1 << DEVICE_ID) | (1 << EVENT_TIME) | (1 << CELLS) | (1 << TEMPERATURES) | (1 << FIRST_SINGLE)
_OPEN: Final = _u(ord("{"))
_CLOSE: Final = _u(ord("}"))


@inline
def _row(at: Any, end: Any, columns: Any, k: Any, limits: Any, order: Any, memory: Any) -> Any:
    """One object into row ``k``: the keys that have a value as bits, 0 if it is not taken."""
    seen, present, place = 0, 0, 0
    if load1(at) != _OPEN:
        return 0
    while True:
        key, at = key_at(past_space(at + ONE), end, order + _u(8 * place))
        if at == NOWHERE:
            return 0
        place = min(place + 1, KEYS_REMEMBERED - 1)
        at = past_space(at)
        if key == UNKNOWN:
            at = past_value(at, end)
        elif seen & (1 << key):
            return 0
        elif null(at, key):
            seen |= 1 << key
            at += FOUR
        else:
            seen |= 1 << key
            present |= 1 << key
            at = field(at, end, key, columns, k, limits, memory)
        if at == NOWHERE or at >= end:
            return 0
        at = past_space(at)
        byte = load1(at)
        if byte == _CLOSE:
            return present if seen & _REQUIRED == _REQUIRED and at + ONE == end and _has_cells(columns, k) else 0
        if byte != COMMA:
            return 0


@inline
def _has_cells(columns: Any, k: Any) -> Any:
    offsets = address(columns, OFFSETS + 1) + (k << _u(2))
    return load4(offsets + FOUR) > load4(offsets)


@inline
def _blank(columns: Any, k: Any) -> None:
    """What row ``k`` holds where nothing is measured: NaN for the current, zeros under nulls."""
    store8(address(columns, SEQ) + (k << _u(3)), _u(0))
    store_single(address(columns, FIRST_SINGLE) + (k << _u(2)), np.float32(np.nan))
    for key in range(FIRST_SINGLE + 1, FIRST_DOUBLE):
        store_single(address(columns, key) + (k << _u(2)), np.float32(0.0))
    for key in range(FIRST_DOUBLE, OFFSETS):
        store_double(address(columns, key) + (k << _u(3)), 0.0)


@kernel
def scan(
    base: Any, size: Any, offsets: Any, columns: Any, limits: Any, order: Any, memory: Any, tail: Any, taken: Any
) -> int:
    """Scan payloads into columns; returns how many were taken.

    Args:
        base: uint64, address of the payloads, which lie end to end.
        size: uint64, bytes that are readable from there on.
        offsets: int32[n + 1], where each begins.
        columns: uint64[m], ``Columns.addresses()`` of columns with room for n rows, ``room`` values in each
            list, and first offsets of 0.
        limits: uint64[3], most cells and most temperatures in one sample, most bytes in a payload.
        order: int64[KEYS_REMEMBERED], keys in the order of the last message; kept from batch to batch.
        memory: uint64[3], of ``json_time.remembered``; kept from batch to batch.
        tail: uint8, holds payloads at the very end of the data, where loads would run over its edge.
        taken: bool[n], set: whether each payload was taken.
    """
    edge = base + size
    table, bounds = _u(columns.ctypes.data), _u(limits.ctypes.data)
    keys, minute = _u(order.ctypes.data), _u(memory.ctypes.data)
    k = _u(0)
    for i in range(len(taken)):
        start, end = base + _u(offsets[i]), base + _u(offsets[i + 1])
        taken[i] = False
        if end - start > limits[2] or end - start < _u(_SHORTEST):
            continue
        if end + _u(SLACK) > edge:
            if end - start + _u(SLACK) > _u(len(tail)):
                continue
            for j in range(offsets[i + 1] - offsets[i]):
                tail[j] = load1(start + _u(j))
            start, end = _u(tail.ctypes.data), _u(tail.ctypes.data) + (end - start)
        while end > start and is_space(load1(end - ONE)):
            end -= ONE
        if end <= start + ONE or load1(end - ONE) != _CLOSE:
            continue
        _blank(table, k)
        present = _row(past_space(start), end, table, k, bounds, keys, minute)
        if present != 0:
            store4(address(table, PRESENT) + (k << _u(2)), _u(present))
            taken[i] = True
            k += ONE
    return int(k)


def room(payload_bytes: int, rows: int, limit: int) -> int:
    """Values that lists need room for: each takes two bytes at least, a row ``limit`` at most."""
    return min(payload_bytes // 2, rows * limit) + 1
