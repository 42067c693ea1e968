"""The shipped SOC model against the truth: in every case of its card, and through a replay of telemetry."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from archives import SHARDS, archived

from voltmill.connectors.lake import LakeSettings
from voltmill.flows.config import Config, RunSettings
from voltmill.flows.replay import replay
from voltmill.kernels import cell_model
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import Quality
from voltmill.operators import estimate
from voltmill.operators.features import offline
from voltmill.operators.model import load

ROOT = Path(__file__).resolve().parent.parent
MODEL = load("lg_hg2_soc")


@pytest.fixture
def soc_views(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    return pytest.importorskip("soc_views")


@pytest.fixture
def soc_cases(soc_views):
    return pytest.importorskip("soc_cases")


@pytest.fixture
def cycles(soc_views, data_dir):
    records = pytest.importorskip("records")
    found = [r for r in records.measured(data_dir / "lg_hg2_1hz.parquet") if r.name in records.TEST]
    assert len(found) == 12 and {r.ambient for r in found} == {-20, -10, 0, 10, 25, 40}
    return found


def estimated(soc_views, views, fleet=None):
    """SOC, interval and bits of each view."""
    fleet = fleet or soc_views.fleet()
    predictions, failure = estimate.offline(offline(soc_views.telemetry(views), fleet), MODEL, fleet)
    assert failure is None
    columns = [predictions.column(c).to_numpy(zero_copy_only=False) for c in ("value", "lo90", "hi90", "quality_bits")]
    cuts = np.cumsum([len(v) for v in views])[:-1]
    return list(zip(*(np.split(c, cuts) for c in columns), strict=True))


def assert_stated(found, case):
    """The figures are those of the contract; the card takes them from there (see test_conformance)."""
    stated = {key: figures for key, figures in MODEL.contract.errors.items() if key.split("/")[0] == case}
    assert stated.keys() == {key for key in found if key.split("/")[0] == case}
    for key, figures in stated.items():
        assert found[key]["mae"] == pytest.approx(figures["mae"], abs=0.01), key
        assert found[key]["rmse"] == pytest.approx(figures["rmse"], abs=0.01), key
        assert found[key]["worst"] == pytest.approx(figures["worst"], abs=0.05), key
        assert found[key]["coverage90"] == pytest.approx(figures["coverage90"], abs=1), key


@pytest.mark.parametrize("case", [key for key in MODEL.contract.errors if "/" not in key])
def test_the_errors_on_the_test_cycles_are_those_of_the_card(soc_views, soc_cases, cycles, case):
    views = soc_cases.views_of(cycles, case)
    fleet = soc_views.fleet(soc_cases.CASES[case].get("capacity", 1.0))
    measured = []
    for view, (value, lo, hi, bits) in zip(views, estimated(soc_views, views, fleet), strict=True):
        settled = (bits & Quality.WARM_UP) == 0
        assert view.seconds[settled].min() - view.seconds[0] >= 300
        measured.append((case, view, (value, lo, hi, settled)))
    assert_stated(soc_cases.errors(measured), case)


def test_the_cold_cycle_that_the_card_warns_of(soc_views, soc_cases, cycles):
    """Written by hand in the card: its words must follow when the model does."""
    cold = soc_cases.views_of([r for r in cycles if r.ambient == -20], "right_start")
    covered, bias = {}, {}
    for view, (value, lo, hi, bits) in zip(cold, estimated(soc_views, cold), strict=True):
        settled = (bits & Quality.WARM_UP) == 0
        covered[view.name] = round(100 * ((lo <= view.soc) & (view.soc <= hi))[settled].mean())
        bias[view.name] = (value - view.soc)[settled].mean()
    assert covered == {"US06": 100, "LA92": 100, "HWFET": pytest.approx(29, abs=1)}
    assert bias["HWFET"] == pytest.approx(-2.4, abs=0.05)
    card = (ROOT / "operators" / "models" / "lg_hg2_soc.md").read_text()
    assert "HWFET for 29 % of its rows" in card and "2.4 points too low" in card


def test_every_case_that_is_measured_is_in_the_card(soc_cases):
    stated = MODEL.contract.errors
    assert [key for key in stated if "/" not in key] == list(soc_cases.CASES)
    assert all(f"{case}/{ambient}" in stated for case in soc_cases.CASES for ambient in (-20, -10, 0, 10, 25, 40))


def test_a_replay_of_the_test_cycles_gives_what_the_card_says(soc_views, soc_cases, cycles, tmp_path):
    views = soc_cases.views_of(cycles, "right_start")
    archived(soc_views.telemetry(views), tmp_path / "lake")
    fleet = (FleetEntry(match="view-*", cell_type="lg-hg2", capacity_ah=3.0, series=1),)
    config = Config(run=RunSettings(shards=SHARDS), fleet=fleet, lake=LakeSettings(url="nowhere"))
    done = replay(config, str(tmp_path / "lake"), str(tmp_path / "out"))
    assert done.rows == sum(map(len, views))
    files = sorted((tmp_path / "out").glob("predictions/date=*/shard=*/*.parquet"))
    names = ["device_id", "event_time", "target", "value", "lo90", "hi90", "quality_bits", "model_sha256"]
    rows = pa.concat_tables(pq.read_table(f, partitioning=None, columns=names) for f in files)
    rows = rows.filter((pc.field("target") == "soc") & (pc.field("model_sha256") == MODEL.sha256))
    assert len(rows) == done.rows
    measured = []
    for k, view in enumerate(views):
        of_view = rows.filter(pc.field("device_id") == f"view-{k}").sort_by("event_time")
        value, lo, hi, bits = (of_view.column(c).to_numpy() for c in ("value", "lo90", "hi90", "quality_bits"))
        measured.append(("right_start", view, (value, lo, hi, (bits & Quality.WARM_UP) == 0)))
    assert_stated(soc_cases.errors(measured), "right_start")


def simulated_charge(soc_views, ambient=25.0, start=0.2, ampere=1.5):
    """Rest, charge to 4.2 V, rest, on the simulated cell; sampled every 5 s."""
    parameters = cell_model.load()
    one = np.ones((1, 1))
    state = cell_model.rested(start * one, ambient * one, parameters.capacity_ah * one, one)
    voltage = np.interp(start, np.linspace(0, 1, len(parameters.ocv_volt)), parameters.ocv_volt) * one
    cell, kept = cell_model.tables(parameters), []
    for k in range(4 * 3600):
        request = ampere if 600 <= k < 2 * 3600 else 0.0
        cell_model.advance(state, cell, request * one, ambient * one[0], 1.0, voltage)
        kept.append((voltage[0, 0], state.current[0], state.temperature[0, 0], 100 * state.soc[0, 0]))
    record = soc_views.Record("charge", round(ambient), np.arange(len(kept), dtype=float), *np.array(kept).T)
    return record.at(np.arange(0, len(record), 5))


@pytest.mark.parametrize("ambient", [10.0, 25.0, 35.0])
def test_charges_and_rests_of_the_simulated_cell(soc_views, ambient):
    view = simulated_charge(soc_views, ambient)
    assert view.soc.max() - view.soc.min() > 60
    ((value, lo, hi, bits),) = estimated(soc_views, [view])
    error = np.abs(value - view.soc)[(bits & Quality.WARM_UP) == 0]
    assert error.mean() < 2.5 and error.max() < 8
    assert (lo <= value).all() and (value <= hi).all()


def test_cells_in_parallel_and_in_series_change_nothing(soc_views):
    """The model takes currents of the module over its capacity: ten cells in parallel give what one gives."""
    view = simulated_charge(soc_views)
    ((one, *_),) = estimated(soc_views, [view])
    wide = Fleet([FleetEntry(match="*", cell_type="lg-hg2", capacity_ah=30.0, series=1, parallel=10)])
    ((ten, *_),) = estimated(soc_views, [replace(view, current=10 * view.current)], wide)
    assert ten == pytest.approx(one, abs=0.01)


def test_a_cell_of_another_type_gets_null_and_a_bit(soc_views):
    view = simulated_charge(soc_views)
    other = Fleet([FleetEntry(match="*", cell_type="lfp-100", capacity_ah=3.0, series=1)])
    ((value, lo, hi, bits),) = estimated(soc_views, [view], other)
    assert np.isnan([value, lo, hi]).all()
    assert ((bits & Quality.UNKNOWN_CELL) != 0).all()
