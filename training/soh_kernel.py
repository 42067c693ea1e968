"""The SOH model: averages of what a charge shows, over the device's life, and a kernel machine on them.

The change of each quantity against the device's own baseline is averaged over the last 3, 12, 50 and 200 charges
(exponentially) and over all of them; those averages are all that is carried for a device. A rational quadratic
kernel and a linear one (Rasmussen & Williams 2006, chapter 4) on the averages and the baseline give capacity as a
fraction of the device's own first measured capacity, and the logarithm of how wrong that is likely to be. With so
few cells it generalises to new ones better than trees or networks do, and has no random start.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from soh_data import NAMES, Array, Cell, baselines

from voltmill.kernels.session_table import BASELINE_SESSIONS

TAUS: Final = (3, 12, 50, 200)  # charges
#: Spans of the averages, by which the inputs are weighted: baseline, the averages, the mean of all.
SPANS: Final = ("baseline", *map(str, TAUS), "life")
WIDTH: Final = len(SPANS) * len(NAMES)
#: Charges and times are compared by ratio; the others by difference.
BY_RATIO: Final = np.array([not name.startswith(("cc_v", "cv_c_")) for name in NAMES])
CLIP: Final = 4.0  # standard deviations: a charge unlike any other must not carry the model off
CELL_SPAN: Final = 300.0  # charges over which a cell differs from the rest in its own way
FLOOR: Final = 1e-4
CALIBRATED_EVERY: Final = 200  # charges between measured capacities
#: What `soh_tune.py` found.
TUNED: Final = Path(__file__).with_name("soh_tuned.json")
_FLOOR_ERROR: Final = 5e-4  # of the initial capacity, added before the logarithm


@dataclass(frozen=True)
class Tuned:
    """What cross-validation over training cells decides."""

    length: float = 1.5
    """Length of the kernel, standard deviations per square root of an input."""
    linear: float = 1.5
    """Weight of the linear kernel."""
    noise: float = 0.03
    """Variance of the noise, parts of the variance of the target."""
    cell: float = 0.002
    """Variance of what is peculiar to a cell."""
    weights: tuple[float, ...] = (1.0,) * WIDTH
    """Of the inputs, span by span; their mean square is 1."""


def load_tuned() -> dict[str, Tuned]:
    """What was found, by data set."""
    stored: dict[str, dict[str, Any]] = json.loads(TUNED.read_text())
    return {name: Tuned(**values | {"weights": tuple(values["weights"])}) for name, values in stored.items()}


@dataclass(frozen=True)
class Rows:
    """What the model sees of cells: from the session on at which the baseline is complete."""

    inputs: Array
    target: Array
    """Capacity as a fraction of the baseline capacity."""
    baseline: Array
    """Baseline capacity as a fraction of the nominal one."""
    cell: NDArray[np.int64]
    number: Array
    """Number of the charge."""

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows: NDArray[np.bool_]) -> "Rows":
        return Rows(*(each[rows] for each in (self.inputs, self.target, self.baseline, self.cell, self.number)))

    def spread(self, per_cell: int) -> NDArray[np.bool_]:
        """About so many rows of each cell, evenly over its life."""
        first = np.unique(self.cell, return_index=True)[1]
        counts = np.bincount(self.cell)[self.cell]
        rank = np.arange(len(self)) - first[np.searchsorted(np.unique(self.cell), self.cell)]
        wanted = np.minimum(per_cell, counts)
        return np.asarray((rank + 1) * wanted // counts > rank * wanted // counts)


def scale(quantities: Array) -> Array:
    """Quantities by ratio as logarithms."""
    out = quantities.copy()
    out[:, BY_RATIO] = np.log(np.maximum(out[:, BY_RATIO], FLOOR))
    return out


def rows_of(cells: Sequence[Cell]) -> Rows:
    """The rows of cells, each cell's in order."""
    parts = []
    for k, cell in enumerate(cells):
        past = scale(baselines(cell.quantities))[BASELINE_SESSIONS:]
        change = scale(cell.quantities)[BASELINE_SESSIONS:] - past
        capacity = baselines(cell.capacity)[BASELINE_SESSIONS:]
        n = len(change)
        parts.append(
            Rows(
                np.concatenate([past, *averages(change)], axis=1),
                cell.capacity[BASELINE_SESSIONS:] / capacity,
                capacity,
                np.full(n, k),
                np.arange(n) + BASELINE_SESSIONS + 1.0,
            )
        )
    names = ("inputs", "target", "baseline", "cell", "number")
    return Rows(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def averages(change: Array) -> list[Array]:
    """Averages over each span, without the bias of the zeros they begin with."""
    n = np.arange(1, len(change) + 1)
    out = []
    for gains in (*((1 / t) / (1 - (1 - 1 / t) ** n) for t in TAUS), 1 / n):
        average = np.zeros(change.shape[1])
        rows = np.empty_like(change)
        for i, gain in enumerate(gains):
            average = average + gain * (change[i] - average)
            rows[i] = average
        out.append(rows)
    return out


@dataclass(frozen=True)
class Machine:
    """A fitted kernel machine of two outputs: the target, and the logarithm of the error."""

    centre: Array
    spread: Array
    weights: Array
    tuned: Tuned
    support: Array
    """Weighted inputs of the training rows."""
    alpha: Array
    """(rows, 2)."""
    constant: Array
    """(2,)."""

    def weighted(self, inputs: Array) -> Array:
        """Inputs as the kernel compares them."""
        return np.asarray(np.clip((inputs - self.centre) / self.spread, -CLIP, CLIP) * self.weights)

    def __call__(self, inputs: Array) -> Array:
        """Both outputs, (rows, 2)."""
        out = np.empty((len(inputs), 2))
        for start in range(0, len(inputs), 4096):
            part = self.weighted(inputs[start : start + 4096])
            out[start : start + 4096] = kernel(part, self.support, self.tuned) @ self.alpha + self.constant
        return out


def kernel(a: Array, b: Array, tuned: Tuned) -> Array:
    """Rational quadratic plus linear."""
    product = a @ b.T
    distance = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * product, 0)
    return np.asarray(1 / (1 + distance / (2 * tuned.length**2 * WIDTH)) + tuned.linear / WIDTH * product)


