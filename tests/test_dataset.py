"""A training table holds what the stream gives a model, split by device, in bounded memory."""

import json
import resource
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from session_rows import CHARGE, DISCHARGE, REST, series
from telemetry import batch, content, joined
from test_replay import FLEET, SHARDS, START, archive, config, telemetry

from voltmill.connectors.compact import compact
from voltmill.connectors.compact_settings import CompactSettings
from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.flows.config import ConfigError
from voltmill.flows.dataset import Made, Recipe, dataset
from voltmill.flows.dataset_columns import Label
from voltmill.flows.dataset_devices import split_of
from voltmill.flows.dataset_file import METADATA_KEY, DatasetFile
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import REFUSED, TELEMETRY
from voltmill.operators.features import offline
from voltmill.operators.sessions import offline as offline_sessions
from voltmill.operators.shard import shard_names, split

SOC = Label("soc", "bms_soc_percent")


def with_soc(rows: pa.RecordBatch, every: int = 3) -> pa.RecordBatch:
    """The BMS says an SOC in one row of each so many."""
    offsets = rows.column("source_offset").to_numpy()
    soc = pa.array(offsets % 100, pa.float32(), mask=offsets % every != 0)
    at = rows.schema.get_field_index("bms_soc_percent")
    return rows.set_column(at, rows.schema.field(at), soc)


def written(folder: Path, batches: list[pa.RecordBatch], file_rows: int = 2_000) -> str:
    """An archive of these rows."""
    settings = LakeSettings(url=str(folder), max_file_rows=file_rows)
    sink = LakeSink(settings, table="telemetry", schema=TELEMETRY, shards=shard_names(SHARDS), store="20261122T1Z-a")
    parts = [sink.build_part("lake", name, None) for name in shard_names(SHARDS)]
    for rows in batches:
        for k, part in split(rows, SHARDS):
            parts[k].write_batch([part])
    for part in parts:
        part.close()
    return str(folder)


@pytest.fixture(scope="module")
def whole() -> pa.RecordBatch:
    """24 devices, a row a second each; each seventeenth row comes twice."""
    rows = with_soc(joined([telemetry(first, 1_200, 24) for first in range(0, 24_000, 1_200)]))
    repeats = np.sort(np.r_[np.arange(len(rows)), np.arange(0, len(rows), 17)])
    return rows.take(pa.array(repeats))


@pytest.fixture(scope="module")
def lake(whole: pa.RecordBatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("lake"), [whole.slice(k, 1_000) for k in range(0, len(whole), 1_000)])


def make(lake: str, out: Path, recipe: Recipe, **changes: Any) -> tuple[Made, pa.Table]:
    made = dataset(config(**changes), lake, out, recipe)
    table = pq.read_table(out)
    assert made.rows == len(table)
    return made, table


def sorted_rows(rows: pa.RecordBatch | pa.Table, names: list[str]) -> pa.RecordBatch:
    table = pa.table({name: rows.column(name) for name in names})
    return joined(table.sort_by([("device_id", "ascending"), ("event_time", "ascending")]).to_batches())


def test_features_are_those_of_the_stream(lake: str, whole: pa.RecordBatch, tmp_path: Path) -> None:
    made, table = make(lake, tmp_path / "f.parquet", Recipe(table="features"))
    streamed = offline(whole, Fleet(FLEET))
    assert made.read == len(whole) and made.rows == len(streamed) == 24_000
    names = [name for name in table.column_names if name in streamed.schema.names and name != "capacity_ah"]
    assert len(names) == 3 + len(streamed.schema.names[7:]) - 1
    found, wanted = (content(sorted_rows(rows, names)) for rows in (table, streamed))
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert set(table["cell_type"].to_pylist()) == {"lg-hg2", ""}
    known = table.filter(pc.equal(table["cell_type"], "lg-hg2"))
    assert set(known["capacity_ah"].to_pylist()) == {3.0} and len(known) == 12_000


