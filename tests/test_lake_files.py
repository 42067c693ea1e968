import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_flow import telemetry
from test_lake import drain

from voltmill.connectors import lake_reader
from voltmill.connectors.lake_files import Listing, Stream, merged_name, parse, visible
from voltmill.connectors.lake_reader import FileGone, list_files, listed, read_batches, read_table
from voltmill.connectors.lake_source import LakeSource
from voltmill.connectors.parquet import PARTS_KEY, encode
from voltmill.connectors.store import LakeError, Store
from voltmill.kernels.schema import TELEMETRY

STORE = "20261122T103000Z-3fa2"
FOLDER = "date=2026-11-22/shard=00"
Put = Callable[..., None]


def name(first: int, last: int | None = None, store: str = STORE, folder: str = FOLDER) -> str:
    return f"{folder}/" + (f"{store}-{first:010d}.parquet" if last is None else merged_name(store, first, last))


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Puts files into the lake: each number holds ten rows, counted on from ten times the number."""

    def put(first: int, last: int | None = None, **where: str) -> None:
        numbers = range(first, (first if last is None else last) + 1)
        parts = str([[10, 1000]] * len(numbers))
        path = tmp_path / "telemetry" / name(first, last, **where)
        path.parent.mkdir(parents=True, exist_ok=True)
        batches = [telemetry(10 * number, 10, source=f"n{number}") for number in numbers]
        path.write_bytes(encode(batches, TELEMETRY, level=1, metadata={PARTS_KEY: parts} if last else None))

    return put


def remove(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / "telemetry" / path).unlink()


def rows(batches: list[pa.RecordBatch]) -> list[int]:
    return [n for batch in batches for n in batch["source_offset"].to_pylist()]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "path",
    [
        "x.parquet",
        f"{STORE}-0000000005.parquet",
        f"date=2026-11-22/{STORE}-0000000005.parquet",
        f"{FOLDER}/{STORE}-5.parquet",
        f"{FOLDER}/{STORE}-0000000005.parquet.tmp",
        f"{FOLDER}/-0000000005.parquet",
        f"date=today/shard=00/{STORE}-0000000005.parquet",
        name(9, 5),
        name(5, 5),
    ],
)
def test_other_names_say_nothing_and_all_count(path: str) -> None:
    assert parse(path) is None
    assert sorted(visible([path, name(0, 20)])) == sorted([path, name(0, 20)])


def test_what_a_name_says() -> None:
    file = parse(f"lake/telemetry/{name(5, 9)}")
    assert file is not None and file.merged and (file.first, file.last, file.date) == (5, 9, "2026-11-22")
    assert file.stream == Stream("lake/telemetry/", "00", STORE)
    single = parse(name(7))
    assert single is not None and not single.merged and (single.first, single.last) == (7, 7)


RANGES = st.tuples(st.integers(0, 30), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(RANGES, max_size=12), st.integers(0, 99))
def test_what_counts_covers_every_number_once(ranges: list[tuple[int, int]], seed: int) -> None:
    """Against the rule as it is told: a file within another one does not count."""
    paths = {name(a, b if a < b else None): (a, b) for a, b in ranges}
    shuffled = random.Random(seed).sample(sorted(paths), len(paths))
    outer = [p for p, (a, b) in paths.items() if not any(c <= a and b <= d and p != q for q, (c, d) in paths.items())]
    numbers = [n for path in outer for n in range(paths[path][0], paths[path][1] + 1)]
    if len(set(numbers)) < len(numbers):
        with pytest.raises(LakeError, match="overlap, neither within the other"):
            visible(shuffled)
    else:
        assert visible(shuffled) == sorted(outer, key=lambda path: paths[path])  # name order is that of the numbers


def test_stores_shards_days_and_folders_do_not_hide_each_other() -> None:
    others = [
        name(7, store="20261122T103000Z-3fa3"),
        name(7, store="20261122T103000Z"),
        name(7, folder="date=2026-11-22/shard=01"),
        name(7, folder="date=2026-11-23/shard=00"),
        name(7, folder=f"site-a/{FOLDER}"),
    ]
    assert sorted(visible([name(7), name(5, 9), *others])) == sorted([name(5, 9), *others])


def test_a_hundred_thousand_files_are_no_burden() -> None:
    import time

    paths = [name(n, folder=f"date=2026-11-{d:02}/shard=00") for d in range(1, 11) for n in range(10_000)]
    paths += [name(0, 4_999, folder=f"date=2026-11-{d:02}/shard=00") for d in range(1, 11)]
    began = time.process_time()
    assert len(visible(paths)) == 50_010
    assert time.process_time() - began < 5


def test_listings_end_where_they_are_told() -> None:
    listing = Listing([name(0), name(1, 5), name(6), name(0, store="b")], {Stream("", "00", STORE): 3})
    assert listing.paths == [name(0), name(1, 5)]
    assert listing.ends() == {Stream("", "00", STORE): 5}
    assert name(1, 5) in listing and name(3) not in listing and name(6) not in listing
    assert Listing([name(0, 9)]).covers(listing) and not listing.covers(Listing([name(0, 9)]))


# ---------------------------------------------------------------- reading while files are merged


def test_a_table_is_read_once_while_both_kinds_stand(tmp_path: Path, put: Put) -> None:
    put(0), put(1), put(2), put(0, 1), put(3)
    table = read_table(tmp_path, "telemetry")
    assert table["source_offset"].to_pylist() == list(range(40))
    assert table["source"].to_pylist()[::10] == ["n0", "n1", "n2", "n3"]
    assert read_table(str(tmp_path), "telemetry", ["source_offset"]).column_names == ["source_offset"]
    assert list_files(tmp_path, "telemetry") == [
        f"{tmp_path}/telemetry/{path}" for path in (name(0, 1), name(2), name(3))
    ]


@pytest.mark.parametrize("read_before", range(5))
@pytest.mark.parametrize("merges", [[(0, 4)], [(1, 3)], [(0, 1), (2, 4)], [(1, 2), (0, 4)]])
def test_going_on_at_the_row_when_files_are_merged_in_between(
    tmp_path: Path, put: Put, read_before: int, merges: list[tuple[int, int]]
) -> None:
    for number in range(5):
        put(number)
    batches = read_batches(tmp_path, "telemetry")
    seen = [next(batches) for _ in range(read_before)]
    for first, last in merges:
        put(first, last)
        for path in list((tmp_path / "telemetry" / FOLDER).iterdir()):
            file = parse(f"{FOLDER}/{path.name}")
            if file and first <= file.first and file.last <= last and file.path != name(first, last):
                path.unlink()
    put(5)  # came after the start, so it is left out
    assert rows(seen + list(batches)) == list(range(50))
    assert rows(list(read_batches(tmp_path, "telemetry"))) == list(range(60))


@pytest.mark.parametrize("taken", range(7))
def test_a_replay_goes_on_after_its_file_was_merged(tmp_path: Path, put: Put, taken: int) -> None:
    """With a file that holds rows past where the first start ended, which are left out."""
    for number in range(5):
        put(number)
    source = LakeSource(str(tmp_path), batch_rows=8)
    reader = source.build_part("in", "lake", None)
    seen = [batch for _ in range(taken) for batch in reader.next_batch()]
    state = reader.snapshot()
    put(5), put(6), put(2, 6), put(5, folder="date=2026-11-23/shard=01")
    remove(tmp_path, *(name(number) for number in range(2, 7)))
    assert rows(seen + drain(source.build_part("in", "lake", state))) == list(range(50))
    assert rows(seen + drain(reader)) == list(range(50))  # and so does one that was never stopped
    old: Any = ("v1", *state[1:3])
    assert rows(seen + drain(source.build_part("in", "lake", old))) == [*range(70), *range(50, 60)]


def test_a_state_in_a_merged_file_that_is_merged_again(tmp_path: Path, put: Put) -> None:
    put(0), put(1, 2), put(3)
    source = LakeSource(str(tmp_path), batch_rows=16)
    reader = source.build_part("in", "lake", None)
    seen = [batch for _ in range(2) for batch in reader.next_batch()]
    state = reader.snapshot()
    assert state[:3] == ("v2", name(1, 2), 16)
    put(0, 3)
    remove(tmp_path, name(0), name(1, 2), name(3))
    again = source.build_part("in", "lake", state)
    seen += again.next_batch()
    assert again.snapshot()[:3] == ("v2", name(0, 3), 40)
    assert rows(seen + drain(again)) == list(range(40))


def test_a_listing_that_misses_a_merge_is_made_again(tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a listing can: the merged file appears behind it, and the small ones go before it."""
    found = iter([[name(2)], [name(0, 1), name(2)], [name(0, 1), name(2)]])
    monkeypatch.setattr(Store, "find", lambda store, table: next(found))
    assert listed(Store(str(tmp_path)), "telemetry").paths == [name(0, 1), name(2)]
    shrinking = iter([[name(n) for n in range(left)] for left in range(40, 0, -1)])
    monkeypatch.setattr(Store, "find", lambda store, table: next(shrinking))
    with pytest.raises(LakeError, match="telemetry changes faster than it can be listed"):
        listed(Store(str(tmp_path)), "telemetry")


