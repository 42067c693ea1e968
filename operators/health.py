"""health: session rows with an SOH in, the same rows with the history of that SOH out; a RUL model takes these."""

from collections.abc import Callable
from typing import Any, Final

import bytewax.operators as op
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from voltmill.kernels import health as kernels
from voltmill.kernels.fleet import Fleet
from voltmill.kernels.health_table import health_columns
from voltmill.kernels.schema import TELEMETRY
from voltmill.kernels.session_table import session_columns
from voltmill.operators import columns
from voltmill.operators.features import CARRIED
from voltmill.operators.stateful import by_shard
from voltmill.operators.table import DeviceTable, state_parts

_SESSION: Final = tuple(c.name for c in session_columns())
_HEALTH: Final = tuple(c.name for c in health_columns())

#: A health row: what every row bears, the columns of its session, the columns of the SOH history.
HEALTH: Final = pa.schema(
    [TELEMETRY.field(name) for name in CARRIED] + [pa.field(n, pa.float32(), False) for n in (*_SESSION, *_HEALTH)]
)


class HealthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the SOH history."""

    believed_percent: tuple[float, float] = (20.0, 130.0)
    """Lowest and highest SOH that is believed, percent; one outside changes nothing."""
    replaced_percent: float = 10.0
    """A rise of the filtered SOH that shows another battery under the same id, points: its history begins anew."""
    restart_cycles: float = 500.0
    """After more equivalent full cycles without an SOH the history begins anew."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        low, high = self.believed_percent
        if not 0.0 <= low < high <= 1000.0:
            raise ValueError("believed_percent: the lower limit comes first, both from 0 to 1000")
        if not (0.0 < self.replaced_percent <= 1000.0 and 0.0 < self.restart_cycles <= 1e9):
            raise ValueError("replaced_percent is above 0, and 1000 at most; restart_cycles above 0, and 1e9 at most")


class HealthState:
    """The SOH histories of the devices of one shard."""

    def __init__(self, settings: HealthSettings, fleet: Fleet, snapshot: tuple[Any, ...] | None = None) -> None:
        thresholds = (*settings.believed_percent, settings.replaced_percent, settings.restart_cycles)
        self._settings = np.array([thresholds], kernels.SETTINGS)[0]
        stored = None if snapshot is None else state_parts("health", snapshot, {"v1": 1})[1][0]
        self.table = DeviceTable(kernels.STATE, fleet, stored)

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        return self.table.nbytes

    def apply(self, sessions: pa.RecordBatch) -> pa.RecordBatch:
        """One row of ``HEALTH`` for each row whose ``value`` is not null; the order stays."""
        rows = sessions.filter(pc.is_valid(sessions.column("value")))
        out = np.empty((len(_HEALTH), len(rows)), np.float32)
        if len(rows):
            slots = self.table.slots(rows.column("device_id"))
            kernels.follow(
                self.table.rows,
                slots,
                columns.times(rows.column("event_time")),
                columns.floats(rows.column("equivalent_full_cycles")),
                columns.floats(rows.column("value")),
                self._settings,
                out,
            )
        return pa.RecordBatch.from_arrays(
            [*rows.select([*CARRIED, *_SESSION]).columns, *map(pa.array, out)], schema=HEALTH
        )

    def snapshot(self) -> tuple[Any, ...]:
        """Version and device table: a copy."""
        return ("v1", self.table.snapshot())


@operator
def health(
    step_id: str,
    up: KeyedStream[pa.RecordBatch],
    *,
    settings: HealthSettings,
    fleet: Fleet,
    observe: Callable[[float], None] = lambda _: None,
) -> KeyedStream[pa.RecordBatch]:
    """Follow the SOH of each device, with the columns of ``voltmill.kernels.health_table``.

    Args:
        step_id: Unique id of the step.
        up: Batches of ``SOH``, keyed by shard: session rows with the ``value`` that a model estimated from each,
            percent, null where it gave none.
        settings: What is believed, and when a history begins anew.
        fleet: Facts of the devices.
        observe: Called with the seconds that each batch took.

    Returns:
        Batches of ``HEALTH`` under the same keys, one row for each row with a value. The columns of the history are
        NaN where the value or the cycles cannot be believed.
    """
    rows = by_shard("follow", up, lambda snapshot: HealthState(settings, fleet, snapshot), observe)
    return op.filter_value("valued", rows, lambda batch: len(batch) > 0)
