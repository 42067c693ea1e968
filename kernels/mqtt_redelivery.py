"""Which messages of a batch were handed out before: the table of packet ids, walked in order of arrival."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import kernel

#: Packet ids have 16 bits; 0 is none.
IDS: Final = 1 << 16


@kernel
def recognise(
    packet_ids: NDArray[np.uint16],
    redelivered: NDArray[np.bool_],
    hashes: NDArray[np.uint64],
    connection: int,
    offset: int,
    durable: int,
    last_hash: NDArray[np.uint64],
    last_offset: NDArray[np.int64],
    last_connection: NDArray[np.int64],
    new: NDArray[np.bool_],
    overdue: NDArray[np.bool_],
) -> int:
    """Tell new messages from those that were handed out already, and enter the new ones into the table.

    Args:
        packet_ids: uint16[rows]; 0 for QoS 0.
        redelivered: bool[rows]; the DUP flag.
        hashes: uint64[rows], none of them 0.
        connection: the one they came over.
        offset: what the next new message gets as its offset.
        durable: messages with lower offsets are durable.
        last_hash: uint64[IDS], the message handed out last under each packet id; 0: none.
        last_offset: int64[IDS], its offset.
        last_connection: int64[IDS], the connection over which it is acknowledged.
        new: bool[rows], written: whether to hand it out.
        overdue: bool[rows], written: whether to acknowledge it at once.

    Returns:
        The next offset.
    """
    for row in range(len(packet_ids)):
        packet_id = packet_ids[row]
        overdue[row] = False
        new[row] = packet_id == 0 or not redelivered[row] or last_hash[packet_id] != hashes[row]
        if new[row]:
            if packet_id != 0:
                last_hash[packet_id] = hashes[row]
                last_offset[packet_id] = offset
                last_connection[packet_id] = connection
            offset += 1
        elif last_connection[packet_id] != connection:
            last_connection[packet_id] = connection
            overdue[row] = last_offset[packet_id] < durable
    return offset
