"""The cards of the SOH models: written from the contracts, so that the figures are those that were measured."""

import textwrap
from collections.abc import Sequence
from typing import Final

from soh_data import Cell

from voltmill.operators.contract import Contract
from voltmill.operators.model import OnnxModel

#: Figures that are told without an interval.
PLAIN: Final = ("mae", "rmse", "worst", "mape", "worst_cell_mape")

CELLS: Final = {
    "XJTU": "18650 cells of NCM (2 Ah), charged with 2C or 3C, discharged in six ways, one of them at random, at room "
    "temperature. Wang et al. 2024, doi:10.1038/s41467-024-48779-z",
    "TJU": "18650 cells of NCA (3.5 Ah), NCM (3.5 Ah) and both mixed (2.5 Ah), charged with 0.25-1C, at 25-45 °C. "
    "Zhu et al. 2022, doi:10.1038/s41467-022-29837-w",
    "HUST": "A123 APR18650M1A (LFP/graphite, 1.1 Ah), one fast charge, 77 ways to discharge in four stages, 30 °C. "
    "Ma et al. 2022, doi:10.1039/D2EE01676A",
    "MIT": "A123 APR18650M1A (LFP/graphite, 1.1 Ah), many ways of fast charge, discharged with 4C, 30 °C. "
    "Severson et al. 2019, doi:10.1038/s41560-019-0356-8",
}
#: MAPE that the paper of the features gives, its inputs scaled by the lowest and highest value of each cell's life.
PUBLISHED: Final = {"XJTU": 0.85, "TJU": 1.21, "HUST": 0.78, "MIT": 0.65}
#: How the test cells were chosen.
SPLIT: Final = {
    "XJTU": "that of the paper: cells with a 4 or an 8 in the name",
    "TJU": "every fifth cell of each kind in order of name, after the paper, whose list of files is not known",
    "HUST": "that of the paper, by name",
    "MIT": "that of the paper: cells whose number is a multiple of five",
}
CASES: Final = {
    "unseen_cells": "**test cells, capacity measured in the first 8 charges only**",
    "full_charge_in_400": "... and in one charge of 400",
    "full_charge_in_100": "... and in one charge of 100",
    "full_charge_in_30": "... and in one charge of 30",
    "tju/nca": "of the first line, NCA",
    "tju/ncm": "of the first line, NCM",
    "tju/ncm_nca": "of the first line, NCM and NCA mixed",
    "training_cells_left_out": "training cells, a fifth left out in turn",
    "all_cells_left_out": "all cells, a fifth left out in turn",
    "without_measured_capacity": "test cells, capacity never measured (not shipped)",
}
_A123: Final = """\
0.5 A to 0.1 A. Set `cv_c_rate = [0.0909, 0.4545]`
  in the fleet entry: in the default range, 0.25C to 0.05C, charges lie outside the valid ranges and give null."""
#: Where the constant-voltage phase of the data set lies, and what the fleet entry has to say of it.
WINDOW: Final = {
    "XJTU": """\
0.5 A to 0.1 A, which is the default of
  `cv_c_rate` in the fleet entry, `[0.05, 0.25]`: leave it.""",
    "TJU": """\
0.5 A to 0.05C, where these
  chargers stop: it is given as 0.5 A to 0.1 A, but mean and spread of the current are those of a fall to 0.175 A in
  the cells of 3.5 Ah. Set `cv_c_rate = [0.05, 0.1429]` in the fleet entry, and `[0.05, 0.2]` for the mixed cells of
  2.5 Ah: in the default range, 0.25C to 0.05C, charges of 3.5 Ah lie outside the valid ranges and give null.""",
    "HUST": _A123,
    "MIT": _A123,
}
#: MAPE that was aimed at, percent.
AIM: Final = 0.8
#: How often the test errors were seen before release.
_TWICE: Final = """\
,
  but their errors were seen twice before release: once before the correction by a later full charge was added, once
  before the quantile of the interval was set"""
_ONCE: Final = ",\n  but their errors were seen once before release"
SEEN: Final = {"XJTU": _TWICE, "TJU": _TWICE, "HUST": _ONCE, "MIT": _ONCE}

