"""The live flow as its users run it: real processes, a real broker, signals and kill -9."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from servers import Mosquitto

from voltmill.connectors.mqtt import MqttSettings, Publisher
from voltmill.flows.broker import free_port
from voltmill.flows.compare import compare, read
from voltmill.flows.simulate import FaultSettings, SimulateSettings, messages
from voltmill.flows.warm_up import raw_batch
from voltmill.kernels.schema import Quality
from voltmill.operators.decode import Decoder
from voltmill.operators.sample import DecodeSettings

CONFIG = """
[run]
state = "{folder}/state"
epoch_seconds = 0.3
shards = 3
recovery_partitions = {partitions}

[mqtt]
port = {port}
topics = {topics}
client_id = "{client}"

[lake]
url = "{folder}/lake"
max_file_age_seconds = 1.0

[sql]
url = "sqlite:///{folder}/voltmill.db"

[[fleet]]
match = "*"
cell_type = "lg-hg2"
capacity_ah = 3.0
"""


class Live:
    """A live flow in a folder, which can be started again and again."""

    def __init__(self, folder: Path, port: int, *, topics: list[str], partitions: int = 1) -> None:
        self.folder, self.processes = folder, []
        text = CONFIG.format(
            folder=folder, port=port, client=folder.name, topics=json.dumps(topics), partitions=partitions
        )
        (folder / "voltmill.toml").write_text(text)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str] | None = None, **environ: str) -> "subprocess.Popen[bytes]":
        command = command or ["voltmill.flows.cli", "run", "live", "-c", str(self.folder / "voltmill.toml")]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], stderr=log, cwd=self.folder, env=os.environ | environ
            )
        self.processes.append(process)
        return process

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def until(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < deadline, f"{what}: {self.log()[-3000:]}"
            time.sleep(0.05)

    def subscribed(self, times: int) -> None:
        self.until(lambda: self.log().count("mqtt subscribed") >= times, "not subscribed")

    def stored(self) -> int:
        with sqlite3.connect(self.folder / "voltmill.db") as db:
            try:
                return int(db.execute("select count(*) from predictions").fetchone()[0])
            except sqlite3.OperationalError:
                return 0

    def settled(self, wanted: int) -> None:
        """Wait until nearly so many predictions are stored and no more come: a drain leaves the rest to the broker."""
        before = -1

        def still() -> bool:
            nonlocal before
            now, last = self.stored(), before
            before = now
            time.sleep(1.0)
            return now == last and now >= 0.97 * wanted

        self.until(still, "not stored")

    def archived(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table("telemetry")
        return rows

    def table(self, name: str) -> list[dict[str, Any]]:
        return ds.dataset(str(self.folder / "lake" / name), format="parquet").to_table().to_pylist()


@pytest.fixture
def live(tmp_path: Path, mosquitto: Callable[..., Mosquitto]) -> Iterator[Callable[..., Live]]:
    made: list[Live] = []

    def make(**options: Any) -> Live:
        broker = mosquitto()
        made.append(Live(tmp_path, broker.port, **({"topics": ["voltmill/#"]} | options)))
        made[-1].port = broker.port  # type: ignore[attr-defined]
        return made[-1]

    yield make
    for process in (p for flow in made for p in flow.processes if p.poll() is None):
        process.kill()
        process.wait()


def fleet(modules: int, seconds: float) -> list[tuple[str, bytes]]:
    faults = FaultSettings(malformed_rate=0.01, drop_rate=0, double_rate=0, clock_jump_share=0, hot_share=0)
    settings = SimulateSettings(
        gateways=2, packs_per_gateway=1, modules_per_pack=modules // 2, duration_seconds=seconds, faults=faults
    )
    return list(messages(settings))


def publish(port: int, sent: list[tuple[str, bytes]]) -> None:
    with Publisher(MqttSettings(port=port), "test-publisher") as publisher:
        for topic, payload in sent:
            publisher.publish(topic, payload)
        publisher.drain(30)


def assert_complete(flow: Live, sent: list[tuple[str, bytes]], *, repeats: bool) -> None:
    """Every message is archived once, or a dead letter once; a redelivery bears the duplicate bit."""
    broken = sum(Decoder(DecodeSettings())(raw_batch([payload]))[1] is not None for _, payload in sent)
    rows = flow.archived()
    letters = {row["payload"] for row in flow.table("dead_letters")}
    good = Counter((r["device_id"], r["seq"]) for r in rows if not r["quality_bits"] & Quality.DUPLICATE)
    assert set(good.values()) == {1}
    assert len(rows) - len(good) == 0 or repeats
    assert len(letters) <= broken  # equal payloads, such as the empty one, are one here
    assert len(good) + broken == len(sent)
    assert flow.stored() == len({(r["device_id"], r["event_time"]) for r in rows if accepted(r)})


def accepted(row: dict[str, Any]) -> bool:
    refused = Quality.DUPLICATE | Quality.LATE | Quality.OUT_OF_ORDER | Quality.CLOCK_SKEW
    return not row["quality_bits"] & refused


def test_sigterm_drains_and_a_restart_goes_on(live: Callable[..., Live]) -> None:
    flow = live()
    sent = fleet(20, 300.0)
    first = flow.start()
    flow.subscribed(1)
    publish(flow.port, sent[: len(sent) // 2])
    first.send_signal(signal.SIGTERM)
    publish(flow.port, sent[len(sent) // 2 :])  # the broker keeps them for us
    assert first.wait(20) == 0
    second = flow.start()
    flow.settled(len(sent))
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == 0
    assert_complete(flow, sent, repeats=False)


def test_kill_9_loses_nothing_and_doubles_nothing(live: Callable[..., Live], tmp_path: Path) -> None:
    flow = live()
    sent = fleet(40, 600.0)
    publisher = Publisher(MqttSettings(port=flow.port), "test-publisher")
    flow.start()
    flow.subscribed(1)
    pieces = 6
    for k in range(pieces):
        for topic, payload in sent[k * len(sent) // pieces : (k + 1) * len(sent) // pieces]:
            publisher.publish(topic, payload)
        before = flow.stored()
        flow.until(lambda before=before: flow.stored() > before, "nothing stored")  # type: ignore[misc]
        if k < pieces - 1:
            flow.processes[-1].kill()
            flow.processes[-1].wait()
            flow.start()
            flow.subscribed(k + 2)
    publisher.drain(30)
    publisher.close()
    flow.settled(len(sent))
    flow.processes[-1].send_signal(signal.SIGTERM)
    assert flow.processes[-1].wait(20) == 0
    assert_complete(flow, sent, repeats=True)
    config = str(flow.folder / "voltmill.toml")
    lake, out = str(flow.folder / "lake"), str(tmp_path / "out")
    subprocess.run(
        [sys.executable, "-m", "voltmill.flows.cli", "replay", "-c", config, "--lake", lake, "--out", out], check=True
    )
    assert compare(read(lake), read(out)).identical


def test_a_cluster_of_two_processes(live: Callable[..., Live]) -> None:
    flow = live(topics=["voltmill/site-1/gw-1/#", "voltmill/site-1/gw-2/#"], partitions=2)
    addresses = f"127.0.0.1:{free_port()};127.0.0.1:{free_port()}"
    sent = fleet(20, 300.0)
    config = str(flow.folder / "voltmill.toml")
    command = ["voltmill.flows.cli", "run", "live", "-c", config, "-a", addresses, "-i"]
    both = [flow.start([*command, str(k)]) for k in range(2)]
    flow.subscribed(2)
    publish(flow.port, sent)
    flow.settled(len(sent))
    for process in both:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(20) for process in both] == [0, 0]
    assert_complete(flow, sent, repeats=False)


def test_bytewax_runs_it_too(live: Callable[..., Live]) -> None:
    flow = live()
    sent = fleet(8, 60.0)
    state = flow.folder / "other-state"
    state.mkdir()
    subprocess.run([sys.executable, "-m", "bytewax.recovery", str(state), "1"], check=True)
    command = ["bytewax.run", "voltmill.flows.live", "-r", str(state), "-s", "1", "-b", "0"]
    process = flow.start(command, VOLTMILL_CONFIG=str(flow.folder / "voltmill.toml"))
    flow.subscribed(1)
    publish(flow.port, sent)
    flow.settled(len(sent))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert_complete(flow, sent, repeats=False)


def test_a_broker_that_is_not_there_is_waited_for(live: Callable[..., Live], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        flow = Live(tmp_path, taken.getsockname()[1], topics=["voltmill/#"])
        process = flow.start()
        try:
            flow.until(lambda: "mqtt broker not reached" in flow.log(), "no word of the broker")
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def test_a_wrong_configuration_is_status_2_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text('[sql]\ntabel = "x"\n')
    command = [sys.executable, "-m", "voltmill.flows.cli", "run", "live", "-c", str(tmp_path / "wrong.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f'voltmill: {tmp_path}/wrong.toml: [sql] unknown key "tabel" (did you mean "table"?)\n'
