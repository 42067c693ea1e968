import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stored_flow
from bytewax.testing import TestingSource
from conftest import RunFlow
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Azurite
from stored_flow import telemetry
from test_graph import config, plain, raw
from test_lake import drain

from voltmill.connectors import compact_plan
from voltmill.connectors.compact import compact, tables
from voltmill.connectors.compact_plan import GRANULE, Candidate, plan
from voltmill.connectors.compact_settings import Compacted, CompactSettings
from voltmill.connectors.lake import LakePartition, LakeSettings, LakeSink
from voltmill.connectors.lake_files import Listing, parse
from voltmill.connectors.lake_reader import read_table
from voltmill.connectors.lake_source import LakeSource
from voltmill.connectors.parquet import SETTLED_KEY, encode
from voltmill.connectors.store import Store
from voltmill.flows import graph
from voltmill.flows.metrics import Metrics
from voltmill.flows.replay import replay
from voltmill.flows.simulate import FaultSettings, SimulateSettings, messages
from voltmill.kernels.schema import PREDICTION, TELEMETRY
from voltmill.operators.shard import shard_names

STORE = "20261122T103000Z-3fa2"
LATER = date(2027, 1, 1)
FIRST_DAY = datetime(2026, 11, 1, 12, tzinfo=UTC)
#: Files of a few rows have 4 to 8 KB, most of it footer.
SMALL_GRANULE = 16_384


