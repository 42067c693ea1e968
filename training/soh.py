"""Trains the SOH models: ``python training/soh.py``, about two minutes on one core.

Takes ``pinn4soh_features.parquet`` (Wang et al. 2024, 10.1038/s41467-024-48779-z) and gives, for each of its four data
sets, the ONNX file with its contract and the card beside it; and ``measured_soh``, which needs no training. There is
no random start. Split by cell; for each data set:

1. Machines that have not seen a fifth of the training cells say what they think of those: how wrong they are teaches
   the machine its own error, and how often the truth lies within it sets the width of the 90 % interval.
2. The model that is shipped sees all training cells.
3. It is measured on the test cells, which nothing before has seen, through the product's own `estimate`.

What the models look at, and how finely, was found by `soh_tune.py` on training cells.
"""

import argparse
import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from soh_card import PLAIN, card, measured_card
from soh_data import DATA, DATASETS, KINDS, ROOT, Array, Cell, measured_in, read, sessions
from soh_kernel import Interval, Machine, Tuned, calibrate, fit, load_tuned, rows_of, unseen
from soh_measured import write_measured
from soh_onnx import STATE, export, features

from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.session_table import BASELINE_SESSIONS
from voltmill.operators.contract import Contract, Range
from voltmill.operators.estimate import offline
from voltmill.operators.model import Model, OnnxModel

OUTPUT: Final = ROOT / "operators" / "models"
VERSION: Final = "1.0.0"
#: Charges of each training cell, spread over its life, that the model keeps: they are most of the file.
PER_CELL: Final = {"XJTU": 40, "TJU": 18, "HUST": 40, "MIT": 12}
#: A shorter phase has too few samples for its moments, s.
PHASE_SECONDS: Final = 10.0
#: What is measured: one charge of so many goes from empty to full, beside the first 8.
CASES: Final = {"unseen_cells": 0, "full_charge_in_400": 400, "full_charge_in_100": 100, "full_charge_in_30": 30}
#: Session of the device from which on there is a prediction: its baseline is complete.
FIRST: Final = BASELINE_SESSIONS + 1
FLEET: Final = Fleet(
    [
        FleetEntry(match=f"{dataset}/{batch}*", cell_type=dataset.lower(), capacity_ah=nominal)
        for dataset, batch, nominal in KINDS.values()
    ]
)


def learn(cells: Sequence[Cell], tuned: Tuned, per_cell: int) -> tuple[Machine, Interval]:
    """The machine of training cells, and the half width of its 90 % interval in foreseen errors."""
    rows = rows_of(cells)
    value = unseen(rows, tuned, per_cell, seed=21)[:, 0]
    errors = value - rows.target
    foreseen = np.exp(unseen(rows, tuned, per_cell, seed=22, errors=errors)[:, 1])
    some = rows.spread(per_cell)
    return fit(rows[some], tuned, errors[some]), calibrate(rows, value, foreseen)


def contract(dataset: str, cells: Sequence[Cell], data: Path, measured: dict[str, dict[str, float]]) -> Contract:
    """What the model promises; ``cells``: those it was trained on."""
    inputs = features(cells)
    shortest = {f.name: f.low for f in inputs}
    return Contract(
        kind="step",
        table="sessions",
        session="charge",
        name=f"{dataset.lower()}_soh",
        version=VERSION,
        target="soh",
        unit="percent",
        features=inputs,
        conditions=(
            Range(name="session_number", low=FIRST, high=1e9),
            Range(name="missing_fraction", low=0.0, high=0.1),
            *(Range(name=n, low=max(shortest[n], PHASE_SECONDS), high=1e9) for n in ("cc_seconds", "cv_seconds")),
        ),
        outputs=("value", "lo90", "hi90"),
        current_sign="positive_while_charging",
        dt_range_seconds=(0.0, 60.0),
        cell_type=dataset.lower(),
        nominal_ah=max(c.nominal_ah for c in cells),
        state_size=STATE,
        training_data_sha256=hashlib.sha256(data.read_bytes()).hexdigest(),
        errors=measured,
    )


def figures(cells: Sequence[Cell], every: int, value: Array, low: Array, high: Array) -> dict[str, float]:
    """Errors in points of SOH, and in percent of it, of the rows that have a value; a row counts as one.

    Charges that measured the capacity themselves do not count.
    """
    truth = 100 * np.concatenate([c.capacity for c in cells])
    who = np.repeat(np.arange(len(cells)), [len(c) for c in cells])
    asked = ~np.concatenate([measured_in(len(c), every) for c in cells])
    there = asked & np.isfinite(value)
    e, relative = np.abs(value - truth)[there], 100 * np.abs(value / truth - 1)[there]
    by_cell = [relative[who[there] == k].mean() for k in np.unique(who[there])]
    inside = ((low <= truth) & (truth <= high))[there]
    found = {
        "mae": e.mean(),
        "rmse": np.sqrt((e**2).mean()),
        "worst": e.max(),
        "coverage90": 100 * inside.mean(),
        "mape": relative.mean(),
        "worst_cell_mape": max(by_cell),
        "p99": np.quantile(e, 0.99),
        "answered": 100 * there.sum() / asked.sum(),
        "cells": len(by_cell),
        "rows": there.sum(),
    }
    return {name: round(float(f), 3) for name, f in found.items()}


