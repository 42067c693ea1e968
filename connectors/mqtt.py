"""MQTT: a source of raw batches, and a publisher.

**Each message once.** QoS 1 with a persistent session: the broker keeps what is not acknowledged, and
voltmill acknowledges a message only when the epoch it flowed in is durable. After a crash, or a lost
connection, the broker delivers again what was not. What was handed out before is recognised
(``mqtt_delivered``), acknowledged when it is durable, and not handed out twice. A message that the
*publisher* sends twice is two messages: ``quality`` flags the second by ``(device_id, seq)``.

**In order.** A topic filter is a partition with a connection of its own: its messages keep their order.

**Bounded.** Beyond ``receive_maximum`` unacknowledged messages the broker holds back (MQTT 5), beyond
``max_queue_messages`` unread ones the socket is not read.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from voltmill.connectors.drain import Drain
from voltmill.connectors.mqtt_client import Receiver
from voltmill.connectors.mqtt_delivered import Delivered, Receipt, Snapshot
from voltmill.connectors.mqtt_inbox import Arrivals, Inbox
from voltmill.connectors.mqtt_publisher import Publisher
from voltmill.connectors.mqtt_settings import MqttSettings, TlsSettings
from voltmill.kernels.schema import RAW, label

__all__ = ["MqttPartition", "MqttSettings", "MqttSource", "Publisher", "TlsSettings"]

log = logging.getLogger("voltmill.mqtt")


class MqttPartition(StatefulSourcePartition[pa.RecordBatch, Snapshot]):
    """One topic filter.

    Bytewax calls the first ``next_batch`` after a ``snapshot`` only when the epoch of that snapshot is
    durable (without a recovery store: when it is over), so that call acknowledges what had been handed
    out by the snapshot.
    """

    def __init__(
        self,
        settings: MqttSettings,
        topic_filter: str,
        resume_state: tuple[object, ...] | None,
        drain: Drain,
        observe: Callable[[float], None],
        on_redelivered: Callable[[int], None],
    ) -> None:
        self._filter = topic_filter
        self._delivered = Delivered(resume_state)
        self._durable_soon = self._delivered.offset
        self._drain = drain
        self._observe = observe
        self._on_redelivered = on_redelivered
        self._linger = settings.linger_ms / 1000
        self._inbox = Inbox(
            settings.max_batch_rows,
            settings.max_batch_bytes,
            self._linger,
            settings.max_queue_messages,
            settings.max_queue_bytes,
        )
        self._client = Receiver(settings, topic_filter, self._inbox)
        self._client.loop_start()

    @property
    def queued(self) -> int:
        """Messages received and not yet handed out."""
        return self._inbox.messages

    @property
    def subscribed(self) -> bool:
        """Whether the broker has confirmed the subscription."""
        return self._client.subscribed

    def next_batch(self) -> list[pa.RecordBatch]:
        """The next batch, if one is due."""
        self._acknowledge()
        if self._client.failure is not None:
            raise RuntimeError(f"mqtt {self._filter}: the network thread ended") from self._client.failure
        if self._drain.requested:
            if self._delivered.durable == self._delivered.offset:
                log.info("mqtt drained topic=%s next_offset=%d", self._filter, self._delivered.offset)
                raise StopIteration
            return []
        started = time.perf_counter()
        arrivals = self._inbox.take()
        if arrivals is None:
            return []
        batch = self._new(arrivals)
        self._observe(time.perf_counter() - started)
        return [batch] if batch.num_rows else []

    def next_awake(self) -> datetime:
        """When a batch is due, at most the linger time away: further off, it would stall other workers."""
        wait = self._linger if self._drain.requested else self._inbox.due_in()
        return datetime.now(UTC) + timedelta(seconds=wait)

    def snapshot(self) -> Snapshot:
        """What is handed out; it is acknowledged when this is durable."""
        self._durable_soon = self._delivered.offset
        return self._delivered.snapshot()

    def close(self) -> None:
        """Send the acknowledgements that are queued and leave; the broker keeps the rest."""
        self._client.close()

    def _acknowledge(self) -> None:
        for receipt in self._client.confirmed():
            self._delivered.confirm(receipt)
        if self._durable_soon > self._delivered.durable:
            for receipt in self._delivered.settle(self._durable_soon):
                self._client.acknowledge(receipt)

    def _new(self, arrivals: Arrivals) -> pa.RecordBatch:
        """The messages that were not handed out before."""
        first = self._delivered.offset
        new, overdue = self._delivered.take(arrivals)
        rows = self._delivered.offset - first
        columns = {
            "payload": arrivals.payload,
            "topic": arrivals.topic,
            "ingest_time": arrivals.ingest_time,
        }
        if rows < len(new):
            columns = {name: column.filter(pa.array(new)) for name, column in columns.items()}
            self._again(len(new) - rows, overdue)
        columns |= {
            "source": label("mqtt", rows),
            "source_partition": label(self._filter, rows),
            "source_offset": pa.array(np.arange(first, first + rows, dtype=np.int64)),
        }
        return pa.RecordBatch.from_arrays([columns[name] for name in RAW.names], schema=RAW)

    def _again(self, messages: int, overdue: Receipt) -> None:
        """Some messages came again, of which ``overdue`` are durable and still to be acknowledged."""
        self._client.acknowledge(overdue)
        durable = len(overdue.packet_ids)
        log.info("mqtt redelivered topic=%s messages=%d durable=%d", self._filter, messages, durable)
        self._on_redelivered(messages)


def _ignore(what: float) -> None:
    pass


class MqttSource(FixedPartitionedSource[pa.RecordBatch, Snapshot]):
    """Batches of messages as ``RAW``: ``source`` is mqtt, ``source_partition`` the topic filter,
    ``source_offset`` the running number of the message in its partition, counted on over restarts.

    A broker that is away, or refuses the login, is tried again for ever, with a line in the log each
    time; the flow goes on.

    Args:
        settings: the broker, the topic filters, the limits.
        drain: when requested, each partition stops reading, waits until what it handed out is durable,
            acknowledges it and ends. Unread messages stay with the broker.
        observe: called with the seconds that each batch took to hand out.
        on_redelivered: called with how many messages came again and were held back.

    Example:
        >>> MqttSource(MqttSettings(topics=("site-a/#", "site-b/#"))).list_parts()
        ['site-a/#', 'site-b/#']
    """  # noqa: D205

    def __init__(
        self,
        settings: MqttSettings,
        *,
        drain: Drain | None = None,
        observe: Callable[[float], None] = _ignore,
        on_redelivered: Callable[[int], None] = _ignore,
    ) -> None:
        self._settings = settings
        self._drain = drain or Drain()
        self._observe = observe
        self._on_redelivered = on_redelivered

    def list_parts(self) -> list[str]:
        """The topic filters."""
        return list(self._settings.topics)

    def build_part(self, step_id: str, for_part: str, resume_state: tuple[object, ...] | None) -> MqttPartition:
        """Connect; returns at once, whether or not the broker is there."""
        return MqttPartition(self._settings, for_part, resume_state, self._drain, self._observe, self._on_redelivered)
