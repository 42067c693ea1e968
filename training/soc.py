"""Trains the SOC model of the LG HG2: ``python training/soc.py``, some minutes on one core.

Takes ``lg_hg2_1hz.parquet`` (Kollmeyer et al., Mendeley Data 10.17632/cp3473x7xv.3) and gives the ONNX file
with its contract, and the card beside it. Each step has a fixed seed:

1. Four networks for the SOC, each without two of the drive cycles Mixed1-8, and what each says of those two.
2. From that, a network for the scale of their errors; the filter that fuses the model with coulomb counting; and
   the width of its 90 % interval at each temperature.
3. The model that is shipped gives the mean of the four. It is measured on US06, LA92, UDDS and HWFET, which nothing
   before has seen, with the product's own kernels.
"""

import argparse
import hashlib
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from records import CAPACITY_AH, DATA, NOMINAL_AH, ROOT, TEST, Record, measured
from soc_card import card
from soc_cases import WARM_UP_SECONDS, Scored, errors, filtered, seen_of
from soc_examples import GROUPS, Examples, group_of, training_set
from soc_graph import export
from soc_network import FEATURES, NAMES, scale_of, seen_by_networks, train_scale, train_value, value_of
from soc_views import Matrix

from voltmill.operators.contract import Contract, Fusion
from voltmill.operators.model import OnnxModel

OUTPUT: Final = ROOT / "operators" / "models" / "lg_hg2_soc.onnx"
VERSION: Final = "2.0.0"
#: Cases that the filter is tuned for: ordinary telemetry, no sensor far off.
ORDINARY: Final = (
    "right_start",
    "unknown_start",
    "lost_30_percent",
    "every_10_seconds",
    "current_plus_50_milliampere",
    "current_minus_50_milliampere",
)
AMBIENTS: Final = (-20, -10, 0, 10, 25, 40)

Networks = Sequence[torch.nn.Sequential]
Widening = list[tuple[float, float]]


def honest_errors(nets: Networks, rows: Examples) -> Matrix:
    """The error of each row under the network that has not seen its drive cycle; of other records, the mean's."""
    said = np.stack([value_of(net, rows.inputs) for net in nets])
    value = np.where(rows.group < 0, said.mean(0), said[np.maximum(rows.group, 0), np.arange(len(rows.truth))])
    return np.abs(value - rows.truth).astype(np.float32)


def held_out(nets: Networks, scales: Networks, records: Sequence[Record]) -> list[Scored]:
    """Every ordinary case of the whole drive cycles, under networks that have not seen them."""
    found = []
    for k in range(len(GROUPS)):
        group = [r for r in records if group_of(r) == k and len(r) > 2500]
        for case, seen in seen_of(group, NAMES):
            if case in ORDINARY:
                inputs = seen_by_networks(seen.features)
                found.append(Scored(case, seen, value_of(nets[k], inputs), scale_of(scales[k], inputs)))
    return found


def measure(scored: Sequence[Scored], fusion: Fusion) -> dict[str, dict[str, float]]:
    """The errors of views with what networks say of them."""
    estimates = filtered(scored, fusion)
    return errors([(s.case, s.seen.view, e) for s, e in zip(scored, estimates, strict=True)])


def tune(scored: Sequence[Scored]) -> Fusion:
    """The filter with the least mean and worst errors."""

    def cost(fusion: Fusion) -> float:
        by_case = [v for k, v in measure(scored, fusion).items() if "/" not in k]
        return float(np.mean([c["mae"] + 0.1 * c["worst"] for c in by_case]))

    grid = itertools.product((1e-5, 1e-4, 1e-3), (0.3, 0.6, 1.2, 2.4), (200.0, 400.0, 800.0, 1600.0, 3200.0))
    return min(
        (Fusion(process_noise=p, current_noise=c, correlation_seconds=t, interval_factor=1.0) for p, c, t in grid),
        key=cost,
    )


