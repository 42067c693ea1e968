"""What a hub holds: events in partitions, in memory, with retention that tests wind forward."""

import functools
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from amqp import (
    ANNOTATIONS,
    APPLICATION,
    DATA,
    PROPERTIES,
    Described,
    Symbol,
    compound,
    described,
    encode,
    timestamp,
)

_SELECTOR = re.compile(r"amqp\.annotation\.x-opt-(offset|sequence-number|enqueued-time)\s*(>=?)\s*'([^']*)'")
_SEQUENCE, _OFFSET, _TIME, _ENQUEUED = (
    encode(Symbol(name))
    for name in ("x-opt-sequence-number", "x-opt-offset", "x-opt-enqueued-time", "iothub-enqueuedtime")
)


@functools.lru_cache(10_000)
def _from_device(device_id: str) -> list[bytes]:
    """The annotations by which a hub says who sent a message, names and values in turn."""
    annotations = {
        "iothub-connection-device-id": device_id,
        "iothub-connection-auth-method": '{"scope":"device","type":"sas","issuer":"iothub"}',
        "iothub-connection-auth-generation-id": "638679113921437155",
        "iothub-message-source": "Telemetry",
    }
    return [encoded for name, value in annotations.items() for encoded in (encode(Symbol(name)), encode(value))]


@dataclass(frozen=True)
class Event:
    sequence: int
    offset: int
    enqueued_ms: int
    encoded: bytes
    """All sections of the message as they are sent."""


@dataclass
class Partition:
    """The events from ``first`` on; those before it have expired."""

    first: int = 0
    events: list[Event] = field(default_factory=list)
    size: int = 0

    @property
    def end(self) -> int:
        """The sequence number that comes next."""
        return self.first + len(self.events)

    def at(self, sequence: int) -> Event:
        return self.events[sequence - self.first]

    def expire(self, before: int) -> None:
        """Let go of the events below a sequence number."""
        gone = max(0, min(before - self.first, len(self.events)))
        del self.events[:gone]
        self.first += gone

    def start(self, expression: str) -> int:
        """The sequence number that a selector of the client begins with."""
        match = _SELECTOR.match(expression)
        if match is None:
            raise ValueError(f"no such position: {expression!r}")
        name, operator, value = match.groups()
        if value == "@latest":
            return self.end
        wanted = int(value) + (operator == ">")
        if name == "sequence-number":
            return min(max(wanted, self.first), self.end)
        if name == "offset" and wanted <= 0:
            return self.first
        key: Callable[[Event], int] = (lambda e: e.offset) if name == "offset" else (lambda e: e.enqueued_ms)
        return next((event.sequence for event in self.events if key(event) >= wanted), self.end)


class Hub:
    """The partitions; ``on_append`` is told when there is something new."""

    def __init__(self, name: str, partitions: int) -> None:
        self.name = name
        self.partitions = [Partition() for _ in range(partitions)]
        self.lock = threading.Lock()
        self.on_append: Callable[[], None] = lambda: None

    def partition_of(self, device_id: str) -> int:
        """A device always has the same partition, so its messages stay in order."""
        return zlib.crc32(device_id.encode()) % len(self.partitions)

    def append(
        self,
        body: bytes,
        *,
        partition: int | None = None,
        properties: Mapping[str, Any] | None = None,
        device_id: str = "",
        enqueued_ms: int | None = None,
        content_type: str = "",
        content_encoding: str = "",
    ) -> tuple[int, int]:
        """Take one event; return its partition and sequence number.

        Args:
            body: as it was sent.
            partition: None: that of the device.
            properties: of the application.
            device_id: who sent it; empty: no device, so it has none of a hub's annotations.
            enqueued_ms: when it arrived, Unix milliseconds; None: now.
            content_type: system property.
            content_encoding: system property.
        """
        number = self.partition_of(device_id) if partition is None else partition
        arrived = int(time.time() * 1000) if enqueued_ms is None else enqueued_ms
        own = _from_device(device_id) + [_ENQUEUED, encode(timestamp(arrived))] if device_id else []
        rest = b""
        if content_type or content_encoding:
            names = [Symbol(text) if text else None for text in (content_type, content_encoding)]
            rest += encode(Described(PROPERTIES, [None] * 6 + names + [None] * 5))
        if properties:
            rest += encode(Described(APPLICATION, dict(properties)))
        rest += encode(Described(DATA, body))
        with self.lock:
            held = self.partitions[number]
            sequence, offset = held.end, held.size
            place = [_SEQUENCE, encode(sequence), _OFFSET, encode(str(offset)), _TIME, encode(timestamp(arrived))]
            annotations = described(ANNOTATIONS, compound(0xD1, place + own))
            held.events.append(Event(sequence, offset, arrived, annotations + rest))
            held.size += len(body) + 64
        self.on_append()
        return number, sequence
