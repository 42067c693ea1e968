"""The sums of a session: how an interval between two samples enters them, and how two parts become one.

While the current flows the same way at both ends, it is taken to be linear between them. Else the later
sample's current holds: cyclers and vehicles record when something has changed, so a current that is seen
to flow began at the sample before, and one that is seen no more ended there. Against the counters of the
cycler (CALCE, 1,900 cycles) this is off by 0.003 % a discharge and 0.13 % a charge, holding the earlier
current by 1.5 % and 2.4 %.
"""

from typing import Any, Final

import numpy as np

from voltmill.kernels.compile import inline
from voltmill.kernels.session_state import CHARGE, REST
from voltmill.kernels.session_table import BINS, CC_END_VOLT, CC_WINDOW_VOLT

_HOUR: Final = 3600.0


@inline
def clear(part: Any, time: int) -> None:
    """Begin an empty part."""
    part.start, part.samples, part.bits = time, 0, 0
    part.seconds, part.charge_in, part.charge_out = 0.0, 0.0, 0.0
    part.energy, part.missing = 0.0, 0.0
    part.warm_seconds, part.warmth = 0.0, 0.0
    part.coldest, part.warmest = np.inf, -np.inf
    part.lowest, part.highest = np.inf, -np.inf
    part.current_in, part.current_out = 0.0, 0.0
    part.full_at, part.empty_at = np.nan, np.nan
    part.bins[:] = 0.0


@inline
def clear_segment(segment: Any) -> None:
    """Begin a segment that was not entered."""
    segment.phase, segment.seconds, segment.charge = 0, 0.0, 0.0
    segment.x[:] = 0.0
    segment.t, segment.tt, segment.tx = 0.0, 0.0, 0.0


@inline
def join(part: Any, later: Any) -> None:
    """Add what came later to a part."""
    part.samples += later.samples
    part.bits |= later.bits
    part.seconds += later.seconds
    part.charge_in += later.charge_in
    part.charge_out += later.charge_out
    part.energy += later.energy
    part.missing += later.missing
    part.warm_seconds += later.warm_seconds
    part.warmth += later.warmth
    part.coldest, part.warmest = min(part.coldest, later.coldest), max(part.warmest, later.warmest)
    part.lowest, part.highest = min(part.lowest, later.lowest), max(part.highest, later.highest)
    part.current_in = max(part.current_in, later.current_in)
    part.current_out = max(part.current_out, later.current_out)
    if later.full_at == later.full_at:
        part.full_at = later.full_at
    if later.empty_at == later.empty_at:
        part.empty_at = later.empty_at
    if later.charge_in > 0.0 or later.charge_out > 0.0:
        for k in range(BINS):
            part.bins[k] += later.bins[k]


@inline
def add_sample(part: Any, now: Any, fact: Any, settings: Any) -> None:
    """Count a sample: extremes, and whether the cells are seen full or empty."""
    part.samples += 1
    part.bits |= now.bits
    part.lowest, part.highest = min(part.lowest, now.mean), max(part.highest, now.mean)
    if now.celsius == now.celsius:
        part.coldest, part.warmest = min(part.coldest, now.celsius), max(part.warmest, now.celsius)
    part.current_in = max(part.current_in, now.current)
    part.current_out = max(part.current_out, -now.current)
    # The highest cell ends a charge and the lowest a discharge. A comparison with NaN is false.
    tapered = 0.0 < now.current <= settings.full_rate * fact.capacity_ah
    if tapered and now.high >= fact.full_volt - settings.full_tolerance:
        part.full_at = now.net
    if now.low <= fact.empty_volt + settings.empty_tolerance:
        part.empty_at = now.net


