"""Eight bytes at a time: unaligned loads and stores, and finding bytes in a machine word.

Bytes are read by address, not by array index: a scanner looks at every byte of every message, and the
bounds checks and the wrap-around of negative indices would cost more than the work. Who calls sees
to it that seven bytes behind the address are readable. Words are little-endian: byte 0 is the lowest.

Source of the bit tricks: H. S. Warren, Hacker's Delight, 2nd ed., section 6-1; D. Lemire, "Number
parsing at a gigabyte per second", Software: Practice and Experience 51 (2021).
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from voltmill.kernels.compile import inline

_Emitted = tuple[Any, Callable[..., Any]]


def _load(bits: int) -> Any:
    """An intrinsic: the unsigned integer of so many bits at an address, as a uint64."""

    def typed(_context: Any, address: Any) -> _Emitted:
        def emit(_ctx: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            value = builder.load(pointer, align=1)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.uint64(types.uint64), emit

    return intrinsic(typed)


def _store(from_: Any, to: Any) -> Any:
    """An intrinsic: put a value at an address; integers are cut to the width of ``to``."""

    def typed(_context: Any, address: Any, value: Any) -> _Emitted:
        def emit(ctx: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            value = arguments[1]
            if value.type != to:
                value = builder.trunc(value, to)
            builder.store(value, builder.inttoptr(arguments[0], to.as_pointer()), align=1)
            return ctx.get_dummy_value()

        return types.void(types.uint64, from_), emit

    return intrinsic(typed)


def _trailing_zeros(_context: Any, word: Any) -> _Emitted:
    def emit(_ctx: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), emit


_Loader = Callable[[Any], Any]
_Storer = Callable[[Any, Any], None]
#: The word at an address.
load8: Final[_Loader] = _load(64)
#: The half word at an address, as a uint64.
load4: Final[_Loader] = _load(32)
#: The byte at an address, as a uint64.
load1: Final[_Loader] = _load(8)
#: Put a uint64 at an address.
store8: Final[_Storer] = _store(types.uint64, ir.IntType(64))
#: Put the lower half of a uint64 at an address.
store4: Final[_Storer] = _store(types.uint64, ir.IntType(32))
#: Put a float32 at an address.
store_single: Final[_Storer] = _store(types.float32, ir.FloatType())
#: Put a float64 at an address.
store_double: Final[_Storer] = _store(types.float64, ir.DoubleType())
#: Zero bits below the lowest one bit; 64 for the word 0.
trailing_zeros: Final[_Loader] = intrinsic(_trailing_zeros)

_ONES: Final = np.uint64(0x0101010101010101)
HIGH: Final = np.uint64(0x8080808080808080)
_LOW7: Final = np.uint64(0x7F7F7F7F7F7F7F7F)
_ZEROS: Final = np.uint64(0x3030303030303030)  # "00000000"
_TO_HIGH: Final = np.uint64(0x7676767676767676)  # lifts 10 and above over the high bit
_SPACES: Final = np.uint64(0x2020202020202020)


@inline
def equal_bytes(word: Any, pattern: Any) -> Any:
    """High bit of each byte that equals that of ``pattern``; only the lowest one set is to be trusted."""
    x = word ^ pattern
    return (x - _ONES) & ~x & HIGH


@inline
def control_bytes(word: Any) -> Any:
    """High bit of each byte below 0x20; only the lowest one set is to be trusted."""
    return (word - _SPACES) & ~word & HIGH


@inline
def digits_of(word: Any) -> Any:
    """The word with ``0``..``9`` turned into 0..9."""
    return word ^ _ZEROS


@inline
def not_digits(digits: Any) -> Any:
    """High bit of each byte of ``digits_of`` that was no digit; exact for every byte."""
    return (((digits & _LOW7) + _TO_HIGH) | digits) & HIGH


@inline
def eight_digits(digits: Any) -> Any:
    """The number that eight bytes 0..9 spell, the first one the most significant."""
    pairs = digits * np.uint64(10) + (digits >> np.uint64(8))
    low = np.uint64(0x000000FF000000FF)
    upper = (pairs & low) * np.uint64(0x000F424000000064)  # 100 and 1,000,000
    lower = ((pairs >> np.uint64(16)) & low) * np.uint64(0x0000271000000001)  # 1 and 10,000
    return (upper + lower) >> np.uint64(32)
