"""Fits the circuit of the Kalman filter to the LG HG2 and tunes its noise: ``python training/ekf.py``, two minutes.

Takes ``lg_hg2_1hz.parquet`` (Kollmeyer et al., Mendeley Data 10.17632/cp3473x7xv.3), gives ``kernels/ekf_lg_hg2.json``.

1. Circuit. With the time constants given, the voltage is linear in everything else; every function of SOC and
   temperature is a sum of hats, so one weighted ridge regression with a roughness penalty finds the optimum. Mixed1-8
   fit, and the constant discharges, the pulse test and the paused cycles: loads of another level, without which the
   OCV of a cold cell would take the mean load of the Mixed cycles for its own.
2. Noise, on Mixed1-8 alone. Each third of them is filtered with a circuit fitted to the other two, and not to the
   constant loads: so the circuit is as wrong as it will be on a load of another kind. A random search with a fixed
   seed lowers the error and the negative log-likelihood (Student's t with 4 degrees of freedom).
3. Intervals, on the same, with circuits that know the constant loads: the factor that covers 90 %.

The time constants, the weights and the ridges below were chosen by the same error on the same thirds.
US06, LA92, UDDS and HWFET take no part.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from cell_model import CURRENT_LAG_SECONDS, FULL_VOLT, SOC_NODES, TEMPERATURE_NODES, hats, hysteresis_volt
from ekf_views import TUNED_ON, Views, run, views
from numpy.typing import NDArray
from records import CAPACITY_AH, DATA, NOMINAL_AH, Record, measured
from soc_cases import Estimate, errors, view_errors

from voltmill.kernels import coulomb, ekf
from voltmill.kernels.cell_model import filtered_currents, hysteresis_path
from voltmill.kernels.circuit import LG_HG2, Circuit, CircuitParameters, Noise, circuit

TAU_SECONDS: Final = (50.0, 600.0)
THIRDS: Final = (("Mixed1", "Mixed4", "Mixed7"), ("Mixed2", "Mixed5", "Mixed8"), ("Mixed3", "Mixed6"))
OTHER_LOADS: Final = ("Cap_1C", "Dis_0p5C", "Dis_2C", "PausCycl", "HPPC")
OTHER_WEIGHT: Final = 8.0
PULSE_WEIGHT: Final = 0.3  # the pulse test is as long as eleven cycles, and mostly rest
EVERY: Final = 4  # rows of the fit: each fourth second
RESIDUAL_VOLT: Final = (0.04, 0.03, 0.02, 0.015, 0.01, 0.01)  # by temperature: what the fit leaves, so its weight
OCV_RIDGE: Final = (1.0, 1.0, 10.0, 1e2, 1e3, 1e3)  # keeps the OCV at that of 25 °C: weak where diffusion is slow
ROUGHNESS: Final = (30.0, 3e3, 3e4)  # penalty on second differences: OCV (V), its change with temperature, R (ohm)
FIRST: Final = Noise(
    drift=0.5,
    ampere=0.02,
    ampere_per_change=0.5,
    volt=0.08,
    volt_share=0.4,
    volt_per_change=0.3,
    start_ampere=2.0,
    start_share=0.3,
    gate=5.0,
    interval_factor=1.645,
    counter_ampere=0.03,
    counter_factor=1.645,
)
TUNED: Final = Noise.__struct_fields__[:8]
ROUNDS: Final = 250

Array = NDArray[np.float64]


class Normal(NamedTuple):
    """The normal equations of one record."""

    gram: Array
    moment: Array
    weight: float


def usable(record: Record) -> bool:
    """Not broken off, the chamber at its temperature; Mixed4 at -10 °C misses 4 % of the charge."""
    if record.name.startswith("Mixed"):
        return len(record) > 1000 and (record.name, record.ambient) != ("Mixed4", -10)
    return record.name in OTHER_LOADS and abs(record.temperature[0] - record.ambient) < 3.0


def normal(record: Record) -> Normal:
    """What a record says of the unknowns: OCV, its change by temperature, R0, R1, R2."""
    current = (1 - CURRENT_LAG_SECONDS) * record.current
    current += CURRENT_LAG_SECONDS * np.append(record.current[1:], record.current[-1])
    z = filtered_currents(current, 1.0, np.array(TAU_SECONDS))
    state = 0.01 * record.soc
    h = hysteresis_path(current, 1.0, CAPACITY_AH, 1.0) * np.interp(state, SOC_NODES, hysteresis_volt())
    rows = slice(None, None, EVERY)
    soc, warm = hats(state[rows], SOC_NODES), hats(record.temperature[rows], TEMPERATURE_NODES)
    grid = (warm[:, :, None] * soc[:, None, :]).reshape(len(soc), -1)
    a = np.hstack([soc, grid, grid * current[rows, None], grid * z[rows, :1], grid * z[rows, 1:]])
    left = RESIDUAL_VOLT[int(np.argmin(np.abs(TEMPERATURE_NODES - record.ambient)))]
    kind = 1.0 if record.name.startswith("Mixed") else PULSE_WEIGHT if record.name == "HPPC" else OTHER_WEIGHT
    return Normal(a.T @ a, a.T @ (record.voltage - h)[rows], kind * (RESIDUAL_VOLT[2] / left) ** 2)


def penalty() -> Array:
    """The quadratic form that asks every function of SOC to be smooth and the OCV to change little with cold."""
    bend, slope = (np.diff(np.eye(len(SOC_NODES)), order, axis=0) for order in (2, 1))
    smooth, flat = bend.T @ bend, slope.T @ slope
    weight = np.diag((RESIDUAL_VOLT[2] / np.array(RESIDUAL_VOLT)) ** 2)
    change = np.kron(weight, ROUGHNESS[1] * smooth) + np.kron(np.diag(OCV_RIDGE), np.eye(len(SOC_NODES)))
    resistance = np.kron(weight, ROUGHNESS[2] * smooth + 10.0 * flat)
    blocks = [ROUGHNESS[0] * smooth, change, *[resistance] * 3]
    form = np.zeros((sum(map(len, blocks)),) * 2)
    at = 0
    for block in blocks:
        form[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return form / EVERY + 1e-3 * np.eye(len(form))


def solve(normals: Sequence[Normal], noise: Noise, sha256: str) -> CircuitParameters:
    """The circuit that fits these records best; OCV rising, resistances between 0.2 and 600 mΩ."""
    form, wish, k = penalty(), np.zeros(len(normals[0].moment)), len(SOC_NODES)
    form[k - 1, k - 1] += 1e5  # full and rested, as in training/cell_model.py
    wish[k - 1] = 1e5 * (FULL_VOLT - hysteresis_volt()[-1])
    gram = form + np.add.reduce([n.weight * n.gram for n in normals])
    x = np.linalg.solve(gram, wish + np.add.reduce([n.weight * n.moment for n in normals]))
    nodes = len(TEMPERATURE_NODES)
    ocv = np.maximum.accumulate(x[:k] + x[k : k * (1 + nodes)].reshape(nodes, k), axis=1)
    r = np.clip(x[k * (1 + nodes) :].reshape(3, nodes, k), 2e-4, 0.6)
    return CircuitParameters(
        name="lg-hg2",
        source="Kollmeyer et al., LG 18650HG2 Li-ion Battery Data, Mendeley Data 10.17632/cp3473x7xv.3; fitted",
        data_sha256=sha256,
        nominal_ah=NOMINAL_AH,
        capacity_ah=CAPACITY_AH,
        temperature_celsius=TEMPERATURE_NODES.tolist(),
        tau_seconds=TAU_SECONDS,
        ocv_volt=ocv.round(5).tolist(),
        hysteresis_volt=hysteresis_volt().round(5).tolist(),
        r0_ohm=r[0].round(6).tolist(),
        r1_ohm=r[1].round(6).tolist(),
        r2_ohm=r[2].round(6).tolist(),
        noise=noise,
    )


def filtered(cell: Circuit, noise: Noise, seen: Views) -> list[Estimate]:
    """What the filter says of the views."""
    return run(ekf.filter_step, ekf.STATE_SIZE, cell, noise, seen)


def counted(cell: Circuit, noise: Noise, seen: Views) -> list[Estimate]:
    """What coulomb counting says of the views."""
    return run(coulomb.count_step, coulomb.STATE_SIZE, cell, noise, seen)


def loss(cells: Sequence[Circuit], noise: Noise, thirds: Sequence[Views]) -> float:
    """Mean error, worst errors a little, and how unlikely the errors are under the filter's own variance."""
    mae, worst, unlikely = [], [], []
    for cell, seen in zip(cells, thirds, strict=True):
        for view, estimate in zip(seen.seen, filtered(cell, noise, seen), strict=True):
            found = view_errors(view, estimate)
            mae.append(found.mae)
            worst.append(found.worst)
            value, _, hi, scored = estimate
            deviation = np.maximum((hi - value)[scored] / noise.interval_factor, 0.05)
            z = (value - view.soc)[scored] / deviation
            unlikely.append(np.log(deviation) + 2.5 * np.log1p(z * z / 4.0))
    parts = [float(np.mean(p)) for p in (mae, worst, np.concatenate(unlikely))]
    return parts[0] + 0.03 * parts[1] + 0.3 * parts[2]


