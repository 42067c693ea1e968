import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stored_flow
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_flow import telemetry

from voltmill.connectors.lake import LakeError, LakePartition, LakeSettings, LakeSink
from voltmill.connectors.lake_source import LakeReader, LakeSource
from voltmill.connectors.outage import Patience
from voltmill.connectors.parquet import ROWS_KEY, SEQUENCE_KEY, SETTLED_KEY, SHARD_KEY, STORE_KEY, encode
from voltmill.kernels.schema import LABEL, PREDICTION, TELEMETRY

STORE = "20261122T103000Z-3fa2"
_numbers = count()


@pytest.fixture
def remote() -> Iterator[str]:
    """An object store: no rename, no folders, whole objects."""
    yield from _remote()


def _remote() -> Iterator[str]:
    url = f"memory://lake-{next(_numbers)}"
    yield url
    fsspec.filesystem("memory").rm(url.removeprefix("memory:/"), recursive=True)


def sink(
    url: str,
    now: Callable[[], float] = time.time,
    store: str = STORE,
    patience: Patience | None = None,
    existing: bool = False,
    **options: Any,
) -> LakeSink:
    return LakeSink(
        LakeSettings(url=url, **options),
        table="telemetry",
        schema=TELEMETRY,
        shards=["01", "00"],
        store=store,
        patience=patience,
        existing=existing,
        now=now,
    )


def files(url: str) -> list[str]:
    fs, root = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    paths = sorted(path[len(root) + 1 :] for path in fs.find(root))
    return [path for path in paths if not path.startswith("_set_aside/")]


def offsets(url: str, shard: str = "00") -> list[int]:
    fs, root = fsspec.url_to_fs(url)
    kept = [path for path in files(url) if f"shard={shard}" in path]
    return [n for path in kept for n in pq.read_table(fs.open(f"{root}/{path}"))["source_offset"].to_pylist()]


def drain(reader: LakeReader) -> list[pa.RecordBatch]:
    batches: list[pa.RecordBatch] = []
    while True:
        try:
            batches += reader.next_batch()
        except StopIteration:
            return batches


def read(url: str, **options: Any) -> pa.Table:
    reader = LakeSource(url, **options).build_part("in", "lake", None)
    return pa.Table.from_batches(drain(reader), TELEMETRY).unify_dictionaries()


# ---------------------------------------------------------------- the sink


STEPS = st.lists(st.one_of(st.integers(0, 12), st.sampled_from(["snapshot", "crash", "late"])), max_size=40)


def check_each_row_once(url: str, steps: list[int | str], **options: Any) -> None:
    """``late``: the process dies after the sinks' snapshot, before the epoch is durable."""
    writer = sink(url, **options)
    part, place, durable = writer.build_part("out", "00", None), 0, (0, None)
    for step in steps:
        if isinstance(step, int):
            part.write_batch([telemetry(place, step)])
            place += step
        elif step == "snapshot":
            durable = (place, part.snapshot())
        else:
            if step == "late":
                part.snapshot()
            part, place = writer.build_part("out", "00", durable[1]), durable[0]
    part.write_batch([telemetry(place, 3)])
    part.close()
    assert offsets(url) == list(range(place + 3))
    # The end of the stream is as good a place to die as any.
    part, place = writer.build_part("out", "00", durable[1]), durable[0]
    part.write_batch([telemetry(place, 5)])
    part.close()
    assert offsets(url) == list(range(place + 5))


@settings(deadline=None, max_examples=120)
@given(STEPS, st.integers(1, 25), st.sampled_from([0, 2_000, 10**6]))
def test_each_row_is_there_once_and_in_order_whatever_crashes(
    steps: list[int | str], max_file_rows: int, max_snapshot_bytes: int
) -> None:
    for url in _remote():
        check_each_row_once(url, steps, max_file_rows=max_file_rows, max_snapshot_bytes=max_snapshot_bytes)


def test_a_finished_flow_loses_nothing_when_it_is_started_again(tmp_path: Path) -> None:
    for rows in (200, 200, 400):
        stored_flow.main(tmp_path, rows)
        assert sorted(read(str(tmp_path / "lake"))["source_offset"].to_pylist()) == list(range(rows))


