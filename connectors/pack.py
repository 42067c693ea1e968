"""Many messages in one: what a gateway sends to IoT Hub, and what is taken apart again behind it.

A hub counts and bills messages in blocks of 4 KB and throttles by their number, so a gateway puts the
messages of many modules into one. A pack is a JSON array, an object a message in order of arrival:

    [{"topic":"site-a/rack-1/module-7","payload":{"device_id": …}},
     {"topic":"site-a/rack-1/module-8","base64":"gqFp…"}]

``payload`` is the message itself where it is one JSON value, byte for byte but for blanks around it, so that
hub routing and Azure Stream Analytics can look into it; any other message stands in ``base64``. The
application property ``schema`` tells a pack from a message that a device sent by itself.
"""

import base64
from collections.abc import Iterable
from typing import Final

import msgspec

#: Application property, and its value, that say what the body is.
PROPERTY: Final = "schema"
SCHEMA: Final = "voltmill-pack-1"
CONTENT_TYPE: Final = "application/json"
CONTENT_ENCODING: Final = "utf-8"
#: Application property of a pack that was kept back by an outage: its value is "true".
LATE: Final = "late"


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    topic: str
    payload: msgspec.Raw = msgspec.Raw()
    base64: str = ""


_DECODER: Final = msgspec.json.Decoder(list[_Entry])
_VALUE: Final = msgspec.json.Decoder(msgspec.Raw)


class PackError(ValueError):
    """A body is no pack; one line that says why."""


def entry(topic: str, payload: bytes) -> bytes:
    """One message as it stands in a pack.

    Example:
        >>> entry("a/b", b'{"x": 1}')
        b'{"topic":"a/b","payload":{"x": 1}}'
        >>> entry("a/b", b"no json")
        b'{"topic":"a/b","base64":"bm8ganNvbg=="}'
    """
    name = msgspec.json.encode(topic)
    try:
        payload.decode()  # the JSON scanner lets some bytes pass that are not UTF-8
        _VALUE.decode(payload)
    except ValueError:
        return b'{"topic":%b,"base64":"%b"}' % (name, base64.b64encode(payload))
    return b'{"topic":%b,"payload":%b}' % (name, payload)


def pack(entries: Iterable[bytes]) -> bytes:
    """A body of entries that ``entry`` made: two bytes, and one more for each entry after the first.

    Example:
        >>> pack([entry("a", b"1"), entry("b", b"2")])
        b'[{"topic":"a","payload":1},{"topic":"b","payload":2}]'
    """
    return b"[%b]" % b",".join(entries)


def unpack(body: bytes) -> list[tuple[str, bytes]]:
    r"""Topic and payload of each message of a pack, in order.

    Raises:
        PackError: it is none.

    Example:
        >>> unpack(pack([entry("a", b'{"x": 1}'), entry("b", b"\xff")]))
        [('a', b'{"x": 1}'), ('b', b'\xff')]
    """
    try:
        return [
            (one.topic, base64.b64decode(one.base64, validate=True) if one.base64 else bytes(one.payload))
            for one in _DECODER.decode(body)
        ]
    except (ValueError, msgspec.DecodeError) as error:
        raise PackError(f"no {SCHEMA}: {' '.join(str(error).split())[:300]}") from error
