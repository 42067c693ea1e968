"""Telemetry of sessions for tests: parts of a day put one after another, and the sessions found in it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from telemetry import batch, sample

from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.operators.sessions import SessionSettings, SessionState

FLEET = Fleet(
    [
        FleetEntry(match="m*", capacity_ah=3.0, operating_volt=(2.7, 4.2)),
        FleetEntry(match="plain*", capacity_ah=3.0),
    ]
)

Part = list[tuple[float, dict[str, Any]]]


def hold(current: float, seconds: float, *, every: float = 5.0, volt: float = 3.7, **change: Any) -> Part:
    """Samples of a constant current: seconds since the sample before, and columns."""
    return [(every, {"current_ampere": current, "cell_voltage_volt": [volt], **change})] * round(seconds / every)


def ramp(
    current: float | tuple[float, float],
    volts: tuple[float, float],
    seconds: float,
    *,
    every: float = 5.0,
    **change: Any,
) -> Part:
    """Samples while cell voltage, and current if two are given, go in a straight line."""
    n = round(seconds / every)
    amps = current if isinstance(current, tuple) else (current, current)
    out = []
    for share in np.arange(1, n + 1) / n:
        moving = {
            "current_ampere": amps[0] + (amps[1] - amps[0]) * share,
            "cell_voltage_volt": [volts[0] + (volts[1] - volts[0]) * share],
        }
        out.append((every, moving | change))
    return out


def series(*parts: Part, device: str = "m", begin: float = 0.0) -> list[dict[str, Any]]:
    """Samples of one device, part after part."""
    t, out = begin, []
    for part in parts:
        for dt, change in part:
            t += dt
            out.append(sample(t, device_id=device, **change))
    return out


def found(rows: Iterable[dict[str, Any]], fleet: Fleet = FLEET, **change: Any) -> list[dict[str, Any]]:
    """The sessions of rows that were judged."""
    return SessionState(SessionSettings(**change), fleet).apply(batch(rows)).to_pylist()


def kinds(sessions: Iterable[dict[str, Any]]) -> list[str]:
    """What the sessions are."""
    return [s["session"] for s in sessions]


REST = hold(0.0, 600)
#: From empty to full: constant current, then constant voltage with the current falling from 0.5C to 0.04C.
CHARGE = [*ramp(1.5, (3.0, 4.2), 3600), *ramp((1.5, 0.12), (4.2, 4.2), 1200)]
#: From full to empty.
DISCHARGE = ramp(-3.0, (4.1, 2.7), 2700)
FULL_AH = 1.5 + 0.81 / 3  # what CHARGE moves: 1.5 A for an hour, 0.81 A in the mean for a third of one
