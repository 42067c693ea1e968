"""A SQL database as a sink: rows by primary key, each there once however often it is written.

Takes keyed record batches of one schema (predictions); gives a view that bears the table's name and
the schema's columns:

    predictions            what to read: every column of the schema; times are integer µs UTC
    predictions_readable   the same with times as ISO 8601 text
    predictions_rows       the rows: key columns, numbers and two references
    predictions_key_labels, predictions_labels   each combination of label values, once

The labels (model, version, unit, source …) are 150 bytes a row and the same in millions of rows:
beside the rows rather than in them, writing costs half and the file is 84 bytes a row, not 216. The
key starts with the time, so rows are appended at the end of the tree; a table without rowid has no
second tree to keep. Measured: 1.4 to 1.8 µs a row on one core in batches of 4,096, at 1,000 and at
100,000 devices; 0.6 of it is what Python's ``sqlite3`` takes to bind nine values, and sorting the
rows first gained 3 %. A query by device over a long archive wants an index of its own:
``CREATE INDEX by_device ON predictions_rows (device_id, event_time)``.

``SELECT datetime(event_time / 1000000, 'unixepoch')`` reads a time in SQLite, ``make_timestamp(event_time)``
in DuckDB. NaN and null both are NULL.
"""

import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from voltmill.connectors.sql_text import Statements, quoted
from voltmill.kernels.schema import PREDICTION, PREDICTION_KEY

__all__ = ["SqlError", "SqlSettings", "SqlSink", "read_rows"]

PREFIX: Final = "sqlite:///"
PARTITION: Final = "sql"
FIRST_PAUSE_SECONDS: Final = 0.05
#: Primary result codes that pass by themselves: another connection holds the lock.
TRANSIENT: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

State = tuple[str]


class SqlError(Exception):
    """The database cannot be written or read; one line that names it and the table."""


class SqlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[sql]`` table: the database that takes the predictions."""

    url: str = "sqlite:///voltmill-data/voltmill.db"
    """A SQLite file: ``sqlite:///`` and its path, a fourth slash if it is absolute."""
    table: str = "predictions"
    """Name of the view to read, and the first part of the names of the tables under it."""
    busy_timeout_seconds: float = 5.0
    """How long one try waits for another process's lock, s."""
    tries: int = 6
    """How often a transaction is tried when the database stays locked, with pauses that double."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not self.url.startswith(PREFIX) or self.url == PREFIX:
            raise ValueError(f"url must be {PREFIX}PATH, the path of a SQLite file")
        if not self.table.isidentifier() or not self.table.isascii():
            raise ValueError(f"table {self.table!r} must be a plain name: letters, digits and _")
        if self.busy_timeout_seconds < 0 or self.tries < 1:
            raise ValueError("busy_timeout_seconds must be at least 0 and tries at least 1")

    @property
    def path(self) -> Path:
        """The file of the database."""
        return Path(self.url.removeprefix(PREFIX))


class SqlSink(FixedPartitionedSink[pa.RecordBatch, State]):
    """Upserts keyed record batches into a table.

    Guarantee: effectively once. Each call is one transaction; what a crash makes come again
    overwrites itself by primary key. At the end of an epoch the write-ahead log is flushed into the
    file, so a loss of power takes no epoch back either.

    One partition takes every key: SQLite has one writer.

    Args:
        settings: where.
        schema: of every batch; columns of text, numbers, times and labels.
        key: the columns of the primary key.
        observe: called with the seconds each transaction took.
        on_written: called with each batch once it is committed.
    """

    def __init__(
        self,
        settings: SqlSettings,
        *,
        schema: pa.Schema = PREDICTION,
        key: Sequence[str] = PREDICTION_KEY,
        observe: Callable[[float], None] = lambda seconds: None,
        on_written: Callable[[pa.RecordBatch], None] | None = None,
    ) -> None:
        self.settings = settings
        self.statements = Statements.of(settings.table, schema, key)
        self.observe = observe
        self.on_written = on_written

    def list_parts(self) -> list[str]:
        """One partition."""
        return [PARTITION]

    def part_fn(self, item_key: str) -> int:
        """Any key goes to the one partition."""
        return 0

    def build_part(self, step_id: str, for_part: str, resume_state: State | None) -> "SqlPartition":
        """The writer; the tables are made if they are not there."""
        if resume_state not in (None, ("v1",)):
            raise SqlError(f"{self.settings.path}: the recovery store holds state {resume_state!r}, not ('v1',)")
        return SqlPartition(self)

    def prepare(self) -> None:
        """Make the tables now, so that a database that cannot be used is known before the flow runs.

        Raises:
            SqlError: It cannot be opened, or is none.
        """
        SqlPartition(self).close()


class SqlPartition(StatefulSinkPartition[pa.RecordBatch, State]):
    """One connection; all state is in the database."""

    def __init__(self, sink: SqlSink) -> None:
        self._sink = sink
        self._statements = sink.statements
        self._connection = _connect(sink.settings)
        self._known: dict[tuple[str, tuple[str | None, ...]], int] = {}
        self._transact(self._create)

    def write_batch(self, values: list[pa.RecordBatch]) -> None:
        """Upsert the batches in one transaction."""
        began = time.perf_counter()
        self._transact(lambda: self._upsert(values))
        self._sink.observe(time.perf_counter() - began)
        if self._sink.on_written is not None:
            for batch in values:
                self._sink.on_written(batch)

    def snapshot(self) -> State:
        """Make what was committed safe from a loss of power, too: in WAL mode a commit itself does not wait."""
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        return ("v1",)

    def close(self) -> None:
        """Close the connection; the last one to do so folds the write-ahead log into the file."""
        self._connection.close()

    def _transact(self, work: Callable[[], None]) -> None:
        """Run ``work`` in a transaction, again if the database is locked; all of it or nothing is stored."""
        pause = FIRST_PAUSE_SECONDS
        for left in reversed(range(self._sink.settings.tries)):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                work()
                self._connection.execute("COMMIT")
                return
            except (sqlite3.Error, OverflowError) as error:
                self._roll_back()
                if not left or not _transient(error):
                    raise self._error(error) from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause *= 2

    def _roll_back(self) -> None:
        self._known.clear()  # ids given in this transaction are void
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _create(self) -> None:
        for statement in self._statements.create:
            self._connection.execute(statement)
        found = self._connection.execute(f"PRAGMA table_info({self._statements.rows})").fetchall()
        if [name for _, name, *_ in found] != list(self._statements.columns):
            raise sqlite3.OperationalError("the table has other columns; name another table or file")

    def _upsert(self, batches: Iterable[pa.RecordBatch]) -> None:
        for batch in batches:
            if batch.num_rows:
                self._connection.executemany(self._statements.upsert, self._tuples(batch))

    def _tuples(self, batch: pa.RecordBatch) -> Iterable[tuple[Any, ...]]:
        text = self._statements
        plain = (_values(batch.column(name)) for name in text.plain)
        groups = (self._ids(batch, table, names) for table, names in text.label_tables)
        return zip(*plain, *groups, strict=False)  # repeat() has no end

    def _ids(self, batch: pa.RecordBatch, table: str, names: Sequence[str]) -> Iterable[int]:
        """For each row the id of its combination of labels: most batches hold a single one."""
        columns = [batch.column(name) for name in names]
        codes = np.zeros(batch.num_rows, np.int64)
        for column in columns:
            codes = codes * (len(column.dictionary) + 1) + column.indices.fill_null(-1).to_numpy() + 1
        if (codes == codes[0]).all():
            return repeat(self._id(table, tuple(column[0].as_py() for column in columns)))
        _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        ids = [self._id(table, tuple(column[int(row)].as_py() for column in columns)) for row in first]
        chosen: list[int] = np.array(ids)[inverse].tolist()
        return chosen

    def _id(self, table: str, labels: tuple[str | None, ...]) -> int:
        known = self._known.get((table, labels))
        if known is None:
            select, insert = self._statements.label_statements[table]
            row = self._connection.execute(select, labels).fetchone()
            known = row[0] if row else self._connection.execute(insert, labels).lastrowid
            assert known is not None
            self._known[table, labels] = known
        return known

    def _error(self, error: Exception) -> SqlError:
        return SqlError(f"{self._sink.settings.path}: table {self._sink.settings.table}: {error}")


def read_rows(
    settings: SqlSettings, *, schema: pa.Schema = PREDICTION, key: Sequence[str] = PREDICTION_KEY
) -> pa.Table:
    """Every row of the table, in the schema it was written with, ordered by ``key``.

    Raises:
        SqlError: no such file or table.
    """
    if not settings.path.is_file():
        raise SqlError(f"{settings.path}: no such file")
    connection = _connect(settings)
    try:
        names, order = ", ".join(map(quoted, schema.names)), ", ".join(map(quoted, key))
        rows = connection.execute(f"SELECT {names} FROM {settings.table} ORDER BY {order}").fetchall()
    except sqlite3.Error as error:
        raise SqlError(f"{settings.path}: table {settings.table}: {error}") from error
    finally:
        connection.close()
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [_array(list(values), field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _connect(settings: SqlSettings) -> sqlite3.Connection:
    settings.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(
            settings.path, timeout=settings.busy_timeout_seconds, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")  # readers do not block the writer, nor it them
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")  # 16 MB; an epoch's end checkpoints as well
        connection.execute("PRAGMA cache_size = -65536")  # KiB: the leaves that rows still arrive in
    except sqlite3.Error as error:
        raise SqlError(f"{settings.path}: {error}") from error
    return connection


def _transient(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)  # extended: its low byte is the primary code
    return code is not None and code & 0xFF in TRANSIENT


def _values(column: pa.Array) -> list[Any]:
    """A column as Python values; null floats become NaN, which SQLite stores as NULL."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if column.null_count and pa.types.is_integer(column.type):
        nullable: list[Any] = column.to_pylist()
        return nullable
    values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
    return values


def _array(values: list[Any], type_: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(type_):
        return pa.array(values, pa.string()).dictionary_encode()
    if pa.types.is_timestamp(type_):
        return pa.array(values, pa.int64()).cast(type_)
    return pa.array(values, type_)