def tuned(cells: Sequence[Circuit], thirds: Sequence[Views]) -> Noise:
    """The noise that a random search finds: a step of each parameter's own size, smaller after each failure."""
    rng = np.random.default_rng(4)
    best, size = FIRST, dict.fromkeys(TUNED, 0.5)
    least = loss(cells, best, thirds)
    for k in range(ROUNDS):
        names = rng.choice(TUNED, size=rng.choice([1, 1, 2, 3]), replace=False)
        new = {str(n): float(getattr(best, n) * np.exp(size[n] * rng.normal())) for n in names}
        new = {n: min(value, 1.0) if n == "start_share" else value for n, value in new.items()}
        noise = msgspec.structs.replace(best, **new)
        found = loss(cells, noise, thirds)
        for n in names:
            size[n] = min(max(size[n] * (1.5 if found < least else 0.93), 0.1), 1.5)
        if found < least:
            best, least = noise, found
        if k % 50 == 49:
            print(f"round {k + 1}: {least:.4f}", flush=True)
    return msgspec.structs.replace(best, **{n: float(f"{getattr(best, n):.3g}") for n in TUNED})


def factor(estimates: Sequence[list[Estimate]], thirds: Sequence[Views], used: float) -> float:
    """The interval factor that covers 90 %, each view counted alike."""
    ratio, weight = [], []
    for third, seen in zip(estimates, thirds, strict=True):
        for (value, lo, hi, scored), view in zip(third, seen.seen, strict=True):
            error, half = np.abs(value - view.soc), (hi - lo) / 2
            ratio.append((error / np.maximum(half, 1e-3))[scored])
            weight.append(np.full(scored.sum(), 1.0 / scored.sum()))
    ratios, weights = np.concatenate(ratio), np.concatenate(weight)
    order = np.argsort(ratios)
    share = np.cumsum(weights[order]) / weights.sum()
    return round(used * float(ratios[order][np.searchsorted(share, 0.9)]), 2)


