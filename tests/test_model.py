"""Contracts, the loading of ONNX models, and what is refused with which words."""

import importlib.metadata
import json

import msgspec
import numpy as np
import pytest
from onnx_files import save

from voltmill.flows.choice import table_columns
from voltmill.flows.config import Config
from voltmill.operators import model as models
from voltmill.operators.contract import Contract, Feature, Fusion
from voltmill.operators.model import METADATA_KEY, SHIPPED, Model, ModelError, OnnxModel, discover, load
from voltmill.operators.onnx_file import write_metadata

KNOWN = table_columns(Config())
SOC = SHIPPED / "lg_hg2_soc.onnx"
N = len(OnnxModel(SOC).contract.features)


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def without_contract() -> bytes:
    """The shipped model with its contract under another key of the same length."""
    return SOC.read_bytes().replace(METADATA_KEY.encode(), b"somebody.contract")


def with_contract(path, changed) -> None:
    """A copy of the shipped model under another contract.

    The protobuf field (metadata_props is number 14) is written by hand: the onnx package is needed for training only.
    """
    entry = b"".join(
        bytes([tag]) + varint(len(text)) + text for tag, text in ((0x0A, METADATA_KEY.encode()), (0x12, changed))
    )
    path.write_bytes(without_contract() + b"\x72" + varint(len(entry)) + entry)


@pytest.fixture
def contract() -> dict:
    return json.loads(msgspec.json.encode(OnnxModel(SOC).contract))


def refused(path, **keys) -> str:
    with pytest.raises(ModelError) as e:
        OnnxModel(path, **keys)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_a_file_that_is_not_there(tmp_path):
    assert "nowhere.onnx: cannot be read (No such file or directory)" in refused(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize("data", [b"", b"this is no model", SOC.read_bytes()[:5000]], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_model(tmp_path, data):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert refused(path).startswith(f"{path}: ")


def test_no_contract(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(without_contract())
    assert 'has no contract (JSON in metadata_props["voltmill.contract"])' in refused(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"kind": "step"}, "state_size: above 0 for the kind step"),
        ({"kind": "step", "state_size": 4}, '1 input ("features"): the kind step has 2, (rows, 21) and (rows, 4)'),
        ({"kind": "window"}, "window_rows: above 0 for the kind window"),
        ({"kind": "window", "window_rows": 5}, "the contract says (rows, 5, 21) (5 rows of 21 features)"),
        ({"state_size": 4}, "state_size"),
        ({"kind": "window", "window_rows": 5000}, "4096 numbers a device at most"),
        ({"session": "charge"}, "session: only for the table sessions"),
        ({"table": "sessions"}, "fusion: needs target soc and table features"),
        ({"cell_type": ""}, 'cell_type: name the cell, or "*" for any'),
        ({"cell_type": "*"}, 'nominal_ah: above 0, or 0 for a model of cell_type "*"'),
        ({"conditions": [{"name": "x", "low": 2, "high": 1}]}, "conditions[0] (x): low is at most high"),
        ({"kind": "magic"}, "kind"),
        ({"target": "soup"}, "target"),
        ({"current_sign": "positive_while_discharging"}, "current_sign"),
        ({"nominal_ah": 0}, "nominal_ah"),
        ({"nominal_ah": "3"}, "nominal_ah"),
        ({"unit": "cycles"}, "unit"),
        ({"dt_range_seconds": [5, 1]}, "dt_range_seconds"),
        ({"outputs": ["laplace_scale", "value"]}, "outputs"),
        ({"outputs": ["value"]}, "laplace_scale"),
        (
            {"outputs": ["value", "laplace_scale", "third"]},
            "outputs: one of value; value, laplace_scale; value, lo90, hi90",
        ),
        ({"features": []}, "features"),
        ({"target": "soh"}, "fusion"),
        ({"fusion": None, "name": None}, "name"),
    ],
)
def test_a_contract_that_does_not_hold(tmp_path, contract, change, words):
    path = tmp_path / "m.onnx"
    with_contract(path, json.dumps(contract | change).encode())
    assert words in refused(path)


def test_a_contract_that_is_no_json(tmp_path):
    path = tmp_path / "m.onnx"
    with_contract(path, b"{")
    assert METADATA_KEY in refused(path)


def test_features_that_do_not_exist(tmp_path, contract):
    path = tmp_path / "m.onnx"
    contract["features"][3]["name"] = "moon_phase"
    with_contract(path, json.dumps(contract).encode())
    assert 'features[3]: no feature "moon_phase"' in refused(path, columns=KNOWN)
    OnnxModel(path)  # without the table there is nothing to compare with


