"""How predictions and the failures of models are written down as rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill.kernels.schema import DEAD_LETTER, LABEL, PREDICTION, label
from voltmill.operators.model import Chosen, Model

Floats = NDArray[np.float32]

#: What a batch of session rows gets beside its own columns, for those who go on from its SOH.
VALUES = pa.schema([pa.field(name, pa.float32(), True) for name in ("value", "lo90", "hi90")])


@dataclass
class Interval:
    """Values with both ends of their 90 % intervals; NaN: none."""

    value: Floats
    lo90: Floats
    hi90: Floats

    @classmethod
    def unknown(cls, rows: int) -> "Interval":
        """No value in any row."""
        return cls(*(np.full(rows, np.nan, np.float32) for _ in range(3)))

    def __iter__(self) -> Iterator[Floats]:
        """Value, lower end, upper end."""
        return iter((self.value, self.lo90, self.hi90))

    def take(self, rows: NDArray[np.intp]) -> "Interval":
        """Those rows."""
        return Interval(self.value[rows], self.lo90[rows], self.hi90[rows])

    def put(self, where: NDArray[np.bool_], other: "Interval") -> None:
        """The other's values in some rows."""
        for own, given in zip(self, other, strict=True):
            own[where] = given[where]


@dataclass
class Spare:
    """What fallback models say of the rows of a batch, for where a model that counts fails."""

    interval: Interval
    made_by: NDArray[np.int32]
    """Which of ``models`` said it; -1: none."""
    models: list[Model] = field(default_factory=list)

    @classmethod
    def none(cls, rows: int) -> "Spare":
        """Nobody says anything."""
        return cls(Interval.unknown(rows), np.full(rows, -1, np.int32))

    def add(self, model: Model, rows: NDArray[np.intp], interval: Interval) -> None:
        """What one more model says of some rows; who spoke first is believed."""
        news = (self.made_by[rows] < 0) & np.isfinite(interval.value)
        for own, given in zip(self.interval, interval, strict=True):
            own[rows[news]] = given[news]
        self.made_by[rows[news]] = len(self.models)
        self.models.append(model)

    def take(self, rows: NDArray[np.intp]) -> "Spare":
        """Those rows."""
        return Spare(self.interval.take(rows), self.made_by[rows], self.models)


def prediction_batch(
    rows: pa.RecordBatch,
    chosen: Chosen,
    interval: Interval,
    failed: NDArray[np.bool_],
    bits: NDArray[np.uint32],
    spare: Spare,
) -> pa.RecordBatch:
    """``PREDICTION`` rows; where the model failed, the mode is fallback and the maker is who gave the value."""
    n, contract = len(rows), chosen.model.contract
    mode = pa.DictionaryArray.from_arrays(pa.array(failed.astype(np.int32)), pa.array([chosen.mode, "fallback"]))
    makers = [chosen.model, *spare.models]
    which = pa.array(np.where(failed, spare.made_by + 1, 0).astype(np.int32))

    def by_maker(values: list[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(which, pa.array(values, pa.string()))

    made = {
        "target": label(contract.target, n),
        "model_sha256": by_maker([m.sha256 for m in makers]),
        **{name: pa.array(array, mask=np.isnan(array)) for name, array in zip(VALUES.names, interval, strict=True)},
        "unit": label(contract.unit, n),
        "model_name": by_maker([m.contract.name for m in makers]),
        "model_version": by_maker([m.contract.version for m in makers]),
        "mode": mode,
        "quality_bits": pa.array(bits),
    }
    arrays = [made[name] if name in made else rows.column(name) for name in PREDICTION.names]
    return pa.RecordBatch.from_arrays(arrays, schema=PREDICTION)


def values_batch(rows: pa.RecordBatch, interval: Interval) -> pa.RecordBatch:
    """The rows with the values that were estimated from them, null where there are none."""
    arrays = [pa.array(array, mask=np.isnan(array)) for array in interval]
    fields = [*rows.schema, *VALUES]
    return pa.RecordBatch.from_arrays([*rows.columns, *arrays], schema=pa.schema(fields))


def failure_batch(rows: pa.RecordBatch, failed: NDArray[np.bool_], model: Model, error: Exception) -> pa.RecordBatch:
    """One dead letter for a batch that the model failed on, with the place of its first such row.

    The rows themselves are in the archive.
    """
    first = rows.slice(int(np.argmax(failed)), 1)
    words = " ".join(f"{type(error).__name__}: {error}".split())
    made = {
        "payload": pa.nulls(1, pa.binary()),
        "reason": label("model_failed", 1),
        "detail": pa.array([f"{model.contract.name}: {words} ({int(failed.sum())} rows fell back)"]),
        "stage": label("estimate", 1),
        "topic": pa.nulls(1, LABEL),
    }
    arrays = [made[name] if name in made else first.column(name) for name in DEAD_LETTER.names]
    return pa.RecordBatch.from_arrays(arrays, schema=DEAD_LETTER)
