"""Faults on a known schedule: what goes wrong on the way out of a simulated module, and where.

Three happen to single messages (dropped, doubled, malformed), by chance. Four happen to a module and
last (clock_jump, stuck, weak_cell, over_temperature): which module, which cell and when is drawn at the
start, each module has at most one of them, and what came of it is kept in ``Episode``.
"""

import itertools
import json
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from voltmill.flows.simulate_settings import SimulateSettings
from voltmill.flows.simulated_fleet import DRIVE, PROBE_EVERY, Samples, SimulatedFleet

SENT, DROPPED, DOUBLED, MALFORMED_FIRST = 0, 1, 2, 3
#: The ways a payload is broken; a malformed message's delivery is MALFORMED_FIRST plus the index here.
MALFORMED: Final = ("truncated", "nan_literal", "not_utf8", "wrong_type", "empty", "missing_key")
DELIVERIES: Final = ("sent", "dropped", "doubled", *(f"malformed:{kind}" for kind in MALFORMED))

CLOCK_JUMP, STUCK, WEAK_CELL, OVER_TEMPERATURE = 1, 2, 3, 4
FAULTS: Final = ("", "clock_jump", "stuck", "weak_cell", "over_temperature")

WEAK_CAPACITY, WEAK_RESISTANCE = 0.8, 1.6
HOT_CELSIUS: Final = 70.0
HOT_WATT: Final = 80.0  # an internal short: half a minute to get noticed, some minutes to 70 °C


@dataclass
class Episode:
    """A lasting fault of one module; times in µs since the start of event time, None before it happened."""

    module: int
    fault: int
    cell: int
    due_seconds: float
    length_seconds: float
    shift_us: int = 0
    reading: float = 0.0
    from_us: int | None = None
    to_us: int | None = None
    messages: int = 0

    @property
    def active(self) -> bool:
        """Whether it has begun and not ended."""
        return self.from_us is not None and self.to_us is None


@dataclass
class Marked:
    """Samples with faults in them, and what was done: arrays of one value a module."""

    samples: Samples
    reported_us: NDArray[np.int64]  # by the device's own clock, since the start of event time
    delivery: NDArray[np.int8]  # index into DELIVERIES
    fault: NDArray[np.int8]  # index into FAULTS


