"""The models that made a device's predictions, put in force again where the lake says that they were.

A model came into force at the row of its first prediction, and went where another of its name came. Where
the lake holds a fallback, the model is taken to fail again: what made it fail has passed.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill.flows.choice import Models, Table, table_columns
from voltmill.flows.config import Config
from voltmill.flows.explain_stored import History, Run
from voltmill.operators.contract import Matrix
from voltmill.operators.model import Chosen, Mode, Model, OnnxModel, discover


class Shelf:
    """The models at hand, by digest: those in force, those that ``voltmill models`` lists, and given files.

    Args:
        config: Names those in force.
        files: ONNX files beside them.

    Raises:
        ConfigError: A model that the configuration names cannot be used.
        ModelError: A file cannot be used.
    """

    def __init__(self, config: Config, files: Iterable[Path] = ()) -> None:
        columns = table_columns(config)
        self.in_force = Models(config).current()
        given: list[Model] = [OnnxModel(file, columns=columns) for file in files]
        known = [*discover(columns=columns).models.values(), *(c.model for c in self.in_force), *given]
        self._models = {model.sha256: Rehearsed(model) for model in known}

    def get(self, sha256: str) -> "Rehearsed | None":
        """The model of a digest."""
        return self._models.get(sha256)

    def spares(self, target: str) -> "list[Rehearsed]":
        """The fallback models of a target, in the order they are asked."""
        found = [c.model for c in self.in_force if c.mode == "fallback" and c.model.contract.target == target]
        return [self._models[model.sha256] for model in found]


class Rehearsed:
    """A model that fails again where it failed.

    Attributes:
        failing: whether it fails now.
    """

    def __init__(self, model: Any) -> None:
        self.contract, self.sha256 = model.contract, str(model.sha256)
        self.remote = bool(getattr(model, "remote", False))
        self.failing = False
        self._model = model

    def predict(self, features: Matrix) -> Matrix:
        """See `PredictModel.predict`."""
        return self._now().predict(features)  # type: ignore[no-any-return]

    def step(self, features: Matrix, carried: Matrix) -> tuple[Matrix, Matrix]:
        """See `StepModel.step`."""
        return self._now().step(features, carried)  # type: ignore[no-any-return]

    def _now(self) -> Any:
        if self.failing:
            raise RuntimeError("it failed here before")
        return self._model


class Cast:
    """Which of the models run at each row.

    Args:
        runs: Of the models that are wanted, of one store.
        history: Where they failed.
        shelf: The models at hand.
        spares: Fallback models.
        begun: Whether what the lake holds begins later than they did, so that they are in force from the start.
    """

    def __init__(
        self, runs: Sequence[Run], history: History, shelf: Shelf, spares: Sequence[Rehearsed], *, begun: bool
    ) -> None:
        self._pending = [run for run in runs if shelf.get(run.sha256)]
        self._shelf = shelf
        self._now: list[Run] = []
        self._spares = [Chosen(model, "fallback") for model in spares]
        self._failed = {
            run.sha256: history.failures(run.target, run.sha256, counts=run.mode != "shadow") for run in self._pending
        }
        self.on_change: Callable[[], None] = lambda: None
        if begun:
            first = [run for run in self._pending if not any(succeeds(run, other) for other in self._pending)]
            self._enter(first)

    @property
    def tables(self) -> set[Table]:
        """Tables of the models."""
        contracts = [model.contract for run in self._pending + self._now if (model := self._shelf.get(run.sha256))]
        return {c.table for c in [*contracts, *(s.model.contract for s in self._spares)]}

    @property
    def pending(self) -> list[Run]:
        """Runs that have not begun."""
        return self._pending

    def table_of(self, sha256: str) -> str:
        """The table that a model is asked about; empty if it is not at hand."""
        model = self._shelf.get(sha256)
        return model.contract.table if model else ""

    def chosen(self) -> list[Chosen]:
        """The models in force."""
        return [*self._spares, *(Chosen(self._model(run), _mode(run.mode)) for run in self._now)]

    def cuts(self, batch: pa.RecordBatch) -> list[int]:
        """Rows of a batch before which something changes, the first and the end included."""
        times, offsets = keys(batch)
        found = {0, len(batch)}
        for run in self._pending:
            if (row := self._begin(run, times, offsets)) is not None:
                found.add(row)
        for run in {run.sha256: run for run in (*self._now, *self._pending)}.values():
            found.update((1 + np.flatnonzero(np.diff(self._fails(run, times, offsets).astype(np.int8)))).tolist())
        return sorted(found)

    def enter(self, part: pa.RecordBatch) -> None:
        """Put in force what is so for a part between two cuts."""
        times, offsets = keys(part)
        if begin := [run for run in self._pending if self._begin(run, times[:1], offsets[:1]) is not None]:
            self._enter(begin)
            self.on_change()
        for run in self._now:
            self._model(run).failing = bool(self._fails(run, times[:1], offsets[:1]).any())

    def _enter(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self._pending.remove(run)
            self._now = [r for r in self._now if not (succeeds(run, r) or r.sha256 == run.sha256)] + [run]

    def _model(self, run: Run) -> Rehearsed:
        model = self._shelf.get(run.sha256)
        assert model is not None
        return model

    def _begin(self, run: Run, times: NDArray[np.int64], offsets: NDArray[np.int64]) -> int | None:
        """The row that gave the first prediction of a run; a session's came of a row after its end."""
        samples = self._model(run).contract.table == "features"
        rows = np.flatnonzero((offsets == run.offset) & ((times == run.time) if samples else (times >= run.time)))
        return int(rows[0]) if len(rows) else None

    def _fails(self, run: Run, times: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
        failed = self._failed[run.sha256]
        if self._model(run).contract.table == "features":
            return np.isin(times, failed[:, 0])
        return np.isin(offsets, failed[:, 1])


def keys(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Event times, µs since 1970, and offsets."""
    times = batch.column("event_time").cast(pa.int64()).to_numpy()
    return times, batch.column("source_offset").to_numpy()


def succeeds(run: Run, other: Run) -> bool:
    """Whether a run took over from another, of the same name."""
    return (run.target, run.name) == (other.target, other.name) and other.last_time < run.time


def _mode(text: str) -> Mode:
    return text if text in ("live", "shadow", "replay") else "live"  # type: ignore[return-value]
