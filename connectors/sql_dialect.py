"""What a database must be able to do to take rows; each dialect is a file that does it.

No dialect knows Bytewax, waits for an outage, or decides what becomes of a row: ``sql_writer.py`` does.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

import pyarrow as pa


class SqlError(Exception):
    """The database cannot be written or read; one line that names it and the table, without a secret."""


class Failure(Enum):
    """What an error of a database means for the work that it stopped."""

    TRANSIENT = "transient"
    """It passes by itself: the same work is tried again, as long as it takes."""
    REFUSED = "refused"
    """A row is to blame: its neighbours can be stored."""
    FATAL = "fatal"
    """It holds for every row until somebody mends it, so no row is to blame and none is given up."""


class Database(Protocol):
    """One table of one database, through one connection that is opened when it is needed."""

    @property
    def place(self) -> str:
        """Database and table, as messages name them."""

    def check(self) -> None:
        """See that the table is there, has the columns of the schema, and takes rows from this login.

        Raises:
            SqlError: There is none, or one with other columns.
            Exception: One for ``classify``.
        """

    def upsert(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Store all rows in one transaction: all of them or none. Of rows with one key the last one stays.

        Raises:
            Exception: One for ``classify``.
        """

    def run(self, statements: Sequence[str]) -> None:
        """Run statements of the schema in one transaction: all of them or none.

        Makes the database where it is a file and there is none. An index over many rows takes its time: the limit is
        an hour, but a lock is not waited for longer than ``timeout_seconds``.

        Args:
            statements: Each a single one, without parameters.

        Raises:
            SqlError: There is no such database, and none can be made.
            Exception: One for ``classify``; nothing was changed.
        """

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query without parameters gives.

        Raises:
            Exception: One for ``classify``.
        """

    def durable(self) -> None:
        """Make what was stored safe from a loss of power.

        Raises:
            Exception: One for ``classify``.
        """

    def classify(self, error: Exception) -> Failure:
        """What an error means that one of the others raised."""

    def explain(self, error: Exception) -> str:
        """What the database said, on one line."""

    def mend(self, error: Exception) -> str:
        """What mends it, on one line; empty: that is not known, or it passes by itself."""

    def read(self) -> pa.Table:
        """Every row, ordered by key; closes the connection.

        Raises:
            SqlError: No such database or table.
        """

    def close(self) -> None:
        """Close the connection, also one that is broken; never raises. The next call opens a new one."""
