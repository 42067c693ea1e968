"""The mappings that come with voltmill: five dialects that gateways speak.

Each has a sample message in ``docs/mappings.md``. They are written in the language of every other
mapping, and may be taken as a pattern for one.
"""

from typing import Final

from voltmill.operators.mapping_spec import QUANTITIES, Column, MappingSpec

#: The columns of ``TELEMETRY`` under their own names.
_CANONICAL: Final = {name: Column(path=name) for name in QUANTITIES}

#: Small integers: what a BMS has on its CAN bus, sent on as it is. All ones (unsigned 16 bits) and the
#: most negative number (signed 16 bits) mean no reading, as in SAE J1939-71 "not available".
_COMPACT: Final = {
    "device_id": "id",
    "event_time": "t",
    "seq": "n",
    "current_ampere": Column(path="i", unit="mA"),
    "voltage_volt": Column(path="u", unit="mV"),
    "cell_voltage_volt": Column(path="c", unit="mV", invalid=[65535]),
    "cell_temperature_celsius": Column(path="T", unit="dC", invalid=[-32768]),
    "ambient_temperature_celsius": Column(path="Ta", unit="dC", invalid=[-32768]),
    "bms_soc_percent": Column(path="soc", unit="permille", invalid=[65535]),
    "bms_soh_percent": Column(path="soh", unit="permille", invalid=[65535]),
    "charge_ah": Column(path="qc", unit="mAh"),
    "discharge_ah": Column(path="qd", unit="mAh"),
}

#: One level of keys, a key a cell: what a table or a spreadsheet becomes.
_FLAT: Final = {
    "device_id": "device_id",
    "event_time": "timestamp",
    "seq": "seq",
    "current_ampere": "current",
    "voltage_volt": "voltage",
    "cell_voltage_volt": Column(pattern="cell_{n}_voltage"),
    "cell_temperature_celsius": Column(pattern="cell_{n}_temperature"),
    "ambient_temperature_celsius": "ambient_temperature",
    "bms_soc_percent": "soc",
    "bms_soh_percent": "soh",
    "charge_ah": "charge_ah",
    "discharge_ah": "discharge_ah",
}

#: Objects in objects, an object a cell, the two directions of the current apart.
_NESTED: Final = {
    "device_id": "device.id",
    "event_time": "timestamp",
    "seq": "seq",
    "current_ampere": Column(charge="pack.current.charge", discharge="pack.current.discharge"),
    "voltage_volt": "pack.voltage",
    "cell_voltage_volt": "cells[*].voltage",
    "cell_temperature_celsius": "cells[*].temperature",
    "ambient_temperature_celsius": "ambient.temperature",
    "bms_soc_percent": "pack.soc",
    "bms_soh_percent": "pack.soh",
    "charge_ah": "pack.counters.charge_ah",
    "discharge_ah": "pack.counters.discharge_ah",
}

#: The mappings by name; ``[mapping.NAME]`` tables of the configuration are added to them.
SHIPPED: Final[dict[str, MappingSpec]] = {
    "canonical": MappingSpec(columns=_CANONICAL),
    "compact": MappingSpec(columns=_COMPACT),
    "flat": MappingSpec(columns=_FLAT),
    "nested": MappingSpec(columns=_NESTED),
    # CloudEvents 1.0, JSON format, structured or batched mode; data or data_base64 (section 3.1).
    "cloudevents": MappingSpec(envelope="data", columns=_CANONICAL),
}
