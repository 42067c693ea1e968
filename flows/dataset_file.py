"""A training table on its way into a Parquet file, row group by row group, with a digest of its data.

The digest depends on names, types and values, in their order, and on nothing else: not on how the rows were cut
into batches or encoded. So it names the data of a model (``training_data_sha256`` in its contract) for good.
"""

import hashlib
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voltmill.connectors.parquet import ROW_GROUP_ROWS

#: Key of the facts in the metadata of the file.
METADATA_KEY: Final = "voltmill.dataset"


class DatasetFile:
    """Writes rows of one schema; the file stands under its name only when it is whole.

    Args:
        path: The file.
        schema: Of the rows.

    Attributes:
        rows: how many were written.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._partial = path.with_name(f".{path.name}.partial")
        self._writer = pq.ParquetWriter(str(self._partial), schema, compression="zstd")
        self._digests = [ColumnDigest(field) for field in schema]
        self._buffer: list[pa.RecordBatch] = []
        self._buffered = self.rows = 0

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Without `finish` nothing stays."""
        self._writer.close()
        self._partial.unlink(missing_ok=True)

    def write(self, rows: pa.RecordBatch) -> None:
        """Add rows."""
        for column, digest in zip(rows.columns, self._digests, strict=True):
            digest.add(column)
        self._buffer.append(rows)
        self._buffered += len(rows)
        self.rows += len(rows)
        if self._buffered >= ROW_GROUP_ROWS:
            self._flush()

    def sha256(self) -> str:
        """The digest of what was written, hexadecimal."""
        whole = hashlib.sha256()
        for digest in self._digests:
            whole.update(digest.digest())
        return whole.hexdigest()

    def finish(self, facts: bytes) -> None:
        """Write the rest and the facts, and put the file in its place."""
        self._flush()
        self._writer.add_key_value_metadata({METADATA_KEY: facts.decode()})
        self._writer.close()
        self._partial.replace(self._path)

    def _flush(self) -> None:
        if self._buffer:
            table = pa.Table.from_batches(self._buffer, self._schema).unify_dictionaries().combine_chunks()
            self._writer.write_table(table)
            self._buffer, self._buffered = [], 0


class ColumnDigest:
    """The digest of a column that comes in pieces, however it is cut."""

    def __init__(self, field: pa.Field) -> None:
        type_ = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        self._head = f"{field.name}\0{type_}\0".encode()
        self._validity, self._lengths, self._values = (hashlib.sha256() for _ in range(3))

    def add(self, column: Any) -> None:
        """Take a piece in."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        self._validity.update(column.is_valid().to_numpy(zero_copy_only=False).tobytes())
        column = column.drop_null()
        if pa.types.is_list(column.type):
            self._lengths.update(column.value_lengths().to_numpy().astype(np.int32).tobytes())
            column = column.flatten().fill_null(np.nan)
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            values = [v.encode() if isinstance(v, str) else v for v in column.to_pylist()]
            self._lengths.update(np.array([len(v) for v in values], np.int64).tobytes())
            self._values.update(b"".join(values))
            return
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        self._values.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).tobytes())

    def digest(self) -> bytes:
        """Of name, type and all that was taken in."""
        parts = (self._head, self._validity.digest(), self._lengths.digest(), self._values.digest())
        return hashlib.sha256(b"".join(parts)).digest()
