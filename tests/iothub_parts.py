"""What the tests of the IoT Hub source share: settings for a stand-in, partitions read to the end."""

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from hub_server import HubProcess, HubServer

from voltmill.connectors.drain import Drain
from voltmill.connectors.iothub import IotHubPartition, IotHubSettings, IotHubSource, Watch

#: azure-eventhub 5.15 leaves the socket of a connection that was lost to the garbage collector.
SOCKETS_LEFT = pytest.mark.filterwarnings("ignore:.*socket.socket.*:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Has those sockets collected in the test that they are of, which bears SOCKETS_LEFT, and not in a later one."""
    yield
    gc.collect()


def settings_for(hub: HubServer | HubProcess, **changed: Any) -> IotHubSettings:
    """Settings that wait for nothing longer than a test does."""
    quick = {"linger_ms": 5, "reconnect_min_seconds": 0.05, "reconnect_max_seconds": 0.2, "timeout_seconds": 5.0}
    return IotHubSettings(**{"connection_string": hub.connection_string, **quick, **changed})


def part_of(
    settings: IotHubSettings,
    partition: str = "0",
    state: Any = None,
    drain: Drain | None = None,
    watch: Watch | None = None,
) -> IotHubPartition:
    return IotHubSource(settings, drain=drain, watch=watch).build_part("in", partition, state)


def read(part: IotHubPartition, rows: int, within: float = 30.0) -> list[pa.RecordBatch]:
    """Batches until so many rows have come."""
    batches: list[pa.RecordBatch] = []

    def enough() -> bool:
        batches.extend(part.next_batch())
        return sum(batch.num_rows for batch in batches) >= rows

    until(enough, within)
    return batches


def until(ready: Callable[[], bool], within: float = 30.0) -> None:
    deadline = time.monotonic() + within
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def payloads(batches: list[pa.RecordBatch]) -> list[bytes]:
    return [payload for batch in batches for payload in batch["payload"].to_pylist()]


def offsets(batches: list[pa.RecordBatch]) -> list[int]:
    return [offset for batch in batches for offset in batch["source_offset"].to_pylist()]


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [str(number).encode() for number in range(first, first + count)]
