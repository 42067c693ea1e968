"""Loads of a battery in a car that drives: random speed traces turned into C-rates, one value a second.

Gives what standard cycles give (UDDS, LA92, US06, HWFET), yet never the same twice: micro-trips of
acceleration, cruise and braking between stops, in three styles, and the road load of a compact electric
car. The statistics are those of the LG drive cycles: a mean near -0.45 C, peaks to -6 C, braking to +2 C.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MASS_KG: Final = 1900.0
ROLLING: Final = 0.008  # rolling resistance coefficient
DRAG_AREA_M2: Final = 0.55  # drag coefficient x frontal area
AIR_KG_PER_M3: Final = 1.2
GRAVITY: Final = 9.81
ACCESSORY_WATT: Final = 500.0
PACK_WATT_HOUR: Final = 13_000.0  # small for its car, as in the LG tests: the cell is worked hard
DRIVE_EFFICIENCY: Final = 0.9
REGEN_SHARE: Final = 0.75  # of the braking power that reaches the battery
SMOOTHING: Final = 4  # s; a pedal does not jump: so the currents are as smooth as those of the LG records
LIMITS: Final = (-6.0, 2.0)  # C-rate, of the LG tests at 10 °C and above

#: Share of micro-trips, cruise speed (mean and spread, m/s), acceleration (mean, m/s²), cruise and stop (mean, s).
STYLES: Final = (
    (0.65, 11.0, 3.0, 1.4, 20.0, 18.0),  # city
    (0.25, 18.0, 4.0, 2.2, 25.0, 12.0),  # brisk suburban
    (0.10, 26.0, 3.0, 1.5, 120.0, 8.0),  # highway
)


def speed_trace(seconds: int, rng: np.random.Generator) -> Array:
    """A speed for each second, m/s: micro-trips between stops."""
    skipped = int(rng.integers(60))  # cycles do not all begin with the same standing start
    trace = np.zeros(skipped + seconds + SMOOTHING - 1)
    at = 0
    while at < len(trace):
        style = STYLES[rng.choice(len(STYLES), p=[s[0] for s in STYLES])]
        top = max(rng.normal(style[1], style[2]), 3.0)
        faster, slower = (max(rng.normal(style[3], 0.35), 0.4) for _ in range(2))
        up = top * (1 - np.exp(-np.arange(1, 4 * top / faster + 1) * faster / top))  # eases off as it gathers speed
        wander = np.cumsum(rng.normal(0, 0.45, int(rng.exponential(style[4])) + 5))
        cruise = np.maximum(up[-1] + wander - np.linspace(0, wander[-1], len(wander)), 1.0)
        down = np.arange(cruise[-1], 0, -slower)
        trip = np.concatenate([up, cruise, down, np.zeros(int(rng.exponential(style[5])) + 2)])[: len(trace) - at]
        trace[at : at + len(trip)] = trip
        at += len(trip)
    return np.convolve(trace, np.full(SMOOTHING, 1 / SMOOTHING), mode="valid")[skipped:]


def c_rate(speed: Array) -> Array:
    """Load of the battery at each second, 1/h, positive while charging, from a speed trace in m/s."""
    speed_up = np.diff(speed, append=speed[-1:])
    force = MASS_KG * (speed_up + GRAVITY * ROLLING * (speed > 0)) + 0.5 * AIR_KG_PER_M3 * DRAG_AREA_M2 * speed**2
    power = force * speed
    battery = np.where(power > 0, power / DRIVE_EFFICIENCY, power * REGEN_SHARE) + ACCESSORY_WATT
    return np.clip(-battery / PACK_WATT_HOUR, *LIMITS)


def drive_bank(cycles: int, seconds: int, seed: int) -> Array:
    """Many drive cycles: cycles x seconds, 1/h, the same for the same seed.

    Example:
        >>> drive_bank(2, 600, seed=1).shape
        (2, 600)
    """
    rng = np.random.default_rng([seed, 0xD21])
    return np.stack([c_rate(speed_trace(seconds, rng)) for _ in range(cycles)])
