"""What a mapping is made of: the TOML form, the units, and the checks at the start.

A mapping says where each column of ``TELEMETRY`` is found in a payload that is not canonical JSON, and
how its number becomes the canonical unit. ``docs/mappings.md`` is its manual; ``mapping_sources``
turns it into functions, ``mapping`` runs them over payloads, ``dialects`` holds the shipped ones.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec

#: Columns a mapping can fill, with the quantity each holds. ``source`` and the like are not the device's to say.
QUANTITIES: Final = {
    "device_id": "name",
    "event_time": "time",
    "seq": "count",
    "current_ampere": "current",
    "voltage_volt": "voltage",
    "cell_voltage_volt": "voltage",
    "cell_temperature_celsius": "temperature",
    "ambient_temperature_celsius": "temperature",
    "bms_soc_percent": "ratio",
    "bms_soh_percent": "ratio",
    "charge_ah": "charge",
    "discharge_ah": "charge",
}
#: The columns that hold a measured value, which has a unit.
MEASURED: Final = tuple(QUANTITIES)[3:]
LISTS: Final = ("cell_voltage_volt", "cell_temperature_celsius")
#: Without these there is no sample.
REQUIRED: Final = ("device_id", "event_time", "cell_voltage_volt")

#: quantity -> unit -> (scale, offset): canonical = value * scale + offset. SI Brochure, 9th edition;
#: °F as in NIST SP 811, B.8.
UNITS: Final[dict[str, dict[str, tuple[float, float]]]] = {
    "voltage": {"V": (1.0, 0.0), "mV": (1e-3, 0.0), "uV": (1e-6, 0.0), "kV": (1e3, 0.0)},
    "current": {"A": (1.0, 0.0), "dA": (0.1, 0.0), "cA": (0.01, 0.0), "mA": (1e-3, 0.0), "kA": (1e3, 0.0)},
    "temperature": {
        "C": (1.0, 0.0),
        "dC": (0.1, 0.0),
        "cC": (0.01, 0.0),
        "mC": (1e-3, 0.0),
        "K": (1.0, -273.15),
        "dK": (0.1, -273.15),
        "cK": (0.01, -273.15),
        "F": (5 / 9, -160 / 9),
    },
    "ratio": {"%": (1.0, 0.0), "permille": (0.1, 0.0), "1": (100.0, 0.0)},
    "charge": {"Ah": (1.0, 0.0), "mAh": (1e-3, 0.0), "As": (1 / 3600, 0.0)},
}


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where one column comes from; in TOML a text or an array stands for ``{ path = ... }``.

    One of ``path``, ``pattern``, ``charge`` with ``discharge``, or ``constant`` names the source. A number
    then becomes ``sign * (raw * scale + offset)`` with the part in brackets converted from ``unit``.
    """

    path: str | list[str] = ""
    """Path such as ``a.b``, ``a[0].b``, ``cells[*].voltage``, ``$.subject``, ``$topic[1]``; for ``device_id``
    also a list of them, joined by slashes."""
    pattern: str = ""
    """For a list: keys with their number in place of ``{n}``, such as ``cell_{n}_voltage``."""
    first: int | None = None
    """Number of the first key of a pattern; unset: the lowest found, or 1 if ``count`` is set."""
    count: int = 0
    """Keys of a pattern, missing ones read as no reading; 0: up to the highest found."""
    charge: str = ""
    """For the current: path of the charging current, a magnitude."""
    discharge: str = ""
    """For the current: path of the discharging current, a magnitude."""
    constant: str | int | float | None = None
    """The same value for every sample, in the canonical unit."""
    unit: str = ""
    """Unit of the number sent, a key of ``UNITS``; empty: the canonical one."""
    scale: float = 1.0
    """Factor of the raw number, as in a CAN database: physical = raw * scale + offset."""
    offset: float = 0.0
    """Added after the scale, in ``unit``."""
    sign: int = 1
    """-1 where the sender counts the other way, such as a current positive on discharge."""
    invalid: list[int | float | str] = []
    """Raw values that mean no reading, such as 255 or "N/A"."""

    def converts(self, quantity: str) -> bool:
        """Whether values leave other than they came."""
        return bool(self.charge) or self.affine(quantity) != (1.0, 0.0)

    def affine(self, quantity: str) -> tuple[float, float]:
        """Scale and offset from the raw number to the canonical unit, all steps in one.

        Example:
            >>> Column(path="t", scale=0.1, offset=-40, unit="C").affine("temperature")
            (0.1, -40.0)
        """
        scale, offset = UNITS[quantity][self.unit] if self.unit else (1.0, 0.0)
        return self.sign * self.scale * scale, self.sign * (self.offset * scale + offset)


class MappingSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``[mapping.NAME]`` table: a dialect of JSON described instead of programmed."""

    topic: str = ""
    """MQTT topic filter: what is published there is of this dialect, whatever ``decode.mapping`` says. So
    senders of many dialects share a flow."""
    envelope: str = ""
    """Path of the object, or array of objects, that holds the samples; empty: the message itself. Where it
    is absent, the same name with ``_base64`` is read, as in CloudEvents."""
    rows: str = ""
    """Path of an array of samples within that object; keys around the array are inherited by each."""
    time_zone: str = ""
    """IANA name of the zone of times without an offset; empty: ``decode.time_zone``."""
    columns: dict[str, Any]
    """Column of ``TELEMETRY`` -> a path (for ``device_id`` also an array of them), or a table as in ``Column``."""


def column_of(name: str, source: Any, place: str) -> Column:
    """The checked form of one entry of ``columns``.

    Raises:
        ValueError: One line with the place, what is wrong, and what may be meant.

    Example:
        >>> column_of("voltage_volt", {"path": "u", "unit": "mV"}, "mapping").affine("voltage")
        (0.001, 0.0)
        >>> column_of("voltage", "u", "mapping")
        Traceback (most recent call last):
        ValueError: mapping: columns.voltage is no telemetry column (did you mean "voltage_volt"?)
    """
    if name not in QUANTITIES:
        raise ValueError(f"{place}: columns.{name} is no telemetry column{meant(name, QUANTITIES)}")
    at = f"{place}: columns.{name}"
    if isinstance(source, str | list):
        source = _convert({"path": source}, at)
    elif not isinstance(source, Column):
        source = _convert(source, at)
    column: Column = source
    problem = _problem(name, column)
    if problem:
        raise ValueError(f"{at}: {problem}")
    return column


def _convert(source: Any, at: str) -> Column:
    if isinstance(source, dict):
        for key in source:
            if key not in Column.__struct_fields__:
                raise ValueError(f'{at}: unknown key "{key}"{meant(str(key), Column.__struct_fields__)}')
    try:
        return msgspec.convert(source, Column)
    except msgspec.ValidationError as error:
        raise ValueError(f"{at}: {str(error).replace('$.', '')}") from None


def _problem(name: str, column: Column) -> str:
    """What is wrong with a column's source, empty if nothing is."""
    return _wrong_source(name, column) or _wrong_number(name, column)


def _wrong_source(name: str, column: Column) -> str:
    given = [k for k in ("path", "pattern", "charge", "constant") if getattr(column, k) not in ("", [], None)]
    if len(given) != 1:
        return "one of path, pattern, charge with discharge, or constant says where it comes from"
    if bool(column.charge) != bool(column.discharge):
        return "charge and discharge go together"
    if column.charge and name != "current_ampere":
        return "charge and discharge are for current_ampere"
    if isinstance(column.path, list) and name != "device_id":
        return "a list of paths is for device_id"
    if column.pattern and name not in LISTS:
        return "a pattern is for a list of cells or probes"
    if column.pattern.count("{n}") != bool(column.pattern):
        return f'pattern "{column.pattern}" needs {{n}} once, where the number stands'
    if column.count < 0 or (column.first or 0) < 0:
        return "first and count are at least 0"
    if not column.pattern and (column.first is not None or column.count):
        return "first and count belong to a pattern"
    if column.constant is not None:
        return _wrong_constant(name, column)
    return ""


def _wrong_constant(name: str, column: Column) -> str:
    if name in LISTS or name in ("event_time", "seq"):
        return "it cannot be constant"
    if isinstance(column.constant, str) != (name == "device_id"):
        return f"constant {column.constant!r} is of the wrong type"
    if column != Column(constant=column.constant):
        return "a constant is in the canonical unit already; nothing goes with it"
    return ""


def _wrong_number(name: str, column: Column) -> str:
    quantity = QUANTITIES[name]
    units = UNITS.get(quantity, {})
    if column.unit and not units:
        hint = "; s, ms, us and ns are told apart by size" if quantity == "time" else ""
        return f"it has no unit{hint}"
    if column.unit and column.unit not in units:
        return f'unknown unit "{column.unit}"{meant(column.unit, units)}; there are {", ".join(units)}'
    if not (math.isfinite(column.scale) and math.isfinite(column.offset)) or column.scale == 0:
        return "scale and offset are finite numbers, and scale is not 0"
    if column.sign not in (1, -1):
        return "sign is 1 or -1"
    if not units and quantity != "time" and (column.scale != 1 or column.offset or column.sign != 1):
        return "scale, offset and sign are for measured values"
    if column.invalid and not units:
        return "invalid is for measured values"
    return ""


def meant(word: str, known: Iterable[str]) -> str:
    """A hint if a known word is close, else nothing."""
    # In lower case: "mv" is meant to be mV. Half a column's name is its usual short form: "voltage", "soc".
    lower = {name.lower(): name for name in known}
    word = word.lower()
    close = difflib.get_close_matches(word, lower, 1, 0.6) or [k for k in lower if len(word) > 1 and word in k][:1]
    return f' (did you mean "{lower[close[0]]}"?)' if close else ""
