"""What the databases of the chaos suite have in common; each has a file of its own."""

from collections.abc import Iterator
from typing import Any, Final, Protocol

import pyarrow as pa

from chaos.faults import Fault
from voltmill.kernels.schema import PREDICTION

#: Devices whose rows are refused while the trigger is there: one of each gateway.
REFUSED_DEVICES: Final = "%/pack-1/module-07"
#: What is asked for, in the order of ``table``.
COLUMNS: Final = ", ".join(f'"{name}"' for name in PREDICTION.names)
_FETCH: Final = 20_000


class Database(Protocol):
    """A database that takes the predictions."""

    name: str
    config: str
    """The ``[sql]`` table."""

    def faults(self) -> list[Fault]:
        """What can be done to it."""

    def newest(self) -> int:
        """Largest event time stored, µs; 0 if there is none or it cannot be asked."""

    def since(self, event_time_us: int) -> int:
        """Number of rows from this event time on."""

    def rows(self) -> pa.Table:
        """Every row, as ``table`` gives it."""

    def close(self) -> None:
        """Stop it."""


def table(cursor: Any) -> pa.Table:
    """What a query for ``COLUMNS`` gives: labels as text, times as integers."""
    schema = pa.schema([(field.name, _plain(field.type)) for field in PREDICTION])
    batches = []
    for rows in _fetched(cursor):
        columns = zip(*rows, strict=True)
        arrays = [pa.array(list(values), field.type) for values, field in zip(columns, schema, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


def _fetched(cursor: Any) -> Iterator[list[tuple[Any, ...]]]:
    while rows := cursor.fetchmany(_FETCH):
        yield rows


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return pa.string()
    return pa.int64() if pa.types.is_timestamp(kind) else kind
