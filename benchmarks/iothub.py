"""How fast the live flow reads IoT Hub, and what an event costs: ``python benchmarks/iothub.py [--events N]``.

The hub is the stand-in of ``tests/hub_server.py`` in a process of its own, filled beforehand; the client is the real
one. CPU time is that of the reading process alone, threads and all: on a machine with other work it is what to trust.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hub_server import HubProcess  # noqa: E402
from iothub_parts import part_of, settings_for  # noqa: E402

from voltmill.connectors import pack  # noqa: E402
from voltmill.flows.simulate import FaultSettings, SimulateSettings, messages  # noqa: E402

CONFIG = """
[run]
source = "iothub"
state = "{folder}/state"
[iothub]
connection_string = "{hub}"
[lake]
url = "{folder}/lake"
[sql]
url = "sqlite:///{folder}/voltmill.db"
[[fleet]]
match = "*"
cell_type = "lg-hg2"
capacity_ah = 3.0
"""
PARTITIONS = 4


def fill(hub: HubProcess, count: int, in_pack: int) -> int:
    """Messages of the simulator, a module always to one partition; how many there were."""
    modules = 400
    fleet = SimulateSettings(
        gateways=PARTITIONS,
        packs_per_gateway=1,
        modules_per_pack=modules // PARTITIONS,
        duration_seconds=count / modules * 1.0 + 1,
        faults=FaultSettings(enabled=False),
    )
    queues: dict[str, list[tuple[str, bytes]]] = {}
    for number, (topic, payload) in enumerate(messages(fleet)):
        if number == count:
            break
        queues.setdefault(topic.split("/")[2], []).append((topic, payload))
    for partition, gateway in enumerate(sorted(queues)):
        events: list[dict[str, Any]] = []
        for at in range(0, len(queues[gateway]), in_pack):
            part = queues[gateway][at : at + in_pack]
            event = {"body": part[0][1], "partition": partition, "device_id": gateway}
            if in_pack > 1:
                body = pack.pack(pack.entry(topic, payload) for topic, payload in part)
                event |= {"body": body, "properties": {pack.PROPERTY: pack.SCHEMA}}
            events.append(event)
        for at in range(0, len(events), 500):
            hub.append_all(events[at : at + 500])
    return sum(map(len, queues.values()))


def alone(hub: HubProcess, rows: int) -> tuple[float, float]:
    """Seconds and CPU seconds that the source alone takes for all."""
    began, cpu, got = time.perf_counter(), time.process_time(), 0
    parts = [part_of(settings_for(hub), str(number)) for number in range(PARTITIONS)]
    while got < rows:
        got += sum(batch.num_rows for part in parts for batch in part.next_batch())
        time.sleep(0.002)
    took = time.perf_counter() - began, time.process_time() - cpu
    for part in parts:
        part.close()
    return took


def live(hub: HubProcess, rows: int) -> tuple[float, float]:
    """The same for the whole live flow, from the first link to the hub to the last prediction in SQLite."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "flow.toml").write_text(CONFIG.format(folder=folder, hub=hub.connection_string))
        command = [sys.executable, "-m", "voltmill.flows.cli", "run", "live", "-c", str(folder / "flow.toml")]
        with (folder / "log").open("wb") as log:
            flow = subprocess.Popen(command, stderr=log, env=os.environ)
        watched = psutil.Process(flow.pid)
        began, cpu = 0.0, 0.0
        try:
            while _stored(folder) < rows:
                if flow.poll() is not None:
                    raise RuntimeError((folder / "log").read_text())
                if not began and "iothub reading" in (folder / "log").read_text():
                    began, cpu = time.perf_counter(), sum(watched.cpu_times()[:2])
                time.sleep(0.02)
            return time.perf_counter() - began, sum(watched.cpu_times()[:2]) - cpu
        finally:
            flow.terminate()
            flow.wait(30)


def _stored(folder: Path) -> int:
    try:
        with sqlite3.connect(f"file:{folder}/voltmill.db?mode=ro", uri=True) as database:
            return int(database.execute("select count(*) from predictions_rows").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=60_000)
    asked = parser.parse_args()
    print("| what | messages/s | CPU us/message | messages/s of one core |\n|---|---|---|---|")
    for in_pack in (1, 100):
        with HubProcess(PARTITIONS) as hub:
            rows = fill(hub, asked.events, in_pack)
            for name, measure in (("source alone", alone), ("live flow", live)):
                seconds, cpu = measure(hub, rows)
                what = f"{name}, {'single messages' if in_pack == 1 else f'packs of {in_pack}'}"
                print(f"| {what} | {rows / seconds:,.0f} | {cpu / rows * 1e6:.1f} | {rows / cpu:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
