"""The features against a reference that keeps every sample and knows nothing of panes or running sums."""

import math
import random
import statistics
from fractions import Fraction

import numpy as np
import pytest
from telemetry import START_US, at, batch, content, cut, joined, sample

from voltmill.kernels import features as kernels
from voltmill.kernels.feature_table import TAUS, describe, features
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import REFUSED, Quality
from voltmill.operators.features import CARRIED, FeatureSettings, FeatureState, offline
from voltmill.operators.quality import QualitySettings, QualityState

NAN = math.nan
FLEET = Fleet([FleetEntry(match="m*", capacity_ah=3.0), FleetEntry(match="big*", capacity_ah=120.5)])
CAPACITY = {"m": 3.0, "big": 120.5, "unknown": NAN}
LIMITS = {"volt": (0.5, 5.0), "celsius": (-40.0, 100.0), "ampere": (-5000.0, 5000.0)}


def believed(values, kind):
    low, high = LIMITS[kind]
    return [float(np.float32(v)) for v in values if v is not None and low <= np.float32(v) <= high]


def weakest_z(cells):
    if len(cells) < 3:
        return NAN
    median = statistics.median(cells)
    mad = statistics.median([abs(c - median) for c in cells])
    return (min(cells) - median) / (1.4826 * max(mad, 0.0005))


def slope(times, values):
    """Regression line in exact arithmetic: differences of nearly equal sums lose nothing."""
    if len(set(times)) < 2:
        return NAN
    n, ts, vs = len(times), [Fraction(t) for t in times], [Fraction(v) for v in values]
    mean_t, mean_v = sum(ts) / n, sum(vs) / n
    return float(
        sum((t - mean_t) * (v - mean_v) for t, v in zip(ts, vs, strict=True)) / sum((t - mean_t) ** 2 for t in ts)
    )


