"""The data lake as a sink: tables of Parquet files in a folder or an object store.

    {url}/{table}/date=YYYY-MM-DD/shard=NN/{store}-{sequence}.parquet

Takes keyed record batches of one schema, the key being the shard; keeps, per shard, rows until they
are worth a file. **Each row is in the lake exactly once at rest**, wherever the process is killed:

- Rows not yet in a file are part of the snapshot, so an epoch is durable with every row of it either
  in a file or in the recovery store.
- A file is numbered by its shard's sequence, which is part of the snapshot too. After a crash the
  files at or past the resumed number hold rows of epochs that were lost and will come again; they are
  removed before anything is written. So the files may be cut differently the second time. (Where the
  store holds no state at all they are set aside, not removed: it may be the store that was lost.)
- ``store`` names the recovery store the rows were taken in with. A fresh store begins its sequences
  anew and, named otherwise, never overwrites or removes the archive of an older one.

``date`` is the day of *arrival* (UTC, of ``ingest_time``), not of measurement, and never steps back
within a shard. With store names that sort by age, the files of a shard in name order are then in
arrival order, which is what makes a replay of the archive repeat the live results; and a device that
comes back after a month with its stored samples adds to today's files, not to thirty old folders.
A table without ``ingest_time``, or with nulls only, is dated by its event time.

One limit of the layout: two stores with *different shard counts* on the same day put a device's rows
into two shards, and name order goes by shard first.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from voltmill.connectors.lake_files import LakeFile, parse
from voltmill.connectors.outage import Patience
from voltmill.connectors.parquet import ROWS_KEY, SEQUENCE_KEY, SETTLED_KEY, SHARD_KEY, STORE_KEY, encode
from voltmill.connectors.store import LakeError, Store

__all__ = ["LakeError", "LakeSettings", "LakeSink"]

#: ("v1", sequence of the next file, date of the last one, when the first buffered row came, Arrow IPC streams)
State = tuple[str, int, str, float, tuple[bytes, ...]]

#: Beside the tables: files of a store that begins anew under its old name.
ASIDE: Final = "_set_aside"

#: What dates a file, the first of these that the table has a value in.
TIME_COLUMNS: Final = ("ingest_time", "event_time", "opened_at")

log = logging.getLogger("voltmill.lake")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MEASURE_EVERY: Final = 16
_NUMBERED: Final = re.compile(r"-\d{10}$")


class LakeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[lake]`` table: where the lake is and when a file is written.

    Whichever limit is reached first ends a file. The age is looked at when rows come and at the end
    of an epoch in which some came; rows of a shard that falls silent wait, safe in the recovery
    store, for its next row, an empty batch sent to it, or the end of the flow.
    """

    url: str = "voltmill-data/lake"
    """A folder, or any fsspec URL such as ``abfs://container/lake``."""
    storage_options: dict[str, Any] = {}
    """Arguments of the fsspec file system: account, credentials. Write secrets as ``${VAR}``."""
    max_file_rows: int = 131_072
    """Rows that end a file: 6 MB of telemetry with 16 cells."""
    max_file_bytes: int = 64 << 20
    """Bytes in memory (Arrow, not Parquet) that end a file; bounds memory when native payloads are kept."""
    max_file_age_seconds: float = 60.0
    """Age of the oldest row that ends a file, s; how far the lake may lag behind."""
    max_snapshot_bytes: int = 2 << 20
    """Bytes in memory above which an epoch's end writes a file, rather than storing the rows in the
    snapshot once more: 10,000 rows of telemetry, where the one costs as much as the other."""
    compression_level: int = 1
    """Level of zstd; higher ones gain nothing on noisy readings."""
    outage_seconds: float = 0.0
    """How long a live flow waits for a lake that is away, s; 0: as long as it takes. It reads nothing meanwhile."""
    attempt_seconds: float = 10.0
    """How long one request to an object store may take, s, and a second more for each MiB it carries."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not self.url:
            raise ValueError("url is empty: name a folder or an fsspec URL")
        for name in ("max_file_rows", "max_file_bytes", "max_file_age_seconds", "attempt_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
        if self.outage_seconds < 0:
            raise ValueError("outage_seconds must be at least 0 (0: as long as it takes)")
        if self.max_snapshot_bytes < 0:
            raise ValueError("max_snapshot_bytes must be at least 0 (0: write a file each epoch)")
        if not 1 <= self.compression_level <= 22:
            raise ValueError("compression_level is that of zstd, 1 to 22")

    def __repr__(self) -> str:
        """Everything but the values of ``storage_options``, which hold credentials."""
        return f"LakeSettings(url={self.url!r}, storage_options={sorted(self.storage_options)})"

    def open(self, patience: Patience | None = None) -> Store:
        """The lake's files; ``patience`` says how long an absent lake is waited for, by default some seconds."""
        return Store(self.url, self.storage_options, patience=patience, attempt_seconds=self.attempt_seconds)


