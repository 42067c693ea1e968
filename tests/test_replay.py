"""A replay that is stopped in any way goes on, and gives what one gives that was never stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from voltmill.connectors.drain import Drain
from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.lake_reader import read_table
from voltmill.flows import cli_common
from voltmill.flows.compare import compare, read
from voltmill.flows.config import Config, ConfigError, ModelEntry, RunSettings
from voltmill.flows.replay import Replayed, Stopped, replay
from voltmill.flows.replay_plan import REPORT, Work
from voltmill.kernels.fleet import FleetEntry
from voltmill.kernels.schema import TELEMETRY, label
from voltmill.operators.patterns import DevicePatterns
from voltmill.operators.quality import QualitySettings
from voltmill.operators.shard import shard_names, split

START = datetime(2026, 11, 22, tzinfo=UTC)
SHARDS = 3
FLEET = (FleetEntry(match="site-1/*", cell_type="lg-hg2", capacity_ah=3.0),)
CONFIG = """
[run]
shards = 3
[lake]
max_file_rows = {rows}
[[fleet]]
match = "site-1/*"
cell_type = "lg-hg2"
capacity_ah = 3.0
"""


def telemetry(first: int, rows: int, devices: int) -> pa.RecordBatch:
    """Rows numbered from ``first``: one of each device a second."""
    n = np.arange(first, first + rows)
    device, second = n % devices, n // devices
    times = pa.array(np.datetime64(START.replace(tzinfo=None), "us") + second * np.timedelta64(1, "s")).view(
        TELEMETRY.field("event_time").type
    )
    cells = (3.7 + 0.2 * np.sin(second / 900 + device)[:, None] + 0.001 * np.arange(4)).astype(np.float32)
    edges = pa.array(np.arange(0, 4 * rows + 1, 4, dtype=np.int32))
    made = {
        "device_id": pa.array([f"site-{k % 2}/gw/m-{k:02d}" for k in device.tolist()]),
        "event_time": times,
        "ingest_time": times,
        "seq": pa.array(second.astype(np.uint64)),
        "current_ampere": pa.array(np.cos(second / 900 + device).astype(np.float32)),
        "cell_voltage_volt": pa.ListArray.from_arrays(edges, pa.array(cells.ravel())),
        "cell_temperature_celsius": pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32)), pa.array(np.full(rows, 25.0, np.float32))
        ),
        "source": label("mqtt", rows),
        "source_partition": label("topic/#", rows),
        "source_offset": pa.array(n),
        "quality_bits": pa.array(np.zeros(rows, np.uint32)),
    }
    columns = [made[f.name] if f.name in made else pa.nulls(rows, f.type) for f in TELEMETRY]
    return pa.RecordBatch.from_arrays(
        [c.cast(f.type) for c, f in zip(columns, TELEMETRY, strict=True)], schema=TELEMETRY
    )


def archive(folder: Path, rows: int, *, devices: int = 24, file_rows: int = 2_000, shards: int = SHARDS) -> str:
    """An archive as the live flow writes it."""
    settings = LakeSettings(url=str(folder), max_file_rows=file_rows)
    sink = LakeSink(settings, table="telemetry", schema=TELEMETRY, shards=shard_names(shards), store="20261122T1Z-a")
    parts = [sink.build_part("lake", name, None) for name in shard_names(shards)]
    for first in range(0, rows, 1_200):
        for k, batch in split(telemetry(first, min(1_200, rows - first), devices), shards):
            parts[k].write_batch([batch])
    for part in parts:
        part.close()
    return str(folder)


def config(**changes: Any) -> Config:
    lake = LakeSettings(url="nowhere", max_file_rows=1_000)
    return Config(**({"run": RunSettings(shards=SHARDS), "fleet": FLEET, "lake": lake} | changes))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    return archive(tmp_path_factory.mktemp("archive"), 24_000)


@pytest.fixture(scope="module")
def whole(lake: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The outputs of a replay of all, telemetry included."""
    out = str(tmp_path_factory.mktemp("whole"))
    assert replay(config(), lake, out, telemetry=True).rows == 24_000
    return out


def stopped(lake: str, out: str, *, after: int = 6_000, settings: Config | None = None, **options: Any) -> Stopped:
    """Replay until so many rows are read, then ask it to stop."""
    drain = Drain()

    def watch(done: int, total: int, rows: int) -> None:
        if rows >= after:
            drain.request()

    with pytest.raises(Stopped) as raised:
        replay(settings or config(), lake, out, drain=drain, epoch_seconds=0.2, on_progress=watch, **options)
    return raised.value


