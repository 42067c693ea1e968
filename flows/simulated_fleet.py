"""Modules that live: they drive, rest and are charged, and are measured as a battery management system does.

``SimulatedFleet.tick`` advances every module by one interval, in steps of one second so that drive
currents act on the cells as they do in a car, and gives one sample of each. Voltage and current of a
sample belong to the same instant, and the current is the one of that second, not a mean: so it is in the
LG data at 5 s on which the SOC model was trained, and only so R0 shows in the pair. Counting charge
from such samples (zero-order hold) is right on average and off by 0.7 % of capacity after an hour of
driving (standard deviation); in the LG cycles, sampled alike, it is 0.8 %.

100 % SOC is a cell at the end of its constant-voltage charge (50 mA), 0 % is 2.78 Ah (times the cell's
own health) below that: the convention of the LG data.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voltmill.flows.simulate_settings import SimulateSettings
from voltmill.kernels.cell_model import CellParameters, advance, load, rested, tables
from voltmill.kernels.drive_cycle import drive_bank

Array = NDArray[np.float64]

DRIVE, REST, CHARGE = 0, 1, 2
PHASES: Final = ("drive", "rest", "charge")

PROBE_EVERY: Final = 4  # one temperature probe to four cells
DRIVE_CYCLES, DRIVE_SECONDS = 64, 3600
MEAN_SECONDS: Final = (2400.0, 900.0, 14400.0)  # mean length of a drive and of a rest; longest charge
CHARGE_BELOW: Final = 0.45  # SOC after a drive below which the driver plugs in
EMPTY_SOC: Final = 0.08
CHARGE_C_RATE: Final = 0.5
END_OF_CHARGE_AMPERE: Final = 0.05  # of the LG tests, a cell
# What a cell may give and take, A, by its temperature: the limits of the LG tests.
LIMIT_CELSIUS: Final = (-20.0, -10.0, 0.0, 10.0)
DISCHARGE_AMPERE: Final = (-6.0, -12.0, -18.0, -18.0)
REGEN_AMPERE: Final = (1.5, 3.0, 3.0, 6.0)
CHARGE_SHARE: Final = (0.1, 0.1, 0.3, 1.0)  # of the charge rate: cold cells plate lithium
MODULE_COOLING: Final = 2.0  # a cell among others is cooled half as well as one alone in a chamber


class Samples(NamedTuple):
    """One sample of every module, in the order of their times."""

    elapsed_us: NDArray[np.int64]  # since the start of event time
    seq: int  # the same for all
    current: Array  # A, of the module, as measured
    voltage: Array  # V, of the module, as measured
    cell_voltage: Array  # modules x cells, V, as measured
    temperature: Array  # modules x probes, °C, as measured
    ambient: Array  # °C, as measured
    bms_soc: Array  # %, as a simple BMS counts it
    soc: Array  # %, the truth: mean of the cells
    phase: NDArray[np.int8]  # index into PHASES


class SimulatedFleet:
    """All modules of a simulation, without faults.

    Modules are ordered by their turn within the interval, so each tick is in order of time.
    """

    def __init__(self, settings: SimulateSettings) -> None:
        self.settings = settings
        self._rng = np.random.default_rng(settings.seed)
        rng, m, n = self._rng, settings.modules, settings.cells
        self.parameters: CellParameters = load()
        cooling = self.parameters.thermal_resistance_kelvin_per_watt * MODULE_COOLING
        self._tables = tables(self.parameters)._replace(thermal_resistance=cooling)
        turn = rng.permutation(m)
        names = _ids(settings)
        self.device_ids = [names[i] for i in turn.tolist()]
        self._offset_us = (np.arange(m) * settings.interval_seconds * 1e6 / m).astype(np.int64) // 1000 * 1000

        packs = np.arange(m) // settings.modules_per_pack
        self._ambient = rng.uniform(*settings.ambient_celsius, settings.gateways * settings.packs_per_gateway)[packs][
            turn
        ]
        soc = rng.uniform(*settings.start_soc, (m, 1)) + rng.normal(0, 0.003, (m, n))
        health = rng.uniform(0.95, 1.0, (m, 1))
        spread = settings.cell_spread
        self.state = rested(
            np.clip(soc, 0.02, 1.0),
            np.repeat(self._ambient[:, None], n, 1),
            self.parameters.capacity_ah * health * (1 + rng.normal(0, spread, (m, n))),
            (1 + 2 * (1 - health)) * (1 + rng.normal(0, 3 * spread, (m, n))),
        )
        self.state.hysteresis[:] = rng.choice([-1.0, 1.0], (m, 1))
        self._voltage = np.full((m, n), self.parameters.ocv_volt[len(self.parameters.ocv_volt) // 2])
        advance(self.state, self._tables, np.zeros((m, 1)), self._ambient, 0.0, self._voltage)

        self._bank = drive_bank(DRIVE_CYCLES, DRIVE_SECONDS, settings.seed)
        self._drive = rng.integers(0, DRIVE_CYCLES, m)
        self._vigour = rng.uniform(0.8, 1.3, m)
        self.phase = rng.choice(3, m, p=[0.55, 0.2, 0.25]).astype(np.int8)
        self.remaining = self._length(self.phase) * rng.uniform(0.2, 1.0, m)
        self._target = rng.choice([0.8, 0.9, 2.0], m)  # SOC at which the driver unplugs; 2: when it is full

        self._voltage_bias = rng.normal(0, settings.voltage_noise_volt / 2, (m, n))
        self._current_bias = rng.normal(0, settings.current_noise_ampere / 2, m) * settings.parallel
        probes = len(range(0, n, PROBE_EVERY))
        self._temperature_bias = rng.normal(0, settings.temperature_noise_celsius, (m, probes))
        self._bms_soc = np.clip(100 * soc.mean(1) + rng.normal(0, 3, m), 0, 100)
        self._last_current = np.zeros(m)
        self._ticks = 0

    @property
    def elapsed_seconds(self) -> float:
        """Event time of the next tick's first sample since the start, s."""
        return self._ticks * self.settings.interval_seconds

    def drive_on(self, module: int, seconds: float) -> bool:
        """Make a module drive for at least ``seconds``; False if it has not the charge for it."""
        if self.state.soc[module].min() < 0.25:
            return False
        if self.phase[module] != DRIVE:
            self.phase[module], self.remaining[module] = DRIVE, 0.0
        self.remaining[module] = max(self.remaining[module], seconds)
        return True

    def tick(self) -> Samples:
        """Advance by one interval and measure; after the first call the time is the start of event time."""
        settings = self.settings
        step = int(settings.interval_seconds)
        if self._ticks:
            advance(self.state, self._tables, self._request(step), self._ambient, 1.0, self._voltage)
            self._change_phase()
        elapsed = self._ticks * step * 1_000_000 + self._offset_us
        self._ticks += 1
        return self._measure(elapsed)

    def _request(self, step: int) -> Array:
        """Current asked for at each second of the coming interval, A per cell: modules x step."""
        celsius = self.state.temperature.mean(1)
        nominal = self.parameters.nominal_ah
        seconds = (self._ticks * step + np.arange(step)) % DRIVE_SECONDS
        load = self._bank[self._drive[:, None], seconds] * (nominal * self._vigour)[:, None]
        # The car asks for power: a low voltage means more current. 3.65 V: the profile's nominal voltage.
        load *= (3.65 / self._voltage.mean(1))[:, None]
        lowest = np.interp(celsius, LIMIT_CELSIUS, DISCHARGE_AMPERE)[:, None]
        load = np.clip(load, lowest, np.interp(celsius, LIMIT_CELSIUS, REGEN_AMPERE)[:, None])
        charge = CHARGE_C_RATE * nominal * np.interp(celsius, LIMIT_CELSIUS, CHARGE_SHARE)
        load[self.phase == REST] = 0.0
        return np.where((self.phase == CHARGE)[:, None], charge[:, None], load)

    def _length(self, phase: NDArray[np.int8]) -> Array:
        """A length for each phase, s."""
        mean = np.array(MEAN_SECONDS)[phase]
        return np.where(phase == CHARGE, mean, mean * self._rng.uniform(0.4, 1.6, len(phase)))

    def _change_phase(self) -> None:
        state, phase = self.state, self.phase
        self.remaining -= self.settings.interval_seconds
        over = self.remaining <= 0
        over |= (phase == DRIVE) & (
            (state.soc.min(1) < EMPTY_SOC) | (self._voltage.min(1) < self.parameters.voltage_limit_volt[0] + 0.02)
        )
        full = (phase == CHARGE) & (self._voltage.max(1) > 4.19) & (state.current < END_OF_CHARGE_AMPERE)
        self._bms_soc[full] = 100.0
        over |= full | ((phase == CHARGE) & (state.soc.mean(1) > self._target))
        rows = np.flatnonzero(over)
        if not len(rows):
            return
        low = state.soc[rows].min(1) < CHARGE_BELOW
        after_rest = np.where(low, CHARGE, DRIVE)
        phase[rows] = np.where(phase[rows] == REST, after_rest, REST)
        self.remaining[rows] = self._length(phase[rows])
        self._drive[rows] = self._rng.integers(0, DRIVE_CYCLES, len(rows))
        self._target[rows] = self._rng.choice([0.8, 0.9, 2.0], len(rows))

    def _measure(self, elapsed: NDArray[np.int64]) -> Samples:
        """What the BMS reads: noise and bias, rounded to 1 mV, 10 mA, 0.1 °C; module voltage to 10 mV."""
        settings, state, rng = self.settings, self.state, self._rng
        m, n = state.soc.shape

        def noise(sigma: float, *shape: int) -> Array:
            return rng.standard_normal(shape, dtype=np.float32).astype(np.float64) * sigma

        volts = self._voltage + self._voltage_bias + noise(settings.voltage_noise_volt, m, n)
        module = self._voltage.sum(1) + noise(settings.voltage_noise_volt, m) * np.sqrt(n)
        current = state.current * settings.parallel + self._current_bias
        current += noise(settings.current_noise_ampere * settings.parallel, m)
        probes = state.temperature[:, ::PROBE_EVERY] + self._temperature_bias
        probes = probes + noise(settings.temperature_noise_celsius, *probes.shape)
        current = np.round(current, 2) + 0.0  # no negative zero
        counted = (
            self._last_current * settings.interval_seconds / 36 / (self.parameters.capacity_ah * settings.parallel)
        )
        self._bms_soc = np.clip(self._bms_soc + counted, 0, 100)
        self._last_current = current
        return Samples(
            elapsed_us=elapsed,
            seq=self._ticks,
            current=current,
            voltage=np.round(module, 2),
            cell_voltage=np.round(volts, 3),
            temperature=np.round(probes, 1) + 0.0,
            ambient=np.round(self._ambient + noise(settings.temperature_noise_celsius, m), 1) + 0.0,
            bms_soc=np.round(2 * self._bms_soc) / 2,
            soc=100 * state.soc.mean(1),
            phase=self.phase.copy(),
        )


def _ids(settings: SimulateSettings) -> list[str]:
    return [
        f"{settings.site}/gw-{g + 1}/pack-{p + 1}/module-{k + 1:02d}"
        for g in range(settings.gateways)
        for p in range(settings.packs_per_gateway)
        for k in range(settings.modules_per_pack)
    ]
