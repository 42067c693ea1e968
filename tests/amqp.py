"""AMQP 1.0 as far as an Event Hub speaks it: types, frames, the sections of a message.

Written after the OASIS specification (part 1: types, part 2: frames and performatives, part 3: messages).
What is sent has its full number of fields and wide encodings: Microsoft's Python client looks for fields by
their place, whether they were sent or not.
"""

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)
#: How many fields each performative has (part 2, section 2.7).
FIELDS: Final = {OPEN: 10, BEGIN: 8, ATTACH: 14, FLOW: 11, TRANSFER: 11, DISPOSITION: 6, DETACH: 3, END: 1, CLOSE: 1}
SASL_MECHANISMS, SASL_OUTCOME = 0x40, 0x44
ACCEPTED, ERROR, SOURCE, TARGET = 0x24, 0x1D, 0x28, 0x29
DELIVERY_ANNOTATIONS, ANNOTATIONS, PROPERTIES, APPLICATION, DATA, VALUE = 0x71, 0x72, 0x73, 0x74, 0x75, 0x77
PLAIN, SASL = 0, 1

#: What an event of 60,000 bytes and more is cut into: the client takes frames of 64 KB.
_LARGEST_PART: Final = 60_000
#: A transfer of a whole message up to its payload: header of the frame, list of 11 fields.
_WHOLE: Final = struct.Struct(">IBBH4sIIBIBIBIIBI7s")


class Symbol(str):
    """A name that the protocol knows."""


@dataclass(frozen=True)
class Typed:
    """A number of one of the fixed-width types: its code, as in part 1, section 1.6."""

    code: int
    value: int


@dataclass(frozen=True)
class Described:
    """A value with the code that says what it means."""

    code: int
    value: Any


def ubyte(value: int) -> Typed:
    return Typed(0x50, value)


def ushort(value: int) -> Typed:
    return Typed(0x60, value)


def uint(value: int) -> Typed:
    return Typed(0x70, value)


def sint(value: int) -> Typed:
    return Typed(0x71, value)


def ulong(value: int) -> Typed:
    return Typed(0x80, value)


def timestamp(milliseconds: int) -> Typed:
    return Typed(0x83, milliseconds)


_PACKED: Final = {0x50: ">BB", 0x60: ">BH", 0x70: ">BI", 0x71: ">Bi", 0x80: ">BQ", 0x83: ">Bq"}


def encode(value: Any) -> bytes:
    """One value."""
    if value is None:
        return b"\x40"
    if isinstance(value, bool):
        return b"\x41" if value else b"\x42"
    if isinstance(value, Typed):
        return struct.pack(_PACKED[value.code], value.code, value.value)
    if isinstance(value, Described):
        return described(value.code, encode(value.value))
    if isinstance(value, int):
        return struct.pack(">Bq", 0x81, value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0x82, value)
    if isinstance(value, str):
        text = value.encode()
        return struct.pack(">BI", 0xB3 if isinstance(value, Symbol) else 0xB1, len(text)) + text
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xB0, len(value)) + value
    if isinstance(value, uuid.UUID):
        return b"\x98" + value.bytes
    if isinstance(value, dict):
        return compound(0xD1, [encode(item) for pair in value.items() for item in pair])
    if isinstance(value, tuple):  # an array of strings
        items = [struct.pack(">I", len(text)) + text for text in (item.encode() for item in value)]
        body = b"".join(items)
        return struct.pack(">BIIB", 0xF0, len(body) + 5, len(items), 0xB1) + body
    if isinstance(value, list):
        return compound(0xD0, [encode(item) for item in value])
    raise TypeError(f"AMQP has no {type(value).__name__} here")


def described(code: int, value: bytes) -> bytes:
    """An encoded value with the code that says what it means."""
    return b"\x00\x53%c%b" % (code, value)


def compound(code: int, items: list[bytes]) -> bytes:
    """A list (0xD0) or map (0xD1) of encoded items."""
    body = b"".join(items)
    return struct.pack(">BII", code, len(body) + 4, len(items)) + body