def test_layout_and_numbers(tmp_path: Path) -> None:
    part = sink(str(tmp_path), max_file_rows=10).build_part("out", "01", None)
    part.write_batch([telemetry(0, 10), telemetry(10, 10)])
    folder = "telemetry/date=2026-11-22/shard=01"
    assert files(str(tmp_path)) == [f"{folder}/{STORE}-0000000000.parquet", f"{folder}/{STORE}-0000000001.parquet"]


def test_a_fresh_store_leaves_the_older_archive_alone(tmp_path: Path) -> None:
    for store, first in ((STORE, 0), ("20261122T113000Z-0000", 50)):
        part = sink(str(tmp_path), store=store).build_part("out", "00", None)
        part.write_batch([telemetry(first, 50)])
        part.close()
    assert offsets(str(tmp_path)) == list(range(100))


def test_leftovers_of_a_crash_are_removed_and_strangers_kept(tmp_path: Path) -> None:
    folder = tmp_path / "telemetry/date=2026-11-22/shard=00"
    folder.mkdir(parents=True)
    for name in (f".{STORE}-0000000000.parquet.tmp", f"{STORE}-0000000007.parquet", "mine.parquet", "notes.txt"):
        (folder / name).touch()
    sink(str(tmp_path)).build_part("out", "00", None)
    assert sorted(path.name for path in folder.iterdir()) == ["mine.parquet", "notes.txt"]


def facts(url: str, *keys: str) -> list[tuple[str, ...]]:
    fs, root = fsspec.url_to_fs(url)
    metadata = [pq.read_metadata(fs.open(f"{root}/{path}")).metadata for path in files(url)]
    return [tuple(m[key.encode()].decode() for key in keys) for m in metadata]


def test_files_say_what_they_are_and_what_is_settled(tmp_path: Path) -> None:
    """Settled is the sequence of the snapshot before the last one, or the one that was resumed."""
    writer = sink(str(tmp_path), max_file_rows=2)
    part = writer.build_part("out", "01", None)
    part.write_batch([telemetry(0, 2)])  # no snapshot yet
    part.snapshot()
    part.write_batch([telemetry(2, 2)])  # one, of sequence 1, that need not be durable
    state = part.snapshot()
    part.write_batch([telemetry(4, 2)])  # two, so the first one is
    assert facts(str(tmp_path), STORE_KEY, SHARD_KEY, ROWS_KEY) == [(STORE, "01", "2")] * 3
    assert facts(str(tmp_path), SEQUENCE_KEY, SETTLED_KEY) == [("0", "0"), ("1", "0"), ("2", "1")]
    part = writer.build_part("out", "01", state)
    part.write_batch([telemetry(4, 2)])
    assert facts(str(tmp_path), SEQUENCE_KEY, SETTLED_KEY) == [("0", "0"), ("1", "0"), ("2", "2")]


def test_an_older_copy_of_the_recovery_store_is_refused_and_nothing_removed(tmp_path: Path) -> None:
    writer = sink(str(tmp_path), max_file_rows=2)
    part = writer.build_part("out", "00", None)
    states = []
    for number in range(4):
        part.write_batch([telemetry(2 * number, 2)])
        states.append(part.snapshot())
    with pytest.raises(
        LakeError, match=rf"shard=00/{STORE}-0000000003.parquet is of a later state of .*, whose next file is 1: "
    ):
        writer.build_part("out", "00", states[0])
    assert len(files(str(tmp_path))) == 4
    writer.build_part("out", "00", states[2])
    assert len(files(str(tmp_path))) == 3


def test_merged_files_are_no_orphans(tmp_path: Path) -> None:
    folder = tmp_path / "telemetry/date=2026-11-22/shard=00"
    folder.mkdir(parents=True)
    names = [
        f"{STORE}-0000000000-0000000004.parquet",
        f".{STORE}-0000000000-0000000007.parquet.tmp",  # the compaction's, which may be at work
        f"{STORE}-0-0000000009.parquet",  # of a store whose name begins like ours
        f"{STORE}-0000000003-0000000008.parquet",
    ]
    for name in names[:3]:
        (folder / name).touch()
    state = ("v1", 5, "2026-11-22", 0.0, ())
    sink(str(tmp_path)).build_part("out", "00", state)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[:3])
    (folder / names[3]).touch()
    with pytest.raises(LakeError, match="an older copy of the store was put back"):
        sink(str(tmp_path)).build_part("out", "00", state)
    sink(str(tmp_path)).build_part("out", "00", None)  # the store lost its state: all that it wrote is set aside
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[1:3])
    with pytest.raises(ValueError, match="ends like the number of a file"):
        sink(str(tmp_path), store=f"{STORE}-0000000001")


