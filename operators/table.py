"""Device tables: the state of one shard, one slot a device, as a structured array.

An array of records keeps all that a kernel needs of a device on neighbouring cache lines, which is
what makes a hundred thousand devices cost about as much a message as a thousand. A snapshot is the
bytes of the array under a version and a layout; no class is ever pickled.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill.kernels.fleet import UNKNOWN, Fleet, FleetEntry
from voltmill.kernels.hashing import find_slots, hash_ids, insert_slots

#: What a kernel reads of a device's ``FleetEntry``; made anew from the configuration at each start.
FACTS: Final = np.dtype(
    [
        ("entry", "<i4"),  # index in the fleet tables, -1: none matches
        ("series", "<i4"),
        ("capacity_ah", "<f8"),  # NaN: unknown
        ("gap_us", "<i8"),
        ("empty_volt", "<f8"),  # operating_volt; NaN: unknown
        ("full_volt", "<f8"),
        ("cv_low_rate", "<f8"),  # cv_c_rate
        ("cv_high_rate", "<f8"),
        ("voltage_low", "<f8"),
        ("voltage_high", "<f8"),
        ("temperature_low", "<f8"),
        ("temperature_high", "<f8"),
        ("current_low", "<f8"),
        ("current_high", "<f8"),
    ]
)


_LZ4: Final = pa.Codec("lz4")


class StateError(RuntimeError):
    """A recovery store holds state that this version or configuration cannot use."""


def state_parts(what: str, snapshot: Any, known: Mapping[str, int]) -> tuple[str, tuple[Any, ...]]:
    """Version and parts of a stored state.

    Args:
        what: Whose state it is, for the error.
        snapshot: What the recovery store held.
        known: The versions that can be read, and how many parts each has.

    Raises:
        StateError: It is of another version.

    Example:
        >>> state_parts("quality", ("v1", 3, b""), {"v1": 2})
        ('v1', (3, b''))
    """
    if isinstance(snapshot, tuple) and snapshot and known.get(snapshot[0]) == len(snapshot) - 1:
        return snapshot[0], snapshot[1:]
    version = snapshot[0] if isinstance(snapshot, tuple) and snapshot else type(snapshot).__name__
    raise StateError(
        f"{what}: the recovery store holds state {version!r}, this voltmill reads {', '.join(known)}: "
        "run the version that made it, or name another [run] state and replay the archive"
    )


def id_buffers(ids: pa.StringArray) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Offsets (rows + 1) and bytes of a string array, without copying; no nulls."""
    _, offsets, data = ids.buffers()
    begin = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    return begin, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


def hashes_of(ids: pa.StringArray) -> NDArray[np.uint64]:
    """The stable 64-bit hash of each id."""
    out = np.empty(len(ids), np.uint64)
    hash_ids(*id_buffers(ids), out)
    return out


def _facts(index: int, entry: FleetEntry) -> tuple[Any, ...]:
    limits = entry.limits
    return (
        index,
        entry.series,
        entry.capacity_ah or np.nan,
        int(entry.gap_seconds * 1e6),
        *(volt or np.nan for volt in entry.operating_volt),
        *entry.cv_c_rate,
        *limits.cell_voltage_volt,
        *limits.cell_temperature_celsius,
        *limits.current_ampere,
    )


