"""explain makes every stored prediction again, to the bit, and finds out what was changed."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from bytewax.testing import TestingSource
from conftest import RunFlow
from onnx_files import recurrent, windowed
from session_rows import CHARGE, DISCHARGE, REST, series
from telemetry import batch, sample
from test_choice import write
from test_estimate import CONTRACT
from test_graph import FLEET, raw

from voltmill.connectors.compact import compact
from voltmill.connectors.compact_settings import CompactSettings
from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.lake_reader import read_table
from voltmill.flows import graph
from voltmill.flows.config import Config, ModelEntry, RunSettings
from voltmill.flows.explain import Explained, explain
from voltmill.flows.explain_text import lines
from voltmill.flows.replay import replay
from voltmill.flows.simulate import FaultSettings, SimulateSettings, messages
from voltmill.kernels.fleet import FleetEntry
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, TELEMETRY, Quality
from voltmill.operators.contract import Range
from voltmill.operators.model import METADATA_KEY, SHIPPED, Chosen, Feature, OnnxModel
from voltmill.operators.shard import shard_names

SHARDS = 3
KNOWN, UNKNOWN = "site-1/gw-1/pack-1/module-01", "site-1/gw-2/pack-1/module-01"
STORE = "20261122T100000Z-aaaa"


def config(**changes: Any) -> Config:
    return Config(**({"run": RunSettings(shards=SHARDS), "fleet": FLEET} | changes))


class Script:
    """The models in force, which change with the batches."""

    def __init__(self, *chosen: Chosen) -> None:
        self.chosen = list(chosen)

    def of(self, table: str) -> Callable[[], list[Chosen]]:
        return lambda: [each for each in self.chosen if each.model.contract.table == table]


@dataclass
class Lake:
    """A lake that the graph has written."""

    url: str
    run_flow: RunFlow

    def live(
        self,
        batches: list[Any],
        models: Any = None,
        *,
        store: str = STORE,
        recovery: Path | None = None,
        settings: Config | None = None,
        emits: Literal["raw", "telemetry"] = "raw",
    ) -> None:
        where, names = LakeSettings(url=self.url, max_file_rows=300, max_snapshot_bytes=20_000), shard_names(SHARDS)
        tables = (("telemetry", TELEMETRY), ("predictions", PREDICTION), ("dead_letters", DEAD_LETTER))
        sinks = graph.Sinks(
            **{n: [LakeSink(where, table=n, schema=s, shards=names, store=store)] for n, s in tables}  # type: ignore[arg-type]
        )
        source = TestingSource(batches, batch_size=1)
        flow = graph.build(source, sinks, settings or config(), models=models, emits=emits)
        self.run_flow(flow, recovery=recovery, epoch_seconds=0)

    def predictions(self, device: str) -> list[dict[str, Any]]:
        table = read_table(self.url, "predictions")
        rows: list[dict[str, Any]] = table.filter(pc.equal(table["device_id"], device)).to_pylist()
        return rows

    def files(self, table: str) -> list[Path]:
        return sorted(Path(self.url).glob(f"{table}/date=*/shard=*/*.parquet"))


@pytest.fixture(scope="module")
def payloads() -> list[bytes]:
    """Some 2,800 messages of 24 modules, with every fault in them."""
    faults = FaultSettings(drop_rate=0.01, double_rate=0.02, malformed_rate=0.02, clock_jump_share=0.1, stuck_share=0.1)
    fleet = SimulateSettings(gateways=2, packs_per_gateway=2, modules_per_pack=6, duration_seconds=600.0, faults=faults)
    return [payload for _, payload in messages(fleet)]


@pytest.fixture(scope="module")
def batches(payloads: list[bytes]) -> list[pa.RecordBatch]:
    return raw(payloads, list(range(0, 3000, 97)))


@pytest.fixture(scope="module")
def lake(run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Of a flow that was killed once in the middle and went on."""
    folder = tmp_path_factory.mktemp("lake")
    made = Lake(str(folder / "lake"), run_flow)
    cut = [*batches[:15], TestingSource.ABORT(), *batches[15:]]
    for _ in range(2):
        made.live(cut, recovery=folder / "state")
    return made


