"""Measures the baselines on the test cycles of the LG HG2: ``python training/baselines.py``, a few seconds.

Takes ``lg_hg2_1hz.parquet`` (Kollmeyer et al., Mendeley Data 10.17632/cp3473x7xv.3), runs coulomb counting and the
Kalman filter over US06, LA92, UDDS and HWFET as the stream would, and writes ``operators/models/baselines.json``,
which their contracts bear. Nothing is tuned here: that is ``training/ekf.py``, on other records.
"""

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from baseline_views import CASES, Matrix, Views, errors, run, views
from numpy.typing import NDArray
from records import DATA, TEST, measured

from voltmill.kernels import coulomb, ekf
from voltmill.operators.baselines import ERRORS, CoulombCounting, ExtendedKalmanFilter

WRONG_PERCENT: Final = -10.0

Figures = dict[str, dict[str, float]]


def outputs(model: CoulombCounting | ExtendedKalmanFilter, seen: Views, *, wrong: float = 0.0) -> Matrix:
    """What a baseline says of the views."""

    def step(features: Matrix, carried: Matrix) -> Matrix:
        out, carried[:] = model.step(features, carried)
        return out

    column = coulomb.SOC if isinstance(model, CoulombCounting) else ekf.SOC
    return run(step, model.contract.state_size, seen, soc_column=column, wrong=wrong)


def figures(seen: Views, out: Matrix, cases: dict[str, NDArray[np.bool_]]) -> Figures:
    """Errors of each case, of all temperatures and of each."""
    found, made = errors(seen, out), {}
    for case, chosen in cases.items():
        made[case] = found.of(chosen)
        for ambient in np.unique(seen.ambient):
            made[f"{case}/{ambient}"] = found.of(chosen & (seen.ambient == ambient))
    return made


def measure(data: Path = DATA) -> dict[str, Figures]:
    """The figures of both baselines, by name."""
    seen = views([r for r in measured(data) if r.name in TEST])
    cases = {case: seen.case == case for case in CASES}
    right = cases["right_start"]
    made = {}
    for model in (CoulombCounting(), ExtendedKalmanFilter()):
        made[model.contract.name] = figures(seen, outputs(model, seen), cases)
        begun_wrong = outputs(model, seen, wrong=WRONG_PERCENT)
        made[model.contract.name] |= figures(seen, begun_wrong, {"start_10_percent_wrong": right})
    return made


def main() -> None:
    """Measure, write, print."""
    made = measure()
    ERRORS.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    for name, found in made.items():
        for case, e in found.items():
            print(
                f"{name} {case}: {e['mae']:.2f} / {e['rmse']:.2f} / {e['worst']:.1f}, covered {e['coverage90']:.0f} %"
            )


if __name__ == "__main__":
    main()
