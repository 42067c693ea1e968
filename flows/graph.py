"""The graph: one shape for live, replay and demo, which differ only in sources and sinks.

source --+-> decode -> shard -> quality -+-> features -> estimate ----------> predictions
redrive -+     |                         +-> sessions -+-> estimate --+-----> predictions
               |                         |             |              +-> health -> estimate -> predictions
               |                         |             +-> session archive
               |                         +-> telemetry archive
               +-> dead letters

A source of telemetry (the lake) enters before ``shard``; one of sessions enters there too, and goes on where
the finished sessions do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

import bytewax.operators as op
import pyarrow as pa
import pyarrow.compute as pc
from bytewax.dataflow import Dataflow, Stream
from bytewax.inputs import Source
from bytewax.operators import KeyedStream
from bytewax.outputs import Sink

from voltmill.flows.choice import Models, Table
from voltmill.flows.config import Config, ConfigError
from voltmill.flows.metrics import Metrics
from voltmill.kernels.schema import TIME
from voltmill.operators.decode import decode
from voltmill.operators.estimate import estimate
from voltmill.operators.features import features
from voltmill.operators.health import health
from voltmill.operators.mapping import build_mapper
from voltmill.operators.quality import quality
from voltmill.operators.sample import Mapper
from voltmill.operators.sessions import sessions
from voltmill.operators.shard import shard, shard_names
from voltmill.operators.thin import thin

Keyed = KeyedStream[pa.RecordBatch]


class Upserts(Protocol):
    """A database that takes rows by key."""

    def upsert(self, step_id: str, up: Keyed) -> Stream[pa.RecordBatch]:
        """Store the batches; gives ``DEAD_LETTER`` rows for what it does not take."""


@dataclass(frozen=True)
class Sinks:
    """Where the streams end; a stream without a sink goes nowhere."""

    telemetry: Sequence[Sink[Any]] = ()
    """``TELEMETRY`` with quality bits, keyed by shard."""
    predictions: Sequence[Sink[Any]] = ()
    """``PREDICTION``, keyed by shard."""
    dead_letters: Sequence[Sink[Any]] = ()
    """``DEAD_LETTER``, keyed by shard."""
    sessions: Sequence[Sink[Any]] = ()
    """Finished sessions (``voltmill.kernels.session_table``), keyed by shard."""
    databases: Sequence[Upserts] = ()
    """What predictions are upserted into; the rows it refuses join the dead letters."""


def build(
    source: Source[pa.RecordBatch],
    sinks: Sinks,
    config: Config,
    *,
    redrive: Source[pa.RecordBatch] | None = None,
    emits: Literal["raw", "telemetry", "sessions"] = "raw",
    models: Models | None = None,
    since: datetime | None = None,
    metrics: Metrics | None = None,
) -> Dataflow:
    """Build the dataflow.

    Args:
        source: Emits batches of ``RAW``, or what ``emits`` says.
        sinks: Where telemetry, predictions and dead letters go.
        config: Everything else.
        redrive: Emits ``RAW`` batches of messages that are sent again; None: there are none.
        emits: What the source emits; the steps before that are left out, and what they would have given.
        models: The models in force; those of the configuration, live, if not given.
        since: Predictions for earlier event times are not given out: those samples only warm the state up.
        metrics: What counts; a new one if not given.

    Raises:
        ConfigError: A mapping or a model of the configuration cannot be used.
    """
    metrics = metrics or Metrics()
    models = models or Models(config, metrics=metrics)
    fleet = config.devices
    flow = Dataflow("voltmill")
    stream = op.input("source", flow, source)
    letters: list[Keyed] = []
    if emits == "raw":
        if redrive is not None:
            stream = op.merge("sources", stream, op.input("redrive", flow, redrive))
        stream = op.inspect("raw", stream, lambda _, batch: metrics.on_raw(batch))
        out = decode(
            "decode",
            stream,
            mapper=mapper(config),
            settings=config.decode,
            keep_payload=config.archive.payload,
            observe=metrics.observe("decode"),
        )
        stream = out.telemetry
        letters.append(_keyed_letters("dead", out.dead_letters, config.run.shards))
    # The number of shards is part of the step ids, so a store made for another number is not misread.
    tag = f"{config.run.shards}"
    keyed = shard(f"shard-{tag}", stream, shards=config.run.shards)
    predictions: list[Keyed] = []

    def ask(table: Table, up: Keyed) -> Keyed:
        """Predictions of the models of a table; gives the rows with their values."""
        found = estimate(
            f"estimate-{table}-{tag}",
            up,
            models=models.of(table),
            fleet=fleet,
            observe=metrics.observe(f"estimate_{table}"),
            on_unknown=metrics.unknown.inc if table == "features" else lambda _: None,
            on_answer=metrics.on_answer,
        )
        predictions.append(_since(f"since-{table}", found.predictions, since))
        letters.append(found.failures)
        return found.values

    archived: dict[str, list[Keyed]] = {"telemetry": [], "sessions": []}
    finished = keyed
    if emits != "sessions":
        observe = metrics.observe
        judged = quality(f"quality-{tag}", keyed, settings=config.quality, fleet=fleet, observe=observe("quality"))
        judged = op.inspect("telemetry", judged, lambda _, item: metrics.on_telemetry(item[1]))
        rows = features(f"features-{tag}", judged, settings=config.features, fleet=fleet, observe=observe("features"))
        finished = sessions(
            f"sessions-{tag}", judged, settings=config.sessions, fleet=fleet, observe=observe("sessions")
        )
        archived = {"telemetry": [judged], "sessions": [_since("since-finished", finished, since)]}
        ask("features", rows)
    valued = ask("sessions", finished)
    ask("health", health(f"health-{tag}", valued, settings=config.health, fleet=fleet))
    predictions = _tap("estimated", predictions, metrics.on_predictions)
    for k, database in enumerate(sinks.databases if predictions else ()):
        rows = op.merge(f"sql-{k}-all", *predictions)
        if every := config.sql.emit_every_seconds:
            rows = thin(f"thin-{k}-{tag}", rows, every_seconds=every, observe=metrics.observe("thin"))
        refused = database.upsert(f"sql-{k}", rows)
        letters.append(_keyed_letters(f"dead-sql-{k}", refused, config.run.shards))
    _end("telemetry", archived["telemetry"], sinks.telemetry)
    _end("sessions", archived["sessions"], sinks.sessions)
    _end("predictions", predictions, sinks.predictions)
    _end("dead_letters", _tap("refused", letters, metrics.on_dead_letters), sinks.dead_letters)
    return flow


def mapper(config: Config) -> Mapper | None:
    """What reads the messages; None: all of it is canonical JSON, which ``decode`` scans by itself."""
    topics = any(spec.topic for spec in config.mapping.values())
    if config.decode.mapping == "canonical" and "canonical" not in config.mapping and not topics:
        return None
    try:
        return build_mapper(config.decode, config.mapping)
    except ValueError as e:
        raise ConfigError(str(e)) from None


def _tap(name: str, streams: Sequence[Keyed], count: Callable[[pa.RecordBatch], None]) -> list[Keyed]:
    return [op.inspect(f"{name}-{k}", s, lambda _, item: count(item[1])) for k, s in enumerate(streams)]


def _since(step_id: str, up: Keyed, since: datetime | None) -> Keyed:
    """Without the predictions that only warmed the state up."""
    if since is None:
        return up
    start = pa.scalar(since, TIME)

    def later(batch: pa.RecordBatch) -> pa.RecordBatch | None:
        return batch.filter(pc.greater_equal(batch.column("event_time"), start)) or None

    return op.filter_map_value(step_id, up, later)


def _keyed_letters(step_id: str, up: Stream[pa.RecordBatch], shards: int) -> Keyed:
    """Dead letters have no device to shard by; they are few, and one shard keeps them in order."""
    name = shard_names(shards)[0]
    return op.map(step_id, up, lambda batch: (name, batch))


def _end(name: str, streams: Sequence[Keyed], sinks: Sequence[Sink[Any]]) -> None:
    if streams and sinks:
        merged = op.merge(f"{name}-all", *streams)
        for k, sink in enumerate(sinks):
            op.output(f"{name}-{k}", merged, sink)
