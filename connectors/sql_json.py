"""Rows as JSON, one parameter of one statement, and back into the schema that they were written with."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa


class Encoder:
    """Rows of a schema as a JSON array of objects; msgspec makes null of NaN.

    Args:
        schema: of every batch.
    """

    def __init__(self, schema: pa.Schema) -> None:
        fields = [f"c{k}" for k in range(len(schema))]  # a column may bear a word of Python
        self._row = msgspec.defstruct(
            "Row", [(field, Any) for field in fields], rename=dict(zip(fields, schema.names, strict=True))
        )

    def rows(self, columns: Sequence[Iterable[Any]]) -> list[msgspec.Struct]:
        """The rows of a batch, from the values of its columns."""
        return list(map(self._row, *columns))

    def text(self, rows: Sequence[msgspec.Struct]) -> str:
        """All of them."""
        return msgspec.json.encode(rows).decode()


def values(column: pa.Array) -> Iterable[Any]:
    """A column as JSON has it; what is infinite is the text ``inf`` or ``-inf``, for msgspec would make null of it."""
    if pa.types.is_dictionary(column.type):
        words = [*column.dictionary.to_pylist(), None]
        return map(words.__getitem__, column.indices.fill_null(-1).to_numpy().tolist())
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.string())
    if column.null_count and pa.types.is_integer(column.type):
        return list(column.to_pylist())
    found = column.to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type) and np.isinf(found).any():
        return [str(value) if value in (np.inf, -np.inf) else value for value in found.tolist()]
    return list(found.tolist())


def table(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Rows that a database gave, times in UTC, in a schema."""
    columns: Iterable[Iterable[Any]] = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [_array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: list[Any], type_: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(type_):
        return pa.array(values, pa.string()).dictionary_encode()
    if pa.types.is_timestamp(type_):
        return pa.array(values, pa.timestamp("us")).cast(type_)
    return pa.array(values, type_)
