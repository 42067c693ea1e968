"""Measures the baselines on the test cycles of the LG HG2: ``python training/baselines.py``, a few seconds.

Takes ``lg_hg2_1hz.parquet`` (Kollmeyer et al., Mendeley Data 10.17632/cp3473x7xv.3), runs coulomb counting and the
Kalman filter over US06, LA92, UDDS and HWFET through the product's own chain, in every case in which the SOC model is
measured and in one more, and writes ``operators/models/baselines.json``, which their contracts bear, and the card
beside it. Nothing is tuned here: ``training/ekf.py`` does, on other records.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
from records import DATA, TEST, Record, measured
from soc_cases import CASES, Errors, Estimate, errors, settled, views_of
from soc_tables import by_ambient, by_case
from soc_views import Matrix, fleet, telemetry

from voltmill.kernels import coulomb, ekf
from voltmill.kernels.fleet import Fleet
from voltmill.operators.baselines import ERRORS, CoulombCounting, ExtendedKalmanFilter
from voltmill.operators.estimate import offline as predicted
from voltmill.operators.features import offline as featured
from voltmill.operators.model import StepModel

WRONG_PERCENT: Final = -10.0
#: The case that only a model with a SOC of its own can have: from full, but told a wrong one.
BEGUN_WRONG: Final = "start_10_percent_wrong"
CARD: Final = """\
# lg_hg2_coulomb and lg_hg2_ekf: baselines for the state of charge of the LG 18650HG2

Coulomb counting (`kernels/coulomb.py`) and an extended Kalman filter over a circuit with two RC pairs
(`kernels/ekf.py`; G. L. Plett, J. Power Sources 134, 2004). Both start from the open-circuit voltage of a device's
first sample, need no runtime for models, and give `value`, `lo90` and `hi90` in percent. They are the yardstick for
every other SOC model, and what takes over where one fails.

The circuit was fitted to Mixed1-8, the constant discharges, the pulse test and the paused cycles of P. Kollmeyer et
al., Mendeley Data V3, doi:10.17632/cp3473x7xv.3 (one cell, one file of 1 Hz); the noise and the intervals were tuned
on Mixed1-8 alone. Tested on US06, LA92, UDDS and HWFET, of which nothing before made use; it is the same single cell.

Errors in points of SOC, the first 300 s unscored: MAE and RMSE are means over the cycles, worst is the worst of all
rows, coverage is how often the truth lies in the 90 % interval. There are {cycles} cycles; at 10 and 25 °C one each.

{tables}

What the figures do not say, or say softly:

- The filter's interval is too narrow in the cold, where its circuit is wrong for longer than it reckons with; that of
  coulomb counting covers nothing once the first SOC is wrong, and too much when it is right.
- The filter takes what its circuit or a sensor has wrong for new noise with every sample, so it is too sure of what
  lasts: its interval covers 54 % at every second, and 48 % with a voltage sensor 10 mV off.
- Coulomb counting reads the voltage once. From full, where the SOC cannot be more than 100, 10 mV change nothing; a
  `capacity_ah` that is 10 % off makes a tenth of all charge wrong, and that it never finds out.
- In these records the current is that of a laboratory, so a count from full is hard to beat. A vehicle's is not.
- A first sample under load, in the cold, is a guess: see `unknown_start`. Coulomb counting never recovers from it.
- Charging and rest, other cells and aged cells were not tested against measurements. Below -20 and above 40 °C the
  circuit stays that of the nearest temperature.
"""


class BegunWrong:
    """A baseline whose SOC is wrong by so much after a device's first row."""

    def __init__(self, model: StepModel, soc_column: int, percent: float) -> None:
        self.contract, self.sha256 = model.contract, model.sha256
        self._model, self._column, self._percent = model, soc_column, np.float32(percent)

    def step(self, features: Matrix, carried: Matrix) -> tuple[Matrix, Matrix]:
        """As the model's, but a device that had no state gets a wrong one."""
        out, on = self._model.step(features, carried)
        on[~carried.any(axis=1), self._column] += self._percent
        return out, on


def estimates(rows: pa.RecordBatch, model: StepModel, owners: Fleet, views: Sequence[Record]) -> list[Estimate]:
    """What the stream would give for each view, one device a view."""
    found, failure = predicted(rows, model, owners)
    if failure is not None or found.column("value").null_count:
        raise RuntimeError(f"{model.contract.name} withheld rows of the views: look at their ranges")
    cuts = np.cumsum([len(view) for view in views])[:-1]
    columns = (np.split(found.column(name).to_numpy(), cuts) for name in ("value", "lo90", "hi90"))
    return [Estimate(*each) for each in zip(*columns, map(settled, views), strict=True)]


def measure(data: Path = DATA) -> dict[str, Errors]:
    """The figures of both baselines, by name."""
    records = [r for r in measured(data) if r.name in TEST]
    right: dict[str, StepModel] = {m.contract.name: m for m in (CoulombCounting(), ExtendedKalmanFilter())}
    columns = {"lg_hg2_coulomb": coulomb.SOC, "lg_hg2_ekf": ekf.SOC}
    wrong = {name: BegunWrong(model, columns[name], WRONG_PERCENT) for name, model in right.items()}
    made: dict[str, Errors] = {name: {} for name in right}
    for case, like, models in [*((case, case, right) for case in CASES), (BEGUN_WRONG, "right_start", wrong)]:
        views, owners = views_of(records, like), fleet(CASES[like].get("capacity", 1.0))
        rows = featured(telemetry(views), owners)
        for name, model in models.items():
            found = estimates(rows, model, owners, views)
            made[name] |= errors([(case, view, e) for view, e in zip(views, found, strict=True)])
    return made


def card(made: dict[str, Errors]) -> str:
    """The card of both as Markdown."""
    between = "\n\nBy ambient temperature, MAE / worst / coverage:\n\n"
    tables = [f"## {name}\n\n{by_case(found)}{between}{by_ambient(found)}" for name, found in made.items()]
    return CARD.format(cycles=12, tables="\n\n".join(tables))


def main() -> None:
    """Measure, write, print."""
    made = measure()
    ERRORS.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    text = card(made)
    ERRORS.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
