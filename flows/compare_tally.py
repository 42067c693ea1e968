"""Differences between predictions, counted by device and target; and which models belong together."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voltmill.flows.compare_result import Comparison, DeviceComparison, ModelPair
from voltmill.flows.compare_rows import Index, Rows, judge, match
from voltmill.flows.compare_spill import KIND

Kind = tuple[str | None, ...]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COUNTED: Final = ("left", "right", "changed", "only_left", "only_right", "close", "one_null", "numbers", "apart")
_RECORD: Final = np.dtype(
    [*((name, "<f8" if name == "apart" else "<i8") for name in _COUNTED)] + [("worst", "<f8"), ("worst_at", "<i8")]
)


class Tally:
    """Counts by target and device.

    Args:
        kinds: What the number ``kind`` of a row means.
        devices: How many devices there are.
        pairs: The models that belong together, by target.
        tolerance: As in ``judge``.
    """

    def __init__(
        self, kinds: Sequence[Kind], devices: int, pairs: Sequence[ModelPair], tolerance: float | None
    ) -> None:
        self.targets = sorted({pair.target for pair in pairs})
        self._devices, self._tolerance = devices, tolerance
        self._target = np.array([self.targets.index(str(kind[0])) for kind in kinds], np.int64)
        self._units = _numbered([kind[KIND.index("unit")] for kind in kinds])
        self._pairs = len(pairs)
        self._left = _pair_of(kinds, pairs, [(pair.target, pair.left) for pair in pairs])
        self._right = _pair_of(kinds, pairs, [(pair.target, pair.right) for pair in pairs])
        self._records = np.zeros(len(self.targets) * devices, _RECORD)

    def add(self, left: Rows, right: Rows) -> None:
        """Count the rows of some devices: all that both sets have of them."""
        found = match(self._key(left, self._left), self._key(right, self._right))
        a, b = left[found.left], right[found.right]
        judged = judge(a, b, units=self._units, tolerance=self._tolerance)
        where = self._place(a)
        self._count("left", self._place(left))
        self._count("right", self._place(right))
        self._count("only_left", self._place(left[found.only_left]))
        self._count("only_right", self._place(right[found.only_right]))
        self._count("changed", where[judged.changed])
        self._count("close", where[judged.close])
        self._count("one_null", where[judged.one_null])
        self._count("numbers", where[judged.numbers])
        at = np.flatnonzero(judged.apart)
        self._measure(where[at], judged.apart[at], a["event_time"][at])

    def total(self) -> Comparison:
        """Of everything."""
        return _comparison(self._records)

    def by_target(self) -> dict[str, Comparison]:
        """Of each target."""
        return {name: _comparison(part) for name, part in zip(self.targets, self._by_target(), strict=True)}

    def differing(self, device_ids: Sequence[str]) -> tuple[list[DeviceComparison], int]:
        """The devices and targets with a difference, the worst first; and how many have none."""
        r = self._records
        present = (r["left"] > 0) | (r["right"] > 0)
        rows = r["changed"] + r["close"] + r["only_left"] + r["only_right"]
        at = np.flatnonzero(rows)
        at = at[np.lexsort((at, -rows[at], -r["worst"][at]))]
        found = [
            DeviceComparison(device_ids[k % self._devices], self.targets[k // self._devices], _comparison(r[k : k + 1]))
            for k in at.tolist()
        ]
        return found, int(present.sum()) - len(found)

    def _by_target(self) -> Iterable[NDArray[np.void]]:
        return self._records.reshape(len(self.targets), self._devices) if self._devices else []

    def _key(self, rows: Rows, pair: Index) -> tuple[Index, Index]:
        return rows["device"] * np.int64(self._pairs) + pair[rows["kind"]], rows["event_time"]

    def _place(self, rows: Rows) -> Index:
        place: Index = self._target[rows["kind"]] * self._devices + rows["device"]
        return place

    def _count(self, name: str, where: Index) -> None:
        np.add.at(self._records[name], where, 1)

    def _measure(self, where: Index, apart: NDArray[np.float64], times: Index) -> None:
        records = self._records
        np.add.at(records["apart"], where, apart)
        before = records["worst"][where]
        np.maximum.at(records["worst"], where, apart)
        # Of several rows that are equally far apart, the one of the earliest time.
        worst = np.flatnonzero((apart == records["worst"][where]) & (apart >= before))
        worst = worst[np.lexsort((times[worst], where[worst]))]
        first = worst[np.unique(where[worst], return_index=True)[1]]
        fresh = (apart[first] > before[first]) | (times[first] < records["worst_at"][where[first]])
        records["worst_at"][where[first[fresh]]] = times[first[fresh]]


def pair_models(left: Iterable[Kind], right: Iterable[Kind]) -> list[ModelPair]:
    """Which model of one set is compared with which of the other, target by target.

    The same model, if both have it; of the rest those that have a name to themselves on both sides; of
    the rest, if one is left on each side, these two. Models that are left over are missing on the other side.

    Example:
        >>> def kind(target: str, sha: str, name: str) -> Kind:
        ...     return (target, sha, name, "1", "percent")
        >>> both = kind("soc", "a", "x")
        >>> pairs = pair_models([both, kind("soc", "b", "y")], [both, kind("soc", "c", "z")])
        >>> [(pair.left, pair.right) for pair in pairs]
        [('a', 'a'), ('b', 'c')]
    """
    ours, theirs = _models(left), _models(right)
    pairs: list[ModelPair] = []
    for target in sorted({*ours, *theirs}):
        a, b = dict(ours.get(target, {})), dict(theirs.get(target, {}))
        found = [(sha, sha) for sha in sorted({*a} & {*b})]
        rest_a, rest_b = {k: v for k, v in a.items() if k not in b}, {k: v for k, v in b.items() if k not in a}
        for name in sorted({*rest_a.values()} & {*rest_b.values()}):
            x, y = ([sha for sha, named in rest.items() if named == name] for rest in (rest_a, rest_b))
            if len(x) == len(y) == 1:
                found.append((x[0], y[0]))
        for x_, y_ in found:
            rest_a.pop(x_, None)
            rest_b.pop(y_, None)
        alone: list[tuple[str | None, str | None]] = [(sha, None) for sha in sorted(rest_a)]
        alone += [(None, sha) for sha in sorted(rest_b)]
        if len(rest_a) == len(rest_b) == 1:
            alone = [(next(iter(rest_a)), next(iter(rest_b)))]
        pairs += [ModelPair(target, x, y, a.get(x or "", ""), b.get(y or "", "")) for x, y in [*found, *alone]]
    return pairs


def _models(kinds: Iterable[Kind]) -> dict[str, dict[str, str]]:
    """Name by digest by target."""
    found: dict[str, dict[str, str]] = {}
    for target, sha, name, *_ in sorted(kinds, key=str):
        found.setdefault(str(target), {})[str(sha)] = str(name)
    return found


def _pair_of(kinds: Sequence[Kind], pairs: Sequence[ModelPair], models: Sequence[tuple[str, str | None]]) -> Index:
    """By kind, the index of its pair; -1 where the set has no such kind."""
    index = {model: k for k, model in enumerate(models) if model[1] is not None}
    return np.array([index.get((str(kind[0]), str(kind[1])), -1) for kind in kinds], np.int64)


def _numbered(values: Sequence[Any]) -> Index:
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], np.int64)


def _comparison(records: NDArray[np.void]) -> Comparison:
    counts = {name: int(records[name].sum()) for name in _COUNTED[:7]}
    numbers, apart = int(records["numbers"].sum()), float(records["apart"].sum())
    worst, at = 0.0, None
    if len(records) and records["worst"].max() > 0:
        equal = records[records["worst"] == records["worst"].max()]
        worst, at = float(equal["worst"][0]), _EPOCH + timedelta(microseconds=int(equal["worst_at"].min()))
    return Comparison(**counts, worst=worst, worst_at=at, mean=apart / numbers if numbers else 0.0)
