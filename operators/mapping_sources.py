"""From the columns of a mapping to functions: a reader of one column each.

A reader takes ``(object, root, topic)`` and gives the value of its column in the canonical unit, ``None``
for no reading, or raises ``Refused``. Everything is compiled once.
"""

from collections.abc import Callable
from datetime import tzinfo
from typing import Any, Final

from voltmill.operators.mapping_spec import LISTS, QUANTITIES, Column
from voltmill.operators.paths import MISSING, getter, pattern_getter
from voltmill.operators.sample import DecodeSettings, Refused, parse_time

Reader = Callable[[Any, Any, str | None], Any]

_NUMBERS: Final = {int, float}
_NUMBERS_OR_NULL: Final = {int, float, type(None)}


def reader(name: str, column: Column, settings: DecodeSettings, zone: tzinfo | None) -> Reader:
    """The function that reads one column.

    Raises:
        ValueError: A path that cannot be understood; one line without the place.
    """
    if column.constant is not None:
        return lambda obj, root, topic: column.constant
    if name == "device_id":
        return _name_reader(column)
    if column.charge:
        return _difference_reader(name, column)
    if isinstance(column.path, list) or column.path.startswith("$topic"):
        raise ValueError("a topic is text; only device_id can come from it")
    if name in LISTS:
        return _list_reader(name, column, settings)
    if name == "event_time":
        return _time_reader(column, zone)
    if name == "seq":
        return _count_reader(column)
    return _number_reader(name, column, column.path)


def _missing(name: str, source: str) -> Refused:
    return Refused("missing_key", f'{name}: there is no "{source}"')


def _wrong(name: str, expected: str, value: object) -> Refused:
    kind = {dict: "object", list: "array", str: "text", bool: "boolean", type(None): "null"}.get(type(value), "number")
    return Refused("wrong_type", f"{name}: expected {expected}, got {kind}")


def _name_reader(column: Column) -> Reader:
    paths = [column.path] if isinstance(column.path, str) else column.path
    getters = [(path, getter(path)) for path in paths]

    def read(obj: Any, root: Any, topic: str | None) -> str:
        parts = []
        for path, get in getters:
            raw = get(obj, root, topic)
            if raw is MISSING:
                raise _missing("device_id", path)
            if type(raw) is not str and type(raw) is not int:
                raise _wrong("device_id", "text or integer", raw)
            parts.append(raw if isinstance(raw, str) else _digits(raw))
        return "/".join(parts)

    return read


def _digits(number: int) -> str:
    if abs(number) >= 1 << 64:  # Python refuses to print those of thousands of digits
        raise Refused("bad_device_id", "device_id: an integer of more than 64 bits")
    return str(number)


def _time_reader(column: Column, zone: tzinfo | None) -> Reader:
    path = str(column.path)
    get = getter(path)
    scale, offset = column.scale * column.sign, column.offset * column.sign
    plain = (scale, offset) == (1.0, 0.0)

    def read(obj: Any, root: Any, topic: str | None) -> int:
        raw = get(obj, root, topic)
        if raw is MISSING:
            raise _missing("event_time", path)
        if plain or type(raw) not in _NUMBERS:
            return parse_time(raw, zone)
        return parse_time(_float("event_time", raw) * scale + offset, zone)

    return read


def _count_reader(column: Column) -> Reader:
    get = getter(str(column.path))

    def read(obj: Any, root: Any, topic: str | None) -> int | None:
        raw = get(obj, root, topic)
        if raw is MISSING or raw is None:
            return None
        if type(raw) is int:
            return raw
        if type(raw) is float and raw.is_integer():
            return int(raw)
        raise _wrong("seq", "integer", raw)

    return read


def _number_reader(name: str, column: Column, path: str) -> Reader:
    get = getter(path)
    scale, offset = column.affine(QUANTITIES[name])
    plain = (scale, offset) == (1.0, 0.0)
    invalid = frozenset(column.invalid)
    required = name == "current_ampere" and not column.charge

    def read(obj: Any, root: Any, topic: str | None) -> float | None:
        raw = get(obj, root, topic)
        if raw is MISSING:
            if required:
                raise _missing(name, path)
            return None
        if raw is None or _is_invalid(raw, invalid):
            return None
        if type(raw) not in _NUMBERS:
            raise _wrong(name, "number", raw)
        return _float(name, raw) if plain else _float(name, raw) * scale + offset

    return read


def _is_invalid(raw: Any, invalid: frozenset[int | float | str]) -> bool:
    # True == 1 in Python, but a boolean is no reading and no code for one.
    return bool(invalid) and type(raw) in (int, float, str) and raw in invalid


def _float(name: str, raw: int | float) -> float:
    try:
        return float(raw)
    except OverflowError:
        raise Refused("out_of_range", f"{name}: an integer of more than 1,023 bits") from None


def _difference_reader(name: str, column: Column) -> Reader:
    charge = _number_reader(name, column, column.charge)
    discharge = _number_reader(name, column, column.discharge)
    has_charge, has_discharge = getter(column.charge), getter(column.discharge)

    def read(obj: Any, root: Any, topic: str | None) -> float | None:
        into, out = charge(obj, root, topic), discharge(obj, root, topic)
        if into is None and out is None:
            if has_charge(obj, root, topic) is MISSING and has_discharge(obj, root, topic) is MISSING:
                raise _missing(name, f'{column.charge}" or "{column.discharge}')
            return None
        # A sender names the direction that flows and may leave out the other.
        return (into or 0.0) - (out or 0.0)

    return read


def _list_reader(name: str, column: Column, settings: DecodeSettings) -> Reader:
    limit = settings.max_cells if name == LISTS[0] else settings.max_temperatures
    source = column.pattern or str(column.path)
    get = pattern_getter(column, limit) if column.pattern else getter(source)
    scale, offset = column.affine(QUANTITIES[name])
    plain = (scale, offset) == (1.0, 0.0)
    invalid = frozenset(column.invalid)

    def element(place: int, raw: Any) -> float | None:
        if raw is None or _is_invalid(raw, invalid):
            return None
        if type(raw) not in _NUMBERS:
            raise _wrong(f"{name}[{place}]", "number", raw)
        return _float(f"{name}[{place}]", raw) * scale + offset

    def read(obj: Any, root: Any, topic: str | None) -> list[float | None]:
        raw = get(obj, root, topic)
        if raw is MISSING or raw == [] and column.pattern:
            # No key of a pattern is how its sender writes an empty array; probes may be absent.
            if column.pattern and name != LISTS[0]:
                return []
            raise _missing(name, source)
        if type(raw) is not list:
            raise _wrong(name, "array", raw)
        kinds = set(map(type, raw))
        if kinds <= _NUMBERS_OR_NULL:
            if plain and not invalid and int not in kinds:
                return raw
            try:
                return [None if x is None or x in invalid else x * scale + offset for x in raw]
            except OverflowError:
                pass  # told with its place below
        return [element(place, x) for place, x in enumerate(raw)]

    return read
