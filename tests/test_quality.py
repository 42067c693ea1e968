"""Each quality rule: what sets its bit, and the nearest thing that does not."""

import inspect

import numpy as np
import pytest
from telemetry import at, batch, cut, sample

from voltmill.kernels import quality as rules
from voltmill.kernels.fleet import Fleet, FleetEntry, Limits
from voltmill.kernels.schema import REFUSED, TELEMETRY, Quality
from voltmill.operators.quality import GIVEN, QualitySettings, QualityState

Q = Quality
FLEET = Fleet([FleetEntry(match="m*", cell_type="lg-hg2", capacity_ah=3.0, gap_seconds=30.0)])
TOP = 2**64 - 1


def judged(*samples, settings=None, fleet=FLEET):
    """The bits of each sample, in one batch."""
    return bits(QualityState(settings or QualitySettings(), fleet), *samples)


def bits(state, *samples):
    return [Quality(b) for b in state.apply(batch(samples)).column("quality_bits").to_pylist()]


def steady(n, *, step=1.0, first=0, **change):
    """Sound samples with a counter."""
    return [sample(k * step, seq=first + k, **change) for k in range(n)]


def test_sound_samples_bear_no_bit():
    assert judged(*steady(100)) == [Q(0)] * 100


def test_every_bit_has_a_rule():
    assert set(rules.RULES) == set(Quality)


def test_nothing_but_the_bits_changes_and_no_row_is_dropped():
    rows = batch([*steady(3), sample(0, seq=0), sample(-500, seq=7), sample(9, arrival=-100)])
    out = QualityState(QualitySettings(), FLEET).apply(rows)
    assert out.schema.equals(TELEMETRY, check_metadata=True)
    assert out.drop_columns(["quality_bits"]).equals(rows.drop_columns(["quality_bits"]))


def test_given_bits_are_kept_and_all_others_computed_anew():
    everything = int(sum(Quality))
    assert judged(sample(0, quality_bits=everything)) == [GIVEN]
    assert judged(sample(0, quality_bits=int(Q.REISSUED))) == [0]
    assert judged(*[sample(0, quality_bits=int(Q.UNIT_CONVERTED), seq=1)] * 2)[1] == Q.UNIT_CONVERTED | Q.DUPLICATE


class TestReissued:
    def test_the_source_says_it_whatever_the_stored_bits_say(self):
        rows = [sample(0, seq=0), sample(1, seq=1, source="redrive"), sample(2, seq=2, quality_bits=int(Q.REISSUED))]
        assert judged(*rows) == [0, Q.REISSUED, 0]

    def test_in_a_slice_of_a_batch(self):
        rows = [sample(k, seq=k, source="redrive" if k % 2 else "test") for k in range(8)]
        state = QualityState(QualitySettings(), FLEET)
        found = [Quality(b) for part in cut(batch(rows), [3, 4]) for b in state.apply(part)["quality_bits"].to_pylist()]
        assert found == [0, Q.REISSUED] * 4

    def test_they_take_part_in_state_where_nothing_newer_is_known(self):
        assert judged(*steady(3, source="redrive"), sample(9, seq=3)) == [Q.REISSUED] * 3 + [0]

    def test_many_old_ones_are_late_and_never_a_clock_set_back(self):
        old = steady(300, source="redrive")
        found = judged(sample(5000, seq=5000), *old, sample(5001, seq=5001))
        assert set(found[1:-1]) == {Q.REISSUED | Q.OUT_OF_ORDER | Q.LATE} and found[-1] == 0
        assert 0 in judged(sample(5000, seq=5000), *steady(300))[25:]  # else the device's clock would be the cause


