"""The features: instant values, exponential averages, sliding windows, throughput and resistance.

One pass over the accepted rows of a shard, in arrival order. Between two samples the earlier
current and voltage hold (zero-order hold), so irregular sampling and lost messages are no special
case. ``kernels/feature_table.py`` names every column with unit, formula and source.

A sliding window is made of six panes of event time and covers the current pane and the five before
it, so a ten-minute window of a device costs six small records and not 120 samples. Panes hold
count, mean and squared deviations and are merged by the formulas of Chan, Golub and LeVeque (1979),
which lose no precision where sums of squares would.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import inline, kernel
from voltmill.kernels.feature_table import INSTANT, PER_WINDOW, TAUS, index

PANES: Final = 6
_BLOCK: Final = 32  # rows computed before they are turned into columns
_TAUS: Final = np.array(TAUS, np.float64)
_AVERAGES: Final = INSTANT  # first column of the averages
_WINDOWS: Final = INSTANT + 3 * len(TAUS)  # first column of the windows

# Columns of the instant features; numba freezes them into the kernels.
_CELL_MEAN: Final = index("cell_voltage_mean_volt")
_C_RATE: Final = index("c_rate")
_TEMPERATURE: Final = index("cell_temperature_mean_celsius")
_CURRENT: Final = index("current_ampere")
_VOLTAGE: Final = index("voltage_volt")
_CELL_MIN: Final = index("cell_voltage_min_volt")
_CELL_MAX: Final = index("cell_voltage_max_volt")
_SPREAD: Final = index("cell_voltage_spread_volt")
_WEAKEST: Final = index("weakest_cell_z")
_COLDEST: Final = index("cell_temperature_min_celsius")
_WARMEST: Final = index("cell_temperature_max_celsius")
_INTERVAL: Final = index("sample_interval_seconds")
_HISTORY: Final = index("history_seconds")
_CHARGE_STEP: Final = index("charge_step_ah")
_CAPACITY: Final = index("capacity_ah")
_CHARGE: Final = index("charge_throughput_ah")
_DISCHARGE: Final = index("discharge_throughput_ah")
_ENERGY_IN: Final = index("energy_charged_wh")
_ENERGY_OUT: Final = index("energy_discharged_wh")
_CYCLES: Final = index("equivalent_full_cycles")
_RESISTANCE: Final = index("cell_resistance_ohm")
_BELIEVED: Final = index("cells_believed")

#: Aggregates over one pane of a window.
PANE: Final = np.dtype(
    [
        ("number", "<i8"),  # event time // pane length: which pane this is
        ("count", "<f4"),
        ("voltage_mean", "<f4"),
        ("voltage_m2", "<f4"),
        ("voltage_min", "<f4"),
        ("voltage_max", "<f4"),
        ("current_mean", "<f4"),
        ("current_m2", "<f4"),
        ("current_min", "<f4"),
        ("current_max", "<f4"),
        ("spread_max", "<f4"),
        ("warm_count", "<f4"),  # samples with a believable temperature
        ("time_mean", "<f4"),  # of those, seconds since the pane began
        ("time_m2", "<f4"),
        ("temperature_mean", "<f4"),
        ("covariance", "<f4"),  # sum of products of the deviations of time and temperature
        ("charge", "<f4"),
        ("discharge", "<f4"),
        ("energy_in", "<f4"),
        ("energy_out", "<f4"),
    ]
)


def state_dtype(windows: int) -> np.dtype[Any]:
    """The record of one device, for so many windows."""
    return np.dtype(
        [
            ("started", "u1"),
            ("time", "<i8"),
            ("history_us", "<i8"),
            ("current", "<f8"),
            ("cell_mean", "<f8"),
            ("voltage", "<f8"),
            ("weight", "<f8", (len(TAUS),)),
            ("voltage_average", "<f8", (len(TAUS),)),
            ("current_average", "<f8", (len(TAUS),)),  # A: the capacity may be configured later
            ("charge", "<f8"),
            ("discharge", "<f8"),
            ("energy_in", "<f8"),
            ("energy_out", "<f8"),
            ("resistance", "<f8"),
            ("panes", PANE, (windows, PANES)),
        ]
    )


#: Thresholds, as the kernel reads them; ``operators.features.FeatureSettings`` documents them.
SETTINGS: Final = np.dtype([("restart_us", "<i8"), ("step_rate", "<f8"), ("step_seconds", "<f8")])


@inline
def span(values: Any, low: float, high: float) -> tuple[float, float, float]:
    """Mean, lowest and highest of the believable values; NaN if there are none."""
    total, n, lowest, highest = 0.0, 0, np.inf, -np.inf
    for value in values:
        if low <= value <= high:
            total += value
            n += 1
            lowest, highest = min(lowest, value), max(highest, value)
    return (total / n, lowest, highest) if n > 0 else (np.nan, np.nan, np.nan)


@inline
def module_voltage(voltage: float, mean: float, cells: Any) -> float:
    """The module's voltage, or the sum of its cells where it is not measured."""
    # Rounded as a measured one is: the panes hold float32.
    return voltage if abs(voltage) < np.inf else np.float64(np.float32(mean * len(cells)))


