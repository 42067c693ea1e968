"""Dead letters of a live flow, redriven into it while it is killed: real processes, a real broker."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from live_flow import Live, accepted, fleet, publish
from spool_files import in_lake, letters

from voltmill.connectors.lake_reader import read_table
from voltmill.flows.compare import compare, read
from voltmill.flows.config import load
from voltmill.flows.dead_letters import Filter
from voltmill.flows.redrive import redrive
from voltmill.kernels.schema import DEAD_LETTER, Quality

LETTERS, KILLS = 3000, 3
RACKS = Filter(stage="decode", topic="voltmill/rack/#")
SOON = "[redrive]\npoll_seconds = 0.1\n"
MENDED = """
[mapping.rack]
topic = "voltmill/rack/#"

[mapping.rack.columns]
device_id = "id"
event_time = "t"
current_ampere = { path = "i", unit = "mA" }
cell_voltage_volt = { path = "c", unit = "mV" }
cell_temperature_celsius = { path = "T", unit = "dC" }
"""


def rack(n: int) -> tuple[str, bytes]:
    """A message that only the mended configuration reads: of 30 modules that are silent otherwise."""
    message = {"id": f"rack/m-{n % 30}", "t": 1795341605 + n, "i": -1500 - n % 7, "c": [3601, 3602 + n % 3], "T": [250]}
    return f"voltmill/rack/{n % 30}", json.dumps(message).encode()


def refused(flow: Live) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(str(flow.folder / "lake"), "dead_letters", empty=DEAD_LETTER).to_pylist()
    return rows


def claims(flow: Live) -> list[dict[str, int]]:
    return [json.loads(file.read_bytes()) for file in sorted((flow.folder / "lake/redrive").glob("*.json"))]


def restart(flow: Live) -> None:
    flow.processes[-1].kill()
    flow.processes[-1].wait()
    before = flow.log().count("mqtt subscribed")
    flow.start()
    flow.subscribed(before + 1)


def test_each_letter_goes_through_once_whatever_is_killed(live: Callable[..., Live], tmp_path: Path) -> None:
    flow = live(more=SOON)
    others, racks = fleet(10, 200.0), [rack(n) for n in range(LETTERS)]
    flow.start()
    flow.subscribed(1)
    publish(flow.port, racks + others[::2])
    flow.complete(others[::2])  # and so all that came before them is refused
    flow.drain()
    assert sum(row["topic"].startswith("voltmill/rack/") for row in refused(flow)) == LETTERS

    flow.more = SOON + MENDED
    flow.configure(1)
    flow.start()
    flow.subscribed(2)
    publish(flow.port, others[1::2])
    choice = random.Random(7)
    for number in range(KILLS):
        assert redrive(load(flow.config), RACKS, limit=LETTERS // KILLS).chosen == LETTERS // KILLS
        flow.until(lambda number=number: len(claims(flow)) > number, "not taken")  # type: ignore[misc]
        time.sleep(choice.uniform(0.0, 0.8))  # anywhere from reading the file to the epoch after it
        restart(flow)
    flow.until(lambda: all(claim["rows"] == claim["of"] for claim in claims(flow)), "not durable")
    assert [claim["of"] for claim in claims(flow)] == [LETTERS // KILLS] * KILLS
    assert redrive(load(flow.config), RACKS).before == LETTERS
    flow.drain()

    rows = flow.archived()
    again = [row for row in rows if row["quality_bits"] & Quality.REISSUED]
    assert Counter(row["device_id"] for row in again) == {f"rack/m-{n}": LETTERS // 30 for n in range(30)}
    assert len({(row["device_id"], row["event_time"]) for row in again}) == LETTERS == len(again)
    assert {row["source"] for row in again} == {"redrive"} and all(accepted(row) for row in again)
    assert {row["source"] for row in rows if not row["quality_bits"] & Quality.REISSUED} == {"mqtt"}
    assert all(row["source"] == "mqtt" for row in refused(flow))
    assert flow.stored() == len({(row["device_id"], row["event_time"]) for row in rows if accepted(row)})

    out, lake = str(tmp_path / "out"), str(flow.folder / "lake")
    command = ["replay", "-c", str(flow.config), "--lake", lake, "--out", out, "--telemetry"]
    subprocess.run([sys.executable, "-m", "voltmill.flows.cli", *command], check=True)
    assert compare(read(lake), read(out)).identical
    replayed = Live.table(flow, "../out/telemetry")
    assert Counter(row["quality_bits"] for row in replayed) == Counter(row["quality_bits"] for row in rows)


def test_a_flow_that_still_has_the_old_configuration_makes_new_letters(live: Callable[..., Live]) -> None:
    flow = live(more=SOON)
    for n in range(20):
        topic, payload = rack(n)
        in_lake(flow.folder / "lake", [letters([payload], topic=topic)], store=f"20260101T0000{n:02d}Z-0000")
    flow.start()
    flow.subscribed(1)
    flow.more = SOON + MENDED
    flow.configure(1)  # but the flow is not restarted
    assert redrive(load(flow.config), RACKS).chosen == 20
    flow.until(lambda: [claim["rows"] for claim in claims(flow)] == [20], "not durable")
    flow.drain()
    assert Counter(row["source"] for row in refused(flow)) == {"mqtt": 20, "redrive": 20}
    flow.start()
    flow.subscribed(2)
    done = redrive(load(flow.config), RACKS)
    assert (done.chosen, done.before) == (20, 20)
    flow.until(lambda: len(claims(flow)) == 2 and claims(flow)[1]["rows"] == 20, "not durable")
    flow.drain()
    again = [row for row in flow.archived() if row["source"] == "redrive"]
    assert len(again) == 20 and {row["source_partition"] for row in again} == {"redrive/0000000001.parquet"}