class TestDuplicate:
    def test_same_counter_again(self):
        assert judged(*steady(3), sample(1, seq=1, arrival=30)) == [0, 0, 0, Q.DUPLICATE]

    def test_a_copy_of_the_newest(self):
        assert judged(sample(0, seq=5), sample(0, seq=5)) == [0, Q.DUPLICATE]

    def test_a_late_first_copy_is_no_duplicate_its_second_is(self):
        rows = [sample(0, seq=0), sample(2, seq=2), sample(1, seq=1), sample(1, seq=1)]
        assert judged(*rows) == [0, Q.GAP_BEFORE, Q.OUT_OF_ORDER, Q.DUPLICATE]

    def test_64_counters_are_remembered_and_the_65th_is_refused_by_its_time(self):
        found = judged(*steady(65, step=0.5), sample(0.5, seq=1), sample(0, seq=0))
        assert found[65:] == [Q.DUPLICATE, Q.OUT_OF_ORDER]
        assert judged(*steady(200), sample(10, seq=10))[-1] == Q.OUT_OF_ORDER | Q.LATE

    def test_counters_left_out_in_a_jump_over_the_window_are_forgotten(self):
        found = judged(sample(0, seq=0), sample(1, seq=64), sample(2, seq=65), sample(0, seq=0), sample(1, seq=64))
        assert found == [0, Q.GAP_BEFORE, 0, Q.OUT_OF_ORDER, Q.DUPLICATE]

    def test_a_restarted_counter_at_newer_times_is_none(self):
        again = [sample(10 + k, seq=k) for k in range(5)]
        assert judged(*steady(5), *again) == [0] * 10
        assert judged(*steady(5, first=1000), *again) == [0] * 10

    def test_after_a_restart_copies_are_found_again(self):
        again = [sample(10 + k, seq=k) for k in range(5)]
        assert judged(*steady(5), *again, sample(12, seq=2))[-1] == Q.DUPLICATE

    def test_the_last_counter_of_64_bits_and_its_wrap(self):
        rows = [sample(k, seq=(TOP - 1 + k) % 2**64) for k in range(5)]
        assert judged(*rows) == [0] * 5
        assert judged(*rows, sample(4, seq=2), sample(1, seq=TOP))[-2:] == [Q.DUPLICATE, Q.OUT_OF_ORDER]

    def test_a_garbled_counter_harms_one_gap_and_nothing_after(self):
        rows = [*steady(5), sample(5, seq=TOP), *[sample(k, seq=k) for k in range(6, 10)]]
        assert judged(*rows) == [0] * 5 + [Q.GAP_BEFORE] + [0] * 4

    def test_without_a_counter_by_the_time(self):
        rows = [sample(k) for k in range(8)]
        assert judged(*rows, sample(0))[-1] == Q.DUPLICATE
        assert judged(*rows, sample(0.5))[-1] == Q.OUT_OF_ORDER
        assert judged(*rows, sample(8), sample(0))[-1] == Q.OUT_OF_ORDER  # the ninth is forgotten

    def test_each_device_has_its_own_counter(self):
        assert judged(sample(0, seq=1), sample(0, seq=1, device_id="m2"), sample(0, device_id="m3")) == [0] * 3

    def test_a_copy_of_a_sample_ahead_of_its_time(self):
        """Sent again after an hour, it no longer looks ahead of its arrival; a copy it is still."""
        for seq in (1, None):
            rows = [sample(0, seq=seq and 0), sample(3600, seq=seq, arrival=1), sample(3600, seq=seq, arrival=3601)]
            assert judged(*rows)[1:] == [Q.CLOCK_SKEW, Q.DUPLICATE]


