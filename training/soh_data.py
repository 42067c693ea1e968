"""The 340 cells of ``pinn4soh_features.parquet`` as charge sessions: the columns that the stream has of them.

F. Wang et al., Nature Communications 15:4332 (2024), 10.1038/s41467-024-48779-z: 16 quantities of the end of
each charge and the capacity of the cycle. Two of them, the entropies, depend on the sampling, and the two slopes
are not those of a regression line: the sessions table has none of the four. What a device knows of its own past is
computed here as `kernels/sessions.py` does it, from its sessions so far and no others.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from voltmill.kernels.session_table import BASELINE_SESSIONS, session_columns
from voltmill.operators.sessions import schema

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = Path(os.environ.get("VOLTMILL_DATA", ROOT.parent / "shared" / "data"))
DATA: Final = FOLDER / "pinn4soh_features.parquet"

Array = NDArray[np.float64]

#: Column of the data set, column of the sessions table, whether it is divided by the nominal capacity.
QUANTITIES: Final = (
    ("CC Q", "cc_charge_fraction", True),
    ("CC charge time", "cc_seconds", False),
    ("CV Q", "cv_charge_fraction", True),
    ("CV charge time", "cv_seconds", False),
    ("voltage mean", "cc_voltage_mean_volt", False),
    ("voltage std", "cc_voltage_std_volt", False),
    ("voltage skewness", "cc_voltage_skewness", False),
    ("voltage kurtosis", "cc_voltage_kurtosis", False),
    ("current mean", "cv_c_rate_mean", True),
    ("current std", "cv_c_rate_std", True),
    ("current skewness", "cv_c_rate_skewness", False),
    ("current kurtosis", "cv_c_rate_kurtosis", False),
)
NAMES: Final = tuple(name for _, name, _ in QUANTITIES)

#: Kinds of cell: name -> data set and batch as they begin in the file, and nominal capacity in Ah.
KINDS: Final = {
    "xjtu": ("XJTU", "", 2.0),
    "tju/nca": ("TJU", "Dataset_1", 3.5),
    "tju/ncm": ("TJU", "Dataset_2", 3.5),
    "tju/ncm_nca": ("TJU", "Dataset_3", 2.5),
    "hust": ("HUST", "", 1.1),
    "mit": ("MIT", "", 1.1),
}
DATASETS: Final = ("XJTU", "TJU", "HUST", "MIT")

_HUST_TEST: Final = (
    "1-4 1-8 2-4 2-8 3-4 3-8 4-4 4-8 5-4 5-7 6-4 6-8 7-4 7-8 8-4 8-8 9-4 9-8 10-4 10-8".split()
)  # main_HUST.py of the paper


@dataclass(frozen=True)
class Cell:
    """One cell over its life, a row a charge."""

    dataset: str
    kind: str
    name: str
    nominal_ah: float
    test: bool
    quantities: Array
    """(charges, quantities), in the units of the sessions table."""
    capacity: Array
    """Capacity of each cycle as a fraction of the nominal one."""

    def __len__(self) -> int:
        return len(self.capacity)


def read(path: Path = DATA) -> list[Cell]:
    """Every cell, in the order of data set and name."""
    table = pq.read_table(path)
    sets, batches, names, cycles = (table[n].to_numpy() for n in ("dataset", "batch", "cell", "cycle"))
    columns = {name: table[name].to_numpy().astype(np.float64) for name in (*(q[0] for q in QUANTITIES), "capacity")}
    cells: list[Cell] = []
    for kind, (dataset, batch, nominal) in KINDS.items():
        mine = np.flatnonzero(sets == dataset)
        ids = sorted({(batches[k], names[k]) for k in mine if batches[k].startswith(batch)})
        for place, (folder, name) in enumerate(ids, 1):
            rows = mine[(batches[mine] == folder) & (names[mine] == name)]
            rows = rows[np.argsort(cycles[rows], kind="stable")]
            quantities = [columns[given][rows] / (nominal if per else 1.0) for given, _, per in QUANTITIES]
            cells.append(
                Cell(
                    dataset,
                    kind,
                    "/".join(filter(None, (dataset, folder, name))),
                    nominal,
                    _is_test(dataset, kind, name, place),
                    np.column_stack(quantities),
                    columns["capacity"][rows] / nominal,
                )
            )
    return cells


def _is_test(dataset: str, kind: str, cell: str, place: int) -> bool:
    """The test cells of the paper's programs; for TJU by place among the cells that the file has."""
    if dataset == "HUST":
        return cell in _HUST_TEST
    if dataset == "MIT":
        return int(cell.rsplit("-", 1)[1]) % 5 == 0
    if dataset == "XJTU":
        return "4" in cell or "8" in cell
    return place % 10 in ((4, 8) if kind == "tju/ncm" else (5, 9))


