"""The kernel machine as an ONNX model of the kind step: what the stream runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from soh_data import NAMES, Cell, baselines
from soh_kernel import BY_RATIO, CLIP, FLOOR, TAUS, WIDTH, Interval, Machine

from voltmill.operators.contract import Contract, Feature
from voltmill.operators.model import METADATA_KEY

N: Final = len(NAMES)
AVERAGES: Final = 1 + N * (len(TAUS) + 1)  # charges so far, then the averages
#: ... then the correction of the last measured capacity, and 1 more than the charges since then (0: none was measured).
STATE: Final = AVERAGES + 2
CAPACITIES: Final = ("baseline_measured_capacity_ah", "measured_capacity_ah", "capacity_ah")
COLUMNS: Final = (*NAMES, *(f"baseline_{n}" for n in NAMES), *CAPACITIES)
LOG_ERROR_RANGE: Final = (-7.6, -1.6)  # 0.05 % to 20 % of the initial capacity


def features(cells: Sequence[Cell]) -> tuple[Feature, ...]:
    """The inputs; valid are those of the training cells with a margin of a tenth of what they range over."""

    def feature(name: str, low: float, high: float) -> Feature:
        low, high = float(f"{low:.5g}"), float(f"{high:.5g}")
        return Feature(name=name, offset=0.0, scale=1.0, low=low, high=high)

    low, high = np.quantile(np.concatenate([c.quantities for c in cells]), (0.0005, 0.9995), axis=0)
    margin = (high - low) * 0.1
    low, high = low - margin, high + margin
    low[BY_RATIO] = np.maximum(low[BY_RATIO], FLOOR)
    ranges = [feature(name, low[k], high[k]) for k, name in enumerate(NAMES)]
    new = [c.nominal_ah * baselines(c.capacity)[-1] for c in cells]
    nominal = [c.nominal_ah for c in cells]
    return (
        *ranges,
        *(msgspec.structs.replace(f, name=f"baseline_{f.name}") for f in ranges),
        feature("baseline_measured_capacity_ah", 0.95 * min(new), 1.05 * max(new)),
        Feature(
            name="measured_capacity_ah", offset=0.0, scale=1.0, low=0.0, high=1.3 * max(nominal), missing=0.0
        ),  # 0: this charge did not measure it
        feature("capacity_ah", 0.99 * min(nominal), 1.01 * max(nominal)),
    )


class _Graph:
    """Nodes and constants, with a method for each operator."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: NDArray[Any] | float | list[int], *, whole: bool = False) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, np.int64 if whole else np.float32), name))
        return name

    def add(self, operator: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        name = to or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def columns(self, x: str, first: int, last: int) -> str:
        ends = (self.constant([v], whole=True) for v in (first, last, 1))
        return self.add("Slice", x, *ends)

    def scaled(self, x: str) -> str:
        """Quantities by ratio as logarithms: see `soh_kernel.scale`."""
        ratios = int(BY_RATIO.sum())
        assert BY_RATIO[:ratios].all(), "those by ratio come first"
        logs = self.add("Log", self.add("Max", self.columns(x, 0, ratios), self.constant(FLOOR)))
        return self.add("Concat", logs, self.columns(x, ratios, N), axis=1)


def export(machine: Machine, interval: Interval, contract: Contract, path: Path) -> None:
    """Write the machine with its contract.

    Args:
        machine: of the capacity and the logarithm of its error.
        interval: half width of the 90 % interval in foreseen errors.
        contract: what stands beside it in the file.
        path: of the file.
    """
    g = _Graph()
    past = g.scaled(g.columns("features", N, 2 * N))
    change = g.add("Sub", g.scaled(g.columns("features", 0, N)), past)
    averages, carried_on = _averages(g, change)
    outputs = _machine(g, machine, g.add("Concat", past, averages, axis=1))
    first, measured, nominal = (g.columns("features", 2 * N + k, 2 * N + k + 1) for k in range(len(CAPACITIES)))
    ratio, since = _corrected(g, g.columns(outputs, 0, 1), g.add("Div", measured, first), carried_on)
    percent = g.add("Div", g.add("Mul", first, g.constant(100.0)), nominal)
    value = g.add("Mul", percent, ratio)
    error = g.add("Exp", g.add("Clip", g.columns(outputs, 1, 2), *(g.constant(v) for v in LOG_ERROR_RANGE)))
    half = g.add("Mul", g.add("Mul", percent, _width(g, interval, since)), error)
    g.add("Concat", value, g.add("Sub", value, half), g.add("Add", value, half), to="outputs", axis=1)
    graph = helper.make_graph(
        g.nodes,
        contract.name,
        [_rows("features", len(COLUMNS)), _rows("carried", STATE)],
        [_rows("outputs", 3), _rows("carried_on", STATE)],
        g.constants,
    )
    # Opset 17 and IR 8 are what onnxruntime 1.18, the oldest that is allowed, reads for certain.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: msgspec.json.encode(contract).decode()})
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def _rows(name: str, width: int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])


