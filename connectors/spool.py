"""The spool: dead letters that were chosen to go through the graph again, as files in the lake.

    {url}/redrive/{number:010d}.parquet   one call of ``voltmill dead-letters redrive``: the letters, whole
    {url}/redrive/{number:010d}.json      which flow took the file, and how far its rows are durable

**What stands here is never offered again**, so a letter goes through once. Both kinds of file are made
by whoever is first to create them, and nobody else can: of two calls at the same time the second one
finds its number taken, and leaves out what the first one holds; of two flows on one lake, one takes
the file. A call only ever adds the number after the last, so files in name order are in the order they
came to be, whatever the clocks say. The files are the record of what was sent again: keep them.
"""

from collections.abc import Iterable
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from voltmill.connectors.parquet import parquet_options
from voltmill.connectors.store import LakeError, Store
from voltmill.kernels.schema import DEAD_LETTER, TIME

__all__ = ["FOLDER", "ROW_GROUP_ROWS", "SPOOLED", "Claim", "Spool", "SpoolError", "SpoolFile", "file_name"]

FOLDER: Final = "redrive"
#: Rows, and bytes in memory, that end a row group: what the source holds at once, and hands out as one batch.
ROW_GROUP_ROWS: Final = 2048
_ROW_GROUP_BYTES: Final = 8 << 20

#: A row of the spool: the letter without what was wrong with it, its id, and when it was chosen.
SPOOLED: Final = pa.schema(
    [
        pa.field("letter_id", pa.string(), nullable=False),
        pa.field("redriven_at", TIME, nullable=False),
        *(field for field in DEAD_LETTER if field.name != "detail"),
    ]
)


class SpoolError(LakeError):
    """A file that is named like one of the spool and is none; it will not become one by waiting."""


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a flow says of a file that it took."""

    store: str
    """Name of the flow's recovery store."""
    rows: int = 0
    """Rows of the file, from the first on, that are durable."""
    of: int
    """Rows of the file."""

    @property
    def done(self) -> bool:
        """Whether all of the file went through."""
        return self.rows >= self.of


def file_name(number: int) -> str:
    """Path of a spool file in the lake; the ``source_partition`` of its rows.

    Example:
        >>> file_name(3)
        'redrive/0000000003.parquet'
    """
    return f"{FOLDER}/{number:010d}.parquet"


class Spool:
    """The spool of one lake."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def numbers(self) -> tuple[list[int], set[int]]:
        """The numbers of the files, in order, and of those that a flow took. What else is there is no part of it."""
        names = self._store.find(FOLDER)  # of an object store fewer requests than the names in a folder
        return _numbers(names, ".parquet"), set(_numbers(names, ".json"))

    def open(self, number: int) -> pq.ParquetFile:
        """A file, to read it.

        Raises:
            SpoolError: It is no file of a spool.
        """
        try:
            file = pq.ParquetFile(self._store.open(file_name(number)), pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise SpoolError(f"{file_name(number)}: is no Parquet file: {' '.join(str(error).split())}") from error
        if not file.schema_arrow.equals(SPOOLED):
            file.close()
            raise SpoolError(f"{file_name(number)}: has other columns than a file of the spool")
        return file

    def add(self, data: pa.Buffer, number: int) -> bool:
        """Store a whole file under a number; False: the number is taken, and nothing is stored."""
        return self._store.create(file_name(number), data)

    def claim(self, number: int) -> Claim | None:
        """Who took a file; None: nobody did."""
        try:
            return msgspec.json.decode(self._store.read(_claim_name(number)), type=Claim)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise SpoolError(f"{_claim_name(number)}: does not say which flow took the file: {error}") from None

    def take(self, number: int, claim: Claim) -> bool:
        """Take a file; False: another flow, or this one before it was ended, was first."""
        return self._store.create(_claim_name(number), pa.py_buffer(msgspec.json.encode(claim)))

    def record(self, number: int, claim: Claim) -> None:
        """Say how far a file that was taken is durable."""
        self._store.write(_claim_name(number), pa.py_buffer(msgspec.json.encode(claim)))


class SpoolFile:
    """A file that is being made, in memory: as large as it will be, compressed, and one row group."""

    def __init__(self) -> None:
        self._out = pa.BufferOutputStream()
        options = parquet_options(SPOOLED, level=3)  # payloads are text, for which level 1 is weak
        self._writer = pq.ParquetWriter(self._out, SPOOLED, **options)
        self._rows: list[pa.RecordBatch] = []
        self._pending = self._pending_bytes = 0
        self.rows = 0

    @property
    def nbytes(self) -> int:
        """Bytes so far, but for those not compressed yet."""
        return int(self._out.tell())

    def add(self, rows: pa.RecordBatch) -> None:
        """Add rows of ``SPOOLED``."""
        step = min(256, max(1, _ROW_GROUP_BYTES // 8 * rows.num_rows // max(rows.nbytes, 1)))
        for begin in range(0, rows.num_rows, step):
            piece = rows.slice(begin, step)
            self._rows.append(piece)
            self.rows += piece.num_rows
            self._pending += piece.num_rows
            self._pending_bytes += piece.nbytes
            if self._pending >= ROW_GROUP_ROWS or self._pending_bytes >= _ROW_GROUP_BYTES:
                self._end_group()

    def finish(self) -> pa.Buffer:
        """The whole file."""
        self._end_group()
        self._writer.close()
        return self._out.getvalue()

    def _end_group(self) -> None:
        if self._rows:
            table = pa.Table.from_batches(self._rows, SPOOLED).unify_dictionaries().combine_chunks()
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._rows, self._pending, self._pending_bytes = [], 0, 0


def _numbers(names: Iterable[str], ending: str) -> list[int]:
    stems = (name.removesuffix(ending) for name in names if name.endswith(ending))
    return sorted(int(stem) for stem in stems if len(stem) == 10 and stem.isdecimal())


def _claim_name(number: int) -> str:
    return f"{FOLDER}/{number:010d}.json"
