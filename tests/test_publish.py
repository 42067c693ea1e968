"""Recorded telemetry made live: every row of a Parquet file comes out of a real broker, in order."""

import io
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import Mosquitto

from voltmill.connectors.mqtt import MqttSettings
from voltmill.flows.publish import json_rows, publish_parquet


def rows_of(table: pa.Table, tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    pq.write_table(table, tmp_path / "t.parquet")
    return [json.loads(row) for row in json_rows(tmp_path / "t.parquet", **options)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bms.parquet"
    pq.write_table(pa.table({"n": range(2000), "u": pa.array([3.6] * 2000, pa.float32())}), path, row_group_size=700)
    return path


@contextmanager
def listening(broker: Mosquitto, topic: str, count: int) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Subscribes; the function waits for the messages."""
    got: list[dict[str, Any]] = []
    subscribed, full = threading.Event(), threading.Event()

    def on_message(client: Any, data: Any, message: Any) -> None:
        got.append(json.loads(message.payload))
        if len(got) == count:
            full.set()

    def messages() -> list[dict[str, Any]]:
        assert full.wait(30), f"{len(got)} of {count} messages"
        return got

    client = paho.Client("listener")
    client.on_connect = lambda *_: client.subscribe(topic, qos=1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = on_message
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert subscribed.wait(10)
    yield messages
    client.disconnect()
    client.loop_stop()


def test_times_are_written_as_they_are_stored(tmp_path: Path) -> None:
    when = datetime(2021, 5, 5, 9, 10, 0, 250_000)  # noqa: DTZ001 - the naive one is the point
    table = pa.table(
        {
            "naive": pa.array([when], pa.timestamp("us")),
            "utc": pa.array([when.replace(tzinfo=UTC)], pa.timestamp("us", tz="UTC")),
            "local": pa.array([when.replace(tzinfo=UTC)], pa.timestamp("ms", tz="Asia/Shanghai")),
            "fine": pa.array([1620205800250000999], pa.timestamp("ns")),
        }
    )
    assert rows_of(table, tmp_path) == [
        {
            "naive": "2021-05-05T09:10:00.250000",
            "utc": "2021-05-05T09:10:00.250000Z",
            "local": "2021-05-05T17:10:00.250000+08:00",
            "fine": "2021-05-05T09:10:00.250000",
        }
    ]


def test_float32_is_written_short_and_exactly(tmp_path: Path) -> None:
    values = [42.4, 3.688, 1e-7, -0.0, 3.4028235e38, 16777217.0]
    table = pa.table(
        {"f": pa.array(values, pa.float32()), "l": pa.array([[v] for v in values], pa.list_(pa.float32()))}
    )
    rows = rows_of(table, tmp_path)
    assert rows[0] == {"f": 42.4, "l": [42.4]}
    assert pa.array([row["f"] for row in rows], pa.float32()).equals(table["f"].chunk(0))
    assert [row["l"] for row in rows] == [[row["f"]] for row in rows]


def test_nulls_and_nans_are_null(tmp_path: Path) -> None:
    table = pa.table(
        {"f": pa.array([None, math.nan], pa.float32()), "l": [[1.5, math.nan, None], None], "s": ["é", None]}
    )
    assert rows_of(table, tmp_path) == [
        {"f": None, "l": [1.5, None, None], "s": "é"},
        {"f": None, "l": None, "s": None},
    ]


def test_limit_columns_and_device_id(file: Path) -> None:
    rows = [json.loads(row) for row in json_rows(file, limit=1500, columns=["n"], device_id="gw/1")]
    assert rows == [{"n": n, "device_id": "gw/1"} for n in range(1500)]
    assert list(json_rows(file, limit=0)) == []
    with pytest.raises(ValueError, match=r"bms.parquet: there is no column 'N'"):
        next(json_rows(file, columns=["N"]))


def test_not_a_parquet_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"x.parquet: not a Parquet file") as error:
        next(json_rows(tmp_path / "x.parquet"))
    assert "\n" not in str(error.value)


def test_every_row_reaches_the_broker_in_order(mosquitto: Callable[..., Mosquitto], file: Path) -> None:
    broker, out = mosquitto(), io.StringIO()
    settings = MqttSettings(host=broker.host, port=broker.port)
    with listening(broker, "recorded/#", 4000) as messages:
        sent = publish_parquet(file, settings, topic="recorded/bms", device_id="gw/1", repeat=2, progress=out)
        got = messages()
    assert sent == 4000
    assert got == [{"n": n, "u": 3.6, "device_id": "gw/1"} for n in [*range(2000), *range(2000)]]
    assert re.fullmatch(r"(publish bms.parquet: \d+ of 4000 messages, \d+/s\n)+", out.getvalue())
    assert "4000 of 4000" in out.getvalue()


def test_rate_holds_the_messages_back(mosquitto: Callable[..., Mosquitto], file: Path) -> None:
    broker = mosquitto()
    settings = MqttSettings(host=broker.host, port=broker.port)
    started = time.monotonic()
    assert publish_parquet(file, settings, topic="t", limit=50, rate=100, progress=io.StringIO()) == 50
    assert time.monotonic() - started >= 0.5


def test_no_broker_is_a_timeout(file: Path) -> None:
    settings = MqttSettings(port=9)
    with pytest.raises(TimeoutError):
        publish_parquet(file, settings, topic="t", timeout=0.2, progress=io.StringIO())


@pytest.mark.parametrize("options", [{"repeat": 0}, {"rate": 0.0}, {"limit": -1}])
def test_nonsense_is_refused(file: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="repeat is at least 1"):
        publish_parquet(file, MqttSettings(), topic="t", **options)


def test_a_topic_with_wildcards_is_refused(mosquitto: Callable[..., Mosquitto], file: Path) -> None:
    broker = mosquitto()
    with pytest.raises(ValueError):
        publish_parquet(file, MqttSettings(host=broker.host, port=broker.port), topic="a/#", progress=io.StringIO())
