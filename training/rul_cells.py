"""The cells that the RUL models learn from: SOH over cycles, and how many cycles were left.

``pinn4soh_features.parquet`` has the capacity of each cycle and quantities of the end of each charge. A view is
what the stream would have made of a cell: the columns of its session rows, and those of `voltmill.kernels.health`,
from a measured or an estimated SOH, seen from its first cycle or from mid-life on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from voltmill.kernels import health
from voltmill.kernels.health_table import END_OF_LIFE, health_columns
from voltmill.kernels.session_table import BASELINE_SESSIONS, RECENT_WEIGHT
from voltmill.operators.health import HealthSettings
from voltmill.operators.onnx_model import OnnxModel

Array = NDArray[np.float64]
Matrix = NDArray[np.float32]

SETS: Final = {"hust": 1.1, "xjtu": 2.0, "tju": 3.5}  # nominal Ah of one cell
FIRST: Final = 30  # values before the first prediction
SHORTEST: Final = 55.0  # cycles; a shorter life has no rows to speak of after those
BEYOND: Final = 1.5  # % that a record may end above 80 % SOH to be tested on
BEYOND_TRAINING: Final = 4.0  # ... and to be trained on
POINTS: Final = 60  # rows of one view

#: Session columns that are taken, the column of the data set, and whether it is divided by the capacity.
TRACKED: Final = {
    "cc_charge_fraction": ("CC Q", True),
    "cc_seconds": ("CC charge time", False),
    "cv_charge_fraction": ("CV Q", True),
    "cv_seconds": ("CV charge time", False),
}
#: The same of the shape of the charge.
SHAPES: Final = {
    "cc_voltage_mean_volt": ("voltage mean", False),
    "cc_voltage_std_volt": ("voltage std", False),
    "cc_voltage_skewness": ("voltage skewness", False),
    "cc_voltage_kurtosis": ("voltage kurtosis", False),
    "cv_c_rate_mean": ("current mean", True),
    "cv_c_rate_std": ("current std", True),
    "cv_c_rate_skewness": ("current skewness", False),
    "cv_c_rate_kurtosis": ("current kurtosis", False),
}
_CHARGE: Final = {**TRACKED, **SHAPES}
_HEALTH: Final = [c.name for c in health_columns()]
#: Columns of a view.
COLUMNS: Final = (
    *(name for name in _HEALTH if name not in ("soh_values", "history_days")),
    *(f"{prefix}_{name}" for name in _CHARGE for prefix in ("baseline", "recent")),
)
_HUST_TEST: Final = "1-4 1-8 2-4 2-8 3-4 3-8 4-4 4-8 5-4 5-7 6-4 6-8 7-4 7-8 8-4 8-8 9-4 9-8 10-4 10-8".split()
_TJU_TEST: Final = {"Dataset_1": (4, 8), "Dataset_2": (3, 7), "Dataset_3": (4, 8)}  # of each ten, in order of name


@dataclass(frozen=True)
class Cell:
    """One cell: a value each cycle."""

    name: str
    set: str
    test: bool
    cycles: Array  # equivalent full cycles so far
    soh: Array  # percent of the nominal capacity
    charge: dict[str, Array]  # by session column
    life: float  # cycles at which the SOH is 80 %
    beyond: float  # how far above 80 % the record ends; 0 if it goes on below

    @property
    def scored(self) -> bool:
        """Whether its end is measured well enough to be tested on."""
        return self.beyond <= BEYOND and self.life >= SHORTEST


@dataclass(frozen=True)
class View:
    """Rows of a cell as the stream gives them, and the truth."""

    cell: Cell
    rows: Matrix  # (rows, COLUMNS)
    rul: Array


def _is_test(dataset: str, batch: str, cell: str, place: int) -> bool:
    """The split of Wang et al. 2024, by cell."""
    if dataset == "HUST":
        return cell in _HUST_TEST
    if dataset == "XJTU":
        return "4" in cell or "8" in cell
    return place % 10 in _TJU_TEST[batch[:9]]


def _end_of_life(cycles: Array, soh: Array) -> tuple[float, float]:
    """Cycles at 80 % SOH, and how far above it the record ends; the last slope leads on from there."""
    smooth = np.array([np.median(soh[max(0, k - 3) : k + 4]) for k in range(len(soh))])
    below = np.flatnonzero(smooth <= END_OF_LIFE)
    if len(below):
        return float(cycles[below[0]]), 0.0
    slope = np.polyfit(cycles[-20:], smooth[-20:], 1)[0]
    beyond = float(smooth[-1] - END_OF_LIFE)
    return float(cycles[-1] + beyond / max(-slope, 1e-3)), beyond


def cells(data: Path) -> list[Cell]:
    """The cells whose life is known: those of HUST, XJTU and TJU whose record ends near 80 % SOH or below.

    No cell of the fourth set, MIT, is among them: their records end at about 84 %.
    """
    names = ["dataset", "batch", "cell", "cycle", "capacity", *(column for column, _ in _CHARGE.values())]
    table = pq.read_table(data, columns=names).to_pydict()
    order = sorted(range(len(table["cell"])), key=lambda k: tuple(table[n][k] for n in names[:4]))
    found: list[Cell] = []
    for (dataset, batch), rows in groupby(order, key=lambda k: (table["dataset"][k], table["batch"][k])):
        if dataset.lower() not in SETS:
            continue
        nominal = 2.5 if batch.startswith("Dataset_3") else SETS[dataset.lower()]
        for place, (name, part) in enumerate(groupby(rows, key=lambda k: table["cell"][k])):
            k = list(part)
            column = {n: np.array([table[n][i] for i in k], float) for n in names[3:]}
            soh = 100 * column["capacity"] / nominal
            cycles = np.cumsum(soh / 100 * np.diff(column["cycle"], prepend=0))
            life, beyond = _end_of_life(cycles, soh)
            if beyond <= BEYOND_TRAINING:
                charge = {n: column[c] / (nominal if moved else 1) for n, (c, moved) in _CHARGE.items()}
                test = _is_test(dataset, batch, name, place)
                found.append(Cell(f"{batch} {name}", dataset.lower(), test, cycles, soh, charge, life, beyond))
    return found


def estimated(rng: np.random.Generator, n: int) -> Array:
    """Errors as a SOH model has them, points: of the cell (0.5), drifting (0.4), of the session (0.3)."""
    drift, steps = np.empty(n), rng.standard_normal(n) * np.sqrt(1 - 0.98**2)
    at = rng.standard_normal()
    for k in range(n):
        at = 0.98 * at + steps[k]
        drift[k] = at
    return np.asarray(0.5 * rng.standard_normal() + 0.4 * drift + 0.3 * rng.standard_normal(n))


def histories(cycles: Array, soh: Array) -> Matrix:
    """The columns of the streaming kernel, by name order of `health_columns`."""
    settings = HealthSettings()
    thresholds = (*settings.believed_percent, settings.replaced_percent, settings.restart_cycles)
    out = np.empty((len(_HEALTH), len(soh)), np.float32)
    health.follow(
        np.zeros(1, health.STATE),
        np.zeros(len(soh), np.int32),
        np.arange(len(soh), dtype=np.int64),
        cycles.astype(np.float32),
        soh.astype(np.float32),
        np.array([thresholds], health.SETTINGS)[0],
        out,
    )
    return out


def tracked(values: Array) -> tuple[Array, Array]:
    """Baseline and recent average, as `voltmill.kernels.sessions` keeps them."""
    recent = np.empty_like(values)
    for k, x in enumerate(values):
        recent[k] = x if k == 0 else recent[k - 1] + (x - recent[k - 1]) * RECENT_WEIGHT
    counted = np.minimum(np.arange(len(values)), BASELINE_SESSIONS - 1)
    return (np.cumsum(values[:BASELINE_SESSIONS]) / np.arange(1, len(values[:BASELINE_SESSIONS]) + 1))[counted], recent


def view(cell: Cell, start: int = 0, error: Array | float = 0.0) -> View | None:
    """The cell from the cycle ``start`` on; None if too little of its life is left."""
    cycles, soh = cell.cycles[start:], cell.soh[start:] + error
    end = min(int(np.searchsorted(cycles, cell.life)), len(cycles))
    if end - FIRST < 1:
        return None
    rows = np.arange(FIRST - 1, end, max(1, -(-(end - FIRST) // POINTS)))
    by_name = dict(zip(_HEALTH, histories(cycles, soh), strict=True))
    for name, values in cell.charge.items():
        by_name[f"baseline_{name}"], by_name[f"recent_{name}"] = map(np.float32, tracked(values[start:]))
    made = np.column_stack([by_name[name][rows] for name in COLUMNS])
    return View(cell, made.astype(np.float32), cell.life - cycles[rows])


def _measured(cell: Cell, rng: np.random.Generator) -> View | None:
    return view(cell)


def _noisy(cell: Cell, rng: np.random.Generator) -> View | None:
    return view(cell, 0, estimated(rng, len(cell.soh)))


def _mid_life(cell: Cell, rng: np.random.Generator) -> View | None:
    return view(cell, int(len(cell.soh) * rng.uniform(0.05, 0.5)))


#: How the SOH is known, and since when.
CASES: Final[dict[str, Callable[[Cell, np.random.Generator], View | None]]] = {
    "measured_soh": _measured,
    "estimated_soh": _noisy,
    "from_mid_life": _mid_life,
}


TESTED: Final = {"measured_soh": 100, "estimated_soh": 101, "from_mid_life": 102}  # seeds


def views(chosen: Sequence[Cell], case: str, seed: int) -> Iterator[View]:
    """One view a cell; the same seed gives the same views."""
    for k, cell in enumerate(chosen):
        made = CASES[case](cell, np.random.default_rng([seed, k]))
        if made is not None:
            yield made


def errors(found: Sequence[tuple[View, Any]]) -> dict[str, float]:
    """Errors in cycles and in percent of life over views and their predictions (rows, 3); a cell counts as one."""
    lines = []
    for seen, out in found:
        e = np.abs(out[:, 0] - seen.rul)
        inside = (out[:, 1] <= seen.rul) & (seen.rul <= out[:, 2])
        share = 100 * e / seen.cell.life
        lines.append((e.mean(), (e**2).mean(), e.max(), 100 * inside.mean(), share.mean(), share.max()))
    a = np.array(lines)
    figures = {
        "mae": a[:, 0].mean(),
        "rmse": np.sqrt(a[:, 1].mean()),
        "worst": a[:, 2].max(),
        "coverage90": a[:, 3].mean(),
        "percent_of_life": a[:, 4].mean(),
        "worst_cell_percent_of_life": a[:, 4].max(),
        "worst_percent_of_life": a[:, 5].max(),
        "cells": float(len(a)),
    }
    return {name: round(float(x), 2) for name, x in figures.items()}


def measured(model: OnnxModel, known: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Errors on the test cells in each case, and of a yardstick: every cell lives as long as the training cells did."""
    chosen = [c for c in known if c.test and c.scored]
    found = {
        case: errors([(seen, model.predict(seen.rows)) for seen in views(chosen, case, seed)])
        for case, seed in TESTED.items()
    }
    life = np.mean([c.life for c in known if not c.test and c.scored])
    guesses = []
    for seen in views(chosen, "measured_soh", TESTED["measured_soh"]):
        left = np.maximum(life - (seen.cell.life - seen.rul), 0.0)
        guesses.append((seen, np.column_stack([left] * 3)))
    return found | {"yardstick/mean_life": errors(guesses)}
