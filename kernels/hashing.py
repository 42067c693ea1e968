"""Device ids to shards and slots: a stable hash, and an open-addressing index over it.

The hash decides the shard, so it is part of the recovery format: it must never change. It is FNV-1a
over the UTF-8 bytes (Fowler, Noll and Vo) with the 64-bit finaliser of MurmurHash3, which spreads
ids that differ only in their last digit.
"""

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import inline, kernel


@kernel
def hash_ids(offsets: NDArray[np.int32], data: NDArray[np.uint8], hashes: NDArray[np.uint64]) -> None:
    """Write the 64-bit hash of each id; ``offsets`` (rows + 1) point into ``data``, as in Arrow."""
    for row in range(len(hashes)):
        h = np.uint64(0xCBF29CE484222325)
        for k in range(offsets[row], offsets[row + 1]):
            h = (h ^ np.uint64(data[k])) * np.uint64(0x100000001B3)
        h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        h = (h ^ (h >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        hashes[row] = h ^ (h >> np.uint64(33))


@kernel
def shard_order(hashes: NDArray[np.uint64], shards: int, order: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
    """Stable counting sort of rows by shard: shard ``s`` is ``order[starts[s]:starts[s + 1]]``."""
    starts[:] = 0
    for row in range(len(hashes)):
        starts[np.int64(hashes[row] % np.uint64(shards)) + 1] += 1
    for shard in range(shards):
        starts[shard + 1] += starts[shard]
    place = starts[:shards].copy()
    for row in range(len(hashes)):
        s = np.int64(hashes[row] % np.uint64(shards))
        order[place[s]] = row
        place[s] += 1


@inline
def _same_id(data: NDArray[np.uint8], begin: int, end: int, ids: NDArray[np.uint8], id_begin: int, id_end: int) -> bool:
    if end - begin != id_end - id_begin:
        return False
    for k in range(end - begin):
        if data[begin + k] != ids[id_begin + k]:
            return False
    return True


@kernel
def find_slots(
    offsets: NDArray[np.int32],
    data: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    buckets: NDArray[np.int32],
    slot_hashes: NDArray[np.uint64],
    id_offsets: NDArray[np.int64],
    ids: NDArray[np.uint8],
    slots: NDArray[np.int32],
) -> int:
    """Look each id up; unknown ones get slot -1. Returns how many are unknown.

    ``buckets`` (a power of two, more than the slots) holds slot + 1, 0 where empty. Ids are compared
    byte by byte: two devices with one hash are still two devices.
    """
    mask = np.uint64(len(buckets) - 1)
    unknown = 0
    for row in range(len(hashes)):
        h = hashes[row]
        at = h & mask
        found = -1
        while buckets[at] != 0:
            slot = buckets[at] - 1
            if slot_hashes[slot] == h and _same_id(
                data, offsets[row], offsets[row + 1], ids, id_offsets[slot], id_offsets[slot + 1]
            ):
                found = slot
                break
            at = (at + np.uint64(1)) & mask
        slots[row] = found
        unknown += found < 0
    return unknown


@kernel
def insert_slots(buckets: NDArray[np.int32], slot_hashes: NDArray[np.uint64], first: int, last: int) -> None:
    """Enter the slots ``first`` to ``last - 1`` into the buckets."""
    mask = np.uint64(len(buckets) - 1)
    for slot in range(first, last):
        at = slot_hashes[slot] & mask
        while buckets[at] != 0:
            at = (at + np.uint64(1)) & mask
        buckets[at] = slot + 1
