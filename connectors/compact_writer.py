"""A merged file, made in memory from the files that it stands for: at any time one row group of theirs is held."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from voltmill.connectors.lake_files import LakeFile
from voltmill.connectors.lake_reader import open_parquet, parts_of
from voltmill.connectors.parquet import ROW_GROUP_ROWS, parquet_options
from voltmill.connectors.store import Store

#: Rows and bytes of each file of the sink that a file holds, as ``parquet.PARTS_KEY`` keeps them.
Parts = list[tuple[int, int]]

_BATCH_ROWS: Final = 16_384


class Joined(NamedTuple):
    """Files that were read into a merged one."""

    writer: "MergedWriter"
    parts: dict[LakeFile, Parts]
    """Of those in it, in order: all, or those before the first one with other columns."""


class MergedWriter:
    """Rows in, one Parquet file out; the row groups are full whatever sizes the rows come in."""

    def __init__(self, schema: pa.Schema, level: int) -> None:
        self._schema = schema
        self._out = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._out, schema, **parquet_options(schema, level=level))
        self._group: list[pa.RecordBatch] = []
        self._room = ROW_GROUP_ROWS

    def add(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        while batch.num_rows:
            part = batch.slice(0, self._room)
            batch = batch.slice(part.num_rows)
            self._group.append(part)
            self._room -= part.num_rows
            if not self._room:
                self._end_group()

    def finish(self, metadata: Mapping[str, str]) -> pa.Buffer:
        """The whole file."""
        self._end_group()
        self._writer.add_key_value_metadata(dict(metadata))
        self._writer.close()
        return self._out.getvalue()

    def _end_group(self) -> None:
        if self._group:
            table = pa.Table.from_batches(self._group, self._schema).unify_dictionaries().combine_chunks()
            self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._group, self._room = [], ROW_GROUP_ROWS


def join(store: Store, table: str, files: Sequence[LakeFile], sizes: Mapping[str, int], *, level: int) -> Joined:
    """Read files one after the other into a merged one, as far as their columns are the same.

    Args:
        store: the lake.
        table: folder below it that the paths of the files start from.
        files: in order.
        sizes: their bytes, by path.
        level: of zstd.

    Raises:
        FileNotFoundError: one is gone.
        LakeError: a merged one does not say what it is made of.
        pyarrow.ArrowException: one is no Parquet file.
    """
    with open_parquet(store, f"{table}/{files[0].path}") as first:
        schema = first.schema_arrow
    made = Joined(MergedWriter(schema, level), {})
    for file in files:
        with open_parquet(store, f"{table}/{file.path}") as opened:
            if not opened.schema_arrow.equals(schema):
                break
            for batch in opened.iter_batches(_BATCH_ROWS, use_threads=False):
                made.writer.add(batch)
            made.parts[file] = parts(opened.metadata, file, sizes[file.path])
    return made


def parts(metadata: Any, file: LakeFile, size: int) -> Parts:
    """The parts of a file, merged or not, by its metadata (of ``pyarrow.parquet``) and its bytes."""
    return parts_of(metadata, file.path) if file.merged else [(metadata.num_rows, size)]
