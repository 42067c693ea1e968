"""State of another release, or made for other settings: gone on with or refused, never misread."""

import hashlib
import json
import logging
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import bytewax.operators as op
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource
from store_release import configuration, go
from telemetry import batch, sample

from voltmill.connectors.lake import LakeError, LakePartition, LakeSettings, LakeSink
from voltmill.flows import graph, partitions, recovery, steps
from voltmill.flows.config import Config, ConfigError
from voltmill.flows.live import lake_sinks
from voltmill.flows.metrics import Metrics
from voltmill.flows.recovery import close_store, open_store, read
from voltmill.kernels import (
    feature_table,
    features,
    fusion,
    health,
    health_table,
    quality,
    session_state,
    session_table,
    thin,
)
from voltmill.kernels.fleet import Fleet
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, TELEMETRY
from voltmill.operators.features import FeatureSettings, FeatureState
from voltmill.operators.health import HealthSettings, HealthState
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.sessions import SessionSettings, SessionState
from voltmill.operators.table import DeviceTable, StateError
from voltmill.operators.thin import ThinState

HERE = Path(__file__).parent
LOCK = HERE / "state_layouts.json"
STORES = sorted((HERE / "stores").glob("*.tar.xz"))


def layouts() -> dict[str, tuple[str, Any]]:
    """Version of each state, and what its bytes mean as far as a description can say it."""
    fleet = Fleet()
    lake = LakePartition.snapshot.__annotations__  # the types of what it gives
    return {
        "device table": (DeviceTable(np.dtype("<i8"), fleet).snapshot()[0], "layout, count, offsets, ids, rows"),
        "quality": (
            QualityState(QualitySettings(), fleet).snapshot()[0],
            [quality.STATE.descr, quality.CELL.descr, quality.LONGEST_RUN],
        ),
        "features": (
            FeatureState(FeatureSettings(), fleet).snapshot()[0],
            [features.state_dtype(1).descr, features.PANES, feature_table.TAUS],
        ),
        "estimate": (
            "v1",
            [fusion.FUSION_STATE.descr, "devices, (name, sha256, kind, size, features, filters, memory)"],
        ),
        "sessions": (
            SessionState(SessionSettings(), fleet).snapshot()[0],
            [session_state.STATE.descr, session_table.TRACKED_CHARGE, session_table.RELAXATIONS],
        ),
        "health": (
            HealthState(HealthSettings(), fleet).snapshot()[0],
            [health.STATE.descr, health.STEP, health_table.MEMORIES, health_table.FILTER, health_table.START],
        ),
        "thin": (ThinState({}).snapshot()[0], [thin.STATE.descr, "target, sha256, length in us, devices"]),
        "lake sink": (
            "v1",
            [str(lake), *(s.to_string(show_field_metadata=False) for s in (TELEMETRY, PREDICTION, DEAD_LETTER))],
        ),
        "store.json": (f"v{recovery.FORMAT}", recovery.StoreInfo.__struct_fields__),
    }


def test_no_layout_changes_without_its_version() -> None:
    """A digest that was committed for a version stays. After a change: raise the version, read or refuse the older
    ones, and add the new digest, which the message shows, to the file."""
    locked = json.loads(LOCK.read_text())
    for name, (version, layout) in layouts().items():
        digest = hashlib.sha256(json.dumps(layout).encode()).hexdigest()[:16]
        assert locked.get(name, {}).get(version) == digest, f"{name} {version}: {digest}"


def test_the_lake_refuses_rows_of_another_schema(tmp_path: Path) -> None:
    """Why its version needs no raise with a schema: the rows bring their own."""
    settings = LakeSettings(url=str(tmp_path))
    old = pa.schema([("device_id", pa.string())])
    new = old.append(pa.field("more", pa.int32()))

    def part(schema: pa.Schema, state: Any) -> LakePartition:
        return LakeSink(settings, table="t", schema=schema, shards=("00",), store="s").build_part("t", "00", state)

    before = part(old, None)
    before.write_batch([pa.RecordBatch.from_pylist([{"device_id": "a"}], old)])
    with pytest.raises(LakeError, match="lake table t: .*more"):
        part(new, before.snapshot())


def unpacked(store: Path, folder: Path) -> Config:
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11 has it from 3.11.4 on
    with tarfile.open(store) as archive:
        archive.extractall(folder, **safe)
    return configuration(folder)


def table(config: Config, name: str) -> pa.Table:
    found = ds.dataset(f"{config.lake.url}/{name}", format="parquet", partitioning=None).to_table()
    keys = [k for k in ("device_id", "event_time", "source_offset") if k in found.column_names]
    return found.sort_by([(key, "ascending") for key in keys])


@pytest.mark.parametrize("store", STORES, ids=lambda path: path.name)
def test_a_store_of_an_older_release_goes_on_bit_for_bit(store: Path, tmp_path: Path) -> None:
    """Its rows not yet in the lake come out of it too: they are what that release computed."""
    upgraded, whole = unpacked(store, tmp_path / "old"), configuration(tmp_path / "new")
    go(upgraded, 600)
    go(whole, 600)
    for name in ("telemetry", "dead_letters"):
        assert table(upgraded, name).equals(table(whole, name)), name
    keys = ["device_id", "event_time", "target"]  # the release before had another model, whose filters are left behind
    ours = table(upgraded, "predictions")
    assert ours.select(keys).equals(table(whole, "predictions").select(keys)) and len(ours) > 500
    info = read(Path(upgraded.run.state))
    assert (info.format, info.made_by, bool(info.run_by)) == (recovery.FORMAT, "", True)


