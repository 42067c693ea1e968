"""Reading tables of the lake, each row once, while files are written, merged and removed meanwhile.

A read takes the files as it finds them at its start (``list_files``), in the
order of arrival. When one of them is gone because it was merged, the rest is listed anew, and the
read goes on at the very row in the file that holds it now: merged files say in their metadata how
many rows each of their parts has. What was added after the start is left out, in merged files too,
so that no shard is read further than another.

One thing can still be taken away from a reader: rows of an epoch that a crash undid. Their file is
removed when the flow starts again, and the rows come once more in later ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_files import Listing, Stream, parse
from voltmill.connectors.lake_range import EventRange, runs
from voltmill.connectors.parquet import PARTS_KEY, ROW_GROUP_ROWS
from voltmill.connectors.store import LakeError, Store

__all__ = [
    "FileGone",
    "NoFiles",
    "Walk",
    "list_files",
    "listed",
    "open_parquet",
    "parts_of",
    "read_batches",
    "read_table",
]

#: Gives the rows of an open file from one row to before another, each batch with the number of the row after it.
Read = Callable[[pq.ParquetFile, str, int, int], Iterator[tuple[int, pa.RecordBatch]]]

#: So often the files are listed, or a place is looked for, before it is taken for a fault.
_TRIES: Final = 20


class FileGone(LakeError):
    """A file went while it was wanted, and no other holds its rows."""


class NoFiles(LakeError):
    """A table without a file."""


@contextmanager
def open_parquet(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """A file of the lake, open for reading."""
    source = store.open(path)
    try:
        with pq.ParquetFile(source, pre_buffer=True) as file:
            yield file
    finally:
        if not isinstance(source, str):
            source.close()


def parts_of(metadata: Any, path: str) -> list[tuple[int, int]]:
    """Rows and bytes of each part of a merged file, from its first number to its last.

    Args:
        metadata: of the Parquet file (``pyarrow.parquet.FileMetaData``).
        path: of the file, for the error.

    Raises:
        LakeError: it has no parts, or not those that its name and its rows ask for.
    """
    file, text = parse(path), (metadata.metadata or {}).get(PARTS_KEY.encode(), b"")
    try:
        parts = msgspec.json.decode(text, type=list[tuple[int, int]])
    except msgspec.MsgspecError:
        parts = []
    if file is None or len(parts) != file.last - file.first + 1 or sum(rows for rows, _ in parts) != metadata.num_rows:
        raise LakeError(f"{path}: is named like a merged file, but its metadata does not say what it is made of")
    return parts


def listed(store: Store, table: str, upto: Mapping[Stream, int] | None = None) -> Listing:
    """The Parquet files of a table that count, none missed although some are being merged.

    A listing is no moment in time: one that runs while a merged file appears and the files it covers
    go may miss both. The next one sees the merged file, so it is listed until one holds all that the
    one before did. (To miss the same rows twice in a row takes two merges of them within two listings.)

    Raises:
        LakeError: the lake cannot be listed, or files overlap.
    """
    before = _listed_once(store, table, upto)
    for _ in range(_TRIES):
        now = _listed_once(store, table, upto)
        if now.covers(before):
            return now
        before = now
    raise LakeError(f"lake {store.url}: {table} changes faster than it can be listed")


def _listed_once(store: Store, table: str, upto: Mapping[Stream, int] | None) -> Listing:
    return Listing((path for path in store.find(table) if path.endswith(".parquet")), upto)


class Walk:
    """The rows of a table's files from a place on, in order of arrival.

    Args:
        store: the lake.
        table: folder below it.
        read: gives the rows of one file.
        file: path of the file to begin in, below the table; empty: the first one.
        row: number of the row to begin with in that file.
        ends: the last file of each stream that is read; None: the last ones that there are now.
        wanted: whether a file may hold wanted rows, by its path; the others are not opened.

    Attributes:
        file: path of the file, below the table, that holds the row that comes next.
        row: number of that row in it.
        ends: as given or found.

    Raises:
        LakeError: no file in the table, or none that holds the place.
    """

    def __init__(
        self,
        store: Store,
        table: str,
        read: Read,
        *,
        file: str = "",
        row: int = 0,
        ends: Mapping[Stream, int] | None = None,
        wanted: Callable[[str], bool] = lambda path: True,
    ) -> None:
        self._store, self._table, self._read, self._wanted = store, table, read, wanted
        self._listing = listed(store, table, ends)
        if not self._listing.paths:
            raise NoFiles(f"lake {store.url}: no Parquet file in {table}")
        self.ends = self._listing.ends() if ends is None else ends
        self.file, self.row = file, row
        self._opened, self._failures = "", 0
        self._batches: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        if file:
            self._holder()
            self._batches = self._rows()

    @property
    def done(self) -> int:
        """Files that are behind."""
        return self._listing.before(self.file)

    @property
    def total(self) -> int:
        """Files in all."""
        return len(self._listing.paths)

    def next(self) -> pa.RecordBatch | None:
        """The next batch, without rows where none were wanted; None when another file was begun instead.

        Raises:
            StopIteration: there are no more.
            FileGone: a file went, and no other holds its rows.
            LakeError: a file cannot be read.
        """
        try:
            found = next(self._batches, None)
        except Exception as error:
            self._go_on_after(error)
            return None
        if found is None:
            self._begin()
            return None
        self.row, batch = found
        self._failures = 0
        return batch

    def _begin(self) -> None:
        """Go on to the file after the current one."""
        index = self._listing.before(self.file) + (self.file in self._listing)
        while index < len(self._listing.paths) and not self._wanted(self._listing.paths[index]):
            index += 1
        if index == len(self._listing.paths):
            raise StopIteration
        self.file, self.row = self._listing.paths[index], 0
        self._batches = self._rows()

    def _rows(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows from the place on, in the file that holds them now; the place is told in its terms first."""
        self._opened = path = self._holder()
        with open_parquet(self._store, f"{self._table}/{path}") as opened:
            stop = opened.metadata.num_rows
            file, was = parse(path), parse(self.file)
            if file and was and file.merged:
                parts = [rows for rows, _ in parts_of(opened.metadata, path)]
                self.file, self.row = path, self.row + sum(parts[: was.first - file.first])
                stop = sum(parts[: self.ends[file.stream] + 1 - file.first])
            yield from self._read(opened, path, self.row, stop)

    def _holder(self) -> str:
        """Path of the file that holds the place."""
        file = parse(self.file)
        holder = file and self._listing.holder(file)
        if holder:
            return holder.path
        if self.file not in self._listing:
            raise FileGone(f"lake {self._store.url}: {self._table}/{self.file} was being read and is gone")
        return self.file

    def _go_on_after(self, error: Exception) -> None:
        """List anew and go on from the place, if what failed is that the file was merged meanwhile."""
        self._failures += 1
        self._listing = listed(self._store, self._table, self.ends)
        if self._holder() != self._opened and self._failures < _TRIES:
            self._batches = self._rows()
        elif isinstance(error, pa.ArrowException | OSError):
            why = " ".join(str(error).split())
            raise LakeError(f"{self._table}/{self._opened}: not readable as Parquet: {why}") from error
        else:
            raise error


