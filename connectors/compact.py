"""Compaction: the many small files of a day become a few large ones, while the flow writes and others read.

For each table, day and shard, files of one recovery store that follow on one another become one, whose
name bears the first and the last of their numbers (``lake_files`` has the rule by which readers choose;
``compact_plan`` decides what is merged). **For whoever reads by that rule each row is there exactly
once at every moment**, wherever this is killed, and however many compactions run at the same time:

1. Only *settled* files are merged: those that no restart of the flow takes back. Each file of the sink
   says what is settled, and the newest one of a shard knows most.
2. The merged file is made in memory and stored whole, under a name that nothing has yet. From then on
   it is the one that counts.
3. Only when it has been read back, with the rows of each of its parts, are the files removed that it
   covers. What a killed compaction left covered is removed by the next one.

There is no lock. What a settled number holds never changes; a file is removed only while a wider one
holds its rows; and merged files that are made at the same time lie one within the other or apart. A
compaction that finds its files gone looks again. A second run does nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pyarrow as pa

from voltmill.connectors.compact_day import Day, DayCompaction
from voltmill.connectors.compact_settings import Compacted, CompactSettings
from voltmill.connectors.lake_files import LakeFile, Stream, parse
from voltmill.connectors.lake_reader import open_parquet
from voltmill.connectors.parquet import SETTLED_KEY
from voltmill.connectors.store import Store

#: Past every number: a file name has ten digits.
_ALL: Final = 10**10


def tables(store: Store) -> list[str]:
    """The tables of a lake: the folders that hold day folders."""
    names = [name for name in store.names("") if not name.startswith((".", "_"))]
    return [name for name in names if any(day.startswith("date=") for day in store.names(name))]


def stores(store: Store, table: str) -> set[str]:
    """The recovery stores that a table has files of."""
    return {file.stream.store for file in map(parse, store.find(table)) if file}


def compact(
    store: Store,
    table: str,
    settings: CompactSettings,
    on_progress: Callable[[int, int, int], None] = lambda done, total, rows: None,
) -> Compacted:
    """Merge the small files of a table.

    Args:
        store: the lake.
        table: folder below it.
        settings: what is merged.
        on_progress: called with days of shards done, in all, and rows merged so far.

    Returns:
        What was done; what could not be done is in ``problems``.

    Raises:
        LakeAwayError: the lake went away.
    """
    report = Compacted(table=table)
    days = list(_days(store, settings, report))
    for done, day in enumerate(days):
        on_progress(done, len(days), report.rows)
        DayCompaction(store, day, settings, report).run()
    on_progress(len(days), len(days), report.rows)
    return report


def _days(store: Store, settings: CompactSettings, report: Compacted) -> Iterator[Day]:
    """Where there may be something to do; files of days that are left alone are counted."""
    streams: dict[Stream, list[LakeFile]] = {}
    for file in map(parse, store.sizes(report.table)):
        if file:
            streams.setdefault(file.stream, []).append(file)
    for stream, files in sorted(streams.items()):
        folders: dict[str, list[LakeFile]] = {}
        for file in files:
            folders.setdefault(file.folder, []).append(file)
        early = [found for found in folders.values() if found[0].date < settings.before.isoformat()]
        report.later += len(files) - sum(map(len, early))
        several = [found[0] for found in early if len(found) > 1]
        if not several:
            continue
        finished = stream.store in settings.finished
        settled = _ALL if finished else settled_below(store, report.table, files)
        # A day is over when a later one has begun for good, for the date never steps back.
        last = max((file.date for file in files if file.first < settled), default="")
        for any_ in several:
            yield Day(report.table, any_.folder, stream, settled, finished or any_.date < last)


def settled_below(store: Store, table: str, files: Sequence[LakeFile]) -> int:
    """Below which number the files of a stream are settled: the newest one knows most."""
    newest = max(files, key=lambda file: file.last)
    merged = max((file.last + 1 for file in files if file.merged), default=0)
    try:
        with open_parquet(store, f"{table}/{newest.path}") as file:
            return max(merged, int((file.metadata.metadata or {}).get(SETTLED_KEY.encode(), b"0")))
    except (pa.ArrowException, FileNotFoundError):  # taken back by a restart; the next run knows more
        return merged
