"""live: MQTT or IoT Hub in; telemetry, predictions and dead letters out to lake and database.

Run it as ``voltmill run live -c F``, or as ``VOLTMILL_CONFIG=F python -m bytewax.run
voltmill.flows.live -r STATE -s 2 -b 0``; with the latter, Bytewax's own options say how to run and
SIGTERM drains just the same.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source

from voltmill.connectors.drain import Drain
from voltmill.connectors.extras import MissingExtra
from voltmill.connectors.iothub import HubError, IotHubSource
from voltmill.connectors.lake import LakeSink
from voltmill.connectors.mqtt import MqttSource
from voltmill.connectors.outage import Patience
from voltmill.connectors.redrive import RedriveSource
from voltmill.connectors.sql import SqlTable
from voltmill.flows import graph
from voltmill.flows.config import Config, ConfigError, load
from voltmill.flows.metrics import Metrics
from voltmill.flows.recovery import has_store, open_store
from voltmill.flows.running import drain_on_signals, log_to_stderr, prepare
from voltmill.flows.steps import check_steps
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, TELEMETRY
from voltmill.operators.sessions import schema as session_schema
from voltmill.operators.shard import shard_names

log = logging.getLogger("voltmill.notify")


def lake_sinks(
    config: Config, store: str, metrics: Metrics, *, patience: Patience | None = None, existing: bool = False
) -> graph.Sinks:
    """The tables of the lake; ``patience`` and ``existing`` as ``LakeSink`` takes them."""
    shards = shard_names(config.run.shards)

    def table(name: str, schema: Any) -> LakeSink:
        return LakeSink(
            config.lake,
            table=name,
            schema=schema,
            shards=shards,
            store=store,
            patience=patience,
            existing=existing,
            observe=metrics.observe(f"lake_{name}"),
        )

    return graph.Sinks(
        telemetry=[table("telemetry", TELEMETRY)],
        sessions=[table("sessions", session_schema())],
        predictions=[table("predictions", PREDICTION)],
        dead_letters=[table("dead_letters", DEAD_LETTER)],
    )


def sql_table(
    config: Config, drain: Drain, metrics: Metrics, on_stored: Callable[[pa.RecordBatch], None] | None = None
) -> SqlTable:
    """The table of predictions; while its database is away the flow waits, at most ``outage_seconds``."""
    patience = Patience(
        f"the database {config.sql.place}",
        seconds=config.sql.outage_seconds,
        drain=drain,
        on_waiting=metrics.waiting("sql"),
    )
    return SqlTable(
        config.sql, patience=patience, observe=metrics.observe("sql"), on_written=on_stored or metrics.on_stored
    )


def source(config: Config, drain: Drain, metrics: Metrics) -> Source[pa.RecordBatch]:
    """What ``[run] source`` names: the broker, or the hub, which must be there, or is waited for.

    Raises:
        ConfigError: it cannot be read as it is configured.
    """
    if config.run.source == "mqtt":
        try:
            if config.mqtt.tls:
                config.mqtt.tls.context()  # else a wrong file would only show once the engine runs
        except ValueError as e:
            raise ConfigError(str(e)) from e
        again = metrics.redelivered.inc
        return MqttSource(config.mqtt, drain=drain, observe=metrics.observe("mqtt"), on_redelivered=again)
    if not config.iothub.configured:
        raise ConfigError(
            '[run] source = "iothub", but nothing says which hub: set connection_string in [iothub], '
            "or namespace and hub"
        )
    patience = Patience(config.iothub.place, drain=drain, on_waiting=metrics.waiting("iothub"))
    hub = IotHubSource(
        config.iothub, drain=drain, patience=patience, observe=metrics.observe("iothub"), watch=metrics.hub()
    )
    try:
        hub.list_parts()
    except (HubError, MissingExtra) as e:
        raise ConfigError(f"[iothub] {e}") from e
    return hub


def build(
    config: Config,
    drain: Drain,
    metrics: Metrics,
    on_stored: Callable[[pa.RecordBatch], None] | None = None,
) -> Dataflow:
    """The live flow; makes the recovery store if there is none.

    Args:
        config: All settings.
        drain: Ends the sources when it is requested.
        metrics: What counts.
        on_stored: Called with each batch of predictions once it is in the database.

    Raises:
        ConfigError: The configuration cannot be used, or not with the recovery store that is there.
    """
    if config.notify:
        log.warning("[[notify]] is set, but this version raises no alerts: only `voltmill notify test` sends there")
    messages = source(config, drain, metrics)
    patience = Patience("the lake", seconds=config.lake.outage_seconds, drain=drain, on_waiting=metrics.waiting("lake"))
    if not has_store(config.run):
        config.lake.open(patience).make()  # from then on an absent lake is one that was taken away
    store = open_store(config.run).name
    sinks = lake_sinks(config, store, metrics, patience=patience, existing=True)
    database = sql_table(config, drain, metrics, on_stored)
    database.prepare()
    sinks = replace(sinks, databases=[database])
    redrive = RedriveSource(config.redrive, config.lake, store=store, drain=drain)
    flow = graph.build(messages, sinks, config, redrive=redrive, metrics=metrics)
    check_steps(config.run, flow)
    return flow


def __getattr__(name: str) -> Dataflow:
    """``flow``, built when Bytewax asks for it: importing this module must not start anything."""
    if name != "flow":
        raise AttributeError(name)
    config = load(os.environ.get("VOLTMILL_CONFIG"))
    log_to_stderr(config.run.log_level)
    drain, metrics = Drain(), Metrics()
    drain_on_signals(drain)
    prepare(live=True)
    if config.run.metrics_port:
        metrics.serve(config.run.metrics_host, config.run.metrics_port)
    return build(config, drain, metrics)