@contextlib.contextmanager
def small_granule() -> Iterator[None]:
    """A ruler for small files; and no waiting for the disk, for here no power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compact_plan, "GRANULE", SMALL_GRANULE)
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def options(**changes: Any) -> CompactSettings:
    return CompactSettings(**({"before": LATER} | changes))


def sink(url: str, **settings: Any) -> LakeSink:
    lake = LakeSettings(url=url, **({"max_file_rows": 10} | settings))
    return LakeSink(lake, table="telemetry", schema=TELEMETRY, shards=["00"], store=STORE)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder / "telemetry").as_posix() for path in (folder / "telemetry").rglob("*.*"))


def spans(folder: Path) -> list[tuple[int, int]]:
    """First and last number of each file that is there."""
    return [(file.first, file.last) for file in map(parse, files(folder)) if file]


def rows_in_lake(url: str) -> list[int]:
    return list(read_table(url, "telemetry", ["source_offset"], empty=TELEMETRY)["source_offset"].to_pylist())


def day_of(number: int) -> datetime:
    return FIRST_DAY + timedelta(days=number)


def fill(url: str, file_counts: list[int], rows: int = 10) -> int:
    """A lake of so many files on each day, all settled but the last; the number of rows."""
    part, place = sink(url, max_file_rows=rows).build_part("out", "00", None), 0
    for day, count in enumerate(file_counts):
        for _ in range(count):
            part.write_batch([telemetry(place, rows, ingest_time=day_of(day))])
            part.snapshot(), part.snapshot()
            place += rows
    return place


# ---------------------------------------------------------------- what is merged


def kilobytes(sizes: list[int]) -> list[Candidate]:
    found = [parse(f"date=2026-11-22/shard=00/x-{n:010d}.parquet") for n in range(len(sizes))]
    return [Candidate(file, size * 1024) for file, size in zip(found, sizes, strict=True) if file]


def planned(sizes: list[int], limit_mb: int, settled: int, over: bool) -> list[tuple[int, int]]:
    merges = plan(kilobytes(sizes), limit=limit_mb * GRANULE, settled=settled, over=over).merges
    return [(merge[0].first, merge[-1].last) for merge in merges]


def test_a_day_that_is_over_is_cut_at_the_limit() -> None:
    assert planned([600] * 10, 2, 10, True) == [(0, 3), (4, 6), (7, 9)]
    assert planned([600] * 10, 1024, 10, True) == [(0, 9)]
    assert planned([5000] * 3, 2, 10, True) == []  # each is as large as a merged one
    assert planned([600], 2, 10, True) == []


def test_a_day_that_goes_on_is_merged_in_doubling_steps() -> None:
    assert planned([600] * 3, 4, 3, False) == [(0, 1)]
    assert planned([600] * 8, 4, 8, False) == [(0, 6)]  # the widest interval that is closed
    assert planned([600] * 10, 4, 8, False) == [(0, 6)]  # 8 and 9 are not settled
    assert planned([600] * 8, 4, 0, False) == []


def test_a_gap_in_the_numbers_parts_the_files() -> None:
    day = kilobytes([100] * 6)
    del day[2]
    assert [[file.first for file in merge] for merge in plan(day, limit=GRANULE, settled=6, over=True).merges] == [
        [0, 1],
        [3, 4, 5],
    ]


#: Limit, what is settled, and whether the day is over: then all of it is settled.
LIMIT = st.sampled_from([1, 2, 4, 8])
VIEW = st.one_of(st.tuples(LIMIT, st.integers(0, 40), st.just(False)), st.tuples(LIMIT, st.just(40), st.just(True)))


@settings(max_examples=500)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40), VIEW, VIEW)
def test_compactions_at_the_same_time_never_overlap_in_part(
    sizes: list[int], one: tuple[int, int, bool], other: tuple[int, int, bool]
) -> None:
    """Whatever their limits, and whatever each knows of what is settled and over."""
    for a, b in planned(sizes, *one):
        for c, d in planned(sizes, *other):
            assert b < c or d < a or (a <= c and d <= b) or (c <= a and b <= d)


@given(st.lists(st.integers(1, 900), min_size=1, max_size=60), st.sampled_from([1, 4, 64]))
def test_a_growing_day_is_written_anew_a_few_times_only(sizes: list[int], limit_mb: int) -> None:
    """Merging after each file: what is merged counts as what it was made of, and no row is merged often."""
    atoms: list[list[int]] = []
    written = [0] * len(sizes)
    for number in range(len(sizes)):
        atoms.append([number])
        day = []
        for atom in atoms:
            name = f"{atom[0]:010d}" + (f"-{atom[-1]:010d}" if len(atom) > 1 else "")
            file = parse(f"date=2026-11-22/shard=00/x-{name}.parquet")
            assert file
            day.append(Candidate(file, 1024 * sum(sizes[n] for n in atom)))
        for merge in plan(day, limit=limit_mb * GRANULE, settled=number + 1, over=number == len(sizes) - 1).merges:
            joined = list(range(merge[0].first, merge[-1].last + 1))
            atoms = [atom for atom in atoms if atom[0] not in joined] + [joined]
            atoms.sort()
            for n in joined:
                written[n] += 1
    assert max(written) <= 2 + limit_mb.bit_length()


# ---------------------------------------------------------------- one run


def test_days_become_files_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    total = fill(str(tmp_path), [5, 4, 3])
    before, store = read_table(tmp_path, "telemetry"), Store(str(tmp_path))
    done = compact(store, "telemetry", options())
    assert spans(tmp_path) == [(0, 4), (5, 8), (9, 9), (10, 10), (11, 11)]
    assert (done.merged, done.into, done.rows, done.waiting, done.unsettled) == (9, 2, 90, 2, {STORE: 1})
    assert done.bytes_before > done.bytes_after > 0 and done.problems == []
    after = read_table(tmp_path, "telemetry")
    assert after.equals(before) and after.num_rows == total
    again = compact(store, "telemetry", options())
    assert again == Compacted(table="telemetry", waiting=2, unsettled={STORE: 1})
    last = compact(store, "telemetry", options(finished=frozenset([STORE])))
    assert spans(tmp_path) == [(0, 4), (5, 8), (9, 11)] and last.unsettled == {}
    assert compact(store, "telemetry", options()) == Compacted(table="telemetry")


def test_the_merged_file_is_laid_out_as_the_sink_lays_out(tmp_path: Path) -> None:
    fill(str(tmp_path), [4, 2])
    sizes = Store(str(tmp_path)).sizes("telemetry")
    compact(Store(str(tmp_path)), "telemetry", options())
    [merged] = [file for file in map(parse, files(tmp_path)) if file and file.merged]
    with pq.ParquetFile(tmp_path / "telemetry" / merged.path) as file:
        facts = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
        assert file.schema_arrow.equals(TELEMETRY)
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    facts.pop("ARROW:schema")
    assert facts == {
        "voltmill.store": STORE,
        "voltmill.shard": "00",
        "voltmill.sequence": "0",
        "voltmill.rows": "40",
        "voltmill.settled": "4",
        "voltmill.parts": str([[10, size] for path, size in sizes.items() if "date=2026-11-01" in path]).replace(
            " ", ""
        ),
    }


def test_row_groups_are_full_whatever_the_files_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voltmill.connectors.compact_writer.ROW_GROUP_ROWS", 64)
    total = fill(str(tmp_path), [5, 2], rows=37)
    compact(Store(str(tmp_path)), "telemetry", options())
    [merged] = [file for file in map(parse, files(tmp_path)) if file and file.merged]
    metadata = pq.read_metadata(tmp_path / "telemetry" / merged.path)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [64, 64, 57]
    assert rows_in_lake(str(tmp_path)) == list(range(total))


def test_days_left_alone_and_dry_runs(tmp_path: Path) -> None:
    fill(str(tmp_path), [5, 4, 3])
    there = files(tmp_path)
    dry = compact(Store(str(tmp_path)), "telemetry", options(dry_run=True))
    assert (dry.merged, dry.into, dry.rows) == (9, 2, 0) and files(tmp_path) == there
    done = compact(Store(str(tmp_path)), "telemetry", options(before=day_of(1).date()))
    assert spans(tmp_path) == [(0, 4), *((n, n) for n in range(5, 12))]
    assert done.later == 7 and done.waiting == 0


def test_files_without_word_of_what_is_settled_stay(tmp_path: Path) -> None:
    """As an earlier release wrote them; unless the operator says that their flow is gone."""
    folder = tmp_path / "telemetry/date=2026-11-01/shard=00"
    folder.mkdir(parents=True)
    for number in range(3):
        path = folder / f"{STORE}-{number:010d}.parquet"
        path.write_bytes(encode([telemetry(10 * number, 10)], TELEMETRY, level=1))
    done = compact(Store(str(tmp_path)), "telemetry", options())
    assert done.merged == 0 and done.unsettled == {STORE: 3}
    assert compact(Store(str(tmp_path)), "telemetry", options(finished=frozenset([STORE]))).merged == 3
    assert rows_in_lake(str(tmp_path)) == list(range(30))


def test_two_stores_and_files_from_elsewhere_stay_apart(tmp_path: Path) -> None:
    fill(str(tmp_path), [3, 2])
    for path in list((tmp_path / "telemetry").rglob("*.parquet")):
        path.with_name(path.name.replace(STORE, "20261122T113000Z-0000")).write_bytes(path.read_bytes())
    mine = tmp_path / "telemetry/date=2026-11-01/shard=00/mine.parquet"
    mine.write_bytes(encode([telemetry(0, 7)], TELEMETRY, level=1))
    done = compact(Store(str(tmp_path)), "telemetry", options())
    assert (done.merged, done.into) == (6, 2) and mine.exists()
    assert read_table(tmp_path, "telemetry").num_rows == 107


def test_other_columns_begin_another_file(tmp_path: Path) -> None:
    folder = tmp_path / "telemetry/date=2026-11-01/shard=00"
    folder.mkdir(parents=True)
    for number in range(9):
        batch = telemetry(10 * number, 10)
        if number in (0, 4, 5, 6):
            batch = batch.append_column("more", pa.array(range(10)))
        metadata = {SETTLED_KEY: "9"}
        data = encode([batch], batch.schema, level=1, metadata=metadata)
        (folder / f"{STORE}-{number:010d}.parquet").write_bytes(data)
    done = compact(Store(str(tmp_path)), "telemetry", options(finished=frozenset([STORE])))
    assert spans(tmp_path) == [(0, 0), (1, 3), (4, 6), (7, 8)] and done.problems == []
    assert compact(Store(str(tmp_path)), "telemetry", options(finished=frozenset([STORE]))).merged == 0
    assert rows_in_lake(str(tmp_path)) == list(range(90))


def test_what_prevents_a_day_does_not_prevent_the_others(tmp_path: Path) -> None:
    fill(str(tmp_path), [3, 3, 3])
    broken = tmp_path / "telemetry/date=2026-11-01/shard=00" / f"{STORE}-0000000001.parquet"
    broken.write_bytes(b"no Parquet")
    done = compact(Store(str(tmp_path)), "telemetry", options())
    assert done.merged == 3 and (3, 5) in spans(tmp_path)
    assert len(done.problems) == 1 and "\n" not in done.problems[0]
    assert done.problems[0].startswith("telemetry/date=2026-11-01/shard=00: ")
    assert spans(tmp_path)[:3] == [(0, 0), (1, 1), (2, 2)]


def test_covered_files_with_other_rows_are_not_removed(tmp_path: Path) -> None:
    fill(str(tmp_path), [3, 2])
    store = Store(str(tmp_path))
    compact(store, "telemetry", options())
    stray = tmp_path / "telemetry/date=2026-11-01/shard=00" / f"{STORE}-0000000001.parquet"
    stray.write_bytes(encode([telemetry(0, 7)], TELEMETRY, level=1))
    done = compact(store, "telemetry", options())
    assert stray.exists() and len(done.problems) == 1 and "has other rows than" in done.problems[0]
    stray.write_bytes(encode([telemetry(10, 10)], TELEMETRY, level=1))
    assert compact(store, "telemetry", options()).cleared == 1
    assert not stray.exists() and rows_in_lake(str(tmp_path)) == list(range(50))


def test_a_lost_store_that_is_set_aside_meanwhile_is_not_merged(tmp_path: Path) -> None:
    """The files are read, then their store begins anew under its name: there are no other rows to hide."""
    fill(str(tmp_path), [3, 2])

    class Slow(Store):
        def create(self, relative: str, data: pa.Buffer) -> bool:
            raise AssertionError("the files are gone, so nothing is made of them")

        def sizes(self, folder: str) -> dict[str, int]:
            if folder != "telemetry":
                self.looked += 1
            if self.looked == 2:
                sink(str(tmp_path)).build_part("out", "00", None)
            return super().sizes(folder)

        looked = 0

    done = compact(Slow(str(tmp_path)), "telemetry", options())
    assert done.merged == 0 and files(tmp_path) == []
    assert len(list((tmp_path / "_set_aside").rglob("*.parquet"))) == 5


def test_tables_are_what_holds_days(tmp_path: Path) -> None:
    fill(str(tmp_path), [1])
    for name in ("redrive", "_set_aside", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "redrive/0000000000.parquet").touch()
    assert tables(Store(str(tmp_path))) == ["telemetry"]


@pytest.mark.parametrize("size", [0, 3, 2048])
def test_sizes_that_would_let_two_compactions_overlap(size: int) -> None:
    with pytest.raises(ValueError, match="must be a power of two from 1 to 1024"):
        options(max_file_mb=size)


# ---------------------------------------------------------------- killed at any step, read at any moment


class Killed(BaseException):
    """What no code handles: the process is gone."""


class Dying(Store):
    """A lake that is looked at before each step of a compaction, which is killed at one of them."""

    def __init__(self, url: str, steps: int | None, look: Callable[[], None]) -> None:
        super().__init__(url)
        self._left, self._look = steps, look

    def _step(self) -> None:
        self._look()
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Killed

    def sizes(self, folder: str) -> dict[str, int]:
        self._step()
        return super().sizes(folder)

    def create(self, relative: str, data: pa.Buffer) -> bool:
        self._step()
        folder, name = os.path.split(relative)
        half = Path(self.path(folder)) / f".{name}.0a1b2c3d.tmp"
        half.write_bytes(data.to_pybytes()[:100])
        self._step()
        half.unlink()
        created = super().create(relative, data)
        self._step()
        return created

    def remove(self, relative: str) -> None:
        self._step()
        super().remove(relative)
        self._step()


@small_granule()
def test_killed_at_each_step_in_turn(tmp_path: Path) -> None:
    for steps in range(100):
        folder = tmp_path / str(steps)
        total = fill(str(folder), [4, 3, 2])

        def look(url: str = str(folder), total: int = total) -> None:
            assert rows_in_lake(url) == list(range(total))

        try:
            compact(Dying(str(folder), steps, look), "telemetry", options())
        except Killed:
            after = compact(Store(str(folder)), "telemetry", options())
            assert after.problems == [] and after.merged + after.cleared < 8
        else:
            break
        look()
        assert spans(folder) == [(0, 3), (4, 6), (7, 7), (8, 8)] and visible_only(folder)
    assert 20 < steps < 60


class World:
    """One shard of a flow, a compaction, and their readers."""

    def __init__(self, folder: Path, max_file_rows: int, max_snapshot_bytes: int) -> None:
        self.url = str(folder)
        self.writer = sink(self.url, max_file_rows=max_file_rows, max_snapshot_bytes=max_snapshot_bytes)
        self.part: LakePartition = self.writer.build_part("out", "00", None)
        self.place = self.day = 0
        self.durable: tuple[int, int, Any] = (0, 0, None)

    def write(self, batches: int) -> None:
        for _ in range(batches):
            self.part.write_batch([telemetry(self.place, 3, ingest_time=day_of(self.day))])
            self.place += 3

    def snapshot(self) -> None:
        self.durable = (self.place, self.day, self.part.snapshot())

    def crash(self) -> None:
        self.place, self.day, state = self.durable
        self.part = self.writer.build_part("out", "00", state)

    def compact(self, steps: int | None, max_file_mb: int, finished: bool = False) -> None:
        there = rows_in_lake(self.url)

        def look() -> None:
            assert rows_in_lake(self.url) == there

        chosen = options(max_file_mb=max_file_mb, finished=frozenset([STORE] if finished else []))
        with contextlib.suppress(Killed):
            assert compact(Dying(self.url, steps, look), "telemetry", chosen).problems == []
        look()

    def check(self) -> None:
        found = rows_in_lake(self.url)
        assert found == list(range(len(found)))


COMPACT = st.tuples(st.one_of(st.none(), st.integers(0, 30)), st.sampled_from([1, 2, 8]))
STEPS = st.lists(
    st.one_of(st.integers(1, 9), st.sampled_from(["snapshot", "snapshot", "crash", "late", "night"]), COMPACT),
    min_size=5,
    max_size=40,
)


@settings(deadline=None, max_examples=40)
@given(STEPS, st.integers(1, 7), st.sampled_from([0, 2_000, 10**6]))
def test_each_row_once_whatever_crashes_and_whenever_it_is_read(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], max_file_rows: int, max_snapshot_bytes: int
) -> None:
    """``late``: the flow dies after the sink's snapshot, before the epoch is durable. ``night``: a new day."""
    with small_granule():
        folder = tmp_path_factory.mktemp("lake")
        world = World(folder, max_file_rows, max_snapshot_bytes)
        for step in steps:
            if isinstance(step, int):
                world.write(step)
            elif isinstance(step, tuple):
                world.compact(*step)
            elif step == "night":
                world.day += 1
            elif step == "snapshot":
                world.snapshot()
            else:
                if step == "late":
                    world.part.snapshot()
                world.crash()
            world.check()
        world.snapshot()
        world.write(3)
        world.part.close()
        world.compact(None, 8, finished=True)
        assert rows_in_lake(world.url) == list(range(world.place))
        assert visible_only(folder)
        there = files(folder)
        assert compact(Store(world.url), "telemetry", options(max_file_mb=8)).merged == 0
        assert files(folder) == there


