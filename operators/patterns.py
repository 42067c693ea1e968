"""Patterns on device ids, as in ``[[fleet]] match``, applied to columns of them."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.operators.table import DeviceTable

#: Where many ids are wanted, one of so many is.
_FIRST_LOOK: Final = 1024


class DevicePatterns:
    """Which devices are wanted: those whose id matches one of the patterns; without any, all.

    A pattern is one of a shell: ``*`` matches any characters, slashes too. An id is judged once and then
    looked up, so a hundred thousand devices cost what a thousand do.

    Example:
        >>> wanted = DevicePatterns(["site-1/*", "*/m-7"])
        >>> wanted.mask(pa.array(["site-1/m-1", "site-2/m-1", "site-2/m-7"])).to_pylist()
        [True, False, True]
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self.patterns = tuple(patterns)
        entries = [FleetEntry(match=pattern) for pattern in self.patterns or ("*",)]
        self._judged = DeviceTable(np.dtype([("unused", "u1")]), Fleet(entries))

    def mask(self, ids: pa.StringArray) -> pa.BooleanArray:
        """Which of the ids are wanted; none is null."""
        slots = self._judged.slots(ids)
        return pa.array(self._judged.facts["entry"][slots] >= 0)

    def any(self, ids: Any) -> bool:
        """Whether one of the ids is wanted, an Arrow array of any kind of text, chunked or with nulls."""
        return self._any(ids.slice(0, _FIRST_LOOK)) or self._any(ids.slice(_FIRST_LOOK))

    def filter(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of the wanted devices."""
        if not self.patterns or not batch.num_rows:
            return batch
        mask = self.mask(batch.column("device_id"))
        return batch if mask.true_count == len(mask) else batch.filter(mask)

    def _any(self, ids: Any) -> bool:
        text = ids.drop_null().cast(pa.string())
        return bool(self.mask(text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text).true_count)
