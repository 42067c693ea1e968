"""What is said of a session: every column against what it must be for a cycle that is known exactly."""

import math

import numpy as np
import pytest
from session_rows import CHARGE, DISCHARGE, FULL_AH, REST, found, hold, kinds, ramp, series
from telemetry import sample

from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.session_table import (
    BASELINE_SESSIONS,
    BINS,
    TRACKED_CHARGE,
    TRACKED_DISCHARGE,
    session_columns,
)
from voltmill.operators.features import CARRIED
from voltmill.operators.sessions import schema

NAN = math.nan
BINNED = [f"charge_bin_{k:02}_fraction" for k in range(BINS)]


def near(value, rel=1e-5, **more):
    return pytest.approx(value, rel=rel, **more)


def cycle():
    """Rest, charge from 3.0 V to full, rest, discharge to empty, rest, charge, rest."""
    return found(series(REST, CHARGE, REST, DISCHARGE, REST, CHARGE, REST))


class TestCharge:
    charge = cycle()[1]

    def test_what_moved(self):
        c = self.charge
        assert c["charge_ah"] == near(FULL_AH) and c["charge_fraction"] == near(FULL_AH / 3)
        assert c["duration_seconds"] == 4800 and c["c_rate_mean"] == near(FULL_AH / 3 / (4800 / 3600))
        assert c["c_rate_max"] == near(0.5) and c["charge_against_ah"] == 0 and c["missing_fraction"] == 0
        volts = 3.0 + 1.2 * np.arange(1, 721) / 720  # of a module of one cell
        constant = 1.5 * 5 / 3600 * (volts[0] + (0.5 * (volts[1:] + volts[:-1])).sum())
        assert c["energy_wh"] == near(constant + 0.27 * 4.2, rel=1e-4)
        assert (c["capacity_ah"], c["session_number"]) == (3, 1)
        assert c["equivalent_full_cycles"] == near(FULL_AH / 6)

    def test_voltages_and_temperatures(self):
        c = self.charge
        assert c["cell_voltage_start_volt"] == c["cell_voltage_min_volt"] == near(3.0 + 1.2 / 720)
        assert c["cell_voltage_end_volt"] == c["cell_voltage_max_volt"] == near(4.2)
        for name in ("start", "end", "min", "max", "mean"):
            assert c[f"cell_temperature_{name}_celsius"] == near(25.5)

    def test_constant_current(self):
        """From 4.0 V to 4.195 V at 1.2 V an hour: of a uniform distribution the moments are known."""
        c = self.charge
        assert c["cc_seconds"] == near(0.195 / 1.2 * 3600)
        w = 0.195
        assert c["cc_charge_fraction"] == near(0.5 * c["cc_seconds"] / 3600)
        assert c["cc_voltage_mean_volt"] == near(4.0 + w / 2)
        assert c["cc_voltage_std_volt"] == near(w / math.sqrt(12), rel=1e-3)
        assert c["cc_voltage_skewness"] == near(0.0, abs=1e-4)
        assert c["cc_voltage_kurtosis"] == near(-1.2, rel=1e-3)
        assert c["cc_voltage_slope_volt_per_second"] == near(1.2 / 3600, rel=1e-4)

    def test_constant_voltage(self):
        """The current falls from 0.5C to 0.04C in 1200 s: evenly from 0.25C to 0.05C."""
        c = self.charge
        seconds = 0.2 / 0.46 * 1200
        assert c["cv_seconds"] == near(seconds)
        assert c["cv_charge_fraction"] == near(0.15 * seconds / 3600)
        assert c["cv_c_rate_mean"] == near(0.15) and c["cv_c_rate_std"] == near(0.2 / math.sqrt(12))
        assert c["cv_c_rate_skewness"] == near(0.0, abs=1e-4) and c["cv_c_rate_kurtosis"] == near(-1.2, rel=1e-3)
        assert c["cv_c_rate_slope_per_second"] == near(-0.2 / seconds)

    def test_constant_voltage_in_the_range_of_the_fleet_entry(self):
        """The current falls by e in 400 s, sampled every second: from 0.4545C to 0.0909C the moments are known."""
        low, high, tau = 0.0909, 0.4545, 400.0
        falling = [
            (1.0, {"current_ampere": 1.5 * math.exp(-k / tau), "cell_voltage_volt": [4.2]}) for k in range(1, 1200)
        ]
        rows = series(REST, CHARGE[:720], falling, REST)
        entry = FleetEntry(match="m", capacity_ah=3.0, operating_volt=(2.7, 4.2), cv_c_rate=(low, high))
        c, default = found(rows, Fleet([entry]))[1], found(rows)[1]
        seconds = tau * math.log(high / low)
        first, second, third, fourth = ((high**n - low**n) / n * tau / seconds for n in (1, 2, 3, 4))
        variance = second - first**2
        m3 = third - 3 * first * second + 2 * first**3
        m4 = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        time = tau**2 * (high - low - low * seconds / tau) / seconds  # ∫ t x dt / seconds
        assert c["cv_seconds"] == near(seconds, rel=1e-4)
        assert c["cv_charge_fraction"] == near((high - low) * tau / 3600, rel=1e-4)
        assert c["cv_c_rate_mean"] == near(first, rel=1e-4) and c["cv_c_rate_std"] == near(variance**0.5, rel=1e-4)
        assert c["cv_c_rate_skewness"] == near(m3 / variance**1.5, rel=1e-3)
        assert c["cv_c_rate_kurtosis"] == near(m4 / variance**2 - 3, rel=1e-3)
        slope = (time - first * seconds / 2) / (seconds**2 / 12)
        assert c["cv_c_rate_slope_per_second"] == near(slope, rel=1e-3)
        assert default["cv_seconds"] == near(tau * math.log(5), rel=1e-4) and default["cv_c_rate_mean"] < 0.13
        others = [n for n in c if not n.removeprefix("baseline_").removeprefix("recent_").startswith("cv_")]
        assert [repr(c[n]) for n in others] == [repr(default[n]) for n in others]

    def test_the_moments_do_not_depend_on_how_often_a_device_sends(self):
        def curved(every):
            n = round(3600 / every)
            volts = [3.2 + 1.0 * ((k + 1) / n) ** 2 for k in range(n)]
            rising = [(every, {"current_ampere": 1.5, "cell_voltage_volt": [v]}) for v in volts]
            falling = [
                (every, {"current_ampere": 1.5 * math.exp(-k * every / 600), "cell_voltage_volt": [4.2]})
                for k in range(round(1600 / every))
            ]
            return found(series(REST, rising, falling, REST))[1]

        often, seldom = curved(1.0), curved(20.0)
        for name in (c.name for c in session_columns() if c.name.startswith(("cc_", "cv_"))):
            assert seldom[name] == pytest.approx(often[name], rel=0.01, abs=0.02), name

    def test_a_charge_that_begins_within_or_ends_before_says_nothing_of_it(self):
        part = ramp(1.5, (4.1, 4.2), 1200)
        within = found(series(REST, part, ramp((1.5, 0.12), (4.2, 4.2), 1200), REST))[1]
        assert math.isnan(within["cc_seconds"]) and within["cv_seconds"] > 0
        before = found(series(REST, CHARGE[:719], REST))[1]
        assert math.isnan(before["cv_seconds"])
        assert math.isnan(found(series(REST, CHARGE[:700], REST))[1]["cc_seconds"])

    def test_the_end_of_a_charge_soon_after_its_beginning(self):
        """Full - 0.2 V is passed before the charge has lasted as long as a session must."""
        c = found(series(REST, hold(1.5, 100, volt=3.98), CHARGE[598:], REST))[1]
        whole = found(series(REST, CHARGE, REST))[1]
        for name in (c.name for c in session_columns() if c.name.startswith(("cc_", "cv_"))):
            assert c[name] == near(whole[name], abs=1e-5), name

    def test_the_highest_cell_ends_a_charge(self):
        three = [
            (dt, c | {"cell_voltage_volt": [c["cell_voltage_volt"][0] - d for d in (0, 0.02, 0.1)]}) for dt, c in CHARGE
        ]
        c = found(series(REST, three, REST))[1]
        assert c["ended_full"] == 1 and c["cc_seconds"] == self.charge["cc_seconds"]
        assert c["cell_voltage_end_volt"] == near(4.16) and c["cell_voltage_spread_end_volt"] == near(0.1)

    def test_the_histogram(self):
        c = self.charge
        assert sum(c[name] for name in BINNED) == near(c["charge_fraction"])
        width = 1.5 / BINS / 1.2 * 0.5  # volts a bin over volts an hour times C-rate
        assert [c[name] for name in BINNED[11:47]] == near([width] * 36, rel=1e-3)
        assert all(c[name] == 0 for name in BINNED[:9])
        assert c[BINNED[47]] == near(0.09 + width, rel=1e-2)


