"""What the tests of the databases share: tables with little patience, what SQLite holds, rows in order."""

import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa

from voltmill.connectors.outage import Patience
from voltmill.connectors.sql import SqlSettings, SqlTable
from voltmill.connectors.sql_writer import Writer
from voltmill.kernels.schema import PREDICTION, PREDICTION_KEY


def at(folder: Path, **options: Any) -> SqlSettings:
    """A SQLite file in a folder."""
    return SqlSettings(url=f"sqlite:///{folder}/v.db", **options)


def table(where: SqlSettings, *, seconds: float = 0.001, **options: Any) -> SqlTable:
    """A table whose patience ends after ``seconds``."""
    return SqlTable(where, **{"patience": Patience("a database", seconds=seconds)} | options)


def writer(where: SqlSettings, **options: Any) -> Writer:
    """A writer into a table that is there."""
    made = table(where, **options)
    made.prepare()
    return made.writer()


def query(where: SqlSettings, text: str) -> list[tuple[Any, ...]]:
    """What SQLite answers."""
    connection = sqlite3.connect(where.path, isolation_level=None)
    try:
        return connection.execute(text).fetchall()
    finally:
        connection.close()


def by_key(*batches: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows of predictions in the order of their key."""
    rows: list[dict[str, Any]] = pa.Table.from_batches(batches, schema=PREDICTION).to_pylist()
    return sorted(rows, key=lambda row: tuple(row[name] for name in PREDICTION_KEY))