def test_columns_labels_and_what_is_left_out(lake: str, whole: pa.RecordBatch, tmp_path: Path) -> None:
    recipe = Recipe(table="features", columns=("c_rate*", "voltage_volt", "seq"), labels=(SOC,))
    made, table = make(lake, tmp_path / "f.parquet", recipe)
    base = ["device_id", "event_time", "split", "cell_type", "capacity_ah", "quality_bits"]
    rates = ["c_rate", *(f"c_rate_ema_{t}s" for t in (20, 90, 400, 1800))]
    assert table.column_names == [*base, *rates, "voltage_volt", "seq", "soc"]
    assert (made.rows, made.unlabelled) == (8_000, 16_000)
    labels = dict(zip(zip(*(whole.column(c).to_pylist() for c in ("device_id", "event_time")), strict=True),
                      whole.column("bms_soc_percent").to_pylist(), strict=True))  # fmt: skip
    for row in table.slice(0, 200).to_pylist():
        assert row["soc"] == labels[row["device_id"], row["event_time"]]
    assert table["voltage_volt"].type == pa.float32() and table["seq"].type == pa.uint64()


def test_rows_with_a_bit_are_left_out(tmp_path: Path) -> None:
    rows = joined([telemetry(0, 600, 2)])
    at = rows.schema.get_field_index("current_ampere")
    odd = rows.column(at).to_numpy().copy()
    odd[100:120] = 9_000.0  # no limit allows it
    lake = written(tmp_path / "lake", [rows.set_column(at, rows.schema.field(at), pa.array(odd))])
    made, table = make(lake, tmp_path / "all.parquet", Recipe(table="features"))
    less, rest = make(lake, tmp_path / "less.parquet", Recipe(table="features", without=("range",)))
    assert (made.rows, less.rows, less.flagged) == (600, 580, 20)
    assert set(rest["quality_bits"].to_pylist()) < set(table["quality_bits"].to_pylist())


