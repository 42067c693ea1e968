"""A replay of archived sessions gives what the replay of their telemetry gave, to the bit, without the telemetry."""

import json
import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from session_rows import CHARGE, DISCHARGE, REST, series
from telemetry import START_US, batch
from test_explain import linear
from test_replay import call, config, left_over, rows_of, stopped

from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.lake_reader import read_table
from voltmill.connectors.store import LakeError
from voltmill.flows.compare import Selection, compare, compare_lakes, read
from voltmill.flows.config import Config, ConfigError, ModelEntry
from voltmill.flows.explain import explain
from voltmill.flows.replay import replay
from voltmill.flows.replay_plan import REPORT
from voltmill.kernels.fleet import FleetEntry
from voltmill.kernels.schema import TELEMETRY, Quality
from voltmill.operators.health import HealthSettings
from voltmill.operators.model import load
from voltmill.operators.quality import QualitySettings
from voltmill.operators.sessions import schema
from voltmill.operators.shard import shard_names, split

__all__ = ["call"]  # the fixture

ROOT = Path(__file__).resolve().parent.parent
FLEET = (FleetEntry(match="m*", cell_type="lg-hg2", capacity_ah=3.0, operating_volt=(2.7, 4.2)),)
DEVICES = [f"m-{k}" for k in range(7)]


class World(NamedTuple):
    """Telemetry, what a replay of it gave, and with which configuration."""

    telemetry: str
    whole: str
    config: Config


def models(folder: Path, **contract: Any) -> tuple[ModelEntry, ...]:
    """One of SOH by sessions, one of RUL by its history."""
    any_cell: dict[str, Any] = {"fusion": None, "cell_type": "*", "nominal_ah": 0.0} | contract
    linear(folder / "soh.onnx", {"charge_ah": 0.5}, 85.0, table="sessions", session="any", target="soh", **any_cell)
    weights = {"soh_percent": 3.0, "soh_values": -1.0, "history_days": 5.0}
    linear(folder / "rul.onnx", weights, 7.0, table="health", target="rul", unit="cycles", **any_cell)
    return tuple(ModelEntry(name=str(folder / f"{name}.onnx")) for name in ("soh", "rul"))


def put(folder: Path | str, table: pa.Table, *, name: str = "x.parquet", at: str = "sessions") -> str:
    """A data set from elsewhere."""
    path = Path(folder) / at / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    samples = [
        each
        for k, device in enumerate(DEVICES)
        for each in series(
            *[REST, CHARGE, REST, DISCHARGE[: -20 * k or None]] * 4, REST, device=device, begin=100.0 * k
        )
    ]
    samples.sort(key=lambda each: each["event_time"])
    rows = [each | {"source_offset": k} for k, each in enumerate(samples)]
    lake = put(folder / "lake", pa.Table.from_batches([batch(rows)]), at="telemetry")
    made_with = config(fleet=FLEET, model=(ModelEntry(name="lg_hg2_soc"), *models(folder)))
    replay(made_with, lake, str(folder / "whole"))
    return World(lake, str(folder / "whole"), made_with)


def of_sessions(out: str) -> dict[str, pa.Table]:
    """By shard and target, the predictions that are not made of samples, in their order."""
    found = {}
    for shard, rows in rows_of(out, "predictions").items():
        for target in ("soh", "rul"):
            found[shard, target] = rows.filter(pc.equal(rows["target"].cast(pa.string()), target))
    return {key: rows for key, rows in found.items() if len(rows)}


def assert_identical(out: str, whole: str) -> None:
    ours, theirs = of_sessions(out), of_sessions(whole)
    assert ours.keys() == theirs.keys() and theirs
    for key, rows in theirs.items():
        for name in rows.column_names:
            a, b = (found[key].column(name).to_pylist() for found in (ours, theirs))
            assert a == b, (key, name)


# --- the same as of telemetry ----------------------------------------------------------------------


