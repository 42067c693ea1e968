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

Two stores with different shard counts put a device's rows into two shards. Where both wrote on one
day, readers take one store after the other (``lake_files.arrival``), so that its rows stay in order.
"""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa
from bytewax.outputs import FixedPartitionedSink

from voltmill.connectors import remote
from voltmill.connectors.lake_look import Look
from voltmill.connectors.lake_partition import LakePartition, State
from voltmill.connectors.outage import Patience
from voltmill.connectors.store import LakeError, Store

__all__ = ["LakeError", "LakeSettings", "LakeSink"]

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
    """Arguments of the fsspec file system: account, credentials. Write secrets as ``${VAR}``. In Azure,
    ``credential = "default"`` is Entra ID: the identity of the workload or the machine, or a login."""
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
    """Level of zstd; higher ones gain nothing on noisy readings. 0: Snappy and plain encodings, all that a dedicated
    pool of Synapse is documented to read; predictions take two to three times the room then."""
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
        if remote.is_azure(self.url) and self.storage_options.get("credential", "default") != "default":
            # Not shown: Azure's client takes a text here for a key.
            raise ValueError('storage_options.credential must be "default"; a key is account_key, a SAS sas_token')
        if self.outage_seconds < 0:
            raise ValueError("outage_seconds must be at least 0 (0: as long as it takes)")
        if self.max_snapshot_bytes < 0:
            raise ValueError("max_snapshot_bytes must be at least 0 (0: write a file each epoch)")
        if not 0 <= self.compression_level <= 22:
            raise ValueError("compression_level is that of zstd, 1 to 22, or 0 for Snappy")

    def __repr__(self) -> str:
        """Everything but credentials, which stand in the values of ``storage_options``, or in the URL."""
        return f"LakeSettings(url={self.place!r}, storage_options={sorted(self.storage_options)})"

    @property
    def place(self) -> str:
        """The lake as messages name it: no secret in it."""
        return remote.shown(self.url)

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
        self.look = Look()

    def list_parts(self) -> list[str]:
        """The shards; every worker may write any."""
        return list(self.shards)

    def part_fn(self, item_key: str) -> int:
        """Index of the shard that the key names."""
        try:
            return self.shards.index(item_key)
        except ValueError:
            raise LakeError(f"lake table {self.table}: key {item_key!r} is none of its shards") from None

    def build_part(self, step_id: str, for_part: str, resume_state: State | None) -> LakePartition:
        """The writer of a shard, with the files of lost epochs removed."""
        return LakePartition(self, for_part, resume_state)
