"""thin: predictions in, of each interval of event time the first of each device and model out.

For a database that people look at: one row a minute a module, where the lake holds one every few seconds. Which rows
go on depends on nothing but the rows of a device in their order, so a crash, another cut of the batches or another
number of workers chooses the same ones, and what is stored twice has the same key.

A prediction without a value does not use up its interval: it goes on if it is the first, so that the database knows
of the device and why it has no value, and the first with a value goes on as well. While a model fails, what is said in
its place bears the name of the fallback model, which is a model of its own here: the minute in which a model fails or
recovers has one row of each.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import bytewax.operators as op
import numpy as np
import pyarrow as pa
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream
from numpy.typing import NDArray

from voltmill.kernels import thin as kernels
from voltmill.kernels.fleet import Fleet
from voltmill.operators import columns
from voltmill.operators.stateful import by_shard
from voltmill.operators.table import DeviceTable, state_parts

#: Models that are remembered in each shard; of those that are gone, the one unseen for longest is forgotten first.
MOST_MODELS: Final = 64

_NOBODY: Final = Fleet()
_ASKED: Final = ["device_id", "event_time", "value"]
_Series = tuple[str, str]
"""Target and digest of a model."""


class ThinState:
    """What went on last, of the devices of one shard.

    Args:
        every_seconds: by target, the length of an interval, s; targets that are not named go on whole.
        snapshot: the state to go on from.
    """

    def __init__(self, every_seconds: Mapping[str, float], snapshot: tuple[Any, ...] | None = None) -> None:
        self._every = {target: round(seconds * 1e6) for target, seconds in every_seconds.items()}
        self.tables: dict[_Series, DeviceTable] = {}
        """In the order in which they were last seen."""
        stored = () if snapshot is None else state_parts("thin", snapshot, {"v1": 1})[1][0]
        for target, model, every, table in stored:
            if self._every.get(target) == every:  # of another length, its intervals mean nothing
                self.tables[target, model] = DeviceTable(kernels.STATE, _NOBODY, table)

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        return sum(table.nbytes for table in self.tables.values())

    def apply(self, predictions: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that go on, in their order."""
        chosen = np.ones(len(predictions), np.bool_)
        for series, rows in _series(predictions):
            if series[0] in self._every:
                asked = predictions.select(_ASKED)
                whole = len(rows) == len(predictions)
                chosen[rows] = self._choose(series, asked if whole else asked.take(pa.array(rows)))
        return predictions if chosen.all() else predictions.filter(pa.array(chosen))

    def snapshot(self) -> tuple[Any, ...]:
        """Version and, for each model, target, digest, length of an interval (µs) and devices: a copy."""
        return ("v1", tuple((*series, self._every[series[0]], t.snapshot()) for series, t in self.tables.items()))

    def _choose(self, series: _Series, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        table = self.tables.pop(series, None) or DeviceTable(kernels.STATE, _NOBODY)
        self.tables[series] = table
        if len(self.tables) > MOST_MODELS:
            del self.tables[next(iter(self.tables))]
        slots, chosen = table.slots(rows.column("device_id")), np.empty(len(rows), np.bool_)
        times, values = columns.times(rows.column("event_time")), columns.floats(rows.column("value"))
        kernels.choose(table.rows, slots, times, values, self._every[series[0]], chosen)
        return chosen


def _series(predictions: pa.RecordBatch) -> list[tuple[_Series, NDArray[np.intp]]]:
    """The rows of each model of each target, in their order; most batches are of one. Who was seen last comes last."""
    targets, models = predictions.column("target"), predictions.column("model_sha256")
    codes = targets.indices.to_numpy().astype(np.int64) * len(models.dictionary) + models.indices.to_numpy()
    target_names, digests = targets.dictionary.to_pylist(), models.dictionary.to_pylist()
    of: dict[_Series, list[int]] = {}
    for code in np.unique(codes).tolist():  # a dictionary may hold a word twice
        target, model = divmod(code, len(digests))
        of.setdefault((target_names[target], digests[model]), []).append(code)
    found = [(series, np.flatnonzero(np.isin(codes, own))) for series, own in of.items()]
    return sorted(found, key=lambda each: int(each[1][-1]))


@operator
def thin(
    step_id: str,
    up: KeyedStream[pa.RecordBatch],
    *,
    every_seconds: Mapping[str, float],
    observe: Callable[[float], None] = lambda _: None,
) -> KeyedStream[pa.RecordBatch]:
    """Let the first prediction of each interval of event time go on, of each device, target and model.

    Args:
        step_id: Unique id of the step.
        up: Batches of ``PREDICTION``, keyed by shard.
        every_seconds: By target, the length of an interval, s of event time; intervals are counted from 1970, so a
            minute begins with the minute. A target that is not named goes on whole.
        observe: Called with the seconds that each batch took.

    Returns:
        The rows that go on, under the same keys and in their order.
    """
    rows = by_shard("choose", up, lambda snapshot: ThinState(every_seconds, snapshot), observe)
    return op.filter_value("chosen", rows, lambda batch: len(batch) > 0)
