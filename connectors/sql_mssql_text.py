"""T-SQL for a table that is there, from its Arrow schema and the types of its columns.

Types are the table's own: those of the rows that come as JSON are made to fit, so that the server seeks in the index
of the key and converts nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from voltmill.connectors.sql_text import check_key

#: Sets a connection up. A statement that fails undoes its transaction; the parameter is how long a lock is waited
#: for, ms: its own error (1222) comes before ours would cut the connection.
SESSION: Final = "SET XACT_ABORT ON; SET NOCOUNT ON; SET LOCK_TIMEOUT {};"


def columns_query(table: str) -> str:
    """Name, type, length in bytes, digits of a second and collation of each column; no rows where there is no table."""
    return (
        "SELECT name, TYPE_NAME(system_type_id) AS type_name, CAST(max_length AS int) AS max_length, "
        "CAST(scale AS int) AS scale, collation_name FROM sys.columns "
        f"WHERE object_id = OBJECT_ID(N'{qualified(table)}') ORDER BY column_id"
    )


@dataclass(frozen=True)
class Column:
    """A column of the table that is there.

    Attributes:
        type: its type as SQL writes it.
        length: of a text, in UTF-16 code units, or in bytes where it is not national; 0: it has no limit.
        plain: a text of one byte a letter.
        collation: of a text.
    """

    type: str
    length: int = 0
    plain: bool = False
    collation: str = ""

    @classmethod
    def of(cls, type_name: str, max_length: int, scale: int, collation: str | None) -> "Column":
        """From what ``columns_query`` says of it.

        Example:
            >>> Column.of("nvarchar", 400, 0, "Latin1_General_100_BIN2").type
            'nvarchar(200)'
        """
        if type_name.endswith("char"):
            wide = type_name.startswith("n")
            length = 0 if max_length == -1 else max_length // (2 if wide else 1)
            return cls(f"{type_name}({length or 'max'})", length, not wide, collation or "")
        return cls(f"{type_name}({scale})" if type_name in ("datetime2", "datetimeoffset") else type_name)

    @property
    def base(self) -> str:
        """The type without its size."""
        return self.type.partition("(")[0]


@dataclass(frozen=True)
class Statements:
    """The T-SQL of one table.

    Attributes:
        upsert: stores rows, over older ones of the same keys; its parameter is a JSON array of objects whose keys
            differ from each other. One statement, so a transaction by itself; the range of each key is held from the
            search to the insertion, so two writers of one key do not both insert it.
        select: every row, ordered by key.
    """

    upsert: str
    select: str

    @classmethod
    def of(cls, table: str, schema: pa.Schema, key: Sequence[str], columns: dict[str, Column]) -> "Statements":
        """The statements for ``table``."""
        names = schema.names
        typed = ", ".join(f"{bracketed(name)} {columns[name].type}" for name in names)
        same = " AND ".join(f"t.{bracketed(name)} = s.{bracketed(name)}" for name in key)
        updates = ", ".join(f"t.{bracketed(name)} = s.{bracketed(name)}" for name in names if name not in key)
        matched = f"WHEN MATCHED THEN UPDATE SET {updates} " if updates else ""
        return cls(
            upsert=(
                f"MERGE INTO {qualified(table)} WITH (HOLDLOCK) AS t "
                f"USING (SELECT {_list(names)} FROM OPENJSON(?) WITH ({typed})) AS s ON {same} {matched}"
                f"WHEN NOT MATCHED BY TARGET THEN INSERT ({_list(names)}) "
                f"VALUES ({', '.join(f's.{bracketed(name)}' for name in names)});"
            ),
            select=f"SELECT {_list(names)} FROM {qualified(table)} ORDER BY {_list(key)}",
        )


def check(table: str, schema: pa.Schema, key: Sequence[str]) -> None:
    """Make sure that a schema can be stored.

    Raises:
        ValueError: it cannot.
    """
    check_key(table, schema, key)
    for field in schema:
        types_for(field)


def types_for(field: pa.Field) -> tuple[str, ...]:
    """The types that a column of the table may have.

    Raises:
        ValueError: the field is of a type that has no place here.
    """
    type_ = field.type
    if pa.types.is_dictionary(type_) or pa.types.is_string(type_):
        return ("nvarchar", "varchar", "nchar", "char")
    if pa.types.is_timestamp(type_):
        return ("datetime2",)
    if pa.types.is_floating(type_):
        return ("real", "float") if type_ == pa.float32() else ("float",)
    if pa.types.is_integer(type_) and type_ != pa.uint64():
        return ("bigint",) if type_ in (pa.int64(), pa.uint32()) else ("int", "bigint")
    raise ValueError(f"column {field.name}: {type_} has no SQL type here")


def bracketed(name: str) -> str:
    """A name as T-SQL takes it, whatever word it is.

    Example:
        >>> bracketed("limit")
        '[limit]'
    """
    return f"[{name.replace(']', ']]')}]"


def qualified(table: str) -> str:
    """A table in the schema that ``deploy/sql/mssql`` makes it in, whatever schema the login begins in."""
    return f"[dbo].{bracketed(table)}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(bracketed, names))