def one(url: str, row: dict[str, Any], settings: Config | None = None, **options: Any) -> Explained:
    options = {"target": row["target"], "model": row["model_sha256"]} | options
    found = explain(settings or config(), url, row["device_id"], row["event_time"], **options)
    (explained,) = found.predictions
    assert found.time == row["event_time"] and explained.stored.prediction.value == row["value"]
    return explained


def assert_all_identical(lake: Lake, rows: list[dict[str, Any]], **options: Any) -> None:
    for row in rows:
        explained = one(lake.url, row, **options)
        assert explained.identical, explained
        assert not explained.notes
        assert_place(lake.url, explained)


def assert_place(url: str, explained: Explained) -> None:
    """The archive's row is where it is said to be."""
    p = explained.stored.prediction
    row = pq.read_table(Path(url) / explained.file, partitioning=None).slice(explained.row, 1).to_pylist()[0]
    assert (row["device_id"], row["event_time"]) == (p.device_id, p.event_time)
    assert (row["source"], row["source_partition"], row["source_offset"]) == (
        p.source, p.source_partition, p.source_offset,
    )  # fmt: skip
    kept = pq.read_table(Path(url) / explained.stored.file, partitioning=None).slice(explained.stored.row, 1)
    assert kept.to_pylist()[0]["event_time"] == p.event_time


def test_rows_of_devices_also_over_a_restart(lake: Lake) -> None:
    known, unknown = lake.predictions(KNOWN), lake.predictions(UNKNOWN)
    assert len(known) > 100 and any(row["value"] is not None for row in known)
    assert_all_identical(lake, known[::17] + known[54:58])
    assert_all_identical(lake, unknown[::40])


def test_what_it_says_of_a_row(lake: Lake) -> None:
    row = next(row for row in lake.predictions(KNOWN)[90:] if row["value"] is not None)
    explained = one(lake.url, row)
    model = OnnxModel(SHIPPED / "lg_hg2_soc.onnx")
    assert [i.name for i in explained.inputs if not i.condition] == list(model.contract.feature_names)
    assert all(i.inside for i in explained.inputs) and explained.table == "features"
    assert 90 < explained.rows < 130, "up to the row of the lineage, not to the end"
    text = "\n".join(lines(explain(config(), lake.url, KNOWN, row["event_time"])))
    assert f"sha256 {model.sha256}" in text and text.endswith("are identical")
    assert re.search(r"^  lineage     memory 0, offset \d+$", text, re.M)
    assert re.search(r"^  value +([\d.]+)  \1  same$", text, re.M)
    assert re.search(r"^  c_rate +-?[\d.]+ +1/h +-7 to 2.5$", text, re.M)


def test_the_nearest_before_a_time(lake: Lake) -> None:
    row = lake.predictions(KNOWN)[40]
    asked = row["event_time"] + timedelta(milliseconds=1)
    found = explain(config(), lake.url, KNOWN, asked)
    assert (found.asked, found.time, found.identical) == (asked, row["event_time"], True)
    assert next(lines(found)).startswith("no prediction at ")
    early = explain(config(), lake.url, KNOWN, datetime(2020, 1, 1, tzinfo=UTC))
    assert early.time is None and not early.identical
    assert list(lines(early)) == [f"{KNOWN}: no prediction at 2020-01-01T00:00:00.000Z or before"]
    assert not explain(config(), lake.url, KNOWN, asked, target="soh").predictions
    assert not explain(config(), lake.url, "nobody", asked).predictions


def test_a_device_without_a_model(lake: Lake) -> None:
    nobody = one(lake.url, lake.predictions(UNKNOWN)[3])
    assert nobody.identical and "UNKNOWN_CELL" in [bit.name for bit in nobody.bits]


