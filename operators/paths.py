"""Paths into JSON: their text, and the functions they become.

A getter takes ``(object, root, topic)`` (the object that holds a sample, the outermost one, the MQTT topic)
and gives the raw JSON value or ``MISSING``. The text of a path is looked at once, not per message.
"""

import re
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final

from voltmill.operators.mapping_spec import Column
from voltmill.operators.sample import Refused

Getter = Callable[[Any, Any, str | None], Any]
#: A key, an index, or ``None`` for every element.
Steps = tuple[str | int | None, ...]

MISSING: Final = object()
_STEP: Final = re.compile(r'\["(?P<quoted>[^"]+)"\]|\[(?P<index>-?\d{1,6}|\*)\]|(?P<dot>\.?)(?P<key>[^.\[\]"]+)')
_TOPIC: Final = re.compile(r"\$topic(\[(?P<level>-?\d{1,4})\])?")
# Messages of a device repeat their keys in the same order; a few hundred layouts are a fleet's firmware
# versions. The bounds keep hostile messages from filling the memory.
_LAYOUTS: Final = 256
_LAYOUT_KEYS: Final = 2048


def parse_path(text: str) -> Steps:
    """The steps of a path.

    Raises:
        ValueError: One line, without the place.

    Example:
        >>> parse_path('pack["bms.temp"].cells[*].v[0]')
        ('pack', 'bms.temp', 'cells', None, 'v', 0)
    """
    steps: list[str | int | None] = []
    place = 0
    while place < len(text):
        match = _STEP.match(text, place)
        if match is None or (match["key"] is not None and bool(match["dot"]) != bool(steps)):
            break
        index = match["index"]
        if index is not None:
            steps.append(None if index == "*" else int(index))
        else:
            steps.append(match["quoted"] or match["key"])
        place = match.end()
    if place < len(text) or not steps:
        raise ValueError(f'"{text}" is no path, such as a.b, a[0].b, cells[*].voltage or ["a.b"]')
    return tuple(steps)


def follow(value: Any, steps: Steps) -> Any:
    """The value at the end of the steps, ``MISSING`` if there is none; ``[*]`` gives a flat list.

    Example:
        >>> follow({"cells": [{"v": 3.6}, {}]}, parse_path("cells[*].v"))
        [3.6, None]
    """
    for place, step in enumerate(steps):
        if step is None:
            return _each(value, steps[place + 1 :])
        if isinstance(step, str):
            value = value.get(step, MISSING) if type(value) is dict else MISSING
        else:
            value = value[step] if type(value) is list and -len(value) <= step < len(value) else MISSING
        if value is MISSING:
            return MISSING
    return value


def _each(value: Any, rest: Steps) -> Any:
    if type(value) is not list:
        return MISSING
    if len(rest) == 1 and isinstance(rest[0], str):
        key = rest[0]  # the usual case, cells[*].voltage
        return [element.get(key) if type(element) is dict else None for element in value]
    found = [follow(element, rest) for element in value]
    if None in rest:
        return [v for part in found if type(part) is list for v in part]
    return [None if v is MISSING else v for v in found]


def getter(path: str) -> Getter:
    """The function that follows a path.

    ``$topic`` is the MQTT topic, ``$topic[1]`` its second level, ``$.a`` starts at the outermost object.
    """
    if path.startswith("$topic"):
        return _topic_getter(path)
    if path.startswith("$."):
        outer = parse_path(path[2:])
        return lambda _, root, topic: follow(root, outer)
    steps = parse_path(path)
    if len(steps) == 1 and isinstance(steps[0], str):
        key = steps[0]
        return lambda obj, root, topic: obj.get(key, MISSING)
    return lambda obj, root, topic: follow(obj, steps)


def _topic_getter(path: str) -> Getter:
    match = _TOPIC.fullmatch(path)
    if match is None:
        raise ValueError(f'"{path}" is no part of a topic, such as $topic or $topic[1]')
    if match["level"] is None:
        return lambda obj, root, topic: MISSING if topic is None else topic
    steps = (int(match["level"]),)
    return lambda obj, root, topic: MISSING if topic is None else follow(topic.split("/"), steps)


def pattern_getter(column: Column, limit: int) -> Getter:
    """The function that gives the values of a pattern's keys in the order of their number, None in the holes.

    Raises ``Refused``: ``cell_count`` when there are more numbers than ``limit``.
    """
    steps = parse_path(column.pattern)
    at = next(i for i, step in enumerate(steps) if isinstance(step, str) and "{n}" in step)
    head, stem, tail = steps[:at], str(steps[at]), steps[at + 1 :]
    layout = _Layout(stem, column.first, column.count, limit)

    def get(obj: Any, root: Any, topic: str | None) -> Any:
        holder = follow(obj, head)
        if type(holder) is not dict:
            return MISSING
        values = layout.values(holder)
        if not tail:
            return values
        return [None if v is MISSING else v for v in (follow(v, tail) for v in values)]

    return get


class _Layout:
    """Which keys of an object are the cells, in the order of their number; remembered by its keys."""

    def __init__(self, stem: str, first: int | None, count: int, limit: int) -> None:
        before, after = stem.split("{n}")
        self._key = re.compile(re.escape(before) + r"(\d{1,6})" + re.escape(after), re.ASCII)
        self._first, self._count, self._limit = first, count, limit
        self._known: dict[tuple[str, ...], Callable[[dict[str, Any]], list[Any]]] = {}

    def values(self, holder: dict[str, Any]) -> list[Any]:
        """The values in the order of the number in their key."""
        keys = tuple(holder)
        pick = self._known.get(keys)
        if pick is None:
            pick = _picker(self._find(keys))
            if len(keys) <= _LAYOUT_KEYS:
                if len(self._known) >= _LAYOUTS:
                    self._known.clear()
                self._known[keys] = pick
        return pick(holder)

    def _find(self, keys: tuple[str, ...]) -> list[str | None]:
        """The keys to read, ``None`` where a number is missing."""
        numbered = {int(m[1]): key for key in keys if (m := self._key.fullmatch(key))}
        if not numbered:
            return []
        first = self._first if self._first is not None else 1 if self._count else min(numbered)
        size = self._count or max(0, max(numbered) - first + 1)
        if size > self._limit:
            raise Refused("cell_count", f"keys numbered up to {max(numbered)}, at most {self._limit} values are taken")
        return [numbered.get(n) for n in range(first, first + size)]


def _picker(order: list[str | None]) -> Callable[[dict[str, Any]], list[Any]]:
    if len(order) < 2 or None in order:
        return lambda holder: [None if key is None else holder[key] for key in order]
    pick = itemgetter(*order)
    return lambda holder: list(pick(holder))
