"""Canonical messages and batches of them, for tests of ``decode``."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from voltmill.kernels.schema import RAW, TIME, label

ARRIVAL = 1_795_341_606_000_000


def canonical(*, separators: tuple[str, str] = (",", ":"), **change: Any) -> bytes:
    """A sound message, with some keys changed or added; the value ``...`` leaves a key out."""
    message = {
        "device_id": "gw-1/pack-2/m-3",
        "event_time": "2026-11-22T10:00:05.123Z",
        "seq": 12345,
        "current_ampere": -1.234,
        "voltage_volt": 14.6,
        "cell_voltage_volt": [3.6512, 3.65, 3.6491, 3.6502],
        "cell_temperature_celsius": [25.1, 25.35],
        "ambient_temperature_celsius": 20.0,
        "bms_soc_percent": 55.5,
    }
    message |= change
    return json.dumps({k: v for k, v in message.items() if v is not ...}, separators=separators).encode()


def raw(payloads: list[bytes], topic: str | None = "site/gw-1") -> pa.RecordBatch:
    """A ``RAW`` batch; offsets count the payloads."""
    size = len(payloads)
    arrays = [
        pa.array(payloads, pa.binary()),
        label(topic, size),
        pa.array(np.arange(size) + ARRIVAL, TIME),
        label("mqtt", size),
        label("site/#", size),
        pa.array(np.arange(size, dtype=np.int64)),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=RAW)


def exact(batch: pa.RecordBatch | None) -> dict[str, Any] | None:
    """A batch in a form whose equality is that of every bit, NaN and -0.0 included."""
    if batch is None:
        return None
    batch.validate(full=True)
    return {name: _exact(batch[name]) for name in batch.schema.names}


def _exact(column: pa.Array) -> Any:
    if pa.types.is_list(column.type):
        return column.value_lengths().to_pylist(), _exact(column.flatten())
    if pa.types.is_float32(column.type):
        return column.view(pa.int32()).to_pylist()
    if pa.types.is_float64(column.type):
        return column.view(pa.int64()).to_pylist()
    return column.to_pylist()
