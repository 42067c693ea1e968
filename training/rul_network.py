"""How a RUL model is fitted and exported: boosted trees and two small networks, averaged, in one ONNX graph.

All of them see the logarithms of cycles and ratios, so that a cell that ages twice as fast looks alike, and give
the logarithm of the cycles left. The half width of the interval is a small forest of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import lightgbm
import msgspec
import numpy as np
import onnx
import onnxmltools
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxmltools.convert.common.data_types import FloatTensorType
from rul_cells import COLUMNS, SHAPES, TRACKED

from voltmill.kernels.health_table import LAPS, MEMORIES
from voltmill.operators.contract import Contract
from voltmill.operators.onnx_model import METADATA_KEY

Matrix = NDArray[np.float32]
Array = NDArray[np.float64]

OFFSET: Final = 5.0  # cycles, added before the logarithm: errors of a few cycles are all the same
HIDDEN: Final = 48
EPOCHS: Final = 20
NETWORKS: Final = 2
#: Columns of what goes through Exp and Log are a multiple of this: onnxruntime computes sixteen at once, and what is
#: left over in another way, to other bits. So no row is ever left over, whatever batch it stands in.
LANES: Final = 16
_TREES: Final = {
    "learning_rate": 0.04,
    "num_leaves": 10,
    "min_child_samples": 30,
    "subsample": 0.7,
    "subsample_freq": 1,
    "colsample_bytree": 0.4,
    "objective": "l1",
    "n_jobs": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
_LINEAR: Final = {  # name, low, high, scale: taken as they are, within these limits
    "soh_margin_percent": (0.0, 25.0),
    "soh_start_percent": (85.0, 105.0),
    "soh_loss_percent": (0.0, 25.0),
    "soh_first_half_share": (0.0, 1.0),
    "soh_spread_percent": (0.0, 2.0),
}
_LOGARITHMIC: Final = {
    "soh_margin_percent": (0.1, 25.0),
    "history_cycles": (1.0, 1e4),
    "peak_cycles": (1.0, 1e4),
    "soh_mean_rate_percent_per_100_cycles": (0.01, 100.0),
    **{f"linear_{t}_cycles": (1.0, 1e4) for t in MEMORIES},
    **{f"lap_{lap:g}_percent_cycles".replace(".", "p"): (1.0, 1e4) for lap in LAPS},
    **{f"{prefix}_{name}": (1e-3, 1e5) for name in TRACKED for prefix in ("baseline", "recent")},
}


def _combined() -> list[dict[str, float]]:
    """The inputs of the networks as sums of logarithms: times, products and ratios."""
    margin = "soh_margin_percent"
    plain = [margin, "history_cycles", "peak_cycles", "soh_mean_rate_percent_per_100_cycles"]
    laps = [f"lap_{lap:g}_percent_cycles".replace(".", "p") for lap in LAPS]
    return [
        *({name: 1.0} for name in plain),
        *({f"linear_{t}_cycles": 1.0} for t in MEMORIES),
        *({lap: 1.0, margin: 1.0} for lap in laps),  # cycles left at the pace of the lap
        {"recent_cc_charge_fraction": 1.0, "recent_cc_seconds": -1.0},  # C-rate
        *({f"recent_{name}": 1.0, f"baseline_{name}": -1.0} for name in TRACKED),
        {"recent_cc_charge_fraction": 1.0},
        {"recent_cv_charge_fraction": 1.0},
    ]


class Inputs:
    """What the trees and networks see of a row."""

    def __init__(self) -> None:
        at = {name: k for k, name in enumerate(COLUMNS)}
        self.linear = np.array([at[n] for n in _LINEAR])
        self.logs = np.array([at[n] for n in _LOGARITHMIC])
        self.recent, self.baseline = (np.array([at[f"{p}_{n}"] for n in SHAPES]) for p in ("recent", "baseline"))
        self.linear_range, self.log_range = (np.array(list(r.values()), np.float32).T for r in (_LINEAR, _LOGARITHMIC))
        sums = np.array([[each.get(n, 0.0) for each in _combined()] for n in _LOGARITHMIC], np.float32)
        fill = -len(sums) % LANES  # of the first column, weighed with nothing
        self.logs = np.append(self.logs, np.full(fill, self.logs[0]))
        self.log_range = np.append(self.log_range, np.repeat(self.log_range[:, :1], fill, axis=1), axis=1)
        self.sums = np.append(sums, np.zeros((fill, sums.shape[1]), np.float32), axis=0)

    def __call__(self, x: Matrix) -> Matrix:
        """(rows, COLUMNS) → (rows, inputs of the networks)."""
        logs = np.log(np.clip(x[:, self.logs], *self.log_range)) @ self.sums
        recent = x[:, self.recent]
        linear = np.clip(x[:, self.linear], *self.linear_range)
        return np.concatenate([linear, logs, recent - x[:, self.baseline], recent], axis=1)


INPUTS: Final = Inputs()


class Fitted:
    """Trees, networks and the interval."""

    def __init__(self, x: Matrix, rul: Array, weight: Array, seed: int) -> None:
        z, y = INPUTS(x), np.log(rul + OFFSET)
        self.trees = lightgbm.LGBMRegressor(n_estimators=300, random_state=seed, **_TREES)
        self.trees.fit(np.concatenate([x, z], axis=1), y, sample_weight=weight)
        self.mean, self.std = z.mean(axis=0), z.std(axis=0) + np.float32(1e-6)
        self.networks = [_network(self._scaled(z), y, weight, seed + k) for k in range(NETWORKS)]
        self.width: Any = None
        self.factor = 1.0

    def _scaled(self, z: Matrix) -> Matrix:
        return np.clip((z - self.mean) / self.std, -3, 3)

    def log(self, x: Matrix) -> Array:
        """Logarithm of the cycles left and ``OFFSET``."""
        z = INPUTS(x)
        with torch.no_grad():
            networks = [net(torch.from_numpy(self._scaled(z))).numpy()[:, 0] for net in self.networks]
        trees = self.trees.predict(np.concatenate([x, z], axis=1))
        return np.asarray(0.5 * trees + 0.5 * np.mean(networks, axis=0))


def width_trees(x: Matrix, residual: Array, weight: Array, seed: int) -> Any:
    """A small forest for the size of the error of the logarithm."""
    few = {**_TREES, "num_leaves": 4, "min_child_samples": 300, "learning_rate": 0.1}
    model = lightgbm.LGBMRegressor(n_estimators=30, random_state=seed, **few)
    return model.fit(np.concatenate([x, INPUTS(x)], axis=1), np.log(np.abs(residual) + 0.02), sample_weight=weight)


def _network(x: Matrix, y: Array, weight: Array, seed: int) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    inputs, target = torch.from_numpy(x), torch.tensor(y, dtype=torch.float32)[:, None]
    weights = torch.tensor(weight / weight.mean(), dtype=torch.float32)[:, None]
    layers = (torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.Linear(HIDDEN, 1))
    layers[-1].bias.data[:] = target.mean()
    net = torch.nn.Sequential(layers[0], torch.nn.SiLU(), layers[1], torch.nn.SiLU(), layers[2])
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(x) // 512)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(512):
            seen = inputs[rows] + 0.1 * torch.randn(len(rows), x.shape[1])
            loss = torch.nn.functional.smooth_l1_loss(net(seen), target[rows], beta=0.05, reduction="none")
            optimizer.zero_grad()
            (weights[rows] * loss).mean().backward()
            optimizer.step()
            schedule.step()
    return net


class _Graph:
    """Nodes and constants of an ONNX graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def columns(self, x: str, at: Any, name: str) -> str:
        """Some columns of ``x``."""
        return self.add("Gather", [x, self.constant(f"{name}_at", at.astype(np.int64))], name, axis=1)

    def limited(self, x: str, columns: Any, limits: Any, name: str) -> str:
        """Some columns of ``x`` within their limits."""
        x = self.columns(x, columns, f"{name}_all")
        x = self.add("Max", [x, self.constant(f"{name}_low", limits[0])], f"{name}_above")
        return self.add("Min", [x, self.constant(f"{name}_high", limits[1])], name)

    def forest(self, model: Any, x: str, output: str) -> str:
        """The trees of a LightGBM model."""
        kind = [("x", FloatTensorType([None, model.n_features_in_]))]
        made = onnxmltools.convert_lightgbm(model, initial_types=kind, target_opset=15, zipmap=False)
        (node,) = [n for n in made.graph.node if n.op_type == "TreeEnsembleRegressor"]
        node = onnx.NodeProto.FromString(node.SerializeToString())
        node.input[:], node.output[:], node.name = [x], [output], output
        self.nodes.append(node)
        return output

    def network(self, net: torch.nn.Sequential, x: str, name: str) -> str:
        """Linear layers with SiLU between."""
        for k, layer in enumerate(m for m in net if isinstance(m, torch.nn.Linear)):
            if k:
                x = self.add("Mul", [x, self.add("Sigmoid", [x], f"{name}_s{k}")], f"{name}_a{k}")
            weight = self.constant(f"{name}_w{k}", np.ascontiguousarray(layer.weight.detach().numpy().T))
            bias = self.constant(f"{name}_b{k}", layer.bias.detach().numpy())
            x = self.add("Gemm", [x, weight, bias], f"{name}_z{k}")
        return x


