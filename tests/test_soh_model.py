"""The shipped SOH models against the truth: cells that they have not seen, and a cell's whole life as telemetry."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from archives import SHARDS, archived
from payloads import raw
from session_rows import hold, ramp, series
from telemetry import batch

from voltmill.connectors.lake import LakeSettings
from voltmill.flows.config import Config, ModelEntry, RunSettings
from voltmill.flows.replay import replay
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import TELEMETRY, Quality
from voltmill.kernels.session_table import session_columns
from voltmill.operators import estimate
from voltmill.operators.decode import Decoder
from voltmill.operators.model import load
from voltmill.operators.sample import DecodeSettings
from voltmill.operators.sessions import offline

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ("XJTU", "TJU", "HUST", "MIT")
MEASURED = load("measured_soh")


@pytest.fixture
def soh(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    return pytest.importorskip("soh")


@pytest.fixture
def calce(soh):
    return pytest.importorskip("soh_calce")


@pytest.fixture
def cells(soh, data_dir):
    return [c for c in soh.read(data_dir / "pinn4soh_features.parquet") if c.test]


def assert_stated(stated, found):
    for key, figures in found.items():
        for name, value in figures.items():
            assert stated[key][name] == pytest.approx(value, abs=0.02 + 0.002 * value), (key, name)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_errors_on_unseen_cells_are_those_of_the_card(soh, cells, dataset):
    """The card takes its figures from the contract (see test_conformance)."""
    model = load(f"{dataset.lower()}_soh")
    found = soh.measure(model, [c for c in cells if c.dataset == dataset])
    assert "unseen_cells" in found
    assert_stated(model.contract.errors, found)


def of(predictions, *names):
    return [predictions.column(n).to_numpy(zero_copy_only=False) for n in names]


@pytest.mark.parametrize("dataset", DATASETS)
def test_no_value_depends_on_what_comes_after_it(soh, cells, dataset):
    model = load(f"{dataset.lower()}_soh")
    rows = soh.sessions([c for c in cells if c.dataset == dataset][:1])
    whole, _ = estimate.offline(rows, model, soh.FLEET)
    half, _ = estimate.offline(rows.slice(0, len(rows) // 2), model, soh.FLEET)
    assert whole.slice(0, len(half)).equals(half)


def changed(rows, column, value):
    """The rows with one number changed in each."""
    return rows.set_column(rows.schema.get_field_index(column), column, pa.array(np.full(len(rows), value, np.float32)))


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_session_that_says_too_little_has_no_value_and_a_reason(soh, cells, dataset):
    model = load(f"{dataset.lower()}_soh")
    rows = soh.sessions([c for c in cells if c.dataset == dataset][:1]).slice(0, 30)
    value, bits = of(estimate.offline(rows, model, soh.FLEET)[0], "value", "quality_bits")
    assert np.isnan(value[:8]).all() and np.isfinite(value[8:]).all()
    assert (bits[:8] & Quality.PARTIAL_SESSION > 0).all() and (bits[8:] == 0).all()
    for column, changes, reason in (
        ("cv_seconds", np.nan, Quality.PARTIAL_SESSION),
        ("cc_seconds", 3.0, Quality.PARTIAL_SESSION),
        ("missing_fraction", 0.3, Quality.PARTIAL_SESSION),
        ("baseline_measured_capacity_ah", np.nan, Quality.OUT_OF_DOMAIN),
        ("cc_voltage_mean_volt", 3.9, Quality.OUT_OF_DOMAIN),
    ):
        value, bits = of(estimate.offline(changed(rows, column, changes), model, soh.FLEET)[0], "value", "quality_bits")
        assert np.isnan(value).all() and (bits & reason > 0).all(), column


def test_the_window_of_the_stream_is_not_that_of_lfp_cells(soh):
    """From 0.25C to 0.05C the mean is about 0.124C: such charges must not be taken for those of the data set."""
    for name in ("hust_soh", "mit_soh"):
        (rate,) = [f for f in load(name).contract.features if f.name == "cv_c_rate_mean"]
        assert rate.low > 0.15


def hust_cycles(cells, count):
    """Charges with the means of the data set's new cells; from the 9th on they do not begin empty."""
    data = pytest.importorskip("soh_data")
    mine = [c for c in cells if c.kind == "hust"]
    mean = dict(zip(data.NAMES, np.concatenate([c.quantities[:50] for c in mine]).mean(axis=0), strict=True))
    ampere = 1.1 * mean["cc_charge_fraction"] / (mean["cc_seconds"] / 3600)
    tau = mean["cv_seconds"] / np.log(0.46 / 0.06)  # 0.5 A to 0.1 A, towards 0.04 A, so that the mean current fits
    capacity = np.mean([c.capacity[0] * c.nominal_ah for c in mine])
    falling = 0.04 + (ampere - 0.04) * np.exp(-np.arange(5, 5 * tau, 5) / tau)
    rising = np.arange(5, mean["cc_seconds"] * 1.2, 5) / mean["cc_seconds"]
    volts = 3.4 + 0.195 * (0.415 * rising + 0.585 * rising**9.6)  # its mean and spread are those of the data too
    volts = volts[volts < 3.6]
    before = round(3600 * (capacity - falling.sum() * 5 / 3600) / ampere / 5) - len(volts)
    charge = [*np.linspace(2.8, 3.4, before, endpoint=False), *volts, *np.full(len(falling), 3.6)]
    currents = [*np.full(before + len(volts), ampere), *falling]
    charging = [(5.0, {"current_ampere": i, "cell_voltage_volt": [v]}) for i, v in zip(currents, charge, strict=True)]
    rest = hold(0.0, 600, volt=3.3)
    down = [ramp(-1.1, (3.3, 2.0 if k < 8 else 2.5), capacity / 1.1 * 3600) for k in range(count)]
    return capacity, series(*(p for k in range(count) for p in (down[k], rest, charging, rest)), device="lab/a123-1")


