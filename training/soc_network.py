"""The networks of the SOC model: their inputs, and how they are trained.

Four networks give the SOC, each trained without two of the drive cycles Mixed1-8, and their mean is the
value. What each of them says of the two it never saw is honestly wrong, so a fifth network learns from
that how wrong the others are (cross-fitting): its output is the Laplace scale.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from soc_views import Matrix

from voltmill.operators.contract import Feature

HIDDEN: Final = 48
SCALE_HIDDEN: Final = 32
STEPS: Final = 12_000
SCALE_STEPS: Final = 5_000
BATCH: Final = 2048
SCALE_RANGE: Final = (-6.0, 0.0)  # of the logarithm of the Laplace scale over 50 %: 0.12 % to 50 %

TAUS: Final = (20, 90, 400, 1800)
VOLTS: Final = dict(offset=3.6, scale=0.5, low=2.5, high=4.3)
RATES: Final = dict(offset=0.0, scale=1.5)
#: Of the module, so that their only limit is that of numbers; as C-rates they are bounded by the others.
AMPERES: Final = dict(offset=0.0, scale=1.0, high=1e5)
#: The inputs. Valid ranges: those of the training records with a margin; averages range less than instant values.
FEATURES: Final = (
    Feature(name="cell_voltage_mean_volt", **VOLTS),
    Feature(name="c_rate", **RATES, low=-7.0, high=2.5),
    Feature(name="cell_temperature_mean_celsius", offset=10.0, scale=25.0, low=-25.0, high=50.0),
    *(Feature(name=f"cell_voltage_ema_{t}s_volt", **VOLTS) for t in TAUS),
    *(Feature(name=f"c_rate_ema_{t}s", **RATES, low=-7.0, high=2.5) for t in TAUS),
    *(Feature(name=f"ema_weight_{t}s", offset=0.5, scale=0.5, low=0.0, high=1.0) for t in TAUS),
    # Of one sample there is no slope.
    Feature(name="temperature_rate_600s_celsius_per_second", offset=0.0, scale=0.005, low=-1e3, high=1e3, missing=0.0),
    Feature(name="capacity_ah", offset=0.0, scale=1.0, low=0.01, high=1e6),
    Feature(name="current_mean_60s_ampere", **AMPERES, low=-1e5),
    Feature(name="current_mean_600s_ampere", **AMPERES, low=-1e5),
    Feature(name="current_std_60s_ampere", **AMPERES, low=0.0),
    Feature(name="current_std_600s_ampere", **AMPERES, low=0.0),
)
NAMES: Final = tuple(f.name for f in FEATURES)
OFFSET: Final = np.array([f.offset for f in FEATURES], np.float32)
SCALE: Final = np.array([f.scale for f in FEATURES], np.float32)
#: What the networks see: the features but for the last five, two mean squares, and the averages' weights.
SEEN: Final = NAMES.index("capacity_ah") + 2
SLOPE_LIMIT: Final = 4.0  # of the scaled temperature slope: 0.02 K/s, more than any cell warms by itself
SQUARE_LIMIT: Final = 25.0  # of half the mean square of the C-rate: 7 C


def seen_by_networks(features: Matrix) -> Matrix:
    """Scaled inputs of the networks; the graph of `soc_graph.export` computes the same.

    The mean square of the C-rate over a minute and over ten stands for the heat that the core of the cell has and
    its surface does not show yet; with it goes the slope of the surface temperature.
    """
    filled = np.where(np.isnan(features), np.float32(0), features)
    plain = ((filled - OFFSET) / SCALE)[:, : SEEN - 2]
    plain[:, -1] = np.clip(plain[:, -1], -SLOPE_LIMIT, SLOPE_LIMIT)
    capacity, mean, std = filled[:, SEEN - 2, None], filled[:, SEEN - 1 : SEEN + 1], filled[:, SEEN + 1 :]
    square = np.minimum(0.5 * ((mean / capacity) ** 2 + (std / capacity) ** 2), SQUARE_LIMIT)
    return np.concatenate([plain, square], axis=1).astype(np.float32)


def network(hidden: int, outputs: int) -> torch.nn.Sequential:
    """Two hidden layers of SiLU."""
    return torch.nn.Sequential(
        torch.nn.Linear(SEEN, hidden),
        torch.nn.SiLU(),
        torch.nn.Linear(hidden, hidden),
        torch.nn.SiLU(),
        torch.nn.Linear(hidden, outputs),
    )


def train_value(inputs: Matrix, truth: Matrix, drawn: NDArray[np.int64], seed: int) -> torch.nn.Sequential:
    """A network for the SOC, under the Laplace likelihood; ``drawn``: rows to draw from, a row may stand there twice.

    Its own scale only weighs the examples. The weights are averaged over the last steps (Polyak, 1992).
    """
    torch.manual_seed(seed)
    x, y, rows = torch.from_numpy(inputs), torch.from_numpy((truth - 50) / 50), torch.from_numpy(drawn)
    net = network(HIDDEN, 2)
    average = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        chosen = rows[torch.randint(0, len(rows), (BATCH,))]
        out = net(x[chosen])
        error, log_scale = (out[:, 0] - y[chosen]).abs(), out[:, 1].clamp(*SCALE_RANGE)
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


def train_scale(inputs: Matrix, error: Matrix, seed: int) -> torch.nn.Sequential:
    """A network for the scale of errors (absolute, percent)."""
    torch.manual_seed(seed)
    x, e = torch.from_numpy(inputs), torch.from_numpy(error / np.float32(50))
    net = network(SCALE_HIDDEN, 1)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=SCALE_STEPS, pct_start=0.1)
    for _ in range(SCALE_STEPS):
        rows = torch.randint(0, len(x), (BATCH // 2,))
        log_scale = net(x[rows])[:, 0].clamp(*SCALE_RANGE)
        loss = (e[rows] / log_scale.exp() + log_scale).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net


def value_of(net: torch.nn.Sequential, inputs: Matrix) -> Matrix:
    """The SOC that a network gives, percent."""
    with torch.no_grad():
        found: Matrix = 50 + 50 * net(torch.from_numpy(inputs))[:, 0].numpy()
    return found


def scale_of(net: torch.nn.Sequential, inputs: Matrix) -> Matrix:
    """The scale that a network gives, percent."""
    with torch.no_grad():
        found: Matrix = 50 * net(torch.from_numpy(inputs))[:, 0].clamp(*SCALE_RANGE).exp().numpy()
    return found
