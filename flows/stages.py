"""The stages of the graph without the engine: telemetry of one shard in, what comes of it out, a call a batch.

It is what ``flows/graph.py`` does after ``shard``, in a plain loop: for those who recompute, measure or
make tables, and want the very numbers of the stream.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

import pyarrow as pa

from voltmill.flows.choice import TABLES, Table
from voltmill.flows.config import Config
from voltmill.kernels.schema import TELEMETRY
from voltmill.operators.estimate import EstimateState
from voltmill.operators.features import FeatureState
from voltmill.operators.health import HealthState
from voltmill.operators.model import Choice, Chosen
from voltmill.operators.quality import QualityState
from voltmill.operators.sessions import SessionState


class Passed(NamedTuple):
    """What came of a batch."""

    telemetry: pa.RecordBatch
    """The rows with their quality bits."""
    rows: dict[Table, pa.RecordBatch]
    """What models were asked about, by table."""
    predictions: list[pa.RecordBatch]
    failures: list[pa.RecordBatch]


class Stages:
    """quality, features, sessions, health and estimate for the devices of one shard, with cold state.

    Args:
        config: Fleet and settings.
        models: Gives the models in force, of any table; asked at the start and after `renew`.
        tables: Those that are wanted; ``health`` brings ``sessions`` with it.
    """

    def __init__(self, config: Config, models: Choice, tables: Collection[Table] = TABLES) -> None:
        fleet = config.devices
        self.quality = QualityState(config.quality, fleet)
        self.features = FeatureState(config.features, fleet) if "features" in tables else None
        sessions = "sessions" in tables or "health" in tables
        self.sessions = SessionState(config.sessions, fleet) if sessions else None
        self.health = HealthState(config.health, fleet) if "health" in tables else None
        wanted: Final = [t for t in TABLES if t in tables or (t == "sessions" and sessions)]
        self.estimates = {table: EstimateState(_of(models, table), fleet) for table in wanted}

    def apply(self, telemetry: pa.RecordBatch) -> Passed:
        """What comes of a batch, the answers of remote models included."""
        passed = Passed(self.quality.apply(telemetry), {}, [], [])
        if self.features is not None:
            self._estimate("features", self.features.apply(passed.telemetry), passed)
        if self.sessions is not None:
            self._go_on(self.sessions.apply(passed.telemetry), passed)
        return passed

    def go_on(self, sessions: pa.RecordBatch) -> Passed:
        """What comes of sessions that were found before; there is no telemetry then."""
        passed = Passed(pa.RecordBatch.from_pylist([], TELEMETRY), {}, [], [])
        self._go_on(sessions, passed)
        return passed

    def _go_on(self, sessions: pa.RecordBatch, passed: Passed) -> None:
        values = self._estimate("sessions", sessions, passed)
        if self.health is not None:
            for batch in values:
                self._estimate("health", self.health.apply(batch), passed)

    def renew(self) -> None:
        """Go over to the models that are in force now, as at the end of an epoch."""
        for state in self.estimates.values():
            state.snapshot()

    def _estimate(self, table: Table, rows: pa.RecordBatch, passed: Passed) -> list[pa.RecordBatch]:
        """Ask the models of a table, into ``passed``; gives the rows with the values that others go on from."""
        if not len(rows):
            return []
        before = passed.rows.get(table)
        passed.rows[table] = rows if before is None else pa.concat_batches([before, rows])
        state = self.estimates[table]
        made: dict[str, list[pa.RecordBatch]] = {"predictions": passed.predictions, "failures": passed.failures}
        for each in [*state.apply(rows), *state.collect(wait=True)]:
            made.setdefault(each.kind, []).append(each.batch)
        return made.get("values", [])


def _of(models: Choice, table: Table) -> Choice:
    def chosen() -> list[Chosen]:
        return [each for each in models() if each.model.contract.table == table]

    return chosen
