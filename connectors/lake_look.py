"""What a table holds of the shards that one process writes: one look for all of them, where each costs requests.

A start looks for files of epochs that were lost, in every shard's folder of the last day or two, and once more when
the last request of a killed process must be through. On a disk each shard looks by itself. An object store is asked
for a whole day at once: its shards are built one after the other, and share the answer for a few seconds.

An answer may be older than the question, and that is enough: nobody but this process writes files of its shards, so
what is missing in it came late, and is found by the second look; and a file that the process wrote since bears a
number below the one it looks for.
"""

import math
import threading
import time
from typing import Final

from voltmill.connectors.store import Store

#: How old an answer may be, s.
_SHARED_SECONDS: Final = 5.0


class Look:
    """The listings of one table; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = -math.inf
        self._asked: set[str] = set()
        self._days: list[str] = []
        self._found: dict[str, list[str]] = {}

    def names(self, files: Store, table: str, shard: str, *, since: str, after: float = -math.inf) -> list[str]:
        """The files of a shard from a day on, on a disk also the hidden ones.

        Args:
            files: the lake.
            table: folder below it.
            shard: which; it is given an answer of its own each time it asks.
            since: the first day of interest, as folders name it: ``2026-11-22``; empty: all.
            after: on the monotonic clock: an answer must not be older.

        Returns:
            Paths below the lake.

        Raises:
            LakeError: it cannot be listed.
        """
        if files.local:
            folders = [f"{table}/{day}/shard={shard}" for day in _from(files.names(table), since)]
            return [f"{folder}/{name}" for folder in folders for name in files.names(folder)]
        with self._lock:
            now = time.monotonic()
            if shard in self._asked or self._began < max(after, now - _SHARED_SECONDS):
                self._asked, self._found, self._began = set(), {}, now
                self._days = files.names(table)
            self._asked.add(shard)
            paths = [f"{day}/{path}" for day in _from(self._days, since) for path in self._of(files, table, day)]
            return [f"{table}/{path}" for path in paths if path.split("/")[1] == f"shard={shard}"]

    def _of(self, files: Store, table: str, day: str) -> list[str]:
        if day not in self._found:
            self._found[day] = files.find(f"{table}/{day}")
        return self._found[day]


def _from(days: list[str], since: str) -> list[str]:
    return [day for day in days if day.startswith("date=") and day >= f"date={since}"]
