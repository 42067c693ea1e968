"""SQLite: one file, one writer; labels in tables of their own.

Gives a view that bears the table's name and the schema's columns:

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

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
import pyarrow as pa

from voltmill.connectors.sql_dialect import Failure, SqlError
from voltmill.connectors.sql_settings import SqlSettings
from voltmill.connectors.sql_text import Statements, quoted

#: Primary result codes (https://sqlite.org/rescode.html) of what passes: a lock, a disk that is full or
#: away, memory. A file that cannot be opened or written is one of them once it could be.
_TRANSIENT: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL,
}
#: A constraint, also one that a trigger raises; a value too large or of the wrong type.
_REFUSED: Final = {
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_RANGE,
}
#: At the start these do not pass: somebody named the wrong file.
_NOT_OURS: Final = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}


#: SQLite waits for a lock without looking at the drain, s; longer waits are Patience's.
_LOCK_SECONDS: Final = 1.0


class SqliteDatabase:
    """The tables in one SQLite file.

    Args:
        settings: where.
        table: name of the view that reads them.
        schema: of every batch; columns of text, numbers, times and labels.
        key: the columns of the primary key.

    Raises:
        ValueError: the schema or the key cannot be stored.
    """

    def __init__(self, settings: SqlSettings, table: str, schema: pa.Schema, key: Sequence[str]) -> None:
        self._settings, self._table = settings, table
        self._schema, self._key = schema, tuple(key)
        self._statements = Statements.of(table, schema, key)
        self._open: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._known: dict[tuple[str, tuple[str | None, ...]], int] = {}

    @property
    def place(self) -> str:
        """File and table."""
        return f"{self._settings.path}: table {self._table}"

    def check(self) -> None:
        """See that the table of rows is there, and its columns.

        Raises:
            SqlError: there is none, or one with other columns.
        """
        found = self.rows(f"PRAGMA table_info({self._statements.rows})")
        if not found:
            raise SqlError(f"{self.place}: there is no such table; make it: voltmill db apply")
        if [name for _, name, *_ in found] != list(self._statements.columns):
            raise SqlError(f"{self.place}: the table has other columns; name another file")

    def upsert(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Store all rows in one transaction, over older ones of the same keys."""
        connection = self._connection("rw")
        try:
            connection.execute("BEGIN IMMEDIATE")
            for batch in batches:
                connection.executemany(self._statements.upsert, self._tuples(batch))
            connection.execute("COMMIT")
        except BaseException:
            self._known.clear()  # ids given in this transaction are void
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def run(self, statements: Sequence[str]) -> None:
        """Run statements in one transaction; makes folder and file where they are missing.

        Raises:
            SqlError: no such file can be made, or it is no database.
        """
        path = self._settings.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._connection("rwc")
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                for statement in statements:
                    connection.execute(statement)
        except OSError as error:
            raise SqlError(f"{path}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            if _primary(error) in _NOT_OURS or self._open is None and self.classify(error) is Failure.FATAL:
                raise SqlError(f"{path}: {error}") from error
            raise

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query gives; the file must be there."""
        return self._connection("rw").execute(query).fetchall()

    def durable(self) -> None:
        """Flush the write-ahead log into the file: in WAL mode a commit itself does not wait for the disk.

        Raises:
            SqlError: the file was removed or replaced, so what was stored since is gone.
        """
        if self._open is None:
            return
        self._open.execute("PRAGMA wal_checkpoint(PASSIVE)")
        if self._file != self._identity():
            raise SqlError(f"{self._settings.path}: was removed or replaced while rows were stored in it")

    def classify(self, error: Exception) -> Failure:
        """By SQLite's primary result code; a number too large for 64 bits never gets as far as that."""
        code = _primary(error)
        if code in _REFUSED or isinstance(error, OverflowError):
            return Failure.REFUSED
        return Failure.TRANSIENT if code in _TRANSIENT else Failure.FATAL

    def explain(self, error: Exception) -> str:
        """SQLite's message."""
        return " ".join(str(error).split())

    def mend(self, error: Exception) -> str:
        """Nothing: what SQLite says is enough."""
        return ""

    def close(self) -> None:
        """Close the connection; the last one to do so folds the write-ahead log into the file."""
        connection, self._open = self._open, None
        self._known.clear()
        if connection is not None:
            connection.close()

    def read(self) -> pa.Table:
        """Every row, ordered by key.

        Raises:
            SqlError: no such file or table.
        """
        path = self._settings.path
        if not path.is_file():
            raise SqlError(f"{path}: no such file")
        names, order = ", ".join(map(quoted, self._schema.names)), ", ".join(map(quoted, self._key))
        try:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                rows = connection.execute(f"SELECT {names} FROM {self._table} ORDER BY {order}").fetchall()
        except sqlite3.Error as error:
            raise SqlError(f"{self.place}: {error}") from error
        columns = zip(*rows, strict=True) if rows else ([] for _ in self._schema)
        arrays = [_array(list(values), field.type) for values, field in zip(columns, self._schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _connection(self, mode: str) -> sqlite3.Connection:
        """The open connection, or a new one; ``rw``: the file must be there, for an empty one would hide a loss."""
        if self._open is not None:
            return self._open
        connection = sqlite3.connect(
            f"{self._settings.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=min(self._settings.timeout_seconds, _LOCK_SECONDS),
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")  # readers do not block the writer, nor it them
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint = 4000")  # 16 MB; an epoch's end checkpoints as well
            connection.execute("PRAGMA cache_size = -65536")  # KiB: the leaves that rows still arrive in
        except BaseException:
            connection.close()
            raise
        self._open, self._file = connection, self._identity()
        return connection

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._settings.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

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
            assert self._open is not None
            select, insert = self._statements.label_statements[table]
            row = self._open.execute(select, labels).fetchone()
            known = row[0] if row else self._open.execute(insert, labels).lastrowid
            assert known is not None
            self._known[table, labels] = known
        return known


def _primary(error: Exception) -> int | None:
    """SQLite's primary result code: the low byte of the extended one; None for an error that is not its own."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


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
