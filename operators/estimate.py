"""estimate: rows of a table in, predictions of every model in force out, with an interval or the reason for none.

Several models run side by side: those that count (live), those that are only compared (shadow), and those
that are asked where one that counts failed (fallback). Which ones they are may change after a snapshot,
so a new model takes over at an epoch boundary. A device that no model was made for gets null and a bit,
never a guess. A model that fails takes nothing down: see `voltmill.operators.lane`.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

import bytewax.operators as op
import numpy as np
import pyarrow as pa
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic
from numpy.typing import NDArray

from voltmill.kernels.fleet import Fleet
from voltmill.kernels.schema import PREDICTION
from voltmill.operators.lane import Answer, Asked, Lane, Outputs
from voltmill.operators.model import Choice, Chosen, Mode, Model
from voltmill.operators.predictions import Spare, failure_batch, prediction_batch, values_batch
from voltmill.operators.remote import Queue
from voltmill.operators.sharing import Share, share_out, unserved
from voltmill.operators.table import DeviceTable, state_parts

Flags = NDArray[np.bool_]

#: Called with a model, the rows it was asked about, how many of them it failed on, and why it failed.
OnAnswer = Callable[[Model, int, int, Exception | None], None]

#: How often it is looked whether remote models have answered.
_LOOK: Final = timedelta(milliseconds=20)


class Made(NamedTuple):
    """One thing that came of a batch."""

    kind: Literal["predictions", "failures", "values"]
    batch: pa.RecordBatch


@dataclass(frozen=True)
class EstimateOut:
    """The ways out of ``estimate``."""

    predictions: KeyedStream[pa.RecordBatch]
    """``PREDICTION`` batches: for each model one row for each row of a device it was made for."""
    failures: KeyedStream[pa.RecordBatch]
    """``DEAD_LETTER`` batches: one row for each batch that a model failed on."""
    values: KeyedStream[pa.RecordBatch]
    """The rows with ``value``, ``lo90`` and ``hi90`` of the first model that counts for their device."""


class _Job(NamedTuple):
    """Rows that a lane is asked about."""

    asked: Asked
    spare: Spare
    first: Flags


class EstimateState:
    """The models in force and what they know of the devices of one shard."""

    def __init__(
        self,
        models: Choice,
        fleet: Fleet,
        snapshot: tuple[Any, ...] | None = None,
        *,
        on_unknown: Callable[[int], None] = lambda _: None,
        on_answer: OnAnswer = lambda model, asked, failed, error: None,
    ) -> None:
        self._models, self._fleet = models, fleet
        self._on_unknown, self._on_answer = on_unknown, on_answer
        devices, stored = state_parts("estimate", snapshot, {"v1": 2})[1] if snapshot is not None else (None, ())
        self.table = DeviceTable(np.dtype("<u1"), fleet, devices)
        self._chosen: tuple[Chosen, ...] = ()
        self._lanes: list[Lane] = []
        self._shares: list[Share] = []
        self._queues: dict[int, Queue[_Job, Outputs]] = {}
        self._unserved = np.zeros(0, np.bool_)
        self._settled = False
        self._follow(tuple(models()), stored)
        self._count_unknown(0)

    @property
    def nbytes(self) -> int:
        """Bytes of state, spare capacity left out."""
        return self.table.nbytes + sum(lane.nbytes(len(self.table)) for lane in self._lanes)

    @property
    def waiting(self) -> bool:
        """Whether a remote model still has to answer."""
        return any(queue.waiting for queue in self._queues.values())

    def apply(self, rows: pa.RecordBatch) -> list[Made]:
        """What comes of a batch at once; what remote models say of it comes by ``collect``."""
        made = self._renew()
        seen = len(self.table)
        slots = self.table.slots(rows.column("device_id"))
        if len(self.table) > seen:
            self._grow()
            self._count_unknown(seen)
        entry = self.table.facts["entry"][slots]
        spares: dict[str, Spare] = {}
        for k, (lane, share) in enumerate(zip(self._lanes, self._shares, strict=True)):
            theirs, wanted = share.rows[entry], lane.wanted(rows)
            where = np.flatnonzero(theirs if wanted is None else theirs & wanted)
            if len(where) == 0:
                continue
            everywhere = len(where) == len(rows)
            part = rows if everywhere else rows.take(pa.array(where))
            asked = lane.ask(part, slots if everywhere else slots[where], share.known[entry[where]])
            spare = spares.setdefault(lane.chosen.model.contract.target, Spare.none(len(rows)))
            if lane.chosen.mode == "fallback":
                spare.add(lane.chosen.model, where, self._answer(lane, asked, lane.predict(asked)).interval)
                continue
            job = _Job(asked, spare if everywhere else spare.take(where), share.first[entry[where]])
            if k in self._queues:
                made += [each for done in self._queues[k].put(job) for each in self._made(lane, *done)]
            else:
                made += self._made(lane, job, lane.predict(asked))
        return made

    def collect(self, *, wait: bool = False) -> list[Made]:
        """What remote models have answered, in the order they were asked; ``wait``: all of it."""
        return [
            each
            for k, queue in self._queues.items()
            for done in queue.done(wait=wait)
            for each in self._made(self._lanes[k], *done)
        ]

    def snapshot(self) -> tuple[Any, ...]:
        """Version, devices and, for each model, what it knows of them and the rows it has yet to answer: a copy."""
        self._settled = True
        count = len(self.table)
        lanes = tuple((lane.snapshot(count), self._pending(k)) for k, lane in enumerate(self._lanes))
        return ("v1", self.table.snapshot(), lanes)

    def _pending(self, k: int) -> tuple[bytes, ...]:
        jobs = self._queues[k].jobs() if k in self._queues else []
        return tuple(_to_bytes(job.asked.rows) for job in jobs)

    def _renew(self) -> list[Made]:
        """After a snapshot, go over to the models that are in force now."""
        if not self._settled:
            return []
        self._settled = False
        chosen = tuple(self._models())
        if all(a is b for a, b in zip(chosen, self._chosen, strict=False)) and len(chosen) == len(self._chosen):
            return []
        made = self.collect(wait=True)
        count = len(self.table)
        self._follow(chosen, tuple((lane.snapshot(count), ()) for lane in self._lanes))
        return made

    def _follow(self, chosen: tuple[Chosen, ...], stored: tuple[Any, ...]) -> None:
        """Make the lanes of the models, and let each go on from what is stored under its model's name."""
        self._chosen = chosen
        order = {"fallback": 0, "live": 1, "replay": 1, "shadow": 2}  # an answer must be there before it is needed
        chosen = tuple(sorted(chosen, key=lambda each: order[each.mode]))
        self._lanes = [Lane(each) for each in chosen]
        self._grow()
        # A name may stand for two models, one live and one in shadow: the digest decides, then the name alone.
        states = {lane[0]: (lane, pending) for lane, pending in stored}
        states |= {(lane[0], lane[1]): (lane, pending) for lane, pending in stored}
        self._shares = share_out(chosen, self._fleet)
        self._unserved = unserved(self._shares, self._fleet)
        self._queues = {
            k: Queue(lambda job, lane=lane: lane.predict(job.asked))  # type: ignore[misc]
            for k, lane in enumerate(self._lanes)
            if getattr(lane.chosen.model, "remote", False)
        }
        for k, lane in enumerate(self._lanes):
            found = states.get(lane.identity) or states.get(lane.identity[0])
            if found:
                lane.restore(len(self.table), found[0])
                for data in found[1] if k in self._queues else ():
                    self._ask_again(k, _from_bytes(data))

    def _ask_again(self, k: int, rows: pa.RecordBatch) -> None:
        """Rows that were on their way when the state was stored; what fallback models said of them is not."""
        slots = self.table.slots(rows.column("device_id"))
        share, entry = self._shares[k], self.table.facts["entry"][slots]
        asked = self._lanes[k].ask(rows, slots, share.known[entry])
        for _ in self._queues[k].put(_Job(asked, Spare.none(len(rows)), share.first[entry])):
            raise AssertionError("a snapshot holds no more batches than a queue")

    def _grow(self) -> None:
        for lane in self._lanes:
            lane.grow(len(self.table.rows))

    def _count_unknown(self, first: int) -> None:
        if unknown := int(self._unserved[self.table.facts["entry"][first : len(self.table)]].sum()):
            self._on_unknown(unknown)

    def _answer(self, lane: Lane, asked: Asked, outputs: Outputs) -> Answer:
        answer = lane.finish(asked, *outputs)
        if answered := int(asked.domain.sum()):
            self._on_answer(lane.chosen.model, answered, int(answer.failed.sum()), answer.error)
        return answer

    def _made(self, lane: Lane, job: _Job, outputs: Outputs) -> list[Made]:
        rows, (interval, failed, error) = job.asked.rows, self._answer(lane, job.asked, outputs)
        interval.put(failed & (job.spare.made_by >= 0), job.spare.interval)
        made = [Made("predictions", prediction_batch(rows, lane.chosen, interval, failed, job.asked.bits, job.spare))]
        if error is not None and failed.any():
            made.append(Made("failures", failure_batch(rows, failed, lane.chosen.model, error)))
        contract = lane.chosen.model.contract
        if (contract.table, contract.target) == ("sessions", "soh") and job.first.any():
            values = values_batch(rows, interval)
            made.append(Made("values", values if job.first.all() else values.filter(pa.array(job.first))))
        return made


