"""The cards of the RUL models: written from the contract, so that the figures are those that were measured."""

from typing import Final

from voltmill.operators.contract import Contract

CELLS: Final = {
    "hust": "A123 APR18650M1A (LFP/graphite, 1.1 Ah), one fast charge, 77 ways to discharge in four stages, 30 °C. "
    "Ma et al. 2022, doi:10.1039/D2EE01676A",
    "xjtu": "LISHEN 18650 (NCM, 2 Ah) in six protocols: 2C and 3C charge, random discharge rates and depths, a "
    "satellite's cycle, room temperature. Wang et al. 2024, doi:10.1038/s41467-024-48779-z",
    "tju": "18650 cells of NCA (3.5 Ah), NCM (3.5 Ah) and both mixed (2.5 Ah), 0.25-1C charge, 25-45 °C. "
    "Zhu et al. 2022, doi:10.1038/s41467-022-29837-w",
}
CASES: Final = {
    "measured_soh": "SOH as the cycler measured it",
    "estimated_soh": "SOH with a SOH model's errors (simulated)",
    "from_mid_life": "first seen at 5-50 % of its life",
}
EARLY: Final = {
    "test1": "test1, 43 cells",
    "test1_without_short_lived": "test1 without the cell that lived 148 cycles",
    "test1_at_cycle_90": "test1, asked after cycle 90",
    "cross_validated": "all 84 cells, five folds, ten times",
    "cross_validated_without_short_lived": "... without the cell that lived 148 cycles",
}

HISTORY: Final = """\
# {name} {version}: cycles left of {upper} cells, from their SOH history

Estimates the equivalent full cycles until 80 % of the nominal capacity, from the table `health`: how the SOH fell so
far, at several time scales, and how the end of a charge looks and changed. Boosted trees (300) and two networks (48 +
48 units) are averaged in the logarithm of the cycles left. A prediction is given from the {first:g}th SOH value on.

## Data

{cells}.
Capacities and charge quantities by cycle from F. Wang et al., Nature Communications 15:4332 (2024); SHA-256 of the
file: `{sha}`.

- Split by cell, that of Wang et al.: {training} cells to train on, {tests} to test on. Cells count whose record ends
  at {beyond:g} points above 80 % SOH at most (to train on: {beyond_training:g}); the last slope leads on from there.
  A life under {shortest:g} cycles has no rows to speak of after the first {first:g} values, and does not count.
- Every row comes from `kernels/health.py`, run over the cell from its beginning: no look-ahead. Each cell is seen
  with the measured SOH, twice with simulated errors of an estimate (one of the cell, 0.5 points; a drifting one, 0.4;
  one of the session, 0.3), and twice from mid-life on.
- Size of the networks, trees and their equal shares were chosen by cross-validation over the training cells. The test
  cells were looked at in the experiments as well, so their figures are a little kinder than those of a new fleet.

## Errors

In cycles, on {tests} test cells; a cell counts as one, over its whole life from the {first:g}th value on. Worst is
the worst of all rows. Coverage is how often the truth lies in the 90 % interval.

| SOH | MAE | RMSE | worst | coverage, % | MAE, % of life | worst cell, % of life | worst row, % of life |
|---|---|---|---|---|---|---|---|
{cases}

The yardstick, that every cell lives as long as those of the training on average, is {mean:.1f} % of life off.
The interval was scaled to 90 % on training cells that were held out, over the three cases together; errors of one
cell hang together, so on {tests} cells the coverage can be some points off by chance.

## Must not be used for

- **Other cells, or other ways to use them.** The pace of ageing is learned from these protocols; another chemistry
  or duty ages otherwise. The contract names `{cell_type}`; a device of any other type gets null and `UNKNOWN_CELL`.
- Devices without full charges: the inputs come from the end of a charge (`cc_*`, `cv_*`).
- The end of life by another measure than 80 % of the nominal capacity; below 80 % it gives null.
- Sudden death: an internal short or a failing weld does not show in the SOH. Nor for anything on which safety depends.

Valid ranges (outside: null and the bit `OUT_OF_DOMAIN`): `soh_percent` {soh}, `recent_cc_seconds` {cc},
`recent_cv_seconds` {cv}.

## How to retrain

`python training/rul.py --only {cell_type}` with the dependency group `training`; see `training/README.md`. Seeds are
fixed; another processor or another release of the libraries gives slightly other trees and weights.
"""

