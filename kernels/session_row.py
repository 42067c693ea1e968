"""The row of a finished session: every column of ``session_table`` from what was kept of it."""

from typing import Any, Final

import numpy as np

from voltmill.kernels.compile import inline
from voltmill.kernels.session_state import CHARGE, DISCHARGE, EMPTY, FULL, NONE, REST, UNKNOWN
from voltmill.kernels.session_table import (
    BASELINE_SESSIONS,
    BINS,
    RECENT_WEIGHT,
    RELAXATIONS,
    TRACKED_CHARGE,
    TRACKED_DISCHARGE,
    index,
)

_COLUMNS: Final = np.array([index(name) for name in TRACKED_CHARGE])
_FIRST: Final = index(TRACKED_CHARGE[0])
_BASELINE: Final = index(f"baseline_{TRACKED_CHARGE[0]}")
_RECENT: Final = index(f"recent_{TRACKED_CHARGE[0]}")
_ON_DISCHARGE: Final = len(TRACKED_DISCHARGE)  # they come first

# Places of the columns; numba freezes them into the kernels.
_NUMBER: Final = index("session_number")
_DURATION: Final = index("duration_seconds")
_SAMPLES: Final = index("samples")
_MISSING: Final = index("missing_fraction")
_RESTED: Final = index("rest_before_seconds")
_CHARGE: Final = index("charge_ah")
_AGAINST: Final = index("charge_against_ah")
_FRACTION: Final = index("charge_fraction")
_ENERGY: Final = index("energy_wh")
_RATE_MEAN: Final = index("c_rate_mean")
_RATE_MAX: Final = index("c_rate_max")
_CAPACITY: Final = index("capacity_ah")
_CYCLES: Final = index("equivalent_full_cycles")
_CELSIUS_MEAN: Final = index("cell_temperature_mean_celsius")
_CELSIUS_MIN: Final = index("cell_temperature_min_celsius")
_CELSIUS_MAX: Final = index("cell_temperature_max_celsius")
_CELSIUS_START: Final = index("cell_temperature_start_celsius")
_CELSIUS_END: Final = index("cell_temperature_end_celsius")
_VOLT_START: Final = index("cell_voltage_start_volt")
_VOLT_END: Final = index("cell_voltage_end_volt")
_VOLT_MIN: Final = index("cell_voltage_min_volt")
_VOLT_MAX: Final = index("cell_voltage_max_volt")
_SPREAD_END: Final = index("cell_voltage_spread_end_volt")
_REST_VOLT: Final = index("rest_voltage_before_volt")
_RESISTANCE_START: Final = index("resistance_start_ohm")
_RESISTANCE_END: Final = index("resistance_end_ohm")
_RELAXATION: Final = index("relaxation_volt")
_BEGAN_FULL: Final = index("began_full")
_ENDED_FULL: Final = index("ended_full")
_BEGAN_EMPTY: Final = index("began_empty")
_ENDED_EMPTY: Final = index("ended_empty")
_MEASURED: Final = index("measured_capacity_ah")
_CC: Final = index("cc_charge_fraction")
_CV: Final = index("cv_charge_fraction")
_DELTA: Final = index("delta_q_log10_variance")
_HISTOGRAM: Final = index("charge_bin_00_fraction")


@inline
def ended_at(device: Any, part: Any, capacity: float, settings: Any) -> int:
    """The level at which the session ended: full, empty, or NONE for between; UNKNOWN if that cannot be told."""
    allowed = settings.level_tolerance * capacity
    if not capacity > 0.0:
        return UNKNOWN
    if device.kind == CHARGE and abs(device.end.net - part.full_at) <= allowed:
        return FULL
    if device.kind == DISCHARGE and abs(device.end.net - part.empty_at) <= allowed:
        return EMPTY
    return NONE


@inline
def _levels(out: Any, began: int, ended: int) -> None:
    if began != UNKNOWN:
        out[_BEGAN_FULL] = 1.0 if began == FULL else 0.0
        out[_BEGAN_EMPTY] = 1.0 if began == EMPTY else 0.0
    if ended != UNKNOWN:
        out[_ENDED_FULL] = 1.0 if ended == FULL else 0.0
        out[_ENDED_EMPTY] = 1.0 if ended == EMPTY else 0.0


@inline
def _segment(segment: Any, origin: float, capacity: float, out: Any, column: int) -> None:
    """Charge, time, moments and slope of a segment that was passed through from end to end."""
    w = segment.seconds
    if segment.phase != 2 or not w > 0.0:
        return
    out[column] = segment.charge / capacity
    out[column + 1] = w
    m = segment.x[0] / w
    s2, s3, s4 = segment.x[1] / w, segment.x[2] / w, segment.x[3] / w
    variance = max(s2 - m * m, 0.0)
    out[column + 2] = m + origin
    out[column + 3] = np.sqrt(variance)
    if variance > 1e-12:
        out[column + 4] = (s3 - 3.0 * m * s2 + 2.0 * m**3) / variance**1.5
        out[column + 5] = (s4 - 4.0 * m * s3 + 6.0 * m * m * s2 - 3.0 * m**4) / variance**2 - 3.0
    t = segment.t / w
    spread = segment.tt / w - t * t
    if spread > 1e-6:
        out[column + 6] = (segment.tx / w - t * m) / spread


@inline
def _track(tracked: Any, n: int, out: Any) -> None:
    """Enter the session into the device's baseline and recent averages, and write them."""
    for k in range(n):
        x = out[_COLUMNS[k]]
        if x == x:
            if tracked.count[k] == 0:
                tracked.recent[k] = x
            else:
                tracked.recent[k] += (x - tracked.recent[k]) * RECENT_WEIGHT
            if tracked.count[k] < BASELINE_SESSIONS:
                tracked.count[k] += 1
                tracked.baseline[k] += (x - tracked.baseline[k]) / tracked.count[k]
        if tracked.count[k] > 0:
            out[_BASELINE + k] = tracked.baseline[k]
            out[_RECENT + k] = tracked.recent[k]