def export(fitted: Fitted, contract: Contract, path: Path) -> None:
    """The model as ONNX: columns in physical units in, cycles and the ends of the interval out."""
    g = _Graph()
    x = "features"
    linear = g.limited(x, INPUTS.linear, INPUTS.linear_range, "linear")
    logs = g.add("Log", [g.limited(x, INPUTS.logs, INPUTS.log_range, "positive")], "logs")
    sums = g.add("MatMul", [logs, g.constant("sum_weights", INPUTS.sums)], "sums")
    recent, baseline = (
        g.columns(x, at, name) for at, name in ((INPUTS.recent, "recent"), (INPUTS.baseline, "baseline"))
    )
    z = g.add("Concat", [linear, sums, g.add("Sub", [recent, baseline], "change"), recent], "z", axis=1)
    both = g.add("Concat", [x, z], "both", axis=1)
    scaled = g.add(
        "Div", [g.add("Sub", [z, g.constant("mean", fitted.mean)], "z0"), g.constant("std", fitted.std)], "z1"
    )
    low, high = g.constant("low", np.float32(-3)), g.constant("high", np.float32(3))
    scaled = g.add("Clip", [scaled, low, high], "z2")
    parts = [g.network(net, scaled, f"network{k}") for k, net in enumerate(fitted.networks)]
    trees = g.forest(fitted.trees, both, "trees")
    total = g.add("Sum", [*[trees] * len(parts), *parts], "total")  # half of the weight is that of the trees
    log = g.add("Mul", [total, g.constant("share", np.float32(0.5 / len(parts)))], "log")
    lanes = g.constant("lanes", np.zeros((1, LANES), np.float32))
    width = g.add("Exp", [g.add("Add", [g.forest(fitted.width, both, "log_width"), lanes], "log_widths")], "widths")
    ends = np.zeros((1, LANES), np.float32)
    ends[0, 1:3] = -fitted.factor, fitted.factor
    logs = g.add("Add", [log, g.add("Mul", [width, g.constant("ends", ends)], "halves")], "log_ends")
    cycles = g.add("Sub", [g.add("Exp", [logs], "shifted"), g.constant("offset", np.float32(OFFSET))], "cycles")
    three = g.add("Gather", [cycles, g.constant("three", np.arange(3))], "chosen", axis=1)
    g.add("Max", [three, g.constant("nothing", np.float32(0))], "outputs")
    graph = helper.make_graph(
        g.nodes,
        contract.name,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", len(COLUMNS)])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["rows", 3])],
        g.weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: msgspec.json.encode(contract).decode()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
