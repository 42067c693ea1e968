"""SOH as measured: the capacity of a discharge from full to empty over the nominal one, with an interval.

Nothing is learned. The interval is what current sensors of the usual class do to a count of charge; that it covers
90 % is so as far as the sensor is no worse than that.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx
import soh_calce
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from soh_data import NAMES
from soh_kernel import SPANS, Tuned, fit, rows_of

from voltmill.operators.contract import Contract, Feature, Range
from voltmill.operators.estimate import offline as estimated
from voltmill.operators.model import METADATA_KEY, OnnxModel
from voltmill.operators.sessions import offline

VERSION: Final = "1.0.0"
#: Standard deviations: of the gain of a current sensor (class 0.5: Hall sensors and shunts of battery systems), of its
#: offset, in C, and of what is bridged where samples are missing.
GAIN: Final = 0.005
OFFSET_C: Final = 0.001
BRIDGED: Final = 0.02
Z90: Final = 1.6449  # of a normal distribution
#: Records of CALCE that are left out: one of so many stays.
CASES: Final = {"calce": 1, "calce_every_second_sample": 2, "calce_every_fourth_sample": 4}
#: Below, the CALCE cells are past any use; the learned model is told apart there.
USED_UP: Final = 0.7
#: For the model that sees charges alone: no history but the last charges, for with one cell to learn from it misleads.
CHARGE_ONLY: Final = Tuned(
    length=3.0,
    linear=3.0,
    noise=0.1,
    weights=tuple(float(np.sqrt(len(SPANS))) if span == "3" else 0.0 for span in SPANS for _ in NAMES),
)

Array = NDArray[np.float64]


def contract(data: Path, errors: dict[str, dict[str, float]]) -> Contract:
    """What it promises."""

    def feature(name: str, low: float, high: float, missing: float | None = None) -> Feature:
        return Feature(name=name, offset=0.0, scale=1.0, low=low, high=high, missing=missing)

    return Contract(
        kind="features",
        table="sessions",
        session="discharge",
        name="measured_soh",
        version=VERSION,
        target="soh",
        unit="percent",
        features=(
            feature("measured_capacity_ah", 0.0, 1e6, missing=0.0),  # unknown: the condition below says why
            feature("capacity_ah", 1e-3, 1e6),
            feature("duration_seconds", 0.0, 1e6),
            feature("missing_fraction", 0.0, 1.0),
            feature("cell_temperature_mean_celsius", 10.0, 45.0, missing=25.0),  # in the cold less comes out
        ),
        conditions=(
            Range(name="measured_capacity_ah", low=1e-3, high=1e6),
            Range(name="missing_fraction", low=0.0, high=0.5),
            Range(name="c_rate_mean", low=0.02, high=1.2),
        ),
        outputs=("value", "lo90", "hi90"),
        current_sign="positive_while_charging",
        dt_range_seconds=(0.0, 300.0),
        cell_type="*",
        nominal_ah=0.0,
        training_data_sha256=hashlib.sha256(data.read_bytes()).hexdigest(),
        errors=errors,
    )


def export(made: Contract, path: Path) -> None:
    """Write it."""
    nodes: list[Any] = []

    def add(operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, list(inputs), [to], **attributes))
        return to

    inputs = ("measured", "nominal", "seconds", "missing", "celsius")
    nodes.append(helper.make_node("Split", ["features"], list(inputs), axis=1))
    value = add("Div", add("Mul", "measured", "hundred", to="charge"), "nominal", to="value")
    gain = add("Mul", value, "gain", to="of_gain")
    offset = add("Mul", "seconds", "offset", to="of_offset")
    bridged = add("Mul", add("Mul", value, "missing", to="unseen"), "bridged", to="of_bridged")
    squares = [add("Mul", x, x, to=f"{x}_squared") for x in (gain, offset, bridged)]
    half = add("Mul", add("Sqrt", add("Sum", *squares, to="variance"), to="deviation"), "z90", to="half")
    ends = add("Sub", value, half, to="low"), add("Add", value, half, to="high")
    add("Concat", value, *ends, to="outputs", axis=1)
    constants = {"hundred": 100.0, "gain": GAIN, "offset": 100 * OFFSET_C / 3600, "bridged": BRIDGED, "z90": Z90}
    graph = helper.make_graph(
        nodes,
        made.name,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", len(inputs)])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(np.float32(v).reshape(()), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: msgspec.json.encode(made).decode()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def measure(model: OnnxModel, data: Path) -> dict[str, dict[str, float]]:
    """Against the cycler's own counter, from V and I through quality, sessions and estimate."""
    found = {}
    for case, every in CASES.items():
        parts = [_compared(model, soh_calce.read(data, cell, every)) for cell in soh_calce.CELLS]
        found[case] = _figures(np.concatenate(parts))
        for cell, part in zip(soh_calce.CELLS, parts, strict=True):
            found[f"{case}/{cell}"] = _figures(part)
    return found


def _compared(model: OnnxModel, life: soh_calce.Life) -> Array:
    """Value, ends of the interval and truth, a row a discharge of a whole cycle."""
    predictions, failure = estimated(offline(life.telemetry, soh_calce.FLEET), model, soh_calce.FLEET)
    assert failure is None
    columns = [predictions.column(n).to_numpy(zero_copy_only=False) for n in ("value", "lo90", "hi90")]
    truth = 100 * life.counted(predictions.column("event_time").cast("int64").to_numpy()) / soh_calce.NOMINAL_AH
    rows = np.column_stack([*columns, truth]).astype(np.float64)
    return np.asarray(rows[np.isfinite(truth)])


def _figures(rows: Array) -> dict[str, float]:
    value, low, high, truth = rows[np.isfinite(rows[:, 0])].T
    e, relative = np.abs(value - truth), 100 * np.abs(value / truth - 1)
    found = {
        "mae": e.mean(),
        "rmse": np.sqrt((e**2).mean()),
        "worst": e.max(),
        "coverage90": 100 * ((low <= truth) & (truth <= high)).mean(),
        "mape": relative.mean(),
        "worst_percent": relative.max(),
        "answered": 100 * len(value) / len(rows),
        "rows": len(rows),
    }
    return {name: round(float(f), 4) for name, f in found.items()}


def charge_only(data: Path) -> dict[str, dict[str, float]]:
    """A machine that learned one CALCE cell from its charges alone, on the other cell: not shipped."""
    found = {}
    lives = [soh_calce.charged(soh_calce.read(data, cell), cell) for cell in soh_calce.CELLS]
    for known, new in (lives, lives[::-1]):
        learned, rows = rows_of([known]), rows_of([new])
        value = fit(learned[learned.spread(300)], CHARGE_ONLY)(rows.inputs)[:, 0]
        relative = 100 * np.abs(value / rows.target - 1)
        used = rows.target * rows.baseline >= USED_UP
        found[f"{known.name} to {new.name}"] = {
            "mape": round(float(relative[used].mean()), 2),
            "within_2_percent": round(float(100 * (relative[used] < 2).mean()), 1),
            "worst_percent": round(float(relative[used].max()), 1),
            "mape_whole_life": round(float(relative.mean()), 2),
        }
    return found


def write_measured(path: Path, data: Path) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The file; its figures, and those of the model from charges alone."""
    export(contract(data, {}), path)
    found = measure(OnnxModel(path), data)
    export(contract(data, found), path)
    return found, charge_only(data)
