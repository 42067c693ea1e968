"""From the bytes of a message to the bytes of its JSON objects: one, an array of them, or lines (NDJSON).

Gives slices, not values: each object is parsed once, by whom it concerns. An element that is not JSON,
such as one with a NaN in it, is cut out as well as its neighbours and costs none of them.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec

from voltmill.operators.refusal import Refused, refusal

_SPACE: Final = b" \t\r\n"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# What gives an array its shape: whole texts, so that what they say is not taken for it, and brackets.
# Possessive, so that a text without an end costs one pass.
_SHAPE: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{},]', re.DOTALL)
_raw: Final[Callable[[bytes], msgspec.Raw]] = msgspec.json.Decoder(msgspec.Raw).decode
_raw_elements: Final[Callable[[bytes], list[msgspec.Raw]]] = msgspec.json.Decoder(list[msgspec.Raw]).decode


def split(payload: bytes) -> list[bytes]:
    """The texts of a payload's elements, in order; of a payload that is no array and no lines itself.

    Raises:
        Refused: ``empty``; ``wrong_type`` if an array holds no object, ``malformed_json`` if it does not end.

    Example:
        >>> split(b'[{"a": 1}, {"a": NaN}]')
        [b'{"a": 1}', b'{"a": NaN}']
        >>> split(b'{"a": 1}' + bytes([10]) + b'{"a": 2}')
        [b'{"a": 1}', b'{"a": 2}']
    """
    text = payload.removeprefix(_BYTE_ORDER_MARK).strip(_SPACE)
    if not text:
        raise Refused("empty", "the payload is empty")
    if text.startswith(b"["):
        try:
            return _elements(text)
        except Refused:
            if lines := _lines(text):
                return lines
            raise
    if b"\n" not in text or _is_json(text):
        return [text]
    return _lines(text) or [text]


def _lines(text: bytes) -> list[bytes]:
    """The texts of NDJSON, in which a line may hold an array of them; none if it is something else.

    A broken object over many lines is no NDJSON; one broken line among whole objects is.
    """
    lines = [line for line in (line.strip(_SPACE) for line in text.split(b"\n")) if line]
    whole = (line[:1] + line[-1:] == b"{}" or (line.startswith(b"[") and _is_json(line)) for line in lines)
    return [element for line in lines for element in _elements_of_line(line)] if len(lines) > 1 and any(whole) else []


def _elements_of_line(line: bytes) -> list[bytes]:
    if not line.startswith(b"["):
        return [line]
    try:
        return _elements(line)
    except Refused:
        return [line]


def _is_json(text: bytes) -> bool:
    try:
        _raw(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _elements(text: bytes) -> list[bytes]:
    try:
        elements = [bytes(element) for element in _raw_elements(text)]
    except (msgspec.DecodeError, RecursionError) as error:
        pieces = _by_shape(text)
        if pieces is None:
            raise refusal(error, text) from None
        elements = pieces
    if not elements:
        raise Refused("empty", "an array without elements")
    if not any(element.startswith(b"{") for element in elements):
        # A thousand numbers in an array are one wrong message, not a thousand.
        raise Refused("wrong_type", "an array without an object in it")
    return elements


def _by_shape(text: bytes) -> list[bytes] | None:
    """The elements of an array whose brackets close, whatever is in them."""
    elements, depth, begin = [], 0, 1
    for token in _SHAPE.finditer(text):
        character = token.group()
        if character in (b"[", b"{"):
            depth += 1
        elif character in (b"]", b"}"):
            depth -= 1
        if depth == 0 or (depth == 1 and character == b","):
            elements.append(text[begin : token.start()].strip(_SPACE))
            begin = token.end()
        if depth == 0:
            return elements if character == b"]" and begin == len(text) else None
    return None