TEXT: Final = """\
# {name} {version}: state of health of {dataset} cells, from the end of a charge

Estimates the capacity in percent of the nominal one from what a charge shows between 0.2 V below full and full (CC),
and while the current falls at full voltage (CV): charge, time, and the moments of voltage and current. The change of
each against the device's own first 8 charges is averaged over the last 3, 12, 50 and 200 charges and over all of
them; those averages are carried for each device (kind `step`, {state} numbers). A kernel machine (rational quadratic
and linear, {support} charges of training cells) turns them into the capacity as a fraction of the device's own first
one, `baseline_measured_capacity_ah`, and into the width of the 90 % interval. Where the first charges were not from
empty to full, so that this is not known, the value is null. Each later charge that goes from empty to full, and so
measures the capacity, sets the value right, and the correction stays until the next.

## Data

{cells}
Charge quantities and capacities by cycle from F. Wang et al., Nature Communications 15:4332 (2024); SHA-256 of the
file: `{sha}`.

- Split by cell, {split}: {trained} cells to train on, {tested} to test on.
- Baselines and averages come from the sessions so far and no others: no look-ahead. Predictions begin with the 9th
  charge, when the baseline is complete, and are scored from there to the end of the record.
- The capacity of a cycle, which the data set has of its discharge, stands for what a full charge would have measured.
  It enters by the mean of the first 8 cycles, and for the lines "one charge of ..." by those charges besides, which
  are not scored themselves.
- What the machine looks at, and how finely, was tuned on training cells (`training/soh_tune.py`), and the interval was
  scaled on training cells left out. Nothing was chosen by the test cells{seen}.

## Errors

In points of SOH; MAPE is in percent of the capacity. A charge counts as one. Worst is the worst of all charges, worst
cell the worst mean of a cell. Coverage is how often the truth lies in the 90 % interval; blank: measured without
the file, by machines fitted alike.

| cells | MAPE | worst cell, MAPE | MAE | RMSE | worst | coverage, % |
|---|---|---|---|---|---|---|
{errors}

{aim}
Of those charges {answered} % lie in the valid ranges and have a value, on {cells_there} of {tested} cells. Cells left
out in turn are the fairer guess for a new cell: there are more of them, odd ones among them. Errors of one cell hang
together: on so few cells the coverage can be some points off by chance.
The paper has a MAPE of {published} %; it scales each input by its range over the whole life of the cell under test,
which nobody knows in advance.

## Must not be used for

- **Other cells, or other ways to charge.** The contract names `{cell_type}`; a device of any other type gets null and
  `UNKNOWN_CELL`. The same cell charged with another current shows other quantities: most of them fall out of the
  valid ranges, but not all do.
- **Another window of the constant-voltage phase.** The data set's is {window}
- Devices that are not new when first seen: the first 8 charges are taken for those of a new cell. SOH stays right
  only so far as the capacity measured in them is.
- Cells aged beyond the data ({lowest:.0f} % of the nominal capacity), or by long storage: none was seen.
- Single charges: a sudden loss shows after some charges only. Nor for anything on which safety depends.

It was tested on the quantities that the data set has, not on V, I and T: the records they were made from are not in
it. A charge that does not show both phases, is among the first 8, or misses more than a tenth of its samples gives
null and `PARTIAL_SESSION`; one outside the valid ranges `OUT_OF_DOMAIN`:
{ranges}

## How to retrain

`python training/soh.py --only {dataset}`; see `training/README.md`. There is no random start; another processor or
another release of NumPy gives slightly other weights.
"""


def card(dataset: str, model: OnnxModel, cells: Sequence[Cell], support: int) -> str:
    """The card of a model that was trained on some of the cells of a data set."""
    c = model.contract
    first = c.errors["unseen_cells"]
    return TEXT.format(
        name=c.name,
        version=c.version,
        dataset=dataset,
        state=c.state_size,
        support=support,
        cells=textwrap.fill(CELLS[dataset] + ".", 118, break_long_words=False, break_on_hyphens=False),
        sha=c.training_data_sha256,
        split=SPLIT[dataset],
        trained=sum(not cell.test for cell in cells),
        tested=sum(cell.test for cell in cells),
        errors="\n".join(
            f"| {words} | {_figures(c.errors[case])} |" for case, words in CASES.items() if case in c.errors
        ),
        answered=f"{first['answered']:.1f}",
        cells_there=f"{first['cells']:.0f}",
        aim=_aim(c),
        seen=SEEN[dataset],
        published=PUBLISHED[dataset],
        cell_type=c.cell_type,
        window=WINDOW[dataset],
        lowest=100 * min(float(cell.capacity.min()) for cell in cells),
        ranges=_ranges(c),
    )


def _aim(c: Contract) -> str:
    """Whether the aim is reached, or where it first is."""
    if c.errors["unseen_cells"]["mape"] <= AIM:
        return f"The headline is the first line, within the aim of {AIM} %."
    reached = [words for case, words in CASES.items() if case.startswith("full") and c.errors[case]["mape"] <= AIM]
    where = f" It is reached\nwith the capacity measured {reached[0].removeprefix('... and ')}." if reached else ""
    return f"The headline is the first line: **the aim of {AIM} % is missed**.{where}"