def test_a_row_out_of_range(run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    features = list(OnnxModel(SHIPPED / "lg_hg2_soc.onnx").contract.features)
    features[1] = msgspec.structs.replace(features[1], low=-0.05)
    lake.live(batches, Script(Chosen(variant(tmp_path / "narrow.onnx", features=tuple(features)), "live")))
    rows = lake.predictions(KNOWN)
    bad = next(row for row in rows if row["quality_bits"] & Quality.OUT_OF_DOMAIN)
    files = [tmp_path / "narrow.onnx"]
    explained = one(lake.url, bad, files=files)
    assert explained.identical and explained.recomputed and explained.recomputed.value is None
    assert [i.name for i in explained.inputs if not i.inside] == ["c_rate"]
    text = "\n".join(lines(explain(config(), lake.url, KNOWN, bad["event_time"], files=files)))
    assert re.search(r"^  c_rate +-0\.\d+ +1/h +-0\.05 to 2\.5 +OUT OF RANGE$", text, re.M)
    assert "OUT_OF_DOMAIN: " in text and re.search(r"^  value +null +null +same$", text, re.M)


def test_a_sample_too_late_for_the_contract(run_flow: RunFlow, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    interval = Feature(name="sample_interval_seconds", offset=0, scale=1, low=0, high=100)
    volt = Range(name="cell_voltage_mean_volt", low=3.9, high=4.0)
    features = (*CONTRACT.features, interval)
    write(tmp_path / "steady.onnx", features=features, conditions=(volt,), dt_range_seconds=(0.5, 30.0))
    files = [tmp_path / "steady.onnx"]
    samples = [sample(each, device_id=KNOWN, source_offset=k) for k, each in enumerate((0, 10, 70))]
    lake.live([batch(samples)], Script(Chosen(OnnxModel(files[0]), "live")), emits="telemetry")
    rows = lake.predictions(KNOWN)
    assert [bool(row["quality_bits"] & Quality.OUT_OF_DOMAIN) for row in rows] == [False, False, True]
    assert all(row["quality_bits"] & Quality.PARTIAL_SESSION for row in rows)
    for row, outside in zip(rows, ([], [], ["sample_interval_seconds"]), strict=True):
        explained = one(lake.url, row, files=files)
        assert explained.identical
        assert [i.name for i in explained.inputs if not i.inside] == ["cell_voltage_mean_volt", *outside]
    text = "\n".join(lines(explain(config(), lake.url, KNOWN, rows[2]["event_time"], files=files)))
    assert re.search(r"^  sample_interval_seconds +60 +s +0 to 100$", text, re.M)
    assert re.search(r"^  sample_interval_seconds +60 +s +0\.5 to 30 +OUT OF RANGE, condition$", text, re.M)
    assert re.search(r"^  cell_voltage_mean_volt +3\.\d+ +V +3\.9 to 4 +OUT OF RANGE, condition$", text, re.M)


@pytest.fixture
def copy(lake: Lake, tmp_path: Path) -> Lake:
    shutil.copytree(lake.url, tmp_path / "lake")
    return Lake(str(tmp_path / "lake"), lake.run_flow)


def test_after_compaction(copy: Lake) -> None:
    rows = copy.predictions(KNOWN)
    before = len(copy.files("telemetry"))
    settings = CompactSettings(before=date(2100, 1, 1), finished=frozenset([STORE]))
    for table in ("telemetry", "predictions"):
        compact(LakeSettings(url=copy.url).open(), table, settings)
    assert len(copy.files("telemetry")) < before
    assert_all_identical(copy, rows[::30])


def change(file: Path, row: int, column: str, value: Any) -> None:
    """Another value in one row of a file."""
    table = pq.read_table(file, partitioning=None)
    at = table.schema.get_field_index(column)
    values = table.column(column).to_pylist()
    values[row] = value
    metadata = pq.read_metadata(file).metadata
    kept = {k: v for k, v in metadata.items() if k != b"ARROW:schema"}
    changed = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    pq.write_table(changed.replace_schema_metadata(kept), file)


def test_a_changed_prediction_is_found_out(copy: Lake) -> None:
    row = next(row for row in copy.predictions(KNOWN)[60:] if row["value"] is not None)
    explained = one(copy.url, row)
    bumped = float(np.nextafter(np.float32(row["value"]), np.float32(200)))
    change(Path(copy.url) / explained.stored.file, explained.stored.row, "value", bumped)
    found = explain(config(), copy.url, KNOWN, row["event_time"]).predictions[0]
    assert not found.identical
    assert found.agree == {"value": False, "lo90": True, "hi90": True, "quality_bits": True, "mode": True}
    assert any("if neither the row nor the prediction was changed" in note for note in found.notes)


def test_changed_telemetry_is_found_out(copy: Lake) -> None:
    rows = [row for row in copy.predictions(KNOWN) if row["value"] is not None]
    first = one(copy.url, rows[10])
    change(Path(copy.url) / first.file, first.row, "current_ampere", -2.5)
    assert one(copy.url, rows[9]).identical
    assert not one(copy.url, rows[10]).identical and not one(copy.url, rows[40]).identical


def test_a_row_that_is_gone(copy: Lake) -> None:
    rows = copy.predictions(KNOWN)
    explained = one(copy.url, rows[-1])
    (Path(copy.url) / explained.file).unlink()
    gone = one(copy.url, rows[-1])
    assert not gone.identical and gone.file == "" and gone.recomputed is None
    assert any("bears this source, partition and offset" in note for note in gone.notes)


def test_older_files_that_are_gone_are_said(copy: Lake) -> None:
    rows = copy.predictions(KNOWN)
    shard = Path(one(copy.url, rows[0]).file).parent
    for table in ("telemetry", "predictions"):
        min((Path(copy.url) / table).glob(f"*/{shard.name}/*-0000000000.parquet")).unlink()
    notes = " ".join(one(copy.url, rows[-1]).notes)
    assert "begins with file number 1: older rows are gone" in notes
    assert "older predictions are gone: the model was taken to be in force" in notes


# --- models that change, fail and are missing ----------------------------------------------------


def variant(path: Path, **contract: Any) -> OnnxModel:
    """The shipped model under another contract: the same name, another digest."""
    made = onnx.load(SHIPPED / "lg_hg2_soc.onnx")
    texts = {p.key: p.value for p in made.metadata_props}
    was = OnnxModel(SHIPPED / "lg_hg2_soc.onnx").contract
    texts[METADATA_KEY] = msgspec.json.encode(msgspec.structs.replace(was, **contract)).decode()
    onnx.helper.set_model_props(made, texts)
    onnx.save(made, path)
    return OnnxModel(path)


class Flaky:
    """The shipped model, which raises on some of its calls."""

    def __init__(self, fails: set[int]) -> None:
        self._model = OnnxModel(SHIPPED / "lg_hg2_soc.onnx")
        self.contract, self.sha256 = self._model.contract, self._model.sha256
        self._fails, self._calls = fails, 0

    def predict(self, features: Any) -> Any:
        self._calls += 1
        if self._calls in self._fails:
            raise RuntimeError("no answer")
        return self._model.predict(features)


class Changing:
    """Hands out batches, and does something before some of them."""

    def __init__(self, batches: list[pa.RecordBatch], at: dict[int, Callable[[], None]]) -> None:
        self._batches, self._at = batches, at

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for k, rows in enumerate(self._batches):
            self._at.get(k, lambda: None)()
            yield rows


def test_a_model_that_was_replaced_is_followed(
    run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    old, shipped = variant(tmp_path / "old.onnx", version="0.9.0"), OnnxModel(SHIPPED / "lg_hg2_soc.onnx")
    other = msgspec.structs.replace(shipped.contract.fusion, process_noise=1e-2)
    old = variant(tmp_path / "old.onnx", version="0.9.0", fusion=other)
    script = Script(Chosen(old, "live"))
    back = [Chosen(shipped, "live")], [Chosen(old, "live")]
    steps = {10: lambda: script.__init__(*back[0]), 20: lambda: script.__init__(*back[1])}  # type: ignore[misc]
    lake.live(Changing(batches, steps), script, recovery=tmp_path / "state")  # type: ignore[arg-type]
    rows = lake.predictions(KNOWN)
    digests = [row["model_sha256"] for row in rows]
    first = digests.index(shipped.sha256)
    last = len(digests) - 1 - digests[::-1].index(shipped.sha256)
    assert 20 < first < last < len(digests) - 20 and set(digests[first:last]) == {shipped.sha256}

    for row in [rows[first - 1], rows[first], rows[first + 3], rows[last], rows[last + 1], rows[-1]]:
        explained = one(lake.url, row, files=[tmp_path / "old.onnx"])
        assert explained.identical, explained
        if row is not rows[first - 1]:
            assert any("and so it did here" in note for note in explained.notes)
    without = one(lake.url, rows[first + 3])
    assert not without.identical and any("it is not at hand, and the filter" in note for note in without.notes)
    missing = one(lake.url, rows[first - 1])
    assert not missing.identical and missing.recomputed is None and missing.file
    assert any(f"{old.sha256}, is not at hand: name its file with --model-file" in note for note in missing.notes)
    text = "\n".join(lines(explain(config(), lake.url, KNOWN, rows[first - 1]["event_time"])))
    assert re.search(r"^  value +[\d.]+ +- +-$", text, re.M) and "same" not in text and "not recomputed" in text


def remembering(path: Path, make: Callable[[Path], Path], **contract: Any) -> OnnxModel:
    """A step or window model of the name ``remembers``."""
    made = onnx.load(make(path))
    told = msgspec.structs.replace(CONTRACT, name="remembers", outputs=("value",), fusion=None, **contract)
    onnx.helper.set_model_props(made, {METADATA_KEY: msgspec.json.encode(told).decode()})
    onnx.save(made, path)
    return OnnxModel(path)


@pytest.mark.parametrize(
    ("make", "kind"), [(recurrent, {"kind": "step", "state_size": 4}), (windowed, {"kind": "window", "window_rows": 5})]
)
def test_what_step_and_window_models_remember_begins_anew_under_another_file(
    make: Any, kind: dict[str, Any], run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    old, new = (remembering(tmp_path / f"{v}.onnx", make, version=v, **kind) for v in ("1", "2"))
    script = Script(Chosen(old, "live"))
    steps = {8: lambda: script.__init__(Chosen(new, "live"))}  # type: ignore[misc]
    lake.live(Changing(batches[:16], steps), script, recovery=tmp_path / "state")  # type: ignore[arg-type]
    rows = lake.predictions(KNOWN)
    first = [row["model_sha256"] for row in rows].index(new.sha256)
    assert 20 < first < len(rows) - 10
    for files in (["2.onnx"], ["1.onnx", "2.onnx"]):
        for row in (rows[first], rows[first + 2], rows[first + 8]):
            explained = one(lake.url, row, files=[tmp_path / file for file in files])
            assert explained.identical, explained
            (note,) = explained.notes
            anew = f"a {kind['kind']} model begins anew under another file, and so it did here"
            assert note.endswith(f"sha256 {old.sha256}: {anew}")


def test_the_same_file_in_another_mode_is_no_replacement(
    run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    shipped, trial = OnnxModel(SHIPPED / "lg_hg2_soc.onnx"), variant(tmp_path / "trial.onnx", version="1.1.0")
    script = Script(Chosen(shipped, "live"), Chosen(trial, "shadow"))
    steps = {
        5: lambda: script.__init__(Chosen(shipped, "shadow"), Chosen(trial, "live")),  # type: ignore[misc]
        10: lambda: script.__init__(Chosen(trial, "live")),  # type: ignore[misc]
    }
    lake.live(Changing(batches[:15], steps), script, recovery=tmp_path / "state")  # type: ignore[arg-type]
    rows = [row for row in lake.predictions(KNOWN) if row["model_sha256"] == trial.sha256]
    live = [row["mode"] for row in rows].index("live")
    assert live > 10
    for row in (rows[live - 1], rows[live], rows[-1]):
        explained = one(lake.url, row, files=[tmp_path / "trial.onnx"])
        assert explained.identical and not explained.notes, explained


def test_a_file_that_was_replaced_is_named_once_whatever_its_modes(
    run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    shipped, old = OnnxModel(SHIPPED / "lg_hg2_soc.onnx"), variant(tmp_path / "old.onnx", version="0.9.0")
    script = Script(Chosen(old, "shadow"))
    steps = {
        5: lambda: script.__init__(Chosen(old, "live")),  # type: ignore[misc]
        10: lambda: script.__init__(Chosen(shipped, "live")),  # type: ignore[misc]
    }
    lake.live(Changing(batches[:15], steps), script, recovery=tmp_path / "state")  # type: ignore[arg-type]
    rows = lake.predictions(KNOWN)
    before = [row for row in rows if row["model_sha256"] == old.sha256]
    assert {row["mode"] for row in before} == {"shadow", "live"}
    explained = one(lake.url, rows[-1], files=[tmp_path / "old.onnx"])
    assert explained.identical
    (note,) = explained.notes
    assert before[-1]["event_time"].strftime("until %Y-%m-%dT%H:%M:%S") in note and old.sha256 in note
    assert note.endswith("the filter went on from its state, and so it did here")


def test_a_filter_that_had_nothing_to_go_on_from(
    run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    plain, shipped = variant(tmp_path / "plain.onnx", fusion=None), OnnxModel(SHIPPED / "lg_hg2_soc.onnx")
    script = Script(Chosen(plain, "live"))
    steps = {
        5: lambda: script.__init__(Chosen(shipped, "live")),  # type: ignore[misc]
        10: lambda: script.__init__(Chosen(plain, "live")),  # type: ignore[misc]
    }
    lake.live(Changing(batches[:15], steps), script, recovery=tmp_path / "state")  # type: ignore[arg-type]
    rows = lake.predictions(KNOWN)
    filtered = [row for row in rows if row["model_sha256"] == shipped.sha256]
    assert rows[-1]["model_sha256"] == rows[0]["model_sha256"] == plain.sha256
    files = [tmp_path / "plain.onnx"]
    anew, last = one(lake.url, filtered[2], files=files), one(lake.url, rows[-1], files=files)
    assert anew.identical and last.identical
    assert anew.notes[0].endswith("it had no filter, so the filter began anew, and so it did here")
    assert last.notes[0].endswith(f"sha256 {shipped.sha256}: this one keeps no state, so nothing went over")
    assert one(lake.url, rows[-1]).notes[-1].endswith(f"sha256 {shipped.sha256}"), "nobody knows what that one keeps"


def test_two_models_of_one_name_side_by_side_are_no_change(
    run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    trial = variant(tmp_path / "trial.onnx", version="1.1.0")
    shipped = OnnxModel(SHIPPED / "lg_hg2_soc.onnx")
    lake.live(batches, Script(Chosen(shipped, "live"), Chosen(trial, "shadow")))
    rows = lake.predictions(KNOWN)
    assert {row["mode"] for row in rows} == {"live", "shadow"}
    for row in rows[60:180:30]:
        explained = one(lake.url, row, files=[tmp_path / "trial.onnx"])
        assert explained.identical and not explained.notes
    both = explain(config(), lake.url, KNOWN, rows[-1]["event_time"], files=[tmp_path / "trial.onnx"])
    assert len(both.predictions) == 2 and both.identical


def test_fallback_by_coulomb_counting(run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    lake.live(batches, Script(Chosen(Flaky(set(range(20, 50))), "live")))
    rows = lake.predictions(KNOWN)
    modes = [row["mode"] for row in rows]
    failed = [k for k, mode in enumerate(modes) if mode == "fallback"]
    assert 5 < len(failed) < 80 and modes[0] == modes[-1] == "live"
    explained = one(lake.url, rows[failed[-1]])
    assert explained.identical and explained.agree["mode"]
    assert any(
        "mode is fallback: the model failed here, and the value is by coulomb counting" in n for n in explained.notes
    )
    after = one(lake.url, rows[failed[-1] + 1])
    assert after.identical and any(f"failed on {len(failed)} rows" in note for note in after.notes)


def test_fallback_by_a_model(run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    write(tmp_path / "spare.onnx", value=42.0)
    spare = OnnxModel(tmp_path / "spare.onnx")
    lake.live(batches, Script(Chosen(Flaky(set(range(20, 50))), "live"), Chosen(spare, "fallback")))
    rows = lake.predictions(KNOWN)
    failed = [k for k, row in enumerate(rows) if row["mode"] == "fallback"]
    assert failed and rows[failed[0]]["value"] == 42.0
    entries = (ModelEntry(name="lg_hg2_soc"), ModelEntry(name=str(tmp_path / "spare.onnx"), mode="fallback"))
    explained = one(lake.url, rows[failed[0]], config(model=entries))
    assert explained.identical and any("by the fallback model spare" in note for note in explained.notes)
    assert one(lake.url, rows[failed[-1] + 1], config(model=entries)).identical
    assert not one(lake.url, rows[failed[0]]).identical, "the fallback model is not at hand"


# --- sessions and health -------------------------------------------------------------------------


def linear(path: Path, weights: dict[str, float], bias: float, **contract: Any) -> OnnxModel:
    """A model that is linear in its inputs."""
    features = tuple(Feature(name=name, offset=0, scale=1, low=-1e6, high=1e6) for name in weights)
    made = msgspec.structs.replace(CONTRACT, outputs=("value",), name=path.stem, features=features, **contract)
    value = onnx.helper.make_tensor_value_info
    tensor = onnx.helper.make_tensor
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"]), onnx.helper.make_node("Add", ["y", "b"], ["value"])]
    graph_ = onnx.helper.make_graph(
        nodes,
        "linear",
        [value("x", onnx.TensorProto.FLOAT, [None, len(features)])],
        [value("value", onnx.TensorProto.FLOAT, [None, 1])],
        [tensor("w", 1, [len(features), 1], [*weights.values()]), tensor("b", 1, [1], [bias])],
    )
    model = onnx.helper.make_model(graph_, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)
    onnx.helper.set_model_props(model, {METADATA_KEY: msgspec.json.encode(made).decode()})
    onnx.save(model, path)
    return OnnxModel(path)


def test_soh_of_sessions_and_the_rest_of_life(run_flow: RunFlow, tmp_path: Path) -> None:
    soh = linear(
        tmp_path / "soh.onnx", {"charge_ah": 20.0}, 50.0, table="sessions", session="charge", target="soh", fusion=None
    )
    weights = {"soh_percent": 3.0, "soh_values": -1.0}
    rul = linear(tmp_path / "rul.onnx", weights, 7.0, table="health", target="rul", unit="cycles", fusion=None)
    samples = [each | {"source_offset": k} for k, each in enumerate(series(*[REST, CHARGE, REST, DISCHARGE] * 3, REST))]
    batches = [batch(samples[k : k + 500]) for k in range(0, len(samples), 500)]
    fleet = (FleetEntry(match="m*", cell_type="lg-hg2", capacity_ah=3.0, operating_volt=(2.7, 4.2)),)
    settings = config(fleet=fleet, model=tuple(ModelEntry(name=str(tmp_path / f"{n}.onnx")) for n in ("soh", "rul")))
    lake = Lake(str(tmp_path / "lake"), run_flow)
    lake.live(batches, Script(Chosen(soh, "live"), Chosen(rul, "live")), settings=settings, emits="telemetry")
    rows = lake.predictions("m")
    assert [row["target"] for row in rows].count("soh") == [row["target"] for row in rows].count("rul") == 3
    for row in rows:
        explained = one(lake.url, row, settings)
        assert explained.identical and not explained.notes, explained
        assert [i.name for i in explained.inputs] == list(
            (soh if row["target"] == "soh" else rul).contract.feature_names
        )
        place = pq.read_table(Path(lake.url) / explained.file, partitioning=None).slice(explained.row, 1).to_pylist()[0]
        assert place["source_offset"] == row["source_offset"] and place["event_time"] > row["event_time"]
    both = explain(settings, lake.url, "m", rows[-1]["event_time"])
    assert [each.stored.prediction.target for each in both.predictions] == ["soh", "rul"] and both.identical


# --- stores and replays --------------------------------------------------------------------------


def test_state_that_began_anew_with_another_store(
    run_flow: RunFlow, batches: list[pa.RecordBatch], tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), run_flow)
    lake.live(batches[:15])
    lake.live(batches[15:], store="20261122T110000Z-bbbb")
    rows = lake.predictions(KNOWN)
    for row in (rows[10], rows[-40], rows[-1]):
        assert one(lake.url, row).identical
    notes = one(lake.url, rows[-1]).notes
    assert len(notes) == 1 and notes[0].startswith("state began anew with the recovery store 20261122T110000Z-bbbb")


def test_predictions_of_a_replay(lake: Lake, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    start = lake.predictions(KNOWN)[60]["event_time"]
    replay(config(), lake.url, out, start=start, warm_up=timedelta(seconds=100))
    rows = Lake(out, lake.run_flow).predictions(KNOWN)
    assert rows[0]["event_time"] == start and rows[0]["mode"] == "replay"
    for row in (rows[0], rows[5], rows[-1]):
        explained = one(out, row)
        assert explained.identical and explained.file
        assert any("made by a replay from" in note for note in explained.notes)
    other = config(fleet=(msgspec.structs.replace(FLEET[0], capacity_ah=2.5),))
    notes = one(out, rows[5], other).notes
    assert "of the replay that made it, [[fleet]] differs" in notes


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    from voltmill.flows import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["explain", *map(str, arguments)])
        found = capsys.readouterr()
        return int(ended.value.code or 0), found.out, found.err

    return run


def test_the_command(call: Any, lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[[fleet]]\nmatch = "site-1/gw-1/*"\ncell_type = "lg-hg2"\ncapacity_ah = 3.0\n'
        "limits = { cell_voltage_volt = [2.0, 4.35], cell_temperature_celsius = [-30.0, 60.0] }\n"
    )
    where = ["-c", tmp_path / "c.toml", "--lake", lake.url]
    row = next(row for row in lake.predictions(KNOWN)[50:] if row["value"] is not None)
    time = row["event_time"].isoformat()
    status, said, _ = call(KNOWN, time, *where, "--target", "soc", "--model", row["model_sha256"][:12])
    assert status == 0 and said.endswith(f"1 of 1 predictions of {KNOWN} at {time[:-9]}Z are identical\n")
    status, said, _ = call(KNOWN, time, *where, "--json")
    found = json.loads(said)
    assert status == 0 and found["identical"] and found["predictions"][0]["identical"]
    assert found["predictions"][0]["recomputed"]["value"] == row["value"]
    status, said, _ = call(KNOWN, time, "--lake", lake.url)
    assert status == 1 and "DIFFERENT: " in said, "no fleet: the device is unknown"
    assert call("nobody", time, *where)[0] == 1
    assert call(KNOWN, "yesterday", *where)[0] == 2
    status, _, error = call(KNOWN, time, "--lake", tmp_path)
    assert status == 1 and error == f"voltmill: lake {tmp_path}: no Parquet file in predictions\n"
