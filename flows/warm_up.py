"""Compile every kernel of the graph by running it once on a tiny fleet.

The compiled code lies on disk (``kernels/compile.py``), so this takes its time on the first start
only. The arguments are those of a real run, since numba compiles for the types it is called with.
"""

from datetime import UTC, datetime
from typing import Any

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

_DONE = CACHE_DIR / "compiled"


def compiled() -> bool:
    """Whether the kernels of this version lie on disk."""
    return _DONE.exists()


def warm_up() -> None:
    """Run each stage once, a snapshot and its restoration included."""
    fleet = Fleet([FleetEntry(match="*", cell_type="lg-hg2", capacity_ah=3.0)])
    settings = SimulateSettings(gateways=1, packs_per_gateway=1, modules_per_pack=2, duration_seconds=20.0)
    payloads = [payload for _, payload in messages(settings)]
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
    _receive_one()
    _DONE.touch()


def _value_one(fleet: Fleet) -> None:
    """Follow one SOH value: a flow can run for hours before the first, and should not stand still then."""
    row: dict[str, Any] = {f.name: 1.0 for f in session_schema() if f.type == pa.float32()}
    row |= {"device_id": "m", "event_time": datetime.now(UTC), "start_time": datetime.now(UTC)}
    row |= {"session": "discharge", "quality_bits": 0, "source": "", "source_partition": "", "source_offset": 0}
    session = pa.RecordBatch.from_pylist([row], session_schema())
    HealthState(HealthSettings(), fleet).apply(values_batch(session, Interval(*np.full((3, 1), 90, np.float32))))


def _receive_one() -> None:
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
