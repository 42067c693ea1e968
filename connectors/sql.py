"""A SQL database that takes rows by primary key: each is there once however often it is written.

Takes keyed record batches of one schema (predictions); gives dead letters for the rows that the
database refuses. What a database is like, and how to read it, is told in the file of its dialect:
``sql_sqlite.py``, ``sql_postgresql.py``, ``sql_mssql.py``. It is an operator, not a sink, because of the dead
letters: they go to the lake like all others, and that sink's snapshot makes them appear exactly once.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

import bytewax.operators as op
import pyarrow as pa
from bytewax.dataflow import Stream, operator
from bytewax.operators import KeyedStream, StatefulBatchLogic

from voltmill.connectors.outage import Patience
from voltmill.connectors.sql_dialect import Database, SqlError
from voltmill.connectors.sql_mssql import MssqlDatabase
from voltmill.connectors.sql_postgresql import PostgresqlDatabase
from voltmill.connectors.sql_rows import dead_letters
from voltmill.connectors.sql_schema import Schema
from voltmill.connectors.sql_settings import SqlSettings
from voltmill.connectors.sql_sqlite import SqliteDatabase
from voltmill.connectors.sql_writer import Writer
from voltmill.kernels.schema import PREDICTION, PREDICTION_KEY

__all__ = ["SqlError", "SqlSettings", "SqlTable", "open_database", "read_rows"]

PREDICTIONS: Final = "predictions"
_ONE_WRITER: Final = "sql"
_DIALECTS: Final[dict[str, type[SqliteDatabase | PostgresqlDatabase | MssqlDatabase]]] = {
    "sqlite": SqliteDatabase,
    "postgresql": PostgresqlDatabase,
    "mssql": MssqlDatabase,
}
State = tuple[str]
T = TypeVar("T")

log = logging.getLogger("voltmill.sql")


class SqlTable:
    """A table that rows are upserted into.

    Guarantee: effectively once. Each call is one transaction; what a crash makes come again overwrites
    itself by primary key. At the end of an epoch what was stored is made safe from a loss of power. While
    the database is away the flow stands still and reads nothing.

    Args:
        settings: where.
        table: name of what to read: in SQLite a view, and the first part of the names of the tables under it.
        schema: of every batch; columns of text, numbers, times and labels.
        key: the columns of the primary key.
        patience: waits while the database is away.
        observe: called with the seconds each call took, waiting included.
        on_written: called with each batch, or part of one, once it is committed.

    Raises:
        ValueError: the schema or the key cannot be stored.
    """

    def __init__(
        self,
        settings: SqlSettings,
        *,
        table: str = PREDICTIONS,
        schema: pa.Schema = PREDICTION,
        key: Sequence[str] = PREDICTION_KEY,
        patience: Patience,
        observe: Callable[[float], None] = lambda seconds: None,
        on_written: Callable[[pa.RecordBatch], None] = lambda batch: None,
    ) -> None:
        self.settings, self.name = settings, table
        self._schema, self._key = schema, tuple(key)
        self._patience = patience
        self._observe, self._on_written = observe, on_written
        self.one_writer = settings.dialect == "sqlite"
        self._database()

    def prepare(self) -> None:
        """Bring the schema up to date before the flow runs; waits for a server that is away.

        Raises:
            SqlError: the database cannot be used, or did not come in time.
        """

        def work(schema: Schema) -> None:
            schema.apply(lambda line: log.info(line, extra={"database": self.settings.place}))
            schema.database.check()

        self.with_schema(work)

    def with_schema(self, work: Callable[[Schema], T]) -> T:
        """Do something with the schema of the database, from its beginning after an error that passes.

        Raises:
            SqlError: it cannot be done, or the database was away for too long.
        """
        database, done = self._database(), list[T]()
        try:
            Writer(database, self._patience).surely(
                lambda: done.append(work(Schema(database, self.settings, self.name)))
            )
        finally:
            database.close()
        return done[-1]

    def upsert(self, step_id: str, up: KeyedStream[pa.RecordBatch]) -> Stream[pa.RecordBatch]:
        """Store every batch; ``prepare`` comes first.

        PostgreSQL and Azure SQL have a connection a key. SQLite has one writer, so one takes every key.

        Args:
            step_id: unique id of the step.
            up: batches of the schema.

        Returns:
            ``DEAD_LETTER`` rows: those that the database refused, with its message.
        """
        return _upsert(step_id, up, table=self)

    def writer(self) -> Writer:
        """A writer with a connection of its own, opened at its first call."""
        return Writer(self._database(), self._patience, self._observe, self._on_written)

    def _database(self) -> Database:
        return open_database(self.settings, table=self.name, schema=self._schema, key=self._key)


def read_rows(
    settings: SqlSettings,
    *,
    table: str = PREDICTIONS,
    schema: pa.Schema = PREDICTION,
    key: Sequence[str] = PREDICTION_KEY,
) -> pa.Table:
    """Every row of the table, in the schema it was written with, ordered by ``key``.

    Raises:
        SqlError: no such database or table.
    """
    return open_database(settings, table=table, schema=schema, key=key).read()


def open_database(
    settings: SqlSettings,
    *,
    table: str = PREDICTIONS,
    schema: pa.Schema = PREDICTION,
    key: Sequence[str] = PREDICTION_KEY,
) -> Database:
    """The database, in the dialect that its URL names; it connects at its first call.

    Raises:
        ValueError: the schema or the key cannot be stored.
    """
    return _DIALECTS[settings.dialect](settings, table, schema, key)


@operator
def _upsert(step_id: str, up: KeyedStream[pa.RecordBatch], table: SqlTable) -> Stream[pa.RecordBatch]:
    keyed = op.map("one", up, lambda item: (_ONE_WRITER, item[1])) if table.one_writer else up
    letters = op.stateful_batch("write", keyed, lambda state: _Logic(table, state))
    return op.key_rm("letters", letters)


class _Logic(StatefulBatchLogic[pa.RecordBatch, pa.RecordBatch, State]):
    """One writer; all state is in the database."""

    def __init__(self, table: SqlTable, state: State | None) -> None:
        if state not in (None, ("v1",)):
            raise SqlError(f"{table.settings.place}: the recovery store holds state {state!r}, not ('v1',)")
        self._table = table.name
        self._writer = table.writer()

    def on_batch(self, values: list[pa.RecordBatch]) -> tuple[Iterable[pa.RecordBatch], bool]:
        refused = self._writer.write(values)
        return [dead_letters(refused, self._table)] if refused else [], StatefulBatchLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[pa.RecordBatch], bool]:
        """The stream is over: make what was stored safe now, for a snapshot after this finds nothing to do."""
        self._writer.durable()
        self._writer.close()
        return [], StatefulBatchLogic.RETAIN

    def snapshot(self) -> State:
        self._writer.durable()
        return ("v1",)
