"""The shipped scoring script in Azure ML's own inference server, asked by `EndpointModel`."""

import json
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import psutil
import pyarrow as pa
import pytest
import urllib3
import yaml
from azureml_server import SCORE, InferenceServer
from onnx import TensorProto, helper, numpy_helper, save_model
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from telemetry import batch, content, cut, sample

from voltmill.connectors import endpoint_wire as wire
from voltmill.connectors.endpoint import EndpointError, EndpointModel, EndpointSettings
from voltmill.flows.broker import free_port
from voltmill.flows.choice import Models
from voltmill.flows.config import parse
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.operators.contract import Contract
from voltmill.operators.estimate import EstimateState
from voltmill.operators.features import offline
from voltmill.operators.model import METADATA_KEY, SHIPPED, Chosen, ModelError, OnnxModel, load

MODEL = load("lg_hg2_soc")
assert isinstance(MODEL, OnnxModel)


def load_script() -> ModuleType:
    spec = spec_from_file_location("score", SCORE)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def window_model(path: Path) -> OnnxModel:
    """A linear layer over windows of 4 rows, with the features of the SOC model."""
    n, rows = len(MODEL.contract.features), 4
    contract = msgspec.structs.replace(MODEL.contract, kind="window", window_rows=rows, fusion=None)
    weights = np.random.default_rng(0).normal(size=(rows * n, 2)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "window",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", rows, n])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, {METADATA_KEY: msgspec.json.encode(contract).decode()})
    save_model(made, path)
    return OnnxModel(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceServer]:
    """With the shipped SOC model where Azure ML would put a registered one."""
    folder = tmp_path_factory.mktemp("azureml")
    registered = folder / "azureml-models/lg_hg2_soc/1"
    registered.mkdir(parents=True)
    shutil.copy(SHIPPED / "lg_hg2_soc.onnx", registered)
    started = InferenceServer(folder, AZUREML_MODEL_DIR=str(registered))
    try:
        started.await_ready()
        yield started
    finally:
        started.stop()


def ask(server: InferenceServer, model: OnnxModel = MODEL, **settings) -> EndpointModel:
    given = {"url": server.url, "contract": "any.json", "timeout_seconds": 20.0, "deadline_seconds": 60.0} | settings
    return EndpointModel(EndpointSettings(**given), model.contract, msgspec.json.encode(model.contract))


def inside(rows: int, seed: int = 0, contract: Contract = MODEL.contract) -> np.ndarray:
    """Random features within the valid ranges."""
    low, high = (np.array([getattr(f, end) for f in contract.features], np.float32) for end in ("low", "high"))
    return np.random.default_rng(seed).uniform(low, high, (rows, len(low))).astype(np.float32)


def test_the_bits_are_those_of_the_model_in_the_flow(server):
    rows = inside(5000)
    rows[::7, 1] = np.nan
    rows[3] = 0.0
    remote = ask(server)
    found, wanted = remote.predict(rows), MODEL.predict(rows)
    remote.close()
    sound = np.isfinite(wanted)
    assert 0.5 < sound.mean() < 1.0
    assert np.array_equal(np.isfinite(found), sound) and found[sound].tobytes() == wanted[sound].tobytes()


def test_cuts_and_company_change_nothing(server):
    rows = inside(300, seed=1)
    remote = ask(server, batch_rows=7)
    assert remote.predict(rows).tobytes() == MODEL.predict(rows).tobytes()
    remote.close()


FLEET = Fleet([FleetEntry(match="*", cell_type="lg-hg2", capacity_ah=3.0)])
TABLE = """
[[model]]
name = "remote"

[model.endpoint]
url = "{url}"
contract = "{contract}"
key = "${{KEY}}"
timeout_seconds = {timeout}
deadline_seconds = 60.0
"""


def stream(model: Chosen) -> dict[str, list[pa.RecordBatch]]:
    """What comes out of estimate for some minutes of two devices, batch by batch."""
    rows = [
        sample(5.0 * k, device_id=device, current_ampere=-1.5, cell_voltage_volt=[3.9 - 0.001 * k] * 3)
        for k in range(200)
        for device in ("a", "b")
    ]
    features = offline(batch(rows), FLEET)
    state = EstimateState(lambda: [model], FLEET)
    made = [each for part in cut(features, range(0, len(features), 70)) for each in state.apply(part)]
    made += state.collect(wait=True)
    return {kind: [each.batch for each in made if each.kind == kind] for kind in ("predictions", "failures")}


def configured(folder: Path, url: str, timeout: float = 20.0) -> Chosen:
    (folder / "soc.json").write_bytes(msgspec.json.encode(MODEL.contract))
    text = TABLE.format(url=url, contract=folder / "soc.json", timeout=timeout)
    (chosen,) = Models(parse(tomllib.loads(text), "voltmill.toml", {"KEY": "S3cr3t/4711"})).current()
    return chosen


def test_in_a_flow_its_predictions_are_those_of_the_model_itself(server, tmp_path):
    remote = configured(tmp_path, server.url)
    there, here = stream(remote), stream(Chosen(MODEL, "live"))
    assert there["failures"] == here["failures"] == []
    found, wanted = (
        content(pa.Table.from_batches(made["predictions"]).combine_chunks().to_batches()[0]) for made in (there, here)
    )
    assert found.pop("model_sha256") == repr([remote.model.sha256] * 400).encode() != wanted.pop("model_sha256")
    assert found == wanted


def test_a_dead_endpoint_falls_back_and_names_no_secret(tmp_path):
    url = f"http://127.0.0.1:{free_port()}/score"
    made = stream(configured(tmp_path, url, timeout=1.0))
    modes = {mode for part in made["predictions"] for mode in part.column("mode").to_pylist()}
    details = {letter for part in made["failures"] for letter in part.column("detail").to_pylist()}
    assert modes == {"fallback"} and sum(len(part) for part in made["predictions"]) == 400
    assert all(url in detail and "S3cr3t" not in detail for detail in details)


def test_what_is_no_request_is_refused_with_a_reason(server):
    with urllib3.HTTPConnectionPool("127.0.0.1", server.port) as pool:
        for body in (b"", b"{}", b'{"input_data": {"columns": ["a"], "data": [[1]]}}'):
            answer = pool.request("POST", "/score", body=body, retries=False, timeout=20.0)
            assert answer.status == 400 and len(answer.json()["message"]) > 20
        assert "in this order" in answer.json()["message"]
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = pool.request("POST", "/score", body=b'{"input_data": {}}', headers=form, retries=False, timeout=20.0)
        assert "Content-Type application/json" in answer.json()["message"]
    fewer = msgspec.structs.replace(MODEL.contract, features=MODEL.contract.features[:-1])
    remote = EndpointModel(EndpointSettings(url=server.url, contract="any.json"), fewer, b"")
    with pytest.raises(EndpointError, match="answers 400 .*the model takes .*compare its scoring script"):
        remote.predict(inside(2)[:, :-1])
    remote.close()


def test_nothing_is_told_to_anyone_outside(server):
    assert server.environment["AML_APP_INSIGHTS_ENABLED"] == "false"
    assert not any("INSIGHTS_KEY" in name or "CONNECTION_STRING" in name for name in server.environment)
    process = psutil.Process(server.pid)
    for each in (process, *process.children(recursive=True)):
        assert all(
            c.laddr.ip == "127.0.0.1" and (not c.raddr or c.raddr.ip == "127.0.0.1") for c in each.net_connections()
        )


def test_rows_per_second(server, capsys):
    """Not a limit but a figure, and that larger requests pay."""
    rates = {}
    for size, total in ((1, 100), (100, 2000), (1000, 8000)):
        rows, remote = inside(total), ask(server, batch_rows=size)
        remote.predict(rows[:size])
        began = time.perf_counter()
        remote.predict(rows)
        rates[size] = total / (time.perf_counter() - began)
        remote.close()
    rows = inside(100_000)
    began = time.perf_counter()
    MODEL.predict(rows)
    here = len(rows) / (time.perf_counter() - began)
    with capsys.disabled():
        print("\nendpoint:", *(f"{rate:,.0f} rows/s at {size} a request;" for size, rate in rates.items()), end=" ")
        print(f"in the process {here:,.0f} rows/s")
    assert rates[1] < rates[1000] < here


FAILING = """
import importlib.util, os
spec = importlib.util.spec_from_file_location("score", os.environ["SCORE"])
score = importlib.util.module_from_spec(spec)
spec.loader.exec_module(score)
init = score.init


class Broken:
    def __init__(self, model):
        self.model, self.contract = model, model.contract

    def predict(self, features):
        if features[0, 0] > 1e9:
            raise RuntimeError("the model broke")
        return self.model.predict(features)


def run(data):
    score.model = score.model if isinstance(score.model, Broken) else Broken(score.model)
    return score.run(data)
"""


def test_an_error_of_the_model_is_told_and_harms_no_other_request(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    server = InferenceServer(tmp_path, script=script, SCORE=str(SCORE), VOLTMILL_MODEL="lg_hg2_soc")
    retried: list[str] = []
    try:
        server.await_ready()
        settings = EndpointSettings(url=server.url, contract="any.json", timeout_seconds=20.0, deadline_seconds=60.0)
        remote = EndpointModel(settings, MODEL.contract, b"", on_retry=retried.append)
        rows = inside(3)
        rows[0, 0] = 1e10
        with pytest.raises(EndpointError, match="answers 500 .*scoring script.*the model itself failed"):
            remote.predict(rows)
        assert retried == ["500"]
        assert remote.predict(rows[1:]).tobytes() == MODEL.predict(rows[1:]).tobytes()
        remote.close()
    finally:
        server.stop()
    assert "the model broke" in server.log


def test_windows(tmp_path):
    model = window_model(tmp_path / "window.onnx")
    server = InferenceServer(tmp_path, VOLTMILL_MODEL=str(tmp_path / "window.onnx"))
    try:
        server.await_ready()
        shape = (50, model.contract.window_rows, len(model.contract.features))
        rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        remote = ask(server, model, batch_rows=20)
        assert remote.predict(rows).tobytes() == model.predict(rows).tobytes()
        remote.close()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("files", "name", "why"),
    [
        ([], "", "one ONNX file is needed, found none"),
        (["a.onnx", "b.onnx"], "", "found a.onnx, b.onnx: set VOLTMILL_MODEL"),
        (["a.onnx"], "b", "found none"),
    ],
)
def test_which_model_is_meant_must_be_clear(tmp_path, files, name, why):
    score = load_script()
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(ValueError, match=why):
        score.find_model(str(tmp_path), name)


def test_a_model_is_found_by_its_name_or_its_file(tmp_path):
    score = load_script()
    (tmp_path / "deep").mkdir()
    for file in ("a.onnx", "deep/b.onnx"):
        (tmp_path / file).touch()
    assert score.find_model(str(tmp_path), "b") == score.find_model(str(tmp_path), "b.onnx") == tmp_path / "deep/b.onnx"
    assert score.find_model("", "lg_hg2_soc") == "lg_hg2_soc"
    with pytest.raises(ValueError, match="set AZUREML_MODEL_DIR or VOLTMILL_MODEL"):
        score.find_model("", "")


def test_the_deployment_names_what_is_there():
    folder = SCORE.parent
    deployment, environment = (yaml.safe_load((folder / f"{name}.yml").read_text()) for name in ("deployment", "conda"))
    endpoint = yaml.safe_load((folder / "endpoint.yml").read_text())
    assert deployment["endpoint_name"] == endpoint["name"] and deployment["app_insights_enabled"] is False
    assert (folder / deployment["model"]["path"]).resolve() == (SHIPPED / "lg_hg2_soc.onnx").resolve()
    code = deployment["code_configuration"]
    assert (folder / code["code"] / code["scoring_script"]).is_file()
    assert (folder / deployment["environment"]["conda_file"]).is_file()
    assert f"voltmill=={version('voltmill')}" in environment["dependencies"][-1]["pip"]
    let_in = 2 * deployment["request_settings"]["max_concurrent_requests_per_instance"] * deployment["instance_count"]
    assert EndpointSettings(url="https://x.example/", contract="x").concurrency <= let_in


#: file, what stands in it, what is planted there, and a word of what azure-ai-ml says to it.
PLANTED = [
    ("endpoint.yml", "auth_mode: key", "auth_mode: password", "auth_mode"),
    ("endpoint.yml", "name: voltmill-soc", "nam: voltmill-soc", "Missing data for required field"),
    ("endpoint.yml", "name: voltmill-soc", "name: Voltmill_SOC", "expected pattern"),
    ("deployment.yml", "endpoint_name:", "endpoint_nam:", "Missing data for required field"),
    ("deployment.yml", "instance_type:", "instance_typ:", "instance_type"),
    ("deployment.yml", "instance_count: 1", "instance_count: one", "Not a valid integer"),
    ("deployment.yml", "request_timeout_ms:", "request_timeout:", "Unknown field"),
    ("deployment.yml", "scoring_script:", "script:", "Unknown field"),
    ("deployment.yml", "lg_hg2_soc.onnx", "nothing.onnx", "model"),
    ("deployment.yml", "conda_file: conda.yml", "conda_file: conda.yaml", "environment"),
    ("deployment.yml", "app_insights_enabled: false", "app_insights_enabled: perhaps", "Not a valid boolean"),
]


def test_azure_ml_reads_the_yaml_files_and_finds_planted_faults(tmp_path):
    folders = []
    for k, (file, there, planted, _) in enumerate([("endpoint.yml", "", "", ""), *PLANTED]):
        folder = tmp_path / str(k) / "deploy/azureml"
        shutil.copytree(SCORE.parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / str(k) / "operators/models").mkdir(parents=True)
        shutil.copy(SHIPPED / "lg_hg2_soc.onnx", tmp_path / str(k) / "operators/models")
        text = (folder / file).read_text()
        assert there in text
        (folder / file).write_text(text.replace(there, planted, 1))
        folders.append(str(folder))
    script = Path(__file__).with_name("azureml_yaml.py")
    ran = subprocess.run([sys.executable, script, *folders], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    good, *bad = json.loads(ran.stdout.splitlines()[-1])
    assert good == ""
    for said, (_, _, planted, word) in zip(bad, PLANTED, strict=True):
        assert word in said, (planted, said)


def test_the_environment_of_the_deployment_is_what_is_tested_here():
    """Python and the packages that conda.yml names, against pyproject.toml and the lock file."""
    root = SCORE.parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    packages = tomllib.loads((root / "uv.lock").read_text())["package"]
    locked = {package["name"]: package["version"] for package in packages}
    python, pip, rest = yaml.safe_load((SCORE.parent / "conda.yml").read_text())["dependencies"]
    assert pip == "pip" and python.removeprefix("python=") in SpecifierSet(project["project"]["requires-python"])
    wanted = {requirement.name: requirement for requirement in map(Requirement, rest["pip"])}
    assert wanted.keys() == {"azureml-inference-server-http", "voltmill"}
    for name, requirement in wanted.items():
        assert locked[name] in requirement.specifier, name
    (tested,) = (
        each for each in map(Requirement, project["dependency-groups"]["dev"]) if each.name.startswith("azureml-")
    )
    assert tested.specifier == wanted["azureml-inference-server-http"].specifier


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.onnx")), ids=lambda file: file.stem)
def test_the_script_serves_every_shipped_model_to_the_bit(file, monkeypatch):
    """Of all three tables of rows: features, sessions and health; a model that remembers rows is refused."""
    monkeypatch.delenv("AZUREML_MODEL_DIR", raising=False)
    monkeypatch.setenv("VOLTMILL_MODEL", file.stem)
    script, model = load_script(), OnnxModel(file)
    if model.contract.kind == "step":
        with pytest.raises(ModelError, match="kind step: a server keeps no state"):
            script.init()
        return
    script.init()
    rows = inside(200, contract=model.contract)
    rows[::9, 0] = np.nan
    answer = script.run(wire.request(model.contract.feature_names, rows).decode())
    assert answer.status_code == 200
    found, wanted = wire.read_answer(answer.get_data(), len(rows), len(model.contract.outputs)), model.predict(rows)
    sound = np.isfinite(wanted)
    assert (
        sound.any() and np.array_equal(np.isfinite(found), sound) and found[sound].tobytes() == wanted[sound].tobytes()
    )