def list_files(where: LakeSettings | str | Path, table: str) -> list[str]:
    """The files of a table that count, as the file system knows them, in order of arrival; for other readers.

    They may be merged, and so be gone, at any time after.
    """
    store = _store(where)
    return [store.path(f"{table}/{path}") for path in listed(store, table).paths]


def read_batches(
    where: LakeSettings | str | Path,
    table: str,
    columns: Sequence[str] | None = None,
    *,
    times: EventRange | None = None,
    batch_rows: int = ROW_GROUP_ROWS,
) -> Iterator[pa.RecordBatch]:
    """The rows of a table, each once, in order of arrival, as the files have them; those that are there at the call.

    Args:
        where: the lake: a folder, an fsspec URL, or settings with credentials.
        table: folder below it.
        columns: those wanted; a file that lacks one gives batches without it. None: all.
        times: row groups that hold no event time of it are left out; their other rows are not.
        batch_rows: rows of a batch at most, where they may be large.

    Raises:
        FileGone: a file went, and no other holds its rows.
        LakeError: there is no file, or one cannot be read.
    """

    def read(file: pq.ParquetFile, path: str, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        names = [name for name in file.schema_arrow.names if columns is None or name in columns]
        if not stop:  # a file without rows still says which columns there are
            yield 0, pa.RecordBatch.from_pylist([], pa.schema([file.schema_arrow.field(name) for name in names]))
        wanted = times or EventRange()
        for groups, after in runs(file.metadata, start, stop, lambda k: wanted.may_hold(file.metadata.row_group(k))):
            for batch in file.iter_batches(batch_rows, row_groups=groups, columns=names, use_threads=False):
                first, after = after, after + batch.num_rows
                if start < after and first < stop:
                    yield after, batch.slice(max(start - first, 0), min(stop, after) - max(start, first))

    return _batches(Walk(_store(where), table, read))


def _batches(walk: Walk) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            batch = walk.next()
        except StopIteration:
            return
        if batch is not None:
            yield batch


def read_table(
    where: LakeSettings | str | Path,
    table: str,
    columns: Sequence[str] | None = None,
    *,
    empty: pa.Schema | None = None,
) -> pa.Table:
    """All rows of a table as ``read_batches`` gives them; begun afresh when a file went that no other holds.

    Args:
        where: the lake: a folder, an fsspec URL, or settings with credentials.
        table: folder below it.
        columns: those wanted. None: all.
        empty: schema of the answer when there is no file; None: that is an error.

    Raises:
        LakeError: there is no file, one cannot be read, or they do not fit together.
    """
    for left in reversed(range(_TRIES)):
        try:
            return _joined(list(read_batches(where, table, columns)), table)
        except NoFiles:
            if empty is None:
                raise
            return empty.empty_table()
        except FileGone:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _joined(batches: list[pa.RecordBatch], table: str) -> pa.Table:
    try:
        tables = [pa.Table.from_batches([batch]) for batch in batches]
        return pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    except pa.ArrowException as error:
        raise LakeError(f"{table}: its files do not fit together: {' '.join(str(error).split())}") from error


def _store(where: LakeSettings | str | Path) -> Store:
    return (where if isinstance(where, LakeSettings) else LakeSettings(url=str(where))).open()
