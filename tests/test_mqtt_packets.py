import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from voltmill.connectors.mqtt_inbox import Inbox
from voltmill.kernels.mqtt_packets import END, MALFORMED, NEED_MORE, OTHER, POSITION

Message = tuple[str, bytes, int, bool]  # topic, payload, packet id (0: QoS 0), DUP


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def publish(message: Message, version5: bool) -> bytes:
    topic, payload, packet_id, again = message
    name = topic.encode()
    body = struct.pack("!H", len(name)) + name
    body += struct.pack("!H", packet_id) if packet_id else b""
    body += b"\x05\x02\x00\x00\x00\x3c" if version5 else b""  # message expiry interval, 60 s
    return (
        bytes([(0x32 if packet_id else 0x30) | (0x08 if again else 0)])
        + varint(len(body) + len(payload))
        + body
        + payload
    )


def inbox(max_rows: int = 1000, max_bytes: int = 1 << 16) -> Inbox:
    return Inbox(max_rows, max_bytes, 0.0, 1 << 20, 1 << 30)


def taken(box: Inbox) -> list[Message]:
    out: list[Message] = []
    while (arrivals := box.take()) is not None:
        topics, payloads = arrivals.topic.to_pylist(), arrivals.payload.to_pylist()
        ids, again = arrivals.packet_ids.tolist(), arrivals.redelivered.tolist()
        out += list(zip(topics, payloads, ids, again, strict=True))
    return out


MESSAGES = st.lists(
    st.tuples(st.text(min_size=1, max_size=20), st.binary(max_size=200), st.integers(0, 65535), st.booleans()),
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(MESSAGES, st.booleans(), st.lists(st.integers(1, 200), min_size=3), st.integers(1, 7), st.integers(1, 400))
def test_any_cut_of_the_stream_gives_the_same_messages(
    messages: list[Message], version5: bool, cuts: list[int], max_rows: int, max_bytes: int
) -> None:
    stream = b"".join(publish(message, version5) for message in messages)
    box = inbox(max_rows, max_bytes)
    start = end = 0
    cut = 0
    while end < len(stream):
        end = min(len(stream), end + cuts[cut % len(cuts)])
        cut += 1
        why, cursor = box.add(np.frombuffer(stream, np.uint8), start, end, version5)
        assert why == NEED_MORE
        start = int(cursor[POSITION])
    assert taken(box) == messages
    assert box.messages == 0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_taken_without_an_exception(stream: bytes, version5: bool) -> None:
    box = inbox()
    why, cursor = box.add(np.frombuffer(stream, np.uint8), 0, len(stream), version5)
    assert why in (NEED_MORE, OTHER, MALFORMED)
    assert 0 <= cursor[POSITION] <= len(stream)
    taken(box)


def test_it_stops_at_another_packet() -> None:
    stream = publish(("a", b"1", 7, False), True) + b"\xd0\x00" + publish(("a", b"2", 8, True), True)
    box = inbox()
    why, cursor = box.add(np.frombuffer(stream, np.uint8), 0, len(stream), True)
    assert (why, stream[int(cursor[POSITION]) : int(cursor[END])]) == (OTHER, b"\xd0\x00")
    assert taken(box) == [("a", b"1", 7, False)]


def test_qos_2_and_overlong_lengths_are_malformed() -> None:
    for stream in (b"\x34\x05\x00\x01a\x00\x01", b"\x30\xff\xff\xff\xff\x01", b"\x32\x03\x00\x05a", b"\x30\x01\x00"):
        assert inbox().add(np.frombuffer(stream, np.uint8), 0, len(stream), False)[0] == MALFORMED


def test_a_topic_that_is_not_utf8_is_kept_legible() -> None:
    stream = b"\x30\x05\x00\x02\xff\x61!"
    box = inbox()
    box.add(np.frombuffer(stream, np.uint8), 0, len(stream), False)
    assert taken(box) == [("\ufffda", b"!", 0, False)]


def test_a_batch_waits_for_the_linger_time_and_no_longer() -> None:
    now = 100.0
    box = Inbox(10, 1000, 0.05, 1 << 20, 1 << 30, clock=lambda: now)
    packet = np.frombuffer(publish(("a", b"1", 1, False), False), np.uint8)
    assert box.due_in() == 0.05
    box.add(packet, 0, packet.size, False)
    now = 100.04
    box.add(packet, 0, packet.size, False)
    assert box.take() is None
    assert 0.009 < box.due_in() < 0.011
    now = 100.05
    assert len(taken(box)) == 2
    for _ in range(10):
        box.add(packet, 0, packet.size, False)
    assert box.take() is None  # full, but not yet known to be: the eleventh closes it
    box.add(packet, 0, packet.size, False)
    assert box.due_in() == 0.0
    assert len(taken(box)) == 10
