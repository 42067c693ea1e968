"""IoT Hub: a source of raw batches, read from the hub's Event Hubs-compatible endpoint.

**Each event once.** The hub keeps events for its retention time, whoever reads them; the place in each partition is
part of the recovery store. After a crash reading goes on after the last event that is durable. An event that the hub
delivers again is recognised by its sequence number and not handed out twice. A message that a *device* sends twice,
or that the hub rewinds, is another event: ``quality`` flags it, by ``(device_id, seq)``.

**In order.** A partition of the hub is a partition of the flow, with a connection of its own.

**One reader.** Each start takes a higher owner level: the hub ends the link of any process that was started before.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from voltmill.connectors.drain import Drain
from voltmill.connectors.extras import MissingExtra
from voltmill.connectors.iothub_client import HubError, partition_ids, trouble
from voltmill.connectors.iothub_events import batch
from voltmill.connectors.iothub_inbox import Inbox
from voltmill.connectors.iothub_position import Position, Snapshot, position
from voltmill.connectors.iothub_probe import probe
from voltmill.connectors.iothub_reader import Reader
from voltmill.connectors.iothub_settings import IotHubSettings
from voltmill.connectors.iothub_watch import Watch
from voltmill.connectors.outage import Patience

__all__ = ["HubError", "IotHubPartition", "IotHubSettings", "IotHubSource", "Watch", "probe"]

log = logging.getLogger("voltmill.iothub")

#: How long the end of a connection is waited for, s; the client looks up every 0.2 s.
_CLOSE_SECONDS = 2.0


class IotHubPartition(StatefulSourcePartition[pa.RecordBatch, Snapshot]):
    """One partition of the hub.

    The first ``next_batch`` after a ``snapshot`` runs only when the epoch of that snapshot is durable.
    """

    def __init__(
        self,
        settings: IotHubSettings,
        partition: str,
        resume: Position,
        drain: Drain,
        observe: Callable[[float], None],
        watch: Watch,
    ) -> None:
        self._partition = partition
        self._position = self._kept = self._durable = resume
        self._drain = drain
        self._observe = observe
        self._watch = watch
        self._linger = settings.linger_ms / 1000
        self._hub = settings.name
        self._inbox = Inbox(settings)
        self._reader = Reader(settings, partition, resume, self._inbox, watch)
        self._reader.start()

    @property
    def queued(self) -> int:
        """Messages received and not yet handed out."""
        return self._inbox.messages

    @property
    def connected(self) -> bool:
        """Whether the hub lets us read."""
        return self._reader.connected

    def next_batch(self) -> list[pa.RecordBatch]:
        """The next batch, if one is due."""
        self._durable = self._kept
        if self._drain.requested:
            self._reader.end()
            if self._durable == self._position:
                log.info("iothub drained", extra={"partition": self._partition, "sequence": self._position.sequence})
                raise StopIteration
            return []
        if self._reader.failure is not None:
            raise self._reader.failure
        started = time.perf_counter()
        events = self._inbox.take()
        if not events:
            return []
        rows = batch(events, self._partition)
        last = events[-1]
        self._position = Position(self._hub, last.sequence, last.offset, self._reader.level)
        self._watch.on_events(len(events), sum(event.size for event in events))
        self._watch.on_lag(self._partition, last.last - last.sequence)
        if broken := sum(event.broken for event in events):
            self._watch.on_broken_pack(broken)
        self._observe(time.perf_counter() - started)
        return [rows] if rows.num_rows else []

    def next_awake(self) -> datetime:
        """When a batch is due, at most the linger time away: further off, it would stall other workers."""
        wait = self._linger if self._drain.requested else self._inbox.due_in()
        return datetime.now(UTC) + timedelta(seconds=wait)

    def snapshot(self) -> Snapshot:
        """The last event that was handed out; before any was, the one that ``start = "latest"`` came to mean."""
        if self._position.sequence is None and self._reader.baseline is not None:
            self._position = Position(self._hub, self._reader.baseline, "", self._reader.level)
        self._kept = self._position
        return self._position.snapshot()

    def close(self) -> None:
        """Leave the hub; a thread that hangs in the network is left behind."""
        self._reader.end()
        self._reader.join(_CLOSE_SECONDS)


class IotHubSource(FixedPartitionedSource[pa.RecordBatch, Snapshot]):
    """Batches of messages as ``RAW``: ``source`` is iothub, ``source_partition`` the hub's partition,
    ``source_offset`` the sequence number of the event there; ``ingest_time`` is when the hub received it.

    A connection that is lost is made again for ever. What does not pass by itself ends the flow with one line: a
    link that a process started later has taken over; a key, a right or a consumer group that is wrong at the start.

    Args:
        settings: the hub, the consumer group, the limits.
        drain: when requested, each partition stops reading, waits until what it handed out is durable, and ends.
        patience: waits for a hub that is away at the start.
        observe: called with the seconds that each batch took to hand out.
        watch: what is counted.
    """  # noqa: D205

    def __init__(
        self,
        settings: IotHubSettings,
        *,
        drain: Drain | None = None,
        patience: Patience | None = None,
        observe: Callable[[float], None] = lambda seconds: None,
        watch: Watch | None = None,
    ) -> None:
        self._settings = settings
        self._drain = drain or Drain()
        self._patience = patience or Patience(settings.place, drain=self._drain)
        self._observe = observe
        self._watch = watch or Watch()
        self._parts: list[str] = []

    def list_parts(self) -> list[str]:
        """The partitions of the hub, which is asked once; while it is away, it is waited for.

        Raises:
            HubError: it does not let us read.
            MissingExtra: azure-eventhub is not installed.
        """
        if not self._parts:
            self._parts = self._patience.call(self._ask, lambda error: isinstance(error, _Away))
        return self._parts

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> IotHubPartition:
        """Begin to read, in a thread; returns at once, whether or not the hub is there."""
        resume = position(resume_state, self._settings.name)
        return IotHubPartition(self._settings, for_part, resume, self._drain, self._observe, self._watch)

    def _ask(self) -> list[str]:
        try:
            return sorted(partition_ids(self._settings), key=lambda part: (len(part), part))
        except MissingExtra:
            raise
        except Exception as error:
            found = trouble(error, self._settings)
            kind = _Away if found.kind == "away" else HubError
            raise kind(f"{self._settings.place}: {found}") from None


class _Away(HubError):
    """The hub cannot be reached now."""
