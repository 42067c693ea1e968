"""features: keyed telemetry with quality bits in, one row of features per accepted sample out."""

import logging
from collections.abc import Callable
from typing import Any, Final

import bytewax.operators as op
import msgspec
import numpy as np
import pyarrow as pa
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from voltmill.kernels import features as kernels
from voltmill.kernels.feature_table import WINDOWS
from voltmill.kernels.feature_table import features as feature_table
from voltmill.kernels.fleet import Fleet
from voltmill.kernels.schema import REFUSED, TELEMETRY
from voltmill.operators import columns
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.stateful import by_shard
from voltmill.operators.table import DeviceTable, StateError, state_parts

log = logging.getLogger("voltmill.features")

#: Columns that a features row takes over from its telemetry row.
CARRIED: Final = (
    "device_id",
    "event_time",
    "ingest_time",
    "quality_bits",
    "source",
    "source_partition",
    "source_offset",
)


class FeatureSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the feature kernels."""

    windows_seconds: tuple[int, ...] = WINDOWS
    """Sliding windows of event time, s; each a multiple of 6, the panes of a window."""
    restart_seconds: float = 300.0
    """After a longer gap the averages begin anew, s: what held before it says nothing of it."""
    step_c_rate: float = 0.2
    """A current step that gives a resistance, 1/h (1 A where no capacity is known)."""
    step_seconds: float = 15.0
    """... if it happened within this time, s: later, the voltage shows more than resistance."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if any(w < 6 or w % kernels.PANES for w in self.windows_seconds):
            raise ValueError("windows_seconds: each a multiple of 6, 6 or more")
        if len(set(self.windows_seconds)) != len(self.windows_seconds):
            raise ValueError("windows_seconds: each only once")
        if not all(0 < x <= 1e9 for x in (self.restart_seconds, self.step_c_rate, self.step_seconds)):
            raise ValueError("restart_seconds, step_c_rate and step_seconds must be above 0, and 1e9 at most")

    def schema(self) -> pa.Schema:
        """The schema of the features batch: what is carried, then the features."""
        names = [f.name for f in feature_table(self.windows_seconds)]
        return pa.schema(
            [TELEMETRY.field(name) for name in CARRIED] + [pa.field(name, pa.float32(), False) for name in names]
        )


class FeatureState:
    """The devices of one shard as the feature kernels see them."""

    def __init__(self, settings: FeatureSettings, fleet: Fleet, snapshot: tuple[Any, ...] | None = None) -> None:
        self._schema = settings.schema()
        self._window_us = np.array(settings.windows_seconds, np.int64) * 1_000_000
        thresholds = (int(settings.restart_seconds * 1e6), settings.step_c_rate, settings.step_seconds)
        self._settings = np.array([thresholds], kernels.SETTINGS)[0]
        self._windows = settings.windows_seconds
        self.table = _table(self._windows, fleet, snapshot)

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        return self.table.nbytes

    def apply(self, telemetry: pa.RecordBatch) -> pa.RecordBatch:
        """One row of features per row without a bit of ``REFUSED``; the order stays."""
        bits = telemetry.column("quality_bits").to_numpy()
        rows = np.flatnonzero((bits & np.uint32(REFUSED)) == 0)
        out = np.empty((len(self._schema) - len(CARRIED), len(rows)), np.float32)
        if len(rows):
            slots = self.table.slots(telemetry.column("device_id"))
            kernels.extract(
                self.table.rows,
                self.table.facts,
                slots,
                rows,
                columns.times(telemetry.column("event_time")),
                columns.floats(telemetry.column("current_ampere")),
                columns.floats(telemetry.column("voltage_volt")),
                *columns.lists(telemetry.column("cell_voltage_volt")),
                *columns.lists(telemetry.column("cell_temperature_celsius")),
                self._window_us,
                self._settings,
                out,
            )
        carried = telemetry.select(CARRIED)
        if len(rows) < len(telemetry):
            carried = carried.take(pa.array(rows))
        return pa.RecordBatch.from_arrays([*carried.columns, *map(pa.array, out)], schema=self._schema)

    def snapshot(self) -> tuple[Any, ...]:
        """Version, windows and device table: a copy."""
        return ("v2", self._windows, self.table.snapshot())


def _table(windows: tuple[int, ...], fleet: Fleet, snapshot: tuple[Any, ...] | None) -> DeviceTable:
    """The devices of a snapshot under these windows: those that are new begin empty, the others keep their panes.

    Version 1 was the table alone: its windows are taken to be these, if it holds as many.
    """
    dtype = kernels.state_dtype(len(windows))
    if snapshot is None or snapshot[0] == "v1":
        try:
            return DeviceTable(dtype, fleet, snapshot)
        except StateError as e:
            raise StateError(f"[features] windows_seconds, or this voltmill, differs from what was stored: {e}") from e
    _, (before, stored) = state_parts("features", snapshot, {"v2": 2})
    old = DeviceTable(kernels.state_dtype(len(before)), fleet, stored)
    if tuple(before) == windows:
        return old
    log.warning("windows_seconds changed", extra={"before": before, "now": windows})
    new = DeviceTable(dtype, fleet)
    new.slots(pa.array(old.device_ids(), pa.string()))
    kept = [name for name in dtype.names or () if name != "panes"]
    new.rows[: len(new)][kept] = old.rows[: len(old)][kept]
    for k, window in enumerate(windows):
        if window in before:
            new.rows["panes"][: len(new), k] = old.rows["panes"][: len(old), before.index(window)]
    return new


def offline(
    telemetry: pa.RecordBatch,
    fleet: Fleet,
    quality: QualitySettings | None = None,
    settings: FeatureSettings | None = None,
) -> pa.RecordBatch:
    """Features of a whole data set at once, without a stream: for training and scoring.

    Args:
        telemetry: Rows of the ``TELEMETRY`` schema; each device's in arrival order.
        fleet: Facts of the devices.
        quality: Thresholds of the quality rules; the defaults if not given.
        settings: Settings of the features; the defaults if not given.

    Returns:
        One row per accepted row, as the stream would give it.
    """
    judged = QualityState(quality or QualitySettings(), fleet).apply(telemetry)
    return FeatureState(settings or FeatureSettings(), fleet).apply(judged)


@operator
def features(
    step_id: str,
    up: KeyedStream[pa.RecordBatch],
    *,
    settings: FeatureSettings,
    fleet: Fleet,
    observe: Callable[[float], None] = lambda _: None,
) -> KeyedStream[pa.RecordBatch]:
    """Compute the features of ``voltmill.kernels.feature_table``.

    Args:
        step_id: Unique id of the step.
        up: ``TELEMETRY`` batches with their quality bits, keyed by shard.
        settings: Windows and thresholds.
        fleet: Limits and capacities by device.
        observe: Called with the seconds that each batch took.

    Returns:
        Batches of ``settings.schema()`` under the same keys, one row per accepted sample.
    """
    rows = by_shard("extract", up, lambda snapshot: FeatureState(settings, fleet, snapshot), observe)
    return op.filter_value("accepted", rows, lambda batch: len(batch) > 0)
