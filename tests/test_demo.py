"""The demo as a user runs it, with both brokers; and its table, which must be able to say no."""

import io
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import missing

from voltmill.flows import demo as module
from voltmill.flows.broker import Kind, find_mosquitto
from voltmill.flows.compare import Comparison, read
from voltmill.flows.config import ConfigError, load
from voltmill.flows.demo import demo
from voltmill.flows.demo_report import Outcome, report
from voltmill.flows.replay import Replayed

SECONDS, MODULES, SPEED = 6, 64, 80


class Ran:
    """A demo that ran: its folder, what it returned, what it printed."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder = folder
        out = io.StringIO()
        with redirect_stdout(out):
            self.good = demo(folder, seconds=SECONDS, modules=MODULES, speed=SPEED, prefer=kind)
        self.printed = out.getvalue()
        self.facts = json.loads((folder / "demo.json").read_text())


@pytest.fixture(scope="module", params=["mosquitto", "amqtt"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    if request.param == "mosquitto" and not find_mosquitto():
        missing("Mosquitto")
    yield Ran(tmp_path_factory.mktemp("demo") / "it's a demo", request.param)


@pytest.mark.slow
def test_every_message_is_accounted_for_and_the_replay_is_identical(ran: Ran) -> None:
    facts = ran.facts
    assert ran.good and facts["accounted"]
    measured = MODULES * SECONDS * SPEED / 5
    assert abs(facts["published"] - measured) < 0.02 * measured
    assert facts["archived"] + facts["letters"] == facts["published"]
    assert facts["letters"] == facts["malformed"] == sum(facts["reasons"].values()) > 0
    assert facts["missing"] == facts["surplus"] == 0
    assert facts["predictions"] == facts["predictions_in_sql"] == facts["comparison"]["left"]
    assert facts["comparison"] == facts["comparison"] | {"changed": 0, "only_left": 0, "only_right": 0}
    assert facts["replay"]["rows"] == facts["archived"]


@pytest.mark.slow
def test_what_was_injected_is_flagged_and_the_soc_is_scored(ran: Ran) -> None:
    for name, (injected, flagged, _) in ran.facts["faults"].items():
        assert injected > 0, name
        assert flagged >= 0.8 * injected, name
    assert ran.facts["false_alarms"] < 0.002 * ran.facts["archived"]
    soc = ran.facts["soc"]
    assert soc["rows"] > 1000 and soc["mae"] < 6 and soc["mae"] <= soc["worst"] < 30 and 50 < soc["coverage90"] <= 100
    assert 0 < ran.facts["latency_p50_ms"] <= ran.facts["latency_p99_ms"] < 5000


@pytest.mark.slow
def test_the_printed_commands_run_as_they_stand(ran: Ran) -> None:
    _, _, hints = ran.printed.partition("Look at it:\n")
    commands = hints.strip().splitlines()
    assert len(commands) == 3
    outputs = []
    for command in commands:
        environment = {"PATH": "/usr/bin:/bin"}  # nothing is activated
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, (command, done.stderr)
        outputs.append(done.stdout)
    assert outputs[0].count("site-1/") == outputs[1].count("site-1/") == 5
    assert f"{ran.facts['predictions']} predictions in" in outputs[2]
    assert read(str(ran.folder / "again")).equals(read(str(ran.folder / "replay")))


@pytest.mark.slow
def test_the_folder_tells_what_it_ran_with(ran: Ran) -> None:
    config = load(ran.folder / "voltmill.toml")
    assert config.simulate.modules == MODULES and config.simulate.speed == SPEED
    assert Path(config.lake.url) == ran.folder / "lake" and config.sql.path == (ran.folder / "voltmill.db").absolute()
    for line in (ran.folder / "live.log").read_text().splitlines():
        assert json.loads(line)["level"] in ("info", "warning")


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty; name another folder"):
        demo(tmp_path, seconds=5, modules=4, speed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_live_flow_that_fails_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = psutil.Process().children(recursive=True)  # servers of other tests
    monkeypatch.setattr(module, "_TOML", module._TOML.replace("state = {state}", 'state = "/proc/no/state"#{state}'))
    with pytest.raises(RuntimeError) as error:
        demo(tmp_path / "d", seconds=5, modules=4, speed=10)
    assert str(error.value) == f"the live flow ended with status 1: see {tmp_path}/d/live.log"
    assert psutil.Process().children(recursive=True) == before


@pytest.fixture
def outcome(ran: Ran, tmp_path: Path) -> Outcome:
    """A copy of what a demo left, to be spoilt."""
    shutil.copytree(ran.folder, tmp_path / "d")
    return Outcome(
        folder=tmp_path / "d",
        summary=json.loads((tmp_path / "d/truth/counts.json").read_text()),
        replayed=msgspec.convert(ran.facts["replay"], Replayed),
        comparison=msgspec.convert(ran.facts["comparison"], Comparison),
        latency_seconds=np.array([0.1, 0.2]),
        seconds=SECONDS,
    )


def told(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> tuple[bool, dict[str, Any], str]:
    good = report(outcome)
    return good, json.loads((outcome.folder / "demo.json").read_text()), capsys.readouterr().out


@pytest.mark.slow
def test_the_table_can_be_made_again(outcome: Outcome, ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    good, facts, text = told(outcome, capsys)
    assert good and "  every message is accounted for" in text and "NO" not in text
    assert facts == ran.facts | {k: facts[k] for k in ("latency_p50_ms", "latency_p99_ms")}


def lose_a_file(folder: Path) -> None:
    next((folder / "lake/telemetry").rglob("*.parquet")).unlink()


def double_a_row(folder: Path) -> None:
    file = next((folder / "lake/telemetry").rglob("*.parquet"))
    pq.write_table(pq.read_table(file).slice(3, 1), file.with_name("doubled.parquet"))


def double_the_dead_letters(folder: Path) -> None:
    file = next((folder / "lake/dead_letters").rglob("*.parquet"))
    shutil.copy(file, file.with_name("doubled.parquet"))


def lose_the_dead_letters(folder: Path) -> None:
    shutil.rmtree(folder / "lake/dead_letters")


def lose_a_prediction_in_sql(folder: Path) -> None:
    with sqlite3.connect(folder / "voltmill.db") as db:
        db.execute(DELETE_ONE)


DELETE_ONE = """
delete from predictions_rows where (device_id, event_time) in
  (select device_id, event_time from predictions_rows order by event_time limit 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "fact"),
    [
        (lose_a_file, "missing"),
        (double_a_row, "surplus"),
        (double_the_dead_letters, "letters"),
        (lose_the_dead_letters, "letters"),
        (lose_a_prediction_in_sql, "predictions_in_sql"),
    ],
)
def test_the_table_says_no(
    outcome: Outcome, ran: Ran, spoil: Callable[[Path], None], fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(outcome.folder)
    good, facts, text = told(outcome, capsys)
    assert not good and not facts["accounted"] and "  NOT every message is accounted for" in text
    assert facts[fact] != ran.facts[fact]


@pytest.mark.slow
def test_a_replay_that_differs_is_a_no(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    changed = msgspec.structs.replace(outcome.comparison, changed=1)
    good, facts, text = told(replace(outcome, comparison=changed), capsys)
    assert not good and facts["accounted"] and "NO: 1 changed, 0 missing, 0 more" in text


@pytest.mark.slow
def test_the_truth_is_no_more_than_full(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (outcome.folder / "truth").glob("messages-*.parquet"):
        table = pq.read_table(file)
        at = table.schema.get_field_index("soc_percent")
        full = pa.array(np.full(len(table), 100.4, np.float32))
        pq.write_table(table.set_column(at, table.schema.field(at), full), file)
    _, facts, _ = told(outcome, capsys)
    assert facts["soc"]["rows"] > 1000 and facts["soc"]["worst"] <= 100
