"""The promise of the graph: the same rows give the same bytes, however they are cut, spread or replayed."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from bytewax.testing import TestingSink, TestingSource
from conftest import RunFlow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.flows import graph
from voltmill.flows.compare import Comparison, compare, read
from voltmill.flows.config import Config, ConfigError, ModelEntry, RunSettings
from voltmill.flows.metrics import Metrics
from voltmill.flows.replay import replay
from voltmill.flows.simulate import FaultSettings, SimulateSettings, messages
from voltmill.flows.warm_up import raw_batch
from voltmill.kernels.fleet import FleetEntry, Limits
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, PREDICTION_KEY, TELEMETRY
from voltmill.operators.shard import shard_names

LIMITS = Limits(cell_voltage_volt=(2.0, 4.35), cell_temperature_celsius=(-30.0, 60.0))
# Half of the fleet is known, so both known and unknown devices are compared.
FLEET = (FleetEntry(match="site-1/gw-1/*", cell_type="lg-hg2", capacity_ah=3.0, limits=LIMITS),)


@pytest.fixture(scope="module")
def payloads() -> list[bytes]:
    """Some 2,800 messages of 24 modules, with every fault in them, some sent twice or broken."""
    faults = FaultSettings(drop_rate=0.01, double_rate=0.02, malformed_rate=0.02, clock_jump_share=0.1, stuck_share=0.1)
    fleet = SimulateSettings(gateways=2, packs_per_gateway=2, modules_per_pack=6, duration_seconds=600.0, faults=faults)
    return [payload for _, payload in messages(fleet)]


def config(shards: int = 4, **changes: Any) -> Config:
    return Config(run=RunSettings(shards=shards), fleet=FLEET, **changes)


def raw(payloads: list[bytes], cuts: list[int]) -> list[pa.RecordBatch]:
    edges = [0, *sorted({c for c in cuts if 0 < c < len(payloads)}), len(payloads)]
    batches = [raw_batch(payloads[a:b], offset=a) for a, b in zip(edges, edges[1:], strict=False)]
    # One arrival time for all: only the cut may differ between runs.
    time = pa.repeat(batches[0].column("ingest_time")[0], len(payloads))
    at = batches[0].schema.get_field_index("ingest_time")
    return [b.set_column(at, b.schema.field(at), time.slice(0, len(b))) for b in batches]


def plain(table: pa.Table) -> pa.Table:
    """All but the mode, in the order of the primary key; labels as text, floats as their bits."""
    columns = {name: table.column(name).combine_chunks() for name in PREDICTION.names if name != "mode"}
    for name, column in columns.items():
        if pa.types.is_dictionary(column.type):
            columns[name] = column.dictionary_decode()
        elif column.type == pa.float32():
            columns[name] = column.view(pa.int32())
    return pa.table(columns).sort_by([(name, "ascending") for name in PREDICTION_KEY])


def predictions(run_flow: RunFlow, batches: list[pa.RecordBatch], *, shards: int = 4, workers: int = 1) -> pa.Table:
    out: list[Any] = []
    sinks = graph.Sinks(predictions=[TestingSink(out)])
    run_flow(graph.build(TestingSource(batches, batch_size=1), sinks, config(shards)), workers=workers)
    return plain(pa.Table.from_batches([batch for _, batch in out]))


@pytest.fixture(scope="module")
def whole(run_flow: RunFlow, payloads: list[bytes]) -> pa.Table:
    """The predictions of everything in one batch, one shard, one worker."""
    return predictions(run_flow, raw(payloads, []), shards=1)


def test_what_is_compared_is_worth_comparing(whole: pa.Table) -> None:
    assert len(whole) > 2500
    assert 0.3 < whole["value"].null_count / len(whole) < 0.8  # unknown devices, and known ones
    assert len(set(whole["quality_bits"].to_pylist())) > 5


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 2800), max_size=40), shards=st.sampled_from([1, 2, 3, 8]))
def test_any_cut_and_any_shard_count_give_the_same_bytes(
    run_flow: RunFlow, payloads: list[bytes], whole: pa.Table, cuts: list[int], shards: int
) -> None:
    assert predictions(run_flow, raw(payloads, cuts), shards=shards).equals(whole)


def test_single_rows_give_the_same_bytes(run_flow: RunFlow, payloads: list[bytes], whole: pa.Table) -> None:
    assert predictions(run_flow, raw(payloads, list(range(len(payloads)))), shards=2).equals(whole)


@pytest.mark.parametrize("shards", [2, 5])
def test_two_workers_give_the_same_bytes(
    run_flow: RunFlow, payloads: list[bytes], whole: pa.Table, shards: int
) -> None:
    assert predictions(run_flow, raw(payloads, list(range(0, 3000, 97))), shards=shards, workers=2).equals(whole)


def test_recovery_in_the_middle_gives_the_same_bytes(
    run_flow: RunFlow, payloads: list[bytes], whole: pa.Table, tmp_path: Path
) -> None:
    out: list[Any] = []
    batches: list[Any] = list(raw(payloads, list(range(0, 3000, 211))))
    batches.insert(7, TestingSource.ABORT())
    for _ in range(2):
        sinks = graph.Sinks(predictions=[TestingSink(out)])
        flow = graph.build(TestingSource(batches, batch_size=1), sinks, config())
        run_flow(flow, recovery=tmp_path / "state", epoch_seconds=0)
    table = plain(pa.Table.from_batches([batch for _, batch in out]))
    # What the lost epoch gave comes again, as the same rows: the sinks' keys make one of them.
    assert set(map(str, table.to_pylist())) == set(map(str, whole.to_pylist()))


def live_into(folder: Path, run_flow: RunFlow, batches: list[pa.RecordBatch]) -> Metrics:
    lake, names, metrics = LakeSettings(url=str(folder)), shard_names(4), Metrics()
    tables = (("telemetry", TELEMETRY), ("predictions", PREDICTION), ("dead_letters", DEAD_LETTER))
    sinks = graph.Sinks(*([LakeSink(lake, table=n, schema=s, shards=names, store="s")] for n, s in tables))
    run_flow(graph.build(TestingSource(batches), sinks, config(), metrics=metrics))
    return metrics


def test_replay_of_the_archive_is_identical(run_flow: RunFlow, payloads: list[bytes], tmp_path: Path) -> None:
    metrics = live_into(tmp_path / "lake", run_flow, raw(payloads, list(range(0, 3000, 500))))
    done = replay(config(), str(tmp_path / "lake"), str(tmp_path / "out"))
    live, again = read(str(tmp_path / "lake")), read(str(tmp_path / "out"))
    assert compare(live, again) == Comparison(len(live), len(live), 0, 0, 0)
    assert done.predictions == len(live) > 2500

    samples = {(s.name, *s.labels.values()): s.value for m in metrics.registry.collect() for s in m.samples}
    assert samples["voltmill_messages_total",] == len(payloads)
    letters = sum(v for k, v in samples.items() if k[0] == "voltmill_dead_letters_total")
    assert samples["voltmill_telemetry_rows_total",] + letters == len(payloads)
    assert samples["voltmill_unknown_devices_total",] == 12
    assert samples["voltmill_quality_bits_total", "duplicate"] > 10


def test_replay_from_the_middle_is_warmed_up(run_flow: RunFlow, payloads: list[bytes], tmp_path: Path) -> None:
    live_into(tmp_path / "lake", run_flow, raw(payloads, []))
    live = read(str(tmp_path / "lake"))
    times = sorted(live["event_time"].to_pylist())
    middle = times[len(times) // 2]
    replay(config(), str(tmp_path / "lake"), str(tmp_path / "out"), start=middle)
    again = read(str(tmp_path / "out"))
    assert min(again["event_time"].to_pylist()) == middle
    # The warm-up reaches back to the first row here, so what is given out is what live gave.
    assert compare(live.filter(pc.greater_equal(live["event_time"], middle)), again).identical


def test_replay_into_a_used_folder_is_refused(run_flow: RunFlow, payloads: list[bytes], tmp_path: Path) -> None:
    live_into(tmp_path / "lake", run_flow, raw(payloads[:50], []))
    with pytest.raises(ConfigError, match="is the archive that is replayed"):
        replay(config(), str(tmp_path / "lake"), str(tmp_path / "lake"))


def test_a_model_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"^\[\[model\]\] .*nothing\.onnx: cannot be read"):
        graph.build(TestingSource([]), graph.Sinks(), config(model=(ModelEntry(name="nothing.onnx"),)))
