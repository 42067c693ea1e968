"""What the tests of the databases share: tables with little patience, what SQLite holds, rows in order."""

import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
from servers import PostgreSQL, find_psqlodbc

from voltmill.connectors import sql_odbc
from voltmill.connectors.outage import Patience
from voltmill.connectors.sql import SqlSettings, SqlTable
from voltmill.connectors.sql_postgresql import PostgresqlDatabase
from voltmill.connectors.sql_writer import Writer
from voltmill.kernels.schema import PREDICTION, PREDICTION_KEY


def at(folder: Path, **options: Any) -> SqlSettings:
    """A SQLite file in a folder."""
    return SqlSettings(url=f"sqlite:///{folder}/v.db", **options)


def on(server: PostgreSQL, **options: Any) -> SqlSettings:
    """A server's database, emptied: a new one would be 7 MB each time."""
    server.query("DROP SCHEMA IF EXISTS public CASCADE")
    server.query("CREATE SCHEMA public")
    server.query("GRANT USAGE ON SCHEMA public TO public")
    server.query("ALTER DATABASE postgres RESET ALL")
    return SqlSettings(url=server.url(), driver=str(find_psqlodbc()), **options)


def table(where: SqlSettings, *, seconds: float = 0.001, **options: Any) -> SqlTable:
    """A table whose patience ends after ``seconds``."""
    return SqlTable(where, **{"patience": Patience("a database", seconds=seconds)} | options)


def writer(where: SqlSettings, **options: Any) -> Writer:
    """A writer into a table that is there."""
    made = table(where, **options)
    made.prepare()
    return made.writer()


def query(where: SqlSettings, text: str) -> list[tuple[Any, ...]]:
    """What the database answers."""
    connection = connect(where)
    try:
        cursor = connection.execute(text)
        return list(map(tuple, cursor.fetchall())) if cursor.description else []
    finally:
        connection.close()


def connect(where: SqlSettings) -> Any:
    """A connection of a test's own."""
    if not is_postgresql(where):
        return sqlite3.connect(where.path, isolation_level=None, check_same_thread=False)
    text = PostgresqlDatabase(where, "predictions", PREDICTION, PREDICTION_KEY)._connection_string([])
    return sql_odbc.pyodbc(where.place).connect(text, autocommit=True)


def locked(where: SqlSettings) -> Any:
    """A connection that keeps others from writing until it is closed."""
    connection = connect(where)
    connection.execute("BEGIN" if is_postgresql(where) else "BEGIN IMMEDIATE")
    if is_postgresql(where):
        connection.execute("LOCK TABLE predictions")
    return connection


def is_postgresql(where: SqlSettings) -> bool:
    return where.url.startswith("postgresql")


def rows_of(where: SqlSettings) -> str:
    """The table that holds the rows."""
    return "predictions" if is_postgresql(where) else "predictions_rows"


def reject(where: SqlSettings, condition: str, *, state: str = "P0001") -> None:
    """A trigger that refuses the rows of a condition, in PostgreSQL with any error."""
    if is_postgresql(where):
        query(
            where,
            "CREATE OR REPLACE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"RAISE EXCEPTION SQLSTATE '{state}' USING MESSAGE = E'no room\\nfor it'; END $$",
        )
        run = "EXECUTE FUNCTION reject()"
        condition = f"({condition})"
    else:
        run = "BEGIN SELECT RAISE(ABORT, 'no room for it'); END"
    each = "FOR EACH ROW " if is_postgresql(where) else ""
    query(where, f"CREATE TRIGGER reject BEFORE INSERT ON {rows_of(where)} {each}WHEN {condition} {run}")


def by_key(*batches: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows of predictions in the order of their key."""
    rows: list[dict[str, Any]] = pa.Table.from_batches(batches, schema=PREDICTION).to_pylist()
    return sorted(rows, key=lambda row: tuple(row[name] for name in PREDICTION_KEY))