def rows_of(out: str, table: str) -> dict[str, pa.Table]:
    """By shard, the rows in the order of their files: what must not depend on how often a replay was stopped."""
    found = {}
    for shard in sorted({path.parent.name for path in Path(out).glob(f"{table}/date=*/shard=*/*.parquet")}):
        files = sorted(Path(out).glob(f"{table}/date=*/{shard}/*.parquet"), key=lambda path: path.name)
        tables = [pq.read_table(file, partitioning=None) for file in files]
        found[shard] = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    return found


def assert_same(out: str, whole: str, *tables: str) -> None:
    for table in tables:
        ours, theirs = rows_of(out, table), rows_of(whole, table)
        assert ours.keys() == theirs.keys() and theirs
        for shard, rows in theirs.items():
            for name in rows.column_names:
                a, b = (plain(found.column(name)) for found in (ours[shard], rows))
                assert a.equals(b), f"{table}, {shard}: {name}"


def plain(column: pa.ChunkedArray) -> Any:
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    return array.view(pa.int32()) if array.type == pa.float32() else array


def left_over(out: str) -> set[str]:
    tables = {"predictions", "sessions", "telemetry", "dead_letters"}
    return {path.name for path in Path(out).iterdir()} - tables - {REPORT}


# --- stopped and resumed -------------------------------------------------------------------------


