"""Same rows, same bytes: any cut into batches, any shard count, a restart anywhere. And how shards are split."""

import pickle
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from telemetry import batch, content, cut, joined, sample
from test_estimate import FUSION, Odd

from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.quality import CELL
from voltmill.kernels.schema import TELEMETRY, Quality
from voltmill.operators.estimate import EstimateState
from voltmill.operators.features import FeatureSettings, FeatureState
from voltmill.operators.model import Chosen
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.shard import shard_names, split
from voltmill.operators.table import hashes_of

DEVICES = ("m1", "m2", "m/3", "other", "ä")
FLEET = Fleet([FleetEntry(match="m*", cell_type="lg-hg2", capacity_ah=3.0)])
MODEL = Odd(lambda out: np.where(out > 75, np.nan, out), fusion=FUSION, warm_up_seconds=20.0)
CHOSEN = Chosen(MODEL, "live")


class Shard:
    """The three states of one shard, as the graph chains them."""

    def __init__(self, snapshots=(None, None, None)):
        quality, features, estimate = snapshots
        self.quality = QualityState(QualitySettings(), FLEET, quality)
        self.features = FeatureState(FeatureSettings(), FLEET, features)
        self.estimate = EstimateState(lambda: [CHOSEN], FLEET, estimate)

    def apply(self, telemetry):
        judged = self.quality.apply(telemetry)
        rows = self.features.apply(judged)
        return judged, rows, *(m.batch for m in self.estimate.apply(rows) if m.kind == "predictions")

    def restarted(self):
        """From its snapshot, as it comes back from a recovery store."""
        states = (self.quality, self.features, self.estimate)
        return Shard(pickle.loads(pickle.dumps([s.snapshot() for s in states])))


def run(rows, *, cuts=(), shards=1, restarts=()):
    """What comes out for each device: telemetry with bits, features, predictions."""
    states = defaultdict(Shard)
    out = [[], [], []]
    for k, part in enumerate(cut(rows, cuts)):
        if k in restarts:
            for number in list(states):
                states[number] = states[number].restarted()
        for number, piece in split(part, shards):
            for parts, found in zip(out, states[number].apply(piece), strict=False):
                parts.append(found)
    return [by_device(joined(parts)) if parts else {} for parts in out]


def by_device(rows):
    ids = rows.column("device_id")
    return {d: content(rows.filter(pa.array([i == d for i in ids.to_pylist()]))) for d in set(ids.to_pylist())}