def main(data: Path = DATA) -> None:
    """Fit, tune, write, and print what the thirds say."""
    sha256 = hashlib.sha256(data.read_bytes()).hexdigest()
    records = [r for r in measured(data) if usable(r)]
    normals = [normal(r) for r in records]
    mixed = [r.name.startswith("Mixed") for r in records]
    thirds = [views([r for r in records if r.name in names]) for names in THIRDS]

    def without(names: Sequence[str], *, others: bool) -> Circuit:
        kept = [n for r, n, m in zip(records, normals, mixed, strict=True) if r.name not in names and (m or others)]
        return circuit(solve(kept, FIRST, sha256))

    noise = tuned([without(names, others=False) for names in THIRDS], thirds)
    cells = [without(names, others=True) for names in THIRDS]
    outs = [filtered(c, noise, v) for c, v in zip(cells, thirds, strict=True)]
    counts = [counted(c, noise, v) for c, v in zip(cells, thirds, strict=True)]
    noise = msgspec.structs.replace(
        noise,
        interval_factor=factor(outs, thirds, noise.interval_factor),
        counter_factor=factor(counts, thirds, noise.counter_factor),
    )
    print(noise)
    parameters = solve(normals, noise, sha256)
    LG_HG2.write_bytes(msgspec.json.format(msgspec.json.encode(parameters), indent=1) + b"\n")
    for what in (filtered, counted):
        said = [(v, what(c, noise, v)) for c, v in zip(cells, thirds, strict=True)]
        found = [errors(list(zip(v.cases, v.seen, estimates, strict=True))) for v, estimates in said]
        for case in TUNED_ON:
            print(what.__name__, case, *(third[case] for third in found))


if __name__ == "__main__":
    main()
