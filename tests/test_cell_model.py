"""The simulated cell obeys physics, and the fitted one agrees with the measurements it never saw."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from voltmill.kernels.cell_model import advance, filtered_currents, hysteresis_path, load, rested, tables, trace

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("VOLTMILL_DATA", ROOT.parent / "shared" / "data")) / "lg_hg2_1hz.parquet"
PARAMETERS = load()


class Pack:
    """A few modules at one temperature, to be driven step by step."""

    def __init__(self, soc=0.5, celsius=25.0, modules=1, cells=2, limited=True):
        self.cell = tables(PARAMETERS, limited=limited)
        full = np.full((modules, cells), 1.0)
        self.state = rested(soc * full, celsius * full, PARAMETERS.capacity_ah * full, full)
        self.ambient = np.full(modules, celsius)
        self.voltage = np.full((modules, cells), 3.7)
        self.step(0.0, 0.0)

    def step(self, ampere, dt, steps=1):
        request = np.full((len(self.ambient), steps), float(ampere))
        advance(self.state, self.cell, request, self.ambient, float(dt), self.voltage)
        return self.voltage[0, 0]


def test_charge_is_conserved():
    pack = Pack(soc=0.8)
    pack.step(-3.0, 0.0)
    pack.step(0.0, 1.0)
    for _ in range(60):
        pack.step(-1.39, 0.0)
        pack.step(0.0, 60.0)
    expected = 0.8 - (3.0 / 3600 + 1.39) / PARAMETERS.capacity_ah
    assert pack.state.soc == pytest.approx(np.full((1, 2), expected), abs=5e-5)  # it ages a little


@pytest.mark.parametrize("celsius", [-20, 0, 25, 40])
def test_charge_raises_and_discharge_lowers_the_voltage(celsius):
    at_rest = Pack(celsius=celsius).step(0.0, 0.0)
    assert Pack(celsius=celsius).step(1.0, 0.0) > at_rest + 0.01
    assert Pack(celsius=celsius).step(-1.0, 0.0) < at_rest - 0.01


def test_cold_cells_drop_more():
    drops = [Pack(celsius=c).step(0.0, 0.0) - Pack(celsius=c).step(-2.0, 0.0) for c in (-20, -10, 0, 10, 25)]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > 3 * drops[-1]


def test_one_long_step_equals_many_short_ones():
    """The exponentials are exact: at rest nothing depends on the step length."""
    packs = [Pack(soc=0.6), Pack(soc=0.6)]
    for pack in packs:
        pack.step(-6.0, 0.0)
        pack.step(0.0, 30.0)
        pack.state.temperature[:] = 40.0
    packs[0].step(0.0, 900.0)
    for _ in range(900):
        packs[1].step(0.0, 1.0)
    assert packs[0].state.filtered == pytest.approx(packs[1].state.filtered, rel=1e-9)
    assert packs[0].state.temperature == pytest.approx(packs[1].state.temperature, rel=1e-9)
    assert packs[0].voltage == pytest.approx(packs[1].voltage, abs=1e-6)


def test_voltage_relaxes_for_minutes_after_a_load():
    pack = Pack(soc=0.5)
    pack.step(-3.0, 0.0)
    pack.step(0.0, 600.0)
    after = [pack.step(0.0, dt) for dt in (1.0, 60.0, 240.0, 3000.0)]
    rises = np.diff(after)
    assert (rises > 0.001).all()  # 1 mV still to come after five minutes
    assert after[-1] == pytest.approx(after[-2], abs=0.03)


def test_constant_current_charge_turns_into_constant_voltage_and_ends_full():
    pack = Pack(soc=0.3)
    limit = PARAMETERS.voltage_limit_volt[1]
    currents = []
    for _ in range(5 * 3600):
        assert pack.step(1.5, 1.0) <= limit + 1e-4
        currents.append(pack.state.current[0])
        if currents[-1] < 0.05:
            break
    assert pack.state.current[0] < 0.05
    assert pack.state.soc == pytest.approx(np.ones((1, 2)), abs=0.01)  # the SOC convention: full is the end of it
    taper = np.array(currents)[np.argmax(np.array(currents) < 1.499) :]
    assert (np.diff(taper) < 1e-3).all()


def test_discharge_stops_at_the_lower_limit_and_does_not_turn_round():
    pack = Pack(soc=0.06)
    for _ in range(600):
        assert pack.step(-6.0, 1.0) >= PARAMETERS.voltage_limit_volt[0] - 3e-3
        assert pack.state.current[0] <= 0.0
    assert -6.0 < pack.state.current[0]


def test_the_weakest_cell_sets_the_limit():
    pack = Pack(soc=0.9)
    pack.state.soc[0, 1] = 0.99
    for _ in range(1200):
        pack.step(1.5, 1.0)
    assert pack.voltage[0, 1] == pytest.approx(PARAMETERS.voltage_limit_volt[1], abs=2e-3)
    assert pack.voltage[0, 0] < pack.voltage[0, 1] - 0.01


def test_hysteresis_lies_between_the_branches():
    charged, discharged = Pack(soc=0.4), Pack(soc=0.6)
    for pack, ampere in ((charged, 1.0), (discharged, -1.0)):
        while abs(pack.state.soc[0, 0] - 0.5) > 1e-3:
            pack.step(ampere, 1.0)
        pack.step(0.0, 1.0)
        pack.step(0.0, 1e5)
    gap = charged.voltage[0, 0] - discharged.voltage[0, 0]
    half = PARAMETERS.hysteresis_volt[len(PARAMETERS.hysteresis_volt) // 2]
    assert 1.5 * half < gap < 2 * half + 0.003


def test_heat_settles_at_power_times_thermal_resistance():
    pack = Pack(celsius=20.0)
    pack.state.heater[0, 0] = 5.0
    pack.step(0.0, 1e6)
    assert pack.state.temperature[0, 0] == pytest.approx(20 + 5 * PARAMETERS.thermal_resistance_kelvin_per_watt)
    assert pack.state.temperature[0, 1] == pytest.approx(20)


def test_ageing_takes_capacity_adds_resistance_and_is_faster_when_warm():
    lost = []
    for celsius in (10.0, 25.0, 40.0):
        pack = Pack(celsius=celsius, limited=False)
        for k in range(200):  # 100 equivalent full cycles at 1 A between 0 and 1
            pack.step(1.0 if k % 2 else -1.0, 0.0)
            pack.state.soc[:] = 0.5
            pack.step(0.0, PARAMETERS.capacity_ah * 3600)
        lost.append(1 - pack.state.capacity[0, 0] / PARAMETERS.capacity_ah)
        assert pack.state.resistance[0, 0] == pytest.approx((1 - lost[-1]) ** -PARAMETERS.resistance_growth, rel=0.01)
    assert lost == sorted(lost)
    assert 0.03 < lost[1] < 0.04  # 600 cycles to 20 %


def test_parameters_are_physical_and_small():
    assert (np.diff(PARAMETERS.ocv_volt) > 0).all()
    assert 4.15 < PARAMETERS.ocv_volt[-1] < 4.2
    assert np.abs(PARAMETERS.ocv_volt_per_kelvin).max() < 1.5e-3
    for table in (PARAMETERS.r0_ohm, PARAMETERS.r1_ohm, PARAMETERS.r2_ohm):
        assert np.array(table).min() > 0
    assert (np.diff(np.mean(PARAMETERS.r0_ohm, axis=1)) < 0).all()  # warmer is better
    assert (ROOT / "kernels" / "cell_lg_hg2.json").stat().st_size < 100_000


def test_helpers_agree_with_the_kernel():
    current = np.where(np.arange(300) % 60 < 30, -3.0, 1.0)
    pack = Pack(soc=0.7, limited=False)
    z = filtered_currents(current, 1.0, np.array(PARAMETERS.tau_seconds))
    h = hysteresis_path(current, 1.0, PARAMETERS.capacity_ah, 0.0)
    for k, ampere in enumerate(current):
        pack.step(ampere, 1.0 if k else 0.0)
    assert pack.state.filtered[0] == pytest.approx(z[-1], rel=1e-9)
    assert pack.state.hysteresis[0, 0] == pytest.approx(h[-1], abs=1e-5)
    volt, celsius, soc = trace(PARAMETERS, current, 1.0, 25.0)
    assert len(volt) == len(celsius) == len(soc) == 300
    assert soc[-1] == pytest.approx(1 + current[:-1].sum() / 3600 / PARAMETERS.capacity_ah, abs=1e-5)


@pytest.mark.skipif(not DATA.exists(), reason="needs lg_hg2_1hz.parquet in VOLTMILL_DATA")
@pytest.mark.parametrize(("ambient", "name", "limit"), [(25, "US06", 45), (40, "LA92", 25), (0, "HWFET", 25)])
def test_unseen_cycles_are_met_within_millivolts(monkeypatch, ambient, name, limit):
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    fit = _fit_module()
    record = next(r for r in fit.measured(DATA) if (r.ambient, r.name) == (ambient, name))
    rms, _, warm = fit.check(PARAMETERS, fit.shifted(record))
    assert rms < limit
    assert warm < 1.0


def _fit_module():
    spec = importlib.util.spec_from_file_location("training_cell_model", ROOT / "training" / "cell_model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