@st.composite
def traffic(draw):
    """Rows of a few devices: late, doubled, ahead, without readings, with other numbers of cells."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 120))
    clock, rows = dict.fromkeys(DEVICES, 0.0), []
    width, counter = dict.fromkeys(DEVICES, 4), dict.fromkeys(DEVICES, 0)
    for _ in range(n):
        d = DEVICES[rng.integers(len(DEVICES))]
        if rows and rng.random() < 0.1:
            rows.append(rows[rng.integers(len(rows))])  # sent again
            continue
        clock[d] += rng.choice([0.2, 1.0, 5.0, 29.0, 40.0, 400.0], p=[0.1, 0.4, 0.35, 0.05, 0.05, 0.05])
        counter[d] = 0 if rng.random() < 0.02 else counter[d] + int(rng.choice([1, 1, 1, 1, 3, 90]))
        if rng.random() < 0.1:
            width[d] = int(rng.choice([0, 1, 4, 5, 16, 30]))
        t = clock[d] + (rng.choice([-3.0, -100.0, 500.0]) if rng.random() < 0.1 else 0.0)
        volts = (3.7 + 0.05 * rng.standard_normal(width[d])).tolist()
        if volts and rng.random() < 0.1:
            volts[0] = [None, 66.0, float("nan")][rng.integers(3)]
        if len(volts) > 1 and rng.random() < 0.1:
            volts[-1] -= 1.3
        probes = (25 + rng.standard_normal(int(rng.integers(0, 3)))).tolist()
        change = {"current_ampere": float(rng.choice([-3.0, 0.0, 2.0, np.nan]))}
        change |= {"voltage_volt": None if rng.random() < 0.5 else 14.8, "seq": None if d == "m2" else counter[d]}
        arrival = None if rng.random() < 0.1 else clock[d] + 0.1
        rows.append(
            sample(t, arrival=arrival, device_id=d, cell_voltage_volt=volts, cell_temperature_celsius=probes, **change)
        )
    return batch(row | {"source_offset": k} for k, row in enumerate(rows))


@settings(max_examples=60, deadline=None)
@given(traffic(), st.data())
def test_same_rows_same_bytes(rows, data):
    whole = run(rows)
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=8))
    restarts = data.draw(st.sets(st.integers(1, 8), max_size=3))
    assert run(rows, cuts=cuts, shards=data.draw(st.integers(1, 6)), restarts=restarts) == whole


@settings(max_examples=10, deadline=None)
@given(traffic())
def test_row_by_row_with_a_restart_before_each(rows):
    everywhere = range(len(rows))
    assert run(rows, cuts=everywhere, shards=3, restarts=everywhere) == run(rows)


@settings(max_examples=25, deadline=None)
@given(traffic(), st.data())
def test_a_device_alone_gives_what_it_gives_among_others(rows, data):
    device = data.draw(st.sampled_from(rows.column("device_id").to_pylist()))
    alone = rows.filter(pa.array([d == device for d in rows.column("device_id").to_pylist()]))
    for among, found in zip(run(rows), run(alone), strict=True) if device_is_featured(alone) else ():
        assert found[device] == among[device]


def device_is_featured(rows):
    return len(FeatureState(FeatureSettings(), FLEET).apply(QualityState(QualitySettings(), FLEET).apply(rows))) > 0


def test_the_traffic_of_these_tests_raises_every_bit_it_can():
    """Otherwise they would prove nothing of the code behind the bit."""
    seen, strategy = 0, traffic()

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(strategy)
    def gather(rows):
        nonlocal seen
        shard = Shard()
        for found in shard.apply(rows):
            seen |= int(np.bitwise_or.reduce(found.column("quality_bits").to_numpy(), initial=0))

    gather()
    rare = Quality.PARTIAL_SESSION | Quality.SIGN_SUSPECT | Quality.STUCK | Quality.UNIT_CONVERTED | Quality.REISSUED
    assert Quality(seen) | rare == Quality(sum(Quality))


class TestSplit:
    def test_the_shard_of_a_device_is_its_hash_modulo_the_number(self):
        rows = batch(sample(k, device_id=f"m-{k % 7}", source_offset=k) for k in range(50))
        parts = split(rows, 4)
        assert [k for k, _ in parts] == sorted({int(h) % 4 for h in hashes_of(rows.column("device_id"))})
        for number, part in parts:
            assert set((hashes_of(part.column("device_id")) % np.uint64(4)).tolist()) == {number}
            assert part.schema.equals(TELEMETRY, check_metadata=True)
            assert part.column("source_offset").to_pylist() == sorted(part.column("source_offset").to_pylist())
        assert sum(len(p) for _, p in parts) == 50

    def test_of_a_slice(self):
        rows = batch(sample(k, device_id=f"m-{k % 7}", cell_voltage_volt=[3.0 + k] * (k % 3)) for k in range(20))
        found = joined(p for _, p in split(rows.slice(5, 10), 3)).sort_by("event_time")
        assert content(found) == content(rows.slice(5, 10))

    def test_one_shard_takes_the_batch_as_it_is(self):
        rows = batch([sample(0)])
        assert split(rows, 1)[0][1] is rows

    @pytest.mark.parametrize("shards", [2, 100])
    def test_no_rows(self, shards):
        assert split(batch([]), shards) == []

    def test_names_sort_as_numbers(self):
        for shards in (1, 10, 100):
            assert shard_names(shards) == sorted(shard_names(shards)) and len(set(shard_names(shards))) == shards


def test_state_stays_below_2_kb_a_device():
    n = 10_000
    rows = batch(
        sample(0, device_id=f"site-{k % 7}/gateway-{k // 100}/m-{k}", cell_voltage_volt=[3.7] * 16, seq=0)
        for k in range(n)
    )
    shard = Shard()
    shard.apply(rows)
    states = (shard.quality, shard.features, shard.estimate)
    held = sum(s.nbytes for s in states) / n
    least = sum(s.table.rows.itemsize + s.table.facts.itemsize for s in states) + 16 * CELL.itemsize
    assert least < held < 2048
