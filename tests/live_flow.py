"""A live flow in processes of its own, against a real broker: for tests that stop, kill and starve it."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from voltmill.connectors.mqtt import MqttSettings, Publisher
from voltmill.flows.broker import free_port
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
{run}

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


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: One for each gateway of ``fleet``: two processes both have messages to read.
TOPICS = ["voltmill/site-1/gw-1/#", "voltmill/site-1/gw-2/#"]


class Live:
    """A live flow in a folder, which can be started again and again.

    Args:
        folder: For configuration, state, lake, database and log; its name is the client id.
        port: Of the broker.
        topics: Topic filters.
        partitions: Recovery partitions.
        more: Tables to append to the configuration; ``run`` holds keys to put under ``[run]``.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        topics: list[str] | None = None,
        partitions: int = 1,
        run: str = "",
        more: str = "",
    ) -> None:
        self.folder, self.port, self.config = folder, port, folder / "voltmill.toml"
        self.topics, self.run, self.more = topics or ["voltmill/#"], run, more
        self.processes: list[subprocess.Popen[bytes]] = []
        self.configure(partitions)

    def configure(self, partitions: int) -> None:
        """Write the configuration, for so many recovery partitions."""
        text = CONFIG.format(
            folder=self.folder,
            port=self.port,
            client=self.folder.name,
            topics=json.dumps(self.topics),
            partitions=partitions,
            run=self.run,
        )
        self.config.write_text(text + self.more)

    def start(self, command: list[str] | None = None, **environ: str) -> "subprocess.Popen[bytes]":
        command = command or ["voltmill.flows.cli", "run", "live", "-c", str(self.config)]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], stderr=log, cwd=self.folder, env=os.environ | environ
            )
        self.processes.append(process)
        return process

    def start_cluster(
        self, processes: int = 2, module: str = "voltmill.flows.cli", **environ: str
    ) -> "list[subprocess.Popen[bytes]]":
        """Start the processes of a cluster, which need as many topic filters and recovery partitions to have work."""
        addresses = ";".join(f"127.0.0.1:{free_port()}" for _ in range(processes))
        command = [module, "run", "live", "-c", str(self.config), "-a", addresses, "-i"]
        return [self.start([*command, str(k)], **environ) for k in range(processes)]

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def drain(self, *, within: float = 20.0) -> None:
        """SIGTERM to all that run; they end in good order."""
        running = [p for p in self.processes if p.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(within) for process in running]
        assert codes == [0] * len(running), self.log()[-3000:]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def until(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 120
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

    def predictions(self) -> list[tuple[str, datetime, str]]:
        """Device, time and model of every prediction in the database."""
        with contextlib.closing(sqlite3.connect(self.folder / "voltmill.db")) as db:
            rows = db.execute("select device_id, event_time, model_sha256 from predictions").fetchall()
        return [(device, EPOCH + timedelta(microseconds=at), model) for device, at, model in rows]

    def complete(self, sent: list[tuple[str, bytes]], models: int = 1) -> None:
        """Wait until each message that can be read has its predictions: a drain leaves the rest to the broker."""
        wanted = models * (len(sent) - broken(sent))
        self.until(lambda: self.stored() >= wanted, f"not {wanted} predictions")

    def settled(self, wanted: int) -> None:
        """The same where some are refused: wait until nearly so many predictions are stored and no more come."""
        seen: list[int] = []

        def still() -> bool:
            seen.append(self.stored())
            time.sleep(1.0)
            return len(seen) > 3 and len(set(seen[-3:])) == 1 and seen[-1] >= 0.97 * wanted

        self.until(still, "not stored")

    def archived(self) -> list[dict[str, Any]]:
        return self.table("telemetry")

    def table(self, name: str) -> list[dict[str, Any]]:
        found = ds.dataset(str(self.folder / "lake" / name), format="parquet").to_table()
        rows: list[dict[str, Any]] = found.to_pylist()
        return rows


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


def broken(sent: list[tuple[str, bytes]]) -> int:
    """How many messages cannot be read."""
    decoder = Decoder(DecodeSettings())
    return sum(decoder(raw_batch([payload]))[1] is not None for _, payload in sent)


def assert_complete(flow: Live, sent: list[tuple[str, bytes]], *, repeats: bool) -> None:
    """Every message is archived once, or a dead letter once; a redelivery bears the duplicate bit."""
    unread = broken(sent)
    rows = flow.archived()
    letters = {row["payload"] for row in flow.table("dead_letters")}
    good = Counter((r["device_id"], r["seq"]) for r in rows if not r["quality_bits"] & Quality.DUPLICATE)
    assert set(good.values()) == {1}
    assert len(rows) - len(good) == 0 or repeats
    assert len(letters) <= unread  # equal payloads, such as the empty one, are one here
    assert len(good) + unread == len(sent)
    wanted = {(r["device_id"], r["event_time"]) for r in rows if accepted(r)}
    stored = flow.predictions()
    found = {(device, at) for device, at, _ in stored}
    assert found == wanted, f"predictions missing {wanted - found}, of no accepted sample {found - wanted}"
    assert len(stored) == len(found), f"of several models: {sorted({model for *_, model in stored})}"


def accepted(row: dict[str, Any]) -> bool:
    refused = Quality.DUPLICATE | Quality.LATE | Quality.OUT_OF_ORDER | Quality.CLOCK_SKEW
    return not row["quality_bits"] & refused
