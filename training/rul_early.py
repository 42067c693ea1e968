"""The early-life model: cycles left of A123 cells, from their first hundred discharges.

``severson_qdv.npz`` has Q(V) of cycles 2 to 100 of 84 cells, and their lives. Features are what the session table
gives of a discharge: the variance of the change of Q(V) since the first eight, at the same 48 voltages, and the
recent capacity and its change. Kernel ridge regression (Gaussian and linear) on the logarithm of the life; with 41
training cells anything larger fits noise. Its two parameters and its features were chosen by the leave-one-out
error of the training cells.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rul_card import early

from voltmill.kernels.session_table import BASELINE_SESSIONS, BINS, RECENT_WEIGHT
from voltmill.operators.contract import Contract, Feature, Range
from voltmill.operators.onnx_model import METADATA_KEY, OnnxModel

Array = NDArray[np.float64]

NAME: Final = "severson_early_life"
NOMINAL_AH: Final = 1.1
VOLTS: Final = (2.0, 3.6)
LENGTH: Final = 3.0  # of the Gaussian, in standard deviations of the features
NOISE: Final = 0.02  # variance of what the features do not tell, of that of the logarithm
FARTHEST: Final = 3.5  # standard deviations; what lies beyond is taken for this
LANES: Final = 16  # see `rul_network.LANES`
SHORT_LIVED: Final = 200  # cycles; cells that live no longer are outliers of the data set
COLUMNS: Final = ("delta_q_log10_variance", "recent_charge_fraction", "baseline_charge_fraction", "session_number")
#: From the columns to the three features: the variance, the capacity and its change, in percent of the nominal one.
MIXED: Final = np.array([[1, 0, 0], [0, 100, 100], [0, 0, -100], [0, 0, 0]], float)
DRIFT: Final = (88, 100)  # cycles between which the mean drift of the features is measured


@dataclass(frozen=True)
class Cells:
    """Cells: Q(V) in fractions of the nominal capacity at the lower bin edges, from full to empty."""

    curves: Array  # (cells, cycles from 2 on, 48)
    life: Array
    test: NDArray[np.bool_]

    def rows(self, cycle: int = 100) -> Array:
        """What the session table gives of the discharge of a cycle: (cells, COLUMNS)."""
        last = cycle - 2
        baseline = self.curves[:, :BASELINE_SESSIONS].mean(axis=1)
        recent = self.curves[:, 0, -1].copy()
        for k in range(1, last + 1):
            recent += (self.curves[:, k, -1] - recent) * RECENT_WEIGHT
        variance = np.log10((self.curves[:, last] - baseline).var(axis=1))
        return np.column_stack([variance, recent, baseline[:, -1], np.full(len(recent), cycle)])


def cells(data: Path) -> Cells:
    """The cells of the data set."""
    z = np.load(data)
    q = np.clip(z["q"].astype(float), -0.05, 1.3)  # a few cells hold spikes
    falling = np.linspace(VOLTS[1], VOLTS[0], q.shape[2])
    edges = np.linspace(VOLTS[1], VOLTS[0], BINS + 1)[1:]
    curves = np.array([[np.interp(-edges, -falling, cycle) for cycle in cell] for cell in q]) / NOMINAL_AH
    return Cells(curves, z["life"].astype(float), z["split"] != "train")


@dataclass(frozen=True)
class Machine:
    """Kernel ridge regression of log10 of the life."""

    mixed: Array  # (columns, 3): MIXED, and how the features drift from session to session
    mean: Array
    std: Array
    support: Array  # (cells, 3), scaled
    weight: Array
    middle: float
    half: float = 0.0  # half width of the 90 % interval, decades

    def log(self, rows: Array) -> Array:
        """log10 of the life."""
        return np.asarray(self.middle + _kernel(self._scaled(rows), self.support) @ self.weight)

    def _scaled(self, rows: Array) -> Array:
        return np.clip((rows @ self.mixed - self.mean) / self.std, -FARTHEST, FARTHEST)


def _kernel(a: Array, b: Array) -> Array:
    distance = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-distance / (2 * a.shape[1] * LENGTH**2)) + a @ b.T / a.shape[1])


def drift(known: Cells, chosen: NDArray[np.bool_]) -> Array:
    """``MIXED`` with the mean drift of these cells: what is asked before or after cycle 100 is moved there."""
    early, late = (known.rows(cycle)[chosen] @ MIXED for cycle in DRIFT)
    mixed = MIXED.copy()
    mixed[COLUMNS.index("session_number")] = -(late - early).mean(axis=0) / (DRIFT[1] - DRIFT[0])
    return mixed


def fit(rows: Array, life: Array, mixed: Array) -> Machine:
    """The machine of these cells; without an interval."""
    x, y = rows @ mixed, np.log10(life)
    mean, std = x.mean(axis=0), x.std(axis=0)
    scaled = (x - mean) / std
    weight = np.linalg.solve(_kernel(scaled, scaled) + NOISE * np.eye(len(x)), (y - y.mean()))
    return Machine(mixed, mean, std, scaled, weight, float(y.mean()))


def left_out(rows: Array, life: Array, mixed: Array) -> Array:
    """Errors of log10 of the life, of each cell by the machine of the others."""
    errors = []
    for k in range(len(life)):
        others = np.arange(len(life)) != k
        errors.append(fit(rows[others], life[others], mixed).log(rows[[k]])[0] - np.log10(life[k]))
    return np.array(errors)


def calibrated(known: Cells, chosen: NDArray[np.bool_]) -> Machine:
    """The machine of these cells with its interval: the 90 % quantile of the leave-one-out errors."""
    rows, life, mixed = known.rows()[chosen], known.life[chosen], drift(known, chosen)
    return replace(fit(rows, life, mixed), half=float(np.quantile(np.abs(left_out(rows, life, mixed)), 0.9)))


def figures(out: Array, truth: Array) -> dict[str, float]:
    """Errors in cycles, and in percent of the truth; ``out``: value and both ends of its interval."""
    value, low, high = out.T
    e = np.abs(value - truth)
    inside = (low <= truth) & (truth <= high)
    found = (
        e.mean(),
        np.sqrt((e**2).mean()),
        e.max(),
        100 * inside.mean(),
        100 * (e / truth).mean(),
        100 * (e / truth).max(),
    )
    names = ("mae", "rmse", "worst", "coverage90", "percent_of_life", "worst_percent_of_life")
    return {**{n: round(float(x), 2) for n, x in zip(names, found, strict=True)}, "cells": float(len(e))}


def cross_validated(known: Cells, chosen: NDArray[np.bool_], repeats: int = 10, folds: int = 5) -> dict[str, float]:
    """Over all cells, each predicted by machines that have not seen it; figures are means over the repetitions."""
    rows, found = known.rows(), []
    for seed in range(repeats):
        fold = np.random.default_rng(seed).permutation(len(rows)) % folds
        out = np.empty((len(rows), 3))
        for k in range(folds):
            machine = calibrated(known, fold != k)
            log = machine.log(rows[fold == k])
            out[fold == k] = 10 ** np.column_stack([log, log - machine.half, log + machine.half])
        found.append(figures(out[chosen], known.life[chosen]))
    return {name: round(float(np.mean([f[name] for f in found])), 2) for name in found[0]}


def yardsticks(known: Cells) -> dict[str, dict[str, float]]:
    """The mean of the training cells, and the variance alone (Severson's first model), on the same test cells."""
    rows, y, train = known.rows(), np.log10(known.life), ~known.test
    line = np.polyfit(rows[train, 0], y[train], 1)
    guesses = {"always_the_mean": np.full(len(y), y[train].mean()), "variance_alone": np.polyval(line, rows[:, 0])}
    return {
        f"yardstick/{name}": figures(np.column_stack([10 ** guess[known.test]] * 3), known.life[known.test])
        for name, guess in guesses.items()
    }


def measured(model: OnnxModel, known: Cells) -> dict[str, dict[str, float]]:
    """Errors of the life on the test cells, with and without the short-lived ones, and cross-validated."""
    found = {}
    long = known.life > SHORT_LIVED
    for name, chosen, cycle in (
        ("test1", known.test, 100),
        ("test1_without_short_lived", known.test & long, 100),
        ("test1_at_cycle_90", known.test, 90),
    ):
        out = model.predict(known.rows(cycle)[chosen].astype(np.float32)).astype(float) + cycle
        found[name] = figures(out, known.life[chosen])
    found["cross_validated"] = cross_validated(known, np.ones(len(long), bool))
    found["cross_validated_without_short_lived"] = cross_validated(known, long)
    return found | yardsticks(known)


def contract(sha256: str, found: dict[str, dict[str, float]]) -> Contract:
    """What the model promises."""
    ranges = ((-8.0, -1.0), (0.7, 1.2), (0.8, 1.2), (90.0, 110.0))
    return Contract(
        kind="features",
        table="sessions",
        session="discharge",
        name=NAME,
        version="1.0.0",
        target="rul",
        unit="cycles",
        features=tuple(
            Feature(name=n, offset=0.0, scale=1.0, low=low, high=high)
            for n, (low, high) in zip(COLUMNS, ranges, strict=True)
        ),
        conditions=(
            Range(name="c_rate_mean", low=3.4, high=4.6),
            Range(name="missing_fraction", low=0.0, high=0.02),
        ),
        outputs=("value", "lo90", "hi90"),
        current_sign="positive_while_charging",
        dt_range_seconds=(0.0, 10.0),
        cell_type="a123-apr18650m1a",
        nominal_ah=NOMINAL_AH,
        training_data_sha256=sha256,
        errors=found,
    )


class _Graph:
    """Nodes and constants of an ONNX graph in the making; each step gives the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, op: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        to = to or f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [to], **attributes))
        return to

    def column(self, x: str, k: int) -> str:
        return self.add("Gather", x, self.constant(f"{x}_{k}", [k], np.int64), axis=1)

    def sum(self, terms: Sequence[str]) -> str:
        total = terms[0]
        for term in terms[1:]:
            total = self.add("Add", total, term)
        return total


def export(machine: Machine, promised: Contract, path: Path) -> None:
    """The machine as ONNX: columns of the session table in, cycles left and the ends of the interval out."""
    fill = -len(machine.support) % LANES
    support = np.append(machine.support, np.zeros((fill, 3)), axis=0).T[:, None]  # (3, 1, cells)
    ends = np.zeros((1, LANES))
    ends[0, 1:3] = -machine.half, machine.half
    g = _Graph()
    for name, value in (("mean", machine.mean), ("std", machine.std), ("low", -FARTHEST), ("high", FARTHEST)):
        g.constant(name, value)
    columns = [g.column("features", k) for k in range(len(COLUMNS))]
    mixed = g.sum(
        [g.add("Mul", x, g.constant(f"{x}_mixed", row[None])) for x, row in zip(columns, machine.mixed, strict=True)]
    )
    scaled = g.add("Clip", g.add("Div", g.add("Sub", mixed, "mean"), "std"), "low", "high")
    squares, products = [], []
    for k in range(3):
        z, s = g.column(scaled, k), g.constant(f"support{k}", support[k])
        apart = g.add("Sub", z, s)
        squares.append(g.add("Mul", apart, apart))
        products.append(g.add("Mul", z, s))
    distance = g.add("Div", g.sum(squares), g.constant("size", -2.0 * 3 * LENGTH**2))
    linear = g.add("Div", g.sum(products), g.constant("count", 3.0))
    kernel = g.add("Add", g.add("Exp", distance), linear)
    parts = g.add("Mul", kernel, g.constant("weight", np.append(machine.weight, np.zeros(fill))[None]))
    log = g.add("ReduceSum", parts, g.constant("across", [1], np.int64), keepdims=1)
    logs = g.add("Add", g.add("Add", log, g.constant("middle", machine.middle)), g.constant("ends", ends))
    life = g.add("Exp", g.add("Mul", logs, g.constant("decade", np.log(10.0))))
    left = g.add("Sub", life, columns[COLUMNS.index("session_number")])
    three = g.add("Gather", left, g.constant("three", [0, 1, 2], np.int64), axis=1)
    g.add("Max", three, g.constant("nothing", 0.0), to="outputs")
    graph = helper.make_graph(
        g.nodes,
        promised.name,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", len(COLUMNS)])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["rows", 3])],
        g.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: msgspec.json.encode(promised).decode()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def train(data: Path, folder: Path) -> None:
    """Train, measure, write the model and its card."""
    known = cells(data)
    machine = calibrated(known, ~known.test)
    sha256, path = hashlib.sha256(data.read_bytes()).hexdigest(), folder / f"{NAME}.onnx"
    export(machine, contract(sha256, {}), path)
    found = measured(OnnxModel(path), known)
    export(machine, contract(sha256, found), path)
    rows, life = known.rows()[~known.test], known.life[~known.test]
    apart = life * (10 ** left_out(rows, life, machine.mixed) - 1)
    card = early(OnnxModel(path).contract, len(life), float(np.sqrt((apart**2).mean())))
    path.with_suffix(".md").write_text(card)
    for case, line in found.items():
        print(f"{NAME} {case:36}", line, flush=True)
