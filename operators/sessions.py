"""sessions: keyed telemetry with quality bits in, one row per finished charge, discharge or rest out."""

from collections.abc import Callable
from typing import Any, Final

import bytewax.operators as op
import msgspec
import numpy as np
import pyarrow as pa
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from voltmill.kernels import session_state
from voltmill.kernels.fleet import Fleet
from voltmill.kernels.schema import LABEL, REFUSED, TELEMETRY, TIME
from voltmill.kernels.session_table import KINDS, session_columns
from voltmill.kernels.sessions import follow
from voltmill.operators import columns
from voltmill.operators.features import CARRIED
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.stateful import by_shard
from voltmill.operators.table import DeviceTable, state_parts

_CHUNK: Final = 4096  # rows a call of the kernel, for which it needs room for as many sessions
_WIDTH: Final = len(session_columns())


class SessionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the sessions."""

    start_c_rate: float = 0.03
    """Current at which a charge or discharge begins, 1/h: above the offset of a common sensor."""
    end_c_rate: float = 0.02
    """Current below which it ends, 1/h: chargers hold full voltage until the current is C/20 to C/50."""
    unknown_capacity_ah: float = 30.0
    """Capacity by which the two are turned into amperes where the fleet entry names none, Ah."""
    shortest_seconds: float = 300.0
    """The shortest session, s; a shorter one joins the one that it interrupts: a red light is no rest."""
    fewest_samples: int = 5
    """The fewest samples of a session; with fewer it joins the one that it interrupts."""
    break_seconds: float = 1800.0
    """A longer time without a sample ends the session, s: what flowed in it is not known. Shorter ones are bridged."""
    step_c_rate: float = 0.2
    """A current step that gives a resistance, 1/h (1 A where no capacity is known)."""
    step_seconds: float = 15.0
    """... over this time at most, s: the latest sample within it counts, for many report current before voltage."""
    full_tolerance_volt: float = 0.02
    """How far below full voltage the highest cell counts as full, V."""
    full_c_rate: float = 0.1
    """... if the current has fallen to this, 1/h."""
    empty_tolerance_volt: float = 0.1
    """How far above empty voltage the lowest cell counts as empty, V: the voltage falls fast there."""
    level_tolerance: float = 0.01
    """Charge that may flow before a device that was full or empty no longer counts as such, part of the capacity."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not 0 < self.end_c_rate <= self.start_c_rate <= 1e9:
            raise ValueError("end_c_rate must be above 0, and start_c_rate not below it")
        if not 0 < self.shortest_seconds <= self.break_seconds <= 1e9:
            raise ValueError("shortest_seconds must be above 0, and break_seconds not below it")
        if not 2 <= self.fewest_samples <= 1_000_000:
            raise ValueError("fewest_samples must be from 2 to a million")
        for name in ("unknown_capacity_ah", "step_c_rate", "step_seconds", "full_c_rate"):
            if not 0 < getattr(self, name) <= 1e9:
                raise ValueError(f"{name} must be above 0, and 1e9 at most")
        for name in ("full_tolerance_volt", "empty_tolerance_volt", "level_tolerance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1")

    def record(self) -> Any:
        """The thresholds as the kernel reads them."""
        values = (
            self.start_c_rate,
            self.end_c_rate,
            self.unknown_capacity_ah,
            int(self.shortest_seconds * 1e6),
            self.fewest_samples,
            int(self.break_seconds * 1e6),
            self.step_c_rate,
            self.step_seconds,
            self.full_tolerance_volt,
            self.empty_tolerance_volt,
            self.full_c_rate,
            self.level_tolerance,
        )
        return np.array([values], session_state.SETTINGS)[0]


def schema() -> pa.Schema:
    """The schema of the sessions batch: what is carried, when it began, what it is, then the columns."""
    return pa.schema(
        [TELEMETRY.field(name) for name in CARRIED]
        + [
            pa.field("start_time", TIME, False, {"doc": "when the session began; event_time is its last sample"}),
            pa.field("session", LABEL, False, {"doc": "charge, discharge or rest"}),
        ]
        + [
            pa.field(c.name, pa.float32(), False, {"doc": f"{c.formula}, {c.unit}; NaN: unknown"})
            for c in session_columns()
        ]
    )


