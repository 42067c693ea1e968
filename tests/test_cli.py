"""The command line as its users meet it: what it prints, and the exit status."""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from servers import Mosquitto
from test_publish import listening

from voltmill import __version__
from voltmill.connectors.sql import SqlError
from voltmill.connectors.store import LakeError
from voltmill.flows import cli
from voltmill.flows.config import ConfigError
from voltmill.kernels.compile import CACHE_DIR
from voltmill.kernels.schema import Quality
from voltmill.operators.model import SHIPPED, ModelError
from voltmill.operators.table import StateError

START = datetime(2024, 5, 1)  # noqa: DTZ001 - foreign data sets have naive times, which are UTC
FLEET = '[[fleet]]\nmatch = "*"\ncell_type = "lg-hg2"\ncapacity_ah = 3.0\n'


class Done(NamedTuple):
    status: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        found = capsys.readouterr()
        return Done(ended.value.code or 0, found.out, found.err)  # type: ignore[arg-type]

    return run


def start(*arguments: object, **environ: str) -> Done:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "voltmill.flows.cli", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "RUST_BACKTRACE")} | environ
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


def foreign(folder: Path, rows: int = 600, **change: Any) -> Path:
    """A data set of someone else: few columns, in another order, wide floats, naive times."""
    wide = pa.list_(pa.float64())
    columns = {
        "cell_temperature_celsius": pa.array([[25.0]] * rows, wide),
        "cell_voltage_volt": pa.array([[3.7 - 1e-4 * k] * 4 for k in range(rows)], wide),
        "event_time": pa.array([START + timedelta(seconds=k) for k in range(rows)], pa.timestamp("ms")),
        "comment": pa.array(["extra"] * rows),
        "current_ampere": pa.array(np.full(rows, -1.0)),
        "device_id": pa.array(["rig/1"] * rows),
    }
    (folder / "telemetry").mkdir(parents=True)
    table = pa.table({k: v for k, v in (columns | change).items() if v is not None})
    pq.write_table(table, folder / "telemetry" / "a.parquet")
    return folder


def predictions(folder: Path) -> list[dict[str, Any]]:
    return ds.dataset(str(folder / "predictions"), format="parquet").to_table().sort_by("event_time").to_pylist()


COMMANDS = [
    "run",
    "run live",
    "replay",
    "compare",
    "simulate",
    "publish",
    "check",
    "models",
    "demo",
    "explain",
    "dataset",
]
COMMANDS += ["models describe", "models attach"]
COMMANDS += ["dead-letters", "dead-letters list", "dead-letters show", "dead-letters redrive"]