def fit(rows: Rows, tuned: Tuned, errors: Array | None = None) -> Machine:
    """The machine; ``errors``: of a machine that had not seen the row's cell, to learn how wrong it will be."""
    centre, spread = rows.inputs.mean(0), rows.inputs.std(0) + 1e-9
    weights = np.array(tuned.weights)
    x = np.clip((rows.inputs - centre) / spread, -CLIP, CLIP) * weights
    gram = kernel(x, x, tuned)
    same = rows.cell[:, None] == rows.cell
    gram += tuned.cell * same * np.exp(-np.abs(rows.number[:, None] - rows.number) / CELL_SPAN)
    alpha, constant = np.zeros((len(x), 2)), np.zeros(2)
    targets = [(rows.target, tuned.noise)]
    if errors is not None:  # errors scatter far more than capacities: mostly noise
        targets.append((np.log(np.abs(errors) + _FLOOR_ERROR), 1.0))
    for k, (y, noise) in enumerate(targets):
        constant[k] = y.mean()
        alpha[:, k] = np.linalg.solve(gram + noise * np.eye(len(x)), y - constant[k])
    return Machine(centre, spread, weights, tuned, x, alpha, constant)


def folds(rows: Rows, count: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row: cells, never rows, are shared out."""
    cells = np.unique(rows.cell)
    order = np.random.default_rng(seed).permutation(len(cells))
    fold = np.empty(len(cells), np.int64)
    fold[order] = np.arange(len(cells)) % count
    return np.asarray(fold[np.searchsorted(cells, rows.cell)])


@dataclass(frozen=True)
class Interval:
    """Half width of the 90 % interval in foreseen errors, by charges since the capacity was measured."""

    never: float
    """Where it was not since the baseline."""
    at_once: float
    """In the charge that measured it."""
    growth: float
    """What is added, times the square root of the charges since then; up to that of ``never``."""

    def __call__(self, since: Array) -> Array:
        """Widths for so many charges, -1: never."""
        width = np.minimum(self.never, self.at_once + self.growth * np.sqrt(np.maximum(since, 0)))
        return np.asarray(np.where(since < 0, self.never, width))


def corrected(rows: Rows, value: Array, every: int) -> tuple[Array, Array]:
    """Values that are set right by each measured capacity, and the charges since then (-1: never)."""
    offset, since = np.zeros(len(rows)), np.full(len(rows), -1.0)
    for k in range(len(rows)):
        if k and rows.cell[k] == rows.cell[k - 1]:
            offset[k] = offset[k - 1]
            since[k] = since[k - 1] + (since[k - 1] >= 0)
        if rows.number[k] % every == 0:
            offset[k], since[k] = rows.target[k] - value[k], 0
    return value + offset, since


def calibrate(rows: Rows, value: Array, foreseen: Array) -> Interval:
    """The interval that covers 90 % of values of unseen cells, with the capacity measured in one of 200 charges."""
    never = _covering(rows, np.abs(value - rows.target) / foreseen)
    better, since = corrected(rows, value, CALIBRATED_EVERY)
    ratio = np.abs(better - rows.target) / foreseen
    edges = (0, 5, 20, 50, 100, CALIBRATED_EVERY)
    bins = [(since > a) & (since <= b) for a, b in zip(edges, edges[1:], strict=False)]
    widths = [np.quantile(ratio[b], 0.9) for b in bins if b.any()]
    roots = [np.sqrt(since[b]).mean() for b in bins if b.any()]
    growth, at_once = np.polyfit(roots, widths, 1)
    shape = Interval(never, max(float(at_once), 0.05), max(float(growth), 0.0))
    after = since > 0
    wider = _covering(rows[after], ratio[after] / shape(since[after]))
    return Interval(round(never, 3), round(shape.at_once * wider, 3), round(shape.growth * wider, 4))


def _covering(rows: Rows, ratio: Array) -> float:
    """The quantile that covers 90 % of the next cell: each cell counts as one, and the next one as one more.

    Split conformal prediction with groups: Lee, Barber & Willett 2023, arXiv:2306.06342.
    """
    counts = np.bincount(rows.cell)
    cells = int((counts > 0).sum())
    order = np.argsort(ratio, kind="stable")
    share = np.cumsum(1 / counts[rows.cell[order]]) / cells
    return float(ratio[order][min(np.searchsorted(share, 0.9 * (cells + 1) / cells), len(ratio) - 1)])


def unseen(rows: Rows, tuned: Tuned, per_cell: int, seed: int, errors: Array | None = None, count: int = 5) -> Array:
    """What machines say of the rows whose cells they had not seen, (rows, 2)."""
    fold, spread = folds(rows, count, seed), rows.spread(per_cell)
    out = np.empty((len(rows), 2))
    for k in range(count):
        seen = (fold != k) & spread
        out[fold == k] = fit(rows[seen], tuned, None if errors is None else errors[seen])(rows.inputs[fold == k])
    return out
