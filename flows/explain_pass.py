"""One pass through a device's telemetry, in which stored predictions of one recovery store are made again.

Where sessions were replayed the pass goes through these. State began anew with each recovery store, so only the
rows of that store count; a replay reads all of them as one. The models are put in force where the lake says that
they were (``explain_models``).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from voltmill.flows.choice import Table
from voltmill.flows.config import Config
from voltmill.flows.device_rows import DeviceRows, Rows
from voltmill.flows.explain_models import Cast, Rehearsed, Shelf, keys
from voltmill.flows.explain_origin import Origin
from voltmill.flows.explain_stored import History, Prediction, Run, Stored, predictions_of
from voltmill.flows.stages import Passed, Stages


class Pass:
    """Makes predictions of a device again.

    Args:
        config: Fleet and settings.
        origin: Where the rows lie.
        history: The device's stored predictions.
        shelf: The models at hand.
        wanted: Predictions to make again, all of one recovery store and one event time.
        on_progress: Called with the rows recomputed so far.

    Attributes:
        found: By place in ``wanted``, the prediction made again.
        asked: By place in ``wanted``, table and row that the model was asked about.
        places: By place in ``wanted``, file and row of the archive.
        rows: How many rows of the device were recomputed.
        stores: The recovery stores of the telemetry that was seen, in order.
        cut: Number of the first file of the archive that is left; above 0, older rows are gone.
        made: By target and digest, how many predictions were made that are no fallback.
    """

    def __init__(
        self,
        config: Config,
        origin: Origin,
        history: History,
        shelf: Shelf,
        wanted: Sequence[Stored],
        on_progress: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.wanted, self.store = wanted, wanted[0].store
        self.replayed = origin.replay is not None or wanted[0].prediction.mode == "replay"
        self.found: dict[int, Prediction] = {}
        self.asked: dict[int, tuple[Table, pa.RecordBatch]] = {}
        self.places: dict[int, tuple[str, int]] = {}
        self.stores: list[str] = []
        self.made: dict[tuple[str, str], int] = {}
        self.rows = 0
        self._time = np.int64(_micros(wanted[0]))
        self._on_progress = on_progress
        self.runs = needed(history, shelf, wanted)
        self.late = history.cut.get(self.store, 0) > 0
        self.cast = Cast(self.runs, history, shelf, _spares(shelf, wanted), begun=self.replayed or self.late)
        self._stages = Stages(config, self.cast.chosen, self.cast.tables)
        self.cast.on_change = self._stages.renew
        self._from = origin.table
        self._read(DeviceRows(origin.lake, self._from, wanted[0].prediction.device_id, times=origin.times))

    def _read(self, rows: DeviceRows) -> None:
        for piece in rows:
            if piece.store not in self.stores:
                self.stores.append(piece.store)
            if not self.replayed and piece.store != self.store:
                continue
            batch = piece.batch.slice(0, self._locate(piece))
            self._apply(batch)
            self.rows += len(batch)
            self._on_progress(self.rows)
            if len(self.places) == len(self.wanted):
                break
        self.cut = 0 if self.replayed else rows.cut.get(self.store, 0)

    def _apply(self, batch: pa.RecordBatch) -> None:
        cuts = self.cast.cuts(batch)
        for first, last in zip(cuts, cuts[1:], strict=False):
            part = batch.slice(first, last - first)
            self.cast.enter(part)
            self._keep(self._stages.apply(part) if self._from == "telemetry" else self._stages.go_on(part))

    def _locate(self, piece: Rows) -> int:
        """Note where the rows stand that the predictions name; gives how many rows of the piece are needed."""
        times, offsets = keys(piece.batch)
        end = 0
        for k, stored in enumerate(self.wanted):
            p = stored.prediction
            # A session's last sample is the prediction's time; the row that finished it came later, and of the
            # samples of its message the last one is taken.
            later = self._from == "telemetry" and self._table(k) in ("sessions", "health")
            fits = times > self._time if later else times == self._time
            for row in np.flatnonzero((offsets == p.source_offset) & fits):
                lineage = (piece.batch.column(name)[row].as_py() for name in ("source", "source_partition"))
                if tuple(lineage) == (p.source, p.source_partition):
                    self.places[k] = (f"{self._from}/{piece.file}", int(piece.numbers[row]))
                    end = max(end, int(row) + 1)
        return end if len(self.places) == len(self.wanted) else len(times)

    def _keep(self, passed: Passed) -> None:
        for batch in passed.predictions:
            self._count(batch)
            for made in predictions_of(_at(batch, self._time)):
                for k, stored in enumerate(self.wanted):
                    if _identity(made) == _identity(stored.prediction):
                        self.found[k] = made
        for table, batch in passed.rows.items():
            for k, stored in enumerate(self.wanted):
                rows = _at(batch, self._time, stored.prediction.source_offset)
                if len(rows) and table == self._table(k):
                    self.asked[k] = (table, rows.slice(0, 1))

    def _table(self, k: int) -> str:
        return self.cast.table_of(self.wanted[k].prediction.model_sha256)

    def _count(self, batch: pa.RecordBatch) -> None:
        """Count what stands for the stored rows of runs."""
        past = pa.array(keys(batch)[0] <= self._time)
        kinds = [batch.filter(past).column(name).to_pylist() for name in ("target", "model_sha256", "mode")]
        for (target, sha256, mode), count in Counter(zip(*kinds, strict=True)).items():
            if mode != "fallback":
                self.made[target, sha256] = self.made.get((target, sha256), 0) + count


def needed(history: History, shelf: Shelf, wanted: Sequence[Stored]) -> list[Run]:
    """The runs that predictions depend on: of their models, of those before them, and of SOH where RUL is asked."""
    lanes = {(p.target, p.model_name) for p in (w.prediction for w in wanted)}
    for p in (w.prediction for w in wanted):
        model = shelf.get(p.model_sha256)
        if p.failed and not history.counting(p.model_sha256):  # a fallback model gave it, for one that counts
            lanes |= {(r.target, r.name) for r in history.runs if r.target == p.target and r.mode != "shadow"}
        if model is not None and model.contract.table == "health":
            lanes |= {(r.target, r.name) for r in history.runs if r.target == "soh" and r.mode != "shadow"}
    spares = {model.sha256 for model in _spares(shelf, wanted)}
    return [
        r
        for r in history.runs
        if r.store == wanted[0].store and (r.target, r.name) in lanes and (r.rows or r.sha256 not in spares)
    ]


def _spares(shelf: Shelf, wanted: Sequence[Stored]) -> list[Rehearsed]:
    targets = dict.fromkeys(w.prediction.target for w in wanted if w.prediction.failed)
    return [model for target in targets for model in shelf.spares(target)]


def _at(batch: pa.RecordBatch, time: Any, offset: int | None = None) -> pa.RecordBatch:
    times, offsets = keys(batch)
    return batch.filter(pa.array((times == time) & ((offsets == offset) if offset is not None else True)))


def _identity(p: Prediction) -> tuple[object, ...]:
    return p.target, p.model_sha256, p.source, p.source_partition, p.source_offset


def _micros(stored: Stored) -> int:
    return int(np.datetime64(stored.prediction.event_time.replace(tzinfo=None), "us").astype(np.int64))
