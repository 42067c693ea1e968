"""Device tables: every device its own slot, whatever its id, and snapshots that are refused or restored whole."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from telemetry import batch, sample

from voltmill.kernels.fleet import UNKNOWN, Fleet, FleetEntry, Limits
from voltmill.operators import table as tables
from voltmill.operators.features import FeatureSettings, FeatureState
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.table import DeviceTable, StateError, hashes_of

DTYPE = np.dtype([("number", "<i8"), ("flag", "u1")])
ODD_IDS = ["", "a", "A", "a\x00", "\x00a", "a/b", "Zelle-ä", "电池/1", "🔋", 'qu"ote', "x" * 5000, "é", "e\u0301"]


def ids(*names):
    return pa.array(names, pa.string())


def table(fleet=None, snapshot=None, dtype=DTYPE):
    return DeviceTable(dtype, fleet or Fleet(), snapshot)


def test_slots_are_given_in_the_order_of_the_first_row():
    t = table()
    assert t.slots(ids("b", "a", "b", "c")).tolist() == [0, 1, 0, 2]
    assert t.slots(ids("c", "d", "a")).tolist() == [2, 3, 1]
    assert len(t) == 4 and t.device_ids() == ["b", "a", "c", "d"]


def test_odd_ids_are_all_different_devices():
    t = table()
    assert t.slots(ids(*ODD_IDS)).tolist() == list(range(len(ODD_IDS)))
    assert t.slots(ids(*reversed(ODD_IDS))).tolist() == list(reversed(range(len(ODD_IDS))))
    assert t.device_ids() == ODD_IDS


def test_growth_keeps_rows_facts_and_slots():
    fleet = Fleet([FleetEntry(match="*7", capacity_ah=7.0), FleetEntry(match="*", capacity_ah=1.0)])
    t, names = table(fleet), [f"gw-{k // 10}/module-{k}" for k in range(5000)]
    for begin in range(0, 5000, 333):
        slots = t.slots(ids(*names[begin : begin + 333]))
        t.rows["number"][slots] = np.arange(begin, begin + len(slots))
    assert t.slots(ids(*names)).tolist() == list(range(5000))
    assert t.rows["number"][:5000].tolist() == list(range(5000))
    assert (t.rows["number"][5000:] == 0).all()
    assert t.facts["capacity_ah"][:5000].tolist() == [7.0 if n.endswith("7") else 1.0 for n in names]
    assert t.device_ids() == names


def test_a_new_device_begins_at_zero_though_the_table_grew():
    t = table()
    t.slots(ids(*map(str, range(64))))
    t.rows["number"][:64] = -1
    (slot,) = t.slots(ids("new"))
    assert t.rows["number"][slot] == 0


@pytest.mark.parametrize("value", [0, 2**64 - 1, 255])
def test_devices_that_share_a_hash_are_still_two(monkeypatch, value):
    monkeypatch.setattr(tables, "hash_ids", lambda offsets, data, hashes: hashes.fill(value))
    t, names = table(), [*ODD_IDS, *map(str, range(200))]
    assert t.slots(ids(*names)).tolist() == list(range(len(names)))
    assert t.slots(ids(*names[::-1])).tolist() == list(range(len(names)))[::-1]
    again = table(snapshot=t.snapshot())
    assert again.slots(ids(*names)).tolist() == list(range(len(names)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=4), max_size=30), max_size=8), st.integers(0, 7)
)
def test_it_is_a_dictionary(batches, restart):
    t, known = table(), {}
    for k, names in enumerate(batches):
        if k == restart:
            t = table(snapshot=pickle.loads(pickle.dumps(t.snapshot())))
        expected = [known.setdefault(name, len(known)) for name in names]
        assert t.slots(ids(*names)).tolist() == expected
    assert t.device_ids() == list(known)


def test_slices_of_a_column():
    whole = ids("a", "b", "ab", "c", "a")
    t = table()
    assert t.slots(whole.slice(1, 3)).tolist() == [0, 1, 2]
    assert t.device_ids() == ["b", "ab", "c"]
    assert t.slots(whole.slice(4)).tolist() == [3] and t.slots(whole.slice(2, 0)).tolist() == []
    assert hashes_of(whole.slice(2)).tolist() == hashes_of(ids("ab", "c", "a")).tolist()


def test_a_column_without_rows():
    assert table().slots(ids()).tolist() == [] and hashes_of(ids()).tolist() == []
    bare = pa.StringArray.from_buffers(0, pa.py_buffer(b""), pa.py_buffer(b""))
    assert table().slots(bare).tolist() == []


class TestFacts:
    def test_of_the_first_entry_that_matches(self):
        limits = Limits(cell_voltage_volt=(2.5, 4.25), cell_temperature_celsius=(-20, 60), current_ampere=(-9, 8))
        fleet = Fleet([FleetEntry(match="x"), FleetEntry(match="m*", series=16, gap_seconds=1.5, limits=limits)])
        t = table(fleet)
        t.slots(ids("m1", "x", "nobody"))
        fact = t.facts[0]
        assert (fact["entry"], fact["series"], fact["gap_us"]) == (1, 16, 1_500_000)
        assert np.isnan(fact["capacity_ah"])
        assert [fact[f"{kind}_{end}"] for kind in ("voltage", "temperature", "current") for end in ("low", "high")] == [
            2.5, 4.25, -20, 60, -9, 8,
        ]  # fmt: skip
        assert t.facts["entry"][:3].tolist() == [1, 0, -1]

    def test_an_entry_that_says_what_is_assumed_anyway_is_an_entry(self):
        t = table(Fleet([entry := FleetEntry(match="*")]))
        t.slots(ids("a"))
        assert entry == UNKNOWN and t.facts["entry"][0] == 0


class TestSnapshot:
    def filled(self):
        t = table()
        t.rows["number"][t.slots(ids(*ODD_IDS))] = np.arange(len(ODD_IDS)) + 5
        return t

    def test_comes_back_whole(self):
        t = self.filled()
        again = table(snapshot=pickle.loads(pickle.dumps(t.snapshot())))
        assert again.device_ids() == ODD_IDS and len(again) == len(ODD_IDS)
        assert (again.rows[: len(again)] == t.rows[: len(t)]).all()
        assert again.snapshot() == t.snapshot()

    def test_is_a_copy(self):
        t = self.filled()
        before = t.snapshot()
        kept = pickle.dumps(before)
        t.rows["number"][:] = 0
        t.slots(ids("more"))
        assert pickle.dumps(before) == kept

    def test_can_be_written_to_after_it_is_restored(self):
        again = table(snapshot=self.filled().snapshot())
        again.rows["number"][again.slots(ids("a", "new"))] = 77
        assert again.rows["number"][1] == again.rows["number"][len(ODD_IDS)] == 77

    def test_holds_nothing_but_builtins(self):
        telemetry = batch([sample(0), sample(0, device_id="n")])
        for state in (QualityState(QualitySettings(), Fleet()), FeatureState(FeatureSettings(), Fleet())):
            state.apply(telemetry)

            def plain(value):
                return all(map(plain, value)) if type(value) is tuple else type(value) in (str, bytes, int)

            assert plain(state.snapshot())

    def test_facts_are_those_of_the_configuration_not_of_the_snapshot(self):
        old = table(Fleet([FleetEntry(match="*", capacity_ah=1.0)]))
        old.slots(ids("a"))
        new = table(Fleet([FleetEntry(match="*", capacity_ah=2.0)]), old.snapshot())
        assert new.facts["capacity_ah"][0] == 2.0

    def test_of_no_device(self):
        assert len(table(snapshot=table().snapshot())) == 0

    def test_of_another_version_is_refused(self):
        snapshot = ("v9", *self.filled().snapshot()[1:])
        with pytest.raises(StateError, match="holds state 'v9', this voltmill reads v1: run the version that made it"):
            table(snapshot=snapshot)
        with pytest.raises(
            StateError, match="quality: the recovery store holds state 'v9', this voltmill reads v1, v2"
        ):
            QualityState(QualitySettings(), Fleet(), ("v9",))

    def test_of_another_layout_is_refused(self):
        other = np.dtype([("number", "<i8"), ("flag", "u1"), ("more", "<f8")])
        with pytest.raises(StateError, match="another layout.*run the version that made it"):
            table(snapshot=self.filled().snapshot(), dtype=other)


def test_bytes_are_counted_without_spare_capacity():
    t = table()
    t.slots(ids("abc", "de"))
    empty = table().nbytes
    assert t.nbytes - empty == 2 * (DTYPE.itemsize + tables.FACTS.itemsize + 16) + 5
