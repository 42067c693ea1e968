"""XXH64 of messages: 64 bits that tell two messages apart, at about ten bytes a nanosecond.

Yann Collet's XXH64 as in the xxHash specification (``doc/xxhash_spec.md``). The hashes are part of the
MQTT source's recovery state, so another algorithm needs another version of that state.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import inline, kernel

_P1: Final = np.uint64(0x9E3779B185EBCA87)
_P2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_P3: Final = np.uint64(0x165667B19E3779F9)
_P4: Final = np.uint64(0x85EBCA77C2B2AE63)
_P5: Final = np.uint64(0x27D4EB2F165667C5)


@inline
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@inline
def _word(data: NDArray[np.uint8], at: int, size: int) -> np.uint64:
    """``size`` bytes, little endian. Unsigned places, or the eight loads do not become one."""
    place = np.uint64(at)
    word = np.uint64(data[place])
    for k in range(1, size):
        word |= np.uint64(data[place + np.uint64(k)]) << np.uint64(8 * k)
    return word


@inline
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(lane + word * _P2, 31) * _P1


@inline
def xxh64(data: NDArray[np.uint8], begin: int, end: int, seed: np.uint64) -> np.uint64:
    """The hash of ``data[begin:end]``."""
    at = begin
    if end - begin >= 32:
        a, b, c, d = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
        while at + 32 <= end:
            a = _round(a, _word(data, at, 8))
            b = _round(b, _word(data, at + 8, 8))
            c = _round(c, _word(data, at + 16, 8))
            d = _round(d, _word(data, at + 24, 8))
            at += 32
        h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        for lane in (a, b, c, d):
            h = (h ^ _round(np.uint64(0), lane)) * _P1 + _P4
    else:
        h = seed + _P5
    h += np.uint64(end - begin)
    while at + 8 <= end:
        h = _rotate(h ^ _round(np.uint64(0), _word(data, at, 8)), 27) * _P1 + _P4
        at += 8
    if at + 4 <= end:
        h = _rotate(h ^ (_word(data, at, 4) * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        h = _rotate(h ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@kernel
def hash_messages(
    payload_offsets: NDArray[np.int32],
    payload: NDArray[np.uint8],
    topic_offsets: NDArray[np.int32],
    topic: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
) -> None:
    """Write the hash of each message: of its payload, seeded with the hash of its topic; never 0.

    The offsets (rows + 1) point into the bytes, as in Arrow.
    """
    for row in range(len(hashes)):
        seed = xxh64(topic, topic_offsets[row], topic_offsets[row + 1], np.uint64(0))
        h = xxh64(payload, payload_offsets[row], payload_offsets[row + 1], seed)
        hashes[row] = h if h != 0 else np.uint64(1)