def _figures(e: dict[str, float]) -> str:
    coverage = f"{e['coverage90']:.0f}" if "coverage90" in e else ""
    relative = f"{e['mape']:.2f} | {e['worst_cell_mape']:.2f}"
    return f"{relative} | {e['mae']:.2f} | {e['rmse']:.2f} | {e['worst']:.1f} | {coverage}"


def _ranges(c: Contract) -> str:
    text = ", ".join(f"`{f.name}` {f.low:g} to {f.high:g}" for f in c.features if not f.name.startswith("baseline_c"))
    return textwrap.fill(text + " (of the baselines too).", 118, break_long_words=False, break_on_hyphens=False)


MEASURED: Final = """\
# {name} {version}: state of health as measured

The capacity of a discharge from full to empty (`measured_capacity_ah`) in percent of the nominal one. Nothing is
learned; it serves any cell type (`*`). The 90 % interval is that of a current sensor of class 0.5: gain 0.5 %, offset
0.001C times the duration, and 2 % of what flowed where samples are missing (standard deviations, independent).

## Data

None to train on. Tested on two CALCE cells, CS2_35 and CS2_36 (1.1 Ah, LCO; CALCE Battery Research Group, University
of Maryland), from new to the end of life, 1.1 A; SHA-256 of the file: `{sha}`.

## Errors

Against the cycler's own counter: V and I as telemetry through the quality rules, the sessions and `estimate`. In points
of SOH, a discharge counts as one; worst, % is in percent of the capacity that was counted. Answered is the part of
{rows:.0f} discharges that has a value; the others began or ended in between, or the samples that show it were lost.

| telemetry | MAE | RMSE | worst | worst, % | coverage, % | answered, % |
|---|---|---|---|---|---|---|
{errors}

The cycler's counter and the telemetry are of one sensor: what the sensor itself gets wrong is not in these figures,
and the coverage says that the interval is wide enough for the sampling, not that the sensor is of that class.

## Charges alone, not shipped

A machine like that of `training/soh_kernel.py`, without memory, that learned one CALCE cell from the end of its charges
(CC and CV against its own first 8), on the other cell; SOH above 70 %:

| trained on, tested on | MAPE | within 2 %, % of charges | worst, % | MAPE over the whole life |
|---|---|---|---|---|
{learned}

One cell to learn from is not enough: it does not reach 2 %, so no such model is shipped. A device of this type has a
value after each discharge from full to empty.

## Must not be used for

- Judging a cell by a hot, cold or fast discharge: outside 10 to 45 °C (where the temperature is known) and 0.02C to
  1.2C the value is null. Within, capacity still depends on both.
- Fleet entries without `capacity_ah` and `operating_volt`: without them no discharge is known to be a full one, and
  every value is null with `PARTIAL_SESSION`, as it is after a discharge that began or ended in between.
- The weakest cell of a module is what ends a discharge: the value is that of the module in use, not of its mean cell.
- Sensors worse than class 0.5: the interval is then too narrow. Nor for anything on which safety depends.

## How to retrain

`python training/soh.py --only measured`; see `training/README.md`.
"""

_TELEMETRY: Final = {
    "calce": "as recorded (every 30 s)",
    "calce/CS2_35": "... CS2_35",
    "calce/CS2_36": "... CS2_36",
    "calce_every_second_sample": "every second sample lost",
    "calce_every_fourth_sample": "three of four samples lost",
}


def measured_card(model: OnnxModel, learned: dict[str, dict[str, float]]) -> str:
    """The card of the SOH as measured; ``learned``: figures of the model from charges alone."""
    c = model.contract
    lines = (
        f"| {words} | {e['mae']:.2f} | {e['rmse']:.2f} | {e['worst']:.1f} | {e['worst_percent']:.2f} | "
        f"{e['coverage90']:.0f} | {e['answered']:.0f} |"
        for words, e in ((words, c.errors[case]) for case, words in _TELEMETRY.items())
    )
    others = (
        f"| {pair} | {e['mape']:.2f} | {e['within_2_percent']:.0f} | {e['worst_percent']:.1f} | "
        f"{e['mape_whole_life']:.1f} |"
        for pair, e in learned.items()
    )
    return MEASURED.format(
        name=c.name,
        version=c.version,
        sha=c.training_data_sha256,
        rows=c.errors["calce"]["rows"],
        errors="\n".join(lines),
        learned="\n".join(others),
    )
