"""Where received messages wait for the flow: columns, bounded, handed on as whole batches.

The network thread adds, the worker's thread takes. A batch is closed when it is full, when its first
message has waited for the linger time, or when the connection changes (packet ids belong to one).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill.kernels.mqtt_packets import CURSOR_LENGTH, END, FULL, PAYLOAD, POSITION, ROWS, TOPIC, split_publishes
from voltmill.kernels.schema import TIME
from voltmill.kernels.xxh64 import hash_messages

_LONGEST_TOPIC = 65_535


@dataclass(frozen=True)
class Arrivals:
    """Messages of one connection in the order of their arrival."""

    payload: pa.Array
    """binary"""
    topic: pa.Array
    """LABEL"""
    ingest_time: pa.Array
    """TIME"""
    packet_ids: NDArray[np.uint16]
    """To acknowledge; 0 for QoS 0."""
    redelivered: NDArray[np.bool_]
    """The DUP flag: the broker has sent it before."""
    hashes: NDArray[np.uint64]
    """Of topic and payload, never 0."""
    connection: int
    """The connection they came over: only there may they be acknowledged."""


class Inbox:
    """Collects messages of one partition.

    Args:
        max_rows: messages in one batch.
        max_bytes: payload bytes in one batch; a larger message makes a larger batch.
        linger_seconds: how long the first message of a batch waits for others.
        max_queue_messages: beyond it, ``wait_for_room`` waits.
        max_queue_bytes: the same in payload bytes.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        max_rows: int,
        max_bytes: int,
        linger_seconds: float,
        max_queue_messages: int,
        max_queue_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._linger = linger_seconds
        self._max_queue_messages = max_queue_messages
        self._max_queue_bytes = max_queue_bytes
        self._clock = clock
        self._room = threading.Condition()
        self._closed = False
        self._ready: deque[Arrivals] = deque()
        self._messages = 0
        self._bytes = 0
        self._connection = 0
        self._opened = 0.0
        self._cursor = np.zeros(CURSOR_LENGTH, np.int64)
        self._payload = np.empty(max_bytes, np.uint8)
        self._payload_offsets = np.zeros(max_rows + 1, np.int32)
        self._topic = np.empty(max(_LONGEST_TOPIC, 128 * max_rows), np.uint8)
        self._topic_offsets = np.zeros(max_rows + 1, np.int32)
        self._packet_ids = np.empty(max_rows, np.uint16)
        self._redelivered = np.empty(max_rows, np.bool_)
        self._times = np.empty(max_rows, np.int64)

    @property
    def messages(self) -> int:
        """Messages that wait."""
        return self._messages

    def wait_for_room(self, timeout: float) -> bool:
        """Wait until there is room for more, or the inbox is closed; return whether there is room."""
        with self._room:
            return self._room.wait_for(self._has_room, timeout)

    def _has_room(self) -> bool:
        full = self._messages >= self._max_queue_messages or self._bytes >= self._max_queue_bytes
        return self._closed or not full

    def close(self) -> None:
        """Let no one wait any more."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def new_connection(self, connection: int) -> None:
        """Messages that are added from now on came over another connection."""
        with self._room:
            self._seal()
            self._connection = connection

    def add(self, data: NDArray[np.uint8], start: int, end: int, version5: bool) -> tuple[int, NDArray[np.int64]]:
        """Take the PUBLISH packets in ``data[start:end]``; return why and where it stopped (``split_publishes``)."""
        now_us = time.time_ns() // 1000
        with self._room:
            self._cursor[POSITION] = start
            while True:
                rows, size = int(self._cursor[ROWS]), int(self._cursor[PAYLOAD])
                why = split_publishes(
                    data,
                    end,
                    version5,
                    self._cursor,
                    self._payload,
                    self._payload_offsets,
                    self._topic,
                    self._topic_offsets,
                    self._packet_ids,
                    self._redelivered,
                )
                added = int(self._cursor[ROWS]) - rows
                if added:
                    if rows == 0:
                        self._opened = self._clock()
                    self._times[rows : rows + added] = now_us
                    self._messages += added
                    self._bytes += int(self._cursor[PAYLOAD]) - size
                if why != FULL:
                    return why, self._cursor
                if self._cursor[ROWS] == 0:  # one message larger than a batch
                    self._payload = np.empty(int(self._cursor[END] - self._cursor[POSITION]), np.uint8)
                self._seal()

    def take(self) -> Arrivals | None:
        """The next batch if one is due, else None."""
        with self._room:
            if not self._ready and self._cursor[ROWS] and self._clock() >= self._opened + self._linger:
                self._seal()
            if not self._ready:
                return None
            arrivals = self._ready.popleft()
            self._messages -= len(arrivals.payload)
            self._bytes -= arrivals.payload.buffers()[2].size
            self._room.notify_all()
            return arrivals

    def due_in(self) -> float:
        """Seconds until ``take`` should be tried again."""
        if self._ready:
            return 0.0
        if self._cursor[ROWS]:
            return max(0.0, self._opened + self._linger - self._clock())
        return self._linger

    def _seal(self) -> None:
        """Close the batch that is being filled and start the next."""
        rows = int(self._cursor[ROWS])
        if rows == 0:
            return
        payload = self._payload[: self._cursor[PAYLOAD]]
        topic = self._topic[: self._cursor[TOPIC]]
        hashes = np.empty(rows, np.uint64)
        hash_messages(self._payload_offsets, payload, self._topic_offsets, topic, hashes)
        self._ready.append(
            Arrivals(
                payload=_varied(pa.binary(), rows, self._payload_offsets, payload),
                topic=_labels(rows, self._topic_offsets, topic),
                ingest_time=pa.array(self._times[:rows].copy()).cast(TIME),
                packet_ids=self._packet_ids[:rows].copy(),
                redelivered=self._redelivered[:rows].copy(),
                hashes=hashes,
                connection=self._connection,
            )
        )
        self._cursor[ROWS] = self._cursor[PAYLOAD] = self._cursor[TOPIC] = 0
        if self._payload.size != self._max_bytes:
            self._payload = np.empty(self._max_bytes, np.uint8)


def _varied(type_: pa.DataType, rows: int, offsets: NDArray[np.int32], data: NDArray[np.uint8]) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets[: rows + 1].tobytes()), pa.py_buffer(data.tobytes())]
    return pa.Array.from_buffers(type_, rows, buffers)


def _labels(rows: int, offsets: NDArray[np.int32], data: NDArray[np.uint8]) -> pa.Array:
    texts = _varied(pa.string(), rows, offsets, data)
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:  # a broker that lets topics through that are not UTF-8
        raw = _varied(pa.binary(), rows, offsets, data)
        texts = pa.array([topic.decode(errors="replace") for topic in raw.to_pylist()], pa.string())
    return texts.dictionary_encode()
