"""Thinning against a reference that keeps every row."""

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pyarrow as pa
import pytest
from bytewax.dataflow import Dataflow, Stream
from bytewax.operators import KeyedStream
from bytewax.testing import TestingSink, TestingSource
from conftest import RunFlow
from hypothesis import given
from hypothesis import strategies as st
from stored_flow import START, predictions
from telemetry import content, cut, joined

from voltmill.connectors.sql import SqlSettings
from voltmill.flows.config import Config, RunSettings
from voltmill.flows.graph import Sinks, build
from voltmill.flows.simulate import SimulateSettings, messages
from voltmill.flows.steps import _OPTIONAL, stateful_steps
from voltmill.flows.warm_up import raw_batch
from voltmill.kernels.fleet import FleetEntry
from voltmill.kernels.schema import PREDICTION
from voltmill.operators import thin as module
from voltmill.operators.table import StateError
from voltmill.operators.thin import ThinState, thin

MINUTE = {"soc": 60.0}
SMALL: dict[str, Any] = {"gateways": 1, "packs_per_gateway": 1, "modules_per_pack": 2}


def rows_of(found: list[dict[str, Any]]) -> pa.RecordBatch:
    """Predictions at seconds after midnight, ten seconds before which the others begin."""
    base = predictions(0, 1).to_pylist()[0]
    return pa.RecordBatch.from_pylist(
        [
            base | {"source_offset": k} | row | {"event_time": START + timedelta(seconds=10 + row["event_time"])}
            for k, row in enumerate(found)
        ],
        schema=PREDICTION,
    )


def offsets(rows: pa.RecordBatch) -> list[int]:
    return list(rows.column("source_offset").to_pylist())


def test_one_a_minute_a_module() -> None:
    seconds = [-1.0, 0.0, 5.0, 59.999999, 60.0, 61.0, 200.0]
    devices = ("a", "b")
    rows = rows_of([{"device_id": device, "event_time": s} for s in seconds for device in devices])
    found = ThinState(MINUTE).apply(rows)
    assert [seconds[k // 2] for k in offsets(found)] == [s for s in (-1.0, 0.0, 60.0, 200.0) for _ in devices]


def test_each_target_and_model_for_itself_and_others_whole() -> None:
    kinds = [{}, {"target": "soh"}, {"model_sha256": "cd" * 32}, {}, {"target": "soh"}, {"model_sha256": "cd" * 32}]
    rows = rows_of([kind | {"event_time": k} for k, kind in enumerate(kinds)])
    assert offsets(ThinState(MINUTE).apply(rows)) == [0, 1, 2, 4]
    assert offsets(ThinState({"soh": 60.0}).apply(rows)) == [0, 1, 2, 3, 5]
    assert ThinState({"rul": 60.0}).apply(rows) is rows


def test_a_row_without_a_value_does_not_hide_the_first_with_one() -> None:
    values = [None, None, math.nan, 50.0, None, 51.0, 52.0, None]
    rows = rows_of([{"event_time": 50 + 2 * k, "value": value} for k, value in enumerate(values)])
    assert offsets(ThinState(MINUTE).apply(rows)) == [0, 3, 5]


def test_a_clock_that_was_set_back_begins_anew() -> None:
    rows = rows_of([{"event_time": s} for s in (0.0, 1e8, 1e8 + 1, 60.0, 61.0)])
    assert offsets(ThinState(MINUTE).apply(rows)) == [0, 1, 3]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "device_id": st.sampled_from(["a", "b", "c"]),
                "event_time": st.integers(-100, 300),
                "target": st.sampled_from(["soc", "soh"]),
                "model_sha256": st.sampled_from(["ab" * 32, "cd" * 32]),
                "value": st.none() | st.just(1.0),
            }
        ),
        max_size=60,
    ),
    st.lists(st.integers(0, 60), max_size=10),
)
def test_any_cut_and_a_restart_anywhere_choose_the_same_rows(rows: list[dict[str, Any]], cuts: list[int]) -> None:
    midnight = round((START + timedelta(seconds=10)).timestamp())
    every, last, wanted = {"soc": 60, "soh": 7}, dict[Any, Any](), []
    for k, row in enumerate(rows):
        series = row["device_id"], row["target"], row["model_sha256"]
        interval, says = (midnight + row["event_time"]) // every[row["target"]], 1 + (row["value"] is not None)
        before, gone = last.get(series, (None, 0))
        if says > (gone if before == interval else 0):
            last[series] = interval, says
            wanted.append(k)
    settings, batch = {target: float(seconds) for target, seconds in every.items()}, rows_of(rows)
    assert offsets(ThinState(settings).apply(batch)) == wanted
    state, found = ThinState(settings), []
    for part in cut(batch, [c for c in cuts if c <= len(rows)]):
        found += offsets(state.apply(part))
        state = ThinState(settings, state.snapshot())
    assert found == wanted


