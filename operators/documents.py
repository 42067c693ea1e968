"""From the bytes of a message to its JSON documents: one object, an array of them, or lines (NDJSON).

Gives each document with its own exact bytes, or why those bytes are none. What one broken document
breaks for a parser of whole messages is mended by parsing its neighbours one by one.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

import msgspec

from voltmill.operators.sample import Refused, refusal

#: A JSON value, or why there is none, and a function that gives its bytes.
Document = tuple[Any, Callable[[], bytes]]

decode_json: Final[Callable[[bytes | str], Any]] = msgspec.json.Decoder().decode
_decode_elements: Final[Callable[[bytes], list[msgspec.Raw]]] = msgspec.json.Decoder(list[msgspec.Raw]).decode
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def documents(payload: bytes) -> Iterator[Document]:
    """Each document of a payload, in order; ``Refused`` in place of a value where one is broken.

    An array of objects is as many documents; so are lines, if any of them is an object or an array.

    Raises:
        Refused: There is no document at all: the payload as a whole is broken, empty, or holds no object.

    Example:
        >>> [(value, text()) for value, text in documents(b'[{"a": 1}, {"a": 2}]')]
        [({'a': 1}, b'{"a": 1}'), ({'a': 2}, b'{"a": 2}')]
    """
    try:
        value = decode_json(payload)
    except Exception as error:
        yield from _salvage(payload, error)
        return
    if type(value) is not list:
        yield value, lambda: payload
        return
    _require_objects(value)
    yield from zip(value, _Slices(payload, len(value)), strict=True)


class _Slices:
    """The exact bytes of each element of an array, cut out only if one is asked for."""

    def __init__(self, payload: bytes, size: int) -> None:
        self._payload, self._size = payload, size
        self._slices: list[msgspec.Raw] | None = None

    def __iter__(self) -> Iterator[Callable[[], bytes]]:
        return (lambda i=i: self._slice(i) for i in range(self._size))  # type: ignore[misc]

    def _slice(self, place: int) -> bytes:
        if self._slices is None:
            self._slices = _decode_elements(self._payload)
        return bytes(self._slices[place])


def _require_objects(values: list[Any]) -> None:
    # A thousand numbers in an array are one wrong message, not a thousand.
    if not values:
        raise Refused("empty", "an array without elements")
    if not any(type(value) is dict for value in values):
        raise Refused("wrong_type", "an array without an object in it")


def _salvage(payload: bytes, error: Exception) -> Iterator[Document]:
    """The documents of a payload that is no single JSON value."""
    if payload.startswith(_BYTE_ORDER_MARK):
        yield from documents(payload[len(_BYTE_ORDER_MARK) :])
        return
    texts = [line for line in payload.split(b"\n") if not line.isspace() and line]
    values = [_value(line) for line in texts] if len(texts) > 1 else []
    if not any(type(value) in (dict, list) for value in values):
        texts = _elements(payload)
        values = [_value(text) for text in texts]
    if not any(type(value) in (dict, list) for value in values):
        value = _value(payload)
        if isinstance(value, Refused):
            raise value
        texts, values = [payload], [value]
    for value, text in zip(values, texts, strict=True):
        if type(value) is list:
            yield from _line_of_many(text)
        else:
            yield value, lambda text=text: text  # type: ignore[misc]


def _line_of_many(text: bytes) -> list[Document]:
    try:
        return list(documents(text))
    except Refused as refused:
        return [(refused, lambda: text)]


def _elements(payload: bytes) -> list[bytes]:
    """The elements of an array whose structure is sound, whatever is in them."""
    try:
        return [bytes(text) for text in _decode_elements(payload)]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return []


def _value(text: bytes) -> Any:
    """The JSON value of a text, or the ``Refused`` that says why there is none."""
    try:
        return decode_json(text)
    except Exception as error:
        refused = refusal(error, text)
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return refusal(error, text)
    if refused.reason == "out_of_range":
        return _with_infinities(text, refused)
    return refused


def _with_infinities(text: bytes, refused: Refused) -> Any:
    """The value with numbers beyond float64 as infinities, which cost their own sample only."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return refused


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
