"""Prometheus metrics of a gateway."""

import time

from prometheus_client import Counter, Gauge

from voltmill.connectors.gateway_store import GatewayStore
from voltmill.flows.metrics_server import Served


class GatewayMetrics(Served):
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        super().__init__()
        r = self.registry
        self.messages = Counter("voltmill_messages", "messages read from the broker", registry=r)
        self.redelivered = Counter(
            "voltmill_redelivered_messages", "messages that the broker sent again, recognised and held back", registry=r
        )
        self.stored = Counter("voltmill_gateway_stored", "messages taken into the store", registry=r)
        self.repeated = Counter(
            "voltmill_gateway_repeated", "messages of a repeated epoch that were stored already", registry=r
        )
        self.sent = Counter("voltmill_gateway_sent", "messages that the hub has confirmed", registry=r)
        self.sent_bytes = Counter("voltmill_gateway_sent_bytes", "bytes of the bodies of hub messages sent", registry=r)
        self.packs = Counter(
            "voltmill_gateway_packs", "hub messages sent; late: kept back by an outage", ["late"], registry=r
        )
        self.failures = Counter(
            "voltmill_gateway_failures", "hub messages that were not confirmed, and logins", ["kind"], registry=r
        )
        self.dead_letters = Counter(
            "voltmill_gateway_dead_letters", "messages that the hub cannot take, kept aside", ["reason"], registry=r
        )
        self.removed = Counter(
            "voltmill_gateway_dead_letters_removed", "of those, removed for lack of room", registry=r
        )
        self.waiting_messages = Gauge("voltmill_gateway_store_messages", "messages that wait for the hub", registry=r)
        self.waiting_bytes = Gauge("voltmill_gateway_store_bytes", "bytes that they take", registry=r)
        self.oldest = Gauge("voltmill_gateway_oldest_seconds", "age of the oldest of them; 0: none", registry=r)
        self.away = Gauge("voltmill_gateway_hub_away", "1 while sending to the hub fails", registry=r)
        self.waits = Gauge(
            "voltmill_waiting",
            "1 while this system is waited for, or without room; nothing is read then",
            ["system"],
            registry=r,
        )

    def on_stored(self, new: int, repeated: int) -> None:
        """Count a batch."""
        self.messages.inc(new + repeated)
        self.stored.inc(new)
        self.repeated.inc(repeated)

    def on_sent(self, messages: int, size: int, late: bool) -> None:
        """Count a pack."""
        self.sent.inc(messages)
        self.sent_bytes.inc(size)
        self.packs.labels(str(late).lower()).inc()

    def watch(self, store: GatewayStore) -> None:
        """Show what waits in a store, as it is when the metrics are read."""
        self.waiting_messages.set_function(lambda: store.messages)
        self.waiting_bytes.set_function(lambda: store.size)
        self.oldest.set_function(lambda: 0.0 if store.oldest_at is None else max(0.0, time.time() - store.oldest_at))
