"""Two real electric cars, dirt included, over a real Mosquitto through the live flow as a user runs it.

Nothing here knows the cars but ``docs/examples/vehicle.toml``. The counts were taken from the files by
other means, and must come out of the flow.
"""

import io
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from servers import Mosquitto

from voltmill.connectors.lake_reader import read_table
from voltmill.flows.broker import free_port
from voltmill.flows.config import Config, load
from voltmill.flows.publish import publish_parquet
from voltmill.kernels.feature_table import features as feature_table
from voltmill.kernels.schema import TELEMETRY, Quality
from voltmill.operators.features import offline

EXAMPLE = Path(__file__).parents[1] / "docs/examples/vehicle.toml"
CARS = ("car1", "car2")
ROWS = {"car1": 66_666, "car2": 14_385}
DIRT = {
    "car1": {"DUPLICATE": 6, "GAP_BEFORE": 34, "RANGE": 64, "SUM_MISMATCH": 1},
    "car2": {"DUPLICATE": 1, "GAP_BEFORE": 1_149, "RANGE": 15, "SUM_MISMATCH": 90},
}
#: NaN until they can be known: no current step yet, or no two samples in the window.
LATER_KNOWN = ("cell_resistance_ohm", "temperature_rate_")
#: A message that no mapping takes, sent between the cars' own.
BROKEN = b'{"tboxTime": "2021-05-05T09:10:00", "V_1": '

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def configure(folder: Path, broker: Mosquitto, metrics_port: int) -> Path:
    """The example with addresses and folders of this test."""
    text = EXAMPLE.read_text()
    assert "[mqtt]\n" in text and "[run]" not in text
    text = text.replace("[mqtt]\n", f'[mqtt]\nhost = "{broker.host}"\nport = {broker.port}\n')
    text += f"""
[run]
state = "{folder}/state"
metrics_port = {metrics_port}
[lake]
url = "{folder}/lake"
[sql]
url = "sqlite:///{folder}/voltmill.db"
"""
    (folder / "voltmill.toml").write_text(text)
    return folder / "voltmill.toml"


