"""The messages of a simulated fleet: as JSON payloads and as Arrow batches, without a broker or a clock."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill.flows.simulate_settings import EPOCH, SimulateSettings
from voltmill.flows.simulated_faults import DOUBLED, DROPPED, FaultSchedule, Marked, break_payload
from voltmill.flows.simulated_fleet import SimulatedFleet
from voltmill.kernels.schema import FLOATS, TELEMETRY, TIME, label


class Message(msgspec.Struct):
    """The canonical message, in the order of its keys."""

    device_id: str
    event_time: str
    seq: int
    current_ampere: float
    voltage_volt: float
    cell_voltage_volt: list[float]
    cell_temperature_celsius: list[float]
    ambient_temperature_celsius: float
    bms_soc_percent: float


class Run:
    """The fleet, its faults and their clock: one tick after another."""

    def __init__(self, settings: SimulateSettings, start: datetime) -> None:
        self.settings = settings
        self.fleet = SimulatedFleet(settings)
        self.faults = FaultSchedule(settings, self.fleet)
        self.start = start
        self.start_us = round((start - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
        self.topics = ["voltmill/" + device_id for device_id in self.fleet.device_ids]

    def ticks(self) -> Iterator[Marked]:
        """Until the end of the simulated time."""
        duration = self.settings.duration_seconds or np.inf
        while self.fleet.elapsed_seconds < duration:
            yield self.faults.apply(self.fleet.tick())

    def payloads(self, marked: Marked) -> list[bytes]:
        """The JSON of each sample, broken where it is to be."""
        s = marked.samples
        times = np.datetime_as_string((self.start_us + marked.reported_us).astype("M8[us]"), unit="ms")
        encode, seq = msgspec.json.Encoder().encode, s.seq
        columns = zip(
            self.fleet.device_ids,
            times.tolist(),
            s.current.tolist(),
            s.voltage.tolist(),
            s.cell_voltage.tolist(),
            s.temperature.tolist(),
            s.ambient.tolist(),
            s.bms_soc.tolist(),
            strict=True,
        )
        out = [
            encode(Message(d, t + "Z", seq, i, v, cells, probes, a, b)) for d, t, i, v, cells, probes, a, b in columns
        ]
        for row in np.flatnonzero(marked.delivery > DOUBLED).tolist():
            out[row] = break_payload(out[row], int(marked.delivery[row]))
        return out


def messages(settings: SimulateSettings) -> Iterator[tuple[str, bytes]]:
    """Topic and payload of each message in order of true time; for ever if ``duration_seconds`` is 0.

    Dropped messages are missing, doubled ones come twice. Without ``start_time``, time begins at ``EPOCH``.

    Example:
        >>> quiet = SimulateSettings(gateways=1, packs_per_gateway=1, modules_per_pack=2, cells=3)
        >>> topic, payload = next(messages(quiet))
        >>> topic.startswith("voltmill/site-1/gw-1/pack-1/module-"), b'"seq":1,' in payload
        (True, True)
    """
    run = Run(settings, settings.start_time or EPOCH)
    for marked in run.ticks():
        sendings = zip(run.topics, run.payloads(marked), copies(marked), strict=True)
        for topic, payload, count in sendings:
            for _ in range(count):
                yield topic, payload


def telemetry(settings: SimulateSettings) -> Iterator[pa.RecordBatch]:
    """The same fleet as ``decode`` would give it: one ``TELEMETRY`` batch a tick, no JSON between.

    Malformed messages are missing. ``ingest_time`` is the true time of the sample; ``source_offset``
    counts the rows.
    """
    run = Run(settings, settings.start_time or EPOCH)
    ids, offset = pa.array(run.fleet.device_ids, pa.string()), 0
    for marked in run.ticks():
        rows = np.repeat(np.arange(len(ids)), np.where(marked.delivery > DOUBLED, 0, copies(marked)))
        yield batch_of(run, marked, ids, rows, offset)
        offset += len(rows)


def copies(marked: Marked) -> NDArray[np.int64]:
    """How often each message is sent: 0, 1 or 2."""
    return np.where(marked.delivery == DROPPED, 0, np.where(marked.delivery == DOUBLED, 2, 1))


def batch_of(run: Run, marked: Marked, ids: pa.Array, rows: NDArray[np.int64], offset: int) -> pa.RecordBatch:
    """The given rows of a tick in the ``TELEMETRY`` schema."""
    s, count = marked.samples, len(rows)
    columns = {
        "device_id": ids.take(pa.array(rows)),
        "event_time": pa.array(run.start_us + marked.reported_us[rows], TIME),
        "ingest_time": pa.array(run.start_us + s.elapsed_us[rows], TIME),
        "seq": pa.array(np.full(count, s.seq, np.uint64)),
        "current_ampere": pa.array(s.current[rows].astype(np.float32)),
        "voltage_volt": pa.array(s.voltage[rows].astype(np.float32)),
        "cell_voltage_volt": _lists(s.cell_voltage[rows]),
        "cell_temperature_celsius": _lists(s.temperature[rows]),
        "ambient_temperature_celsius": pa.array(s.ambient[rows].astype(np.float32)),
        "bms_soc_percent": pa.array(s.bms_soc[rows].astype(np.float32)),
        "source": label("simulator", count),
        "source_partition": label(run.settings.site, count),
        "source_offset": pa.array(np.arange(offset, offset + count)),
        "quality_bits": pa.array(np.zeros(count, np.uint32)),
    }
    missing = {f.name: pa.nulls(count, f.type) for f in TELEMETRY if f.name not in columns}
    return pa.RecordBatch.from_arrays([{**columns, **missing}[f.name] for f in TELEMETRY], schema=TELEMETRY)


def _lists(values: NDArray[np.float64]) -> pa.Array:
    rows, width = values.shape
    offsets = pa.array(np.arange(0, (rows + 1) * width, width, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.float32).ravel()), type=FLOATS)
