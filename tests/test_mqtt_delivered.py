"""The table of packet ids: what is handed out, what is acknowledged, and over which connection."""

import numpy as np
import pyarrow as pa
import pytest

from voltmill.connectors.mqtt_delivered import Delivered, Receipt
from voltmill.connectors.mqtt_inbox import Arrivals
from voltmill.kernels.xxh64 import hash_messages, xxh64

Message = tuple[int, str, bool]  # packet id, content, DUP


def hashes_of(messages: list[tuple[bytes, bytes]]) -> list[int]:
    """Hashes of messages of a topic and a payload each."""

    def column(parts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        offsets = np.cumsum([0, *map(len, parts)]).astype(np.int32)
        return offsets, np.frombuffer(b"".join(parts), np.uint8)

    out = np.empty(len(messages), np.uint64)
    topics, payloads = zip(*messages, strict=True)
    hash_messages(*column(list(payloads)), *column(list(topics)), out)
    return out.tolist()


def arrive(connection: int, *messages: Message) -> Arrivals:
    contents = [content.encode() for _, content, _ in messages]
    return Arrivals(
        payload=pa.array(contents, pa.binary()),
        topic=pa.array(["t"] * len(contents)).dictionary_encode(),
        ingest_time=pa.nulls(len(contents)),
        packet_ids=np.array([packet_id for packet_id, _, _ in messages], np.uint16),
        redelivered=np.array([again for _, _, again in messages]),
        hashes=np.array(hashes_of([(b"t", content) for content in contents]), np.uint64),
        connection=connection,
    )


def ids(receipt: Receipt) -> tuple[int, list[int]]:
    return receipt.connection, receipt.packet_ids.tolist()


@pytest.mark.parametrize(
    ("text", "digest"),
    [  # of the xxHash specification's reference implementation
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_the_hash_is_xxh64(text: bytes, digest: int) -> None:
    data = np.frombuffer(b"!" + text + b"!", np.uint8)
    assert int(xxh64(data, 1, 1 + len(text), np.uint64(0))) == digest


def test_each_byte_and_the_border_of_topic_and_payload_count() -> None:
    base = bytes(range(100))
    variants = [(b"t", base[:k] + bytes([base[k] ^ 0x80]) + base[k + 1 :]) for k in range(100)]
    variants += [(b"t", base[:k]) for k in range(101)] + [(b"t" + base[:1], base[1:]), (b"", b"t" + base)]
    assert len(set(hashes_of(variants))) == len(variants)


def test_a_packet_id_in_use_by_another_message_is_not_taken_for_the_old_one() -> None:
    table = Delivered(None)
    table.take(arrive(1, (5, "old", False)))
    assert [ids(receipt) for receipt in table.settle(1)] == [(1, [5])]
    new, overdue = table.take(arrive(2, (5, "new", True)))  # its first copy was lost with the connection
    assert new.tolist() == [True] and ids(overdue) == (2, [])
    new, overdue = table.take(arrive(3, (5, "new", True)))
    assert new.tolist() == [False] and ids(overdue) == (3, [])  # not durable yet
    assert [ids(receipt) for receipt in table.settle(2)] == [(3, [5])]


def test_each_message_is_acknowledged_once_a_connection() -> None:
    table = Delivered(None)
    table.take(arrive(1, (1, "a", False), (2, "b", False), (3, "c", False)))
    new, overdue = table.take(arrive(2, (1, "a", True), (2, "b", True)))
    assert not new.any() and ids(overdue) == (2, [])
    receipts = table.settle(3)
    assert [ids(receipt) for receipt in receipts] == [(1, [3]), (2, [1, 2])]
    assert ids(table.take(arrive(2, (3, "c", True), (1, "a", True)))[1]) == (2, [3])  # a was, over this one
    assert ids(table.take(arrive(3, (1, "a", True)))[1]) == (3, [1])
    assert table.settle(3) == []


def test_acknowledgements_are_in_order_of_arrival() -> None:
    table = Delivered(None)
    order = [7, 3, 65_535, 1, 200]
    table.take(arrive(1, *((packet_id, str(packet_id), False) for packet_id in order)))
    assert [ids(receipt) for receipt in table.settle(3)] == [(1, order[:3])]
    assert [ids(receipt) for receipt in table.settle(5)] == [(1, order[3:])]


def test_qos_0_is_never_taken_for_a_copy_and_never_acknowledged() -> None:
    table = Delivered(None)
    for connection in (1, 2):
        assert table.take(arrive(connection, (0, "x", True), (0, "x", True)))[0].all()
    assert table.offset == 4 and table.settle(4) == []
    assert table.snapshot() == ("v2", 4, b"", b"")


def test_a_confirmed_id_is_forgotten_and_one_in_use_again_is_not() -> None:
    table = Delivered(None)
    table.take(arrive(1, (1, "same", False), (2, "same", False), (3, "same", False)))
    (receipt,) = table.settle(3)
    table.take(arrive(1, (2, "same", False)))  # the broker has read the receipt, its answer is under way
    table.confirm(receipt)
    assert table.snapshot()[2] == np.array([2], "<u2").tobytes()
    new, _ = table.take(arrive(2, (1, "same", True), (2, "same", True)))
    assert new.tolist() == [True, False]


def test_a_receipt_of_a_lost_connection_confirms_nothing() -> None:
    table = Delivered(None)
    table.take(arrive(1, (1, "a", False)))
    (receipt,) = table.settle(1)
    table.take(arrive(2, (1, "a", True)))
    table.confirm(receipt)
    assert table.take(arrive(3, (1, "a", True)))[0].tolist() == [False]


def test_what_did_not_come_again_is_forgotten_once_a_newer_message_is_confirmed() -> None:
    first = Delivered(None)
    first.take(arrive(1, (1, "a", False), (2, "b", False)))
    first.settle(2)
    table = Delivered(first.snapshot())  # it was killed, and the broker had read the receipt of a
    new, overdue = table.take(arrive(1, (2, "b", True)))
    assert not new.any() and ids(overdue) == (1, [2])
    table.confirm(overdue)
    assert table.snapshot()[2] == np.array([1], "<u2").tobytes()  # perhaps it is still to come
    table.take(arrive(1, (3, "c", False)))
    (receipt,) = table.settle(3)
    table.confirm(receipt)
    assert table.snapshot() == ("v2", 3, b"", b"")
    assert table.take(arrive(2, (1, "a", True)))[0].tolist() == [True]  # another a