def _corrected(g: _Graph, ratio: str, measured: str, carried_on: str) -> tuple[str, str]:
    """The ratio set right by the last measured one, and how long ago that was; both are carried on."""
    zero, one = g.constant(0.0), g.constant(1.0)
    known = g.add("Greater", measured, zero)
    before, ago = g.columns("carried", AVERAGES, AVERAGES + 1), g.columns("carried", AVERAGES + 1, STATE)
    offset = g.add("Where", known, g.add("Sub", measured, ratio), before)
    older = g.add("Where", g.add("Greater", ago, zero), g.add("Add", ago, one), zero)
    since = g.add("Where", known, one, older)
    g.add("Concat", carried_on, offset, since, to="carried_on", axis=1)
    return g.add("Add", ratio, offset), since


def _width(g: _Graph, interval: Interval, since: str) -> str:
    """See `soh_kernel.Interval`; ``since`` is 1 more than there."""
    zero, never = g.constant(0.0), g.constant(interval.never)
    charges = g.add("Max", g.add("Sub", since, g.constant(1.0)), zero)
    wider = g.add("Mul", g.add("Sqrt", charges), g.constant(interval.growth))
    width = g.add("Min", g.add("Add", wider, g.constant(interval.at_once)), never)
    return g.add("Where", g.add("Greater", since, zero), width, never)


def _averages(g: _Graph, change: str) -> tuple[str, str]:
    """The averages brought up to date, side by side, and with the count before them."""
    count = g.add("Add", g.columns("carried", 0, 1), g.constant(1.0))
    before = g.columns("carried", 1, AVERAGES)
    gains = np.array([1 / t for t in TAUS])
    decayed = g.add("Exp", g.add("Mul", count, g.constant(np.log1p(-gains)[None])))
    settled = g.add("Div", g.constant(gains[None]), g.add("Sub", g.constant(1.0), decayed))
    each = g.add("Concat", settled, g.add("Reciprocal", count), axis=1)
    wide = g.add("Gather", each, g.constant(np.repeat(np.arange(len(TAUS) + 1), N), whole=True), axis=1)
    changes = g.add("Tile", change, g.constant([1, len(TAUS) + 1], whole=True))
    averages = g.add("Add", before, g.add("Mul", wide, g.add("Sub", changes, before)))
    return averages, g.add("Concat", count, averages, axis=1)


def _machine(g: _Graph, m: Machine, inputs: str) -> str:
    """Both outputs of the kernel machine."""
    scaled = g.add("Div", g.add("Sub", inputs, g.constant(m.centre[None])), g.constant(m.spread[None]))
    clipped = g.add("Clip", scaled, g.constant(-CLIP), g.constant(CLIP))
    x = g.add("Mul", clipped, g.constant(m.weights[None]))
    squares = g.add("ReduceSum", g.add("Mul", x, x), g.constant([1], whole=True), keepdims=1)
    # 1 + distance / (2 length² width): what does not depend on the row is added up beforehand.
    per = 1 / (2 * m.tuned.length**2 * WIDTH)
    product = g.add("MatMul", x, g.constant(-2 * per * m.support.T))
    own = g.add("Add", product, g.constant(1 + per * (m.support**2).sum(1)[None]))
    near = g.add("Reciprocal", g.add("Add", own, g.add("Mul", squares, g.constant(per))))
    linear = m.tuned.linear / WIDTH * m.support.T @ m.alpha
    both = g.add("Add", g.add("MatMul", near, g.constant(m.alpha)), g.add("MatMul", x, g.constant(linear)))
    return g.add("Add", both, g.constant(m.constant[None]))
