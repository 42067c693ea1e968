"""The SOH history against a reference that keeps every value and knows nothing of running sums or ladders."""

import math
import statistics

import numpy as np
import pyarrow as pa
import pytest
from telemetry import at, content, cut, joined

from voltmill.kernels import health as kernels
from voltmill.kernels.fleet import Fleet
from voltmill.kernels.health_table import FILTER, LAPS, LONGEST, MEMORIES, START, health_columns
from voltmill.kernels.schema import TELEMETRY
from voltmill.kernels.session_table import session_columns
from voltmill.operators.features import CARRIED
from voltmill.operators.health import HEALTH, HealthSettings, HealthState
from voltmill.operators.shard import split
from voltmill.operators.table import StateError

NAMES = [c.name for c in health_columns()]
FLOATS = [c.name for c in session_columns()]
SOH = pa.schema(
    [TELEMETRY.field(name) for name in CARRIED]
    + [pa.field(name, pa.float32(), False) for name in FLOATS]
    + [pa.field(name, pa.float32()) for name in ("value", "lo90", "hi90")]
)


def valued(cycles, values, devices="m", seconds=7200.0) -> pa.RecordBatch:
    """Session rows with an SOH; None: the model gave none."""
    n = len(values)
    names = [devices] * n if isinstance(devices, str) else devices
    made = {
        "device_id": names,
        "event_time": [at(seconds * k) for k in range(n)],
        "ingest_time": [at(seconds * k + 1) for k in range(n)],
        "quality_bits": [0] * n,
        "source": ["test"] * n,
        "source_partition": ["p"] * n,
        "source_offset": list(range(n)),
        **{name: [0.0] * n for name in FLOATS},
        "equivalent_full_cycles": cycles,
        "value": values,
        "lo90": values,
        "hi90": values,
    }
    return pa.RecordBatch.from_arrays([pa.array(made[f.name], f.type) for f in SOH], schema=SOH)


def followed(rows: pa.RecordBatch, settings: HealthSettings | None = None) -> pa.RecordBatch:
    return HealthState(settings or HealthSettings(), Fleet()).apply(rows)


def column(rows: pa.RecordBatch, name: str) -> np.ndarray:
    return rows.column(name).to_numpy()


