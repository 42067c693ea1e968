"""ONNX files as exporters write them, right and wrong: built with the onnx package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64

Shape = Sequence[int | str | None]
Node = tuple[Any, ...]
"""Operator, inputs, outputs, attributes."""


def save(
    path: Path,
    nodes: Sequence[Node],
    inputs: dict[str, Shape],
    outputs: dict[str, Shape],
    weights: dict[str, Any] | None = None,
    *,
    type_: int = FLOAT,
    output_type: int = FLOAT,
    metadata: dict[str, str] | None = None,
    opset: int = OPSET,
    ir_version: int = 9,
) -> Path:
    """A file of these nodes; weights are float32 unless they are arrays."""
    made = []
    for operator, takes, gives, *attributes in nodes:
        domain = "ai.onnx.ml" if operator == "LinearRegressor" else None
        made.append(helper.make_node(operator, takes, gives, domain=domain, **(attributes[0] if attributes else {})))
    graph = helper.make_graph(
        made,
        "test",
        [helper.make_tensor_value_info(name, type_, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, output_type, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(_array(value), name) for name, value in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="test")
    helper.set_model_props(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return path


def scikit_learn(path: Path, coefficients: Sequence[float] = (80.0, 2.0), intercept: float = -230.0) -> Path:
    """A linear regression as skl2onnx exports it."""
    linear = ("LinearRegressor", ["X"], ["variable"], {"coefficients": coefficients, "intercepts": [intercept]})
    return save(path, [linear], {"X": [None, len(coefficients)]}, {"variable": [None, 1]})


def recurrent(path: Path, *, features: int = 2, size: int = 4, keep: float = 0.5) -> Path:
    """A step model: h' = tanh(keep h + x W), value = 50 + h' V; kept above 1 without tanh, it grows."""
    rng = np.random.default_rng(0)
    weights = {
        "W": rng.normal(0, 0.1, (features, size)),
        "V": rng.normal(0, 5, (size, 1)),
        "keep": np.full(size, keep),
        "c": [50.0],
    }
    nodes: list[Node] = [
        ("MatMul", ["x", "W"], ["a"]),
        ("Mul", ["h", "keep"], ["b"]),
        ("Add", ["a", "b"], ["s"]),
        ("Tanh" if keep < 1 else "Identity", ["s"], ["h2"]),
        ("Tanh", ["h2"], ["t"]),
        ("MatMul", ["t", "V"], ["v"]),
        ("Add", ["v", "c"], ["y"]),
    ]
    ins, outs = {"x": ["rows", features], "h": ["rows", size]}, {"y": ["rows", 1], "h2": ["rows", size]}
    return save(path, nodes, ins, outs, weights)


def windowed(path: Path, *, rows: int = 5, features: int = 2) -> Path:
    """A window model: a product of the whole window."""
    weights = {"W": np.full((rows * features, 1), 20.0 / rows), "shape": np.array([-1, rows * features]), "c": [-25.0]}
    nodes: list[Node] = [
        ("Reshape", ["x", "shape"], ["flat"]),
        ("MatMul", ["flat", "W"], ["a"]),
        ("Add", ["a", "c"], ["y"]),
    ]
    return save(path, nodes, {"x": ["n", rows, features]}, {"y": ["n", 1]}, weights)


def read(path: Path) -> Any:
    return onnx.load(path)


def _array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array if array.dtype == np.int64 and isinstance(value, np.ndarray) else array.astype(np.float32)
