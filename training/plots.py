"""Draws the pictures of docs/models.md: ``python training/plots.py``, half a minute; needs the data and the models.

Everything is computed by the models that are shipped, on what they were not trained on.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import rul_cells
import soh
import soh_data
from records import DATA, ROOT, TEST, Record, measured
from soc_views import fleet, sampled, telemetry

from voltmill.operators.estimate import offline
from voltmill.operators.features import offline as features_of
from voltmill.operators.model import Contract, Model, discover

IMAGES: Final = ROOT / "docs" / "images"
AMBIENTS: Final = (-20, -10, 0, 10, 25, 40)
SOC: Final = {
    "lg_hg2_soc": ("voltmill: lg_hg2_soc", "#0b6e99"),
    "lg_hg2_ekf": ("EKF", "#e07b39"),
    "lg_hg2_coulomb": ("coulomb counting", "#8a8a8a"),
}
STYLE: Final = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "voltmill",  # the same picture is the same file
}
_MODELS: Final = discover().models


def contract_of(name: str) -> Contract:
    """The contract of a shipped model."""
    return _MODELS[name].contract


def estimated(model: Model, view: Record) -> tuple[Any, Any, Any]:
    """Value and both ends of the interval at each sample of a view, percent."""
    found, failure = offline(features_of(telemetry([view]), fleet()), model, fleet())
    assert failure is None
    value, lo, hi = (found.column(c).to_numpy(zero_copy_only=False) for c in ("value", "lo90", "hi90"))
    return value, lo, hi


def soc_trace(data: Path) -> Any:
    """SOC over time on two drive cycles, begun in the middle: model, baselines and the truth."""
    records = {(r.name, r.ambient): r for r in measured(data) if r.name in TEST}
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.2), sharex="col", height_ratios=(2, 1))
    for column, key in enumerate((("US06", -20), ("US06", 25))):
        record = records[key]
        view = sampled(record, np.random.default_rng(0), start=len(record) // 4)
        view = replace(view, seconds=view.seconds - view.seconds[0], current=view.current + 0.05)
        minutes = view.seconds / 60
        top, bottom = axes[:, column]
        top.plot(minutes, view.soc, color="black", lw=1.4, label="truth")
        for name, (label, colour) in SOC.items():
            value, lo, hi = estimated(_MODELS[name], view)
            top.plot(minutes, value, color=colour, lw=1, label=label)
            if name == "lg_hg2_soc":
                top.fill_between(minutes, lo, hi, color=colour, alpha=0.18, lw=0, label="its 90 % interval")
            bottom.plot(minutes, value - view.soc, color=colour, lw=1)
        top.set_title(f"{key[0]} at {key[1]} °C, begun at 25 % of the cycle,\ncurrent sensor 50 mA off", fontsize=9)
        bottom.axhline(0, color="black", lw=0.8)
        bottom.set_ylim(-12, 12)
        bottom.set_xlabel("minutes")
    axes[0, 0].set_ylabel("SOC, %")
    axes[1, 0].set_ylabel("error, points")
    axes[0, 1].legend(loc="upper right")
    return figure


def soc_by_temperature(_: Path) -> Any:
    """Mean absolute error by ambient temperature, from the contracts."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axis, (case, title) in zip(
        axes, (("right_start", "from full"), ("unknown_start", "begun in mid-cycle")), strict=True
    ):
        for k, (name, (label, colour)) in enumerate(SOC.items()):
            errors = contract_of(name).errors
            mae = [errors[f"{case}/{a}"]["mae"] for a in AMBIENTS]
            axis.bar(np.arange(6) + 0.27 * (k - 1), mae, 0.25, color=colour, label=label)
        axis.set_xticks(range(6), [f"{a} °C" for a in AMBIENTS])
        axis.set_title(title, fontsize=9)
        axis.set_ylim(0, 4)
    axes[0].set_ylabel("mean absolute error of SOC, points")
    axes[0].legend(loc="upper right", title="bars are cut off at 4 points")
    return figure


def soh_parity(data: Path) -> Any:
    """Estimated against measured SOH of the cells that were never trained on."""
    cells = [c for c in soh_data.read(data.parent / soh_data.DATA.name) if c.test]
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.9))
    for axis, name in zip(axes, soh_data.DATASETS, strict=True):
        model, some = _MODELS[f"{name.lower()}_soh"], [c for c in cells if c.dataset == name]
        found, failure = offline(soh_data.sessions(some), model, soh.FLEET)
        assert failure is None
        value = found.column("value").to_numpy(zero_copy_only=False)
        truth = 100 * np.concatenate([c.capacity for c in some])
        axis.scatter(truth, value, s=2, alpha=0.15, lw=0, color="#0b6e99", rasterized=True)
        ends = np.nanquantile(truth, (0, 1))
        axis.plot(ends, ends, color="black", lw=0.8)
        mape = model.contract.errors["unseen_cells"]["mape"]
        axis.set_title(f"{name}: {len(some)} unseen cells, MAPE {mape:.2f} %", fontsize=8)
        axis.set_xlabel("measured SOH, %")
    axes[0].set_ylabel("estimated SOH, %")
    return figure


def rul_against_life(data: Path) -> Any:
    """Predicted against true remaining cycles of unseen cells, both as a share of the cell's life."""
    known = rul_cells.cells(data.parent / soh_data.DATA.name)
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
    for axis, name in zip(axes, rul_cells.SETS, strict=True):
        model = _MODELS[f"{name}_rul"]
        chosen = [c for c in known if c.test and c.scored and c.set == name]
        for seen in rul_cells.views(chosen, "measured_soh", rul_cells.TESTED["measured_soh"]):
            value = model.predict(seen.rows)[:, 0]
            axis.plot(100 - 100 * seen.rul / seen.cell.life, 100 * value / seen.cell.life, lw=0.7, alpha=0.7)
        axis.plot([0, 100], [100, 0], color="black", lw=1.2)
        share = model.contract.errors["measured_soh"]["percent_of_life"]
        axis.set_title(f"{name.upper()}: {len(chosen)} unseen cells, {share:.1f} % of life", fontsize=9)
        axis.set_xlabel("age, % of life")
        axis.set_ylim(0, 150)
    axes[0].set_ylabel("predicted remaining life, % of life")
    return figure


PICTURES: Final[dict[str, Callable[[Path], Any]]] = {
    "soc_trace": soc_trace,
    "soc_by_temperature": soc_by_temperature,
    "soh_parity": soh_parity,
    "rul_against_life": rul_against_life,
}


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="lg_hg2_1hz.parquet; the other files lie beside it")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the pictures")
    parser.add_argument("--only", choices=PICTURES, help="one of them")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, draw in PICTURES.items():
            if arguments.only in (None, name):
                figure = draw(arguments.data)
                figure.tight_layout()
                figure.savefig(arguments.out / f"{name}.png", metadata={"Software": None})
                plt.close(figure)
                print(arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
