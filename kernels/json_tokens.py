"""The tokens of JSON that the scanner takes: numbers, plain texts, white space.

Takes the address of a token's first byte; gives its value and the address behind it, or the address
0 for anything that is not provably what ``msgspec`` would make of it bit for bit.
A refusal costs nothing but time: the row then goes the slow way, which defines the meaning.

Nothing here knows where the payload ends. The caller sees to it that it ends in ``}``, at which every
number stops, and that 64 bytes behind it are readable.
"""

from typing import Any, Final

import numpy as np

from voltmill.kernels import words
from voltmill.kernels.compile import inline
from voltmill.kernels.words import (
    digits_of,
    eight_digits,
    equal_bytes,
    load1,
    load8,
    not_digits,
    trailing_zeros,
)

_u = np.uint64
ONE: Final = _u(1)
EIGHT: Final = _u(8)
NOWHERE: Final = _u(0)
QUOTE: Final = _u(ord('"'))
_BYTE: Final = _u(0xFF)
_MINUS: Final = _u(ord("-"))
_PLUS: Final = _u(ord("+"))
_POINT: Final = _u(ord("."))
_POINT_DIGIT: Final = _u(ord(".") ^ 0x30)
_E_DIGITS: Final = (_u(ord("e") ^ 0x30), _u(ord("E") ^ 0x30))
_SMALL_E: Final = _u(ord("e"))
_CASE: Final = _u(0x20)
_SPACE: Final = _u(ord(" "))
_ZERO: Final = _u(ord("0"))
_NINE: Final = _u(9)
_TEN: Final = _u(10)


def _each(character: str) -> np.uint64:
    return np.uint64(int.from_bytes(character.encode() * 8, "little"))


_QUOTES: Final = _each('"')
_APOSTROPHES: Final = _each("'")
_BACKSLASHES: Final = _each("\\")
_DELETES: Final = _each("\x7f")

#: Powers of ten that are exact in binary64: with them and an integer up to 2^53 one multiplication or
#: division rounds correctly. W. D. Clinger, "How to read floating point numbers accurately", PLDI 1990.
_POWERS: Final = np.array([10.0**k for k in range(23)])
_MAX_POWER: Final = 22
_EXACT_INTEGER: Final = _u(1 << 53)
#: Digits that always fit a uint64.
_MAX_DIGITS: Final = 19
#: Relative half-width, binary64, around a quotient of rounded operands, in which the correctly rounded
#: value lies: three roundings of at most 2^-53 each, and room to spare.
_DOUBT: Final = 2.0**-50
#: Keeps a doubtful value clear of the largest binary32.
_DOUBT_MAX: Final = 1e38

#: How well ``number`` knows its value.
NOT_TAKEN: Final = 0
EXACT: Final = 1  # the correctly rounded binary64
SINGLE: Final = 2  # its binary32 is the same as that of the correctly rounded binary64


@inline
def number(at: Any) -> Any:
    """A JSON number: value as float64, address behind it, ``EXACT``, ``SINGLE`` or ``NOT_TAKEN``.

    Up to seven characters behind the sign are read in one word; longer ones digit by digit.
    """
    start = at
    negative = load1(at) == _MINUS
    if negative:
        at += ONE
    digits = digits_of(load8(at))
    stops = not_digits(digits)
    if stops == _u(0):
        return _long_number(start)
    whole = trailing_zeros(stops) >> _u(3)
    end = whole
    mantissa = digits
    fraction = _u(0)
    if (digits >> (whole << _u(3))) & _BYTE == _POINT_DIGIT:
        stops &= stops - ONE
        end = trailing_zeros(stops) >> _u(3)
        keep = (ONE << (whole << _u(3))) - ONE
        mantissa = (digits & keep) | ((digits >> EIGHT) & ~keep)
        fraction = end - whole - ONE
    if stops == _u(0):
        return _long_number(start)
    stop = (digits >> (end << _u(3))) & _BYTE
    if stop == _E_DIGITS[0] or stop == _E_DIGITS[1]:
        return _long_number(start)
    if whole == _u(0) or (whole > ONE and digits & _BYTE == _u(0)) or (end > whole and fraction == _u(0)):
        return 0.0, NOWHERE, NOT_TAKEN
    count = whole + fraction
    value = float(eight_digits(mantissa << (_u(64) - (count << _u(3))))) / _POWERS[fraction]
    if negative:
        if value == 0.0 and end == whole:  # -0 is an integer, and that is +0.0
            return 0.0, NOWHERE, NOT_TAKEN
        value = -value
    return value, at + end, EXACT


