"""Alerts on their way to people: webhooks, Azure Notification Hubs and MQTT topics.

``notify`` is a stateful operator rather than a sink: it wakes itself up, so that what was sent since leaves
the snapshot although no further alert comes. With a sink, whose state is stored only in epochs in which it is
given something, an alert that was sent long ago would be sent again after a crash a week later.

**Guarantee: at least once, with a stable id.** What was taken in is part of the snapshot until the place has
confirmed it, or refused it for good. What was sent and not yet left the snapshot when the process was killed
is sent again, under the same id, by which receivers tell copies; so are alerts of an epoch that was lost.
Copies that reach the operator are recognised and not sent. The alerts of a device are sent in their order.
"""

import secrets
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

import bytewax.operators as op
import pyarrow as pa
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from voltmill.connectors.mqtt_settings import MqttSettings
from voltmill.connectors.notify_http import Hub, Webhook
from voltmill.connectors.notify_mqtt import Topic
from voltmill.connectors.notify_notice import notices
from voltmill.connectors.notify_outbox import Outbox, State
from voltmill.connectors.notify_sender import Channel, Gate, Sender
from voltmill.connectors.notify_settings import NotifySettings
from voltmill.connectors.outage import DRAIN_SECONDS

#: How soon after something was sent the state is stored anew, s.
_SETTLE_SECONDS: Final = 1.0


class Place:
    """One ``[[notify]]`` table, with what its shards share in a process.

    Args:
        settings: where, and what.
        broker: the broker of ``[mqtt]``, for a topic on it.
        observe: called with what became of notifications, and of how many: ``sent``, ``duplicate``, ``expired``,
            ``dropped``, ``refused_`` and the reason. From any thread, as the others.
        on_attempt: called with ``ok`` or the failure of each attempt, and its seconds.
        on_waiting: called with by how many those that wait became more.
        on_open: called with True when the place is left alone after a failure, with False when it is back.

    Raises:
        ValueError: a file with certificates cannot be used.
    """

    def __init__(
        self,
        settings: NotifySettings,
        broker: MqttSettings,
        *,
        observe: Callable[[str, int], None] = lambda outcome, count: None,
        on_attempt: Callable[[str, float], None] = lambda outcome, seconds: None,
        on_waiting: Callable[[int], None] = lambda more: None,
        on_open: Callable[[bool], None] = lambda is_open: None,
    ) -> None:
        self.settings, self._broker = settings, broker
        self._observe, self._on_attempt, self._on_waiting = observe, on_attempt, on_waiting
        self.gate = Gate(settings, on_open)
        self._drain_until = float("inf")
        if settings.mqtt is None:
            self.open_channel().close()  # it connects at its first use
        elif tls := (settings.mqtt.broker or broker).tls:
            tls.context()

    def open_channel(self) -> Channel:
        """A connection of its own, to be used by one thread."""
        settings, timeout = self.settings, self.settings.timeout_seconds
        if settings.webhook is not None:
            return Webhook(settings.webhook, settings.source, timeout)
        if settings.notification_hubs is not None:
            return Hub(settings.notification_hubs, timeout)
        assert settings.mqtt is not None
        broker = settings.mqtt.broker or self._broker
        client_id = f"{broker.client_id}-{settings.name}-{secrets.token_hex(4)}"
        return Topic(settings.mqtt, broker, client_id, settings.source, timeout)

    def outbox(self, state: State | None) -> Outbox:
        """What waits of one shard."""
        return Outbox(self.settings, state, observe=self._observe, on_waiting=self._on_waiting)

    def sender(self, outbox: Outbox) -> Sender:
        """What empties it."""
        channel = self.open_channel()
        return Sender(self.settings, outbox, channel, self.gate, observe=self._observe, on_attempt=self._on_attempt)

    def drain_seconds(self) -> float:
        """How long the end of the stream may still be waited for: `DRAIN_SECONDS` for all shards together."""
        now = time.monotonic()
        self._drain_until = min(self._drain_until, now + DRAIN_SECONDS)
        return max(0.0, self._drain_until - now)


@operator
def notify(step_id: str, up: KeyedStream[pa.RecordBatch], *, place: Place) -> None:
    """Send alerts to a place, as the module says. Nothing that happens there holds up the stream.

    Args:
        step_id: unique id of the step.
        up: ``ALERT`` batches keyed by shard: a row that opens an episode, or raises its severity, has no
            ``closed_at``; the row that closes it has.
        place: where they go.
    """
    sent = op.stateful_batch("send", up, lambda state: _Logic(place, state))
    op.output("end", sent, _Nowhere())


class _Nowhere(DynamicSink[tuple[str, None]]):
    """Where nothing ever comes. The engine waits only for steps that lead to an output: others lose their end."""

    def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSinkPartition[tuple[str, None]]:
        return _Nothing()


class _Nothing(StatelessSinkPartition[tuple[str, None]]):
    def write_batch(self, items: list[tuple[str, None]]) -> None:
        pass


class _Logic(StatefulBatchLogic[pa.RecordBatch, None, State]):
    """The notifications of one shard."""

    def __init__(self, place: Place, state: State | None) -> None:
        self._place = place
        self._outbox = place.outbox(state)
        self._sender = place.sender(self._outbox)

    def on_batch(self, values: list[pa.RecordBatch]) -> tuple[Iterable[None], bool]:
        now = time.time()
        for batch in values:
            self._outbox.offer(list(notices(batch, now)))
        return [], StatefulBatchLogic.RETAIN

    def on_notify(self) -> tuple[Iterable[None], bool]:
        """Awake, so that the state is stored."""
        return [], StatefulBatchLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[None], bool]:
        """The stream is over: what can still be sent now is; the rest is in the snapshot and goes out next time."""
        seconds = self._place.drain_seconds()
        if self._place.gate.remaining < seconds:
            self._outbox.wait_empty(seconds)
        self._sender.close(self._place.drain_seconds())
        return [], StatefulBatchLogic.RETAIN

    def notify_at(self) -> datetime | None:
        if not len(self._outbox):
            return None  # and the snapshot of this very epoch says so
        seconds = max(_SETTLE_SECONDS, self._place.gate.remaining)  # nothing changes while it is left alone
        return datetime.now(UTC) + timedelta(seconds=seconds)

    def snapshot(self) -> State:
        return self._outbox.snapshot()
