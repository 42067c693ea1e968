"""Driving a partition of the MQTT source by hand, as the engine would."""

import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from servers import Mosquitto

from voltmill.connectors.mqtt import MqttPartition, MqttSettings, Publisher


def until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.002)


def settings_for(broker: Mosquitto, name: str, **options: Any) -> MqttSettings:
    """Settings with a session and topics of the test's own."""
    fast = {"linger_ms": 5, "reconnect_min_seconds": 0.05, "reconnect_max_seconds": 0.2}
    options = {"host": broker.host, "port": broker.port, "topics": (f"{name}/#",), "client_id": name} | fast | options
    return MqttSettings(**options)


def publish(settings: MqttSettings, topic: str, payloads: list[bytes]) -> None:
    with Publisher(settings, "test-publisher") as publisher:
        for payload in payloads:
            publisher.publish(topic, payload)
        publisher.drain(30)


def numbers(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % k for k in range(start, start + count)]


def read(part: MqttPartition, count: int) -> list[pa.RecordBatch]:
    """Batches of at least ``count`` rows, none of them acknowledged."""
    batches: list[pa.RecordBatch] = []

    def enough() -> bool:
        batches.extend(part.next_batch())
        return sum(batch.num_rows for batch in batches) >= count

    until(enough)
    return batches


def payloads(batches: list[pa.RecordBatch]) -> list[bytes]:
    return [payload for batch in batches for payload in batch["payload"].to_pylist()]


def offsets(batches: list[pa.RecordBatch]) -> list[int]:
    return [offset for batch in batches for offset in batch["source_offset"].to_pylist()]


def commit(part: MqttPartition) -> None:
    """What the engine does when an epoch is durable."""
    part.snapshot()
    assert part.next_batch() == []