def visible_only(folder: Path) -> bool:
    """Whether there is nothing covered, and nothing half written."""
    return Listing(files(folder)).paths == files(folder) and not any(path.endswith(".tmp") for path in files(folder))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.integers(1, 6), st.sampled_from(["night", "read", "restart"]), COMPACT), max_size=50))
def test_a_replay_goes_on_over_compactions(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """It gives what was there when it began, in order, however often it is stopped and files are merged."""
    with small_granule():
        world = World(tmp_path_factory.mktemp("lake"), 3, 0)
        world.write(4)
        world.snapshot()
        wanted, seen = rows_in_lake(world.url), []
        source = LakeSource(world.url, batch_rows=6)
        reader = source.build_part("in", "lake", None)
        for step in steps:
            if isinstance(step, int):
                world.write(step)
                world.snapshot()
            elif isinstance(step, tuple):
                world.compact(*step)
            elif step == "night":
                world.day += 1
            elif step == "restart":
                reader = source.build_part("in", "lake", reader.snapshot())
            else:
                with contextlib.suppress(StopIteration):
                    seen += [n for batch in reader.next_batch() for n in batch["source_offset"].to_pylist()]
            if not seen:  # it began with what is there when it is built
                reader = source.build_part("in", "lake", None)
                wanted = rows_in_lake(world.url)
        seen += [n for batch in drain(reader) for n in batch["source_offset"].to_pylist()]
        assert seen == wanted


@small_granule()
def test_reading_in_a_loop_while_two_compactions_and_the_flow_run(tmp_path: Path) -> None:
    world, stop, failures, counts = World(tmp_path, 5, 0), threading.Event(), [], [0, 0, 0]
    world.write(1)

    def until_stopped(index: int, do: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                while not stop.is_set():
                    do()
                    counts[index] += 1
            except BaseException as error:
                failures.append(error)
                stop.set()

        return run

    def merge(limit: int) -> Callable[[], None]:
        def run() -> None:
            assert compact(Store(world.url), "telemetry", options(max_file_mb=limit)).problems == []

        return run

    jobs = [merge(1), merge(4), world.check]
    threads = [threading.Thread(target=until_stopped(n, do)) for n, do in enumerate(jobs)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while not stop.is_set() and time.monotonic() < deadline and (world.day < 8 or min(counts) < 10):
        for _ in range(12):
            world.write(2)
            world.snapshot()
        world.day += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == [] and min(counts) >= 10
    assert any(last - first > 3 for first, last in spans(tmp_path))
    assert rows_in_lake(world.url) == list(range(world.place))


def test_flow_and_compaction_killed_with_9(tmp_path: Path) -> None:
    rows, lake, choose = 2_400, str(tmp_path / "lake"), random.Random(7)
    flow = [sys.executable, stored_flow.__file__, str(tmp_path), str(rows)]
    merge = [sys.executable, "-m", "voltmill.flows.cli", "compact", "--lake", lake, "--before", "2027-01-01"]
    merges = 0
    for wanted in (4, 9, 14, 19):
        running = subprocess.Popen(flow, stderr=subprocess.PIPE)
        while running.poll() is None and stored(lake) < wanted:
            time.sleep(0.002)
        merging = subprocess.Popen(merge, stdout=subprocess.PIPE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            merging.wait(choose.uniform(0.5, 1.5))
        for child in (running, merging):
            child.send_signal(signal.SIGKILL)
            child.communicate()
        merges += merging.returncode == 0
        for shard in stored_flow.SHARDS:
            assert in_order(lake, shard)
    subprocess.run(flow, check=True)
    subprocess.run(merge, check=True, stdout=subprocess.PIPE)
    assert sorted(rows_in_lake(lake)) == list(range(rows))
    assert any(file.merged for file in map(parse, files(Path(lake))) if file)
    assert visible_only(Path(lake))


def stored(lake: str) -> int:
    """How many files the sink has written."""
    return sum(file.last - file.first + 1 for path in Path(lake).rglob("*.parquet") if (file := parse(str(path))))


def in_order(lake: str, shard: str) -> bool:
    table = read_table(lake, "telemetry", ["source_offset"], empty=TELEMETRY)
    inside = [n for n in table["source_offset"].to_pylist() if stored_flow.SHARDS[n // stored_flow.BATCH % 3] == shard]
    wanted = [n for n in range(2_400) if stored_flow.SHARDS[n // stored_flow.BATCH % 3] == shard]
    return inside == wanted[: len(inside)]


def test_replay_of_a_compacted_lake_is_the_same_to_the_byte(tmp_path: Path, run_flow: RunFlow) -> None:
    faults = FaultSettings(drop_rate=0.01, double_rate=0.02, malformed_rate=0.02, clock_jump_share=0.2)
    fleet = SimulateSettings(gateways=2, packs_per_gateway=2, modules_per_pack=2, duration_seconds=600.0, faults=faults)
    batches = raw([payload for _, payload in messages(fleet)], list(range(0, 1000, 17)))
    lake, shards = LakeSettings(url=str(tmp_path / "lake"), max_file_rows=16), shard_names(4)
    sinks = graph.Sinks(
        telemetry=[LakeSink(lake, table="telemetry", schema=TELEMETRY, shards=shards, store=STORE)],
        predictions=[LakeSink(lake, table="predictions", schema=PREDICTION, shards=shards, store=STORE)],
    )
    run_flow(graph.build(TestingSource(batches), sinks, config(), metrics=Metrics()))
    answers = []
    for run in ("before", "after"):
        replay(config(), lake.url, str(tmp_path / run), telemetry=True)
        samples = str(read_table(tmp_path / run, "telemetry").to_pylist())  # as text, for no NaN equals another
        answers.append((plain(read_table(tmp_path / run, "predictions")), samples))
        finished = options(before=date.max, finished=frozenset([STORE]))
        done = [compact(lake.open(), table, finished) for table in ("telemetry", "predictions")]
        assert [(one.into, one.problems) for one in done] == [(4 if run == "before" else 0, [])] * 2
    assert answers[0] == answers[1] and answers[0][0].num_rows > 800
    assert plain(read_table(lake, "predictions")).equals(answers[0][0])  # and the same as live


# ---------------------------------------------------------------- on an object store


@pytest.fixture
def blobs(azurite: Azurite) -> Iterator[LakeSettings]:
    """A container of its own."""
    container = f"compact-{time.time_ns()}"
    fs = fsspec.filesystem("abfs", **azurite.options)
    fs.mkdir(container)
    yield LakeSettings(url=f"abfs://{container}/lake", storage_options=azurite.options)
    fs.rm(container, recursive=True)


@small_granule()
def test_on_azure_blobs(blobs: LakeSettings) -> None:
    lake = LakeSettings(url=blobs.url, storage_options=blobs.storage_options, max_file_rows=10)
    writer = LakeSink(lake, table="telemetry", schema=TELEMETRY, shards=["00"], store=STORE)
    part, source = writer.build_part("out", "00", None), LakeSource(blobs, batch_rows=16)

    def write(first: int, count: int, day: int) -> None:
        for number in range(first, first + count):
            part.write_batch([telemetry(10 * number, 10, ingest_time=day_of(day))])
            part.snapshot(), part.snapshot()

    write(0, 6, 0)
    write(6, 3, 1)
    reader = source.build_part("in", "lake", None)
    seen = reader.next_batch()
    state, store = reader.snapshot(), blobs.open()
    results: list[Compacted] = []
    both = [
        threading.Thread(target=lambda: results.append(compact(blobs.open(), "telemetry", options()))) for _ in "ab"
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [result.problems for result in results] == [[], []]
    names = [file for file in map(parse, store.find("telemetry")) if file]
    assert [(file.first, file.last) for file in names][0] == (0, 5)
    assert [batch["source_offset"][0].as_py() for batch in seen] == [0]
    for going_on in (reader, source.build_part("in", "lake", state)):
        rest = [n for batch in drain(going_on) for n in batch["source_offset"].to_pylist()]
        assert [n for batch in seen for n in batch["source_offset"].to_pylist()] + rest == list(range(90))
    assert read_table(blobs, "telemetry")["source_offset"].to_pylist() == list(range(90))