class TestOrder:
    def test_older_than_the_newest(self):
        assert judged(sample(0), sample(60), sample(0.000001)) == [0, Q.GAP_BEFORE, Q.OUT_OF_ORDER]

    def test_late_by_more_than_late_seconds(self):
        assert judged(sample(0), sample(60.000001), sample(0.0000005), sample(0))[-1] == Q.DUPLICATE
        assert judged(sample(60), sample(0)) == [0, Q.OUT_OF_ORDER]
        assert judged(sample(60), sample(-0.000001)) == [0, Q.OUT_OF_ORDER | Q.LATE]

    def test_same_time_with_another_counter(self):
        assert judged(sample(0, seq=0), sample(0, seq=1)) == [0, Q.OUT_OF_ORDER]

    def test_the_clock_goes_back_and_catches_up(self):
        rows = [sample(100), sample(40, arrival=101), sample(41), sample(101), sample(39)]
        assert judged(*rows) == [0, Q.OUT_OF_ORDER, Q.OUT_OF_ORDER, 0, Q.OUT_OF_ORDER | Q.LATE]

    def test_a_late_row_takes_no_part_in_state(self):
        late = sample(-100, cell_voltage_volt=[3.0] * 9, cell_temperature_celsius=[90.0], current_ampere=99.0)
        assert judged(sample(0), late, sample(1)) == [0, Q.OUT_OF_ORDER | Q.LATE, 0]

    def test_a_clock_set_back_for_good(self):
        """It was an hour ahead, which an old archive does not show; samples count again after two minutes."""
        rows = [*steady(3, step=5), *[sample(3600 + 5 * k, seq=3 + k) for k in range(3)]]
        rows += [sample(15 + 5 * k, seq=6 + k) for k in range(30)]
        late = Q.OUT_OF_ORDER | Q.LATE
        assert judged(*rows)[3:] == [Q.GAP_BEFORE, 0, 0, *[late] * 24, Q.GAP_BEFORE, *[0] * 5]

    def test_a_backlog_among_samples_on_time_is_late(self):
        rows = [s for k in range(40) for s in (sample(3600 + 5 * k, seq=1000 + k), sample(5 * k, seq=k))]
        assert set(judged(*rows)[3::2]) == {Q.OUT_OF_ORDER | Q.LATE}

    def test_late_rows_in_no_order_do_not_set_the_clock_back(self):
        rows = [sample(3600), *[sample(1000 - 5 * k) for k in range(100)]]
        assert set(judged(*rows)[1:]) == {Q.OUT_OF_ORDER | Q.LATE}


class TestClockSkew:
    def test_ahead_of_its_arrival(self):
        assert judged(sample(60, arrival=0)) == [0]
        assert judged(sample(60.000001, arrival=0)) == [Q.CLOCK_SKEW]

    def test_takes_no_part_in_state(self):
        odd = {"cell_voltage_volt": [3.0] * 9, "cell_temperature_celsius": [90.0], "current_ampere": 99.0}
        rows = [sample(0, seq=0), sample(7200, arrival=1, seq=1, **odd), sample(2, seq=2), sample(3, seq=3)]
        assert judged(*rows) == [0, Q.CLOCK_SKEW, 0, 0]
        without_counter = [{k: v for k, v in row.items() if k != "seq"} for row in rows]
        assert judged(*without_counter) == [0, Q.CLOCK_SKEW, 0, 0]

    def test_a_restart_after_it_is_none_of_its_copies(self):
        again = [sample(10 + k, seq=k) for k in range(5)]
        assert judged(*steady(5), sample(7200, arrival=5, seq=5), *again)[5:] == [Q.CLOCK_SKEW] + [0] * 5

    def test_as_the_first_row(self):
        assert judged(sample(7200, arrival=0), sample(1), sample(2)) == [Q.CLOCK_SKEW, 0, 0]

    def test_no_skew_where_the_arrival_is_unknown(self):
        assert judged(sample(0), sample(20, arrival=None), sample(21)) == [0, 0, 0]


class TestGap:
    def test_by_the_counter(self):
        assert judged(sample(0, seq=1), sample(1, seq=2), sample(2, seq=4)) == [0, 0, Q.GAP_BEFORE]

    def test_by_the_time(self):
        assert judged(sample(0), sample(30), sample(60.000001)) == [0, 0, Q.GAP_BEFORE]

    def test_both_at_once(self):
        assert judged(sample(0, seq=1), sample(31, seq=9)) == [0, Q.GAP_BEFORE]

    def test_none_before_the_first(self):
        assert judged(sample(0, seq=77)) == [0]

    def test_a_duplicate_bears_none(self):
        assert judged(sample(0, seq=0), sample(5, seq=5), sample(5, seq=5))[-1] == Q.DUPLICATE

    def test_the_entry_of_the_device_says_how_long(self):
        fleet = Fleet([FleetEntry(match="m", gap_seconds=300.0)])
        rows = [sample(0), sample(200), sample(0, device_id="x"), sample(200, device_id="x")]
        assert judged(*rows, fleet=fleet) == [0, 0, 0, Q.GAP_BEFORE]


