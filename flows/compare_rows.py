"""Rows of two sets of predictions, matched and judged as arrays.

A prediction is a record of fixed width here: device and labels are numbers that mean the same in both
sets, floats are their bit patterns.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.void]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: The numbers of a prediction, in the order of their bits in ``null``.
NUMBERS: Final = ("value", "lo90", "hi90", "source_offset", "quality_bits")
FLOATS: Final = NUMBERS[:3]

ROW: Final = np.dtype(
    [
        ("device", "<i4"),
        ("kind", "<i4"),  # target, model and unit
        ("origin", "<i4"),  # source and partition
        ("event_time", "<i8"),
        ("value", "<i4"),
        ("lo90", "<i4"),
        ("hi90", "<i4"),
        ("source_offset", "<i8"),
        ("quality_bits", "<u4"),
        ("null", "u1"),  # bit k: NUMBERS[k] is null, and 0 above
    ]
)


class Matched(NamedTuple):
    """Which rows belong together."""

    left: Index
    """Rows of the left set that have a partner ..."""
    right: Index
    """... and, at the same place, that partner."""
    only_left: Index
    only_right: Index


class Judged(NamedTuple):
    """What is to be said of each pair of rows."""

    changed: Mask
    """It differs by more than the tolerance, or in something other than the numbers."""
    close: Mask
    """It differs, but by no more than that; or two models made it."""
    one_null: Mask
    """Only one of the two has a value."""
    numbers: Mask
    """Both have a value."""
    apart: NDArray[np.float64]
    """How far the values are apart, absolute, where both have one; 0 elsewhere, infinite if one is no number."""


def match(left: tuple[Index, Index], right: tuple[Index, Index]) -> Matched:
    """Match rows by their keys, each row once.

    Args:
        left: Group (device, target, model) and time of each row of the left set.
        right: The same of the right one.

    Returns:
        Where a set has a key several times, the first rows of it are matched with the first ones, and so on.

    Example:
        >>> at = lambda *times: (np.zeros(len(times), np.int64), np.array(times, np.int64))
        >>> [list(map(int, part)) for part in match(at(7, 5, 5), at(5, 6))]
        [[1], [0], [2, 0], [1]]
    """
    n = len(left[0])
    group, time = np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]])
    if not len(group):
        return Matched(*(np.empty(0, np.int64) for _ in range(4)))
    order = np.lexsort((time, group))  # stable: of equal keys those of the left set come first
    group, time = group[order], time[order]
    first = np.concatenate([[True], (group[1:] != group[:-1]) | (time[1:] != time[:-1])])
    starts, run = np.flatnonzero(first), np.cumsum(first) - 1
    is_left = order < n
    lefts = np.add.reduceat(is_left.astype(np.int64), starts)
    rights = np.diff(np.append(starts, len(order))) - lefts
    place = np.arange(len(order)) - starts[run]
    place[~is_left] -= lefts[run[~is_left]]
    paired = place < np.minimum(lefts, rights)[run]
    return Matched(
        order[is_left & paired], order[~is_left & paired] - n, order[is_left & ~paired], order[~is_left & ~paired] - n
    )


def judge(left: Rows, right: Rows, *, units: Index, tolerance: float | None) -> Judged:
    """Compare rows that belong together.

    Args:
        left: Rows of the left set.
        right: Their partners.
        units: By ``kind``, a number for the unit: all of it that must be equal if the models are not.
        tolerance: How far value and interval may be apart, in their unit; None: not a bit.
    """
    rest = (left["origin"] != right["origin"]) | (units[left["kind"]] != units[right["kind"]])
    for name in NUMBERS[len(FLOATS) :]:
        rest |= left[name] != right[name]
    rest |= left["null"] != right["null"]
    bits, beyond = left["kind"] != right["kind"], np.zeros(len(left), bool)
    apart = np.zeros(len(left), np.float64)
    for k, name in enumerate(FLOATS):
        differs = left[name] != right[name]
        bits |= differs
        at = np.flatnonzero(differs & ((left["null"] | right["null"]) & (1 << k) == 0))
        far = _apart(left[name][at], right[name][at])
        beyond[at] |= True if tolerance is None else ~(far <= tolerance)
        if name == "value":
            apart[at] = far
    changed = rest | beyond
    null_left, null_right = left["null"] & 1 != 0, right["null"] & 1 != 0
    return Judged(changed, bits & ~changed, null_left != null_right, ~(null_left | null_right), apart)


def _apart(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    a, b = (np.ascontiguousarray(bits).view(np.float32).astype(np.float64) for bits in (left, right))
    with np.errstate(invalid="ignore"):
        far = np.abs(a - b)
    far[np.isnan(far)] = np.inf
    return far
