"""The two CALCE cells, CS2_35 and CS2_36, as telemetry: V and I from new to the end of life.

CALCE Battery Research Group, University of Maryland. Current is positive while charging, as in the stream; the
temperature was not recorded.
"""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from soh_data import NAMES, Cell

from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import TELEMETRY, label
from voltmill.operators.sessions import offline

CELLS: Final = ("CS2_35", "CS2_36")
NOMINAL_AH: Final = 1.1
#: The cycler wrote a sample every 30 s, and where the voltage stands still (CV) every few minutes.
FLEET: Final = Fleet(
    [
        FleetEntry(
            match="CS2_*", cell_type="calce-cs2", capacity_ah=NOMINAL_AH, operating_volt=(2.7, 4.2), gap_seconds=300.0
        )
    ]
)
_HOUR_US: Final = 3_600_000_000
#: Charge a cycle must move to count as one that was discharged in full, Ah.
_WHOLE_AH: Final = 0.05


class Life(NamedTuple):
    """One cell: its telemetry, and what the cycler counted."""

    telemetry: pa.RecordBatch
    begin_us: NDArray[np.int64]
    """First record of each cycle."""
    discharged_ah: NDArray[np.float64]
    """Charge out in each cycle, by the cycler's own counter."""

    def counted(self, end: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the cycler counted in the cycle of each session, by the time of its last sample."""
        return np.asarray(self.discharged_ah[np.searchsorted(self.begin_us, end, side="right") - 1])


def read(path: Path, cell: str, every: int = 1) -> Life:
    """A cell, one record of so many; files follow each other with an hour between."""
    table = pq.read_table(path)
    table = table.filter(pa.compute.equal(table["cell"].cast(pa.string()), cell))
    made = table["file"].to_numpy().astype("datetime64[us]").astype(np.int64)
    time, end = np.round(table["t_s"].to_numpy().astype(np.float64) * 1e6).astype(np.int64), -_HOUR_US
    for file in np.unique(made):
        rows = np.flatnonzero(made == file)
        time[rows] += max(int(file), end + _HOUR_US)
        end = int(time[rows[-1]])
    cycle, out = table["gcycle"].to_numpy(), table["qd"].to_numpy().astype(np.float64)
    first = np.flatnonzero(np.diff(cycle, prepend=-1))
    moved = np.maximum.reduceat(out, first) - np.minimum.reduceat(out, first)
    columns = (table[name].to_numpy()[::every] for name in ("current_a", "voltage_v"))
    return Life(_telemetry(cell, time[::every], *columns), time[first], np.where(moved > _WHOLE_AH, moved, np.nan))


def _telemetry(
    cell: str, time: NDArray[np.int64], current: NDArray[np.float32], volt: NDArray[np.float32]
) -> pa.RecordBatch:
    n = len(time)
    columns = {
        "device_id": pa.array([cell] * n),
        "event_time": pa.array(time).cast(TELEMETRY.field("event_time").type),
        "current_ampere": pa.array(current),
        "cell_voltage_volt": pa.ListArray.from_arrays(pa.array(np.arange(n + 1), pa.int32()), pa.array(volt)),
        "cell_temperature_celsius": pa.array([[]] * n, TELEMETRY.field("cell_temperature_celsius").type),
        "source": label("calce", n),
        "source_partition": label("file", n),
        "source_offset": pa.array(np.arange(n)),
        "quality_bits": pa.array(np.zeros(n, np.uint32)),
    }
    return pa.RecordBatch.from_arrays([columns.get(f.name, pa.nulls(n, f.type)) for f in TELEMETRY], schema=TELEMETRY)


def charged(life: Life, name: str) -> Cell:
    """The charges that show both phases, for a model that sees nothing else; capacity as the cycler counted it."""
    rows = offline(life.telemetry, FLEET)
    rows = rows.filter(pa.compute.equal(rows["session"].cast(pa.string()), "charge"))
    values = np.column_stack([rows[n].to_numpy() for n in NAMES]).astype(np.float64)
    capacity = life.counted(rows["event_time"].cast(pa.int64()).to_numpy()) / NOMINAL_AH
    good = np.isfinite(values).all(axis=1) & np.isfinite(capacity)
    return Cell("CALCE", "calce-cs2", name, NOMINAL_AH, False, values[good], capacity[good])
