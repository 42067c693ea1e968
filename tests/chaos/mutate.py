"""Mutations of messages: of their bytes, and of what they say."""

import random
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

_NUMBER: Final = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
#: Numbers, and what passes for one somewhere: limits of types, other bases, signs without digits.
_ODD_NUMBERS: Final = tuple(
    b"0 -0 -0.0 1e999 -1e999 1e39 3.5e38 1e-400 NaN -NaN Infinity -Infinity 0x10 01 1. .5 - + 1e 1e+ null true 66.5 "
    b"-273.16 65535 -32768 4294967296 9007199254740993 18446744073709551615 18446744073709551616 -1 "
    b"9223372036854775807 -9223372036854775809 0.1e1000000000 1_000 1,5".split()
) + (b"9" * 400, b"-" + b"1" * 5000, b"0." + b"3" * 2000)
_ODD_TEXTS: Final = (
    b"\x00", b"\x1f", b"\x7f", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff\xfe", b"\xef\xbb\xbf",
    b"\\u0000", b"\\ud800", b"\\udc00\\ud800", b"\\uD83D\\uDE00", b"\\x41", b"\\", b'"', b"\r", b"\t",
    "\u00e9".encode(), "e\u0301".encode(), "\u202e".encode(), "\u6f22".encode(), "\U0001f50b".encode(),
    b"%s%n", b"../../", b"'; --",
)  # fmt: skip
_ODD_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**300, 1e308, -1e308, 1e39, 5e-324, -0.0, 0.5,
    "", "0", "1.5", "NaN", " ", "x" * 300, "\u0000", "\u00fc\U0001f50b", "2026-02-30T25:61:61Z", "1970-01-01T00:00:00Z",
    "2026-11-22 11:00:05", "9999-12-31T23:59:60+99:99", 946_684_799, 1_795_341_605_123, 1e300, [], {}, [[]], [None],
    [{}], [1, "a", None, {}], {"": {}}, {"a": [1]}, [0.1] * 2000, ["NaN"], [True, 3.6], [1e39, 3.6], [[3.6]],
)  # fmt: skip


class Mutator:
    """Mutates messages; the same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._of_bytes: list[Callable[[bytes, bytes], bytes]] = [
            self._flip, self._truncate, self._splice, self._odd_number, self._odd_number, self._odd_text,
            self._repeat, self._delete, self._concatenate, self._noise, self._nest, self._double_key,
        ]  # fmt: skip
        self._of_values: list[Callable[[Any, Any], None]] = [
            self._swap, self._swap, self._remove, self._rename, self._negate, self._stretch, self._add,
        ]  # fmt: skip

    def bytes_of(self, message: bytes, other: bytes) -> bytes:
        """One to three mutations that know nothing of JSON; ``other`` is what is spliced in."""
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            message = self._random.choice(self._of_bytes)(message, other)
        return message

    def value_of(self, message: bytes) -> bytes:
        """One to three mutations of what the message says; it stays one JSON object without a line break."""
        value = msgspec.json.decode(message)
        for _ in range(self._random.choice((1, 1, 2, 3))):
            place, key = self._place(value)
            if key is not None:
                self._random.choice(self._of_values)(place, key)
        return msgspec.json.encode(value)

    def _place(self, value: Any) -> tuple[Any, Any]:
        """A random place in a value: a container and a key or index in it."""
        place, key = value, None
        while isinstance(place, dict | list) and place:
            key = self._random.choice(list(place)) if isinstance(place, dict) else self._random.randrange(len(place))
            if not isinstance(place[key], dict | list) or not place[key] or self._random.random() < 0.4:
                return place, key
            place = place[key]
        return place, None

    def _swap(self, place: Any, key: Any) -> None:
        place[key] = msgspec.json.decode(_encoded(self._random.choice(_ODD_VALUES)))

    def _remove(self, place: Any, key: Any) -> None:
        del place[key]

    def _rename(self, place: Any, key: Any) -> None:
        if isinstance(place, dict):
            place[self._random.choice((key.upper(), key + " ", key[:-1], "", "$topic", key * 3))] = place.pop(key)
        else:
            place.reverse()

    def _negate(self, place: Any, key: Any) -> None:
        value = place[key]
        if isinstance(value, int | float) and not isinstance(value, bool):
            place[key] = self._random.choice(
                (-value, value * 1000, value / 1000, float(value), int(value), value + 0.5)
            )

    def _stretch(self, place: Any, key: Any) -> None:
        """A list of another length, a text of another length."""
        value = place[key]
        if isinstance(value, list | str):
            place[key] = value * self._random.choice((0, 2, 3, 50, 300))

    def _add(self, place: Any, key: Any) -> None:
        if isinstance(place, dict):
            place[f"{key}_{self._random.randrange(9)}"] = place[key]
        else:
            place.insert(key, place[key])

    def _flip(self, message: bytes, other: bytes) -> bytes:
        changed = bytearray(message)
        for _ in range(self._random.choice((1, 1, 2, 8))):
            if changed:
                changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _truncate(self, message: bytes, other: bytes) -> bytes:
        return message[: self._random.randint(0, len(message))]

    def _splice(self, message: bytes, other: bytes) -> bytes:
        return message[: self._random.randint(0, len(message))] + other[self._random.randint(0, len(other)) :]

    def _odd_number(self, message: bytes, other: bytes) -> bytes:
        found = list(_NUMBER.finditer(message))
        if not found:
            return message
        match = self._random.choice(found)
        return message[: match.start()] + self._random.choice(_ODD_NUMBERS) + message[match.end() :]

    def _odd_text(self, message: bytes, other: bytes) -> bytes:
        place = self._random.randint(0, len(message))
        return message[:place] + self._random.choice(_ODD_TEXTS) + message[place:]

    def _range(self, message: bytes) -> tuple[int, int]:
        begin = self._random.randint(0, len(message))
        return begin, min(len(message), begin + self._random.choice((1, 2, 5, 20, 100)))

    def _repeat(self, message: bytes, other: bytes) -> bytes:
        begin, end = self._range(message)
        return message[:end] + message[begin:end] * self._random.choice((1, 2, 30)) + message[end:]

    def _delete(self, message: bytes, other: bytes) -> bytes:
        begin, end = self._range(message)
        return message[:begin] + message[end:]

    def _concatenate(self, message: bytes, other: bytes) -> bytes:
        return message + self._random.choice((b"", b" ", b",", b"\x00")) + other

    def _noise(self, message: bytes, other: bytes) -> bytes:
        place = self._random.randint(0, len(message))
        return message[:place] + self._random.randbytes(self._random.randint(1, 16)) + message[place:]

    def _nest(self, message: bytes, other: bytes) -> bytes:
        depth = self._random.choice((1, 2, 100, 1100, 5000))
        place = self._random.randint(0, len(message))
        if self._random.random() < 0.5:
            return message[:place] + b"[" * depth + b"]" * depth + message[place:]
        return b'{"a":' * depth + message + b"}" * depth

    def _double_key(self, message: bytes, other: bytes) -> bytes:
        """The members of another message before one's own: of most keys there are two."""
        return message[:1] + other[1:-1] + b"," + message[1:]


def _encoded(value: Any) -> bytes:
    """A copy as bytes; integers beyond 64 bits as floats, for msgspec writes no others."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        value = float(value)
    return msgspec.json.encode(value)