@inline
def step_resistance(step: float, change: float, seconds: float, capacity: float, settings: Any) -> float:
    """Direct-current resistance from a step: change of voltage over change of current; NaN if it gives none."""
    least = settings.step_rate * capacity if capacity > 0.0 else 1.0
    if 0.0 < seconds <= settings.step_seconds and abs(step) >= least:
        resistance = change / step
        if 0.0 < resistance < 1.0:
            return resistance
    return np.nan


@inline
def _sorted(values: Any, low: float, high: float, believed: Any, work: Any) -> int:
    """The believable values in ascending order into ``work``; returns how many.

    Each value goes where its rank says. Counting ranks takes n² comparisons and no branch, which a
    processor does many at a time: for 16 cells in a third of the time of an insertion sort.
    """
    n = 0
    for value in values:
        if low <= value <= high:
            believed[n] = value
            n += 1
    for i in range(n):
        rank = np.int32(0)
        for j in range(n):
            rank += np.int32(believed[j] < believed[i]) | np.int32((believed[j] == believed[i]) & (j < i))
        work[rank] = believed[i]
    return n


@inline
def _weakest_z(work: Any, n: int) -> float:
    """Robust z-score of the lowest of ``n`` sorted values: (min - median) / (1.4826 MAD)."""
    half = n // 2
    median = np.float64(work[half]) if n % 2 else 0.5 * (np.float64(work[half - 1]) + work[half])
    # Deviations grow away from the median on both sides: merge the two sides in ascending order.
    left, right = half - 1, half
    deviation, before = 0.0, 0.0
    for _ in range(half + 1):
        before = deviation
        if left >= 0 and (right >= n or median - work[left] <= work[right] - median):
            deviation = median - work[left]
            left -= 1
        else:
            deviation = work[right] - median
            right += 1
    mad = deviation if n % 2 else 0.5 * (before + deviation)
    return float((work[0] - median) / (1.4826 * max(mad, 0.0005)))  # readings are stepped: 0.5 mV at least


@inline
def _averages(device: Any, rate: float, mean: float, seconds: float, capacity: float, out: Any) -> None:
    """Exponential averages of what held since the sample before; their weight corrects the start."""
    n = len(_TAUS)
    for j in range(n):
        if seconds > 0.0:
            decay = np.exp(-seconds / _TAUS[j])
            device.weight[j] = decay * device.weight[j] + (1.0 - decay)
            device.voltage_average[j] = decay * device.voltage_average[j] + (1.0 - decay) * device.cell_mean
            device.current_average[j] = decay * device.current_average[j] + (1.0 - decay) * device.current
        weight = device.weight[j]
        known = weight > 1e-9
        out[_AVERAGES + j] = device.voltage_average[j] / weight if known else mean
        out[_AVERAGES + n + j] = device.current_average[j] / weight / capacity if known else rate
        out[_AVERAGES + 2 * n + j] = weight


