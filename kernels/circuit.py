"""The equivalent circuit of a cell type for the filters, as look-up tables: OCV, hysteresis and three resistances.

    V = OCV(s, T) + M(s) h + R0(s, T) I + R1(s, T) z1 + R2(s, T) z2

with the current I (positive while charging) and the currents z behind two RC pairs (Hu et al. 2012,
10.1016/j.jpowsour.2011.10.013). Unlike the simulated cell (`voltmill.kernels.cell_model`) its OCV depends freely on
temperature: in the cold it holds the slow diffusion too, which two RC pairs cannot follow.
"""

from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.compile import inline

Array = NDArray[np.float64]

#: Parameters of the LG HG2, from ``training/ekf.py``.
LG_HG2: Final = Path(__file__).resolve().parent / "ekf_lg_hg2.json"
TEMPERATURE_STEP: Final = 5.0  # the tables are spread evenly, so that a look-up needs no search
_HALVINGS: Final = 32  # of 100 % SOC: below the spacing of float32


class Noise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the filters believe of their errors, tuned on training records; standard deviations."""

    drift: float
    """Of SOC, percent per square root of an hour: capacity and current are not quite known."""
    ampere: float
    """Of the held current, A."""
    ampere_per_change: float
    """The same, as a share of the change of current between two samples."""
    volt: float
    """Of a voltage: sensor and circuit, V."""
    volt_share: float
    """The same, as a share of the overpotential."""
    volt_per_change: float
    """The same, as a share of R0 times the change of current."""
    start_ampere: float
    """Of the current behind each RC pair on the first sample, A."""
    start_share: float
    """Part of the first current that is taken to be behind each RC pair already (0 to 1)."""
    gate: float
    """Standard deviations beyond which a voltage is no longer believed in full."""
    interval_factor: float
    """Half width of the filter's 90 % interval in standard deviations."""
    counter_ampere: float
    """Offset of the current that coulomb counting reckons with, A."""
    counter_factor: float
    """Half width of coulomb counting's 90 % interval in standard deviations."""


class CircuitParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The circuit and its noise; read from JSON. SOC nodes are even from 0 to 1, as many as in the tables."""

    name: str
    """Cell type, as in the fleet tables."""
    source: str
    """The measurements the parameters come from."""
    data_sha256: str
    """SHA-256 of the file of measurements, hexadecimal."""
    nominal_ah: float
    """What the label says, Ah; C-rates refer to it."""
    capacity_ah: float
    """Charge between 0 and 100 % SOC, Ah."""
    temperature_celsius: list[float]
    """Temperature nodes of the tables, rising."""
    tau_seconds: tuple[float, float]
    """The two time constants, s."""
    ocv_volt: list[list[float]]
    """Open-circuit voltage, temperature x SOC, midway between charge and discharge branch; rising with SOC."""
    hysteresis_volt: list[float]
    """Half the gap between the two branches over SOC."""
    r0_ohm: list[list[float]]
    """Series resistance, temperature x SOC."""
    r1_ohm: list[list[float]]
    """Resistance behind the fast time constant, temperature x SOC."""
    r2_ohm: list[list[float]]
    """Resistance behind the slow time constant, temperature x SOC."""
    noise: Noise
    """The noise."""


class Circuit(NamedTuple):
    """The parameters as the kernels want them."""

    table: Array  # temperature x SOC x (OCV, M, R0, R1, R2): V, V, ohm
    first_celsius: float  # of the even temperature nodes
    nominal_ah: float
    capacity_ah: float
    tau: Array  # the two time constants, s


def load(path: Path = LG_HG2) -> CircuitParameters:
    """The parameters of the LG HG2, or of another cell from a file of the same form.

    Example:
        >>> load().name, load().capacity_ah
        ('lg-hg2', 2.78)
    """
    return msgspec.json.decode(path.read_bytes(), type=CircuitParameters)


def circuit(parameters: CircuitParameters) -> Circuit:
    """Spread the parameters over even temperature nodes."""
    nodes = np.asarray(parameters.temperature_celsius)
    even = np.arange(nodes[0], nodes[-1] + TEMPERATURE_STEP / 2, TEMPERATURE_STEP)

    def spread(table: Any) -> Array:
        return np.array([np.interp(even, nodes, column) for column in np.asarray(table, np.float64).T]).T

    # R falls about exponentially with temperature, so its logarithm is what is interpolated.
    resistance = [np.exp(spread(np.log(r))) for r in (parameters.r0_ohm, parameters.r1_ohm, parameters.r2_ohm)]
    ocv = spread(parameters.ocv_volt)
    hysteresis = np.broadcast_to(np.asarray(parameters.hysteresis_volt), ocv.shape)
    return Circuit(
        table=np.ascontiguousarray(np.stack([ocv, hysteresis, *resistance], 2)),
        first_celsius=float(even[0]),
        nominal_ah=parameters.nominal_ah,
        capacity_ah=parameters.capacity_ah,
        tau=np.array(parameters.tau_seconds),
    )


@inline
def look_up(cell: Circuit, celsius: float, percent: float, out: Array) -> None:
    """OCV, M, R0, R1, R2 at a temperature and a SOC; constant beyond the ends of the tables."""
    warmest, full = cell.table.shape[0] - 1, cell.table.shape[1] - 1
    x = min(max((celsius - cell.first_celsius) / TEMPERATURE_STEP, 0.0), float(warmest))
    j = min(int(x), warmest - 1)
    u = x - j
    y = min(max(percent / 100.0, 0.0), 1.0) * full
    k = min(int(y), full - 1)
    f = y - k
    for c in range(5):
        cold = (1.0 - f) * cell.table[j, k, c] + f * cell.table[j, k + 1, c]
        warm = (1.0 - f) * cell.table[j + 1, k, c] + f * cell.table[j + 1, k + 1, c]
        out[c] = (1.0 - u) * cold + u * warm


@inline
def terminal_volt(p: Array, hysteresis: float, ampere: float, z1: float, z2: float) -> float:
    """The voltage of the circuit with the parameters ``p`` of `look_up`."""
    volt: float = p[0] + p[1] * hysteresis + p[2] * ampere + p[3] * z1 + p[4] * z2
    return volt


@inline
def inverted(cell: Circuit, celsius: float, volt: float, ampere: float, z: float, p: Array) -> float:
    """The SOC, percent, at which the circuit has this voltage, by bisection; 0 or 100 beyond the ends.

    ``z`` is the current behind both RC pairs; ``p`` is left with the parameters there.
    """
    low, high = 0.0, 100.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        look_up(cell, celsius, middle, p)
        if terminal_volt(p, 0.0, ampere, z, z) < volt:
            low = middle
        else:
            high = middle
    percent = 0.5 * (low + high)
    look_up(cell, celsius, percent, p)
    return percent