def test_too_few_features(tmp_path, contract):
    path = tmp_path / "m.onnx"
    contract["features"].pop()
    with_contract(path, json.dumps(contract).encode())
    assert f'input "features" is (rows, {N}): the contract says (rows, {N - 1}) ({N - 1} features)' in refused(path)


def test_scaling_of_zero(tmp_path, contract):
    path = tmp_path / "m.onnx"
    contract["features"][0]["scale"] = 0
    with_contract(path, json.dumps(contract).encode())
    assert "(cell_voltage_mean_volt): scale is above 0" in refused(path)


def test_the_shipped_model_by_name():
    model = load("lg_hg2_soc", columns=KNOWN)
    assert model.contract.name == "lg_hg2_soc"
    assert model.sha256 == load(SOC).sha256 and len(model.sha256) == 64


def test_domain():
    c = OnnxModel(SOC).contract
    middle = np.array([(f.low + f.high) / 2 for f in c.features], np.float32)
    rows = np.tile(middle, (4, 1))
    rows[1, 0], rows[2, 1], rows[3, 2] = np.nan, 8.0, -40.0
    assert c.in_domain(rows).tolist() == [True, False, False, False]
    assert c.in_domain(rows[:0]).shape == (0,)


class Rule:
    """A model in plain Python: open-circuit voltage as a line."""

    contract = Contract(
        kind="features",
        name="line",
        version="1",
        target="soc",
        unit="percent",
        features=(Feature(name="cell_voltage_mean_volt", offset=0, scale=1, low=3, high=4.2),),
        outputs=("value", "laplace_scale"),
        current_sign="positive_while_charging",
        dt_range_seconds=(0, 60),
        cell_type="*",
        nominal_ah=0.0,
        training_data_sha256="",
        fusion=Fusion(process_noise=1, current_noise=1, correlation_seconds=1, interval_factor=1),
    )
    sha256 = "0" * 64

    def predict(self, features):
        return np.concatenate([(features - 3.0) / 0.012, np.full_like(features, 5)], 1)


def entry_point(monkeypatch, **points):
    """Entry points as an installed package would bring them."""

    class Point:
        def __init__(self, name, what):
            self.name, self.what = name, what

        def load(self):
            if isinstance(self.what, Exception):
                raise self.what
            return self.what

    found = [Point(n, w) for n, w in points.items()]
    assert importlib.metadata.entry_points(group=models.GROUP) is not None
    monkeypatch.setattr(models, "entry_points", lambda group: found if group == "voltmill.models" else [])


def test_models_of_other_packages(monkeypatch):
    entry_point(monkeypatch, a=Rule, b=Rule(), c=str(SOC), d=lambda: SOC)
    models_found, problems = discover(columns=KNOWN)
    assert problems == []
    assert set(models_found) == {p.stem for p in SHIPPED.glob("*.onnx")} | {"a", "b", "c", "d"}
    assert all(isinstance(m, Model) for m in models_found.values())


def test_a_broken_package_is_reported_and_harms_no_other(monkeypatch, tmp_path):
    entry_point(
        monkeypatch, gone=ImportError("no module named x"), none=lambda: 7, file=tmp_path / "no.onnx", good=Rule
    )
    models_found, problems = discover(columns=KNOWN | {"features": {"cell_voltage_mean_volt"}})
    assert "good" in models_found and not {"gone", "none", "file"} & set(models_found)
    text = "\n".join(problems)
    assert "entry point voltmill.models: gone: ImportError: no module named x" in text
    assert "none: int is no model: give it contract and sha256" in text
    assert "no.onnx: cannot be read" in text
    assert (
        "lg_hg2_soc.onnx: voltmill.contract: features[1]: no feature" in text
    )  # the narrow table above lacks its averages


@pytest.mark.parametrize("operator", ["Log", "Softplus", "Sin", "Atan", "Exp", "Tanh"])
def test_operators_that_compute_the_end_of_a_batch_otherwise(tmp_path, operator):
    """onnxruntime itself gives other bits there (Log, Softplus, Sin, Atan): the rows are filled up."""
    path = save(tmp_path / "m.onnx", [(operator, ["X"], ["y"])], {"X": [None, 1]}, {"y": [None, 1]})
    contract = msgspec.json.encode(Rule.contract).decode().replace('"value","laplace_scale"', '"value"')
    contract = contract.replace(contract[contract.index('"fusion"') :], '"fusion":null}')
    path.write_bytes(write_metadata(path.read_bytes(), METADATA_KEY, contract))
    model = OnnxModel(path)
    x = np.random.default_rng(0).uniform(3, 4.2, (333, 1)).astype(np.float32)
    whole = model.predict(x).tobytes()
    for size in (1, 2, 3, 7, 8, 15, 16, 17, 100):
        assert b"".join(model.predict(x[at : at + size]).tobytes() for at in range(0, len(x), size)) == whole
