"""Sessions of real cells: two that were cycled to the end of their life (CALCE), and an electric car, dirt included."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from payloads import raw

from voltmill.flows.config import load
from voltmill.flows.graph import mapper
from voltmill.flows.publish import json_rows
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import REFUSED, TELEMETRY, label
from voltmill.operators.decode import Decoder
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.sessions import SessionSettings, SessionState, offline

EXAMPLE = Path(__file__).parents[1] / "docs/examples/vehicle.toml"
CS2 = Fleet([FleetEntry(match="CS2_*", cell_type="calce-cs2", capacity_ah=1.1, operating_volt=(2.7, 4.2))])
HOUR = 3_600_000_000


class Calce:
    """The records, each file after the one before; times are µs."""

    def __init__(self, file: Path) -> None:
        table = pq.read_table(file)
        self.cell = np.array(table["cell"].to_pylist())
        self.cycle, self.charged, self.discharged = (table[name].to_numpy() for name in ("gcycle", "qc", "qd"))
        current, volt = table["current_a"].to_numpy(), table["voltage_v"].to_numpy()
        steps = (np.abs(np.diff(current)) > 0.3) & (self.cell[1:] == self.cell[:-1])
        # Charging raises the voltage. (The two ends of a constant voltage do not move it.)
        assert (np.diff(volt)[steps] * np.diff(current)[steps] > -1e-3).mean() > 0.99
        made = table["file"].to_numpy().astype("datetime64[us]").astype(np.int64)
        seconds = np.round(table["t_s"].to_numpy().astype(np.float64) * 1e6).astype(np.int64)
        self.time = self._in_order(made, seconds)
        n = len(table)
        columns = {
            "device_id": pa.array(self.cell),
            "event_time": pa.array(self.time).cast(TELEMETRY.field("event_time").type),
            "current_ampere": pa.array(current),
            "cell_voltage_volt": pa.ListArray.from_arrays(pa.array(np.arange(n + 1), pa.int32()), pa.array(volt)),
            "cell_temperature_celsius": pa.array([[]] * n, TELEMETRY.field("cell_temperature_celsius").type),
            "source": label("calce", n),
            "source_partition": label("file", n),
            "source_offset": pa.array(np.arange(n)),
            "quality_bits": pa.array(np.zeros(n, np.uint32)),
        }
        arrays = [columns.get(field.name, pa.nulls(n, field.type)) for field in TELEMETRY]
        self.telemetry = pa.RecordBatch.from_arrays(arrays, schema=TELEMETRY)

    def _in_order(self, made, seconds):
        out = np.empty(len(made), np.int64)
        for cell in np.unique(self.cell):
            end = -math.inf
            for file in np.unique(made[self.cell == cell]):
                rows = np.flatnonzero((self.cell == cell) & (made == file))
                out[rows] = max(int(file), end + HOUR) + seconds[rows]
                end = int(out[rows[-1]])
        return out

    def cycles(self):
        """Device, first and last time, and charge moved out and in, of each cycle that was discharged in full."""
        new = (self.cell[1:] != self.cell[:-1]) | (self.cycle[1:] != self.cycle[:-1])
        edges = [0, *(np.flatnonzero(new) + 1), len(self.cell)]
        for first, last in zip(edges, edges[1:], strict=False):
            moved = [float(np.ptp(x[first:last])) for x in (self.discharged, self.charged)]
            if moved[0] > 0.3:
                yield self.cell[first], self.cycle[first], self.time[first], self.time[last - 1], *moved


@pytest.fixture(scope="module")
def calce(data_dir: Path) -> Calce:
    return Calce(data_dir / "calce_cs2.parquet")


@pytest.fixture(scope="module")
def judged(calce: Calce) -> pa.RecordBatch:
    return QualityState(QualitySettings(), CS2).apply(calce.telemetry)


@pytest.fixture(scope="module")
def sessions(judged: pa.RecordBatch) -> pa.Table:
    """Through the stream's operators in batches as they would come."""
    state = SessionState(SessionSettings(), CS2)
    return pa.Table.from_batches([state.apply(judged.slice(k, 5000)) for k in range(0, len(judged), 5000)])


def of(sessions, kind, *names):
    """Device, last time and columns of the sessions of a kind."""
    rows = sessions.filter(pa.compute.equal(sessions["session"], kind))
    return (
        np.array(rows["device_id"].to_pylist()),
        rows["event_time"].cast(pa.int64()).to_numpy(),
        *(rows[name].to_numpy() for name in names),
    )


def test_few_records_are_refused(judged: pa.RecordBatch):
    """Times are stored as float32: late in a file two records may bear the same."""
    refused = judged.column("quality_bits").to_numpy() & np.uint32(REFUSED) > 0
    assert 0 < refused.mean() < 0.003


