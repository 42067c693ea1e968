"""What the lake says of a device's predictions: the rows that are explained, and what happened before them.

One pass over the stored predictions of the device, in order of arrival. What stays in memory is a run for
each time a model came into force, and eight bytes for each row that a model failed on.
"""

from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_range import EventRange
from voltmill.flows.compare_spill import Labels, check_columns
from voltmill.flows.device_rows import DeviceRows, Rows
from voltmill.kernels.schema import PREDICTION, Quality

_MICROSECOND: Final = timedelta(microseconds=1)


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``PREDICTION``, stored or recomputed."""

    device_id: str
    event_time: datetime
    target: str
    model_sha256: str
    value: float | None
    lo90: float | None
    hi90: float | None
    unit: str
    model_name: str
    model_version: str
    mode: str
    quality_bits: int
    source: str
    source_partition: str
    source_offset: int

    @property
    def failed(self) -> bool:
        """Whether the model failed, so that the value is a fallback."""
        return bool(self.quality_bits & Quality.MODEL_FAILED)


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A stored prediction and where it stands."""

    prediction: Prediction
    file: str
    """Path in the lake."""
    row: int
    """Number of the row in that file, from 0."""
    store: str
    """Recovery store of the flow that made it; empty: the file's name does not say."""


class Run(msgspec.Struct, kw_only=True):
    """The predictions of one model from where it came into force."""

    store: str
    target: str
    name: str
    sha256: str
    mode: str
    """fallback: it failed on all of them."""
    time: int
    """Event time of the first, µs since 1970."""
    offset: int
    """Its ``source_offset``."""
    last_time: int
    """Event time of the last."""
    rows: int
    """How many, those left out on which it failed."""


class History(msgspec.Struct):
    """The predictions of a device up to a time."""

    found: list[Stored] = []
    """Those that are explained."""
    runs: list[Run] = []
    failed: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
    """By target and digest, event time and offset (two columns) of the rows with a fallback."""
    cut: dict[str, int] = {}
    """By store, the number of the first file that is left; above 0, older predictions are gone."""

    def failures(self, target: str, sha256: str, *, counts: bool) -> NDArray[np.int64]:
        """Event time and offset of the rows that a model failed on.

        Args:
            target: Its target.
            sha256: Its digest.
            counts: Whether its values count: then what a fallback model gave was given for it.
        """
        others = [s for t, s in self.failed if t == target and s != sha256 and counts and not self.counting(s)]
        found = [rows for s in (sha256, *others) for rows in self.failed.get((target, s), [])]
        return np.concatenate([np.empty((0, 2), np.int64), *found])

    def counting(self, sha256: str) -> bool:
        """Whether the model ever gave a row that is no fallback."""
        return any(run.sha256 == sha256 and run.rows for run in self.runs)


def read_history(lake: LakeSettings, device_id: str, time: datetime, *, target: str = "", model: str = "") -> History:
    """Find the predictions of a device at a time, or the nearest before it.

    Args:
        lake: Holds ``predictions/``.
        device_id: The device.
        time: Event time.
        target: Only this one; empty: any.
        model: Only those of this name, or whose digest begins so; empty: any.

    Raises:
        LakeError: There are no predictions, or a file cannot be read.
    """
    rows = DeviceRows(lake, "predictions", device_id, PREDICTION.names, EventRange(None, time + _MICROSECOND))
    history, at = History(), None
    runs = _Runs(history.runs)
    for piece in rows:
        check_columns(piece.batch)
        at = _keep_nearest(history, piece, at, target, model)
        runs.add(piece)
        _add_failures(history.failed, piece.batch)
    history.cut = rows.cut
    return history


def predictions_of(batch: pa.RecordBatch) -> list[Prediction]:
    """Rows of ``PREDICTION`` as structs."""
    return msgspec.convert(batch.select(PREDICTION.names).to_pylist(), list[Prediction])


def _keep_nearest(history: History, piece: Rows, at: Any, target: str, model: str) -> Any:
    """Keep the rows of the latest event time so far; gives that time."""
    batch, numbers = piece.batch, piece.numbers
    mask = np.ones(len(batch), np.bool_)
    if target:
        mask &= _text_mask(pc.equal(batch.column("target").cast(pa.string()), target))
    if model:
        name, sha = (batch.column(c).cast(pa.string()) for c in ("model_name", "model_sha256"))
        mask &= _text_mask(pc.or_(pc.equal(name, model), pc.starts_with(sha, model.lower())))
    if not mask.any():
        return at
    times = batch.column("event_time").cast(pa.int64()).to_numpy()
    latest = times[mask].max()
    if at is not None and latest < at:
        return at
    if at is None or latest > at:
        history.found.clear()
    chosen = np.flatnonzero(mask & (times == latest))
    for row, prediction in zip(numbers[chosen], predictions_of(batch.take(pa.array(chosen))), strict=True):
        place = Stored(prediction=prediction, file=f"predictions/{piece.file}", row=int(row), store=piece.store)
        history.found.append(place)
    return latest