def test_one_row_of_a_device_in_a_period(lake: str, tmp_path: Path) -> None:
    made, table = make(lake, tmp_path / "f.parquet", Recipe(table="features", every_seconds=10.0, columns=("c_rate",)))
    assert made.rows == 24 * 100
    seconds = table["event_time"].cast(pa.int64()).to_numpy() // 1_000_000
    assert set((seconds - int(START.timestamp())) % 10) == {0}
    assert len(set(zip(table["device_id"].to_pylist(), seconds // 10, strict=True))) == len(table)
    _, labelled = make(
        lake,
        tmp_path / "l.parquet",
        Recipe(table="features", every_seconds=10.0, columns=("c_rate",), labels=(SOC,)),
    )
    assert len(labelled) == 8 * 100, "each third device has an SOC"


def test_telemetry_as_archived_without_what_counts_for_nothing(
    lake: str, whole: pa.RecordBatch, tmp_path: Path
) -> None:
    made, table = make(lake, tmp_path / "t.parquet", Recipe(table="telemetry", devices=("site-1/*",)))
    assert made.rows == 12_000 < made.read, "copies take no part"
    assert "source" not in table.column_names and "payload" not in table.column_names
    assert not any(bits & REFUSED for bits in set(table["quality_bits"].to_pylist()))
    names = ["device_id", "event_time", "cell_voltage_volt", "current_ampere"]
    one = pc.equal(table["device_id"], "site-1/gw/m-01")
    wanted = whole.filter(pc.equal(whole.column("device_id"), "site-1/gw/m-01"))
    _, first = np.unique(wanted.column("event_time").cast(pa.int64()).to_numpy(), return_index=True)
    again, rows = sorted_rows(table.filter(one), names), sorted_rows(wanted.take(pa.array(first)), names)
    assert content(again) == content(rows)


def test_sessions_with_their_capacity(tmp_path: Path) -> None:
    fleet = (FleetEntry(match="m*", cell_type="lg-hg2", capacity_ah=3.0, operating_volt=(2.7, 4.2)),)
    samples = [
        each | {"source_offset": k, "bms_soh_percent": 97.0 - k / 10_000}
        for k, each in enumerate(series(*[REST, CHARGE, REST, DISCHARGE] * 2, REST))
    ]
    lake = written(tmp_path / "lake", [batch(samples[k : k + 700]) for k in range(0, len(samples), 700)])
    streamed = offline_sessions(batch(samples), Fleet(fleet))
    columns = ("charge_ah", "charge_bin_*", "duration_seconds")
    _, table = make(lake, tmp_path / "all.parquet", Recipe(table="sessions"), fleet=fleet)
    names = ["device_id", "event_time", "start_time", *streamed.schema.names[9:]]
    assert content(sorted_rows(table, names)) == content(sorted_rows(streamed, names)) and len(table) > 6
    assert table["session"].to_pylist() == streamed.column("session").to_pylist()

    soh = Label.parse("soh=measured_capacity_ah/capacity_ah")
    made, table = make(
        lake, tmp_path / "soh.parquet", Recipe(table="sessions", columns=columns, labels=(soh,)), fleet=fleet
    )
    measured = [x for x in streamed.column("measured_capacity_ah").to_pylist() if not np.isnan(x)]
    assert made.rows == len(measured) > 0 and len(table.column_names) == 8 + 2 + 48 + 1
    assert table["soh"].to_pylist() == pytest.approx([100 * x / 3.0 for x in measured], rel=1e-6)

    _, table = make(
        lake,
        tmp_path / "bms.parquet",
        Recipe(table="sessions", columns=("samples",), labels=(Label("bms", "bms_soh_percent"),)),
        fleet=fleet,
    )
    places = streamed.column("source_offset").to_pylist()
    assert table["bms"].to_pylist() == pytest.approx([97.0 - k / 10_000 for k in places], abs=1e-4)


def test_the_split_is_by_device_and_never_changes(lake: str, tmp_path: Path) -> None:
    recipe = Recipe(table="features", columns=("c_rate",), shares=(50, 25, 25))
    made, table = make(lake, tmp_path / "a.parquet", recipe)
    by_device = {(row["device_id"], row["split"]) for row in table.to_pylist()}
    assert len(by_device) == 24, "each device stands in one split"
    assert {name: sum(s == name for _, s in by_device) for name in made.devices} == made.devices
    assert all(made.devices.values())
    some, few = make(lake, tmp_path / "b.parquet", Recipe(table="sessions", devices=("site-1/*",), shares=(50, 25, 25)))
    assert {(r["device_id"], r["split"]) for r in few.to_pylist()} <= by_device and some.read < made.read
    _, seeded = make(lake, tmp_path / "c.parquet", Recipe(**{**as_dict(recipe), "seed": "2"}))
    assert {(row["device_id"], row["split"]) for row in seeded.to_pylist()} != by_device

    ids = [f"site/m-{k:05d}" for k in range(20_000)]
    shares = np.bincount(split_of(ids, np.array([0.7, 0.85])), minlength=3) / len(ids)
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.01)
    assert split_of(ids[:8], np.array([0.7, 0.85])).tolist() == [0, 0, 0, 2, 0, 0, 1, 0], "as in every release"


def as_dict(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in recipe.__struct_fields__}


def test_a_range_of_time_is_warmed_up(lake: str, tmp_path: Path) -> None:
    begin, end = START + timedelta(seconds=400), START + timedelta(seconds=700)
    _, everything = make(lake, tmp_path / "all.parquet", Recipe(table="features"))
    warm, table = make(lake, tmp_path / "some.parquet", Recipe(table="features", start=begin, stop=end))
    times = everything["event_time"]
    inside = everything.filter(pc.and_(pc.greater_equal(times, begin), pc.less(times, end)))
    assert warm.rows == len(inside) == 24 * 300
    names = [name for name in table.column_names if name not in ("split", "cell_type")]
    assert content(sorted_rows(table, names)) == content(sorted_rows(inside, names)), "an hour before is all there is"
    cold, _ = make(lake, tmp_path / "cold.parquet", Recipe(table="features", start=begin, stop=end, warm_up_seconds=0))
    assert cold.rows == warm.rows and cold.read < warm.read and cold.sha256 != warm.sha256


def test_the_digest_is_of_the_data_however_it_is_cut(lake: str, whole: pa.RecordBatch, tmp_path: Path) -> None:
    recipe = Recipe(table="features", labels=(SOC,))
    made, _ = make(lake, tmp_path / "a.parquet", recipe)
    merged = written(tmp_path / "again", [whole.slice(k, 777) for k in range(0, len(whole), 777)], file_rows=500)
    settings = CompactSettings(before=date(2100, 1, 1), finished=frozenset(["20261122T1Z-a"]))
    compact(LakeSettings(url=merged).open(), "telemetry", settings)
    again, _ = make(merged, tmp_path / "b.parquet", recipe)
    assert again.sha256 == made.sha256
    facts = json.loads(pq.read_metadata(tmp_path / "a.parquet").metadata[METADATA_KEY.encode()])
    assert facts["sha256"] == made.sha256 and facts["rows"] == made.rows and facts["lake"] == lake
    assert facts["recipe"]["labels"] == [{"name": "soc", "column": "bms_soc_percent", "over": ""}]
    assert len(facts["settings"]["features"]) == 64 and facts["voltmill"]

    rows = pa.record_batch({"a": [1.0, None, 3.0], "b": ["x", "yz", None], "c": [[1.0], [], [2.0, 3.0]]})

    def digest(*pieces: pa.RecordBatch) -> str:
        with DatasetFile(tmp_path / "d.parquet", rows.schema) as file:
            for piece in pieces:
                file.write(piece)
            return file.sha256()

    assert digest(rows) == digest(rows.slice(0, 1), rows.slice(1)) == digest(rows.slice(0, 2), rows.slice(2))
    other = rows.set_column(1, rows.schema.field(1), pa.array(["xy", "z", None]))
    assert digest(other) != digest(rows) != digest(rows.slice(0, 2))
    assert not (tmp_path / "d.parquet").exists() and not list(tmp_path.glob(".*"))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    small, large = archive(tmp_path / "small", 30_000), archive(tmp_path / "large", 600_000, file_rows=20_000)
    recipe = Recipe(table="features", columns=("c_rate", "cell_voltage_mean_volt"))
    dataset(config(), small, tmp_path / "warm.parquet", recipe)
    pool = pa.default_memory_pool()
    pool.release_unused()
    peaks = []
    for name, lake in (("small", small), ("large", large)):
        dataset(config(), lake, tmp_path / f"{name}.parquet", recipe)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert pq.read_metadata(tmp_path / "large.parquet").num_rows == 600_000
    assert peaks[1] - peaks[0] < 60, "600,000 rows of telemetry are 70 MB, of features 150 MB"


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"columns": ("c_rat",)}, r'--columns c_rat: no such column \(did you mean "c_rate"\?\)'),
        ({"columns": ("zz*",)}, r"--columns zz\*: no such column$"),
        ({"labels": (Label("soc", "bms_soc"),)}, r'--label soc: no column bms_soc \(did you mean "bms_so[ch]_percent"'),
        ({"labels": (Label("soc", "cell_voltage_volt"),)}, "--label soc: cell_voltage_volt is no number"),
        ({"labels": (Label("c_rate", "bms_soc_percent"),)}, "--label c_rate: a column has this name"),
        ({"without": ("hot",)}, "--without hot: no quality bit; there are: DUPLICATE, LATE"),
        ({"shares": (0, 0, 0)}, "--split: three shares"),
    ],
)
def test_a_recipe_that_asks_for_what_there_is_not(lake: str, tmp_path: Path, change: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        dataset(config(), lake, tmp_path / "x.parquet", Recipe(**({"table": "features"} | change)))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept(lake: str, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("mine")
    with pytest.raises(ConfigError, match=r"x\.parquet: is there already"):
        dataset(config(), lake, tmp_path / "x.parquet", Recipe(table="features"))
    assert (tmp_path / "x.parquet").read_text() == "mine"


@pytest.mark.parametrize("text", ["soc", "=x", "soc=", "soc=a/", "soc=/a"])
def test_labels_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="write NAME=COLUMN, or NAME=COLUMN/COLUMN for a quotient in percent"):
        Label.parse(text)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    from voltmill.flows import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["dataset", *map(str, arguments)])
        found = capsys.readouterr()
        return int(ended.value.code or 0), found.out, found.err

    return run


