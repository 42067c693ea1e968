"""What is a session: cycles whose sessions, charge and times are known; any cut and restart gives the same bytes."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from session_rows import CHARGE, DISCHARGE, FLEET, FULL_AH, REST, found, hold, kinds, ramp, series
from telemetry import START_US, at, batch, content, cut, joined, sample

from voltmill.kernels import session_state
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import REFUSED, Quality
from voltmill.kernels.sessions import follow
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.sessions import SessionSettings, SessionState, offline
from voltmill.operators.shard import split

NAN = math.nan


def us(time):
    return round(time.timestamp() * 1e6)


class TestBoundaries:
    def test_a_charge_of_constant_current_to_the_last_digit(self):
        """The current is taken to flow from the sample before the first that shows it to the last that does."""
        rest, charge = found(series(REST, ramp(1.5, (3.5, 3.9), 3600), REST))
        assert kinds([rest, charge]) == ["rest", "charge"]
        assert us(charge["start_time"]) == at(600) and us(charge["event_time"]) == at(4200)
        assert charge["duration_seconds"] == 3600
        assert charge["charge_ah"] == pytest.approx(1.5, rel=1e-6)

    def test_sessions_follow_each_other_without_a_gap_or_an_overlap(self):
        sessions = found(series(REST, CHARGE, REST, DISCHARGE, REST, CHARGE, REST))
        assert kinds(sessions) == ["rest", "charge", "rest", "discharge", "rest", "charge"]
        for before, after in zip(sessions, sessions[1:], strict=False):
            assert before["event_time"] == after["start_time"]

    def test_it_is_said_when_it_is_over_and_never_before(self):
        rows = series(REST, CHARGE, REST)
        rows = [row | {"source_offset": k} for k, row in enumerate(rows)]
        state = SessionState(SessionSettings(), FLEET)
        out = [state.apply(batch([row])).to_pylist() for row in rows]
        ((k, charge),) = [(k, s) for k, made in enumerate(out) for s in made if s["session"] == "charge"]
        after = at(600 + 4800 + 5 + 300)  # the rest had to last as long as the shortest session
        assert rows[k]["event_time"] == after
        assert (charge["source_offset"], us(charge["ingest_time"])) == (k, rows[k]["ingest_time"])
        assert us(charge["event_time"]) == at(600 + 4800)

    def test_without_a_rest_between(self):
        charge, discharge = found(series(CHARGE, DISCHARGE, REST))
        assert kinds([charge, discharge]) == ["charge", "discharge"]
        assert charge["charge_ah"] == pytest.approx(FULL_AH, rel=2e-3)  # the first sample has none before it
        assert discharge["charge_ah"] == pytest.approx(2.25, rel=1e-6)

    def test_the_tail_at_constant_voltage_belongs_to_the_charge(self):
        """Down to a C/50: 0.06 A of 3 Ah."""
        tail = ramp((1.5, 0.0601), (4.2, 4.2), 7200)
        (charge,) = found(series(REST, ramp(1.5, (3.5, 4.2), 3600), tail, REST))[1:]
        assert charge["charge_ah"] == pytest.approx(1.5 + 2 * (1.5 + 0.0601) / 2, rel=1e-5)
        assert charge["duration_seconds"] == 10_800

    def test_a_pause_before_the_constant_voltage_does_not_end_it(self):
        """As cyclers make one."""
        pause = hold(0.0, 200, volt=4.1)
        sessions = found(series(REST, CHARGE[:720], pause, CHARGE[720:], REST))
        assert kinds(sessions) == ["rest", "charge"]
        assert sessions[1]["charge_ah"] == pytest.approx(FULL_AH, rel=1e-3)

    @pytest.mark.parametrize("seconds, count", [(290, 1), (320, 3)])
    def test_a_red_light_is_no_rest_but_parking_is(self, seconds, count):
        stop = hold(0.0, seconds)
        assert len(found(series(REST, hold(-1.0, 900), stop, hold(-1.0, 900), REST))[1:]) == count

    def test_a_drive_with_regeneration_is_one_discharge_from_its_first_pulse(self):
        pulse = [*hold(-3.0, 20), *hold(1.0, 10), *hold(0.0, 30)]
        (drive,) = found(series(REST, *[pulse] * 60, REST))[1:]
        assert drive["session"] == "discharge"
        # Pulses are rectangles: the later current holds where the direction changes.
        # It ends with the last pulse out: the regeneration after that belongs to the rest.
        assert drive["charge_against_ah"] == pytest.approx(59 * 10 / 3600, rel=1e-6)
        assert drive["charge_ah"] == pytest.approx((60 * 3.0 * 20 - 59 * 10) / 3600, rel=1e-6)
        assert us(drive["start_time"]) == at(600) and us(drive["event_time"]) == at(600 + 60 * 60 - 40)

    def test_a_long_descent_is_a_charge(self):
        sessions = found(series(REST, hold(-3.0, 900), hold(1.0, 900), hold(-3.0, 900), REST))
        assert kinds(sessions) == ["rest", "discharge", "charge", "discharge"]

    def test_what_is_shorter_than_a_session_joins_the_one_it_interrupts(self):
        sessions = found(series(REST, hold(1.5, 20), REST, CHARGE, hold(-0.5, 60), CHARGE, REST))
        assert kinds(sessions) == ["rest", "charge"]
        assert sessions[0]["charge_ah"] == pytest.approx(1.5 * 20 / 3600, rel=1e-6)
        assert sessions[1]["charge_against_ah"] == pytest.approx(0.5 * 60 / 3600, rel=1e-6)

    def test_a_burst_is_not_remembered_for_longer_than_a_session(self):
        """A minute at 1C is 0.03C in the mean of half an hour: still, the drive after that begins when it begins."""
        rows = series(REST, hold(-3.0, 60), hold(0.0, 1200), hold(-3.0, 900), hold(2.5, 100), hold(0.0, 1200), REST)
        sessions = found([*rows, *series(CHARGE, REST, begin=600 + 60 + 1200 + 900 + 100 + 1200 + 600)])
        assert kinds(sessions) == ["rest", "discharge", "rest", "charge"]
        assert us(sessions[1]["start_time"]) == at(600 + 60 + 1200) and sessions[1]["duration_seconds"] == 900
        assert sessions[2]["duration_seconds"] == 1800

    def test_charge_and_discharge_by_turns_are_neither(self):
        noise = [part for _ in range(200) for part in (*hold(1.0, 10), *hold(-1.0, 10))]
        assert found(series(REST, noise, REST, CHARGE, REST)) and kinds(found(series(noise, REST))) == []

    def test_noise_around_zero_is_rest(self):
        """Within the offset of a common sensor: 50 mA of 3 Ah."""
        rng = random.Random(1)
        noise = [(5.0, {"current_ampere": 0.03 + rng.gauss(0, 0.01), "cell_voltage_volt": [3.7]}) for _ in range(900)]
        assert kinds(found(series(noise, CHARGE, REST))) == ["rest", "charge"]


class TestGaps:
    def test_a_short_one_is_bridged_and_counted(self):
        whole, gap = ramp(1.5, (3.5, 3.9), 3600), 900
        part = [*whole[:300], (gap + 5.0, whole[480][1]), *whole[481:]]
        (charge,) = found(series(REST, part, REST))[1:]
        assert charge["charge_ah"] == pytest.approx(1.5, rel=1e-6)
        assert charge["missing_fraction"] == pytest.approx((gap + 5) / 3600, rel=1e-6)
        assert charge["samples"] == 720 - 180

    def test_a_long_one_ends_the_session_and_what_flowed_in_it_is_not_guessed(self):
        rows = series(REST, hold(1.5, 1800), [(1801.0, hold(1.5, 5)[0][1])], hold(1.5, 1800), REST)
        _, first, second = found(rows)
        assert (first["charge_ah"], second["charge_ah"]) == (pytest.approx(0.75), pytest.approx(0.75))
        assert us(first["event_time"]) == at(2400) and us(second["start_time"]) == at(2400 + 1801)
        assert second["missing_fraction"] == 0 and math.isnan(second["rest_before_seconds"])

    def test_where_in_a_gap_the_current_began_is_not_guessed(self):
        """It counts for gap_seconds of the fleet entry at most, 30 s."""
        late = [(600.0, hold(1.5, 5)[0][1]), *hold(1.5, 1800)]
        (charge,) = found(series(REST, late, REST))[1:]
        assert charge["duration_seconds"] == 1830 and charge["charge_ah"] == pytest.approx(1.5 * 1830 / 3600, rel=1e-6)

    @pytest.mark.parametrize("seed", range(3))
    def test_lost_samples_leave_the_charge_as_it_is(self, seed):
        rng = random.Random(seed)
        rows = series(REST, CHARGE, REST)
        kept = [row for k, row in enumerate(rows) if k < 125 or rng.random() < 0.7]
        (charge,) = found(kept)[1:]
        assert charge["charge_ah"] == pytest.approx(FULL_AH, rel=2e-3)

    def test_a_clock_that_was_set_back_ends_the_session(self):
        rows = series(REST, CHARGE[:400], REST) + series(REST, CHARGE[:400], REST, begin=-50_000)
        assert kinds(offline(batch(rows), FLEET).to_pylist()) == ["rest", "charge", "rest", "rest", "charge"]

    def test_times_near_and_before_1970(self):
        rows = series(REST, CHARGE, REST)
        moved = [r | {"event_time": r["event_time"] - START_US - 3_000_000_000, "ingest_time": None} for r in rows]
        there, here = found(moved), found(rows)
        assert kinds(there) == kinds(here) and there[1]["charge_ah"] == here[1]["charge_ah"]
        assert us(there[1]["start_time"]) == us(here[1]["start_time"]) - START_US - 3_000_000_000


class TestWhatTakesPart:
    @pytest.mark.parametrize("bit", list(Quality))
    def test_refused_rows_leave_no_trace_and_the_bits_of_the_others_are_collected(self, bit):
        rows = series(REST, CHARGE, REST)
        rows[300] |= {"quality_bits": int(bit), **({"current_ampere": -99.0} if bit & REFUSED else {})}
        sessions = found(rows)
        if bit & REFUSED:
            assert repr(sessions) == repr(found(rows[:300] + rows[301:]))
        assert [s["quality_bits"] for s in sessions] == [0, 0 if bit & REFUSED else bit]

    @pytest.mark.parametrize(
        "change",
        [
            {"current_ampere": NAN},
            {"current_ampere": math.inf},
            {"cell_voltage_volt": []},
            {"cell_voltage_volt": [NAN, 66.0]},
        ],
        ids=str,
    )
    def test_samples_without_a_believable_current_or_cell_are_as_lost(self, change):
        rows = series(REST, CHARGE, REST)
        worse = [row | change if k in (200, 201, 500) else row for k, row in enumerate(rows)]
        lost = [row for k, row in enumerate(rows) if k not in (200, 201, 500)]
        assert repr(found(worse)) == repr(found(lost))

    def test_a_device_of_unknown_capacity_is_judged_by_amperes(self):
        """30 Ah are assumed for the thresholds; what is a fraction of the capacity is unknown."""
        sessions = found(series(REST, hold(0.8, 1800), REST, hold(1.0, 1800), REST, device="x"))
        assert kinds(sessions) == ["rest", "charge"]
        assert sessions[1]["charge_ah"] == pytest.approx(0.5, rel=1e-6)
        assert all(math.isnan(sessions[1][name]) for name in ("charge_fraction", "c_rate_mean", "began_full"))

    def test_thresholds_follow_a_capacity_that_is_configured_later(self):
        before = SessionState(SessionSettings(), Fleet())
        before.apply(batch(series(REST)))
        after = SessionState(SessionSettings(), FLEET, before.snapshot())
        rows = after.apply(batch(series(hold(0.5, 1800), REST, begin=600)))
        assert rows.column("charge_fraction").to_pylist()[1] == pytest.approx(0.25 / 3, rel=1e-6)


def fleet_day(seed, devices=4, n=700):
    """Interleaved rows of some devices: drives, charges and rests with gaps, dirt and refused rows."""
    rng = random.Random(seed)
    rows = []
    for d in range(devices):
        t, volt = rng.uniform(0, 50), rng.uniform(3.2, 4.0)
        current, until = 0.0, 0.0
        for _ in range(n):
            t += rng.choice([5.0, 5.0, 10.0, 30.0, rng.uniform(1, 200)]) + rng.choice([0.0] * 80 + [1000.0, 3000.0])
            if t > until:
                current = rng.choice([0.0, 0.0, 1.5, -2.0, -2.5, 0.2, rng.uniform(-0.1, 0.1)])
                until = t + rng.choice([60, 600, 3000, 6000])
            amps = current + (rng.choice([0, 0, -1.0, 2.5]) if current < -1 else 0)
            volt = min(max(volt + 0.0001 * amps * 10, 2.65), 4.21)
            cells = [volt + 0.01 * amps + rng.gauss(0, 0.002) for _ in range(3)]
            bad = rng.random()
            change = {"current_ampere": NAN} if bad < 0.02 else {"cell_voltage_volt": []} if bad < 0.03 else {}
            probes = [] if rng.random() < 0.3 else [25 + rng.gauss(0, 1), 26.0]
            bits = rng.choice([0] * 20 + [int(Quality.LATE), int(Quality.RANGE), int(Quality.STUCK)])
            row = {"current_ampere": amps, "cell_voltage_volt": cells, "cell_temperature_celsius": probes}
            rows.append(sample(t, device_id=f"m{d}" if d else "plain", quality_bits=bits, **(row | change)))
    rows.sort(key=lambda r: r["event_time"])
    return batch([row | {"source_offset": k} for k, row in enumerate(rows)])


DAY = fleet_day(5)
WHOLE = content(SessionState(SessionSettings(), FLEET).apply(DAY))


def test_the_random_day_has_all_kinds():
    made = SessionState(SessionSettings(), FLEET).apply(DAY).to_pylist()
    assert len(made) > 40 and set(kinds(made)) == {"charge", "discharge", "rest"}
    assert {s["device_id"] for s in made} == {"plain", "m1", "m2", "m3"}


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, len(DAY)), max_size=30))
def test_any_cut_gives_the_same_bytes_with_a_snapshot_and_a_restart_at_each(edges):
    state, out = SessionState(SessionSettings(), FLEET), []
    for part in cut(DAY, edges):
        out.append(state.apply(part))
        state = SessionState(SessionSettings(), FLEET, state.snapshot())
    assert content(joined(out)) == WHOLE


def test_row_by_row_gives_the_same_bytes():
    state = SessionState(SessionSettings(), FLEET)
    assert content(joined([state.apply(DAY.slice(k, 1)) for k in range(len(DAY))])) == WHOLE


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_any_number_of_shards_gives_the_same_rows(shards):
    states = [SessionState(SessionSettings(), FLEET) for _ in range(shards)]
    out = [states[k].apply(part) for k, part in split(DAY, shards) or [(0, DAY)]]
    rows = joined(out)
    order = np.argsort(rows.column("source_offset").to_numpy(), kind="stable")
    assert content(rows.take(order.tolist())) == WHOLE


def test_what_flows_is_in_one_session_each():
    """Net charge over the sessions of a device is that of its samples, integrated once more without the kernel."""
    for seed in range(4):
        rng = random.Random(seed)
        parts = [hold(rng.choice([1.5, -2.0, -0.3, 0.0]), rng.choice([20, 100, 400, 1500])) for _ in range(60)]
        rows = series(REST, *parts, REST, REST)
        sessions = found(rows)
        net = sum(s["charge_ah"] * (-1 if s["session"] == "discharge" else 1) for s in sessions)
        amps = np.array([r["current_ampere"] for r in rows])
        alike = np.sign(amps[1:]) == np.sign(amps[:-1])
        flowed = np.where(alike, 0.5 * (amps[1:] + amps[:-1]), amps[1:]) * 5 / 3600
        times = [r["event_time"] for r in rows]
        first, last = times.index(us(sessions[0]["start_time"])), times.index(us(sessions[-1]["event_time"]))
        assert net == pytest.approx(flowed[first:last].sum(), abs=2e-4), seed


def test_the_state_is_as_large_as_there_are_devices():
    state = SessionState(SessionSettings(), FLEET)
    state.apply(DAY)
    before = state.nbytes
    for seed in range(3):
        state.apply(fleet_day(seed))
    assert state.nbytes == before and session_state.STATE.itemsize < 1700


def test_columns_with_and_without_nulls_run_the_same_compiled_kernel():
    state = SessionState(SessionSettings(), FLEET)
    state.apply(batch([sample(0)]))
    compiled = len(follow.signatures)
    for change in ({"voltage_volt": 14.8}, {"cell_voltage_volt": [3.7, None]}, {"cell_temperature_celsius": []}):
        state.apply(batch([sample(0), sample(1, **change)]).slice(1))
    assert len(follow.signatures) == compiled == 1


def test_a_batch_of_refused_rows_alone():
    state = SessionState(SessionSettings(), FLEET)
    assert len(state.apply(batch([sample(0, quality_bits=int(Quality.LATE))]))) == 0
    assert len(state.apply(batch([]))) == 0


def test_offline_is_the_stream_in_one_batch():
    plain = batch([row | {"quality_bits": 0} for row in DAY.to_pylist()])
    quality, state = QualityState(QualitySettings(), FLEET), SessionState(SessionSettings(), FLEET)
    parts = [state.apply(quality.apply(part)) for part in cut(plain, range(0, len(plain), 97))]
    assert content(joined(parts)) == content(offline(plain, FLEET))


@pytest.mark.parametrize(
    "change, word",
    [
        ({"start_c_rate": 0.01}, "start_c_rate"),
        ({"end_c_rate": 0.0}, "end_c_rate"),
        ({"shortest_seconds": NAN}, "shortest_seconds"),
        ({"break_seconds": 10.0}, "break_seconds"),
        ({"break_seconds": math.inf}, "break_seconds"),
        ({"fewest_samples": 1}, "fewest_samples"),
        ({"unknown_capacity_ah": 0.0}, "unknown_capacity_ah"),
        ({"step_seconds": -1.0}, "step_seconds"),
        ({"level_tolerance": 2.0}, "level_tolerance"),
        ({"full_tolerance_volt": NAN}, "full_tolerance_volt"),
    ],
)
def test_settings_are_checked(change, word):
    with pytest.raises(ValueError, match=word):
        SessionSettings(**change)


def test_thresholds_are_settings():
    rows = series(REST, hold(0.08, 3600), REST)
    assert kinds(found(rows)) == []
    assert kinds(found(rows, start_c_rate=0.025)) == ["rest", "charge"]
    fleet = Fleet([FleetEntry(match="*", capacity_ah=2.0)])
    assert kinds(found(rows, fleet)) == ["rest", "charge"]