def offline(
    rows: pa.RecordBatch, model: Model, fleet: Fleet, *, mode: Mode = "replay"
) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
    """Predictions of one model for a whole table at once, without a stream: for training and scoring.

    Args:
        rows: Of the table that the model's contract names; each device's in the order of the stream.
        model: What to ask.
        fleet: Facts of the devices.
        mode: Written into the predictions.

    Returns:
        ``PREDICTION`` rows as the stream would give them, and the failure of the model if there was one.
    """
    chosen = [Chosen(model, mode)]
    state = EstimateState(lambda: chosen, fleet)
    made = {each.kind: each.batch for each in [*state.apply(rows), *state.collect(wait=True)]}
    return made.get("predictions") or pa.RecordBatch.from_pylist([], PREDICTION), made.get("failures")


class _Logic(StatefulBatchLogic[pa.RecordBatch, Made, Any]):
    def __init__(self, state: EstimateState, observe: Callable[[float], None]) -> None:
        self._state, self._observe = state, observe

    def on_batch(self, values: list[pa.RecordBatch]) -> tuple[Iterable[Made], bool]:
        began = time.perf_counter()
        made = [each for rows in values for each in self._state.apply(rows)]
        made += self._state.collect()
        self._observe(time.perf_counter() - began)
        return made, StatefulBatchLogic.RETAIN

    def on_notify(self) -> tuple[Iterable[Made], bool]:
        return self._state.collect(), StatefulBatchLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[Made], bool]:
        return self._state.collect(wait=True), StatefulBatchLogic.RETAIN

    def notify_at(self) -> datetime | None:
        return datetime.now(UTC) + _LOOK if self._state.waiting else None

    def snapshot(self) -> Any:
        return self._state.snapshot()