def test_windows_that_stay_keep_their_panes(caplog: pytest.LogCaptureFixture) -> None:
    """And those that are new are as of a device just seen; the averages go on."""
    rows = [sample(10 * k, current_ampere=1.0 + 0.01 * k) for k in range(60)]
    first, second = batch(rows[:40]), batch(rows[40:])

    def state(windows: tuple[int, ...], snapshot: Any = None) -> FeatureState:
        return FeatureState(FeatureSettings(windows_seconds=windows), Fleet(), snapshot)

    before, never = state((60, 600)), state((600, 120))
    before.apply(first)
    never.apply(first)
    with caplog.at_level(logging.WARNING, "voltmill.features"):
        after = state((600, 120), before.snapshot())
    assert caplog.messages == ["windows_seconds changed"]
    went, whole = after.apply(second), never.apply(second)
    kept = FeatureSettings(windows_seconds=(600,)).schema().names

    def values(found: pa.RecordBatch, first: int = 0) -> dict[str, str]:
        return {name: repr(found.column(name).slice(first).to_pylist()) for name in found.schema.names}  # NaN is NaN

    differ = {name for name, value in values(whole).items() if values(went)[name] != value}
    assert differ and not differ & set(kept)  # those of 120 s lack what was before
    assert values(went, 13) == values(whole, 13)  # until 120 s later


def test_windows_of_version_1_are_taken_as_they_are_or_refused() -> None:
    state = FeatureState(FeatureSettings(windows_seconds=(60, 600)), Fleet())
    state.apply(batch([sample(1)]))
    _, _, old = state.snapshot()
    assert len(FeatureState(FeatureSettings(windows_seconds=(60, 600)), Fleet(), old).table) == 1
    with pytest.raises(
        StateError, match=r"\[features\] windows_seconds, or this voltmill, differs from what was stored"
    ):
        FeatureState(FeatureSettings(windows_seconds=(60,)), Fleet(), old)


@pytest.mark.parametrize("state", [("v9", 1), ("v2",), (), 5, ("v2", 1, 2, 3, 4)])
def test_state_of_another_version_is_refused(state: Any) -> None:
    with pytest.raises(StateError, match="quality: the recovery store holds state .*, this voltmill reads v1, v2: run"):
        QualityState(QualitySettings(), Fleet(), state)


def test_cells_of_another_layout_are_refused() -> None:
    version, device_table, cells, layout = QualityState(QualitySettings(), Fleet()).snapshot()
    with pytest.raises(StateError, match="quality: .* cells of another layout"):
        QualityState(QualitySettings(), Fleet(), (version, device_table, cells, layout.replace("u2", "u4")))


def flow_of(config: Config) -> Dataflow:
    sinks = lake_sinks(config, "s", Metrics())
    return graph.build(TestingSource([]), sinks, config)


class TestSteps:
    def test_the_same_flow_is_content(self, tmp_path: Path) -> None:
        config = configuration(tmp_path)
        go(config, 40)
        close_store(tmp_path / "state")
        open_store(config.run)
        found = partitions.look(tmp_path / "state")["steps"]
        assert found.keys() <= steps.stateful_steps(flow_of(config))
        steps.check_steps(config.run, flow_of(config))
        close_store(tmp_path / "state")

    def test_the_state_of_a_model_that_is_gone_is_removed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = configuration(tmp_path)
        go(config, 40)
        close_store(tmp_path / "state")
        with sqlite3.connect(tmp_path / "state/part-0.sqlite3") as db:
            old = "voltmill.estimate-other-01234567-2.run"
            db.execute("update snaps set step_id = ? where step_id like '%estimate%'", (old,))
        db.close()
        open_store(config.run)
        with caplog.at_level(logging.INFO, "voltmill.recovery"):
            steps.check_steps(config.run, flow_of(config))
        said = {r.message: r.__dict__.get("steps") for r in caplog.records}
        assert said["state of former steps removed"] == [old]
        assert said["models begin anew"] == [f"voltmill.estimate-{t}-2.run" for t in ("features", "health", "sessions")]
        assert old not in partitions.look(tmp_path / "state")["steps"]
        close_store(tmp_path / "state")

    def test_other_state_that_no_step_asks_for_is_refused(self, tmp_path: Path) -> None:
        config = configuration(tmp_path)
        go(config, 40)
        close_store(tmp_path / "state")
        open_store(config.run)
        empty = Dataflow("voltmill")
        op.output("out", op.input("source", empty, TestingSource([])), TestingSink([]))
        with pytest.raises(ConfigError, match=r"holds state of voltmill.dead_letters-0, .*voltmill.quality-2.judge"):
            steps.check_steps(config.run, empty)
        close_store(tmp_path / "state")
