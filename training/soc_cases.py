"""The cases in which SOC models are measured, and their errors in them."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from records import CAPACITY_AH, Record
from soc_views import Matrix, Seen, sampled, see

from voltmill.kernels.fusion import FUSION_STATE, fuse
from voltmill.operators.contract import Fusion

WARM_UP_SECONDS: Final = 300.0  # unscored, as in the literature; the averages of 20 s and 90 s have settled
#: What is measured: how the telemetry comes, where in the cycle it begins (as a share of it), what is wrong.
CASES: Final[dict[str, dict[str, Any]]] = {
    "right_start": {},
    "unknown_start": dict(starts=(0.25, 0.5, 0.75)),
    "lost_30_percent": dict(lost=0.3),
    "every_10_seconds": dict(step=10),
    "every_second": dict(step=1),
    "current_plus_50_milliampere": dict(current=0.05),
    "current_minus_50_milliampere": dict(current=-0.05),
    "voltage_plus_10_millivolt": dict(voltage=0.01),
    "capacity_plus_10_percent": dict(capacity=1.1),
    "capacity_minus_10_percent": dict(capacity=0.9),
}

Flags = NDArray[np.bool_]
#: Figures by case, and by case and ambient temperature.
Errors = dict[str, dict[str, float]]


class Scored(NamedTuple):
    """A view of a case with what the networks say of it."""

    case: str
    seen: Seen
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]


class Estimate(NamedTuple):
    """What becomes of a view: value, ends of the 90 % interval, and which rows are past the warm-up."""

    value: Matrix
    lo: Matrix
    hi: Matrix
    settled: Flags


def views_of(records: Sequence[Record], case: str) -> list[Record]:
    """The views of a case; fixed seeds, so that two runs lose the same samples."""
    how, found = CASES[case], []
    for record, share in itertools.product(records, how.get("starts", (0.0,))):
        rng = np.random.default_rng(len(record))
        start = int(share * len(record))
        view = sampled(record, rng, step=how.get("step", 5), start=start, lost=how.get("lost", 0.0))
        found.append(replace(view, **{n: getattr(view, n) + how[n] for n in ("current", "voltage") if n in how}))
    return found


def seen_of(records: Sequence[Record], names: Sequence[str]) -> Iterator[tuple[str, Seen]]:
    """Every view of every case with its features."""
    for case, how in CASES.items():
        for seen in see(views_of(records, case), names, capacity=how.get("capacity", 1.0)):
            yield case, seen


def filtered(scored: Sequence[Scored], fusion: Fusion) -> list[Estimate]:
    """The views through the product's filter, one device a view."""
    sizes = [len(s.mean) for s in scored]
    n, slots = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    value, lo, hi = (np.empty(n, np.float32) for _ in range(3))
    bits = np.zeros(n, np.uint32)
    usable = np.array([CAPACITY_AH * CASES[s.case].get("capacity", 1.0) for s in scored])[slots]
    charge = np.concatenate([s.seen.charge_step_ah for s in scored])
    interval = np.concatenate([s.seen.interval_seconds for s in scored])
    said = (np.concatenate([s.mean for s in scored]), np.concatenate([s.scale for s in scored]))
    tuned = (fusion.process_noise, fusion.current_noise, fusion.correlation_seconds, fusion.interval_factor)
    state, use = np.zeros(len(sizes), FUSION_STATE), np.zeros(n, np.uint8)
    fuse(state, slots, use, charge, interval, usable, *said, *tuned, WARM_UP_SECONDS, value, lo, hi, bits)
    cuts = np.cumsum(sizes)[:-1]
    parts = (np.split(column, cuts) for column in (value, lo, hi, bits == 0))
    return [Estimate(*each) for each in zip(*parts, strict=True)]


class ViewErrors(NamedTuple):
    """The errors of one view: points of SOC, and percent of its rows that lie in the interval."""

    mae: float
    rmse: float
    worst: float
    coverage90: float


def settled(view: Record) -> Flags:
    """Which rows are past the warm-up, for a model that does not say so itself."""
    past: Flags = view.seconds - view.seconds[0] >= WARM_UP_SECONDS
    return past


def view_errors(view: Record, estimate: Estimate) -> ViewErrors:
    """The errors of a view past the warm-up."""
    *columns, scored = estimate
    truth, (value, lo, hi) = view.soc[scored], (column[scored] for column in columns)
    e = np.abs(value - truth)
    inside = ((lo <= truth) & (truth <= hi)).mean()
    return ViewErrors(float(e.mean()), float(np.sqrt((e**2).mean())), float(e.max()), 100 * float(inside))


def errors(views: Sequence[tuple[str, Record, Estimate]]) -> Errors:
    """MAE, RMSE, worst error and coverage past the warm-up, percent: by case, and by case and ambient.

    A cycle counts as one, however long it is; the worst error is the worst of all rows.
    """
    rows: dict[tuple[str, int], list[ViewErrors]] = {}
    for case, view, estimate in views:
        *_, scored = estimate
        if scored.sum() >= 20:
            rows.setdefault((case, view.ambient), []).append(view_errors(view, estimate))
    found = {}
    for case in dict.fromkeys(case for case, _ in rows):
        ambients = sorted(ambient for c, ambient in rows if c == case)
        found[case] = _figures([each for a in ambients for each in rows[case, a]])
        found |= {f"{case}/{a}": _figures(rows[case, a]) for a in ambients}
    return found


def _figures(lines: Sequence[ViewErrors]) -> dict[str, float]:
    mae, rmse, worst, coverage = np.array(lines).T
    figures = (mae.mean(), rmse.mean(), worst.max(), coverage.mean())
    return {name: round(float(f), 3) for name, f in zip(ViewErrors._fields, figures, strict=True)}