def test_a_file_that_is_gone_for_good(tmp_path: Path, put: Put) -> None:
    put(0), put(1), put(2)
    batches = read_batches(tmp_path, "telemetry")
    next(batches)
    remove(tmp_path, name(1))
    with pytest.raises(FileGone, match=r"telemetry/date=2026-11-22/shard=00/\S+-0000000001.parquet was being read"):
        list(batches)
    assert read_table(tmp_path, "telemetry")["source_offset"].to_pylist() == [*range(10), *range(20, 30)]


def test_a_table_is_begun_afresh_when_a_file_goes(tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put(0), put(1)
    opened = lake_reader.open_parquet

    def open_parquet(store: Store, path: str) -> Any:
        if (tmp_path / "telemetry" / name(1)).exists():
            remove(tmp_path, name(1))
            put(2)
        return opened(store, path)

    monkeypatch.setattr(lake_reader, "open_parquet", open_parquet)
    assert read_table(tmp_path, "telemetry")["source_offset"].to_pylist() == [*range(10), *range(20, 30)]


def test_tables_without_files_or_rows(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no Parquet file in telemetry"):
        read_table(tmp_path, "telemetry")
    assert read_table(tmp_path, "telemetry", empty=TELEMETRY).schema == TELEMETRY
    (tmp_path / "telemetry").mkdir()
    pq.write_table(TELEMETRY.empty_table(), tmp_path / "telemetry/x.parquet")
    assert read_table(tmp_path, "telemetry").schema == TELEMETRY


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t/a.parquet")
    pq.write_table(pa.table({"a": [2], "b": ["x"]}), tmp_path / "t/b.parquet")
    assert read_table(tmp_path, "t").to_pydict() == {"a": [1, 2], "b": [None, "x"]}
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "t/c.parquet")
    with pytest.raises(LakeError, match="t: its files do not fit together"):
        read_table(tmp_path, "t")


@pytest.mark.parametrize("parts", [None, "[[10, 1]]", "[[10, 1], [9, 1]]", "no JSON"])
def test_a_merged_file_that_does_not_say_its_parts(tmp_path: Path, parts: str | None) -> None:
    path = tmp_path / "telemetry" / name(0, 1)
    path.parent.mkdir(parents=True)
    metadata = None if parts is None else {PARTS_KEY: parts}
    path.write_bytes(encode([telemetry(0, 20)], TELEMETRY, level=1, metadata=metadata))
    with pytest.raises(LakeError, match="0000000001.parquet: is named like a merged file, but its metadata"):
        read_table(tmp_path, "telemetry")