def baselines(values: Array) -> Array:
    """Mean of the first sessions, up to the one of the row: the ``baseline_`` columns of a device."""
    n = np.arange(1, len(values) + 1)
    first = np.where((n <= BASELINE_SESSIONS).reshape(-1, *[1] * (values.ndim - 1)), values, 0.0)
    return np.asarray(np.cumsum(first, axis=0) / np.minimum(n, BASELINE_SESSIONS).reshape(-1, *[1] * (values.ndim - 1)))


def measured_in(count: int, every: int) -> NDArray[np.bool_]:
    """Which of a device's charges measure its capacity: the first ones, and then one of so many (0: none)."""
    n = np.arange(1, count + 1)
    return np.asarray((n <= BASELINE_SESSIONS) | (n % every == 0 if every else False))


def sessions(cells: Sequence[Cell], every: int = 0) -> pa.RecordBatch:
    """The cells as rows of the sessions table, as devices named as they are, cell after cell.

    Args:
        cells: Whose charges.
        every: One charge of so many is taken to go from empty to full, and to measure the capacity that the data set
            has of the cycle; 0: none but the first that make the baseline.
    """
    places = {c.name: k for k, c in enumerate(session_columns())}
    values = np.full((sum(map(len, cells)), len(places)), np.nan, np.float32)
    at = 0
    for cell in cells:
        rows = values[at : at + len(cell)]
        at += len(cell)
        rows[:, places["session_number"]] = np.arange(1, len(cell) + 1)
        rows[:, places["missing_fraction"]] = 0.0
        rows[:, places["capacity_ah"]] = cell.nominal_ah
        measured = cell.capacity * cell.nominal_ah
        rows[:, places["baseline_measured_capacity_ah"]] = baselines(measured)
        full = measured_in(len(cell), every)
        rows[full, places["measured_capacity_ah"]] = measured[full]
        past = baselines(cell.quantities)
        for k, name in enumerate(NAMES):
            rows[:, places[name]] = cell.quantities[:, k]
            rows[:, places[f"baseline_{name}"]] = past[:, k]
    ids = np.repeat([cell.name for cell in cells], [len(cell) for cell in cells])
    hours = np.concatenate([np.arange(len(cell)) for cell in cells])
    return session_batch(ids, hours * 3_600_000_000, values)


def session_batch(ids: NDArray[np.str_], times_us: NDArray[np.int64], values: NDArray[np.float32]) -> pa.RecordBatch:
    """Charge sessions with the given columns, in the schema of the stream."""
    n, fields = len(ids), schema()
    times = pa.array(1_700_000_000_000_000 + times_us).cast(fields.field("event_time").type)
    label = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["charge"]))
    carried = {
        "device_id": pa.array(ids),
        "event_time": times,
        "start_time": times,
        "ingest_time": times,
        "quality_bits": pa.array(np.zeros(n, np.uint32)),
        "source_offset": pa.array(np.arange(n)),
    }
    columns = dict(zip((c.name for c in session_columns()), values.T, strict=True))
    arrays = [
        carried.get(f.name, label) if f.name not in columns else pa.array(np.ascontiguousarray(columns[f.name]))
        for f in fields
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=fields)
