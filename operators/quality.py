"""quality: keyed telemetry in, the same rows out with their quality bits.

Nothing is dropped here. Rows with a bit of ``REFUSED`` (duplicates, late and out-of-order rows,
clocks ahead of time) take no part in state, here or in any later operator.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream
from numpy.typing import NDArray

from voltmill.kernels import quality as rules
from voltmill.kernels.fleet import Fleet
from voltmill.kernels.schema import REDRIVE, TELEMETRY, Quality
from voltmill.operators import columns
from voltmill.operators.stateful import by_shard
from voltmill.operators.table import DeviceTable, StateError, state_parts

#: The bit that is raised before this operator and kept by it; all others are computed anew.
GIVEN: Final = Quality.UNIT_CONVERTED

#: Layout of the cell arena.
_CELLS: Final = repr(rules.CELL.descr)

_BITS: Final = TELEMETRY.get_field_index("quality_bits")


class QualitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Thresholds of the quality rules (``voltmill.kernels.quality.RULES``)."""

    late_seconds: float = 60.0
    """A sample out of order by more than this is late, s: the longest that a gateway reorders."""
    clock_reset_samples: int = 24
    """So many late samples in ascending order, and none on time between them, mean that the clock was ahead before and
    was set back: two minutes of a device that samples every 5 s, of which none but these would count again."""
    clock_skew_seconds: float = 60.0
    """A sample measured this far after it arrived has a wrong clock, s: far above NTP's error."""
    cell_voltage_rate_volt_per_second: float = 1.0
    """A cell cannot move faster, V/s: full load on a cold cell moves it by about half of this."""
    temperature_rate_celsius_per_second: float = 5.0
    """A probe cannot move faster, °C/s: thermal runaway begins at 1 °C/s (GB 38031)."""
    stuck_samples: int = 10
    """A cell reading that stands still in this many samples is stuck: far more than a multiplexed BMS lags ..."""
    stuck_volt: float = 0.02
    """... counting those with the mean of the cells this far from where it was at the reading's last change, V:
    twenty steps of a common BMS."""
    sum_tolerance: float = 0.02
    """Relative difference between module voltage and the sum of its cells: the sensors' errors."""
    sign_step_c_rate: float = 0.1
    """A current step that votes on the sign, 1/h (without a capacity: a quarter of the device's largest current)."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        bad = [name for name in self.__struct_fields__ if not 0 < getattr(self, name) <= 1e9]
        if bad:
            raise ValueError(f"{bad[0]} must be above 0, and 1e9 at most")
        if self.clock_reset_samples > 254:
            raise ValueError("clock_reset_samples must be 254 at most")
        if self.stuck_samples > rules.LONGEST_RUN:
            raise ValueError(f"stuck_samples must be {rules.LONGEST_RUN} at most: readings are counted no further")

    def record(self) -> Any:
        """The thresholds as the kernel reads them."""
        return np.array(
            [
                (
                    int(self.late_seconds * 1e6),
                    self.clock_reset_samples,
                    int(self.clock_skew_seconds * 1e6),
                    self.cell_voltage_rate_volt_per_second,
                    self.temperature_rate_celsius_per_second,
                    self.stuck_samples,
                    self.stuck_volt,
                    self.sum_tolerance,
                    self.sign_step_c_rate,
                )
            ],
            rules.SETTINGS,
        )[0]


class QualityState:
    """The devices of one shard as the quality rules see them."""

    def __init__(self, settings: QualitySettings, fleet: Fleet, snapshot: tuple[Any, ...] | None = None) -> None:
        self._settings = settings.record()
        self._cells = np.zeros(1024, rules.CELL)
        self._used = 0
        if snapshot is None:
            self.table = DeviceTable(rules.STATE, fleet)
            return
        version, parts = state_parts("quality", snapshot, {"v1": 2, "v2": 3})
        table, cells, layout = (*parts, _CELLS) if version == "v1" else parts  # v1 did not say: there was one layout
        if layout != _CELLS:
            raise StateError(
                "quality: the recovery store holds cells of another layout than this voltmill's: "
                "run the version that made it, or name another [run] state and replay the archive"
            )
        self.table = DeviceTable(rules.STATE, fleet, table)
        self._cells = np.frombuffer(cells, rules.CELL).copy()
        self._used = len(self._cells)

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        return self.table.nbytes + self._used * rules.CELL.itemsize

    def apply(self, telemetry: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with its quality bits; rows in arrival order."""
        table = self.table
        ids = telemetry.column("device_id")
        known = len(table)
        slots = table.slots(ids)
        fresh = table.rows[known : len(table)]
        for name in ("newest_time", "seen_time", "recent_time"):
            fresh[name] = np.iinfo(np.int64).min
        cell_at, cells = columns.lists(telemetry.column("cell_voltage_volt"))
        self._reserve(slots, cell_at)
        bits = telemetry.column("quality_bits").to_numpy() & np.uint32(GIVEN)
        if (reissued := _reissued(telemetry.column("source"))) is not None:
            bits |= np.where(reissued, np.uint32(Quality.REISSUED), np.uint32(0))
        rules.judge(
            table.rows,
            table.facts,
            self._cells,
            slots,
            columns.times(telemetry.column("event_time")),
            columns.times(telemetry.column("ingest_time")),
            *columns.counters(telemetry.column("seq")),
            columns.floats(telemetry.column("current_ampere")),
            columns.floats(telemetry.column("voltage_volt")),
            cell_at,
            cells,
            *columns.lists(telemetry.column("cell_temperature_celsius")),
            self._settings,
            bits,
        )
        return telemetry.set_column(_BITS, TELEMETRY.field(_BITS), pa.array(bits))

    def snapshot(self) -> tuple[Any, ...]:
        """Version, device table, cell arena and its layout: a copy."""
        return ("v2", self.table.snapshot(), self._cells[: self._used].tobytes(), _CELLS)

    def _reserve(self, slots: NDArray[np.int32], cell_at: NDArray[np.int32]) -> None:
        wanted = self._used + rules.cells_wanted(self.table.rows, slots, cell_at)
        if wanted > len(self._cells):
            grown = np.zeros(max(wanted, 2 * len(self._cells)), rules.CELL)
            grown[: self._used] = self._cells[: self._used]
            self._cells = grown
        self._used = rules.reserve(self.table.rows, self._cells, slots, cell_at, self._used)


def _reissued(source: pa.DictionaryArray) -> NDArray[np.bool_] | None:
    """Which rows were redriven from the dead letters; None: no row of a batch without that label, as nearly all are."""
    is_redrive = [name == REDRIVE for name in source.dictionary.to_pylist()]
    if not any(is_redrive):
        return None
    rows: NDArray[np.bool_] = np.array(is_redrive)[source.indices.to_numpy()]
    return rows


@operator
def quality(
    step_id: str,
    up: KeyedStream[pa.RecordBatch],
    *,
    settings: QualitySettings,
    fleet: Fleet,
    observe: Callable[[float], None] = lambda _: None,
) -> KeyedStream[pa.RecordBatch]:
    """Judge every row.

    Args:
        step_id: Unique id of the step.
        up: ``TELEMETRY`` batches keyed by shard; the rows of a device come in arrival order.
        settings: Thresholds.
        fleet: Limits and capacities by device.
        observe: Called with the seconds that each batch took.

    Returns:
        The same batches with ``quality_bits``. No row is dropped; state is one slot a device.
    """
    return by_shard("judge", up, lambda snapshot: QualityState(settings, fleet, snapshot), observe)
