"""One shard's day: look, clear what is covered, plan, merge; and again until nothing is left to merge."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import pyarrow as pa

from voltmill.connectors import compact_plan
from voltmill.connectors.compact_plan import Candidate, Plan
from voltmill.connectors.compact_settings import Compacted, CompactSettings
from voltmill.connectors.compact_writer import Parts, join, parts
from voltmill.connectors.lake_files import LakeFile, Listing, Stream, merged_name, parse
from voltmill.connectors.lake_reader import open_parquet
from voltmill.connectors.parquet import PARTS_KEY, ROWS_KEY, SEQUENCE_KEY, SETTLED_KEY, SHARD_KEY, STORE_KEY
from voltmill.connectors.store import LakeAwayError, LakeError, Store

#: So often a folder is looked at again because another compaction changed it.
_TRIES: Final = 20
#: What ``Store.create`` leaves when it is killed.
_HALF_WRITTEN: Final = re.compile(r"\.(.+\.parquet)\.[0-9a-f]+\.tmp")


class Day(NamedTuple):
    """The files of one shard and store on one day."""

    table: str
    folder: str
    """Path below the table."""
    stream: Stream
    settled: int
    """Files below this number are settled."""
    over: bool
    """Whether no settled file will be added."""


class _Footer(NamedTuple):
    """What the end of a file says."""

    parts: Parts
    schema: pa.Schema


class DayCompaction:
    """Merges what can be merged of a day.

    Args:
        store: the lake.
        day: which.
        settings: what is merged.
        report: what is done, and what prevents it, is added to it.
    """

    def __init__(self, store: Store, day: Day, settings: CompactSettings, report: Compacted) -> None:
        self._store, self._day, self._settings, self._report = store, day, settings, report
        self._sizes: dict[str, int] = {}
        self._footers: dict[str, _Footer] = {}
        self._merged: set[LakeFile] = set()

    def run(self) -> None:
        """Do it.

        Raises:
            LakeAwayError: the lake went away.
        """
        try:
            left = self._patiently()
        except LakeAwayError:
            raise
        except (LakeError, pa.ArrowException, OSError) as error:
            self._report.problems.append(f"{self._at(self._day.folder)}: {' '.join(str(error).split())}")
            return
        self._report.waiting += left.waiting
        if left.unsettled:
            by_store, name = self._report.unsettled, self._day.stream.store
            by_store[name] = by_store.get(name, 0) + left.unsettled

    def _patiently(self) -> Plan:
        for _ in range(_TRIES):
            try:
                return self._merge_all()
            except FileNotFoundError:  # another compaction was faster: look again
                continue
        raise LakeError("changes faster than it can be merged")

    def _merge_all(self) -> Plan:
        """Merge until nothing is left to merge; what is left, and why."""
        while True:
            files, covered = self._look()
            if not self._settings.dry_run:
                self._clear(files, covered)
            todo = self._plan(files)
            if self._settings.dry_run:
                for merge in todo.merges:
                    self._count(merge)
            if self._settings.dry_run or not todo.merges:
                return todo
            self._merge(todo.merges[0])

    def _look(self) -> tuple[list[LakeFile], list[LakeFile]]:
        """The files that count now, in order, and those that others cover."""
        sizes = self._store.sizes(self._at(self._day.folder))
        self._sizes = {f"{self._day.folder}/{name}": size for name, size in sizes.items()}
        files = [file for file in map(parse, self._sizes) if file and file.stream == self._day.stream]
        listing = Listing(file.path for file in files)
        counting = sorted((file for file in files if file.path in listing), key=lambda file: file.first)
        return counting, [file for file in files if file.path not in listing]

    def _plan(self, files: Sequence[LakeFile]) -> Plan:
        candidates = [Candidate(file, self._bytes_written(file)) for file in files]
        limit = self._settings.max_file_mb * compact_plan.GRANULE
        made = compact_plan.plan(candidates, limit=limit, settled=self._day.settled, over=self._day.over)
        return made._replace(merges=[alike for merge in made.merges if len(alike := self._alike(merge)) > 1])

    def _alike(self, files: list[LakeFile]) -> list[LakeFile]:
        """Without the first ones, as long as they have other columns than those after them."""
        while len(files) > 1 and not self._footer(files[0]).schema.equals(self._footer(files[1]).schema):
            files = files[1:]
        return files

    def _merge(self, wanted: list[LakeFile]) -> None:
        """Make a merged file, and see that it is there as it was made."""
        sizes = self._sizes
        made = join(self._store, self._day.table, wanted, sizes, level=self._settings.compression_level)
        files, made_of = list(made.parts), [part for parts in made.parts.values() for part in parts]
        data = made.writer.finish(self._facts(files, made_of))
        # They may have been set aside meanwhile, with other rows under their numbers; or the listing that was
        # planned by was under way while another compaction removed files.
        if wanted not in self._plan(self._look()[0]).merges or any(sizes[f.path] != self._sizes[f.path] for f in files):
            raise FileNotFoundError(wanted[0].path)
        first, last = files[0].first, files[-1].last
        path = f"{self._day.folder}/{merged_name(self._day.stream.store, first, last)}"
        self._store.create(self._at(path), data)  # where it is there already, it is the same
        if self._footer(LakeFile(path, self._day.stream, files[0].date, first, last)).parts != made_of:
            raise LakeError(f"{path} was there, with other rows than the files that it covers: move it out of the lake")
        self._merged |= set(files)
        self._count(files)
        self._report.rows += sum(rows for rows, _ in made_of)
        self._report.bytes_after += data.size

    def _facts(self, files: Sequence[LakeFile], made_of: Parts) -> dict[str, str]:
        """The metadata of a merged file."""
        facts = {STORE_KEY: self._day.stream.store, SHARD_KEY: self._day.stream.shard}
        facts |= {SEQUENCE_KEY: str(files[0].first), SETTLED_KEY: str(files[-1].last + 1)}
        facts |= {ROWS_KEY: str(sum(rows for rows, _ in made_of))}
        return facts | {PARTS_KEY: msgspec.json.encode(made_of).decode()}

    def _count(self, files: Sequence[LakeFile]) -> None:
        self._report.merged += len(files)
        self._report.into += 1
        self._report.bytes_before += sum(self._sizes[file.path] for file in files)

    def _clear(self, counting: Sequence[LakeFile], covered: Sequence[LakeFile]) -> None:
        """Remove what merged files cover, and what a killed compaction left half written."""
        listing = Listing(file.path for file in counting)
        for file in covered:
            if file not in self._merged:
                self._check_covered(file, listing.holder(file) or file)
                self._report.cleared += 1
            self._store.remove(self._at(file.path))
        for name in self._store.names(self._at(self._day.folder)) if self._store.local else ():
            half = _HALF_WRITTEN.fullmatch(name)
            file_ = half and parse(f"{self._day.folder}/{half[1]}")
            if file_ and file_.merged and file_.stream == self._day.stream:
                self._store.remove(self._at(f"{self._day.folder}/{name}"))

    def _check_covered(self, file: LakeFile, holder: LakeFile) -> None:
        """See that a merged file has the rows of one that lies within it."""
        begin = file.first - holder.first
        held = self._footer(holder).parts[begin : begin + file.last - file.first + 1]
        if sum(rows for rows, _ in held) != sum(rows for rows, _ in self._footer(file).parts):
            raise LakeError(f"{file.path} has other rows than {holder.path}: move one of them out of the lake")

    def _bytes_written(self, file: LakeFile) -> int:
        """Bytes of a file as the sink wrote it."""
        return sum(size for _, size in self._footer(file).parts) if file.merged else self._sizes[file.path]

    def _footer(self, file: LakeFile) -> _Footer:
        """Of a settled file it never changes."""
        if file.path not in self._footers:
            with open_parquet(self._store, self._at(file.path)) as opened:
                made_of = parts(opened.metadata, file, self._sizes.get(file.path, 0))
                self._footers[file.path] = _Footer(made_of, opened.schema_arrow)
        return self._footers[file.path]

    def _at(self, path: str) -> str:
        return f"{self._day.table}/{path}"
