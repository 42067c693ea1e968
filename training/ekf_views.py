"""The views that the baselines are tuned on, side by side: one sample of each a step, so that a kernel is fast."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from records import Array, Record
from soc_cases import Estimate, settled, views_of
from soc_views import Matrix, see

from voltmill.kernels.circuit import Circuit, Noise

FEATURES: Final = ("cell_voltage_mean_volt", "c_rate", "cell_temperature_mean_celsius", "sample_interval_seconds")
#: Of the cases that are measured those that are tuned on: ordinary telemetry, no sensor far off.
TUNED_ON: Final = ("right_start", "unknown_start", "lost_30_percent", "every_10_seconds", "current_plus_50_milliampere")

#: The circuit, its noise, features, the carried state and outputs (views x 3); the last two change in place.
Kernel = Callable[[Circuit, Array, Matrix, Matrix, Matrix], None]


class Views(NamedTuple):
    """Views side by side."""

    cases: list[str]
    seen: list[Record]
    features: Matrix
    """Steps x views x features; NaN after the end of a view."""
    settled: list[NDArray[np.bool_]]


def views(records: Sequence[Record]) -> Views:
    """Every case that is tuned on of every record."""
    made = [(case, view) for r in records for case in TUNED_ON for view in views_of([r], case)]
    seen = [view for _, view in made]
    features = np.full((max(map(len, seen)), len(seen), len(FEATURES)), np.nan, np.float32)
    for k, part in enumerate(see(seen, FEATURES)):
        features[: len(part.view), k] = part.features
    return Views([case for case, _ in made], seen, features, [settled(view) for view in seen])


def run(kernel: Kernel, state_size: int, cell: Circuit, noise: Noise, views: Views) -> list[Estimate]:
    """What the kernel of a baseline says of each view."""
    steps, count, _ = views.features.shape
    given = np.array(msgspec.structs.astuple(noise))
    carried, out = np.zeros((count, state_size), np.float32), np.empty((steps, count, 3), np.float32)
    for k in range(steps):
        kernel(cell, given, views.features[k], carried, out[k])
    of_views = (out[: len(view), k].T for k, view in enumerate(views.seen))
    return [Estimate(*columns, which) for columns, which in zip(of_views, views.settled, strict=True)]