def test_archived_sessions_give_what_their_telemetry_gave(world: World, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = replay(world.config, world.whole, out, table="sessions")
    sessions = len(read_table(world.whole, "sessions"))
    assert done.rows == sessions >= 16 * len(DEVICES) and done.targets == ("soh", "rul")
    assert done.predictions == 2 * sessions
    assert_identical(out, world.whole)
    assert {row["target"] for row in read(out).to_pylist()} == {"soh", "rul"}, "no model of samples is asked"
    assert not (tmp_path / "out" / "sessions").exists() and not left_over(out)
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["table"] == "sessions" and report["rows"] == sessions
    assert [each["name"] for each in report["models"]] == ["soh", "rul"]
    assert report["settings"].keys() == {"health", "fleet"}


def test_a_range_and_devices(world: World, tmp_path: Path) -> None:
    times = sorted(set(read_table(world.whole, "sessions")["event_time"].to_pylist()))
    start, stop = times[len(times) // 2], times[-2]
    days = timedelta(days=9)  # all there is
    some = {"start": start, "stop": stop, "warm_up": days, "devices": ["m-2", "m-[45]"]}
    replay(world.config, world.whole, str(tmp_path / "a"), table="sessions", **some)
    chosen = Selection(start=start, stop=stop, devices=("m-2", "m-[45]"), targets=("soh", "rul"))
    found = compare_lakes(LakeSettings(url=world.whole), LakeSettings(url=str(tmp_path / "a")), chosen)
    assert found.total.identical and found.total.same > 20
    colder = some | {"warm_up": timedelta(0)}
    replay(world.config, world.whole, str(tmp_path / "b"), table="sessions", **colder)
    both = [read(str(tmp_path / name)) for name in "ab"]
    soh, rul = ([t.filter(pc.equal(t["target"].cast(pa.string()), name)) for t in both] for name in ("soh", "rul"))
    assert compare(*soh).identical
    assert not compare(*rul).identical and len(rul[0]) == len(rul[1]), "its history began later"


def test_a_prediction_is_explained_from_the_sessions(world: World, tmp_path: Path) -> None:
    times = sorted(set(read_table(world.whole, "sessions")["event_time"].to_pylist()))
    for name, start in (("all", None), ("late", times[len(times) // 2])):
        out = str(tmp_path / name)
        replay(world.config, world.whole, out, table="sessions", start=start)
        rows = [row for row in read_table(out, "predictions").to_pylist() if row["device_id"] == "m-3"]
        for row in (rows[0], rows[-1]):
            found = explain(world.config, out, "m-3", row["event_time"])
            assert found.identical and {each.stored.prediction.target for each in found.predictions} == {"soh", "rul"}
            for each in found.predictions:
                assert each.file.startswith("sessions/") and each.inputs
                place = pq.read_table(Path(world.whole) / each.file, partitioning=None).slice(each.row, 1).to_pylist()
                assert place[0]["event_time"] == row["event_time"] and place[0]["device_id"] == "m-3"
    moved = shutil.copytree(Path(world.whole) / "sessions", tmp_path / "moved" / "sessions").parent
    other = msgspec.structs.replace(world.config, quality=QualitySettings(late_seconds=9.0))
    found = explain(other, out, "m-3", rows[-1]["event_time"], telemetry=str(moved))
    assert found.identical, "the quality of samples is none of its settings"
    assert [note.split(",")[0] for note in found.predictions[0].notes] == [
        f"made by a replay from {start.isoformat(timespec='milliseconds').replace('+00:00', 'Z')}"
    ]


# --- stopped, refused ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """40,000 sessions in an archive of as many files as a live flow leaves."""
    lake, n, devices = tmp_path_factory.mktemp("many"), 40_000, 400
    fields, rng = schema(), np.random.default_rng(4)
    times = pa.array(START_US + np.arange(n) * 7_000_000).cast(fields.field("event_time").type)
    columns = {
        "device_id": pa.array([f"m-{k % devices:03}" for k in range(n)]),
        "event_time": times,
        "start_time": times,
        "charge_ah": pa.array(rng.uniform(1, 3, n).astype(np.float32)),
        "equivalent_full_cycles": pa.array((np.arange(n) // devices).astype(np.float32)),
        "source_offset": pa.array(np.arange(n)),
        "quality_bits": pa.array(np.zeros(n, np.uint32)),
        "session": pa.array(["charge"] * n).dictionary_encode(),
    }
    text, unknown = pa.array(["test"] * n).dictionary_encode(), pa.array(np.full(n, np.nan, np.float32))
    columns |= {name: text for name in ("source", "source_partition")} | {"ingest_time": times}
    rows = pa.RecordBatch.from_arrays([columns.get(f.name, unknown) for f in fields], schema=fields)
    settings, names = LakeSettings(url=str(lake), max_file_rows=3_000), shard_names(3)
    sink = LakeSink(settings, table="sessions", schema=fields, shards=names, store="20261122T1Z-a")
    parts = [sink.build_part("lake", name, None) for name in names]
    for first in range(0, n, 3_000):
        for k, part in split(rows.slice(first, 3_000), 3):
            parts[k].write_batch([part])
    for writer in parts:
        writer.close()
    return str(lake)


def test_stopped_and_resumed_it_gives_the_same(many: str, world: World, tmp_path: Path) -> None:
    whole, out = str(tmp_path / "whole"), str(tmp_path / "out")
    assert replay(world.config, many, whole, table="sessions").predictions == 80_000
    for after in (8_000, 20_000):
        stopped(many, out, after=after, settings=world.config, table="sessions")
    done = replay(world.config, many, out, table="sessions")
    assert done.rows == 40_000 and 20_000 <= done.rows_before < 40_000 and done.predictions == 80_000
    assert_identical(out, whole)
    assert not left_over(out)


def test_an_unfinished_one_of_the_other_table_is_refused(many: str, world: World, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    stopped(many, out, settings=world.config, table="sessions")
    with pytest.raises(
        ConfigError, match="something else: --table was sessions, now telemetry; the model was .*; give"
    ):
        replay(world.config, many, out)
    changed = msgspec.structs.replace(world.config, health=HealthSettings(replaced_percent=5.0))
    with pytest.raises(ConfigError, match=r"something else: \[health\] differs; give"):
        replay(changed, many, out, table="sessions")
    other = msgspec.structs.replace(
        world.config, quality=QualitySettings(late_seconds=9.0), model=world.config.model[1:]
    )
    assert replay(other, many, out, table="sessions").rows_before > 0, "nothing that it depends on has changed"


def test_what_cannot_be_replayed_is_one_line(world: World, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for named in ((ModelEntry(name="lg_hg2_soc"),), (world.config.model[-1],)):
        without = msgspec.structs.replace(world.config, model=named)
        with pytest.raises(ConfigError, match="^--table sessions: no model in force is asked about sessions; name one"):
            replay(without, world.whole, out, table="sessions")
    with pytest.raises(ConfigError, match="^--telemetry: a replay of sessions reads no telemetry"):
        replay(world.config, world.whole, out, table="sessions", telemetry=True)
    with pytest.raises(LakeError, match="no Parquet file in sessions"):
        replay(world.config, world.telemetry, out, table="sessions")
    assert not (tmp_path / "out").exists() or not left_over(out)


# --- data sets from elsewhere ----------------------------------------------------------------------


FOREIGN: dict[str, Any] = {
    "device_id": ["m-1", "m-1", "m-2"],
    "event_time": pa.array([1_700_000_000, 1_700_009_000, 1_700_000_000], pa.timestamp("s")),
    "start_time": pa.array([1_699_999_000, 1_700_008_000, 1_699_999_000], pa.timestamp("ms")),
    "session": ["charge", "charge", "rest"],
    "charge_ah": pa.array([2.0, 2.5, None], pa.float64()),
    "note": ["not", "of", "it"],
}


def foreign(folder: Path, **columns: Any) -> str:
    return put(folder, pa.table({k: v for k, v in (FOREIGN | columns).items() if v is not None}))


def test_a_data_set_from_elsewhere(world: World, tmp_path: Path) -> None:
    replay(world.config, foreign(tmp_path / "lake"), str(tmp_path / "out"), table="sessions")
    rows = sorted(read_table(str(tmp_path / "out"), "predictions").to_pylist(), key=lambda row: row["source_offset"])
    soh = [row for row in rows if row["target"] == "soh"]
    assert [row["value"] for row in soh] == [86.0, 86.25, None]
    assert soh[2]["quality_bits"] == Quality.OUT_OF_DOMAIN
    assert {(row["source"], row["source_partition"]) for row in rows} == {("lake", "x.parquet")}
    assert [row["source_offset"] for row in soh] == [0, 1, 2]
    assert [row["quality_bits"] for row in soh[:2]] == [0, 0]
    assert [row["value"] for row in rows if row["target"] == "rul"] == [None, None], "cycles are not known: no history"


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"session": None}, "sessions/x.parquet: no column session; there are: device_id, event_time, start_time"),
        (
            {"session": ["charge", "Charging", "rest"]},
            "column session .* 'Charging' is none of rest, charge, discharge",
        ),
        ({"session": [1, 2, 3]}, "column session .int64. is not dictionary.*: text is expected"),
        ({"session": ["charge", None, "rest"]}, "column session .*: row 1 is null"),
        ({"charge_ah": ["2", "3", "4"]}, "column charge_ah .string. is not float: a number is expected"),
        ({"event_time": [1, 2, 3]}, "column event_time .*: a timestamp is expected"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_one_line(
    world: World, tmp_path: Path, columns: dict[str, Any], line: str
) -> None:
    with pytest.raises(LakeError, match=line) as raised:
        replay(world.config, foreign(tmp_path / "lake", **columns), str(tmp_path / "out"), table="sessions")
    assert "\n" not in str(raised.value)


# --- the command -----------------------------------------------------------------------------------


def test_replay_of_sessions_compared(call: Any, world: World, tmp_path: Path) -> None:
    fleet = '[[fleet]]\nmatch = "m*"\ncell_type = "lg-hg2"\ncapacity_ah = 3.0\noperating_volt = [2.7, 4.2]\n'
    (tmp_path / "c.toml").write_text(f"[run]\nshards = 3\n{fleet}")
    named = [part for entry in world.config.model[1:] for part in ("--model", entry.name)]
    arguments = ["-c", tmp_path / "c.toml", "--lake", world.whole, "--table", "sessions", *named]
    status, said, errors = call("replay", *arguments, "--out", tmp_path / "a", "--compare", world.whole)
    assert status == 0, said + errors
    assert re.search(r"^\d+ rows replayed in ", said) and re.search(
        r"^identical: \d+ predictions, bit for bit$", said, re.M
    )
    status, said, errors = call("replay", *arguments[:-2], "--out", tmp_path / "b", "--compare", world.whole)
    assert status == 0, "the targets that it gives"
    status, _, errors = call("replay", *arguments[:6], "--out", tmp_path / "c")
    assert status == 2 and errors.startswith("voltmill: --table sessions: no model in force is asked about sessions")


# --- with the data sets ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "training"))
        yield


@pytest.fixture(scope="module")
def rul_cells(training: None) -> Any:
    return pytest.importorskip("rul_cells")


@pytest.fixture(scope="module")
def tested(rul_cells: Any, data_dir: Path) -> list[Any]:
    """The cells that the models of RUL are tested on."""
    return [c for c in rul_cells.cells(data_dir / "pinn4soh_features.parquet") if c.test and c.scored]


def test_soh_of_measured_cells(training: None, data_dir: Path, tmp_path: Path) -> None:
    """Two CALCE cells as telemetry, then as the sessions that were archived: measured_soh says the same."""
    calce = pytest.importorskip("soh_calce")
    cells = [calce.read(data_dir / "calce_cs2.parquet", name).telemetry.slice(0, 40_000) for name in calce.CELLS]
    lake = put(tmp_path / "lake", pa.Table.from_batches(cells, TELEMETRY), at="telemetry")
    chosen = (ModelEntry(name="measured_soh"), *models(tmp_path)[1:])
    settings = config(fleet=tuple(calce.FLEET.entries), model=chosen)
    whole, out = str(tmp_path / "whole"), str(tmp_path / "out")
    replay(settings, lake, whole)
    done = replay(settings, whole, out, table="sessions")
    assert_identical(out, whole)
    known = [row for row in read(out).to_pylist() if row["value"] is not None]
    assert {row["target"] for row in known} == {"soh", "rul"} and len(known) > 150
    assert done.rows == len(read_table(whole, "sessions")) < 0.02 * 80_000


def cycles(rul_cells: Any, known: list[Any]) -> pa.Table:
    """Cells of pinn4soh_features as a data set of sessions: a row a cycle, a discharge that measured its capacity."""
    parts = []
    for cell in known:
        n = len(cell.soh)
        nominal = 2.5 if cell.name.startswith("Dataset_3") else rul_cells.SETS[cell.set]
        times = pa.array(START_US + 7_200_000_000 * np.arange(n)).cast(TELEMETRY.field("event_time").type)
        columns: dict[str, Any] = {
            "device_id": [cell.name] * n,
            "event_time": times,
            "start_time": times,
            "session": ["discharge"] * n,
            "equivalent_full_cycles": cell.cycles,
            "measured_capacity_ah": cell.soh / 100 * nominal,
            "capacity_ah": np.full(n, nominal),
            "duration_seconds": np.full(n, 3600.0),
            "missing_fraction": np.zeros(n),
            "c_rate_mean": np.ones(n),
        }
        for name, values in cell.charge.items():
            columns[name] = values
            columns[f"baseline_{name}"], columns[f"recent_{name}"] = rul_cells.tracked(values)
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


@pytest.mark.parametrize("name", ["tju", "xjtu", "hust"])
def test_the_errors_of_the_rul_models_through_a_replay(
    rul_cells: Any, tested: list[Any], tmp_path: Path, name: str
) -> None:
    """The test cells' cycles, through measured_soh, health and the RUL model: the figures of the contract.

    The contract's come of the model alone, on the rows of `rul_cells.view`; here the values are those of the flow at
    the same cycles. Three things may tell them apart: the SOH is what measured_soh gives back of a capacity, in
    float32; the history starts where `health` begins to believe; and the flow gives no value for a row with an
    input outside the ranges of the contract.
    """
    known = [c for c in tested if c.set == name]
    lake = put(tmp_path / "lake", cycles(rul_cells, known))
    entry = FleetEntry(match="*", cell_type=name, capacity_ah=rul_cells.SETS[name])
    chosen = (ModelEntry(name="measured_soh"), ModelEntry(name=f"{name}_rul"))
    settings = config(fleet=(entry,), model=chosen)
    out = str(tmp_path / "out")
    done = replay(settings, lake, out, table="sessions")
    assert done.rows == sum(len(c.soh) for c in known) and done.predictions == 2 * done.rows
    found = read_table(out, "predictions")
    found = found.filter(pc.equal(found["target"].cast(pa.string()), "rul")).sort_by("event_time")
    scored, asked = [], 0
    for cell in known:
        rows = found.filter(pc.equal(found["device_id"], cell.name))
        seen = rul_cells.view(cell)
        at = np.searchsorted(cell.cycles, cell.life - seen.rul - 1e-6)
        given = np.column_stack([rows[n].to_numpy()[at].astype(float) for n in ("value", "lo90", "hi90")])
        answered = np.isfinite(given[:, 0])
        asked += len(at)
        scored.append((rul_cells.View(cell, seen.rows[answered], seen.rul[answered]), given[answered]))
    figures, stated = rul_cells.errors(scored), load(f"{name}_rul").contract.errors["measured_soh"]
    assert sum(len(seen.rul) for seen, _ in scored) > 0.97 * asked
    assert figures["cells"] == stated["cells"]
    assert figures["percent_of_life"] == pytest.approx(stated["percent_of_life"], abs=0.3)
    assert figures["coverage90"] == pytest.approx(stated["coverage90"], abs=3.0)
