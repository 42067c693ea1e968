"""Contracts written by hand: everything that is wrong is told at once, where it is and how to mend it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltmill.operators.contract import Contract
from voltmill.operators.contract_text import contract_from, read_contract, unknown_columns
from voltmill.operators.model import SHIPPED, OnnxModel

COLUMNS = {
    "features": {"cell_voltage_mean_volt", "c_rate", "cell_temperature_mean_celsius"},
    "sessions": {"charge_ah", "duration_seconds"},
    "health": {"soh_percent"},
}
SHIPPED_ONE = msgspec.to_builtins(OnnxModel(SHIPPED / "lg_hg2_soc.onnx").contract)


@pytest.fixture
def contract() -> dict[str, Any]:
    return {
        "kind": "features",
        "name": "line",
        "version": "1",
        "target": "soc",
        "unit": "percent",
        "features": [
            {"name": "cell_voltage_mean_volt", "offset": 0, "scale": 1, "low": 2.5, "high": 4.3},
            {"name": "c_rate", "offset": 0, "scale": 1, "low": -3, "high": 3},
        ],
        "outputs": ["value"],
        "current_sign": "positive_while_charging",
        "dt_range_seconds": [0.5, 60],
        "cell_type": "lg-hg2",
        "nominal_ah": 3,
        "training_data_sha256": "00" * 32,
    }


def wrong(data: Any) -> list[str]:
    found, problems = contract_from(data, COLUMNS)
    assert (found is None) == bool(problems)
    assert all("\n" not in line for line in problems)
    return problems


def test_one_that_is_right(contract):
    found, problems = read_contract(json.dumps(contract), COLUMNS)
    assert problems == [] and found is not None and found.feature_names == ("cell_voltage_mean_volt", "c_rate")


def test_those_that_are_shipped_are_read_as_msgspec_reads_them():
    for path in SHIPPED.glob("*.onnx"):
        contract = OnnxModel(path).contract
        assert read_contract(msgspec.json.encode(contract)) == (contract, [])


def test_all_problems_at_once(contract):
    contract |= {"kind": "stepp", "colour": "red", "nominal_ah": "3", "target": "rul", "outputs": ["values"]}
    contract["features"][0] |= {"scale": 0}
    contract["features"][1] |= {"name": "crate", "high": None, "lo": 3}
    contract["conditions"] = [{"name": "charge_ah", "low": 2, "high": 1}]
    contract["fusion"] = {"process_noise": -1}
    del contract["version"]
    assert sorted(wrong(contract)) == sorted(
        [
            'unknown key "colour"',
            'kind: must be one of features, step, window (did you mean "step"?)',
            'the key "version" is missing',
            "nominal_ah: expected `float`, got `str`",
            "features[0] (cell_voltage_mean_volt): scale is above 0: 1 if the model takes the column as it is",
            'features[1]: unknown key "lo" (did you mean "low"?)',
            "features[1].high: expected `float`, got `null`",
            "conditions[0] (charge_ah): low is at most high",
            'fusion: the key "current_noise" is missing',
            'fusion: the key "correlation_seconds" is missing',
            'fusion: the key "interval_factor" is missing',
            "outputs: one of value; value, laplace_scale; value, lo90, hi90",
            "unit: percent for soc and soh, cycles for rul",
            'features[1]: no feature "crate" in the table features: did you mean "c_rate"?',
            'conditions[0]: no column "charge_ah" in the table features: the table sessions has it: '
            'set table = "sessions"',
        ]
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"fusions": {}}, 'unknown key "fusions" (did you mean "fusion"?)'),
        ({"target": "SOC"}, 'target: must be one of soc, soh, rul (did you mean "soc"?)'),
        ({"features": {}}, "features: expected `array`, got `object`"),
        ({"features": ["c_rate"]}, 'features[0]: is "c_rate": an object with the keys of a feature is wanted'),
        ({"features": []}, "features: name at least one"),
        ({"fusion": []}, "fusion: is a list: an object with the keys of a fusion is wanted"),
        ({"dt_range_seconds": [1, 2, 3]}, "dt_range_seconds: expected `array` of length 2"),
        ({"dt_range_seconds": [1, "x"]}, "dt_range_seconds[1]: expected `float`, got `str`"),
        ({"errors": {"case": {"mae": "x"}}}, "errors.case.mae: expected `float`, got `str`"),
        ({"nominal_ah": float("inf")}, "nominal_ah: is inf: a finite number is wanted"),
        ({"nominal_ah": "?"}, 'nominal_ah: is still "?": fill it in'),
        ({"dt_range_seconds": ["?", "?"]}, 'dt_range_seconds: is still "?": fill it in'),
        ({"target": "?"}, 'target: is still "?": fill it in: one of soc, soh, rul'),
        ({"name": ""}, "name, version: not empty, for predictions bear them"),
    ],
)
def test_a_place_and_a_mend(contract, change, line):
    (found,) = wrong(contract | change)
    assert found.startswith(line)


def test_what_is_blank_is_on_one_line(contract):
    contract |= {"cell_type": "?", "nominal_ah": "?"}
    assert wrong(contract) == ['still "?": cell_type, nominal_ah: fill them in']
    contract["features"] = [dict.fromkeys(("name", "offset", "scale", "low", "high"), "?")] * 4
    (line,) = wrong(contract)
    assert line.startswith('still "?": features[0].name, features[0].offset,') and line.endswith(
        "and 10 more places: fill them in"
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"', "[" * 100_000, b"\xff", '{"kind": NaN}'])
def test_what_is_no_contract_at_all(text):
    found, problems = read_contract(text)
    assert found is None and problems and all("\n" not in line for line in problems)


def test_columns_of_a_contract_that_is_there(contract):
    found, _ = contract_from(contract)
    assert found is not None and unknown_columns(found, COLUMNS) == []
    changed = msgspec.structs.replace(found.features[0], name="duration_seconds")
    found = msgspec.structs.replace(found, features=(changed,))
    assert unknown_columns(found, COLUMNS) == [
        'features[0]: no feature "duration_seconds" in the table features: the table sessions has it: '
        'set table = "sessions"'
    ]
    far = msgspec.structs.replace(found, features=(msgspec.structs.replace(changed, name="zzz"),))
    assert unknown_columns(far, COLUMNS)[0].endswith("which `voltmill models describe` lists")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.just("?"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = st.sampled_from(Contract.__struct_fields__)


@given(ANYTHING | st.dictionaries(KEYS, ANYTHING), st.dictionaries(KEYS, ANYTHING, max_size=3))
def test_whatever_stands_there_is_told_and_never_raised(data, change):
    for each in (data, SHIPPED_ONE | change):
        found, problems = contract_from(each, COLUMNS)
        assert found is None or msgspec.convert(each, Contract) == found
        assert all(line and "\n" not in line for line in problems)
        assert problems or found is not None
