"""The publisher and its ledger: everything that was sent, how often at most, and whether the broker has it.

As a process, ``python -m chaos.ledger FOLDER PORT RATE SEED``: publishes with QoS 1 until SIGTERM, then one
last plain tick, waits for the acknowledgements and writes the ledger. A message that was under way when a
connection broke is sent again by the client, as MQTT asks, so it may be there twice: that is the gateway's
double, not voltmill's, and ``attempts`` counts it.
"""

import os
import signal
import sys
import time
from array import array
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import paho.mqtt.client as paho
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chaos.stream import Message, Stream

_SEGMENT_ROWS: Final = 20_000
_IN_FLIGHT: Final = 1_000
_DRAIN_SECONDS: Final = 120.0
_PROGRESS_SECONDS: Final = 0.2
_SCHEMA: Final = pa.schema([("topic", pa.dictionary(pa.int32(), pa.string())), ("payload", pa.binary())])


class Progress(msgspec.Struct, frozen=True):
    """How far the publisher is."""

    sent: int
    confirmed: int
    event_time_us: int


class Ledger(msgspec.Struct, frozen=True):
    """What a publisher sent, an entry a message, in the order of sending."""

    payload: pa.ChunkedArray
    attempts: NDArray[np.int64]
    """How often it may have reached the broker."""
    confirmed: NDArray[np.bool_]
    """Whether the broker acknowledged it; else it may be there or not."""
    sent_at: NDArray[np.float64]
    """Wall clock, s."""

    @classmethod
    def load(cls, folder: Path) -> "Ledger":
        """Read what a publisher wrote."""
        segments = [pq.read_table(file, schema=_SCHEMA) for file in sorted(folder.glob("sent-*.parquet"))]
        with np.load(folder / "sendings.npz") as sendings:
            return cls(
                pa.concat_tables(segments).column("payload"),
                sendings["attempts"].astype(np.int64),
                sendings["confirmed"],
                sendings["sent_at"],
            )


def write_sent(file: Path, messages: Sequence[Message]) -> None:
    """Write a segment of the ledger."""
    topics, payloads = zip(*messages, strict=True)
    arrays = [pa.array(topics, pa.string()).dictionary_encode(), pa.array(payloads, pa.binary())]
    pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), file, compression="zstd")


def write_sendings(folder: Path, attempts: NDArray[Any], confirmed: NDArray[Any], sent_at: NDArray[Any]) -> None:
    """Write what became of all messages."""
    np.savez(folder / "sendings.npz", attempts=attempts, confirmed=confirmed, sent_at=sent_at)


class Publisher:
    """Publishes and keeps the ledger; all of it is done by the thread that calls."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._open: dict[int, int] = {}  # packet id -> entry
        self._events: deque[int] = deque()  # packet ids that were acknowledged; -1: a connection broke
        self._segment: list[Message] = []
        self._segments = 0
        self.attempts, self.confirmed = bytearray(), bytearray()
        self.sent_at = array("d")
        self.acknowledged = 0
        self._client = paho.Client("chaos-publisher", protocol=paho.MQTTv5)
        self._client.max_inflight_messages_set(0)
        self._client.reconnect_delay_set(0.2, 1)
        self._client.on_publish = lambda client, userdata, mid: self._events.append(mid)
        self._client.on_disconnect = lambda *_: self._events.append(-1)
        self._client.connect_async("127.0.0.1", port, keepalive=10)
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes) -> None:
        """Send a message; waits while too many are under way."""
        while len(self._open) >= _IN_FLIGHT or not (self.sent_at or self._client.is_connected()):
            self.settle()
            time.sleep(0.01)
        while (sent := self._client.publish(topic, payload, qos=1)).rc == paho.MQTT_ERR_QUEUE_SIZE:
            pass  # that packet id is in use: the next one
        self._open[sent.mid] = len(self.sent_at)
        self.sent_at.append(time.time())
        self.attempts.append(1)
        self.confirmed.append(0)
        self._segment.append((topic, payload))
        if len(self._segment) >= _SEGMENT_ROWS:
            self._write_segment()
        self.settle()

    def settle(self) -> None:
        """Note what happened on the network since the last call."""
        while self._events:
            event = self._events.popleft()
            if event >= 0:
                self.confirmed[self._open.pop(event)] = 1
                self.acknowledged += 1
            else:
                for entry in self._open.values():
                    self.attempts[entry] = min(self.attempts[entry] + 1, 255)

    def drain(self) -> None:
        """Wait until the broker has everything."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._open and time.monotonic() < deadline:
            self.settle()
            time.sleep(0.01)

    def close(self) -> None:
        """Take leave and write the rest of the ledger."""
        self._client.disconnect()
        self._client.loop_stop()
        self.settle()
        self._write_segment()
        attempts, confirmed = np.frombuffer(self.attempts, np.uint8), np.frombuffer(self.confirmed, np.bool_)
        write_sendings(self._folder, attempts, confirmed, np.array(self.sent_at))

    def _write_segment(self) -> None:
        if self._segment:
            write_sent(self._folder / f"sent-{self._segments:06d}.parquet", self._segment)
            self._segments += 1
            self._segment = []


def main(folder: Path, port: int, rate: float, seed: int) -> int:
    """Publish until SIGTERM; the status is 0 if the broker has confirmed everything."""
    stop: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    stream, publisher = Stream(seed), Publisher(folder, port)
    pace = _Pace(rate)
    told = 0.0
    while not stop:
        for topic, payload in stream.tick():
            publisher.publish(topic, payload)
            pace.step()
            if time.monotonic() - told > _PROGRESS_SECONDS:
                told = time.monotonic()
                _tell(folder, publisher, stream)
    publisher.drain()  # so that the last tick is also last at the broker
    for topic, payload in stream.tick(plain=True):
        publisher.publish(topic, payload)
    publisher.drain()
    _tell(folder, publisher, stream)
    publisher.close()
    return int(publisher.acknowledged < len(publisher.sent_at))


class _Pace:
    """Holds back to a rate; time that was lost while the broker was away is not made up for."""

    def __init__(self, rate: float) -> None:
        self._step = 1 / rate
        self._due = time.monotonic()

    def step(self) -> None:
        now = time.monotonic()
        self._due = max(self._due + self._step, now - 0.1)
        if self._due > now + 0.005:
            time.sleep(self._due - now)


def _tell(folder: Path, publisher: Publisher, stream: Stream) -> None:
    told: Any = Progress(len(publisher.sent_at), publisher.acknowledged, stream.event_time_us)
    (folder / "progress.tmp").write_bytes(msgspec.json.encode(told))
    os.replace(folder / "progress.tmp", folder / "progress.json")


def progress(folder: Path) -> Progress:
    """How far the publisher of a folder is."""
    try:
        return msgspec.json.decode((folder / "progress.json").read_bytes(), type=Progress)
    except FileNotFoundError:
        return Progress(0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
