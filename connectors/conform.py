"""Foreign Parquet columns to the schema of a table: lenient about types, strict about meaning.

Accepted: columns in any order, extra ones, other widths of numbers, text in any Arrow form, lists in
any Arrow form, times of any resolution (naive ones are taken as UTC). What is missing becomes null
where the schema allows it, NaN, an empty list for temperatures, no quality bits, and for the lineage the
place in the file. Refused, with one line that names file and column: a required column that is
missing or holds nulls, and one whose type cannot mean what its name says.
"""

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voltmill.connectors.store import LakeError
from voltmill.kernels.schema import FLOATS, LABEL, TELEMETRY, TIME, label
from voltmill.kernels.session_table import KINDS


class Form(NamedTuple):
    """What foreign columns are made to fit."""

    schema: pa.Schema
    required: tuple[str, ...]
    """Columns that a file must have."""


TELEMETRY_FORM: Final = Form(TELEMETRY, ("device_id", "event_time", "current_ampere", "cell_voltage_volt"))


def check_columns(found: pa.Schema, file: str, form: Form = TELEMETRY_FORM) -> None:
    """Raise ``LakeError`` if a required column is missing from a file."""
    missing = [name for name in form.required if name not in found.names]
    if missing:
        there = ", ".join(found.names) or "no columns"
        raise LakeError(f"{file}: no column {', '.join(missing)}; there are: {there}")


def conform(batch: pa.RecordBatch, file: str, first_row: int, form: Form = TELEMETRY_FORM) -> pa.RecordBatch:
    """A batch of a file's rows in the schema of a table.

    Args:
        batch: some of the columns of the file, all that are required among them.
        file: path of the file in the lake; named in errors, and the partition of rows without one.
        first_row: number of the batch's first row in its file; the offset of rows without one.
        form: of the table.

    Raises:
        LakeError: a column that cannot be read as its name says.

    Example:
        >>> foreign = pa.record_batch({
        ...     "cell_voltage_volt": [[3.7, 3.71]], "current_ampere": pa.array([2], pa.int16()),
        ...     "device_id": ["a"], "event_time": pa.array([1_700_000_000], pa.timestamp("s")),
        ... })
        >>> row = conform(foreign, "x.parquet", 5).to_pylist()[0]
        >>> row["current_ampere"], row["source"], row["source_partition"], row["source_offset"]
        (2.0, 'lake', 'x.parquet', 5)
    """
    if batch.schema.equals(form.schema):
        return batch
    columns = []
    for field in form.schema:
        given = batch.column(field.name) if field.name in batch.schema.names else None
        try:
            columns.append(_column(field, given, batch.num_rows, file, first_row))
        except (pa.ArrowException, ValueError) as error:
            type_ = None if given is None else given.type
            reason = " ".join(str(error).split())
            raise LakeError(f"{file}: column {field.name} ({type_}) is not {field.type}: {reason}") from error
    return pa.RecordBatch.from_arrays(columns, schema=form.schema)


def _column(field: pa.Field, given: pa.Array | None, rows: int, file: str, first_row: int) -> pa.Array:
    if field.name in ("source", "source_partition"):
        return _label(given, "lake" if field.name == "source" else file, rows)
    if field.name == "source_offset":
        places = pa.array(np.arange(first_row, first_row + rows))
        return places if given is None else pc.coalesce(given.cast(pa.int64()), places)
    if given is None:
        return _missing(field, rows)
    if pa.types.is_floating(field.type) and not field.nullable:
        return _floats(given, field.type).fill_null(np.nan)
    if field.name == "quality_bits":
        return given.cast(field.type).fill_null(0)
    array = _cast(given, field.type)
    if array.null_count and not field.nullable:
        raise ValueError(f"row {first_row + array.is_null().index(True).as_py()} is null")
    return array


def _missing(field: pa.Field, rows: int) -> pa.Array:
    if field.type == FLOATS:
        return pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, np.int32)), pa.array([], pa.float32()), FLOATS)
    if field.name == "quality_bits":
        return pa.array(np.zeros(rows, np.uint32))
    if pa.types.is_floating(field.type) and not field.nullable:
        return pa.array(np.full(rows, np.nan, field.type.to_pandas_dtype()))
    return pa.nulls(rows, field.type)


def _cast(given: pa.Array, type_: pa.DataType) -> pa.Array:
    if type_ == TIME:
        return _times(given)
    if type_ == FLOATS:
        return _lists(given)
    if pa.types.is_floating(type_):
        return _floats(given, type_)
    if type_ == LABEL:
        return _kinds(given)
    if pa.types.is_string(type_) and not _is_text(given.type):
        raise ValueError("text is expected")
    return given.cast(type_)


def _floats(given: pa.Array, type_: pa.DataType) -> pa.Array:
    if not (pa.types.is_integer(given.type) or pa.types.is_floating(given.type) or pa.types.is_decimal(given.type)):
        raise ValueError("a number is expected")
    return given.cast(type_, safe=False)  # the nearest float is wanted, not an exact one


def _times(given: pa.Array) -> pa.Array:
    if not pa.types.is_timestamp(given.type):
        raise ValueError("a timestamp is expected, for a bare number does not say its unit")
    micros = given.cast(pa.timestamp("us", given.type.tz), safe=False)  # nanoseconds lose their digits
    return micros.view(pa.int64()).view(TIME)  # with a zone or without, Arrow counts from 1970 UTC


def _lists(given: pa.Array) -> pa.Array:
    """Lists of any kind as list<float32>: a null list is empty, a null reading is NaN."""
    if given.type == FLOATS and not given.null_count and not given.values.null_count:
        return given
    lengths = pc.list_value_length(given).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = _floats(given.flatten(), pa.float32()).fill_null(np.nan)
    return pa.ListArray.from_arrays(pa.array(offsets), values, FLOATS)


def _label(given: pa.Array | None, otherwise: str, rows: int) -> pa.Array:
    if given is None or given.null_count == rows:
        return label(otherwise, rows)
    if given.type == LABEL and not given.null_count:
        return given
    if not _is_text(given.type):
        raise ValueError("text is expected")
    return given.cast(pa.string()).fill_null(otherwise).dictionary_encode()


def _kinds(given: pa.Array) -> pa.Array:
    """The kinds of sessions: a word that is none would be asked of no model, and nobody would know why."""
    if not _is_text(given.type):
        raise ValueError("text is expected")
    kinds = given.cast(pa.string())
    for word in kinds.unique().drop_null().to_pylist():
        if word not in KINDS:
            raise ValueError(f"{word!r} is none of {', '.join(KINDS)}")
    return kinds.dictionary_encode()


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))
