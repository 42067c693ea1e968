"""Fleet tables: which entry speaks for a device, and values that are refused where they enter."""

import math

import msgspec
import pytest

from voltmill.kernels.fleet import UNKNOWN, Fleet, FleetEntry, Limits


def test_the_first_match_wins():
    fleet = Fleet([FleetEntry(match="site-a/gw-1/*", series=1), FleetEntry(match="site-a/*", series=2)])
    assert [fleet.facts(d).series for d in ("site-a/gw-1/m", "site-a/gw-2/p/m", "site-a/")] == [1, 2, 2]
    assert fleet.facts("site-b/m") is UNKNOWN and Fleet().facts("") is UNKNOWN


@pytest.mark.parametrize(
    "pattern, matching, others",
    [
        ("*", ["", "a", "a/b\n/c"], []),
        ("m-?", ["m-1", "m-ä", "m-/"], ["m-", "m-12", "M-1"]),
        ("m-[12]", ["m-1"], ["m-3", "m-[12]"]),
        ("m.1+", ["m.1+"], ["mx1+", "m.11"]),
    ],
)
def test_patterns(pattern, matching, others):
    fleet = Fleet([FleetEntry(match=pattern, cell_type="x")])
    assert all(fleet.facts(d).cell_type == "x" for d in matching)
    assert all(fleet.facts(d) is UNKNOWN for d in others)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"capacity_ah": -1.0}, "capacity_ah"),
        ({"capacity_ah": math.nan}, "capacity_ah"),
        ({"capacity_ah": math.inf}, "capacity_ah"),
        ({"series": -1}, "series"),
        ({"parallel": 0}, "parallel"),
        ({"gap_seconds": 0.0}, "gap_seconds"),
        ({"gap_seconds": math.inf}, "gap_seconds"),
        ({"gap_seconds": math.nan}, "gap_seconds"),
        ({"cv_c_rate": [0.25, 0.05]}, "cv_c_rate"),
        ({"cv_c_rate": [0.1, 0.1]}, "cv_c_rate"),
        ({"cv_c_rate": [0.0, 0.25]}, "cv_c_rate"),
        ({"cv_c_rate": [0.05, math.inf]}, "cv_c_rate"),
        ({"cv_c_rate": [math.nan, 0.25]}, "cv_c_rate"),
        ({"limits": {"cell_voltage_volt": [4.2, 2.5]}}, "limits.cell_voltage_volt"),
        ({"limits": {"cell_temperature_celsius": [60, 60]}}, "limits.cell_temperature_celsius"),
        ({"limits": {"current_ampere": [math.nan, 1]}}, "limits.current_ampere"),
        ({"limits": {"voltage": [0, 1]}}, "voltage"),
        ({"capacity": 3.0}, "capacity"),
    ],
    ids=str,
)
def test_nonsense_is_refused_with_its_name(change, word):
    with pytest.raises(msgspec.ValidationError, match=word):
        msgspec.convert({"match": "*"} | change, FleetEntry)


def test_what_is_assumed_of_an_unknown_device():
    assert UNKNOWN.cell_type == "" and UNKNOWN.capacity_ah == 0 and UNKNOWN.limits == Limits()
