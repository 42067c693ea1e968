"""A flow that is killed: numbered telemetry to the lake and predictions to SQL.

Run: stored_flow.py FOLDER ROWS [URL DRIVER [LAKE]]; without a URL the database is a SQLite file in the folder,
without a LAKE (an fsspec URL) it is a folder there.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pyarrow as pa
from bytewax.connectors.stdio import StdOutSink
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import run_main

from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.outage import Patience
from voltmill.connectors.sql import SqlSettings, SqlTable
from voltmill.kernels.schema import PREDICTION, TELEMETRY

SHARDS = ("00", "01", "02")
START = datetime(2026, 11, 22, 23, 59, 50, tzinfo=UTC)
BATCH = 20


def telemetry(first: int, rows: int, **columns: Any) -> pa.RecordBatch:
    """Rows numbered from ``first``, 10 ms apart, of five devices; ``columns`` set values of all rows."""
    base = {"current_ampere": 1.5, "cell_voltage_volt": [3.7, 3.71], "cell_temperature_celsius": [25.0]}
    base |= {"source": "test", "quality_bits": 0}
    return pa.RecordBatch.from_pylist(
        [
            base
            | {"device_id": f"m-{n % 5}", "event_time": START + n * timedelta(milliseconds=10)}
            | {"ingest_time": START + n * timedelta(milliseconds=10), "seq": n}
            | {"source_partition": f"part-{n // 7}", "source_offset": n}
            | columns
            for n in range(first, first + rows)
        ],
        schema=TELEMETRY,
    )


def predictions(first: int, rows: int, **columns: Any) -> pa.RecordBatch:
    """One prediction for each row of ``telemetry``; ``columns`` set values of all rows."""
    base: dict[str, Any] = {
        "target": "soc",
        "model_sha256": "ab" * 32,
        "unit": "percent",
        "model_name": "lg",
        "model_version": "1",
    }
    base |= {"mode": "live", "quality_bits": 0, "source": "test"}
    return pa.RecordBatch.from_pylist(
        [
            base
            | {"device_id": f"m-{n % 5}", "event_time": START + n * timedelta(milliseconds=10)}
            | {"value": n / 4, "lo90": n / 4 - 1, "hi90": None, "source_partition": f"part-{n // 7}"}
            | {"source_offset": n}
            | columns
            for n in range(first, first + rows)
        ],
        schema=PREDICTION,
    )


class _Reader(StatefulSourcePartition[tuple[str, int], int]):
    def __init__(self, place: int, rows: int) -> None:
        self.place, self.rows = place, rows

    def next_batch(self) -> list[tuple[str, int]]:
        if self.place >= self.rows:
            raise StopIteration
        first, self.place = self.place, self.place + BATCH
        return [(SHARDS[first // BATCH % len(SHARDS)], first)]

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + timedelta(milliseconds=2)

    def snapshot(self) -> int:
        return self.place


class _Source(FixedPartitionedSource[tuple[str, int], int]):
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def list_parts(self) -> list[str]:
        return ["numbers"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Reader:
        return _Reader(resume_state or 0, self.rows)


def main(folder: Path, rows: int, url: str = "", driver: str = "", lake: str = "") -> None:
    settings = LakeSettings(url=lake or str(folder / "lake"), max_file_rows=90, max_snapshot_bytes=3_000)
    recovery = folder / "recovery"
    if not recovery.exists():
        recovery.mkdir()
        init_db_dir(recovery, 1)
    flow = Dataflow("stored")
    numbers = op.input("numbers", flow, _Source(rows))
    samples = op.map_value("telemetry", numbers, lambda first: telemetry(first, BATCH))
    values = op.map_value("predictions", numbers, lambda first: predictions(first, BATCH))
    op.output(
        "lake", samples, LakeSink(settings, table="telemetry", schema=TELEMETRY, shards=SHARDS, store="20261122T1-a")
    )
    database = SqlSettings(url=url or f"sqlite:///{folder / 'voltmill.db'}", driver=driver)
    table = SqlTable(database, patience=Patience("the database"))
    table.prepare()
    letters = table.upsert("sql", values)
    op.output("refused", letters, StdOutSink())
    run_main(flow, epoch_interval=timedelta(milliseconds=30), recovery_config=RecoveryConfig(str(recovery)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
