"""Telemetry as the archive that the live flow would have left of it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.kernels.schema import TELEMETRY
from voltmill.operators.shard import shard_names, split

SHARDS = 2


def archived(telemetry: pa.RecordBatch, folder: Path) -> None:
    """Write the rows in the order in which they would have arrived: that of their event times."""
    telemetry = telemetry.take(pc.sort_indices(telemetry, [("event_time", "ascending")]))
    telemetry = telemetry.set_column(
        TELEMETRY.get_field_index("ingest_time"), TELEMETRY.field("ingest_time"), telemetry.column("event_time")
    )
    sink = LakeSink(
        LakeSettings(url=str(folder)),
        table="telemetry",
        schema=TELEMETRY,
        shards=shard_names(SHARDS),
        store="20200101T0Z-a",
    )
    parts = [sink.build_part("lake", name, None) for name in shard_names(SHARDS)]
    for first in range(0, len(telemetry), 10_000):
        for k, rows in split(telemetry.slice(first, 10_000), SHARDS):
            parts[k].write_batch([rows])
    for part in parts:
        part.close()
