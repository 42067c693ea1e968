"""Rows that a database refused, as dead letters."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pyarrow as pa

from voltmill.connectors.sql_writer import Refused
from voltmill.kernels.schema import DEAD_LETTER

REASON: Final = "refused_by_database"
STAGE: Final = "sql"
_DETAIL_CHARACTERS: Final = 1000


def dead_letters(refused: Sequence[Refused], table: str) -> pa.RecordBatch:
    """One ``DEAD_LETTER`` row a refused row: the row as JSON, the database's message, the row's lineage.

    Args:
        refused: the rows.
        table: the table that they were for: the source of rows without lineage.
    """
    return pa.RecordBatch.from_pylist([_letter(one, table) for one in refused], schema=DEAD_LETTER)


def _letter(refused: Refused, table: str) -> dict[str, Any]:
    row = {name: _value(column[0]) for name, column in zip(refused.row.schema.names, refused.row.columns, strict=True)}
    return {
        "payload": msgspec.json.encode(row),
        "reason": REASON,
        "detail": refused.message[:_DETAIL_CHARACTERS],
        "stage": STAGE,
        "topic": None,
        "ingest_time": refused.row.column("ingest_time")[0].as_py() if "ingest_time" in row else None,
        "source": row.get("source") or STAGE,
        "source_partition": row.get("source_partition") or table,
        "source_offset": row.get("source_offset") or 0,
    }


def _value(scalar: pa.Scalar) -> Any:
    """A value as JSON has it: times as ISO 8601 in UTC with microseconds; NaN becomes null."""
    if not pa.types.is_timestamp(scalar.type):
        return scalar.as_py()
    try:
        time: datetime | None = scalar.as_py()
    except (OverflowError, ValueError):  # outside of the years 1 to 9999
        return f"{scalar.value} us since 1970"
    return time and time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
