"""How a table of the lake is laid out as a Parquet file: the encoding of each column, by its type.

Measured on one core with noisy telemetry of 16 cells and 4 temperatures, 131,072 rows a file: 0.33
µs a row to write, 0.17 µs to read, 42 bytes a row (57 if the readings fill all 24 bits of a
float32). zstd at level 3 was no smaller, below 1 larger and no faster; a dictionary for
``device_id`` gains 2 % of size at 1,000 devices and loses 2 % at 100,000.

A file of a store's bears its own facts in its metadata (``pyarrow.parquet.read_metadata(f).metadata``),
as text: keys and values are UTF-8, numbers decimal.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

#: Rows a reader can skip or hold at once.
ROW_GROUP_ROWS: Final = 65_536

#: Columns that queries cut by; statistics of the others only cost time and footer.
SEARCHED: Final = ("event_time", "ingest_time", "device_id")

#: The recovery store whose rows a file holds, the shard, the number of the file in it, and its rows.
STORE_KEY: Final = "voltmill.store"
SHARD_KEY: Final = "voltmill.shard"
SEQUENCE_KEY: Final = "voltmill.sequence"
ROWS_KEY: Final = "voltmill.rows"
#: Every file of the store and shard below this number is of durable epochs: no recovery removes it again.
SETTLED_KEY: Final = "voltmill.settled"
#: Of a merged file: rows and bytes of each file that it holds, from the first number to the last, as
#: JSON ``[[rows, bytes], …]``. By the rows a reader finds its place again, by the bytes cuts stay where they were.
PARTS_KEY: Final = "voltmill.parts"


def parquet_options(schema: pa.Schema, *, level: int) -> dict[str, Any]:
    """Arguments of ``pyarrow.parquet.ParquetWriter`` that suit the columns of ``schema``.

    Labels and bit sets repeat: a dictionary. Floats are noise in their low bytes: split into byte
    streams, so that zstd finds the still high bytes. Times and counters grow: differences. Text and
    payloads: plain. Level 0 is for readers that know nothing newer: Snappy, and no encoding but dictionary and plain.
    """
    repeated, encodings = [], {}
    for field in schema:
        item = field.type.value_type if pa.types.is_list(field.type) else field.type
        path = f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        if pa.types.is_dictionary(item) or pa.types.is_uint32(item):
            repeated.append(path)
        elif pa.types.is_floating(item):
            encodings[path] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(item) or pa.types.is_timestamp(item):
            encodings[path] = "DELTA_BINARY_PACKED"
    return {
        "compression": "zstd" if level else "snappy",
        "compression_level": level or None,
        "use_dictionary": repeated or False,
        "column_encoding": encodings if level and encodings else None,
        "write_statistics": [name for name in SEARCHED if name in schema.names],
        "store_schema": True,
    }


def encode(
    batches: Sequence[pa.RecordBatch], schema: pa.Schema, *, level: int, metadata: Mapping[str, str] | None = None
) -> pa.Buffer:
    """The batches, in order, as the bytes of one Parquet file; label columns may differ in their dictionaries.

    ``metadata`` is the file's own, beside the schema.
    """
    # One chunk a column first: a column writer pays for each chunk, 0.05 to 0.3 µs a row at 64 to 256 rows.
    table = pa.Table.from_batches(batches, schema).unify_dictionaries().combine_chunks()
    out = pa.BufferOutputStream()
    with pq.ParquetWriter(out, schema, **parquet_options(schema, level=level)) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        if metadata:
            writer.add_key_value_metadata(dict(metadata))
    return out.getvalue()