def _text_mask(mask: Any) -> NDArray[np.bool_]:
    return np.asarray(mask.fill_null(False).to_numpy(zero_copy_only=False))


class _Runs:
    """Takes the rows in and makes runs of them."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs, self._labels = runs, Labels()

    def add(self, piece: Rows) -> None:
        batch = piece.batch
        codes = self._labels.codes([batch.column(c) for c in ("target", "model_name", "model_sha256", "mode")])
        times = batch.column("event_time").cast(pa.int64()).to_numpy()
        offsets = batch.column("source_offset").to_numpy()
        known = [(str(t), str(n), str(s), str(m)) for t, n, s, m in self._labels.known]
        for target, name, sha256 in dict.fromkeys(known[code][:3] for code in dict.fromkeys(codes.tolist())):
            same = [k for k, kind in enumerate(known) if kind[:3] == (target, name, sha256)]
            # A fallback may stand for a row of this model: it was in force, whoever gave the value.
            spare = [k for k, kind in enumerate(known) if (kind[0], kind[3]) == (target, "fallback")]
            others = [k for k, kind in enumerate(known) if kind[:2] == (target, name) and kind[2] != sha256]
            mine = np.flatnonzero(np.isin(codes, same))
            modes = _counting([known[code][3] for code in codes[mine].tolist()])
            own = [*same, *spare]
            cuts = _breaks(times[mine], times[np.isin(codes, own)], times[np.isin(codes, others)])
            cuts = np.union1d(cuts, np.flatnonzero(modes[1:] != modes[:-1]))
            for part, mode in zip(np.split(mine, 1 + cuts), modes[np.r_[0, 1 + cuts]], strict=True):
                run = Run(
                    store=piece.store,
                    target=target,
                    name=name,
                    sha256=sha256,
                    mode=str(mode),
                    time=int(times[part[0]]),
                    offset=int(offsets[part[0]]),
                    last_time=int(times[part].max()),
                    rows=sum(known[code][3] != "fallback" for code in codes[part].tolist()),
                )
                self._append(run)

    def _append(self, run: Run) -> None:
        """Add a run, or its rows to the one that it goes on with."""
        lane = [r for r in self._runs if (r.store, r.target, r.name) == (run.store, run.target, run.name)]
        before = next((r for r in reversed(lane) if r.sha256 == run.sha256), None)
        if before is not None and (before.mode == run.mode or "fallback" in (before.mode, run.mode)):
            if not any(r.sha256 != run.sha256 and before.last_time < r.last_time < run.time for r in lane):
                before.mode = run.mode if before.mode == "fallback" else before.mode
                before.rows += run.rows
                before.last_time = max(before.last_time, run.last_time)
                return
        self._runs.append(run)


def _counting(modes: list[str]) -> NDArray[np.str_]:
    """The mode of the model at each row: a fallback does not say it, the row before does, else the one after."""
    found = np.array(modes)
    says = np.flatnonzero(found != "fallback")
    if not len(says):
        return found
    place = np.searchsorted(says, np.arange(len(found)), "right") - 1
    filled: NDArray[np.str_] = found[says[np.maximum(place, 0)]]
    return filled


def _breaks(mine: NDArray[np.int64], own: NDArray[np.int64], theirs: NDArray[np.int64]) -> NDArray[np.intp]:
    """After which of a model's rows another one of its name was in force instead: it alone has rows there."""
    if len(mine) < 2 or not len(theirs):
        return np.empty(0, np.intp)
    alone = theirs[~np.isin(theirs, own)]
    between = np.searchsorted(alone, mine[1:], "left") > np.searchsorted(alone, mine[:-1], "right")
    return np.flatnonzero(between)


def _add_failures(failed: dict[tuple[str, str], list[NDArray[np.int64]]], batch: pa.RecordBatch) -> None:
    rows = np.flatnonzero(batch.column("quality_bits").to_numpy() & np.uint32(Quality.MODEL_FAILED))
    if not len(rows):
        return
    part = batch.take(pa.array(rows))
    times = part.column("event_time").cast(pa.int64()).to_numpy()
    keys = np.column_stack([times, part.column("source_offset").to_numpy()])
    kinds = list(zip(*(part.column(c).to_pylist() for c in ("target", "model_sha256")), strict=True))
    for kind in dict.fromkeys(kinds):
        failed.setdefault(kind, []).append(keys[np.array([k == kind for k in kinds])])
