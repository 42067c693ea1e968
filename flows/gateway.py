"""gateway: the MQTT broker of a site in, Azure IoT Hub out, with a store on disk between the two.

    site broker -- MqttSource -> GatewaySink -- store (SQLite) -- Sender -> IoT Hub

Left of the store runs a Bytewax flow, right of it a thread: a hub that is away for hours holds up neither the
epochs nor the acknowledgements to the broker, until the store is full.
"""

import logging
from pathlib import Path

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from voltmill.connectors.drain import Drain
from voltmill.connectors.gateway import PART, GatewaySink
from voltmill.connectors.gateway_hub import Hub, HubError, open_hub
from voltmill.connectors.gateway_sender import Sender, entry_bytes
from voltmill.connectors.gateway_store import GatewayStore
from voltmill.connectors.mqtt import MqttSource
from voltmill.connectors.outage import Patience
from voltmill.flows import running
from voltmill.flows.config import Config, ConfigError
from voltmill.flows.gateway_metrics import GatewayMetrics
from voltmill.flows.recovery import open_store
from voltmill.flows.steps import check_steps

#: How long the start waits for the hub to say whether it knows us, s.
_CHECK_SECONDS = 10.0

log = logging.getLogger("voltmill.gateway")


def build(config: Config, drain: Drain, metrics: GatewayMetrics, store: GatewayStore) -> Dataflow:
    """The flow from the broker into the store.

    Args:
        config: all settings.
        drain: ends the source when it is requested.
        metrics: what counts.
        store: where the messages go.
    """
    flow = Dataflow("gateway")
    source = MqttSource(config.mqtt, drain=drain, on_redelivered=metrics.redelivered.inc)
    batches = op.input("source", flow, source)
    patience = Patience("room in the gateway's store", drain=drain, on_waiting=metrics.waiting("gateway_store"))
    sink = GatewaySink(store, patience=patience, on_stored=metrics.on_stored)
    op.output("store", op.key_on("key", batches, lambda _: PART), sink)
    return flow


def run(config: Config, drain: Drain, metrics: GatewayMetrics) -> bool:
    """Run a gateway until it is asked to stop.

    Returns:
        Whether all of it has ended; if not, a call of the hub's client hangs, and only the end of the process ends it.

    Raises:
        ConfigError: the configuration cannot be used, or the hub does not accept what it says.
        RuntimeError: the store or the recovery store cannot be used.
    """
    hub = _opened(config)
    open_store(config.run)
    store = _store(config, metrics)
    ended = True
    try:
        flow = build(config, drain, metrics, store)
        check_steps(config.run, flow)
        _check(config, hub)
        sender = _sender(config, store, hub, metrics)
        facts = {"topics": config.mqtt.topics, "hub": config.gateway.place, "store": config.gateway.store}
        log.info("running", extra=facts | {"transport": config.gateway.transport, "waiting": store.messages})
        sender.start()
        try:
            running.run(flow, config.run, drain=drain)
        finally:
            ended = sender.close(config.gateway.drain_seconds)
    finally:
        if ended:
            store.close()
    return ended


def _store(config: Config, metrics: GatewayMetrics) -> GatewayStore:
    settings = config.gateway
    store = GatewayStore(
        Path(settings.store),
        max_bytes=settings.max_store_bytes,
        max_entry_bytes=entry_bytes(settings),
        max_dead_letter_bytes=settings.max_dead_letter_bytes,
        on_dead_letter=lambda reason, count: _dead_letters(metrics, reason, count),
        on_removed=metrics.removed.inc,
    )
    metrics.watch(store)
    return store


def _sender(config: Config, store: GatewayStore, hub: Hub, metrics: GatewayMetrics) -> Sender:
    return Sender(
        config.gateway,
        store,
        hub,
        on_sent=metrics.on_sent,
        on_failure=lambda kind: metrics.failures.labels(kind).inc(),
        on_away=lambda away: metrics.away.set(float(away)),
    )


def _opened(config: Config) -> Hub:
    """The way to the hub, and whatever else can be wrong before anything runs."""
    if not config.gateway.connection_string:
        raise ConfigError("[gateway] connection_string is empty: put in that of the gateway's device at the hub")
    try:
        if config.mqtt.tls:
            config.mqtt.tls.context()
        return open_hub(config.gateway)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check(config: Config, hub: Hub) -> None:
    """Whether the hub lets us in. One that is away will be waited for; one that refuses is a wrong configuration."""
    try:
        hub.check(_CHECK_SECONDS)
    except HubError as error:
        if error.kind == "refused":
            hub.close()
            raise ConfigError(f"[gateway] {config.gateway.place}: {error}") from error
        log.warning("%s is away, messages are stored: %s", config.gateway.place, error, extra={"kind": error.kind})


def _dead_letters(metrics: GatewayMetrics, reason: str, count: int) -> None:
    metrics.dead_letters.labels(reason).inc(count)
    log.error("messages that the hub cannot take are kept aside", extra={"reason": reason, "messages": count})