class TestCalls:
    @pytest.mark.parametrize("command", ["", *COMMANDS])
    def test_help(self, call: Call, command: str) -> None:
        done = call(*command.split(), "--help")
        assert done.status == 0 and done.err == ""
        assert f"Usage: voltmill {command}".strip() in done.out

    def test_help_names_every_command(self, call: Call) -> None:
        text = call("--help").out
        assert all(re.search(rf"\b{c.split()[0]}\b", text) for c in COMMANDS) and "--debug" in text

    def test_version(self, call: Call) -> None:
        assert call("--version") == (0, f"voltmill {__version__}\n", "")
        assert start("--version") == (0, f"voltmill {__version__}\n", "")

    @pytest.mark.parametrize(
        "arguments",
        [
            ["nope"],
            ["--nope"],
            ["replay"],
            ["replay", "--lake", "x"],
            ["replay", "--lake", "x", "--out", "y", "--warm-up", "-1"],
            ["replay", "--lake", "x", "--out", "y", "--warm-up", "1e12"],
            ["publish", "x.parquet"],
            ["publish", "x.parquet", "-t", "t", "--limit", "0"],
            ["demo", "--broker", "kafka"],
            ["demo", "--seconds", "1"],
            ["run", "live", "-w", "0"],
            ["run", "live", "-w", "x"],
            ["run", "live", "-i", "-1"],
            ["models", "extra"],
        ],
    )
    def test_a_wrong_call_is_status_2(self, call: Call, arguments: list[str]) -> None:
        done = call(*arguments)
        assert done.status == 2 and "Traceback" not in done.err and "voltmill" in done.err

    @pytest.mark.parametrize("options", [["-i", "0"], ["-a", "h:1;h:2"], ["-i", "2", "-a", "h:1;h:2"]])
    def test_a_cluster_needs_index_and_addresses(self, call: Call, options: list[str]) -> None:
        assert call("run", "live", *options) == (
            2,
            "",
            "voltmill: -i and -a go together: -i is the index, from 0, of this process in -a\n",
        )


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status", "line"),
        [
            (ConfigError("c.toml: wrong"), 2, "c.toml: wrong"),
            (ModelError("m.onnx: wrong"), 2, "m.onnx: wrong"),
            (LakeError("lake x:\n  gone"), 1, "lake x: gone"),
            (SqlError("x.db: locked"), 1, "x.db: locked"),
            (StateError("another layout"), 1, "another layout"),
            (FileNotFoundError(2, "No such file or directory", "x"), 1, "x: No such file or directory"),
            (TimeoutError("no broker"), 1, "no broker"),
            (KeyError("k"), 1, "KeyError: 'k' (unforeseen; --debug shows where)"),
            (OverflowError(), 1, "OverflowError: (unforeseen; --debug shows where)"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
    )
    def test_each_is_one_line(
        self, call: Call, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, line: str
    ) -> None:
        def fail(_: object) -> None:
            raise error

        monkeypatch.setattr(cli, "load", fail)
        done = call("check", "x.json")
        assert (done.status, done.out, done.err) == (status, "", f"voltmill: {line}\n")
        for arguments in (["--debug", "check", "x.json"], ["check", "x.json", "--debug"]):
            with pytest.raises(type(error)):
                cli.main(arguments)

    def test_debug_shows_the_traceback(self, tmp_path: Path) -> None:
        done = start("check", "x.json", "-c", tmp_path / "no.toml", "--debug")
        assert done.status == 1 and "Traceback (most recent call last)" in done.err
        assert done.err.endswith(f"ConfigError: {tmp_path}/no.toml: cannot be read: No such file or directory\n")

    @pytest.mark.parametrize("command", [["replay", "--lake", "x", "--out", "y"], ["simulate"], ["run", "live"]])
    def test_a_wrong_configuration_is_status_2(self, call: Call, file: Any, command: list[str]) -> None:
        path = file("c.toml", "[run]\nshard = 1\n")
        line = f'voltmill: {path}: [run] unknown key "shard" (did you mean "shards"?)\n'
        assert call(*command, "-c", path) == (2, "", line)

    @pytest.mark.parametrize(
        ("change", "status", "last"),
        [
            ('[sql]\nurl = "sqlite:///{folder}"\n', 1, "voltmill: {folder}: unable to open database file"),
            ('[mqtt.tls]\nca_file = "{folder}/no.pem"\n', 2, "voltmill: mqtt.tls.ca_file '{folder}/no.pem' cannot be"),
            ("[run]\nmetrics_port = {port}\n", 1, "voltmill: [run] metrics: 127.0.0.1:{port} cannot be served"),
            ('[[model]]\nname = "no.onnx"\n', 2, "voltmill: [[model]] no.onnx: cannot be read"),
        ],
    )
    def test_what_stops_the_live_flow_is_its_last_line(
        self, tmp_path: Path, file: Any, change: str, status: int, last: str
    ) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            names = {"folder": tmp_path, "port": taken.getsockname()[1]}
            text = f'[lake]\nurl = "{tmp_path}/lake"\n' + change.format(**names)
            state = f'state = "{tmp_path}/state"\n'
            text = text.replace("[run]\n", f"[run]\n{state}") if "[run]" in text else f"[run]\n{state}{text}"
            done = start("run", "live", "-c", file("c.toml", text))
        *logged, line = [text for text in done.err.splitlines() if "compiling the kernels" not in text]
        assert done.status == status and line.startswith(last.format(**names))
        assert all(json.loads(text)["message"] for text in logged)  # nothing else, neither traceback nor panic


class TestCheck:
    def test_configurations(self, call: Call, file: Any) -> None:
        path = file("c.toml", FLEET)
        defaults = "[mqtt] 127.0.0.1:1883, [lake] voltmill-data/lake, [sql] voltmill-data/voltmill.db"
        said = f"not in the file, so the defaults hold, untried: {defaults}"
        assert call("check", path) == (0, f"{path}: good\n{said}\n", "")
        path = file("c.toml", "")
        assert "no [[fleet]] table: every device is unknown" in call("check", path).out
        path = file("c.toml", FLEET.replace("lg-hg2", "xyz"))
        assert 'match = "*": no model was made for cell type "xyz": no predictions' in call("check", path).out
        path = file("c.toml", FLEET.replace("capacity_ah = 3.0", ""))
        assert 'match = "*": capacity_ah is not set: no predictions' in call("check", path).out
        path = file("c.toml", FLEET + '[[model]]\nname = "measured_soh"\n')
        assert "no capacity is measured, no values of measured_soh" in call("check", path).out

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ('[sql]\ndrivr = "x"', '{path}: [sql] unknown key "drivr" (did you mean "driver"?)'),
            ('[[model]]\nname = "xyz"', "{path}: [[model]] xyz: cannot be read"),
            ('[mqtt.tls]\nca_file = "/no.pem"', "{path}: mqtt.tls.ca_file '/no.pem' cannot be used"),
            ('[decode]\nmapping = "xyz"', '{path}: decode.mapping: there is no mapping "xyz"'),
            ('[mapping.a]\ncolumns = { device_id = "d" }', "{path}: [mapping.a]: columns.event_time is missing"),
        ],
    )
    def test_a_wrong_configuration(self, call: Call, file: Any, text: str, line: str) -> None:
        path = file("c.toml", text)
        done = call("check", path)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith(line.format(path=path)) and done.err.count("\n") == 1

    CANONICAL = (
        '{"device_id": "m", "event_time": 1795341605, "current_ampere": -1, "cell_voltage_volt": [3.6],'
        ' "cell_temperature_celsius": [25]}'
    )

    @pytest.mark.parametrize(
        ("text", "mapping"),
        [
            (CANONICAL, "canonical"),
            (f"[{CANONICAL},\n{CANONICAL}]", "canonical"),
            ('{"id": "gw/7", "t": 1795341605, "i": -1500, "c": [3601], "T": []}', "compact"),
        ],
    )
    def test_a_message_that_fits(self, call: Call, file: Any, text: str, mapping: str) -> None:
        path = file("m.json", text)
        done = call("check", path)
        assert (done.status, done.err) == (0, "")
        assert done.out.splitlines()[0] == f"{path}: fits the mapping {mapping}"

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (CANONICAL.replace("current_ampere", "current"), "current_ampere"),
            ('{"foo": 1}', "missing_key"),
            ("what?", "malformed_json"),
            (b"\xff\xfe", "not_utf8"),
            (b"", "empty"),
        ],
    )
    def test_a_message_that_fits_none(self, call: Call, file: Any, content: str | bytes, problem: str) -> None:
        path = file("m.json", content)
        done = call("check", path)
        assert (done.status, done.out) == (2, "")
        first, *rest = done.err.splitlines()
        assert first.startswith(f"{path}: fits no mapping; nearest is ")
        assert any(problem in line for line in rest)

    def test_a_message_of_a_mapping_of_ones_own(self, call: Call, file: Any) -> None:
        columns = 'device_id = "d", event_time = "t", current_ampere = "i", cell_voltage_volt = "u"'
        config = file("c.toml", f"[mapping.mine]\ncolumns = {{ {columns} }}")
        path = file("m.json", '{"d": "m", "t": 1795341605, "i": 1, "u": [3.6]}')
        assert call("check", path).status == 2
        assert call("check", path, "-c", config).out.startswith(f"{path}: fits the mapping mine")

    def test_models(self, call: Call, file: Any) -> None:
        done = call("check", SHIPPED / "lg_hg2_soc.onnx")
        good, first, *_ = done.out.splitlines()
        assert done.status == 0 and good.endswith("lg_hg2_soc.onnx: good")
        assert first.startswith("lg_hg2_soc: soc in percent, for lg-hg2 (3 Ah a cell)")
        path = file("x.onnx", b"no model")
        done = call("check", path)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith(f"{path}: not a model that onnxruntime can run") and done.err.count("\n") == 1

    @pytest.mark.parametrize("name", ["no.toml", "no.json", "no.onnx", "folder.toml", "folder.json", "folder.onnx"])
    def test_files_that_cannot_be_read(self, call: Call, tmp_path: Path, name: str) -> None:
        if name.startswith("folder"):
            (tmp_path / name).mkdir()
        done = call("check", tmp_path / name)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith(f"{tmp_path / name}: cannot be read") and done.err.count("\n") == 1


