"""The SQL of a table with labels beside its rows, made from its Arrow schema.

Gives the statements that find or add a combination of labels, and upsert a row; ``deploy/sql/sqlite`` makes the
tables, and the views over them. Parameters are ``?`` (DB-API ``qmark``); values never become part of the text.
Names of columns are quoted, for one of them may be a word of SQL (an alert has a ``limit``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Statements:
    """The SQL of one table.

    Attributes:
        rows: name of the table of rows.
        columns: its columns, in the order of the parameters of ``upsert``.
        plain: those of them that are columns of the schema; references to labels come after.
        label_tables: name and columns of each table of labels.
        label_statements: for each of them, the queries for the id of a combination and to add one.
        upsert: what stores a row, over an older one of the same key.
    """

    rows: str
    columns: tuple[str, ...]
    plain: tuple[str, ...]
    label_tables: tuple[tuple[str, tuple[str, ...]], ...]
    label_statements: dict[str, tuple[str, str]]
    upsert: str

    @classmethod
    def of(cls, table: str, schema: pa.Schema, key: Sequence[str]) -> "Statements":
        """The statements for ``table``.

        Raises:
            ValueError: a column of a type that has no place here, or a key that is not in the schema.

        Example:
            >>> schema = pa.schema([("id", pa.string()), ("x", pa.float32())])
            >>> Statements.of("t", schema, ["id"]).upsert
            'INSERT INTO t_rows ("id", "x") VALUES (?, ?) ON CONFLICT ("id") DO UPDATE SET "x" = excluded."x"'
        """
        check_key(table, schema, key)
        if all(pa.types.is_dictionary(schema.field(name).type) for name in key):
            raise ValueError(f"table {table}: its key needs a column that is not a label")
        for field in schema:
            _check_type(field)
        labels = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        groups = _groups(table, labels, key)
        plain = tuple(name for name in schema.names if name not in labels)
        references = tuple(_reference(name, table) for name, _ in groups)
        unique = _unique(schema, key, labels, references, table)
        rows = f"{table}_rows"
        columns = plain + references
        return cls(
            rows=rows,
            columns=columns,
            plain=plain,
            label_tables=tuple(groups),
            label_statements={name: _label_statements(name, members) for name, members in groups},
            upsert=_upsert(rows, columns, unique),
        )


def check_key(table: str, schema: pa.Schema, key: Sequence[str]) -> None:
    """Make sure that a table has a plain name, and that the columns of its key are columns of the schema.

    Raises:
        ValueError: one is not.
    """
    if not table.isidentifier() or not table.isascii():
        raise ValueError(f"table {table!r} must be a plain name: letters, digits and _")
    if unknown := [name for name in key if name not in schema.names]:
        raise ValueError(f"table {table}: no column {', '.join(unknown)} for its key")


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever word it is.

    Example:
        >>> quoted("limit")
        '"limit"'
    """
    return '"' + name.replace('"', '""') + '"'


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names))


def _groups(table: str, labels: Sequence[str], key: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The tables of labels: those in the key apart, for the rest may change when a row is written again."""
    inside = tuple(name for name in labels if name in key)
    outside = tuple(name for name in labels if name not in key)
    pairs = [(f"{table}_key_labels", inside), (f"{table}_labels", outside)]
    return [(name, members) for name, members in pairs if members]


def _reference(label_table: str, table: str) -> str:
    return label_table.removeprefix(f"{table}_") + "_id"


def _unique(
    schema: pa.Schema, key: Sequence[str], labels: Sequence[str], references: Sequence[str], table: str
) -> list[str]:
    """The key of the rows: times first, as rows come in the order of time, then the rest."""
    plain = [name for name in key if name not in labels]
    ordered = sorted(plain, key=lambda name: not pa.types.is_timestamp(schema.field(name).type))
    return ordered + [name for name in references if name == "key_labels_id"]


def _label_statements(name: str, members: Sequence[str]) -> tuple[str, str]:
    same = " AND ".join(f"{quoted(member)} IS ?" for member in members)  # IS: a null equals a null
    places = ", ".join("?" * len(members))
    return (
        f"SELECT id FROM {name} WHERE {same}",
        f"INSERT INTO {name} ({_list(members)}) VALUES ({places})",
    )


def _upsert(rows: str, columns: Sequence[str], unique: Sequence[str]) -> str:
    updates = [f"{quoted(name)} = excluded.{quoted(name)}" for name in columns if name not in unique]
    action = f"UPDATE SET {', '.join(updates)}" if updates else "NOTHING"
    places = ", ".join("?" * len(columns))
    into = f"INSERT INTO {rows} ({_list(columns)}) VALUES ({places})"
    return f"{into} ON CONFLICT ({_list(unique)}) DO {action}"


def _check_type(field: pa.Field) -> None:
    """See that SQLite has a place for a column: text, a double, a signed integer of 64 bits."""
    type_ = field.type
    text = pa.types.is_dictionary(type_) or pa.types.is_string(type_)
    number = pa.types.is_floating(type_) or pa.types.is_timestamp(type_) or pa.types.is_integer(type_)
    if not (text or number) or type_ == pa.uint64():
        raise ValueError(f"column {field.name}: {type_} has no SQL type here")