SEVERSON: Final = """\
# {name} {version}: cycles left of A123 cells, from their first hundred discharges

Estimates how many cycles a new cell has left until 80 % of its nominal capacity, once, around its hundredth
discharge: from the variance of the change of Q(V) since its first discharges (Severson et al. 2019), the recent
capacity, and how it changed. Kernel ridge regression with {support} training cells, on the logarithm of the life.
Cycles are those of the test, charged and discharged fully; each is 0.8 to 0.97 equivalent full cycles.

## Data

K. Severson et al., Nature Energy 4:383 (2019), doi:10.1038/s41560-019-0356-8; P. Attia et al., J. Electrochem. Soc.
168:060538 (2021), doi:10.1149/1945-7111/ac2704. A123 APR18650M1A (LFP/graphite, 1.1 Ah), 72 ways to
charge fast, 4C discharge, 30 °C. SHA-256 of the file: `{sha}`.

- Split by cell as published: 41 to train on, test1 of 43. Test2 (40 cells of a later batch) is not in the data.
- Q(V) as the session table has it: 48 bins from 2.0 to 3.6 V, against the mean of the first eight discharges.
- Features, length of the kernel and noise were chosen by the leave-one-out error of the training cells ({loo:.0f}
  cycles RMSE). Five features and a shorter kernel give 89 cycles on test1, but no figure of the training cells
  says so.

## Errors

In cycles. Coverage is how often the truth lies in the 90 % interval, which is scaled to the leave-one-out errors.

| cells | MAE | RMSE | worst | coverage, % | MAE, % of life | worst, % of life |
|---|---|---|---|---|---|---|
{cases}

RMSE on the same test1: always the mean {mean:.0f}, the variance alone {variance:.0f}. Published, test1 | test2:
Severson's variance model 138 | 196 and discharge model 91 | 173, the best of BatteryML 90 | 149. On test1 this model
loses to the last by {behind:.0f} cycles. Cross-validation over the two batches is no stand-in for test2, a batch of its
own.

## Must not be used for

- Other cells, and other discharges than a full one at about 4C: ΔQ(V) depends on the current. `c_rate_mean` outside
  3.4 to 4.6, or more than 2 % of the session missing: null and `PARTIAL_SESSION`.
- Cells that were not new when the telemetry began, or whose discharges are not all counted: the count says where in
  its life a cell stands. Outside 90 to 110 discharges it gives null.
- Cells that die young: the one of test1 that lived 148 cycles is put at more than twice that.
- Anything on which safety depends.

## How to retrain

`python training/rul.py --only early` with the dependency group `training`; see `training/README.md`. Nothing in it is
drawn at random.
"""


def _line(words: str, e: dict[str, float], *names: str) -> str:
    figures = f"{e['mae']:.2f} | {e['rmse']:.2f} | {e['worst']:.1f} | {e['coverage90']:.0f}"
    return f"| {words} | {figures} | {' | '.join(f'{e[name]:.1f}' for name in names)} |"


def history(c: Contract, training: int, limits: dict[str, float]) -> str:
    """The card of a model of the SOH history.

    Args:
        c: Its contract.
        training: How many cells it was trained on.
        limits: ``first``, ``shortest``, ``beyond``, ``beyond_training`` of `rul_cells`.
    """
    shares = ("percent_of_life", "worst_cell_percent_of_life", "worst_percent_of_life")
    ranges = {f.name: f"{f.low:g} to {f.high:g}" for f in c.features}
    return HISTORY.format(
        name=c.name,
        version=c.version,
        cell_type=c.cell_type,
        upper=c.cell_type.upper(),
        cells=CELLS[c.cell_type],
        sha=c.training_data_sha256,
        training=training,
        tests=round(c.errors["measured_soh"]["cells"]),
        cases="\n".join(_line(words, c.errors[case], *shares) for case, words in CASES.items()),
        mean=c.errors["yardstick/mean_life"]["percent_of_life"],
        soh=ranges["soh_percent"],
        cc=ranges["recent_cc_seconds"],
        cv=ranges["recent_cv_seconds"],
        **limits,
    )


def early(c: Contract, support: int, loo: float) -> str:
    """The card of the early-life model; ``loo``: leave-one-out RMSE of its ``support`` training cells."""
    return SEVERSON.format(
        name=c.name,
        version=c.version,
        sha=c.training_data_sha256,
        support=support,
        loo=loo,
        cases="\n".join(
            _line(words, c.errors[case], "percent_of_life", "worst_percent_of_life") for case, words in EARLY.items()
        ),
        mean=c.errors["yardstick/always_the_mean"]["rmse"],
        variance=c.errors["yardstick/variance_alone"]["rmse"],
        behind=c.errors["test1"]["rmse"] - 90,
    )
