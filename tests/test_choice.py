"""Which models run, and how a new file in their folder takes over."""

import json
import os
import shutil
from pathlib import Path

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper
from test_estimate import CONTRACT

from voltmill.flows.choice import Models
from voltmill.flows.config import Config, ConfigError, ModelEntry, ModelsSettings
from voltmill.operators.model import METADATA_KEY, SHIPPED, load


def write(path: Path, *, value: float = 50.0, **contract) -> None:
    """A model that answers the same whatever it is asked."""
    made = msgspec.structs.replace(CONTRACT, outputs=("value",), fusion=None, **{"name": path.stem} | contract)
    n = len(made.features)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Add", ["y", "b"], ["value"]),
        ],
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, n])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, [None, 1])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [n, 1], [0.0] * n),
            helper.make_tensor("b", TensorProto.FLOAT, [1], [value]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: msgspec.json.encode(made).decode()})
    partial = path.with_suffix(".partial")
    onnx.save(model, partial)
    os.replace(partial, path)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def config(folder: Path | str = "", *entries: ModelEntry, seconds: float = 5.0) -> Config:
    entries = entries or (ModelEntry(name="lg_hg2_soc"),)
    return Config(model=entries, models=ModelsSettings(folder=str(folder), look_seconds=seconds))


def told(models: Models) -> list[tuple[str, str]]:
    return [(chosen.model.contract.name, chosen.mode) for chosen in models.current()]


def test_the_models_of_the_configuration_in_their_order() -> None:
    entries = (ModelEntry(name=str(SHIPPED / "lg_hg2_soc.onnx"), mode="shadow"),)
    assert told(Models(config("", *entries))) == [("lg_hg2_soc", "shadow")]
    assert told(Models(config())) == [("lg_hg2_soc", "live")]
    assert told(Models(config(), "replay")) == [("lg_hg2_soc", "replay")]
    assert told(Models(config("", *entries), "replay")) == [("lg_hg2_soc", "shadow")]


def test_of_a_table() -> None:
    models = Models(config())
    assert len(models.of("features")()) == 1 and list(models.of("sessions")()) == []


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[\[model\]\] nowhere: cannot be read .*an ONNX file$"):
        Models(config("", ModelEntry(name="nowhere")))
    with pytest.raises(ConfigError, match=r'\(did you mean "lg_hg2_soc"\?\)'):
        Models(config("", ModelEntry(name="lg_hg2_sock")))


def test_a_file_of_the_folder_comes_before_a_shipped_model_of_its_name(folder: Path) -> None:
    write(folder / "lg_hg2_soc.onnx")
    (chosen,) = Models(config(folder)).current()
    assert chosen.mode == "live" and chosen.model.sha256 != load("lg_hg2_soc").sha256


def test_a_file_that_nobody_named_runs_in_shadow(folder: Path) -> None:
    write(folder / "candidate.onnx")
    assert told(Models(config(folder))) == [("lg_hg2_soc", "live"), ("candidate", "shadow")]


def test_a_new_file_is_found_after_a_while_and_the_others_stay_as_they_are(folder: Path) -> None:
    clock = Clock()
    models = Models(config(folder), clock=clock)
    before = models.current()
    write(folder / "lg_hg2_soc.onnx")
    assert models.current() == before, "not looked at yet"
    clock.now = 5
    (replaced,) = models.current()
    assert replaced is not before[0] and replaced.mode == "live"
    clock.now = 10
    assert models.current()[0] is replaced, "the same file is not loaded twice"
    write(folder / "lg_hg2_soc.onnx", value=51.0)
    clock.now = 15
    assert models.current()[0].model.sha256 != replaced.model.sha256


def test_a_bad_file_is_told_once_and_the_former_stays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    write(folder / "lg_hg2_soc.onnx")
    models = Models(config(folder), clock=clock)
    (before,) = models.current()
    (folder / "lg_hg2_soc.onnx").write_bytes(b"half of a model")
    for clock.now in (5, 10, 15):
        assert models.current() == (before,)
    said = [r for r in caplog.records if r.message == "model not used"]
    assert len(said) == 1 and "export it anew" in said[0].__dict__["reason"]


def test_a_bad_file_at_the_start(folder: Path) -> None:
    (folder / "lg_hg2_soc.onnx").write_bytes(b"half of a model")
    with pytest.raises(ConfigError, match=r"\[\[model\]\] .*export it anew"):
        Models(config(folder))
    (folder / "lg_hg2_soc.onnx").rename(folder / "other.onnx")
    assert told(Models(config(folder))) == [("lg_hg2_soc", "live")], "one that nobody named ends nothing"


def test_a_file_that_is_taken_away_gives_way_to_what_was_configured(folder: Path) -> None:
    clock = Clock()
    write(folder / "lg_hg2_soc.onnx")
    models = Models(config(folder), clock=clock)
    (folder / "lg_hg2_soc.onnx").unlink()
    clock.now = 5
    assert [c.model.sha256 for c in models.current()] == [load("lg_hg2_soc").sha256]


def test_a_copy_under_another_name_would_make_the_same_keys_twice(folder: Path) -> None:
    shutil.copy(SHIPPED / "lg_hg2_soc.onnx", folder / "copy.onnx")
    assert told(Models(config(folder))) == [("lg_hg2_soc", "live")]


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    clock = Clock()
    models = Models(config(tmp_path / "later"), clock=clock)
    assert told(models) == [("lg_hg2_soc", "live")] and "later is not there" in models.problems[0]
    (tmp_path / "later").mkdir()
    write(tmp_path / "later/candidate.onnx")
    clock.now = 5
    assert ("candidate", "shadow") in told(models)


def test_a_replay_ends_with_the_models_it_began_with(folder: Path) -> None:
    clock = Clock()
    models = Models(config(folder), "replay", clock=clock)
    write(folder / "candidate.onnx")
    clock.now = 50
    assert told(models) == [("lg_hg2_soc", "replay")]


def test_a_model_behind_http(tmp_path: Path) -> None:
    contract = tmp_path / "soc.json"
    contract.write_bytes(msgspec.json.encode(msgspec.structs.replace(CONTRACT, name="far")))
    endpoint = {"url": "http://127.0.0.1:9/score", "contract": str(contract), "key": "s3cret"}
    entry = msgspec.convert({"name": "far", "mode": "shadow", "endpoint": endpoint}, ModelEntry)
    (chosen,) = Models(config("", entry)).current()
    assert chosen.mode == "shadow" and chosen.model.contract.name == "far" and "s3cret" not in repr(chosen)
    contract.write_text(json.dumps(json.loads(contract.read_text()) | {"kind": "step", "state_size": 3}))
    with pytest.raises(ConfigError, match=r"\[\[model\]\] .*kind"):
        Models(config("", entry))
