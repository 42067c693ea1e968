"""Tune the SOH models: how much each quantity and each span counts, and the shape of the kernel.

    python training/soh_tune.py        # a minute on one core; --dataset HUST for one of the data sets

Each step leaves out a fifth of the training cells at random, fits the machine on some rows of the others, and goes
down the gradient of its error on those left out, through the solution of the linear system. Test cells take no part.
The result goes into ``soh_tuned.json``, for `soh.py`.

It is kept on a short lead: few steps, weights by quantity and by span alone, drawn towards 1. With a weight for each
input and 1000 steps the error on the cells that are tuned on is nearly halved (HUST 1.05 to 0.59 %), and that on
cells outside the tuning rises (1.16 to 1.34 %); as it is here, it falls by a twentieth.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
from soh_data import DATA, DATASETS, NAMES, read
from soh_kernel import CELL_SPAN, CLIP, SPANS, TUNED, WIDTH, Rows, Tuned, rows_of, unseen

STEPS: Final = 150
KEPT: Final = 60  # rows of a cell, of which each step draws
#: Rows that a step trains on, as a part of those: few, for the time of a step grows with their third power.
DRAWN: Final = {"XJTU": 0.3, "TJU": 0.14, "HUST": 0.25, "MIT": 0.12}
RATE: Final = 0.05
PENALTY: Final = 0.02  # on the squares of the logarithms of the weights
AVERAGED: Final = 0.05  # weight of a step in the running average of the result
BETA: Final = 0.5  # percent; larger errors count by their size, smaller ones by their square
SHAPE: Final = ("length", "linear", "noise", "cell")


class Tuning:
    """The logarithms of weights and shape, and the machine as a function of them."""

    def __init__(self, rows: Rows, seed: int) -> None:
        some = rows[rows.spread(KEPT)]
        spread = (some.inputs - rows.inputs.mean(0)) / (rows.inputs.std(0) + 1e-9)
        self.x = torch.from_numpy(np.clip(spread, -CLIP, CLIP))
        self.y, self.number = torch.from_numpy(some.target), torch.from_numpy(some.number)
        self.cell, self.rng = some.cell, np.random.default_rng(seed)
        self.spans, self.names = (
            torch.zeros(len(keys), dtype=torch.float64, requires_grad=True) for keys in (SPANS, NAMES)
        )
        shape = [getattr(Tuned(), name) for name in SHAPE]
        self.shape = torch.tensor(shape, dtype=torch.float64).log().requires_grad_()

    def weights(self) -> torch.Tensor:
        """Weights of the inputs, their mean square 1."""
        weights = (self.spans[:, None] + self.names).flatten().exp()
        return weights / (weights**2).mean().sqrt()

    def error(self, drawn: float) -> torch.Tensor:
        """Error in percent on the rows of cells that were left out."""
        cells = self.rng.permutation(np.unique(self.cell))
        out = np.isin(self.cell, cells[: max(1, len(cells) // 5)])
        known = np.flatnonzero(~out & (self.rng.random(len(out)) < drawn))
        new = np.flatnonzero(out & (self.rng.random(len(out)) < 0.5))
        weights = self.weights()
        length, linear, noise, cell = self.shape.exp()
        a, b = self.x[known] * weights, self.x[new] * weights
        same = torch.from_numpy(self.cell[known][:, None] == self.cell[known])
        apart = (self.number[known][:, None] - self.number[known]).abs()
        gram = _kernel(a, a, length, linear) + cell * same * torch.exp(-apart / CELL_SPAN)
        gram = gram + noise * torch.eye(len(known), dtype=torch.float64)
        mean = self.y[known].mean()
        alpha = torch.cholesky_solve((self.y[known] - mean)[:, None], torch.linalg.cholesky(gram))
        return 100 * (((_kernel(b, a, length, linear) @ alpha)[:, 0] + mean) / self.y[new] - 1)


def _kernel(a: torch.Tensor, b: torch.Tensor, length: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    product = a @ b.T
    distance = ((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * product).clamp_min(0)
    return 1 / (1 + distance / (2 * length**2 * WIDTH)) + linear / WIDTH * product


def tune(rows: Rows, drawn: float, steps: int = STEPS, seed: int = 0) -> Tuned:
    """Weights and shape, averaged over the last steps (Polyak, 1992)."""
    tuning = Tuning(rows, seed)
    parameters = [tuning.spans, tuning.names, tuning.shape]
    optimiser = torch.optim.Adam(parameters, RATE, betas=(0.9, 0.99))
    means = [p.detach().clone() for p in parameters]
    for step in range(steps):
        error = tuning.error(drawn)
        loss = torch.nn.functional.smooth_l1_loss(error, torch.zeros_like(error), beta=BETA)
        loss = loss + PENALTY * ((tuning.spans**2).sum() + (tuning.names**2).sum())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for mean, p in zip(means, parameters, strict=True):
            mean.lerp_(p.detach(), AVERAGED)
        if step % 50 == 49:
            print(f"step {step + 1}: {float(error.detach().abs().mean()):.3f} % on cells left out", flush=True)
    with torch.no_grad():
        for p, mean in zip(parameters, means, strict=True):
            p.copy_(mean)
        shape = dict(zip(SHAPE, (float(f"{v:.4g}") for v in tuning.shape.exp()), strict=True))
        return Tuned(**shape, weights=tuple(round(float(w), 4) for w in tuning.weights()))


def cost(rows: Rows, tuned: Tuned, per_cell: int = 20, seeds: tuple[int, ...] = (11, 12)) -> tuple[float, float]:
    """Mean absolute percentage error over rows, and that of the worst cell, on cells left out; a tenth at a time."""
    found = []
    some = rows[rows.spread(KEPT)]
    life = np.bincount(rows.cell).astype(float)
    for seed in seeds:
        error = 100 * np.abs(unseen(some, tuned, per_cell, seed, count=10)[:, 0] / some.target - 1)
        by_cell = np.bincount(some.cell, error) / np.bincount(some.cell)
        found.append((float(by_cell @ life / life.sum()), float(by_cell.max())))
    mean = np.mean(found, axis=0)
    return round(float(mean[0]), 3), round(float(mean[1]), 2)


def main() -> None:
    """Tune one data set, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS)
    parser.add_argument("--data", type=Path, default=DATA, help="pinn4soh_features.parquet")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = [c for c in read(given.data) if not c.test]
    for dataset in DATASETS if given.dataset is None else (given.dataset,):
        began = time.process_time()
        rows = rows_of([c for c in cells if c.dataset == dataset])
        tuned = tune(rows, DRAWN[dataset])
        stored = json.loads(TUNED.read_text()) if TUNED.exists() else {}
        stored[dataset] = dataclasses.asdict(tuned)
        TUNED.write_text(json.dumps({k: stored[k] for k in DATASETS if k in stored}) + "\n")
        print(f"{dataset}: equal weights {cost(rows, Tuned())}, tuned {cost(rows, tuned)}: mean and worst cell, %")
        print(f"{time.process_time() - began:.0f} s of one core", flush=True)


if __name__ == "__main__":
    main()
