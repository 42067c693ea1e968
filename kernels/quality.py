"""The quality rules: one pass over the rows of a shard, in arrival order.

Each rule sets one bit of ``voltmill.kernels.schema.Quality``; ``RULES`` says in words what each one
looks for. A row with a bit of ``REFUSED`` takes no part in any state, here or downstream. A single
value outside its limits is left out of the state, and its row goes on with what is believable.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import inline, kernel
from voltmill.kernels.schema import REFUSED as _REFUSED
from voltmill.kernels.schema import Quality

_NEVER: Final = np.iinfo(np.int64).min
_SEQ_WINDOW: Final = 64  # how far back a message counter is remembered exactly
LONGEST_RUN: Final = 65535  #: how far equal readings are counted: what ``CELL`` holds
_SIGN_VOLT: Final = 0.002  # a smaller change is noise: two steps of a common BMS
_TIMES: Final = 8  # how many event times are remembered for devices without a counter

# numba freezes these into the kernels
_DUPLICATE: Final = int(Quality.DUPLICATE)
_LATE: Final = int(Quality.LATE)
_OUT_OF_ORDER: Final = int(Quality.OUT_OF_ORDER)
_CLOCK_SKEW: Final = int(Quality.CLOCK_SKEW)
_GAP_BEFORE: Final = int(Quality.GAP_BEFORE)
_RANGE: Final = int(Quality.RANGE)
_RATE: Final = int(Quality.RATE)
_STUCK: Final = int(Quality.STUCK)
_SIGN_SUSPECT: Final = int(Quality.SIGN_SUSPECT)
_CELL_COUNT_CHANGED: Final = int(Quality.CELL_COUNT_CHANGED)
_SUM_MISMATCH: Final = int(Quality.SUM_MISMATCH)
_REISSUED: Final = int(Quality.REISSUED)
_REFUSED_BITS: Final = int(_REFUSED)

#: One device: 161 bytes, plus 10 a cell in the arena.
STATE: Final = np.dtype(
    [
        ("started", "u1"),  # a row was accepted before
        ("has_seq", "u1"),
        ("next_time", "u1"),  # where the next event time goes in recent_time
        ("sign_steps", "u1"),  # current steps seen, up to 255
        ("cells", "<i4"),
        ("arena", "<i4"),  # first cell in the arena
        ("room", "<i4"),  # cells reserved there
        ("believed", "<i4"),  # cells of the newest row inside their limits
        ("probes", "<i4"),  # its probes inside theirs
        ("late_run", "u1"),  # late rows in ascending order since the newest accepted one
        ("late_time", "<i8"),  # of the last of them
        ("newest_time", "<i8"),  # of accepted rows
        ("seen_time", "<i8"),  # of all rows but those ahead of their arrival
        ("newest_seq", "<u8"),
        ("seen_seq", "<u8"),  # bit k: newest_seq - k was seen
        ("recent_time", "<i8", (_TIMES,)),  # with a counter: only those ahead of their arrival
        ("current", "<f8"),  # NaN: not believed
        ("cell_mean", "<f8"),
        ("temperature_low", "<f4"),
        ("temperature_high", "<f4"),
        ("sign_score", "<f4"),
        ("current_peak", "<f4"),  # largest current believed, either way
    ]
)

#: One cell of a device.
CELL: Final = np.dtype(
    [
        ("last", "<f4"),
        ("run_mean", "<f4"),  # of the cells when this one changed last
        ("run", "<u2"),  # samples since in which the mean was elsewhere
    ]
)

#: The thresholds, as the kernel reads them; ``operators.quality.QualitySettings`` documents them.
SETTINGS: Final = np.dtype(
    [
        ("late_us", "<i8"),
        ("reset_samples", "<i8"),
        ("skew_us", "<i8"),
        ("voltage_rate", "<f8"),
        ("temperature_rate", "<f8"),
        ("stuck_samples", "<i8"),
        ("stuck_volt", "<f8"),
        ("sum_tolerance", "<f8"),
        ("sign_step", "<f8"),
    ]
)

#: What each rule looks for; the documentation is made from it.
RULES: Final = {
    Quality.DUPLICATE: "the message counter was seen among the last 64 of the device, at a time not newer than all "
    "seen; without a counter: the event time is one of the last 8",
    Quality.LATE: "out of order by more than `late_seconds`; after `clock_reset_samples` of them in ascending order, "
    "with none on time between, the clock was set back for good: the next one is accepted, with GAP_BEFORE; reissued "
    "ones do not count",
    Quality.OUT_OF_ORDER: "the event time is not after that of the newest accepted sample",
    Quality.CLOCK_SKEW: "the event time is ahead of the arrival by more than `clock_skew_seconds`",
    Quality.GAP_BEFORE: "the message counter skipped, or more than the fleet entry's `gap_seconds` since the sample "
    "before",
    Quality.RANGE: "a cell voltage, a temperature or the current is outside the fleet entry's `limits`, or not "
    "measured",
    Quality.RATE: "a cell moved faster than `cell_voltage_rate_volt_per_second`, or the coldest or warmest probe "
    "faster than `temperature_rate_celsius_per_second`; judged between samples with as many believable readings",
    Quality.STUCK: "a cell reading did not change in `stuck_samples` samples in which the mean of as many believable "
    "cells was `stuck_volt` or more from where it was at the reading's last change",
    Quality.SIGN_SUSPECT: "over many current steps of `sign_step_c_rate` (without a capacity: of a quarter of the "
    "largest current, 1 A at least) the mean of the cells fell by 2 mV or more when the current rose: the sign looks "
    "reversed",
    Quality.CELL_COUNT_CHANGED: "another number of cells than in the sample before",
    Quality.SUM_MISMATCH: "the sum of the cells differs from the module voltage by more than `sum_tolerance` of it",
    Quality.UNIT_CONVERTED: "set by `decode`: a mapping scaled, offset or sign-flipped a value",
    Quality.REISSUED: "a dead letter that was redriven: the `source` is `redrive`",
    Quality.UNKNOWN_CELL: "set by `estimate`: no fleet entry, or its cell type is not the model's; the value is null",
    Quality.OUT_OF_DOMAIN: "set by `estimate`: an input of the model is missing or outside its valid range; the value "
    "is null",
    Quality.WARM_UP: "set by `estimate`: less history than the model's contract asks for",
    Quality.MODEL_FAILED: "set by `estimate`: the model raised or returned no number; the value is a fallback",
    Quality.PARTIAL_SESSION: "set by `estimate`: a condition of the model's contract does not hold, as a session that "
    "is too short, or too different from what the model was made for; the value is null",
}


@inline
def _is_recent(device: Any, time: int) -> bool:
    for k in range(_TIMES):
        if device.recent_time[k] == time:
            return True
    return False


@inline
def _remember(device: Any, time: int) -> None:
    device.recent_time[device.next_time] = time
    device.next_time = (device.next_time + 1) % _TIMES


@inline
def _count_seq(device: Any, seq: Any, time: int) -> int:
    """Enter a message counter: -1 if it was seen, else how many were skipped before it."""
    if not device.has_seq:
        device.has_seq, device.newest_seq, device.seen_seq = 1, seq, 1
        return 0
    if seq > device.newest_seq:
        ahead = seq - device.newest_seq
        if ahead >= _SEQ_WINDOW and time <= device.seen_time:
            return 0  # a leftover from before the device started again: the counter stays where it is
        device.seen_seq = (device.seen_seq << ahead) | np.uint64(1) if ahead < _SEQ_WINDOW else np.uint64(1)
        device.newest_seq = seq
        return int(min(ahead - np.uint64(1), np.uint64(1 << 62)))
    behind = device.newest_seq - seq
    if behind < _SEQ_WINDOW:
        bit = np.uint64(1) << behind
        if time <= device.seen_time:
            seen = device.seen_seq & bit != 0
            device.seen_seq |= bit
            return -1 if seen else 0
        if device.seen_seq & bit == 0:
            device.seen_seq |= bit
            return 0
        if _is_recent(device, time):  # a copy of a sample that was ahead of its arrival
            return -1
    if time > device.seen_time:  # a newer sample with an older counter: the device started again
        device.newest_seq, device.seen_seq = seq, 1
    return 0


@inline
def _set_back(device: Any, time: int, settings: Any) -> bool:
    """Whether a late row is one of so many in ascending order that the clock must have been set back."""
    device.late_run = min(device.late_run + 1, 255) if time > device.late_time else 1
    device.late_time = time
    return bool(device.late_run > settings.reset_samples)


@inline
def _arrival(
    device: Any, seq: Any, has_seq: bool, time: int, ingest: int, reissued: bool, gap_us: int, settings: Any
) -> int:
    """The bits that follow from counter and clocks.

    Dead letters are reissued in the order they once arrived in, long after their neighbours: that is no
    sign of a clock that was set back.
    """
    bits = 0
    if has_seq:
        skipped = _count_seq(device, seq, time)
        if skipped < 0:
            bits |= _DUPLICATE
        elif skipped > 0:
            bits |= _GAP_BEFORE
    elif _is_recent(device, time):
        bits |= _DUPLICATE
    else:
        _remember(device, time)
    if bits & _DUPLICATE == 0:
        if ingest != _NEVER and time - ingest > settings.skew_us:
            bits |= _CLOCK_SKEW
            if has_seq:
                _remember(device, time)
        elif device.started and time <= device.newest_time:
            bits |= _OUT_OF_ORDER
            if device.newest_time - time > settings.late_us:
                if not reissued and _set_back(device, time, settings):
                    device.seen_time = time
                    return _GAP_BEFORE
                bits |= _LATE
        elif device.started and time - device.newest_time > gap_us:
            bits |= _GAP_BEFORE
    if bits & _CLOCK_SKEW == 0:
        device.seen_time = max(device.seen_time, time)
    return bits


@inline
def _cells(
    device: Any, cells: Any, values: Any, fact: Any, seconds: float, mean: float, same: bool, settings: Any
) -> int:
    """Rate and stuck rules, cell by cell; ``seconds`` is 0 where there is no neighbour to compare.

    Not ``same``: another number of cells is believed than before. Then their mean moved though no cell
    did, and a reading that is back may be older than the sample before: each cell starts anew.
    """
    bits = 0
    for k in range(len(values)):
        value, cell = values[k], cells[device.arena + k]
        if not (fact.voltage_low <= value <= fact.voltage_high):
            continue
        if same and value == cell.last:
            # Only samples away from where it stood count: a multiplexed BMS shows a step some samples late.
            if abs(mean - cell.run_mean) >= settings.stuck_volt:
                if cell.run < LONGEST_RUN:
                    cell.run += 1
                if cell.run >= settings.stuck_samples:
                    bits |= _STUCK
        else:
            if seconds > 0.0 and abs(value - cell.last) > settings.voltage_rate * max(seconds, 1.0):
                bits |= _RATE
            cell.last, cell.run, cell.run_mean = value, 0, mean
    return bits


@inline
def _temperatures(device: Any, values: Any, fact: Any, seconds: float, settings: Any) -> int:
    """Range and rate rules of the probes."""
    bits = 0 if len(values) > 0 else _RANGE
    low, high, believed = np.inf, -np.inf, 0
    for value in values:
        if fact.temperature_low <= value <= fact.temperature_high:
            low, high = min(low, value), max(high, value)
            believed += 1
        else:
            bits |= _RANGE
    if believed > 0:
        # where a probe fell silent, the coldest or warmest is another one
        if seconds > 0.0 and believed == device.probes:
            limit = settings.temperature_rate * max(seconds, 1.0)
            if abs(low - device.temperature_low) > limit or abs(high - device.temperature_high) > limit:
                bits |= _RATE
        device.temperature_low, device.temperature_high = low, high
    device.probes = believed
    return bits


@inline
def _sign(device: Any, current: float, mean: float, step: float, seconds: float) -> int:
    """Does the voltage rise when the current rises? A running vote over current steps."""
    change, rise = current - device.current, mean - device.cell_mean
    if seconds > 0.0 and abs(change) >= step and abs(rise) >= _SIGN_VOLT:  # NaN: not true
        vote = 1.0 if rise * change > 0.0 else -1.0
        device.sign_score += np.float32(0.05) * (vote - device.sign_score)
        device.sign_steps = min(device.sign_steps + 1, 255)
    return _SIGN_SUSPECT if device.sign_steps >= 20 and device.sign_score < -0.5 else 0


@inline
def _accept(
    device: Any, cells: Any, fact: Any, time: int, current: float, voltage: float, volts: Any, temps: Any, settings: Any
) -> int:
    """The rules on the measured values of an accepted row, and its entry into the state."""
    bits = 0
    seconds = 0.0
    if device.started:
        if len(volts) != device.cells:
            bits |= _CELL_COUNT_CHANGED
        if time - device.newest_time <= fact.gap_us:
            seconds = (time - device.newest_time) * 1e-6
    if len(volts) != device.cells:
        for k in range(len(volts)):
            cells[device.arena + k].last = np.nan
            cells[device.arena + k].run = 0
        device.cells = len(volts)
    total, believed = 0.0, 0
    for value in volts:
        if fact.voltage_low <= value <= fact.voltage_high:
            total += value
            believed += 1
    if not (fact.current_low <= current <= fact.current_high):
        bits |= _RANGE
        current = np.nan
    if believed < len(volts) or believed == 0:
        bits |= _RANGE
    mean = total / believed if believed > 0 else np.nan
    if 0 < believed == len(volts) and abs(total - voltage) > settings.sum_tolerance * abs(voltage):
        bits |= _SUM_MISMATCH
    bits |= _temperatures(device, temps, fact, seconds, settings)
    same = believed == device.believed
    if not same:
        seconds = 0.0
    bits |= _cells(device, cells, volts, fact, seconds, mean, same, settings)
    device.current_peak = max(device.current_peak, abs(current))  # NaN: stays
    # 1 A is much to one cell and noise to a car: without a capacity, what the device draws is the measure.
    step = settings.sign_step * fact.capacity_ah if fact.capacity_ah > 0.0 else max(0.25 * device.current_peak, 1.0)
    bits |= _sign(device, current, mean, step, seconds)
    device.current, device.cell_mean, device.believed = current, mean, believed
    device.newest_time, device.started, device.late_run = time, 1, 0
    return bits


@kernel
def judge(
    devices: NDArray[Any],
    facts: NDArray[Any],
    cells: NDArray[Any],
    slots: NDArray[np.int32],
    event_time: NDArray[np.int64],
    ingest_time: NDArray[np.int64],
    seq: NDArray[np.uint64],
    has_seq: NDArray[np.bool_],
    current: NDArray[np.float32],
    voltage: NDArray[np.float32],
    cell_at: NDArray[np.int32],
    cell_values: NDArray[np.float32],
    temperature_at: NDArray[np.int32],
    temperature_values: NDArray[np.float32],
    settings: Any,
    bits: NDArray[np.uint32],
) -> None:
    """Raise the bits of each row and carry the state on. ``bits`` comes in with UNIT_CONVERTED and REISSUED."""
    for row in range(len(slots)):
        device = devices[slots[row]]
        fact = facts[slots[row]]
        time = event_time[row]
        reissued = bits[row] & _REISSUED != 0
        found = _arrival(device, seq[row], has_seq[row], time, ingest_time[row], reissued, fact.gap_us, settings)
        if found & _REFUSED_BITS == 0:
            found |= _accept(
                device,
                cells,
                fact,
                time,
                current[row],
                voltage[row],
                cell_values[cell_at[row] : cell_at[row + 1]],
                temperature_values[temperature_at[row] : temperature_at[row + 1]],
                settings,
            )
        bits[row] |= found


@kernel
def cells_wanted(devices: NDArray[Any], slots: NDArray[np.int32], cell_at: NDArray[np.int32]) -> int:
    """How many cells ``reserve`` may hand out for these rows, at the most."""
    wanted = 0
    for row in range(len(slots)):
        count = cell_at[row + 1] - cell_at[row]
        if count > devices[slots[row]].room:
            wanted += count
    return wanted


@kernel
def reserve(
    devices: NDArray[Any], cells: NDArray[Any], slots: NDArray[np.int32], cell_at: NDArray[np.int32], used: int
) -> int:
    """Give each device room in the cell arena for its widest row; returns the cells in use after.

    What a device holds moves along: whether a wider row comes in the same batch or in a later one
    must make no difference to the rows before it.
    """
    for row in range(len(slots)):
        device = devices[slots[row]]
        wanted = cell_at[row + 1] - cell_at[row]
        if wanted > device.room:
            cells[used : used + device.cells] = cells[device.arena : device.arena + device.cells]
            device.arena, device.room = used, wanted
            used += wanted
    return used
