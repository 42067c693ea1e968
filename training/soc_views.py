"""What the SOC model learns from: measured and simulated discharges and charges, seen as telemetry.

A record is one cell at 1 Hz; a view is what a gateway would have sent of it: sampled, begun anywhere, with
losses, noise and sensor errors. The features of a view come from `voltmill.operators.features.offline`, so
the model is trained on what the stream will give it, to the bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from records import NOMINAL_AH, Array, Record

from voltmill.kernels import cell_model
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import TELEMETRY, label
from voltmill.operators.features import FeatureSettings, offline

SETTINGS: Final = FeatureSettings()
STEPS: Final = (1, 2, 5, 5, 5, 10, 15, 30)  # sample intervals, s; 5 s is what fleets usually send
GRAINS: Final = (0, 0, 0, 0.5, 1.0)  # steps of a temperature reading, K
GAPS: Final = (0, 0, 0, 60, 280)  # longest silence, s; after 300 s the features begin anew

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """A view with its features: what the model and the filter get, and the truth."""

    view: Record
    features: Matrix
    charge_step_ah: Array
    interval_seconds: Array


def simulated(records: Sequence[Record], modules: int, hours: float, rng: np.random.Generator) -> list[Record]:
    """Charges (CC-CV), rests and drives on the fitted cell model: no measured record holds a charge.

    A charge ends in its voltage phase at C/20, or where the model says 100 %. The loads are the currents of
    ``records``, scaled; the ambient temperatures, charge rates and depths vary.
    """
    parameters = cell_model.load()
    cell = cell_model.tables(parameters)
    shape = (modules, 1)
    ambient = rng.uniform(-20, 42, modules)
    soc = rng.uniform(0.2, 1.0, shape)
    ones = np.full(shape, parameters.capacity_ah)
    state = cell_model.rested(soc, ambient[:, None], ones, rng.uniform(0.95, 1.1, shape))
    voltage = np.interp(soc, np.linspace(0, 1, len(parameters.ocv_volt)), parameters.ocv_volt)
    steps = int(hours * 3600)
    loads = _loads(records, ambient, steps, rng)
    kept = np.empty((steps, 4, modules))
    phase, until = np.full(modules, DRIVE), np.zeros(modules)
    floor = rng.uniform(0.05, 0.5, modules)
    rate = np.where(ambient < 5, 0.4, 1.0) * rng.uniform(0.2, 1.0, modules)
    for k in range(steps):
        request = np.where(phase == CHARGE, rate * NOMINAL_AH, np.where(phase == DRIVE, loads[:, k], 0.0))
        cell_model.advance(state, cell, request[:, None], ambient, 1.0, voltage)
        kept[k] = voltage[:, 0], state.current, state.temperature[:, 0], np.minimum(100 * state.soc[:, 0], 100)
        _next_phase(k, phase, until, state, voltage, floor, rng)
    t = np.arange(steps, dtype=float)
    return [Record(f"simulated{m}", round(ambient[m]), t, *kept[:, :, m].T) for m in range(modules)]


DRIVE, CHARGE, REST = 0, 1, 2


def _loads(records: Sequence[Record], ambient: Array, steps: int, rng: np.random.Generator) -> Array:
    loads = np.empty((len(ambient), steps))
    for m, celsius in enumerate(ambient):
        near = sorted(records, key=lambda r: abs(r.ambient - celsius))[:6]
        chosen = near[rng.integers(len(near))].current
        start = rng.integers(len(chosen))
        loads[m] = rng.uniform(0.5, 1.0) * np.resize(np.roll(chosen, -start), steps)
    return loads


def _next_phase(
    k: int,
    phase: NDArray[np.int64],
    until: Array,
    state: cell_model.PackState,
    voltage: Array,
    floor: Array,
    rng: np.random.Generator,
) -> None:
    empty = (phase == DRIVE) & ((state.soc[:, 0] < floor) | (voltage[:, 0] < 2.85))
    full = (voltage[:, 0] > 4.19) & (state.current < NOMINAL_AH / 20) | (state.soc[:, 0] >= 1.0)
    full &= phase == CHARGE
    # Some charges are broken off early, some drives too.
    full |= (phase == CHARGE) & (rng.random(len(phase)) < 5e-5)
    empty |= (phase == DRIVE) & (rng.random(len(phase)) < 1e-4)
    rested = (phase == REST) & (k >= until)
    for m in np.flatnonzero(empty | full):
        phase[m], until[m] = REST, k + rng.choice((60, 600, 3600)) * rng.uniform(0.5, 1.5)
    low = state.soc[:, 0] < 0.9 * rng.random(len(phase))
    phase[rested] = np.where(low[rested], CHARGE, DRIVE)


def sampled(record: Record, rng: np.random.Generator, *, step: int = 5, start: int = 0, lost: float = 0.0) -> Record:
    """Every ``step`` s from ``start`` s on; a share of the samples is lost."""
    rows = np.arange(start, len(record), step)
    return record.at(rows[rng.random(len(rows)) >= lost] if lost else rows)


def disturbed(record: Record, rng: np.random.Generator) -> Record:
    """A random view with noise and sensor errors as a BMS has them: 3 mV, 30 mA, 0.25 K, and coarse temperatures."""
    start = 0 if rng.random() < 0.4 else int(rng.integers(0, len(record) - 500))
    view = sampled(record, rng, step=int(rng.choice(STEPS)), start=start, lost=float(rng.choice([0, 0, 0.1, 0.3])))
    hole = rng.integers(0, len(record))
    view = view.at(np.flatnonzero((view.seconds < hole) | (view.seconds >= hole + rng.choice(GAPS))))
    n, grain = len(view), rng.choice(GRAINS)
    temperature = view.temperature + rng.normal(0, 0.25)
    return replace(
        view,
        voltage=view.voltage + rng.normal(0, 0.002, n) + rng.normal(0, 0.003),
        current=view.current + rng.normal(0, 0.02, n) + rng.normal(0, 0.03),
        temperature=np.round(temperature / grain) * grain if grain else temperature,
    )


def fleet(capacity: float = 1.0) -> Fleet:
    """The fleet of the views, which takes their capacity for so many times the true one."""
    entry = FleetEntry(match="*", cell_type="lg-hg2", capacity_ah=capacity * NOMINAL_AH, series=1)
    return Fleet([entry])


def see(views: Sequence[Record], names: Sequence[str], *, capacity: float = 1.0) -> Iterator[Seen]:
    """Each view through the product's own quality and feature kernels, one device a view."""
    rows = [len(v) for v in views]
    features = offline(telemetry(views), fleet(capacity), settings=SETTINGS)
    if len(features) != sum(rows):
        raise RuntimeError(f"{sum(rows) - len(features)} rows of the views were refused: look at their times")
    at = 0
    for view, n in zip(views, rows, strict=True):
        part = features.slice(at, n)
        matrix = np.stack([part.column(name).to_numpy() for name in names], 1)
        step, interval = (part.column(c).to_numpy() for c in ("charge_step_ah", "sample_interval_seconds"))
        yield Seen(view, matrix, step.astype(float), interval.astype(float))
        at += n


