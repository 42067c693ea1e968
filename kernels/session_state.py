"""What is kept of a device to follow its sessions, and the thresholds by which it is followed.

A device has two parts: the running session, and what has happened since it was last seen to run, which
becomes the next session or joins the running one. All that a part holds adds up, so joining is addition
and a result does not depend on when it was decided.
"""

from typing import Any, Final

import numpy as np

from voltmill.kernels.session_table import BINS, RELAXATIONS, TRACKED_CHARGE, TRACKED_DISCHARGE

# Codes of ``session_table.KINDS``; NONE: not known yet.
REST: Final = 0
CHARGE: Final = 1
DISCHARGE: Final = 2
NONE: Final = 3

#: Full and empty, as the level at which a device was last known to be.
UNKNOWN: Final = 0
FULL: Final = 1
EMPTY: Final = 2

#: Integrals over the time in which a quantity x, linear between samples, was in its window.
SEGMENT: Final = np.dtype(
    [
        ("phase", "u1"),  # 0: not entered, 1: inside, 2: passed through
        ("seconds", "<f8"),
        ("charge", "<f8"),  # Ah
        ("x", "<f8", (4,)),  # of x to the power of 1 to 4
        ("t", "<f8"),  # of the time since the session began
        ("tt", "<f8"),
        ("tx", "<f8"),
    ]
)

#: A sample at which a session begins or ends.
MARK: Final = np.dtype(
    [
        ("time", "<i8"),
        ("net", "<f8"),  # the device's net charge, Ah: before the first, after the last sample
        ("volt", "<f4"),
        ("spread", "<f4"),
        ("celsius", "<f4"),
        ("rested", "<f4"),  # s since current flowed
        ("resistance", "<f4"),
    ]
)

#: Sums and extremes over some time of a device.
PART: Final = np.dtype(
    [
        ("start", "<i8"),
        ("samples", "<i4"),
        ("bits", "<u4"),
        ("seconds", "<f8"),
        ("charge_in", "<f8"),
        ("charge_out", "<f8"),
        ("energy", "<f8"),
        ("missing", "<f8"),
        ("warm_seconds", "<f8"),  # with a believable temperature
        ("warmth", "<f8"),  # integral of it
        ("coldest", "<f4"),
        ("warmest", "<f4"),
        ("lowest", "<f4"),
        ("highest", "<f4"),
        ("current_in", "<f4"),  # largest, A
        ("current_out", "<f4"),
        ("full_at", "<f8"),  # net charge of the device when it was last seen full; NaN: was not
        ("empty_at", "<f8"),
        ("bins", "<f4", (BINS,)),  # Ah, positive in
    ]
)


def _tracked(n: int) -> np.dtype[Any]:
    """Means over the first sessions, and recent averages, of the tracked columns of one kind."""
    return np.dtype([("count", "u1", (n,)), ("baseline", "<f4", (n,)), ("recent", "<f4", (n,))])


#: One device. What every row needs comes first.
STATE: Final = np.dtype(
    [
        ("started", "u1"),  # a sample came before, and no break since
        ("raw", "u1"),  # what the newest sample is by itself
        ("kind", "u1"),  # what the running session is
        ("active", "u1"),  # which part holds it
        ("pending", "u1"),  # whether the other part has begun
        ("seen", "u1"),  # bit k: the pending part has samples of kind k
        ("flowed", "u1"),  # flow_time is known
        ("time", "<i8"),
        ("raw_time", "<i8"),  # since when samples are so
        ("current", "<f8"),
        ("mean", "<f8"),  # of the cells
        ("high", "<f8"),  # highest cell
        ("voltage", "<f8"),  # of the module
        ("celsius", "<f8"),  # newest that is believable, since the break
        ("charge_in", "<f8"),  # since the first sample, Ah
        ("charge_out", "<f8"),
        ("flow_time", "<i8"),  # when current was last seen to flow
        ("end", MARK),
        ("start", MARK),
        ("first", MARK, (3,)),  # of the pending part, by kind
        ("last", MARK, (3,)),
        ("parts", PART, (2,)),
        ("cc", SEGMENT),  # of the charge that runs, else of the one that may be pending
        ("cv", SEGMENT),
        ("end_current", "<f8"),  # at the last sample of the running session
        ("step_time", "<i8"),  # the sample before current began to flow
        ("step_current", "<f8"),
        ("step_mean", "<f8"),
        ("rest_volt", "<f4"),  # at the end of the rest before the running session
        ("relaxing", "u1"),  # current has not flowed since rest_time
        ("rest_time", "<i8"),
        ("rest_first", "<f4"),
        ("rest_last", "<f4"),
        ("relaxed", "<f4", (len(RELAXATIONS),)),
        ("level", "u1"),
        ("level_net", "<f8"),  # net charge of the device when it was at that level
        ("began", "u1"),  # level at which the running session began; NONE: between
        ("numbers", "<i4", (3,)),
        ("tracked_charge", _tracked(len(TRACKED_CHARGE))),
        ("tracked_discharge", _tracked(len(TRACKED_DISCHARGE))),
        ("curves", "u1"),  # discharges in the baseline of Q(V)
        ("curve", "<f4", (BINS,)),  # the baseline: fraction of capacity by bin
    ]
)

#: The sample at hand, and the interval since the one before.
SAMPLE: Final = np.dtype(
    [
        ("row", "<i8"),
        ("time", "<i8"),
        ("bits", "<u4"),
        ("raw", "u1"),  # what it is by itself
        ("current", "<f8"),
        ("voltage", "<f8"),  # of the module
        ("mean", "<f8"),  # of the cells
        ("low", "<f8"),
        ("high", "<f8"),
        ("celsius", "<f8"),
        ("elapsed_us", "<i8"),  # 0: the first, or the first after a break
        ("counted_us", "<i8"),  # in which its current, or one between, is taken to have flowed
        ("gap", "u1"),  # longer than the fleet entry's gap_seconds
        ("charge", "<f8"),  # Ah, positive in
        ("energy", "<f8"),  # Wh, positive in
        ("net_before", "<f8"),  # the device's net charge before the interval, Ah
        ("net", "<f8"),
    ]
)

#: What is said of a finished session beside its columns.
ENDED: Final = np.dtype(
    [
        ("row", "<i8"),  # of the sample that made it finished
        ("start", "<i8"),
        ("end", "<i8"),
        ("kind", "<i4"),
        ("bits", "<u4"),
    ]
)

#: Thresholds, as the kernel reads them; ``operators.sessions.SessionSettings`` documents them.
SETTINGS: Final = np.dtype(
    [
        ("start_rate", "<f8"),
        ("end_rate", "<f8"),
        ("unknown_capacity", "<f8"),
        ("shortest_us", "<i8"),
        ("fewest", "<i8"),
        ("break_us", "<i8"),
        ("step_rate", "<f8"),
        ("step_seconds", "<f8"),
        ("full_tolerance", "<f8"),
        ("empty_tolerance", "<f8"),
        ("full_rate", "<f8"),
        ("level_tolerance", "<f8"),
    ]
)
