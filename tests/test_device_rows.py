"""The rows of one device, in order of arrival, without opening what cannot hold it."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_replay import SHARDS, START, archive

from voltmill.connectors import lake_reader
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_range import EventRange
from voltmill.connectors.lake_reader import NoFiles, read_table
from voltmill.flows.device_rows import BATCH_ROWS, DeviceRows
from voltmill.operators.shard import shard_names
from voltmill.operators.table import hashes_of

DEVICE = "site-1/gw/m-07"


def split_one(device: str) -> str:
    """The shard of a device."""
    return shard_names(SHARDS)[int(hashes_of(pa.array([device]))[0] % np.uint64(SHARDS))]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> LakeSettings:
    return LakeSettings(url=archive(tmp_path_factory.mktemp("lake"), 48_000))


def test_every_row_of_the_device_with_its_place(lake: LakeSettings) -> None:
    pieces = list(DeviceRows(lake, "telemetry", DEVICE))
    found = pa.Table.from_batches([piece.batch for piece in pieces])
    everything = read_table(lake, "telemetry")
    wanted = everything.filter(pc.equal(everything["device_id"], DEVICE))
    assert found["source_offset"].equals(wanted["source_offset"]) and len(found) == 2_000
    for piece in pieces:
        kept = pq.read_table(Path(lake.url) / "telemetry" / piece.file, partitioning=None).take(pa.array(piece.numbers))
        assert kept["source_offset"].to_pylist() == piece.batch.column("source_offset").to_pylist()
        assert piece.store == "20261122T1Z-a"


def test_files_of_other_shards_are_not_opened(lake: LakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = lake_reader.open_parquet

    def watched(store, path):  # type: ignore[no-untyped-def]
        opened.append(path)
        return real(store, path)

    monkeypatch.setattr(lake_reader, "open_parquet", watched)
    everything = read_table(lake, "telemetry")
    device = next(d for d in everything["device_id"].unique().to_pylist() if split_one(d) == "00")
    opened.clear()
    rows = DeviceRows(lake, "telemetry", device)
    assert sum(len(piece.batch) for piece in rows) == 2_000
    assert {Path(path).parent.name for path in opened} == {"shard=00"}, "found in the first shard"
    assert rows.cut == {"20261122T1Z-a": 0}


def test_a_range_of_time_and_some_columns(lake: LakeSettings) -> None:
    times = EventRange(START + timedelta(seconds=100), START + timedelta(seconds=160))
    rows = list(DeviceRows(lake, "telemetry", DEVICE, times=times))
    assert sum(len(piece.batch) for piece in rows) == 60
    few = list(DeviceRows(lake, "telemetry", "nobody"))
    assert few == []


def test_pieces_are_small_however_large_a_row_group_is(tmp_path: Path) -> None:
    lake = LakeSettings(url=archive(tmp_path, 60_000, devices=1, file_rows=60_000))
    sizes = [len(piece.batch) for piece in DeviceRows(lake, "telemetry", "site-0/gw/m-00")]
    assert sum(sizes) == 60_000 and max(sizes) <= BATCH_ROWS


def test_a_data_set_from_elsewhere_has_its_places_as_lineage(tmp_path: Path) -> None:
    (tmp_path / "telemetry").mkdir()
    table = pa.table(
        {
            "device_id": ["a", "b"] * 5,
            "event_time": pa.array(np.arange(10) * 1_000_000_000 + 1_700_000_000_000_000_000, pa.timestamp("ns")),
            "current_ampere": np.ones(10),
            "cell_voltage_volt": [[3.7]] * 10,
        }
    )
    pq.write_table(table, tmp_path / "telemetry" / "mine.parquet")
    (piece,) = DeviceRows(LakeSettings(url=str(tmp_path)), "telemetry", "b", times=EventRange(START.replace(year=2020)))
    assert (piece.file, piece.store) == ("mine.parquet", "")
    assert piece.numbers.tolist() == piece.batch.column("source_offset").to_pylist() == [1, 3, 5, 7, 9]


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(NoFiles):
        DeviceRows(LakeSettings(url=str(tmp_path)), "telemetry", "a")