def test_telemetry_of_lfp_cells_has_a_value_in_the_range_of_current_that_the_card_names(soh, cells):
    model = load("hust_soh")
    capacity, rows = hust_cycles(cells, 11)
    facts = dict(match="lab/*", cell_type="hust", capacity_ah=1.1, operating_volt=(2.0, 3.6))
    named, default = (Fleet([FleetEntry(**facts, **more)]) for more in ({"cv_c_rate": (0.0909, 0.4545)}, {}))
    assert "`cv_c_rate = [0.0909, 0.4545]`" in (ROOT / "operators/models/hust_soh.md").read_text()
    for fleet, reason in ((named, 0), (default, Quality.OUT_OF_DOMAIN)):
        charges = offline(batch(rows), fleet)
        charges = charges.filter(pc.equal(charges["session"].cast(pa.string()), "charge"))
        assert len(charges) == 11
        value, bits = of(estimate.offline(charges, model, fleet)[0], "value", "quality_bits")
        late = {f.name: charges[f.name].to_numpy()[8:] for f in model.contract.features}
        assert np.isnan(late["measured_capacity_ah"]).all()  # so it is the machine that answers
        outside = {f.name for f in model.contract.features for x in late[f.name] if not f.low <= x <= f.high}
        outside -= {"measured_capacity_ah"}
        if reason:
            assert outside >= {"cv_c_rate_mean"} and all("cv_" in name for name in outside)
            assert np.isnan(value).all() and (bits[8:] == reason).all()
        else:
            assert outside == set() and (bits[8:] == 0).all()
            assert value[8:] == pytest.approx(100 * capacity / 1.1, abs=1.5)  # the charge is made of means


def test_baselines_are_those_of_the_sessions_kernel(soh, calce, data_dir):
    """What training makes of a cell's past, the stream makes of it too."""
    data = pytest.importorskip("soh_data")
    rows = offline(calce.read(data_dir / "calce_cs2.parquet", "CS2_35").telemetry.slice(0, 25_000), calce.FLEET)
    rows = rows.filter(pc.equal(rows["session"].cast(pa.string()), "charge"))
    for name in ("cc_seconds", "cv_charge_fraction", "cc_voltage_mean_volt", "measured_capacity_ah"):
        values, past = (rows[n].to_numpy() for n in (name, f"baseline_{name}"))
        known = np.isfinite(values)
        assert known.sum() > 20
        assert past[known] == pytest.approx(data.baselines(values[known].astype(np.float64)), rel=1e-5), name


@pytest.mark.parametrize("case", [key for key in MEASURED.contract.errors if "/" not in key])
def test_the_measured_capacity_is_what_the_cycler_counted(soh, calce, data_dir, case, monkeypatch):
    measured = pytest.importorskip("soh_measured")
    monkeypatch.setattr(measured, "CASES", {case: measured.CASES[case]})
    found = measured.measure(MEASURED, data_dir / "calce_cs2.parquet")
    assert set(found) == {case, f"{case}/CS2_35", f"{case}/CS2_36"}
    assert_stated(MEASURED.contract.errors, found)