def test_the_date_is_that_of_arrival_and_never_steps_back(tmp_path: Path) -> None:
    part = sink(str(tmp_path), max_file_rows=3).build_part("out", "00", None)
    day = timedelta(days=1)
    for number, days in enumerate((0, 2, 1)):
        arrived = stored_flow.START + days * day
        part.write_batch([telemetry(3 * number, 3, ingest_time=arrived, event_time=arrived - 300 * day)])
    dates = [path.split("/")[1] for path in files(str(tmp_path))]
    assert dates == ["date=2026-11-22", "date=2026-11-24", "date=2026-11-24"]
    assert offsets(str(tmp_path)) == list(range(9))


def test_one_clock_far_off_does_not_date_a_file(tmp_path: Path) -> None:
    part = sink(str(tmp_path)).build_part("out", "00", None)
    part.write_batch([telemetry(0, 1, ingest_time=None, event_time=datetime(2098, 1, 1, tzinfo=UTC))])
    part.write_batch([telemetry(1, 4, ingest_time=None)])
    part.close()
    assert [path.split("/")[1] for path in files(str(tmp_path))] == ["date=2026-11-22"]


def test_age_ends_a_file_on_a_row_a_snapshot_or_an_empty_batch(tmp_path: Path) -> None:
    clock = [0.0]
    part = sink(str(tmp_path), now=lambda: clock[0], max_file_age_seconds=60).build_part("out", "00", None)
    touches: list[Callable[[], Any]] = [
        lambda: part.write_batch([telemetry(2, 1)]),
        part.snapshot,
        lambda: part.write_batch([telemetry(0, 0)]),
    ]
    for number, touch in enumerate(touches):
        part.write_batch([telemetry(0, 2)])
        clock[0] += 59
        part.snapshot()
        assert len(files(str(tmp_path))) == number
        clock[0] += 1
        touch()
        assert len(files(str(tmp_path))) == number + 1


def test_age_counts_from_the_first_arrival_even_over_a_restart(tmp_path: Path) -> None:
    writer = sink(str(tmp_path), now=lambda: 1000.0)
    part = writer.build_part("out", "00", None)
    part.write_batch([telemetry(0, 2)])
    assert part.snapshot()[3] == 1000.0


def test_snapshot_is_builtins_and_serialises_each_row_once(tmp_path: Path) -> None:
    part = sink(str(tmp_path)).build_part("out", "00", None)
    part.write_batch([telemetry(0, 5)])
    first = part.snapshot()
    part.write_batch([telemetry(5, 5)])
    second = part.snapshot()
    assert [type(value) for value in second] == [str, int, str, float, tuple]
    assert second[4][0] is first[4][0] and len(second[4]) == 2
    assert part.snapshot()[4] == second[4]
    restored = sink(str(tmp_path)).build_part("out", "00", second)
    assert offsets(str(tmp_path)) == list(range(10))
    assert restored.snapshot()[:2] == ("v1", 1)


def test_byte_limits_write_files(tmp_path: Path) -> None:
    part = sink(str(tmp_path), max_file_bytes=100_000, max_snapshot_bytes=1000).build_part("out", "00", None)
    part.write_batch([telemetry(n, 1, payload=b"x" * 40_000) for n in range(4)])
    assert len(files(str(tmp_path))) == 1
    part.snapshot()
    assert offsets(str(tmp_path)) == [0, 1, 2, 3]


def test_a_slice_counts_only_its_own_rows(tmp_path: Path) -> None:
    whole = telemetry(0, 2_000, source_partition="one")
    part = sink(str(tmp_path), max_file_bytes=whole.nbytes).build_part("out", "00", None)
    part.write_batch([whole.slice(n, 20) for n in range(0, 1_000, 20)])
    assert files(str(tmp_path)) == []


def test_labels_that_differ_between_batches_are_unified(tmp_path: Path) -> None:
    part = sink(str(tmp_path)).build_part("out", "00", None)
    part.write_batch([telemetry(0, 10), telemetry(10, 10, source="other"), telemetry(20, 3)])
    state = part.snapshot()
    sink(str(tmp_path)).build_part("out", "00", state)
    found = read(str(tmp_path))
    assert found["source"].to_pylist() == ["test"] * 10 + ["other"] * 10 + ["test"] * 3
    assert found["source_partition"].to_pylist() == [f"part-{n // 7}" for n in range(23)]
    assert found.schema.field("source").type == LABEL


