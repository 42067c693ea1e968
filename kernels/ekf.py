"""Extended Kalman filter (EKF) for the state of charge of a cell, over a circuit with two RC pairs.

Source: G. L. Plett, Extended Kalman filtering for battery management systems of LiPB-based HEV battery packs,
J. Power Sources 134 (2004) 252-292, parts 2 (circuit, hysteresis) and 3 (filter). The current is positive while
charging and held over the step (zero-order hold), so a step of any length is exact:

    s  += 100 I dt / (3600 Q)                        SOC, percent
    zj  = aj zj + (1 - aj) I,  aj = exp(-dt / tauj)   current behind each RC pair, A
    h   = H h + (1 - H) sign(I),  H = exp(-20 |I| dt / (3600 Q))    hysteresis: an input, not filtered
    V   = OCV(s, T) + M(s) h + R0(s, T) I + R1(s, T) z1 + R2(s, T) z2 + noise

Predict P = F P F' + si^2 g g' + Q dt with F = diag(1, a1, a2), g = (100 dt / (3600 Q), 1 - a1, 1 - a2); correct by
K = P C' / (C P C' + r), C = dV/d(s, z1, z2). What is not in the book, and why:

- ``si``, the error of the held current, grows with the change of current from sample to sample: at rest there is
  none, in city traffic the mean over five seconds is far from either end. It errs in s and in z alike, so g g'.
- ``r`` is large beside a sensor's noise, since the errors of a circuit last for minutes and would else be averaged
  away. It grows with the overpotential, of which the circuit is wrong by a share (so with cold and with load), and
  with the change of current (voltage and current are not taken at one instant).
- A voltage further off than ``gate`` standard deviations counts as if it were at ``gate`` (P. J. Huber, Ann. Math.
  Stat. 35, 1964): one wild value moves the state little, a lasting one is believed in the end.
- What is carried is the factor L of P = L L', so rounding to float32 can never make P indefinite.

A row is a device. Its state is float32, zeros for a new device; SOC takes two of them (value and rest), since the
charge of a step is below the spacing of float32 at 100.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.circuit import Array, Circuit, inverted, look_up, terminal_volt
from voltmill.kernels.compile import inline, kernel

Matrix = NDArray[np.float32]

HYSTERESIS_RATE: Final = 20.0  # h closes to 1/e within 5 % of SOC, as in kernels/cell_model.py

# The carried state of a row.
STARTED, SOC, SOC_REST, Z1, Z2, HYSTERESIS, AMPERE, CELSIUS, FACTOR = range(9)
STATE_SIZE: Final = FACTOR + 6  # the factor of the covariance, by rows of its lower triangle

#: Beyond these a value is a fault of the telemetry, whatever the cell: it is taken as unknown.
VOLTS: Final = (1.0, 5.5)
CELSIUSES: Final = (-60.0, 100.0)
MOST_C_RATE: Final = 50.0
LONGEST_SECONDS: Final = 1e7
USUAL_CELSIUS: Final = 25.0  # of a device whose temperature was never known
_UNKNOWN_C_RATE: Final = 1.0  # an ordinary load, where the current is unknown
_IGNORANT: Final = 100.0**2 / 12.0  # variance of a SOC of which nothing is known: uniform on 0..100 %
_LEAST: Final = 1e-12  # variance that the factor keeps in each direction
_SPAN: Final = 1.25  # percent: the slope is taken over one node of the tables, so that it has no steps
_LEAST_SLOPE: Final = 5e-4  # V/%: more charge never means less voltage


@inline
def factorise(p: Array) -> None:
    """The Cholesky factor in the lower triangle, in place; a pivot that rounding made negative is raised."""
    for i in range(3):
        for j in range(i + 1):
            rest = p[i, j]
            for k in range(j):
                rest -= p[i, k] * p[j, k]
            p[i, j] = np.sqrt(max(rest, _LEAST)) if i == j else rest / p[j, j]


@inline
def correct(
    cell: Circuit, noise: Array, x: Array, p: Array, w: Array, volt: float, hysteresis: float, change: float
) -> None:
    """Correct ``x`` = (s, z1, z2, I, T) and its full covariance ``p`` by a voltage; a ``volt`` of NaN counts as fit."""
    high, low = min(x[0] + _SPAN, 100.0), max(x[0] - _SPAN, 0.0)
    look_up(cell, x[4], high, w)
    slope = terminal_volt(w, hysteresis, x[3], x[1], x[2])
    look_up(cell, x[4], low, w)
    slope = (slope - terminal_volt(w, hysteresis, x[3], x[1], x[2])) / (high - low)
    look_up(cell, x[4], x[0], w)
    expected = terminal_volt(w, hysteresis, x[3], x[1], x[2])
    r = noise[3] ** 2 + (noise[4] * (expected - w[0])) ** 2 + (noise[5] * w[2] * change) ** 2
    c = (max(slope, _LEAST_SLOPE), w[3], w[4])
    gain = np.empty(3)
    variance = r
    for i in range(3):
        gain[i] = p[i, 0] * c[0] + p[i, 1] * c[1] + p[i, 2] * c[2]
        variance += gain[i] * c[i]
    innovation = volt - expected if volt == volt else 0.0
    variance = max(variance, (innovation / noise[8]) ** 2)
    for i in range(3):
        x[i] += gain[i] * innovation / variance
        for j in range(3):
            p[i, j] -= gain[i] * gain[j] / variance
    x[0] = min(max(x[0], 0.0), 100.0)


@inline
def begin(cell: Circuit, noise: Array, x: Array, p: Array, w: Array, volt: float) -> None:
    """The state of a first sample: SOC by inversion of the circuit, as uncertain as what is unknown makes it."""
    x[1] = x[2] = noise[7] * x[3]
    x[0] = inverted(cell, x[4], volt, x[3], x[1], w)
    p[:] = 0.0
    p[0, 0], p[1, 1], p[2, 2] = _IGNORANT, noise[6] ** 2, noise[6] ** 2
    correct(cell, noise, x, p, w, np.nan, 0.0, 0.0)


@inline
def _predict(cell: Circuit, noise: Array, x: Array, p: Array, dt: float, ampere: float, error: float) -> None:
    """Hold ``ampere`` for ``dt`` s, with a standard deviation of ``error``; ``p`` holds the factor, becomes full."""
    keep1, keep2 = np.exp(-dt / cell.tau[0]), np.exp(-dt / cell.tau[1])
    per_ampere = 100.0 * dt / 3600.0 / cell.capacity_ah
    x[0] = min(max(x[0] + per_ampere * ampere, 0.0), 100.0)
    x[1] = keep1 * x[1] + (1.0 - keep1) * ampere
    x[2] = keep2 * x[2] + (1.0 - keep2) * ampere
    f = (1.0, keep1, keep2)
    g = (per_ampere * error, (1.0 - keep1) * error, (1.0 - keep2) * error)
    for i in range(2, -1, -1):  # from below, so that the rows of the factor above are still there
        for j in range(i, -1, -1):
            total = 0.0
            for k in range(j + 1):
                total += p[i, k] * p[j, k]
            p[i, j] = f[i] * f[j] * total + g[i] * g[j]
    p[0, 0] += noise[0] ** 2 * dt / 3600.0
    # No more than everything can be unknown; row and column are scaled, so P stays positive.
    scale = np.sqrt(min(_IGNORANT / p[0, 0], 1.0))
    p[0, 0] *= scale * scale
    p[1, 0] *= scale
    p[2, 0] *= scale
    p[0, 1], p[0, 2], p[1, 2] = p[1, 0], p[2, 0], p[2, 1]


@inline
def _closed(hysteresis: float, ah: float, capacity: float) -> float:
    side = 1.0 if ah > 0.0 else -1.0
    return float(side + np.exp(-HYSTERESIS_RATE * abs(ah) / capacity) * (hysteresis - side))


@inline
def _read(state: Matrix, x: Array, p: Array) -> None:
    # np.float64, since in a kernel float() of a float32 stays one: the sum would lose what the rest is for.
    x[0] = np.float64(state[SOC]) + np.float64(state[SOC_REST])
    x[1], x[2] = state[Z1], state[Z2]
    for i in range(3):
        for j in range(i + 1):
            p[i, j] = state[FACTOR + i * (i + 1) // 2 + j]


@inline
def _write(state: Matrix, x: Array, p: Array, hysteresis: float) -> None:
    state[STARTED], state[SOC] = 1.0, x[0]
    state[SOC_REST] = x[0] - np.float64(state[SOC])
    state[Z1], state[Z2], state[HYSTERESIS], state[AMPERE], state[CELSIUS] = x[1], x[2], hysteresis, x[3], x[4]
    for i in range(3):
        for j in range(i + 1):
            state[FACTOR + i * (i + 1) // 2 + j] = p[i, j]


@kernel
def filter_step(cell: Circuit, noise: Array, rows: Matrix, carried: Matrix, outputs: Matrix) -> None:
    """Advance the filter of each row by one sample; rows are independent of each other.

    A value that is not finite or absurd is unknown: without a voltage the filter coasts, without a current it holds
    the last one (and is unsure of it), without a temperature it keeps the last. Nothing unknown gets into the state.

    Args:
        cell: the circuit.
        noise: the fields of `voltmill.kernels.circuit.Noise`, in order.
        rows: (rows, 4) mean cell voltage, V; C-rate, 1/h, positive while charging; temperature, °C; time since the
            sample before, s: 0 begins anew if there is a voltage; what is no time counts as none.
        carried: (rows, STATE_SIZE) state, zeros for a new device; changed in place.
        outputs: (rows, 3) out: SOC and both ends of its 90 % interval, percent, 0..100; NaN before the first voltage.
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
        hysteresis: float = np.float64(state[HYSTERESIS])
        flows = abs(rate) <= MOST_C_RATE
        x[3] = np.float64(rate) * cell.nominal_ah if flows else held
        x[4] = np.float64(state[CELSIUS]) if old else USUAL_CELSIUS
        if CELSIUSES[0] <= celsius <= CELSIUSES[1]:
            x[4] = celsius
        if seen and (not old or dt == 0.0):
            hysteresis = 0.0
            begin(cell, noise, x, p, w, np.float64(volt))
        else:
            _read(state, x, p)
            time = min(np.float64(dt), LONGEST_SECONDS) if dt > 0.0 else 0.0
            change = x[3] - held if flows else _UNKNOWN_C_RATE * cell.nominal_ah
            error = np.sqrt(noise[1] ** 2 + (noise[2] * change) ** 2)
            _predict(cell, noise, x, p, time, held, error)
            hysteresis = _closed(hysteresis, held * time / 3600.0, cell.capacity_ah)
            if seen:
                correct(cell, noise, x, p, w, np.float64(volt), hysteresis, change)
        half = noise[9] * np.sqrt(max(p[0, 0], 0.0))
        outputs[row, 0], outputs[row, 1], outputs[row, 2] = x[0], max(x[0] - half, 0.0), min(x[0] + half, 100.0)
        factorise(p)
        _write(state, x, p, hysteresis)