def test_a_replay_gives_the_capacity_within_two_percent(calce, data_dir, tmp_path):
    """A third of a life from the archive through the whole graph; partial discharges are null, with a reason."""
    life = calce.read(data_dir / "calce_cs2.parquet", "CS2_35")
    rows = life.telemetry.slice(0, 100_000)
    cut = np.flatnonzero(rows.column("current_ampere").to_numpy() < -1)[2_000:2_040]
    rows = rows.filter(pa.array(~np.isin(np.arange(len(rows)), cut)))  # twenty minutes of one discharge are lost
    archived(rows, tmp_path / "lake")
    config = Config(
        run=RunSettings(shards=SHARDS),
        fleet=tuple(calce.FLEET.entries),
        lake=LakeSettings(url="nowhere"),
        model=(ModelEntry(name="measured_soh"),),
    )
    assert replay(config, str(tmp_path / "lake"), str(tmp_path / "out")).rows == len(rows)
    files = sorted((tmp_path / "out").glob("predictions/date=*/shard=*/*.parquet"))
    names = ["event_time", "target", "value", "lo90", "hi90", "quality_bits", "model_name"]
    found = pa.concat_tables(pq.read_table(f, partitioning=None, columns=names) for f in files)
    found = found.filter((pc.field("target") == "soh") & (pc.field("model_name") == "measured_soh"))
    value, low, high, bits = (found[n].to_numpy() for n in ("value", "lo90", "hi90", "quality_bits"))
    truth = 100 * life.counted(found["event_time"].cast(pa.int64()).to_numpy()) / calce.NOMINAL_AH
    known = np.isfinite(value)
    assert known.sum() > 200 and known.mean() > 0.95
    assert np.abs(value / truth - 1)[known].max() < 0.02
    assert ((low <= truth) & (truth <= high))[known].all()
    assert (~known).any() and (bits[~known] & Quality.PARTIAL_SESSION > 0).all()
    assert (bits[known] & (Quality.PARTIAL_SESSION | Quality.OUT_OF_DOMAIN) == 0).all()


def test_from_messages_to_the_capacity(calce, data_dir):
    """Voltage, current and temperature as JSON, through decode, quality, sessions and estimate."""
    life = calce.read(data_dir / "calce_cs2.parquet", "CS2_36")
    few = life.telemetry.slice(0, 6_000).select(["event_time", "current_ampere", "cell_voltage_volt"]).to_pylist()
    messages = [
        json.dumps(
            row
            | {
                "device_id": "CS2_36",
                "event_time": row["event_time"].timestamp(),
                "current_ampere": round(row["current_ampere"], 6),
                "cell_temperature_celsius": [24.5],
            }
        ).encode()
        for row in few
    ]
    telemetry, letters = Decoder(DecodeSettings())(raw(messages))
    assert letters is None and len(telemetry) == len(few)
    telemetry = telemetry.set_column(  # the data set is older than its arrival by years
        TELEMETRY.get_field_index("ingest_time"), TELEMETRY.field("ingest_time"), telemetry.column("event_time")
    )
    predictions, failure = estimate.offline(offline(telemetry, calce.FLEET), MEASURED, calce.FLEET)
    assert failure is None
    value, time = of(predictions, "value", "event_time")
    truth = 100 * life.counted(time.astype("datetime64[us]").astype(np.int64)) / calce.NOMINAL_AH
    known = np.isfinite(value)
    assert known.sum() >= 8 and np.abs(value / truth - 1)[known].max() < 0.002


def row(**columns):
    """A discharge with the given columns."""
    names = [c.name for c in session_columns()]
    sound = dict(
        measured_capacity_ah=90.0,
        capacity_ah=100.0,
        duration_seconds=7200.0,
        missing_fraction=0.0,
        c_rate_mean=0.45,
    )
    values = np.full((1, len(names)), np.nan, np.float32)
    for name, value in (sound | columns).items():
        values[0, names.index(name)] = value
    return values


@pytest.mark.parametrize(
    "columns, reason",
    [
        ({}, 0),
        ({"cell_temperature_mean_celsius": 20.0}, 0),
        ({"cell_temperature_mean_celsius": -5.0}, Quality.OUT_OF_DOMAIN),
        ({"measured_capacity_ah": np.nan}, Quality.PARTIAL_SESSION),
        ({"missing_fraction": 0.7}, Quality.PARTIAL_SESSION),
        ({"c_rate_mean": 3.0}, Quality.PARTIAL_SESSION),
        ({"capacity_ah": np.nan}, Quality.OUT_OF_DOMAIN),
    ],
)
def test_what_is_measured_and_when_it_is_not(soh, columns, reason):
    data = pytest.importorskip("soh_data")
    rows = data.session_batch(np.array(["XJTU/a"]), np.zeros(1, np.int64), row(**columns))
    discharge = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["discharge"]))
    rows = rows.set_column(rows.schema.get_field_index("session"), "session", discharge)
    (found,) = estimate.offline(rows, MEASURED, soh.FLEET)[0].to_pylist()
    assert found["quality_bits"] == reason
    if reason:
        assert found["value"] is None
        return
    assert found["value"] == pytest.approx(90.0, abs=1e-4)
    half = 1.6449 * np.hypot(0.5 * 0.9, 0.1 * 2)  # gain 0.5 %; 0.001C for two hours
    assert found["hi90"] - found["value"] == pytest.approx(half, rel=1e-3)
    assert found["value"] - found["lo90"] == pytest.approx(half, rel=1e-3)