@inline
def _curve(device: Any, out: Any) -> None:
    """The change of Q(V), if the baseline is complete; else the session enters the baseline."""
    bins = out[_HISTOGRAM : _HISTOGRAM + BINS]
    if device.curves < BASELINE_SESSIONS:
        device.curves += 1
        for k in range(BINS):
            device.curve[k] += (bins[k] - device.curve[k]) / device.curves
        return
    delta = np.empty(BINS)
    total = 0.0
    for k in range(BINS - 1, -1, -1):  # a discharge goes from the highest voltage down
        total += np.float64(bins[k]) - np.float64(device.curve[k])
        delta[k] = total
    mean = delta.mean()
    m2, m3, m4 = 0.0, 0.0, 0.0
    for x in delta:
        y = x - mean
        m2, m3, m4 = m2 + y * y, m3 + y * y * y, m4 + y * y * y * y
    m2, m3, m4 = m2 / BINS, m3 / BINS, m4 / BINS
    delta.sort()
    out[_DELTA] = np.log10(m2) if m2 > 0.0 else np.nan
    out[_DELTA + 1] = mean
    out[_DELTA + 2] = delta[0]
    out[_DELTA + 3] = delta[BINS - 1]
    quarter = 0.25 * (BINS - 1)
    low, high = int(quarter), int(3.0 * quarter)
    upper = delta[high] + (3.0 * quarter - high) * (delta[high + 1] - delta[high])
    out[_DELTA + 4] = upper - (delta[low] + (quarter - low) * (delta[low + 1] - delta[low]))
    if m2 > 1e-18:
        out[_DELTA + 5] = m3 / m2**1.5
        out[_DELTA + 6] = m4 / m2**2 - 3.0


@inline
def _common(device: Any, part: Any, sign: float, seconds: float, capacity: float, out: Any) -> None:
    """What every session has."""
    start, end = device.start, device.end
    charge = sign * (part.charge_in - part.charge_out)
    later = device.parts[1 - device.active]
    moved = device.charge_in + device.charge_out
    if device.pending:
        moved -= later.charge_in + later.charge_out
    out[_NUMBER] = device.numbers[device.kind]
    out[_DURATION] = seconds
    out[_SAMPLES] = part.samples
    out[_MISSING] = min(part.missing / seconds, 1.0)
    out[_CHARGE] = charge
    out[_FRACTION] = charge / capacity
    out[_ENERGY] = sign * part.energy
    out[_RATE_MEAN] = charge / capacity / (seconds / 3600.0)
    out[_CAPACITY] = capacity
    out[_CYCLES] = 0.5 * moved / capacity
    if part.warm_seconds > 0.0:
        out[_CELSIUS_MEAN] = part.warmth / part.warm_seconds
    if part.coldest <= part.warmest:
        out[_CELSIUS_MIN] = part.coldest
        out[_CELSIUS_MAX] = part.warmest
    out[_CELSIUS_START] = start.celsius
    out[_CELSIUS_END] = end.celsius
    out[_VOLT_START] = start.volt
    out[_VOLT_END] = end.volt
    out[_VOLT_MIN] = part.lowest
    out[_VOLT_MAX] = part.highest
    out[_SPREAD_END] = end.spread


@inline
def _flow(device: Any, part: Any, sign: float, ended: int, fact: Any, out: Any) -> None:
    """What a charge or a discharge has."""
    capacity = fact.capacity_ah
    charging = device.kind == CHARGE
    out[_RATE_MAX] = (part.current_in if charging else part.current_out) / capacity
    out[_AGAINST] = part.charge_out if charging else part.charge_in
    out[_RESTED] = device.start.rested
    out[_REST_VOLT] = device.rest_volt
    out[_RESISTANCE_START] = device.start.resistance
    out[_RESISTANCE_END] = device.end.resistance
    if not (fact.full_volt > fact.empty_volt and capacity > 0.0):
        return
    _levels(out, device.began, ended)
    for k in range(BINS):
        out[_HISTOGRAM + k] = sign * part.bins[k] / capacity
    if (charging and device.began == EMPTY and ended == FULL) or (
        not charging and device.began == FULL and ended == EMPTY
    ):
        out[_MEASURED] = out[_CHARGE]


@inline
def write_row(device: Any, part: Any, ended: int, fact: Any, out: Any) -> None:
    """Write the columns of the running session, and enter it into what the device remembers of its sessions."""
    out[:] = np.nan
    capacity = fact.capacity_ah
    sign = -1.0 if device.kind == DISCHARGE else 1.0
    _common(device, part, sign, (device.end.time - device.start.time) * 1e-6, capacity, out)
    if device.kind == REST:
        out[_RATE_MAX] = max(part.current_in, part.current_out) / capacity
        out[_RELAXATION] = device.rest_last - device.rest_first
        for k in range(len(RELAXATIONS)):
            out[_RELAXATION + 1 + k] = device.relaxed[k]
        return
    _flow(device, part, sign, ended, fact, out)
    if device.kind == CHARGE:
        _segment(device.cc, fact.full_volt, capacity, out, _CC)
        _segment(device.cv, 0.0, capacity, out, _CV)
        _track(device.tracked_charge, len(_COLUMNS), out)
    else:
        _track(device.tracked_discharge, _ON_DISCHARGE, out)
        if out[_MEASURED] == out[_MEASURED]:
            _curve(device, out)