class DeviceTable:
    """Slots of the devices of one shard, in the order of their first row.

    Attributes:
        rows: structured array of ``dtype``, zeroed for a new device; only ``[:len(self)]`` counts.
        facts: structured array of ``FACTS``, aligned with ``rows``.
    """

    def __init__(self, dtype: np.dtype[Any], fleet: Fleet, snapshot: tuple[Any, ...] | None = None) -> None:
        self._fleet = fleet
        self._layout = repr(dtype.descr)
        self._count = 0
        self._ids = np.empty(1024, np.uint8)
        self._id_offsets = np.zeros(65, np.int64)
        self._hashes = np.empty(64, np.uint64)
        self._buckets = np.zeros(256, np.int32)
        # By index of the fleet entry; the last element answers for -1, the device of no entry.
        known = [_facts(k, entry) for k, entry in enumerate(fleet.entries)]
        self._entry_facts = np.array([*known, _facts(-1, UNKNOWN)], FACTS)
        self.rows = np.zeros(64, dtype)
        self.facts = np.zeros(64, FACTS)
        if snapshot is not None:
            self._restore(snapshot)

    def __len__(self) -> int:
        """How many devices there are."""
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes held for the devices, spare capacity left out."""
        per_slot = self.rows.itemsize + self.facts.itemsize + 8 + 8  # hash and offset
        return self._count * per_slot + int(self._id_offsets[self._count]) + 4 * len(self._buckets)

    def device_ids(self) -> list[str]:
        """The ids, by slot."""
        text, at = self._ids.tobytes(), self._id_offsets
        return [text[at[k] : at[k + 1]].decode() for k in range(self._count)]

    def slots(self, ids: pa.StringArray) -> NDArray[np.int32]:
        """The slot of each row's device; devices not seen before get the next free ones."""
        offsets, data = id_buffers(ids)
        hashes = np.empty(len(ids), np.uint64)
        hash_ids(offsets, data, hashes)
        slots = np.empty(len(ids), np.int32)
        if self._find(offsets, data, hashes, slots):
            new = dict.fromkeys(ids.filter(pa.array(slots < 0)).to_pylist())
            self._add(list(new))
            self._find(offsets, data, hashes, slots)
        return slots

    def snapshot(self) -> tuple[str, str, int, bytes, bytes, bytes]:
        """Version, layout, count, id offsets, id bytes and rows, the last compressed: a copy.

        Recovery stores are written at a third of the speed of LZ4, which halves the rows.
        """
        n = self._count
        offsets = self._id_offsets[: n + 1]
        return (
            "v1",
            self._layout,
            n,
            offsets.tobytes(),
            self._ids[: offsets[n]].tobytes(),
            _LZ4.compress(self.rows[:n].tobytes(), asbytes=True),
        )

    def _find(
        self,
        offsets: NDArray[np.int32],
        data: NDArray[np.uint8],
        hashes: NDArray[np.uint64],
        slots: NDArray[np.int32],
    ) -> int:
        return find_slots(offsets, data, hashes, self._buckets, self._hashes, self._id_offsets, self._ids, slots)

    def _add(self, ids: list[str]) -> None:
        encoded = pa.array(ids, pa.string())
        offsets, data = id_buffers(encoded)
        first, last = self._count, self._count + len(ids)
        self._reserve(last, int(self._id_offsets[first]) + int(offsets[-1]))
        base = int(self._id_offsets[first])
        self._ids[base : base + int(offsets[-1])] = data[: offsets[-1]]
        self._id_offsets[first + 1 : last + 1] = base + offsets[1:]
        self._hashes[first:last] = hashes_of(encoded)
        entries = [self._fleet.index(name) for name in ids]
        self.facts[first:last] = self._entry_facts[entries]
        insert_slots(self._buckets, self._hashes, first, last)
        self._count = last

    def _reserve(self, devices: int, id_bytes: int) -> None:
        if id_bytes > len(self._ids):
            self._ids = np.resize(self._ids, max(id_bytes, 2 * len(self._ids)))
        if devices <= len(self.rows):
            return
        size = 1 << (devices - 1).bit_length()
        for name in ("rows", "facts", "_hashes"):
            old = getattr(self, name)
            new = np.zeros(size, old.dtype)
            new[: self._count] = old[: self._count]
            setattr(self, name, new)
        offsets = np.zeros(size + 1, np.int64)
        offsets[: self._count + 1] = self._id_offsets[: self._count + 1]
        self._id_offsets = offsets
        self._buckets = np.zeros(2 * size, np.int32)  # at most half full: short probes
        insert_slots(self._buckets, self._hashes, 0, self._count)

    def _restore(self, snapshot: tuple[Any, ...]) -> None:
        layout, count, offsets, ids, rows = state_parts("device table", snapshot, {"v1": 5})[1]
        if layout != self._layout:
            raise StateError(
                "device table: the recovery store holds records of another layout than this voltmill's: "
                "run the version that made it, or name another [run] state and replay the archive"
            )
        at = np.frombuffer(offsets, np.int64)
        self._add([ids[at[k] : at[k + 1]].decode() for k in range(count)])
        plain = _LZ4.decompress(rows, count * self.rows.itemsize)
        self.rows[:count] = np.frombuffer(plain, self.rows.dtype)
