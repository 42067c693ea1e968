"""Sessions of cycles whose charge, energy and times are known exactly; any cut, shard and restart gives the same bytes."""

import math

import numpy as np
import pytest
from telemetry import at, batch, sample

from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.session_table import session_columns
from voltmill.operators.features import CARRIED
from voltmill.operators.sessions import SessionSettings, SessionState, schema

NAN = math.nan
FLEET = Fleet(
    [
        FleetEntry(match="m*", capacity_ah=3.0, operating_volt=(2.7, 4.2)),
        FleetEntry(match="plain*", capacity_ah=3.0),
    ]
)


def hold(current, seconds, *, every=5.0, volt=3.7, **change):
    """Samples of a constant current: ``(seconds since the last one before, columns)``."""
    return [(every, {"current_ampere": current, "cell_voltage_volt": [volt], **change})] * round(seconds / every)


def ramp(current, volts, seconds, *, every=5.0, **change):
    """Samples while current and cell voltage go in a straight line from one value to another."""
    n = round(seconds / every)
    amps = current if isinstance(current, tuple) else (current, current)
    steps = [(k + 1) / n for k in range(n)]
    return [
        (
            every,
            {
                "current_ampere": amps[0] + (amps[1] - amps[0]) * s,
                "cell_voltage_volt": [volts[0] + (volts[1] - volts[0]) * s],
                **change,
            },
        )
        for s in steps
    ]


def series(*parts, device="m", begin=0.0):
    """Samples of one device, part after part."""
    t, out = begin, []
    for part in parts:
        for dt, change in part:
            t += dt
            out.append(sample(t, device_id=device, **change))
    return out


def found(rows, fleet=FLEET, **change):
    """The sessions of rows that quality let pass, as dictionaries."""
    return SessionState(SessionSettings(**change), fleet).apply(batch(rows)).to_pylist()


REST = hold(0.0, 600)


def test_a_charge_of_constant_current_to_the_last_digit():
    """The current is taken to flow from the sample before the first that shows it to the last that does."""
    rows = series(REST, ramp(1.5, (3.5, 3.9), 3600), hold(0.0, 300, volt=3.85))
    rest, charge = found(rows)
    assert (rest["session"], charge["session"]) == ("rest", "charge")
    assert charge["start_time"].timestamp() * 1e6 == at(600) and charge["event_time"].timestamp() * 1e6 == at(4200)
    assert charge["duration_seconds"] == 3600
    assert charge["charge_ah"] == pytest.approx(1.5, rel=1e-6)
    assert charge["charge_fraction"] == pytest.approx(0.5, rel=1e-6)
    assert charge["c_rate_mean"] == charge["c_rate_max"] == pytest.approx(0.5, rel=1e-6)
    volts = 3.5 + 0.4 * np.arange(1, 721) / 720
    energy = 1.5 * 5 / 3600 * (volts[0] + (0.5 * (volts[1:] + volts[:-1])).sum())
    assert charge["energy_wh"] == pytest.approx(energy, rel=1e-6)
    assert charge["cell_voltage_end_volt"] == charge["cell_voltage_max_volt"] == pytest.approx(3.9)
    assert charge["equivalent_full_cycles"] == pytest.approx(0.25, rel=1e-6)
    assert charge["rest_before_seconds"] is not None and math.isnan(
        charge["rest_before_seconds"]
    )  # never flowed before


def test_the_table_names_every_column_once_with_a_unit():
    table = session_columns()
    assert len({c.name for c in table}) == len(table)
    assert all(c.unit and c.formula for c in table)
    assert schema().names == [*CARRIED, "start_time", "session", *(c.name for c in table)]