def start(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "voltmill.flows.cli", "replay", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_killed_again_and_again_it_gives_the_same(tmp_path: Path) -> None:
    lake = archive(tmp_path / "lake", 300_000, devices=60, file_rows=4_000)
    (tmp_path / "c.toml").write_text(CONFIG.format(rows=2_000))
    arguments = ["-c", tmp_path / "c.toml", "--lake", lake, "--telemetry", "--epoch", 0.2, "--out"]
    out, whole = str(tmp_path / "out"), str(tmp_path / "whole")
    kills = 0
    for round_ in range(20):
        process = start(*arguments, out)
        before = len(list(Path(out).glob("predictions/*/*/*.parquet")))
        files = 3 + 6 * round_  # further each time, so that some kills are before the first epoch and some long after

        def further(process: Any = process, wanted: int = before + files) -> bool:
            return process.poll() is not None or len(list(Path(out).glob("predictions/*/*/*.parquet"))) >= wanted

        until(further, "no outputs")
        if kills < 3 and process.poll() is None:
            process.kill()
            kills += 1
            process.communicate()
            assert (Path(out) / "_replay" / "plan.json").exists() or process.returncode == 0
            continue
        said, errors = process.communicate()
        assert process.returncode == 0, errors
        break
    assert kills == 3
    assert re.search(r"^300000 rows replayed .*, 300000 predictions in", said)
    assert not left_over(out)
    replayed = start(*arguments, whole)
    assert replayed.communicate()[0].startswith("300000 rows") and replayed.returncode == 0
    assert_same(out, whole, "predictions", "telemetry")


def test_a_signal_stops_it_in_good_order_and_it_goes_on(tmp_path: Path) -> None:
    lake = archive(tmp_path / "lake", 250_000, devices=60)
    (tmp_path / "c.toml").write_text(CONFIG.format(rows=2_000))
    arguments = ["-c", tmp_path / "c.toml", "--lake", lake, "--out", tmp_path / "out", "--epoch", 0.2]
    process = start(*arguments)
    until(lambda: any((tmp_path / "out").glob("predictions/*/*/*.parquet")), "no outputs")
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and said == ""
    line = errors.splitlines()[-1]
    assert re.fullmatch(r"voltmill: stopped after \d+ rows; the same command goes on from there", line)
    rows = int(line.split()[3])
    assert 0 < rows < 250_000
    assert len(read(str(tmp_path / "out"))) == rows  # what is there can be read already
    process = start(*arguments)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert said.startswith(f"250000 rows replayed ({rows} of them before the last start) in ")
    assert "250000 predictions in" in said and not left_over(str(tmp_path / "out"))


def test_stopped_and_resumed_in_one_process(lake: str, whole: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for after in (3_000, 11_000, 20_000):
        stopped(lake, out, after=after, telemetry=True)
        assert len(read(out)) >= after
    done = replay(config(), lake, out, telemetry=True)
    assert (done.rows, done.predictions) == (24_000, 24_000) and 20_000 <= done.rows_before < 24_000
    assert_same(out, whole, "predictions", "telemetry")
    assert not left_over(out)
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert (report["rows"], report["predictions"], report["lake"]) == (24_000, 24_000, os.path.realpath(lake))
    assert report["models"][0]["sha256"] == read(out)["model_sha256"][0].as_py()


def test_what_is_archived_meanwhile_is_left_out(tmp_path: Path) -> None:
    lake, out = archive(tmp_path / "lake", 12_000), str(tmp_path / "out")
    stopped(lake, out, after=5_000)
    file = next(Path(lake).glob("telemetry/*/shard=02/*.parquet"))
    file.with_name("20261122T1Z-a-0000009999.parquet").write_bytes(file.read_bytes())
    assert replay(config(), lake, out).rows == 12_000


def test_asked_to_stop_before_it_began_it_can_begin(lake: str, tmp_path: Path) -> None:
    drain = Drain()
    drain.request()
    with pytest.raises(Stopped):
        replay(config(), lake, str(tmp_path / "out"), drain=drain)
    assert replay(config(), lake, str(tmp_path / "out"), devices=["*/m-0*"]).rows == 10_000


# --- refused -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfinished(lake: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("unfinished"))
    stopped(lake, out, devices=["site-1/*", "*/m-00"], start=START + timedelta(seconds=1))
    return out


@pytest.mark.parametrize(
    ("changes", "settings", "line"),
    [
        ({"devices": ["site-1/*"]}, {}, r"--device was \*/m-00, site-1/\*, now site-1/\*;"),
        ({"devices": []}, {}, r"--device was .*, now none;"),
        ({"start": None}, {}, r"--from was 2026-11-22T00:00:01\+00:00, now not given; the warm-up .* now 0.0;"),
        ({"stop": START + timedelta(hours=1)}, {}, r"--to was not given, now 2026-11-22T01:00:00\+00:00;"),
        ({"warm_up": timedelta(0)}, {}, r"the warm-up in seconds was 3600.0, now 0.0;"),
        ({"telemetry": True}, {}, r"--telemetry was not given, now given;"),
        ({}, {"run": RunSettings(shards=4)}, r"\[run\] shards was 3, now 4;"),
        ({}, {"quality": QualitySettings(late_seconds=9.0)}, r"\[quality\] differs;"),
        ({}, {"fleet": ()}, r"\[\[fleet\]\] differs;"),
        (
            {},
            {"model": (ModelEntry(name="lg_hg2_soc", mode="shadow"),)},
            r"the model was lg_hg2_soc \(\w{8}\), now lg_hg2_soc \(\w{8}, shadow\);",
        ),
    ],
)
def test_another_replay_does_not_go_on_with_it(
    lake: str, unfinished: str, changes: dict[str, Any], settings: dict[str, Any], line: str
) -> None:
    given = {"devices": ["*/m-00", "site-1/*"], "start": START + timedelta(seconds=1)} | changes
    message = rf"^{unfinished}: holds an unfinished replay of something else: {line} give it the same again"
    with pytest.raises(ConfigError, match=message):
        replay(config(**settings), lake, unfinished, **given)


def test_another_lake_does_not_go_on_with_it(unfinished: str, tmp_path: Path) -> None:
    other = archive(tmp_path / "other", 100)
    with pytest.raises(ConfigError, match=f"--lake was .*, now {os.path.realpath(other)}"):
        replay(config(), other, unfinished, devices=["*/m-00", "site-1/*"], start=START + timedelta(seconds=1))


def test_settings_that_change_no_row_may_change(lake: str, whole: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    stopped(lake, out)
    other = config(lake=LakeSettings(url="elsewhere", max_file_rows=700), run=RunSettings(shards=SHARDS, state="x"))
    replay(other, lake, out)
    assert_same(out, whole, "predictions")


def test_a_plan_that_cannot_be_read_is_one_line(lake: str, tmp_path: Path) -> None:
    (tmp_path / "_replay").mkdir()
    (tmp_path / "_replay" / "plan.json").write_text('{"voltmill": "0.0.1"}')
    with pytest.raises(ConfigError, match=r"plan\.json: is not the plan of a replay of this version: .*lake"):
        replay(config(), lake, str(tmp_path))


@pytest.mark.parametrize("within", ["", "/", "/again", "/telemetry/x"])
def test_the_outputs_never_fall_into_an_archive(lake: str, within: str, tmp_path: Path) -> None:
    before = sorted(Path(lake).rglob("*"))
    with pytest.raises(ConfigError, match="is the archive that is replayed, or within it; name another folder"):
        replay(config(), lake, lake + within)
    (tmp_path / "link").symlink_to(lake)
    with pytest.raises(ConfigError, match="is the archive that is replayed"):
        replay(config(), lake, f"{tmp_path}/link{within}")
    live = config(lake=LakeSettings(url=lake))
    other = archive(tmp_path / "other", 100)
    with pytest.raises(ConfigError, match="is the lake of the live flow, or within it"):
        replay(live, other, lake + within)
    assert sorted(Path(lake).rglob("*")) == before
    beside = f"{lake}-{len(within)}{within}"  # its name begins like the lake's
    assert replay(live, other, beside).rows == 100


def test_a_finished_one_is_not_begun_again(lake: str, whole: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{whole}/predictions: holds files already"):
        replay(config(), lake, whole, telemetry=True)
    out = tmp_path / "out"
    stopped(lake, str(out))
    (out / REPORT).write_text("{}")  # as if it had been killed while it cleared up
    with pytest.raises(ConfigError, match="holds files already"):
        replay(config(), lake, str(out))
    assert not left_over(str(out))


def test_a_lake_without_an_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    from voltmill.connectors.store import LakeError

    with pytest.raises(LakeError, match="no Parquet file in telemetry"):
        replay(config(), str(tmp_path / "none"), str(tmp_path / "out"))
    assert not left_over(str(tmp_path / "out"))


# --- a part of the archive, other models, other places --------------------------------------------


@pytest.mark.parametrize("patterns", [["site-1/*"], ["*/m-0?", "*/m-1[02]"], ["site-0/gw/m-04"], ["nothing/*"]])
def test_a_device_pattern_filters(lake: str, whole: str, tmp_path: Path, patterns: list[str]) -> None:
    done = replay(config(), lake, str(tmp_path), devices=patterns)
    everything = read(whole)
    wanted = everything.filter(DevicePatterns(patterns).mask(everything["device_id"].combine_chunks()))
    assert done.rows == done.predictions == len(wanted)
    if done.rows:
        assert compare(wanted, read(str(tmp_path))).identical


def test_patterns_match_as_those_of_the_fleet_do() -> None:
    ids = pa.array(["site-1/a", "site-1/a/b", "SITE-1/a", "site-10/a", "x"])
    assert DevicePatterns(["site-1/*"]).mask(ids).to_pylist() == [True, True, False, False, False]
    assert DevicePatterns(["*1*a", "x"]).mask(ids).to_pylist() == [True, False, True, True, True]
    assert DevicePatterns().mask(ids).true_count == 5
    assert DevicePatterns(["x"]).any(pa.chunked_array([["a", None], ["x"]]).dictionary_encode())
    assert not DevicePatterns(["y"]).any(ids)
    assert DevicePatterns(["*"]).mask(ids.slice(0, 0)).to_pylist() == []


@pytest.mark.parametrize("shards", [(1, 4), (4, 1), (2, 3)])
def test_a_day_of_two_stores_with_other_shard_counts(
    lake: str, whole: str, tmp_path: Path, shards: tuple[int, int]
) -> None:
    everything = read_table(lake, "telemetry").sort_by("source_offset")
    half = pc.less(everything["source_offset"], 12_000)
    both = [everything.filter(half), everything.filter(pc.invert(half))]
    for store, count, rows in zip("ab", shards, both, strict=True):
        for k, part in split(rows.combine_chunks().to_batches()[0].cast(TELEMETRY), count):
            sink = LakeSink(
                LakeSettings(url=str(tmp_path / "lake")),
                table="telemetry",
                schema=TELEMETRY,
                shards=shard_names(count),
                store=f"20261122T1Z-{store}",
            )
            writer = sink.build_part("lake", shard_names(count)[k], None)
            writer.write_batch([part])
            writer.close()
    replay(config(), str(tmp_path / "lake"), str(tmp_path / "out"))
    assert compare(read(whole), read(str(tmp_path / "out"))).identical


def test_a_range_of_time(lake: str, whole: str, tmp_path: Path) -> None:
    begin, end = START + timedelta(seconds=300), START + timedelta(seconds=700)
    replay(config(), lake, str(tmp_path), start=begin, stop=end)
    everything = read(whole)
    inside = pc.and_(pc.greater_equal(everything["event_time"], begin), pc.less(everything["event_time"], end))
    assert compare(everything.filter(inside), read(str(tmp_path))).identical  # an hour before is all there is


def test_outputs_that_are_remote_keep_the_state_here(
    lake: str, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = f"memory://{tmp_path.name}/out"
    stopped(lake, out)
    (folder,) = (tmp_path / "voltmill-data").iterdir()
    assert re.fullmatch(r"replay-[0-9a-f]{8}", folder.name) and Work(LakeSettings(url=out), out).begun
    done = replay(config(), lake, out)
    assert done.rows == 24_000 and done.rows_before > 0 and not folder.exists()
    assert compare(read(whole), read_table(LakeSettings(url=out), "predictions")).identical
    with pytest.raises(ConfigError, match="holds files already"):
        replay(config(), lake, out)


def test_the_state_may_stand_elsewhere(lake: str, tmp_path: Path) -> None:
    out, state = str(tmp_path / "out"), tmp_path / "kept" / "here"
    stopped(lake, out, state=str(state))
    assert (state / "plan.json").exists() and not left_over(out)
    with pytest.raises(ConfigError, match="holds files already"):
        replay(config(), lake, out)
    assert replay(config(), lake, out, state=str(state)).rows_before > 0 and not state.exists()


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    from voltmill.flows import cli

    (tmp_path / "c.toml").write_text(CONFIG.format(rows=1_000))

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        found = capsys.readouterr()
        return int(ended.value.code or 0), found.out, found.err

    return run


def test_replay_and_compare(call: Any, lake: str, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_common.Ticker, "LOG_SECONDS", -1.0)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    some = ["-c", tmp_path / "c.toml", "--lake", lake, "--device", "site-1/*", "--to", "2026-11-22T00:10:00Z"]
    status, said, progress = call("replay", *some, "--out", tmp_path / "a", "--compare", whole)
    assert status == 0, said + progress
    assert said.startswith("7200 rows replayed in ") and said.endswith("identical: 7,200 predictions, bit for bit\n")
    assert re.search(r"^file \d of \d+ \(\d+ %\), \d+ rows, \d+ rows/s$", progress, re.M)
    assert "comparing: " in progress
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers

    # Without a fleet there is no prediction: all of them differ.
    status, said, _ = call("replay", *some[2:], "--out", tmp_path / "b", "--compare", whole, "--worst", 2)
    assert status == 1 and said.endswith("different: 7,200 changed\n") and "12 of 12 devices differ; the worst:" in said
    assert len(re.findall(r"^site-1/gw/m-\d\d  soc ", said, re.M)) == 2


def test_compare_two_sets(call: Any, whole: str, tmp_path: Path) -> None:
    json_file = tmp_path / "found.json"
    status, said, _ = call(
        "compare", whole, whole, "--device", "*/m-01", "--from", "2026-11-22T00:01Z", "--json", json_file
    )
    assert status == 0 and "identical: 940 predictions, bit for bit" in said
    found = json.loads(json_file.read_text())
    assert found["good"] and found["total"]["left"] == found["targets"]["soc"]["right"] == 940
    assert call("compare", whole, whole, "--target", "rul")[:2] != (0, "")
    status, said, _ = call("compare", whole, whole, "--from", "2027-01-01")
    assert status == 1 and said.endswith("nothing to compare: neither side has such predictions\n")
    status, _, error = call("compare", whole, tmp_path / "none")
    assert status == 1 and error == f"voltmill: lake {tmp_path}/none: no Parquet file in predictions\n"
    status, _, error = call("compare", whole, whole, "--from", "2027-01-02", "--to", "2027-01-01")
    assert status == 2 and "--to 2027-01-01: is not after --from 2027-01-02" in error


def test_another_model(call: Any, lake: str, tmp_path: Path) -> None:
    where = ["replay", "-c", tmp_path / "c.toml", "--lake", lake, "--out", tmp_path / "out"]
    status, _, error = call(*where, "--model", tmp_path / "no.onnx")
    assert status == 2 and "no.onnx" in error and not (tmp_path / "out").exists()
    status, said, _ = call(*where, "--model", "lg_hg2_soc", "--device", "*/m-01")
    assert status == 0 and "1000 rows replayed" in said
    status, _, error = call(*where, "--json", "x")
    assert (status, error) == (2, "voltmill: --json and --tolerance are for --compare: name what to compare with\n")


def test_what_it_did(lake: str, tmp_path: Path) -> None:
    done = replay(config(), lake, str(tmp_path), devices=["*/m-01"])
    assert isinstance(done, Replayed) and (done.rows, done.predictions, done.rows_before) == (1_000, 1_000, 0)
