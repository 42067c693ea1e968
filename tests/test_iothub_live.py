"""The live flow on IoT Hub as its users run it: real processes, kill -9, a cluster, counts that agree."""

import json
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.recovery import init_db_dir
from bytewax.testing import TestingSink
from hub_server import KEY, HubProcess
from live_flow import Live, accepted, assert_complete, broken, fleet

from voltmill.connectors import pack
from voltmill.flows import running
from voltmill.flows.config import RunSettings
from voltmill.kernels.schema import Quality

CONFIG = """
[run]
source = "iothub"
state = "{folder}/state"
epoch_seconds = 0.3
shards = 3
recovery_partitions = {partitions}
[iothub]
connection_string = "${{HUB}}"
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
Message = tuple[str, bytes]


class OnHub(Live):
    """A live flow that reads a hub in a process of its own."""

    def __init__(self, folder: Path, hub: HubProcess, partitions: int) -> None:
        self.hub = hub
        super().__init__(folder, 0, partitions=partitions)

    def configure(self, partitions: int) -> None:
        self.config.write_text(CONFIG.format(folder=self.folder, partitions=partitions))

    def start(self, command: list[str] | None = None, **environ: str) -> "subprocess.Popen[bytes]":
        return super().start(command, HUB=self.hub.connection_string, **environ)

    def reading(self, times: int) -> None:
        self.until(lambda: self.log().count("iothub reading") >= times, "not reading")

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def hub() -> Iterator[HubProcess]:
    with HubProcess(4) as server:
        yield server


@pytest.fixture
def on_hub(hub: HubProcess, tmp_path: Path) -> Iterator[Callable[..., OnHub]]:
    """Makes live flows on ``hub``, by name; what still runs at the end is killed."""
    flows: list[OnHub] = []

    def make(name: str = "flow", partitions: int = 1) -> OnHub:
        (tmp_path / name).mkdir()
        flows.append(OnHub(tmp_path / name, hub, partitions))
        return flows[-1]

    yield make
    for flow in flows:
        flow.end()


def send(hub: HubProcess, sent: list[Message], choose: random.Random) -> None:
    """In their order, some by themselves and most in packs, each gateway to a partition of its own."""
    gateways: dict[str, list[Message]] = {}
    for topic, payload in sent:
        gateways.setdefault(topic.split("/")[2], []).append((topic, payload))
    events = []
    for number, (gateway, messages) in enumerate(sorted(gateways.items())):
        at = 0
        while at < len(messages):
            size = choose.choice([1, 1, 7, 40])
            part, at = messages[at : at + size], at + size
            common = {"partition": number, "device_id": gateway}
            if size == 1:
                events.append({"body": part[0][1], **common})
            else:
                body = pack.pack(pack.entry(topic, payload) for topic, payload in part)
                events.append({"body": body, "properties": {pack.PROPERTY: pack.SCHEMA}, **common})
    hub.append_all(events)


def test_kill_9_loses_nothing_and_rewinds_are_flagged(hub: HubProcess, on_hub: Callable[..., OnHub]) -> None:
    flow, choose = on_hub(), random.Random(5)
    sent = fleet(20, 300.0)
    rewound = last_of_one(sent)
    first = [message for message in sent if message[1] != rewound[-1]]
    for k, part in enumerate((first[: len(first) // 2], first[len(first) // 2 :])):
        flow.start()
        flow.reading(4 * (k + 1))
        before = flow.stored()
        send(hub, part, choose)
        flow.until(lambda before=before: flow.stored() > before, "nothing stored")  # type: ignore[misc]
        if k == 0:
            flow.kill()
            hub.drop()
    flow.complete(first)
    hub.append_all({"body": rewound[k], "partition": 3, "device_id": "gw"} for k in (0, 1, 0, 1, 2))
    flow.complete(sent)
    flow.drain()
    rows = [row for row in flow.archived() if row["source_partition"] == "3"]
    assert [accepted(row) for row in sorted(rows, key=lambda row: row["source_offset"])] == [False] * 4 + [True]
    assert all(row["quality_bits"] & (Quality.DUPLICATE | Quality.OUT_OF_ORDER) for row in rows if not accepted(row))
    assert_complete(flow, sent, repeats=True)
    assert KEY not in flow.log() and "Traceback" not in flow.log()


def last_of_one(sent: list[Message]) -> list[bytes]:
    """The last three samples of a module."""
    good = [(json.loads(payload), payload) for _, payload in sent[-200:] if broken([("", payload)]) == 0]
    return [payload for message, payload in good if message["device_id"] == good[-1][0]["device_id"]][-3:]


def test_two_processes_share_four_partitions(hub: HubProcess, on_hub: Callable[..., OnHub]) -> None:
    flow, choose = on_hub(partitions=2), random.Random(6)
    sent = fleet(12, 200.0)
    flow.start_cluster()
    flow.reading(4)
    send(hub, sent[: len(sent) // 2], choose)
    flow.until(lambda: flow.stored() > 0, "nothing stored")
    for process in flow.processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    flow.start_cluster()
    flow.reading(8)
    send(hub, sent[len(sent) // 2 :], choose)
    flow.complete(sent)
    flow.drain()
    assert_complete(flow, sent, repeats=True)
    assert {row["source_partition"] for row in flow.archived()} == {"0", "1"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_made_for_another_source_ends_the_start_with_one_line(tmp_path: Path, workers: int) -> None:
    class Ending(StatefulSourcePartition[str, int]):
        def __init__(self) -> None:
            self._batches = iter([["a"], ["b"]])

        def next_batch(self) -> list[str]:
            return next(self._batches)

        def snapshot(self) -> int:
            return 0

    class Parts(FixedPartitionedSource[str, int]):
        def __init__(self, parts: list[str]) -> None:
            self._parts = parts

        def list_parts(self) -> list[str]:
            return self._parts

        def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Ending:
            return Ending()

    def run(*parts: str) -> None:
        flow = Dataflow("f")
        op.output("out", op.input("source", flow, Parts(list(parts))), TestingSink([]))
        running.run(flow, RunSettings(state=str(tmp_path), epoch_seconds=0.01), workers=workers)

    init_db_dir(tmp_path, 1)
    run("site/#")
    with pytest.raises(RuntimeError, match="holds the place in 'site/#', which the source does not have"):
        run("0", "1")


def test_a_second_flow_ends_the_first_with_one_line(on_hub: Callable[..., OnHub]) -> None:
    old, new = on_hub("old"), on_hub("new")
    for flow in (old, new):
        flow.start()
        flow.reading(4)
    assert old.processes[0].wait(30) == 1
    assert "another process reads consumer group $Default" in old.log() and "Traceback" not in old.log(), old.log()
    new.drain()


def test_a_wrong_key_ends_the_start_with_one_line(hub: HubProcess, on_hub: Callable[..., OnHub]) -> None:
    flow = on_hub()
    process = Live.start(flow, HUB=hub.connection_string.replace(KEY, "s3cretkey"))
    assert process.wait(60) != 0
    assert "the key is refused" in flow.log(), flow.log()
    assert "s3cret" not in flow.log() and "Traceback" not in flow.log()
