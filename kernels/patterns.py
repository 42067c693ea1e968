"""Patterns on device ids, as in ``[[fleet]] match``, applied to columns at the price of their distinct ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from voltmill.kernels.fleet import Fleet, FleetEntry


class DevicePatterns:
    """Which devices are wanted: those whose id matches one of the patterns; without any, all.

    A pattern is one of a shell: ``*`` matches any characters, slashes too. An id is judged once.

    Example:
        >>> wanted = DevicePatterns(["site-1/*", "*/m-7"])
        >>> wanted.mask(pa.array(["site-1/m-1", "site-2/m-1", "site-2/m-7"])).to_pylist()
        [True, False, True]
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self.patterns = tuple(patterns)
        self._fleet = Fleet([FleetEntry(match=pattern) for pattern in self.patterns])
        self._verdicts: dict[str, bool] = {}

    def __bool__(self) -> bool:
        """Whether there is a pattern; without one, nothing needs to be asked."""
        return bool(self.patterns)

    def mask(self, ids: Any) -> pa.BooleanArray:
        """Which of the ids, an Arrow array of text without nulls, are wanted."""
        encoded = ids.dictionary_encode()
        verdicts = np.array([self._wanted(name) for name in encoded.dictionary.to_pylist()], bool)
        return pa.array(verdicts[encoded.indices.to_numpy()])

    def filter(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of the wanted devices."""
        if not self.patterns or not batch.num_rows:
            return batch
        mask = self.mask(batch.column("device_id"))
        return batch if mask.true_count == len(mask) else batch.filter(mask)

    def _wanted(self, name: str) -> bool:
        verdict = self._verdicts.get(name)
        if verdict is None:
            verdict = self._verdicts[name] = not self.patterns or self._fleet.index(name) >= 0
        return verdict
