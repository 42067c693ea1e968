"""Compile every kernel by running it once, or load those that a live flow needs.

The compiled code lies on disk (``kernels/compile.py``), so compiling takes its time on the first start
only. The arguments are those of a real run, since numba compiles for the types it is called with.
"""

from datetime import UTC, datetime
from typing import Any, Final

import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa

from voltmill.connectors.mqtt_delivered import Delivered
from voltmill.connectors.mqtt_inbox import Inbox
from voltmill.flows.choice import Models
from voltmill.flows.config import Config, ModelEntry
from voltmill.flows.simulate import SimulateSettings, messages
from voltmill.kernels.compile import CACHE_DIR
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import RAW, TIME, label
from voltmill.operators.decode import Decoder
from voltmill.operators.estimate import EstimateState
from voltmill.operators.features import FeatureSettings, FeatureState
from voltmill.operators.health import HealthSettings, HealthState
from voltmill.operators.predictions import Interval, values_batch
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.sessions import SessionSettings, SessionState
from voltmill.operators.sessions import schema as session_schema
from voltmill.operators.shard import split

#: For this processor: numba compiles anew for another, as where a container image holds the cache.
_DONE: Final = CACHE_DIR / f"compiled-{llvmlite.binding.get_host_cpu_name()}"

_MESSAGE: Final = (
    b'{"device_id":"m-%d","event_time":"2026-01-01T00:00:%02dZ","seq":%d,"current_ampere":-1.0,"voltage_volt":7.4,'
    b'"cell_voltage_volt":[3.7,3.7],"cell_temperature_celsius":[25.0],"bms_soc_percent":50.0}'
)


def compiled() -> bool:
    """Whether the kernels of this version lie on disk, for this processor."""
    return _DONE.exists()


def warm_up() -> None:
    """Run every kernel once, those of the simulation included."""
    list(messages(SimulateSettings(gateways=1, packs_per_gateway=1, modules_per_pack=1, duration_seconds=10.0)))
    load()
    _DONE.touch()


def load() -> None:
    """Run each stage of a live flow once, a snapshot and its restoration included."""
    fleet = Fleet([FleetEntry(match="*", cell_type="lg-hg2", capacity_ah=3.0)])
    payloads = [_MESSAGE % (device, second, second) for second in range(4) for device in range(2)]
    config = Config(model=(ModelEntry(name="lg_hg2_soc"),))
    models = Models(config).of("features")
    telemetry, _ = Decoder(config.decode)(raw_batch(payloads))
    assert telemetry is not None
    for _, part in split(telemetry, 2):
        quality = QualityState(QualitySettings(), fleet)
        judged = quality.apply(part)  # once: the same rows again would be duplicates, in which no kernel runs
        rows = FeatureState(FeatureSettings(), fleet).apply(judged)
        QualityState(QualitySettings(), fleet, quality.snapshot()).apply(part)
        EstimateState(models, fleet).apply(rows)
        SessionState(SessionSettings(), fleet).apply(judged)
    _value_one(fleet)
    receive_one()


def _value_one(fleet: Fleet) -> None:
    """Follow one SOH value: a flow can run for hours before the first, and should not stand still then."""
    row: dict[str, Any] = {f.name: 1.0 for f in session_schema() if f.type == pa.float32()}
    row |= {"device_id": "m", "event_time": datetime.now(UTC), "start_time": datetime.now(UTC)}
    row |= {"session": "discharge", "quality_bits": 0, "source": "", "source_partition": "", "source_offset": 0}
    session = pa.RecordBatch.from_pylist([row], session_schema())
    HealthState(HealthSettings(), fleet).apply(values_batch(session, Interval(*np.full((3, 1), 90, np.float32))))


def receive_one() -> None:
    """Take one message as the MQTT source does: else its first batch waits seconds for the compiler."""
    inbox = Inbox(8, 4096, 0.0, 8, 4096)
    packet = np.array([0x32, 6, 0, 1, 0x61, 0, 1, 0x7B], np.uint8)  # PUBLISH, QoS 1: topic "a", packet id 1, "{"
    inbox.add(packet, 0, packet.size, False)
    arrivals = inbox.take()
    assert arrivals is not None
    Delivered(None).take(arrivals)


def raw_batch(payloads: list[bytes], source: str = "memory", offset: int = 0) -> pa.RecordBatch:
    """Payloads as a ``RAW`` batch, as a source without topics would give it."""
    n = len(payloads)
    now = pa.scalar(datetime.now(UTC), TIME)
    columns = [
        pa.array(payloads, pa.binary()),
        label(None, n),
        pa.repeat(now, n),
        label(source, n),
        label("0", n),
        pa.array(range(offset, offset + n), pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RAW)
