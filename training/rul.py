"""Trains the RUL models: ``python training/rul.py``, some minutes on one core.

From the SOH history, a model each of HUST, XJTU and TJU cells (``pinn4soh_features.parquet``); from the first
hundred cycles, one of A123 cells (``severson_qdv.npz``, see `rul_early`). Each is an ONNX file with its contract
and a card beside it. Four steps, each with a fixed seed:

1. Five times, fit on four fifths of the training cells and note the errors on the last fifth.
2. From these, how large the error is where, and the factor that makes the interval cover 90 %.
3. Fit the model that is shipped on all training cells.
4. Measure it on the test cells, which nothing before has seen, as onnxruntime computes it.
"""

import argparse
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import rul_early
import torch
from numpy.typing import NDArray
from rul_card import history
from rul_cells import (
    BEYOND,
    BEYOND_TRAINING,
    CASES,
    COLUMNS,
    FIRST,
    SETS,
    SHORTEST,
    Cell,
    View,
    cells,
    measured,
    views,
)
from rul_network import INPUTS, OFFSET, Fitted, export, width_trees

from voltmill.kernels.health_table import LONGEST
from voltmill.operators.contract import Contract, Feature, Range
from voltmill.operators.onnx_model import OnnxModel

ROOT: Final = Path(__file__).resolve().parent.parent
OUTPUT: Final = ROOT / "operators" / "models"
DATA: Final = Path(os.environ.get("VOLTMILL_DATA", ROOT.parent / "shared" / "data"))
VERSION: Final = "1.0.0"
FOLDS: Final = 5
TRAINED: Final = (
    ("measured_soh", 0),
    ("estimated_soh", 1),
    ("estimated_soh", 2),
    ("from_mid_life", 3),
    ("from_mid_life", 4),
)
CALIBRATED: Final = (("measured_soh", 0), ("estimated_soh", 5), ("from_mid_life", 6))
LIMITS: Final = {"first": FIRST, "shortest": SHORTEST, "beyond": BEYOND, "beyond_training": BEYOND_TRAINING}

Array = NDArray[np.float64]
Matrix = NDArray[np.float32]


def together(seen: Sequence[View]) -> tuple[Matrix, Array, Array]:
    """Rows, cycles left, and weights under which each view counts the same."""
    weight = np.concatenate([np.full(len(v.rul), 1 / len(v.rul)) for v in seen])
    return np.concatenate([v.rows for v in seen]), np.concatenate([v.rul for v in seen]), weight / weight.mean()


def fit(chosen: Sequence[Cell], seed: int) -> Fitted:
    """A model of these cells; without an interval."""
    return Fitted(*together([v for case, s in TRAINED for v in views(chosen, case, s)]), seed=seed)


def quantile(values: Array, weight: Array, level: float) -> float:
    """The weighted quantile."""
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weight[order]), level * weight.sum())])


def calibrate(chosen: Sequence[Cell]) -> tuple[Any, float]:
    """The forest of the interval's width and its factor, from errors on cells that were not fitted on."""
    fold = np.random.default_rng(0).permutation(len(chosen)) % FOLDS
    rows: list[tuple[Matrix, Array, Array]] = []
    for k in range(FOLDS):
        model = fit([c for c, f in zip(chosen, fold, strict=True) if f != k], seed=k)
        held = [c for c, f in zip(chosen, fold, strict=True) if f == k and c.scored]
        x, rul, weight = together([v for case, s in CALIBRATED for v in views(held, case, s)])
        rows.append((x, np.log(rul + OFFSET) - model.log(x), weight))
    ratios = []
    for k, (x, residual, _) in enumerate(rows):
        others = [np.concatenate(part) for part in zip(*(r for j, r in enumerate(rows) if j != k), strict=True)]
        width = width_trees(*others, seed=k).predict(np.concatenate([x, INPUTS(x)], axis=1))
        ratios.append(np.abs(residual) / np.exp(width))
    weight = np.concatenate([r[2] for r in rows])
    everything = [np.concatenate(part) for part in zip(*rows, strict=True)]
    return width_trees(*everything, seed=9), quantile(np.concatenate(ratios), weight, 0.9)


def features(x: Matrix) -> tuple[Feature, ...]:
    """The inputs with the ranges that were trained on, and a quarter beyond."""
    made = []
    for name, values in zip(COLUMNS, x.T, strict=True):
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        room = 0.25 * (high - low)
        high = LONGEST if "cycles" in name and "per_100" not in name else high + room
        made.append(Feature(name=name, offset=0.0, scale=1.0, low=round(low - room, 4), high=round(high, 4)))
    return tuple(made)


def contract(name: str, x: Matrix, sha256: str, found: dict[str, dict[str, float]]) -> Contract:
    """What a model promises."""
    return Contract(
        kind="features",
        table="health",
        name=f"{name}_rul",
        version=VERSION,
        target="rul",
        unit="cycles",
        features=features(x),
        conditions=(Range(name="soh_values", low=FIRST, high=1e9),),
        outputs=("value", "lo90", "hi90"),
        current_sign="positive_while_charging",
        dt_range_seconds=(0.0, 1800.0),
        cell_type=name,
        nominal_ah=SETS[name],
        training_data_sha256=sha256,
        errors=found,
    )


def train(known: Sequence[Cell], data: Path, folder: Path) -> None:
    """Train, measure and write the model of the cells of one set."""
    name = known[0].set
    training = [c for c in known if not c.test]
    fitted = fit(training, seed=1)
    fitted.width, fitted.factor = calibrate(training)
    x = together([v for case in CASES for v in views(training, case, 0)])[0]
    sha256, path = hashlib.sha256(data.read_bytes()).hexdigest(), folder / f"{name}_rul.onnx"
    export(fitted, contract(name, x, sha256, {}), path)
    found = measured(OnnxModel(path), known)
    export(fitted, contract(name, x, sha256, found), path)
    path.with_suffix(".md").write_text(history(OnnxModel(path).contract, len(training), LIMITS))
    for case, figures in found.items():
        print(f"{name:5} {case:20}", figures, flush=True)


def main() -> None:
    """Train all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder of the ONNX files; the cards lie beside them")
    parser.add_argument("--only", choices=(*SETS, "early"), help="one model alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = arguments.data / "pinn4soh_features.parquet"
    known = cells(data)
    for name in SETS:
        if arguments.only in (None, name):
            train([c for c in known if c.set == name], data, arguments.out)
    if arguments.only in (None, "early"):
        rul_early.train(arguments.data / "severson_qdv.npz", arguments.out)


if __name__ == "__main__":
    main()
