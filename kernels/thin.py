"""Which of a device's predictions go on when one an interval is enough."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import kernel

#: The record of one device: the newest interval that a row went on of, counted from 1970, and what went on.
STATE: Final = np.dtype([("interval", "<i8"), ("gone", "<u1")])
NOTHING: Final = 0
NO_VALUE: Final = 1
VALUE: Final = 2


@kernel
def choose(
    states: NDArray[Any],
    slots: NDArray[np.int32],
    times: NDArray[np.int64],
    values: NDArray[np.float32],
    every: int,
    chosen: NDArray[np.bool_],
) -> None:
    """The first row of each interval of event time, and the first with a value if that had none.

    A row of an older interval than the newest begins anew: the device's clock was set back.

    Args:
        states: ``STATE`` by slot; changed.
        slots: slot of each row's device.
        times: event times, µs since 1970.
        values: NaN: none.
        every: length of an interval, µs.
        chosen: set for the rows that go on.
    """
    for row in range(len(slots)):
        state = states[slots[row]]
        interval = times[row] // every
        says = NO_VALUE if np.isnan(values[row]) else VALUE
        gone = state["gone"] if state["interval"] == interval else NOTHING
        chosen[row] = says > gone
        if says > gone:
            state["interval"] = interval
            state["gone"] = says
