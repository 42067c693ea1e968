"""The shipped SOC model against the truth, through the same kernels and operators as the stream."""

from pathlib import Path

import numpy as np
import pytest

from voltmill.kernels import cell_model
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import Quality
from voltmill.operators.estimate import EstimateState
from voltmill.operators.features import offline
from voltmill.operators.model import load

ROOT = Path(__file__).resolve().parent.parent
FLEET = Fleet([FleetEntry(match="*", cell_type="lg-hg2", capacity_ah=3.0, series=1)])
MODEL = load("lg_hg2_soc")


@pytest.fixture
def soc_views(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    return pytest.importorskip("soc_views")


def estimated(soc_views, views, fleet=FLEET):
    """SOC, interval and bits of each view."""
    predictions, failure = EstimateState(MODEL, fleet, "replay").apply(offline(soc_views.telemetry(views), fleet))
    assert failure is None
    columns = [predictions.column(c).to_numpy(zero_copy_only=False) for c in ("value", "lo90", "hi90", "quality_bits")]
    cuts = np.cumsum([len(v) for v in views])[:-1]
    return list(zip(*(np.split(c, cuts) for c in columns), strict=True))


def test_the_errors_on_the_test_cycles_are_those_of_the_contract(soc_views, data_dir):
    records = [r for r in soc_views.measured(data_dir / "lg_hg2_1hz.parquet") if r.name in soc_views.TEST]
    assert len(records) == 12
    views = [soc_views.sampled(r, np.random.default_rng(0)) for r in records]
    errors, covered = [], []
    for view, (value, lo, hi, bits) in zip(views, estimated(soc_views, views), strict=True):
        settled = (bits & Quality.WARM_UP) == 0
        assert view.seconds[settled].min() == 300
        errors.append(np.abs(value - view.soc)[settled])
        covered.append(((lo <= view.soc) & (view.soc <= hi))[settled].mean())
    stated = MODEL.contract.errors["right_start"]
    assert np.mean([e.mean() for e in errors]) == pytest.approx(stated["mae"], abs=0.01)
    assert max(e.max() for e in errors) == pytest.approx(stated["worst"], abs=0.05)
    assert 100 * np.mean(covered) == pytest.approx(stated["coverage90"], abs=1)
    # What the prototype reached on the same cycles.
    assert stated["mae"] < 0.97 and stated["rmse"] < 1.13 and stated["worst"] < 6.8


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


def test_a_cell_of_another_type_gets_null_and_a_bit(soc_views):
    view = simulated_charge(soc_views)
    other = Fleet([FleetEntry(match="*", cell_type="lfp-100", capacity_ah=3.0, series=1)])
    ((value, lo, hi, bits),) = estimated(soc_views, [view], other)
    assert np.isnan([value, lo, hi]).all()
    assert ((bits & Quality.UNKNOWN_CELL) != 0).all()