@contextmanager
def running(config: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The live flow in a process of its own."""
    with (config.parent / "flow.log").open("wb") as log:
        command = [sys.executable, "-m", "voltmill.flows.cli", "run", "live", "-c", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_for(what: str, process: "subprocess.Popen[bytes]", seconds: float, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, f"the flow ended with status {process.returncode}"
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


def read_metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


class Run:
    """What is left when both cars have been through the flow."""

    def __init__(self, folder: Path, config: Config, flow_log: str) -> None:
        self.config, self.log = config, flow_log
        self.telemetry = self._table(folder, "telemetry")
        self.predictions = self._table(folder, "predictions")
        self.dead_letters = self._table(folder, "dead_letters")

    @staticmethod
    def _table(folder: Path, name: str) -> pa.Table:
        return read_table(folder / "lake", name, empty=pa.schema([]))

    def of(self, table: pa.Table, car: str) -> pa.Table:
        return table.filter(pc.equal(table["device_id"], car))


@pytest.fixture(scope="module")
def run(mosquitto: Callable[..., Mosquitto], data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, broker, port = tmp_path_factory.mktemp("vehicles"), mosquitto(), free_port()
    path = configure(folder, broker, port)
    config = load(path)
    total = sum(ROWS.values()) + 1
    with running(path) as process:
        wait_for("subscription", process, 240, lambda: "Sending SUBACK" in broker.log)
        for car in CARS:
            file = data_dir / f"ev_fault_{car}.parquet"
            publish_parquet(file, config.mqtt, topic=f"vehicles/{car}", progress=io.StringIO())
        publish_broken(config)
        wait_for("decoding", process, 240, lambda: read_metric(port, "voltmill_messages_total") >= total)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    return Run(folder, config, (folder / "flow.log").read_text())


def publish_broken(config: Config) -> None:
    from voltmill.connectors.mqtt import Publisher

    with Publisher(config.mqtt, "broken") as publisher:
        publisher.publish("vehicles/car1", BROKEN)
        publisher.drain(30)


def bits_of(table: pa.Table) -> dict[str, int]:
    bits = table["quality_bits"].to_numpy()
    return {str(bit.name): int(np.count_nonzero(bits & np.uint32(bit))) for bit in Quality}


def test_every_message_is_archived_or_a_dead_letter(run: Run) -> None:
    assert {car: run.of(run.telemetry, car).num_rows for car in CARS} == ROWS
    assert run.telemetry.num_rows == sum(ROWS.values())
    assert [(r["reason"], r["payload"]) for r in run.dead_letters.to_pylist()] == [("malformed_json", BROKEN)]
    offsets = [*run.telemetry["source_offset"].to_pylist(), *run.dead_letters["source_offset"].to_pylist()]
    assert sorted(offsets) == list(range(len(offsets))), "each message once"


@pytest.mark.parametrize("car", CARS)
def test_the_known_dirt_is_flagged(run: Run, car: str) -> None:
    found = bits_of(run.of(run.telemetry, car))
    assert {name: found[name] for name in DIRT[car]} == DIRT[car]
    assert found["UNIT_CONVERTED"] == ROWS[car]
    never = ("LATE", "OUT_OF_ORDER", "CLOCK_SKEW", "SIGN_SUSPECT", "CELL_COUNT_CHANGED")
    assert not any(found[name] for name in never), found


@pytest.mark.parametrize("car", CARS)
def test_the_archive_says_what_the_car_said(run: Run, data_dir: Path, car: str) -> None:
    native = pq.read_table(data_dir / f"ev_fault_{car}.parquet")
    kept = run.of(run.telemetry, car).sort_by("source_offset")
    assert pc.all(pc.equal(kept["current_ampere"], pc.negate(native["BMSBatteryCurrent"]))).as_py()
    assert kept["voltage_volt"].combine_chunks().equals(native["BMSBatteryVoltage"].combine_chunks())
    cells = np.column_stack([native[name].to_numpy() for name in native.column_names if name.startswith("V_")])
    assert np.array_equal(pc.list_flatten(kept["cell_voltage_volt"]).to_numpy().reshape(cells.shape), cells)
    # naive local time in China is UTC + 8 h, without summer time since 1991
    shift = pc.subtract(pc.cast(native["tboxTime"], pa.int64()), pc.cast(kept["event_time"], pa.int64()))
    assert pc.unique(shift).to_pylist() == [8 * 3600 * 1_000_000]
    coldest = pc.list_flatten(kept["cell_temperature_celsius"]).to_numpy()
    sane = coldest[coldest > -30]
    assert native["BMSProbeTempMin"].to_numpy().min() - 3 <= sane.min()
    assert sane.max() <= native["BMSProbeTempMax"].to_numpy().max() + 3


@pytest.mark.parametrize("car", CARS)
def test_features_of_sane_rows_are_finite(run: Run, car: str) -> None:
    kept = run.of(run.telemetry, car).sort_by("source_offset").cast(TELEMETRY)
    (batch,) = kept.combine_chunks().to_batches()
    rows = offline(batch, run.config.devices, run.config.quality, run.config.features)
    assert rows.num_rows == ROWS[car] - DIRT[car]["DUPLICATE"]
    insane = Quality.RANGE | Quality.RATE | Quality.SUM_MISMATCH
    sane = (rows["quality_bits"].to_numpy() & np.uint32(insane)) == 0
    assert sane.mean() > 0.99
    for feature in feature_table(run.config.features.windows_seconds):
        known = np.isfinite(rows[feature.name].to_numpy())
        if feature.name.startswith(LATER_KNOWN):
            assert known.any(), feature.name
        else:
            assert known[sane].all(), feature.name


@pytest.mark.parametrize("car", CARS)
def test_soc_is_no_guess(run: Run, car: str) -> None:
    made = run.of(run.predictions, car)
    assert made.num_rows == ROWS[car] - DIRT[car]["DUPLICATE"]
    assert made["value"].null_count == made["lo90"].null_count == made["hi90"].null_count == made.num_rows
    assert bits_of(made)["UNKNOWN_CELL"] == made.num_rows


def test_the_log_is_quiet(run: Run) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in run.log.splitlines() if line.startswith("{")]
    assert [line for line in lines if line["level"] in ("warning", "error", "critical")] == []