class LakeSink(FixedPartitionedSink[pa.RecordBatch, State]):
    """Writes keyed record batches into one table of the lake, one Bytewax partition a shard.

    Guarantee: effectively once, see the module. With a store that may change under the same files
    (none named, ``store`` reused after the recovery folder was deleted) there is none: name it anew.

    Args:
        settings: where and when.
        table: name of the table, the first folder below the lake's.
        schema: of every batch; nothing is cast.
        shards: labels of all shards, such as ``("00", "01")``; the keys of the items.
        store: name of the recovery store, in which later ones sort last: ``20261122T103000Z-3fa2``.
        patience: how an absent lake is waited for, here and at the start; None: some seconds.
        existing: whether the lake must be there, for the store has rows in it: then it is waited for, and
            never made anew beside the one that is away.
        observe: called with the seconds each batch and each snapshot took, the writing of files included.
        on_written: called with each batch, in order, once it is in a file; after a restart also with
            those the snapshot had kept.
        now: seconds since 1970; for tests.

    Raises:
        ValueError: a name that cannot be part of a file's.
    """

    def __init__(
        self,
        settings: LakeSettings,
        *,
        table: str,
        schema: pa.Schema,
        shards: Sequence[str],
        store: str,
        patience: Patience | None = None,
        existing: bool = False,
        observe: Callable[[float], None] = lambda seconds: None,
        on_written: Callable[[pa.RecordBatch], None] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        for name in (table, store, *shards):
            if not name or name.startswith((".", "_")) or set(name) & set("/\\*?[]= "):
                raise ValueError(f"{name!r} cannot be part of a file name in the lake")
        if _NUMBERED.search(store):
            raise ValueError(f"{store!r} ends like the number of a file, so it cannot name a store")
        self.settings = settings
        self.table = table
        self.schema = schema
        self.shards = sorted(shards)  # Bytewax counts partitions in the order of their names
        self.store = store
        self.patience = patience
        self.existing = existing
        self.observe = observe
        self.on_written = on_written
        self.now = now

    def list_parts(self) -> list[str]:
        """The shards; every worker may write any."""
        return list(self.shards)

    def part_fn(self, item_key: str) -> int:
        """Index of the shard that the key names."""
        try:
            return self.shards.index(item_key)
        except ValueError:
            raise LakeError(f"lake table {self.table}: key {item_key!r} is none of its shards") from None

    def build_part(self, step_id: str, for_part: str, resume_state: State | None) -> "LakePartition":
        """The writer of a shard, with the files of lost epochs removed."""
        return LakePartition(self, for_part, resume_state)


class LakePartition(StatefulSinkPartition[pa.RecordBatch, State]):
    """The rows of one shard on their way into files.

    Rows that a snapshot kept are written at once when it is resumed. When the flow had ended in
    good order, ``close`` has already written them, to a file of the same number: that file is
    replaced by its equal, and readers never miss a row.
    """

    def __init__(self, sink: LakeSink, shard: str, state: State | None) -> None:
        self._sink = sink
        self._settings = sink.settings
        self._files = sink.settings.open(sink.patience)
        self._shard = shard
        self._sequence, self._date, self._since, kept = _checked(state, sink.table, shard)
        self._settled = self._last_snapshot = self._sequence
        self._buffer: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._serialized: list[bytes] = []
        self._serialized_batches = 0
        self._row_bytes, self._total_measured, self._countdown = 0.0, 0, 0
        for stream in kept:
            for batch in pa.ipc.open_stream(stream):
                self._add(batch)
        if not sink.existing:
            self._files.make()
        own = self._path() if self._rows else None
        self._remove_orphans(keep=own, first=state is None)
        self._flush()

    def write_batch(self, values: list[pa.RecordBatch]) -> None:
        """Buffer the batches; write a file where a limit is reached. An empty batch only has the age looked at."""
        for batch in values:
            began = time.perf_counter()
            self._add(batch)
            if self._full() or self._aged():
                self._flush()
            self._sink.observe(time.perf_counter() - began)

    def snapshot(self) -> State:
        """Where the shard stands; rows not yet in a file are part of it, each serialised once."""
        began = time.perf_counter()
        if self._bytes > self._settings.max_snapshot_bytes or self._aged():
            self._flush()
        if fresh := self._buffer[self._serialized_batches :]:
            self._serialized.append(_stream(fresh, self._sink.schema))
            self._serialized_batches = len(self._buffer)
        self._settled, self._last_snapshot = self._last_snapshot, self._sequence
        self._sink.observe(time.perf_counter() - began)
        return ("v1", self._sequence, self._date, self._since, tuple(self._serialized))

    def close(self) -> None:
        """At the end of the stream: write what is buffered, so that the lake is whole for readers."""
        self._flush()

    def _add(self, batch: pa.RecordBatch) -> None:
        if not batch.schema.equals(self._sink.schema):
            raise LakeError(f"lake table {self._sink.table}: {_difference(batch.schema, self._sink.schema)}")
        if not batch.num_rows:
            return
        if not self._rows:
            self._since = self._since or self._sink.now()
        self._buffer.append(batch)
        self._rows += batch.num_rows
        self._bytes += self._size(batch)

    def _size(self, batch: pa.RecordBatch) -> int:
        """About the bytes of the rows. Exact for a slice is 30 µs, so it is done now and then and when batches grow."""
        total = batch.get_total_buffer_size()
        if not self._countdown or total > 2 * self._total_measured:
            self._row_bytes, self._total_measured = batch.nbytes / batch.num_rows, total
            self._countdown = _MEASURE_EVERY
        self._countdown -= 1
        return int(self._row_bytes * batch.num_rows)

    def _full(self) -> bool:
        return self._rows >= self._settings.max_file_rows or self._bytes >= self._settings.max_file_bytes

    def _aged(self) -> bool:
        return self._rows > 0 and self._sink.now() - self._since >= self._settings.max_file_age_seconds

    def _flush(self) -> None:
        """Write what is buffered as the next file."""
        if not self._rows:
            return
        path = self._path()
        level = self._settings.compression_level
        data = encode(self._buffer, self._sink.schema, level=level, metadata=self._facts())
        self._files.write(path, data)
        self._date = _date_of(path)
        written, self._buffer = self._buffer, []
        self._sequence += 1
        self._rows = self._bytes = self._serialized_batches = 0
        self._since = 0.0
        self._serialized = []
        if self._sink.on_written is not None:
            for batch in written:
                self._sink.on_written(batch)

    def _facts(self) -> dict[str, str]:
        facts = {STORE_KEY: self._sink.store, SHARD_KEY: self._shard}
        numbers = {SEQUENCE_KEY: self._sequence, ROWS_KEY: self._rows, SETTLED_KEY: self._settled}
        return facts | {key: str(number) for key, number in numbers.items()}

    def _path(self) -> str:
        date = max(self._date, _arrival_date(self._buffer) or self._today_at_least())
        name = f"{self._sink.store}-{self._sequence:010d}.parquet"
        return f"{self._sink.table}/date={date}/shard={self._shard}/{name}"

    def _today_at_least(self) -> str:
        """For rows without any time: where the last file is, else the wall clock's day."""
        return self._date or (_EPOCH + timedelta(seconds=self._sink.now())).date().isoformat()

    def _remove_orphans(self, keep: str | None, *, first: bool) -> None:
        """Remove the files of this store and shard at or past the sequence; none of them can be dated earlier.

        On the first start of a store only its first epochs can have left any. Should the recovery store have
        been lost while its name was kept, it is the whole archive: so nothing is deleted then, but set aside.
        """
        orphans = [file for file in self._written() if file.last >= self._sequence]
        if first:
            aside = f"{ASIDE}/{self._sink.now():.6f}"
            for file in orphans:
                log.warning("lake file set aside", extra={"file": file.path, "into": aside})
                self._files.move(file.path, f"{aside}/{file.path}")
            return
        for file in orphans:
            self._check_orphan(file)
        for file in orphans:
            if file.path != keep:
                self._files.remove(file.path)

    def _written(self) -> list[LakeFile]:
        """The files of this store and shard from the last date on, merged ones too.

        What a killed write left half is removed on the way; a half merged file is the compaction's.
        """
        found = []
        for day in self._files.names(self._sink.table):
            if not day.startswith("date=") or day < f"date={self._date}":
                continue
            folder = f"{self._sink.table}/{day}/shard={self._shard}"
            for name in self._files.names(folder):
                file = parse(f"{folder}/{name.removeprefix('.').removesuffix('.tmp')}")
                if file is None or file.stream.store != self._sink.store:
                    continue
                if file.path == f"{folder}/{name}":
                    found.append(file)
                elif not file.merged:
                    self._files.remove(f"{folder}/{name}")
        return found

    def _check_orphan(self, file: LakeFile) -> None:
        """Refuse to remove rows that were durable once.

        An orphan's epoch never was, so nothing that it says is settled can lie past the sequence that is
        resumed; and what was merged was settled.
        """
        if file.merged or self._settled_by(file.path) > self._sequence:
            raise LakeError(
                f"lake {self._files.url}: {file.path} is of a later state of recovery store {self._sink.store} than "
                f"the one that is resumed, whose next file is {self._sequence}: an older copy of the store was put "
                "back; put back the newest one, or begin with a fresh recovery store"
            )

    def _settled_by(self, path: str) -> int:
        """What a file says is settled; 0 where it says nothing."""
        try:
            facts = pq.read_metadata(self._files.open(path)).metadata or {}
        except (pa.ArrowException, FileNotFoundError):
            return 0
        return int(facts.get(SETTLED_KEY.encode(), b"0"))


def _checked(state: Any, table: str, shard: str) -> tuple[int, str, float, tuple[bytes, ...]]:
    """The parts of a stored state, those of a start without one, or ``LakeError`` if another version wrote it."""
    if state is None:
        return 0, "", 0.0, ()
    if isinstance(state, tuple) and state and state[0] == "v1" and len(state) == 5:
        return state[1], state[2], state[3], state[4]
    version = state[0] if isinstance(state, tuple) and state else type(state).__name__
    raise LakeError(
        f"lake table {table}, shard {shard}: the recovery store holds state {version!r}, this release reads 'v1'; "
        "run the release that wrote it, or begin with a fresh recovery store"
    )


def _stream(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> bytes:
    """The batches as one Arrow IPC stream; it carries the dictionaries, which a bare batch message does not."""
    table = pa.Table.from_batches(batches, schema).unify_dictionaries().combine_chunks()
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, schema) as writer:
        writer.write_table(table)
    stream: bytes = out.getvalue().to_pybytes()
    return stream


def _arrival_date(batches: Sequence[pa.RecordBatch]) -> str | None:
    """The UTC day of the middle one of the batches' times; the middle, for a single clock may be far off."""
    for name in TIME_COLUMNS:
        if batches and name in batches[0].schema.names:
            columns = [batch.column(name).drop_null().cast(pa.int64()).to_numpy() for batch in batches]
            times = np.concatenate(columns)
            if len(times):
                middle = int(np.partition(times, len(times) // 2)[len(times) // 2])
                return (_EPOCH + timedelta(microseconds=middle)).date().isoformat()
    return None


def _date_of(path: str) -> str:
    return path.split("/")[1].removeprefix("date=")


def _difference(found: pa.Schema, wanted: pa.Schema) -> str:
    """The first column in which a batch is not what the table takes."""
    if found.names != wanted.names:
        return f"a batch has the columns {', '.join(found.names)}; it takes {', '.join(wanted.names)}"
    pairs = zip(found, wanted, strict=True)
    return next(
        (f"column {a.name} is {a.type}, it takes {b.type}" for a, b in pairs if a.type != b.type),
        "a batch differs in which columns may be null",
    )