@inline
def digit_run(at: Any, mantissa: Any, significant: Any) -> Any:
    """A run of digits added to a mantissa: mantissa, significant digits so far, address behind them."""
    digit = load1(at) - _ZERO
    while digit <= _NINE and significant <= _MAX_DIGITS:
        mantissa = mantissa * _TEN + digit
        if mantissa != _u(0) or significant != 0:  # 2^64 wraps around to 0
            significant += 1
        at += ONE
        digit = load1(at) - _ZERO
    return mantissa, significant, at


@inline
def _exponent(at: Any) -> Any:
    """The exponent behind an ``e``: value, address behind it; at most three digits."""
    sign = load1(at)
    if sign == _PLUS or sign == _MINUS:
        at += ONE
    value, _, end = digit_run(at, _u(0), 0)
    if end == at or end > at + _u(3):
        return 0, NOWHERE
    return (-np.int64(value) if sign == _MINUS else np.int64(value)), end


@inline
def _long_number(at: Any) -> Any:
    """``number``, digit by digit, with exponents."""
    negative = load1(at) == _MINUS
    if negative:
        at += ONE
    mantissa, significant, end = digit_run(at, _u(0), 0)
    if end == at or (load1(at) == _ZERO and end != at + ONE):
        return 0.0, NOWHERE, NOT_TAKEN
    power = np.int64(0)
    plain_integer = True
    if load1(end) == _POINT:
        point = end + ONE
        mantissa, significant, end = digit_run(point, mantissa, significant)
        power = np.int64(point) - np.int64(end)
        plain_integer = False
        if power == 0:
            return 0.0, NOWHERE, NOT_TAKEN
    if (load1(end) | _CASE) == _SMALL_E:
        exponent, end = _exponent(end + ONE)
        power += exponent
        plain_integer = True  # -0e1: leave the sign of zero to the slow way
    if end == NOWHERE or significant > _MAX_DIGITS or power > _MAX_POWER or power < -_MAX_POWER:
        return 0.0, NOWHERE, NOT_TAKEN
    value = float(mantissa) * _POWERS[power] if power > 0 else float(mantissa) / _POWERS[-power]
    kind = EXACT
    if mantissa > _EXACT_INTEGER:
        kind = SINGLE
        if value > _DOUBT_MAX or np.float32(value * (1.0 - _DOUBT)) != np.float32(value * (1.0 + _DOUBT)):
            return 0.0, NOWHERE, NOT_TAKEN
    if negative and plain_integer and mantissa == _u(0):
        return 0.0, NOWHERE, NOT_TAKEN
    return (-value if negative else value), end, kind


@inline
def integer(at: Any) -> Any:
    """A JSON integer without sign, of at most 19 digits: value as uint64, address behind it."""
    value, count, end = digit_run(at, _u(0), 0)
    if end == at or count > _MAX_DIGITS or (load1(at) == _ZERO and end != at + ONE):
        return _u(0), NOWHERE
    return value, end


@inline
def text_end(at: Any, end: Any) -> Any:
    r"""The closing quote of a text: printable ASCII without ``"``, ``'`` and ``\``; 0 if it is not so."""
    while at < end:
        word = load8(at)
        quotes = equal_bytes(word, _QUOTES)
        refused = (word & words.HIGH) | words.control_bytes(word) | equal_bytes(word, _BACKSLASHES)
        refused |= equal_bytes(word, _APOSTROPHES) | equal_bytes(word, _DELETES)
        found = quotes | refused
        if found != _u(0):
            first = found & (~found + ONE)
            if refused & first != _u(0):
                return NOWHERE
            return at + (trailing_zeros(first) >> _u(3))
        at += EIGHT
    return NOWHERE


@inline
def is_space(byte: Any) -> Any:
    """Whether a byte is one of JSON's four kinds of white space."""
    return byte <= _SPACE and (byte == _SPACE or byte == _u(10) or byte == _u(13) or byte == _u(9))


@inline
def past_space(at: Any) -> Any:
    """The first byte that is no white space."""
    while is_space(load1(at)):
        at += ONE
    return at
