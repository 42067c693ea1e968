"""The redrive source: dead letters that were chosen to go through the graph again, as ``RAW`` batches.

Reads the files of the spool (``connectors/spool.py``) as they appear, in name order. Each row is handed
out once, whatever is killed: the snapshot holds the file and the row that comes next, and a file is
taken by one flow. What was handed out stands in the claim beside the file once it is durable.

**The lineage of a row leads back to its letter**: ``source`` is ``redrive``, ``source_partition`` the
spool file and ``source_offset`` the row in it, where the letter's own id and lineage stand. ``topic`` is
the letter's, for mappings go by topic. ``ingest_time`` is the letter's as well, the time when the
message was first received: whether a device's clock was ahead is judged by that, and a replay reads it
from the archive as it reads any other.

A store that is away holds up nobody: all reading is done by a thread of its own.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from voltmill.connectors.drain import Drain
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.outage import Patience
from voltmill.connectors.spool import Claim, Spool, SpoolError, file_name
from voltmill.kernels.schema import RAW, REDRIVE, label

__all__ = ["RedrivePartition", "RedriveSettings", "RedriveSource"]

PARTITION: Final = "redrive"

State = tuple[str, str, int]
"""``("v1", path of a spool file, row of it that comes next)``; the path is empty before the first file."""

Place = tuple[int, int]
"""Number of a file, and the row of it that comes next; (-1, 0) before the first file."""

#: How far off the next call of ``next_batch`` is at most, s: further off, it would stall other sources.
_AWAKE_SECONDS: Final = 0.05
_WORD_EVERY_SECONDS: Final = 60.0
_CLOSE_SECONDS: Final = 2.0

log = logging.getLogger("voltmill.redrive")


class RedriveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[redrive]`` table: how dead letters come back into the live flow."""

    poll_seconds: float = 5.0
    """How often the live flow looks for letters to redrive, s; each look is one listing of a small folder."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not 0 < self.poll_seconds <= 3600:
            raise ValueError("poll_seconds must be above 0, and 3600 at most")


class RedriveSource(FixedPartitionedSource[pa.RecordBatch, State]):
    """The letters in the spool of a lake; goes on until it is drained.

    Args:
        settings: how often to look.
        lake: the lake; while it is away, or not made yet, nothing comes.
        store: name of the flow's recovery store: a file that the flow of another one took is left to it.
        drain: when requested, reads no more, waits until what it handed out is durable, and ends.
    """

    def __init__(
        self,
        settings: RedriveSettings,
        lake: LakeSettings,
        *,
        store: str,
        drain: Drain | None = None,
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._store = store
        self._drain = drain or Drain()

    def list_parts(self) -> list[str]:
        """One partition: letters of one device must stay in order."""
        return [PARTITION]

    def build_part(self, step_id: str, for_part: str, resume_state: State | None) -> "RedrivePartition":
        """Begin to look, in a thread; returns at once, whether or not the lake is there."""
        place = _place(resume_state)
        reader = _Reader(self._lake, self._store, place, self._settings.poll_seconds)
        return RedrivePartition(reader, place, self._drain)


class RedrivePartition(StatefulSourcePartition[pa.RecordBatch, State]):
    """Hands out what the thread has read.

    The first ``next_batch`` after a ``snapshot`` runs only when the epoch of that snapshot is durable.
    """

    def __init__(self, reader: "_Reader", place: Place, drain: Drain) -> None:
        self._reader = reader
        self._place = self._kept = self._durable = place
        self._drain = drain
        reader.start()

    def next_batch(self) -> list[pa.RecordBatch]:
        """The next batch, if one is there."""
        if self._durable != self._kept:
            self._durable = self._kept
            self._reader.durable = self._kept
        if self._drain.requested:
            if self._durable == self._place:
                raise StopIteration
            return []
        try:
            self._place, batch = self._reader.batches.get_nowait()
        except queue.Empty:
            return []
        return [batch] if batch.num_rows else []

    def next_awake(self) -> datetime | None:
        """At once if there is a batch, else in a moment."""
        if not self._reader.batches.empty() and not self._drain.requested:
            return None
        return datetime.now(UTC) + timedelta(seconds=_AWAKE_SECONDS)

    def snapshot(self) -> State:
        """The row that comes next."""
        self._kept = self._place
        number, row = self._place
        return ("v1", file_name(number) if number >= 0 else "", row)

    def close(self) -> None:
        """End the thread, which says in the claims how far it came; one that hangs in the store is left behind."""
        self._reader.end()
        self._reader.join(_CLOSE_SECONDS)


class _Reader(threading.Thread):
    """Looks for files, takes them, reads them row group by row group, and keeps their claims up to date."""

    def __init__(self, lake: LakeSettings, store: str, place: Place, poll_seconds: float) -> None:
        super().__init__(name="redrive", daemon=True)
        self.batches: queue.Queue[tuple[Place, pa.RecordBatch]] = queue.Queue(maxsize=2)
        self.durable = place
        self._ended = Drain()
        self._spool = Spool(lake.open(Patience("the lake, to redrive letters", drain=self._ended)))
        self._store, self._poll_seconds = store, poll_seconds
        self._place = place  # of the next row to read
        self._passed: set[int] = set()  # files that are behind, or not for this flow
        self._claims: dict[int, Claim] = {}  # of the files that are not durable to their end
        self._said: dict[str, float] = {}

    def end(self) -> None:
        """Read no more."""
        self._ended.request()

    def run(self) -> None:
        """Look, again and again."""
        while not self._ended.requested:
            self._try(self._look)
            self._try(self._record)
            self._ended.wait(self._poll_seconds)
        self._try(self._record)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is, the messages of the other sources must flow on
            if not self._ended.requested:
                self._say("spool cannot be read, trying again", error=f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        numbers, taken = self._spool.numbers()
        for number in numbers:
            if number in self._passed:
                continue
            if number <= self._place[0] and number not in taken:
                self._passed.add(number)
                self._say("spool file passed over: its number was in use before", file=file_name(number))
                continue
            try:
                self._file(number, number in taken)
            except SpoolError as error:
                self._passed.add(number)
                self._say("spool file passed over", file=file_name(number), error=str(error))
            if self._ended.requested:
                return

    def _file(self, number: int, taken: bool) -> None:
        claim = self._claims.get(number) or (self._spool.claim(number) if taken else None)
        if claim is None or not (claim.done or claim.store != self._store):
            with self._spool.open(number) as file:
                claim = claim or self._take(number, file.metadata.num_rows)
                if claim.store == self._store and not claim.done:
                    self._claims[number] = claim
                    if number >= self._place[0]:
                        self._read(number, file, claim.rows)
        if claim.store != self._store and not claim.done:
            log.info("spool file left to another flow", extra={"file": file_name(number), "store": claim.store})
        if not self._ended.requested:
            self._passed.add(number)

    def _take(self, number: int, rows: int) -> Claim:
        claim = Claim(store=self._store, of=rows)
        return claim if self._spool.take(number, claim) else self._spool.claim(number) or claim

    def _read(self, number: int, file: Any, durable: int) -> None:
        # Further than the place is durable only if the recovery store was lost.
        row = max(durable, self._place[1] if number == self._place[0] else 0)
        if not row:
            log.info("redriving", extra={"file": file_name(number), "letters": file.metadata.num_rows})
        for first, rows in _groups(file, row):
            place = (number, first + rows.num_rows)
            if not self._put(place, _raw(rows, number, first)):
                return
            self._place = place

    def _put(self, place: Place, batch: pa.RecordBatch) -> bool:
        while not self._ended.requested:
            try:
                self.batches.put((place, batch), timeout=0.2)
            except queue.Full:
                self._record()
            else:
                return True
        return False

    def _record(self) -> None:
        """Say in the claims what is durable by now."""
        number, row = self.durable
        for each, claim in list(self._claims.items()):
            rows = claim.of if each < number else row if each == number else claim.rows
            if rows > claim.rows:
                self._claims[each] = msgspec.structs.replace(claim, rows=rows)
                self._spool.record(each, self._claims[each])
            if self._claims[each].done:
                del self._claims[each]

    def _say(self, message: str, **about: str) -> None:
        """A warning, at most once a minute for one and the same."""
        key, now = f"{message} {sorted(about.items())}", time.monotonic()
        if now - self._said.get(key, -_WORD_EVERY_SECONDS) >= _WORD_EVERY_SECONDS:
            self._said = {k: t for k, t in self._said.items() if now - t < _WORD_EVERY_SECONDS} | {key: now}
            log.warning(message, extra=about)


def _groups(file: Any, row: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows from ``row`` on, a row group at once, each with the number of its first row."""
    first = 0
    for index in range(file.metadata.num_row_groups):
        after = first + file.metadata.row_group(index).num_rows
        if after > row:
            table = file.read_row_group(index, use_threads=False).unify_dictionaries().combine_chunks()
            begin = max(first, row)
            yield begin, table.to_batches()[0].slice(begin - first)
        first = after


def _raw(rows: pa.RecordBatch, number: int, first: int) -> pa.RecordBatch:
    """The letters of a part of a file that are messages, as a source hands them out."""
    columns = {
        "payload": rows["payload"],
        "topic": rows["topic"],
        "ingest_time": pc.coalesce(rows["ingest_time"], rows["redriven_at"]),
        "source": label(REDRIVE, rows.num_rows),
        "source_partition": label(file_name(number), rows.num_rows),
        "source_offset": pa.array(np.arange(first, first + rows.num_rows)),
    }
    raw = pa.RecordBatch.from_arrays([columns[name] for name in RAW.names], schema=RAW)
    return raw.filter(pc.equal(rows["stage"], "decode"))


def _place(state: Any) -> Place:
    if state is None or state == ("v1", "", 0):
        return -1, 0
    if isinstance(state, tuple) and len(state) == 3 and state[0] == "v1":
        return int(state[1].rpartition("/")[2].removesuffix(".parquet")), state[2]
    version = state[0] if isinstance(state, tuple) and state else type(state).__name__
    raise ValueError(f"redrive: the recovery store is of version {version!r}, this release reads v1: start a new one")
