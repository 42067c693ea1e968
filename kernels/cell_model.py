"""A lithium-ion cell as arrays: two RC pairs, hysteresis, one thermal mass and ageing, many modules at once.

Takes the current that each module is asked for; gives cell voltages, temperatures and states of charge.
The cells of a module are in series, so one current and one pair of filtered currents serve them all;
each cell has its own charge, capacity, resistance and temperature. Current is positive while charging.

    V = OCV(s) + (T - 25) dOCV(s) + M(s) h + r (R0(s, T) I + R1(s, T) z1 + R2(s, T) z2)

The current is constant over a step, so ``z``, ``h`` and the temperature follow exact exponentials and any
step length is stable. Hysteresis is the one-state model of Plett 2004 (J. Power Sources 134, 262); the
equivalent circuit is the one of Hu et al. 2012 (10.1016/j.jpowsour.2011.10.013). Ageing moves capacity
and resistance with charge throughput and time, faster when warm (Arrhenius).
"""

from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import inline, kernel

Array = NDArray[np.float64]

HYSTERESIS_RATE: Final = 20.0  # h closes to 1/e within 5 % of SOC
OVERFULL: Final = 1.1  # beyond full the tables are extended; the voltage limit acts long before
KELVIN: Final = 273.15
REFERENCE_CELSIUS: Final = 25.0
TEMPERATURE_STEP: Final = 5.0  # the tables are spread evenly, so that a look-up needs no search


class CellParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a cell type is made of; read from JSON. SOC nodes are even from 0 to 1, as many as ``ocv_volt``."""

    name: str
    """Cell type, as in the fleet tables."""
    source: str
    """The measurements the parameters come from."""
    nominal_ah: float
    """What the label says, Ah; C-rates refer to it."""
    capacity_ah: float
    """What lies between empty and full at 25 °C, Ah; SOC refers to it."""
    temperature_celsius: list[float]
    """Temperature nodes of the resistances, rising."""
    tau_seconds: tuple[float, float]
    """The two time constants, s."""
    ocv_volt: list[float]
    """Open-circuit voltage at 25 °C over SOC, midway between charge and discharge branch."""
    ocv_volt_per_kelvin: list[float]
    """Its change with temperature over SOC."""
    hysteresis_volt: list[float]
    """Half the gap between the two branches over SOC."""
    r0_ohm: list[list[float]]
    """Series resistance, temperature x SOC."""
    r1_ohm: list[list[float]]
    """Resistance behind the fast time constant, temperature x SOC."""
    r2_ohm: list[list[float]]
    """Resistance behind the slow time constant, temperature x SOC."""
    heat_capacity_joule_per_kelvin: float
    """Of one cell."""
    thermal_resistance_kelvin_per_watt: float
    """From one cell to the ambient."""
    voltage_limit_volt: tuple[float, float] = (2.8, 4.2)
    """Where a battery management system (BMS) limits the current: the cut-offs of the measurements."""
    fade_per_cycle: float = 3.3e-4
    """Capacity lost per equivalent full cycle at 25 °C: 20 % in 600 cycles, assumed, typical of NMC."""
    fade_per_hour: float = 2.3e-6
    """Capacity lost per hour at 25 °C: 2 % a year, assumed."""
    fade_activation_kelvin: float = 4800.0
    """Activation energy over the gas constant: 40 kJ/mol, assumed."""
    resistance_growth: float = 2.0
    """Relative growth of resistance per relative loss of capacity, assumed."""


class CellTables(NamedTuple):
    """Cell parameters as the kernels want them."""

    ocv: Array  # SOC x (OCV, V; dOCV, V/K; hysteresis, V)
    resistance: Array  # temperature x SOC x (R0, R1, R2), ohm
    first_celsius: float  # of the even temperature nodes
    tau: Array  # the two time constants, s
    limits: Array  # lowest and highest cell voltage, V
    heat_capacity: float  # J/K
    thermal_resistance: float  # K/W
    ageing: Array  # fade per cycle, per hour, activation K, resistance growth


class PackState(NamedTuple):
    """State of modules (m) and their cells in series (m x n); all arrays change in place."""

    current: Array  # m: A through each cell, held until the next step
    filtered: Array  # m x 2: that current behind each time constant, A
    soc: Array  # m x n: 0 to 1 of the cell's own capacity
    hysteresis: Array  # m x n: -1 after discharge to +1 after charge
    temperature: Array  # m x n: °C
    capacity: Array  # m x n: Ah
    resistance: Array  # m x n: factor on all three resistances
    heater: Array  # m x n: heat from outside the model, W (a fault, a heater)


def load(path: Path | None = None) -> CellParameters:
    """The parameters of the LG HG2, or of another cell from a file of the same form.

    Example:
        >>> load().name, load().capacity_ah
        ('lg-hg2', 2.78)
    """
    file = path or Path(__file__).resolve().parent / "cell_lg_hg2.json"
    return msgspec.json.decode(file.read_bytes(), type=CellParameters)


def tables(parameters: CellParameters, *, limited: bool = True) -> CellTables:
    """Spread the parameters over even temperature nodes; ``limited=False`` lifts the voltage limits."""
    nodes = np.asarray(parameters.temperature_celsius)
    even = np.arange(nodes[0], nodes[-1] + TEMPERATURE_STEP / 2, TEMPERATURE_STEP)
    # R falls about exponentially with temperature, so its logarithm is what is interpolated.
    by_soc = np.log(np.array([parameters.r0_ohm, parameters.r1_ohm, parameters.r2_ohm]))
    spread = [[np.interp(even, nodes, by_soc[r, :, k]) for k in range(by_soc.shape[2])] for r in range(3)]
    ocv = np.array([parameters.ocv_volt, parameters.ocv_volt_per_kelvin, parameters.hysteresis_volt])
    limits = parameters.voltage_limit_volt if limited else (-1e3, 1e3)
    ageing = (parameters.fade_per_cycle, parameters.fade_per_hour, parameters.fade_activation_kelvin)
    return CellTables(
        ocv=np.ascontiguousarray(ocv.T),
        resistance=np.ascontiguousarray(np.exp(np.array(spread)).transpose(2, 1, 0)),
        first_celsius=float(even[0]),
        tau=np.array(parameters.tau_seconds),
        limits=np.array(limits),
        heat_capacity=parameters.heat_capacity_joule_per_kelvin,
        thermal_resistance=parameters.thermal_resistance_kelvin_per_watt,
        ageing=np.array([*ageing, parameters.resistance_growth]),
    )


def rested(soc: Array, temperature: Array, capacity: Array, resistance: Array) -> PackState:
    """Modules at rest; the arguments are modules x cells (0 to 1, °C, Ah, factor) and are copied."""
    modules = len(soc)
    return PackState(
        current=np.zeros(modules),
        filtered=np.zeros((modules, 2)),
        soc=np.array(soc, np.float64),
        hysteresis=np.zeros(soc.shape),
        temperature=np.array(temperature, np.float64),
        capacity=np.array(capacity, np.float64),
        resistance=np.array(resistance, np.float64),
        heater=np.zeros(soc.shape),
    )


@inline
def _aged(ageing: Array, throughput_ah: float, hours: float, capacity: float, celsius: float) -> float:
    """Relative loss of capacity; an equivalent full cycle is twice the capacity in throughput."""
    speed = np.exp(ageing[2] * (1.0 / (REFERENCE_CELSIUS + KELVIN) - 1.0 / (celsius + KELVIN)))
    loss: float = (ageing[0] * throughput_ah / (2.0 * capacity) + ageing[1] * hours) * speed
    return loss


@kernel
def advance(state: PackState, cell: CellTables, request: Array, ambient: Array, dt: float, voltage: Array) -> None:
    """Hold the present current for ``dt`` s, then take up the next requested one; for each column of ``request``.

    A requested current is cut so that no cell leaves the voltage limits before the following step ends.
    So this is also a charger: ask for the constant current, and the voltage phase comes by itself.

    Args:
        state: changed in place.
        cell: the cell type.
        request: modules x steps, A per cell.
        ambient: modules, °C.
        dt: length of a step, s.
        voltage: modules x cells, V: written with the cell voltages at the end, under ``state.current``.
    """
    modules, cells = state.soc.shape
    steps = request.shape[1]
    last, warmest = cell.ocv.shape[0] - 1, cell.resistance.shape[0] - 1
    keep1, keep2 = np.exp(-dt / cell.tau[0]), np.exp(-dt / cell.tau[1])
    cool = np.exp(-dt / (cell.thermal_resistance * cell.heat_capacity))
    series = np.empty(cells)
    for m in range(modules):
        throughput = 0.0
        for k in range(steps):
            ampere = state.current[m]
            ah = ampere * dt / 3600.0
            throughput += abs(ah)
            z1 = keep1 * state.filtered[m, 0] + (1.0 - keep1) * ampere
            z2 = keep2 * state.filtered[m, 1] + (1.0 - keep2) * ampere
            state.filtered[m, 0], state.filtered[m, 1] = z1, z2
            lowest, highest = -np.inf, np.inf
            for n in range(cells):
                before = voltage[m, n]
                soc = min(max(state.soc[m, n] + ah / state.capacity[m, n], 0.0), OVERFULL)
                state.soc[m, n] = soc
                x = soc * last
                i = min(int(x), last - 1)
                f = x - i
                ocv = cell.ocv[i, 0] + f * (cell.ocv[i + 1, 0] - cell.ocv[i, 0])
                if ampere != 0.0:
                    side = 1.0 if ampere > 0.0 else -1.0
                    close = np.exp(-HYSTERESIS_RATE * abs(ah) / state.capacity[m, n])
                    state.hysteresis[m, n] = side + close * (state.hysteresis[m, n] - side)
                # Irreversible heat (Bernardi et al. 1985, 10.1149/1.2113792), with the voltage before the step.
                heat = max(ampere * (before - ocv), 0.0) + state.heater[m, n]
                rest = ambient[m] + heat * cell.thermal_resistance
                celsius = rest + cool * (state.temperature[m, n] - rest)
                state.temperature[m, n] = celsius
                y = min(max((celsius - cell.first_celsius) / TEMPERATURE_STEP, 0.0), warmest * 1.0)
                j = min(int(y), warmest - 1)
                g = y - j
                w00, w01, w10, w11 = (1.0 - g) * (1.0 - f), (1.0 - g) * f, g * (1.0 - f), g * f
                a, b, c, d = (
                    cell.resistance[j, i],
                    cell.resistance[j, i + 1],
                    cell.resistance[j + 1, i],
                    cell.resistance[j + 1, i + 1],
                )
                factor = state.resistance[m, n]
                r0 = factor * (w00 * a[0] + w01 * b[0] + w10 * c[0] + w11 * d[0])
                r1 = factor * (w00 * a[1] + w01 * b[1] + w10 * c[1] + w11 * d[1])
                r2 = factor * (w00 * a[2] + w01 * b[2] + w10 * c[2] + w11 * d[2])
                tilt = cell.ocv[i, 1] + f * (cell.ocv[i + 1, 1] - cell.ocv[i, 1])
                half = cell.ocv[i, 2] + f * (cell.ocv[i + 1, 2] - cell.ocv[i, 2])
                base = ocv + (min(max(celsius, -20.0), 45.0) - REFERENCE_CELSIUS) * tilt + half * state.hysteresis[m, n]
                voltage[m, n] = base + r1 * z1 + r2 * z2
                series[n] = r0
                # The voltage at the end of the coming step is a line in its current.
                end = base + r1 * keep1 * z1 + r2 * keep2 * z2
                slope = r0 + (1.0 - keep1) * r1 + (1.0 - keep2) * r2
                lowest = max(lowest, (cell.limits[0] - end) / slope)
                highest = min(highest, (cell.limits[1] - end) / slope)
            # A limit stops a current; it never turns it round.
            ampere = min(max(request[m, k], min(lowest, 0.0)), max(highest, 0.0))
            state.current[m] = ampere
            for n in range(cells):
                voltage[m, n] += series[n] * ampere
        for n in range(cells):
            hours = steps * dt / 3600.0
            loss = _aged(cell.ageing, throughput, hours, state.capacity[m, n], state.temperature[m, n])
            state.capacity[m, n] *= 1.0 - loss
            state.resistance[m, n] *= 1.0 + cell.ageing[3] * loss


@kernel
def filtered_currents(current: Array, dt: float, taus: Array) -> Array:
    """``current`` (samples, A, each held for ``dt`` s) behind each time constant: samples x time constants."""
    z = np.zeros((len(current), len(taus)))
    for j in range(len(taus)):
        keep = np.exp(-dt / taus[j])
        for k in range(1, len(current)):
            z[k, j] = keep * z[k - 1, j] + (1.0 - keep) * current[k - 1]
    return z


@kernel
def hysteresis_path(current: Array, dt: float, capacity: float, start: float) -> Array:
    """The hysteresis state (-1 to 1) under a current (samples, A, each held for ``dt`` s)."""
    h = np.full(len(current), start)
    for k in range(1, len(current)):
        close = np.exp(-HYSTERESIS_RATE * abs(current[k - 1]) * dt / 3600.0 / capacity)
        side = np.sign(current[k - 1]) if current[k - 1] != 0.0 else h[k - 1]
        h[k] = side + close * (h[k - 1] - side)
    return h


def trace(
    parameters: CellParameters, current: Array, dt: float, ambient: float, soc: float = 1.0
) -> tuple[Array, Array, Array]:
    """One cell, rested after a charge, under a given current without limits: voltage, temperature, SOC per sample."""
    one = np.ones((1, 1))
    state = rested(soc * one, ambient * one, parameters.capacity_ah * one, one)
    state.hysteresis[:] = 1.0
    cell, volt = (
        tables(parameters, limited=False),
        np.full((1, 1), np.interp(soc, [0, 1], parameters.ocv_volt[:: len(parameters.ocv_volt) - 1])),
    )
    out = np.empty((3, len(current)))
    for k, ampere in enumerate(current):
        # The first step only takes up the first current: nothing has flowed yet.
        advance(state, cell, np.full((1, 1), ampere), np.full(1, ambient), dt if k else 0.0, volt)
        out[:, k] = volt[0, 0], state.temperature[0, 0], state.soc[0, 0]
    return out[0], out[1], out[2]