class TestLevels:
    def test_full_and_empty(self):
        names = ("began_full", "ended_full", "began_empty", "ended_empty")
        first, discharge, second = (s for s in cycle() if s["session"] != "rest")
        assert [first[n] for n in names] == pytest.approx([NAN, 1, NAN, 0], nan_ok=True)
        assert [discharge[n] for n in names] == [1, 0, 0, 1]
        assert [second[n] for n in names] == [0, 1, 1, 0]

    def test_the_capacity_is_measured_between_them(self):
        first, discharge, second = (s for s in cycle() if s["session"] != "rest")
        assert math.isnan(first["measured_capacity_ah"])
        assert discharge["measured_capacity_ah"] == discharge["charge_ah"] == near(2.25)
        assert second["measured_capacity_ah"] == near(FULL_AH)

    @pytest.mark.parametrize(
        "between, full",
        [(hold(-0.3, 340), 1), (hold(-0.3, 380), 0), ([(1801.0, hold(0.0, 5)[0][1]), *REST], NAN)],
        ids=["1 % used", "more", "a break"],
    )
    def test_what_flowed_between_makes_it_unknown(self, between, full):
        sessions = found(series(CHARGE, REST, between, REST, DISCHARGE, REST))
        assert sessions[-1]["began_full"] == pytest.approx(full, nan_ok=True)

    def test_a_charge_that_stops_early_is_not_full(self):
        sessions = found(series(CHARGE[:720], REST, DISCHARGE, REST, CHARGE[:600], REST, DISCHARGE[:300], REST))
        assert [s["ended_full"] for s in sessions if s["session"] == "charge"] == [0, 0]
        assert [s["began_full"] for s in sessions if s["session"] == "discharge"] == [0, 0]

    def test_a_dip_under_load_is_not_empty_if_it_goes_on(self):
        dip = [*hold(-3.0, 600), *hold(-9.0, 20, volt=2.7), *hold(-3.0, 600)]
        assert found(series(REST, dip, REST))[1]["ended_empty"] == 0


