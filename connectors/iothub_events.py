"""From events of the hub to rows: what the annotations say, and packs taken apart.

An event is one row, or as many as there are messages in the pack. A pack that cannot be taken apart is one row with
the body as it came, so ``decode`` makes it a dead letter and nothing is lost.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from voltmill.connectors.pack import PROPERTY, SCHEMA, PackError, unpack
from voltmill.kernels.schema import RAW, TIME, label

SOURCE: Final = "iothub"

_SEQUENCE: Final = b"x-opt-sequence-number"
_OFFSET: Final = b"x-opt-offset"
_ENQUEUED: Final = b"x-opt-enqueued-time"
_DEVICE: Final = b"iothub-connection-device-id"
_HUB_ENQUEUED: Final = b"iothub-enqueuedtime"
_LAST: Final = b"last_enqueued_sequence_number"
_PROPERTY: Final = PROPERTY.encode()
_SCHEMA: Final = SCHEMA.encode()


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        sequence: its sequence number in the partition.
        offset: its offset there.
        last: sequence number of the newest event of the partition, as the hub says with this one.
        enqueued_us: when the hub received it, Unix microseconds.
        rows: topic and payload of each message.
        size: bytes of the body.
        broken: whether it calls itself a pack and is none.
    """

    sequence: int
    offset: str
    last: int
    enqueued_us: int
    rows: Sequence[tuple[str | None, bytes]]
    size: int
    broken: bool = False


def sequence_of(message: Any) -> int:
    """The sequence number of a message of the client, before it is looked into any further."""
    return int(message.message_annotations[_SEQUENCE])


def event(message: Any) -> Event:
    """What a message of the client holds.

    Topic is that of the pack's entry; without a pack, the id of the device that sent it, as the hub knows it.
    """
    annotations = message.message_annotations
    device = _text(annotations.get(_DEVICE))
    body = _body(message)
    rows: Sequence[tuple[str | None, bytes]] = ((device, body),)
    broken = False
    properties = message.application_properties
    if properties and properties.get(_PROPERTY) == _SCHEMA:
        try:
            rows = unpack(body)
        except PackError:
            broken = True
    sequence = int(annotations[_SEQUENCE])
    told = message.delivery_annotations
    return Event(
        sequence=sequence,
        offset=_text(annotations.get(_OFFSET)) or "",
        last=int(told.get(_LAST, sequence)) if told else sequence,
        enqueued_us=_microseconds(annotations.get(_HUB_ENQUEUED) or annotations.get(_ENQUEUED)),
        rows=rows,
        size=len(body),
        broken=broken,
    )


def batch(events: Sequence[Event], partition: str) -> pa.RecordBatch:
    """The rows of some events as ``RAW``; ``source_offset`` is the sequence number, shared by the rows of a pack."""
    counts = [len(each.rows) for each in events]
    rows = sum(counts)
    topics = pa.array([topic for each in events for topic, _ in each.rows], pa.string())
    columns = {
        "payload": pa.array([payload for each in events for _, payload in each.rows], pa.binary()),
        "topic": topics.dictionary_encode(),
        "ingest_time": pa.array(np.repeat(np.array([e.enqueued_us for e in events], np.int64), counts)).cast(TIME),
        "source": label(SOURCE, rows),
        "source_partition": label(partition, rows),
        "source_offset": pa.array(np.repeat(np.array([e.sequence for e in events], np.int64), counts)),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in RAW.names], schema=RAW)


def _body(message: Any) -> bytes:
    """The body as the device sent it; a body of another AMQP type than data, as its text."""
    data = message.data
    if data is None:
        return str(message.value if message.sequence is None else message.sequence).encode()
    if isinstance(data, bytes):
        return data
    return bytes(data[0]) if len(data) == 1 else b"".join(data)


def _text(value: Any) -> str | None:
    """A string of AMQP, which the client leaves as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else None if value is None else str(value)


def _microseconds(value: Any) -> int:
    """A time of AMQP, which is in milliseconds; now, if there is none, which no hub leaves out."""
    return int(value) * 1000 if value is not None else time.time_ns() // 1000
