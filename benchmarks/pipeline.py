"""One measurement of the pipeline in a process of its own, on one core; prints JSON.

    python benchmarks/pipeline.py graph|fused|replay DEVICES MESSAGES FOLDER CORE

``graph`` is the whole flow, from JSON bytes in memory to lake and SQLite on disk, with recovery on.
``fused`` runs the same stages with the same settings in a plain loop: no engine, no exchange, no
snapshots. Both read the same batches. ``replay`` reads what ``graph`` archived in FOLDER.
"""

import ctypes
import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from bytewax.testing import TestingSource
from messages import batches

from voltmill.connectors.drain import Drain
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.sql import SqlSettings
from voltmill.flows import graph, running
from voltmill.flows.choice import Models
from voltmill.flows.config import Config, RunSettings
from voltmill.flows.live import lake_sinks, sql_table
from voltmill.flows.metrics import Metrics
from voltmill.flows.recovery import open_store
from voltmill.flows.replay import replay
from voltmill.flows.stages import Stages
from voltmill.flows.warm_up import warm_up
from voltmill.kernels.fleet import FleetEntry
from voltmill.operators.decode import Decoder
from voltmill.operators.shard import shard_names, split

BATCH_ROWS = 8192  # what a busy source hands over


def config(folder: Path) -> Config:
    """The defaults, with everything in one folder and a fleet that the model knows."""
    return Config(
        run=RunSettings(state=str(folder / "state")),
        lake=LakeSettings(url=str(folder / "lake")),
        sql=SqlSettings(url=f"sqlite:///{folder / 'voltmill.db'}"),
        fleet=(FleetEntry(match="site-1/*", cell_type="lg-hg2", capacity_ah=3.0),),
    )


def run_graph(settings: Config, raw: list[pa.RecordBatch]) -> dict[str, float]:
    """The flow; seconds by stage beside its time."""
    metrics = Metrics()
    sinks = lake_sinks(settings, open_store(settings.run).name, metrics)
    database = sql_table(settings, Drain(), metrics)
    database.prepare()
    flow = graph.build(TestingSource(raw), replace(sinks, databases=[database]), settings, metrics=metrics)
    seconds = timed(lambda: running.run(flow, settings.run))
    stages = {
        sample.labels["stage"]: sample.value
        for family in metrics.stage.collect()
        for sample in family.samples
        if sample.name.endswith("_sum")
    }
    return {"seconds": seconds} | {f"stage:{name}": value for name, value in stages.items()}


def run_fused(settings: Config, raw: list[pa.RecordBatch]) -> dict[str, float]:
    """The stages in a loop; also the bytes of state a device."""
    names, models = shard_names(settings.run.shards), Models(settings)
    decode = Decoder(settings.decode)
    stages = [Stages(settings, models.current) for _ in names]
    sinks = lake_sinks(settings, "fused", Metrics())
    archive = [sinks.telemetry[0].build_part("t", name, None) for name in names]  # type: ignore[attr-defined]
    finished = [sinks.sessions[0].build_part("s", name, None) for name in names]  # type: ignore[attr-defined]
    predicted = [sinks.predictions[0].build_part("p", name, None) for name in names]  # type: ignore[attr-defined]
    table = sql_table(settings, Drain(), Metrics())
    table.prepare()
    database = table.writer()

    def loop() -> None:
        for batch in raw:
            telemetry, letters = decode(batch)
            assert telemetry is not None and letters is None
            found = []
            for k, part in split(telemetry, len(names)):
                passed = stages[k].apply(part)
                assert not passed.failures
                archive[k].write_batch([passed.telemetry])
                finished[k].write_batch([passed.rows["sessions"]] if "sessions" in passed.rows else [])
                predicted[k].write_batch(passed.predictions)
                found += passed.predictions
            assert not database.write(found)
        for part in (*archive, *finished, *predicted, database):
            part.close()

    before = resident()
    seconds = timed(loop)
    states: list[Any] = [s for each in stages for s in (each.quality, each.features, each.sessions, each.health)]
    states += [state for each in stages for state in each.estimates.values()]
    devices = sum(len(each.quality.table) for each in stages)
    return {
        "seconds": seconds,
        "state_bytes_per_device": sum(s.nbytes for s in states) / devices,
        "grown_bytes": resident() - before,
    }


def run_replay(settings: Config, folder: Path) -> dict[str, float]:
    """The archive of ``graph`` once more."""
    shutil.rmtree(folder / "again", ignore_errors=True)
    done = replay(settings, str(folder / "lake"), str(folder / "again"))
    return {"seconds": done.seconds, "rows": done.rows}


def resident() -> float:
    """Bytes of memory in use, what was freed given back first."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return float(psutil.Process().memory_info().rss)


def timed(work: Callable[[], None]) -> float:
    """Wall seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure what the command line asks for."""
    what, devices, messages, folder, core = (
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        Path(sys.argv[4]),
        sys.argv[5],
    )
    os.sched_setaffinity(0, {int(core)})
    settings = config(folder)
    warm_up()
    if what == "replay":
        found = run_replay(settings, folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        raw = list(batches(devices, messages, BATCH_ROWS))
        found = (run_graph if what == "graph" else run_fused)(settings, raw)
        found["messages"] = sum(len(b) for b in raw)
        found["bytes_per_message"] = sum(b.column("payload").nbytes for b in raw) / found["messages"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
