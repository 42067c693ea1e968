"""What was handed out under each packet id: how a redelivered message is known, and when it is acknowledged.

After a connection is lost, or the flow was killed, the broker sends again what was not acknowledged: the
same message under the same packet id, with the DUP flag (MQTT 3.1.1 and 5, section 4.4). If the message
handed out last under that id has the same hash, it is that message, and is not handed out twice.

An entry lasts until the broker has surely read the acknowledgement, for it may then give the id to
another message that equals the first in every byte: a device that repeats itself. Only if the id comes
back within the epoch in which the flow is killed, or the connection lost, can two such messages not be
told apart; the second then counts as the first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voltmill.connectors.mqtt_inbox import Arrivals
from voltmill.kernels.mqtt_redelivery import IDS, recognise

Snapshot = tuple[str, int, bytes, bytes]
"""``("v2", source_offset of the next message, packet ids as <u2, their messages' hashes as <u8)``"""


@dataclass(frozen=True)
class Receipt:
    """Messages to acknowledge over the connection they came over last."""

    connection: int
    packet_ids: NDArray[np.uint16]
    offsets: NDArray[np.int64]


class Delivered:
    """The messages of one partition that were handed out and may come again.

    Attributes:
        offset: of the next message.
        durable: messages with lower offsets are durable.
    """

    def __init__(self, resume_state: tuple[object, ...] | None) -> None:
        """Go on from a snapshot, also of version 1, which knew no packet ids.

        Raises:
            ValueError: it is of another version.
        """
        self.offset, ids, hashes = _restored(resume_state)
        self.durable = self.offset
        self._hashes = np.zeros(IDS, np.uint64)
        self._offsets = np.full(IDS, -1, np.int64)
        self._connections = np.zeros(IDS, np.int64)  # connections count from 1
        self._hashes[ids] = hashes
        self._first_new = (0, 0)

    def take(self, arrivals: Arrivals) -> tuple[NDArray[np.bool_], Receipt]:
        """Which messages to hand out, and which durable ones to acknowledge at once.

        A message that is known and not durable yet is acknowledged with its epoch, over this connection.
        """
        new, overdue = np.empty((2, len(arrivals.packet_ids)), np.bool_)
        first = self.offset
        self.offset = recognise(
            arrivals.packet_ids,
            arrivals.redelivered,
            arrivals.hashes,
            arrivals.connection,
            first,
            self.durable,
            self._hashes,
            self._offsets,
            self._connections,
            new,
            overdue,
        )
        if arrivals.connection > self._first_new[0] and ((arrivals.packet_ids > 0) & ~arrivals.redelivered).any():
            self._first_new = (arrivals.connection, first)
        ids = arrivals.packet_ids[overdue]
        return new, Receipt(arrivals.connection, ids, self._offsets[ids])

    def settle(self, durable: int) -> list[Receipt]:
        """Messages with offsets below ``durable`` are durable: what to acknowledge now, in order of arrival."""
        ids = np.flatnonzero((self._offsets >= self.durable) & (self._offsets < durable))
        self.durable = durable
        ids = ids[np.argsort(self._offsets[ids], kind="stable")]
        over = self._connections[ids]
        return [
            Receipt(connection, ids[over == connection].astype(np.uint16), self._offsets[ids[over == connection]])
            for connection in np.unique(over).tolist()
        ]

    def confirm(self, receipt: Receipt) -> None:
        """The broker has read these acknowledgements: what comes under their ids now is another message."""
        ids = receipt.packet_ids
        same = (self._offsets[ids] == receipt.offsets) & (self._connections[ids] == receipt.connection)
        self._hashes[ids[same]] = 0
        connection, first = self._first_new
        if receipt.connection == connection and receipt.offsets.max(initial=-1) >= first:
            # The broker sends again before it sends anew, so what has not come again by now never will:
            # its acknowledgement had arrived although the connection, or the flow, ended right then.
            self._hashes[self._connections < connection] = 0

    def snapshot(self) -> Snapshot:
        """The next offset and what may come again."""
        ids = np.flatnonzero(self._hashes)
        return ("v2", self.offset, ids.astype("<u2").tobytes(), self._hashes[ids].astype("<u8").tobytes())


def _restored(state: tuple[object, ...] | None) -> tuple[int, NDArray[np.uint16], NDArray[np.uint64]]:
    nothing = np.empty(0, np.uint16), np.empty(0, np.uint64)
    match state:
        case None:
            return 0, *nothing
        case ("v1", int(offset)):
            return offset, *nothing
        case ("v2", int(offset), bytes(ids), bytes(hashes)) if len(hashes) == 4 * len(ids) and len(ids) % 2 == 0:
            return offset, np.frombuffer(ids, "<u2"), np.frombuffer(hashes, "<u8")
    version = state[0] if isinstance(state, tuple) and state else state
    raise ValueError(
        f"mqtt: the recovery store is of version {str(version)[:20]!r}, this release reads v1 and v2: start a new one"
    )
