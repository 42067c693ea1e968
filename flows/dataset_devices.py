"""What a training table knows of each device: its facts, its split, and the time of the last row taken."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill.kernels.fleet import Fleet
from voltmill.operators.table import DeviceTable, hashes_of

SPLITS: Final = ("train", "validation", "test")
_STATE: Final = np.dtype([("period", "<i8"), ("taken", "<i8"), ("split", "<i4")])


class Devices:
    """The devices of a table.

    Args:
        fleet: Their facts.
        shares: Parts of the devices that are for training, validation and test.
        seed: Another one gives another split.
        every_seconds: One row of a device in each such period; 0: all.
    """

    def __init__(self, fleet: Fleet, shares: Sequence[float], seed: str, every_seconds: float) -> None:
        self._table = DeviceTable(_STATE, fleet)
        self._types = pa.array([*(e.cell_type for e in fleet.entries), ""], pa.string())
        self._edges = np.cumsum(shares)[:2] / sum(shares)
        self._seed, self._period_us = seed, round(every_seconds * 1e6)

    def slots(self, ids: pa.StringArray) -> NDArray[np.int32]:
        """The slot of each row's device."""
        known = len(self._table)
        slots = self._table.slots(ids)
        if len(self._table) > known:
            fresh = self._table.rows[known : len(self._table)]
            fresh["period"] = np.iinfo(np.int64).min
            fresh["split"] = split_of(self._table.device_ids()[known:], self._edges, self._seed)
        return slots

    def facts(self, slots: NDArray[np.int32]) -> dict[str, Any]:
        """``split``, ``cell_type`` and ``capacity_ah`` of rows."""
        entries = self._table.facts["entry"][slots]
        entries = np.where(entries < 0, len(self._types) - 1, entries).astype(np.int32)
        return {
            "split": pa.DictionaryArray.from_arrays(pa.array(self._table.rows["split"][slots]), pa.array(SPLITS)),
            "cell_type": pa.DictionaryArray.from_arrays(pa.array(entries), self._types),
            "capacity_ah": pa.array(self._table.facts["capacity_ah"][slots].astype(np.float32), from_pandas=True),
        }

    def thin(self, slots: NDArray[np.int32], times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows are the first of their device in a period; they are then taken."""
        taken = np.ones(len(slots), np.bool_)
        if self._period_us:
            order = np.argsort(slots, kind="stable")
            device, period = slots[order], times[order] // self._period_us
            before = np.r_[np.int64(0), period[:-1]]
            first = np.r_[True, device[1:] != device[:-1]]
            before[first] = self._table.rows["period"][device[first]]
            taken[order] = period != before
            last = np.r_[device[1:] != device[:-1], True] if len(device) else first[:0]
            self._table.rows["period"][device[last]] = period[last]
        np.add.at(self._table.rows["taken"], slots[taken], 1)
        return taken

    def count(self) -> dict[str, int]:
        """By split, how many devices have rows in the table."""
        rows = self._table.rows[: len(self._table)]
        return {name: int(((rows["split"] == k) & (rows["taken"] > 0)).sum()) for k, name in enumerate(SPLITS)}


def split_of(ids: Sequence[str], edges: NDArray[np.float64], seed: str = "") -> NDArray[np.intp]:
    """The split of each device: by a hash of its id alone, so that it never changes.

    Args:
        ids: The devices.
        edges: Part of the devices below which it is the first split, and the second.
        seed: Part of what is hashed.

    Example:
        >>> split_of(["m-1", "m-2", "m-3", "m-4"], np.array([0.5, 0.75])).tolist()
        [0, 1, 0, 0]
    """
    # The text before the id keeps the split free of the shard, which is of the same hash.
    hashes = hashes_of(pa.array([f"split:{seed}:{each}" for each in ids], pa.string()))
    return np.searchsorted(edges, (hashes >> np.uint64(11)) * 2.0**-53, side="right")
