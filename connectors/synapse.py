"""Which files of the lake a dedicated pool of Synapse has yet to load, and the call that loads one.

A file is loaded when it is settled: no restart of the flow takes it back then (``lake_partition.py``). What was
loaded is kept in the pool by the numbers that a file's path says, not by its name, for a compaction replaces
files: a merged file whose numbers were all loaded is done, and of one whose numbers were loaded in part the
procedure ``voltmill_load`` (``deploy/sql/synapse``) leaves the rows out that are there. So each row of the lake is
loaded once.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from voltmill.connectors.compact import settled_below
from voltmill.connectors.lake_files import LakeFile, Stream, parse
from voltmill.connectors.lake_reader import listed
from voltmill.connectors.store import Store

TABLE: Final = "predictions"
#: What was loaded.
LOADED: Final = "SELECT store, shard, first_number, last_number FROM dbo.loaded_files"
_AZURE: Final = re.compile(r"abfss?://(?:(?P<container>[^/@]+)@(?P<host>[^/]+)|(?P<bare>[^/]+))/?(?P<path>.*)")


class Todo(NamedTuple):
    """What there is to load.

    Attributes:
        files: those to load, in the order of arrival.
        unsettled: how many files wait until they are settled.
    """

    files: list[LakeFile]
    unsettled: int


def to_load(store: Store, loaded: Iterable[Sequence[Any]], finished: frozenset[str] = frozenset()) -> Todo:
    """The files of predictions that are to be loaded.

    Args:
        store: the lake.
        loaded: rows of ``LOADED``.
        finished: recovery stores whose flow never runs again: their last files are settled too.

    Raises:
        LakeError: the lake cannot be read.
    """
    done: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for name, shard, first, last in loaded:
        done.setdefault((str(name), str(shard)), []).append((int(first), int(last)))
    streams: dict[Stream, list[LakeFile]] = {}
    files = [file for file in map(parse, listed(store, TABLE).paths) if file is not None]
    for file in files:
        streams.setdefault(file.stream, []).append(file)
    settled = {
        stream: None if stream.store in finished else settled_below(store, TABLE, of_one)
        for stream, of_one in streams.items()
    }
    sure = [file for file in files if _below(file, settled[file.stream])]
    return Todo(
        [file for file in sure if not _covered(file, done.get((file.stream.store, file.stream.shard), []))],
        len(files) - len(sure),
    )


def _below(file: LakeFile, settled: int | None) -> bool:
    return settled is None or file.last < settled


def _covered(file: LakeFile, ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether each number of a file lies within one of the ranges."""
    next_ = file.first
    for first, last in sorted(ranges):
        if first > next_:
            break
        next_ = max(next_, last + 1)
    return next_ > file.last


def calls(todo: Todo, base: str) -> Iterator[tuple[LakeFile, str]]:
    """Each file with the statement that loads it; ``base``: the lake's address, as ``address`` gives it.

    Example:
        >>> file = parse("date=2026-11-22/shard=03/20261122T103000Z-3fa2-0000000005-0000000009.parquet")
        >>> ((_, text),) = calls(Todo([file], 0), "https://bms.dfs.core.windows.net/fleet")
        >>> words = text.split(", ")
        >>> words[0].startswith("EXEC dbo.voltmill_load @url = N'https://bms.dfs.core.windows.net/fleet/predictions/date=")
        True
        >>> words[1:]
        ["@store = N'20261122T103000Z-3fa2'", "@shard = N'03'", '@first = 5', '@last = 9']
    """
    for file in todo.files:
        about = {"url": f"{base}/{TABLE}/{file.path}", "store": file.stream.store, "shard": file.stream.shard}
        texts = ", ".join(f"@{name} = N'{value.replace(chr(39), 2 * chr(39))}'" for name, value in about.items())
        yield file, f"EXEC dbo.voltmill_load {texts}, @first = {file.first}, @last = {file.last}"


def address(url: str, options: Mapping[str, Any]) -> str:
    """The address of a lake in Azure, as Synapse reads it.

    Args:
        url: ``[lake] url``.
        options: ``[lake] storage_options``: of these the name of the account.

    Raises:
        ValueError: it is no lake in Azure, or its account has no name.

    Example:
        >>> address("abfs://fleet/lake", {"account_name": "bms"})
        'https://bms.dfs.core.windows.net/fleet/lake'
        >>> address("abfss://fleet@bms.dfs.core.windows.net/lake", {})
        'https://bms.dfs.core.windows.net/fleet/lake'
        >>> address("abfs://fleet", {"connection_string": "AccountName=bms;AccountKey=c2VjcmV0"})
        'https://bms.dfs.core.windows.net/fleet'
    """
    found = _AZURE.fullmatch(url)
    if found is None:
        raise ValueError(f"lake {url}: Synapse reads a lake in Azure: abfs://CONTAINER/PATH")
    named = re.search(r"(?i)(?:^|;)AccountName=([^;]+)", str(options.get("connection_string", "")))
    account = options.get("account_name") or (named[1] if named else "")
    host = found["host"] or (f"{account}.dfs.core.windows.net" if account else "")
    if not host:
        raise ValueError(f"lake {url}: set [lake] storage_options.account_name, for Synapse needs its address")
    return f"https://{host}/{found['container'] or found['bare']}/{found['path']}".rstrip("/")
