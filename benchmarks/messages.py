"""Messages for the benchmarks: canonical JSON of 16 cells, all optional columns, about 485 bytes.

They come from the simulator, so cells, currents and temperatures vary as real ones do; one device
sends one message a tick, and all devices take turns.
"""

from collections.abc import Iterator

import msgspec
import pyarrow as pa

from voltmill.flows.simulate import FaultSettings, SimulateSettings, telemetry
from voltmill.flows.warm_up import raw_batch

COLUMNS = (
    "device_id",
    "event_time",
    "seq",
    "current_ampere",
    "voltage_volt",
    "cell_voltage_volt",
    "cell_temperature_celsius",
    "ambient_temperature_celsius",
    "bms_soc_percent",
)


def fleet(devices: int, ticks: int) -> SimulateSettings:
    """A fleet of so many devices without faults: 20 gateways of packs of 10 modules."""
    packs = devices // 200
    return SimulateSettings(
        gateways=20,
        packs_per_gateway=packs,
        modules_per_pack=10,
        duration_seconds=5.0 * ticks,
        faults=FaultSettings(enabled=False),
    )


def batches(devices: int, messages: int, rows: int) -> Iterator[pa.RecordBatch]:
    """``RAW`` batches of ``rows`` messages, ``messages`` in all."""
    payloads: list[bytes] = []
    made = 0
    for tick in telemetry(fleet(devices, messages // devices)):
        payloads += _encode(tick)
        while len(payloads) >= rows:
            yield raw_batch(payloads[:rows], offset=made)
            del payloads[:rows]
            made += rows
    if payloads:
        yield raw_batch(payloads, offset=made)


def _encode(tick: pa.RecordBatch) -> list[bytes]:
    values = tick.select(COLUMNS).to_pylist()
    for row in values:
        for name in ("current_ampere", "voltage_volt", "ambient_temperature_celsius", "bms_soc_percent"):
            row[name] = round(row[name], 3)
        row["cell_voltage_volt"] = [round(v, 6) for v in row["cell_voltage_volt"]]
        row["cell_temperature_celsius"] = [round(v, 3) for v in row["cell_temperature_celsius"]]
        seconds = (row["seq"] or 0) * 5 / 3600
        row |= {
            "bms_soh_percent": 97.25,
            "charge_ah": round(812.5 + seconds, 6),
            "discharge_ah": round(799.1 + seconds, 6),
        }
    return [msgspec.json.encode(row) for row in values]
