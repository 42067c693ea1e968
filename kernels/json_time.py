"""Times as ``2026-11-22T10:00:05.123Z``, the one shape of ISO 8601 that the scanner takes.

As in ``json_tokens.py``: an address in, the value and the address behind it out, or the address 0.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from voltmill.kernels.compile import inline
from voltmill.kernels.json_tokens import NOWHERE, ONE, QUOTE, digit_run
from voltmill.kernels.words import load1, load8, store8

_u = np.uint64
_EIGHT: Final = _u(8)
_DASH: Final = _u(ord("-"))
_POINT: Final = _u(ord("."))
_ZERO: Final = _u(ord("0"))
_NINE: Final = _u(9)
_TEN: Final = _u(10)
_POWERS: Final = np.array([10**k for k in range(7)])
_MINUTE_LENGTH: Final = _u(16)  # length of 2026-11-22T10:00
_SECOND: Final = 1_000_000
_MINUTE: Final = 60 * _SECOND
_DAYS_IN_MONTH: Final = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


@inline
def _two(at: Any, limit: Any) -> Any:
    """Two digits as a number; ``limit`` or more if they are none or too large."""
    tens, units = load1(at) - _ZERO, load1(at + ONE) - _ZERO
    if tens > _NINE or units > _NINE:
        return limit
    return min(np.int64(tens * _TEN + units), limit)


@inline
def _minute(at: Any) -> Any:
    """``2026-11-22T10:00`` as microseconds since 1970; 0 if it is not of the years 2000 to 2099."""
    year, month, day = _two(at + _u(2), 100), _two(at + _u(5), 13), _two(at + _EIGHT, 32)
    hour, minute = _two(at + _u(11), 24), _two(at + _u(14), 60)
    shape = load1(at) == _u(ord("2")) and load1(at + ONE) == _ZERO
    shape = shape and load1(at + _u(4)) == _DASH and load1(at + _u(7)) == _DASH
    shape = shape and load1(at + _u(10)) == _u(ord("T")) and load1(at + _u(13)) == _u(ord(":"))
    if not shape or year == 100 or month == 13 or month == 0 or day == 0 or hour == 24 or minute == 60:
        return 0
    leap = year % 4 == 0  # 2000 is one too
    if day > _DAYS_IN_MONTH[month] + (1 if leap and month == 2 else 0):
        return 0
    days = 10_957 + 365 * year + (year + 3) // 4 + day - 1  # 10,957 days from 1970 to 2000
    for m in range(1, month):
        days += _DAYS_IN_MONTH[m]
    if leap and month > 2:
        days += 1
    return ((days * 24 + hour) * 60 + minute) * _MINUTE


def remembered() -> npt.NDArray[np.uint64]:
    """What ``iso_time`` remembers before the first message: a minute as text (two words) and as a number."""
    text = np.frombuffer(b"2000-01-01T00:00", "<u8")
    return np.array([*text, 946_684_800 * _SECOND], np.uint64)


@inline
def iso_time(at: Any, memory: Any) -> Any:
    """A time ``2026-11-22T10:00:05.123Z`` and its closing quote: microseconds since 1970, address behind.

    ``memory``, the address of what ``remembered`` made, holds the last date and minute: most messages bear
    the minute of the one before.
    """
    first, second = load8(at), load8(at + _EIGHT)
    if first != load8(memory) or second != load8(memory + _EIGHT):
        minute = _minute(at)
        if minute == 0:
            return 0, NOWHERE
        store8(memory, first)
        store8(memory + _EIGHT, second)
        store8(memory + _u(16), _u(minute))
    time = np.int64(load8(memory + _u(16)))
    at += _MINUTE_LENGTH
    seconds = _two(at + ONE, 60)
    if load1(at) != _u(ord(":")) or seconds == 60:
        return 0, NOWHERE
    time += seconds * _SECOND
    at += _u(3)
    if load1(at) == _POINT:
        at += ONE
        fraction, _, end = digit_run(at, _u(0), 0)
        count = end - at
        if count == _u(0) or count > _u(6):
            return 0, NOWHERE
        time += np.int64(fraction) * _POWERS[6 - np.int64(count)]
        at = end
    return time, _behind_offset(at)


_PLUS_ZERO: Final = _u(int.from_bytes(b"+00:00", "little"))


@inline
def _behind_offset(at: Any) -> Any:
    """The address behind ``Z"`` or ``+00:00"``."""
    if load1(at) == _u(ord("Z")):
        at += ONE
    elif load8(at) & _u(0xFFFFFFFFFFFF) == _PLUS_ZERO:
        at += _u(6)
    else:
        return NOWHERE
    return at + ONE if load1(at) == QUOTE else NOWHERE
