"""The schemas: one name everywhere, documented column by column; bits and types that are stored for years."""

import re

import pyarrow as pa
import pytest

from voltmill.kernels import schema
from voltmill.kernels.feature_table import features
from voltmill.kernels.schema import LABEL, PREDICTION, PREDICTION_KEY, SCHEMAS, TELEMETRY, Quality, describe, label
from voltmill.operators.features import CARRIED


def test_the_bits_are_those_of_every_archive():
    """Written down once: archives and predictions hold these numbers."""
    assert {q.name: q.value.bit_length() - 1 for q in Quality} == {
        "DUPLICATE": 0, "LATE": 1, "OUT_OF_ORDER": 2, "CLOCK_SKEW": 3, "GAP_BEFORE": 4, "RANGE": 5, "RATE": 6,
        "STUCK": 7, "SIGN_SUSPECT": 8, "CELL_COUNT_CHANGED": 9, "SUM_MISMATCH": 10, "UNIT_CONVERTED": 11,
        "REISSUED": 12, "UNKNOWN_CELL": 13, "OUT_OF_DOMAIN": 14, "WARM_UP": 15, "MODEL_FAILED": 16,
        "PARTIAL_SESSION": 17,
    }  # fmt: skip


@pytest.mark.parametrize("found", [*SCHEMAS.values(), schema.RAW], ids=[*SCHEMAS, "raw"])
def test_every_column_is_documented_and_nullable_ones_say_what_null_means(found):
    for field in found:
        doc = field.metadata[b"doc"].decode()
        assert doc and not doc.endswith(".")
        assert f"| `{field.name}` |" in describe(found) and doc in describe(found)
        if field.nullable and field.name not in ("ingest_time", "payload", "value", "limit"):
            assert "null" in doc, field.name


def test_a_name_means_one_type_everywhere():
    types = {}
    for found in [*SCHEMAS.values(), schema.RAW]:
        for field in found:
            assert types.setdefault(field.name, field.type) == field.type, field.name


def test_units_end_the_names_of_quantities():
    quantities = [f.name for f in TELEMETRY if pa.types.is_floating(f.type) or f.type == schema.FLOATS]
    assert len(quantities) == 9
    for name in quantities:
        assert re.search("_(volt|ampere|celsius|percent|ah)$", name)


def test_the_key_of_a_prediction_is_never_null():
    assert [PREDICTION.field(name).nullable for name in PREDICTION_KEY] == [False] * 4
    assert PREDICTION.names[:4] == list(PREDICTION_KEY)


def test_features_are_no_telemetry_but_for_two_of_one_meaning():
    shared = {f.name for f in features()} & set(TELEMETRY.names)
    assert shared == {"current_ampere", "voltage_volt"}
    assert not shared & set(CARRIED)


@pytest.mark.parametrize("value, rows", [("mqtt", 3), ("mqtt", 0), (None, 2), (None, 0), ("", 1)])
def test_label(value, rows):
    column = label(value, rows)
    column.validate(full=True)
    assert column.type == LABEL and column.to_pylist() == [value] * rows
