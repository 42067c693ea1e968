"""Which files of a day are merged into which: a pure function of what can never change again.

Think of the settled files of a shard's day laid end to end, by their bytes as the sink wrote them, on
a ruler with marks at every 1, 2, 4, 8 … MiB. A file belongs to the interval that it begins in. Files of
an interval are merged once it is *closed*: a later settled file begins behind it, or the day is over.
The widest closed interval counts, up to the limit; at the end of a day that goes on there are narrower
ones, and what is in none waits.

**Two intervals of such a ruler are one within the other, or apart.** So are the merged files, whoever
made them: two compactions at the same time, with different limits and different views of what is
settled, never make files that overlap in part. And a day that grows is not written anew at each run:
a row is merged again only when its file at least doubles.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from voltmill.connectors.lake_files import LakeFile

#: The narrowest interval, in bytes.
GRANULE: Final = 1 << 20


class Candidate(NamedTuple):
    """A file of a day that counts."""

    file: LakeFile
    nbytes: int
    """As the sink wrote it: of a merged file, the sum of its parts."""


class Plan(NamedTuple):
    """What to do with the files of a shard's day."""

    merges: list[list[LakeFile]]
    """Files that become one, two or more each."""
    waiting: int
    """Files at the end of a day that goes on."""
    unsettled: int
    """Files that a restart of the flow may still take back."""


def plan(day: Sequence[Candidate], *, limit: int, settled: int, over: bool) -> Plan:
    """Decide about the files of one shard, store and day.

    Args:
        day: all files that count, in order.
        limit: the widest interval, in bytes: ``GRANULE`` times a power of two.
        settled: files below this number are settled.
        over: whether no file will be added to this day; all of them are settled then.

    Example:
        >>> from voltmill.connectors.lake_files import parse
        >>> names = [f"date=2026-11-22/shard=00/x-{n:010d}.parquet" for n in range(7)]
        >>> day = [Candidate(parse(name), 400_000) for name in names]
        >>> [[f.first for f in files] for files in plan(day, limit=4 * GRANULE, settled=7, over=True).merges]
        [[0, 1, 2, 3, 4, 5, 6]]
        >>> growing = plan(day, limit=4 * GRANULE, settled=6, over=False)
        >>> [[f.first for f in files] for files in growing.merges], growing.waiting, growing.unsettled
        ([[0, 1, 2]], 3, 1)
    """
    sure = [candidate for candidate in day if candidate.file.last < settled]
    begins = [0, *accumulate(candidate.nbytes for candidate in sure)]
    newest = begins[len(sure) - 1] if sure and not over else None
    merges, index = [], 0
    while index < len(sure):
        stop = _closed(begins[index], newest, limit)
        if stop is None:
            break
        first = index
        index += 1
        while index < len(sure) and begins[index] < stop and sure[index].file.first == sure[index - 1].file.last + 1:
            index += 1
        if index - first > 1:
            merges.append([candidate.file for candidate in sure[first:index]])
    return Plan(merges, len(sure) - index, len(day) - len(sure))


def _closed(begin: int, newest: int | None, limit: int) -> int | None:
    """Where the widest closed interval with ``begin`` ends; ``newest``: where the last file begins, None: day over."""
    width = limit
    while width >= GRANULE:
        stop = (begin // width + 1) * width
        if newest is None or stop <= newest:
            return stop
        width //= 2
    return None