def test_what_goes_in_comes_out(remote: str) -> None:
    rows = telemetry(0, 300, voltage_volt=7.5, charge_ah=1e-9)
    part = sink(remote, max_file_rows=100).build_part("out", "00", None)
    part.write_batch([rows.slice(0, 150), rows.slice(150)])
    part.close()
    assert read(remote).to_pylist() == rows.to_pylist()


def test_encodings() -> None:
    file = pq.ParquetFile(pa.BufferReader(encode([telemetry(0, 50)], TELEMETRY, level=1)))
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("current_ampere", "cell_voltage_volt.list.element", "charge_ah"):
        assert "BYTE_STREAM_SPLIT" in columns[name].encodings
    assert "RLE_DICTIONARY" in columns["source"].encodings
    assert "RLE_DICTIONARY" not in columns["device_id"].encodings
    assert all(column.compression == "ZSTD" for column in columns.values())
    searched = {name for name, column in columns.items() if column.is_stats_set}
    assert searched == {"device_id", "event_time", "ingest_time"}
    assert file.schema_arrow.equals(TELEMETRY)


def test_written_batches_are_reported_once_they_are_there(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    writer = sink(str(tmp_path), max_file_rows=10)
    writer.on_written = lambda batch: seen.append((batch.num_rows, len(files(str(tmp_path)))))
    part = writer.build_part("out", "00", None)
    part.write_batch([telemetry(0, 4), telemetry(4, 7), telemetry(11, 2)])
    assert seen == [(4, 1), (7, 1)]


@pytest.mark.parametrize("state", [("v2", 1), "v1", ("v1", 1, "2026-11-22"), 7])
def test_a_state_of_another_version_is_refused(tmp_path: Path, state: Any) -> None:
    with pytest.raises(LakeError, match="this release reads 'v1'"):
        sink(str(tmp_path)).build_part("out", "00", state)


def test_keys_and_schemas_that_do_not_belong(tmp_path: Path) -> None:
    writer = sink(str(tmp_path))
    assert [writer.part_fn(key) for key in writer.list_parts()] == [0, 1]
    with pytest.raises(LakeError, match="key '7' is none of its shards"):
        writer.part_fn("7")
    part: LakePartition = writer.build_part("out", "00", None)
    with pytest.raises(LakeError, match="a batch has the columns"):
        part.write_batch([stored_flow.predictions(0, 1)])
    wrong = telemetry(0, 1).set_column(4, "current_ampere", pa.array([1.0]))
    with pytest.raises(LakeError, match="column current_ampere is double, it takes float"):
        part.write_batch([wrong])
    with pytest.raises(ValueError, match="cannot be part of a file name"):
        LakeSink(LakeSettings(), table="a/b", schema=PREDICTION, shards=["00"], store=STORE)


def test_settings_keep_secrets_and_refuse_nonsense() -> None:
    assert "hunter2" not in repr(LakeSettings(storage_options={"account_key": "hunter2"}))
    with pytest.raises(ValueError, match="max_file_rows must be above 0"):
        LakeSettings(max_file_rows=0)
    with pytest.raises(LakeError, match="lake nonsense://x"):
        LakeSettings(url="nonsense://x").open()


def test_a_store_that_lost_its_state_sets_the_archive_aside(tmp_path: Path) -> None:
    """Its files may be all that is left of the rows, so none is deleted; none is read twice either."""
    part = sink(str(tmp_path), max_file_rows=5).build_part("out", "00", None)
    part.write_batch([telemetry(0, 5)])
    part.close()
    before = {f.name: f.read_bytes() for f in tmp_path.glob("telemetry/**/*.parquet")}
    again = sink(str(tmp_path), max_file_rows=5).build_part("out", "00", None)
    again.write_batch([telemetry(5, 5)])
    again.close()
    aside = {f.name: f.read_bytes() for f in tmp_path.glob("_set_aside/*/telemetry/**/*.parquet")}
    assert before and aside == before
    assert read(str(tmp_path))["source_offset"].to_pylist() == list(range(5, 10))