def test_the_command(call: Any, lake: str, tmp_path: Path) -> None:
    out = tmp_path / "soc.parquet"
    status, said, error = call(
        "--lake", lake, "--out", out, "--table", "features", "--columns", "c_rate,cell_voltage_ema_*",
        "--columns", "ema_weight_20s", "--label", "soc=bms_soc_percent", "--every", 60, "--without", "range,rate",
        "--device", "site-0/*", "--split", "1,1,0", "--from", "2026-11-22T00:05Z",
    )  # fmt: skip
    assert status == 0, error
    table = pq.read_table(out)
    assert set(table["split"].to_pylist()) == {"train", "validation"}
    first, second, third = said.splitlines()
    assert first.startswith(f"{len(table)} rows of 4 devices (") and first.endswith(f"0 test) in {out}")
    assert second.endswith("left out without a label") and third.startswith("training_data_sha256 = ")
    status, _, error = call("--lake", lake, "--out", out, "--table", "features")
    assert status == 2 and error == f"voltmill: {out}: is there already; remove it, or name another file\n"
    assert call("--lake", lake, "--out", tmp_path / "y", "--table", "features", "--split", "1,2")[0] == 2
    status, _, error = call("--lake", tmp_path / "none", "--out", tmp_path / "y.parquet", "--table", "features")
    assert status == 1 and "no Parquet file in telemetry" in error and not (tmp_path / "y.parquet").exists()