@inline
def _enter(pane: Any, voltage: float, current: float, spread: float, at: float, temperature: float) -> None:
    """Add a sample to its pane (Welford)."""
    pane.count += 1.0
    change = voltage - pane.voltage_mean
    pane.voltage_mean += change / pane.count
    pane.voltage_m2 += change * (voltage - pane.voltage_mean)
    pane.voltage_min = min(pane.voltage_min, voltage)
    pane.voltage_max = max(pane.voltage_max, voltage)
    change = current - pane.current_mean
    pane.current_mean += change / pane.count
    pane.current_m2 += change * (current - pane.current_mean)
    pane.current_min = min(pane.current_min, current)
    pane.current_max = max(pane.current_max, current)
    pane.spread_max = max(pane.spread_max, spread)
    if temperature == temperature:
        # As the pane holds them: one sample then deviates from its mean by nothing, and gives no slope.
        at, temperature = np.float64(np.float32(at)), np.float64(np.float32(temperature))
        pane.warm_count += 1.0
        change = at - pane.time_mean
        pane.time_mean += change / pane.warm_count
        pane.time_m2 += change * (at - pane.time_mean)
        rise = temperature - pane.temperature_mean
        pane.temperature_mean += rise / pane.warm_count
        pane.covariance += change * (temperature - pane.temperature_mean)


@inline
def _open(pane: Any, number: int) -> None:
    """Make the pane an empty one."""
    pane.number = number
    pane.count, pane.voltage_mean, pane.voltage_m2 = 0.0, 0.0, 0.0
    pane.voltage_min, pane.voltage_max = np.inf, -np.inf
    pane.current_mean, pane.current_m2 = 0.0, 0.0
    pane.current_min, pane.current_max = np.inf, -np.inf
    pane.spread_max, pane.warm_count, pane.time_mean, pane.time_m2 = 0.0, 0.0, 0.0, 0.0
    pane.temperature_mean, pane.covariance = 0.0, 0.0
    pane.charge, pane.discharge, pane.energy_in, pane.energy_out = 0.0, 0.0, 0.0, 0.0


@inline
def _window(panes: Any, number: int, pane_seconds: float, out: Any, column: int) -> None:
    """Merge the panes ``number - 5`` to ``number``, oldest first."""
    n, v, v2, c, c2 = 0.0, 0.0, 0.0, 0.0, 0.0
    v_min, v_max, c_min, c_max, spread = np.inf, -np.inf, np.inf, -np.inf, 0.0
    warm, t, t2, warmth, tw = 0.0, 0.0, 0.0, 0.0, 0.0
    charge, discharge, energy_in, energy_out = 0.0, 0.0, 0.0, 0.0
    for which in range(number - PANES + 1, number + 1):
        pane = panes[which % PANES]
        if pane.number != which or pane.count == 0.0:
            continue
        total = n + pane.count
        share = pane.count / total
        change = pane.voltage_mean - v
        v += change * share
        v2 += pane.voltage_m2 + change * change * n * share
        change = pane.current_mean - c
        c += change * share
        c2 += pane.current_m2 + change * change * n * share
        n = total
        v_min, v_max = min(v_min, pane.voltage_min), max(v_max, pane.voltage_max)
        c_min, c_max = min(c_min, pane.current_min), max(c_max, pane.current_max)
        spread = max(spread, pane.spread_max)
        if pane.warm_count > 0.0:
            total = warm + pane.warm_count
            share = pane.warm_count / total
            later = (which - number) * pane_seconds + pane.time_mean - t
            rise = pane.temperature_mean - warmth
            t += later * share
            warmth += rise * share
            t2 += pane.time_m2 + later * later * warm * share
            tw += pane.covariance + later * rise * warm * share
            warm = total
        charge, discharge = charge + pane.charge, discharge + pane.discharge
        energy_in, energy_out = energy_in + pane.energy_in, energy_out + pane.energy_out
    out[column] = v
    out[column + 1] = np.sqrt(max(v2 / n, 0.0))
    out[column + 2] = v_min
    out[column + 3] = v_max
    out[column + 4] = c
    out[column + 5] = np.sqrt(max(c2 / n, 0.0))
    out[column + 6] = c_min
    out[column + 7] = c_max
    out[column + 8] = spread
    out[column + 9] = tw / t2 if t2 > 0.0 else np.nan
    out[column + 10] = charge
    out[column + 11] = discharge
    out[column + 12] = energy_in
    out[column + 13] = energy_out