class TestRange:
    @pytest.mark.parametrize(
        "change",
        [
            {"cell_voltage_volt": [3.7, 66.0, 3.7, 3.7]},
            {"cell_voltage_volt": [3.7, float("nan"), 3.7, 3.7]},
            {"cell_voltage_volt": [3.7, None, 3.7, 3.7]},
            {"cell_voltage_volt": [3.7, 0.49, 3.7, 3.7]},
            {"cell_voltage_volt": [3.7, -3.7, 3.7, float("inf")]},
            {"cell_temperature_celsius": []},
            {"cell_temperature_celsius": [25.0, float("nan")]},
            {"cell_temperature_celsius": [25.0, 100.1]},
            {"cell_temperature_celsius": [-40.1, 25.0]},
            {"current_ampere": float("nan")},
            {"current_ampere": float("inf")},
            {"current_ampere": -5000.5},
        ],
        ids=str,
    )
    def test_outside_or_missing(self, change):
        assert judged(sample(0, **change)) == [Q.RANGE]
        assert judged(sample(0), sample(1, **change), sample(2)) == [0, Q.RANGE, 0]

    def test_no_cells_at_all(self):
        assert judged(sample(0, cell_voltage_volt=[])) == [Q.RANGE]
        changed = Q.CELL_COUNT_CHANGED
        assert judged(sample(0), sample(1, cell_voltage_volt=[]), sample(2)) == [0, Q.RANGE | changed, changed]

    def test_the_limits_themselves_are_believed(self):
        edges = {"cell_voltage_volt": [0.5, 5.0], "cell_temperature_celsius": [-40.0, 100.0]}
        assert judged(sample(0, current_ampere=-5000.0, **edges)) == [0]

    def test_the_limits_of_the_entry(self):
        fleet = Fleet([FleetEntry(match="m", limits=Limits(cell_voltage_volt=(2.0, 3.65)))])
        assert judged(sample(0), sample(0, device_id="x"), fleet=fleet) == [Q.RANGE, 0]

    def test_missing_module_voltage_is_no_fault(self):
        assert judged(sample(0, voltage_volt=None)) == [0]


def cells(*volts):
    return {"cell_voltage_volt": list(volts)}


class TestRate:
    def test_a_cell_jumps(self):
        assert judged(sample(0, **cells(3.7, 3.7)), sample(1, **cells(3.7, 2.69))) == [0, Q.RATE]
        assert judged(sample(0, **cells(3.7, 3.7)), sample(1, **cells(3.7, 2.71))) == [0, 0]

    def test_longer_intervals_allow_more(self):
        assert judged(sample(0, **cells(4.5, 3.7)), sample(3, **cells(2.0, 3.7))) == [0, 0]

    def test_below_a_second_the_step_of_a_load_is_allowed(self):
        assert judged(sample(0, **cells(3.7, 3.7)), sample(0.1, **cells(3.0, 3.0))) == [0, 0]

    def test_not_across_a_gap(self):
        assert judged(sample(0, **cells(4.5)), sample(31, **cells(0.6)))[-1] == Q.GAP_BEFORE

    def test_a_reading_that_is_not_believed_is_no_neighbour(self):
        rows = [sample(0, **cells(3.7, 3.7)), sample(1, **cells(66.0, 3.7)), sample(2, **cells(3.7, 3.7))]
        assert judged(*rows) == [0, Q.RANGE, 0]

    def test_a_cell_that_is_back_after_minutes_may_have_moved(self):
        silent = [sample(k, **cells(None, 3.7 - 0.01 * k)) for k in range(1, 120)]
        assert judged(sample(0, **cells(3.7, 3.7)), *silent, sample(120, **cells(2.5, 2.5)))[-1] == 0

    def test_temperatures(self):
        warm = [sample(0), sample(1, cell_temperature_celsius=[25.0, 31.1])]
        assert judged(*warm) == [0, Q.RATE]
        cold = [sample(0), sample(1, cell_temperature_celsius=[19.9, 26.0])]
        assert judged(*cold) == [0, Q.RATE]
        assert judged(sample(0), sample(1, cell_temperature_celsius=[20.1, 30.9])) == [0, 0]
        assert judged(sample(0), sample(2, cell_temperature_celsius=[25.0, 35.9])) == [0, 0]
        assert judged(sample(0), sample(0.1, cell_temperature_celsius=[25.0, 30.9])) == [0, 0]

    def test_a_probe_that_falls_silent_moves_nothing(self):
        probes = [[5.0, 25.0], [None, 25.0], [None, 25.0], [None, 31.0], [5.0, 31.0], [5.0, 31.0], [5.0, 37.0]]
        rows = [sample(k, cell_temperature_celsius=p) for k, p in enumerate(probes)]
        assert judged(*rows) == [0, Q.RANGE, Q.RANGE, Q.RANGE | Q.RATE, 0, 0, Q.RATE]

    def test_a_probe_that_is_back_after_minutes_may_have_moved(self):
        silent = [sample(k, cell_temperature_celsius=[None]) for k in range(1, 60)]
        last = sample(60, cell_temperature_celsius=[40.0])
        assert judged(sample(0, cell_temperature_celsius=[25.0]), *silent, last)[-1] == 0


