"""A lane: one model and what it knows of the devices of one shard.

It asks the model about the rows it may be asked about, fuses the answers with coulomb counting where
the contract says so, and says in ``quality_bits`` why a row has no value. A model that fails takes
nothing down: its rows fall back to what a fallback model says, else to coulomb counting, else to null.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill.kernels.fusion import COASTED, FUSION_STATE, MEASURED, WITHHELD, fuse
from voltmill.kernels.schema import Quality
from voltmill.kernels.sequence import carry_restarts
from voltmill.operators.contract import Matrix
from voltmill.operators.memory import grown, memory, packed, unpack
from voltmill.operators.model import Chosen
from voltmill.operators.predictions import Interval

Flags = NDArray[np.bool_]

_LAPLACE_90: Final = np.float32(np.log(10.0))  # 90 % of a Laplace density lie within ln(10) scales


class Asked(NamedTuple):
    """Rows of one batch on their way through a lane."""

    rows: pa.RecordBatch
    slots: NDArray[np.int32]
    bits: NDArray[np.uint32]
    domain: Flags
    """Which rows the model may be asked about."""
    matrix: Matrix


#: Outputs of a model, NaN where it has none; which rows it had seen enough for; why it failed, if it did.
Outputs = tuple[Matrix, Flags, Exception | None]


class Answer(NamedTuple):
    """What a lane makes of a batch."""

    interval: Interval
    failed: Flags
    """Rows that the model should have answered and did not."""
    error: Exception | None
    """Why it failed, if it did."""


class Lane:
    """One model on the devices of one shard."""

    def __init__(self, chosen: Chosen) -> None:
        self.chosen = chosen
        self._contract = chosen.model.contract
        self._memory = memory(chosen.model)
        self._filters = np.zeros(0, FUSION_STATE)
        self._restart = np.zeros(0, np.bool_)

    @property
    def identity(self) -> tuple[str, str]:
        """Name and digest of the model."""
        return self._contract.name, self.chosen.model.sha256

    def nbytes(self, count: int) -> int:
        """Bytes of state of so many devices."""
        filters = FUSION_STATE.itemsize if self._contract.fusion else 0
        window = 4 + 4 * self._contract.window_rows * len(self._contract.features) if self._contract.window_rows else 0
        return count * (filters + 4 * self._contract.state_size + window)

    def grow(self, slots: int) -> None:
        """Make room for so many devices."""
        if slots > len(self._filters):
            self._filters, self._restart = grown(self._filters, slots), grown(self._restart, slots)
            self._memory.grow(slots)

    def wanted(self, rows: pa.RecordBatch) -> Flags | None:
        """Which rows are of the kind of session that the model is asked about; None: all."""
        if self._contract.session == "any":
            return None
        kinds = rows.column("session")
        wanted = pa.array([kind == self._contract.session for kind in kinds.dictionary.to_pylist()], pa.bool_())
        return np.asarray(wanted.take(kinds.indices).to_numpy(zero_copy_only=False))

    def ask(self, rows: pa.RecordBatch, slots: NDArray[np.int32], known: Flags) -> Asked:
        """Find out which rows the model may be asked about; ``known``: those whose device it was made for."""
        contract, bits = self._contract, rows.column("quality_bits").to_numpy().copy()
        matrix = contract.filled(_matrix(rows, contract.feature_names))
        domain = known & contract.in_domain(matrix) & self._steady(rows)
        bits[~known] |= np.uint32(Quality.UNKNOWN_CELL)
        bits[known & ~domain] |= np.uint32(Quality.OUT_OF_DOMAIN)
        if contract.conditions:
            met = contract.in_conditions(_matrix(rows, [r.name for r in contract.conditions]))
            bits[known & ~met] |= np.uint32(Quality.PARTIAL_SESSION)
            domain &= met
        return Asked(rows, slots, bits, domain, matrix)

    def predict(self, asked: Asked) -> Outputs:
        """Ask the model."""
        n, domain = len(asked.rows), asked.domain
        outputs = np.full((n, len(self._contract.outputs)), np.nan, np.float32)
        ready = np.zeros(n, np.bool_)
        slots, restarts, matrix = asked.slots, self._restarts(asked), asked.matrix
        if not domain.any():
            return outputs, ready, None
        everywhere = bool(domain.all())
        if not everywhere:
            slots, restarts, matrix = slots[domain], restarts[domain], matrix[domain]
        found = np.full((len(matrix), outputs.shape[1]), np.nan, np.float32)
        seen, error = self._memory.ask(slots, restarts, matrix, found)
        outputs[domain], ready[domain] = found, seen
        return outputs, ready, error

    def finish(self, asked: Asked, outputs: Matrix, ready: Flags, error: Exception | None) -> Answer:
        """Turn outputs into values with intervals, in row order, and note in ``asked.bits`` what became of each."""
        domain, bits = asked.domain, asked.bits
        # One row that is no number falls back by itself: another cut of the rows must not change its neighbours.
        failed = domain & ready & ~self._sound(outputs)
        bits[failed] |= np.uint32(Quality.MODEL_FAILED)
        bits[domain & ~ready] |= np.uint32(Quality.WARM_UP)
        if error is None and failed.any():
            error = ValueError(f"gave no number for {int(failed.sum())} rows")
        outputs[failed] = np.nan
        if self._contract.fusion is None:
            self._mark_warm_up(asked.rows, domain, bits)
            return Answer(self._plain(outputs), failed, error)
        use = np.where(failed, COASTED, np.where(domain & ready, MEASURED, WITHHELD)).astype(np.uint8)
        return Answer(self._fused(asked, use, outputs), failed, error)

    def snapshot(self, count: int) -> tuple[Any, ...]:
        """Name, digest, kind and size of memory, filters and memory of the first so many devices: a copy."""
        filters = packed(self._filters[:count]) if self._contract.fusion else b""
        return (*self.identity, *self._layout(), filters, packed(self._restart[:count]), self._memory.snapshot(count))

    def restore(self, count: int, snapshot: tuple[Any, ...]) -> None:
        """Go on from a snapshot of this model, or of another of its name.

        The filter's SOC is a fact about the device and goes on under another model; what a model
        remembers only it can read.
        """
        name, sha256, *layout, filters, restart, remembered = snapshot
        if self._contract.fusion and filters:
            unpack(filters, self._filters[:count])
        if (name, sha256) == self.identity and tuple(layout) == self._layout():
            unpack(restart, self._restart[:count])
            self._memory.restore(count, remembered)

    def _layout(self) -> tuple[str, int, int]:
        c = self._contract
        return c.kind, c.state_size or c.window_rows, len(c.features)

    def _steady(self, rows: pa.RecordBatch) -> Flags:
        """Whether the sample before is as near as those the model was made for; 0 s: there was none."""
        steady = np.ones(len(rows), np.bool_)
        if self._contract.table != "features":
            return steady
        interval = rows.column("sample_interval_seconds").to_numpy()
        shortest, longest = self._contract.dt_range_seconds
        steady &= (interval == 0.0) | ((shortest <= interval) & (interval <= longest))
        return steady

    def _restarts(self, asked: Asked) -> Flags:
        """Before which rows the model must forget what it remembers of the device."""
        if self._contract.table != "features" or self._contract.kind == "features":
            return np.zeros(len(asked.rows), np.bool_)
        restarts: Flags = asked.rows.column("sample_interval_seconds").to_numpy() == 0.0
        carry_restarts(self._restart, asked.slots, restarts, asked.domain)
        return restarts

    def _mark_warm_up(self, rows: pa.RecordBatch, domain: Flags, bits: NDArray[np.uint32]) -> None:
        if self._contract.table == "features" and self._contract.warm_up_seconds > 0:
            young = rows.column("history_seconds").to_numpy() < self._contract.warm_up_seconds
            bits[domain & young] |= np.uint32(Quality.WARM_UP)

    def _sound(self, outputs: Matrix) -> Flags:
        """Which rows hold numbers that can be used: all finite, a scale above 0, an interval around the value."""
        sound: Flags = np.asarray(np.isfinite(outputs).all(axis=1))
        names = self._contract.outputs
        if "laplace_scale" in names:
            sound = np.asarray(sound & (outputs[:, 1] > 0))
        elif "lo90" in names:
            sound = np.asarray(sound & (outputs[:, 1] <= outputs[:, 0]) & (outputs[:, 0] <= outputs[:, 2]))
        return sound

    def _plain(self, outputs: Matrix) -> Interval:
        column = dict(zip(self._contract.outputs, np.ascontiguousarray(outputs.T), strict=True))
        value = column["value"]
        half = column.get("laplace_scale", np.full_like(value, np.nan)) * _LAPLACE_90
        return Interval(value, column.get("lo90", value - half), column.get("hi90", value + half))

    def _fused(self, asked: Asked, use: NDArray[np.uint8], outputs: Matrix) -> Interval:
        contract, fusion = self._contract, self._contract.fusion
        assert fusion is not None
        value, scale = np.ascontiguousarray(outputs.T)
        fused = Interval(np.empty_like(value), np.empty_like(value), np.empty_like(value))
        fuse(
            self._filters,
            asked.slots,
            use,
            asked.rows.column("charge_step_ah").to_numpy(),
            asked.rows.column("sample_interval_seconds").to_numpy(),
            asked.rows.column("capacity_ah").to_numpy() * np.float32(contract.capacity_fraction),
            value,
            scale,
            fusion.process_noise,
            fusion.current_noise,
            fusion.correlation_seconds,
            fusion.interval_factor,
            contract.warm_up_seconds,
            fused.value,
            fused.lo90,
            fused.hi90,
            asked.bits,
        )
        return fused


def _matrix(rows: pa.RecordBatch, names: Iterable[str]) -> Matrix:
    matrix: Matrix = np.column_stack([rows.column(name).to_numpy(zero_copy_only=False) for name in names])
    return matrix
