"""The rows of a Parquet file as JSON messages over MQTT: recorded telemetry made live.

Takes any Parquet file; gives one message a row, an object with the column names as keys, in file order.
Memory is bounded by one batch of rows. QoS 1: it returns when the broker has acknowledged every message.
"""

import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from voltmill.connectors.mqtt import MqttSettings, Publisher

_BATCH_ROWS: Final = 512
_PROGRESS_SECONDS: Final = 2.0


def json_rows(
    file: str | Path, *, device_id: str | None = None, limit: int | None = None, columns: list[str] | None = None
) -> Iterator[bytes]:
    """Each row of a Parquet file as a JSON object.

    Nulls and NaN are null. Times are ISO 8601 as stored: a column without a zone gives times without an
    offset. A float32 is written with the fewest digits that give the same float32. Binary is base64.

    Args:
        file: The Parquet file.
        device_id: Put into each object under this key; for files of one device that do not name it.
        limit: Rows at most.
        columns: Columns to write; all if none are named.

    Raises:
        ValueError: It is no Parquet file, or has no such column; one line.
        OSError: It cannot be read.
    """
    left = limit
    constant = {} if device_id is None else {"device_id": device_id}
    with _opened(file) as parquet:
        unknown = set(columns or ()) - set(parquet.schema_arrow.names)
        if unknown:
            raise ValueError(f"{file}: there is no column {sorted(unknown)[0]!r}")
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
            batch = batch if left is None else batch.slice(0, left)
            if not batch.num_rows:
                return
            values = [_plain(column).to_pylist() for column in batch.columns]
            for row in zip(*values, strict=True):
                yield msgspec.json.encode({**dict(zip(batch.schema.names, row, strict=True)), **constant})
            left = None if left is None else left - batch.num_rows


def publish_parquet(
    file: str | Path,
    settings: MqttSettings,
    *,
    topic: str,
    device_id: str | None = None,
    limit: int | None = None,
    columns: list[str] | None = None,
    rate: float | None = None,
    repeat: int = 1,
    timeout: float = 60.0,
    progress: TextIO | None = None,
) -> int:
    """Publish the rows of a Parquet file, as ``json_rows`` writes them.

    Args:
        file: The Parquet file.
        settings: The broker; its ``topics`` are not used, its ``client_id`` gets a suffix.
        topic: Where to publish, the same for all rows.
        device_id: As for ``json_rows``.
        limit: As for ``json_rows``.
        columns: As for ``json_rows``.
        rate: Messages a second; as fast as the broker takes them if none.
        repeat: How many times the file is sent through.
        timeout: How long to wait for a broker that takes nothing, s.
        progress: Where a line on the progress goes every two seconds; standard error if none.

    Returns:
        The number of messages, all acknowledged by the broker.

    Raises:
        ValueError: As for ``json_rows``; the topic has wildcards; rate or repeat is not positive.
        OSError: The file cannot be read.
        TimeoutError: The broker cannot be reached or takes nothing for ``timeout`` seconds.
    """
    if repeat < 1 or (rate is not None and rate <= 0) or (limit is not None and limit < 0):
        raise ValueError("publish: repeat is at least 1, rate above 0, limit at least 0")
    with _opened(file) as parquet:
        rows = parquet.metadata.num_rows
    meter = _Meter(Path(file).name, repeat * (rows if limit is None else min(rows, limit)), progress or sys.stderr)
    # a name of its own: two publishers under one name would push each other out
    with Publisher(settings, f"{settings.client_id}-publish-{secrets.token_hex(4)}") as publisher:
        for _ in range(repeat):
            for payload in json_rows(file, device_id=device_id, limit=limit, columns=columns):
                publisher.publish(topic, payload, timeout=timeout)
                meter.count()
                if rate is not None:
                    meter.hold(rate)
        publisher.drain(timeout)
    meter.tell()
    return meter.sent


class _Meter:
    """Counts messages, holds them to a rate, and tells how far it is."""

    def __init__(self, name: str, total: int, out: TextIO) -> None:
        self.sent = 0
        self._name, self._total, self._out = name, total, out
        self._started = self._told = time.monotonic()

    def count(self) -> None:
        """One more was sent."""
        self.sent += 1
        if time.monotonic() - self._told > _PROGRESS_SECONDS:
            self.tell()

    def hold(self, rate: float) -> None:
        """Wait until the next message is due."""
        time.sleep(max(0.0, self._started + self.sent / rate - time.monotonic()))

    def tell(self) -> None:
        """Write the line."""
        self._told = time.monotonic()
        speed = self.sent / max(self._told - self._started, 1e-3)
        print(f"publish {self._name}: {self.sent} of {self._total} messages, {speed:.0f}/s", file=self._out, flush=True)


def _opened(file: str | Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: not a Parquet file: {error}") from None


def _plain(column: pa.Array) -> pa.Array:
    """The column as its values are to be written."""
    kind: Any = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return column.cast(pa.timestamp("us", kind.tz), safe=False)  # Python's datetime ends at microseconds
    if kind == pa.float32():
        return column.cast(pa.string()).cast(pa.float64())  # 42.4 instead of 42.400001525878906
    if pa.types.is_list(kind) and kind.value_type == pa.float32():
        return column.cast(pa.list_(pa.string())).cast(pa.list_(pa.float64()))
    return column
