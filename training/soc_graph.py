"""The networks of the SOC model as one ONNX file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from soc_network import FEATURES, NAMES, OFFSET, SCALE, SCALE_RANGE, SEEN, SLOPE_LIMIT, SQUARE_LIMIT
from soc_views import Matrix

from voltmill.operators.contract import Contract
from voltmill.operators.model import METADATA_KEY


class _Graph:
    """Nodes and constants of an ONNX graph, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *inputs: str | float | list[float] | Matrix, **how: Any) -> str:
        """A node with one output; numbers among its inputs become constants."""
        out = f"{op.lower()}{len(self.nodes)}"
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        self.nodes.append(helper.make_node(op, names, [out], **how))
        return out

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        """A constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, kind), name))
        return name

    def columns(self, x: str, start: int, stop: int) -> str:
        """Some columns of a matrix."""
        return self.add("Slice", x, *(self.constant([v], np.int64) for v in (start, stop, 1)))

    def network(self, x: str, net: torch.nn.Sequential, rows: slice = slice(None)) -> str:
        """A network; of its last layer only some outputs."""
        layers = [m for m in net if isinstance(m, torch.nn.Linear)]
        for k, layer in enumerate(layers):
            keep = rows if k == len(layers) - 1 else slice(None)
            weight, bias = layer.weight.detach().numpy()[keep], layer.bias.detach().numpy()[keep]
            # Gemm takes its weights transposed here, so that they are stored as the product reads them.
            x = self.add("Gemm", x, np.ascontiguousarray(weight.T), bias)
            if k < len(layers) - 1:
                x = self.add("Mul", x, self.add("Sigmoid", x))  # SiLU
        return x


def export(
    values: Sequence[torch.nn.Sequential],
    scale: torch.nn.Sequential,
    widening: Sequence[tuple[float, float]],
    contract: Contract,
    path: Path,
) -> None:
    """The networks as ONNX: scaled features in, value and Laplace scale in percent out.

    Args:
        values: networks for the SOC.
        scale: the network for the scale.
        widening: (°C, factor) by which the scale is multiplied; linear between, constant beyond.
        contract: what the model promises.
        path: the ONNX file.
    """
    g = _Graph()
    slope, capacity = SEEN - 3, SEEN - 2
    parts = [g.columns("features", 0, slope)]
    parts.append(g.add("Clip", g.columns("features", slope, capacity), -SLOPE_LIMIT, SLOPE_LIMIT))
    of_module, ah = g.columns("features", capacity + 1, capacity + 5), g.columns("features", capacity, capacity + 1)
    rate = g.add("Div", of_module, ah)
    square = g.add("Mul", rate, rate)
    both = g.add("Add", g.columns(square, 0, 2), g.columns(square, 2, 4))
    parts.append(g.add("Min", g.add("Mul", both, 0.5), SQUARE_LIMIT))
    x = g.add("Concat", *parts, axis=1)
    mean = g.add("Mul", g.add("Sum", *(g.network(x, net, slice(0, 1)) for net in values)), 50.0 / len(values))
    width = g.add("Exp", g.add("Clip", g.network(x, scale), *SCALE_RANGE))
    width = g.add("Mul", g.add("Mul", width, 50.0), _interpolated(g, widening))
    outputs = g.add("Concat", g.add("Add", mean, 50.0), width, axis=1)
    g.nodes.append(helper.make_node("Identity", [outputs], ["outputs"]))
    graph = helper.make_graph(
        g.nodes,
        contract.name,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", len(FEATURES)])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["rows", 2])],
        g.constants,
    )
    # Opset 17 and IR 8 are what onnxruntime 1.18, the oldest that is allowed, reads for certain.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: msgspec.json.encode(contract).decode()})
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def _interpolated(g: _Graph, table: Sequence[tuple[float, float]]) -> str:
    """A piecewise linear function of the temperature: a sum of ramps."""
    k = NAMES.index("cell_temperature_mean_celsius")
    nodes = (np.array([t for t, _ in table]) - OFFSET[k]) / SCALE[k]
    factors = np.array([f for _, f in table])
    bends = np.diff(np.diff(factors) / np.diff(nodes), prepend=0.0, append=0.0)
    ramps = g.add("Relu", g.add("Sub", g.columns("features", k, k + 1), nodes.tolist()))
    return g.add("Gemm", ramps, bends[:, None], [float(factors[0])])
