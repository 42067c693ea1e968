"""replay: the archive through the same graph, into a chosen place, without broker or database.

Rows come in the order they arrived (files in name order, rows in file order) and their quality bits
are computed anew, so a replay from where the archive starts gives the live predictions bit for bit.
One from the middle begins with cold state; ``warm_up`` feeds the rows before it first.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec
import pyarrow as pa

from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.lake_source import LakeSource
from voltmill.flows import graph
from voltmill.flows.config import Config, ConfigError
from voltmill.flows.metrics import Metrics
from voltmill.flows.running import run
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, TELEMETRY
from voltmill.operators.shard import shard_names

#: Name of the files: a replay has no recovery store to name them after.
STORE = "replay"


class Replayed(msgspec.Struct, frozen=True):
    """What a replay did."""

    rows: int
    """Rows read from the archive, those of the warm-up included."""
    predictions: int
    """Predictions written."""
    seconds: float
    """Time it took, s, without starting the engine."""


def replay(
    config: Config,
    lake: str,
    out: str,
    *,
    start: datetime | None = None,
    stop: datetime | None = None,
    warm_up: timedelta = timedelta(hours=1),
    telemetry: bool = False,
    on_progress: Callable[[int, int, int], None] = lambda done, total, rows: None,
) -> Replayed:
    """Replay an archive.

    Args:
        config: Fleet, models and thresholds; its lake, database and broker are not used.
        lake: Folder or fsspec URL that holds ``telemetry/``.
        out: Folder or URL for ``predictions/`` and ``dead_letters/``, which must not hold any yet.
        start: First event time to predict; None: from the first row.
        stop: Event time to stop before; None: to the last row.
        warm_up: How far before ``start`` to read.
        telemetry: Whether to write ``telemetry/`` with the new quality bits as well.
        on_progress: Called with files done, files in all and rows read.

    Raises:
        ConfigError: ``out`` holds predictions already, or the configuration cannot be used.
        LakeError: The archive cannot be read.
    """
    _empty(config.lake, out)
    metrics, counts = Metrics(), {"rows": 0, "predictions": 0}

    def count(batch: pa.RecordBatch) -> None:
        counts["predictions"] += len(batch)

    def progress(done: int, total: int, rows: int) -> None:
        counts["rows"] = rows
        on_progress(done, total, rows)

    begin = start - warm_up if start else None
    source = LakeSource(msgspec.structs.replace(config.lake, url=lake), start=begin, stop=stop, on_progress=progress)
    settings, shards = msgspec.structs.replace(config.lake, url=out), shard_names(config.run.shards)
    sinks = graph.Sinks(
        telemetry=[LakeSink(settings, table="telemetry", schema=TELEMETRY, shards=shards, store=STORE)]
        if telemetry
        else [],
        predictions=[
            LakeSink(settings, table="predictions", schema=PREDICTION, shards=shards, store=STORE, on_written=count)
        ],
        dead_letters=[LakeSink(settings, table="dead_letters", schema=DEAD_LETTER, shards=shards, store=STORE)],
    )
    flow = graph.build(source, sinks, config, decoded=True, mode="replay", since=start, metrics=metrics)
    began = time.perf_counter()
    run(flow, config.run, recovery=False)
    seconds = time.perf_counter() - began
    return Replayed(counts["rows"], counts["predictions"], seconds)


def _empty(settings: LakeSettings, out: str) -> None:
    files = msgspec.structs.replace(settings, url=out).open()
    for table in ("predictions", "dead_letters", "telemetry"):
        if files.find(table):
            raise ConfigError(f"{out.rstrip('/')}/{table}: holds files already; name another folder for the replay")
