"""The history of a device's SOH: filter, regression lines, and how long each piece of loss took.

One pass over the SOH values of a shard, in their order. The state of a device is of fixed size: the last few
values, five sums for each regression line, and the cycle at which the SOH first fell to each level of a ladder
with steps of half a percent. The ladder is the whole history at the resolution that matters, however many values
there were. ``kernels/health_table.py`` names every column.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import inline, kernel
from voltmill.kernels.health_table import END_OF_LIFE, FILTER, LAPS, LONGEST, MEMORIES, START, index

LEVELS: Final = 80
STEP: Final = 0.5  # % between two levels; the ladder reaches 39 % below its top
_MEMORIES: Final = np.array(MEMORIES, np.float64)
_LAPS: Final = np.array(LAPS, np.float64)

# Columns; numba freezes them into the kernels.
_VALUES: Final = index("soh_values")
_SOH: Final = index("soh_percent")
_MARGIN: Final = index("soh_margin_percent")
_START: Final = index("soh_start_percent")
_PEAK: Final = index("soh_peak_percent")
_LOSS: Final = index("soh_loss_percent")
_SPREAD: Final = index("soh_spread_percent")
_DAYS: Final = index("history_days")
_CYCLES: Final = index("history_cycles")
_SINCE_PEAK: Final = index("peak_cycles")
_MEAN_RATE: Final = index("soh_mean_rate_percent_per_100_cycles")
_FIRST_HALF: Final = index("soh_first_half_share")
_LINES: Final = index(f"soh_slope_{MEMORIES[0]}_percent_per_100_cycles")
_FIRST_LAP: Final = index("lap_0p5_percent_cycles")

#: The record of one device.
STATE: Final = np.dtype(
    [
        ("count", "<u4"),
        ("levels", "<u4"),  # of the ladder that were reached
        ("first_time", "<i8"),
        ("first_cycles", "<f8"),
        ("cycles", "<f8"),
        ("peak_cycles", "<f8"),
        ("start", "<f8"),
        ("peak", "<f8"),
        ("lowest", "<f8"),  # SOH, filtered
        ("square", "<f8"),  # of the spread
        ("top", "<f8"),  # level 0 of the ladder
        ("line", "<f8", (len(MEMORIES), 5)),  # sums of w, wx, wx², wy, wxy; x from the last value, y the margin
        ("recent", "<f4", (FILTER,)),
        ("ladder", "<f4", (LEVELS,)),  # cycles since the first value
    ]
)

#: Thresholds, as the kernel reads them; ``operators.health.HealthSettings`` documents them.
SETTINGS: Final = np.dtype([("low", "<f8"), ("high", "<f8"), ("replaced", "<f8"), ("restart", "<f8")])


@inline
def _median(recent: Any, n: int) -> float:
    """Median of the first ``n`` of a few values."""
    work = np.empty(FILTER, np.float64)
    for i in range(n):
        value, k = np.float64(recent[i]), i
        while k > 0 and work[k - 1] > value:
            work[k] = work[k - 1]
            k -= 1
        work[k] = value
    half = n // 2
    return float(work[half] if n % 2 else 0.5 * (work[half - 1] + work[half]))


@inline
def _set_up(device: Any, cycles: float, soh: float) -> None:
    """Set the ladder up at a new peak: the loss is counted from there."""
    device.peak, device.peak_cycles, device.lowest = soh, cycles, soh
    device.top = np.floor(soh / STEP) * STEP + STEP  # on a grid, so that devices compare; above the peak
    device.ladder[:] = 0.0
    device.ladder[0], device.levels = cycles - device.first_cycles, 1


@inline
def _begin(device: Any, time: int, cycles: float, soh: float) -> None:
    """Make the history one that starts with this value."""
    device.count = 0
    device.first_time, device.first_cycles, device.cycles = time, cycles, cycles
    device.start, device.square = 0.0, 0.0
    device.line[:] = 0.0
    device.recent[:] = 0.0
    _set_up(device, cycles, soh)


@inline
def _climb_down(device: Any, since: float, elapsed: float, soh: float) -> None:
    """Note the cycle of each level that was passed since the last value, on a straight line between the two."""
    fallen = device.lowest - soh
    while device.levels < LEVELS and soh <= device.top - STEP * device.levels:
        level = device.top - STEP * device.levels
        device.ladder[device.levels] = since + elapsed * min(max((device.lowest - level) / fallen, 0.0), 1.0)
        device.levels += 1
    device.lowest = soh


@inline
def _fell_to(device: Any, height: float) -> float:
    """Cycles from the first value until the SOH first fell to a height between the peak and the lowest."""
    below = int((device.top - height) / STEP)
    if below + 1 >= device.levels:  # the last level was not passed yet, or is the last of the ladder
        return np.nan
    upper = device.peak if below == 0 else device.top - STEP * below
    lower = device.top - STEP * (below + 1)
    share = (upper - height) / (upper - lower) if upper > lower else 1.0
    return float(device.ladder[below] + share * (device.ladder[below + 1] - device.ladder[below]))


@inline
def _lap(device: Any, age: float, lap: float) -> float:
    """Cycles that the last ``lap`` percent of loss took; ``age`` in cycles since the first value."""
    lost = device.peak - device.lowest
    if lost >= lap:
        return float(max(age - _fell_to(device, device.lowest + lap), 0.0))
    return float(min((age - device.ladder[0]) * lap / lost, LONGEST)) if lost > 0.0 else LONGEST


@inline
def _first_half(device: Any, age: float) -> float:
    """Share of the cycles since the peak in which the first half of the loss came; 0.5 as long as there is little."""
    since = age - device.ladder[0]
    half = _fell_to(device, 0.5 * (device.peak + device.lowest)) - device.ladder[0]
    return float(min(max(half / since, 0.0), 1.0)) if half == half and since > 0.0 else 0.5


@inline
def _lines(device: Any, elapsed: float, margin: float, out: Any) -> None:
    """Enter the value into each regression line, whose origin moves along with the last value, and write it."""
    for k in range(len(_MEMORIES)):
        keep = np.exp(-elapsed / _MEMORIES[k])
        w, x, xx, y, xy = device.line[k]
        xx = keep * (xx - 2.0 * elapsed * x + elapsed * elapsed * w)
        xy = keep * (xy - elapsed * y)
        x = keep * (x - elapsed * w)
        w, y = keep * w + 1.0, keep * y + margin
        device.line[k, 0], device.line[k, 1], device.line[k, 2] = w, x, xx
        device.line[k, 3], device.line[k, 4] = y, xy
        spread = w * xx - x * x
        slope = (w * xy - x * y) / spread if spread > 1e-6 * w * w else 0.0  # all at one cycle: no slope yet
        column = _LINES + 3 * k
        out[column] = 100.0 * slope
        out[column + 1] = END_OF_LIFE + (y - slope * x) / w
        out[column + 2] = min(max(margin, 0.0) / -slope, LONGEST) if slope < 0.0 else LONGEST


@inline
def _value(device: Any, time: int, cycles: float, value: float, settings: Any, out: Any) -> None:
    """All columns of one value; one that cannot be believed gives NaN, and the state stays."""
    if not (settings.low <= value <= settings.high and 0.0 <= cycles <= LONGEST):
        out[:] = np.nan
        return
    elapsed = cycles - device.cycles
    if device.count == 0 or not 0.0 <= elapsed <= settings.restart:
        _begin(device, time, cycles, value)
    device.recent[device.count % FILTER] = value
    soh = _median(device.recent, min(device.count + 1, FILTER))
    if soh > device.lowest + settings.replaced:  # no battery recovers so far: this is another one
        _begin(device, time, cycles, value)
        device.recent[0], soh = value, value
    elapsed, since = cycles - device.cycles, device.cycles - device.first_cycles
    device.count += 1
    age = cycles - device.first_cycles
    if device.count <= START:
        device.start += (value - device.start) / device.count
    if soh >= device.peak:
        _set_up(device, cycles, soh)
    elif soh < device.lowest:
        _climb_down(device, since, elapsed, soh)
    device.square += max(0.05, 1.0 / device.count) * ((value - soh) * (value - soh) - device.square)
    device.cycles = cycles
    _lines(device, elapsed, soh - END_OF_LIFE, out)
    out[_VALUES] = device.count
    out[_SOH] = soh
    out[_MARGIN] = soh - END_OF_LIFE
    out[_START] = device.start
    out[_PEAK] = device.peak
    out[_LOSS] = device.peak - soh
    out[_SPREAD] = np.sqrt(device.square)
    out[_DAYS] = (time - device.first_time) / 86_400e6
    out[_CYCLES] = age
    out[_SINCE_PEAK] = cycles - device.peak_cycles
    out[_MEAN_RATE] = 100.0 * (device.start - soh) / age if age > 0.0 else 0.0
    out[_FIRST_HALF] = _first_half(device, age)
    for k in range(len(_LAPS)):
        out[_FIRST_LAP + k] = _lap(device, age, _LAPS[k])


@kernel
def follow(
    devices: NDArray[Any],
    slots: NDArray[np.int32],
    times: NDArray[np.int64],
    cycles: NDArray[np.float32],
    values: NDArray[np.float32],
    settings: Any,
    out: NDArray[np.float32],
) -> None:
    """Enter SOH values into the histories of their devices, in row order.

    Args:
        devices: (slots,) ``STATE``, changed in place.
        slots: (rows,) slot of the row's device.
        times: (rows,) event time, µs.
        cycles: (rows,) equivalent full cycles so far.
        values: (rows,) SOH, percent.
        settings: A record of ``SETTINGS``.
        out: (columns, rows) out: the columns of ``health_columns``.
    """
    for row in range(len(slots)):
        _value(
            devices[slots[row]],
            times[row],
            np.float64(cycles[row]),
            np.float64(values[row]),
            settings,
            out[:, row],
        )