def telemetry(views: Sequence[Record]) -> pa.RecordBatch:
    """The views as telemetry of modules of one cell; `voltmill replay` takes the same rows."""
    n = sum(map(len, views))

    def column(name: str) -> NDArray[np.float32]:
        return np.concatenate([getattr(v, name) for v in views]).astype(np.float32)

    one_each = pa.array(np.arange(n + 1, dtype=np.int32))
    given = {
        "device_id": pa.array(np.repeat([f"view-{i}" for i in range(len(views))], [len(v) for v in views])),
        # 2020, so that times are ordinary ones
        "event_time": pa.array(((np.concatenate([v.seconds for v in views]) + 1_577_836_800) * 1e6).astype(np.int64)),
        "current_ampere": pa.array(column("current")),
        "cell_voltage_volt": pa.ListArray.from_arrays(one_each, pa.array(column("voltage"))),
        "cell_temperature_celsius": pa.ListArray.from_arrays(one_each, pa.array(column("temperature"))),
        "source": label("training", n),
        "source_partition": label("", n),
        "source_offset": pa.array(np.arange(n)),
        "quality_bits": pa.array(np.zeros(n, np.uint32)),
    }
    given["event_time"] = given["event_time"].cast(TELEMETRY.field("event_time").type)
    columns = [given[f.name].cast(f.type) if f.name in given else pa.nulls(n, f.type) for f in TELEMETRY]
    return pa.RecordBatch.from_arrays(columns, schema=TELEMETRY)