@inline
def _pane(panes: Any, number: int) -> Any:
    """The pane of this number, opened if it is new."""
    pane = panes[number % PANES]
    if pane.number != number or pane.count == 0.0:  # of a new device all are number 0, which may be this one
        _open(pane, number)
    return pane


@inline
def _resistance(device: Any, current: float, mean: float, seconds: float, capacity: float, settings: Any) -> None:
    """The running mean of what current steps give."""
    found = step_resistance(current - device.current, mean - device.cell_mean, seconds, capacity, settings)
    if found == found:
        if device.resistance == device.resistance:
            device.resistance += 0.1 * (found - device.resistance)
        else:
            device.resistance = found


@inline
def _interval(device: Any, time: int, settings: Any) -> float:
    """Seconds since the sample before; 0 for the first, after a gap too long to bridge, or a clock set back."""
    elapsed = time - device.time
    if not device.started or not 0 < elapsed <= settings.restart_us:
        device.started = 1
        device.history_us = 0
        device.weight[:] = 0.0
        device.voltage_average[:] = 0.0
        device.current_average[:] = 0.0
        return 0.0
    device.history_us += elapsed
    return float(elapsed * 1e-6)


@inline
def _cells(cells: Any, fact: Any, believed: Any, work: Any, out: Any) -> float:
    """Instant values over the believable cells; returns their mean, NaN if there are none."""
    n = _sorted(cells, fact.voltage_low, fact.voltage_high, believed, work)
    out[_BELIEVED] = n
    if n == 0:
        return np.nan
    mean = 0.0
    for k in range(n):
        mean += work[k]
    mean /= n
    out[_CELL_MEAN] = mean
    out[_CELL_MIN] = work[0]
    out[_CELL_MAX] = work[n - 1]
    out[_SPREAD] = work[n - 1] - work[0]
    out[_WEAKEST] = _weakest_z(work, n) if n > 2 else np.nan
    return mean


@inline
def _probes(values: Any, fact: Any, out: Any) -> float:
    """Instant values over the believable probes; returns their mean, NaN if there are none."""
    mean, coldest, warmest = span(values, fact.temperature_low, fact.temperature_high)
    out[_TEMPERATURE] = mean
    out[_COLDEST] = coldest
    out[_WARMEST] = warmest
    return mean


@inline
def _throughput(device: Any, charge: float, energy: float, capacity: float, out: Any) -> None:
    """Count charge and energy, in and out."""
    device.charge += max(charge, 0.0)
    device.discharge += max(-charge, 0.0)
    device.energy_in += max(energy, 0.0)
    device.energy_out += max(-energy, 0.0)
    out[_CHARGE_STEP] = charge
    out[_CHARGE] = device.charge
    out[_DISCHARGE] = device.discharge
    out[_ENERGY_IN] = device.energy_in
    out[_ENERGY_OUT] = device.energy_out
    out[_CYCLES] = 0.5 * (device.charge + device.discharge) / capacity


