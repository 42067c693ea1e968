"""The names of the lake's files, and the rule by which readers choose among them.

    {table}/date=YYYY-MM-DD/shard=NN/{store}-{sequence:010d}.parquet            as the sink wrote it
    {table}/date=YYYY-MM-DD/shard=NN/{store}-{first:010d}-{last:010d}.parquet   merged: all from first to last

**The rule: a file whose numbers lie within those of another file of its folder and store is not
read.** So the name says it all, there is no manifest to keep, and each row counts once at every
moment of a compaction: before the merged file is there, while it stands beside the files it covers,
and when they are gone. Nothing but names is looked at here; files that are not named so, such as a
data set from elsewhere, all count.

Files are read in the order of arrival (``arrival``): by day, then by store, for one follows another,
then by shard and first number; no two files that count begin with the same one. So a device's rows
come in order also on a day on which a store with another number of shards took over, and so the
device moved to another folder.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from voltmill.connectors.store import LakeError

_NAME: Final = re.compile(
    r"(?P<base>(?:.*/)?)date=(?P<date>\d{4}-\d\d-\d\d)/shard=(?P<shard>[^/]+)/"
    r"(?P<store>[^/]+?)-(?P<first>\d{10})(?:-(?P<last>\d{10}))?\.parquet"
)


class Stream(NamedTuple):
    """What counts its files in one sequence: a shard of a recovery store."""

    base: str
    """Path of the folder that holds the day folders, with a ``/`` at its end; empty if it is the root."""
    shard: str
    store: str


class LakeFile(NamedTuple):
    """What a file's path says."""

    path: str
    stream: Stream
    date: str
    first: int
    """Number of the first file of the sink that it holds."""
    last: int
    """Number of the last one; the same as ``first`` unless it is a merged file."""

    @property
    def merged(self) -> bool:
        """Whether it holds several files of the sink."""
        return self.first < self.last

    @property
    def folder(self) -> str:
        """Path of its folder, without a ``/`` at the end."""
        return self.path.rpartition("/")[0]


def parse(path: str) -> LakeFile | None:
    """What a path says; None if it is not named like a file of the sink's or the compaction's.

    Example:
        >>> file = parse("telemetry/date=2026-11-22/shard=03/20261122T103000Z-3fa2-0000000005-0000000009.parquet")
        >>> file.stream.base, file.date, file.stream.shard, file.stream.store, file.first, file.last
        ('telemetry/', '2026-11-22', '03', '20261122T103000Z-3fa2', 5, 9)
        >>> parse("telemetry/date=2026-11-22/mine.parquet") is None
        True
    """
    match = _NAME.fullmatch(path)
    if match is None:
        return None
    base, date, shard, store, first, last = match.groups()
    if last is not None and int(last) <= int(first):
        return None
    return LakeFile(path, Stream(base, shard, store), date, int(first), int(last or first))


def arrival(path: str) -> str:
    """What sorts files by the time their rows arrived; those that are not named like the lake's sort by their path.

    Example:
        >>> old, new = "date=2026-11-22/shard=01/a-0000000000.parquet", "date=2026-11-22/shard=00/b-0000000000.parquet"
        >>> arrival(old) < arrival(new)
        True
    """
    file = parse(path)
    if file is None:
        return path
    base, shard, store = file.stream
    return f"{base}date={file.date}/{store}/shard={shard}/{path.rpartition('/')[2]}"


def merged_name(store: str, first: int, last: int) -> str:
    """Name of the file that holds the files ``first`` to ``last`` of a store.

    Example:
        >>> merged_name("20261122T103000Z-3fa2", 5, 9)
        '20261122T103000Z-3fa2-0000000005-0000000009.parquet'
    """
    return f"{store}-{first:010d}-{last:010d}.parquet"


def visible(paths: Iterable[str]) -> list[str]:
    """The files that a reader reads, in order of arrival, of all that are there.

    Raises:
        LakeError: the numbers of two files overlap, neither within the other.

    Example:
        >>> folder = "date=2026-11-22/shard=00"
        >>> names = ["x-0000000004", "x-0000000005", "x-0000000009", "x-0000000005-0000000009", "x-0000000010"]
        >>> [path.removeprefix(folder) for path in visible(f"{folder}/{name}.parquet" for name in names)]
        ['/x-0000000004.parquet', '/x-0000000005-0000000009.parquet', '/x-0000000010.parquet']
    """
    return Listing(paths).paths


class Listing:
    """The files of a table that count, and which of them holds a given one.

    Args:
        paths: all that are there; 100,000 take about half a second.
        upto: where each stream ends for the reader: files beyond it, and whole streams that are not
            named, are left out; None: there is no end.

    Attributes:
        paths: those that count, in order of arrival.

    Raises:
        LakeError: the numbers of two files overlap, neither within the other.
    """

    def __init__(self, paths: Iterable[str], upto: Mapping[Stream, int] | None = None) -> None:
        files = [(path, parse(path)) for path in paths]
        self._merged = _widest(file for _, file in files if file is not None and file.merged)
        self._numbered = {p: f for p, f in files if f is not None and _within(f, upto) and self._counts(f)}
        self.paths = sorted([path for path, file in files if file is None] + list(self._numbered), key=arrival)
        self._places = [arrival(path) for path in self.paths]

    def __contains__(self, path: str) -> bool:
        index = self.before(path)
        return index < len(self.paths) and self.paths[index] == path

    def before(self, path: str) -> int:
        """How many files come before a path, which need not be one of them."""
        return bisect_left(self._places, arrival(path))

    def holder(self, file: LakeFile) -> LakeFile | None:
        """The file that counts and holds all of ``file``: itself, or a merged one; None if there is none."""
        return self._numbered.get(file.path) or self._around(file)

    def covers(self, other: "Listing") -> bool:
        """Whether it holds all that another listing does; files from elsewhere are not looked at."""
        return all(self.holder(file) for file in other._numbered.values())

    def ends(self) -> dict[Stream, int]:
        """The last number of each stream."""
        ends: dict[Stream, int] = {}
        for file in self._numbered.values():
            ends[file.stream] = max(file.last, ends.get(file.stream, -1))
        return ends

    def _counts(self, file: LakeFile) -> bool:
        around = self._around(file)
        return around is None or around.path == file.path

    def _around(self, file: LakeFile) -> LakeFile | None:
        """The widest merged file that ``file`` lies within."""
        ranges = self._merged.get((file.folder, file.stream.store), [])
        index = bisect_right(ranges, file.first, key=lambda merged: merged.first)
        return ranges[index - 1] if index and file.last <= ranges[index - 1].last else None


def _within(file: LakeFile, upto: Mapping[Stream, int] | None) -> bool:
    return upto is None or file.first <= upto.get(file.stream, -1)


def _widest(files: Iterable[LakeFile]) -> dict[tuple[str, str], list[LakeFile]]:
    """By folder and store, the merged files that lie within no other, in order."""
    found: dict[tuple[str, str], list[LakeFile]] = {}
    for file in sorted(files, key=lambda file: (file.first, -file.last)):
        ranges = found.setdefault((file.folder, file.stream.store), [])
        if not ranges or file.first > ranges[-1].last:
            ranges.append(file)
        elif file.last > ranges[-1].last:
            raise LakeError(
                f"{ranges[-1].path} and {file.path.rpartition('/')[2]} overlap, neither within the other, so rows "
                "would count twice; no compaction of this project makes such: move one of them out of the lake"
            )
    return found
