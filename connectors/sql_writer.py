"""Storing rows through every fault of a database: waits while it is away, sets aside what it refuses.

A call is one transaction, or one every 10,000 rows. An error that passes rolls all of it back, and all of it
is tried again. If the database refuses a row, the rows are halved until that row is alone: k refused rows of
n cost about 2 k log2(n) transactions, and every other row is stored. Anything else ends the flow: nothing was
acknowledged, so nothing is lost.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from voltmill.connectors.outage import Patience
from voltmill.connectors.sql_dialect import Database, Failure, SqlError

#: What waits at a worker that stood still may be much: a transaction must end within its time limit on a slow
#: server, too, and be undone and done again at no great cost.
MOST_ROWS: Final = 10_000


@dataclass(frozen=True)
class Refused:
    """A row that the database does not take.

    Attributes:
        row: a batch of this one row.
        message: what the database said, on one line.
    """

    row: pa.RecordBatch
    message: str


class Writer:
    """Stores batches in one table, through one connection.

    Args:
        database: where.
        patience: waits while it is away.
        observe: called with the seconds each call took, waiting included.
        on_written: called with each batch, or part of one, once it is committed.
    """

    def __init__(
        self,
        database: Database,
        patience: Patience,
        observe: Callable[[float], None] = lambda seconds: None,
        on_written: Callable[[pa.RecordBatch], None] = lambda batch: None,
    ) -> None:
        self._database = database
        self._patience = patience
        self._observe = observe
        self._on_written = on_written

    def write(self, batches: Sequence[pa.RecordBatch]) -> list[Refused]:
        """Store the rows, over older ones of the same keys; returns those that the database does not take.

        Raises:
            SqlError: nothing can be stored, or the database was away for too long.
        """
        began = time.perf_counter()
        refused: list[Refused] = []
        for group in _groups(batches):
            self._store(group, refused)
        self._observe(time.perf_counter() - began)
        return refused

    def durable(self) -> None:
        """Make what was written safe from a loss of power.

        Raises:
            SqlError: that cannot be done, or the database was away for too long.
        """
        self.surely(self._database.durable)

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        self._database.close()

    def _store(self, batches: Sequence[pa.RecordBatch], refused: list[Refused]) -> None:
        message = self._patiently(lambda: self._database.upsert(batches))
        if message is None:
            for batch in batches:
                self._on_written(batch)
        elif len(batches) == 1 and batches[0].num_rows == 1:
            refused.append(Refused(batches[0], message))
        else:  # in order, so that of rows with one key the last still stays
            for half in _halves(batches):
                self._store(half, refused)

    def surely(self, work: Callable[[], None]) -> None:
        """Do what no row has a part in, such as a change of the schema, whatever passes.

        Args:
            work: uses the database; done again, from its beginning, after an error that passes.

        Raises:
            SqlError: it cannot be done, or the database was away for too long.
        """
        if message := self._patiently(work):
            raise SqlError(f"{self._database.place}: {message}")

    def _patiently(self, work: Callable[[], None]) -> str | None:
        """Do it, whatever passes; None, or what the database said when it refused a row."""
        try:
            return self._patience.call(lambda: self._attempt(work), self._passes)
        except SqlError:
            raise
        except Exception as error:
            raise SqlError(f"{self._database.place}: {self._told(error)}") from error

    def _told(self, error: Exception) -> str:
        text, mend = self._database.explain(error), self._database.mend(error)
        return f"{text}; {mend}" if mend else text

    def _attempt(self, work: Callable[[], None]) -> str | None:
        try:
            work()
        except Exception as error:
            if isinstance(error, SqlError):
                raise
            failure = self._database.classify(error)
            if failure is Failure.REFUSED:
                return self._database.explain(error)
            if failure is Failure.TRANSIENT:
                self._database.close()  # whatever state the connection is in: the next attempt has a new one
            raise
        return None

    def _passes(self, error: Exception) -> bool:
        return not isinstance(error, SqlError) and self._database.classify(error) is Failure.TRANSIENT


def _groups(batches: Sequence[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """The rows in transactions of at most ``MOST_ROWS``, in order."""
    group: list[pa.RecordBatch] = []
    room = MOST_ROWS
    for batch in batches:
        for first in range(0, batch.num_rows, MOST_ROWS):
            piece = batch.slice(first, MOST_ROWS)
            if piece.num_rows > room:
                yield group
                group, room = [], MOST_ROWS
            group.append(piece)
            room -= piece.num_rows
    if group:
        yield group


def _halves(batches: Sequence[pa.RecordBatch]) -> tuple[Sequence[pa.RecordBatch], Sequence[pa.RecordBatch]]:
    """Two or more rows in two parts."""
    if len(batches) > 1:
        middle = len(batches) // 2
        return batches[:middle], batches[middle:]
    (batch,) = batches
    middle = batch.num_rows // 2
    return [batch.slice(0, middle)], [batch.slice(middle)]
