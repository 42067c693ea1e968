"""estimate: features in, predictions of one model out, with an interval and a reason where there is none.

A device whose cell type the model was not made for gets null and a bit, never a guess. A model that
fails takes nothing down: its rows fall back to coulomb counting, with ``mode`` fallback. Where it gives
no number for a row, that row falls back; where it raises, all rows it was asked for do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import bytewax.operators as op
import numpy as np
import pyarrow as pa
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream
from numpy.typing import NDArray

from voltmill.kernels.fleet import Fleet
from voltmill.kernels.fusion import COASTED, FUSION_STATE, MEASURED, WITHHELD, fuse
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, Quality, label
from voltmill.operators.model import Model
from voltmill.operators.stateful import by_shard
from voltmill.operators.table import DeviceTable

Mode = Literal["live", "shadow", "replay"]
Floats = NDArray[np.float32]

_LAPLACE_90: Final = np.float32(np.log(10.0))  # 90 % of a Laplace density lie within ln(10) scales


@dataclass(frozen=True)
class EstimateOut:
    """The ways out of ``estimate``."""

    predictions: KeyedStream[pa.RecordBatch]
    """``PREDICTION`` batches: one row for each row of features."""
    failures: KeyedStream[pa.RecordBatch]
    """``DEAD_LETTER`` batches: one row for each batch that the model failed on."""


class EstimateState:
    """One model and what it knows of the devices of one shard."""

    def __init__(
        self,
        model: Model,
        fleet: Fleet,
        mode: Mode,
        snapshot: tuple[Any, ...] | None = None,
        on_unknown: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._model, self._mode, self._on_unknown = model, mode, on_unknown
        contract = model.contract
        # By index of the fleet entry; the last element answers for -1, the device of no entry.
        self._known = np.array([e.cell_type == contract.cell_type for e in fleet.entries] + [False])
        self.table = DeviceTable(FUSION_STATE, fleet, snapshot)
        self._count_unknown(0)

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        return self.table.nbytes

    def apply(self, features: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """The predictions of a batch, and the failure of the model, if it failed."""
        slots = self._slots(features.column("device_id"))
        known = self._known[self.table.facts["entry"][slots]]
        matrix = np.column_stack([features.column(name).to_numpy() for name in self._model.contract.feature_names])
        domain = known & self._in_domain(matrix, features.column("sample_interval_seconds").to_numpy())
        bits = features.column("quality_bits").to_numpy().copy()
        bits[~known] |= np.uint32(Quality.UNKNOWN_CELL)
        bits[known & ~domain] |= np.uint32(Quality.OUT_OF_DOMAIN)
        outputs, error = self._predict(matrix, domain)
        failed = domain & ~self._sound(outputs)
        bits[failed] |= np.uint32(Quality.MODEL_FAILED)
        use = np.where(failed, COASTED, np.where(domain, MEASURED, WITHHELD)).astype(np.uint8)
        interval = self._interval(features, slots, use, outputs, bits)
        predictions = self._batch(features, interval, failed, bits)
        return predictions, None if error is None else _failure(features, failed, error)

    def snapshot(self) -> tuple[Any, ...]:
        """The device table: a copy."""
        return self.table.snapshot()

    def _slots(self, ids: pa.StringArray) -> NDArray[np.int32]:
        seen = len(self.table)
        slots = self.table.slots(ids)
        self._count_unknown(seen)
        return slots

    def _count_unknown(self, first: int) -> None:
        if unknown := int((~self._known[self.table.facts["entry"][first : len(self.table)]]).sum()):
            self._on_unknown(unknown)

    def _in_domain(self, matrix: Floats, interval: Floats) -> NDArray[np.bool_]:
        shortest, longest = self._model.contract.dt_range_seconds
        steady = (interval == 0.0) | ((shortest <= interval) & (interval <= longest))
        inside: NDArray[np.bool_] = self._model.contract.in_domain(matrix) & steady
        return inside

    def _predict(self, matrix: Floats, domain: NDArray[np.bool_]) -> tuple[Floats, Exception | None]:
        """Outputs for every row, NaN where the model has no say or failed."""
        width = len(self._model.contract.outputs)
        outputs = np.full((len(matrix), width), np.nan, np.float32)
        if not domain.any():
            return outputs, None
        everywhere = bool(domain.all())
        try:
            found = self._model.predict(matrix if everywhere else matrix[domain])
            if found.shape != (int(domain.sum()), width):
                raise ValueError(f"gave an array of shape {found.shape}, the contract has {width} outputs")
            outputs[domain] = found
        except Exception as e:  # any model may fail in any way; the stream goes on
            return outputs, e
        # One row that is no number falls back by itself: another cut of the rows must not change its neighbours.
        bad = int((domain & ~self._sound(outputs)).sum())
        return outputs, ValueError(f"gave no number for {bad} rows") if bad else None

    def _sound(self, outputs: Floats) -> NDArray[np.bool_]:
        """Which rows hold numbers that can be used: all finite, and a scale above 0."""
        sound = np.asarray(np.isfinite(outputs).all(axis=1))
        names = self._model.contract.outputs
        return sound & (outputs[:, names.index("laplace_scale")] > 0) if "laplace_scale" in names else sound

    def _interval(
        self,
        features: pa.RecordBatch,
        slots: NDArray[np.int32],
        use: NDArray[np.uint8],
        outputs: Floats,
        bits: NDArray[np.uint32],
    ) -> tuple[Floats, Floats, Floats]:
        """Value and both ends of the 90 % interval."""
        contract = self._model.contract
        column = dict(zip(contract.outputs, np.ascontiguousarray(outputs.T), strict=True))
        value = column["value"]
        if contract.fusion is None:
            half = column.get("laplace_scale", np.full_like(value, np.nan)) * _LAPLACE_90
            return value, column.get("lo90", value - half), column.get("hi90", value + half)
        fused = np.empty_like(value), np.empty_like(value), np.empty_like(value)
        fuse(
            self.table.rows,
            slots,
            use,
            features.column("charge_step_ah").to_numpy(),
            features.column("sample_interval_seconds").to_numpy(),
            features.column("capacity_ah").to_numpy() * np.float32(contract.capacity_fraction),
            value,
            column["laplace_scale"],
            contract.fusion.process_noise,
            contract.fusion.current_noise,
            contract.fusion.correlation_seconds,
            contract.fusion.interval_factor,
            contract.warm_up_seconds,
            *fused,
            bits,
        )
        return fused

    def _batch(
        self,
        features: pa.RecordBatch,
        interval: tuple[Floats, Floats, Floats],
        failed: NDArray[np.bool_],
        bits: NDArray[np.uint32],
    ) -> pa.RecordBatch:
        n, contract = len(features), self._model.contract
        mode = pa.DictionaryArray.from_arrays(pa.array(failed.astype(np.int32)), pa.array([self._mode, "fallback"]))
        made = {
            "target": label(contract.target, n),
            "model_sha256": label(self._model.sha256, n),
            **{
                name: pa.array(array, mask=np.isnan(array))
                for name, array in zip(("value", "lo90", "hi90"), interval, strict=True)
            },
            "unit": label(contract.unit, n),
            "model_name": label(contract.name, n),
            "model_version": label(contract.version, n),
            "mode": mode,
            "quality_bits": pa.array(bits),
        }
        arrays = [made[name] if name in made else features.column(name) for name in PREDICTION.names]
        return pa.RecordBatch.from_arrays(arrays, schema=PREDICTION)


def _failure(features: pa.RecordBatch, failed: NDArray[np.bool_], error: Exception) -> pa.RecordBatch:
    """One dead letter for a batch that the model failed on, with the place of its first such row.

    The rows themselves are in the archive.
    """
    first = features.slice(int(np.argmax(failed)), 1)
    made = {
        "payload": pa.nulls(1, pa.binary()),
        "reason": label("model_failed", 1),
        "detail": pa.array([f"{type(error).__name__}: {error} ({int(failed.sum())} rows fell back)"]),
        "stage": label("estimate", 1),
        "topic": label(None, 1),
    }
    arrays = [made[name] if name in made else first.column(name) for name in DEAD_LETTER.names]
    return pa.RecordBatch.from_arrays(arrays, schema=DEAD_LETTER)


@operator
def estimate(
    step_id: str,
    up: KeyedStream[pa.RecordBatch],
    *,
    model: Model,
    fleet: Fleet,
    mode: Mode = "live",
    observe: Callable[[float], None] = lambda _: None,
    on_unknown: Callable[[int], None] = lambda _: None,
) -> EstimateOut:
    """Run a model over features, and fuse it with coulomb counting where its contract says so.

    Args:
        step_id: Unique id of the step.
        up: Batches of features, keyed by shard.
        model: What to run; its contract names the features it takes.
        fleet: Cell type and capacity by device.
        mode: Written into each prediction.
        observe: Called with the seconds that each batch took.
        on_unknown: Called with the number of devices that get no prediction, when they are seen for the first
            time since the start: those of a snapshot at once.

    Returns:
        One prediction a row of features, null where ``quality_bits`` says why; and the failures.
    """
    pairs = by_shard("run", up, lambda snapshot: EstimateState(model, fleet, mode, snapshot, on_unknown), observe)
    return EstimateOut(
        op.map_value("predictions", pairs, lambda pair: pair[0]),
        op.filter_map_value("failures", pairs, lambda pair: pair[1]),
    )