def measure(model: Model, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Figures of the model on cells, through the product's own `estimate`: of all, and of each kind."""
    found = {}
    for case, every in CASES.items():
        found[case] = _measured(model, cells, every)
    kinds = sorted({c.kind for c in cells})
    for kind in kinds if len(kinds) > 1 else ():
        found[kind] = _measured(model, [c for c in cells if c.kind == kind], 0)
    return found


def _measured(model: Model, cells: Sequence[Cell], every: int) -> dict[str, float]:
    predictions, failure = offline(sessions(cells, every), model, FLEET)
    assert failure is None
    columns = (predictions.column(n).to_numpy(zero_copy_only=False) for n in ("value", "lo90", "hi90"))
    return figures(cells, every, *(np.asarray(c, np.float64) for c in columns))


def left_out(cells: Sequence[Cell], tuned: Tuned, per_cell: int) -> dict[str, dict[str, float]]:
    """Figures on cells left out in turn: of the training cells, of all cells, and without a measured capacity."""
    found = {}
    for case, some in (("training_cells_left_out", [c for c in cells if not c.test]), ("all_cells_left_out", cells)):
        rows = rows_of(some)
        value = unseen(rows, tuned, per_cell, seed=31)[:, 0] * rows.baseline
        found[case] = plain_figures(rows.cell, value, rows.target * rows.baseline)
    rows = rows_of(cells)
    test = np.array([c.test for c in cells])[rows.cell]
    soh = rows.target * rows.baseline
    blind = dataclasses.replace(rows, target=soh)
    known = blind[~test]
    value = fit(known[known.spread(per_cell)], tuned)(rows.inputs[test])[:, 0]
    found["without_measured_capacity"] = plain_figures(rows.cell[test], value, soh[test])
    return found


def plain_figures(cell: Any, value: Array, truth: Array) -> dict[str, float]:
    """Errors of fractions, in points and percent, without an interval."""
    e, relative = 100 * np.abs(value - truth), 100 * np.abs(value / truth - 1)
    counts = np.bincount(cell)
    by_cell = np.bincount(cell, relative)[counts > 0] / counts[counts > 0]
    all_ = (e.mean(), np.sqrt((e**2).mean()), e.max(), relative.mean(), by_cell.max())
    return {name: round(float(f), 3) for name, f in zip(PLAIN, all_, strict=True)}


def train(dataset: str, cells: Sequence[Cell], data: Path, folder: Path) -> None:
    """One model: file and card."""
    began = time.process_time()
    known, tuned = [c for c in cells if not c.test], load_tuned()[dataset]
    machine, interval = learn(known, tuned, PER_CELL[dataset])
    path = folder / f"{dataset.lower()}_soh.onnx"
    export(machine, interval, contract(dataset, known, data, {}), path)
    found = measure(OnnxModel(path), [c for c in cells if c.test])
    found |= left_out(cells, tuned, PER_CELL[dataset])
    export(machine, interval, contract(dataset, known, data, found), path)
    path.with_suffix(".md").write_text(card(dataset, OnnxModel(path), cells, len(machine.support)))
    for key, each in found.items():
        print(f"{dataset} {key:28}", each, flush=True)
    print(f"{dataset}: {interval}, {time.process_time() - began:.0f} s of one core", flush=True)


def main() -> None:
    """Train, measure, write the models and their cards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="pinn4soh_features.parquet")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder of the ONNX files and cards")
    parser.add_argument("--only", choices=(*DATASETS, "measured"), help="one of the models")
    given = parser.parse_args()
    every = read(given.data)
    for dataset in DATASETS:
        if given.only in (None, dataset):
            train(dataset, [c for c in every if c.dataset == dataset], given.data, given.out)
    if given.only in (None, "measured"):
        path = given.out / "measured_soh.onnx"
        found, learned = write_measured(path, given.data.with_name("calce_cs2.parquet"))
        path.with_suffix(".md").write_text(measured_card(OnnxModel(path), learned))
        for key, each in (found | learned).items():
            print(f"measured {key:28}", each)


if __name__ == "__main__":
    main()
