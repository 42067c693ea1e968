import decimal
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink
from conftest import RunFlow
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_flow import START, telemetry
from test_lake import drain, read

from voltmill.connectors.lake_range import EventRange, runs
from voltmill.connectors.lake_source import LakeSource
from voltmill.connectors.store import LakeError
from voltmill.kernels.schema import TELEMETRY

FOREIGN = {
    "cell_voltage_volt": pa.array([[3.5, 3.25], [3.5]]),
    "current_ampere": pa.array([1.5, None]),
    "event_time": pa.array([START, START + timedelta(seconds=1)], pa.timestamp("us", "UTC")),
    "device_id": pa.array(["a", "b"]),
}


def put(folder: Path, name: str, table: pa.Table | pa.RecordBatch, **options: Any) -> None:
    path = folder / "telemetry" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, **options)


def foreign(folder: Path, **columns: Any) -> list[dict[str, Any]]:
    """The rows read from a data set with these columns in place of the plain ones; None leaves one out."""
    put(folder, "x.parquet", pa.table({k: v for k, v in (FOREIGN | columns).items() if v is not None}))
    return list(read(str(folder)).to_pylist())


def test_files_in_name_order_rows_in_file_order(tmp_path: Path) -> None:
    names = [
        "date=2026-11-22/shard=00/s-1.parquet",
        "date=2026-11-22/shard=01/s-0.parquet",
        "date=2026-11-23/a.parquet",
    ]
    for number, name in reversed(list(enumerate(names))):
        put(tmp_path, name, telemetry(100 * number, 100), row_group_size=30)
    for hidden in (".x.parquet", "_x.parquet", "_tmp/x.parquet", "date=2026-11-22/.s-2.parquet.tmp", "readme.txt"):
        path = tmp_path / "telemetry" / hidden
        path.parent.mkdir(exist_ok=True)
        path.write_text("no Parquet")
    assert read(str(tmp_path))["source_offset"].to_pylist() == list(range(300))


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 120), st.sampled_from([None, 0.35]), st.integers(1, 50))
def test_resuming_anywhere_gives_the_rest(
    tmp_path_factory: pytest.TempPathFactory, batch_rows: int, begin: float | None, group: int
) -> None:
    folder = tmp_path_factory.mktemp("lake")
    for number in range(3):
        put(folder, f"{number}.parquet", telemetry(40 * number, 40), row_group_size=group)
    start = None if begin is None else START + timedelta(seconds=begin)
    wanted = list(range(0 if begin is None else 35, 120))
    source = LakeSource(str(folder), batch_rows=batch_rows, start=start)
    reader = source.build_part("in", "lake", None)
    seen: list[int] = []
    while True:
        again = drain(source.build_part("in", "lake", reader.snapshot()))
        rest = [n for batch in again for n in batch["source_offset"].to_pylist()]
        assert seen + rest == wanted
        try:
            seen += [n for batch in reader.next_batch() for n in batch["source_offset"].to_pylist()]
        except StopIteration:
            break
    assert seen == wanted


def test_small_files_are_joined(tmp_path: Path) -> None:
    for number in range(100):
        put(tmp_path, f"{number:03}.parquet", telemetry(10 * number, 10, source=f"s{number}"))
    batches = drain(LakeSource(str(tmp_path), batch_rows=400).build_part("in", "lake", None))
    assert [batch.num_rows for batch in batches] == [200] * 5
    assert batches[1]["source"].to_pylist()[::10] == [f"s{n}" for n in range(20, 40)]


def test_a_range_of_event_time_skips_row_groups(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", telemetry(0, 1000), row_group_size=100)
    start, stop = START + timedelta(seconds=2.5), START + timedelta(seconds=4)
    found = read(str(tmp_path), start=start, stop=stop)
    assert found["source_offset"].to_pylist() == list(range(250, 400))
    metadata = pq.read_metadata(tmp_path / "telemetry/a.parquet")
    times = EventRange(start, stop)
    found = runs(metadata, 0, 1000, lambda group: times.may_hold(metadata.row_group(group)))
    assert list(found) == [([2, 3, 4], 200)]  # 4 starts at stop: its first µs may be inside


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_times_of_any_kind(tmp_path: Path, unit: str, zone: str | None) -> None:
    seconds = [int(START.timestamp()), int(START.timestamp()) + 1]
    times = pa.array(seconds, pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp(unit)).view(pa.int64())
    column = times.view(pa.timestamp(unit, zone))
    assert [row["event_time"] for row in foreign(tmp_path, event_time=column)] == [START, START + timedelta(seconds=1)]
    late = read(str(tmp_path), start=START + timedelta(seconds=1))
    assert late["device_id"].to_pylist() == ["b"]
    assert read(str(tmp_path), stop=START).num_rows == 0


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.large_string())]
)
def test_text_of_any_kind(tmp_path: Path, type_: pa.DataType) -> None:
    text = pa.array(["a", "b"])
    if pa.types.is_dictionary(type_):
        text = text.cast(pa.large_string()).dictionary_encode()
    column = text.cast(type_)
    rows = foreign(tmp_path, device_id=column, source=column, source_partition=column)
    assert [(row["device_id"], row["source"], row["source_partition"]) for row in rows] == [("a",) * 3, ("b",) * 3]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[3.5, 3.25], [3.5, None]], pa.list_(pa.float64())),
        pa.array([[3.5, 3.25], [3.5, None]], pa.large_list(pa.float32())),
        pa.array([[3.5, 3.25], [3.5, None]], pa.list_(pa.float64(), 2)),
        pa.array([[decimal.Decimal("3.5"), decimal.Decimal("3.25")], [decimal.Decimal("3.5"), None]]),
    ],
)
def test_lists_of_any_kind(tmp_path: Path, column: pa.Array) -> None:
    first, second = (row["cell_voltage_volt"] for row in foreign(tmp_path, cell_voltage_volt=column))
    assert first == [3.5, 3.25]
    assert second[0] == 3.5 and np.isnan(second[1])


