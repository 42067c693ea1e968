"""Dead letters and spool files for tests."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.letters import letter_ids
from voltmill.connectors.spool import SPOOLED, Spool, SpoolFile
from voltmill.kernels.schema import DEAD_LETTER

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def letters(payloads: Iterable[bytes | None], first: int = 0, **columns: Any) -> pa.RecordBatch:
    """A letter a payload; offsets count on from ``first``, ``columns`` set values of all rows."""
    base: dict[str, Any] = {"reason": "missing_key", "detail": "there is none", "stage": "decode"}
    base |= {"topic": "site/gw", "ingest_time": NOON, "source": "mqtt", "source_partition": "site/#"}
    rows = [base | {"payload": p, "source_offset": n} | columns for n, p in enumerate(payloads, first)]
    return pa.RecordBatch.from_pylist(rows, schema=DEAD_LETTER)


def in_lake(folder: Path, batches: Iterable[pa.RecordBatch], *, store: str = "s", shard: str = "00") -> None:
    """Write letters into the table, a file a batch."""
    settings = LakeSettings(url=str(folder), max_file_rows=1)
    settings.open().make()
    sink = LakeSink(settings, table="dead_letters", schema=DEAD_LETTER, shards=[shard], store=store)
    part = sink.build_part("sink", shard, None)
    part.write_batch(list(batches))
    part.close()


def spool(folder: Path) -> Spool:
    return Spool(LakeSettings(url=str(folder)).open())


def spool_file(chosen: pa.RecordBatch) -> pa.Buffer:
    file = SpoolFile()
    columns = {name: chosen[name] for name in DEAD_LETTER.names}
    columns["letter_id"] = pa.array(letter_ids(chosen))
    columns["redriven_at"] = pa.array([NOON] * chosen.num_rows, pa.timestamp("us", tz="UTC"))
    file.add(pa.RecordBatch.from_arrays([columns[name] for name in SPOOLED.names], schema=SPOOLED))
    return file.finish()


def until(ready: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
