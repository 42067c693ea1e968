"""How the baselines are run and scored: cases of telemetry, all views side by side, one sample of each a step."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from records import Record
from soc_views import Matrix, sampled, see

FEATURES: Final = ("cell_voltage_mean_volt", "c_rate", "cell_temperature_mean_celsius", "sample_interval_seconds")
UNSCORED_SECONDS: Final = 300.0  # as in the literature
#: What is measured: how the telemetry comes, and where in the cycle it begins (as a share of it).
CASES: Final[dict[str, dict[str, Any]]] = {
    "right_start": {},
    "unknown_start": {"starts": (0.25, 0.5, 0.75)},
    "lost_30_percent": {"lost": 0.3},
    "every_10_seconds": {"step": 10},
    "current_plus_50_milliampere": {"current": 0.05},
}

#: (rows, features), (rows, state) -> (rows, 3): the state changes in place.
Step = Callable[[Matrix, Matrix], Matrix]
Array = NDArray[np.float64]


class Views(NamedTuple):
    """Views side by side, steps x views; after a view's end its features are NaN and no row is scored."""

    case: NDArray[np.str_]
    ambient: NDArray[np.int64]
    name: NDArray[np.str_]
    features: Matrix  # steps x views x features
    soc: Array  # percent
    scored: NDArray[np.bool_]


def views(records: Sequence[Record]) -> Views:
    """Every case of every record; fixed seeds, so that two runs lose the same samples."""
    cases, seen = [], []
    for record, (case, how) in itertools.product(records, CASES.items()):
        for share in how.get("starts", (0.0,)):
            rng = np.random.default_rng(len(record))
            begin = int(share * len(record))
            view = sampled(record, rng, step=how.get("step", 5), start=begin, lost=how.get("lost", 0.0))
            cases.append(case)
            seen.append(replace(view, current=view.current + how.get("current", 0.0)))
    shape = max(map(len, seen)), len(seen)
    made = Views(
        case=np.array(cases),
        ambient=np.array([v.ambient for v in seen]),
        name=np.array([v.name for v in seen]),
        features=np.full((*shape, len(FEATURES)), np.nan, np.float32),
        soc=np.full(shape, np.nan),
        scored=np.zeros(shape, np.bool_),
    )
    for k, part in enumerate(see(seen, FEATURES)):
        n = len(part.view)
        made.features[:n, k], made.soc[:n, k] = part.features, part.view.soc
        made.scored[:n, k] = part.view.seconds - part.view.seconds[0] >= UNSCORED_SECONDS
    return made


def run(step: Step, state_size: int, seen: Views, *, soc_column: int = 0, wrong: float = 0.0) -> Matrix:
    """SOC and interval of every sample, steps x views x 3; ``wrong``: percent added to the state after the first."""
    steps, count, _ = seen.features.shape
    carried = np.zeros((count, state_size), np.float32)
    out = np.empty((steps, count, 3), np.float32)
    for k in range(steps):
        out[k] = step(seen.features[k], carried)
        if k == 0:
            carried[:, soc_column] += np.float32(wrong)
    return out


class Errors(NamedTuple):
    """By view: mean absolute, root mean square and worst error in points of SOC; share of the truth in the interval."""

    mae: Array
    rmse: Array
    worst: Array
    coverage: Array

    def of(self, chosen: NDArray[np.bool_]) -> dict[str, float]:
        """Of the chosen views: means, but the worst of all."""
        return {
            "mae": round(float(self.mae[chosen].mean()), 3),
            "rmse": round(float(self.rmse[chosen].mean()), 3),
            "worst": round(float(self.worst[chosen].max()), 2),
            "coverage90": round(100 * float(self.coverage[chosen].mean()), 1),
        }


def errors(seen: Views, out: Matrix) -> Errors:
    """The errors of the scored rows."""
    error = np.where(seen.scored, np.abs(out[:, :, 0] - seen.soc), np.nan)
    inside = (out[:, :, 1] <= seen.soc) & (seen.soc <= out[:, :, 2])
    return Errors(
        np.nanmean(error, 0),
        np.sqrt(np.nanmean(error**2, 0)),
        np.nanmax(error, 0),
        np.nanmean(np.where(seen.scored, inside, np.nan), 0),
    )