@pytest.mark.parametrize("kind, limit, typical", [("discharge", 0.01, 1e-4), ("charge", 0.02, 5e-3)])
def test_one_session_a_cycle_with_the_charge_that_the_cycler_counted(calce, sessions, kind, limit, typical):
    device, end, charge = of(sessions, kind, "charge_ah")
    errors = []
    *cycles, unfinished = [c for c in calce.cycles() if c[0] == "CS2_35"]
    assert unfinished[1] == 936  # the recording ends with it: the session still runs
    for cell, cycle, first, last, out, in_ in [*cycles, *(c for c in calce.cycles() if c[0] == "CS2_36")]:
        here = (device == cell) & (end >= first) & (end <= last)
        assert here.sum() == 1, (cell, cycle)
        errors.append(charge[here][0] / (out if kind == "discharge" else in_) - 1)
    assert len(errors) == 1832
    assert np.abs(errors).max() < limit and np.quantile(np.abs(errors), 0.99) < typical


def test_the_capacity_is_measured_in_nearly_every_cycle_and_fades(sessions):
    device, end, capacity, full, empty = of(sessions, "discharge", "measured_capacity_ah", "began_full", "ended_empty")
    known = np.isfinite(capacity)
    assert known.mean() > 0.95 and (full[known] == 1).all() and (empty[known] == 1).all()
    for cell in ("CS2_35", "CS2_36"):
        series = capacity[known & (device == cell)]
        assert 1.1 < np.median(series[:20]) < 1.16 and np.median(series[-20:]) < 0.4


def test_what_a_charge_says_of_ageing(sessions):
    """With more resistance full voltage is reached at less charge, and held for longer."""
    device, _, charge, cv, number = of(sessions, "charge", "charge_fraction", "cv_seconds", "session_number")
    for cell in ("CS2_35", "CS2_36"):
        young, old = ((device == cell) & (number > a) & (number <= b) for a, b in ((10, 60), (550, 600)))
        assert np.isfinite(cv[young]).mean() > 0.9 and np.isfinite(cv[old]).mean() > 0.9
        assert np.nanmedian(charge[old]) < 0.9 * np.nanmedian(charge[young])
        assert np.nanmedian(cv[old]) > 1.3 * np.nanmedian(cv[young])


@pytest.fixture(scope="module")
def car(data_dir: Path) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Telemetry and sessions of the car, as the example's mapping and fleet read it."""
    config = load(EXAMPLE)
    messages = list(json_rows(data_dir / "ev_fault_car1.parquet"))
    telemetry, letters = Decoder(config.decode, mapper=mapper(config))(raw(messages, "vehicles/car1"))
    assert telemetry is not None and letters is None
    return telemetry, offline(telemetry, config.devices, config.quality, config.sessions)


def test_the_sessions_of_a_car_follow_each_other(car):
    telemetry, sessions = car
    start, end = (sessions.column(name).cast(pa.int64()).to_numpy() for name in ("start_time", "event_time"))
    assert 20 < len(sessions) < 60
    assert (end > start).all() and (start[1:] >= end[:-1]).all()
    assert (sessions.column("duration_seconds").to_numpy() >= 300).all()
    covered = (end - start).sum() / 1e6
    recorded = np.diff(telemetry.column("event_time").cast(pa.int64()).to_numpy()) / 1e6
    assert covered > 0.85 * recorded[recorded < 60].sum()


def test_the_charge_of_a_car_is_what_its_own_soc_says(car):
    """114 Ah a hundred points of SOC, inferred from another direction (docs/examples/vehicle.toml)."""
    telemetry, sessions = car
    time = telemetry.column("event_time").cast(pa.int64()).to_numpy()
    soc = telemetry.column("bms_soc_percent").to_numpy()
    large = 0
    for s in sessions.to_pylist():
        if s["session"] == "rest" or s["charge_ah"] < 10:
            continue
        first, last = (np.searchsorted(time, round(s[name].timestamp() * 1e6)) for name in ("start_time", "event_time"))
        charging = s["session"] == "charge"
        change = float(soc[last] - soc[first]) * (1 if charging else -1)
        # Over a drive the car's own SOC may be off by some points.
        assert s["charge_ah"] == pytest.approx(1.14 * change, rel=0.05 if charging else 0.3), s
        large += 1
    assert large >= 5


def test_the_cells_of_a_car_are_believable_in_every_session(car):
    """66.5 V stands where there was no reading, -40 °C where a probe was not."""
    for s in car[1].to_pylist():
        assert 3.3 < s["cell_voltage_min_volt"] <= s["cell_voltage_end_volt"] <= s["cell_voltage_max_volt"] < 4.25
        assert 15 < s["cell_temperature_min_celsius"] <= s["cell_temperature_max_celsius"] < 55
        assert abs(s["energy_wh"]) == pytest.approx(abs(s["charge_ah"]) * 96 * 3.8, rel=0.2, abs=15)
        assert 0 <= s["missing_fraction"] <= 1
