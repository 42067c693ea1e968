"""From the bytes of a message to its JSON documents: one object, an array of them, or lines (NDJSON).

Gives each document with its own exact bytes, or why those bytes are none. A message is parsed as a whole
first, which is fastest; where that fails it is cut into texts, so that a broken one costs no neighbour.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NoReturn

import msgspec

from voltmill.operators.framing import split
from voltmill.operators.refusal import Refused, refusal

#: A JSON value, or why there is none, and a function that gives its bytes.
Document = tuple[Any, Callable[[], bytes]]

decode_json: Final[Callable[[bytes | str], Any]] = msgspec.json.Decoder().decode
_decode_elements: Final[Callable[[bytes], list[msgspec.Raw]]] = msgspec.json.Decoder(list[msgspec.Raw]).decode


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
    except Exception:
        texts = split(payload)
        values = [_value(text) for text in texts]
        if len(texts) == 1 and isinstance(values[0], Refused):
            raise values[0] from None  # the payload as a whole, with all of its bytes
        yield from zip(values, (partial(bytes, text) for text in texts), strict=True)
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
