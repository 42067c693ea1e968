"""replay: the archive through the same graph, into a chosen place, without broker or database.

What is replayed is the telemetry, or the sessions that were found in it: then only models of SOH and RUL are
asked, and a replay of years takes seconds.

Rows come in the order they arrived (``lake_files.arrival``) and their quality bits
are computed anew, so a replay from where the archive starts gives the live predictions bit for bit.
One from the middle begins with cold state; ``warm_up`` feeds the rows before it first.

While it runs it keeps a recovery store of its own (``replay_plan.Work``). Stopped in any way, kill -9
included, and started again with the same arguments it goes on, and its outputs are those of a replay
that was never stopped: no row lost, none twice.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from voltmill.connectors.drain import Drain
from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.lake_source import LakeSource
from voltmill.flows import graph
from voltmill.flows.choice import Models
from voltmill.flows.config import Config, ConfigError, RunSettings
from voltmill.flows.forms import FORMS, Replayable
from voltmill.flows.recovery import close_store, open_store
from voltmill.flows.replay_plan import Plan, Work, plan_of, refuse_lake
from voltmill.flows.running import run
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, TELEMETRY
from voltmill.operators.patterns import DevicePatterns
from voltmill.operators.shard import shard_names

#: Name of the files: the outputs have one recovery store, and it does not outlive the replay.
STORE: Final = "replay"

#: Time between two points that a replay can go on from, s. A snapshot of 100,000 devices takes about half
#: a second, and a signal is heeded within this time.
EPOCH_SECONDS: Final = 10.0


class Stopped(RuntimeError):
    """A replay was asked to stop before it was done; it can go on."""


class Replayed(msgspec.Struct, frozen=True):
    """What a replay did."""

    rows: int
    """Rows read from the archive, those of the warm-up and of starts before the last one included."""
    predictions: int
    """Predictions that the outputs hold."""
    seconds: float
    """Time it took since the last start, s, without starting the engine."""
    rows_before: int = 0
    """Rows that were read before the last start."""
    targets: tuple[str, ...] = ()
    """Targets of the models that were asked about sessions; empty: telemetry was replayed, with any target."""


def replay(
    config: Config,
    lake: str,
    out: str,
    *,
    start: datetime | None = None,
    stop: datetime | None = None,
    warm_up: timedelta = timedelta(hours=1),
    devices: Sequence[str] = (),
    table: Replayable = "telemetry",
    telemetry: bool = False,
    state: str = "",
    epoch_seconds: float = EPOCH_SECONDS,
    drain: Drain | None = None,
    on_progress: Callable[[int, int, int], None] = lambda done, total, rows: None,
) -> Replayed:
    """Replay an archive, or go on with a replay that was stopped.

    Args:
        config: Fleet, models and thresholds; its lake, database and broker are not used.
        lake: Folder or fsspec URL that holds the table.
        out: Folder or URL for ``predictions/`` and ``dead_letters/``, which must not hold any yet.
        start: First event time to predict; None: from the first row.
        stop: Event time to stop before; None: to the last row.
        warm_up: How far before ``start`` to read.
        devices: Patterns on ``device_id``; none: all devices.
        table: What to replay. With ``sessions`` only models of SOH and RUL are asked; they give what they give in a
            replay of the telemetry that these sessions were found in.
        telemetry: Whether to write ``telemetry/`` with the new quality bits as well.
        state: Folder for what it needs to go on; empty: in ``out``, or below ``voltmill-data`` if that is remote.
        epoch_seconds: Time between two points it can go on from, s.
        drain: Asks it to stop.
        on_progress: Called with files done, files in all and rows read, first when it knows where it begins.

    Raises:
        ConfigError: ``out`` holds predictions already, belongs to an archive, or holds an unfinished replay of
            something else; or the configuration cannot be used, or asks no model about sessions.
        LakeError: The archive cannot be read or the outputs cannot be written.
        Stopped: ``drain`` was requested; what was done so far is stored.
    """
    models = Models(config, "replay")
    plan = plan_of(
        config,
        lake,
        start=start,
        stop=stop,
        warm_up_seconds=warm_up.total_seconds(),
        devices=tuple(devices),
        table=table,
        telemetry=telemetry,
        models=models.current(),
    )
    targets: tuple[str, ...] = ()
    if table == "sessions":
        targets = _targets_of_sessions(models, telemetry)
    refuse_lake(config, lake, out)
    target = msgspec.structs.replace(config.lake, url=out)
    work, watch = Work(target, out, state), _Watch(on_progress)
    source = LakeSource(
        msgspec.structs.replace(config.lake, url=lake),
        table=table,
        form=FORMS[table],
        start=start - warm_up if start else None,
        stop=stop,
        devices=DevicePatterns(devices) if devices else None,
        drain=drain,
        on_progress=watch,
    )
    flow = graph.build(
        source,
        _sinks(target, config.run.shards, table, telemetry),
        config,
        emits=table,
        models=models,
        since=start,
    )
    fresh = work.begin(plan)
    settings = RunSettings(state=str(work.state), shards=config.run.shards, epoch_seconds=epoch_seconds)
    try:
        open_store(settings)
        began = time.perf_counter()
        run(flow, settings, drain=drain)
        seconds = time.perf_counter() - began
    finally:
        close_store(work.state)
        if fresh and watch.before is None:
            work.remove()  # there is no archive, or no such place: nothing was begun
    if not watch.ended:
        raise Stopped(f"stopped after {watch.rows} rows; the same command goes on from there")
    return _finished(work, plan, watch, seconds, targets)


class _Watch:
    """Where the reading stands."""

    def __init__(self, tell: Callable[[int, int, int], None]) -> None:
        self._tell = tell
        self.before: int | None = None
        self.rows = 0
        self.ended = False

    def __call__(self, done: int, total: int, rows: int) -> None:
        if self.before is None:
            self.before = rows
        self.rows, self.ended = rows, done == total
        self._tell(done, total, rows)


def _targets_of_sessions(models: Models, telemetry: bool) -> tuple[str, ...]:
    """The targets that a replay of sessions gives; refused where that would be none."""
    if telemetry:
        raise ConfigError("--telemetry: a replay of sessions reads no telemetry that it could write; leave it out")
    asked = models.of("sessions")()
    if not asked:
        raise ConfigError(
            "--table sessions: no model in force is asked about sessions; name one of SOH, "
            "such as measured_soh, in [[model]] or with --model"
        )
    return tuple(dict.fromkeys(model.contract.target for model, _ in [*asked, *models.of("health")()]))


def _sinks(out: LakeSettings, shards: int, replayed: Replayable, telemetry: bool) -> graph.Sinks:
    def table(name: str, schema: Any) -> list[LakeSink]:
        shards_ = shard_names(shards)  # the place is made before the flow runs: not by each shard of each table
        return [LakeSink(out, table=name, schema=schema, shards=shards_, store=STORE, existing=True)]

    return graph.Sinks(
        telemetry=table("telemetry", TELEMETRY) if telemetry else [],
        sessions=table("sessions", FORMS["sessions"].schema) if replayed == "telemetry" else [],
        predictions=table("predictions", PREDICTION),
        dead_letters=table("dead_letters", DEAD_LETTER),
    )


def _finished(work: Work, plan: Plan, watch: _Watch, seconds: float, targets: tuple[str, ...]) -> Replayed:
    done = Replayed(watch.rows, work.predictions(), seconds, watch.before or 0, targets)
    work.finish(plan, {"rows": done.rows, "predictions": done.predictions, "seconds": round(seconds, 3)})
    return done