def reference(cycles: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """The columns at the last value, each from its definition; all values believable, no new battery."""
    filtered = np.array([statistics.median(values[max(0, k - FILTER + 1) : k + 1]) for k in range(len(values))])
    soh, now, age = filtered[-1], cycles[-1], cycles[-1] - cycles[0]
    peak_at = len(filtered) - 1 - int(np.argmax(filtered[::-1]))  # the last of the highest
    start = float(np.mean(values[:START]))
    square = 0.0
    for k, (value, middle) in enumerate(zip(values, filtered, strict=True), 1):
        square += max(0.05, 1 / k) * ((value - middle) ** 2 - square)
    out = {
        "soh_values": len(values),
        "soh_percent": soh,
        "soh_margin_percent": soh - 80,
        "soh_start_percent": start,
        "soh_peak_percent": filtered.max(),
        "soh_loss_percent": filtered.max() - soh,
        "soh_spread_percent": math.sqrt(square),
        "history_cycles": age,
        "peak_cycles": now - cycles[peak_at],
        "soh_mean_rate_percent_per_100_cycles": 100 * (start - soh) / age if age else 0.0,
    }
    for memory in MEMORIES:
        weight = np.exp(-(now - cycles) / memory)
        x, y = cycles - now, filtered
        mx, my = np.average(x, weights=weight), np.average(y, weights=weight)
        around = np.average((x - mx) ** 2, weights=weight)
        slope = np.average((x - mx) * (y - my), weights=weight) / around if around > 1e-6 else 0.0
        out[f"soh_slope_{memory}_percent_per_100_cycles"] = 100 * slope
        out[f"soh_line_{memory}_percent"] = my - slope * mx
        out[f"linear_{memory}_cycles"] = min(max(soh - 80, 0) / -slope, LONGEST) if slope < 0 else LONGEST
    return out | ladder(cycles[peak_at:] - cycles[peak_at], filtered[peak_at:])


def ladder(cycles: np.ndarray, filtered: np.ndarray) -> dict[str, float]:
    """Laps and share of the first half: the falling curve at every half percent below the peak's grid line."""
    lowest = np.minimum.accumulate(filtered)
    reached, level = [(filtered[0], 0.0)], math.floor(filtered[0] * 2) / 2
    while level >= lowest[-1] and len(lowest) > 1:
        k = max(int(np.argmax(lowest <= level)), 1)
        share = (lowest[k - 1] - level) / (lowest[k - 1] - lowest[k]) if lowest[k - 1] > lowest[k] else 0.0
        reached.append((level, cycles[k - 1] + share * (cycles[k] - cycles[k - 1])))
        level -= 0.5
    heights, times = (np.array(x) for x in zip(*reached[::-1], strict=True))
    lost, age, out = filtered[0] - lowest[-1], cycles[-1], {}
    for lap in LAPS:
        scaled = min(age * lap / lost, LONGEST) if lost > 0 else LONGEST
        began = float(np.interp(lowest[-1] + lap, heights, times))
        out[f"lap_{lap:g}_percent_cycles".replace(".", "p")] = scaled if lost < lap else max(age - began, 0.0)
    half = (filtered[0] + lowest[-1]) / 2
    known = half >= heights[0] and age > 0
    out["soh_first_half_share"] = min(max(float(np.interp(half, heights, times)) / age, 0), 1) if known else 0.5
    return out


def ageing(seed: int, n: int = 150, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """A cell that loses a fifth with a knee, with noise and wrong values; as float32 holds it."""
    rng = np.random.default_rng(seed)
    cycles = np.cumsum(rng.uniform(0.2, 6.0, n))
    share = cycles / cycles[-1]
    values = 97 + 1.5 * np.minimum(share * 10, 1) - 12 * share - 10 * share**6 + noise * rng.standard_normal(n)
    values[rng.random(n) < 0.03] -= 8.0
    return cycles.astype(np.float32).astype(float), values.astype(np.float32).astype(float)


@pytest.mark.parametrize("seed", range(6))
def test_every_column_is_what_its_definition_says(seed):
    cycles, values = ageing(seed)
    found = followed(valued(cycles, values))
    seen = set()
    for k in [0, 1, 2, 3, 6, 7, 8, 20, 50, 90, 149]:
        wanted = reference(cycles[: k + 1], values[: k + 1])
        seen |= set(wanted)
        for name, value in wanted.items():
            assert column(found, name)[k] == pytest.approx(value, rel=2e-4, abs=2e-3), (name, k)
    assert seen | {"history_days"} == set(NAMES)
    assert column(found, "history_days")[149] == pytest.approx(149 / 12)


def test_a_straight_line_is_followed_exactly():
    """100 % to 82 % at 1 % in 20 cycles: 40 cycles are left."""
    cycles = np.arange(0.0, 360.0)
    last = {name: column(followed(valued(cycles, 100 - cycles / 20)), name)[-1] for name in NAMES}
    for memory in MEMORIES:
        assert last[f"soh_slope_{memory}_percent_per_100_cycles"] == pytest.approx(-5, abs=0.01)
        assert last[f"linear_{memory}_cycles"] == pytest.approx(40 + 1 + 3, abs=0.2)  # the median is 3 late
    for lap in LAPS:
        assert last[f"lap_{lap:g}_percent_cycles".replace(".", "p")] == pytest.approx(20 * lap, abs=0.1)
    assert last["soh_first_half_share"] == pytest.approx(0.5, abs=0.01)


def test_a_knee_shows():
    cycles = np.arange(0.0, 300.0)
    share = column(followed(valued(cycles, 100 - 15 * (cycles / 300) ** 4)), "soh_first_half_share")
    assert share[-1] == pytest.approx(0.5**0.25, abs=0.02)


def test_three_wrong_values_in_a_row_do_no_harm():
    cycles = np.arange(100.0)
    values = 100 - cycles / 20
    wrong = values.copy()
    wrong[50:53] = 60.0
    clean, found = followed(valued(cycles, values)), followed(valued(cycles, wrong))
    for name in ("soh_percent", "soh_loss_percent", "lap_1_percent_cycles"):
        assert np.abs(column(found, name) - column(clean, name)).max() < 0.2 * (20 if "cycles" in name else 1)


def test_a_row_for_each_value_with_what_it_carries():
    rows = valued([1.0, 2.0, 3.0, 4.0], [99.0, None, 98.0, 97.5])
    rows = rows.set_column(
        rows.schema.get_field_index("cc_seconds"), "cc_seconds", pa.array([1, 2, 3, 4], pa.float32())
    )
    rows = rows.cast(SOH)
    found = followed(rows)
    assert found.schema == HEALTH
    assert found.column("source_offset").to_pylist() == [0, 2, 3]
    assert found.column("cc_seconds").to_pylist() == [1.0, 3.0, 4.0]
    assert found.column("soh_values").to_pylist() == [1.0, 2.0, 3.0]


BAD = [(5.0, math.nan), (5.0, 3.0), (5.0, 500.0), (5.0, math.inf), (math.nan, 98.0), (math.inf, 98.0), (-1.0, 98.0)]


@pytest.mark.parametrize(("cycles", "value"), BAD)
def test_what_cannot_be_believed_gives_nan_and_changes_nothing(cycles, value):
    found = followed(valued([1.0, 2.0, cycles, 6.0], [99.0, 98.5, value, 98.0]))
    without = followed(valued([1.0, 2.0, 6.0], [99.0, 98.5, 98.0]))
    assert all(math.isnan(column(found, name)[2]) for name in NAMES)
    for name in set(NAMES) - {"history_days"}:
        assert column(found, name)[-1] == column(without, name)[-1]


@pytest.mark.parametrize("change", ["another battery", "a long time without", "a counter set back"])
def test_a_history_begins_anew(change):
    cycles, values = np.arange(60.0), 90 - np.arange(60.0) / 20
    later, after = cycles + 60, values - 3
    if change == "another battery":
        after = values + 13
    if change == "a long time without":
        later = cycles + 700
    if change == "a counter set back":
        later = cycles
    found = followed(valued(np.concatenate([cycles, later]), np.concatenate([values, after])))
    count = column(found, "soh_values")
    assert count[59] == 60
    begun = 60 + int(np.argmin(count[60:]))
    assert count[begun] == 1 and begun <= 63  # three values are needed to believe in another battery
    alone = followed(valued(later[begun - 60 :], after[begun - 60 :]))
    for name in set(NAMES) - {"history_days"}:
        np.testing.assert_allclose(column(found, name)[begun:], column(alone, name), rtol=1e-6)


def many(n=300):
    rng = np.random.default_rng(1)
    devices = [f"d{k}" for k in rng.integers(0, 7, n)]
    values = [None if x < 0.1 else float(np.float32(100 - k / 20 + x)) for k, x in enumerate(rng.random(n))]
    return valued(np.cumsum(rng.random(n)).tolist(), values, devices)


def test_any_cut_snapshot_and_sharding_gives_the_same_bytes():
    rows = many()
    whole = content(followed(rows))
    state = HealthState(HealthSettings(), Fleet())
    parts = []
    for part in cut(rows, np.random.default_rng(2).integers(0, len(rows), 30).tolist()):
        parts.append(state.apply(part))
        state = HealthState(HealthSettings(), Fleet(), state.snapshot())
    assert content(joined(p for p in parts if len(p))) == whole
    shards = {k: followed(part) for k, part in split(rows, 4)}
    merged = joined(shards.values()).take(
        pa.array(np.argsort(np.concatenate([column(s, "source_offset") for s in shards.values()])))
    )
    assert content(merged) == whole


def test_the_state_is_small():
    assert kernels.STATE.itemsize <= 600


def test_the_table_names_each_column_once():
    assert len(set(NAMES) | set(FLOATS)) == len(NAMES) + len(FLOATS)


def test_state_of_another_version_is_refused():
    with pytest.raises(StateError, match="health: the recovery store holds state 'v9'"):
        HealthState(HealthSettings(), Fleet(), ("v9", 1))


@pytest.mark.parametrize(
    "wrong", [{"believed_percent": (90.0, 20.0)}, {"replaced_percent": 0.0}, {"restart_cycles": math.nan}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HealthSettings(**wrong)
