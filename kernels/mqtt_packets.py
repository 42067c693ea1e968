"""MQTT PUBLISH packets from the bytes of a socket into columns, without an object per message.

The general client spends about 40 µs on a message; this takes well under one. Everything but PUBLISH
is left to that client. Packet layout: MQTT 3.1.1 and 5.0, sections 2.1.4 (remaining length) and 3.3.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import inline, kernel

# What ``split_publishes`` stopped at.
NEED_MORE: Final = 0  # the packet at POSITION is not complete
OTHER: Final = 1  # a complete packet that is no PUBLISH; its body is BODY:END
FULL: Final = 2  # the columns have no room for the PUBLISH at POSITION, which ends at END
MALFORMED: Final = 3  # not MQTT, or a QoS that was not asked for

# Where it stands, and how far the columns are filled.
POSITION: Final = 0
BODY: Final = 1
END: Final = 2
ROWS: Final = 3
PAYLOAD: Final = 4
TOPIC: Final = 5
CURSOR_LENGTH: Final = 6

_PUBLISH: Final = 0x30
_DUP: Final = 0x08


@inline
def _varint(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """A variable byte integer: (value, place after it); (-1, at) if incomplete, (-2, at) if too long."""
    value = 0
    for k in range(4):
        if at + k >= end:
            return -1, at
        byte = int(data[at + k])
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value, at + k + 1
    return -2, at


@kernel
def split_publishes(
    data: NDArray[np.uint8],
    end: int,
    version5: bool,
    cursor: NDArray[np.int64],
    payload: NDArray[np.uint8],
    payload_offsets: NDArray[np.int32],
    topic: NDArray[np.uint8],
    topic_offsets: NDArray[np.int32],
    packet_ids: NDArray[np.uint16],
    redelivered: NDArray[np.bool_],
) -> int:
    """Append the PUBLISH packets in ``data[cursor[POSITION]:end]`` to the columns; return why it stopped.

    Args:
        data: bytes as received.
        end: how many of them are valid.
        version5: whether the packets bear properties (MQTT 5), which are skipped.
        cursor: int64[CURSOR_LENGTH], updated in place; rows and bytes in use go on where they were.
        payload: bytes of the messages, one after the other.
        payload_offsets: int32[rows + 1], Arrow's offsets into ``payload``.
        topic: bytes of the topics.
        topic_offsets: int32[rows + 1], Arrow's offsets into ``topic``.
        packet_ids: uint16[rows]; 0 for QoS 0, which bears none.
        redelivered: bool[rows]; the DUP flag: the broker has sent it before.

    Returns:
        NEED_MORE, OTHER, FULL or MALFORMED. With NEED_MORE ``cursor[END]`` is where the packet ends, or
        0 if that is not known yet.
    """
    while True:
        position = cursor[POSITION]
        cursor[END] = 0
        if position + 2 > end:
            return NEED_MORE
        length, body = _varint(data, position + 1, end)
        if length == -2:
            return MALFORMED
        if length == -1:
            return NEED_MORE
        stop = body + length
        cursor[BODY] = body
        cursor[END] = stop
        if stop > end:
            return NEED_MORE
        head = int(data[position])
        if head & 0xF0 != _PUBLISH:
            return OTHER
        qos = (head >> 1) & 3
        if qos > 1 or length < 2 + 2 * qos:
            return MALFORMED
        topic_length = int(data[body]) << 8 | int(data[body + 1])
        at = body + 2 + topic_length
        if at + 2 * qos > stop:
            return MALFORMED
        packet_id = 0
        if qos == 1:
            packet_id = int(data[at]) << 8 | int(data[at + 1])
            at += 2
        if version5:
            properties, at = _varint(data, at, stop)
            at += properties
            if properties < 0 or at > stop:
                return MALFORMED
        row = cursor[ROWS]
        payload_end = cursor[PAYLOAD] + stop - at
        topic_end = cursor[TOPIC] + topic_length
        if row >= packet_ids.size or payload_end > payload.size or topic_end > topic.size:
            return FULL
        payload[cursor[PAYLOAD] : payload_end] = data[at:stop]
        topic[cursor[TOPIC] : topic_end] = data[body + 2 : body + 2 + topic_length]
        payload_offsets[row + 1] = payload_end
        topic_offsets[row + 1] = topic_end
        packet_ids[row] = packet_id
        redelivered[row] = head & _DUP != 0
        cursor[ROWS] = row + 1
        cursor[PAYLOAD] = payload_end
        cursor[TOPIC] = topic_end
        cursor[POSITION] = stop


def pubacks(packet_ids: NDArray[np.uint16]) -> bytes:
    """The PUBACK packets for some packet ids, four bytes each (MQTT 5 section 3.4: no reason means success).

    Example:
        >>> pubacks(np.array([1, 0x0203], np.uint16)).hex(" ", 4)
        '40020001 40020203'
    """
    packets = np.empty((packet_ids.size, 2), ">u2")
    packets[:, 0] = 0x4002
    packets[:, 1] = packet_ids
    return packets.tobytes()
