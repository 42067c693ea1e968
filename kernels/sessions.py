"""The sessions: charge, discharge and rest of each device, found sample by sample.

One pass over the accepted rows of a shard, in arrival order. A sample is by itself charge, discharge or
rest, with hysteresis. As long as it is what the running session is, it joins it. Else a pending part
begins, whose net charge decides: once it has lasted as long as the shortest session, its mean current
says what it is, and it becomes the next session or joins the running one. So a regenerative pulse or a
red light ends no discharge, and a drive of pulses is one discharge from its first pulse.
``kernels/session_table.py`` names every column of the row that a finished session gives.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import inline, kernel
from voltmill.kernels.features import module_voltage, span, step_resistance
from voltmill.kernels.session_row import ended_at, write_row
from voltmill.kernels.session_state import CHARGE, DISCHARGE, NONE, REST, UNKNOWN
from voltmill.kernels.session_sums import add_interval, add_sample, clear, clear_segment, follow_charge, join
from voltmill.kernels.session_table import RELAXATIONS


@inline
def _kind_of(rate: float, before: int, settings: Any) -> int:
    """What a current is, given what it was: a charge begins above the start rate and ends below the end rate."""
    if rate >= (settings.end_rate if before == CHARGE else settings.start_rate):
        return CHARGE
    if -rate >= (settings.end_rate if before == DISCHARGE else settings.start_rate):
        return DISCHARGE
    return REST


@inline
def _set(mark: Any, now: Any, net: float) -> None:
    mark.time, mark.net, mark.volt = now.time, net, now.mean
    mark.spread, mark.celsius = now.high - now.low, now.celsius
    mark.rested, mark.resistance = np.nan, np.nan


@inline
def _copy(mark: Any, other: Any) -> None:
    mark.time, mark.net, mark.volt = other.time, other.net, other.volt
    mark.spread, mark.celsius = other.spread, other.celsius
    mark.rested, mark.resistance = other.rested, other.resistance


@inline
def _forget_rest(device: Any) -> None:
    device.relaxing = 0
    device.rest_first, device.rest_last = np.nan, np.nan
    device.relaxed[:] = np.nan


@inline
def _restart(device: Any) -> None:
    """Know nothing of what came before but what was counted and measured."""
    device.started = 1
    device.raw, device.kind, device.pending, device.flowed = NONE, NONE, 0, 0
    device.celsius, device.rest_volt = np.nan, np.nan
    device.level = UNKNOWN
    _forget_rest(device)


@inline
def _interval(device: Any, now: Any, fact: Any, settings: Any) -> None:
    """What flowed since the sample before."""
    elapsed = now.time - device.time
    if device.raw == NONE or not 0 < elapsed <= settings.break_us:
        elapsed = 0
    alike = now.raw == device.raw
    now.elapsed_us = elapsed
    now.gap = elapsed > fact.gap_us
    # Where in a gap the current began to flow is not known.
    now.counted_us = elapsed if alike else min(elapsed, fact.gap_us)
    current = 0.5 * (device.current + now.current) if alike else now.current
    voltage = 0.5 * (device.voltage + now.voltage) if alike else now.voltage
    now.charge = current * now.counted_us / 3.6e9
    now.energy = now.charge * voltage
    now.net_before = device.charge_in - device.charge_out
    device.charge_in += max(now.charge, 0.0)
    device.charge_out += max(-now.charge, 0.0)
    now.net = device.charge_in - device.charge_out


@inline
def _relax(device: Any, now: Any) -> None:
    """Follow the voltage after the current has ended, until it flows again."""
    if now.raw != REST:
        device.relaxing = 0
    elif device.raw != REST:
        if device.kind != REST:  # after a pulse in a rest the voltage no longer tells of the session before
            _forget_rest(device)
            if device.raw != NONE and not now.gap:
                device.relaxing = 1
                device.rest_time, device.rest_first, device.rest_last = now.time, now.mean, now.mean
    elif device.relaxing:
        device.rest_last = now.mean
        for k in range(len(RELAXATIONS)):
            due = device.rest_time + RELAXATIONS[k] * 1_000_000
            if device.time < due <= now.time:
                share = (due - device.time) / (now.time - device.time)
                device.relaxed[k] = device.mean + (now.mean - device.mean) * share - device.rest_first


@inline
def _mark(device: Any, now: Any, fact: Any, settings: Any) -> None:
    """Note the first and the last sample of each kind in the pending part."""
    first = device.first[now.raw]
    if not device.seen >> now.raw & 1:
        device.seen |= 1 << now.raw
        _set(first, now, now.net_before)
        first.time -= now.counted_us
        if device.flowed:
            first.rested = (first.time - device.flow_time) * 1e-6
        device.step_time = now.time - now.elapsed_us
        device.step_current, device.step_mean = device.current, device.mean
        if now.raw == CHARGE and device.kind != CHARGE:  # the segments of a charge that may begin here
            clear_segment(device.cc)
            clear_segment(device.cv)
    if now.raw != REST:
        # Converters ramp up, and many devices report voltage after current: the latest sample within the time counts.
        seconds = (now.time - device.step_time) * 1e-6
        step, change = now.current - device.step_current, now.mean - device.step_mean
        found = step_resistance(step, change, seconds, fact.capacity_ah, settings)
        if found == found:
            first.resistance = found
    _set(device.last[now.raw], now, now.net)


@inline
def _finish(device: Any, now: Any, fact: Any, settings: Any, ended: Any, out: Any) -> int:
    """End the running session; returns 1 if it was long enough for a row."""
    if device.kind == NONE:
        return 0
    part = device.parts[device.active]
    level = ended_at(device, part, fact.capacity_ah, settings)
    long = device.end.time - device.start.time >= settings.shortest_us and part.samples >= settings.fewest
    if long:
        device.numbers[device.kind] += 1
        write_row(device, part, level, fact, out)
        ended.row, ended.start, ended.end = now.row, device.start.time, device.end.time
        ended.kind, ended.bits = device.kind, part.bits
    if device.kind != REST and (level != NONE or device.level == UNKNOWN):
        device.level, device.level_net = level, device.end.net
    return 1 if long else 0


@inline
def _switch(device: Any, kind: int, fact: Any, settings: Any) -> None:
    """The pending part is the running session from now on."""
    device.rest_volt = device.end.volt if device.kind == REST else np.nan
    device.active, device.pending, device.kind = 1 - device.active, 0, kind
    _copy(device.start, device.first[kind])
    _copy(device.end, device.last[kind])
    near = abs(device.start.net - device.level_net) <= settings.level_tolerance * fact.capacity_ah
    device.began = device.level if near or device.level == UNKNOWN else NONE


@inline
def _decide(device: Any, now: Any, capacity: float, fact: Any, settings: Any, ended: Any, out: Any) -> int:
    """Whether the pending part joins the running session or follows it; returns 1 if a row was written."""
    part = device.parts[1 - device.active]
    net = part.charge_in - part.charge_out
    current = net * 3600.0 / part.seconds if part.seconds > 0.0 else now.current
    kind = _kind_of(current / capacity, device.kind, settings)
    long = now.time - part.start >= settings.shortest_us and part.samples >= settings.fewest
    if long and now.raw == device.raw and now.time - device.raw_time >= settings.shortest_us:
        kind = now.raw  # for so long that it matters no more what came before
    if not now.raw == kind and not (long and kind == device.kind):
        return 0  # it goes another way just now: what comes of that is seen soon
    if kind == device.kind:
        device.pending = 0
        join(device.parts[device.active], part)
        if device.seen >> kind & 1:
            _copy(device.end, device.last[kind])
    elif long:
        wrote = _finish(device, now, fact, settings, ended, out)
        _switch(device, kind, fact, settings)
        return wrote
    return 0


@inline
def _enter(device: Any, now: Any, capacity: float, fact: Any, settings: Any, ended: Any, out: Any) -> int:
    """Take a sample into the running session or the pending part; returns 1 if that finished one with a row."""
    running = now.raw == device.kind and not device.pending
    if not running and not device.pending:
        device.pending, device.seen = 1, 0
        clear(device.parts[1 - device.active], now.time)
        device.end_current = device.current
    part = device.parts[device.active if running else 1 - device.active]
    add_interval(part, device, now, fact)
    add_sample(part, now, fact, settings)
    if not running:
        if device.kind == CHARGE or device.kind == DISCHARGE:
            step, change = now.current - device.end_current, now.mean - device.end.volt
            seconds = (now.time - device.end.time) * 1e-6
            found = step_resistance(step, change, seconds, fact.capacity_ah, settings)
            if found == found:
                device.end.resistance = found
        _mark(device, now, fact, settings)
        if device.kind != CHARGE:
            follow_charge(device, now, device.first[CHARGE].time, fact, settings)
        return _decide(device, now, capacity, fact, settings, ended, out)
    _set(device.end, now, now.net)
    if device.kind == CHARGE:
        follow_charge(device, now, device.start.time, fact, settings)
    return 0


@inline
def _sample(device: Any, now: Any, fact: Any, settings: Any, ended: Any, out: Any) -> int:
    """Follow one device by a believable sample; returns 1 if that finished a session with a row."""
    capacity = fact.capacity_ah if fact.capacity_ah > 0.0 else settings.unknown_capacity
    wrote = 0
    if not device.started or not 0 < now.time - device.time <= settings.break_us:
        if device.started:
            wrote = _finish(device, now, fact, settings, ended, out)
        _restart(device)
    now.raw = _kind_of(now.current / capacity, device.raw, settings)
    _interval(device, now, fact, settings)
    _relax(device, now)
    if now.celsius != now.celsius:
        now.celsius = device.celsius
    wrote |= _enter(device, now, capacity, fact, settings, ended, out)
    if now.raw != REST:
        device.flow_time, device.flowed = now.time, 1
    if now.raw != device.raw:
        device.raw_time = now.time
    device.time, device.raw, device.current = now.time, now.raw, now.current
    device.mean, device.high, device.voltage, device.celsius = now.mean, now.high, now.voltage, now.celsius
    return wrote


@kernel
def follow(
    devices: NDArray[Any],
    facts: NDArray[Any],
    slots: NDArray[np.int32],
    rows: NDArray[np.int64],
    event_time: NDArray[np.int64],
    bits: NDArray[np.uint32],
    current: NDArray[np.float32],
    voltage: NDArray[np.float32],
    cell_at: NDArray[np.int32],
    cell_values: NDArray[np.float32],
    temperature_at: NDArray[np.int32],
    temperature_values: NDArray[np.float32],
    settings: Any,
    sample: NDArray[Any],
    ended: NDArray[Any],
    out: NDArray[np.float32],
) -> int:
    """Follow the sessions through the rows whose indices are in ``rows``.

    Args:
        devices: Records of ``session_state.STATE``, by slot.
        facts: Records of the device table, by slot.
        slots: The slot of each row.
        rows: Indices of the accepted rows, ascending.
        event_time: Microseconds, by row; so are the next.
        bits: Quality bits.
        current: A, positive while charging.
        voltage: Of the module, V; NaN where it is not measured.
        cell_at: Where the cells of each row begin in ``cell_values``.
        cell_values: V.
        temperature_at: Where the probes of each row begin in ``temperature_values``.
        temperature_values: °C.
        settings: A record of ``session_state.SETTINGS``.
        sample: One record of ``session_state.SAMPLE``, to work with.
        ended: Records of ``session_state.ENDED``, room for as many as ``rows``.
        out: The columns of the sessions (len(rows), columns).

    Returns:
        How many sessions were finished: a row ends one at most.
    """
    n = 0
    now = sample[0]
    for row in rows:
        device, fact = devices[slots[row]], facts[slots[row]]
        cells = cell_values[cell_at[row] : cell_at[row + 1]]
        mean, low, high = span(cells, fact.voltage_low, fact.voltage_high)
        if mean != mean or not fact.current_low <= current[row] <= fact.current_high:
            continue
        probes = temperature_values[temperature_at[row] : temperature_at[row + 1]]
        now.celsius = span(probes, fact.temperature_low, fact.temperature_high)[0]
        now.row, now.time, now.bits, now.current = row, event_time[row], bits[row], current[row]
        now.mean, now.low, now.high = mean, low, high
        now.voltage = module_voltage(np.float64(voltage[row]), mean, cells)
        n += _sample(device, now, fact, settings, ended[n], out[n])
    return n