def _to_bytes(rows: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return bytes(sink.getvalue())


def _from_bytes(data: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()


@operator
def estimate(
    step_id: str,
    up: KeyedStream[pa.RecordBatch],
    *,
    models: Choice,
    fleet: Fleet,
    observe: Callable[[float], None] = lambda _: None,
    on_unknown: Callable[[int], None] = lambda _: None,
    on_answer: OnAnswer = lambda model, asked, failed, error: None,
) -> EstimateOut:
    """Run models over the rows of a table, and fuse them with coulomb counting where their contracts say so.

    Args:
        step_id: Unique id of the step.
        up: Batches of features, of sessions or of health rows, keyed by shard.
        models: Gives the models of that table that are in force; asked again after each snapshot.
        fleet: Cell type and capacity by device.
        observe: Called with the seconds that each batch took.
        on_unknown: Called with the number of devices that get no prediction, when they are seen for the first
            time since the start: those of a snapshot at once.
        on_answer: Called with a model, the rows it was asked about, those of them it failed on, and why.

    Returns:
        For each model one prediction a row of a device it was made for, null where ``quality_bits`` says why; the
        failures; and the rows with their values, for those who go on from them.
    """

    def build(snapshot: tuple[Any, ...] | None) -> _Logic:
        state = EstimateState(models, fleet, snapshot, on_unknown=on_unknown, on_answer=on_answer)
        return _Logic(state, observe)

    made = op.stateful_batch("run", up, build)

    def only(kind: str) -> KeyedStream[pa.RecordBatch]:
        return op.filter_map_value(kind, made, lambda each: each.batch if each.kind == kind else None)

    return EstimateOut(only("predictions"), only("failures"), only("values"))
