"""What an ONNX file says of itself, against what the onnx package reads and writes."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx_files import recurrent, save, scikit_learn

from voltmill.operators.model import SHIPPED
from voltmill.operators.onnx_file import facts, fields, read_metadata, write_metadata

MODEL = (SHIPPED / "lg_hg2_soc.onnx").read_bytes()


def properties(data: bytes) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load_from_string(data).metadata_props}


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5), st.text(min_size=1), st.text())
def test_metadata_are_those_of_the_onnx_package(others, key, text):
    model = onnx.ModelProto()
    helper.set_model_props(model, others)
    made = write_metadata(model.SerializeToString(), key, text)
    assert properties(made) == others | {key: text}
    assert all(read_metadata(made, k) == v for k, v in (others | {key: text}).items())
    assert read_metadata(made, key + "x") == others.get(key + "x")


def test_all_else_is_kept_to_the_byte():
    made = write_metadata(MODEL, "voltmill.contract", "{}")
    before, after = onnx.load_from_string(MODEL), onnx.load_from_string(made)
    assert properties(made) == properties(MODEL) | {"voltmill.contract": "{}"}
    for model in (before, after):
        del model.metadata_props[:]
    assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
    assert write_metadata(made, "voltmill.contract", properties(MODEL)["voltmill.contract"]) == write_metadata(
        MODEL, "voltmill.contract", properties(MODEL)["voltmill.contract"]
    )


def test_an_entry_that_stands_twice_is_replaced_and_the_last_counts():
    model = onnx.load_from_string(MODEL)
    for text in ("first", "second"):
        model.metadata_props.add(key="k", value=text)
    data = model.SerializeToString()
    assert read_metadata(data, "k") == "second"
    assert [
        p.value for p in onnx.load_from_string(write_metadata(data, "k", "new")).metadata_props if p.key == "k"
    ] == ["new"]


def test_facts_are_those_of_the_onnx_package(tmp_path):
    for path in (scikit_learn(tmp_path / "a.onnx"), recurrent(tmp_path / "b.onnx"), SHIPPED / "lg_hg2_soc.onnx"):
        model, found = onnx.load(path), facts(path.read_bytes())
        assert found.ir_version == model.ir_version
        assert found.opsets == {o.domain: o.version for o in model.opset_import}
        assert found.operators == {node.op_type for node in model.graph.node}
        assert found.training == frozenset() and found.external == ""


def test_weights_in_another_file_are_found(tmp_path):
    model = onnx.load(recurrent(tmp_path / "a.onnx"))
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    assert facts((tmp_path / "b.onnx").read_bytes()).external == "b.data"


def test_training_mode_is_found(tmp_path):
    names = ("scale", "bias", "mean", "var")
    node = ("BatchNormalization", ["x", *names], ["y", "m", "v"], {"training_mode": 1})
    path = save(tmp_path / "a.onnx", [node], {"x": [None, 2]}, {"y": [None, 2]}, dict.fromkeys(names, [1.0, 1.0]))
    assert facts(path.read_bytes()).training == {"BatchNormalization"}


@given(st.binary(max_size=200))
def test_other_bytes_are_an_error_or_fields_that_cover_them(data):
    try:
        found = list(fields(data))
    except ValueError:
        return
    assert [f.start for f in found] == [0, *(f.end for f in found[:-1])][: len(found)]
    assert not found or found[-1].end == len(data)


@pytest.mark.parametrize("cut", [1, 100, len(MODEL) // 2, len(MODEL) - 1])
def test_a_model_that_was_cut_off_is_an_error_or_has_no_contract(cut):
    try:
        assert read_metadata(MODEL[:cut], "voltmill.contract") is None
    except ValueError as e:
        assert "not protobuf" in str(e)