def test_models_are_listed_with_their_errors(call: Call) -> None:
    done = call("models")
    assert (done.status, done.err) == (0, "")
    assert re.search(r"^lg_hg2_soc: soc in percent, for lg-hg2", done.out, re.M)
    assert re.search(r"^  right_start: mae \d+\.\d\d, rmse ", done.out, re.M)


class TestReplay:
    def replay(self, call: Call, tmp_path: Path, *options: object) -> tuple[Done, list[dict[str, Any]]]:
        (tmp_path / "c.toml").write_text(FLEET)
        where = ["--lake", tmp_path / "lake", "--out", tmp_path / "out"]
        done = call("replay", "-c", tmp_path / "c.toml", *where, *options)
        return done, predictions(tmp_path / "out") if done.status == 0 else []

    def test_a_foreign_data_set_gets_predictions(self, call: Call, tmp_path: Path) -> None:
        foreign(tmp_path / "lake")
        done, rows = self.replay(call, tmp_path)
        assert re.match(r"600 rows replayed in [\d.]+ s \(\d+/s\), 600 predictions in .*/out/predictions\n$", done.out)
        assert [r["event_time"] for r in rows] == [
            (START + timedelta(seconds=k)).replace(tzinfo=UTC) for k in range(600)
        ]
        assert all(r["lo90"] <= r["value"] <= r["hi90"] and 0 <= r["value"] <= 100 for r in rows)
        assert {(r["device_id"], r["target"], r["mode"]) for r in rows} == {("rig/1", "soc", "replay")}
        assert rows[-1]["value"] < rows[300]["value"]  # it is discharged

    def test_only_the_required_columns_run_too(self, call: Call, tmp_path: Path) -> None:
        foreign(tmp_path / "lake", cell_temperature_celsius=None, comment=None)
        done, rows = self.replay(call, tmp_path)
        assert done.status == 0 and len(rows) == 600
        # The model needs the temperature: it says so and does not guess.
        assert all(r["value"] is None and r["quality_bits"] & Quality.OUT_OF_DOMAIN for r in rows)

    @pytest.mark.parametrize("zone", ["", "Z", "+00:00"])
    def test_times_without_a_zone_are_utc(self, call: Call, tmp_path: Path, zone: str) -> None:
        foreign(tmp_path / "lake")
        span = ["--from", f"2024-05-01T00:02:00{zone}", "--to", f"2024-05-01T00:03:00{zone}"]
        done, rows = self.replay(call, tmp_path, *span)
        assert [r["event_time"].isoformat() for r in (rows[0], rows[-1])] == [
            "2024-05-01T00:02:00+00:00",
            "2024-05-01T00:02:59+00:00",
        ]
        assert done.out.startswith("180 rows replayed") and "60 predictions" in done.out
        assert "state warmed up on the 1 h before 2024-05-01T00:02:00+00:00" in done.out

    def test_times_of_another_zone(self, call: Call, tmp_path: Path) -> None:
        foreign(tmp_path / "lake")
        _, rows = self.replay(call, tmp_path, "--from", "2024-05-01T02:09:00+02:00", "--warm-up", "0.05")
        assert rows[0]["event_time"] == datetime(2024, 5, 1, 0, 9, tzinfo=UTC) and len(rows) == 60

    def test_telemetry_is_written_if_asked_for(self, call: Call, tmp_path: Path) -> None:
        foreign(tmp_path / "lake")
        self.replay(call, tmp_path, "--telemetry")
        assert ds.dataset(str(tmp_path / "out" / "telemetry")).count_rows() == 600

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (["--from", "yesterday"], "--from yesterday: not an ISO 8601 time, such as 2026-11-22T10:00:00Z"),
            (["--to", "0001-01-01"], "--to 0001-01-01: not within the years 2000 to 2099, which are all that"),
            (["--from", "2024-05-02", "--to", "2024-05-01"], "--to 2024-05-01: is not after --from 2024-05-02"),
        ],
    )
    def test_wrong_times_are_status_2(self, call: Call, tmp_path: Path, options: list[str], line: str) -> None:
        done, _ = self.replay(call, tmp_path, *options)
        assert done.status == 2 and done.err.startswith(f"voltmill: {line}")

    def test_into_a_used_folder_is_status_2(self, call: Call, tmp_path: Path) -> None:
        foreign(tmp_path / "lake")
        self.replay(call, tmp_path)
        done, _ = self.replay(call, tmp_path)
        line = f"voltmill: {tmp_path}/out/predictions: holds files already; name another folder for the replay\n"
        assert done == (2, "", line)


