"""PostgreSQL's SQL for a table, made from its Arrow schema.

Parameters are ``?`` (ODBC); values never become part of the text. Names are quoted, for one of them may be a
word of SQL (an alert has a ``limit``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from voltmill.connectors.sql_text import check_key, quoted

#: Name and type of each column of the table named by the parameter; no rows where there is none.
COLUMNS: Final = (
    "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute "
    "WHERE attrelid = to_regclass(?) AND attnum > 0 AND NOT attisdropped"
)
#: Sets a connection up; the parameter is the limit of a statement, ms. Where the server would not wait for its
#: disk, it does for us; where it waits for more than that, it goes on so.
SESSION: Final = (
    "SELECT set_config('statement_timeout', ?, false), set_config('TimeZone', 'UTC', false), "
    "CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', false) END"
)
#: For one transaction: the limit of a statement and that of waiting for a lock, ms.
MIGRATING: Final = "SELECT set_config('statement_timeout', ?, true), set_config('lock_timeout', ?, true)"


@dataclass(frozen=True)
class Statements:
    """The SQL of one table.

    Attributes:
        types: name and type of each column, as ``format_type`` gives it.
        upsert: stores rows, over older ones of the same keys; its parameter is a JSON array of objects.
        select: every row, ordered by key.
    """

    types: dict[str, str]
    upsert: str
    select: str

    @classmethod
    def of(cls, table: str, schema: pa.Schema, key: Sequence[str]) -> "Statements":
        """The statements for ``table``.

        Raises:
            ValueError: a column of a type that has no place here, or a key that is not in the schema.

        Example:
            >>> schema = pa.schema([("id", pa.string()), ("x", pa.float32())])
            >>> Statements.of("t", schema, ["id"]).types
            {'id': 'text', 'x': 'real'}
        """
        check_key(table, schema, key)
        types = {field.name: _type(field) for field in schema}
        return cls(
            types=types,
            upsert=_upsert(quoted(table), types, key),
            select=f"SELECT {_list(types)} FROM {quoted(table)} ORDER BY {_list(key)}",
        )


def _list(names: Sequence[str] | dict[str, str]) -> str:
    return ", ".join(map(quoted, names))


def _type(field: pa.Field) -> str:
    type_ = field.type
    if pa.types.is_dictionary(type_) or pa.types.is_string(type_):
        return "text"
    if pa.types.is_timestamp(type_):
        return "timestamp with time zone"
    if pa.types.is_floating(type_):
        return "real" if type_ == pa.float32() else "double precision"
    if pa.types.is_integer(type_) and type_ != pa.uint64():
        return "bigint" if type_ in (pa.int64(), pa.uint32()) else "integer"
    raise ValueError(f"column {field.name}: {type_} has no SQL type here")


def _collated(type_: str) -> str:
    return 'text COLLATE "C"' if type_ == "text" else type_


def _upsert(table: str, types: dict[str, str], key: Sequence[str]) -> str:
    columns, unique = _list(types), _list(key)
    typed = ", ".join(f"{quoted(name)} {_collated(type_)}" for name, type_ in types.items())
    updates = [f"{quoted(name)} = excluded.{quoted(name)}" for name in types if name not in key]
    return (
        f"INSERT INTO {table} ({columns}) SELECT DISTINCT ON ({unique}) {columns} "
        f"FROM ROWS FROM (json_to_recordset(?::json) AS ({typed})) WITH ORDINALITY "
        f"ORDER BY {unique}, ordinality DESC "  # of rows with one key the last
        f"ON CONFLICT ({unique}) DO {'UPDATE SET ' + ', '.join(updates) if updates else 'NOTHING'}"
    )