def test_a_null_list_is_empty(tmp_path: Path) -> None:
    column = pa.array([None, [3.5]], pa.list_(pa.float32()))
    assert [row["cell_voltage_volt"] for row in foreign(tmp_path, cell_voltage_volt=column)] == [[], [3.5]]


def test_what_is_missing(tmp_path: Path) -> None:
    first, second = foreign(tmp_path, extra=pa.array(["ignored", "too"]), charge_ah=pa.array([1, 2], pa.int8()))
    assert np.isnan(second["current_ampere"]) and first["current_ampere"] == 1.5
    assert (first["seq"], first["voltage_volt"], first["quality_bits"], first["charge_ah"]) == (None, None, 0, 1.0)
    assert first["cell_temperature_celsius"] == []
    assert (second["source"], second["source_partition"], second["source_offset"]) == ("lake", "x.parquet", 1)


def test_payloads_only_when_asked(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", telemetry(0, 2, payload=b"raw"))
    assert read(str(tmp_path))["payload"].to_pylist() == [None, None]
    assert read(str(tmp_path), payload=True)["payload"].to_pylist() == [b"raw", b"raw"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"device_id": None}, r"telemetry/x.parquet: no column device_id; there are: cell_voltage_volt, current"),
        ({"event_time": pa.array([1, 2])}, r"x.parquet: column event_time \(int64\) is not timestamp.*bare number"),
        ({"event_time": pa.array([START, None])}, r"x.parquet: column event_time .* row 1 is null"),
        ({"current_ampere": pa.array(["1", "2"])}, r"x.parquet: column current_ampere \(string\).* a number"),
        ({"cell_voltage_volt": pa.array([1.0, 2.0])}, r"x.parquet: column cell_voltage_volt \(double\)"),
        ({"device_id": pa.array([1, 2])}, r"x.parquet: column device_id \(int64\).* text"),
        ({"seq": pa.array([-1, 2])}, r"x.parquet: column seq \(int64\) is not uint64"),
    ],
)
def test_data_that_cannot_be_telemetry(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(LakeError, match=message) as raised:
        foreign(tmp_path, **columns)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [0, 3, 500, -1])
def test_a_truncated_file_is_named(tmp_path: Path, size: int) -> None:
    put(tmp_path, "a.parquet", telemetry(0, 10))
    whole = (tmp_path / "telemetry/a.parquet").read_bytes()
    (tmp_path / "telemetry/b.parquet").write_bytes(whole[:size])
    with pytest.raises(LakeError, match=r"telemetry/b.parquet: not readable as Parquet"):
        read(str(tmp_path))


def test_no_archive_and_a_file_that_went(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no Parquet file in telemetry"):
        read(str(tmp_path))
    put(tmp_path, "b.parquet", telemetry(0, 10))
    with pytest.raises(LakeError, match=r"telemetry/a.parquet was being read and is gone"):
        LakeSource(str(tmp_path)).build_part("in", "lake", ("v1", "a.parquet", 5))
    with pytest.raises(LakeError, match="lake position 'v0'"):
        LakeSource(str(tmp_path)).build_part("in", "lake", ("v0", "b.parquet", 5))
    with pytest.raises(ValueError, match="has no time zone"):
        LakeSource(str(tmp_path), start=datetime(2026, 1, 1))  # noqa: DTZ001


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path, f"{number}.parquet", telemetry(40 * number, 40))
    seen: list[tuple[int, int, int]] = []
    source = LakeSource(str(tmp_path), batch_rows=40, on_progress=lambda *given: seen.append(given))
    drain(source.build_part("in", "lake", None))
    assert seen[:2] == [(0, 3, 0), (0, 3, 40)] and seen[-1] == (3, 3, 120)
    assert seen == sorted(seen)


def test_in_a_flow(tmp_path: Path, run_flow: RunFlow) -> None:
    put(tmp_path, "a.parquet", telemetry(0, 100))
    out: list[pa.RecordBatch] = []
    flow = Dataflow("replay")
    op.output("out", op.input("in", flow, LakeSource(str(tmp_path), batch_rows=30)), TestingSink(out))
    run_flow(flow)
    assert pa.Table.from_batches(out, TELEMETRY)["source_offset"].to_pylist() == list(range(100))