def spoil(folder: Path, how: str) -> None:
    if how == "missing":
        return
    if how == "empty":
        (folder / "telemetry").mkdir(parents=True)
    elif how == "no column":
        foreign(folder, current_ampere=None)
    elif how == "wrong type":
        foreign(folder, current_ampere=pa.array(["x"] * 600))
    else:
        file = foreign(folder) / "telemetry" / "a.parquet"
        file.write_bytes(file.read_bytes()[:-100] if how == "truncated" else b"")


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("missing", "lake {lake}: no Parquet file in telemetry"),
        ("empty", "lake {lake}: no Parquet file in telemetry"),
        ("truncated", "telemetry/a.parquet: not readable as Parquet: "),
        ("no bytes", "telemetry/a.parquet: not readable as Parquet: "),
        ("no column", "telemetry/a.parquet: no column current_ampere; there are: "),
        ("wrong type", "a.parquet: column current_ampere (string) is not float: "),
    ],
)
def test_replay_of_what_is_no_archive_is_one_line(tmp_path: Path, call: Call, how: str, line: str) -> None:
    spoil(tmp_path / "lake", how)
    done = call("replay", "--lake", tmp_path / "lake", "--out", tmp_path / "out")
    assert (done.status, done.out) == (1, "") and done.err.count("\n") == 1
    assert done.err.startswith(f"voltmill: {line.format(lake=tmp_path / 'lake')}")


