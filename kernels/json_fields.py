"""The values of canonical JSON, each from its place in a message into its place in a column.

Every function takes the address of a value's first byte and gives the address behind it, or 0 if the
value is not one that the scanner takes. Row k of a column is written even if the message turns out not
to be taken; the next one then writes over it.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from voltmill.kernels.compile import inline
from voltmill.kernels.json_keys import CELLS, DEVICE_ID, FIRST_DOUBLE, FIRST_SINGLE, KEYS, SEQ, TEMPERATURES
from voltmill.kernels.json_time import iso_time
from voltmill.kernels.json_tokens import EXACT, NOT_TAKEN, NOWHERE, ONE, QUOTE, integer, number, past_space, text_end
from voltmill.kernels.words import load1, load4, load8, store4, store8, store_double, store_single

_u = np.uint64
COMMA: Final = _u(ord(","))
_OPEN_LIST: Final = _u(ord("["))
_CLOSE_LIST: Final = _u(ord("]"))
_N: Final = _u(ord("n"))
_LOW4: Final = _u(0xFFFFFFFF)
_LOW5: Final = _u(0xFFFFFFFFFF)
_NULL: Final = _u(int.from_bytes(b"null", "little"))
_TRUE: Final = _u(int.from_bytes(b"true", "little"))
_FALSE: Final = _u(int.from_bytes(b"false", "little"))
FOUR: Final = _u(4)
_FIVE: Final = _u(5)
_EIGHT: Final = _u(8)
_MAX_ID: Final = _u(256)

# 2000-01-01 and 2100-01-01, epoch seconds, as in operators/event_time.py.
_FIRST_SECOND: Final = _u(946_684_800)
_END_SECOND: Final = _u(4_102_444_800)
_K: Final = _u(1_000)
_M: Final = _u(1_000_000)
_G: Final = _u(1_000_000_000)

#: Places in the table of addresses behind the columns' own, which are those of KEYS.
OFFSETS: Final = len(KEYS)  # int32[n + 1] each: of the ids, the cells, the temperatures
PRESENT: Final = OFFSETS + 3  # uint32[n], bit set of the keys that have a value


class Columns(NamedTuple):
    """Where a scan writes; row k is the k-th payload taken."""

    ids: npt.NDArray[np.uint8]  # UTF-8 of the device ids, end to end
    time: npt.NDArray[np.int64]  # [n] microseconds UTC
    seq: npt.NDArray[np.uint64]  # [n]
    cells: npt.NDArray[np.float32]
    temperatures: npt.NDArray[np.float32]
    singles: npt.NDArray[np.float32]  # [len(SINGLES), n]
    doubles: npt.NDArray[np.float64]  # [len(DOUBLES), n]
    id_offsets: npt.NDArray[np.int32]  # [n + 1]
    cell_offsets: npt.NDArray[np.int32]  # [n + 1]
    temperature_offsets: npt.NDArray[np.int32]  # [n + 1]
    present: npt.NDArray[np.uint32]  # [n] bit set of the keys that have a value

    def addresses(self) -> npt.NDArray[np.uint64]:
        """What kernels get: an address a key, then of the three offsets and of ``present``.

        Passed as arrays they would be counted in and out of every function that is called.
        """
        parts = [*self[:5], *self.singles, *self.doubles, *self[7:]]
        return np.array([part.__array_interface__["data"][0] for part in parts], np.uint64)


@inline
def address(columns: Any, column: Any) -> Any:
    """The address of a column."""
    return load8(columns + (_u(column) << _u(3)))


@inline
def past_value(at: Any, end: Any) -> Any:
    """The address behind a value of an unknown key: a text, number, true, false or null."""
    if load1(at) == QUOTE:
        close = text_end(at + ONE, end)
        return NOWHERE if close == NOWHERE or close >= end else close + ONE
    word = load8(at)
    if word & _LOW4 == _NULL or word & _LOW4 == _TRUE:
        return at + FOUR
    if word & _LOW5 == _FALSE:
        return at + _FIVE
    _, behind, _ = number(at)
    return behind


@inline
def _floats(at: Any, columns: Any, key: Any, k: Any, limit: Any) -> Any:
    """An array of numbers and nulls into row ``k`` of a list column: address behind it."""
    offsets = address(columns, OFFSETS - CELLS + 1 + key) + (k << _u(2))
    place = load4(offsets)
    out = address(columns, key) + (place << _u(2))
    end = out + (limit << _u(2))
    if load1(at) != _OPEN_LIST:
        return NOWHERE
    at = past_space(at + ONE)
    if load1(at) == _CLOSE_LIST:
        store4(offsets + FOUR, place)
        return at + ONE
    while out < end:
        value, behind, kind = number(at)
        if kind == NOT_TAKEN:
            if load8(at) & _LOW4 != _NULL:
                return NOWHERE
            value, behind = np.nan, at + FOUR
        store_single(out, np.float32(value))
        out += FOUR
        place += ONE
        behind = past_space(behind)
        byte = load1(behind)
        if byte == _CLOSE_LIST:
            store4(offsets + FOUR, place)
            return behind + ONE
        if byte != COMMA:
            return NOWHERE
        at = past_space(behind + ONE)
    return NOWHERE


@inline
def _device_id(at: Any, end: Any, columns: Any, k: Any) -> Any:
    """A device id into row ``k``: address behind its closing quote."""
    close = text_end(at + ONE, end)
    if load1(at) != QUOTE or close == NOWHERE or close >= end:
        return NOWHERE
    size = close - at - ONE
    if size == _u(0) or size > _MAX_ID:
        return NOWHERE
    offsets = address(columns, OFFSETS) + (k << _u(2))
    place = load4(offsets)
    store4(offsets + FOUR, place + size)
    place += address(columns, DEVICE_ID)
    while at < close:
        store8(place, load8(at + ONE))
        place += _EIGHT
        at += _EIGHT
    return close + ONE


@inline
def _time(at: Any, memory: Any) -> Any:
    """An event time: microseconds since 1970, address behind it."""
    if load1(at) == QUOTE:
        return iso_time(at + ONE, memory)
    value, behind = integer(at)
    if _FIRST_SECOND <= value < _END_SECOND:
        return np.int64(value * _M), behind
    if _FIRST_SECOND * _K <= value < _END_SECOND * _K:
        return np.int64(value * _K), behind
    if _FIRST_SECOND * _M <= value < _END_SECOND * _M:
        return np.int64(value), behind
    if _FIRST_SECOND * _G <= value < _END_SECOND * _G:
        return np.int64(value // _K), behind
    return 0, NOWHERE


@inline
def _scalar(at: Any, key: Any, columns: Any, k: Any) -> Any:
    """A single number into row ``k`` of its column: address behind it."""
    if key == SEQ:
        value, behind = integer(at)
        store8(address(columns, key) + (k << _u(3)), value)
        return behind
    real, behind, kind = number(at)
    if key < FIRST_DOUBLE:
        store_single(address(columns, key) + (k << _u(2)), np.float32(real))
        return behind
    store_double(address(columns, key) + (k << _u(3)), real)
    return behind if kind == EXACT else NOWHERE


@inline
def null(at: Any, key: Any) -> Any:
    """Whether null stands here and the key may have it."""
    if load1(at) != _N or load8(at) & _LOW4 != _NULL:
        return False
    return key == SEQ or key >= FIRST_SINGLE


@inline
def field(at: Any, end: Any, key: Any, columns: Any, k: Any, limits: Any, memory: Any) -> Any:
    """The value of a known key into row ``k``: address behind it."""
    if key >= FIRST_SINGLE or key == SEQ:
        return _scalar(at, key, columns, k)
    if key == CELLS or key == TEMPERATURES:
        return _floats(at, columns, key, k, load8(limits + (_u(key - CELLS) << _u(3))))
    if key == DEVICE_ID:
        return _device_id(at, end, columns, k)
    time, behind = _time(at, memory)
    store8(address(columns, key) + (k << _u(3)), _u(time))
    return behind