@inline
def _windows(
    device: Any,
    time: int,
    voltage: float,
    current: float,
    temperature: float,
    charge: float,
    energy: float,
    window_us: Any,
    out: Any,
) -> None:
    """Enter the sample into the current pane of each window, and write the windows."""
    for w in range(len(window_us)):
        pane_us = window_us[w] // PANES
        number = time // pane_us
        panes = device.panes[w]
        pane = _pane(panes, number)
        _enter(pane, voltage, current, out[_SPREAD], (time - number * pane_us) * 1e-6, temperature)
        pane.charge += max(charge, 0.0)
        pane.discharge += max(-charge, 0.0)
        pane.energy_in += max(energy, 0.0)
        pane.energy_out += max(-energy, 0.0)
        _window(panes, number, pane_us * 1e-6, out, _WINDOWS + PER_WINDOW * w)


@inline
def _sample(
    device: Any,
    fact: Any,
    time: int,
    current: float,
    voltage: float,
    cells: Any,
    temperatures: Any,
    window_us: Any,
    settings: Any,
    believed: Any,
    work: Any,
    out: Any,
) -> None:
    """All features of one sample; without a believable current or cell they are NaN and state stays."""
    mean = _cells(cells, fact, believed, work, out)
    if mean != mean or not (fact.current_low <= current <= fact.current_high):
        out[:] = np.nan
        return
    voltage = module_voltage(voltage, mean, cells)
    capacity = fact.capacity_ah
    temperature = _probes(temperatures, fact, out)
    if not device.started:
        device.resistance = np.nan
    seconds = _interval(device, time, settings)
    _resistance(device, current, mean, seconds, capacity, settings)
    charge = device.current * seconds / 3600.0
    energy = charge * device.voltage
    rate = current / capacity
    out[_C_RATE] = rate
    out[_CURRENT] = current
    out[_VOLTAGE] = voltage
    out[_INTERVAL] = seconds
    out[_HISTORY] = device.history_us * 1e-6
    out[_CAPACITY] = capacity
    out[_RESISTANCE] = device.resistance
    _throughput(device, charge, energy, capacity, out)
    _averages(device, rate, mean, seconds, capacity, out)
    _windows(device, time, voltage, current, temperature, charge, energy, window_us, out)
    device.time, device.current, device.cell_mean, device.voltage = time, current, mean, voltage


@kernel
def extract(
    devices: NDArray[Any],
    facts: NDArray[Any],
    slots: NDArray[np.int32],
    rows: NDArray[np.int64],
    event_time: NDArray[np.int64],
    current: NDArray[np.float32],
    voltage: NDArray[np.float32],
    cell_at: NDArray[np.int32],
    cell_values: NDArray[np.float32],
    temperature_at: NDArray[np.int32],
    temperature_values: NDArray[np.float32],
    window_us: NDArray[np.int64],
    settings: Any,
    out: NDArray[np.float32],
) -> None:
    """Features of the rows whose indices are in ``rows``, into ``out`` (columns, len(rows)).

    A block of rows is computed row by row and then turned: columns written one value at a time
    would touch a cache line each.
    """
    widest = 1
    for row in rows:
        widest = max(widest, cell_at[row + 1] - cell_at[row])
    believed, work = np.empty(widest, np.float32), np.empty(widest, np.float32)
    block = np.empty((_BLOCK, len(out)), np.float32)
    for begin in range(0, len(rows), _BLOCK):
        end = min(begin + _BLOCK, len(rows))
        for k in range(begin, end):
            row = rows[k]
            _sample(
                devices[slots[row]],
                facts[slots[row]],
                event_time[row],
                np.float64(current[row]),
                np.float64(voltage[row]),
                cell_values[cell_at[row] : cell_at[row + 1]],
                temperature_values[temperature_at[row] : temperature_at[row + 1]],
                window_us,
                settings,
                believed,
                work,
                block[k - begin],
            )
        for column in range(len(out)):
            for k in range(begin, end):
                out[column, k] = block[k - begin, column]