def test_what_the_engine_says_of_an_error_is_not_shown(tmp_path: Path) -> None:
    """In a process of its own: it writes to the file descriptor."""
    spoil(tmp_path / "lake", "truncated")
    done = start("replay", "--lake", tmp_path / "lake", "--out", tmp_path / "out", RUST_BACKTRACE="1")
    assert (done.status, done.out) == (1, "") and done.err.count("\n") == 1
    assert done.err.startswith("voltmill: telemetry/a.parquet: not readable as Parquet: ")


class TestBroker:
    def test_simulate(self, mosquitto: Callable[..., Mosquitto], tmp_path: Path, call: Call, file: Any) -> None:
        broker = mosquitto()
        path = file(
            "c.toml",
            f"[mqtt]\nport = {broker.port}\n[simulate]\ngateways = 1\npacks_per_gateway = 1\nmodules_per_pack = 2\n"
            "speed = 50\nduration_seconds = 20\n[simulate.faults]\nenabled = false\n",
        )
        with listening(broker, "voltmill/#", 8) as messages:
            done = call("simulate", "-c", path, "--truth", tmp_path / "truth")
            got = messages()
        assert done.status == 0
        summary = json.loads(done.out)
        assert summary["published"] == summary["sent"] == 8 and summary["unacknowledged"] == 0
        truth = ds.dataset(sorted(map(str, (tmp_path / "truth").glob("messages-*")))).to_table().to_pylist()
        assert {(t["device_id"], t["seq"]) for t in truth} == {(m["device_id"], m["seq"]) for m in got}

    def test_publish(self, mosquitto: Callable[..., Mosquitto], tmp_path: Path, call: Call, file: Any) -> None:
        broker = mosquitto()
        path = file("c.toml", f"[mqtt]\nport = {broker.port}\n")
        data = foreign(tmp_path / "rig", rows=9) / "telemetry" / "a.parquet"
        with listening(broker, "rig/#", 5) as messages:
            done = call("publish", data, "-t", "rig/1", "-c", path, "--device", "gw/m", "--limit", "5")
            got = messages()
        assert (done.status, done.out) == (0, "5 messages published to rig/1\n")
        assert [m["event_time"] for m in got] == [
            (START + timedelta(seconds=k)).isoformat("T", "auto") for k in range(5)
        ]
        assert {m["device_id"] for m in got} == {"gw/m"}

    @pytest.mark.parametrize(
        ("name", "options", "line"),
        [
            ("no.parquet", [], "no.parquet"),
            ("c.toml", [], "c.toml: not a Parquet file: "),
        ],
    )
    def test_publish_what_cannot_be(
        self, tmp_path: Path, call: Call, file: Any, name: str, options: list[str], line: str
    ) -> None:
        file("c.toml", "")
        foreign(tmp_path / "rig", rows=1)
        done = call("publish", tmp_path / name, "-t", "t", *options)
        assert done.status == 1 and line in done.err and done.err.count("\n") == 1 and "Traceback" not in done.err


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_the_first_start_says_that_it_compiles_and_the_second_is_ready_within_3_s(tmp_path: Path) -> None:
    """The kernels of this machine in a cache that does not say it has all: what is missing would be compiled."""
    cache = tmp_path / "cache/voltmill" / CACHE_DIR.name
    shutil.copytree(CACHE_DIR, cache, ignore=shutil.ignore_patterns("compiled*"))
    foreign(tmp_path / "lake", rows=1)
    (tmp_path / "c.toml").write_text(FLEET)

    def replay(out: str) -> Done:
        where = ["--lake", tmp_path / "lake", "--out", tmp_path / out]
        return start("replay", "-c", tmp_path / "c.toml", *where, XDG_CACHE_HOME=str(tmp_path / "cache"))

    first = replay("first")
    assert first.status == 0 and first.err.startswith("voltmill: compiling the kernels, once on this machine")
    assert first.err.count("\n") == 1
    before, used = cpu_seconds(), []
    for out in ("second", "third"):  # the cheaper one counts: what else runs on this machine makes a start dearer
        done = replay(out)
        assert (done.status, done.err) == (0, "")
        used.append(cpu_seconds() - before - sum(used))
    assert min(used) < 3.0
    before = cpu_seconds()
    assert start("models", XDG_CACHE_HOME=str(tmp_path / "cache")).status == 0
    assert cpu_seconds() - before < 3.0
    assert predictions(tmp_path / "first") == predictions(tmp_path / "second")


def test_without_a_place_for_the_cache_it_works(tmp_path: Path) -> None:
    """A read-only file system: /proc takes no folder, not even from root."""
    program = (
        "from voltmill.kernels.compile import CACHE_DIR, kernel\n"
        "@kernel\ndef twice(x):\n    return 2 * x\nprint(twice(21), CACHE_DIR)"
    )
    environment = {"XDG_CACHE_HOME": "/proc/no", "NUMBA_CACHE_DIR": "/proc/no", "TMPDIR": str(tmp_path)}
    file = tmp_path / "program.py"
    file.write_text(program)
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == "" and re.fullmatch(rf"42 {tmp_path}/voltmill-kernels-\w+\n", done.stdout)
    assert start("models", **environment).status == 0


def test_the_reader_of_a_pipe_may_leave(call: Call) -> None:
    command = f"{sys.executable} -m voltmill.flows.cli models | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert re.fullmatch(r"\w+: \w+ in \w+, for .*\n", done.stdout) and done.stderr == ""
