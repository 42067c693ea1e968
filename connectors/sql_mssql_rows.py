"""Rows for T-SQL: sorted by key, each key once, and nothing in them that their columns cannot hold.

``OPENJSON`` cuts or drops without a word what is too long, so a text of more characters than its column is refused
here, and so is what is infinite, which T-SQL has no number for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voltmill.connectors import sql_json
from voltmill.connectors.sql_mssql_text import Column


class Unfit(ValueError):
    """A row that a column of the table cannot hold."""


class Rows:
    """Makes the parameter of a MERGE.

    Args:
        schema: of every batch.
        key: the columns of the primary key.
    """

    def __init__(self, schema: pa.Schema, key: Sequence[str]) -> None:
        self._names, self._key = schema.names, tuple(key)
        self._encoder = sql_json.Encoder(schema)

    def text(self, batches: Sequence[pa.RecordBatch], columns: Mapping[str, Column]) -> str:
        """The rows as a JSON array of objects; of rows with one key the last.

        Args:
            batches: of the schema.
            columns: those of the table, by name.

        Raises:
            Unfit: one of the rows does not fit into them.
        """
        last: dict[tuple[Any, ...], Any] = {}
        for batch in batches:
            values = {name: _values(name, batch.column(name), columns[name]) for name in self._names}
            keys = zip(*(map(_compared, values[name]) for name in self._key), strict=True)
            last |= zip(keys, self._encoder.rows(list(values.values())), strict=True)
        nulls = any(batch.column(name).null_count for batch in batches for name in self._key)
        return self._encoder.text([last[key] for key in sorted(last, key=_order if nulls else None)])


def _values(name: str, column: pa.Array, about: Column) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us"))  # without a Z behind it, which only some forms of a time take
    elif pa.types.is_floating(column.type):
        if np.isinf(column.to_numpy(zero_copy_only=False)).any():
            raise Unfit(f"{name} is infinite, and no number of T-SQL is")
    elif not pa.types.is_integer(column.type):
        labels = pa.types.is_dictionary(column.type)
        # Of labels those of these rows alone: half of a batch still has the dictionary of the whole.
        _fits(name, column.dictionary.take(column.indices.unique().drop_null()) if labels else column, about)
    return list(sql_json.values(column))


def _fits(name: str, texts: pa.StringArray, about: Column) -> None:
    longest = pc.max(pc.binary_length(texts)).as_py() or 0  # bytes of UTF-8: never fewer than UTF-16 has units
    if about.plain and pc.all(pc.string_is_ascii(texts)).as_py() is False:
        raise Unfit(f"{name} holds what is not ASCII, and its column is {about.type}")
    if about.length and longest > about.length:
        units = max(len(text.encode("utf-16-le")) // 2 for text in texts.to_pylist() if text is not None)
        if units > about.length:
            raise Unfit(f"{name} has {units} characters, and its column is {about.type}")


def _compared(value: Any) -> Any:
    """As the server compares it: it takes no notice of spaces at the end of a text, whatever the collation."""
    return value.rstrip(" ") if isinstance(value, str) else value


def _order(key: tuple[Any, ...]) -> tuple[tuple[bool, Any], ...]:
    """Of keys one of whose parts may be null, which the server refuses."""
    return tuple((part is not None, part if part is not None else 0) for part in key)
