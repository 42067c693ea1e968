"""From one JSON document to the objects in it that are to be samples: envelopes and rows.

An envelope (CloudEvents, a gateway's own) holds an object or an array of them; rows are an array of
samples that inherit the keys around them. Each object is told with the way to make a document of it
alone, so that a refused one can be decoded again by itself.
"""

import base64
import binascii
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from voltmill.operators.documents import decode_json
from voltmill.operators.paths import MISSING, Steps, follow, parse_path
from voltmill.operators.sample import Refused, refusal

#: Most keys that the rows of one document inherit, all together: a guard against hostile messages.
_INHERITED: Final = 4_000_000


class Element(NamedTuple):
    """One object of a document."""

    obj: Any
    """The object, inherited keys included, or ``Refused``."""
    bare: Any = None
    """The object as it stands in the document."""
    alone: Callable[[], Any] | None = None
    """Makes the document with no other object in it; ``None`` where it has no other."""

    def encode(self, budget: int) -> bytes:
        """The document with this object alone, or the bare object when the budget for repeats is spent."""
        return msgspec.json.encode(self.alone() if self.alone and budget > 0 else self.bare)


class Unwrapper:
    """The way from a document to its samples.

    Args:
        envelope: Path of the object or array of objects that holds them; empty: the document.
        rows: Path of an array in each such object; empty: the object itself.
        place: Where the two stand, for messages.

    Raises:
        ValueError: A path cannot be understood; one line.

    Example:
        >>> [e.obj["v"] for e in Unwrapper("", "rows", "mapping").elements({"id": 7, "rows": [{"v": 1}, {"v": 2}]})]
        [1, 2]
    """

    def __init__(self, envelope: str, rows: str, place: str) -> None:
        self._envelope = _container(envelope, "envelope", place)
        self._rows = _container(rows, "rows", place)

    def elements(self, root: Any) -> Iterator[Element]:
        """Each object of a document that is to be a sample, keys around it included."""
        if isinstance(root, Refused):
            yield Element(root)
        elif type(root) is not dict:
            yield Element(Refused("wrong_type", "a sample is an object"))
        elif not self._envelope and not self._rows:
            yield Element(root)
        else:
            try:
                yield from self._unwrapped(root)
            except Refused as refused:
                yield Element(refused)

    def _unwrapped(self, root: dict[str, Any]) -> Iterator[Element]:
        body = _inside(root, self._envelope) if self._envelope else root
        many = type(body) is list
        for one in _filled(body, "envelope") if many else [body]:
            alone = partial(_with, root, self._envelope, one) if many else None
            if type(one) is not dict:
                yield Element(Refused("wrong_type", "envelope: a sample is an object"), one, alone)
            elif not self._rows:
                yield Element(one, one, alone)
            else:
                try:
                    yield from self._row_elements(root, one)
                except Refused as refused:
                    yield Element(refused, one, alone)

    def _row_elements(self, root: dict[str, Any], body: dict[str, Any]) -> Iterator[Element]:
        rows = _filled(follow(body, self._rows), "rows")
        if len(rows) * len(body) > _INHERITED:
            raise Refused("too_large", f"rows: {len(rows)} of them would inherit {len(body)} keys")
        for row in rows:
            alone = partial(_with_row, root, self._envelope, body, self._rows, row)
            if type(row) is dict:
                yield Element({**body, **row}, row, alone)
            else:
                yield Element(Refused("wrong_type", "rows: a sample is an object"), row, alone)


def _container(path: str, key: str, place: str) -> Steps:
    try:
        steps = parse_path(path) if path else ()
    except ValueError as error:
        raise ValueError(f"{place}: {key}: {error}") from None
    if not all(isinstance(step, str) for step in steps):
        raise ValueError(f'{place}: {key}: "{path}" is to be keys alone, such as body.samples')
    return steps


def _inside(root: dict[str, Any], steps: Steps) -> Any:
    """What an envelope holds: JSON, JSON as text, or JSON in base64 under the name with ``_base64``."""
    body = follow(root, steps)
    if body is MISSING:
        body = follow(root, (*steps[:-1], f"{steps[-1]}_base64"))
        if type(body) is not str:
            raise Refused("missing_key", f'envelope: there is no "{steps[-1]}"')
        try:
            body = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise Refused("malformed_json", f"envelope: {steps[-1]}_base64 is no base64") from None
    if not isinstance(body, str | bytes):
        return body
    try:
        return decode_json(body)
    except Exception as error:
        raise refusal(error, body if isinstance(body, bytes) else body.encode()) from None


def _filled(values: Any, key: str) -> list[Any]:
    if values is MISSING:
        raise Refused("missing_key", f"{key}: there is no such key")
    if type(values) is not list:
        raise Refused("wrong_type", f"{key}: expected an array of objects")
    if not values:
        raise Refused("empty", f"{key}: an array without elements")
    if not any(type(value) is dict for value in values):
        raise Refused("wrong_type", f"{key}: an array without an object in it")
    return values


def _with(value: Any, steps: Steps, end: Any) -> Any:
    """A copy of a value in which the end of a path is another; keys alone, as ``_container`` grants."""
    if not steps:
        return end
    key = steps[0]
    return {**value, key: _with(value.get(key, {}), steps[1:], end)}


def _with_row(root: Any, envelope: Steps, body: Any, rows: Steps, row: Any) -> Any:
    return _with(root, envelope, _with(body, rows, [row]))