class FaultSchedule:
    """The faults of a fleet; ``apply`` is called once with each tick's samples."""

    def __init__(self, settings: SimulateSettings, fleet: SimulatedFleet) -> None:
        self._settings = settings.faults
        self._fleet = fleet
        self._rng = np.random.default_rng([settings.seed, 0xFA])
        self._malformed = 0
        horizon = min(settings.duration_seconds or np.inf, settings.faults.period_seconds)
        self._horizon = float(horizon)
        self.past: list[Episode] = []
        self.present: list[Episode] = self._draw() if settings.faults.enabled else []
        for episode in self.present:
            if episode.fault == WEAK_CELL:
                fleet.state.capacity[episode.module, episode.cell] *= WEAK_CAPACITY
                fleet.state.resistance[episode.module, episode.cell] *= WEAK_RESISTANCE

    @property
    def episodes(self) -> list[Episode]:
        """All that have begun."""
        return [e for e in self.past + self.present if e.from_us is not None]

    def apply(self, samples: Samples) -> Marked:
        """Put the faults into the samples of a tick."""
        modules = len(samples.current)
        marked = Marked(samples, samples.elapsed_us.copy(), np.zeros(modules, np.int8), np.zeros(modules, np.int8))
        if not self._settings.enabled:
            return marked
        for episode in self.present:
            self._live(episode, marked)
        for episode in [e for e in self.present if e.to_us is not None]:
            self._renew(episode)
        self._deliver(marked)
        return marked

    def _draw(self) -> list[Episode]:
        s, fleet = self._settings, self._fleet
        modules, cells = fleet.state.soc.shape
        order = iter(self._rng.permutation(modules).tolist())
        jump = int(1e6 * s.clock_jump_seconds)
        plan = (
            (CLOCK_JUMP, s.clock_jump_share, s.clock_jump_length_seconds),
            (STUCK, s.stuck_share, s.stuck_length_seconds),
            (WEAK_CELL, s.weak_share, np.inf),
            (OVER_TEMPERATURE, s.hot_share, s.hot_length_seconds),
        )
        drawn = []
        for fault, share, length in plan:
            for count, module in enumerate(itertools.islice(order, math.ceil(share * modules))):
                cell = int(self._rng.integers(cells))
                if fault == OVER_TEMPERATURE:
                    cell = cell // PROBE_EVERY * PROBE_EVERY  # under a probe, else nobody could know
                due = 0.0 if fault == WEAK_CELL else float(self._rng.uniform(0.1, 0.5)) * self._horizon
                drawn.append(Episode(module, fault, cell, due, length, jump if count % 2 == 0 else -jump))
        return drawn

    def _live(self, episode: Episode, marked: Marked) -> None:
        """Begin, go on with or end an episode."""
        m, now = episode.module, int(marked.samples.elapsed_us[episode.module])
        if episode.from_us is None:
            if now < episode.due_seconds * 1e6 or not self._begin(episode, marked.samples):
                return
            episode.from_us = now
        elif now >= episode.from_us + episode.length_seconds * 1e6:
            episode.to_us = now
            self._fleet.state.heater[m] = 0.0
            return
        episode.messages += 1
        marked.fault[m] = episode.fault
        if episode.fault == CLOCK_JUMP:
            marked.reported_us[m] += episode.shift_us
        elif episode.fault == STUCK:
            marked.samples.cell_voltage[m, episode.cell] = episode.reading
        elif episode.fault == OVER_TEMPERATURE:
            hot = self._fleet.state.temperature[m, episode.cell] > HOT_CELSIUS
            self._fleet.state.heater[m, episode.cell] = 0.0 if hot else HOT_WATT

    def _begin(self, episode: Episode, samples: Samples) -> bool:
        """Whether it can begin: a frozen reading shows only while the others move."""
        m = episode.module
        if episode.fault == STUCK:
            driving = self._fleet.drive_on(m, episode.length_seconds + 60)
            episode.reading = float(samples.cell_voltage[m, episode.cell])
            return driving and samples.phase[m] == DRIVE
        return True

    def _renew(self, episode: Episode) -> None:
        """Move an ended episode to the past, and plan the same a period later."""
        self.present.remove(episode)
        self.past.append(episode)
        due = episode.due_seconds + self._settings.period_seconds
        again = (episode.module, episode.fault, episode.cell, due, episode.length_seconds, episode.shift_us)
        self.present.append(Episode(*again))

    def _deliver(self, marked: Marked) -> None:
        """Draw what happens to each message on its way."""
        s = self._settings
        draw = self._rng.random(len(marked.delivery))
        bounds = np.cumsum([s.drop_rate, s.double_rate, s.malformed_rate])
        marked.delivery[draw < bounds[1]] = DOUBLED
        marked.delivery[draw < bounds[0]] = DROPPED
        broken = np.flatnonzero((draw >= bounds[1]) & (draw < bounds[2]))
        kinds = MALFORMED_FIRST + (self._malformed + np.arange(len(broken))) % len(MALFORMED)
        marked.delivery[broken] = kinds.astype(np.int8)
        self._malformed += len(broken)


def break_payload(payload: bytes, delivery: int) -> bytes:
    """The payload in one of the ways of ``MALFORMED``.

    Example:
        >>> break_payload(b'{"current_ampere":1.5}', DELIVERIES.index("malformed:wrong_type"))
        b'{"current_ampere": "1.5 A"}'
    """
    kind = MALFORMED[delivery - MALFORMED_FIRST]
    if kind == "empty":
        return b""
    if kind == "truncated":
        return payload[: len(payload) * 2 // 3]
    if kind == "not_utf8":
        return payload.replace(b'{"', b'{"\xff\xfe', 1)
    message = json.loads(payload)
    current = message.pop("current_ampere")
    if kind == "nan_literal":
        message["current_ampere"] = float("nan")  # json writes NaN, which no JSON parser has to accept
    elif kind == "wrong_type":
        message["current_ampere"] = f"{current} A"
    return json.dumps(message).encode()