class TestStuck:
    def moving(self, n, stuck=(), step=0.005, first=0):
        """Four cells that fall together, but for those that stand still."""
        volts = [[3.7 if c in stuck else 3.7 - step * k for c in range(4)] for k in range(first, n)]
        return [sample(first + k, seq=first + k, cell_voltage_volt=v) for k, v in enumerate(volts)]

    def test_one_cell_stands_still_while_its_siblings_move(self):
        found = judged(*self.moving(20, stuck=[2]))
        assert found[:15] == [0] * 15 and found[15:] == [Q.STUCK] * 5  # the tenth with the mean 20 mV away

    def test_not_if_the_mean_moved_less(self):
        assert judged(*self.moving(20, stuck=[2], step=0.001)) == [0] * 20

    def test_rest_raises_no_alarm(self):
        assert judged(*self.moving(200, step=0.0)) == [0] * 200

    @pytest.mark.parametrize("lag, bit", [(9, Q(0)), (10, Q.STUCK)])
    def test_after_a_long_rest_a_cell_may_show_a_step_late(self, lag, bit):
        rest = [sample(k, **cells(3.7, 3.7, 3.7, 3.7)) for k in range(100)]
        step = [sample(100 + k, **cells(3.66, 3.66, 3.66, 3.7)) for k in range(lag)]
        assert judged(*rest, *step, sample(100 + lag, **cells(3.66, 3.66, 3.66, 3.66)))[-2:] == [bit, 0]

    def test_loads_that_come_and_go_are_counted_together(self):
        rows = [sample(k, **cells(*[3.7 - 0.03 * (k % 2)] * 3, 3.7)) for k in range(30)]
        assert judged(*rows) == [0] * 19 + [Q.STUCK, 0] * 5 + [Q.STUCK]

    def test_all_that_move_raise_none(self):
        assert judged(*self.moving(100)) == [0] * 100

    def test_it_ends_when_the_cell_moves(self):
        rows = self.moving(25, stuck=[2])
        rows[20]["cell_voltage_volt"][2] = 3.65
        found = judged(*rows)
        assert found[19] == Q.STUCK and found[20:] == [0] * 5

    def test_a_single_cell_has_no_siblings(self):
        assert judged(*[sample(k, **cells(3.7)) for k in range(50)]) == [0] * 50

    def test_a_run_longer_than_its_counter(self):
        rows = [sample(k, **cells(3.7, 3.5 + 0.1 * (k == 0))) for k in range(66_000)]
        found = judged(*rows, settings=QualitySettings(stuck_samples=65_535))
        assert found[65_534] == 0 and found[65_535:] == [Q.STUCK] * 465

    def test_at_rest_a_weak_cell_that_falls_silent_moves_no_mean(self):
        """The mean of the cells moves when a reading far from it is missing; no cell did."""
        rest = [sample(k, **cells(3.7, 3.7, 3.7, 3.0)) for k in range(20)]
        lost = [sample(20 + k, **cells(3.7, 3.7, 3.7, None)) for k in range(20)]
        back = [sample(40 + k, **cells(3.7, 3.7, 3.7, 3.0)) for k in range(20)]
        assert judged(*rest, *lost, *back) == [0] * 20 + [Q.RANGE] * 20 + [0] * 20


