"""The network of the SOC model: its inputs, its examples, how it is trained, and how it becomes an ONNX file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from soc_views import Matrix, Record, disturbed, see, simulated

from voltmill.operators.contract import Contract, Feature
from voltmill.operators.model import METADATA_KEY

HIDDEN: Final = 64
STEPS: Final = 24_000
BATCH: Final = 2048
SCALE_RANGE: Final = (-6.0, 0.0)  # of the logarithm of the Laplace scale over 50 %: 0.12 % to 50 %

TAUS: Final = (20, 90, 400, 1800)
VOLTS: Final = dict(offset=3.6, scale=0.5, low=2.5, high=4.3)
RATES: Final = dict(offset=0.0, scale=1.5)
#: The inputs. Valid ranges: those of the training records with a margin; averages range less than instant values.
FEATURES: Final = (
    Feature(name="cell_voltage_mean_volt", **VOLTS),
    Feature(name="c_rate", **RATES, low=-7.0, high=2.5),
    Feature(name="cell_temperature_mean_celsius", offset=10.0, scale=25.0, low=-25.0, high=50.0),
    *(Feature(name=f"cell_voltage_ema_{t}s_volt", **VOLTS) for t in TAUS),
    *(Feature(name=f"c_rate_ema_{t}s", **RATES, low=-7.0, high=2.5) for t in TAUS),
    *(Feature(name=f"ema_weight_{t}s", offset=0.5, scale=0.5, low=0.0, high=1.0) for t in TAUS),
)
NAMES: Final = tuple(f.name for f in FEATURES)
OFFSET: Final = np.array([f.offset for f in FEATURES], np.float32)
SCALE: Final = np.array([f.scale for f in FEATURES], np.float32)


def examples(
    records: Sequence[Record], views: int, every_seconds: int, rng: np.random.Generator
) -> tuple[Matrix, Matrix]:
    """Features and true SOC of random views of each record, a row about every so many seconds."""
    features, truth = [], []
    for record in records:
        some = [v for v in (disturbed(record, rng) for _ in range(views)) if len(v) > 5]
        for seen in see(some, NAMES):
            stride = max(1, round(every_seconds / float(np.median(seen.interval_seconds[1:]))))
            features.append(seen.features[::stride])
            truth.append(seen.view.soc[::stride])
    return np.concatenate(features), np.concatenate(truth).astype(np.float32)


def training_set(records: Sequence[Record], rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Drive cycles above all; pulses, constant discharges and simulated charges for generality."""
    mixed = [r for r in records if r.name.startswith("Mixed")]
    parts = (
        examples(mixed, 30, 5, rng),
        examples([r for r in records if not r.name.startswith("Mixed")], 10, 15, rng),
        examples(simulated(mixed, 120, 6.0, rng), 3, 15, rng),
    )
    print("rows: drive cycles, other records, simulated:", [len(p[1]) for p in parts])
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def train(features: Matrix, truth: Matrix, seed: int) -> torch.nn.Sequential:
    """The network, under the Laplace likelihood; its weights are averaged over the last steps (Polyak, 1992)."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy((features - OFFSET) / SCALE), torch.from_numpy((truth - 50) / 50)
    net = torch.nn.Sequential(
        torch.nn.Linear(len(FEATURES), HIDDEN),
        torch.nn.SiLU(),
        torch.nn.Linear(HIDDEN, HIDDEN),
        torch.nn.SiLU(),
        torch.nn.Linear(HIDDEN, 2),
    )
    average = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        rows = torch.randint(0, len(x), (BATCH,))
        out = net(x[rows])
        error, log_scale = (out[:, 0] - y[rows]).abs(), out[:, 1].clamp(*SCALE_RANGE)
        loss = (error / log_scale.exp() + log_scale).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for a, p in zip(average, net.parameters(), strict=True):
                a.lerp_(p, 1 - min(0.999, (step + 1) / (step + 10)))
        if step % 4000 == 3999:
            print(f"step {step + 1}: mean error {50 * error.detach().mean().item():.2f} %", flush=True)
    with torch.no_grad():
        for a, p in zip(average, net.parameters(), strict=True):
            p.copy_(a)
    return net


def export(net: torch.nn.Sequential, contract: Contract, path: Path) -> None:
    """The network as ONNX: scaled features in, value and Laplace scale in percent out."""
    nodes, x = [], "features"
    weights = []
    for k, layer in enumerate(m for m in net if isinstance(m, torch.nn.Linear)):
        # Gemm takes its weights transposed here, so that they are stored as the product reads them.
        weights += [
            numpy_helper.from_array(np.ascontiguousarray(layer.weight.detach().numpy().T), f"w{k}"),
            numpy_helper.from_array(layer.bias.detach().numpy(), f"b{k}"),
        ]
        nodes.append(helper.make_node("Gemm", [x, f"w{k}", f"b{k}"], [f"z{k}"]))
        nodes.append(helper.make_node("Sigmoid", [f"z{k}"], [f"s{k}"]))
        nodes.append(helper.make_node("Mul", [f"z{k}", f"s{k}"], [f"a{k}"]))  # SiLU
        x = f"a{k}"
    nodes = nodes[:-2]  # the last layer has no SiLU
    nodes += [
        helper.make_node("Split", [f"z{k}"], ["soc", "log_scale"], axis=1),
        helper.make_node("Clip", ["log_scale", "low", "high"], ["clipped"]),
        helper.make_node("Exp", ["clipped"], ["width"]),
        helper.make_node("Concat", ["soc", "width"], ["both"], axis=1),
        helper.make_node("Mul", ["both", "fifty"], ["percent"]),
        helper.make_node("Add", ["percent", "middle"], ["outputs"]),
    ]
    constants = {"low": SCALE_RANGE[0], "high": SCALE_RANGE[1], "fifty": 50.0, "middle": [50.0, 0.0]}
    weights += [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in constants.items()]
    graph = helper.make_graph(
        nodes,
        contract.name,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", len(FEATURES)])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["rows", 2])],
        weights,
    )
    # Opset 17 and IR 8 are what onnxruntime 1.18, the oldest that is allowed, reads for certain.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: msgspec.json.encode(contract).decode()})
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