class TestRest:
    def test_relaxation(self):
        """Towards 3.8 V with a time constant of 400 s."""
        volts = [3.8 - 0.2 * math.exp(-k * 5 / 400) for k in range(600)]
        rest = [(5.0, {"current_ampere": 0.0, "cell_voltage_volt": [v]}) for v in volts]
        sessions = found(series(REST, hold(-3.0, 1800, volt=3.5), rest, hold(1.5, 900)))
        last = sessions[-1]
        assert last["session"] == "rest"
        for seconds in (60, 600, 1800):
            want = 0.2 * (1 - math.exp(-seconds / 400))
            assert last[f"relaxation_{seconds}s_volt"] == near(want, rel=1e-3)
        assert last["relaxation_volt"] == near(0.2 * (1 - math.exp(-2995 / 400)), rel=1e-3)

    def test_between_samples_it_is_interpolated(self):
        rest = [(25.0, {"current_ampere": 0.0, "cell_voltage_volt": [3.6 + 0.001 * k]}) for k in range(40)]
        last = found(series(REST, hold(-3.0, 1800, volt=3.5), rest, hold(1.5, 900)))[-1]
        assert last["relaxation_60s_volt"] == near(0.001 * 60 / 25, rel=1e-3)
        assert math.isnan(last["relaxation_1800s_volt"])

    def test_it_is_unknown_when_the_current_ended_before_the_first_sample(self):
        first = found(series(REST, CHARGE, REST))[0]
        assert first["session"] == "rest" and math.isnan(first["relaxation_volt"])

    def test_a_pulse_ends_what_can_be_said(self):
        rest = [*hold(0.0, 700, volt=3.7), *hold(1.5, 10, volt=3.8), *hold(0.0, 1500, volt=3.75)]
        last = found(series(hold(-3.0, 1800, volt=3.5), rest, hold(1.5, 900)))[-1]
        assert last["relaxation_600s_volt"] == 0 and math.isnan(last["relaxation_1800s_volt"])
        assert last["relaxation_volt"] == 0 and last["duration_seconds"] == 2210

    def test_the_session_after_it_knows_of_it(self):
        charge = found(series(hold(-3.0, 900), hold(0.0, 700, volt=3.66), CHARGE, REST))[-1]
        assert charge["rest_before_seconds"] == 700 and charge["rest_voltage_before_volt"] == near(3.66)
        at_once = found(series(hold(-3.0, 900), hold(0.0, 100), CHARGE, REST))[-1]
        assert at_once["rest_before_seconds"] == 100 and math.isnan(at_once["rest_voltage_before_volt"])