class TestSign:
    def stepped(self, n, sign, **change):
        """Load steps of 1 A every sample on a cell of 50 mΩ."""
        amps = [0.0 if k % 2 else -1.0 for k in range(n)]
        return [sample(k, current_ampere=sign * i, **(cells(3.7 + 0.05 * i) | change)) for k, i in enumerate(amps)]

    def test_voltage_that_falls_when_the_current_rises(self):
        found = judged(*self.stepped(60, -1))
        assert found[:20] == [0] * 20 and found[20:] == [Q.SIGN_SUSPECT] * 40

    def test_the_right_sign(self):
        assert judged(*self.stepped(200, 1)) == [0] * 200

    def test_small_steps_do_not_vote(self):
        rows = [sample(k, current_ampere=0.29 * (k % 2), **cells(3.7 - 0.01 * (k % 2))) for k in range(100)]
        assert judged(*rows) == [0] * 100

    @pytest.mark.parametrize("step, bit", [(24.0, Q(0)), (26.0, Q.SIGN_SUSPECT)])
    def test_without_a_capacity_what_the_device_draws_is_the_measure(self, step, bit):
        rows = [sample(k, current_ampere=step * (k % 2), **cells(3.7 - 0.01 * (k % 2))) for k in range(1, 100)]
        drawn = sample(0, current_ampere=-100.0, **cells(3.7))
        odd = sample(0.5, current_ampere=float("nan"), **cells(3.7))
        assert judged(drawn, odd, *rows, fleet=Fleet())[-1] == bit

    def test_changes_that_a_bms_hardly_resolves_do_not_vote(self):
        rows = [sample(k, current_ampere=9.0 * (k % 2), **cells(3.7 - 0.0019 * (k % 2))) for k in range(100)]
        assert judged(*rows) == [0] * 100
        rows = [sample(k, current_ampere=9.0 * (k % 2), **cells(3.7 - 0.0021 * (k % 2))) for k in range(100)]
        assert judged(*rows)[-1] == Q.SIGN_SUSPECT

    def test_it_is_taken_back_when_the_sign_is_mended(self):
        right = [r | {"event_time": at(100 + k), "ingest_time": at(100 + k)} for k, r in enumerate(self.stepped(90, 1))]
        assert judged(*self.stepped(60, -1), *right)[-1] == 0

    def test_rows_without_believable_cells_or_current_do_not_vote(self):
        rows = self.stepped(200, 1)
        for row in rows[::2]:
            row["cell_voltage_volt"] = [None]
        assert not any(b & Q.SIGN_SUSPECT for b in judged(*rows))
        rows = self.stepped(200, 1)
        for row in rows[::2]:
            row["current_ampere"] = 9e9  # where the load is, so the voltage falls when this "rises"
        assert not any(b & Q.SIGN_SUSPECT for b in judged(*rows))