def test_another_interval_begins_anew_and_a_foreign_state_is_refused() -> None:
    state = ThinState({"soc": 60.0, "soh": 60.0})
    rows = rows_of([{"event_time": 0.0}, {"event_time": 0.0, "target": "soh"}])
    state.apply(rows)
    assert offsets(ThinState({"soc": 30.0, "soh": 60.0}, state.snapshot()).apply(rows)) == [0]
    with pytest.raises(StateError, match="thin: the recovery store holds state 'v9'"):
        ThinState(MINUTE, ("v9", ()))


def test_state_is_small_and_models_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ThinState(MINUTE)
    state.apply(rows_of([{"device_id": f"site/gateway/pack/m-{n}", "event_time": 0.0} for n in range(1000)]))
    assert state.nbytes < 200 * 1000
    monkeypatch.setattr(module, "MOST_MODELS", 3)
    for n in range(10):
        state.apply(rows_of([{"event_time": 0.0, "model_sha256": f"{k:02}" * 32} for k in (0, n)]))
    assert [series[1][:2] for series in state.tables] == ["08", "00", "09"]


@pytest.mark.parametrize("workers", [1, 2])
def test_in_a_flow_with_recovery(run_flow: RunFlow, tmp_path: Path, workers: int) -> None:
    rows = rows_of([{"device_id": f"m-{k % 3}", "event_time": float(k)} for k in range(400)])
    wanted = content(ThinState(MINUTE).apply(rows))
    sent: list[Any] = [("00", part) for part in cut(rows, range(0, 400, 7))]
    sent.insert(20, TestingSource.EOF())
    got: list[Any] = []
    flow = Dataflow("test")
    up = op.input("in", flow, TestingSource(sent, batch_size=1))
    op.output("out", thin("thin", up, every_seconds=MINUTE), TestingSink(got))
    for _ in range(2):
        run_flow(flow, recovery=tmp_path / "state", workers=workers, epoch_seconds=0)
    assert content(joined([batch for _, batch in got])) == wanted


class Database:
    """Takes rows by key, and refuses none."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def upsert(self, step_id: str, up: KeyedStream[pa.RecordBatch]) -> Stream[pa.RecordBatch]:
        kept = op.inspect(step_id, up, lambda _, item: self.batches.append(item[1]))
        return op.filter_map(f"{step_id}-none", kept, lambda item: None)


def test_the_database_gets_one_a_minute_and_the_lake_all(run_flow: RunFlow, tmp_path: Path) -> None:
    """Ten minutes of two modules, one sample each 5 s; then the setting is gone, and the store is good for that."""
    lake: list[Any] = []
    database = Database()
    run = RunSettings(shards=2, state=str(tmp_path))
    fleet = (FleetEntry(match="*", cell_type="lg-hg2", capacity_ah=3.0, series=16),)
    config = Config(run=run, fleet=fleet, sql=SqlSettings(emit_every_seconds=MINUTE))
    messages_ = [m for _, m in messages(SimulateSettings(**SMALL, duration_seconds=600.0))]
    source = TestingSource([raw_batch(messages_[k : k + 7], offset=k) for k in range(0, len(messages_), 7)])
    sinks = Sinks(predictions=[TestingSink(lake)], databases=[database])
    flow = build(source, sinks, config)
    run_flow(flow)
    everything = pa.Table.from_batches([batch for _, batch in lake])
    stored = pa.Table.from_batches(database.batches)
    times = [(row["device_id"], row["event_time"].replace(second=0, microsecond=0)) for row in stored.to_pylist()]
    soc = [row for row in everything.to_pylist() if row["target"] == "soc" and row["value"] is not None]
    wanted = {(row["device_id"], row["event_time"].replace(second=0, microsecond=0)) for row in soc}
    assert len(soc) > 200 and len(times) == len(set(times)) and set(times) == wanted
    without = build(source, sinks, Config(run=run, fleet=fleet))
    (step,) = stateful_steps(flow) - stateful_steps(without)
    assert step == "voltmill.thin-0-2.choose" and step.startswith(_OPTIONAL)  # so a store that has it is taken


@pytest.mark.parametrize("wrong", [{"sco": 60.0}, {"soc": 0.0}, {"soc": 1e9}, {"soc": math.nan}])
def test_nonsense_is_refused_where_it_is_set(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="emit_every_seconds"):
        SqlSettings(emit_every_seconds=wrong)
