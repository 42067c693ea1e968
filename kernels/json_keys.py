"""The keys of canonical JSON and how the scanner tells them apart.

Nearly every message has the keys of the one before in the same order, so that each key is first
compared, eight bytes at a time, with the one that stood in its place last time.
"""

from typing import Any, Final

import numpy as np

from voltmill.kernels.compile import inline
from voltmill.kernels.json_tokens import NOWHERE, ONE, QUOTE, past_space, text_end
from voltmill.kernels.words import load1, load8, store8

_u = np.uint64
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
DEVICE_ID, EVENT_TIME, SEQ, CELLS, TEMPERATURES, FIRST_SINGLE, FIRST_DOUBLE = 0, 1, 2, 3, 4, 5, 10
UNKNOWN: Final = -1
#: Places of a message whose keys are remembered.
KEYS_REMEMBERED: Final = 32

_TEXTS: Final = [f'"{key}":'.encode() for key in KEYS]
_WORDS: Final = np.frombuffer(b"".join(t.ljust(32, b"\0") for t in _TEXTS), "<u8").reshape(len(KEYS), 4).copy()
_MASKS: Final = np.frombuffer(
    b"".join((b"\xff" * len(t)).ljust(32, b"\0") for t in _TEXTS), "<u8"
).reshape(len(KEYS), 4).copy()  # fmt: skip
_LENGTHS: Final = np.array([len(t) for t in _TEXTS], np.uint64)
_N_WORDS: Final = np.array([(len(t) + 7) // 8 for t in _TEXTS])

_COLON: Final = _u(ord(":"))


@inline
def _stands_at(at: Any, key: Any) -> Any:
    """Whether ``"key":`` stands here."""
    for j in range(_N_WORDS[key]):
        if (load8(at + _u(8 * j)) ^ _WORDS[key, j]) & _MASKS[key, j] != _u(0):
            return False
    return True


@inline
def _find_key(at: Any, end: Any) -> Any:
    """The key at a quote by its text: number or ``UNKNOWN``, address behind the colon or 0."""
    close = text_end(at + ONE, end)
    if close == NOWHERE or close >= end:
        return UNKNOWN, NOWHERE
    colon = past_space(close + ONE)
    if load1(colon) != _COLON:
        return UNKNOWN, NOWHERE
    size = close - at
    for key in range(len(_LENGTHS)):
        if _LENGTHS[key] == size + _u(2):
            same = True
            for i in range(1, np.int64(size)):
                same = same and load1(at + _u(i)) == (_WORDS[key, i // 8] >> _u(8 * (i % 8))) & _u(0xFF)
            if same:
                return key, colon + ONE
    return UNKNOWN, colon + ONE


@inline
def key_at(at: Any, end: Any, place: Any) -> Any:
    """The key here, which is likely the one that stood in this place last time: key, address behind the colon.

    ``place`` is the address of that key's number, which is kept true.
    """
    key = np.int64(load8(place))
    if key != UNKNOWN and _stands_at(at, key):
        return key, at + _LENGTHS[key]
    if load1(at) != QUOTE:
        return UNKNOWN, NOWHERE
    key, at = _find_key(at, end)
    store8(place, _u(key))
    return key, at
