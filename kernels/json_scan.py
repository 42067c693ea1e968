"""Canonical JSON straight from an Arrow binary buffer into columns, without an object in between.

Takes a batch of payloads as they lie in memory; gives the columns of the rows it took, one after
another, and a flag per payload. It takes a payload only if it can prove that the slow way, ``msgspec``
and the checks of ``operators/sample.py``, would make the same row bit for bit: known keys in any order,
each once, beside unknown ones with plain values; texts of printable ASCII; numbers that one rounding
gets right; UTC times of the usual shape or epoch integers. All else is left to the slow way.

Nearly every message has the keys of the one before in the same order, so that each key is first
compared, eight bytes at a time, with the one that stood in its place last time.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from voltmill.kernels.compile import inline, kernel
from voltmill.kernels.json_tokens import EXACT, NOT_TAKEN, NOWHERE, ONE, QUOTE, integer, iso_time, number, text_end
from voltmill.kernels.words import load1, load4, load8, store4, store8, store_double, store_single

_u = np.uint64
#: Bytes that must be readable behind a payload: the longest key, rounded up to words, and a number.
SLACK: Final = 64

#: The float32 and the float64 columns, in the order of the rows of their matrices.
SINGLES: Final = (
    "current_ampere",
    "voltage_volt",
    "ambient_temperature_celsius",
    "bms_soc_percent",
    "bms_soh_percent",
)
DOUBLES: Final = ("charge_ah", "discharge_ah")
_LISTS: Final = ("cell_voltage_volt", "cell_temperature_celsius")
#: The keys; a column's bit in ``present`` is its place here.
KEYS: Final = ("device_id", "event_time", "seq", *_LISTS, *SINGLES, *DOUBLES)
_DEVICE_ID, _EVENT_TIME, _SEQ, _CELLS, _TEMPERATURES, _FIRST_SINGLE, _FIRST_DOUBLE = 0, 1, 2, 3, 4, 5, 10
_UNKNOWN: Final = -1
#: Places of a message whose keys are remembered.
KEYS_REMEMBERED: Final = 32
#: The keys that every sample has, as bits.
_REQUIRED: Final = (1 << _DEVICE_ID) | (1 << _EVENT_TIME) | (1 << _CELLS) | (1 << _TEMPERATURES) | (1 << _FIRST_SINGLE)

_TEXTS: Final = [f'"{key}":'.encode() for key in KEYS]
_WORDS: Final = np.frombuffer(b"".join(t.ljust(32, b"\0") for t in _TEXTS), "<u8").reshape(len(KEYS), 4).copy()
_MASKS: Final = np.frombuffer(
    b"".join((b"\xff" * len(t)).ljust(32, b"\0") for t in _TEXTS), "<u8"
).reshape(len(KEYS), 4).copy()  # fmt: skip
_LENGTHS: Final = np.array([len(t) for t in _TEXTS], np.uint64)
_N_WORDS: Final = np.array([(len(t) + 7) // 8 for t in _TEXTS])

_SPACE: Final = _u(0x20)
_COMMA: Final = _u(ord(","))
_COLON: Final = _u(ord(":"))
_OPEN: Final = _u(ord("{"))
_CLOSE: Final = _u(ord("}"))
_OPEN_LIST: Final = _u(ord("["))
_CLOSE_LIST: Final = _u(ord("]"))
_N: Final = _u(ord("n"))
_LOW4: Final = _u(0xFFFFFFFF)
_LOW5: Final = _u(0xFFFFFFFFFF)
_NULL: Final = _u(int.from_bytes(b"null", "little"))
_TRUE: Final = _u(int.from_bytes(b"true", "little"))
_FALSE: Final = _u(int.from_bytes(b"false", "little"))
_FOUR: Final = _u(4)
_FIVE: Final = _u(5)
_EIGHT: Final = _u(8)
_MAX_ID: Final = _u(256)

# 2000-01-01 and 2100-01-01, epoch seconds, as in operators/sample.py.
_FIRST_SECOND: Final = _u(946_684_800)
_END_SECOND: Final = _u(4_102_444_800)
_K: Final = _u(1_000)
_M: Final = _u(1_000_000)
_G: Final = _u(1_000_000_000)
#: No object of all the required keys is shorter; seven-byte loads then stay inside what was given.
_SHORTEST: Final = _u(64)


#: Places in the table of addresses behind the columns' own, which are those of KEYS.
_OFFSETS: Final = len(KEYS)  # int32[n + 1] each: of the ids, the cells, the temperatures
_PRESENT: Final = _OFFSETS + 3  # uint32[n], bit set of the keys that have a value


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
def _at(columns: Any, column: Any) -> Any:
    """The address of a column."""
    return load8(columns + (_u(column) << _u(3)))


@inline
def _is_space(byte: Any) -> Any:
    return byte <= _SPACE and (byte == _SPACE or byte == _u(10) or byte == _u(13) or byte == _u(9))


@inline
def _past_space(at: Any) -> Any:
    """The first byte that is no white space."""
    while _is_space(load1(at)):
        at += ONE
    return at


@inline
def _is_key(at: Any, key: Any) -> Any:
    """Whether ``"key":`` stands here."""
    for j in range(_N_WORDS[key]):
        if (load8(at + _u(8 * j)) ^ _WORDS[key, j]) & _MASKS[key, j] != _u(0):
            return False
    return True


@inline
def _find_key(at: Any, end: Any) -> Any:
    """The key at a quote by its text: number or ``_UNKNOWN``, address behind the colon or 0."""
    close = text_end(at + ONE, end)
    if close == NOWHERE or close >= end:
        return _UNKNOWN, NOWHERE
    colon = _past_space(close + ONE)
    if load1(colon) != _COLON:
        return _UNKNOWN, NOWHERE
    size = close - at
    for key in range(len(_LENGTHS)):
        if _LENGTHS[key] == size + _u(2):
            same = True
            for i in range(1, np.int64(size)):
                same = same and load1(at + _u(i)) == (_WORDS[key, i // 8] >> _u(8 * (i % 8))) & _u(0xFF)
            if same:
                return key, colon + ONE
    return _UNKNOWN, colon + ONE


@inline
def _past_value(at: Any, end: Any) -> Any:
    """The address behind a value of an unknown key: a text, number, true, false or null."""
    if load1(at) == QUOTE:
        close = text_end(at + ONE, end)
        return NOWHERE if close == NOWHERE or close >= end else close + ONE
    word = load8(at)
    if word & _LOW4 == _NULL or word & _LOW4 == _TRUE:
        return at + _FOUR
    if word & _LOW5 == _FALSE:
        return at + _FIVE
    _, behind, _ = number(at)
    return behind


@inline
def _floats(at: Any, columns: Any, key: Any, k: Any, limit: Any) -> Any:
    """An array of numbers and nulls into row ``k`` of a list column: address behind it."""
    offsets = _at(columns, _OFFSETS - _CELLS + 1 + key) + (k << _u(2))
    place = load4(offsets)
    out = _at(columns, key) + (place << _u(2))
    end = out + (limit << _u(2))
    if load1(at) != _OPEN_LIST:
        return NOWHERE
    at = _past_space(at + ONE)
    if load1(at) == _CLOSE_LIST:
        store4(offsets + _FOUR, place)
        return at + ONE
    while out < end:
        value, behind, kind = number(at)
        if kind == NOT_TAKEN:
            if load8(at) & _LOW4 != _NULL:
                return NOWHERE
            value, behind = np.nan, at + _FOUR
        store_single(out, np.float32(value))
        out += _FOUR
        place += ONE
        behind = _past_space(behind)
        byte = load1(behind)
        if byte == _CLOSE_LIST:
            store4(offsets + _FOUR, place)
            return behind + ONE
        if byte != _COMMA:
            return NOWHERE
        at = _past_space(behind + ONE)
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
    offsets = _at(columns, _OFFSETS) + (k << _u(2))
    place = load4(offsets)
    store4(offsets + _FOUR, place + size)
    place += _at(columns, _DEVICE_ID)
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
    if key == _SEQ:
        value, behind = integer(at)
        store8(_at(columns, key) + (k << _u(3)), value)
        return behind
    real, behind, kind = number(at)
    if key < _FIRST_DOUBLE:
        store_single(_at(columns, key) + (k << _u(2)), np.float32(real))
        return behind
    store_double(_at(columns, key) + (k << _u(3)), real)
    return behind if kind == EXACT else NOWHERE


@inline
def _null(at: Any, key: Any) -> Any:
    """Whether null stands here and the key may have it."""
    if load1(at) != _N or load8(at) & _LOW4 != _NULL:
        return False
    return key == _SEQ or key >= _FIRST_SINGLE


@inline
def _field(at: Any, end: Any, key: Any, columns: Any, k: Any, limits: Any, memory: Any) -> Any:
    """The value of a known key into row ``k``: address behind it."""
    if key >= _FIRST_SINGLE or key == _SEQ:
        return _scalar(at, key, columns, k)
    if key == _CELLS or key == _TEMPERATURES:
        return _floats(at, columns, key, k, load8(limits + (_u(key - _CELLS) << _u(3))))
    if key == _DEVICE_ID:
        return _device_id(at, end, columns, k)
    time, behind = _time(at, memory)
    store8(_at(columns, key) + (k << _u(3)), _u(time))
    return behind


@inline
def _key(at: Any, end: Any, place: Any) -> Any:
    """The key here, which is likely the one that stood in this place last time: key, address behind the colon.

    ``place`` is the address of that key's number, which is kept true.
    """
    key = np.int64(load8(place))
    if key != _UNKNOWN and _is_key(at, key):
        return key, at + _LENGTHS[key]
    if load1(at) != QUOTE:
        return _UNKNOWN, NOWHERE
    key, at = _find_key(at, end)
    store8(place, _u(key))
    return key, at


@inline
def _row(at: Any, end: Any, columns: Any, k: Any, limits: Any, order: Any, memory: Any) -> Any:
    """One object into row ``k``: the keys that have a value as bits, 0 if it is not taken."""
    seen, present, place = 0, 0, 0
    if load1(at) != _OPEN:
        return 0
    while True:
        key, at = _key(_past_space(at + ONE), end, order + _u(8 * place))
        if at == NOWHERE:
            return 0
        place = min(place + 1, KEYS_REMEMBERED - 1)
        at = _past_space(at)
        if key == _UNKNOWN:
            at = _past_value(at, end)
        elif seen & (1 << key):
            return 0
        elif _null(at, key):
            seen |= 1 << key
            at += _FOUR
        else:
            seen |= 1 << key
            present |= 1 << key
            at = _field(at, end, key, columns, k, limits, memory)
        if at == NOWHERE or at >= end:
            return 0
        at = _past_space(at)
        byte = load1(at)
        if byte == _CLOSE:
            return present if seen & _REQUIRED == _REQUIRED and at + ONE == end and _has_cells(columns, k) else 0
        if byte != _COMMA:
            return 0


@inline
def _has_cells(columns: Any, k: Any) -> Any:
    offsets = _at(columns, _OFFSETS + 1) + (k << _u(2))
    return load4(offsets + _FOUR) > load4(offsets)


@inline
def _blank(columns: Any, k: Any) -> None:
    """What row ``k`` holds where nothing is measured: NaN for the current, zeros under nulls."""
    store8(_at(columns, _SEQ) + (k << _u(3)), _u(0))
    store_single(_at(columns, _FIRST_SINGLE) + (k << _u(2)), np.float32(np.nan))
    for key in range(_FIRST_SINGLE + 1, _FIRST_DOUBLE):
        store_single(_at(columns, key) + (k << _u(2)), np.float32(0.0))
    for key in range(_FIRST_DOUBLE, _OFFSETS):
        store_double(_at(columns, key) + (k << _u(3)), 0.0)


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
        memory: uint64[3], of ``iso_time``; kept from batch to batch.
        tail: uint8, holds payloads at the very end of the data, where loads would run over its edge.
        taken: bool[n], set: whether each payload was taken.
    """
    edge = base + size
    table, bounds, keys, minute = (
        _u(columns.ctypes.data),
        _u(limits.ctypes.data),
        _u(order.ctypes.data),
        _u(memory.ctypes.data),
    )
    k = _u(0)
    for i in range(len(taken)):
        start, end = base + _u(offsets[i]), base + _u(offsets[i + 1])
        taken[i] = False
        if end - start > limits[2] or end - start < _SHORTEST:
            continue
        if end + _u(SLACK) > edge:
            if end - start + _u(SLACK) > _u(len(tail)):
                continue
            for j in range(offsets[i + 1] - offsets[i]):
                tail[j] = load1(start + _u(j))
            start, end = _u(tail.ctypes.data), _u(tail.ctypes.data) + (end - start)
        while end > start and _is_space(load1(end - ONE)):
            end -= ONE
        if end <= start + ONE or load1(end - ONE) != _CLOSE:
            continue
        _blank(table, k)
        present = _row(_past_space(start), end, table, k, bounds, keys, minute)
        if present != 0:
            store4(_at(table, _PRESENT) + (k << _u(2)), _u(present))
            taken[i] = True
            k += ONE
    return int(k)


def room(payload_bytes: int, rows: int, limit: int) -> int:
    """Values that lists need room for: each takes two bytes at least, a row ``limit`` at most."""
    return min(payload_bytes // 2, rows * limit) + 1