_EMPTY: Final[dict[int, Any]] = {0x40: None, 0x41: True, 0x42: False, 0x43: 0, 0x44: 0}
_NUMBERS: Final = {
    **{0x50: ">B", 0x51: ">b", 0x52: ">B", 0x53: ">B", 0x54: ">b", 0x55: ">b", 0x56: ">?", 0x60: ">H", 0x61: ">h"},
    **{0x70: ">I", 0x71: ">i", 0x72: ">f", 0x80: ">Q", 0x81: ">q", 0x82: ">d", 0x83: ">q"},
}
_VARIABLE: Final = {0xA0: ">B", 0xA1: ">B", 0xA3: ">B", 0xB0: ">I", 0xB1: ">I", 0xB3: ">I"}


def decode(data: bytes, at: int = 0, code: int | None = None) -> tuple[Any, int]:
    """The value at a place, and where the next begins."""
    if code is None:
        code, at = data[at], at + 1
    if code in _EMPTY:
        return _EMPTY[code], at
    if code in _NUMBERS:
        (number,) = struct.unpack_from(_NUMBERS[code], data, at)
        return number, at + struct.calcsize(_NUMBERS[code])
    if code in _VARIABLE:
        (size,) = struct.unpack_from(_VARIABLE[code], data, at)
        start = at + struct.calcsize(_VARIABLE[code])
        raw = bytes(data[start : start + size])
        return raw if code in (0xA0, 0xB0) else raw.decode(), start + size
    if code == 0:
        meaning, at = decode(data, at)
        value, at = decode(data, at)
        return Described(meaning if isinstance(meaning, int) else 0, value), at
    if code == 0x98:
        return uuid.UUID(bytes=bytes(data[at : at + 16])), at + 16
    return _decode_compound(data, at, code)


def _decode_compound(data: bytes, at: int, code: int) -> tuple[Any, int]:
    if code == 0x45:
        return [], at
    small = code in (0xC0, 0xC1, 0xE0)
    size, count = struct.unpack_from(">BB" if small else ">II", data, at)
    end = at + size + (1 if small else 4)
    at += 2 if small else 8
    of: int | None = None
    if code in (0xE0, 0xF0):
        of, at = data[at], at + 1
    items = []
    for _ in range(count):
        item, at = decode(data, at, of)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if code in (0xC1, 0xD1) else items), end


def frame(channel: int, code: int, fields: list[Any], payload: bytes = b"", kind: int = PLAIN) -> bytes:
    """One frame; fields that are left out at the end are sent as null."""
    whole = fields + [None] * (FIELDS.get(code, len(fields)) - len(fields))
    body = encode(Described(code, whole)) + payload
    return struct.pack(">IBBH", 8 + len(body), 2, kind, channel) + body


def transfers(channel: int, handle: int, delivery: int, payload: bytes) -> bytes:
    """The frames of one message."""
    if len(payload) <= _LARGEST_PART:  # one call instead of many: a hub sends little else
        head = (_WHOLE.size + len(payload), 2, PLAIN, channel, b"\x00\x53\x14\xd0", _WHOLE.size - 16, 11)
        return _WHOLE.pack(*head, 0x70, handle, 0x70, delivery, 0xB0, 4, delivery, 0x70, 0, b"BB@@@@@") + payload
    first = [uint(handle), uint(delivery), struct.pack(">I", delivery), uint(0), False]
    parts = [payload[at : at + _LARGEST_PART] for at in range(0, len(payload), _LARGEST_PART)]
    return b"".join(
        frame(channel, TRANSFER, [*(first if n == 0 else [uint(handle), None, None, None, False]), more], part)
        for n, part in enumerate(parts)
        for more in [n < len(parts) - 1]
    )


@dataclass
class Message:
    """The sections of a message that are looked at here."""

    properties: list[Any]
    application: dict[str, Any]
    value: Any = None


def message(payload: bytes) -> Message:
    """The sections of a message as it was sent."""
    found, at = Message([None] * 13, {}), 0
    keep: dict[int, Callable[[Any], None]] = {
        PROPERTIES: lambda value: found.properties.__setitem__(slice(0, len(value)), value),
        APPLICATION: found.application.update,
        VALUE: lambda value: setattr(found, "value", value),
    }
    while at < len(payload):
        section, at = decode(payload, at)
        keep.get(section.code, lambda value: None)(section.value)
    return found