class SessionState:
    """The devices of one shard as the session kernel sees them."""

    def __init__(self, settings: SessionSettings, fleet: Fleet, snapshot: tuple[Any, ...] | None = None) -> None:
        self._schema = schema()
        self._none = pa.RecordBatch.from_pylist([], schema=self._schema)
        self._settings = settings.record()
        self._sample = np.zeros(1, session_state.SAMPLE)
        self._ended = np.empty(_CHUNK, session_state.ENDED)
        self._out = np.empty((_CHUNK, _WIDTH), np.float32)
        stored = None if snapshot is None else state_parts("sessions", snapshot, {"v1": 1})[1][0]
        self.table = DeviceTable(session_state.STATE, fleet, stored)

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        return self.table.nbytes

    def apply(self, telemetry: pa.RecordBatch) -> pa.RecordBatch:
        """One row per session that a row without a bit of ``REFUSED`` finished, in the order of those rows."""
        bits = columns.fixed(telemetry.column("quality_bits").to_numpy())
        rows = np.flatnonzero((bits & np.uint32(REFUSED)) == 0)
        ended, out = [], []
        if len(rows):
            arrays = (
                columns.times(telemetry.column("event_time")),
                bits,
                columns.floats(telemetry.column("current_ampere")),
                columns.floats(telemetry.column("voltage_volt")),
                *columns.lists(telemetry.column("cell_voltage_volt")),
                *columns.lists(telemetry.column("cell_temperature_celsius")),
            )
            slots = self.table.slots(telemetry.column("device_id"))
            for first in range(0, len(rows), _CHUNK):
                n = follow(
                    self.table.rows,
                    self.table.facts,
                    slots,
                    rows[first : first + _CHUNK],
                    *arrays,
                    self._settings,
                    self._sample,
                    self._ended,
                    self._out,
                )
                if n:
                    ended.append(self._ended[:n].copy())
                    out.append(self._out[:n].copy())
        if not ended:
            return (
                self._none
            )  # most batches finish none, and to make so many empty columns would cost more than to follow the rows
        return self._rows(telemetry, np.concatenate(ended), np.concatenate(out))

    def _rows(self, telemetry: pa.RecordBatch, ended: Any, out: Any) -> pa.RecordBatch:
        carried = telemetry.select(CARRIED).take(pa.array(ended["row"]))
        given = {name: carried.column(name) for name in CARRIED}
        given["event_time"] = pa.array(ended["end"]).cast(TIME)
        given["quality_bits"] = pa.array(ended["bits"])
        kinds = pa.DictionaryArray.from_arrays(pa.array(ended["kind"]), pa.array(KINDS, pa.string()))
        arrays = [*given.values(), pa.array(ended["start"]).cast(TIME), kinds]
        arrays += [pa.array(np.ascontiguousarray(column)) for column in out.T]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def snapshot(self) -> tuple[Any, ...]:
        """Version and device table: a copy."""
        return ("v1", self.table.snapshot())


def offline(
    telemetry: pa.RecordBatch,
    fleet: Fleet,
    quality: QualitySettings | None = None,
    settings: SessionSettings | None = None,
) -> pa.RecordBatch:
    """Sessions of a whole data set at once, without a stream: for training and scoring.

    Args:
        telemetry: Rows of the ``TELEMETRY`` schema; each device's in arrival order.
        fleet: Facts of the devices.
        quality: Thresholds of the quality rules; the defaults if not given.
        settings: Settings of the sessions; the defaults if not given.

    Returns:
        One row per finished session, as the stream would give it. A session that is still running gives none.
    """
    judged = QualityState(quality or QualitySettings(), fleet).apply(telemetry)
    return SessionState(settings or SessionSettings(), fleet).apply(judged)


@operator
def sessions(
    step_id: str,
    up: KeyedStream[pa.RecordBatch],
    *,
    settings: SessionSettings,
    fleet: Fleet,
    observe: Callable[[float], None] = lambda _: None,
) -> KeyedStream[pa.RecordBatch]:
    """Find the sessions and measure the columns of ``voltmill.kernels.session_table``.

    Args:
        step_id: Unique id of the step.
        up: ``TELEMETRY`` batches with their quality bits, keyed by shard.
        settings: Thresholds.
        fleet: Limits, capacities and operating voltages by device.
        observe: Called with the seconds that each batch took.

    Returns:
        Batches of ``schema()`` under the same keys, one row per finished session, at the sample that
        finished it; its ``event_time`` is that of the session's last sample. None that is still running.
    """
    rows = by_shard("follow", up, lambda snapshot: SessionState(settings, fleet, snapshot), observe)
    return op.filter_value("finished", rows, lambda batch: len(batch) > 0)