def calibrate(scored: Sequence[Scored], fusion: Fusion) -> tuple[Fusion, Widening]:
    """The factor of the interval, and of the scale at each temperature, with which 90 % of the truth is covered.

    A wider scale makes the filter slower as well, so it takes some rounds.
    """
    factor, wider = 1.0, dict.fromkeys(AMBIENTS, 1.0)
    for _ in range(6):
        now = [s._replace(scale=s.scale * np.float32(wider[s.seen.view.ambient])) for s in scored]
        ratios: dict[int, list[Matrix]] = {a: [] for a in AMBIENTS}
        for s, e in zip(now, filtered(now, fusion), strict=True):
            half = np.maximum(e.hi - e.value, e.value - e.lo)
            ratios[s.seen.view.ambient].append((np.abs(e.value - s.seen.view.soc) / half)[e.settled])
        wanted = {a: float(np.quantile(np.concatenate(ratios[a]), 0.9)) for a in AMBIENTS}
        factor = float(np.mean(list(wanted.values())))
        wider = {a: wider[a] * (wanted[a] / factor) ** 0.7 for a in AMBIENTS}
    print("interval factor", round(factor, 2), "scale by temperature", {a: round(w, 2) for a, w in wider.items()})
    fusion = msgspec.structs.replace(fusion, interval_factor=round(factor, 2))
    return fusion, [(float(a), round(w, 2)) for a, w in wider.items()]


def contract(fusion: Fusion, data: Path, measured_errors: dict[str, dict[str, float]]) -> Contract:
    """What the model promises."""
    return Contract(
        kind="features",
        name="lg_hg2_soc",
        version=VERSION,
        target="soc",
        unit="percent",
        features=FEATURES,
        outputs=("value", "laplace_scale"),
        current_sign="positive_while_charging",
        dt_range_seconds=(0.1, 300.0),
        cell_type="lg-hg2",
        nominal_ah=NOMINAL_AH,
        capacity_fraction=CAPACITY_AH / NOMINAL_AH,
        warm_up_seconds=WARM_UP_SECONDS,
        training_data_sha256=hashlib.sha256(data.read_bytes()).hexdigest(),
        errors=measured_errors,
        fusion=fusion,
    )


def score(model: OnnxModel, records: Sequence[Record]) -> list[Scored]:
    """What the model says of every case of every record."""
    found = []
    for case, seen in seen_of(records, NAMES):
        out = model.predict(model.contract.filled(seen.features))
        found.append(Scored(case, seen, out[:, 0].copy(), out[:, 1].copy()))
    return found


def main() -> None:
    """Train, tune, measure, write the model and its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="lg_hg2_1hz.parquet")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="the ONNX file; the card is written beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    records = measured(arguments.data)
    training = [r for r in records if r.name not in TEST]
    rows = training_set(training, np.random.default_rng(1))
    nets = [train_value(rows.inputs, rows.truth, rows.drawn(k), seed=k) for k in range(len(GROUPS))]
    wrong = honest_errors(nets, rows)
    # To tune the filter, scales too come from networks that have not seen the drive cycle.
    scales = [train_scale(rows.inputs[rows.group != k], wrong[rows.group != k], seed=k) for k in range(len(GROUPS))]
    scored = held_out(nets, scales, training)
    fusion, widening = calibrate(scored, tune(scored))
    factors = dict(widening)
    scored = [s._replace(scale=s.scale * np.float32(factors[s.seen.view.ambient])) for s in scored]
    print("tuned", fusion)
    for key, figures in measure(scored, fusion).items():
        print(f"held-out Mixed: {key:32}", figures)
    scale = train_scale(rows.inputs, wrong, seed=len(GROUPS))
    export(nets, scale, widening, contract(fusion, arguments.data, {}), arguments.out)
    found = measure(score(OnnxModel(arguments.out), [r for r in records if r.name in TEST]), fusion)
    export(nets, scale, widening, contract(fusion, arguments.data, found), arguments.out)
    arguments.out.with_suffix(".md").write_text(card(OnnxModel(arguments.out)))
    for key, figures in found.items():
        print(f"{key:32}", figures)
    print(f"{time.process_time() - began:.0f} s of one core")


if __name__ == "__main__":
    main()