class Reference:
    """One device: the list of what it took part with, and each feature from its definition."""

    def __init__(self, capacity, settings):
        self.capacity, self.settings = capacity, settings
        self.past = []  # samples with a believable current and cell
        self.resistance = NAN

    def row(self, s):
        cells, probes = believed(s["cell_voltage_volt"], "volt"), believed(s["cell_temperature_celsius"], "celsius")
        current = s["current_ampere"]
        if not cells or not believed([current], "ampere"):
            return {f.name: NAN for f in features(self.settings.windows_seconds)}
        current = float(np.float32(current))
        mean = statistics.fmean(cells)
        voltage = s.get("voltage_volt")
        voltage = float(np.float32(mean * len(s["cell_voltage_volt"]) if voltage is None else voltage))
        now = {
            "us": s["event_time"],
            "current": current,
            "mean": mean,
            "voltage": voltage,
            "spread": max(cells) - min(cells),
            "celsius": statistics.fmean(probes) if probes else NAN,
        }
        elapsed = (now["us"] - self.past[-1]["us"]) / 1e6 if self.past else 0.0
        bridged = bool(self.past) and elapsed <= self.settings.restart_seconds
        now["seconds"] = elapsed if bridged else 0.0
        held = self.past[-1] if bridged else {"current": 0.0, "voltage": 0.0}
        now["charge"] = held["current"] * now["seconds"] / 3600
        now["energy"] = now["charge"] * held["voltage"]
        if bridged:
            self.step(held, now)
        else:
            self.begin = len(self.past)
        self.past.append(now)
        return (
            self.instant(now, cells, probes)
            | self.averages()
            | {name: x for w in self.settings.windows_seconds for name, x in self.window(w).items()}
        )

    def step(self, before, now):
        step = now["current"] - before["current"]
        least = 1.0 if math.isnan(self.capacity) else self.settings.step_c_rate * self.capacity
        if now["seconds"] > self.settings.step_seconds or abs(step) < least:
            return
        resistance = (now["mean"] - before["mean"]) / step
        if 0 < resistance < 1:
            old = self.resistance
            self.resistance = resistance if math.isnan(old) else 0.9 * old + 0.1 * resistance

    def instant(self, now, cells, probes):
        moved = [p["charge"] for p in self.past]
        energy = [p["energy"] for p in self.past]
        charge, discharge = sum(c for c in moved if c > 0), -sum(c for c in moved if c < 0)
        return {
            "cell_voltage_mean_volt": now["mean"],
            "c_rate": now["current"] / self.capacity,
            "cell_temperature_mean_celsius": now["celsius"],
            "current_ampere": now["current"],
            "voltage_volt": now["voltage"],
            "cell_voltage_min_volt": min(cells),
            "cell_voltage_max_volt": max(cells),
            "cell_voltage_spread_volt": now["spread"],
            "weakest_cell_z": weakest_z(cells),
            "cell_temperature_min_celsius": min(probes, default=NAN),
            "cell_temperature_max_celsius": max(probes, default=NAN),
            "sample_interval_seconds": now["seconds"],
            "history_seconds": (now["us"] - self.past[self.begin]["us"]) / 1e6,
            "charge_step_ah": now["charge"],
            "capacity_ah": self.capacity,
            "charge_throughput_ah": charge,
            "discharge_throughput_ah": discharge,
            "energy_charged_wh": sum(e for e in energy if e > 0),
            "energy_discharged_wh": -sum(e for e in energy if e < 0),
            "equivalent_full_cycles": (charge + discharge) / (2 * self.capacity),
            "cell_resistance_ohm": self.resistance,
            "cells_believed": len(cells),
        }

    def averages(self):
        """The definition, from the first sample since the restart on."""
        run, out = self.past[self.begin :], {}
        for tau in TAUS:
            for name, of in (
                ("cell_voltage_ema_{}s_volt", lambda p: p["mean"]),
                ("c_rate_ema_{}s", lambda p: p["current"] / self.capacity),
            ):
                weight = total = 0.0
                ema = of(run[0])
                for before, now in zip(run, run[1:], strict=False):
                    a = math.exp(-now["seconds"] / tau)
                    weight = a * weight + (1 - a)
                    total = a * total + (1 - a) * of(before)
                    ema = total / weight if weight > 1e-9 else of(now)
                out[name.format(tau)] = ema
            out[f"ema_weight_{tau}s"] = weight
        return out

    def window(self, seconds):
        pane = seconds * 1_000_000 // 6
        newest = self.past[-1]["us"] // pane
        inside = [p for p in self.past if newest - 5 <= p["us"] // pane <= newest]
        volts, amps = [p["voltage"] for p in inside], [p["current"] for p in inside]
        warm = [p for p in inside if not math.isnan(p["celsius"])]
        w = f"{seconds}s"
        return {
            f"voltage_mean_{w}_volt": statistics.fmean(volts),
            f"voltage_std_{w}_volt": statistics.pstdev(volts),
            f"voltage_min_{w}_volt": min(volts),
            f"voltage_max_{w}_volt": max(volts),
            f"current_mean_{w}_ampere": statistics.fmean(amps),
            f"current_std_{w}_ampere": statistics.pstdev(amps),
            f"current_min_{w}_ampere": min(amps),
            f"current_max_{w}_ampere": max(amps),
            f"cell_voltage_spread_max_{w}_volt": max(p["spread"] for p in inside),
            f"temperature_rate_{w}_celsius_per_second": slope(
                [(p["us"] - inside[0]["us"]) / 1e6 for p in warm], [p["celsius"] for p in warm]
            ),
            f"charge_{w}_ah": sum(max(p["charge"], 0.0) for p in inside),
            f"discharge_{w}_ah": sum(max(-p["charge"], 0.0) for p in inside),
            f"energy_charged_{w}_wh": sum(max(p["energy"], 0.0) for p in inside),
            f"energy_discharged_{w}_wh": sum(max(-p["energy"], 0.0) for p in inside),
        }


def random_series(seed, *, device="m", n=300, cells=None):
    """An irregular drive: dt from 0.2 s to hours, missing readings, a drifting temperature."""
    rng = random.Random(seed)
    width = cells or rng.choice([1, 2, 3, 4, 13, 16, 100])
    t, amps, celsius, out = rng.uniform(0, 1000), 0.0, rng.uniform(-10, 40), []
    offsets = [rng.gauss(0, 0.01) for _ in range(width)]
    for _ in range(n):
        t += rng.choice([0.2, 1.0, 1.0, 1.0, 5.0, 9.9, 30.0, rng.uniform(0.2, 30), rng.uniform(30, 299)])
        t += rng.choice([0.0] * 60 + [299.0, 301.0, 7200.0])
        amps = rng.choice([amps, amps, 0.0, rng.uniform(-6, 6), rng.uniform(-0.5, 0.5)])
        celsius += rng.gauss(0, 0.2)
        volts = [3.6 + 0.03 * amps + x + rng.choice([0, 0.001, 0.002]) for x in offsets]
        probes = [celsius + rng.gauss(0, 0.3) for _ in range(rng.choice([0, 1, 2, 8]))]
        for values in (volts, probes):
            for k in range(len(values)):
                if rng.random() < 0.04:
                    values[k] = rng.choice([None, NAN, 66.0 if values is volts else 255.0, -math.inf])
        bad = rng.random() < 0.03
        out.append(
            sample(
                t,
                device_id=device,
                current_ampere=rng.choice([NAN, 9e9, -math.inf]) if bad else amps,
                voltage_volt=rng.choice([None, sum(v for v in volts if v is not None and 0 < v < 5)]),
                cell_voltage_volt=[] if rng.random() < 0.02 else volts,
                cell_temperature_celsius=probes,
            )
        )
    return out


def compare(samples, device="m", settings=None):
    settings = settings or FeatureSettings()
    found = FeatureState(settings, FLEET).apply(batch(samples))
    assert len(found) == len(samples)
    reference = Reference(CAPACITY[device], settings)
    expected = [reference.row(s) for s in samples]
    names = [f.name for f in features(settings.windows_seconds)]
    assert found.schema.names == [*CARRIED, *names]
    for name in names:
        want = np.array([row[name] for row in expected])
        # float32 aggregates in the panes; a slope over a short time is a quotient of small differences
        tolerance = {"rtol": 1e-3 if "temperature_rate" in name else 1e-4, "atol": 2e-5 if "std" in name else 2e-6}
        np.testing.assert_allclose(found.column(name).to_numpy(), want, err_msg=name, equal_nan=True, **tolerance)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_every_feature_on_random_series(seed):
    device = ("m", "big", "unknown")[seed % 3]
    compare(random_series(seed, device=device), device)


def test_every_feature_at_a_steady_rate_for_long():
    rng = random.Random(5)
    compare([sample(k, current_ampere=rng.gauss(0, 2), voltage_volt=400 + rng.gauss(0, 1)) for k in range(900)])


def test_other_windows_and_thresholds():
    settings = FeatureSettings(windows_seconds=(6, 3600, 120), restart_seconds=20.0, step_c_rate=1.0, step_seconds=2.0)
    compare(random_series(99), settings=settings)
    none = FeatureSettings(windows_seconds=())
    compare(random_series(98, n=50), settings=none)


def test_times_near_and_before_1970():
    """Data sets with relative times begin at 0; the panes of a new device all bear that number."""
    moved = [
        s | {"event_time": s["event_time"] - START_US - 90_000_000, "ingest_time": None} for s in random_series(7, n=80)
    ]
    assert moved[0]["event_time"] < 2_000_000_000
    compare(moved)
    compare([sample(0, current_ampere=-2.0, arrival=None) | {"event_time": 0}])


@pytest.mark.parametrize(
    "cells",
    [
        [3.7, 3.6, 3.5],
        [3.7, 3.6, 3.5, 3.4],
        [3.7, 3.7, 3.7, 3.7, 3.2],
        [3.7] * 6,
        [3.7, 3.7, 3.7, 3.2, 3.2, 3.2],
        [3.2, 3.7, 3.7],
        [3.7, 3.2],
        [3.7],
        [4.1, 3.0, 3.0, 3.0],
        [3.7, None, 3.6, 66.0, 3.65, 3.1],
    ],
    ids=str,
)
def test_robust_z_score_of_the_weakest_cell(cells):
    found = FeatureState(FeatureSettings(), FLEET).apply(batch([sample(0, cell_voltage_volt=cells)]))
    want = weakest_z(believed(cells, "volt"))
    assert found.column("weakest_cell_z")[0].as_py() == pytest.approx(want, rel=1e-5, nan_ok=True)


def test_robust_z_score_on_random_cells():
    rng = np.random.default_rng(0)
    rows = [np.round(rng.normal(3.7, 0.02, rng.integers(3, 101)), rng.integers(2, 5)).tolist() for _ in range(300)]
    found = FeatureState(FeatureSettings(), FLEET).apply(
        batch([sample(k, cell_voltage_volt=r) for k, r in enumerate(rows)])
    )
    want = [weakest_z(believed(r, "volt")) for r in rows]
    np.testing.assert_allclose(found.column("weakest_cell_z").to_numpy(), want, rtol=1e-4)


def column(rows, name, settings=None):
    return FeatureState(settings or FeatureSettings(), FLEET).apply(batch(rows)).column(name).to_pylist()


class TestRestart:
    rows = [sample(t, current_ampere=3.6) for t in (0, 300, 600.000001, 601)]

    def test_a_longer_gap_begins_anew(self):
        assert column(self.rows, "sample_interval_seconds") == [0, 300, 0, pytest.approx(1, rel=1e-5)]
        assert column(self.rows, "history_seconds") == [0, 300, 0, pytest.approx(1, rel=1e-5)]
        assert column(self.rows, "ema_weight_20s")[2] == 0

    def test_what_flowed_in_the_gap_is_not_guessed(self):
        assert column(self.rows, "charge_step_ah") == pytest.approx([0, 0.3, 0, 0.001], rel=1e-5)

    def test_what_was_counted_and_the_resistance_stay(self):
        assert column(self.rows, "charge_throughput_ah") == pytest.approx([0, 0.3, 0.3, 0.301])
        stepped = [sample(k, current_ampere=-3.0 * (k % 2), cell_voltage_volt=[3.7 - 0.06 * (k % 2)]) for k in range(4)]
        assert column([*stepped, sample(900)], "cell_resistance_ohm")[-1] == pytest.approx(0.02, rel=1e-4)


def test_averages_hold_the_sample_before_over_the_interval():
    rows = [sample(t, current_ampere=i) for t, i in ((0, 3.0), (20, 0.0), (60, 6.0))]
    a1, a2 = math.exp(-1), math.exp(-2)
    weights = [0, 1 - a1, 1 - a1 * a2]
    assert column(rows, "ema_weight_20s") == pytest.approx(weights)
    assert column(rows, "c_rate_ema_20s") == pytest.approx([1.0, 1.0, a2 * (1 - a1) / (1 - a1 * a2)])


def test_a_capacity_that_is_configured_later_is_used_at_once():
    """Averages of a device without capacity must not stay unknown when the fleet is completed and restarted."""
    before = FeatureState(FeatureSettings(), Fleet())
    before.apply(batch([sample(t, current_ampere=1.5) for t in range(5)]))
    after = FeatureState(FeatureSettings(), FLEET, before.snapshot())
    found = after.apply(batch([sample(5, current_ampere=1.5)]))
    assert found.column("c_rate_ema_400s")[0].as_py() == pytest.approx(0.5)
    assert np.isfinite(found.column("equivalent_full_cycles").to_numpy()).all()


def test_an_infinite_module_voltage_is_as_good_as_none():
    found = column([sample(0, current_ampere=1.0, voltage_volt=math.inf), sample(9)], "energy_charged_wh")
    assert np.isfinite(found).all()


@pytest.mark.parametrize("bit", [q for q in Quality])
def test_refused_rows_give_no_features_and_leave_no_trace(bit):
    rows = [sample(0), sample(5, quality_bits=int(bit), current_ampere=99.0), sample(10)]
    found = FeatureState(FeatureSettings(), FLEET).apply(batch(rows))
    if bit & REFUSED:
        without = FeatureState(FeatureSettings(), FLEET).apply(batch([rows[0], rows[2]]))
        assert content(found) == content(without)
    else:
        assert found.column("quality_bits").to_pylist() == [0, bit, 0]


def test_a_clock_that_was_set_back_begins_anew():
    rows = [sample(3600 + 5 * k) for k in range(5)] + [sample(5 * k) for k in range(40)]
    out = offline(batch(rows), FLEET)
    seconds = out.column("history_seconds").to_pylist()
    assert seconds == [0, 5, 10, 15, 20, *(5 * k for k in range(16))]  # 24 are late, 16 count again
    again = offline(batch(rows[29:]), FLEET)
    for name in ("cell_voltage_ema_90s_volt", "c_rate_ema_1800s", "voltage_std_60s_volt", "current_mean_600s_ampere"):
        assert out.column(name).to_pylist()[5:] == again.column(name).to_pylist()


def test_a_batch_of_refused_rows_alone():
    state = FeatureState(FeatureSettings(), FLEET)
    assert len(state.apply(batch([sample(0, quality_bits=int(Quality.LATE))]))) == 0
    assert len(state.apply(batch([]))) == 0


def test_the_features_are_numbers_where_the_row_is_sane():
    """Only what needs more than one sample, a capacity or more cells may be unknown."""
    found = FeatureState(FeatureSettings(), FLEET).apply(batch([sample(0)]))
    unknown = {n for n in found.schema.names if n not in CARRIED and math.isnan(found.column(n)[0].as_py())}
    rates = {f"temperature_rate_{w}s_celsius_per_second" for w in (60, 600)}
    assert unknown == {"cell_resistance_ohm", *rates}


def test_columns_with_and_without_nulls_run_the_same_compiled_kernel():
    state = FeatureState(FeatureSettings(), FLEET)
    state.apply(batch([sample(0)]))
    compiled = len(kernels.extract.signatures)  # one for each number of windows
    for change in ({"voltage_volt": 14.8}, {"cell_voltage_volt": [3.7, None]}, {"cell_temperature_celsius": []}):
        state.apply(batch([sample(0), sample(1, **change)]).slice(1))
    assert len(kernels.extract.signatures) == compiled


def test_offline_is_the_stream_in_one_batch():
    rows = batch([*random_series(1), *random_series(2, device="big"), *random_series(1)])
    quality, state = QualityState(QualitySettings(), FLEET), FeatureState(FeatureSettings(), FLEET)
    parts = [state.apply(quality.apply(part)) for part in cut(rows, range(0, len(rows), 37))]
    assert content(joined(parts)) == content(offline(rows, FLEET))


def test_carried_columns_are_those_of_the_row():
    rows = batch([sample(k, source_offset=k, quality_bits=int(Quality.LATE) * (k % 2)) for k in range(6)])
    found = FeatureState(FeatureSettings(), FLEET).apply(rows)
    assert found.column("source_offset").to_pylist() == [0, 2, 4]
    assert found.column("event_time").cast("int64").to_pylist() == [at(0), at(2), at(4)]


@pytest.mark.parametrize(
    "change, word",
    [
        ({"windows_seconds": (61,)}, "multiple of 6"),
        ({"windows_seconds": (60, 60)}, "once"),
        ({"restart_seconds": math.inf}, "restart_seconds"),
        ({"restart_seconds": math.nan}, "restart_seconds"),
        ({"step_c_rate": 0.0}, "step_c_rate"),
        ({"step_seconds": -1.0}, "step_seconds"),
    ],
)
def test_settings_are_checked(change, word):
    with pytest.raises(ValueError, match=word):
        FeatureSettings(**change)


def test_the_table_names_every_column_once_with_a_unit():
    table = features()
    assert len({f.name for f in table}) == len(table)
    assert all(f.unit and f.formula for f in table)
    for f in table:
        assert f"| `{f.name}` | {f.unit} | {f.formula} |" in describe()
