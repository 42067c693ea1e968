"""Measures the baselines on the test cycles of the LG HG2: ``python training/baselines.py``, a few seconds.

Takes ``lg_hg2_1hz.parquet`` (Kollmeyer et al., Mendeley Data 10.17632/cp3473x7xv.3), runs coulomb counting and the
Kalman filter over US06, LA92, UDDS and HWFET as the stream would, and writes ``operators/models/baselines.json``,
which their contracts bear, and the card beside it. Nothing is tuned here: ``training/ekf.py`` does, on other records.
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
AMBIENTS: Final = (-20, -10, 0, 10, 25, 40)
WORDS: Final = {
    "right_start": "from full, every 5 s",
    "unknown_start": "begun at 25, 50 or 75 % of the cycle",
    "lost_30_percent": "30 % of the samples lost",
    "every_10_seconds": "every 10 s",
    "current_plus_50_milliampere": "current sensor 50 mA off",
    "start_10_percent_wrong": "the first SOC 10 points too low",
}
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
- In these records the current is that of a laboratory, so a count from full is hard to beat. A vehicle's is not.
- A first sample under load, in the cold, is a guess: see `unknown_start`. Coulomb counting never recovers from it.
- Charging and rest, other cells and aged cells were not tested against measurements. Below -20 and above 40 °C the
  circuit stays that of the nearest temperature.
"""

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


def card(made: dict[str, Figures]) -> str:
    """The card of both as Markdown."""
    tables = []
    for name, found in made.items():
        every = [f"| {words} | {_figures(found[case])} |" for case, words in WORDS.items()]
        by_ambient = [
            f"| {words} | " + " | ".join(_short(found[f"{case}/{a}"]) for a in AMBIENTS) + " |"
            for case, words in WORDS.items()
        ]
        tables += [f"## {name}\n", "| telemetry | MAE | RMSE | worst | coverage, % |", "|---|---|---|---|---|", *every]
        tables += ["\nBy ambient temperature, MAE / worst / coverage:\n"]
        tables += ["| telemetry | " + " | ".join(f"{a} °C" for a in AMBIENTS) + " |", "|---" * 7 + "|", *by_ambient, ""]
    return CARD.format(cycles=12, tables="\n".join(tables).rstrip())


def _figures(e: dict[str, float]) -> str:
    return f"{e['mae']:.2f} | {e['rmse']:.2f} | {e['worst']:.1f} | {e['coverage90']:.0f}"


def _short(e: dict[str, float]) -> str:
    return f"{e['mae']:.2f} / {e['worst']:.1f} / {e['coverage90']:.0f}"


def main() -> None:
    """Measure, write, print."""
    made = measure()
    ERRORS.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    text = card(made)
    ERRORS.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