@inline
def add_interval(part: Any, device: Any, now: Any, fact: Any) -> None:
    """Add the time since the sample before."""
    if now.elapsed_us == 0:
        return
    seconds = now.counted_us * 1e-6
    part.seconds += seconds
    part.charge_in += max(now.charge, 0.0)
    part.charge_out += max(-now.charge, 0.0)
    part.energy += now.energy
    if now.gap:
        part.missing += now.elapsed_us * 1e-6
    if now.celsius == now.celsius:
        before = device.celsius if device.celsius == device.celsius else now.celsius
        part.warm_seconds += seconds
        part.warmth += 0.5 * (before + now.celsius) * seconds
    if now.raw != REST:
        _add_bins(part, device.mean if now.raw == device.raw else now.mean, now.mean, now.charge, fact)


@inline
def _add_bins(part: Any, begin: float, end: float, charge: float, fact: Any) -> None:
    """Spread the charge evenly over the voltages it was moved at; the outer bins take what is beyond."""
    if not fact.full_volt > fact.empty_volt or charge == 0.0:
        return
    scale = BINS / (fact.full_volt - fact.empty_volt)
    top = BINS - 1e-9
    x, y = min(max((begin - fact.empty_volt) * scale, 0.0), top), min(max((end - fact.empty_volt) * scale, 0.0), top)
    x, y = min(x, y), max(x, y)
    first, last = int(x), int(y)
    if first == last:
        part.bins[first] += charge
        return
    each = charge / (y - x)
    part.bins[first] += each * (first + 1 - x)
    for k in range(first + 1, last):
        part.bins[k] += each
    part.bins[last] += each * (y - last)


@inline
def _add_segment(
    segment: Any,
    begin: float,
    end: float,
    low: float,
    high: float,
    origin: float,
    at: float,
    seconds: float,
    charge: float,
) -> None:
    """Integrate that part of an interval in which the quantity, linear from begin to end, is from low to high.

    ``origin`` is taken off the quantity; ``at`` is the time at which the interval begins.
    """
    a, b = min(max(begin, low), high), min(max(end, low), high)
    if begin == end:
        if not low <= begin <= high:
            return
        share, shift = 1.0, 0.5
    else:
        share = (b - a) / (end - begin)
        shift = (0.5 * (a + b) - begin) / (end - begin)
    if share <= 0.0:
        return
    w, m, h = seconds * share, 0.5 * (a + b) - origin, 0.5 * (b - a)
    t, u = at + seconds * shift, 0.5 * seconds * share
    m2, h2 = m * m, h * h
    segment.seconds += w
    segment.charge += charge * share
    segment.x[0] += w * m
    segment.x[1] += w * (m2 + h2 / 3.0)
    segment.x[2] += w * m * (m2 + h2)
    segment.x[3] += w * (m2 * m2 + 2.0 * m2 * h2 + 0.2 * h2 * h2)
    segment.t += w * t
    segment.tt += w * (t * t + u * u / 3.0)
    segment.tx += w * (t * m + u * h / 3.0)


@inline
def follow_charge(device: Any, now: Any, began: int, fact: Any, settings: Any) -> None:
    """The two segments at the end of a charge: voltage rising to full, then current falling at full."""
    if now.raw != CHARGE or device.raw != CHARGE or not fact.full_volt > 0.0:
        return
    seconds = now.elapsed_us * 1e-6
    at = (device.time - began) * 1e-6
    full, high = fact.full_volt, now.high
    low, top = full - CC_WINDOW_VOLT, full - CC_END_VOLT
    cc, cv = device.cc, device.cv
    if cc.phase == 0 and device.high < low <= high:
        cc.phase = 1
    if cc.phase == 1:
        _add_segment(cc, device.high, high, low, top, full, at, seconds, now.charge)
        if high >= top:
            cc.phase = 2
    if high < full - settings.full_tolerance:
        return
    before, rate = device.current / fact.capacity_ah, now.current / fact.capacity_ah
    if cv.phase == 0 and before > fact.cv_high_rate >= rate:
        cv.phase = 1
    if cv.phase == 1:
        _add_segment(cv, before, rate, fact.cv_low_rate, fact.cv_high_rate, 0.0, at, seconds, now.charge)
        if rate <= fact.cv_low_rate:
            cv.phase = 2
