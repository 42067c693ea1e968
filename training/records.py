"""The records of the LG HG2: the one reader of ``lg_hg2_1hz.parquet``.

P. Kollmeyer et al., Mendeley Data V3, 10.17632/cp3473x7xv.3, at 1 Hz: one cell, six ambient temperatures.
"""

import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROOT: Final = Path(__file__).resolve().parent.parent
DATA: Final = Path(os.environ.get("VOLTMILL_DATA", ROOT.parent / "shared" / "data")) / "lg_hg2_1hz.parquet"

NOMINAL_AH: Final = 3.0
CAPACITY_AH: Final = 2.78  # between full and empty at 25 °C and C/20: what SOC refers to
TEST: Final = ("US06", "LA92", "UDDS", "HWFET")  # drive cycles that nothing is trained or tuned on

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Record:
    """One cell over time: s, V, A (positive while charging), °C, and the true SOC in percent."""

    name: str
    ambient: int
    seconds: Array
    voltage: Array
    current: Array
    temperature: Array
    soc: Array

    def __len__(self) -> int:
        return len(self.seconds)

    def at(self, rows: NDArray[np.int64]) -> "Record":
        """The record at these rows alone."""
        names = ("seconds", "voltage", "current", "temperature", "soc")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def measured(path: Path = DATA, *, seconds: int = 600) -> list[Record]:
    """The records of the file in its order, those that are so long (a few at 40 °C were broken off)."""
    table = pq.read_table(path)
    name = np.array(table["record"].to_pylist(), dtype=object)
    ambient = table["ambient_c"].to_numpy()
    columns = [table[c].to_numpy().astype(float) for c in ("t_s", "voltage_v", "current_a", "temp_c", "ah")]
    cuts = np.flatnonzero((name[1:] != name[:-1]) | (ambient[1:] != ambient[:-1])) + 1
    found = []
    for start, stop in itertools.pairwise([0, *cuts.tolist(), len(name)]):
        t, volt, ampere, celsius, ah = (c[start:stop] for c in columns)
        short = name[start].split("_", 1)[1]
        soc = 100.0 * (1 + ah / CAPACITY_AH)
        found.append(Record(short, int(ambient[start]), t - t[0], volt, ampere, celsius, soc))
    return [r for r in found if len(r) >= seconds]
