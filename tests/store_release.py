"""A flow over numbered messages with a recovery store: made by one release, gone on with by another.

    python tests/store_release.py FOLDER MESSAGES

It uses only what every release has, so that ``tests/stores`` can be made from an older work tree:
``PYTHONPATH=OLD/src python tests/store_release.py /tmp/made 300 && tar -C /tmp/made -cJf V.tar.xz state``
"""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from voltmill.connectors.lake import LakeSettings
from voltmill.flows import graph
from voltmill.flows.config import Config, RunSettings
from voltmill.flows.live import lake_sinks
from voltmill.flows.metrics import Metrics
from voltmill.flows.recovery import open_store
from voltmill.flows.running import run
from voltmill.kernels.fleet import FleetEntry
from voltmill.kernels.schema import RAW

START = datetime(2026, 1, 1, tzinfo=UTC)
DEVICES, BATCH = 5, 20


def message(n: int) -> bytes:
    """The n-th message: five devices in turn, 10 s apart each, in a charge that comes and goes; some are odd."""
    second, device = 10 * (n // DEVICES), n % DEVICES
    time = START + timedelta(seconds=second)
    if n % 97 == 5:
        return b'{"device_id":'  # a dead letter
    current = round(2.0 * float(np.sin(second / 400 + device)), 3)
    volts = [round(3.6 + 0.05 * device + current / 50 + k / 1000, 3) for k in range(4)]
    if n % 89 == 7:
        volts[1] = 6.6
    fields = {
        "device_id": f"gw/module-{device}",
        "event_time": time.isoformat().replace("+00:00", "Z"),
        "seq": n // DEVICES + (n > 120),
        "current_ampere": current,
        "cell_voltage_volt": volts,
        "cell_temperature_celsius": [20.0 + device, round(21.0 + current, 1)],
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def batch(first: int) -> pa.RecordBatch:
    numbers = range(first, first + BATCH)
    made: dict[str, Any] = {
        "payload": [message(n) for n in numbers],
        "topic": ["t"] * BATCH,
        "ingest_time": [START + timedelta(seconds=10 * (n // DEVICES) + 1) for n in numbers],
        "source": ["mqtt"] * BATCH,
        "source_partition": ["#"] * BATCH,
        "source_offset": list(numbers),
    }
    return pa.RecordBatch.from_arrays([pa.array(made[f.name], f.type) for f in RAW], schema=RAW)


class _Part(StatefulSourcePartition[pa.RecordBatch, tuple[str, int]]):
    def __init__(self, at: int, until: int) -> None:
        self._at, self._until = at, until

    def next_batch(self) -> list[pa.RecordBatch]:
        if self._at >= self._until:
            raise StopIteration
        self._at += BATCH
        return [batch(self._at - BATCH)]

    def snapshot(self) -> tuple[str, int]:
        return ("v1", self._at)


class Messages(FixedPartitionedSource[pa.RecordBatch, tuple[str, int]]):
    def __init__(self, until: int) -> None:
        self._until = until

    def list_parts(self) -> list[str]:
        return ["#"]

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> _Part:
        return _Part(resume_state[1] if resume_state else 0, self._until)


def configuration(folder: Path, **change: Any) -> Config:
    return Config(
        run=RunSettings(state=str(folder / "state"), shards=2, epoch_seconds=0.05),
        lake=LakeSettings(url=str(folder / "lake")),
        fleet=(FleetEntry(match="*", cell_type="lg-hg2", capacity_ah=3.0),),
        **change,
    )


def go(config: Config, until: int) -> None:
    """Run up to a message."""
    metrics = Metrics()
    sinks = lake_sinks(config, open_store(config.run).name, metrics)
    run(graph.build(Messages(until), sinks, config, metrics=metrics), config.run)


if __name__ == "__main__":
    go(configuration(Path(sys.argv[1])), int(sys.argv[2]))