class TestResistance:
    def test_steps_at_both_ends(self):
        """30 mΩ a cell; the second sample of the current is the latest within 15 s."""
        rows = series(REST, hold(3.0, 900, volt=3.79), hold(0.0, 600, volt=3.70))
        charge = found(rows)[-1]
        assert charge["resistance_start_ohm"] == charge["resistance_end_ohm"] == near(0.03)

    def test_a_converter_that_ramps_up_and_a_voltage_that_comes_late(self):
        lagging = [(1.0, {"current_ampere": i, "cell_voltage_volt": [v]}) for i, v in ((1, 3.70), (3, 3.72), (3, 3.79))]
        charge = found(series(REST, lagging, hold(3.0, 900, volt=3.79, every=1.0), REST))[1]
        assert charge["resistance_start_ohm"] == near(0.03)

    @pytest.mark.parametrize("every, current", [(20.0, 3.0), (5.0, 0.5)], ids=["too late", "too small"])
    def test_without_a_step_it_is_unknown(self, every, current):
        assert math.isnan(
            found(series(REST, hold(current, 900, every=every, volt=3.79), REST))[1]["resistance_start_ohm"]
        )


class TestHistory:
    rounds = 12

    def sessions(self):
        parts = []
        for k in range(self.rounds):
            fade = 1 - 0.01 * k
            parts += [*CHARGE, *hold(0.0, 600, volt=4.1), *ramp(-3.0, (4.1, 2.7), 2700 * fade // 5 * 5), *REST]
        return found(series(REST, parts))

    def test_baseline_and_recent_average(self):
        by_kind = {k: [s for s in self.sessions() if s["session"] == k] for k in ("charge", "discharge")}
        for kind, names in (("charge", TRACKED_CHARGE), ("discharge", TRACKED_DISCHARGE)):
            assert [s["session_number"] for s in by_kind[kind]] == list(range(1, self.rounds + 1))
            for name in names:
                known, recent = [], NAN
                for s in by_kind[kind]:
                    if not math.isnan(s[name]):
                        known.append(s[name])
                        recent = s[name] if math.isnan(recent) else recent + (s[name] - recent) / 3
                    baseline = np.mean(known[:BASELINE_SESSIONS]) if known else NAN
                    assert s[f"baseline_{name}"] == pytest.approx(baseline, rel=1e-4, nan_ok=True, abs=1e-6), name
                    assert s[f"recent_{name}"] == pytest.approx(recent, rel=1e-4, nan_ok=True, abs=1e-6), name

    def test_the_change_of_the_discharge_curve(self):
        measured = [s for s in self.sessions() if s["session"] == "discharge"]
        curves = [np.cumsum([s[name] for name in BINNED][::-1])[::-1] for s in measured]
        base = np.mean(curves[:BASELINE_SESSIONS], axis=0)
        for k, s in enumerate(measured):
            if k < BASELINE_SESSIONS:
                assert math.isnan(s["delta_q_mean"])
                continue
            delta = curves[k] - base
            z = (delta - delta.mean()) / delta.std()
            want = {
                "log10_variance": math.log10(delta.var()),
                "mean": delta.mean(),
                "min": delta.min(),
                "max": delta.max(),
                "iqr": np.subtract(*np.percentile(delta, [75, 25])),
                "skewness": (z**3).mean(),
                "kurtosis": (z**4).mean() - 3,
            }
            for name, value in want.items():
                assert s[f"delta_q_{name}"] == pytest.approx(value, rel=1e-3, abs=1e-4), name

    def test_a_partial_discharge_is_not_compared(self):
        part = [*CHARGE, *REST, *DISCHARGE[:300], *REST, *DISCHARGE[300:], *REST]
        assert all(math.isnan(s["delta_q_mean"]) for s in found(series(REST, part * 12)))


def test_what_is_unknown_without_an_operating_voltage():
    known, plain = cycle(), found(series(REST, CHARGE, REST, DISCHARGE, REST, CHARGE, REST, device="plain"))
    unknown = {
        name
        for a, b in zip(known, plain, strict=True)
        for name in a
        if isinstance(a[name], float) and math.isnan(b[name]) and not math.isnan(a[name])
    }
    expected = {"began_full", "ended_full", "began_empty", "ended_empty", *BINNED}
    expected |= {
        f"{p}{n}" for p in ("", "baseline_", "recent_") for n in TRACKED_CHARGE if n.startswith(("cc_", "cv_"))
    }
    expected |= {f"{p}measured_capacity_ah" for p in ("", "baseline_", "recent_")}
    assert unknown == expected


def test_temperatures():
    def warm(dt, change, celsius):
        return dt, change | {"cell_temperature_celsius": celsius}

    parts = [
        warm(dt, c, [20 + k / 36, 22 + k / 36, 255.0] if k % 3 == 0 else []) for k, (dt, c) in enumerate(CHARGE[:720])
    ]
    charge = found(series(hold(0.0, 600, cell_temperature_celsius=[10.0]), parts, REST))[1]
    assert charge["cell_temperature_min_celsius"] == 21 and charge["cell_temperature_max_celsius"] == near(
        21 + 717 / 36
    )
    assert charge["cell_temperature_start_celsius"] == 21
    assert charge["cell_temperature_end_celsius"] == near(21 + 717 / 36)
    assert charge["cell_temperature_mean_celsius"] == near(31, rel=0.02)


def test_a_column_is_unknown_in_sessions_that_do_not_have_it():
    for s in cycle():
        for column in session_columns():
            if s["session"] not in column.sessions:
                assert math.isnan(s[column.name]), (s["session"], column.name)


def test_module_voltage_is_used_where_it_is_measured():
    parts = [(dt, c | {"voltage_volt": 10 * c["cell_voltage_volt"][0]}) for dt, c in CHARGE]
    assert found(series(REST, parts, REST))[1]["energy_wh"] == near(10 * TestCharge.charge["energy_wh"])


def test_the_table_names_every_column_once_with_a_unit():
    table = session_columns()
    assert len({c.name for c in table}) == len(table)
    assert all(c.unit and c.formula for c in table)
    assert schema().names == [*CARRIED, "start_time", "session", *(c.name for c in table)]
    for c in table:
        assert "(" not in c.name and c.sessions


def test_a_large_module_and_a_single_sample_of_everything():
    fleet = Fleet([FleetEntry(match="*", capacity_ah=3.0, operating_volt=(2.7, 4.2))])
    cells = [sample(5.0 * k, cell_voltage_volt=[3.7] * 400, current_ampere=1.5 * (200 > k > 100)) for k in range(400)]
    assert kinds(found(cells, fleet)) == ["rest", "charge"]