class TestCellCount:
    def wide(self, t, n, volt=3.7):
        return sample(t, cell_voltage_volt=[volt + 0.001 * k for k in range(n)])

    def test_a_module_that_reports_87_then_96_then_87_cells(self):
        rows = [self.wide(k, n) for k, n in enumerate([87, 87, 96, 96, 87, 87])]
        changed = Q.CELL_COUNT_CHANGED
        assert judged(*rows) == [0, 0, changed, 0, changed, 0]
        state = QualityState(QualitySettings(), FLEET)
        assert [bits(state, row)[0] for row in rows] == [0, 0, changed, 0, changed, 0]

    def test_a_wider_row_leaves_its_neighbours_their_cells(self):
        """Both devices move in the arena; a rate is seen only if each still finds its own readings."""
        state = QualityState(QualitySettings(), FLEET)
        other = self.wide(0, 4, volt=3.0) | {"device_id": "m2"}
        bits(state, self.wide(0, 4), other)
        rows = [self.wide(1, 4), other | {"event_time": at(1)}, self.wide(2, 9, volt=2.0), self.wide(3, 9, volt=3.9)]
        assert bits(state, *rows) == [0, 0, Q.CELL_COUNT_CHANGED, Q.RATE]

    def test_counts_of_refused_rows_do_not_matter(self):
        assert judged(self.wide(5, 4), self.wide(1, 9), self.wide(6, 4)) == [0, Q.OUT_OF_ORDER, 0]


class TestSum:
    def test_cells_that_do_not_add_up(self):
        assert judged(sample(0, voltage_volt=15.11)) == [Q.SUM_MISMATCH]
        assert judged(sample(0, voltage_volt=15.09)) == [0]
        assert judged(sample(0, voltage_volt=14.52)) == [0]
        assert judged(sample(0, voltage_volt=14.50)) == [Q.SUM_MISMATCH]

    def test_not_without_the_voltage_or_with_a_cell_missing(self):
        assert judged(sample(0, voltage_volt=None)) == [0]
        assert judged(sample(0, voltage_volt=99.0, **cells(3.7, None))) == [Q.RANGE]
        assert judged(sample(0, voltage_volt=14.8, **cells())) == [Q.RANGE]


def test_columns_with_and_without_nulls_run_the_same_compiled_kernel():
    """Numba compiles anew for a read-only array; in a stream that would stall for seconds."""
    state = QualityState(QualitySettings(), FLEET)
    state.apply(batch([sample(0)]))
    compiled = len(rules.judge.signatures)
    for change in ({"seq": 1}, {"arrival": None}, {"voltage_volt": 14.8}, cells(3.7, None), cells()):
        state.apply(batch([sample(0, **change)]))
        state.apply(batch([sample(0), sample(0, **change)]))
        state.apply(batch([sample(0), sample(0, **change)]).slice(1))
    assert len(rules.judge.signatures) == compiled == 1


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", [n for n in QualitySettings.__struct_fields__])
def test_thresholds_are_checked(name, value):
    with pytest.raises(ValueError, match=name):
        QualitySettings(**{name: value})


def test_refused_rows_are_those_that_say_so():
    source = inspect.getsource(Quality)
    named = [line for line in source.splitlines() if "takes no part in state" in line and "<<" in line]
    refused = sum(Quality[line.split("=")[0].strip()] for line in named if "that value" not in line)
    assert refused == REFUSED


def test_no_rows():
    state = QualityState(QualitySettings(), FLEET)
    assert len(state.apply(batch([]))) == 0
    assert len(QualityState(QualitySettings(), FLEET, state.snapshot()).table) == 0
    state.apply(batch([sample(0, **cells())]))
    assert bits(QualityState(QualitySettings(), FLEET, state.snapshot()), sample(1, **cells())) == [Q.RANGE]


def test_extreme_values_raise_nothing():
    rng = np.random.default_rng(0)
    odd = [0.0, -0.0, 1e38, -1e38, float("nan"), float("inf"), -float("inf"), 3.7, 1e-40]
    pick = lambda: odd[rng.integers(len(odd))]  # noqa: E731
    rows = [
        sample(0, arrival=None)
        | {"event_time": int(rng.choice([0, -1, 2**62, -(2**62), at(k)])), "seq": int(rng.choice([0, 2**63, k]))}
        | {"current_ampere": pick(), "voltage_volt": pick(), "cell_voltage_volt": [pick() for _ in range(k % 5)]}
        | {"cell_temperature_celsius": [pick() for _ in range(k % 3)]}
        for k in range(300)
    ]
    state = QualityState(QualitySettings(), FLEET)
    assert len(bits(state, *rows)) == 300
    for name in ("current", "cell_mean"):
        assert not np.isinf(state.table.rows[name][:1]).any()
