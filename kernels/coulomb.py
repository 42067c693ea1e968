"""Coulomb counting: the charge that flowed, from the open-circuit voltage of the first sample on.

    s += 100 I dt / (3600 Q)          SOC, percent; I is held over the step, positive while charging

It is exact over minutes and never corrects itself: an error of the start stays, an offset of the current grows with
time. So its interval is that of the start, widened by the charge of such an offset. The yardstick that a SOC model
has to beat, and the last resort when it fails.

A row is a device, its state float32, zeros for a new one; SOC takes two of them (value and rest), as in
`voltmill.kernels.ekf`, whose start it shares.
"""

from typing import Final

import numpy as np

from voltmill.kernels.circuit import Array, Circuit
from voltmill.kernels.compile import kernel
from voltmill.kernels.ekf import CELSIUSES, LONGEST_SECONDS, MOST_C_RATE, USUAL_CELSIUS, VOLTS, Matrix, begin

# The carried state of a row; START: standard deviation of the first SOC, percent; DRIFT: what an offset adds to it.
STARTED, SOC, SOC_REST, AMPERE, START, DRIFT = range(6)
STATE_SIZE: Final = 6


@kernel
def count_step(cell: Circuit, noise: Array, rows: Matrix, carried: Matrix, outputs: Matrix) -> None:
    """Advance the count of each row by one sample; rows are independent of each other.

    Arguments as those of `voltmill.kernels.ekf.filter_step`; ``carried`` is (rows, STATE_SIZE). The voltage and the
    temperature of later samples are not looked at. An unknown current: the last one is held.
    """
    x, p, w = np.empty(5), np.zeros((3, 3)), np.empty(5)
    for row in range(rows.shape[0]):
        volt, rate, celsius, dt = rows[row, 0], rows[row, 1], rows[row, 2], rows[row, 3]
        state = carried[row]
        seen = VOLTS[0] <= volt <= VOLTS[1]
        old = state[STARTED] > 0.0
        if not old and not seen:
            outputs[row, :] = np.nan
            continue
        held = np.float64(state[AMPERE])
        ampere = np.float64(rate) * cell.nominal_ah if abs(rate) <= MOST_C_RATE else held
        if seen and (not old or dt == 0.0):
            x[3] = ampere
            x[4] = celsius if CELSIUSES[0] <= celsius <= CELSIUSES[1] else USUAL_CELSIUS
            begin(cell, noise, x, p, w, np.float64(volt))
            s, start, drift = x[0], np.sqrt(max(p[0, 0], 0.0)), 0.0
        else:
            per_ampere = 100.0 * (min(np.float64(dt), LONGEST_SECONDS) if dt > 0.0 else 0.0) / 3600.0 / cell.capacity_ah
            s = np.float64(state[SOC]) + np.float64(state[SOC_REST]) + per_ampere * held
            s, start = min(max(s, 0.0), 100.0), np.float64(state[START])
            drift = min(np.float64(state[DRIFT]) + per_ampere * noise[10], 100.0)
        half = noise[11] * np.sqrt(start * start + drift * drift)
        outputs[row, 0], outputs[row, 1], outputs[row, 2] = s, max(s - half, 0.0), min(s + half, 100.0)
        state[STARTED], state[SOC], state[AMPERE], state[START], state[DRIFT] = 1.0, s, ampere, start, drift
        state[SOC_REST] = s - np.float64(state[SOC])
